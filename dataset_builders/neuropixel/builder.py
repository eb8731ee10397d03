"""Build a dataset of many recording sites from a folder of NWB files, such as Neuropixels recordings.

Sites recorded at once are the electrode groups, brain areas or probes of a file (--sites). Where there was
one probe a day, --pair-days lays trials of different days side by side: paired by condition inside each
split, aligned on an event, each used once, the draw seeded and written into the card. A site that was not
recorded in a bin is absent there. Coordinates come from the electrodes, else from their groups, or from a
table (--sites-csv); what is not known stays unknown.
"""

import argparse
import csv
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rpnt_hf.data.builder import (
    BuilderConfig,
    CorpusRecording,
    add_build_arguments,
    build_dataset,
    config_from,
    find_nwb_files,
)
from rpnt_hf.data.cutting import PreparedRecording
from rpnt_hf.data.nwb import Recording, read_nwb
from rpnt_hf.data.nwb_tables import intersect_intervals, read_ragged
from rpnt_hf.data.pairing import EVENTS, PairingConfig, pair_days
from rpnt_hf.data.splits import SplitFile
from rpnt_hf.errors import ConfigurationError, RecordingError, closest_names

SITES = ("groups", "areas", "probes")
MICROMETRES_PER_MILLIMETRE = 1000.0  # electrodes and groups in NWB; sites and `--sites-csv` are in mm
MIN_UNITS = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `rpnt build neuropixel`.

    Args:
        parser (`argparse.ArgumentParser`): Parser of the command.
    """
    add_build_arguments(parser)
    add = parser.add_argument
    add("--nwb-dir", type=Path, required=True, metavar="DIR", help="folder of NWB files, or one file")
    add(
        "--sites",
        choices=SITES,
        default="groups",
        help="what a site is: electrode groups (default), areas, probes",
    )
    table = "CSV with the columns site_id, x, y, z (mm) and, where sites of one name differ, session_id"
    add("--sites-csv", type=Path, metavar="F", help=table)
    add(
        "--min-units",
        type=int,
        default=MIN_UNITS,
        metavar="N",
        help="leave out sites with fewer units (default 1)",
    )
    add(
        "--behavior",
        nargs="+",
        default=(),
        metavar="SERIES",
        help="series to decode (default: cursor_vel, else hand_vel)",
    )
    add("--derive-velocity", action="store_true", help="derive X_vel from X_pos where a file lacks it")
    add("--allow-no-behavior", action="store_true", help="take files without the series, for spikes alone")
    add(
        "--label-column",
        metavar="NAME",
        help="column of the trials whose values, in order, are classes from 0",
    )
    pairing = parser.add_argument_group("one site a day")
    add = pairing.add_argument
    add("--pair-days", action="store_true", help="pair the trials of the files of each subject and task")
    add("--align", choices=list(EVENTS), default="go_cue", help="event to align on (default go_cue)")
    add("--before", type=float, default=0.3, metavar="S", help="seconds before the event (default 0.3)")
    add("--after", type=float, default=0.7, metavar="S", help="seconds from the event on (default 0.7)")
    add("--pairing-seed", type=int, default=0, metavar="N", help="seed of the pairing (default 0)")


def build(arguments: argparse.Namespace) -> Path:
    """Builds the dataset.

    Args:
        arguments (`argparse.Namespace`): Parsed options.

    Returns:
        `Path`: the built folder.
    """
    config = config_from(arguments)
    files = find_nwb_files(arguments.nwb_dir)
    places = {} if arguments.sites_csv is None else read_places(arguments.sites_csv)
    read = functools.partial(
        read_probes,
        repair_spikes=config.repair_spikes,
        sites=arguments.sites,
        places=places,
        min_units=arguments.min_units,
        label_column=arguments.label_column,
    )
    card = Path(__file__).with_name("README.md")
    if not arguments.pair_days:
        return build_dataset(
            files, arguments.out, config, "neuropixel", card, arguments.nwb_dir,
            read=read, num_proc=arguments.num_proc, add=arguments.add,
        )  # fmt: skip
    if arguments.add:
        raise ConfigurationError(
            "`--add` must not be used with `--pair-days`: a new day changes all pairs. Build all days "
            "together."
        )
    pairing = PairingConfig(
        config.bin_size, arguments.align, arguments.before, arguments.after, arguments.pairing_seed
    )
    entries = [read(path) for path in files]
    paired = list(paired_days(entries, config, pairing))
    # The split file was for the days; pairs carry theirs.
    whole = dataclasses.replace(config, split_file=None)
    return build_dataset(paired, arguments.out, whole, "neuropixel", card, arguments.nwb_dir, read=read)


def paired_days(
    entries: Sequence[CorpusRecording], config: BuilderConfig, pairing: PairingConfig
) -> Iterator[CorpusRecording]:
    """Divides the trials of every day as a build of its own would, and pairs the days of each subject.

    Args:
        entries (`Sequence[CorpusRecording]`): The days.
        config (`BuilderConfig`): Options of the build; its split file is of days.
        pairing (`PairingConfig`): How they are paired.

    Yields:
        `CorpusRecording`: One per subject and task.

    Raises:
        RecordingError: A subject has one day only, or nothing can be paired.
        SplitError: Trials cannot be divided.
    """
    split_file = SplitFile.read(config.split_file) if config.split_file else None
    groups: dict[tuple[str | None, str | None], list[CorpusRecording]] = {}
    for entry in entries:
        groups.setdefault((entry.recording.subject_id, entry.recording.task), []).append(entry)
    for days in groups.values():
        divided = [
            (entry.recording, PreparedRecording.of(entry, config, split_file, 0, 0).splits) for entry in days
        ]
        paired = pair_days(divided, pairing)
        notes = [note for entry in days for note in entry.notes]
        yield dataclasses.replace(paired, notes=[*paired.notes, *notes])


def read_probes(
    path: Path,
    repair_spikes: bool,
    sites: str,
    places: Mapping[str, Sequence[float]],
    min_units: int,
    label_column: str | None,
) -> CorpusRecording:
    """Reads a file, and says which sites its units belong to and where these are.

    Args:
        path (`Path`): NWB file.
        repair_spikes (`bool`): Whether spikes are sorted and freed of duplicates.
        sites (`str`): One of `SITES`.
        places (`Mapping[str, Sequence[float]]`): Positions in mm, as `read_places` gives them.
        min_units (`int`): Fewest units of a site.
        label_column (`str` or `None`): Column of the trials with their classes.

    Returns:
        `CorpusRecording`: the recording, in the part "default" of the dataset.

    Raises:
        RecordingError: The file cannot be read, or names no site of that kind, or too few units remain.
    """
    recording = read_nwb(path, repair_spikes=repair_spikes, any_unit=True)
    names, positions, intervals = read_site_names(path, sites)
    if sites == "groups":  # by their location where no two share one, as `read_nwb` has it
        shown = {
            name: recording.site_ids[site]
            for name, site in zip(names, recording.unit_sites.tolist(), strict=True)
            if name is not None
        }
        names = [None if name is None else shown[name] for name in names]
        positions = {shown[name]: place for name, place in positions.items()}
        intervals = {shown[name]: found for name, found in intervals.items()}
    notes: list[str] = []
    known = [name for name in dict.fromkeys(names) if name is not None]
    sizes = {name: names.count(name) for name in known}
    kept = [name for name in known if sizes[name] >= min_units]
    if not kept:
        raise RecordingError(
            f"A recording must have a site with at least {min_units} units (`--min-units`), got "
            f"{sizes or 'none'} in '{path.name}'. Choose other `--sites`, or a smaller number."
        )
    left_out = {name: sizes[name] for name in known if name not in kept}
    if left_out:
        notes.append(f"sites with fewer than {min_units} units are left out (units): {left_out}")
    if nameless := names.count(None):
        notes.append(f"{nameless} units without a site ({sites}) are left out")
    units = [unit for unit, name in enumerate(names) if name in kept]
    site_positions = np.array([_place(recording.session_id, name, positions, places) for name in kept])
    unknown = [name for name, place in zip(kept, site_positions, strict=True) if np.isnan(place).any()]
    if unknown:
        notes.append(f"coordinates are unknown of {len(unknown)} of {len(kept)} sites: {', '.join(unknown)}")
    trials = recording.trials
    if label_column is not None:
        trials = _labelled(recording, label_column)
        classes = sorted(recording.trials[label_column].dropna().unique().tolist())
        notes.append(f"classes: {label_column} {classes} as {list(range(len(classes)))}")
    recording = dataclasses.replace(
        recording,
        unit_ids=[recording.unit_ids[unit] for unit in units],
        unit_sites=np.array([kept.index(str(names[unit])) for unit in units]),
        site_ids=kept,
        site_positions=site_positions,
        spike_times=[recording.spike_times[unit] for unit in units],
        trials=trials,
    )
    site_intervals = None
    if any(len(found) for found in intervals.values()):
        whole = recording.obs_intervals
        found = [intersect_intervals(whole, intervals.get(name, whole)) for name in kept]
        if any(not np.array_equal(one, whole) for one in found):
            site_intervals = found
            notes.append("sites were not recorded all the time: `observed` has one value per bin and site")
    return CorpusRecording(recording, notes=notes, site_intervals=site_intervals)


def _labelled(recording: Recording, label_column: str) -> Any:
    if label_column not in recording.trials:
        columns = recording.trials.columns.tolist()
        raise RecordingError(
            f"`--label-column` must be a column of the trials, got '{label_column}' in session "
            f"'{recording.session_id}', which has {columns}.{closest_names(label_column, columns)}"
        )
    values = recording.trials[label_column]
    classes = {value: float(number) for number, value in enumerate(sorted(values.dropna().unique().tolist()))}
    return recording.trials.assign(label=values.map(classes))


def _place(
    session_id: str,
    name: str,
    positions: Mapping[str, np.ndarray],
    places: Mapping[str, Sequence[float]],
) -> np.ndarray:
    """Position of a site: that of the table, for its session or for all, else that of the file."""
    for key in (f"{session_id}/{name}", name):
        if key in places:
            return np.asarray(places[key], dtype=np.float64)
    return positions[name]


def read_site_names(
    path: Path, sites: str
) -> tuple[list[str | None], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Reads which site each unit belongs to, and where and when it was recorded.

    A unit belongs to the group, area or probe of its first electrode. A site lies at the mean of the
    electrodes of its units, where all three of their coordinates are known (and not all of the file are 0),
    else at the mean of the positions of their groups, else nowhere.

    Args:
        path (`Path`): NWB file.
        sites (`str`): "groups", "areas" (location of the electrode, else of its group) or "probes"
            (device of the group).

    Returns:
        `tuple`: name of the site of each unit, None where the file does not say; position in mm of each site,
        NaN where unknown; and the intervals in s in which all of its units were observed, of the sites of
        which the file says so.
    """
    import pynwb  # takes a second

    with pynwb.NWBHDF5IO(str(path), mode="r", load_namespaces=True) as io:
        nwbfile = io.read()
        units, electrodes = nwbfile.units, nwbfile.electrodes
        table = None if electrodes is None else electrodes.to_dataframe()
        of_unit: list[int | None] = [None] * len(units)
        if "electrodes" in units.colnames and table is not None:
            column = units["electrodes"]
            ends = np.asarray(column.data[:], dtype=np.int64)
            indices = np.asarray(column.target.data[:], dtype=np.int64)
            starts = np.concatenate([[0], ends[:-1]])
            of_unit = [
                int(indices[start]) if end > start else None for start, end in zip(starts, ends, strict=True)
            ]
        own_groups = list(units["electrode_group"].data[:]) if "electrode_group" in units.colnames else None
        names: list[str | None] = []
        points: dict[str, list[np.ndarray]] = {}
        fallbacks: dict[str, list[np.ndarray]] = {}
        coordinates = _coordinates(table)
        for unit, electrode in enumerate(of_unit):
            group = own_groups[unit] if own_groups is not None else None
            if electrode is not None and table is not None and "group" in table:
                group = table["group"].iloc[electrode]
            location = None
            if electrode is not None and table is not None and "location" in table:
                location = table["location"].iloc[electrode]
            name = _site_name(sites, group, location)
            names.append(name)
            if name is None:
                continue
            points.setdefault(name, [])
            fallbacks.setdefault(name, [])
            if electrode is not None and np.isfinite(coordinates[electrode]).all():
                points[name].append(coordinates[electrode])
            if group is not None and group.position is not None:
                place = np.array([float(group.position[axis]) for axis in ("x", "y", "z")])
                if np.isfinite(place).all():
                    fallbacks[name].append(place)
        intervals = _site_intervals(units, names)
    unknown = np.full(3, np.nan)
    positions = {
        name: np.mean(points[name] or fallbacks[name], axis=0) / MICROMETRES_PER_MILLIMETRE
        if points[name] or fallbacks[name]
        else unknown
        for name in points
    }
    return names, positions, intervals


def _site_intervals(units: Any, names: Sequence[str | None]) -> dict[str, np.ndarray]:
    """When all units of a site were observed; units without intervals restrict nothing."""
    if "obs_intervals" not in units.colnames:
        return {}
    lists: dict[str, dict[bytes, np.ndarray]] = {}
    for name, rows in zip(names, read_ragged(units, "obs_intervals"), strict=True):
        if name is not None and len(rows):
            lists.setdefault(name, {})[rows.tobytes()] = rows.astype(np.float64)
    return {name: functools.reduce(intersect_intervals, found.values()) for name, found in lists.items()}


def _coordinates(table: Any) -> np.ndarray:
    """Coordinates of electrodes in micrometres, (electrodes, 3); NaN where unknown or all 0."""
    if table is None or not {"x", "y", "z"} <= set(table.columns):
        return np.full((0 if table is None else len(table), 3), np.nan)
    coordinates = table[["x", "y", "z"]].to_numpy(dtype=np.float64)
    return coordinates if (np.nan_to_num(coordinates) != 0).any() else np.full_like(coordinates, np.nan)


def _site_name(sites: str, group: Any, location: Any) -> str | None:
    unknown = ("", "unknown", "none", "nan")
    if sites == "probes":
        name = None if group is None or group.device is None else group.device.name
    elif sites == "groups":
        name = None if group is None else group.name
    else:
        candidates = [location, None if group is None else group.location]
        name = next(
            (str(one) for one in candidates if one is not None and str(one).lower() not in unknown), None
        )
    return None if name is None or str(name).lower() in unknown else str(name)


def read_places(path: Path) -> dict[str, list[float]]:
    """Reads the positions of sites from a table.

    Args:
        path (`Path`): CSV with the columns `site_id`, `x`, `y`, `z` in mm, and perhaps `session_id`; an empty
            cell is unknown.

    Returns:
        `dict[str, list[float]]`: x, y, z by site, or by "session/site" where the row names a session.

    Raises:
        RecordingError: There is no such table, a column is missing, a number cannot be read, or a site is
        named twice.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise RecordingError(f"`--sites-csv` must be a CSV file, got '{path}' ({error}).") from error
    places: dict[str, list[float]] = {}
    for number, row in enumerate(rows, start=2):
        missing = [name for name in ("site_id", "x", "y", "z") if row.get(name) is None]
        if missing:
            raise RecordingError(
                f"`--sites-csv` must have the columns site_id, x, y and z, got none of {missing} in line "
                f"{number} of '{path.name}'."
            )
        key = f"{row['session_id']}/{row['site_id']}" if row.get("session_id") else row["site_id"]
        try:
            place = [float(row[axis]) if row[axis].strip() else float("nan") for axis in "xyz"]
        except ValueError as error:
            raise RecordingError(
                f"Coordinates in `--sites-csv` must be numbers in mm, or empty, got {error} in line "
                f"{number} of '{path.name}'."
            ) from error
        if key in places:
            raise RecordingError(
                f"`--sites-csv` must name a site once, got '{key}' again in line {number} of '{path.name}'."
            )
        places[key] = place
    if not places:
        raise RecordingError(f"`--sites-csv` must hold at least one site, got none in '{path.name}'.")
    return places
