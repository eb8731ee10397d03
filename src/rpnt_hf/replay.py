"""Replays a recording through a `StreamingDecoder` bin by bin, and times every step, for `rpnt stream`.

What a closed loop would have seen, with its latencies. Not for scores alone: `decoding.py` is faster.
"""

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .closed_loop import WARM_UP_BINS, take_first_steps
from .data.nwb import Recording
from .decoding import bin_recording, prediction_table, score_table, target_names, target_unit
from .errors import ConfigurationError
from .modeling_rpnt import RPNTForMotorDecoding
from .processing_rpnt import RPNTProcessor
from .streaming import StreamingDecoder

logger = logging.getLogger(__name__)

__all__ = [
    "Replay",
    "ReplayedBin",
    "plot_replay",
    "replay_recording",
    "session_of_recording",
    "shown_in_terminal",
]


@dataclass(frozen=True)
class ReplayedBin:
    """What is known when a bin has just been decoded.

    Args:
        time (`float`): Start of the bin in s.
        prediction (`np.ndarray` of shape `(K,)`): Decoded behaviour, `label_lag` bins ahead.
        truth (`np.ndarray` of shape `(K,)`): Behaviour of the bin that the prediction is about; NaN where
            the recording has none.
        latency (`float`): Time that the step took, in s.
        is_late (`bool`): True where its deadline was missed.
    """

    time: float
    prediction: NDArray[np.float32]
    truth: NDArray[np.float32]
    latency: float
    is_late: bool


@dataclass(frozen=True)
class Replay:
    """A recording as it was decoded live.

    Args:
        table (`pd.DataFrame`): The columns of `decoding.decode_recording`, one line for each bin that was
            decoded, with `latency` (s of the step), `is_late` (True where the deadline was missed) and, in
            real time, `wakeup_lateness` (s from the end of the bin to the start of its step).
        bin_size (`float`): Width of a bin in s.
        backend (`str`): What computed the steps, "torch" or "onnx".
        interrupted (`bool`): True where the user stopped it.
    """

    table: pd.DataFrame
    bin_size: float
    backend: str
    interrupted: bool

    def report(self) -> dict[str, Any]:
        """Sums up the replay.

        Returns:
            `dict`: The scores of `decoding.score_table`; `num_bins`, `bin_size` (s), `backend`,
            `missed_deadlines`, `latency_ms` and `wakeup_lateness_ms` (p50, p95, p99 and max in ms; None where
            nothing was measured) and `interrupted`.
        """
        measured = self.table if "wakeup_lateness" in self.table.columns else None
        return {
            **score_table(self.table),
            "num_bins": len(self.table),
            "bin_size": self.bin_size,
            "backend": self.backend,
            "missed_deadlines": int(self.table["is_late"].sum()),
            "latency_ms": _percentiles_ms(self.table["latency"]),
            "wakeup_lateness_ms": None if measured is None else _percentiles_ms(measured["wakeup_lateness"]),
            "interrupted": self.interrupted,
        }


def replay_recording(
    model: RPNTForMotorDecoding,
    processor: RPNTProcessor,
    recording: Recording,
    *,
    realtime: bool = False,
    max_seconds: float | None = None,
    show: Callable[[ReplayedBin], None] | None = None,
    **decoder_options: Any,
) -> Replay:
    """Feeds the bins of a recording to a `StreamingDecoder`, which starts afresh at each observed interval.

    Predictions equal those of `decoding.decode_recording` where the model has an `attention_window` and its
    positions have no vectors of their own. Every bin is decoded, however late.

    Args:
        model ([`RPNTForMotorDecoding`]): The decoder.
        processor ([`RPNTProcessor`]): Its processor.
        recording ([`Recording`]): A recording whose session the processor knows.
        realtime (`bool`, *optional*, defaults to `False`):
            Start the step of a bin when the bin ends, by a clock that starts with the interval and never
            drifts, and warm the decoder up shortly before. A deadline is missed where a step ends later than
            one bin after that. Otherwise bins follow one another at once, and a deadline is missed where a
            step takes longer than a bin.
        max_seconds (`float`, *optional*): Length of recording to replay in s, above 0; all of it by default.
            A model without `attention_window` needs it, since its memory grows with the stream.
        show (`Callable`, *optional*): Called with each [`ReplayedBin`]; its time counts towards no latency.
        **decoder_options: Further arguments of [`StreamingDecoder`].

    Returns:
        [`Replay`]: The bins that were decoded; a KeyboardInterrupt ends it early.

    Raises:
        ConfigurationError: `max_seconds` is shorter than a bin, or is needed and absent.
        InputError: The session is not known, or has other units.
        RecordingError: No observed interval is as long as a bin.
    """
    bin_size = processor.bin_size
    if max_seconds is not None and not max_seconds >= bin_size:
        raise ConfigurationError(
            f"`max_seconds` must be at least one bin of {bin_size} s, got {max_seconds}."
        )
    if model.config.attention_window is None and max_seconds is None:
        raise ConfigurationError(
            "A decoder without `attention_window` must be replayed for a stated time, got no `max_seconds` "
            "(`--max-seconds`): its memory grows with the stream. State one, or train with a window."
        )
    intervals = bin_recording(processor, recording)
    left = np.iinfo(np.int64).max if max_seconds is None else round(max_seconds / bin_size)
    before = np.cumsum([0, *(len(interval.counts) for interval in intervals)])
    num_bins = np.clip(left - before[:-1], 0, np.diff(before))
    session_processor, units = session_of_recording(processor, recording)
    if model.config.attention_window is None:
        decoder_options["max_bins"] = max(int(num_bins.max()), WARM_UP_BINS)
    decoder = StreamingDecoder(model, session_processor, recording.session_id, **decoder_options)
    lead = take_first_steps(decoder, bin_size)

    num_targets, lag = model.config.num_targets, model.config.label_lag
    unknown = [np.full((bins, num_targets), np.nan, np.float32) for bins in np.diff(before)]
    truth = prediction_table(model, processor, recording, intervals, unknown)[target_names(model)].to_numpy()
    future = np.full((lag, num_targets), np.nan)
    decoded = [values[:bins] for values, bins in zip(unknown, num_bins, strict=True)]
    timing = np.zeros((int(num_bins.sum()), 3))
    done = 0
    interrupted = False
    try:
        for interval, predictions, first in zip(intervals, decoded, before, strict=False):
            targets = np.concatenate([truth[first : first + len(interval.counts)], future])
            decoder.reset()
            began = time.perf_counter()
            for t, counts in enumerate(interval.counts[: len(predictions), units]):
                due = began + (t + 1) * bin_size
                if realtime:
                    _wait_warm(decoder, due, lead)
                started = time.perf_counter()
                prediction = decoder.step(counts).float().cpu().numpy()
                ended = time.perf_counter()
                is_late = ended - (due if realtime else started) > bin_size
                if t + lag < len(predictions):
                    predictions[t + lag] = prediction
                timing[done] = ended - started, is_late, started - due
                done += 1
                if show is not None:
                    at = interval.start_time + t * bin_size
                    show(ReplayedBin(at, prediction, targets[t + lag], ended - started, is_late))
    except KeyboardInterrupt:
        interrupted = True
    finished = np.clip(done - before[:-1], 0, num_bins)
    decoded = [values[:bins] for values, bins in zip(decoded, finished, strict=True)]
    table = prediction_table(model, processor, recording, intervals, decoded)
    table = table.assign(latency=timing[:done, 0], is_late=timing[:done, 1].astype(bool))
    if realtime:
        table = table.assign(wakeup_lateness=timing[:done, 2])
    return Replay(table, bin_size, decoder.backend, interrupted)


def _wait_warm(decoder: StreamingDecoder, due: float, lead: float) -> None:
    """Waits for a time, and warms the decoder up shortly before, where that can be."""
    if lead:
        time.sleep(max(due - lead - time.perf_counter(), 0))
        if time.perf_counter() < due - lead / 2:
            decoder.warm_up()
    time.sleep(max(due - time.perf_counter(), 0))


def session_of_recording(
    processor: RPNTProcessor, recording: Recording
) -> tuple[RPNTProcessor, NDArray[np.int64]]:
    """Fits a processor to a recording, so that a `StreamingDecoder` sees the metadata that the file states.

    Args:
        processor ([`RPNTProcessor`]): The processor of the decoder; it is not changed.
        recording ([`Recording`]): A recording of one of its sessions.

    Returns:
        `tuple`: A processor that knows the sites, subject, task and date of the recording, and the order of
        the recording's units in which its counts go to `StreamingDecoder.step`.

    Raises:
        InputError: The session is not known, or has other units.
    """
    session_id, fitted = recording.session_id, copy.deepcopy(processor)
    facts: dict[str, Any] = {
        "site_positions": recording.site_positions,
        "subject_id": recording.subject_id,
        "task": recording.task,
        "recording_date": recording.recording_date,
    }
    units = np.arange(recording.num_units)
    if processor.unit_embedding == "slots":
        fitted.sessions.pop(session_id, None)
        sites = [int(site) for site in recording.unit_sites]
        fitted.add_session(session_id, recording.unit_ids, unit_sites=sites, **facts)
        return fitted, units
    num_sites = len(recording.site_ids)
    processor.unit_layout(session_id, recording.unit_sites, num_sites, unit_ids=recording.unit_ids)  # checks
    place = {unit_id: index for index, unit_id in enumerate(recording.unit_ids)}
    units = np.array([place[unit_id] for unit_id in processor.sessions[session_id]])
    fitted.session_facts[session_id] = {**facts, "unit_sites": recording.unit_sites[units]}
    return fitted, units


def shown_in_terminal(
    model: RPNTForMotorDecoding, processor: RPNTProcessor, stream: TextIO
) -> Callable[[ReplayedBin], None]:
    """Makes what shows a replay while it runs.

    Args:
        model ([`RPNTForMotorDecoding`]): The decoder.
        processor ([`RPNTProcessor`]): Its processor.
        stream (`TextIO`): Where to show it.

    Returns:
        `Callable`: For `show`: a live plot where the stream is a terminal, else a line in the log for every
        10 s of the recording.
    """
    from .analysis.terminal import TerminalPlot

    names = target_names(model)
    mean = model.config.label_mean or [0.0] * len(names)
    std = model.config.label_std or [1.0] * len(names)
    if stream.isatty():
        return TerminalPlot(names, mean, std, processor.bin_size, stream)
    per_line = max(round(10 / processor.bin_size), 1)
    latencies: list[float] = []

    def log(bin_: ReplayedBin) -> None:
        latencies.append(bin_.latency)
        if len(latencies) % per_line == 0:
            logger.info(
                "%d bins, time %.1f s, step %.2f ms",
                len(latencies), bin_.time, 1000 * float(np.median(latencies[-per_line:])),
            )  # fmt: skip

    return log


def plot_replay(replay: Replay, model: RPNTForMotorDecoding, path: Path) -> Path:
    """Draws the decoded and the true trace of the last 30 s of a replay.

    Args:
        replay ([`Replay`]): At least one bin.
        model ([`RPNTForMotorDecoding`]): The decoder.
        path (`Path`): PNG to write.

    Returns:
        `Path`: The file.
    """
    from .analysis.plots import plot_velocity_traces, save_figure

    names, table = target_names(model), replay.table.tail(round(30 / replay.bin_size))
    figure = plot_velocity_traces(
        table[names].to_numpy(),
        table[[f"{name}_predicted" for name in names]].to_numpy(),
        table["time"].to_numpy(),
        names=[name.replace("_", " ") for name in names],
        unit=target_unit(model),
    )
    figure.axes[0].set_title("Decoded bin by bin, and true")
    return save_figure(figure, path)


def _percentiles_ms(seconds: "pd.Series[float]") -> dict[str, float] | None:
    """Gives p50, p95, p99 and max in ms, to the microsecond; None of nothing."""
    if not len(seconds):
        return None
    values = 1000 * np.percentile(seconds.to_numpy(), [50, 95, 99, 100])
    return {
        name: round(float(value), 3) for name, value in zip(("p50", "p95", "p99", "max"), values, strict=True)
    }
