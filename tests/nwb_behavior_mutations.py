"""Changes of behaviour in NWB files: values, clocks, conversions, links. See `nwb_mutations.py`."""

import h5py
import numpy as np
from nwb_bases import EITHER, READ, change, mutation, one_series

# --- Behaviour ------------------------------------------------------------------------------------------


def in_series(name, function, group, dataset="data", clock=None):
    def change_series(file, rng):
        chosen = one_series(file, rng, clock)
        if chosen is None:
            return False
        return change(file, f"{chosen}/{dataset}", lambda values: function(values, rng))

    change_series.__name__ = name
    mutation(group)(change_series)


def somewhere(values, rng, value, part=0.1):
    values = np.array(values, np.float64)
    values[rng.random(values.shape) < part] = value
    return values


in_series("behaviour_absent_here_and_there", lambda v, rng: somewhere(v, rng, np.nan), READ)
in_series("behaviour_absent", lambda v, rng: np.full(v.shape, np.nan), READ)
in_series("behaviour_without_end", lambda v, rng: somewhere(v, rng, np.inf), READ)
in_series("behaviour_beyond_float32", lambda v, rng: somewhere(v, rng, 1e39), READ)
in_series("behaviour_as_integers", lambda v, rng: (v * 9).astype([">i2", "<i8", "i1"][rng.integers(3)]), READ)
in_series("behaviour_unsigned", lambda v, rng: np.abs(v * 10).astype(np.uint8), READ)
in_series("behaviour_big_endian", lambda v, rng: v.astype(">f4"), READ)
in_series("behaviour_half_precision", lambda v, rng: v.astype(np.float16), READ)
in_series("behaviour_complex", lambda v, rng: v.astype(np.complex64), READ)
in_series("behaviour_in_words", lambda v, rng: np.full(v.shape, b"left"), READ)
in_series("behaviour_true_or_false", lambda v, rng: v > 0, READ)
# pynwb takes a TimeSeries of three dimensions and no SpatialSeries.
in_series("behaviour_in_cubes", lambda v, rng: np.stack([v.reshape(len(v), -1)] * 2, axis=-1), EITHER)
in_series("behaviour_of_no_column", lambda v, rng: v.reshape(len(v), -1)[:, :0], EITHER)
in_series("behaviour_of_seven_columns", lambda v, rng: np.repeat(v.reshape(len(v), -1)[:, :1], 7, 1), READ)
in_series("behaviour_of_no_sample", lambda v, rng: v[:0], EITHER)
in_series("behaviour_of_one_sample", lambda v, rng: v[:1], EITHER)
in_series("behaviour_that_is_one_number", lambda v, rng: v.flat[0], EITHER)
in_series("behaviour_on_its_side", lambda v, rng: v.reshape(len(v), -1).T, EITHER)
in_series("behaviour_cut_short", lambda v, rng: v[: len(v) // 2], READ)
in_series("behaviour_constant", lambda v, rng: np.ones_like(v), READ)
in_series("behaviour_1d", lambda v, rng: v.reshape(len(v), -1)[:, 0], READ)


def in_times(name, function, group):
    in_series(name, function, group, "timestamps", "timestamps")


def from_the_middle(values, function):
    values = np.array(values, np.float64)
    values[len(values) // 2 :] = function(values[len(values) // 2 :])
    return values


in_times("times_nan", lambda v, rng: somewhere(v, rng, np.nan), READ)
in_times("times_infinite", lambda v, rng: np.append(v[:-1], np.inf), READ)
in_times("times_repeated", lambda v, rng: np.append(v[:-1], v[-2]), READ)
in_times("times_out_of_order", lambda v, rng: rng.permutation(v), READ)
in_times("times_backwards", lambda v, rng: v[::-1], READ)
in_times("times_that_jump", lambda v, rng: from_the_middle(v, lambda x: x + rng.uniform(0.1, 2.0)), READ)
in_times("times_that_jump_back", lambda v, rng: from_the_middle(v, lambda x: x - 1.0), READ)
in_times("times_that_jump_to_another_rate", lambda v, rng: from_the_middle(v, lambda x: 3 * x - 6), READ)
in_times("times_uneven", lambda v, rng: np.cumsum(rng.exponential(0.02, len(v))), READ)
in_times("times_offset", lambda v, rng: v + rng.uniform(-2, 2), READ)
in_times("times_as_float32", lambda v, rng: v.astype(np.float32), READ)
in_times("times_big_endian", lambda v, rng: v.astype(">f8"), READ)
in_times("times_whole", lambda v, rng: np.arange(len(v), dtype=">i4"), READ)
in_times("times_in_words", lambda v, rng: np.full(v.shape, b"now"), READ)
in_times("times_in_a_square", lambda v, rng: np.stack([v, v], axis=1), EITHER)
in_times("times_too_many", lambda v, rng: np.append(v, v[-1] + 0.1), READ)
in_times("times_none", lambda v, rng: v[:0], READ)
in_times("times_of_another_clock", lambda v, rng: v + 1.7e9, EITHER)


@mutation(EITHER)
def series_without_a_part(file, rng):
    name = one_series(file, rng)
    if name is None:
        return False
    parts = [part for part in ("data", "timestamps", "starting_time") if part in file[name]]
    del file[name][parts[rng.integers(len(parts))]]


@mutation(EITHER)
def series_with_two_clocks(file, rng):
    name = one_series(file, rng, "timestamps")
    if name is None:
        return False
    start = file[name].create_dataset("starting_time", data=1.0)
    start.attrs.update({"rate": 30.0, "unit": "seconds"})


def attribute(name, dataset, key, values, group=READ, clock=None):
    def set_attribute(file, rng):
        chosen = one_series(file, rng, clock)
        if chosen is None or f"{chosen}/{dataset}" not in file:
            return False
        file[f"{chosen}/{dataset}"].attrs[key] = values[rng.integers(len(values))]

    set_attribute.__name__ = name
    mutation(group)(set_attribute)


attribute("conversion", "data", "conversion", [0.01, -2.0, np.float32(1e-3), 1e6])
attribute("conversion_to_nothing", "data", "conversion", [np.nan, 0.0, np.inf])
attribute("conversion_in_words", "data", "conversion", ["cm"], EITHER)
attribute("offset", "data", "offset", [3.0, -1e5])
attribute("offset_to_nothing", "data", "offset", [np.nan, -np.inf])
attribute("unit_of_measure", "data", "unit", ["", "\u00b5m/s", "a" * 3000, "pixels"])
attribute("rate", "starting_time", "rate", [7.5, np.float32(60.0), 1000.0, 0.5], clock="starting_time")
no_rates = [0.0, -50.0, np.nan, np.inf, 1e308]
attribute("rate_of_nothing", "starting_time", "rate", no_rates, clock="starting_time")
attribute("rate_in_words", "starting_time", "rate", ["fast"], EITHER, clock="starting_time")


@mutation(READ)
def starting_time(file, rng):
    name = one_series(file, rng, "starting_time")
    values = [-1.0, 2.5, np.nan, np.float32(0.1), 1e5]
    return name is not None and change(file, f"{name}/starting_time", lambda _: values[rng.integers(5)])


@mutation(EITHER)
def starting_time_as_whole_number(file, rng):
    name = one_series(file, rng, "starting_time")
    return name is not None and change(file, f"{name}/starting_time", lambda _: np.int64(1))


@mutation(EITHER)
def attribute_missing(file, rng):
    name = one_series(file, rng)
    if name is None:
        return False
    parts = [part for part in ("data", "starting_time") if part in file[name]]
    keys = [(part, key) for part in parts for key in file[name][part].attrs]
    part, key = keys[rng.integers(len(keys))]
    del file[name][part].attrs[key]


@mutation(READ)
def behaviour_compressed(file, rng):
    name = one_series(file, rng)
    return name is not None and change(file, f"{name}/data", np.copy, compression="gzip", shuffle=True)


@mutation(READ)
def series_linked_from_elsewhere(file, rng):
    name = one_series(file, rng)
    if name is None or "acquisition" not in file:
        return False
    file["acquisition/linked"] = h5py.SoftLink(f"/{name}")


@mutation(READ)
def link_to_nowhere(file, rng):
    if "acquisition" not in file:
        return False
    links = [h5py.SoftLink("/processing/nothing"), h5py.ExternalLink("no such file.nwb", "/acquisition/x")]
    file["acquisition/gone"] = links[rng.integers(2)]


@mutation(READ)
def series_copied(file, rng):
    """With its object id, as `h5py` copies it: two series all the same."""
    name = one_series(file, rng)
    if name is None or "acquisition" not in file or "acquisition/copied" in file:
        return False
    file.copy(name, "acquisition/copied")
    change(file, "acquisition/copied/data", lambda values: values + 1)


@mutation(EITHER)
def series_of_an_unknown_kind(file, rng):
    name = one_series(file, rng)
    if name is None:
        return False
    file[name].attrs["neurodata_type"] = ["TimeSerie", "", "IntervalSeries", "DynamicTable"][rng.integers(4)]


@mutation(READ)
def no_behaviour(file, rng):
    if "processing" not in file or "behavior" not in file["processing"]:
        return False
    del file["processing/behavior"]
