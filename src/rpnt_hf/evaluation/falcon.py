"""The interface of the FALCON benchmark around a streaming decoder, and its scores on local sessions.

FALCON (Karpowicz et al. 2024) feeds binned counts one bin at a time, several sessions in a batch, and scores
variance-weighted R2 per session and the time spent per second of data. `FalconDecoder` has the methods that
the package `falcon-challenge` calls and does not need it installed.
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
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

    Each place of the batch decodes a stream of its own, with the units and metadata of its session.

    Args:
        model (`RPNTForMotorDecoding`): The decoder.
        processor (`RPNTProcessor`): Its processor, which knows the sessions.
        batch_size (`int`, *optional*, defaults to 1): Streams at a time, at least 1.
        reset_on_done (`bool`, *optional*, defaults to `False`):
            Whether the end of a trial makes its stream forget the past. FALCON's files run on between trials.
        **options: More options of [`StreamingDecoder`], such as `max_bins`.

    Example:
        ```python
        >>> decoder = FalconDecoder(*load_decoder("decoder"))  # doctest: +SKIP
        >>> decoder.reset(["20120924"])  # doctest: +SKIP
        >>> decoder.predict(counts[None])  # (1, channels) -> (1, targets)  # doctest: +SKIP
        ```
    """

    def __init__(
        self,
        model: RPNTForMotorDecoding,
        processor: RPNTProcessor,
        batch_size: int = 1,
        reset_on_done: bool = False,
        **options: Any,
    ) -> None:
        self.model, self.processor, self.options = model, processor, options
        self.reset_on_done = reset_on_done
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
        self._streams: list[StreamingDecoder | None] = []

    def session_of(self, tag: str) -> str:
        """Finds the session that a tag means.

        Args:
            tag (`str`): A session of the processor, or a part of exactly one name, such as its date.

        Returns:
            `str`: The session.

        Raises:
            InputError: There is none, or there are several.
        """
        known = list(self.processor.sessions)
        found = [tag] if tag in known else [name for name in known if tag and tag in name]
        if len(found) != 1:
            raise InputError(
                f"A dataset tag must be a session of the decoder, or part of exactly one, got '{tag}', which "
                f"fits {', '.join(found) or 'none'} of {', '.join(known)}. Finetune the decoder on it."
            )
        return found[0]

    def reset(self, dataset_tags: Sequence[Any] = ("",)) -> None:
        """Starts new streams.

        Args:
            dataset_tags (`Sequence[str]`):
                Session of each place of the batch, as `session_of` reads it; places beyond the given ones,
                and those with an empty tag, stay empty and decode to 0.

        Raises:
            InputError: A tag is unknown, or there are more tags than places.
        """
        tags = [str(tag) for tag in dataset_tags]
        if len(tags) > self.batch_size:
            raise InputError(
                f"There must be at most `batch_size`={self.batch_size} dataset tags, got {len(tags)}. Make a "
                "decoder with a larger batch."
            )
        streams: list[StreamingDecoder | None] = []
        for tag in [*tags, *[""] * (self.batch_size - len(tags))]:
            if not tag and len(self.processor.sessions) > 1:
                streams.append(None)
                continue
            session_id = self.session_of(tag) if tag else next(iter(self.processor.sessions))
            streams.append(StreamingDecoder(self.model, self.processor, session_id, **self.options))
        self._streams = streams

    def predict(self, neural_observations: NDArray[Any]) -> NDArray[np.float32]:
        """Takes the next bin of every stream and decodes it.

        Args:
            neural_observations (`np.ndarray` of shape `(batch, channels)`):
                Counts of one bin. A session with fewer units than channels takes the first ones.

        Returns:
            `np.ndarray` of shape `(batch, targets)`, float32: behaviour in the units of the decoder; 0
            in empty places.

        Raises:
            InputError: `reset` was not called, or the counts do not fit.
        """
        observations = np.asarray(neural_observations)
        if not self._streams:
            raise InputError("`reset` must be called with the dataset tags before the first bin.")
        if observations.ndim != 2 or len(observations) != self.batch_size:
            raise InputError(
                f"`neural_observations` must have shape (batch_size={self.batch_size}, channels), got "
                f"{observations.shape}."
            )
        decoded = np.zeros((self.batch_size, self.model.config.num_targets), dtype=np.float32)
        for place, stream in enumerate(self._streams):
            if stream is not None:
                decoded[place] = (
                    stream.step(observations[place, : stream.num_flat_units]).float().cpu().numpy()
                )
        return decoded

    def observe(self, neural_observations: NDArray[Any]) -> None:
        """Takes a bin that needs no prediction.

        Args:
            neural_observations (`np.ndarray` of shape `(batch, channels)`): As in `predict`.
        """
        self.predict(neural_observations)

    def on_done(self, dones: NDArray[Any]) -> None:
        """Hears which trials have just ended.

        Args:
            dones (`np.ndarray` of shape `(batch,)`): True where one has.
        """
        if not self.reset_on_done:
            return
        for stream, done in zip(self._streams, np.asarray(dones, dtype=bool), strict=True):
            if stream is not None and done:
                stream.reset()


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
            counts, decoded = row_counts(row), np.full(row_behavior(row).shape, np.nan, dtype=np.float32)
            began = time.perf_counter()
            for index, observed in enumerate(counts):
                values = decoder.predict(observed[None])[0]
                if index + lag < len(decoded):
                    decoded[index + lag] = values
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
