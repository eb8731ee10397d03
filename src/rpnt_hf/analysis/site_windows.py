"""Windows of many sites, cut at an event of each trial, and the same with the trials of each site shuffled.

For analysis of whole sites. Not for training: those windows are in `data/windows.py`.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rpnt_hf.data.rows import row_counts, row_site_observed
from rpnt_hf.errors import ConfigurationError, DatasetError
from rpnt_hf.processing_rpnt import RPNTProcessor

__all__ = ["EVENTS", "SiteWindows", "cut_site_windows"]

EVENTS: Mapping[str, str] = {"start": "start_bin", "go_cue": "go_cue_bin", "move_onset": "move_onset_bin"}


@dataclass(frozen=True)
class SiteWindows:
    """Counts of all sites around an event of many trials of one session.

    Args:
        session_id (`str`): The session.
        site_ids (`list[str]`): Its sites.
        site_positions (`np.ndarray` of shape `(sites, 3)`): Their places in mm, NaN where unknown.
        spike_counts (`np.ndarray` of shape `(windows, sites, bins, units)`, uint8): Spikes per bin; 0 where
            there is no unit or no recording.
        bin_mask (`np.ndarray` of shape `(windows, sites, bins)`, bool): True where a site was recorded.
        unit_ids (`np.ndarray` of shape `(sites, units)`, int): Rows of the unit embedding.
        unit_mask (`np.ndarray` of the same shape, bool): True where there is a unit.
        metadata (`np.ndarray` of shape `(sites, axes)`, float32): Coordinates of the model's axes.
        conditions (`np.ndarray` of shape `(windows,)`, str): Condition of each trial, "" where there is none.
        num_left_out (`int`): Trials that have no such event, or no room before it.
    """

    session_id: str
    site_ids: list[str]
    site_positions: NDArray[np.float64]
    spike_counts: NDArray[np.uint8]
    bin_mask: NDArray[np.bool_]
    unit_ids: NDArray[np.int64]
    unit_mask: NDArray[np.bool_]
    metadata: NDArray[np.float32]
    conditions: NDArray[np.str_]
    num_left_out: int

    @property
    def num_windows(self) -> int:
        """`int`: number of windows."""
        return self.spike_counts.shape[0]

    @property
    def num_sites(self) -> int:
        """`int`: number of sites."""
        return self.spike_counts.shape[1]

    @property
    def num_bins(self) -> int:
        """`int`: number of bins of a window."""
        return self.spike_counts.shape[2]

    def draw_order(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """Deals out the trials of each site anew, within their condition.

        What a site does in trials of a condition stays; what two sites do in one trial no longer belongs
        together.

        Args:
            generator (`np.random.Generator`): Draws the order of each site.

        Returns:
            `np.ndarray` of shape `(windows, sites)`, int64: Which window each site takes from.
        """
        order = np.empty((self.num_windows, self.num_sites), dtype=np.int64)
        for condition in np.unique(self.conditions):
            members = np.flatnonzero(self.conditions == condition)
            order[members] = generator.permuted(np.repeat(members[:, None], self.num_sites, axis=1), axis=0)
        return order

    def reordered(self, order: NDArray[np.int64]) -> "SiteWindows":
        """Gives the windows with the trials of each site in another order.

        Args:
            order (`np.ndarray` of shape `(windows, sites)`, int64): Which window each site takes from, as of
                `draw_order`.

        Returns:
            `SiteWindows`: As many windows, of the same conditions.
        """
        sites = np.arange(self.num_sites)
        return dataclasses.replace(
            self, spike_counts=self.spike_counts[order, sites], bin_mask=self.bin_mask[order, sites]
        )

    def batches(self, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
        """Gives the windows as model input.

        Args:
            batch_size (`int`): Windows at a time.

        Yields:
            `dict[str, torch.Tensor]`: Arguments of the models' `forward`.
        """
        for first in range(0, self.num_windows, batch_size):
            counts = torch.from_numpy(self.spike_counts[first : first + batch_size])
            whole = {"unit_ids": self.unit_ids, "unit_mask": self.unit_mask, "metadata": self.metadata}
            yield {
                "spike_counts": counts,
                "bin_mask": torch.from_numpy(self.bin_mask[first : first + batch_size]),
                **{
                    name: torch.from_numpy(value).expand(len(counts), *value.shape)
                    for name, value in whole.items()
                },
            }


def cut_site_windows(
    rows: Sequence[Mapping[str, Any]],
    processor: RPNTProcessor,
    window_bins: int,
    *,
    align: str = "start",
    before: int = 0,
) -> SiteWindows:
    """Cuts one window at each trial of a session.

    A window ends early, and is padded, where its row or its trial ends; where there are no trials, each row
    gives one window.

    Args:
        rows (`Sequence[Mapping]`): Rows of one session, of any splits; context bins are not taken.
        processor (`RPNTProcessor`): Knows the units and the metadata.
        window_bins (`int`): Bins of a window, at least 1.
        align (`str`, *optional*, defaults to `"start"`): Event of the trial: "start", "go_cue", "move_onset".
        before (`int`, *optional*, defaults to 0): Bins before the event, in [0, window_bins).

    Returns:
        `SiteWindows`: In the order of the rows.

    Raises:
        ConfigurationError: The event is unknown, or a number out of range.
        DatasetError: Rows are of several sessions or of one site, or fewer than two trials have the event.
        InputError: The rows do not fit the processor.
    """
    if align not in EVENTS or window_bins < 1 or not 0 <= before < window_bins:
        raise ConfigurationError(
            f"`align` must be one of {', '.join(EVENTS)}, `window_bins` at least 1 and `before` in [0, "
            f"window_bins), got '{align}', {window_bins} and {before}."
        )
    sessions = sorted({row["session_id"] for row in rows})
    if len(sessions) != 1 or len(rows[0]["site_ids"]) < 2:
        raise DatasetError(
            "Rows must be of one session with two sites or more, got "
            f"{len(sessions)} sessions ({', '.join(sessions[:5])})"
            + (f" with {len(rows[0]['site_ids'])} site" if len(sessions) == 1 else "")
            + ". Choose one session, or build the dataset with its sites told apart."
        )
    first = rows[0]
    unit_sites, num_sites = np.asarray(first["unit_sites"], dtype=np.int64), len(first["site_ids"])
    index, unit_ids, unit_mask = processor.unit_layout(
        first["session_id"], unit_sites, num_sites, unit_ids=first["unit_ids"]
    )
    windows, masks, conditions, num_left_out = [], [], [], 0
    for row in rows:
        processor.check_bin_size(row["bin_size"], f"a row of session '{row['session_id']}'")
        counts, observed = row_counts(row), row_site_observed(row)
        for start, stop, condition in _intervals(row, align, before):
            if start < row["num_context_bins"]:
                num_left_out += 1
                continue
            stop = min(stop, start + window_bins)
            missing = (0, window_bins - (stop - start))
            # (bins, sites, units) -> (sites, bins, units)
            window = np.moveaxis(counts[start:stop][:, index] * unit_mask, 0, 1)
            seen = observed[start:stop].T
            windows.append(np.pad(window * seen[..., None], ((0, 0), missing, (0, 0))))
            masks.append(np.pad(seen, ((0, 0), missing)))
            conditions.append(condition)
    if len(windows) < 2:
        raise DatasetError(
            f"At least two trials must have the event '{align}' and {before} bins before it, got "
            f"{len(windows)} of {len(windows) + num_left_out} in session '{first['session_id']}'. Choose "
            "another event, or fewer bins before it."
        )
    metadata = processor.metadata(
        first["site_positions"], num_sites, first["session_id"], first["subject_id"], first["task"],
        first["recording_date"],
    )  # fmt: skip
    return SiteWindows(
        session_id=first["session_id"],
        site_ids=list(first["site_ids"]),
        site_positions=np.array(first["site_positions"], dtype=np.float64).reshape(num_sites, 3),
        spike_counts=np.stack(windows),
        bin_mask=np.stack(masks),
        unit_ids=unit_ids,
        unit_mask=unit_mask,
        metadata=metadata,
        conditions=np.array(conditions, dtype=str),
        num_left_out=num_left_out,
    )


def _intervals(row: Mapping[str, Any], align: str, before: int) -> list[tuple[int, int, str]]:
    """First bin, stop and condition of the window of each trial; a first bin below 0 stands for no event."""
    trials = row["trials"] or []
    if not trials and align == "start":
        return [(row["num_context_bins"], row["num_bins"], "")]
    found = []
    for trial in trials:
        event, direction = trial[EVENTS[align]], trial["target_dir"]
        named = "" if direction is None or np.isnan(direction) else f"{direction:.3f}"
        start = event - before if event >= 0 else -1
        found.append((start, trial["stop_bin"], trial["condition"] or named))
    return found
