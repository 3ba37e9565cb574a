"""What a JupyterHub starts for a learner: their own lessons, in their language, for nobody else.

    c.Spawner.cmd = [sys.executable, "-P", "-m", "dlcourse.course.singleuser"]

It runs as the learner, makes the place ready, and becomes the hub's own `jupyterhub-singleuser`.
The hub says by variables what is wanted: DLCOURSE_LANG (ko or en), DLCOURSE_OWN_NETWORK (see
`own_network.py`), and DLCOURSE_COPY=0 where the lessons come by an nbgitpuller link instead.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from dlcourse.course import catalog, learner_copy, merge_notebook, serve
from dlcourse.words import strings

COPY = "DLCOURSE_COPY"
RUNTIME = ".dlcourse-run"  # in the home; a socket's name, with it, has at most 107 bytes


def prepare(home: Path) -> dict[str, str]:
    """Close the home to others, copy the lessons into it; returns variables for the server.

    A home that is full is no reason to shut its learner out: only there files can be removed.

    Raises:
        OSError: the home may not be written.
    """
    os.umask(0o077)
    mode = stat.S_IMODE(home.stat().st_mode)
    if mode & 0o077:
        home.chmod(mode & 0o700)
    runtime = home / RUNTIME
    runtime.mkdir(mode=0o700, exist_ok=True)
    lang = strings.language()
    attributes = runtime / "gitattributes"
    try:
        if os.environ.get(COPY) != "0":
            learner_copy.copy_lessons(catalog.course_root(), home)
        attributes.write_text(merge_notebook.ATTRIBUTES)
    except OSError as error:
        print(f"dlcourse: the lessons are not copied: {error}", file=sys.stderr)
    page = f"/lab/tree/notebooks/{lang}/{catalog.INDEX}.md"
    return {
        **serve.lab_environment(lang),
        **merge_notebook.settings(attributes),  # for nbgitpuller, which calls git
        "JUPYTER_RUNTIME_DIR": str(runtime),
        "JUPYTERHUB_DEFAULT_URL": os.environ.get("JUPYTERHUB_DEFAULT_URL") or page,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Become the learner's server; the arguments are those of `jupyterhub-singleuser`."""
    home = Path.home()
    environment = {**os.environ, **prepare(home)}
    os.chdir(home)
    given = sys.argv[1:] if argv is None else argv
    command = [sys.executable, "-P", "-m", "jupyterhub.singleuser", *given]
    sys.stdout.flush()
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    main()
