"""Pretraining on rows that stay where they are, on a disk or at a URL, and are read as windows need them.

An epoch goes through row groups in a random order, some at a time, and shuffles windows among those: memory
holds a few groups, whatever the corpus. The plan of an epoch needs only the small columns of all rows, which
are read first, so it is a pure function of (seed, epoch, processes) and resumes exactly.

What cannot be done so: finetuning and evaluation, which need behaviour of all rows at once (label statistics,
trials by count); a shuffle over the whole corpus; equal windows at another number of processes. Validation
rows are downloaded, not streamed.
"""

import heapq
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..errors import ConfigurationError, DatasetError
from .remote import RangeFile, RemoteDataset
from .sampling import Window, Windows, WindowSampler
from .windows import WindowBatch, WindowDataset

__all__ = ["StreamSampler", "StreamedWindows", "recorded_unit_means", "stream_rows"]

Row = Mapping[str, Any]

SMALL_COLUMNS = (
    "session_id", "subject_id", "task", "recording_date", "site_ids", "site_positions", "bin_size",
    "start_time", "num_bins", "num_context_bins", "unit_ids", "unit_sites",
)  # fmt: skip
LARGE_COLUMNS = ("counts", "observed")
NOT_STREAMED: dict[str, Any] = {
    "behavior_names": [],
    "behavior_units": [],
    "trials": [],
    "behavior": b"",
}
GROUPS_IN_MEMORY = 16  # of up to 8 MiB each, or of one row
THREADS = 4  # that read ahead


def stream_rows(
    data: str | Path, config_name: str | None = None, split: str = "train"
) -> list[dict[str, Any]]:
    """Reads the small columns of all rows, and where the counts of each lie.

    Args:
        data (`str` or `Path`): URL of a folder that `rpnt build` wrote, a folder, or a name on the Hub.
        config_name (`str`, *optional*): Part of the corpus; None where there is only one.
        split (`str`, *optional*, defaults to `"train"`): Split.

    Returns:
        `list[dict]`: Rows without counts, behaviour and trials, with `place`: URL and size of the file, row
        group, and row of it.

    Raises:
        DatasetError: The dataset cannot be reached or read.
    """
    files = RemoteDataset.open(data).files(config_name, split)
    with ThreadPoolExecutor(THREADS) as pool:
        return [row for rows in pool.map(_small_columns, files) for row in rows]


def _small_columns(file: tuple[str, int]) -> list[dict[str, Any]]:
    url, size = file
    rows: list[dict[str, Any]] = []
    with _open_parquet(url, size) as parquet:
        for group in range(parquet.num_row_groups):
            table = parquet.read_row_group(group, columns=list(SMALL_COLUMNS)).select(SMALL_COLUMNS)
            for index, row in enumerate(table.to_pylist()):
                if rows:  # rows of a session share their lists
                    row = {name: rows[-1][name] if rows[-1][name] == row[name] else row[name] for name in row}
                rows.append(row | NOT_STREAMED | {"place": (url, size, group, index)})
    return rows


@contextmanager
def _open_parquet(url: str, size: int) -> Iterator[pq.ParquetFile]:
    """Opens a file and reads it with the checksums of its pages, where it has any."""
    try:
        with pq.ParquetFile(
            RangeFile(url, size), pre_buffer=True, page_checksum_verification=True
        ) as parquet:
            yield parquet
    except DatasetError:
        raise
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DatasetError(
            f"A file of a dataset must be Parquet as it was built, but '{url}' cannot be read. Fetch or "
            f"build it again. ({(str(error) or type(error).__name__).splitlines()[0]})"
        ) from error


def recorded_unit_means(data: str | Path, rows: Sequence[Row]) -> dict[str, NDArray[np.float64]]:
    """Gives the mean count per bin of every unit as it was counted when the dataset was built.

    Args:
        data (`str` or `Path`): As for `stream_rows`.
        rows (`Sequence[Mapping]`): Training rows.

    Returns:
        `dict[str, np.ndarray]`: Per session, shape `(num_units,)`; what `loading.unit_means` measures.

    Raises:
        DatasetError: The dataset does not say it.
    """
    unit_sites = {row["session_id"]: np.asarray(row["unit_sites"], np.int64) for row in rows}
    sums: dict[str, NDArray[np.float64]] = {}
    bins: dict[str, NDArray[np.float64]] = {}
    for session in RemoteDataset.open(data).build["sessions"]:
        if "train_unit_spikes" not in session:
            raise DatasetError(
                f"A dataset must say how often its units fire to be streamed, but '{data}' does not. "
                "Build it again with this version of rpnt_hf."
            )
        name = session["session_id"]
        if name in unit_sites:
            counted = np.asarray(session["train_unit_spikes"], np.float64)
            of_sites = np.asarray(session["train_site_bins"], np.float64)
            sums[name] = sums.get(name, np.zeros_like(counted)) + counted
            bins[name] = bins.get(name, np.zeros_like(of_sites)) + of_sites
    return {name: sums[name] / np.maximum(bins[name][unit_sites[name]], 1) for name in sums}


class StreamSampler(WindowSampler):
    """Orders windows so that few row groups are needed at a time, and each process needs groups of its own.

    In every epoch row groups are dealt out to the processes in a random order, about equally many windows to
    each. A batch has equal parts, one after another, for the processes, each of windows of its own groups;
    where a process has fewer windows than another it begins its own again. Sessions that have one window
    among the groups in memory give theirs in twos, or not at all.

    Args:
        rows (`Sequence[Mapping]`): Rows as from `stream_rows`.
        window_bins (`int`): Length of a window in bins.
        batch_size (`int`): Windows per batch of all processes, at least 2 for each.
        seed (`int`, *optional*, defaults to 0): Seed of the order.
        num_streams (`int`, *optional*, defaults to 1): Processes.
        groups_in_memory (`int`, *optional*, defaults to 16): Row groups among which windows are shuffled.
        session_temperature (`float`, *optional*, defaults to 1.0): As for `WindowSampler`.

    Raises:
        ConfigurationError: A number is out of range.
        DatasetError: No window can be cut, or there are fewer row groups than processes.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        window_bins: int,
        batch_size: int,
        *,
        seed: int = 0,
        num_streams: int = 1,
        groups_in_memory: int = GROUPS_IN_MEMORY,
        session_temperature: float = 1.0,
    ) -> None:
        if batch_size < 2 * num_streams:
            raise ConfigurationError(
                f"`batch_size` must be at least 2 for each of {num_streams} processes, got {batch_size} "
                "for all."
            )
        self.num_streams = num_streams
        self.groups_in_memory = groups_in_memory
        self.group_of_row = group_rows(rows)
        self.num_groups = int(self.group_of_row.max(initial=-1)) + 1
        if self.num_groups < num_streams:
            raise DatasetError(
                f"Streamed rows must lie in at least as many row groups as there are processes, got "
                f"{self.num_groups} and {num_streams}. Train without `streaming`, or with fewer processes."
            )
        super().__init__(
            rows, window_bins, batch_size, seed=seed, pairs=True, session_temperature=session_temperature
        )

    def streams(self, epoch: int) -> list[list[int]]:
        """Deals row groups out to the processes.

        Args:
            epoch (`int`): The epoch, from 0.

        Returns:
            `list[list[int]]`: Groups of each process, in the order in which they are needed.
        """
        return self._deal(epoch, self.windows(epoch).table)

    def _deal(self, epoch: int, windows: NDArray[np.int64]) -> list[list[int]]:
        sizes = np.bincount(self.group_of_row[windows[:, 0]], minlength=self.num_groups)
        order = np.random.default_rng([self.seed, epoch, 3]).permutation(self.num_groups)
        streams: list[list[int]] = [[] for _ in range(self.num_streams)]
        filled = [(0, stream) for stream in range(self.num_streams)]
        for group in order.tolist():
            if sizes[group]:
                number, stream = heapq.heappop(filled)
                streams[stream].append(group)
                heapq.heappush(filled, (number + int(sizes[group]), stream))
        return streams

    def batches(self, epoch: int) -> list[Windows]:
        """Lists the batches of an epoch, those of all processes in turn.

        Args:
            epoch (`int`): The epoch, from 0.

        Returns:
            `list[Windows]`: Batches of at most `batch_size` windows.
        """
        windows = self.windows(epoch).table
        generator = np.random.default_rng([self.seed, epoch, 1])
        windows = windows[generator.permutation(len(windows))]
        group_of_window = self.group_of_row[windows[:, 0]]
        block_of_group = np.full(self.num_groups, -1)
        stream_of_group = np.full(self.num_groups, -1)
        for stream, groups in enumerate(self._deal(epoch, windows)):
            block_of_group[groups] = np.arange(len(groups)) // self.groups_in_memory
            stream_of_group[groups] = stream
        own_size = self.windows_per_batch // self.num_streams // 2 * 2
        ordered: list[NDArray[np.int64]] = []
        for stream in range(self.num_streams):
            own = windows[stream_of_group[group_of_window] == stream]
            block = block_of_group[self.group_of_row[own[:, 0]]]
            parts = [
                self._pairs_only(own[block == one], generator)
                for one in range(int(block.max(initial=-1)) + 1)
            ]
            if not sum(map(len, parts)):
                raise DatasetError(
                    f"Every process must have windows in each epoch, but process {stream} of "
                    f"{self.num_streams} has none. Train with fewer processes, or without `streaming`."
                )
            ordered.append(np.concatenate(parts))
        longest = max(map(len, ordered))
        ordered = [own[np.arange(longest) % len(own)] for own in ordered]
        return [
            Windows(np.concatenate([own[first : first + own_size] for own in ordered]))
            for first in range(0, longest, own_size)
        ]

    def _pairs_only(self, windows: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
        """Orders windows in pairs, then those of sessions that have one, of which an odd one sits out."""
        ordered, sizes = self.paired(windows, generator)
        is_alone = np.repeat(sizes == 1, sizes)
        alone = ordered[is_alone]
        return np.concatenate([ordered[~is_alone], alone[: len(alone) // 2 * 2]])


def group_rows(rows: Sequence[Row]) -> NDArray[np.int64]:
    """Numbers the row groups of streamed rows.

    Args:
        rows (`Sequence[Mapping]`): As from `stream_rows`.

    Returns:
        `np.ndarray` of shape `(num_rows,)`, int64: Number of the group of each row, from 0.
    """
    numbers: dict[tuple[str, int], int] = {}
    return np.array(
        [numbers.setdefault((row["place"][0], row["place"][2]), len(numbers)) for row in rows], np.int64
    )


class StreamedWindows(WindowDataset):
    """Cuts windows out of row groups that it fetches, ahead of need where it can, and forgets again.

    Args:
        rows (`Sequence[Mapping]`): Rows as from `stream_rows`, the same as the sampler's.
        sampler (`StreamSampler`): Says which groups come next.
    """

    def __init__(self, rows: Sequence[Row], sampler: StreamSampler) -> None:
        self.sampler = sampler
        self.label_lag = 0
        nothing = np.zeros((0, 0), np.uint8)
        self.counts = [nothing] * len(rows)
        self.behavior = []
        self.first_bin = np.zeros(len(rows), np.int64)
        self.is_fully_observed = np.ones(len(rows), dtype=bool)
        self.observed = np.zeros(1, bool)
        self.site_observed = None
        self._max_sites = max((len(row["site_ids"]) for row in rows), default=1)
        self.label_masks = np.zeros(1, bool)
        self._observed: dict[int, NDArray[np.bool_]] = {}
        self._places: list[list[tuple[int, tuple[str, int, int, int], int, int]]] = []
        for index, (row, group) in enumerate(zip(rows, sampler.group_of_row.tolist(), strict=True)):
            if group == len(self._places):
                self._places.append([])
            place = (index, row["place"], int(row["num_bins"]), len(row["unit_ids"]))
            self._places[group].append(place)
        self._loaded: OrderedDict[int, None] = OrderedDict()
        self._coming: dict[int, Future[Any]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._epoch = -1
        self._next: dict[int, int] = {}

    def __getitem__(self, window: Window) -> Any:
        raise TypeError("Streamed windows are taken by batches.")

    def __getitems__(self, windows: Sequence[Window]) -> WindowBatch:
        """Takes the windows of a batch, when the groups that hold them are here.

        Args:
            windows (`Sequence[Window]`): As from `StreamSampler`.

        Returns:
            `WindowBatch`: For `WindowCollator`, before the next one is taken.

        Raises:
            DatasetError: A group cannot be fetched.
        """
        taken = Windows.of(windows)
        rows = np.unique(taken.table[:, 0])
        groups = np.unique(self.sampler.group_of_row[rows]).tolist()
        self._look_ahead(groups)
        for group in groups:
            self._load(group)
        while len(self._loaded) > max(self.sampler.groups_in_memory, len(groups)):
            self._forget(next(iter(self._loaded)))
        if not self.is_fully_observed[rows].all():
            self._lay_out_observed(rows.tolist())
        return WindowBatch(self, taken)

    def _lay_out_observed(self, rows: list[int]) -> None:
        """Lays out which bins of the rows of a batch were observed, after one another."""
        lengths = [len(self.counts[row]) for row in rows]
        starts = np.cumsum([0, *lengths])
        flat = np.zeros((starts[-1] + 1, self._max_sites), bool)
        for row, start, stop in zip(rows, starts[:-1], starts[1:], strict=True):
            seen = self._observed.get(row)
            if seen is None:
                flat[start:stop] = True
            elif seen.shape[1] == 1:
                flat[start:stop] = seen
            else:
                flat[start:stop, : seen.shape[1]] = seen
        self.first_bin[rows] = starts[:-1]
        self.observed = np.asarray(flat.any(axis=1))
        several = any(seen is not None and seen.shape[1] > 1 for seen in map(self._observed.get, rows))
        self.site_observed = flat if several else None

    def _look_ahead(self, groups: list[int]) -> None:
        """Starts to fetch the groups of this batch and those that follow them in the epoch."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="rpnt-stream")
        if self._epoch != self.sampler.epoch:
            self._epoch = self.sampler.epoch
            self._coming.clear()  # groups that gave no pair in the epoch before
            self._next = {
                group: after
                for stream in self.sampler.streams(self._epoch)
                for group, after in pairwise(stream)
            }
        wanted = list(groups)
        for group in groups:
            ahead: int | None = group
            for _ in range(THREADS):
                ahead = None if ahead is None else self._next.get(ahead)
                if ahead is not None and ahead not in wanted:
                    wanted.append(ahead)
        for group in wanted:
            if group not in self._loaded and group not in self._coming:
                self._coming[group] = self._pool.submit(_fetch_group, self._places[group])

    def _load(self, group: int) -> None:
        if group in self._loaded:
            self._loaded.move_to_end(group)
            return
        fetched = self._coming.pop(group).result()
        for (index, _, _, _), (counts, observed) in zip(self._places[group], fetched, strict=True):
            self.counts[index] = counts
            self.is_fully_observed[index] = observed.all()
            if not self.is_fully_observed[index]:
                self._observed[index] = observed
        self._loaded[group] = None

    def _forget(self, group: int) -> None:
        del self._loaded[group]
        for index, _, _, _ in self._places[group]:
            self.counts[index] = np.zeros((0, 0), np.uint8)
            self._observed.pop(index, None)


def _fetch_group(places: list[tuple[int, tuple[str, int, int, int], int, int]]) -> list[tuple[Any, Any]]:
    """Reads the counts and the observed bins of the rows of one row group."""
    url, size, group, _ = places[0][1]
    with _open_parquet(url, size) as parquet:
        table = parquet.read_row_group(group, columns=list(LARGE_COLUMNS)).select(LARGE_COLUMNS)
    found = []
    for _, (_, _, _, index), num_bins, num_units in places:
        values = [np.frombuffer(table.column(name)[index].as_buffer(), np.uint8) for name in LARGE_COLUMNS]
        if num_bins == 0 or values[0].size != num_bins * num_units or values[1].size % num_bins:
            raise DatasetError(
                f"A row must hold a count for each bin and unit, but row {index} of group {group} in "
                f"'{url}' does not. Build the dataset again."
            )
        found.append((values[0].reshape(num_bins, num_units), values[1].reshape(num_bins, -1).astype(bool)))
    return found
