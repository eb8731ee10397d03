"""Looks into a decoder for the page: attention over time and over sites, and what metadata change.

One window of a recording goes through the model with attention weights switched on. Not for whole
recordings: weights take memory that grows with the square of the window.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rpnt_hf.configuration_rpnt import AXIS_UNITS, SITE_AXES
from rpnt_hf.data.nwb import Recording
from rpnt_hf.decoding import bin_recording, prediction_table, target_names
from rpnt_hf.metrics import r2_scores
from rpnt_hf.processing_rpnt import RPNTProcessor

from .live import cut_recording
from .views import packed

__all__ = [
    "INDEX_AXES",
    "MAX_PROBED_BINS",
    "UNKNOWN",
    "Probe",
    "active_axes",
    "attention_view",
    "axis_range",
    "changed_metadata",
    "known_values",
    "metadata_view",
    "probe_window",
    "recorded_metadata",
    "shown_value",
    "unknown_name",
]

MAX_PROBED_BINS = 160
UNKNOWN = "unknown"
INDEX_AXES = ("subject", "task")  # chosen by name


@dataclass(frozen=True)
class Probe:
    """What one window gave.

    Args:
        start (`float`): First moment of the window in s.
        bin_size (`float`): Width of a bin in s.
        attention (`np.ndarray` of shape `(layers, sites, heads, bins, anchors + bins)`): Weights of the
            temporal layers, float32.
        spatial (`np.ndarray` of shape `(layers, heads, sites, anchors + sites)` or `None`): Weights of the
            spatial layers, averaged over bins; None where there are none.
        num_anchors (`int`): Anchors, the first keys.
        window (`int`): Bins that a query attends to.
        predicted (`np.ndarray` of shape `(bins, K)`): Decoded behaviour.
        truth (`np.ndarray` of shape `(bins, K)`): True behaviour, NaN where there is none.
        metadata (`np.ndarray` of shape `(sites, axes)`): Coordinates that were used.
        model_seconds (`float`): Time that the model took.
    """

    start: float
    bin_size: float
    attention: NDArray[np.float32]
    spatial: NDArray[np.float32] | None
    num_anchors: int
    window: int
    predicted: NDArray[np.float32]
    truth: NDArray[np.float64]
    metadata: NDArray[np.float32]
    model_seconds: float


def probe_window(
    model: Any,
    processor: RPNTProcessor,
    recording: Recording,
    start: float,
    changed: Mapping[tuple[int, str], float] | None = None,
) -> Probe:
    """Runs one window with attention weights.

    Args:
        model (`RPNTForMotorDecoding`): The decoder; it comes back as it was.
        processor ([`RPNTProcessor`]): Its processor.
        recording (`Recording`): A recording whose session the processor knows.
        start (`float`): First moment in s. The window has as many bins as training windows, at most 160.
        changed (`Mapping[tuple[int, str], float]`, *optional*): Coordinates to put in place of the recorded
            ones, by site and axis; NaN for unknown.

    Returns:
        [`Probe`]: Attention and decoded behaviour.

    Raises:
        ConfigurationError: Nothing was observed there.
        InputError: The recording does not fit the decoder.
    """
    num_bins = min(processor.window_bins or MAX_PROBED_BINS, MAX_PROBED_BINS)
    stretch = cut_recording(recording, start, num_bins * processor.bin_size)
    interval = bin_recording(processor, stretch)[0]
    inputs = {name: value[:1] for name, value in processor(stretch).items()}
    num_bins = len(interval.counts)
    inputs["spike_counts"] = inputs["spike_counts"][:, :, :num_bins]
    inputs["bin_mask"] = inputs["bin_mask"][:, :, :num_bins]
    metadata = inputs["metadata"].clone()
    for (site, axis), value in (changed or {}).items():
        metadata[0, site, processor.metadata_axes.index(axis)] = value
    inputs["metadata"] = metadata
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    began = time.perf_counter()
    try:
        with torch.inference_mode():
            outputs = model(
                **{name: value.to(model.device) for name, value in inputs.items()},
                output_attentions=True,
                output_spatial_attentions=True,
            )
    finally:
        model.set_attn_implementation(before)
    seconds = time.perf_counter() - began
    spatial = None
    if outputs.spatial_attentions:
        spatial = torch.stack([layer.float().mean(0) for layer in outputs.spatial_attentions]).cpu().numpy()
    lag, predicted = model.config.label_lag, outputs.predictions[0].float().cpu().numpy()
    placed = np.full_like(predicted, np.nan)
    placed[lag:] = predicted[: len(predicted) - lag]
    table = prediction_table(model, processor, stretch, [interval], [placed])
    return Probe(
        start=interval.start_time,
        bin_size=processor.bin_size,
        attention=torch.stack([layer[0].float() for layer in outputs.attentions]).cpu().numpy(),
        spatial=spatial,
        num_anchors=model.config.num_anchors,
        window=min(model.config.attention_window or num_bins, num_bins),
        predicted=placed,
        truth=table[target_names(model)].to_numpy(),
        metadata=metadata[0].numpy(),
        model_seconds=seconds,
    )


def lag_map(probe: Probe, layer: int, head: int | None, site: int) -> tuple[NDArray, NDArray]:
    """Turns weights by key into weights by how long ago the key was.

    Args:
        probe ([`Probe`]): What `probe_window` gave.
        layer (`int`): Temporal layer, from 0.
        head (`int` or `None`): Head, from 0; None for the mean over heads.
        site (`int`): Site, from 0.

    Returns:
        `tuple`: Weights by lag and bin, `(window, bins)`, 0 before the window began; and weights of the
        anchors by bin, `(anchors, bins)`.
    """
    weights = probe.attention[layer, site]
    weights = weights.mean(axis=0) if head is None else weights[head]
    anchors, keys = np.split(weights, [probe.num_anchors], axis=-1)
    num_bins = len(keys)
    lags, bins = np.arange(probe.window)[:, None], np.arange(num_bins)
    earlier = bins - lags
    return np.where(earlier >= 0, keys[bins, np.maximum(earlier, 0)], 0.0), anchors.T


def _packed_map(weights: NDArray, scale: float) -> str:
    return packed(np.clip(np.nan_to_num(weights) / max(scale, 1e-12), 0, 1) * 255, "u1")


def attention_view(
    probe: Probe, site_names: list[str], layer: int = 0, head: int | None = None, site: int = 0
) -> dict[str, Any]:
    """What the attention view draws.

    Args:
        probe ([`Probe`]): What `probe_window` gave.
        site_names (`list[str]`): Names of the sites.
        layer (`int`, *optional*, defaults to 0): Temporal layer; a larger one than there is means the last.
        head (`int` or `None`, *optional*): Head; None for the mean.
        site (`int`, *optional*, defaults to 0): Site.

    Returns:
        `dict`: Plain values for the view "attention".
    """
    num_layers, num_sites, num_heads = probe.attention.shape[:3]
    layer, site = min(layer, num_layers - 1), min(site, num_sites - 1)
    head = None if head is None else min(head, num_heads - 1)
    weights, anchors = lag_map(probe, layer, head, site)
    full = weights[:, probe.window - 1 :] if weights.shape[1] >= probe.window else weights
    scale = float(np.quantile(weights[weights > 0], 0.995)) if (weights > 0).any() else 1.0
    return {
        "start": probe.start,
        "bin_size": probe.bin_size,
        "bins": weights.shape[1],
        "lags": probe.window,
        "weights": _packed_map(weights, scale),
        "scale": scale,
        "profile": packed(full.mean(axis=1), "<f4"),
        "anchors": packed(anchors.sum(axis=0), "<f4"),
        "anchor_share": float(anchors.sum(axis=0).mean()),
        "movement": packed(_speed(probe), "<f4"),
        "site": site_names[site],
        "model_ms": 1000 * probe.model_seconds,
    }


def _speed(probe: Probe) -> NDArray[np.float64]:
    """Length of the true behaviour at each bin, of the decoded one where there is no truth."""
    shown = probe.truth if np.isfinite(probe.truth).any() else probe.predicted
    return np.nan_to_num(np.sqrt((shown**2).sum(axis=1)))


def active_axes(model: Any, processor: RPNTProcessor) -> list[str]:
    """Names the metadata axes through which a decoder can tell recordings apart.

    Args:
        model (`RPNTForMotorDecoding`): The decoder.
        processor ([`RPNTProcessor`]): Its processor.

    Returns:
        `list[str]`: Axes with rotation pairs, in the order of the processor; none unless positions are
        "mrope".
    """
    if model.config.position_encoding != "mrope":
        return []
    turning = {axis.name for axis in model.config.mrope_axes if axis.num_pairs}
    return [axis for axis in processor.metadata_axes if axis in turning]


def axis_range(axis: str, recorded: float) -> tuple[float, float]:
    """Gives the range of a slider.

    Args:
        axis (`str`): A metadata axis.
        recorded (`float`): What the recording says; NaN where it says nothing.

    Returns:
        `tuple[float, float]`: Lowest and highest value, in the unit of the axis.
    """
    at = 0.0 if math.isnan(recorded) else recorded
    if axis in SITE_AXES:
        return (math.floor(at) - 10.0, math.ceil(at) + 10.0)
    return (min(0.0, at) - 30.0, max(at, 0.0) + 90.0)


def recorded_metadata(processor: RPNTProcessor, recording: Recording) -> NDArray[np.float32]:
    """Gives what a recording says of its sites, subject, day and task.

    Args:
        processor ([`RPNTProcessor`]): Of the decoder.
        recording (`Recording`): The recording.

    Returns:
        `np.ndarray` of shape `(sites, axes)`: Coordinates, NaN where unknown.
    """
    return processor.metadata(
        recording.site_positions, len(recording.site_ids), recording.session_id, recording.subject_id,
        recording.task, recording.recording_date,
    )  # fmt: skip


def known_values(processor: RPNTProcessor, axis: str) -> list[str]:
    """Names the subjects or tasks that a decoder knows.

    Args:
        processor ([`RPNTProcessor`]): Of the decoder.
        axis (`str`): "subject" or "task".

    Returns:
        `list[str]`: Names, in the order of their numbers.
    """
    return list(processor.subjects if axis == "subject" else processor.tasks)


def shown_value(processor: RPNTProcessor, axis: str, value: float) -> str | float:
    """Gives what a control shows of a coordinate.

    Args:
        processor ([`RPNTProcessor`]): Of the decoder.
        axis (`str`): Name of the axis.
        value (`float`): Coordinate, NaN where unknown.

    Returns:
        `str` or `float`: A name, or a number of two decimals; where it is unknown, that word or 0.
    """
    if axis in INDEX_AXES:
        return UNKNOWN if math.isnan(value) else known_values(processor, axis)[int(value)]
    return 0.0 if math.isnan(value) else round(float(value), 2)


def unknown_name(axis: str) -> str:
    """Names what a visitor treats as unknown: the place of a site as a whole.

    Args:
        axis (`str`): Name of the axis.

    Returns:
        `str`: The name.
    """
    return "site position" if axis in SITE_AXES else axis


def changed_metadata(
    processor: RPNTProcessor, recording: Recording, stated: Mapping[str, str | float], site: int
) -> dict[tuple[int, str], float]:
    """Turns what controls say into coordinates that differ from the recorded ones.

    Args:
        processor ([`RPNTProcessor`]): Of the decoder.
        recording (`Recording`): The recording.
        stated (`Mapping[str, str | float]`): Of each axis a name, a number, or `UNKNOWN`.
        site (`int`): Site whose place is stated; all else holds for every site.

    Returns:
        `dict[tuple[int, str], float]`: For `probe_window`: coordinate by site and axis, NaN for unknown. A
        control that shows the recorded value, rounded, changes nothing.
    """
    recorded = recorded_metadata(processor, recording)
    changed: dict[tuple[int, str], float] = {}
    for axis, value in stated.items():
        if value == UNKNOWN:
            number = math.nan
        elif axis in INDEX_AXES:
            number = float(known_values(processor, axis).index(str(value)))
        else:
            number = float(value)
        for one in [site] if axis in SITE_AXES else range(len(recorded)):
            before = float(recorded[one, processor.metadata_axes.index(axis)])
            both_unknown = math.isnan(before) and math.isnan(number)
            if not both_unknown and (math.isnan(before) or shown_value(processor, axis, before) != value):
                changed[one, axis] = number
    return changed


def metadata_view(
    recorded: Probe, changed: Probe, axes: list[str], layer: int = 0, site: int = 0
) -> dict[str, Any]:
    """What the metadata view draws: the same window twice, with recorded and with changed metadata.

    Args:
        recorded ([`Probe`]): With the metadata of the recording.
        changed ([`Probe`]): With others.
        axes (`list[str]`): Names of the columns of the metadata.
        layer (`int`, *optional*, defaults to 0): Temporal layer; a larger one than there is means the last.
        site (`int`, *optional*, defaults to 0): Site.

    Returns:
        `dict`: Plain values for the view "metadata".
    """
    layer, site = min(layer, recorded.attention.shape[0] - 1), min(site, recorded.attention.shape[1] - 1)
    maps = [lag_map(probe, layer, None, site) for probe in (recorded, changed)]
    weights = [found[0] for found in maps]
    scale = max(float(np.quantile(found[found > 0], 0.995)) for found in weights)
    difference = weights[1] - weights[0]
    spread = max(float(np.abs(difference).max()), 1e-6)
    moved = changed.predicted - recorded.predicted
    finite = np.isfinite(moved).all(axis=1)
    return {
        "start": recorded.start,
        "bin_size": recorded.bin_size,
        "bins": weights[0].shape[1],
        "lags": recorded.window,
        "maps": [_packed_map(found, scale) for found in weights],
        "scale": scale,
        "difference": packed(np.clip(difference / spread, -1, 1) * 127, "i1"),
        "spread": spread,
        "anchor_share": [float(found[1].sum(axis=0).mean()) for found in maps],
        "true": packed(recorded.truth, "<f4"),
        "predicted": [packed(probe.predicted, "<f4") for probe in (recorded, changed)],
        "moved": float(np.sqrt((moved[finite] ** 2).mean())) if finite.any() else 0.0,
        "r2": [_window_r2(probe) for probe in (recorded, changed)],
        "values": [
            {"axis": axis.replace("_", " "), "unit": AXIS_UNITS[axis],
             "recorded": _number(recorded.metadata[site, column]),
             "changed": _number(changed.metadata[site, column])}
            for column, axis in enumerate(axes)
        ],
        "model_ms": 1000 * (recorded.model_seconds + changed.model_seconds),
    }  # fmt: skip


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 3)


def _window_r2(probe: Probe) -> float | None:
    finite = np.isfinite(probe.truth).all(axis=1) & np.isfinite(probe.predicted).all(axis=1)
    if finite.sum() < 2:
        return None
    # Weighted: in a few seconds one dimension may hardly move, and its R2 alone says nothing.
    return r2_scores(probe.truth[finite], probe.predicted[finite])["r2_variance_weighted"]
