"""What the course adds to Jupyter's server: trust in its notebooks, kernels that know it, ticks.

The settings in `lab/` make the server load this module, so it holds for `dlcourse lab`, for Binder
and under a hub alike. Nothing here may keep the server from starting.
"""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from dlcourse.course import catalog, own_network
from dlcourse.light_nbformat import nbformat

EXTENSION = "dlcourse.course.kernel"
_TABLE = {"table", "thead", "tbody", "tr", "th", "td", "caption", "p"}  # and a sentence below it
_LOOKS = {"class", "style", "scope"}


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": __name__}]


def _load_jupyter_server_extension(server: Any) -> None:
    try:
        kernels = write_kernel_spec(Path(server.runtime_dir) / "dlcourse" / "kernels")
        # Before the user's own: a notebook that asks for "python3" gets the course's kernel.
        server.kernel_spec_manager.kernel_dirs.insert(0, str(kernels))
    except Exception as error:
        server.log.warning(f"dlcourse: kernels start without the course's extension: {error}")
    # When all extensions are loaded: Jupytext's puts another contents manager in place of this one
    server.io_loop.add_callback(_tick, server)
    try:
        sign_notebooks(catalog.course_root(), server.contents_manager.notary)
    except Exception as error:
        server.log.warning(f"dlcourse: notebooks are not signed: {error}")


def _tick(server: Any) -> None:
    try:
        from dlcourse.course.exercises.registry import exercise_ids
        from dlcourse.course.progress import show_on_start_page

        show_on_start_page(server.contents_manager, exercise_ids)
    except Exception as error:
        server.log.warning(f"dlcourse: the start page shows no progress: {error}")


def write_kernel_spec(folder: Path) -> Path:
    """Describe a "python3" that is this Python's own kernel with the course's extension.

    Made at each start from what the installed ipykernel says of itself, so that it never lacks
    what a newer one can do. Returns ``folder``, for the list of folders with kernels.
    """
    from ipykernel.kernelspec import RESOURCES, get_kernel_dict

    spec = get_kernel_dict(extra_arguments=[f"--ext={EXTENSION}"])
    spec["argv"][0] = "python"  # Jupyter takes the Python that the server itself runs on
    if own_network.wanted():
        launcher = spec["argv"].index("ipykernel_launcher")  # behind "-m"
        spec["argv"][launcher - 1 : launcher + 1] = ["-P", "-m", own_network.__name__]
    place = folder / "python3"
    shutil.copytree(RESOURCES, place, dirs_exist_ok=True)  # the pictures of the launcher
    (place / "kernel.json").write_text(json.dumps(spec, indent=1), encoding="utf-8")
    return folder


def sign_notebooks(root: Path, notary: Any) -> list[Path]:
    """Sign the lessons whose stored outputs are plain text or tables; returns those signed now.

    A few cells come with the output that they must give. Unless the notebook is signed, Lab takes
    all outputs for a stranger's, and after a reload shows no panel and no figure, even of cells
    that the learner ran. What could act on the page (HTML that is more than a table, a script) is
    never signed here: such a notebook is not as the course ships it.
    """
    signed = []
    for lang in catalog.LANGUAGES:
        for name in catalog.written_lessons(root):
            path = catalog.notebook_path(root, lang, name)
            try:
                notebook = nbformat.read(path, as_version=4)
            except Exception:  # missing, or broken by hand: Lab itself will say so
                continue
            if not notary.check_signature(notebook) and _harmless(notebook):
                notary.sign(notebook)
                signed.append(path)
    return signed


def _harmless(notebook: Any) -> bool:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return all(
        kind == "text/plain" or (kind == "text/html" and _is_table(text))
        for output in outputs
        for kind, text in output.get("data", {}).items()
    )


def _is_table(page: str) -> bool:
    """Whether HTML is a table and nothing else: no link, picture, script or handler."""
    seen: list[bool] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            plain = all(name in _LOOKS and "(" not in (value or "") for name, value in attrs)
            seen.append(tag in _TABLE and plain)

        def handle_comment(self, data: str) -> None:
            seen.append(False)

        handle_decl = handle_pi = unknown_decl = handle_comment  # type: ignore[assignment]  # names

    reader = Reader()
    reader.feed(page)
    reader.close()
    return all(seen)
