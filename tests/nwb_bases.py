"""Base files for variants of NWB, and how they are changed by h5py.

What is changed: `nwb_mutations.py` and `nwb_behavior_mutations.py`, which register their functions here.
"""

import random
import uuid
from unittest import mock

import h5py
import numpy as np
import pynwb
from nwb_files import series, write_nwb
from pynwb.behavior import SpatialSeries

DURATION = 6.0
UNITS, TRIALS, INVALID = "units", "intervals/trials", "intervals/invalid_times"
ELECTRODES = "general/extracellular_ephys/electrodes"
TEXT = h5py.string_dtype()

READ, REFUSED, EITHER = {}, {}, {}


def mutation(group):
    """Registers a function in a group under its name."""

    def register(function):
        assert function.__name__ not in {**READ, **REFUSED, **EITHER}
        group[function.__name__] = function
        return function

    return register


def spike_trains(rng, num_units, rate=8.0):
    numbers = rng.poisson(rate * DURATION, num_units)
    return [np.sort(rng.uniform(-0.5, DURATION + 0.5, number)) for number in numbers]


def trials_of(num_trials=5):
    starts = np.arange(num_trials) + 0.25
    return {
        "start_time": starts,
        "stop_time": starts + 0.8,
        "go_cue_time": starts + 0.3,
        "target_id": np.arange(num_trials) % 2,
        "result": ["R"] * num_trials,
    }


def write_bases(folder):
    """Base files by name: all that NWB has, per-unit intervals with invalid times, nothing but spikes."""
    rng = np.random.default_rng(0)
    full = write_nwb(
        folder / "full.nwb",
        [*spike_trains(rng, 3), []],
        behavior=[
            series(duration=DURATION, rate=50.0),
            SpatialSeries(
                name="cursor_pos", data=rng.normal(size=(300, 2)), unit="cm", rate=50.0, starting_time=0.125,
                conversion=0.5, offset=-2.0, reference_frame="centre",
            ),
        ],
        bare=[series("force", DURATION, 40.0, data=rng.normal(size=240))],
        acquisition=[series("lever", DURATION, 4.0, data=np.arange(72.0).reshape(24, 3))],
        trials=trials_of(),
        obs_intervals=np.array([[0.0, 2.5], [2.75, 6.0]]),
        groups=("M1", "PMd"),
        group_of_unit=[0, 1, 1, 0],
        positions=[(0.0, 100.0 * unit, 5.0) for unit in range(4)],
        session_id="session-1",
    )  # fmt: skip
    own = [[[0.0, 6.0]], [[0.5, 2.0], [2.0, 5.5]], [[0.0, 3.0], [3.5, 6.5]]]
    intervals = write_nwb(
        folder / "intervals.nwb",
        spike_trains(rng, 3),
        behavior=[series(duration=DURATION, rate=50.0)],
        obs_intervals=own,
        unit_names=["a", "b", "c"],
        invalid_times=[(1.0, 1.2), (4.0, 4.5), (4.25, 4.75)],
    )
    bare = write_nwb(folder / "bare.nwb", spike_trains(rng, 1))
    timed = write_nwb(
        folder / "timed.nwb", spike_trains(rng, 2), behavior=[series(duration=DURATION, rate=50.0)],
        trials=trials_of(),
    )  # fmt: skip
    return {"full": full, "intervals": intervals, "bare": bare, "timed": timed}


def replace(file, path, data, **options):
    """Writes a dataset anew, with its attributes, and points its index at the new one."""
    old = file[path]
    attributes, at = dict(old.attrs), old.name
    del file[path]
    new = file.create_dataset(path, data=data, **options)
    new.attrs.update(attributes)

    index = f"{at}_index"
    if index in new.file and "target" in new.file[index].attrs:
        new.file[index].attrs["target"] = new.ref
    return new


def change(file, path, function, **options):
    """Replaces the numbers of a dataset by a function of them; False where there is none."""
    if path not in file:
        return False
    replace(file, path, function(file[path][()]), **options)
    return True


def set_one(file, path, rng, value):
    """Sets one value of a dataset, drawn at random."""
    if path not in file or not file[path].size:
        return False
    values = np.array(file[path][()], np.float64)
    values.flat[rng.integers(values.size)] = value
    replace(file, path, values)
    return True


def all_series(file):
    """Groups of behaviour."""
    found = []

    def visit(name, group):
        kind = group.attrs.get("neurodata_type", "")
        if kind in ("TimeSeries", "SpatialSeries") and name.startswith(("processing", "acquisition")):
            found.append(name)

    file.visititems(visit)
    return found


def one_series(file, rng, clock=None):
    """A series drawn at random, with `timestamps` or a `starting_time` where asked."""
    names = [name for name in all_series(file) if clock is None or f"{name}/{clock}" in file]
    return names[rng.integers(len(names))] if names else None


def add_column(file, table, name, data, listed=True):
    """Adds a plain column to a table."""
    if table not in file or name in file[table]:
        return None
    column = file[table].create_dataset(name, data=data)
    example = file[table]["id"]
    column.attrs.update(
        {"namespace": "hdmf-common", "neurodata_type": "VectorData", "description": name,
         "object_id": f"{len(name)}-{name}-{example.attrs['object_id']}"}
    )  # fmt: skip
    if listed:
        set_columns(file, table, [*file[table].attrs["colnames"], name])
    return column


def add_ragged(file, table, name, data, stops):
    column = add_column(file, table, name, data)
    if column is None:
        return False
    index = file[table].create_dataset(f"{name}_index", data=stops)
    index.attrs.update(
        {"namespace": "hdmf-common", "neurodata_type": "VectorIndex", "description": "index",
         "object_id": f"index-{column.attrs['object_id']}", "target": column.ref}
    )  # fmt: skip
    return True


def set_columns(file, table, names):
    del file[table].attrs["colnames"]
    file[table].attrs.create("colnames", names, dtype=TEXT)


def drop_column(file, table, name):
    if table not in file or name not in file[table]:
        return False
    for path in (name, f"{name}_index"):
        if path in file[table]:
            del file[table][path]
    set_columns(file, table, [column for column in file[table].attrs["colnames"] if column != name])
    return True


def make_string(value):
    """Text as h5py writes it; bytes stay as they are."""
    return np.array(value, dtype=h5py.string_dtype())


def write_versions(folder):
    """The base files with and without the schema that pynwb stores in them; the same bytes at every call."""
    rng = random.Random(0)

    def identifier():
        return uuid.UUID(int=rng.getrandbits(128))

    with mock.patch("hdmf.container.uuid4", identifier):
        bases = write_bases(folder)
        for name, path in list(bases.items()):
            lean = folder / f"lean-{name}.nwb"
            with pynwb.NWBHDF5IO(str(path), "r") as source, pynwb.NWBHDF5IO(str(lean), "w") as target:
                target.export(src_io=source, cache_spec=False)
            bases[f"lean-{name}"] = lean
    return bases
