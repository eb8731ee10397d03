"""Writes a `Recording` of reaching as NWB 2.x, in the layout of DANDI:000688.

For simulated recordings and for recordings made from arrays. Reading is `nwb.py`.
"""

import datetime
import os
import tempfile
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from rpnt_hf.data.nwb import BehaviorSeries, Recording
from rpnt_hf.errors import RecordingError

__all__ = ["write_nwb"]

TRIAL_COLUMNS = {
    "target_on_time": "time at which the target appeared, s",
    "go_cue_time": "time of the (first) go cue, s",
    "go_cue_time_array": "time of the go cue of each target, s; NaN where it was not attempted",
    "move_onset_time": "onset of movement, s",
    "end_time": "end of the hold in the target, s",
    "target_id": "number of the target, counter-clockwise from +x",
    "target_dir": "direction of the target, radians in [0, 2 pi), counter-clockwise from +x",
    "num_attempted": "number of targets attempted",
    "result": "R rewarded, F failed",
}
TASK_DESCRIPTIONS = {"center_out": "center-out reaching", "random_target": "random target reaching"}
INTERFACES = {"cursor_pos": "Position", "cursor_vel": "Velocity", "cursor_acc": "Acceleration"}


def write_nwb(
    recording: Recording,
    path: str | Path,
    description: str = "simulated recording",
    electrode_positions: NDArray[np.float64] | None = None,
) -> Path:
    """Writes one recording to an NWB file. The file appears whole or not at all.

    Series named `cursor_pos`, `cursor_vel` and `cursor_acc` go to the interfaces `Position`, `Velocity` and
    `Acceleration`, others to `BehavioralTimeSeries`. Without `electrode_positions` every electrode of a site
    gets the position of the site, and one device stands for all sites; with them each site is a probe.

    Args:
        recording (`Recording`): What to write. It needs a `recording_date`.
        path (`str` or `Path`): The file to write; an existing file is refused.
        description (`str`, *optional*, defaults to `"simulated recording"`): Where the data come from.
        electrode_positions (`np.ndarray` of shape `(units, 3)`, *optional*): Place of the electrode of each
            unit in mm, NaN where unknown.

    Returns:
        `Path`: The file.

    Raises:
        RecordingError: If the recording has no date, or if the file exists.
    """
    import pynwb  # here, because it takes a second and only writing needs it

    path = Path(path)
    if recording.recording_date is None:
        raise RecordingError(
            "A recording must have a `recording_date` to be written as NWB, got None in session "
            f"'{recording.session_id}'. Set it to the day of the session."
        )
    if path.exists():
        raise RecordingError(f"`path` must not exist yet, got '{path}'. Remove it or choose another name.")
    task = TASK_DESCRIPTIONS.get(recording.task or "", recording.task or "unknown task")
    nwbfile = pynwb.NWBFile(
        session_description=f"{task}, {description}",
        identifier=str(uuid.uuid5(uuid.NAMESPACE_URL, f"rpnt_hf/{description}/{recording.session_id}")),
        session_start_time=datetime.datetime.combine(
            recording.recording_date, datetime.time(), tzinfo=datetime.UTC
        ),
        session_id=recording.session_id,
        experiment_description=f"{task}, {description}",
    )
    if recording.subject_id is not None:
        nwbfile.subject = pynwb.file.Subject(
            subject_id=recording.subject_id,
            description=description,
            sex="U",
            age="P0D/",
        )
    _add_units(nwbfile, recording, electrode_positions)
    _add_behavior(nwbfile, recording.behavior)
    _add_trials(nwbfile, recording.trials)

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        unfinished = Path(folder) / path.name
        with pynwb.NWBHDF5IO(str(unfinished), "w") as io:
            io.write(nwbfile)
        os.replace(unfinished, path)
    return path


def _add_units(nwbfile: Any, recording: Recording, electrode_positions: NDArray[np.float64] | None) -> None:
    """Adds one electrode group per site, one electrode per unit, and the units."""
    if electrode_positions is None:
        device = nwbfile.create_device(name="array", description="one multi-electrode array per site")
        devices = [device] * len(recording.site_ids)
        electrode_positions = recording.site_positions[recording.unit_sites]
    else:
        devices = [
            nwbfile.create_device(name=f"probe_{site_id}", description="probe")
            for site_id in recording.site_ids
        ]
    groups = [
        nwbfile.create_electrode_group(
            name=f"group_{site_id}", description=site_id, location=site_id, device=device
        )
        for site_id, device in zip(recording.site_ids, devices, strict=True)
    ]
    nwbfile.add_unit_column("unit_name", "name of the unit in the source")
    for unit, (unit_id, site, spike_times) in enumerate(
        zip(recording.unit_ids, recording.unit_sites, recording.spike_times, strict=True)
    ):
        x, y, z = electrode_positions[unit] * 1000.0  # mm -> um
        location = recording.site_ids[site]
        nwbfile.add_electrode(x=float(x), y=float(y), z=float(z), location=location, group=groups[site])
        nwbfile.add_unit(
            spike_times=spike_times,
            obs_intervals=recording.obs_intervals,
            electrodes=[unit],
            electrode_group=groups[site],
            unit_name=unit_id,
        )


def _add_behavior(nwbfile: Any, behavior: dict[str, BehaviorSeries]) -> None:
    """Adds the series to processing["behavior"], each in the interface that its name calls for."""
    from pynwb import TimeSeries
    from pynwb.behavior import BehavioralTimeSeries, Position, SpatialSeries

    if not behavior:
        return
    module = nwbfile.create_processing_module(name="behavior", description="behaviour")
    interfaces: dict[str, Any] = {}
    for name, series in behavior.items():
        interface = INTERFACES.get(name, "BehavioralTimeSeries")
        kind = Position if interface == "Position" else BehavioralTimeSeries
        if interface not in interfaces:
            interfaces[interface] = kind(name=interface)
            module.add(interfaces[interface])
        common = {"name": name, "data": series.values, "timestamps": series.timestamps, "unit": series.unit}
        if interface == "Position":
            interfaces[interface].add_spatial_series(
                SpatialSeries(reference_frame="centre of the workspace", **common)
            )
        else:
            interfaces[interface].add_timeseries(TimeSeries(**common))


def _add_trials(nwbfile: Any, trials: pd.DataFrame) -> None:
    """Adds the trials as a table whose columns are those of the frame."""
    from hdmf.common import VectorData
    from pynwb.epoch import TimeIntervals

    if trials.empty:
        return
    columns = [
        VectorData(
            name=name, description=TRIAL_COLUMNS.get(name, f"{name} of the trial"), data=_values(trials[name])
        )
        for name in trials.columns
    ]
    nwbfile.trials = TimeIntervals(
        name="trials",
        description="trials",
        columns=columns,
        colnames=list(trials.columns),
        id=np.arange(len(trials)),
    )


def _values(column: pd.Series) -> Any:
    """Gives the values of a column as HDF5 takes them: an array of numbers, or a list of strings."""
    if column.dtype != object and pd.api.types.is_numeric_dtype(column.dtype):
        return column.to_numpy()
    if isinstance(column.iloc[0], np.ndarray | list | tuple):
        return np.stack([np.asarray(value) for value in column])
    return [str(value) for value in column]
