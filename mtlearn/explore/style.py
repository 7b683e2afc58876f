"""Colours and figure style of the suite: the palette of Okabe and Ito (2008), which colour-blind readers can tell apart."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from matplotlib.rcsetup import cycler

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, BLACK = "#CC79A7", "#56B4E9", "#F0E442", "#000000"
GREY, LIGHT = "#767676", "#DDDDDD"
CYCLE = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK)
SEQUENTIAL = "cividis"  # for quantities from low to high
DIVERGING = "PuOr"  # for quantities around zero

RC: dict[Any, Any] = {
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=CYCLE),
    "image.cmap": SEQUENTIAL,
    "lines.linewidth": 2,
    "svg.hashsalt": "mtlearn",
    "svg.fonttype": "none",  # text stays text: smaller, and it can be searched
}


@contextmanager
def suite_style() -> Iterator[None]:
    """A context in which everything is drawn in the suite's style."""
    with mpl.rc_context(RC):
        yield
