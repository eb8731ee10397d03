"""What a network attends to on given data: attention weights of both stages, and context kernels.

For pictures and analyses of short windows. Not for streaming or training: every weight is kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from rpnt_hf.attention_rpnt import RPNTContextKernel
from rpnt_hf.data.nwb import Recording
from rpnt_hf.decoding import bin_recording
from rpnt_hf.errors import InputError
from rpnt_hf.processing_rpnt import RPNTProcessor

__all__ = ["AttentionMaps", "attention_maps", "recording_maps"]

MAX_BINS = 1000  # a layer keeps sites x heads x bins^2 weights


@dataclass(frozen=True)
class AttentionMaps:
    """Weights of a network on one window.

    Args:
        attentions (`list[np.ndarray]` of shape `(sites, heads, bins, anchors + bins)`): Per temporal layer
            how much each bin takes from each anchor and bin; rows sum to 1. With context attention, scores
            have been smoothed by the kernels.
        spatial_attentions (`list[np.ndarray]` of shape `(bins, heads, sites, anchors + sites)`): Per spatial
            layer how much each site takes from each anchor and site, at each bin; may be empty.
        kernels (`list[np.ndarray]` of shape `(sites, heads, bins, query taps, key taps)`): Per temporal layer
            the context kernels; empty without context attention.
        num_anchors (`int`): Anchors before the bins or sites.
        bin_size (`float`): Width of a bin in s.
        start_time (`float`): Time of the first bin in s.
        site_ids (`list[str]`): Names of the sites.
    """

    attentions: list[NDArray[np.float32]]
    spatial_attentions: list[NDArray[np.float32]]
    kernels: list[NDArray[np.float32]]
    num_anchors: int
    bin_size: float
    start_time: float
    site_ids: list[str]


def attention_maps(
    model: PreTrainedModel,
    processor: RPNTProcessor,
    row: Mapping[str, Any],
    start_bin: int = 0,
    num_bins: int = 100,
) -> AttentionMaps:
    """Runs the encoder over a window and keeps its weights.

    Args:
        model (`PreTrainedModel`): Any RPNT model.
        processor ([`RPNTProcessor`]): Its processor.
        row (`Mapping`): Row of a built dataset, or what the processor takes as one.
        start_bin (`int`, *optional*, defaults to 0): First bin of the window. Nothing before it is seen.
        num_bins (`int`, *optional*, defaults to 100): Bins of the window, 1 to 1000; fewer at the end of the
            row.

    Returns:
        [`AttentionMaps`]: On the CPU. The model is left as it was.

    Raises:
        InputError: The window is not inside the row, or the row does not fit the processor.
    """
    if not 0 <= start_bin < row["num_bins"] or not 1 <= num_bins <= MAX_BINS:
        raise InputError(
            f"A window must begin in [0, {row['num_bins']}) bins and have 1 to {MAX_BINS} bins, got "
            f"`start_bin` {start_bin} and `num_bins` {num_bins} in session '{row['session_id']}'."
        )
    encoder: Any = model.base_model
    inputs = {name: value.to(encoder.device) for name, value in processor(row).items()}
    for name in ("spike_counts", "bin_mask"):
        inputs[name] = inputs[name][:, :, start_bin : start_bin + num_bins]
    names = ("spike_counts", "unit_ids", "unit_mask", "bin_mask", "metadata")
    kernels: list[NDArray[np.float32]] = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: kernels.append(_array(output[0])))
        for module in encoder.modules()
        if isinstance(module, RPNTContextKernel)
    ]
    implementation, was_training = encoder.config._attn_implementation, encoder.training
    encoder.set_attn_implementation("eager")  # the only one that keeps weights
    encoder.eval()
    try:
        with torch.inference_mode():
            outputs = encoder(
                **{name: inputs[name] for name in names},
                output_attentions=True,
                output_spatial_attentions=True,
            )
    finally:
        encoder.set_attn_implementation(implementation)
        encoder.train(was_training)
        for hook in hooks:
            hook.remove()
    return AttentionMaps(
        [_array(weights[0]) for weights in outputs.attentions],
        [_array(weights) for weights in outputs.spatial_attentions or ()],
        kernels,
        encoder.config.num_anchors,
        processor.bin_size,
        float(row["start_time"]) + start_bin * processor.bin_size,
        list(row["site_ids"]),
    )


def recording_maps(
    model: PreTrainedModel,
    processor: RPNTProcessor,
    recording: Recording,
    start: float | None = None,
    num_bins: int = 100,
) -> AttentionMaps:
    """Runs the encoder over a window of a recording and keeps its weights.

    Args:
        model (`PreTrainedModel`): Any RPNT model.
        processor ([`RPNTProcessor`]): Its processor.
        recording ([`Recording`]): A recording whose session the processor knows.
        start (`float`, *optional*): Where the window begins, s; with the first observed interval by default.
        num_bins (`int`, *optional*, defaults to 100): Bins of the window.

    Returns:
        [`AttentionMaps`]: Of the window.

    Raises:
        InputError: Nothing is observed at `start`, or the recording does not fit the processor.
        RecordingError: No observed interval is as long as a bin.
    """
    intervals = bin_recording(processor, recording)
    if start is None:
        start = intervals[0].start_time
    for interval in intervals:
        first = int(np.floor((start - interval.start_time) / processor.bin_size + 1e-6))
        if 0 <= first < len(interval.counts):
            break
    else:
        raise InputError(
            f"`start` must lie in an observed interval, got {start} s in session '{recording.session_id}'. "
            f"There are: {recording.obs_intervals.tolist()}."
        )
    row = {
        "session_id": recording.session_id,
        "subject_id": recording.subject_id,
        "task": recording.task,
        "recording_date": recording.recording_date,
        "site_ids": recording.site_ids,
        "site_positions": recording.site_positions,
        "bin_size": processor.bin_size,
        "start_time": interval.start_time,
        "num_bins": len(interval.counts),
        "unit_ids": recording.unit_ids,
        "unit_sites": recording.unit_sites,
        "counts": np.ascontiguousarray(interval.counts),
        "observed": interval.observed.astype(np.uint8),
    }
    return attention_maps(model, processor, row, first, num_bins)


def _array(values: torch.Tensor) -> NDArray[np.float32]:
    return values.float().cpu().numpy()
