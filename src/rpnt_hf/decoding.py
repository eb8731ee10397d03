"""Runs a decoder over whole rows and recordings, causally.

For validation, `rpnt decode` and the demo. Not for closed loops: that is `streaming.py`.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from .data.binning import EDGE_TOLERANCE, BinnedInterval, bin_behavior, bin_spikes, derive_velocity
from .data.cutting import scored_interval
from .data.nwb import BehaviorSeries, Recording
from .errors import CheckpointError, RecordingError
from .metrics import r2_scores
from .processing_rpnt import RPNTProcessor
from .progress import progress_bar

logger = logging.getLogger(__name__)

__all__ = [
    "bin_recording",
    "decode_distributions",
    "decode_recording",
    "decode_rows",
    "prediction_table",
    "score_table",
    "target_names",
    "target_unit",
]

INPUT_NAMES = ("spike_counts", "unit_ids", "unit_mask", "bin_mask", "metadata")


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Switches dropout off for a while."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def _segments(num_bins: int, window_bins: int | None) -> list[tuple[int, int, int]]:
    """Lists (first bin, stop bin, first bin that is kept) of the windows that decode a row."""
    if window_bins is None or num_bins <= window_bins:
        return [(0, num_bins, 0)]
    hop = max(window_bins // 2, 1)
    starts = range(0, num_bins - (window_bins - hop), hop)
    return [
        (start, min(start + window_bins, num_bins), start + window_bins - hop if start else 0)
        for start in starts
    ]


def decode_rows(
    model: PreTrainedModel, processor: RPNTProcessor, rows: Sequence[Mapping[str, Any]], batch_size: int = 16
) -> list[NDArray[np.float32]]:
    """Decodes every bin of rows of a built dataset, each bin from itself and earlier bins of its row.

    A model with `attention_window` takes each row at once. One without it, or whose `position_encoding` is
    "learned" or "sinusoidal" (a vector for each position), has only seen windows of `processor.window_bins`:
    longer rows are decoded in windows that overlap by half, and of each window but the first only the second
    half is kept, so that every bin has at least half a window of past.

    Args:
        model (`PreTrainedModel`): An `RPNTForMotorDecoding`.
        processor (`RPNTProcessor`): The processor saved with it.
        rows (`Sequence[Mapping]`): Rows of a built dataset, of any lengths and sessions.
        batch_size (`int`, *optional*, defaults to 16): Windows per forward pass.

    Returns:
        `list[np.ndarray]`: One per row, shape `(num_bins, targets)`, float32, in the units of the targets.
        Entry t is about bin t; with `label_lag` it comes from the counts up to bin t - label_lag, and the
        first `label_lag` bins are NaN.

    Raises:
        CheckpointError: The model needs windows and the processor does not say how long.
        InputError: A row does not fit the processor.
    """
    return _decode(model, processor, rows, batch_size, ("predictions",))[0]


def decode_distributions(
    model: PreTrainedModel, processor: RPNTProcessor, rows: Sequence[Mapping[str, Any]], batch_size: int = 16
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """Decodes every bin of rows with its uncertainty; the decoder must have `predict_variance`.

    Args:
        model (`PreTrainedModel`): An `RPNTForMotorDecoding` with `config.predict_variance`.
        processor (`RPNTProcessor`): The processor saved with it.
        rows (`Sequence[Mapping]`): Rows of a built dataset.
        batch_size (`int`, *optional*, defaults to 16): Windows per forward pass.

    Returns:
        `tuple`: What `decode_rows` gives, and the logs of the variances in the same shapes, of the units of
        the targets squared.

    Raises:
        CheckpointError: The model does not predict variances, or needs windows of unknown length.
        InputError: A row does not fit the processor.
    """
    if not model.config.predict_variance:
        raise CheckpointError(
            "A decoder must have been trained with `predict_variance` to say how sure it is, got one "
            "without. Train it with `--model.predict_variance true`."
        )
    predictions, log_variances = _decode(model, processor, rows, batch_size, ("predictions", "log_variances"))
    return predictions, log_variances


def _decode(
    model: PreTrainedModel,
    processor: RPNTProcessor,
    rows: Sequence[Mapping[str, Any]],
    batch_size: int,
    names: Sequence[str],
) -> list[list[NDArray[np.float32]]]:
    """Decodes rows and gives the named outputs of the model, a list over rows for each."""
    encoding = model.config.position_encoding
    needs_windows = model.config.attention_window is None or encoding in ("learned", "sinusoidal")
    window_bins = processor.window_bins if needs_windows else None
    if needs_windows and window_bins is None:
        raise CheckpointError(
            f"A decoder with `attention_window` {model.config.attention_window} and `position_encoding` "
            f"'{encoding}' must come with the length of its training windows, but `window_bins` of its "
            "processor is None. Set `processor.window_bins` to the bins it was trained on."
        )
    lag = model.config.label_lag
    num_targets = model.config.num_targets
    found = [
        [np.full((row["num_bins"], num_targets), np.nan, dtype=np.float32) for row in rows] for _ in names
    ]
    jobs = [
        (index, *segment)
        for index, row in enumerate(rows)
        for segment in _segments(row["num_bins"], window_bins)
    ]
    jobs.sort(key=lambda job: job[2] - job[1])  # windows of similar length share a batch
    inputs: dict[int, Mapping[str, torch.Tensor]] = {}
    left = np.bincount([job[0] for job in jobs], minlength=len(rows))
    with _evaluating(model):
        starts = range(0, len(jobs), batch_size)
        for first in progress_bar(starts, desc="Decoding", unit="batch", leave=False):
            batch = jobs[first : first + batch_size]
            for index, *_ in batch:
                if index not in inputs:
                    inputs[index] = processor(rows[index])
            padded = _pad([(inputs[index], start, stop) for index, start, stop, _ in batch])
            outputs = model(**{name: value.to(model.device) for name, value in padded.items()})
            for name, rows_found in zip(names, found, strict=True):
                decoded = outputs[name].float().cpu().numpy()
                for (index, start, stop, kept_from), values in zip(batch, decoded, strict=True):
                    target = rows_found[index][kept_from + lag : stop + lag]
                    target[:] = values[kept_from - start : stop - start][: len(target)]
            for index, *_ in batch:
                left[index] -= 1
                if not left[index]:
                    inputs.pop(index)
    return found


def _pad(parts: Sequence[tuple[Mapping[str, torch.Tensor], int, int]]) -> dict[str, torch.Tensor]:
    """Stacks bins [start, stop) of several inputs, padded at the end of every axis."""
    cut = [
        {
            "spike_counts": inputs["spike_counts"][0, :, start:stop],
            "unit_ids": inputs["unit_ids"][0],
            "unit_mask": inputs["unit_mask"][0],
            "bin_mask": inputs["bin_mask"][0, :, start:stop],
            "metadata": inputs["metadata"][0],
        }
        for inputs, start, stop in parts
    ]
    batch = {}
    for name in INPUT_NAMES:
        tensors = [part[name] for part in cut]
        shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
        fill = float("nan") if name == "metadata" else 0
        padded = torch.full((len(tensors), *shape), fill, dtype=tensors[0].dtype)
        for i, tensor in enumerate(tensors):
            inside = (i, *(slice(size) for size in tensor.shape))
            padded[inside] = tensor  # type: ignore[index]
        batch[name] = padded
    return batch


def decode_recording(
    model: PreTrainedModel, processor: RPNTProcessor, recording: Recording, batch_size: int = 16
) -> pd.DataFrame:
    """Decodes every bin of the observed intervals of a recording, causally (see `decode_rows`).

    Args:
        model (`PreTrainedModel`): An `RPNTForMotorDecoding`.
        processor (`RPNTProcessor`): The processor saved with it.
        recording (`Recording`): A recording whose session the processor knows.
        batch_size (`int`, *optional*, defaults to 16): Windows per forward pass.

    Returns:
        `pd.DataFrame`: One line per bin: `time` (start of the bin in s), `interval` (index in
        `obs_intervals`), for each target its true value (`cursor_vel_x`; NaN where the recording has none)
        and `cursor_vel_x_predicted`, `scored` (True where the bin lies in the scored part of a trial,
        anywhere where there are no trials, and both values are there) and `fitted` (True where the bin was
        among the training or validation rows of the decoder: a score of such bins is no test).

        A trial without a start or stop time is not scored; where trials have a `result` and some were
        rewarded ("R"), the others are not scored either. Where the dataset was built in blocks, because there
        were no trials, the guard bins of a held-out block count as not fitted, although they lie beside
        fitted ones.

    Raises:
        CheckpointError: As in `decode_rows`.
        InputError: The session is not known, or has other units.
        RecordingError: No observed interval is as long as a bin.
    """
    intervals = bin_recording(processor, recording)
    rows = [
        {
            "session_id": recording.session_id,
            "subject_id": recording.subject_id,
            "task": recording.task,
            "recording_date": recording.recording_date,
            "site_ids": recording.site_ids,
            "site_positions": recording.site_positions,
            "bin_size": processor.bin_size,
            "num_bins": len(interval.counts),
            "unit_ids": recording.unit_ids,
            "unit_sites": recording.unit_sites,
            "counts": np.ascontiguousarray(interval.counts),
            "observed": interval.observed.astype(np.uint8),
        }
        for interval in intervals
    ]
    return prediction_table(
        model, processor, recording, intervals, decode_rows(model, processor, rows, batch_size)
    )


def bin_recording(processor: RPNTProcessor, recording: Recording) -> list[BinnedInterval]:
    """Bins a recording that is to be decoded, and warns where its session was never decoded in training.

    Args:
        processor (`RPNTProcessor`): The processor of the decoder.
        recording (`Recording`): The recording.

    Returns:
        `list[BinnedInterval]`: One per observed interval, in bins of `processor.bin_size`.

    Raises:
        RecordingError: No observed interval is as long as a bin.
    """
    intervals = bin_spikes(recording, processor.bin_size)
    if not intervals:
        raise RecordingError(
            f"Recording '{recording.session_id}' must have an observed interval of at least one bin of "
            f"{processor.bin_size} s, got none."
        )
    decoded_sessions = sorted({known["session_id"] for known in processor.fitted_intervals})
    is_aligned = "aligned_to" in processor.session_facts.get(recording.session_id, {})
    if decoded_sessions and recording.session_id not in decoded_sessions and not is_aligned:
        logger.warning(
            "This decoder was not trained to decode session '%s', only %s: its predictions mean little.",
            recording.session_id, ", ".join(decoded_sessions),
        )  # fmt: skip
    known_subject = processor.session_facts.get(recording.session_id, {}).get("subject_id")
    if known_subject is not None and recording.subject_id not in (None, known_subject):
        logger.warning(
            "This recording is of subject '%s', but session '%s' of this decoder is of subject '%s': where "
            "these are two animals, the predictions mean nothing.",
            recording.subject_id, recording.session_id, known_subject,
        )  # fmt: skip
    return intervals


def prediction_table(
    model: PreTrainedModel,
    processor: RPNTProcessor,
    recording: Recording,
    intervals: Sequence[BinnedInterval],
    decoded: Sequence[NDArray[np.float32]],
) -> pd.DataFrame:
    """Puts predictions beside the behaviour of the recording, as `decode_recording` does.

    Args:
        model (`PreTrainedModel`): The decoder.
        processor (`RPNTProcessor`): Its processor.
        recording (`Recording`): The recording that was decoded.
        intervals (`Sequence[BinnedInterval]`): Its bins.
        decoded (`Sequence[np.ndarray]` of shape `(bins, K)`): Predictions of the first bins of each interval;
            entry t is about bin t.

    Returns:
        `pd.DataFrame`: The columns of `decode_recording`, one line per predicted bin.
    """
    names = target_names(model)
    columns = _series_of(recording, names)
    tables = []
    for interval, predictions in zip(intervals, decoded, strict=True):
        num_bins = len(predictions)
        table = {
            "time": interval.start_time + processor.bin_size * np.arange(num_bins),
            "interval": np.full(num_bins, interval.index),
        }
        targets = np.full_like(predictions, np.nan)
        for k, name in enumerate(names):
            if name in columns:
                series, dimension = columns[name]
                binned = bin_behavior(series, interval.start_time, num_bins, processor.bin_size)
                targets[:, k] = binned[:, dimension]
            table |= {name: targets[:, k], f"{name}_predicted": predictions[:, k]}
        finite = np.isfinite(targets).all(axis=1) & np.isfinite(predictions).all(axis=1)
        inside = _scored_by_trials(recording.trials, interval.start_time, num_bins, processor.bin_size)
        centres = table["time"] + processor.bin_size / 2
        fitted = processor.is_fitted(recording.session_id, recording.source, centres)
        scored = finite & interval.observed[:num_bins] & inside
        tables.append(pd.DataFrame({**table, "scored": scored, "fitted": fitted}))
    return pd.concat(tables, ignore_index=True)


def target_names(model: PreTrainedModel) -> list[str]:
    """Gives the names of what a decoder decodes.

    Args:
        model (`PreTrainedModel`): The decoder.

    Returns:
        `list[str]`: `config.target_names`, or "target_0" and so on where it has none.
    """
    return list(model.config.target_names or (f"target_{k}" for k in range(model.config.num_targets)))


def target_unit(model: PreTrainedModel) -> str:
    """Gives the unit of what a decoder decodes, for axes of pictures.

    Args:
        model (`PreTrainedModel`): The decoder.

    Returns:
        `str`: The unit that all targets share; words where they have several, or none is stated.
    """
    units = set(model.config.target_units or ["unit not stated"])
    return units.pop() if len(units) == 1 else "each in its unit"


def score_table(table: pd.DataFrame) -> dict[str, Any]:
    """Scores a table of predictions, the bins that the decoder was fitted to apart.

    Args:
        table (`pd.DataFrame`): From `decode_recording` or `prediction_table`.

    Returns:
        `dict`: `r2`, `r2_variance_weighted` and `num_scored_bins` on scored bins that were not fitted, and
        the same with `_fitted` at the end on those that were; None where there are no bins.
    """
    predicted = [name for name in table.columns if name.endswith("_predicted")]
    true = [name.removesuffix("_predicted") for name in predicted]
    scores: dict[str, Any] = {}
    for suffix, chosen in (("", ~table["fitted"]), ("_fitted", table["fitted"])):
        scored = table[table["scored"] & chosen]
        r2: dict[str, float | None] = {"r2": None, "r2_variance_weighted": None}
        if len(scored):
            r2 = r2_scores(scored[true], scored[predicted])
        scores |= {f"{name}{suffix}": value for name, value in r2.items()}
        scores[f"num_scored_bins{suffix}"] = len(scored)
    return scores


def _series_of(recording: Recording, names: Sequence[str]) -> dict[str, tuple[BehaviorSeries, int]]:
    """Finds the series and the column of each target; velocity is derived where there is only position."""
    series = dict(recording.behavior)
    for position in list(recording.behavior.values()):
        if position.name.endswith("_pos"):
            velocity = derive_velocity(position)
            series.setdefault(velocity.name, velocity)
    columns = {
        f"{one.name}_{dimension}".rstrip("_"): (one, k)
        for one in series.values()
        for k, dimension in enumerate(one.dimension_names)
    }
    missing = [name for name in names if name not in columns]
    if missing:
        logger.warning("Session '%s' has no %s to compare with.", recording.session_id, ", ".join(missing))
    return {name: columns[name] for name in names if name in columns}


def _scored_by_trials(
    trials: pd.DataFrame, start_time: float, num_bins: int, bin_size: float
) -> NDArray[np.bool_]:
    """Marks the bins that lie wholly in the scored part of a trial; all of them where there are no trials."""
    if not len(trials):
        return np.ones(num_bins, dtype=bool)
    if "result" in trials.columns and (trials["result"] == "R").any():
        trials = trials[trials["result"] == "R"]
    trials = trials.dropna(subset=["start_time", "stop_time"])
    inside = np.zeros(num_bins, dtype=bool)
    for _, trial in trials.iterrows():
        first, last = ((time - start_time) / bin_size for time in scored_interval(trial))
        begin = -np.floor(-first + EDGE_TOLERANCE)
        inside[int(max(begin, 0)) : int(max(np.floor(last + EDGE_TOLERANCE), 0))] = True
    return inside
