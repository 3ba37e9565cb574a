"""Who is in the class: a file with a line for each learner, for root alone.

    python hub/class_list.py /srv/dlcourse/class.csv mina jun --lang ko    # prints two passwords
    python hub/class_list.py /srv/dlcourse/class.csv mina                  # a new one for mina

A line is name,language,salt,hash; deleting it ends the learner's right to log in. A password is
drawn here, printed once and kept as its scrypt hash (RFC 7914). The hub makes the Unix user at the
first login, so a name must be one that Unix takes, and no user that the system has for itself.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import hmac
import os
import pwd
import re
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
FIRST_USER = 1000  # below it are the system's own users, root among them
LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # none that looks like another
LENGTH = 12  # 59 bits


class Learner(NamedTuple):
    """A line of the file."""

    name: str
    lang: str
    salt: str
    hash: str


def read(path: Path) -> dict[str, Learner]:
    """The class by name.

    Raises:
        ValueError: others than the owner may read or write the file, or a line is no learner's.
    """
    status = path.stat()
    if status.st_mode & 0o077 or status.st_uid != os.getuid():
        raise ValueError(f"{path}: must be yours and readable for nobody else: chmod 600")
    found = {}
    with path.open(newline="") as file:
        for number, line in enumerate(csv.reader(file), 1):
            if len(line) != len(Learner._fields):
                raise ValueError(f"{path}:{number}: {line!r} is not name,language,salt,hash")
            found[line[0]] = Learner(*line)
    return found


def check_name(name: str) -> str:
    """Return a name that may be a learner's; ValueError else."""
    if not NAME.fullmatch(name):
        raise ValueError(f"name={name!r}: give lower-case letters, digits and '-', 31 at most")
    try:
        user = pwd.getpwnam(name).pw_uid
    except KeyError:
        return name
    if user < FIRST_USER:
        raise ValueError(f"name={name!r} is a user of the system itself: give another")
    return name


def add(path: Path, names: Sequence[str], lang: str) -> dict[str, str]:
    """Put learners into the file, or give them new passwords; returns the passwords by name."""
    learners = read(path) if path.exists() else {}
    passwords = {}
    for name in map(check_name, names):
        password = "".join(secrets.choice(LETTERS) for _ in range(LENGTH))
        salt = secrets.token_hex(16)
        learners[name] = Learner(name, lang, salt, _hash(password, salt))
        passwords[name] = password
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        csv.writer(file).writerows(learners.values())
    new.replace(path)
    return passwords


def is_right(path: Path, name: str, password: str) -> bool:
    """Whether this is the learner's password; it takes as long where there is no such learner."""
    learner = read(path).get(name)
    salt, hashed = (learner.salt, learner.hash) if learner else ("", "")
    return hmac.compare_digest(_hash(password, salt), hashed)


def _hash(password: str, salt: str) -> str:
    return hashlib.scrypt(password.encode(), salt=salt.encode(), n=2**14, r=8, p=1).hex()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--lang", choices=("ko", "en"), default="ko", help="default: ko")
    args = parser.parse_args()
    try:
        for name, password in add(args.file, args.names, args.lang).items():
            print(f"{name}  {password}")
    except (ValueError, OSError) as error:
        print(f"class_list: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
