"""Plots for docs/: no background and mid greys, so that they read on light and dark pages and in print."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from record import ROOT

FOLDER = ROOT / "docs" / "pictures"
TEXT = "#767676"
"""4.5 to 1 against white and black alike."""
COLOURS = ("#0072B2", "#E69F00", "#CC79A7", "#009E73")
"""Okabe and Ito's, which differ in lightness too; markers tell them apart besides."""
MARKERS = ("o", "s", "^", "D")


@contextlib.contextmanager
def panels(name: str, count: int = 1, width: float = 4.6, height: float = 3.4) -> Iterator[Any]:
    """`count` axes side by side (a list), written to docs/pictures/NAME.svg at the end, with text as text."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    greys = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), TEXT)
    style = {
        **greys, "font.size": 10, "svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif",
        "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left", "axes.titlesize": 10,
        "legend.frameon": False,
    }  # fmt: skip
    with pyplot.rc_context(style):
        figure, axes = pyplot.subplots(1, count, figsize=(width * count, height), squeeze=False)
        yield list(axes[0])
        figure.tight_layout()
        figure.savefig(FOLDER / f"{name}.svg", transparent=True, metadata={"Date": None})
        pyplot.close(figure)
