"""The wheel carries the course too: lessons, exercises and records stand inside the package there.

All else is in pyproject.toml. An editable install takes them from the repository.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

LEFT_OUT = shutil.ignore_patterns("__pycache__", ".*")  # what running and editing leave behind


class BuildWithCourse(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        inside = Path(self.build_lib) / "dlcourse" / "_course"
        shutil.rmtree(inside, ignore_errors=True)  # of an earlier build
        for folder in ("notebooks", "data"):
            shutil.copytree(folder, inside / folder, ignore=LEFT_OUT)


setup(cmdclass={"build_py": BuildWithCourse})
