"""Which windows of the rows an epoch has, and in which order they form batches.

The order of an epoch is a pure function of (seed, epoch), so workers, processes and resuming change nothing.
Not for what a window holds: that is `windows.py`; nor for rows that are streamed: `streamed.py`.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from ..errors import ConfigurationError, DatasetError
from .rows import scored_bins

__all__ = ["Window", "WindowSampler", "Windows", "label_mask_of"]

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Window:
    """Bins of one row that form one model input.

    Args:
        row (`int`): Index of the row.
        start (`int`): First bin, from the row's first.
        stop (`int`): One past the last bin.
        scored_from (`int`): First bin that this window may learn from; those before are past to look at.
        seed (`int`): Seed of everything random about this window.
    """

    row: int
    start: int
    stop: int
    scored_from: int
    seed: int


class Windows(Sequence[Window]):
    """Many windows as one array, which the sampler orders and the collator reads without a loop.

    Args:
        table (`np.ndarray` of shape `(windows, 5)`, int64): The fields of `Window` in their order.
    """

    def __init__(self, table: NDArray[np.int64]) -> None:
        self.table = table

    @classmethod
    def of(cls, windows: Sequence[Window]) -> "Windows":
        """Takes windows one by one.

        Args:
            windows (`Sequence[Window]`): Any number.

        Returns:
            `Windows`: The same; as it is where it is one already.
        """
        if isinstance(windows, Windows):
            return windows
        return cls(np.array([dataclasses.astuple(window) for window in windows], np.int64).reshape(-1, 5))

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, index: int) -> Window: ...
    @overload
    def __getitem__(self, index: slice) -> "Windows": ...
    def __getitem__(self, index: int | slice) -> "Window | Windows":
        if isinstance(index, slice):
            return Windows(self.table[index])
        return Window(*self.table[index].tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Windows) and np.array_equal(self.table, other.table)

    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: Sequence[Window]) -> "Windows":  # accelerate fills up batches with it
        return Windows(np.concatenate([self.table, Windows.of(other).table]))


class WindowSampler(Sampler[Any]):  # of `Windows`; a DataLoader is typed for lists
    """Yields batches of windows, in an order that only the seed and the epoch decide; a `batch_sampler`.

    In training a row longer than a window is cut on a grid with a random phase. For decoding the cells of the
    grid cover the row, each bin is learned from once an epoch, windows without scored bins are left out, and
    a window that its cell does not fill looks at bins before it. For pretraining what is left over at either
    end of a row is a shorter window if it has at least half the length, else it sits out the epoch; and each
    batch holds windows of a session in pairs that do not overlap (a session that has one window gives it
    alone; of an odd number one sits out). A row that is no longer than a window gives one.
    Otherwise (`training=False`) the grid starts at the first bin after the context and the order is that of
    the rows.

    Args:
        rows (`Sequence[Mapping]`): Rows of one split.
        window_bins (`int`): Length of a window in bins, at least 1.
        batch_size (`int`): Windows per batch, at least 2 for pretraining.
        seed (`int`, *optional*, defaults to 0): Seed of the order.
        pairs (`bool`, *optional*, defaults to `False`): True for pretraining, False for decoding.
        training (`bool`, *optional*, defaults to `True`): False for a fixed order of fixed windows.
        context_bins (`int`, *optional*, defaults to 0):
            Bins at the start of each decoding window that are only looked at (where the row has them).
        lead_bins (`int`, *optional*): At most so many bins before the first that it learns from stay in a
            decoding window of training; all where it is not given.
        label_lag (`int`, *optional*, defaults to 0): Bins by which labels come later than counts.
        session_temperature (`float`, *optional*, defaults to 1.0): T of temperature sampling (Arivazhagan et
            al. 2019, arXiv:1907.05019), at least 1. An epoch of training has as many windows as with 1, of
            which a session with n windows gives a share proportional to n^(1/T): with 1 each window once,
            with infinity as many from each session. XLM (arXiv:1901.07291) names 1/T alpha. Of a session that
            gives fewer a random part is taken, of one that gives more all are taken several times, with
            seeds of their own, and no pair holds a window twice.

    Raises:
        ConfigurationError: A number is out of range.
        DatasetError: No window can be cut.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        window_bins: int,
        batch_size: int,
        *,
        seed: int = 0,
        pairs: bool = False,
        training: bool = True,
        context_bins: int = 0,
        lead_bins: int | None = None,
        label_lag: int = 0,
        session_temperature: float = 1.0,
    ) -> None:
        if not session_temperature >= 1:
            raise ConfigurationError(
                f"`session_temperature` must be at least 1 (sessions by their size), got "
                f"{session_temperature}. Larger values even sessions out."
            )
        if window_bins < 1 or batch_size < (2 if pairs else 1) or not 0 <= context_bins < window_bins:
            raise ConfigurationError(
                f"Windows need `window_bins` >= 1, `batch_size` >= {2 if pairs else 1} and `context_bins` in "
                f"[0, window_bins), got {window_bins}, {batch_size} and {context_bins}."
            )
        if lead_bins is not None and lead_bins < 0:
            raise ConfigurationError(
                f"`lead_bins` must be 0 or more bins, or None for all there are, got {lead_bins}."
            )
        self.window_bins = window_bins
        self.lead_bins = lead_bins if training and not pairs else None
        self.windows_per_batch = batch_size
        self.seed = seed
        self.pairs = pairs
        self.training = training
        self.context_bins = context_bins
        self.session_temperature = session_temperature
        self.epoch = 0
        self.first_batch = 0
        sessions = {session: i for i, session in enumerate(sorted({row["session_id"] for row in rows}))}
        self._session_of_row = np.array([sessions[row["session_id"]] for row in rows], dtype=np.int64)
        self._first = np.array([row["num_context_bins"] if pairs else 0 for row in rows], dtype=np.int64)
        self._stop = np.array([row["num_bins"] for row in rows], dtype=np.int64)
        # Bins that can be learned from, as running sums, so that a cell is judged in one subtraction.
        masks = [] if pairs else [label_mask_of(row, label_lag) for row in rows]
        self._learnable = np.concatenate([np.zeros(1, np.int64), *masks]).cumsum()
        self._row_offset = np.cumsum([0, *map(len, masks)])
        if not len(self.windows(0)):
            raise DatasetError(
                f"{len(rows)} rows must give at least one window of {window_bins} bins, got none: there is "
                "no bin to learn from."
            )

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration runs through."""
        self.epoch = epoch

    def start_at(self, batch: int) -> None:
        """Leaves out the first batches of the next iteration, once, to go on in the middle of an epoch."""
        self.first_batch = batch

    def windows(self, epoch: int) -> Windows:
        """Lists the windows of an epoch in the order of the rows.

        Args:
            epoch (`int`): The epoch, from 0.

        Returns:
            `Windows`: All windows that are used.
        """
        generator = np.random.default_rng([self.seed, epoch if self.training else 0])
        # The first edge of the grid after the start of a row; later ones follow at the size of a cell.
        size = self.window_bins if self.pairs else self.window_bins - self.context_bins
        length = self._stop - self._first
        is_whole = length <= self.window_bins
        phase = np.full(len(length), size)
        if self.training:
            lowest = 0 if self.pairs else 1
            phase = generator.integers(lowest, lowest + size, len(length))
        phase = np.where(is_whole, length, phase)
        num_cells = np.where(length > 0, 1 - (phase - length) // size, 0)
        row = np.repeat(np.arange(len(length)), num_cells)
        cell = np.arange(len(row)) - np.repeat(np.cumsum(num_cells) - num_cells, num_cells)
        end = np.minimum(self._first[row] + phase[row] + cell * size, self._stop[row])
        begin = np.where(cell > 0, self._first[row] + phase[row] + (cell - 1) * size, self._first[row])
        start = begin if self.pairs else np.maximum(self._first[row], end - self.window_bins)
        if not self.pairs:
            offset = self._row_offset[row]
            learned = self._learnable[offset + begin]
            kept = self._learnable[offset + end] > learned
            if self.lead_bins is not None:
                first = np.searchsorted(self._learnable, learned, side="right") - 1 - offset
                start = np.maximum(start, first - self.lead_bins)
                begin = np.maximum(begin, start)
        elif self.training:
            kept = is_whole[row] | (2 * (end - begin) >= size)
        else:
            kept = np.ones(len(row), dtype=bool)
        seeds = generator.integers(0, 2**63, size=len(row))
        table = np.stack([row, start, end, begin, seeds], axis=1)[kept]
        if self.session_temperature > 1 and self.training:
            table = self._evened_out(table, np.random.default_rng([self.seed, epoch, 2]))
        return Windows(table)

    def _evened_out(self, windows: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
        """Draws as many windows as there are, from each session its share by temperature."""
        session = self._session_of_row[windows[:, 0]]
        in_session = np.bincount(session)
        weights = np.where(in_session > 0, in_session, np.nan) ** (1 / self.session_temperature)
        shares = np.nan_to_num(len(windows) * weights / np.nansum(weights))
        quota = np.floor(shares).astype(np.int64)
        quota[np.argsort(quota - shares, kind="stable")[: len(windows) - quota.sum()]] += 1
        shuffled = generator.permutation(len(windows))
        shuffled = shuffled[np.argsort(session[shuffled], kind="stable")]
        of = np.repeat(np.arange(len(quota)), quota)
        place = np.arange(len(of)) - np.repeat(np.cumsum(quota) - quota, quota)
        drawn = windows[shuffled[(np.cumsum(in_session) - in_session)[of] + place % in_session[of]]]
        # A window that is drawn again is another draw of masks and dropout.
        again = place >= in_session[of]
        drawn[again, 4] = generator.integers(0, 2**63, size=np.count_nonzero(again))
        return drawn[np.lexsort((drawn[:, 4], drawn[:, 1], drawn[:, 0]))]

    def batches(self, epoch: int) -> list[Windows]:
        """Lists the batches of an epoch.

        Args:
            epoch (`int`): The epoch, from 0.

        Returns:
            `list[Windows]`: Batches of at most `batch_size` windows.
        """
        windows = self.windows(epoch).table
        size = self.windows_per_batch
        edges = list(range(size, len(windows), size))
        if self.training:
            generator = np.random.default_rng([self.seed, epoch, 1])
            windows = windows[generator.permutation(len(windows))]
            if self.pairs:
                windows, sizes = self.paired(windows, generator)
                edges = self.batch_edges(sizes)
        return [Windows(table) for table in np.split(windows, edges) if len(table)]

    def paired(
        self, windows: NDArray[np.int64], generator: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Orders shuffled windows into pairs of a session.

        Args:
            windows (`np.ndarray` of shape `(windows, 5)`): As in `Windows`.
            generator (`np.random.Generator`): Decides the order of the pairs.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: Windows in pairs; and of each pair 2, or 1 where a session has
            one window alone.
        """
        key = self._session_of_row[windows[:, 0]]
        if self.session_temperature > 1:
            key = key * len(windows) + _times_before(windows)
            key = np.unique(key, return_inverse=True)[1]
        windows = windows[np.argsort(key, kind="stable")]
        in_session = np.bincount(key)
        in_session = in_session[in_session > 0]
        # Of an odd number one sits out, but a session that has a single window gives it alone.
        num_groups = np.maximum(in_session // 2, 1)
        group = np.arange(num_groups.sum()) - np.repeat(np.cumsum(num_groups) - num_groups, num_groups)
        first = np.repeat(np.cumsum(in_session) - in_session, num_groups) + 2 * group
        sizes = np.repeat(np.minimum(in_session, 2), num_groups)
        order = generator.permutation(len(first))
        first, sizes = first[order], sizes[order]
        second = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return windows[np.repeat(first, sizes) + second], sizes

    def batch_edges(self, sizes: NDArray[np.int64]) -> list[int]:
        """Says where batches begin so that no pair is torn.

        Args:
            sizes (`np.ndarray`): Windows of each pair, 1 or 2, in order.

        Returns:
            `list[int]`: First window of each batch but the first.
        """
        edges, filled, total = [], 0, 0
        for one in sizes.tolist():
            if filled + one > self.windows_per_batch:
                edges.append(total)
                filled = 0
            filled, total = filled + one, total + one
        return edges

    def __iter__(self) -> Iterator[Any]:
        first, self.first_batch = self.first_batch, 0
        yield from self.batches(self.epoch)[first:]

    def __len__(self) -> int:
        return len(self.batches(self.epoch))


def label_mask_of(row: Row, label_lag: int) -> NDArray[np.bool_]:
    """Says for which bins of counts the behaviour some bins later is scored.

    Args:
        row (`Mapping`): Row of a built dataset.
        label_lag (`int`): Bins by which labels come later than counts.

    Returns:
        `np.ndarray` of shape `(num_bins,)`, bool.
    """
    scored = scored_bins(row)
    return np.concatenate([scored[label_lag:], np.zeros(min(label_lag, len(scored)), dtype=bool)])


def _times_before(windows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Says of each window how often the same bins occur before it."""
    _, place = np.unique(windows[:, :2], axis=0, return_inverse=True)
    order = np.argsort(place.ravel(), kind="stable")
    counts = np.bincount(place.ravel())
    times = np.empty(len(windows), np.int64)
    times[order] = np.arange(len(windows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return times
