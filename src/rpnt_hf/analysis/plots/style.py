"""One style for all pictures, and how they are made and written.

Figures are made without pyplot, so they need no display and leave no state. Colours can be told apart by
colour-blind readers and in grey print.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rpnt_hf.analysis import PICTURES
from rpnt_hf.errors import InputError

# Okabe and Ito (2008): distinct with any colour vision.
BLACK, GREY, LIGHT = "#1a1a1a", "#6b6b6b", "#c9ccd1"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DIRECTION_COLORS = ("#0072B2", "#56B4E9", "#009E73", "#A8A000", "#E69F00", "#D55E00", "#CC79A7", "#7A4DA0")
STYLES: tuple[Any, ...] = ("-", (0, (4, 1.2)), (0, (1.2, 1.2)), (0, (6, 1.2, 1.2, 1.2)))
# With the colours, for print in grey: one more than these, so that what comes after six differs too.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 7.0,
    "axes.labelsize": 9.0,
    "axes.labelcolor": BLACK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": BLACK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": BLACK,
    "ytick.labelcolor": BLACK,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
MAP = "viridis"  # of numbers from 0 on; even in grey and with any colour vision
DPI = 200


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Writes a figure to a file, whole or not at all.

    Args:
        figure (`Figure`): What to write.
        path (`str` or `Path`): The file; its ending gives the format (png, pdf, svg).

    Returns:
        `Path`: The file.

    Raises:
        InputError: The ending is no format of pictures.
    """
    path = Path(path)
    if path.suffix.lower() not in PICTURES:
        raise InputError(f"`path` must end in {' or '.join(PICTURES)}, got '{path}'. Choose another name.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        unfinished = Path(folder) / path.name
        with rc_context(STYLE):
            figure.savefig(unfinished, dpi=DPI)
        os.replace(unfinished, path)
    return path


def new_figure(width: float, height: float) -> Figure:
    """Makes an empty figure of a size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def with_gaps(seconds: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Gives times and order of bins, with a NaN where bins do not follow one another: lines break there."""
    order = np.arange(len(seconds))
    if len(seconds) < 3:
        return seconds, order
    steps = np.diff(seconds)
    breaks = np.flatnonzero(steps > 1.5 * np.median(steps)) + 1
    return np.insert(seconds, breaks, np.nan), np.insert(order, breaks, order[breaks])
