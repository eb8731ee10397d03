"""Cuts windows out of dataset rows on the fly, orders them into batches and makes tensors of them.

The order of an epoch is a pure function of (seed, epoch), and every window carries a seed of its own from
which its masks, samples and dropout are drawn: so workers, processes and resuming change nothing.
"""

import hashlib
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from ..errors import ConfigurationError, DatasetError
from ..objectives import draw_masks
from ..processing_rpnt import RPNTProcessor
from .rows import row_behavior, row_counts, row_observed, scored_bins

logger = logging.getLogger(__name__)

__all__ = ["MaskingConfig", "Window", "WindowCollator", "WindowDataset", "WindowSampler", "site_label"]

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


@dataclass
class MaskingConfig:
    """How counts are hidden in pretraining (DESIGN 2.5).

    Args:
        min_visible_bins (`int`, *optional*, defaults to 1): Bins of a site that stay visible.
        min_visible_units (`int`, *optional*, defaults to 1): Units of a site that stay visible, after unit
            dropout too.
        site_mask_probability (`float`, *optional*, defaults to 0.0): Probability in [0, 1] of hiding a whole
            site; at least one site stays.
    """

    min_visible_bins: int = 1
    min_visible_units: int = 1
    site_mask_probability: float = 0.0


def site_label(session_id: str, site_id: str) -> int:
    """Names a site of a session by a stable integer, for the site-contrastive term.

    Args:
        session_id (`str`): The session.
        site_id (`str`): The site.

    Returns:
        `int`: 63 bits of a hash; the same in every run, dataset and process.
    """
    digest = hashlib.sha256(f"{session_id}\0{site_id}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class WindowSampler(Sampler[list[Window]]):
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
        label_lag (`int`, *optional*, defaults to 0): Bins by which labels come later than counts.

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
        label_lag: int = 0,
    ) -> None:
        if window_bins < 1 or batch_size < (2 if pairs else 1) or not 0 <= context_bins < window_bins:
            raise ConfigurationError(
                f"Windows need `window_bins` >= 1, `batch_size` >= {2 if pairs else 1} and `context_bins` in "
                f"[0, window_bins), got {window_bins}, {batch_size} and {context_bins}."
            )
        self.window_bins = window_bins
        self.windows_per_batch = batch_size
        self.seed = seed
        self.pairs = pairs
        self.training = training
        self.context_bins = context_bins
        self.epoch = 0
        self.first_batch = 0
        self._sessions = [row["session_id"] for row in rows]
        self._bounds = [(row["num_context_bins"] if pairs else 0, row["num_bins"]) for row in rows]
        # Bins that can be learned from, as a running sum, so that a cell is judged in one subtraction.
        self._learnable = [] if pairs else [np.cumsum([0, *_label_mask(row, label_lag)]) for row in rows]
        if not self.windows(0):
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

    def windows(self, epoch: int) -> list[Window]:
        """Lists the windows of an epoch in the order of the rows.

        Args:
            epoch (`int`): The epoch, from 0.

        Returns:
            `list[Window]`: All windows that are used.
        """
        generator = np.random.default_rng([self.seed, epoch if self.training else 0])
        cut = self._cut_apart if self.pairs else self._cut_cells
        cells = [(row, *cell) for row in range(len(self._bounds)) for cell in cut(row, generator)]
        seeds = generator.integers(0, 2**63, size=len(cells))
        return [Window(*cell, seed=int(seed)) for cell, seed in zip(cells, seeds, strict=True)]

    def _cut_apart(self, row: int, generator: np.random.Generator) -> list[tuple[int, int, int]]:
        first, stop = self._bounds[row]
        size = self.window_bins
        if not self.training or stop - first <= size:
            return [(start, min(start + size, stop), start) for start in range(first, stop, size)]
        phase = int(generator.integers(0, size))
        edges = [first, *range(first + phase, stop, size), stop]
        return [(begin, end, begin) for begin, end in itertools.pairwise(edges) if 2 * (end - begin) >= size]

    def _cut_cells(self, row: int, generator: np.random.Generator) -> list[tuple[int, int, int]]:
        first, stop = self._bounds[row]
        size = self.window_bins - self.context_bins
        if stop - first <= self.window_bins:
            edges = [first, stop]
        else:
            phase = int(generator.integers(1, size + 1)) if self.training else size
            edges = [first, *range(first + phase, stop, size), stop]
        learnable = self._learnable[row]
        return [
            (max(first, end - self.window_bins), end, begin)
            for begin, end in itertools.pairwise(edges)
            if learnable[end] > learnable[begin]
        ]

    def batches(self, epoch: int) -> list[list[Window]]:
        """Lists the batches of an epoch.

        Args:
            epoch (`int`): The epoch, from 0.

        Returns:
            `list[list[Window]]`: Batches of at most `batch_size` windows.
        """
        windows = self.windows(epoch)
        size = self.windows_per_batch
        if not self.training:
            return [windows[i : i + size] for i in range(0, len(windows), size)]
        generator = np.random.default_rng([self.seed, epoch, 1])
        shuffled = [windows[i] for i in generator.permutation(len(windows))]
        if not self.pairs:
            return [shuffled[i : i + size] for i in range(0, len(windows), size)]
        by_session: dict[str, list[Window]] = {}
        for window in shuffled:
            by_session.setdefault(self._sessions[window.row], []).append(window)
        groups = [
            found[i : i + 2]
            for found in (by_session[session] for session in sorted(by_session))
            for i in range(0, max(len(found) - 1, 1), 2)
        ]
        batches: list[list[Window]] = [[]]
        for i in generator.permutation(len(groups)):
            if len(batches[-1]) + len(groups[i]) > size:
                batches.append([])
            batches[-1] += groups[i]
        return batches

    def __iter__(self) -> Iterator[list[Window]]:
        first, self.first_batch = self.first_batch, 0
        yield from self.batches(self.epoch)[first:]

    def __len__(self) -> int:
        return len(self.batches(self.epoch))


@dataclass(frozen=True)
class WindowSample:
    """Views of one window, before padding and randomness.

    Args:
        row (`int`): Index of the row.
        seed (`int`): Seed of the window.
        counts (`np.ndarray` of shape `(bins, units)`, uint8): Spikes per bin.
        observed (`np.ndarray` of shape `(bins,)`, bool): True where the recording was running.
        behavior (`np.ndarray` of shape `(bins, targets)`, float32): Behaviour that each bin is to decode.
        label_mask (`np.ndarray` of shape `(bins,)`, bool): True where it is learned from.
    """

    row: int
    seed: int
    counts: NDArray[np.uint8]
    observed: NDArray[np.bool_]
    behavior: NDArray[np.float32]
    label_mask: NDArray[np.bool_]


class WindowDataset(Dataset[WindowSample]):
    """Cuts windows out of rows as views, without copying the rows.

    Args:
        rows (`Sequence[Mapping]`): Rows of one split, as from `loading.view_rows`.
        label_lag (`int`, *optional*, defaults to 0): Bins by which labels come later than counts.
    """

    def __init__(self, rows: Sequence[Row], label_lag: int = 0) -> None:
        self.rows = rows
        self.label_lag = label_lag
        self._label_masks = [_label_mask(row, label_lag) for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, window: Window) -> WindowSample:
        row = self.rows[window.row]
        inside = slice(window.start, window.stop)
        behavior = row_behavior(row)[window.start + self.label_lag : window.stop + self.label_lag]
        missing = window.stop - window.start - len(behavior)
        if missing:
            behavior = np.pad(behavior, ((0, missing), (0, 0)), constant_values=np.nan)
        label_mask = self._label_masks[window.row][inside].copy()
        label_mask[: window.scored_from - window.start] = False
        observed = row_observed(row)[inside]
        return WindowSample(window.row, window.seed, row_counts(row)[inside], observed, behavior, label_mask)


class WindowCollator:
    """Pads windows into a batch, and draws masks, unit samples and dropout from the seed of each window.

    Bins are padded on the right, units and sites at the end; what a window holds never depends on the others.

    Args:
        rows (`Sequence[Mapping]`): The rows that windows are cut from.
        processor (`RPNTProcessor`): Knows the units and the metadata.
        masking (`MaskingConfig`, *optional*): Given for pretraining: counts are hidden, labels are sites.
        unit_dropout (`float`, *optional*, defaults to 0.0):
            Mean share of units that a window loses, in [0, 0.5]; its share is uniform from 0 to twice that.
            Masks are drawn among the units that remain.
        spike_dropout (`float`, *optional*, defaults to 0.0):
            Largest share in [0, 1) of its spikes that a unit loses in a window; drawn uniformly from 0.
            For decoding only: counts that are reconstructed must stay as recorded.
        metadata_dropout (`float`, *optional*, defaults to 0.0):
            Probability in [0, 1] that a window loses a metadata axis (site axes go together).
        mean_counts (`dict[str, np.ndarray]`, *optional*):
            Mean count of each unit by session, as from `loading.unit_means`; laid out like the counts and
            handed on as `mean_counts`, for the null model of bits per spike.
        sample_units (`bool`, *optional*, defaults to `True`):
            With slots: whether units are sampled at random, or at even spacing.

    Raises:
        ConfigurationError: A probability is out of range.
        InputError: A session is not in the processor's vocabulary, or has other units there.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        processor: RPNTProcessor,
        *,
        masking: MaskingConfig | None = None,
        unit_dropout: float = 0.0,
        spike_dropout: float = 0.0,
        metadata_dropout: float = 0.0,
        mean_counts: Mapping[str, NDArray[np.float64]] | None = None,
        sample_units: bool = True,
    ) -> None:
        if not 0 <= unit_dropout <= 0.5 or not 0 <= metadata_dropout <= 1:
            raise ConfigurationError(
                f"`unit_dropout` must lie in [0, 0.5] and `metadata_dropout` in [0, 1], got {unit_dropout} "
                f"and {metadata_dropout}."
            )
        if not 0 <= spike_dropout < 1 or (spike_dropout and masking is not None):
            raise ConfigurationError(
                "`spike_dropout` must lie in [0, 1) and be 0 where counts are reconstructed, got "
                f"{spike_dropout}. Use `unit_dropout` in pretraining."
            )
        self.processor = processor
        self.masking = masking
        self.spike_dropout = spike_dropout
        self.unit_dropout = unit_dropout
        self.metadata_dropout = metadata_dropout
        self.mean_counts = mean_counts
        self.sample_units = sample_units and processor.unit_embedding == "slots"
        self._unit_sites = [np.asarray(row["unit_sites"]) for row in rows]
        self._num_sites = [len(row["site_ids"]) for row in rows]
        self._sessions = [row["session_id"] for row in rows]
        self._site_labels = [
            [site_label(row["session_id"], site) for site in row["site_ids"]] for row in rows
        ]
        for row in rows:
            processor.check_bin_size(row["bin_size"], f"a row of session '{row['session_id']}'")
        self._metadata = [
            processor.metadata(
                row["site_positions"], len(row["site_ids"]), row["session_id"], row["subject_id"],
                row["task"], row["recording_date"],
            )
            for row in rows
        ]  # fmt: skip
        self._layouts = [
            processor.unit_layout(row["session_id"], sites, num_sites)
            for row, sites, num_sites in zip(rows, self._unit_sites, self._num_sites, strict=True)
        ]
        site_axes = [name.startswith("site_") for name in processor.metadata_axes]
        groups = [
            "site" if is_site else name
            for name, is_site in zip(processor.metadata_axes, site_axes, strict=True)
        ]
        names = sorted(set(groups))
        self._num_axis_groups = len(names)
        self._axis_groups = np.array([names.index(group) for group in groups], dtype=np.int64)

    def __call__(self, samples: Sequence[WindowSample]) -> dict[str, torch.Tensor]:
        """Makes a batch.

        Args:
            samples (`Sequence[WindowSample]`): Windows, as from `WindowDataset`.

        Returns:
            `dict[str, torch.Tensor]`: Arguments of `RPNTForPreTraining` or `RPNTForMotorDecoding`.
        """
        generators = [np.random.default_rng(sample.seed) for sample in samples]
        layouts = [self._layout(sample.row, rng) for sample, rng in zip(samples, generators, strict=True)]
        batch, most_bins = len(samples), max(len(sample.counts) for sample in samples)
        sites = max(index.shape[0] for index, _, _ in layouts)
        units = max(index.shape[1] for index, _, _ in layouts)
        most_flat = max(sample.counts.shape[1] for sample in samples)

        flat = np.zeros((batch, most_bins, most_flat), dtype=np.uint8)
        index = np.zeros((batch, sites, units), dtype=np.int64)
        unit_ids, unit_mask = np.zeros_like(index), np.zeros(index.shape, dtype=bool)
        bin_mask = np.zeros((batch, sites, most_bins), dtype=bool)
        metadata = np.full((batch, sites, len(self._axis_groups)), np.nan, dtype=np.float32)
        for b, (sample, layout) in enumerate(zip(samples, layouts, strict=True)):
            (num_bins, num_flat), (num_sites, num_units) = sample.counts.shape, layout[0].shape
            flat[b, :num_bins, :num_flat] = self._surviving_spikes(sample.counts, generators[b])
            for target, value in zip((index, unit_ids, unit_mask), layout, strict=True):
                target[b, :num_sites, :num_units] = value
            unit_mask[b, :num_sites, :num_units] = self._surviving_units(layout[2], generators[b])
            bin_mask[b, :num_sites, :num_bins] = sample.observed
            metadata[b, :num_sites] = self._metadata[sample.row]

        # One gather for the whole batch: (B, 1, 1), (B, S, N) and every bin give (B, S, N, T).
        counts_BSNT = flat[np.arange(batch)[:, None, None], :, index] * unit_mask[..., None]
        spike_counts = np.ascontiguousarray(np.swapaxes(counts_BSNT, 2, 3))
        arrays = {
            "spike_counts": spike_counts,
            "unit_ids": unit_ids,
            "unit_mask": unit_mask,
            "bin_mask": bin_mask,
        }
        if self.masking is None:
            arrays |= self._labels(samples, most_bins)
        else:
            arrays |= self._masks(samples, generators, bin_mask, unit_mask)
        for b, rng in enumerate(generators):
            dropped = rng.random(self._num_axis_groups) < self.metadata_dropout
            metadata[b, :, dropped[self._axis_groups]] = np.nan
        arrays["metadata"] = metadata
        if self.mean_counts is not None:
            arrays["mean_counts"] = np.zeros(index.shape, dtype=np.float32)
            for b, (sample, layout) in enumerate(zip(samples, layouts, strict=True)):
                num_sites, num_units = layout[0].shape
                means = self.mean_counts[self._sessions[sample.row]]
                arrays["mean_counts"][b, :num_sites, :num_units] = means[layout[0]] * layout[2]
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _layout(
        self, row: int, rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        if not self.sample_units:
            return self._layouts[row]
        return self.processor.unit_layout(
            self._sessions[row], self._unit_sites[row], self._num_sites[row], rng
        )

    def _surviving_spikes(self, counts: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Thins each unit of a window at a rate of its own, (T, N) -> (T, N); Poisson counts stay Poisson."""
        if not self.spike_dropout:
            return counts
        kept = 1 - rng.uniform(0, self.spike_dropout, counts.shape[1])
        return rng.binomial(counts, kept).astype(np.uint8)

    def _surviving_units(self, present: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
        """Draws which units a window keeps; every site keeps as many as must stay visible."""
        least = 1 if self.masking is None else max(self.masking.min_visible_units, 1)
        share = rng.uniform(0, 2 * self.unit_dropout)
        draws = np.where(present, rng.random(present.shape), -1.0)
        rank = (-draws).argsort(axis=1).argsort(axis=1)
        return present & ((draws >= share) | (rank < least))

    def _labels(self, samples: Sequence[WindowSample], most_bins: int) -> dict[str, NDArray[Any]]:
        targets = samples[0].behavior.shape[1]
        labels = np.zeros((len(samples), most_bins, targets), dtype=np.float32)
        label_mask = np.zeros((len(samples), most_bins), dtype=bool)
        for b, sample in enumerate(samples):
            num_bins = len(sample.behavior)
            label_mask[b, :num_bins] = sample.label_mask
            labels[b, :num_bins] = np.where(sample.label_mask[:, None], sample.behavior, 0.0)
        return {"labels": labels, "label_mask": label_mask}

    def _masks(
        self,
        samples: Sequence[WindowSample],
        generators: Sequence[np.random.Generator],
        bin_mask: NDArray[np.bool_],
        unit_mask: NDArray[np.bool_],
    ) -> dict[str, NDArray[Any]]:
        assert self.masking is not None
        least = self.masking.min_visible_units
        masked_bins, masked_units = np.zeros_like(bin_mask), np.zeros_like(unit_mask)
        labels = np.full(bin_mask.shape[:2], -100, dtype=np.int64)
        for b, (sample, rng) in enumerate(zip(samples, generators, strict=True)):
            num_sites, num_bins = self._num_sites[sample.row], len(sample.counts)
            kept = unit_mask[b, :num_sites]
            num_kept = kept.sum(axis=1, keepdims=True)
            hidden_bins, hidden_kept = draw_masks(
                rng,
                num_sites,
                num_bins,
                int(num_kept.max()),
                min_visible_bins=self.masking.min_visible_bins,
                min_visible_units=least,
                site_mask_probability=self.masking.site_mask_probability,
            )
            # A site with few units among sites with many could lose all: its first ones stay visible.
            real = np.arange(hidden_kept.shape[1]) < num_kept
            short = (real & ~hidden_kept).sum(axis=1) < np.minimum(least, num_kept[:, 0])
            hidden_kept[short, :least] = False
            masked_bins[b, :num_sites, :num_bins] = hidden_bins
            masked_units[b, :num_sites][kept] = hidden_kept[real]  # both in the order of sites and units
            labels[b, :num_sites] = self._site_labels[sample.row]
        return {"masked_bins": masked_bins, "masked_units": masked_units, "labels": labels}


def _label_mask(row: Row, label_lag: int) -> NDArray[np.bool_]:
    """Says for which bins of counts the behaviour `label_lag` bins later is scored."""
    scored = scored_bins(row)
    return np.concatenate([scored[label_lag:], np.zeros(min(label_lag, len(scored)), dtype=bool)])
