"""Small NWB files for tests, written by pynwb."""

import datetime
from pathlib import Path

import numpy as np
import pynwb
from pynwb.behavior import BehavioralTimeSeries, Position, SpatialSeries

START = datetime.datetime(2020, 3, 4, 12, tzinfo=datetime.UTC)


def series(name="cursor_vel", duration=20.0, rate=100.0, **overrides):
    """A series of two columns, x = time in s and y = -x."""
    times = np.arange(round(duration * rate)) / rate
    options = {"data": np.stack([times, -times], axis=1), "unit": "cm/s", "timestamps": times} | overrides
    kind = options.pop("kind", pynwb.TimeSeries)
    if kind is SpatialSeries:
        options["reference_frame"] = "centre"
    return kind(name=name, **{key: value for key, value in options.items() if value is not None})


def write_nwb(
    path: Path,
    spike_times,
    behavior=(),
    trials=None,
    obs_intervals=None,
    groups=("M1",),
    group_of_unit=None,
    positions=None,
    unit_names=None,
    session_id=None,
    subject_id="X",
    bare=(),
    acquisition=(),
    invalid_times=(),
    modules=None,
) -> Path:
    """Writes a file; `trials` is a dict of columns, `obs_intervals` one array or a list with one per unit.

    `modules` has the contents of further processing modules by their names.
    """
    nwbfile = pynwb.NWBFile("a test", path.stem, START, session_id=session_id, file_create_date=START)
    if subject_id:
        nwbfile.subject = pynwb.file.Subject(subject_id=subject_id, species="Macaca mulatta", age="P5Y")
    device = nwbfile.create_device("array")
    made = [
        nwbfile.create_electrode_group(f"group_{i}", "a group", site, device) for i, site in enumerate(groups)
    ]
    group_of_unit = [0] * len(spike_times) if group_of_unit is None else group_of_unit
    for unit, group in enumerate(group_of_unit):
        place = {} if positions is None else dict(zip("xyz", positions[unit], strict=True))
        nwbfile.add_electrode(group=made[group], location=groups[group], **place)
    if unit_names is not None:
        nwbfile.add_unit_column("unit_name", "name")
    for unit, times in enumerate(spike_times):
        options = {} if unit_names is None else {"unit_name": unit_names[unit]}
        if obs_intervals is not None:
            own = obs_intervals[unit] if isinstance(obs_intervals, list) else obs_intervals
            options["obs_intervals"] = np.asarray(own, np.float64)
        nwbfile.add_unit(spike_times=np.asarray(times, np.float64), electrodes=[unit], **options)
    if trials is not None:
        columns = [name for name in trials if name not in ("start_time", "stop_time")]
        for name in columns:
            nwbfile.add_trial_column(name, name)
        for row in range(len(trials["start_time"])):
            nwbfile.add_trial(**{name: values[row] for name, values in trials.items()})
    for start, stop in invalid_times:
        nwbfile.add_invalid_time_interval(start_time=start, stop_time=stop)
    if behavior or bare:
        module = nwbfile.create_processing_module("behavior", "behaviour")
        for one in behavior:
            is_position = isinstance(one, SpatialSeries)
            module.add(
                Position(name=f"Position_{one.name}", spatial_series=one)
                if is_position
                else BehavioralTimeSeries(name=f"Container_{one.name}", time_series=one)
            )
        for one in bare:
            module.add(one)
    for name, contents in (modules or {}).items():
        module = nwbfile.create_processing_module(name, name)
        for one in contents:
            module.add(one)
    for one in acquisition:
        nwbfile.add_acquisition(one)
    with pynwb.NWBHDF5IO(str(path), "w") as io:
        io.write(nwbfile)
    return path


def reach_file(path: Path, num_trials=20, seed=0, **overrides) -> Path:
    """Twenty trials of one second in one interval of 20 s, three units, velocity at 100 Hz."""
    rng = np.random.default_rng(seed)
    starts = np.arange(num_trials, dtype=np.float64)
    trials = {
        "start_time": starts,
        "stop_time": starts + 0.8,
        "go_cue_time": starts + 0.3,
        "target_dir": (np.arange(num_trials) % 4) * np.pi / 2,
        "target_id": np.arange(num_trials) % 4,
        "result": np.where(np.arange(num_trials) == 5, "F", "R").tolist(),
    }
    options = {
        "spike_times": [np.sort(rng.uniform(0, num_trials, 50)) for _ in range(3)],
        "behavior": [series(duration=float(num_trials))],
        "trials": trials,
        "obs_intervals": [[0.0, num_trials]],
    } | overrides
    options["obs_intervals"] = np.asarray(options["obs_intervals"], np.float64)
    return write_nwb(path, **options)
