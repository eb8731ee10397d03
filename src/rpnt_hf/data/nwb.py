"""Recordings as this package knows them, and how they are read from NWB 2.x files.

For spikes, behaviour, trials and the few metadata that the model uses; one `Recording` is one file. Not for
raw voltages, and nothing is written here: NWB files stay the source of truth.
"""

import datetime
import hashlib
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from rpnt_hf.data.nwb_tables import (
    check_columns,
    check_intervals,
    check_objects,
    check_tables,
    decode_text,
    read_array,
    read_observed,
    read_sites,
    read_spike_times,
    read_trials,
    read_unit_ids,
)
from rpnt_hf.errors import RecordingError

if TYPE_CHECKING:
    from rpnt_hf.data.binning import BinnedInterval

logger = logging.getLogger(__name__)

# A recording that spans more holds times of two clocks, or a time that is no time.
MAX_DAYS = 90

TASK_TOKENS = {"CO": "center_out", "RT": "random_target"}
TASK_PHRASES = {
    "center-out": "center_out",
    "center out": "center_out",
    "random-target": "random_target",
    "random target": "random_target",
}


@dataclass(frozen=True)
class BehaviorSeries:
    """One behavioural time series, already in the unit that it names.

    Args:
        name (`str`): Name of the series, for example `"cursor_vel"`.
        timestamps (`np.ndarray` of shape `(num_samples,)`): Times in s, finite and strictly increasing;
            stored as float64.
        values (`np.ndarray` of shape `(num_samples, K)`): Samples, NaN where absent; stored as float32.
        dimension_names (`list[str]`): One name per column, for example `["x", "y"]`; `[""]` for a series of
            one column.
        unit (`str`): Unit of the values, for example `"cm/s"`.

    Raises:
        RecordingError: If shapes disagree, or a timestamp is NaN, repeated or out of order.
    """

    name: str
    timestamps: np.ndarray
    values: np.ndarray
    dimension_names: list[str]
    unit: str

    def __post_init__(self) -> None:
        """Casts the arrays and checks them."""
        timestamps = np.asarray(self.timestamps, dtype=np.float64)
        values = np.asarray(self.values, dtype=np.float32)
        values = values[:, None] if values.ndim == 1 else values
        if timestamps.ndim != 1 or values.ndim != 2 or len(timestamps) != len(values) or len(timestamps) == 0:
            raise RecordingError(
                "`values` and `timestamps` must hold the same samples, at least one, got shapes "
                f"{values.shape} and {timestamps.shape} in series '{self.name}'. Give one time per sample."
            )
        if len(self.dimension_names) != values.shape[1]:
            raise RecordingError(
                f"`dimension_names` must name the {values.shape[1]} columns, got {self.dimension_names} in "
                f"series '{self.name}'."
            )
        num_bad = int(np.count_nonzero(~np.isfinite(timestamps)))
        if num_bad:
            raise RecordingError(
                f"`timestamps` must be finite, got {num_bad} NaN or infinite times of {len(timestamps)} in "
                f"series '{self.name}'. Write NaN into the values instead where behaviour is absent."
            )
        num_back = int(np.count_nonzero(np.diff(timestamps) <= 0))
        if num_back:
            raise RecordingError(
                f"`timestamps` must increase strictly, got {num_back} steps that do not in series "
                f"'{self.name}'. Sort the samples and drop repeated times."
            )
        object.__setattr__(self, "timestamps", timestamps)
        object.__setattr__(self, "values", values)

    @cached_property
    def sample_interval(self) -> float:
        """`float`: median time between samples in s; 0 for a single sample."""
        return float(np.median(np.diff(self.timestamps))) if len(self.timestamps) > 1 else 0.0


@dataclass
class Recording:
    """Spikes, behaviour and trials of one file or session, checked once when it is made.

    Units without spikes and recordings of a single unit are valid.

    Args:
        session_id (`str`): Name of the session.
        subject_id (`str` or `None`): The animal.
        task (`str` or `None`): Name of the task, for example `"center_out"`.
        recording_date (`datetime.date` or `None`): Day of the recording.
        unit_ids (`list[str]`): One name per unit, unique in the recording.
        unit_sites (`np.ndarray` of shape `(num_units,)`): Index of each unit's site in `site_ids`, int64.
        site_ids (`list[str]`): Names of the recording sites, unique.
        site_positions (`np.ndarray` of shape `(num_sites, 3)`): Coordinates in mm, NaN where unknown.
        spike_times (`list[np.ndarray]`): Per unit its spike times in s, strictly increasing, float64.
        obs_intervals (`np.ndarray` of shape `(num_intervals, 2)`): Start and stop in s of what was observed,
            sorted, no overlap.
        behavior (`dict[str, BehaviorSeries]`): Behavioural series by name; may be empty.
        trials (`pd.DataFrame`): One row per trial with at least `start_time` and `stop_time` in s, NaN where
            unknown; may be empty. Its index is the row of the NWB table, from 0.
        source (`dict` or `None`): `{"file_name": str, "sha256": str}` of the file that it came from.
        unusable_behavior (`dict[str, str]`): Series that the file has and that are not in `behavior`, by
            name, and why.

    Raises:
        RecordingError: If anything above does not hold.
    """

    session_id: str
    subject_id: str | None
    task: str | None
    recording_date: datetime.date | None
    unit_ids: list[str]
    unit_sites: np.ndarray
    site_ids: list[str]
    site_positions: np.ndarray
    spike_times: list[np.ndarray]
    obs_intervals: np.ndarray
    behavior: dict[str, BehaviorSeries]
    trials: pd.DataFrame
    source: dict[str, str] | None = None
    unusable_behavior: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Casts the arrays and checks every rule of the class docstring."""
        self.unit_sites = np.asarray(self.unit_sites, dtype=np.int64)
        self.site_positions = np.asarray(self.site_positions, dtype=np.float64)
        self.obs_intervals = np.asarray(self.obs_intervals, dtype=np.float64)
        self.spike_times = [np.asarray(times, dtype=np.float64) for times in self.spike_times]
        where = f"in session '{self.session_id}'"
        if not self.unit_ids:
            raise RecordingError(
                f"A recording must have at least one unit, got none {where}. Check the NWB `units` table."
            )
        if len(set(self.unit_ids)) != len(self.unit_ids):
            raise RecordingError(
                f"`unit_ids` must be unique, got {len(self.unit_ids) - len(set(self.unit_ids))} repeats "
                f"{where}."
            )
        if not len(self.unit_ids) == len(self.spike_times) == len(self.unit_sites):
            raise RecordingError(
                "`unit_ids`, `unit_sites` and `spike_times` must have one entry per unit, got "
                f"{len(self.unit_ids)}, {len(self.unit_sites)} and {len(self.spike_times)} {where}."
            )
        if self.unit_sites.min() < 0 or self.unit_sites.max() >= len(self.site_ids):
            raise RecordingError(
                f"`unit_sites` must index the {len(self.site_ids)} `site_ids`, got {self.unit_sites.min()} "
                f"to {self.unit_sites.max()} {where}."
            )
        if self.site_positions.shape != (len(self.site_ids), 3):
            raise RecordingError(
                f"`site_positions` must have shape ({len(self.site_ids)}, 3), got "
                f"{self.site_positions.shape} {where}."
            )
        for unit_id, times in zip(self.unit_ids, self.spike_times, strict=True):
            _check_spikes(unit_id, times, where)
        check_intervals(self.obs_intervals, where)
        span = self.obs_intervals[-1, 1] - self.obs_intervals[0, 0]
        if span > MAX_DAYS * 86400:
            raise RecordingError(
                f"A recording must span at most {MAX_DAYS} days, got {self.obs_intervals[0, 0]:.6g} to "
                f"{self.obs_intervals[-1, 1]:.6g} s {where}. Where spikes, behaviour and trials are on "
                "different clocks, bring them to one; where a time is far off, remove it."
            )
        _check_trials(self.trials, where)

    @classmethod
    def from_arrays(
        cls,
        session_id: str,
        spike_times: Sequence[np.ndarray],
        *,
        behavior: Mapping[str, BehaviorSeries] | None = None,
        trials: pd.DataFrame | None = None,
        obs_intervals: np.ndarray | None = None,
        unit_ids: Sequence[str] | None = None,
        unit_sites: np.ndarray | None = None,
        site_ids: Sequence[str] | None = None,
        site_positions: np.ndarray | None = None,
        subject_id: str | None = None,
        task: str | None = None,
        recording_date: datetime.date | None = None,
        source: dict[str, str] | None = None,
        unusable_behavior: Mapping[str, str] | None = None,
        repair_spikes: bool = False,
    ) -> "Recording":
        """Makes a recording from arrays, for data that do not live in NWB.

        Args:
            session_id (`str`): Name of the session.
            spike_times (`Sequence[np.ndarray]`): Per unit its spike times in s.
            behavior (`Mapping[str, BehaviorSeries]` or `None`, defaults to `None`): Behavioural series by
                name.
            trials (`pd.DataFrame` or `None`, defaults to `None`): Trials with `start_time` and `stop_time` in
                s, NaN where unknown.
            obs_intervals (`np.ndarray` of shape `(num_intervals, 2)` or `None`, defaults to `None`): Observed
                intervals in s; where absent, one interval that spans all behaviour, trials and spikes
                (half-open, so a spike at its very end lies outside).
            unit_ids (`Sequence[str]` or `None`, defaults to `None`): Names of the units; `"0"`, `"1"`, ...
                where absent.
            unit_sites (`np.ndarray` of shape `(num_units,)` or `None`, defaults to `None`): Site index of
                each unit; 0 where absent.
            site_ids (`Sequence[str]` or `None`, defaults to `None`): Names of the sites; one called
                `"unknown"` where absent.
            site_positions (`np.ndarray` of shape `(num_sites, 3)` or `None`, defaults to `None`): Positions
                in mm; NaN where absent.
            subject_id (`str` or `None`, defaults to `None`): The animal.
            task (`str` or `None`, defaults to `None`): Name of the task.
            recording_date (`datetime.date` or `None`, defaults to `None`): Day of the recording.
            source (`dict` or `None`, defaults to `None`): File name and sha256.
            unusable_behavior (`Mapping[str, str]` or `None`, defaults to `None`): Why series are not in
                `behavior`, by name.
            repair_spikes (`bool`, defaults to `False`): Sort spike times and drop exact duplicates, with one
                log line that counts them, instead of refusing them.

        Returns:
            `Recording`: the checked recording.

        Example:
            ```python
            >>> spike_times = [np.array([0.1, 0.3]), np.array([])]
            >>> recording = Recording.from_arrays("day1", spike_times, obs_intervals=[[0.0, 1.0]])
            >>> [interval.counts.sum(axis=0).tolist() for interval in recording.bin_spikes(0.5)]
            [[2, 0]]

            ```
        """
        spikes = [np.asarray(times, dtype=np.float64) for times in spike_times]
        if repair_spikes:
            spikes = _repaired(spikes, session_id)
        behavior = dict(behavior or {})
        trials = pd.DataFrame({"start_time": [], "stop_time": []}) if trials is None else trials
        trials = trials.reset_index(drop=True)
        if obs_intervals is None:
            obs_intervals = _spanning_interval(session_id, spikes, behavior, trials)
        site_ids = list(site_ids) if site_ids is not None else ["unknown"]
        return cls(
            session_id=session_id,
            subject_id=subject_id,
            task=task,
            recording_date=recording_date,
            unit_ids=list(unit_ids) if unit_ids is not None else [str(i) for i in range(len(spikes))],
            unit_sites=np.zeros(len(spikes), np.int64) if unit_sites is None else unit_sites,
            site_ids=site_ids,
            site_positions=np.full((len(site_ids), 3), np.nan) if site_positions is None else site_positions,
            spike_times=spikes,
            obs_intervals=obs_intervals,
            behavior=behavior,
            trials=trials,
            source=source,
            unusable_behavior=dict(unusable_behavior or {}),
        )

    @property
    def num_units(self) -> int:
        """`int`: number of units."""
        return len(self.unit_ids)

    @property
    def num_spikes(self) -> int:
        """`int`: number of spikes of all units, inside the observed intervals or not."""
        return sum(len(times) for times in self.spike_times)

    def bin_spikes(self, bin_size: float) -> list["BinnedInterval"]:
        """Counts spikes in bins of every observed interval; see `rpnt_hf.data.binning.bin_spikes`.

        Args:
            bin_size (`float`): Width of a bin in s, above 0.

        Returns:
            `list[BinnedInterval]`: one per observed interval that holds at least one bin.
        """
        from rpnt_hf.data.binning import bin_spikes  # binning imports this module

        return bin_spikes(self, bin_size)


def read_nwb(path: str | Path, repair_spikes: bool = False, any_unit: bool = False) -> Recording:
    """Reads one NWB file into a `Recording`.

    - Session: `session_id` of the file, else the file's stem without `_behavior+ecephys` or `_ecephys`. In a
      file named as in the DANDI archive, `sub-C_ses-CO-20131003_behavior+ecephys.nwb` with the `session_id`
      "CO-20131003", it is "sub-C_ses-CO-20131003": subjects may have sessions of one name.
    - Task: a token `task-NAME` of the file name; else a token CO (`center_out`) or RT (`random_target`) of
      it; else "center-out" or "random target" in the session description; else `random_target` where trials
      have `go_cue_time_array`; else `None`.
    - Units: every row of the `units` table, named by its `unit_name` where those are unique, else by its id.
    - Sites: electrode groups that have units, named by their location where no two share one, else by group
      name; a unit belongs to the group of its first electrode (or to its `electrode_group`), and to a site
      `"unknown"` where the file says nothing. A site's position is the mean of its electrodes, in mm (NWB:
      micrometres); NaN where unknown, and where every electrode of the file is at (0, 0, 0).
    - Observed intervals: what is observed of all units (units without `obs_intervals` rows do not restrict
      it), less `invalid_times`. Where the file has no `obs_intervals`, the span of all behaviour, trials and
      spikes.
    - Behaviour: every SpatialSeries and plain TimeSeries of the processing modules and of `acquisition`,
      conversion and offset applied; named `container/series`, or `module/container/series`, only where the
      shorter name is shared. One that breaks a rule of `BehaviorSeries` is left out, and why is logged and
      told in `unusable_behavior`.

    Args:
        path (`str` or `Path`): An NWB 2.x file.
        repair_spikes (`bool`, defaults to `False`): Sort spike times and drop exact duplicates instead of
            refusing them.
        any_unit (`bool`, defaults to `False`): Take what is observed of any unit as observed, not only what
            is observed of all; for sites that were not recorded all the time.

    Returns:
        `Recording`: times in s, positions in mm.

    Raises:
        RecordingError: If the file is missing, truncated or not NWB, has no units, or breaks a rule of
            `Recording`.
    """
    # Imported here because pynwb takes seconds and most users of a decoder never open a file.
    import h5py
    import pynwb

    path = Path(path)
    if not path.is_file():
        raise RecordingError(
            f"`path` must be an NWB file, got '{path}', where there is no file. Check the name."
        )
    try:
        with warnings.catch_warnings(record=True) as caught, h5py.File(path, "r") as file:
            warnings.simplefilter("always")
            check_objects(file)
            check_columns(file)
            date = _read_date(file)
            with pynwb.NWBHDF5IO(file=file, mode="r", load_namespaces=True) as io:
                nwbfile = io.read()
                check_tables(file, nwbfile)
                behavior = _read_behavior(nwbfile, path, file, _broken_links(caught))
                return _recording_from(nwbfile, path, date, behavior, repair_spikes, any_unit)
    except RecordingError:
        raise
    except Exception as error:  # h5py, hdmf and pynwb raise errors of every kind on files that are damaged
        raise RecordingError(
            f"`path` must be a whole NWB 2.x file, got '{path}', which cannot be read "
            f"({type(error).__name__}: {error}). It may be truncated, or break the NWB "
            "schema: fetch it again, or have it written anew."
        ) from error


def _broken_links(caught: list[warnings.WarningMessage]) -> list[str]:
    """Paths in the file of links that lead nowhere, out of the warnings of reading it."""
    from hdmf.backends.warnings import BrokenLinkWarning

    broken = [str(one.message) for one in caught if issubclass(one.category, BrokenLinkWarning)]
    return [message.removeprefix("Path to Group altered/broken at ") for message in broken]


def _read_date(file: Any) -> datetime.date | None:
    """Day of the session, in the time zone that the file states; lenient readers make up missing parts."""
    if "session_start_time" not in file:
        return None
    text = decode_text(file["session_start_time"][()], "session_start_time")
    match = re.match(r"(\d{4})-?(\d{2})-?(\d{2})(?!\d)", text)
    try:
        return datetime.date(*map(int, match.groups()))  # type: ignore[union-attr]
    except (AttributeError, ValueError) as error:
        raise RecordingError(
            f"`session_start_time` must be an ISO 8601 date with or without a time, got '{text}'. Write it "
            "as in 2020-03-04T12:00:00+00:00."
        ) from error


def _recording_from(
    nwbfile: Any,
    path: Path,
    date: datetime.date | None,
    behavior: tuple[dict[str, BehaviorSeries], dict[str, str]],
    repair_spikes: bool,
    any_unit: bool,
) -> Recording:
    stem = re.sub(r"(_behavior\+ecephys|_ecephys|_behavior)$", "", path.stem)
    session_id = decode_text(nwbfile.session_id or stem, "session_id")
    if re.fullmatch(rf"sub-[^_]+_ses-{re.escape(session_id)}", stem):
        session_id = stem  # as in the DANDI archive, where subjects have sessions of one name
    units = nwbfile.units
    if units is None or len(units) == 0 or "spike_times" not in units.colnames:
        raise RecordingError(
            f"A recording must have units with spike times, got none in '{path.name}'. Add a `units` table "
            "with `spike_times`."
        )
    spike_times = read_spike_times(units)
    trials = read_trials(nwbfile)
    unit_sites, site_ids, site_positions = read_sites(nwbfile)
    subject_id = nwbfile.subject.subject_id if nwbfile.subject else None
    return Recording.from_arrays(
        session_id,
        spike_times,
        behavior=behavior[0],
        unusable_behavior=behavior[1],
        trials=trials,
        obs_intervals=read_observed(nwbfile, spike_times, session_id, any_unit),
        unit_ids=read_unit_ids(units),
        unit_sites=unit_sites,
        site_ids=site_ids,
        site_positions=site_positions,
        subject_id=None if subject_id is None else decode_text(subject_id, "subject_id"),
        task=_read_task(path.stem, str(nwbfile.session_description or ""), trials),
        recording_date=date,
        source={"file_name": path.name, "sha256": _sha256(path)},
        repair_spikes=repair_spikes,
    )


def _read_behavior(
    nwbfile: Any, path: Path, file: Any, broken_links: list[str]
) -> tuple[dict[str, BehaviorSeries], dict[str, str]]:
    """Reads every series that can be used, and tells of the others why they cannot."""
    modules = sorted(nwbfile.processing.values(), key=lambda module: module.name != "behavior")
    places = [(module.name, module.data_interfaces) for module in modules]
    found: dict[int, tuple[tuple[str, str, str], Any]] = {}
    for place, interfaces in [*places, ("acquisition", nwbfile.acquisition)]:
        for interface in interfaces.values():
            for container, name, series in _walk(interface):
                # A link leads to a series that may have been found already.
                found.setdefault(id(series), ((place, container, name), series))
    behavior: dict[str, BehaviorSeries] = {}
    unusable: dict[str, str] = {}
    for link in broken_links:
        if link.startswith(("/processing/", "/acquisition/")):
            unusable[link] = "its link leads nowhere: fetch the file that it points to, or put the data here."
    for place in _passed_over(file, [series.object_id for _, series in found.values()]):
        unusable[place] = "pynwb does not read it where it lies: put it into an NWB container of series."
    names = [full for full, _ in found.values()]
    for full, series in found.values():
        alone = (full[-n:] for n in (1, 2) if sum(other[-n:] == full[-n:] for other in names) == 1)
        name = "/".join(next(alone, full))
        try:
            behavior[name] = _behavior_series(name, series)
        except RecordingError as error:
            unusable[name] = str(error)
    for name, why in unusable.items():
        logger.warning("Series '%s' of '%s' cannot be used: %s", name, path.name, why)
    return behavior, unusable


def _passed_over(file: Any, object_ids: list[str]) -> list[str]:
    """Paths of series in the file that are not among those that pynwb read."""
    read, paths = Counter(object_ids), []

    def visit(_: str, item: Any) -> None:
        kind = item.attrs.get("neurodata_type")
        if kind in ("TimeSeries", "SpatialSeries", b"TimeSeries", b"SpatialSeries"):
            object_id = decode_text(item.attrs.get("object_id", ""), "object_id")
            if not read[object_id]:
                paths.append(item.name)
            read[object_id] -= bool(read[object_id])

    for place in ("processing", "acquisition"):
        if place in file:
            file[place].visititems(visit)
    return paths


def _behavior_series(name: str, series: Any) -> BehaviorSeries:
    data = series.data
    shape: tuple[int, ...] = tuple(getattr(data, "shape", None) or ())
    dtype = getattr(data, "dtype", None)
    if not isinstance(dtype, np.dtype) or dtype.kind not in "iuf" or len(shape) not in (1, 2) or 0 in shape:
        raise RecordingError(
            "A behaviour series must hold real numbers of shape (samples,) or (samples, K), got "
            f"{dtype or type(data).__name__} of shape {tuple(shape)} in series '{name}'."
        )
    conversion, offset = float(series.conversion), float(series.offset)
    if not np.isfinite([conversion, offset]).all() or conversion == 0:
        raise RecordingError(
            f"`conversion` must be finite and not 0, and `offset` finite, got {conversion} and {offset} in "
            f"series '{name}'."
        )
    if (series.timestamps is None) == (series.rate is None):
        raise RecordingError(
            f"A behaviour series must have either `timestamps` or a `rate`, got "
            f"{'neither' if series.rate is None else 'both'} in series '{name}'."
        )
    if series.timestamps is not None:
        timestamps = read_array(series.timestamps, f"{name}.timestamps").astype(np.float64)
    else:
        if not (np.isfinite(series.rate) and series.rate > 0):
            raise RecordingError(f"`rate` must be above 0 Hz, got {series.rate} in series '{name}'.")
        if len(shape) == 2 and shape[0] < shape[1]:
            raise RecordingError(
                f"A behaviour series must have time along its first axis, got shape {tuple(shape)} in series "
                f"'{name}', which looks transposed."
            )
        timestamps = float(series.starting_time or 0.0) + np.arange(shape[0]) / float(series.rate)
    values = read_array(data, name).astype(np.float64) * conversion + offset
    values = values.reshape(len(values), -1)
    if np.isfinite(values).sum() != np.isfinite(values.astype(np.float32)).sum():
        raise RecordingError(
            f"A behaviour series must fit into 32-bit numbers, got values up to {np.nanmax(np.abs(values))} "
            f"in series '{name}'. Choose a unit in which they are smaller."
        )
    num_dimensions = values.shape[1]
    dimensions = {1: [""], 2: ["x", "y"], 3: ["x", "y", "z"]}.get(
        num_dimensions, [str(i) for i in range(num_dimensions)]
    )
    return BehaviorSeries(name, timestamps, values, dimensions, decode_text(series.unit, f"{name}.unit"))


def _walk(container: Any, parent: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yields (container name, series name, series) of behaviour; raw voltages and images are other types."""
    from pynwb import TimeSeries
    from pynwb.behavior import SpatialSeries

    if isinstance(container, SpatialSeries) or type(container) is TimeSeries:
        yield parent or container.parent.name, container.name, container
    elif not isinstance(container, TimeSeries):
        for child in container.children:
            yield from _walk(child, container.name)


def _read_task(stem: str, description: str, trials: pd.DataFrame | None) -> str | None:
    if match := re.search(r"(?:^|_)task-([^_]+)", stem):
        return match.group(1)
    for token in re.split(r"[-_+]", stem):
        if token in TASK_TOKENS:
            return TASK_TOKENS[token]
    for phrase, task in TASK_PHRASES.items():
        if phrase in description.lower():
            return task
    return "random_target" if trials is not None and "go_cue_time_array" in trials.columns else None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _repaired(spike_times: list[np.ndarray], session_id: str) -> list[np.ndarray]:
    repaired = [np.unique(times) for times in spike_times]
    num_unsorted = sum(int((np.diff(times) < 0).any()) for times in spike_times)
    num_dropped = sum(len(before) - len(after) for before, after in zip(spike_times, repaired, strict=True))
    if num_unsorted or num_dropped:
        logger.warning(
            "Session '%s': sorted the spikes of %d units and dropped %d duplicate spikes.",
            session_id,
            num_unsorted,
            num_dropped,
        )
    return repaired


def _spanning_interval(
    session_id: str, spikes: list[np.ndarray], behavior: dict[str, BehaviorSeries], trials: pd.DataFrame
) -> np.ndarray:
    times = [series.timestamps for series in behavior.values()] + spikes
    if {"start_time", "stop_time"} <= set(trials.columns):
        times += [trials["start_time"].to_numpy(np.float64), trials["stop_time"].to_numpy(np.float64)]
    every = np.concatenate([*times, np.empty(0)])
    every = every[np.isfinite(every)]
    if len(every) < 2 or every.min() == every.max():
        raise RecordingError(
            f"A recording must span some time, got {len(every)} times without `obs_intervals` in session "
            f"'{session_id}'. Give `obs_intervals`."
        )
    return np.array([[every.min(), every.max()]])


def _check_spikes(unit_id: str, times: np.ndarray, where: str) -> None:
    repair = "Sort them and drop duplicates with `--repair-spikes` (`repair_spikes=True`)."
    if times.ndim != 1 or not np.isfinite(times).all():
        raise RecordingError(
            f"`spike_times` must be finite and one-dimensional, got shape {times.shape} with "
            f"{np.count_nonzero(~np.isfinite(times))} NaN or infinite times for unit '{unit_id}' {where}. "
            "Remove those times."
        )
    steps = np.diff(times)
    if (steps <= 0).any():
        num_unsorted, num_duplicate = np.count_nonzero(steps < 0), len(times) - len(np.unique(times))
        raise RecordingError(
            f"`spike_times` must increase strictly, got {num_unsorted} unsorted and {num_duplicate} "
            f"duplicate of {len(times)} spikes for unit '{unit_id}' {where}. {repair}"
        )


def _check_trials(trials: pd.DataFrame, where: str) -> None:
    missing = {"start_time", "stop_time"} - set(trials.columns)
    if missing:
        raise RecordingError(
            f"`trials` must have the columns `start_time` and `stop_time`, got none of {sorted(missing)} "
            f"{where}."
        )
    for name in ("start_time", "stop_time"):
        if not pd.api.types.is_numeric_dtype(trials[name]):
            raise RecordingError(
                f"`{name}` of trials must be numbers, in s, got {trials[name].dtype} {where}. Convert them."
            )
    start, stop = trials["start_time"].to_numpy(np.float64), trials["stop_time"].to_numpy(np.float64)
    bad = np.flatnonzero(np.isinf(start) | np.isinf(stop) | (stop <= start))
    if len(bad):
        raise RecordingError(
            f"Every trial must stop after it starts, got {len(bad)} trials that do not, the first in row "
            f"{bad[0]} ({start[bad[0]]} to {stop[bad[0]]} s) {where}. Correct or remove those rows."
        )
