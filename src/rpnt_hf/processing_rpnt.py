"""Turns recordings, arrays and dataset rows into model input, and remembers what the weights were fed.

Saved beside the weights as `preprocessor_config.json`. Not here: cutting windows and drawing masks
(`data.windows`).
"""

import datetime
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BatchFeature
from transformers.feature_extraction_utils import FeatureExtractionMixin

from .errors import ConfigurationError, InputError, closest_names
from .layout_rpnt import fit_slots, flat_counts, site_layout
from .sharing_rpnt import PROCESSOR_AUTO_MAP, save_code

logger = logging.getLogger(__name__)

METADATA_AXES = ("site_x", "site_y", "site_z", "subject", "day", "task")

# Keyword arguments of `RPNTProcessor.add_session`, which are also columns of a built dataset.
SESSION_FACTS = ("unit_sites", "site_positions", "subject_id", "task", "recording_date")

# Keys that transformers itself writes into `preprocessor_config.json`.
_TRANSFORMERS_KEYS = {"auto_map", "feature_extractor_type", "name_or_path", "processor_class"}


def _as_date(value: Any) -> datetime.date | None:
    if value is None or (isinstance(value, str) and not value):
        return None
    if isinstance(value, datetime.datetime):
        return value.date()
    return value if isinstance(value, datetime.date) else datetime.date.fromisoformat(str(value)[:10])


class RPNTProcessor(FeatureExtractionMixin):
    """Makes model input out of spikes, and refuses data that the weights were not trained for.

    Args:
        bin_size (`float`):
            Width of a bin in seconds, above 0.
        metadata_axes (`list[str]`, *optional*):
            Columns of `metadata`, in the order of `RPNTConfig.metadata_axes`. None means all six: site_x,
            site_y, site_z, subject, day, task.
        sessions (`dict[str, list[str]]` or list of pairs, *optional*):
            The unit vocabulary: identifiers of the units of each session. Rows are numbered in this order.
        session_facts (`dict[str, dict]`, *optional*):
            What else is known of a session, as keyword arguments of `add_session`.
        subjects (`list[str]`, *optional*):
            Subjects by index.
        tasks (`list[str]`, *optional*):
            Tasks by index.
        corpus_start (`str` or `datetime.date`, *optional*):
            Date from which days are counted.
        behavior_names (`list[str]`, *optional*):
            What the weights decode, such as "cursor_vel_x".
        behavior_units (`list[str]`, *optional*):
            Their units, such as "cm/s".
        window_bins (`int`, *optional*):
            Length in bins of the windows that the weights were trained on.
        unit_embedding (`str`, *optional*, defaults to `"vocabulary"`):
            "vocabulary" or "slots", as in `RPNTConfig`.
        fitted_intervals (`list[dict]`, *optional*):
            What weights were fitted to or chosen on, as `mark_fitted` keeps it.
        num_slots (`int`, *optional*):
            Slots per site; required with `unit_embedding="slots"`.

    Raises:
        ConfigurationError: An argument is unknown, out of range, or contradicts another.

    Example:
        ```python
        >>> processor = RPNTProcessor(bin_size=0.05, sessions={"monday": ["0", "1", "2"]})
        >>> processor(np.zeros((4, 3), dtype=np.uint8), session_id="monday")["spike_counts"].shape
        torch.Size([1, 1, 4, 3])
        ```
    """

    model_input_names = ["spike_counts", "unit_ids", "unit_mask", "bin_mask", "metadata"]  # noqa: RUF012

    def __init__(
        self,
        bin_size: float | None = None,
        metadata_axes: Sequence[str] | None = None,
        sessions: Mapping[str, Sequence[str]] | Sequence[Sequence[Any]] | None = None,
        session_facts: Mapping[str, Mapping[str, Any]] | None = None,
        subjects: Sequence[str] | None = None,
        tasks: Sequence[str] | None = None,
        corpus_start: str | datetime.date | None = None,
        behavior_names: Sequence[str] | None = None,
        behavior_units: Sequence[str] | None = None,
        window_bins: int | None = None,
        unit_embedding: str = "vocabulary",
        num_slots: int | None = None,
        fitted_intervals: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        known = list(RPNTProcessor.__init__.__annotations__)
        for key in kwargs:
            if not key.startswith("_") and key not in _TRANSFORMERS_KEYS:
                raise ConfigurationError(
                    f"Every argument of RPNTProcessor must be known, got `{key}`.{closest_names(key, known)}"
                )
        if bin_size is None or not math.isfinite(bin_size) or bin_size <= 0:
            raise ConfigurationError(f"`bin_size` must be a width in seconds above 0, got {bin_size}.")
        axes = list(METADATA_AXES if metadata_axes is None else metadata_axes)
        if len(set(axes)) != len(axes) or not set(axes) <= set(METADATA_AXES):
            raise ConfigurationError(
                f"`metadata_axes` must be distinct names out of {', '.join(METADATA_AXES)}, got {axes}."
            )
        if unit_embedding not in ("vocabulary", "slots"):
            raise ConfigurationError(
                f"`unit_embedding` must be 'vocabulary' or 'slots', got '{unit_embedding}'."
            )
        if (unit_embedding == "slots") != (num_slots is not None):
            raise ConfigurationError(
                "`num_slots` belongs to `unit_embedding='slots'` and is required there, got "
                f"num_slots={num_slots} with '{unit_embedding}'."
            )
        if len(behavior_names or ()) != len(behavior_units or ()):
            raise ConfigurationError(
                "`behavior_names` and `behavior_units` must be of one length, got "
                f"{list(behavior_names or ())} and {list(behavior_units or ())}."
            )
        super().__init__(**kwargs)
        self.bin_size = float(bin_size)
        self.metadata_axes = axes
        self.subjects = list(subjects or ())
        self.tasks = list(tasks or ())
        start = _as_date(corpus_start)
        self.corpus_start = start.isoformat() if start else None
        self.behavior_names = list(behavior_names or ())
        self.behavior_units = list(behavior_units or ())
        self.window_bins = window_bins
        self.unit_embedding = unit_embedding
        self.num_slots = num_slots
        self.fitted_intervals = [dict(fitted) for fitted in fitted_intervals or ()]
        self.sessions: dict[str, list[str]] = {}
        self.session_facts: dict[str, dict[str, Any]] = {}
        self._first_rows: dict[str, int] = {}
        self._reported: set[tuple[str, str]] = set()
        for session_id, unit_ids in sessions.items() if isinstance(sessions, Mapping) else sessions or ():
            self.add_session(session_id, unit_ids, **(session_facts or {}).get(session_id, {}))

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]], **kwargs: Any) -> "RPNTProcessor":
        """Makes the processor of a new model: vocabulary, subjects, tasks and corpus start from rows.

        Args:
            rows (`Iterable[Mapping]`): Rows of a built dataset, of any splits.
            **kwargs: Other arguments of the class.

        Returns:
            `RPNTProcessor`: It knows every session, subject and task of the rows, in sorted order.

        Raises:
            InputError: No rows, or rows disagree in bin size or in the units of a session.
        """
        rows = list(rows)
        if not rows:
            raise InputError("A processor must be made from at least one dataset row, got none.")
        first = rows[0]
        sessions: dict[str, list[str]] = {}
        facts: dict[str, dict[str, Any]] = {}
        for row in rows:
            facts.setdefault(row["session_id"], {name: row[name] for name in SESSION_FACTS})
            unit_ids = sessions.setdefault(row["session_id"], list(row["unit_ids"]))
            if unit_ids != list(row["unit_ids"]):
                raise InputError(
                    f"Rows of session '{row['session_id']}' must have the same units, got two lists."
                )
            if row["subject_id"] != facts[row["session_id"]]["subject_id"]:
                raise InputError(
                    f"Rows of session '{row['session_id']}' must be of one subject, got "
                    f"'{facts[row['session_id']]['subject_id']}' and '{row['subject_id']}'. Give the "
                    "sessions ids of their own."
                )
            if row["bin_size"] != first["bin_size"]:
                raise InputError(
                    f"All rows must have the same `bin_size`, got {first['bin_size']} s in session "
                    f"'{first['session_id']}' and {row['bin_size']} s in '{row['session_id']}'. Build them "
                    "together."
                )
        dates = [date for row in rows if (date := _as_date(row["recording_date"]))]
        return cls(
            **{
                "bin_size": first["bin_size"],
                "sessions": {session_id: sessions[session_id] for session_id in sorted(sessions)},
                "session_facts": facts,
                "subjects": sorted({row["subject_id"] for row in rows if row["subject_id"]}),
                "tasks": sorted({row["task"] for row in rows if row["task"]}),
                "corpus_start": min(dates) if dates else None,
                **kwargs,
            }
        )

    @property
    def num_units(self) -> int:
        """Rows that the unit embedding needs: units of all sessions, or slots."""
        return self.num_slots or sum(len(unit_ids) for unit_ids in self.sessions.values())

    def to_dict(self) -> dict[str, Any]:
        """Lists what is saved; sessions become pairs, because JSON written by transformers sorts keys."""
        saved = super().to_dict()
        saved["sessions"] = [[session_id, list(unit_ids)] for session_id, unit_ids in self.sessions.items()]
        return {key: value for key, value in saved.items() if key not in ("_first_rows", "_reported")}

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> list[str]:
        """Saves `preprocessor_config.json` with its code, so that it loads without this package too.

        Args:
            save_directory (`str` or `Path`): Folder; made where it is missing.
            push_to_hub (`bool`, *optional*, defaults to `False`): Whether to push it to the Hub as well.
            **kwargs: Passed to `push_to_hub`.

        Returns:
            `list[str]`: The file.
        """
        save_code(save_directory, PROCESSOR_AUTO_MAP)
        self.auto_map = dict(PROCESSOR_AUTO_MAP)
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    def add_session(
        self,
        session_id: str,
        unit_ids: Sequence[str],
        *,
        unit_sites: Sequence[int] | None = None,
        site_positions: Sequence[Sequence[float]] | None = None,
        subject_id: str | None = None,
        task: str | None = None,
        recording_date: str | datetime.date | None = None,
        aligned_to: str | None = None,
    ) -> range:
        """Appends the units of a new session to the vocabulary.

        The model must then get rows for them: `model.resize_unit_vocabulary(processor.num_units)`. What is
        given beside the units is used where counts of the session come without it, as in a closed loop.

        Args:
            session_id (`str`): A session that is not yet known.
            unit_ids (`Sequence[str]`): Identifiers of its units, all different.
            unit_sites (`Sequence[int]`, *optional*): Site of each unit, from 0; None puts all into one.
            site_positions (`Sequence[Sequence[float]]`, *optional*): x, y, z of each site in mm, NaN unknown.
            subject_id (`str`, *optional*): The subject.
            task (`str`, *optional*): The task.
            recording_date (`str` or `datetime.date`, *optional*): The day of recording.
            aligned_to (`str`, *optional*): The session that its units were carried over from without labels.

        Returns:
            `range`: Rows of the unit embedding that belong to it.

        Raises:
            InputError: The session is known already, has no units, or names one twice.
        """
        unit_ids = [str(unit_id) for unit_id in unit_ids]
        if session_id in self.sessions:
            raise InputError(
                f"A session can be added once, got '{session_id}' again. Its rows are in the vocabulary."
            )
        if not unit_ids or len(set(unit_ids)) != len(unit_ids):
            raise InputError(
                f"`unit_ids` must be at least one and all different, got {len(unit_ids)} of which "
                f"{len(set(unit_ids))} differ in session '{session_id}'."
            )
        first = sum(len(known) for known in self.sessions.values())
        date = _as_date(recording_date)
        facts = {
            "unit_sites": None if unit_sites is None else [int(site) for site in unit_sites],
            # JSON has no NaN: an unknown coordinate is saved as null.
            "site_positions": None
            if site_positions is None
            else [
                [float(x) if x is not None and math.isfinite(x) else None for x in p] for p in site_positions
            ],
            "subject_id": subject_id,
            "task": task,
            "recording_date": date.isoformat() if date else None,
            "aligned_to": aligned_to,
        }
        self.session_facts[session_id] = {name: fact for name, fact in facts.items() if fact is not None}
        self.sessions[session_id] = unit_ids
        self._first_rows[session_id] = first
        return range(first, first + len(unit_ids))

    def mark_fitted(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Remembers the times of rows whose labels weights were fitted to or chosen on; scores omit them.

        Pretraining sees no labels and marks nothing.

        Args:
            rows (`Iterable[Mapping]`): Rows of a built dataset; their context bins are not counted.
        """
        for row in rows:
            start = row["start_time"] + row["num_context_bins"] * row["bin_size"]
            stop = row["start_time"] + row["num_bins"] * row["bin_size"]
            source = {name: row["source"][name] for name in ("file_name", "sha256")}
            key = {"session_id": row["session_id"], **source}
            known = next((one for one in self.fitted_intervals if key.items() <= one.items()), None)
            if known is None:
                known = {**key, "intervals": []}
                self.fitted_intervals.append(known)
            known["intervals"].append([start, stop])

    def is_fitted(
        self, session_id: str, source: Mapping[str, Any] | None, times: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Says which times of a recording the weights were fitted to or chosen on.

        Args:
            session_id (`str`): Session of the recording.
            source (`Mapping`, *optional*): Its `file_name` and `sha256`; either must match. None matches any
                file of the session.
            times (`np.ndarray` of shape `(n,)`): Times in s, such as centres of bins.

        Returns:
            `np.ndarray` of shape `(n,)`, bool.
        """
        fitted = np.zeros(len(times), dtype=bool)
        for known in self.fitted_intervals:
            same_file = source is None or any(
                known[name] is not None and known[name] == source.get(name)
                for name in ("file_name", "sha256")
            )
            if known["session_id"] == session_id and same_file:
                starts, stops = np.array(sorted(known["intervals"])).T
                # Of the intervals that begin up to a time, which may overlap, the latest stop counts.
                before = np.searchsorted(starts, times, side="right") - 1
                fitted |= (before >= 0) & (times < np.maximum.accumulate(stops)[np.maximum(before, 0)])
        return fitted

    def session_rows(self, session_id: str | None, num_units: int | None = None) -> range:
        """Finds the rows of the unit embedding that belong to a session.

        Args:
            session_id (`str`): A session of the vocabulary.
            num_units (`int`, *optional*): Number of units that the data have, to be checked.

        Returns:
            `range`: Its rows.

        Raises:
            InputError: The session is unknown, or has another number of units.
        """
        if session_id not in self.sessions:
            known = ", ".join(f"'{name}'" for name in self.sessions) or "none"
            raise InputError(
                f"`session_id` must be a session of the vocabulary ({known}), got "
                f"'{session_id}'. If it has the units of one of these, give that one's id (`rpnt decode "
                "--session-id ID`); otherwise finetune this checkpoint on it (`training/finetune.py --init`)."
            )
        first, known_units = self._first_rows[session_id], len(self.sessions[session_id])
        if num_units is not None and num_units != known_units:
            raise InputError(
                f"Session '{session_id}' must have the {known_units} units that the weights were trained "
                f"with, got {num_units}. Give the units in the order of `processor.sessions['{session_id}']`."
            )
        return range(first, first + known_units)

    def check_bin_size(self, bin_size: float, where: str) -> None:
        """Refuses data binned otherwise than what the weights were trained on.

        Args:
            bin_size (`float`): Bin size of the data in seconds.
            where (`str`): What is checked, for the message.

        Raises:
            InputError: The sizes differ by more than a part in a million.
        """
        if not math.isclose(bin_size, self.bin_size, rel_tol=1e-6):
            raise InputError(
                f"`bin_size` must be {self.bin_size} s, which the weights were trained at, got {bin_size} s "
                f"in {where}. Bin the data at {self.bin_size} s."
            )

    def unit_layout(
        self,
        session_id: str | None,
        unit_sites: NDArray[np.int64],
        num_sites: int,
        generator: np.random.Generator | None = None,
        unit_ids: Sequence[str] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Lays the units of a session into sites x units.

        Args:
            session_id (`str`): The session; must be known in vocabulary mode.
            unit_sites (`np.ndarray` of shape `(units,)`, int): Site of each unit.
            num_sites (`int`): Number of sites.
            generator (`np.random.Generator`, *optional*): Samples units in slots mode; None samples none at
                random.
            unit_ids (`Sequence[str]`, *optional*): Identifiers of the units, which may come in another order
                than the vocabulary's; None takes its order.

        Returns:
            `tuple` of three arrays of shape `(sites, units per site)`: index into the flat units, `unit_ids`
            (rows of the unit embedding) and `unit_mask` (True where there is a unit).

        Raises:
            InputError: The session is unknown, or units do not fit it.
        """
        index, present = site_layout(unit_sites, num_sites)
        if self.num_slots is not None:
            index, present = fit_slots(index, present, self.num_slots, generator)
            return index, np.broadcast_to(np.arange(self.num_slots), index.shape).copy(), present
        rows = self.session_rows(session_id, len(unit_sites))
        order = np.arange(len(unit_sites))
        known = self.sessions[session_id or ""]
        if unit_ids is not None and list(unit_ids) != known:
            if set(unit_ids) != set(known):
                strange = [unit_id for unit_id in unit_ids if unit_id not in set(known)]
                raise InputError(
                    f"Session '{session_id}' must have the units that the weights were trained with, got "
                    f"{', '.join(strange[:5])} ({len(strange)} in all) that were not among them. Give the "
                    "session another id and finetune it as a new one."
                )
            place = {unit_id: i for i, unit_id in enumerate(known)}
            order = np.array([place[unit_id] for unit_id in unit_ids])
        return index, np.where(present, rows.start + order[index], 0), present

    def metadata(
        self,
        site_positions: Any,
        num_sites: int,
        session_id: str | None = None,
        subject_id: str | None = None,
        task: str | None = None,
        recording_date: Any = None,
    ) -> NDArray[np.float32]:
        """Looks up the coordinates of each site on the metadata axes.

        Args:
            site_positions (array of shape `(sites, 3)`, *optional*): Positions in mm, NaN or None where
                unknown.
            num_sites (`int`): Number of sites.
            session_id (`str`, *optional*): For the log line that says what is unknown.
            subject_id (`str`, *optional*): The subject; one that is not known gives NaN.
            task (`str`, *optional*): The task; likewise.
            recording_date (`str` or `datetime.date`, *optional*): The day of recording; None gives NaN.

        Returns:
            `np.ndarray` of shape `(sites, axes)`, float32: mm, indices and days since the corpus began; NaN
            unknown.
        """
        positions = np.full((num_sites, 3), np.nan)
        if site_positions is not None:
            positions = np.array(site_positions, dtype=np.float64).reshape(num_sites, 3)  # None becomes NaN
        date, start = _as_date(recording_date), _as_date(self.corpus_start)
        values = {
            "site_x": positions[:, 0],
            "site_y": positions[:, 1],
            "site_z": positions[:, 2],
            "subject": self._index_of(subject_id, self.subjects, "subject", session_id),
            "task": self._index_of(task, self.tasks, "task", session_id),
            "day": float((date - start).days) if date and start else math.nan,
        }
        columns = [np.broadcast_to(np.asarray(values[axis]), (num_sites,)) for axis in self.metadata_axes]
        return (
            np.stack(columns, axis=1).astype(np.float32) if columns else np.zeros((num_sites, 0), np.float32)
        )

    def _index_of(self, name: str | None, known: list[str], axis: str, session_id: str | None) -> float:
        if name in known:
            return float(known.index(name))
        if name is not None and axis in self.metadata_axes and (session_id or "", axis) not in self._reported:
            self._reported.add((session_id or "", axis))
            logger.warning(
                "The weights were not trained on %s '%s' of session '%s': that coordinate is unknown "
                "(NaN). Known: %s.",
                axis, name, session_id, ", ".join(known) or "none",
            )  # fmt: skip
        return math.nan

    def session_inputs(
        self, session_id: str | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.float32]]:
        """Lays out a session by what `add_session` was told of it, for a stream of its counts.

        Args:
            session_id (`str`): A session of the vocabulary.

        Returns:
            `tuple`: index into the flat units, `unit_ids` and `unit_mask`, each `(sites, units per site)`,
            and `metadata` `(sites, axes)`.

        Raises:
            InputError: The session is unknown.
        """
        num_units = len(self.session_rows(session_id))
        facts = self.session_facts[session_id or ""]
        unit_sites = np.asarray(facts.get("unit_sites", np.zeros(num_units)), dtype=np.int64)
        positions = facts.get("site_positions")
        num_sites = int(unit_sites.max()) + 1 if positions is None else len(positions)
        others = {name: facts.get(name) for name in ("subject_id", "task", "recording_date")}
        metadata = self.metadata(positions, num_sites, session_id, **others)
        return *self.unit_layout(session_id, unit_sites, num_sites), metadata

    def __call__(
        self,
        data: Any,
        session_id: str | None = None,
        *,
        bin_size: float | None = None,
        unit_sites: Any = None,
        site_positions: Any = None,
        subject_id: str | None = None,
        task: str | None = None,
        recording_date: Any = None,
    ) -> BatchFeature:
        """Makes tensors for `model(**inputs)`.

        Args:
            data (`Recording`, `Mapping` or array):
                A recording (each observed interval becomes one element of the batch), a row of a built
                dataset, or counts of shape `(bins, units)` or `(sites, bins, units)`. The arguments below are
                for counts only, and where absent those of `add_session`: a recording and a row bring their
                own.
            session_id (`str`, *optional*):
                Session of the counts; required in vocabulary mode.
            bin_size (`float`, *optional*):
                Bin size of the counts in seconds, to be checked; None takes it on trust.
            unit_sites (array of shape `(units,)`, *optional*):
                Site of each unit of counts of shape `(bins, units)`.
            site_positions (array of shape `(sites, 3)`, *optional*):
                Positions in mm, NaN unknown.
            subject_id (`str`, *optional*):
                Subject of the counts.
            task (`str`, *optional*):
                Task of the counts.
            recording_date (`str` or `datetime.date`, *optional*):
                Day of recording.

        Returns:
            `BatchFeature`: `spike_counts` of shape `(batch, sites, bins, units)` uint8, `unit_ids` and
            `unit_mask` `(batch, sites, units)`, `bin_mask` `(batch, sites, bins)` and `metadata` `(batch,
            sites, axes)`.

        Raises:
            InputError: Data binned otherwise, an unknown session, a wrong number of units, or counts that are
                negative, fractional, not finite or above 255.
        """
        if hasattr(data, "bin_spikes"):
            intervals = data.bin_spikes(self.bin_size)
            if not intervals:
                raise InputError(
                    f"Recording '{data.session_id}' must have an observed interval of at least one bin of "
                    f"{self.bin_size} s, got none."
                )
            return self._assemble(
                [interval.counts for interval in intervals],
                [interval.observed for interval in intervals],
                data.session_id, np.asarray(data.unit_sites), data.site_positions, len(data.site_ids),
                data.subject_id, data.task, data.recording_date, data.unit_ids,
            )  # fmt: skip
        if isinstance(data, Mapping):
            self.check_bin_size(data["bin_size"], f"a row of session '{data['session_id']}'")
            counts = np.frombuffer(data["counts"], dtype=np.uint8).reshape(
                data["num_bins"], len(data["unit_ids"])
            )
            return self._assemble(
                [counts],
                # A byte per bin, or bins x sites: (1 or sites, bins).
                [np.frombuffer(data["observed"], dtype=np.uint8).astype(bool).reshape(len(counts), -1).T],
                data["session_id"], np.asarray(data["unit_sites"]), data["site_positions"],
                len(data["site_ids"]), data["subject_id"], data["task"], data["recording_date"],
                data["unit_ids"],
            )  # fmt: skip
        if bin_size is not None:
            self.check_bin_size(bin_size, f"counts of session '{session_id}'")
        counts = _whole_counts(data, session_id)
        facts = self.session_facts.get(session_id or "", {})
        if counts.ndim == 2 and unit_sites is None:
            unit_sites = facts.get("unit_sites")
        site_positions = facts.get("site_positions") if site_positions is None else site_positions
        subject_id, task = subject_id or facts.get("subject_id"), task or facts.get("task")
        recording_date = recording_date or facts.get("recording_date")
        num_sites = 1
        if counts.ndim == 3:
            if unit_sites is not None:
                raise InputError(
                    "`unit_sites` belongs to counts of shape (bins, units), got it with three dimensions."
                )
            num_sites = counts.shape[0]
            unit_sites = np.asarray(
                facts.get("unit_sites", np.repeat(np.arange(num_sites), counts.shape[-1])), dtype=np.int64
            )
            counts = flat_counts(counts, unit_sites, session_id)
        elif unit_sites is not None:
            unit_sites = np.asarray(unit_sites)
            num_sites = len(site_positions) if site_positions is not None else int(unit_sites.max()) + 1
        else:
            unit_sites = np.zeros(counts.shape[1], dtype=np.int64)
        return self._assemble(
            [counts], [np.ones(len(counts), dtype=bool)], session_id, unit_sites, site_positions, num_sites,
            subject_id, task, recording_date,
        )  # fmt: skip

    def _assemble(
        self,
        counts: list[NDArray[np.uint8]],
        observed: list[NDArray[np.bool_]],
        session_id: str | None,
        unit_sites: NDArray[np.int64],
        site_positions: Any,
        num_sites: int,
        subject_id: str | None,
        task: str | None,
        recording_date: Any,
        session_units: Sequence[str] | None = None,
    ) -> BatchFeature:
        """Lays intervals of one session into tensors, padded on the right."""
        if len(unit_sites) != counts[0].shape[1]:
            raise InputError(
                f"`unit_sites` must name a site for each of the {counts[0].shape[1]} units of session "
                f"'{session_id}', got {len(unit_sites)}."
            )
        index, unit_ids, unit_mask = self.unit_layout(
            session_id, unit_sites, num_sites, unit_ids=session_units
        )
        batch, most_bins = len(counts), max(len(interval) for interval in counts)
        spike_counts = np.zeros((batch, num_sites, most_bins, index.shape[1]), dtype=np.uint8)
        bin_mask = np.zeros((batch, num_sites, most_bins), dtype=bool)
        for i, (interval, seen) in enumerate(zip(counts, observed, strict=True)):
            spike_counts[i, :, : len(interval)] = np.moveaxis(interval[:, index] * unit_mask, 0, 1)
            bin_mask[i, :, : len(interval)] = seen
        metadata = self.metadata(site_positions, num_sites, session_id, subject_id, task, recording_date)
        return BatchFeature(
            {
                "spike_counts": torch.from_numpy(spike_counts),
                "unit_ids": torch.from_numpy(unit_ids).expand(batch, -1, -1),
                "unit_mask": torch.from_numpy(unit_mask).expand(batch, -1, -1),
                "bin_mask": torch.from_numpy(bin_mask),
                "metadata": torch.from_numpy(metadata).expand(batch, -1, -1),
            }
        )


def _whole_counts(data: Any, session_id: str | None) -> NDArray[np.uint8]:
    """Checks counts that came as an array and makes them uint8."""
    if isinstance(data, torch.Tensor):
        data = data.detach().cpu().numpy()
    counts = np.asarray(data)
    where = f"of session '{session_id}'"
    if counts.ndim not in (2, 3) or 0 in counts.shape or counts.dtype.kind not in "buif":
        raise InputError(
            "Counts must be numbers of shape (bins, units) or (sites, bins, units) with none of them 0, got "
            f"{counts.dtype} of shape {counts.shape} {where}."
        )
    if counts.dtype == np.uint8:
        return counts
    if not np.isfinite(counts).all() or (counts < 0).any() or (counts > 255).any() or (counts % 1 != 0).any():
        raise InputError(
            f"Counts must be whole numbers from 0 to 255 spikes per bin, got values from {counts.min()} to "
            f"{counts.max()} {where}, or fractions. Give raw counts: not rates, not z-scores, not NaN."
        )
    return counts.astype(np.uint8)


__all__ = ["RPNTProcessor"]
