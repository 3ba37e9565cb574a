"""The keys by which agents and ranks of other machines prove to the notebook that they may speak.

They travel in a file of the folder that all machines share, which only its owner may read; never
on a command line, which everybody on the machine can see.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Channel:
    """Where the notebook listens, its public key, and the one pair of keys that it lets in.

    Keys are in ZeroMQ's Z85 (RFC 32); the encryption is CURVE (RFC 26).
    """

    address: str
    server: str
    client: str
    secret: str

    def save(self, path: Path) -> None:
        """Write it for the owner alone; a reader finds all of it or nothing."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(asdict(self), file)
        new.replace(path)

    @classmethod
    def load(cls, path: Path) -> Channel:
        """Read it.

        Raises:
            ValueError: if others may read the file, or it is another user's.
        """
        status = path.stat()
        if status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise ValueError(
                f"{path}: is not a file of yours that only you can read (chmod 600): whoever reads "
                "it can run programs as you"
            )
        return cls(**json.loads(path.read_text()))
