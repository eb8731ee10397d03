"""A recording decoded live for the page: a `StreamingDecoder` fed bin by bin, told about in small messages.

The replay of `rpnt stream` runs in a thread; the page gets what is new about ten times a second.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rpnt_hf.data.nwb import Recording
from rpnt_hf.decoding import bin_recording, prediction_table, score_table, target_names
from rpnt_hf.errors import ConfigurationError, RPNTError
from rpnt_hf.metrics import r2_scores
from rpnt_hf.processing_rpnt import RPNTProcessor
from rpnt_hf.replay import Replay, ReplayedBin, replay_recording

from .views import describe_scores, observed_span, packed, restarts, site_rows

__all__ = ["SPEEDS", "cut_recording", "decode_live"]

SPEEDS = {"Real time": 1.0, "4 x real time": 4.0, "As fast as it goes": 0.0}
MESSAGE_INTERVAL = 0.1  # s
# A browser may skip a message when two come close together: each repeats what the three before it brought.
REPEATED_MESSAGES = 3
MIN_SCORED_BINS = 20  # before that, R2 jumps about


def cut_recording(recording: Recording, start: float, seconds: float) -> Recording:
    """Cuts a recording down to a stretch of time.

    Args:
        recording (`Recording`): The recording; it is not changed.
        start (`float`): First moment in s.
        seconds (`float`): Length in s.

    Returns:
        `Recording`: The same, observed only in that stretch.

    Raises:
        ConfigurationError: Nothing was observed there.
    """
    stop = start + seconds
    kept = np.clip(recording.obs_intervals, start, stop)
    kept = kept[kept[:, 1] > kept[:, 0]]
    if not len(kept):
        low, high = observed_span(recording)
        raise ConfigurationError(
            f"The stretch to decode must overlap what was observed, {low:.1f} s to {high:.1f} s, got "
            f"{start:.1f} s to {stop:.1f} s. Choose another start."
        )
    return dataclasses.replace(recording, obs_intervals=kept)


class _Stopped(KeyboardInterrupt):
    """Ends a replay as an interrupt from the keyboard would."""


class _Replaying:
    """A replay in a thread, with what it has decoded so far."""

    def __init__(
        self,
        model: Any,
        processor: RPNTProcessor,
        recording: Recording,
        speed: float,
        is_wanted: Callable[[], bool],
    ) -> None:
        self.bins: list[ReplayedBin] = []
        self.replay: Replay | None = None
        self.error: Exception | None = None
        self.is_left = False
        self._is_wanted, self._bin_size, self._speed = is_wanted, processor.bin_size, speed
        self._began: float | None = None
        seconds = float(np.diff(recording.obs_intervals, axis=1).sum())
        arguments = (model, processor, recording)
        options = {"realtime": speed == 1.0, "max_seconds": seconds, "show": self._show}
        self.thread = threading.Thread(target=self._run, args=arguments, kwargs=options, daemon=True)
        self.thread.start()

    def _run(self, *arguments: Any, **options: Any) -> None:
        try:
            self.replay = replay_recording(*arguments, **options)
        except RPNTError as error:
            self.error = error

    def _show(self, bin_: ReplayedBin) -> None:
        if self.is_left or not self._is_wanted():
            raise _Stopped
        self.bins.append(bin_)
        if self._speed > 1.0:  # real time is kept by the replay itself
            now = time.perf_counter()
            self._began = now if self._began is None else self._began
            due = self._began + len(self.bins) * self._bin_size / self._speed
            time.sleep(max(due - now, 0.0))


def decode_live(
    model: Any,
    processor: RPNTProcessor,
    recording: Recording,
    start: float,
    seconds: float,
    speed: float,
    is_wanted: Callable[[], bool],
    run_id: int = 0,
) -> Iterator[dict[str, Any]]:
    """Decodes a stretch of a recording bin by bin and tells about it as it goes.

    Args:
        model (`RPNTForMotorDecoding`): The decoder.
        processor ([`RPNTProcessor`]): Its processor.
        recording (`Recording`): A recording whose session the processor knows.
        start (`float`): First moment in s.
        seconds (`float`): Length in s.
        speed (`float`): 1 for real time, larger for that many times faster, 0 for as fast as it goes.
        is_wanted (`Callable[[], bool]`): Asked after every bin; the replay ends where it says False.
        run_id (`int`, *optional*, defaults to 0): Number by which the page tells runs apart.

    Yields:
        `dict`: Messages for the view "live": `setup` (the same in all), `tail` (the newest bins) and `status`
        (R2, latencies); the last one has every bin and `finished`.

    Raises:
        RPNTError: The recording does not fit the decoder, or the stretch is empty.
    """
    stretch = cut_recording(recording, start, seconds)
    intervals = bin_recording(processor, stretch)
    order, sites = site_rows(recording)
    counts = np.concatenate([interval.counts for interval in intervals])[:, order]
    unknown = [
        np.zeros((len(interval.counts), model.config.num_targets), np.float32) for interval in intervals
    ]
    table = prediction_table(model, processor, stretch, intervals, unknown)
    tested = (table["scored"] & ~table["fitted"]).to_numpy()
    setup = _setup(model, processor, recording, table, sites, speed, run_id)
    running = _Replaying(model, processor, stretch, speed, is_wanted)
    sent = [0] * REPEATED_MESSAGES
    try:
        while True:
            running.thread.join(MESSAGE_INTERVAL)
            alive = running.thread.is_alive()
            if running.error is not None:
                raise running.error
            done = running.bins[:]
            first = 0 if not alive else sent.pop(0)
            sent.append(len(done))
            status = _status(done, tested[model.config.label_lag :], processor.bin_size, running.replay)
            tail = _packed_bins(done[first:], first, counts)
            yield {"setup": setup, "tail": tail, "status": status, "finished": not alive}
            if not alive:
                return
    finally:  # also where the visitor left and the generator was closed
        running.is_left = True


def _setup(
    model: Any,
    processor: RPNTProcessor,
    recording: Recording,
    table: pd.DataFrame,
    sites: list[dict[str, Any]],
    speed: float,
    run_id: int,
) -> dict[str, Any]:
    """What the page must know before the first bin."""
    names = target_names(model)
    units = list(model.config.target_units or [""] * len(names))
    size = processor.bin_size
    times = table["time"].to_numpy()
    begins = restarts(times, recording.trials["start_time"], size)
    moves = len(names) == 2 and all(unit.endswith("/s") for unit in units)
    places = len(names) == 2 and all("_pos" in name for name in names)
    return {
        "run": run_id,
        "speed": speed,
        "bin_size": size,
        "bins": len(times),
        "lag": model.config.label_lag,
        "first_time": float(times[0]),
        "times": packed(times - times[0], "<f4"),
        "restarts": packed(begins, "u1"),
        "fitted": packed(table["fitted"], "u1"),
        "sites": sites,
        "names": [name.replace("_", " ") for name in names],
        "units": units,
        "scale": [3 * std for std in model.config.label_std or [1.0] * len(names)],
        "path": "velocity" if moves else "position" if places else None,
    }


def _packed_bins(bins: list[ReplayedBin], first: int, counts: np.ndarray) -> dict[str, Any]:
    return {
        "first": first,
        "bins": first + len(bins),
        "predicted": packed([bin_.prediction for bin_ in bins], "<f4"),
        "true": packed([bin_.truth for bin_ in bins], "<f4"),
        "latency": packed([1000 * bin_.latency for bin_ in bins], "<f4"),
        "counts": packed(np.minimum(counts[first : first + len(bins)], 255), "u1"),
    }


def _status(
    bins: list[ReplayedBin], tested: NDArray[np.bool_], bin_size: float, replay: Replay | None
) -> dict[str, Any]:
    """Latencies and R2 on bins that were not fitted to, so far; at the end that of `decoding.score_table`."""
    latencies = 1000 * np.array([bin_.latency for bin_ in bins])
    status: dict[str, Any] = {
        "decoded_seconds": len(bins) * bin_size,
        "late": sum(bin_.is_late for bin_ in bins),
        "running_r2": None,
        "running_bins": 0,
        "latency_ms": None,
        "scores": None,
    }
    if len(latencies):
        p50, p99 = np.percentile(latencies, [50, 99])
        status["latency_ms"] = {"p50": float(p50), "p99": float(p99), "max": float(latencies.max())}
    if replay is not None:
        return {**status, "scores": describe_scores(score_table(replay.table)), "backend": replay.backend}
    chosen = [bin_ for bin_, test in zip(bins, tested, strict=False) if test]
    if len(chosen) >= MIN_SCORED_BINS:
        truth, decoded = ([getattr(bin_, name) for bin_ in chosen] for name in ("truth", "prediction"))
        status |= {"running_r2": r2_scores(truth, decoded)["r2"], "running_bins": len(chosen)}
    return status
