"""A plot of decoded against true movement in a terminal, drawn over itself while a recording is replayed.

Plain characters and cursor movements; nothing to install. Not for figures: those are in `plots.py`.
"""

import shutil
import time
from collections import deque
from collections.abc import Sequence
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from rpnt_hf.replay import ReplayedBin

__all__ = ["TerminalPlot"]

ROWS = 7
PATH_COLUMNS = 26
DECODED, TRUE, BOTH = "o", ".", "@"
FRAMES_PER_SECOND = 10.0


class TerminalPlot:
    """Draws the last seconds of a stream: a strip for each target and, of x and y, the path.

    Call it with each decoded bin. It draws ten times a second at most, so that it takes little time from the
    decoder.

    Args:
        names (`Sequence[str]`): Names of the targets, such as "cursor_vel_x".
        mean (`Sequence[float]`): Middle of the strip of each target.
        std (`Sequence[float]`): A third of half its height.
        bin_size (`float`): Width of a bin in s.
        stream (`TextIO`): Terminal to draw on.
    """

    def __init__(
        self,
        names: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        bin_size: float,
        stream: TextIO,
    ) -> None:
        self.names, self.stream, self.bin_size = list(names), stream, bin_size
        self.mean, self.std = np.asarray(mean, float), np.maximum(np.asarray(std, float), 1e-9)
        endings = [name.rpartition("_")[2] for name in names]
        self.has_path = endings[:2] == ["x", "y"] and ("_vel_" in names[0] or "_pos_" in names[0])
        columns = shutil.get_terminal_size().columns - 2
        self.columns = max(min(columns - (PATH_COLUMNS + 3 if self.has_path else 0), 100), 10)
        self._bins: deque[ReplayedBin] = deque(maxlen=self.columns)
        self._num_bins = self._num_late = self._lines_drawn = 0
        self._next_frame = 0.0

    def __call__(self, bin_: ReplayedBin) -> None:
        """Takes a bin, and draws where it is time to.

        Args:
            bin_ (`ReplayedBin`): The bin that was just decoded.
        """
        self._bins.append(bin_)
        self._num_bins += 1
        self._num_late += bin_.is_late
        now = time.perf_counter()
        if now >= self._next_frame:
            self._next_frame = now + 1 / FRAMES_PER_SECOND
            self.draw()

    def draw(self) -> None:
        """Draws over what was drawn last."""
        lines = self.frame()
        up = f"\x1b[{self._lines_drawn}A" if self._lines_drawn else ""
        self.stream.write(up + "".join(f"\x1b[2K{line}\n" for line in lines))
        self.stream.flush()
        self._lines_drawn = len(lines)

    def frame(self) -> list[str]:
        """Gives the lines of the plot as they stand now.

        Returns:
            `list[str]`: A title and `ROWS` lines for each target, and a line with time and latency.
        """
        predictions = np.array([bin_.prediction for bin_ in self._bins]).reshape(-1, len(self.names))
        truth = np.array([bin_.truth for bin_ in self._bins]).reshape(-1, len(self.names))
        lines = []
        for k, name in enumerate(self.names):
            levels = [(values[:, k] - self.mean[k]) / (3 * self.std[k]) for values in (predictions, truth)]
            places = np.arange(len(self._bins)) / max(self.columns - 1, 1) * 2 - 1
            lines.append(f"{name}   {DECODED} decoded  {TRUE} true")
            lines += _canvas(self.columns, ROWS, [(places, level) for level in levels])
        if self.has_path:
            paths = [self._path(values[:, :2]) for values in (predictions, truth)]
            reach = max([float(np.abs(path).max()) for path in paths if path.size] + [1e-9])
            canvas = _canvas(
                PATH_COLUMNS, len(lines) - 1, [(path[:, 0] / reach, path[:, 1] / reach) for path in paths]
            )
            titled = [f"path of the last {len(self._bins) * self.bin_size:.1f} s", *canvas]
            lines = [f"{left:<{self.columns}} | {right}" for left, right in zip(lines, titled, strict=True)]
        if self._bins:
            latencies = 1000 * np.array([bin_.latency for bin_ in self._bins])
            lines.append(
                f"time {self._bins[-1].time:.2f} s  bins {self._num_bins}  step {latencies[-1]:.2f} ms "
                f"(p95 {np.percentile(latencies, 95):.2f})  missed deadlines {self._num_late}"
            )
        return lines

    def _path(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Positions from their middle, or velocities summed up from the origin; without gaps."""
        values = values[np.isfinite(values).all(axis=1)]
        if "_vel_" in self.names[0]:
            return np.cumsum(values * self.bin_size, axis=0)
        return values - self.mean[:2]


def _canvas(
    columns: int, rows: int, curves: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]
) -> list[str]:
    """Draws decoded and true points of [-1, 1] x [-1, 1] into characters; points beyond lie on the edge."""
    marks = np.zeros((rows, columns), dtype=np.int64)
    for bit, (x, y) in enumerate(curves):
        drawn = np.isfinite(x) & np.isfinite(y)
        right = np.rint((np.clip(x[drawn], -1, 1) + 1) / 2 * (columns - 1)).astype(np.int64)
        up = np.rint((np.clip(y[drawn], -1, 1) + 1) / 2 * (rows - 1)).astype(np.int64)
        marks[rows - 1 - up, right] |= 1 << bit
    return ["".join((" ", DECODED, TRUE, BOTH)[mark] for mark in row) for row in marks]
