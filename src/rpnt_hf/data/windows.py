"""Cuts windows out of dataset rows on the fly and makes tensors of them; `sampling.py` says which and when.

Every window carries a seed of its own from which its masks, samples and dropout are drawn: so workers,
processes and resuming change nothing. A batch is cut and drawn at once: the only loop over windows copies the
counts of each out of the mapped file.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ..errors import ConfigurationError
from ..layout_rpnt import site_layout
from ..objectives import draw_masks
from ..processing_rpnt import RPNTProcessor
from ..random_rpnt import random_bits, uniforms
from .augmentation import warp_time
from .rows import row_behavior, row_counts, row_observed, row_site_observed
from .sampling import Window, Windows, WindowSampler, label_mask_of

logger = logging.getLogger(__name__)

__all__ = [
    "MaskingConfig",
    "Window",
    "WindowBatch",
    "WindowCollator",
    "WindowDataset",
    "WindowSampler",
    "Windows",
    "site_label",
]

Row = Mapping[str, Any]


@dataclass
class MaskingConfig:
    """How counts are hidden in pretraining (DESIGN 2.5).

    Args:
        min_visible_bins (`int`, *optional*, defaults to 1): Bins of a site that stay visible.
        min_visible_units (`int`, *optional*, defaults to 1): Units of a site that stay visible, after unit
            dropout too.
        site_mask_probability (`float`, *optional*, defaults to 0.0): Probability in [0, 1] of hiding a whole
            site; at least one site stays.
        same_bins_probability (`float`, *optional*, defaults to 0.0): Probability in [0, 1] that a window
            hides the same bins at all sites: only the past tells of them. Maps by permutation ask for that.
        max_unit_ratio (`float`, *optional*, defaults to 0.99): Highest share of a site's units to hide.
    """

    min_visible_bins: int = 1
    min_visible_units: int = 1
    site_mask_probability: float = 0.0
    same_bins_probability: float = 0.0
    max_unit_ratio: float = 0.99


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
        self.label_lag = label_lag
        self.counts = [row_counts(row) for row in rows]
        self.behavior = [row_behavior(row) for row in rows]
        observed = [row_observed(row) for row in rows]
        self.is_fully_observed = np.array([bool(bins.all()) for bins in observed], dtype=bool)
        # One byte per bin each, after one another, so that a batch takes its own with one index.
        self.observed = np.concatenate([*observed, np.zeros(1, bool)])
        self.site_observed = _site_observed(rows)
        self.label_masks = np.concatenate(
            [*(label_mask_of(row, label_lag) for row in rows), np.zeros(1, bool)]
        )
        self.first_bin = np.cumsum([0, *map(len, observed)])[:-1]

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, window: Window) -> WindowSample:
        inside = slice(window.start, window.stop)
        behavior = self.behavior[window.row][window.start + self.label_lag : window.stop + self.label_lag]
        missing = window.stop - window.start - len(behavior)
        if missing:
            behavior = np.pad(behavior, ((0, missing), (0, 0)), constant_values=np.nan)
        first = self.first_bin[window.row]
        bins = slice(first + window.start, first + window.stop)
        label_mask = self.label_masks[bins].copy()
        label_mask[: window.scored_from - window.start] = False
        counts = self.counts[window.row][inside]
        return WindowSample(window.row, window.seed, counts, self.observed[bins], behavior, label_mask)

    def __getitems__(self, windows: Sequence[Window]) -> "WindowBatch":
        """Takes the windows of a batch; a `DataLoader` calls it.

        Args:
            windows (`Sequence[Window]`): As from `WindowSampler`.

        Returns:
            `WindowBatch`: For `WindowCollator`.
        """
        return WindowBatch(self, Windows.of(windows))


@dataclass(frozen=True)
class WindowBatch:
    """Windows of one batch and where they are cut from.

    Args:
        dataset (`WindowDataset`): Holds the rows.
        windows (`Windows`): The windows, at least one.
    """

    dataset: WindowDataset
    windows: Windows


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
        time_warp (`float`, *optional*, defaults to 0.0):
            Windows are played faster or slower by factors of up to 1 + time_warp (`augmentation.warp_time`);
            0 or more. For decoding only.
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
        time_warp: float = 0.0,
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
        if time_warp < 0 or (time_warp and masking is not None):
            raise ConfigurationError(
                f"`time_warp` must be 0 or more, and 0 where counts are reconstructed, got {time_warp}."
            )
        self.processor = processor
        self.masking = masking
        self.time_warp = time_warp
        self._behavior_units = list(rows[0].get("behavior_units") or []) if rows else []
        self.spike_dropout = spike_dropout
        self.unit_dropout = unit_dropout
        self.metadata_dropout = metadata_dropout
        self.mean_counts = mean_counts
        self.sample_units = sample_units and processor.unit_embedding == "slots"
        for row in rows:
            processor.check_bin_size(row["bin_size"], f"a row of session '{row['session_id']}'")
        self._take_rows(rows)
        groups = ["site" if name.startswith("site_") else name for name in processor.metadata_axes]
        names = sorted(set(groups))
        self._axis_groups = np.array([names.index(group) for group in groups], dtype=np.int64)

    def _take_rows(self, rows: Sequence[Row]) -> None:
        """Lays out every session once; rows know which layout is theirs."""
        layouts: dict[tuple[str, bytes, int], int] = {}
        found: list[tuple[NDArray[Any], ...]] = []
        self._layout_of_row = np.zeros(len(rows), dtype=np.int64)
        for i, row in enumerate(rows):
            unit_sites, num_sites = np.asarray(row["unit_sites"], dtype=np.int64), len(row["site_ids"])
            key = (row["session_id"], unit_sites.tobytes(), num_sites)
            if key not in layouts:
                layouts[key] = len(found)
                if self.sample_units:
                    index, present = site_layout(unit_sites, num_sites)
                    found.append((index, np.zeros_like(index), present))
                else:
                    found.append(self.processor.unit_layout(row["session_id"], unit_sites, num_sites))
            self._layout_of_row[i] = layouts[key]
        self._num_sites = np.array([index.shape[0] for index, _, _ in found])
        self._num_units = np.array([index.shape[1] for index, _, _ in found])
        shape = (len(found), self._num_sites.max(initial=0), self._num_units.max(initial=0))
        self._index = np.zeros(shape, dtype=np.int64)
        self._unit_ids, self._present = np.zeros_like(self._index), np.zeros(shape, dtype=bool)
        self._null = np.zeros(shape if self.mean_counts is not None else (0, 0, 0), dtype=np.float32)
        for (session_id, _, _), i in layouts.items():
            index, unit_ids, present = found[i]
            place = (i, slice(index.shape[0]), slice(index.shape[1]))
            self._index[place], self._unit_ids[place], self._present[place] = index, unit_ids, present
            if self.mean_counts is not None:
                self._null[place] = self.mean_counts[session_id][index] * present
        self._metadata = np.full((len(rows), shape[1], len(self.processor.metadata_axes)), np.nan, np.float32)
        self._site_labels = np.full((len(rows), shape[1]), -100, dtype=np.int64)
        for i, row in enumerate(rows):
            num_sites = len(row["site_ids"])
            self._metadata[i, :num_sites] = self.processor.metadata(
                row["site_positions"], num_sites, row["session_id"], row["subject_id"], row["task"],
                row["recording_date"],
            )  # fmt: skip
            self._site_labels[i, :num_sites] = [
                site_label(row["session_id"], site) for site in row["site_ids"]
            ]

    def __call__(self, batch: Any) -> dict[str, torch.Tensor]:
        """Makes a batch.

        Args:
            batch (`WindowBatch`): Windows, as from `WindowDataset`.

        Returns:
            `dict[str, torch.Tensor]`: Arguments of `RPNTForPreTraining` or `RPNTForMotorDecoding`.
        """
        dataset, (rows, starts, stops, scored_from, seeds) = batch.dataset, batch.windows.table.T
        layouts = self._layout_of_row[rows]
        units = slice(self._num_units[layouts].max())
        sites = slice(self._num_sites[layouts].max())
        num_bins = stops - starts
        bins = np.arange(num_bins.max())
        inside = bins < num_bins[:, None]
        # Beyond a window the last bin of the flat masks is taken, which is False.
        flat_bins = np.where(inside, (dataset.first_bin[rows] + starts)[:, None] + bins, -1)

        index = self._index[:, sites, units][layouts]
        unit_mask = self._present[:, sites, units][layouts]
        null = self._null[:, sites, units][layouts] if self.mean_counts is not None else None
        if self.sample_units:
            chosen = _sampled(unit_mask, seeds, int(self.processor.num_slots or 0))
            unit_mask = chosen >= 0
            index = np.where(unit_mask, np.take_along_axis(index, chosen, axis=2), 0)
            null = null if null is None else np.take_along_axis(null, chosen, axis=2) * unit_mask
            unit_ids = np.broadcast_to(np.arange(index.shape[2]), index.shape).copy()
        else:
            unit_ids = self._unit_ids[:, sites, units][layouts]
        spike_counts = _gathered(dataset, batch.windows.table, index, len(bins))
        if self.unit_dropout:
            unit_mask = self._surviving_units(unit_mask, seeds)
        if self.spike_dropout:
            spike_counts = self._surviving_spikes(spike_counts, seeds)
        if not unit_mask.all():
            spike_counts *= unit_mask[:, :, None]
        observed = inside if dataset.is_fully_observed[rows].all() else dataset.observed[flat_bins]
        bin_mask = (
            observed[:, None] & (np.arange(index.shape[1]) < self._num_sites[layouts][:, None])[..., None]
        )
        if dataset.site_observed is not None:
            bin_mask &= dataset.site_observed[flat_bins].swapaxes(1, 2)[:, sites]
        arrays = {
            "spike_counts": spike_counts,
            "unit_ids": unit_ids,
            "unit_mask": unit_mask,
            "bin_mask": bin_mask,
            "metadata": self._metadata[:, sites][rows],
        }
        if self.masking is None:
            arrays |= _labels(batch, flat_bins)
            if self.time_warp:
                arrays = warp_time(arrays, seeds, self.time_warp, self._behavior_units)
        else:
            masked_bins, masked_units = draw_masks(
                seeds,
                bin_mask,
                unit_mask,
                min_visible_bins=self.masking.min_visible_bins,
                min_visible_units=self.masking.min_visible_units,
                site_mask_probability=self.masking.site_mask_probability,
                same_bins_probability=self.masking.same_bins_probability,
                max_unit_ratio=self.masking.max_unit_ratio,
            )
            labels = self._site_labels[:, sites][rows]
            idle = scored_from >= stops  # of a process that a batch has no window for
            masked_bins[idle], masked_units[idle], labels[idle] = False, False, -100
            arrays |= {"masked_bins": masked_bins, "masked_units": masked_units, "labels": labels}
        if self.metadata_dropout:
            draws = uniforms(seeds[:, None], "metadata dropout", self._axis_groups)
            dropped = np.broadcast_to((draws < self.metadata_dropout)[:, None], arrays["metadata"].shape)
            arrays["metadata"][dropped] = np.nan
        if null is not None:
            arrays["mean_counts"] = null
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _surviving_units(self, present: NDArray[np.bool_], seeds: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Draws which units (B, S, N) a window keeps; every site keeps as many as must stay visible."""
        least = 1 if self.masking is None else max(self.masking.min_visible_units, 1)
        share = uniforms(seeds, "unit dropout share", np.zeros(1, int)) * 2 * self.unit_dropout
        draws = np.where(present, uniforms(seeds[:, None, None], "unit dropout", _places(present)), -1.0)
        ordered = np.sort(draws, axis=2)
        highest = ordered[:, :, -min(least, ordered.shape[2]), None]
        return present & ((draws >= share[:, None, None]) | (draws >= highest))

    def _surviving_spikes(
        self, spike_counts: NDArray[np.uint8], seeds: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Thins each unit of (B, S, T, N) at a rate of its own; Poisson counts stay Poisson."""
        places = _places(spike_counts[:, :, 0])
        lost = uniforms(seeds[:, None, None], "spike dropout share", places) * self.spike_dropout
        window, entry = np.nonzero(spike_counts.reshape(len(seeds), -1))  # entries are (S, T, N), flat
        counts = spike_counts.reshape(len(seeds), -1)[window, entry]
        spike_of = np.repeat(np.arange(len(counts)), counts)
        spike = np.arange(len(spike_of)) - np.repeat(np.cumsum(counts, dtype=np.int64) - counts, counts)
        # Each entry is numbered by site, unit and bin, as if there were no padding.
        bins = np.arange(spike_counts.shape[2])[:, None]
        number = (((places[:, None] << 24) + bins) << 8).ravel()[entry]
        lost = np.broadcast_to(lost[:, :, None], spike_counts.shape).reshape(len(seeds), -1)[window, entry]
        draws = uniforms(seeds[window][spike_of], "spike dropout", number[spike_of] + spike)
        kept = np.bincount(spike_of[draws >= lost[spike_of]], minlength=len(counts))
        thinned = np.zeros_like(spike_counts)
        thinned.reshape(len(seeds), -1)[window, entry] = kept
        return thinned


def _site_observed(rows: Sequence[Row]) -> NDArray[np.bool_] | None:
    """Observed bins of each site, flat over rows, (bins + 1, most sites); None where none is ever absent."""
    if all(len(row["observed"] or b"") <= row["num_bins"] for row in rows):
        return None
    flat = np.zeros(
        (sum(row["num_bins"] for row in rows) + 1, max(len(row["site_ids"]) for row in rows)), dtype=bool
    )
    first = 0
    for row in rows:
        flat[first : first + row["num_bins"], : len(row["site_ids"])] = row_site_observed(row)
        first += row["num_bins"]
    return flat


def _places(units: NDArray[Any]) -> NDArray[np.int64]:
    """Numbers units (B, S, N) by site and place, so that padding changes no draw: (S, N)."""
    return (np.arange(units.shape[1])[:, None] << 16) + np.arange(units.shape[2])


def _sampled(present: NDArray[np.bool_], seeds: NDArray[np.int64], num_slots: int) -> NDArray[np.int64]:
    """Draws slots of the units (B, S, N) of every site, in their order: places (B, S, slots), -1 if empty."""
    batch, sites, units = present.shape
    if units <= num_slots:
        chosen = present
    else:
        bits = random_bits(seeds[:, None, None], "units", _places(present))
        keys = np.where(present, bits >> np.uint64(1), np.uint64(2**64 - 1))
        chosen = present & (keys <= np.partition(keys, num_slots - 1, axis=2)[:, :, num_slots - 1, None])
    window, site, place = np.nonzero(chosen)
    num_chosen = chosen.sum(axis=2).ravel()
    if (num_chosen == num_slots).all():
        return place.reshape(batch, sites, num_slots)
    slots = np.arange(len(place)) - np.repeat(np.cumsum(num_chosen) - num_chosen, num_chosen)
    drawn = np.full((batch, sites, num_slots), -1)
    drawn[window, site, slots] = place
    return drawn


def _gathered(
    dataset: WindowDataset, table: NDArray[np.int64], index: NDArray[np.int64], num_bins: int
) -> NDArray[np.uint8]:
    """Copies the counts of units at `index` (B, S, N) out of the mapped rows: (B, S, T, N), padded with 0."""
    batch, sites, units = index.shape
    columns = index.reshape(batch, sites * units)
    is_short = (table[:, 2] - table[:, 1]).min() < num_bins
    flat = (np.zeros if is_short else np.empty)((batch, num_bins, sites * units), dtype=np.uint8)
    in_order = (columns == np.arange(sites * units)).all(axis=1).tolist()
    for b, (row, start, stop) in enumerate(table[:, :3].tolist()):
        counts = dataset.counts[row][start:stop]
        if in_order[b] and counts.shape[1] == sites * units:
            flat[b, : stop - start] = counts
        else:
            counts.take(columns[b], axis=1, out=flat[b, : stop - start], mode="clip")
    return np.ascontiguousarray(flat.reshape(batch, num_bins, sites, units).swapaxes(1, 2))


def _labels(batch: WindowBatch, flat_bins: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Behaviour to learn from, 0 where there is none, and the bins where there is."""
    dataset, table = batch.dataset, batch.windows.table
    label_mask = dataset.label_masks[flat_bins]
    label_mask &= np.arange(flat_bins.shape[1]) >= (table[:, 3] - table[:, 1])[:, None]
    targets = dataset.behavior[table[0, 0]].shape[1]
    labels = np.zeros((*flat_bins.shape, targets), dtype=np.float32)
    lag = dataset.label_lag
    for b, (row, start, stop) in enumerate(table[:, :3].tolist()):
        values = dataset.behavior[row][start + lag : stop + lag]
        labels[b, : len(values)] = values
    labels[~label_mask] = 0
    return {"labels": labels, "label_mask": label_mask}
