"""How strongly the sites of a recording go together, for the page: in the spikes, and in a decoder.

The statistics are those of `rpnt_hf.analysis`. Not for results: `rpnt connectivity` uses a pretrained model,
more shuffles and every estimator.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rpnt_hf.analysis.connectivity import compare_with_shuffles
from rpnt_hf.analysis.site_statistics import partial_correlation, rate_correlation
from rpnt_hf.analysis.site_windows import SiteWindows
from rpnt_hf.data.nwb import Recording
from rpnt_hf.layout_rpnt import site_layout

from .probe import Probe

__all__ = ["connectivity_maps", "cut_trials", "sites_view"]

NUM_SHUFFLES = 20
MAX_TRIALS, MAX_TRIAL_BINS = 150, 40
MAX_UNITS = 24  # of a site: correlations of all pairs of 700 units with their shuffles take minutes


def cut_trials(recording: Recording, bin_size: float) -> SiteWindows | None:
    """Cuts counts at the trials of a recording, or at blocks of two seconds where it has none.

    Args:
        recording (`Recording`): Any recording.
        bin_size (`float`): Width of a bin in s.

    Returns:
        `SiteWindows` or `None`: At most 150 trials of at most 40 bins, of the 24 most active units of each
        site; None with one site, or fewer than ten trials.
    """
    if len(recording.site_ids) < 2:
        return None
    units = _most_active(recording)
    index, present = site_layout(recording.unit_sites[units], len(recording.site_ids))
    starts = recording.trials["start_time"].dropna().to_numpy(np.float64)
    stops = recording.trials["stop_time"].to_numpy(np.float64)[recording.trials["start_time"].notna()]
    directions = recording.trials.get("target_dir", pd.Series(np.nan, recording.trials.index))
    directions = directions[recording.trials["start_time"].notna()].to_numpy(np.float64)
    windows: list[NDArray[np.uint8]] = []
    masks: list[NDArray[np.bool_]] = []
    conditions: list[str] = []
    for interval in recording.bin_spikes(bin_size):
        num_bins = len(interval.counts)
        edges = [(at, at + 2.0) for at in np.arange(num_bins * bin_size // 2) * 2.0 + interval.start_time]
        for number, (start, stop) in enumerate(zip(starts, stops, strict=True) if len(starts) else edges):
            first = round((start - interval.start_time) / bin_size)
            length = min(round((stop - start) / bin_size), MAX_TRIAL_BINS) if np.isfinite(stop) else 0
            if first < 0 or length < 1 or first + length > num_bins or len(windows) == MAX_TRIALS:
                continue
            window = np.zeros((len(index), MAX_TRIAL_BINS, index.shape[1]), np.uint8)
            counts = interval.counts[first : first + length, units]
            window[:, :length] = np.moveaxis(counts[:, index] * present, 0, 1)
            windows.append(window)
            masks.append(np.broadcast_to(np.arange(MAX_TRIAL_BINS) < length, (len(index), MAX_TRIAL_BINS)))
            conditions.append(f"{directions[number]:.2f}" if len(starts) else "")
    if len(windows) < 10:
        return None
    longest = max(int(mask[0].sum()) for mask in masks)
    return SiteWindows(
        session_id=recording.session_id,
        site_ids=recording.site_ids,
        site_positions=recording.site_positions,
        spike_counts=np.stack(windows)[:, :, :longest],
        bin_mask=np.stack(masks)[:, :, :longest],
        unit_ids=np.zeros(index.shape, np.int64),
        unit_mask=present,
        metadata=np.zeros((len(index), 0), np.float32),
        conditions=np.array(conditions),
        num_left_out=0,
    )


def _most_active(recording: Recording) -> NDArray[np.int64]:
    """Lists the units that are compared, in the order of the recording."""
    spikes = np.array([len(times) for times in recording.spike_times])
    by_rate = np.argsort(-spikes, kind="stable")
    sites = recording.unit_sites[by_rate]
    chosen = [by_rate[sites == site][:MAX_UNITS] for site in range(len(recording.site_ids))]
    return np.sort(np.concatenate(chosen))


def connectivity_maps(recording: Recording, bin_size: float) -> list[dict[str, Any]]:
    """Maps how the activity of sites goes together, beside trials that were shuffled.

    Args:
        recording (`Recording`): Any recording.
        bin_size (`float`): Width of a bin in s.

    Returns:
        `list[dict]`: Plain values of each map; none where there is one site or too few trials.
    """
    windows = cut_trials(recording, bin_size)
    if windows is None:
        return []
    crowded = bool((np.bincount(recording.unit_sites) > MAX_UNITS).any())
    units = f", {MAX_UNITS} most active units a site" if crowded else ""
    rng = np.random.default_rng(0)
    shuffles = [windows.reordered(windows.draw_order(rng)) for _ in range(NUM_SHUFFLES)]
    maps = []
    for title, estimator in (
        ("correlation of rates", rate_correlation),
        ("partial correlation, other sites held fixed", partial_correlation),
    ):
        whole = slice(0, windows.num_bins)
        found = compare_with_shuffles(
            estimator(windows, whole), np.stack([estimator(shuffled, whole) for shuffled in shuffles])
        )
        maps.append(
            {
                "title": title,
                "note": f"above shuffles of {windows.num_windows} trials{units}; * 5 % false discovery rate",
                "sites": windows.site_ids,
                "weights": _plain(found.excess),
                "significant": found.significant.tolist(),
                "diagonal": False,
            }
        )
    return maps


def _plain(matrix: NDArray[np.float64]) -> list[list[float | None]]:
    return [[float(value) if np.isfinite(value) else None for value in row] for row in matrix]


def sites_view(maps: list[dict[str, Any]], probe: Probe | None, site_names: list[str]) -> dict[str, Any]:
    """What the view of sites draws.

    Args:
        maps (`list[dict]`): From `connectivity_maps`.
        probe ([`Probe`], *optional*): A window that went through the decoder, for its spatial attention.
        site_names (`list[str]`): Names of the sites.

    Returns:
        `dict`: Plain values for the view "sites"; a message where there is nothing to draw.
    """
    shown = list(maps)
    if probe is not None and probe.spatial is not None and len(site_names) > 1:
        averaged = probe.spatial.mean(axis=(0, 1))[:, probe.num_anchors :]
        shown.append(
            {
                "title": "spatial attention of the decoder",
                "note": "of row to column; the rest goes to anchors",
                "sites": site_names,
                "weights": _plain(averaged),
                "significant": None,
                "diagonal": True,
            }
        )
    if not shown:
        message = "One site: there is nothing to connect."
        if len(site_names) > 1:
            message = "At least ten trials are needed for this view."
        return {"maps": None, "message": message}
    return {"maps": shown, "message": None}
