"""The course as a site to read, in both languages, which asks no other host: `make site`.

python docs/make_site.py                    # build/site, from the kept runs
python docs/make_site.py --execute 03 05    # first run these lessons again, in both languages
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import executions
import pages

from dlcourse.course import catalog

DOCS = Path(__file__).resolve().parent
LANGUAGES = ("ko", "en")
SHARED = "shared"  # libraries of pages in both languages


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DOCS.parent / "build" / "site")
    parser.add_argument("--execute", nargs="*", metavar="NN", help="first run these (none: all)")
    parser.add_argument("--keep", type=Path, help="first keep what `dlcourse run --out` left here")
    args = parser.parse_args()
    if args.execute is not None:
        wanted = [catalog.find_lesson(n, catalog.course_root()) for n in args.execute]
        for name in wanted or executions.lessons():
            for lang in LANGUAGES:
                print(executions.execute(name, lang).relative_to(DOCS.parent), flush=True)
    for path in sorted(args.keep.glob("*.*.ipynb")) if args.keep else ():
        print(executions.keep(path).relative_to(DOCS.parent))
    for line in build(args.out):
        print(line)
    print(f"{args.out}: look at it by `python3 -m http.server -d {args.out}`")
    return 0


def build(out: Path) -> list[str]:
    """Make the site in `out`, in place of the one before; returns which kept runs are out of date.

    Raises:
        ValueError: a lesson has no kept run, or `out` holds something else than a site.
        subprocess.CalledProcessError: Sphinx failed, and has said why.
        RuntimeError: Pagefind failed.
    """
    if out.exists() and any(out.iterdir()) and not (out / SHARED).is_dir():
        raise ValueError(f"--out {out} holds something else than a site; name an empty folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    stale = []
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".site") as folder:
        source, made = Path(folder) / "source", Path(folder) / "made"
        for lang in LANGUAGES:
            stale += pages.write(source / lang, lang)
            sphinx = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", str(DOCS)]
            options = ["-D", f"language={lang}", "-d", str(source / f"{lang}.doctrees")]
            subprocess.run([*sphinx, *options, str(source / lang), str(made / lang)], check=True)
        shutil.rmtree(made / "jupyter_execute", ignore_errors=True)  # what MyST-NB leaves beside
        _share(made / SHARED)
        shutil.copy(DOCS / "first.html", made / "index.html")
        pagefind = [sys.executable, "-m", "pagefind", "--site", str(made), "--quiet"]
        options = ["--root-selector=article.bd-article", "--exclude-selectors=a.headerlink"]
        # It warns that Korean has no stemming. Words are found by their start: 통신을 by 통신.
        done = subprocess.run([*pagefind, *options], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"Pagefind failed: {done.stderr}")
        shutil.rmtree(out, ignore_errors=True)
        made.rename(out)
    return stale


def _share(folder: Path) -> None:
    """From the installed packages that bring them."""
    folder.mkdir()
    for package, file in (("plotly", "package_data/plotly.min.js"), ("mmdc", "assets/mermaid.js")):
        spec = find_spec(package)
        assert spec and spec.origin
        shutil.copy(Path(spec.origin).parent / file, folder)


if __name__ == "__main__":
    sys.exit(main())
