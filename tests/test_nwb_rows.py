"""Rows of a dataset against a slow and obvious cutting of the same recordings, with clocks that differ.

Spikes, behaviour, trials and observed intervals each begin at a time of their own.
"""

import dataclasses
import datetime
import json
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from nwb_files import reach_file
from nwb_oracle import behavior_plainly, bins_of

from rpnt_hf import RPNTProcessor
from rpnt_hf.data.builder import build_dataset
from rpnt_hf.data.cutting import PreparedRecording
from rpnt_hf.data.nwb import BehaviorSeries, Recording, read_nwb
from rpnt_hf.data.schema import BuilderConfig, CorpusRecording
from rpnt_hf.errors import InputError, RecordingError

EDGE = Fraction(1, 10**6)


def draw_recording(seed):
    """Observed intervals with gaps, trials that may overlap, behaviour at a rate of its own with a gap."""
    rng = np.random.default_rng(seed)
    origin = float(rng.choice([0.0, -3.7, 1234.567, 1.6e9]))
    gaps = origin + np.sort(rng.uniform(2, 17, rng.integers(0, 3)))
    starts = np.array([origin, *(gaps + rng.uniform(0.01, 1.2, len(gaps)))])
    stops = np.array([*gaps, origin + 20.0])
    intervals = np.stack([starts, stops], axis=1)[stops > starts]
    intervals[1:, 0] = np.maximum(intervals[1:, 0], intervals[:-1, 1])
    num_trials = int(rng.integers(8, 14))
    starts = np.sort(origin + rng.uniform(0.5, 18.0, num_trials))
    lengths = rng.uniform(0.3, 2.5, num_trials)
    trials = pd.DataFrame({"start_time": starts, "stop_time": starts + lengths})
    trials["go_cue_time"] = starts + rng.uniform(0, 1.2, num_trials) * lengths
    trials.loc[rng.random(num_trials) < 0.15, "stop_time"] = np.nan
    step = float(rng.choice([0.01, 0.02, 0.07, 0.25]))
    times = origin - 1.0 + rng.uniform(0, step) + np.arange(round(23 / step)) * step
    kept = np.ones(len(times), bool)
    gap = int(rng.integers(10, len(times) - 10))
    kept[gap : gap + int(rng.integers(0, 3) / step)] = False
    kept[-5:] = True
    values = rng.normal(size=(len(times), 2)).astype(np.float32)
    values[rng.random(len(times)) < 0.02] = np.nan
    series = BehaviorSeries("cursor_vel", times[kept], values[kept], ["x", "y"], "cm/s")
    spikes = [np.sort(origin + rng.uniform(-2, 22, rng.integers(0, 200))) for _ in range(3)]
    return Recording.from_arrays(
        "a", spikes, behavior={"cursor_vel": series}, trials=trials, obs_intervals=intervals
    )  # fmt: skip


def bins_before(time, start, bin_size):
    """First bin at or behind a time; one within a millionth of a bin behind an edge is on it."""
    return -((-(Fraction(time) - Fraction(start)) / Fraction(bin_size) + EDGE).__floor__())


def rows_of(recording, **options):
    config = BuilderConfig(**{"bin_size": 0.05, "context_length": 0.3, **options})
    prepared = PreparedRecording.of(CorpusRecording(recording), config, None, 0, 0)
    return prepared, [(split, row) for split, row, _ in prepared.rows()]


@pytest.mark.parametrize("bin_size", [0.02, 0.05, 0.1])
@pytest.mark.parametrize("seed", range(12))
def test_rows_hold_what_a_slow_cutting_holds(seed, bin_size):
    recording = draw_recording(seed)
    prepared, rows = rows_of(recording, bin_size=bin_size)
    series = recording.behavior["cursor_vel"]
    times, values = series.timestamps.tolist(), series.values.astype(np.float64).tolist()
    precise = abs(recording.obs_intervals[0, 0]) < 1e6  # on the clock of Unix, edges are known to 2e-7 s
    for start, stop in recording.obs_intervals.tolist():
        num_bins = bins_of(stop, start, bin_size)
        labels = np.array(behavior_plainly(times, values, start, num_bins, bin_size)) if num_bins else []
        owner = np.full(num_bins, "", object)
        for split, row in rows:
            if not start <= row["start_time"] < stop:
                continue
            first = round((row["start_time"] - start) / bin_size)
            own = slice(row["num_context_bins"], row["num_bins"])
            assert (owner[first:][own] == "").all()
            owner[first:][own] = split
            _check_counts(recording, row, start, stop, first, num_bins, precise)
            behavior = np.frombuffer(row["behavior"], np.float32).reshape(row["num_bins"], 2)
            finite = np.isfinite(behavior)
            np.testing.assert_allclose(
                behavior[finite], labels[first : first + row["num_bins"]][finite], rtol=1e-4, atol=1e-4
            )
            assert not finite[: row["num_context_bins"]].any()
            for trial in row["trials"]:
                _check_trial(prepared, recording, row, trial, first, start, bin_size)
        assert (owner != "").all()
        _check_owners(prepared, recording, owner, rows, start, bin_size)


def _check_counts(recording, row, start, stop, first, num_bins, precise):
    counts = np.frombuffer(row["counts"], np.uint8).reshape(row["num_bins"], -1)
    for unit, times in enumerate(recording.spike_times):
        expected = np.zeros(num_bins, int)
        for time in times.tolist():
            bin_ = bins_of(time, start, row["bin_size"])
            if start <= time < stop and bin_ < num_bins:
                expected[bin_] += 1
        expected = expected[first : first + row["num_bins"]]
        if precise:
            np.testing.assert_array_equal(counts[:, unit], expected)
        else:
            assert abs(int(counts[:, unit].sum()) - int(expected.sum())) <= 1


def _check_trial(prepared, recording, row, trial, first, start, bin_size):
    index = trial["trial_index"]
    times = recording.trials.loc[index]
    own_first, own_stop = first + row["num_context_bins"], first + row["num_bins"]

    def inside(bin_):
        return min(max(bin_, own_first), own_stop) - first

    assert trial["start_bin"] == inside(bins_of(times["start_time"], start, bin_size))
    assert trial["stop_bin"] == inside(bins_before(times["stop_time"], start, bin_size))
    scored_from = bins_before(times["go_cue_time"], start, bin_size)
    assert trial["scored_start_bin"] == min(max(scored_from - first, trial["start_bin"]), trial["stop_bin"])
    scored_to = bins_of(times["stop_time"], start, bin_size) - first
    assert trial["scored_stop_bin"] == min(max(scored_to, trial["scored_start_bin"]), trial["stop_bin"])
    cue = bins_of(times["go_cue_time"], start, bin_size)
    assert trial["go_cue_bin"] == (cue - first if own_first <= cue < own_stop else -1)
    assert json.loads(trial["trial_columns"])["go_cue_time"] == times["go_cue_time"]
    assert prepared.splits[index] is not None


def _check_owners(prepared, recording, owner, rows, start, bin_size):
    """No bin that a held-out trial touches belongs to a split before its own, nor is context of training."""
    rank = {"train": 0, "validation": 1, "test": 2}
    for index, split in enumerate(prepared.splits):
        if split not in ("validation", "test"):
            continue
        times = recording.trials.loc[index]
        low = max(bins_of(times["start_time"], start, bin_size), 0)
        high = max(bins_before(times["stop_time"], start, bin_size), 0)
        assert all(rank[one] >= rank[split] for one in owner[low:high])
    assert all(row["num_context_bins"] == 0 for split, row in rows if split == "train")


def test_behaviour_in_a_gap_of_its_own_is_absent_and_nothing_moves():
    """Spikes from 0, behaviour from 3.2 s with a pause: values stay at their times."""
    times = np.concatenate([3.2 + np.arange(200) * 0.01, 8.0 + np.arange(500) * 0.01])
    series = BehaviorSeries("cursor_vel", times, np.stack([times, -times], axis=1), ["x", "y"], "cm/s")
    recording = Recording.from_arrays(
        "a", [np.arange(0, 13, 0.3)], behavior={"cursor_vel": series}, obs_intervals=[[0.0, 13.0]]
    )
    _, rows = rows_of(recording, guard=0.0, block_length=1.0, context_length=0.0)
    for _, row in rows:
        behavior = np.frombuffer(row["behavior"], np.float32).reshape(-1, 2)
        centres = row["start_time"] + (np.arange(row["num_bins"]) + 0.5) * 0.05
        inside = ((centres > 3.2) & (centres < 5.2)) | (centres > 8.0)
        assert (np.isfinite(behavior[:, 0]) == inside).all()
        assert np.abs(behavior[inside, 0] - centres[inside]).max(initial=0) < 0.0051


def test_a_unit_that_was_not_always_observed_is_never_counted_as_silent(tmp_path):
    """What one unit missed is left out for all; nothing there becomes a 0."""
    observed = [[[0.0, 20.0]], [[0.0, 8.0], [12.0, 20.0]], [[1.0, 20.0]]]
    path = reach_file(tmp_path / "a.nwb")
    from nwb_files import write_nwb

    spikes = read_nwb(path).spike_times
    path = write_nwb(tmp_path / "b.nwb", spikes, obs_intervals=observed)
    recording = read_nwb(path)
    assert recording.obs_intervals.tolist() == [[1.0, 8.0], [12.0, 20.0]]
    counted = sum(int(interval.counts.sum()) for interval in recording.bin_spikes(0.05))
    inside = [(times >= a) & (times < b) for times in spikes for a, b in recording.obs_intervals]
    assert counted == sum(int(one.sum()) for one in inside)


def test_a_silent_unit_of_unknown_observation_is_told(tmp_path, caplog):
    from nwb_files import write_nwb

    observed = [[[0.0, 1.0]], np.empty((0, 2)), np.empty((0, 2))]
    read_nwb(write_nwb(tmp_path / "a.nwb", [[0.1], [], [0.2]], obs_intervals=observed))
    assert "units in rows [1] of the table have neither spikes nor `obs_intervals`" in caplog.text


@pytest.mark.parametrize(
    ("written", "day"),
    [
        ("2020-03-04T00:30:00+14:00", "2020-03-04"),  # still the third in Greenwich
        ("2020-03-04T23:30:00-11:00", "2020-03-04"),  # already the fifth there
        ("2020-03-29T02:30:00+01:00", "2020-03-29"),  # an hour that the clocks of Europe leave out
        ("2020-10-25T02:30:00+02:00", "2020-10-25"),
        ("20200304T120000Z", "2020-03-04"),
        ("2020-03-04", "2020-03-04"),
    ],
)
def test_the_day_of_a_session_is_the_one_of_its_own_place(tmp_path, written, day):
    import h5py

    path = reach_file(tmp_path / "a.nwb")
    with h5py.File(path, "r+") as file:
        del file["session_start_time"]
        file["session_start_time"] = written
    recording = read_nwb(path)
    assert str(recording.recording_date) == day
    processor = RPNTProcessor(0.05, corpus_start="2020-01-01", metadata_axes=["day"])
    found = processor.metadata(None, 1, recording_date=recording.recording_date)[0, 0]
    assert found == (datetime.date.fromisoformat(day) - datetime.date(2020, 1, 1)).days


@pytest.mark.parametrize("written", ["2020-03", "2020", "03/04/2020", "12:30", "today"])
def test_a_date_with_parts_missing_is_refused_and_not_made_up(tmp_path, written):
    import h5py

    path = reach_file(tmp_path / "a.nwb")
    with h5py.File(path, "r+") as file:
        del file["session_start_time"]
        file["session_start_time"] = written
    with pytest.raises(RecordingError, match=f"must be an ISO 8601 date.*got '{written}'"):
        read_nwb(path)


def test_times_of_two_clocks_in_one_file_are_refused():
    series = BehaviorSeries("cursor_vel", 1.7e9 + np.arange(100) / 10, np.zeros((100, 2)), ["x", "y"], "cm/s")
    with pytest.raises(RecordingError, match=r"must span at most 90 days.*different clocks"):
        Recording.from_arrays("a", [np.arange(10.0)], behavior={"cursor_vel": series})


def sessions_of(tmp_path, **changes):
    """Two files whose names share a session, the second changed."""
    paths = [reach_file(tmp_path / "sub-A_ses-1.nwb"), reach_file(tmp_path / "sub-B_ses-1.nwb", seed=1)]
    first, second = map(read_nwb, paths)
    return first, dataclasses.replace(second, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subject_id": "Y"}, "of one subject, got 'X' and 'Y' in session 'ses-1'"),
        ({"unit_sites": np.array([0, 0, 0]), "subject_id": "X"}, None),
        ({"unit_ids": ["0", "1", "9"]}, "the same units"),
        ({"site_ids": ["elsewhere"]}, "the same units"),
    ],
)
def test_files_are_one_session_only_where_they_are_of_one_animal_and_its_units(tmp_path, changes, message):
    recordings = sessions_of(tmp_path, **changes)
    config = BuilderConfig(0.05, session_pattern="ses-1")
    if message is None:
        build_dataset(recordings, tmp_path / "built", config)
        return
    with pytest.raises(RecordingError, match=message):
        build_dataset(recordings, tmp_path / "built", config)
    assert not (tmp_path / "built").exists()


def test_units_that_moved_to_another_site_are_not_merged(tmp_path):
    sites = {"groups": ("M1", "PMd")}
    first = read_nwb(reach_file(tmp_path / "ses-1_a.nwb", group_of_unit=[0, 1, 1], **sites))
    second = read_nwb(reach_file(tmp_path / "ses-1_b.nwb", group_of_unit=[0, 0, 1], **sites))
    with pytest.raises(RecordingError, match="the same units"):
        build_dataset([first, second], tmp_path / "built", BuilderConfig(0.05, session_pattern="ses-1"))


def test_rows_of_two_animals_under_one_session_id_make_no_vocabulary(tmp_path):
    first, second = sessions_of(tmp_path, subject_id="Y")
    rows = []
    for recording in (first, second):
        recording = dataclasses.replace(recording, session_id="ses-1")
        rows += [row for _, row in rows_of(recording)[1]]
    with pytest.raises(InputError, match="of session 'ses-1' must be of one subject, got 'X' and 'Y'"):
        RPNTProcessor.from_rows(rows)


def test_decoding_another_animal_as_a_known_session_is_told(tmp_path, caplog):
    from rpnt_hf.decoding import bin_recording

    first, second = sessions_of(tmp_path, subject_id="Y")
    rows = [row for _, row in rows_of(dataclasses.replace(first, session_id="ses-1"))[1]]
    processor = RPNTProcessor.from_rows(rows)
    bin_recording(processor, dataclasses.replace(second, session_id="ses-1"))
    assert "of subject 'Y', but session 'ses-1' of this decoder is of subject 'X'" in caplog.text
