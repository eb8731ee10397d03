"""The interface of the FALCON benchmark around a streaming decoder, and its scores on local sessions.

FALCON (Karpowicz et al. 2024) feeds binned counts one bin at a time, several sessions in a batch, and scores
variance-weighted R2 per session and the time spent per second of data. `FalconDecoder` has the methods that
the package `falcon-challenge` calls and does not need it installed (the extra `falcon` installs it).
"""

import logging
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rpnt_hf.analysis.plots import plot_sessions, save_figure
from rpnt_hf.data.loading import load_rows, view_rows
from rpnt_hf.data.rows import row_behavior, row_counts, scored_bins
from rpnt_hf.errors import ConfigurationError, DatasetError, InputError
from rpnt_hf.evaluation.report import write_report
from rpnt_hf.hub import load_decoder
from rpnt_hf.metrics import r2_scores
from rpnt_hf.modeling_rpnt import RPNTForMotorDecoding
from rpnt_hf.processing_rpnt import RPNTProcessor
from rpnt_hf.streaming import StreamingDecoder

logger = logging.getLogger(__name__)

__all__ = ["FalconDecoder", "evaluate_falcon"]


class FalconDecoder:
    """A decoder with the methods of `falcon_challenge.interface.BCIDecoder`.

    Each place of the batch decodes a stream of its own, with the units and metadata of its session. What it
    says at a bin is of that bin: a decoder with `label_lag` is ahead, and its word waits for that many bins.

    Args:
        model (`RPNTForMotorDecoding`): The decoder.
        processor (`RPNTProcessor`): Its processor, which knows the sessions.
        batch_size (`int`, *optional*, defaults to 1): Streams at a time, at least 1.
        reset_on_done (`bool`, *optional*, defaults to `False`):
            Whether the end of a trial makes its stream forget the past. FALCON's files run on between trials.
        session_of (`Callable[[str], str]`, *optional*):
            Names the session of the decoder that a dataset tag means, given the tag without folder and
            ".nwb"; by default as `find_session` says.
        **options: More options of [`StreamingDecoder`], such as `max_bins`.

    Example:
        With the evaluator of the package, on files below `EVAL_DATA_PATH`:

        ```python
        >>> from falcon_challenge.evaluator import FalconEvaluator  # doctest: +SKIP
        >>> decoder = FalconDecoder(*load_decoder("decoder"), batch_size=7)  # doctest: +SKIP
        >>> FalconEvaluator(split="m2").evaluate(decoder, phase="minival")  # doctest: +SKIP
        ```
    """

    def __init__(
        self,
        model: RPNTForMotorDecoding,
        processor: RPNTProcessor,
        batch_size: int = 1,
        reset_on_done: bool = False,
        session_of: Callable[[str], str] | None = None,
        **options: Any,
    ) -> None:
        self.model, self.processor, self.options = model, processor, options
        self.reset_on_done, self.session_of = reset_on_done, session_of
        self.set_batch_size(batch_size)

    def set_batch_size(self, batch_size: int) -> None:
        """Sets how many streams there are; `reset` must follow.

        Args:
            batch_size (`int`): At least 1.

        Raises:
            ConfigurationError: It is less.
        """
        if batch_size < 1:
            raise ConfigurationError(f"`batch_size` must be 1 or more streams, got {batch_size}.")
        self.batch_size = batch_size
        self._streams: list[_Stream | None] = []
        self._num_tags = 0

    def find_session(self, tag: str | Path) -> str:
        """Finds the session that a dataset tag means.

        Args:
            tag (`str` or `Path`): What the evaluator gives: the file of a stream, or a name.

        Returns:
            `str`: What `session_of` says; by default the session of that name, else the one with the same
            part after `ses-` (as in the DANDI archive), else the one whose name is a whole part of the tag,
            or the tag of it.

        Raises:
            InputError: There is none, or there are several.
        """
        known = list(self.processor.sessions)
        stem = PurePath(tag).name.removesuffix(".nwb")
        if self.session_of is not None:
            said = self.session_of(stem)
            if said not in known:
                raise InputError(
                    f"`session_of` must give a session of the decoder, got '{said}' for '{stem}'. It has "
                    f"{', '.join(known)}."
                )
            return said
        found = [name for name in known if name == stem]
        found = found or [name for name in known if _after_ses(name) == _after_ses(stem) != ""]
        found = found or [name for name in known if _is_part(stem, name) or _is_part(name, stem)]
        if len(found) != 1:
            raise InputError(
                f"A dataset tag must mean exactly one session of the decoder, got '{stem}', which fits "
                f"{', '.join(found) or 'none'} of {', '.join(known)}. Finetune the decoder on it, or pass "
                "`session_of`."
            )
        return found[0]

    def reset(self, dataset_tags: Sequence[Any] = ("",)) -> None:
        """Starts new streams.

        Args:
            dataset_tags (`Sequence[str or Path]`):
                Session of each place of the batch, as `find_session` reads it; places beyond the given ones,
                and those with an empty tag, stay empty and decode to 0.

        Raises:
            InputError: A tag is unknown, or there are more tags than places.
        """
        tags = list(dataset_tags)
        if len(tags) > self.batch_size:
            raise InputError(
                f"There must be at most `batch_size`={self.batch_size} dataset tags, got {len(tags)}. Make a "
                "decoder with a larger batch."
            )
        streams: list[_Stream | None] = []
        for tag in [*tags, *[""] * (self.batch_size - len(tags))]:
            if not tag and len(self.processor.sessions) > 1:
                streams.append(None)
                continue
            session_id = self.find_session(tag) if tag else next(iter(self.processor.sessions))
            streams.append(_Stream(StreamingDecoder(self.model, self.processor, session_id, **self.options)))
        self._streams, self._num_tags = streams, len(tags)

    def predict(self, neural_observations: NDArray[Any]) -> NDArray[np.float32]:
        """Takes the next bin of every stream and decodes it.

        Args:
            neural_observations (`np.ndarray` of shape `(rows, channels)`):
                Counts of one bin, a row for each tag that `reset` got, or for each place of the batch. A
                session with fewer units than channels takes the first ones.

        Returns:
            `np.ndarray` of shape `(rows, targets)`, float32: behaviour in the units of the decoder; 0
            in empty places, and in the first `label_lag` bins of a stream.

        Raises:
            InputError: `reset` was not called, or the counts do not fit.
        """
        observations = np.asarray(neural_observations)
        if not self._streams:
            raise InputError("`reset` must be called with the dataset tags before the first bin.")
        if observations.ndim != 2 or not self._num_tags <= len(observations) <= self.batch_size:
            raise InputError(
                f"`neural_observations` must have shape (rows, channels) with {self._num_tags} to "
                f"{self.batch_size} rows (the tags of `reset`, `batch_size`), got {observations.shape}."
            )
        decoded = np.zeros((len(observations), self.model.config.num_targets), dtype=np.float32)
        for place, stream in enumerate(self._streams[: len(observations)]):
            if stream is not None:
                decoded[place] = stream.step(observations[place])
        return decoded

    def observe(self, neural_observations: NDArray[Any]) -> None:
        """Takes a bin that needs no prediction.

        Args:
            neural_observations (`np.ndarray` of shape `(rows, channels)`): As in `predict`.
        """
        self.predict(neural_observations)

    def on_done(self, dones: NDArray[Any]) -> None:
        """Hears which trials have just ended.

        Args:
            dones (`np.ndarray` of shape `(rows,)`): True where one has.
        """
        if not self.reset_on_done:
            return
        for stream, done in zip(self._streams, np.asarray(dones, dtype=bool), strict=False):
            if stream is not None and done:
                stream.reset()


class _Stream:
    """A stream whose output waits until the bin that it is about."""

    def __init__(self, decoder: StreamingDecoder) -> None:
        self.decoder = decoder
        self.ahead: deque[NDArray[np.float32]] = deque()

    def step(self, counts: NDArray[Any]) -> NDArray[np.float32]:
        values: NDArray[np.float32] = (
            self.decoder.step(counts[: self.decoder.num_flat_units]).float().cpu().numpy()
        )
        self.ahead.append(values)
        late = len(self.ahead) > self.decoder.model.config.label_lag
        return self.ahead.popleft() if late else np.zeros_like(values)

    def reset(self) -> None:
        self.decoder.reset()
        self.ahead.clear()


def _after_ses(name: str) -> str:
    """The part of a name of the DANDI archive that is the session, "" where there is none."""
    found = re.search(r"(?:^|_)ses-([^_]+)", name)
    return found.group(1) if found else ""


def _is_part(part: str, whole: str) -> bool:
    """Whether a name holds another between its ends, hyphens, underscores and the like."""
    return bool(part) and bool(re.search(rf"(?<![^\W_]){re.escape(part)}(?![^\W_])", whole))


def evaluate_falcon(
    checkpoint: str | Path,
    data: str,
    out: str | Path,
    *,
    dataset_config: str | None = None,
    held_out: Sequence[str] = (),
    **options: Any,
) -> dict[str, Any]:
    """Feeds the test rows of a built dataset bin by bin, as FALCON does, and scores every session.

    Args:
        checkpoint (`str` or `Path`): A decoder that knows every session of the dataset.
        data (`str`): Folder that `rpnt build` wrote, or a dataset on the Hub.
        out (`str` or `Path`): Folder for `results.json` and `results.md`.
        dataset_config (`str`, *optional*): Part of the corpus.
        held_out (`Sequence[str]`, *optional*): Sessions that count as held out; the others are held in.
        **options: As of [`FalconDecoder`].

    Returns:
        `dict[str, Any]`: The content of `results.json`: for each session variance-weighted R2 and normalised
        latency (computing time over duration of the data; below 1 is real time), and mean and standard
        deviation over the sessions of each group.

    Raises:
        DatasetError: A held-out session is not in the dataset, or nothing can be scored.
        InputError: The decoder does not know a session.
    """
    model, processor = load_decoder(str(checkpoint))
    rows = view_rows(load_rows(data, dataset_config, "test"))
    sessions = sorted({row["session_id"] for row in rows})
    unknown = sorted(set(held_out) - set(sessions))
    if unknown:
        raise DatasetError(
            f"Held-out sessions must be in the dataset, got {', '.join(unknown)}. It has "
            f"{', '.join(sessions)}."
        )
    decoder = FalconDecoder(model, processor, **options)
    lag = model.config.label_lag
    table = []
    for session_id in sessions:
        targets, predictions, seconds, duration = [], [], 0.0, 0.0
        for row in (row for row in rows if row["session_id"] == session_id):
            decoder.reset([session_id])
            counts = row_counts(row)
            began = time.perf_counter()
            decoded = np.concatenate([decoder.predict(observed[None]) for observed in counts])
            seconds += time.perf_counter() - began
            duration += len(counts) * row["bin_size"]
            scored = scored_bins(row)
            scored[:lag] = False
            targets.append(row_behavior(row)[scored])
            predictions.append(decoded[scored])
        scores = r2_scores(np.concatenate(targets), np.concatenate(predictions))
        table.append(
            {
                "session": session_id,
                "group": "held out" if session_id in held_out else "held in",
                "R2 (variance-weighted)": scores["r2_variance_weighted"],
                "R2 (uniform)": scores["r2"],
                "normalised latency": seconds / duration,
                "bins": sum(len(part) for part in targets),
            }
        )
    groups = []
    for group in sorted({row["group"] for row in table}):
        values = [row["R2 (variance-weighted)"] for row in table if row["group"] == group]
        latencies = [row["normalised latency"] for row in table if row["group"] == group]
        groups.append(
            {
                "group": group,
                "sessions": len(values),
                "R2 mean": float(np.mean(values)),
                "R2 s.d.": float(np.std(values)),
                "normalised latency": float(np.mean(latencies)),
            }
        )
    scores_by_group: dict[str, dict[str, float]] = {}
    for entry in table:
        scores_by_group.setdefault(entry["group"], {})[entry["session"]] = entry["R2 (variance-weighted)"]
    figure = plot_sessions(scores_by_group, "FALCON interface, variance-weighted")
    results = {
        "title": "FALCON interface on local sessions",
        "summary": (
            "Every test row was fed bin by bin through the interface of FALCON. R2 is variance-weighted, per "
            "session and then averaged; latency is computing time over the duration of the data. These "
            "are local sessions, not those of the benchmark."
        ),
        "tables": {"Groups": groups, "Sessions": table},
        "groups": groups,
        "sessions": table,
        "figures": [save_figure(figure, Path(out) / "sessions.png").name],
    }
    return write_report(results, Path(out), name="results")
