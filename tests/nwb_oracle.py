"""A second reading of NWB files, by plain h5py and loops: slow, obvious, and of no code of the package.

`read_plainly` says what a file holds or raises `DamagedError`; `compare` holds a `Recording` against it, its
bins included. What it does not judge is what pynwb makes of types, references and names.
"""

import bisect
import itertools
import math
import re
from fractions import Fraction

import h5py
import numpy as np

from rpnt_hf.errors import BinningError

REAL = "iuf"
LONGEST = 90 * 86400


class DamagedError(Exception):
    """The file contradicts itself, so that nothing that could be read from it is right."""


def check(true, what):
    if not true:
        raise DamagedError(what)


def text_of(value):
    try:
        text = value.decode() if isinstance(value, bytes) else str(value)
        text.encode()
    except UnicodeError as error:
        raise DamagedError(f"no UTF-8: {value!r}") from error
    return text


def numbers(dataset):
    check(dataset.dtype.kind in REAL and dataset.ndim == 1, f"{dataset.name} is no list of numbers")
    return [float(value) for value in dataset[()]]


def rows_of(table, name):
    """The values of each row of a ragged column, one by one."""
    check(name in table and f"{name}_index" in table, f"no ragged {name}")
    data, index = table[name][()], table[f"{name}_index"]
    check(index.dtype.kind in "iu" and index.ndim == 1, "index of a strange type")
    check(isinstance(data, np.ndarray) and data.ndim > 0, "no list")
    stops = [int(stop) for stop in index[()]]
    check(len(stops) == len(table["id"]), "not one stop per row")
    rows, first = [], 0
    for stop in stops:
        check(first <= stop <= len(data), f"row from {first} to {stop} of {len(data)}")
        rows.append([data[k] for k in range(first, stop)])
        first = stop
    check(first == len(data), "values that no row has")
    return rows


def has_column(table, name):
    listed = [text_of(column) for column in table.attrs["colnames"]]
    check((name in listed) == (name in table), f"{name} is listed or there, but not both")
    return name in listed


def read_plainly(path):
    """What the file holds, as plain lists."""
    with h5py.File(path, "r") as file:
        check("units/id" in file and len(file["units/id"]), "no units")
        units = file["units"]
        check(has_column(units, "spike_times"), "no spike times")
        check(units["spike_times"].dtype.kind in REAL and units["spike_times"].ndim == 1, "strange spikes")
        spikes = [[float(time) for time in row] for row in rows_of(units, "spike_times")]
        series, unusable = _read_series(file)
        trials = _read_trials(file)
        return {
            "spikes": spikes,
            "unit_ids": _unit_ids(units),
            "sites": _sites(file),
            "series": series,
            "unusable": unusable,
            "trials": trials,
            "observed": _read_observed(file, units, spikes, series, trials),
            "session_id": text_of(file["general/session_id"][()]) if "general/session_id" in file else "",
            "date": _read_date(file),
        }


def _read_date(file):
    text = text_of(file["session_start_time"][()])
    match = re.match(r"(\d\d\d\d)-?(\d\d)-?(\d\d)(?!\d)", text)
    check(match, f"no date: {text}")
    return "-".join(match.groups())


def _unit_ids(units):
    if has_column(units, "unit_name") and "unit_name_index" not in units:
        names = [text_of(name) for name in units["unit_name"][()]]
        if len(set(names)) == len(names) == len(units["id"]):
            return names
    return [str(number) for number in units["id"][()]]


def _sites(file):
    """The group of each unit's first electrode, by a number; None where it has none."""
    units = file["units"]
    electrodes = file.get("general/extracellular_ephys/electrodes")
    if electrodes is None or not has_column(units, "electrodes"):
        return None
    places = [file[reference] for reference in electrodes["group"][()]]
    groups = [places.index(place) for place in places]  # where names are damaged, places are the same
    found = []
    for row in rows_of(units, "electrodes"):
        for electrode in row:
            check(0 <= electrode < len(groups) and electrode == int(electrode), "an electrode that is not")
        found.append(groups[int(row[0])] if row else None)
    return found


def _read_trials(file):
    if "intervals/trials" not in file or not len(file["intervals/trials/id"]):
        return []
    table = file["intervals/trials"]
    check("start_time" in table and "stop_time" in table, "trials without times")
    starts, stops = numbers(table["start_time"]), numbers(table["stop_time"])
    check(len(starts) == len(stops) == len(table["id"]), "columns of several lengths")
    for start, stop in zip(starts, stops, strict=True):
        check(not math.isinf(start) and not math.isinf(stop) and not stop <= start, "a trial of no length")
    return list(zip(starts, stops, strict=True))


def _check_sorted(intervals):
    last = -math.inf
    for start, stop in intervals:
        check(math.isfinite(start) and math.isfinite(stop) and last <= start < stop, "intervals in disorder")
        last = stop


def _read_observed(file, units, spikes, series, trials):
    """Elementary intervals between all edges that are inside of every unit's and outside of invalid times."""
    lists = []
    if has_column(units, "obs_intervals"):
        check(units["obs_intervals"].dtype.kind in REAL, "strange intervals")
        check(units["obs_intervals"].ndim == 2 and units["obs_intervals"].shape[1] == 2, "strange intervals")
        rows = rows_of(units, "obs_intervals")
        lists = [[(float(a), float(b)) for a, b in row] for row in rows if row]
    for one in lists:
        _check_sorted(one)
    invalid = []
    if "intervals/invalid_times" in file:
        table = file["intervals/invalid_times"]
        invalid = list(zip(numbers(table["start_time"]), numbers(table["stop_time"]), strict=True))
        check(lists or not invalid, "invalid times of nothing")
    for start, stop in invalid:
        check(start <= stop, "an invalid time in disorder")
    if not lists:
        times = [time for row in spikes for time in row]
        times += [time for seconds, _ in series.values() for time in seconds]
        times += [time for trial in trials for time in trial]
        times = [time for time in times if math.isfinite(time)]
        check(times and min(times) < max(times), "no extent")
        check(max(times) - min(times) <= LONGEST, "too long")
        return [(min(times), max(times))]
    edges = sorted({edge for one in [*lists, invalid] for interval in one for edge in interval})
    kept = []
    for start, stop in itertools.pairwise(edges):
        inside = all(any(a <= start and stop <= b for a, b in one) for one in lists)
        if inside and not any(a <= start and stop <= b for a, b in invalid):
            kept.append((start, stop))
    check(kept, "nothing observed")
    check(kept[-1][1] - kept[0][0] <= LONGEST, "too long")
    return kept


def _walk(group, place, container, found, seen):
    for name in group:
        child = group.get(name)
        if not isinstance(child, h5py.Group) or child.id in seen:
            continue
        kind = text_of(child.attrs.get("neurodata_type", ""))
        if kind in ("TimeSeries", "SpatialSeries"):
            seen.append(child.id)
            found.append(((place, container, child.name.split("/")[-1]), child))
        elif kind == "BehavioralTimeSeries" or not kind.endswith("Series"):  # other series: signals, images
            _walk(child, place, name, found, seen)


def _read_series(file):
    found, seen = [], []
    for module in file.get("processing", ()):
        _walk(file["processing"][module], module, module, found, seen)
    if "acquisition" in file:
        _walk(file["acquisition"], "acquisition", "root", found, seen)
    names = [full for full, _ in found]
    series, unusable = {}, []
    for full, group in found:
        name = next(
            (
                "/".join(full[-n:])
                for n in (1, 2)
                if len([other for other in names if other[-n:] == full[-n:]]) == 1
            ),
            "/".join(full),
        )
        try:
            series[name] = _one_series(group)
        except DamagedError:
            unusable.append(name)
    return series, unusable


def _one_series(group):
    check("data" in group, "no data")
    data = group["data"]
    check(data.dtype.kind in REAL and data.ndim in (1, 2) and 0 not in data.shape, "strange data")
    conversion = float(data.attrs.get("conversion", 1.0))
    offset = float(data.attrs.get("offset", 0.0))
    check(math.isfinite(conversion) and math.isfinite(offset) and conversion != 0, "strange conversion")
    check(("timestamps" in group) != ("starting_time" in group), "not one clock")
    raw = data[()]
    if "timestamps" in group:
        times = numbers(group["timestamps"])
    else:
        rate, first = float(group["starting_time"].attrs["rate"]), float(group["starting_time"][()])
        check(math.isfinite(rate) and rate > 0, "strange rate")
        check(data.ndim == 1 or data.shape[0] >= data.shape[1], "transposed")
        times = [first + k / rate for k in range(len(raw))]
    check(len(times) == len(raw), "times and samples differ")
    check(all(math.isfinite(time) for time in times), "a time that is none")
    check(all(before < after for before, after in itertools.pairwise(times)), "disorder")
    values = [[float(value) * conversion + offset for value in np.atleast_1d(row)] for row in raw]
    largest = float(np.finfo(np.float32).max)
    for row in values:
        check(all(not math.isfinite(value) or abs(value) <= largest for value in row), "too large")
    return times, values


def bins_of(time, start, bin_size):
    """Number of the bin of a time, exactly; one within a millionth of a bin below an edge is on it."""
    return math.floor((Fraction(time) - Fraction(start)) / Fraction(bin_size) + Fraction(1, 10**6))


def count_plainly(spikes, intervals, bin_size):
    """Per interval that holds a bin the counts of each bin and unit, and how many spikes lie in no bin."""
    counts, outside = [], sum(map(len, spikes))
    for start, stop in intervals:
        num_bins = bins_of(stop, start, bin_size)
        table = [[0] * len(spikes) for _ in range(num_bins)]
        full = (
            abs(Fraction(start) + num_bins * Fraction(bin_size) - Fraction(stop))
            <= Fraction(bin_size) / 10**5
        )
        end = stop if full else start + num_bins * bin_size
        for unit, times in enumerate(spikes):
            for time in times[bisect.bisect_left(times, start) : bisect.bisect_left(times, end)]:
                table[min(bins_of(time, start, bin_size), num_bins - 1)][unit] += 1
                outside -= 1
        if num_bins:
            counts.append(table)
    return counts, outside


def behavior_plainly(times, values, start, num_bins, bin_size):
    """Mean of the samples in each bin, else interpolation between near neighbours at its centre, else NaN."""
    width = len(values[0])
    inside = {}
    for time, row in zip(times, values, strict=True):
        inside.setdefault(bins_of(time, start, bin_size), []).append(row)
    steps = sorted(after - before for before, after in itertools.pairwise(times))
    middle = len(steps) // 2
    usual = 0.0
    if steps:
        usual = steps[middle] if len(steps) % 2 else (steps[middle - 1] + steps[middle]) / 2
    result = []
    for k in range(num_bins):
        centre = start + (k + 0.5) * bin_size
        row = [math.nan] * width
        if k in inside:
            row = [sum(column) / len(column) for column in zip(*inside[k], strict=True)]
        else:
            right = bisect.bisect_left(times, centre)
            if 0 < right < len(times) and times[right] - times[right - 1] <= 1.5 * usual:
                weight = (centre - times[right - 1]) / (times[right] - times[right - 1])
                pairs = zip(values[right - 1], values[right], strict=True)
                row = [(1 - weight) * a + weight * b for a, b in pairs]
        result.append(row)
    return result


def compare(recording, plain, bin_size):
    """Asserts that a recording is what the file holds, to the last spike, and its bins what they must be."""
    assert [times.tolist() for times in recording.spike_times] == plain["spikes"]
    assert recording.unit_ids == plain["unit_ids"]
    if plain["session_id"]:
        assert recording.session_id == plain["session_id"]
    assert str(recording.recording_date) == plain["date"]
    if plain["sites"] is not None:
        same = {(group, int(site)) for group, site in zip(plain["sites"], recording.unit_sites, strict=True)}
        assert len(same) == len({group for group, _ in same}) == len(recording.site_ids)
    trials = recording.trials[["start_time", "stop_time"]].to_numpy(np.float64).reshape(-1, 2)
    np.testing.assert_array_equal(trials, np.array(plain["trials"], np.float64).reshape(-1, 2))
    _compare_observed(recording.obs_intervals.tolist(), plain["observed"])
    told = [name for name in recording.unusable_behavior if name.startswith("/")]
    last = {name.split("/")[-1] for name in told}
    assert set(recording.behavior) <= set(plain["series"])
    for name in [*plain["series"], *plain["unusable"]]:
        assert name in {*recording.behavior, *recording.unusable_behavior} or name.split("/")[-1] in last, (
            name
        )
    for name in recording.behavior:
        times, values = plain["series"][name]
        np.testing.assert_allclose(recording.behavior[name].timestamps, times, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(recording.behavior[name].values, np.array(values).astype(np.float32))
    compare_bins(recording, plain, bin_size)


def _compare_observed(intervals, expected):
    """The same times, where intervals that touch may be one or two."""
    starts, stops = {start for start, _ in expected}, {stop for _, stop in expected}
    assert all(start in starts and stop in stops for start, stop in intervals), (intervals, expected)
    pieces = [(a, b) for a, b in expected for start, stop in intervals if start <= a and b <= stop]
    assert pieces == expected, (intervals, expected)
    assert sum(stop - start for start, stop in intervals) <= sum(b - a for a, b in expected) + 1e-6


def compare_bins(recording, plain, bin_size):
    """Counts, spikes that lie in no bin, and the behaviour of every bin."""
    total = sum(stop - start for start, stop in recording.obs_intervals)
    if total > 1000:  # loops would take too long
        return
    intervals = [tuple(interval) for interval in recording.obs_intervals.tolist()]
    counts, outside = count_plainly(plain["spikes"], intervals, bin_size)
    most = max((count for table in counts for row in table for count in row), default=0)
    try:
        binned = recording.bin_spikes(bin_size)
    except BinningError:
        assert most > 255 or not counts
        return
    assert most <= 255
    assert [interval.counts.tolist() for interval in binned] == counts
    counted = sum(int(interval.counts.sum()) for interval in binned)
    assert counted + outside == recording.num_spikes
    from rpnt_hf.data.binning import bin_behavior

    for name in recording.behavior:
        times, values = plain["series"][name]
        for interval in binned:
            arguments = interval.start_time, len(interval.counts), bin_size
            found = bin_behavior(recording.behavior[name], *arguments)
            with np.errstate(over="ignore", invalid="ignore"):
                expected = np.array(behavior_plainly(times, values, *arguments), np.float64)
            scale = max((abs(v) for row in values for v in row if math.isfinite(v)), default=1.0)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * scale, err_msg=name)
