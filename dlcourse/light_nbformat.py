"""nbformat without a second of waiting: ``from dlcourse.light_nbformat import nbformat``.

nbformat brings jsonschema, which imports rfc3987_syntax where that is installed, as JupyterLab has
it (jsonschema 4.26, ``_format.py``). On import it builds 39 grammars, to check addresses with
letters beyond ASCII: 0.8 s and 20 MiB in each process, and no schema of notebooks has any. plotly
imports nbformat when it shows its first figure, so a lesson's kernel pays for it, too.
"""

from __future__ import annotations

import sys

_SLOW = "rfc3987_syntax"

_hidden = _SLOW not in sys.modules
if _hidden:
    sys.modules[_SLOW] = None  # type: ignore[assignment]  # an import of it fails at once
try:
    import nbformat
finally:
    if _hidden:
        del sys.modules[_SLOW]  # who wants it himself gets it

__all__ = ["nbformat"]
