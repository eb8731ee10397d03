"""What may be different, odd or wrong in an NWB file, each as a change of a base file by h5py.

A mutation is a function of an open file and a generator; its group says what must follow: files changed by
`READ` must be read, by `REFUSED` refused, by `EITHER` one or the other. It leaves a file that lacks what it
would change as it is and returns False.
"""

import h5py
import numpy as np
import nwb_behavior_mutations  # noqa: F401 - registers its own
from nwb_bases import (
    EITHER,
    ELECTRODES,
    INVALID,
    READ,
    REFUSED,
    TRIALS,
    UNITS,
    add_column,
    add_ragged,
    all_series,
    change,
    drop_column,
    make_string,
    mutation,
    set_columns,
    set_one,
)  # fmt: skip
from nwb_behavior_mutations import somewhere

# --- Spikes ---------------------------------------------------------------------------------------------


@mutation(EITHER)
def spikes_as_float32(file, rng):
    return change(file, "units/spike_times", lambda times: times.astype(np.float32))


@mutation(READ)
def spikes_big_endian(file, rng):
    return change(file, "units/spike_times", lambda times: times.astype(">f8"))


@mutation(READ)
def spikes_compressed(file, rng):
    options = [{"compression": "gzip"}, {"compression": "lzf", "shuffle": True}, {"fletcher32": True}]
    chosen = options[rng.integers(3)]
    return change(file, "units/spike_times", np.copy, chunks=(int(rng.integers(1, 40)),), **chosen)


@mutation(READ)
def spikes_at_whole_seconds(file, rng):
    stops = file["units/spike_times_index"][()].astype(np.int64)
    sizes = np.diff(stops, prepend=0)
    if not 0 <= sizes.min() <= sizes.max() < 10**6:  # an index that was damaged before
        return False
    times = [np.arange(size) - 2 for size in sizes]
    kind = ["<i4", ">i8", "<i2"][rng.integers(3)]
    return change(file, "units/spike_times", lambda _: np.concatenate(times).astype(kind))


@mutation(READ)
def spikes_a_billion_seconds_later(file, rng):
    """As on the clock of Unix; everything moves, so that nothing but precision differs."""
    shift = float(rng.choice([1.7e9, -5000.0, 86400.5]))
    paths = ["units/spike_times", "units/obs_intervals"]
    for table in (TRIALS, INVALID):
        paths += [f"{table}/{name}" for name in ("start_time", "stop_time", "go_cue_time")]
    paths += [f"{name}/{clock}" for name in all_series(file) for clock in ("timestamps", "starting_time")]
    for path in paths:
        change(file, path, lambda times: times + shift)
    return True


@mutation(READ)
def index_in_few_bytes(file, rng):
    if file["units/spike_times_index"][-1] > 255:
        return False
    return change(file, "units/spike_times_index", lambda stops: stops.astype(np.uint8))


@mutation(READ)
def index_as_signed_numbers(file, rng):
    return change(file, "units/spike_times_index", lambda stops: stops.astype(np.int64))


@mutation(EITHER)
def all_units_silent(file, rng):
    change(file, "units/spike_times_index", np.zeros_like)
    return change(file, "units/spike_times", lambda times: times[:0], maxshape=(None,))


@mutation(REFUSED)
def spike_that_is_no_number(file, rng):
    return set_one(file, "units/spike_times", rng, rng.choice([np.nan, np.inf, -np.inf]))


@mutation(EITHER)
def spike_far_away(file, rng):
    """The last spike of a unit, so that order is kept."""
    stops = file["units/spike_times_index"][()]
    times = file["units/spike_times"][()]
    if not len(times):
        return False
    times[int(stops[0]) - 1] = rng.choice([1e300, 1e12, 1e8, 1e6])
    return change(file, "units/spike_times", lambda _: times)


@mutation(REFUSED)
def spikes_out_of_order(file, rng):
    def swap(times):
        k = rng.integers(int(file["units/spike_times_index"][0]) - 1)
        times[[k, k + 1]] = times[[k + 1, k]]
        return times

    return change(file, "units/spike_times", swap)


@mutation(REFUSED)
def spikes_twice(file, rng):
    def repeat(times):
        k = rng.integers(int(file["units/spike_times_index"][0]) - 1)
        times[k + 1] = times[k]
        return times

    return change(file, "units/spike_times", repeat)


@mutation(READ)
def spikes_in_one_bin(file, rng):
    """More than a byte holds; read, and refused only by bins."""
    stops = file["units/spike_times_index"][()].astype(np.int64)
    many = np.linspace(1.01, 1.02, int(rng.choice([254, 300])))
    change(file, "units/spike_times_index", lambda _: (stops - stops[0] + len(many)).astype(np.uint32))
    return change(file, "units/spike_times", lambda times: np.concatenate([many, times[stops[0] :]]))


def bad_index(name, function):
    def change_index(file, rng):
        return change(file, "units/spike_times_index", lambda stops: function(stops, rng))

    change_index.__name__ = f"index_{name}"
    mutation(REFUSED)(change_index)


bad_index("beyond_the_end", lambda stops, rng: stops + np.uint32(rng.choice([1, 2**31])))
bad_index("that_ends_early", lambda stops, rng: stops - np.uint32(1))
bad_index("with_a_step_back", lambda stops, rng: np.append(stops[:-1], [stops[-1]])[::-1] + (len(stops) < 2))
bad_index("too_short", lambda stops, rng: stops[1:])
bad_index("too_long", lambda stops, rng: np.append(stops, stops[-1:]))
bad_index("of_fractions", lambda stops, rng: stops + 0.5)
bad_index("below_zero", lambda stops, rng: stops.astype(np.int64) - 10**6)
bad_index("of_giants", lambda stops, rng: stops.astype(np.uint64) + np.uint64(2**63))
bad_index("in_two_dimensions", lambda stops, rng: stops[:, None])


@mutation(REFUSED)
def spikes_without_index(file, rng):
    del file["units/spike_times_index"]


@mutation(REFUSED)
def no_spike_times(file, rng):
    return drop_column(file, UNITS, "spike_times")


@mutation(REFUSED)
def no_units(file, rng):
    del file["units"]


@mutation(REFUSED)
def spikes_in_a_square(file, rng):
    return change(file, "units/spike_times", lambda times: np.stack([times, times], axis=1))


@mutation(REFUSED)
def spikes_of_another_type(file, rng):
    kinds = [lambda t: t.astype("S8"), lambda t: t.astype(np.complex128), lambda t: t[0], lambda t: t > 0]
    return change(file, "units/spike_times", kinds[rng.integers(4)])


@mutation(REFUSED)
def index_that_points_nowhere(file, rng):
    gone = file.create_dataset("gone", data=[1.0])
    file["units/spike_times_index"].attrs["target"] = gone.ref
    del file["gone"]


@mutation(REFUSED)
def spike_times_not_listed(file, rng):
    set_columns(file, UNITS, [name for name in file[UNITS].attrs["colnames"] if name != "spike_times"])


@mutation(REFUSED)
def units_without_numbers(file, rng):
    del file["units/id"]


@mutation(REFUSED)
def one_number_for_two_units(file, rng):
    if len(file["units/id"]) < 2 or "unit_name" in file["units"]:  # names tell them apart
        return False
    return change(file, "units/id", lambda ids: np.r_[ids[:1], ids[:1], ids[2:]])


@mutation(READ)
def units_of_any_number(file, rng):
    return change(file, "units/id", lambda ids: rng.permutation(10**6 * np.arange(len(ids)) - 5))


def names_of_units(name, make, group=READ):
    def set_names(file, rng):
        if "unit_name" in file[UNITS]:
            drop_column(file, UNITS, "unit_name")
        return add_column(file, UNITS, "unit_name", make(len(file["units/id"]))) is not None

    set_names.__name__ = f"unit_names_{name}"
    mutation(group)(set_names)


scripts = "\u7ec6\u80de \U0001f9e0\u0301"
names_of_units("of_many_scripts", lambda n: make_string([f"{scripts}{k}" for k in range(n)]))
names_of_units("very_long", lambda n: make_string([f"{k}" * 5000 for k in range(n)]))
names_of_units("empty", lambda n: make_string([" " * k for k in range(n)]))
names_of_units("all_the_same", lambda n: make_string(["unit"] * n))
names_of_units("of_fixed_length", lambda n: np.array([f"u{k}" for k in range(n)], dtype="S6"))
names_of_units("that_are_numbers", lambda n: np.arange(n) * 0.5)
names_of_units(
    "that_are_no_text", lambda n: np.array([b"\xff\xfe%d" % k for k in range(n)], "S6"), REFUSED
)  # fmt: skip


@mutation(READ)
def more_columns_of_units(file, rng):
    num_units = len(file["units/id"])
    add_column(file, UNITS, "quality", make_string([""] * num_units))
    add_column(file, UNITS, "waveform_mean", rng.normal(size=(num_units, 5)))
    stops = np.cumsum(rng.integers(0, 3, num_units))
    add_ragged(file, UNITS, "amplitudes", rng.normal(size=stops[-1]), stops)
    return add_column(file, UNITS, "snr", np.full(num_units, np.nan)) is not None


@mutation(REFUSED)
def column_that_is_not_listed(file, rng):
    table = [name for name in (UNITS, TRIALS, ELECTRODES) if name in file][rng.integers(0, 1)]
    return add_column(file, table, "strange", np.zeros(len(file[table]["id"])), listed=False) is not None


# --- Observed and invalid times -------------------------------------------------------------------------


def observed(name, function, group):
    def change_observed(file, rng):
        return change(file, "units/obs_intervals", lambda rows: function(rows, rng))

    change_observed.__name__ = f"observed_{name}"
    mutation(group)(change_observed)


def with_row(rows, rng, pair):
    rows[rng.integers(len(rows))] = pair
    return rows


observed("by_float32", lambda rows, rng: rows.astype(np.float32), READ)
observed("from_nan", lambda rows, rng: with_row(rows, rng, (np.nan, 3.0)), REFUSED)
observed("to_infinity", lambda rows, rng: with_row(rows, rng, (2.75, np.inf)), REFUSED)
observed("backwards", lambda rows, rng: rows[:, ::-1], REFUSED)
observed("for_no_time", lambda rows, rng: with_row(rows, rng, (2.6, 2.6)), REFUSED)
observed("in_a_list", lambda rows, rng: rows.ravel(), REFUSED)
observed("in_threes", lambda rows, rng: np.concatenate([rows, rows[:, :1]], axis=1), REFUSED)
observed("for_years", lambda rows, rng: rows * 1e7, REFUSED)
observed("never_together", lambda rows, rng: rows + 20.0 * np.arange(len(rows))[:, None], EITHER)
observed("a_little_less", lambda rows, rng: rows * [1.0, 0.9] + [0.05, 0.0], EITHER)


@mutation(READ)
def observed_not_known_of_one_unit(file, rng):
    if "obs_intervals" not in file[UNITS]:
        return False
    stops = file["units/obs_intervals_index"][()].astype(np.int64)
    first = int(stops[0])
    change(file, "units/obs_intervals_index", lambda _: (stops - first).astype(np.uint32))
    return change(file, "units/obs_intervals", lambda rows: rows[first:])


@mutation(READ)
def nothing_said_of_observation(file, rng):
    if INVALID in file:
        del file[INVALID]
    return drop_column(file, UNITS, "obs_intervals")


@mutation(REFUSED)
def observed_with_a_damaged_index(file, rng):
    return change(file, "units/obs_intervals_index", lambda stops: stops[::-1] + np.uint32(1))


@mutation(REFUSED)
def observed_not_listed(file, rng):
    if "obs_intervals" not in file[UNITS]:
        return False
    set_columns(file, UNITS, [name for name in file[UNITS].attrs["colnames"] if name != "obs_intervals"])


@mutation(REFUSED)
def invalid_from_nan(file, rng):
    return set_one(file, f"{INVALID}/{rng.choice(['start_time', 'stop_time'])}", rng, np.nan)


@mutation(REFUSED)
def invalid_backwards(file, rng):
    return set_one(file, f"{INVALID}/stop_time", rng, -3.0)


@mutation(REFUSED)
def invalid_all_the_time(file, rng):
    set_one(file, f"{INVALID}/start_time", np.random.default_rng(0), -100.0)
    return change(file, f"{INVALID}/stop_time", lambda stops: stops + 100.0)


@mutation(READ)
def invalid_in_any_order(file, rng):
    order = rng.permutation(3)
    change(file, f"{INVALID}/start_time", lambda times: times[order])
    return change(file, f"{INVALID}/stop_time", lambda times: times[order])


@mutation(READ)
def invalid_for_no_time(file, rng):
    return INVALID in file and change(
        file, f"{INVALID}/stop_time", lambda _: file[f"{INVALID}/start_time"][()]
    )


# --- Trials ---------------------------------------------------------------------------------------------


def in_trials(name, column, function, group):
    def change_trials(file, rng):
        return change(file, f"{TRIALS}/{column}", lambda values: function(values, rng))

    change_trials.__name__ = f"trials_{name}"
    mutation(group)(change_trials)


in_trials("backwards", "stop_time", lambda v, rng: v - rng.uniform(0.9, 5), REFUSED)
in_trials("of_no_length", "stop_time", lambda v, rng: np.append(v[:-1] - 0.8, v[-1]), REFUSED)
in_trials("without_a_start", "start_time", lambda v, rng: somewhere(v, rng, np.nan, 0.4), READ)
in_trials("without_a_stop", "stop_time", lambda v, rng: somewhere(v, rng, np.nan, 0.4), READ)
in_trials("from_infinity", "start_time", lambda v, rng: np.append(v[:-1], -np.inf), REFUSED)
in_trials("that_overlap", "stop_time", lambda v, rng: v + rng.uniform(0.3, 3), READ)
in_trials("before_and_behind_the_recording", "stop_time", lambda v, rng: v + 1000.0, READ)
in_trials("for_ever", "stop_time", lambda v, rng: np.append(v[:-1], 1e300), EITHER)
in_trials("in_words", "start_time", lambda v, rng: np.full(v.shape, b"soon"), REFUSED)
in_trials("as_whole_seconds", "start_time", lambda v, rng: np.floor(v).astype(np.int32), READ)
in_trials("of_several_lengths", "stop_time", lambda v, rng: v[:-1], REFUSED)
in_trials("in_a_square", "start_time", lambda v, rng: np.stack([v, v], axis=1), REFUSED)
in_trials("out_of_order", "start_time", lambda v, rng: v[::-1] - 4.0, READ)
results = make_string(["", "\u6210\u529f", "R", "x" * 4000, "F"])
in_trials("with_strange_results", "result", lambda v, rng: results, READ)
no_text = np.array([b"\xff\xfe"] * 5, "S2")
in_trials("with_results_that_are_no_text", "result", lambda v, rng: no_text, REFUSED)
in_trials("with_result_numbers", "result", lambda v, rng: np.arange(5.0), READ)
in_trials("with_targets_unknown", "target_id", lambda v, rng: np.full(5, np.nan), READ)
in_trials("with_cues_anywhere", "go_cue_time", lambda v, rng: v + rng.choice([-50, np.nan, 1e300]), READ)


@mutation(REFUSED)
def trials_without_stop_times(file, rng):
    return drop_column(file, TRIALS, "stop_time")


@mutation(READ)
def no_trials(file, rng):
    if TRIALS not in file:
        return False
    del file[TRIALS]


@mutation(READ)
def trials_with_ragged_cues(file, rng):
    stops = np.cumsum(rng.integers(0, 4, 5))
    return add_ragged(file, TRIALS, "go_cue_time_array", rng.uniform(0, 6, stops[-1]), stops.astype(np.uint8))


@mutation(REFUSED)
def trials_with_a_damaged_index(file, rng):
    stops = [[1, 3, 2, 4, 5], [1, 2, 3, 4, 9], [1, 2, 3, 4, 4]][rng.integers(3)]
    return add_ragged(file, TRIALS, "cues", np.arange(5.0), np.array(stops))


@mutation(READ)
def trials_with_more_columns(file, rng):
    add_column(file, TRIALS, "speed", rng.normal(size=(5, 2)))
    add_column(file, TRIALS, "correct", np.array([True, False, True, True, False]))
    return add_column(file, TRIALS, "note", make_string(["", "a", "\u00e9", "|", "\n"])) is not None


# --- Electrodes, names, dates, versions -----------------------------------------------------------------


@mutation(EITHER)
def no_electrodes(file, rng):
    if ELECTRODES not in file:
        return False
    del file[ELECTRODES]


@mutation(REFUSED)
def units_on_electrodes_that_are_not_there(file, rng):
    return change(file, "units/electrodes", lambda rows: rows + rng.choice([100, 2**30]))


@mutation(REFUSED)
def units_on_electrodes_below_zero(file, rng):
    return change(file, "units/electrodes", lambda rows: rows.astype(np.int64) - len(rows))


@mutation(READ)
def units_without_electrodes(file, rng):
    return drop_column(file, UNITS, "electrodes")


@mutation(READ)
def electrodes_without_coordinates(file, rng):
    dropped = [drop_column(file, ELECTRODES, axis) for axis in "xyz"]
    return any(dropped)


@mutation(READ)
def electrodes_at_nan(file, rng):
    return change(file, f"{ELECTRODES}/x", lambda x: somewhere(x, rng, np.nan, 0.5))


@mutation(REFUSED)
def electrodes_in_words(file, rng):
    return change(file, f"{ELECTRODES}/y", lambda y: np.full(y.shape, b"left"))


def set_text(file, path, text):
    if path in file:
        attributes = dict(file[path].attrs)
        del file[path]
    else:
        attributes = {}
    file.create_dataset(path, data=text).attrs.update(attributes)


def in_texts(name, path, texts, group=READ):
    def set_value(file, rng):
        set_text(file, path, texts[rng.integers(len(texts))])

    set_value.__name__ = name
    mutation(group)(set_value)


in_texts(
    "session_names", "general/session_id",
    ["\u65e5\u672c\U0001f9e0", "a/b|c\n`d`", "x" * 2000, " ", "None", b"plain"],
)  # fmt: skip
in_texts("session_without_a_name", "general/session_id", [""])
in_texts("session_names_that_are_no_text", "general/session_id", [np.bytes_(b"\xff\xfes")], REFUSED)
in_texts(
    "dates_elsewhere", "session_start_time",
    ["2020-03-04T00:30:00+14:00", "2020-03-04T23:59:59.999999-11:00", "2020-03-29T02:30:00+01:00",
     "2020-03-04", "20200304T101500Z", "1904-01-01T00:00:00.000+00:00", "2020-03-04T12:00:00"],
)  # fmt: skip
in_texts(
    "dates_that_are_none", "session_start_time",
    ["", "today", "2020-13-45", "2020", "2020-03", "12:30", "03/04/2020", "202003", "9999999999"], REFUSED,
)  # fmt: skip
in_texts("descriptions", "session_description", ["", "center-out \u00e9", "x" * 10000])


@mutation(REFUSED)
def no_date(file, rng):
    del file["session_start_time"]


@mutation(READ)
def no_subject(file, rng):
    if "general/subject" not in file:
        return False
    del file["general/subject"]


@mutation(READ)
def subjects(file, rng):
    set_text(file, "general/subject/subject_id", ["", "\u00d8yvind", "y" * 900][rng.integers(3)])


@mutation(READ)
def older_versions(file, rng):
    file.attrs["nwb_version"] = ["2.0.0", "2.2.5", "2.6.0-alpha"][rng.integers(3)]


@mutation(EITHER)
def versions_of_another_age(file, rng):
    file.attrs["nwb_version"] = ["NWB-1.0.6", "7.0.0", "", "two"][rng.integers(4)]


@mutation(EITHER)
def no_version(file, rng):
    del file.attrs["nwb_version"]


@mutation(READ)
def no_schema(file, rng):
    if "specifications" not in file:
        return False
    del file["specifications"]
    del file.attrs[".specloc"]


@mutation(EITHER)
def schema_in_pieces(file, rng):
    if "specifications" not in file:
        return False
    version = next(iter(file["specifications/core"].values()))
    name = list(version)[rng.integers(len(version))]
    set_text(version, name, "{")


@mutation(EITHER)
def strange_things_beside(file, rng):
    file["strange"] = [1, 2]
    file["general"].attrs["strange"] = b"\xff"


@mutation(EITHER)
def group_gone(file, rng):
    names = []
    file.visit(lambda name: names.append(name) if not name.startswith("specifications") else None)
    del file[names[rng.integers(len(names))]]


@mutation(EITHER)
def attribute_gone(file, rng):
    names = []
    file.visititems(lambda name, item: names.extend((name, key) for key in item.attrs))
    name, key = names[rng.integers(len(names))]
    del file[name].attrs[key]


@mutation(EITHER)
def type_changed(file, rng):
    names = []
    file.visititems(lambda name, item: names.append(name) if "neurodata_type" in item.attrs else None)
    kinds = ["VectorData", "VectorIndex", "TimeSeries", "Units", "NWBFile", "Device", "nothing"]
    file[names[rng.integers(len(names))]].attrs["neurodata_type"] = kinds[rng.integers(len(kinds))]


@mutation(EITHER)
def two_things_swapped(file, rng):
    names = [name for name in file if name != "specifications"]
    first, second = (names[k] for k in rng.choice(len(names), 2, replace=False))
    file.move(first, "between")
    file.move(second, first)
    file.move("between", second)


MUTATIONS = {**READ, **REFUSED, **EITHER}


def mutate(source, path, names, seed):
    """Copies a base file and changes it; gives the names of the mutations that applied."""
    path.write_bytes(source.read_bytes())
    applied = []
    with h5py.File(path, "r+") as file:
        for number, name in enumerate(names):
            try:
                done = MUTATIONS[name](file, np.random.default_rng([seed, number]))
            except (KeyError, ValueError, IndexError, TypeError, OSError):
                if number == 0:  # later ones may find what an earlier one left
                    raise
                done = False
            applied += [name] if done is not False else []
    return applied
