"""One colour for each thing, the same in the live panel and in every figure.

Every pair inside a palette stays apart for readers with protanopia and deuteranopia (the test
simulates both), and every colour stands out on white and on the dark background of JupyterLab.
Starting point: M. Okabe and K. Ito, "Color universal design" (2008), moved apart in Oklab.
"""

from __future__ import annotations

CATEGORIES = {
    "parameters": "#0078d8",
    "gradients": "#f04810",
    "optimizer_state": "#e8a838",
    "activations": "#009870",
    "communication": "#984090",
    "other": "#98a8c0",
}

# What makes a thing has the colour of the thing: backward makes gradients, forward activations.
SPANS = {
    "forward": CATEGORIES["activations"],
    "backward": CATEGORIES["gradients"],
    "optimizer": CATEGORIES["optimizer_state"],
    "communication": CATEGORIES["communication"],
    "waiting": CATEGORIES["other"],
    "compute": CATEGORIES["parameters"],
}

RANKS = (
    "#5048a8",
    "#f08820",
    "#58b898",
    "#903838",
    "#00b8f8",
    "#9870a8",
    "#b86000",
    "#a048f8",
)

# States of a rank in the panel; each has its own symbol too, so that no state rests on colour.
STATES = {
    "idle": SPANS["waiting"],
    "running": SPANS["compute"],
    "waiting": SPANS["communication"],
    "dead": SPANS["backward"],
    "lost": SPANS["optimizer"],
}

# A grey with the same contrast (4.3) on white and on #111111: text and lines of figures, which
# cannot see which theme they are shown in.
INK = "#787878"
PLAIN = "#6b84a8"  # bars that stand for no category and no rank
GRID = "rgba(128,128,128,0.25)"

# Ways to do an all-reduce: the colours of ranks that the lessons on them do not use.
ALGORITHMS = {
    "tree": RANKS[4],
    "ring": RANKS[6],
    "direct": RANKS[7],
    "torch": RANKS[5],
    "naive": CATEGORIES["other"],
    "shared": PLAIN,
    "mpi": RANKS[3],
    "one_sided": RANKS[1],
}


def rank_color(rank: int) -> str:
    """Colour of a rank, `#rrggbb`; ranks above 7 take the eight colours again in turn."""
    return RANKS[rank % len(RANKS)]


def text_on(color: str) -> str:
    """Black or white, whichever reads better on `color` (`#rrggbb`)."""
    red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    # Relative luminance by WCAG, with the plain power 2.2; the contrasts meet at 0.18.
    luminance = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2
    return "#000000" if luminance > 0.18 else "#ffffff"
