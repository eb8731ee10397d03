"""Tables of NWB files: units, their sites, what was observed, and trials.

Every column is checked before it is used: HDF5 has no checksums by default, and pynwb reads a ragged column
whose index is damaged without a word. For `read_nwb` only; behaviour is read there.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from rpnt_hf.errors import RecordingError

logger = logging.getLogger(__name__)

__all__ = [
    "check_columns",
    "check_intervals",
    "check_objects",
    "check_tables",
    "decode_text",
    "intersect_intervals",
    "merge_intervals",
    "read_array",
    "read_observed",
    "read_ragged",
    "read_sites",
    "read_spike_times",
    "read_trials",
    "read_unit_ids",
]

# NWB core stores electrode coordinates in micrometres; sites are in millimetres here.
MICROMETRES_PER_MILLIMETRE = 1000.0

# No compression of HDF5 makes data smaller than this part of their size; a dataset that claims to be larger
# is damaged, and reading it would fill the memory.
MOST_COMPRESSED = 1 / 2000
SMALL_BYTES = 2**24

TABLES = {
    "units": "units",
    "trials": "intervals/trials",
    "invalid_times": "intervals/invalid_times",
    "electrodes": "general/extracellular_ephys/electrodes",
}


def read_array(data: Any, what: str) -> np.ndarray:
    """Reads a dataset of real numbers whole.

    Args:
        data (`h5py.Dataset` or array): What to read.
        what (`str`): Its name, for errors.

    Returns:
        `np.ndarray`: the numbers, in the type of the file.

    Raises:
        RecordingError: If it holds anything but real numbers, or claims more than the file can hold.
    """
    dtype, shape = getattr(data, "dtype", None), getattr(data, "shape", None)
    if not isinstance(dtype, np.dtype) or dtype.kind not in "iuf" or not shape:
        raise RecordingError(
            f"`{what}` must be an array of real numbers, got {dtype or type(data).__name__} of shape {shape}."
        )
    file = getattr(data, "file", None)
    if file is not None and data.nbytes > SMALL_BYTES:
        file_bytes = file.id.get_filesize()
        if data.nbytes * MOST_COMPRESSED > file_bytes:
            raise RecordingError(
                f"`{what}` must fit into its file, got shape {shape}, which is {data.nbytes:.3g} bytes in a "
                f"file of {file_bytes:.3g}. The file is damaged: fetch it again."
            )
    return np.asarray(data[:])


def decode_text(value: Any, what: str) -> str:
    """Gives text as `str`, whether the file holds it as bytes or as characters.

    Args:
        value (`str`, `bytes` or number): What was read.
        what (`str`): Its name, for errors.

    Returns:
        `str`: the text.

    Raises:
        RecordingError: If it is not valid UTF-8.
    """
    try:
        if isinstance(value, bytes):
            return value.decode("utf-8")
        text = str(value)
        text.encode("utf-8")  # h5py keeps bytes that are no UTF-8 as lone surrogates
    except UnicodeError as error:
        raise RecordingError(f"`{what}` must be UTF-8 text, got {value!r}. Write it again.") from error
    return text


def check_intervals(intervals: np.ndarray, where: str) -> None:
    """Refuses intervals that are not finite, not sorted, empty or overlapping.

    Args:
        intervals (`np.ndarray` of shape `(num_intervals, 2)`): Starts and stops in s.
        where (`str`): What they belong to, for errors.

    Raises:
        RecordingError: If they break this.
    """
    if intervals.ndim != 2 or intervals.shape[1:] != (2,) or len(intervals) == 0:
        raise RecordingError(
            f"`obs_intervals` must have shape (intervals, 2), got {intervals.shape} {where}."
        )
    edges = intervals.ravel()
    if (
        not np.isfinite(edges).all()
        or (np.diff(edges) < 0).any()
        or (intervals[:, 1] <= intervals[:, 0]).any()
    ):
        raise RecordingError(
            f"`obs_intervals` must be finite, sorted, not overlap and not be empty, got {len(intervals)} "
            f"intervals that break this {where}. Merge or sort them."
        )


def check_objects(file: Any) -> None:
    """Refuses a file with objects that cannot be opened, or with text of a type that crashes HDF5.

    pynwb takes an object that cannot be opened for a broken link and goes on without it. An attribute whose
    type was damaged from text to a list of bytes, which NWB has nowhere, ends the process when it is read.

    Args:
        file (`h5py.File`): An NWB file.

    Raises:
        RecordingError: If there is one.
    """
    import h5py

    groups, seen = [file], set()
    while groups:
        item = groups.pop()
        for attribute in item.attrs:
            _check_type(h5py.h5a.open(item.id, attribute.encode()).get_type(), f"{item.name}@{attribute}")
        if isinstance(item, h5py.Dataset):
            _check_type(item.id.get_type(), str(item.name))
            continue
        for name in item:
            if not isinstance(item.get(name, getlink=True), h5py.HardLink):
                continue
            child = item.get(name)
            if child is None:
                raise RecordingError(
                    f"`{item.name}/{name}` must be an object that can be opened, got one that cannot. The "
                    "file is damaged: fetch it again."
                )
            if child.id not in seen:  # a damaged link can lead back to a group that leads to it
                seen.add(child.id)
                groups.append(child)


def _check_type(kind: Any, what: str) -> None:
    """Refuses lists of bytes, for which libhdf5 takes damaged text."""
    import h5py

    if kind.get_class() == h5py.h5t.VLEN and kind.get_super().get_size() == 1:
        raise RecordingError(
            f"`{what}` must be text or numbers, got a list of bytes. The file is damaged: fetch it again."
        )


def check_columns(file: Any) -> None:
    """Refuses tables without ids, or with columns that they do not list: pynwb would pass over both.

    Args:
        file (`h5py.File`): An NWB file.

    Raises:
        RecordingError: If there is one.
    """
    for name, path in TABLES.items():
        if path not in file:
            continue
        table = file[path]
        if "id" not in table:  # pynwb would number the rows anew
            raise RecordingError(
                f"The table `{name}` must have a column `id`, got none. The file is damaged: fetch it again."
            )
        listed = {decode_text(column, f"colnames of {name}") for column in table.attrs.get("colnames", ())}
        listed |= {f"{column}_index" for column in listed} | {f"{column}_index_index" for column in listed}
        unlisted = sorted(
            column
            for column, dataset in table.items()
            if column != "id" and hasattr(dataset, "shape") and column not in listed
        )
        if unlisted:
            raise RecordingError(
                f"`colnames` of the table `{name}` must list its columns, got none of {unlisted} there. The "
                "file is damaged, or was not written by an NWB library: write it again."
            )


def check_tables(file: Any, nwbfile: Any) -> None:
    """Refuses a file with a table that pynwb passed over, because it is not of the type that belongs there.

    Args:
        file (`h5py.File`): An NWB file.
        nwbfile (`pynwb.NWBFile`): What pynwb made of it.

    Raises:
        RecordingError: If there is one.
    """
    for name, path in TABLES.items():
        if path in file and getattr(nwbfile, name) is None:
            raise RecordingError(
                f"`{path}` must be a table that NWB knows, got "
                f"'{file[path].attrs.get('neurodata_type')}'. The file is damaged: fetch it again."
            )


def read_ragged(table: Any, name: str) -> list[np.ndarray]:
    """Reads a ragged column of numbers; its index column holds unsigned end offsets.

    Args:
        table (`hdmf.common.DynamicTable`): The table.
        name (`str`): The column.

    Returns:
        `list[np.ndarray]`: One array per row.

    Raises:
        RecordingError: If the column has not one index, or a damaged one.
    """
    column = table[name]
    what = f"{table.name}.{name}"
    if not hasattr(column, "target") or hasattr(column.target, "target"):
        raise RecordingError(
            f"`{what}` must have one index column, as any number of values may belong to a row, got "
            f"{'two' if hasattr(column, 'target') else 'none'}. Write it as a ragged column."
        )
    stops = read_array(column.data, f"{what}_index")
    values = read_array(column.target.data, what)
    _check_index(stops, len(values), len(table.id), what)
    return np.split(values, stops.astype(np.int64))[: len(stops)]


def _check_index(stops: np.ndarray, num_values: int, num_rows: int, what: str) -> None:
    """Refuses an index whose rows do not take every value once, in order."""
    good = stops.ndim == 1 and stops.dtype.kind in "iu" and len(stops) == num_rows
    good = good and bool((stops <= num_values).all() and (stops >= 0).all())
    if not good or (np.diff(stops.astype(np.int64)) < 0).any() or (num_rows and stops[-1] != num_values):
        raise RecordingError(
            f"`{what}_index` must hold one whole number per row, from 0 to the {num_values} values, with no "
            f"step back and none left over, got {stops.dtype} of shape {stops.shape} for {num_rows} rows, "
            f"{_extent(stops)}. The file is damaged: fetch it again."
        )


def _extent(values: np.ndarray) -> str:
    return f"from {values.min()} to {values.max()}, the last {values.ravel()[-1]}" if values.size else "empty"


def read_spike_times(units: Any) -> list[np.ndarray]:
    """Reads the spike times of every unit.

    Args:
        units (`pynwb.misc.Units`): The table.

    Returns:
        `list[np.ndarray]`: per unit its times in s, as the file has them.

    Raises:
        RecordingError: If the column or its index is damaged.
    """
    return read_ragged(units, "spike_times")


def read_unit_ids(units: Any) -> list[str]:
    """Names every unit: by its `unit_name` where those are unique, else by its id.

    Args:
        units (`pynwb.misc.Units`): The table.

    Returns:
        `list[str]`: one name per unit.

    Raises:
        RecordingError: If a name is not UTF-8.
    """
    if "unit_name" in units.colnames and not hasattr(units["unit_name"], "target"):
        names = [decode_text(name, "unit_name") for name in units["unit_name"].data[:]]
        if len(set(names)) == len(names) == len(units.id):
            return names
    return [str(unit_id) for unit_id in units.id[:]]


def read_sites(nwbfile: Any) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Finds the sites: electrode groups that have units.

    Args:
        nwbfile (`pynwb.NWBFile`): The file.

    Returns:
        `tuple`: site of each unit, names of the sites, and their positions in mm, NaN where unknown.

    Raises:
        RecordingError: If units name electrodes that are not there.
    """
    units, electrodes = nwbfile.units, nwbfile.electrodes
    group_of_unit: list[Any] = [None] * len(units)
    # Read once: each is a reference that HDF5 looks up.
    group_of_electrode: list[Any] = []
    if electrodes is not None:
        named = "group" in electrodes.colnames
        group_of_electrode = list(electrodes["group"].data[:]) if named else [None] * len(electrodes)
    if "electrodes" in units.colnames and electrodes is not None:
        for unit, electrode in enumerate(_first_electrodes(units, len(group_of_electrode))):
            group_of_unit[unit] = None if electrode is None else group_of_electrode[electrode]
    elif "electrode_group" in units.colnames:
        group_of_unit = list(units["electrode_group"].data[:])
    names = [group.name if group is not None else "unknown" for group in group_of_unit]
    group_names = list(dict.fromkeys(names))
    groups = {group.name: group for group in group_of_unit if group is not None}
    locations = [
        decode_text(groups[name].location or "", "location") if name in groups else name
        for name in group_names
    ]
    usable = len(set(locations)) == len(locations) and not {"", "unknown"} & {
        location for location, name in zip(locations, group_names, strict=True) if name in groups
    }
    positions = np.full((len(group_names), 3), np.nan)
    if electrodes is not None:
        coordinates = np.full((len(electrodes), 3), np.nan)
        for axis, name in enumerate("xyz"):
            if name in electrodes.colnames:
                coordinates[:, axis] = read_array(electrodes[name].data, f"electrodes.{name}")
        known = np.isfinite(coordinates).all(axis=1) & bool((np.nan_to_num(coordinates) != 0).any())
        electrode_names = np.array([getattr(group, "name", None) for group in group_of_electrode], object)
        for index, name in enumerate(group_names):
            chosen = known & (electrode_names == name)
            if chosen.any():
                positions[index] = coordinates[chosen].mean(axis=0) / MICROMETRES_PER_MILLIMETRE
    unit_sites = np.array([group_names.index(name) for name in names], dtype=np.int64)
    return unit_sites, locations if usable else group_names, positions


def _first_electrodes(units: Any, num_electrodes: int) -> list[int | None]:
    """The row of each unit's first electrode, None where it has none."""
    column = units["electrodes"]
    rows: Sequence[np.ndarray] = (
        read_ragged(units, "electrodes")
        if hasattr(column, "target")
        else [np.atleast_1d(row) for row in read_array(column.data, "units.electrodes")]
    )
    every = np.concatenate([*rows, np.empty(0, np.int64)])
    if len(rows) != len(units) or (every < 0).any() or (every >= num_electrodes).any() or (every % 1).any():
        raise RecordingError(
            f"`electrodes` of units must be rows of the {num_electrodes} electrodes, got {len(rows)} entries "
            f"for {len(units)} units, {_extent(every)}. The file is damaged: fetch it again."
        )
    return [int(row[0]) if len(row) else None for row in rows]


def read_observed(
    nwbfile: Any, spike_times: Sequence[np.ndarray], session_id: str, any_unit: bool = False
) -> np.ndarray | None:
    """Finds when all units were observed, less invalid times.

    Args:
        nwbfile (`pynwb.NWBFile`): The file.
        spike_times (`Sequence[np.ndarray]`): Spike times of its units in s.
        session_id (`str`): Name of the session, for errors.
        any_unit (`bool`, *optional*, defaults to `False`): Find when any unit was observed instead.

    Returns:
        `np.ndarray` of shape `(num_intervals, 2)`, or None where the file does not say.

    Raises:
        RecordingError: If intervals are damaged, or leave nothing.
    """
    units, where = nwbfile.units, f"in session '{session_id}'"
    observed: np.ndarray | None = None
    if "obs_intervals" in units.colnames:
        per_unit = read_ragged(units, "obs_intervals")
        without = [unit for unit, rows in enumerate(per_unit) if len(rows) == 0]
        if silent := [
            unit for unit in without if len(spike_times[unit]) == 0 and len(without) < len(per_unit)
        ]:
            logger.warning(
                "Session '%s': units in rows %s of the table have neither spikes nor `obs_intervals`, others "
                "have: taken as silent, not as unobserved.",
                session_id,
                silent[:10],
            )
        # Most files repeat one list of intervals for every unit.
        different = {rows.tobytes(): (unit, rows) for unit, rows in enumerate(per_unit) if len(rows)}
        for unit, rows in different.values():
            check_intervals(rows, f"for the unit in row {unit} {where}")
            rows = rows.astype(np.float64)
            combine = merge_intervals if any_unit else intersect_intervals
            observed = rows if observed is None else combine(observed, rows)
        if observed is not None and len(observed) == 0:
            raise RecordingError(
                f"`obs_intervals` must leave a time when all units are observed, got none {where}. Leave out "
                "the units that were not recorded with the rest."
            )
    if nwbfile.invalid_times is not None and len(nwbfile.invalid_times):
        if observed is None:
            raise RecordingError(
                f"A file with `invalid_times` must also have `obs_intervals`, got none {where}. Write "
                "`obs_intervals` for its units."
            )
        table = nwbfile.invalid_times
        invalid = np.stack(
            [
                read_array(table[name].data, f"invalid_times.{name}").astype(np.float64)
                for name in ("start_time", "stop_time")
            ],
            axis=1,
        )
        if np.isnan(invalid).any() or (invalid[:, 1] < invalid[:, 0]).any():
            raise RecordingError(
                f"`invalid_times` must each stop after their start, got some that do not, or NaN, {where}."
            )
        observed = intersect_intervals(observed, _complement(invalid))
        if len(observed) == 0:
            raise RecordingError(f"`invalid_times` must leave some time, got none {where}.")
    return observed


def _complement(intervals: np.ndarray) -> np.ndarray:
    """Times outside of intervals in any order, which may overlap, as sorted intervals."""
    intervals = intervals[np.argsort(intervals[:, 0])]
    inner = np.stack([intervals[:, 0], np.maximum.accumulate(intervals[:, 1])], axis=1).ravel()
    outside = np.concatenate([[-np.inf], inner, [np.inf]]).reshape(-1, 2)
    return outside[outside[:, 1] > outside[:, 0]]


def merge_intervals(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Gives the times that lie in either of two sorted lists of intervals, touching ones as one.

    Args:
        first (`np.ndarray` of shape `(num_intervals, 2)`): Intervals in s.
        second (`np.ndarray` of shape `(num_intervals, 2)`): Other ones.

    Returns:
        `np.ndarray` of shape `(num_intervals, 2)`: Sorted, without overlap.
    """
    both = np.concatenate([first, second])
    both = both[np.argsort(both[:, 0], kind="stable")]
    last = np.maximum.accumulate(both[:, 1])
    begins = np.concatenate([[True], both[1:, 0] > last[:-1]])
    starts = np.flatnonzero(begins)
    return np.stack([both[starts, 0], last[np.append(starts[1:], len(both)) - 1]], axis=1)


def intersect_intervals(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Gives the times that lie in both of two sorted lists of intervals without overlap.

    Args:
        first (`np.ndarray` of shape `(num_intervals, 2)`): Intervals in s.
        second (`np.ndarray` of shape `(num_intervals, 2)`): Other ones.

    Returns:
        `np.ndarray` of shape `(num_intervals, 2)`: Sorted, without overlap.
    """
    # Of `second`, the intervals that each one of `first` meets stand one behind another.
    low = np.searchsorted(second[:, 1], first[:, 0], side="right")
    num = np.maximum(np.searchsorted(second[:, 0], first[:, 1], side="left") - low, 0)
    mine = np.repeat(np.arange(len(first)), num)
    other = np.repeat(low - np.cumsum(num) + num, num) + np.arange(num.sum())
    starts = np.maximum(first[mine, 0], second[other, 0])
    stops = np.minimum(first[mine, 1], second[other, 1])
    return np.stack([starts, stops], axis=1)


def read_trials(nwbfile: Any) -> pd.DataFrame | None:
    """Reads the trials.

    Args:
        nwbfile (`pynwb.NWBFile`): The file.

    Returns:
        `pd.DataFrame`: one row per trial, times as float64; None where there are none.

    Raises:
        RecordingError: If times are not numbers, or a column is damaged.
    """
    table = nwbfile.trials
    if table is None or len(table) == 0:
        return None
    for name in table.colnames:
        column, num_rows = table[name], len(table)
        while hasattr(column, "target"):
            stops = read_array(column.data, f"trials.{column.name}")
            _check_index(stops, len(column.target.data), num_rows, f"trials.{column.target.name}")
            column, num_rows = column.target, len(column.target.data)
        if len(column.data) != num_rows:
            raise RecordingError(
                f"`trials.{name}` must have one value per trial, got {len(column.data)} for {num_rows}."
            )
    trials = table.to_dataframe(exclude={"timeseries", "timeseries_index"})
    trials = trials.drop(columns="timeseries", errors="ignore")
    for name in {"start_time", "stop_time"} & set(trials.columns):
        trials[name] = read_array(table[name].data, f"trials.{name}").astype(np.float64)
    for name in trials.columns:
        if trials[name].dtype.kind not in "iufb":
            trials[name] = [
                decode_text(value, f"trials.{name}") if isinstance(value, (str, bytes)) else value
                for value in trials[name]
            ]
    return trials
