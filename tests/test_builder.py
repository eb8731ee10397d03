"""Built datasets: rows, splits, cards, and what stops a build."""

import dataclasses
import json
import logging
import subprocess
import sys

import datasets
import numpy as np
import pandas as pd
import pytest
import yaml
from nwb_files import reach_file, series, write_nwb

from rpnt_hf.data.builder import FEATURES, BuilderConfig, CorpusRecording, build_dataset
from rpnt_hf.data.cutting import scored_interval
from rpnt_hf.data.nwb import BehaviorSeries, Recording, read_nwb
from rpnt_hf.data.rows import reach_bins, row_behavior, row_counts, row_observed, scored_bins
from rpnt_hf.errors import BinningError, ConfigurationError, DatasetError, RecordingError, SplitError

CONFIG = BuilderConfig(bin_size=0.1)


def make_recording(session_id="day1", duration=20.0, trials=True, seed=0, **overrides):
    """Trials of 0.8 s every second, or none; velocity x = time, y = -time, at 100 Hz."""
    rng = np.random.default_rng(seed)
    times = np.arange(round(duration * 100)) / 100
    velocity = BehaviorSeries("cursor_vel", times, np.stack([times, -times], axis=1), ["x", "y"], "cm/s")
    starts = np.arange(round(duration), dtype=np.float64)
    table = pd.DataFrame(
        {
            "start_time": starts,
            "stop_time": starts + 0.8,
            "target_on_time": starts + 0.2,
            "go_cue_time": starts + 0.4,
            "target_dir": starts % 4 * np.pi / 2,
            "target_id": starts % 4,
            "result": "R",
        }
    )
    options = {
        "behavior": {"cursor_vel": velocity},
        "trials": {True: table, False: None}[trials] if isinstance(trials, bool) else trials,
        "obs_intervals": [[0.0, duration]],
    } | overrides
    spikes = [np.sort(rng.uniform(0, duration, 200)) for _ in range(4)]
    return Recording.from_arrays(session_id, spikes, **options)


def load(folder, tmp_path, name="default"):
    return datasets.load_dataset(str(folder), name, cache_dir=str(tmp_path / "cache"))


def rows_of(dataset):
    return [(split, row) for split in dataset for row in dataset[split]]


def own_counts(row):
    return row_counts(row)[row["num_context_bins"] :]


def trial_splits(dataset):
    splits = {}
    for split, row in rows_of(dataset):
        for trial in row["trials"]:
            splits.setdefault((row["session_id"], trial["trial_index"]), set()).add(split)
    return splits


def test_rows_have_the_schema_and_conserve_the_spikes(tmp_path):
    recording = make_recording()
    dataset = load(build_dataset([recording], tmp_path / "out", CONFIG), tmp_path)
    assert set(dataset) == {"train", "validation", "test"}
    assert dataset["train"].features == FEATURES
    assert sum(int(own_counts(row).sum()) for _, row in rows_of(dataset)) == recording.num_spikes
    assert sum(len(own_counts(row)) for _, row in rows_of(dataset)) == 200
    for _, row in rows_of(dataset):
        assert row_observed(row).all()
        assert row["behavior_names"] == ["cursor_vel_x", "cursor_vel_y"] and row["behavior_units"] == [
            "cm/s",
            "cm/s",
        ]
        assert row["unit_ids"] == ["0", "1", "2", "3"] and row["unit_sites"] == [0] * 4
        assert row["site_ids"] == ["unknown"] and np.isnan(row["site_positions"]).all()
        assert row["recording_date"] is None and row["source"] == {"file_name": None, "sha256": None}


def test_rows_lie_where_their_start_time_says(tmp_path):
    """The velocity equals time, so every finite label tells the centre of its bin."""
    dataset = load(build_dataset([make_recording()], tmp_path / "out", CONFIG), tmp_path)
    whole = make_recording().bin_spikes(0.1)[0].counts
    for _, row in rows_of(dataset):
        first = round(row["start_time"] / 0.1)
        np.testing.assert_array_equal(row_counts(row), whole[first : first + row["num_bins"]])
        own = row_behavior(row)[row["num_context_bins"] :, 0]
        expected = row["start_time"] + (np.arange(row["num_bins"]) + 0.5) * 0.1 - 0.005
        np.testing.assert_allclose(own, expected[row["num_context_bins"] :], atol=1e-4)


def test_no_trial_is_in_two_splits_and_targets_are_spread(tmp_path):
    dataset = load(build_dataset([make_recording(duration=40.0)], tmp_path / "out", CONFIG), tmp_path)
    splits = trial_splits(dataset)
    assert len(splits) == 40 and all(len(names) == 1 for names in splits.values())
    test = [index for (_, index), names in splits.items() if names == {"test"}]
    assert np.bincount(np.array(test) % 4, minlength=4).tolist() == [2, 2, 2, 2]


def test_no_bin_of_a_test_trial_is_in_a_training_row(tmp_path):
    """With trials that begin and end inside bins, touch, and overlap."""
    rng = np.random.default_rng(3)
    starts = np.sort(rng.uniform(0, 19, 25))
    table = pd.DataFrame({"start_time": starts, "stop_time": starts + rng.uniform(0.2, 1.2, 25)})
    dataset = load(build_dataset([make_recording(trials=table)], tmp_path / "out", CONFIG), tmp_path)
    held_out = {index for (_, index), names in trial_splits(dataset).items() if "test" in names}
    assert len(held_out) == 5
    for row in dataset["train"]:
        assert row["num_context_bins"] == 0
        start, stop = row["start_time"] + 1e-6, row["start_time"] + row["num_bins"] * 0.1 - 1e-6
        for index in held_out:
            assert not (table["start_time"][index] < stop and table["stop_time"][index] > start)


def test_held_out_rows_begin_with_context_that_is_neither_scored_nor_labelled(tmp_path):
    folder = build_dataset(
        [make_recording()], tmp_path / "out", dataclasses.replace(CONFIG, context_length=0.5)
    )
    dataset = load(folder, tmp_path)
    contexts = []
    for split, row in rows_of(dataset):
        contexts.append(row["num_context_bins"])
        expected = 0 if split == "train" else min(5, round(row["start_time"] / 0.1) + row["num_context_bins"])
        assert row["num_context_bins"] == expected
        assert np.isnan(row_behavior(row)[: row["num_context_bins"]]).all()
        assert all(trial["start_bin"] >= row["num_context_bins"] for trial in row["trials"])
    assert 5 in contexts


def test_trials_are_scored_from_target_on_to_their_end(tmp_path):
    dataset = load(build_dataset([make_recording()], tmp_path / "out", CONFIG), tmp_path)
    for _, row in rows_of(dataset):
        for trial in row["trials"]:
            start = trial["start_bin"]
            first = trial["trial_index"] * 10 - round(row["start_time"] / 0.1)
            assert start == first and trial["stop_bin"] == start + 8
            assert (trial["scored_start_bin"], trial["scored_stop_bin"]) == (start + 2, start + 8)
            assert trial["go_cue_bin"] == start + 4 and trial["move_onset_bin"] == -1
            assert trial["target_dir"] == pytest.approx(trial["trial_index"] % 4 * np.pi / 2)
            assert trial["label"] == trial["trial_index"] % 4 and trial["condition"] == str(trial["label"])
            assert trial["result"] == "R"
            columns = json.loads(trial["trial_columns"])
            assert columns["start_time"] == trial["trial_index"] and "target_dir" not in columns
        assert scored_bins(row).sum() == 6 * len(row["trials"]) and reach_bins(row).sum() == 4 * len(
            row["trials"]
        )


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, (1.0, 4.0)),
        ({"go_cue_time": 2.0}, (2.0, 4.0)),
        ({"go_cue_time": 2.0, "target_on_time": 1.5, "end_time": 3.5}, (1.5, 3.5)),
        ({"go_cue_time": np.nan, "target_on_time": np.nan, "end_time": np.nan}, (1.0, 4.0)),
        ({"go_cue_time_array": np.array([np.nan, 2.0, 3.0])}, (2.0, 4.0)),
        ({"go_cue_time_array": np.array([np.nan]), "go_cue_time": np.nan}, (1.0, 4.0)),
        ({"go_cue_time_array": [], "target_on_time": 1.5}, (1.5, 4.0)),
    ],
)
def test_the_scored_interval_of_a_trial(columns, expected):
    assert scored_interval(pd.Series({"start_time": 1.0, "stop_time": 4.0} | columns)) == expected


def test_events_that_do_not_lie_on_bin_edges_score_only_whole_bins(tmp_path):
    start = np.arange(20.0)
    table = pd.DataFrame({"start_time": start + 0.03, "stop_time": start + 0.97, "go_cue_time": start + 0.38})
    dataset = load(build_dataset([make_recording(trials=table)], tmp_path / "out", CONFIG), tmp_path)
    for _, row in rows_of(dataset):
        for trial in row["trials"]:
            bins = np.array(
                [trial[name] for name in ("start_bin", "scored_start_bin", "scored_stop_bin", "stop_bin")]
            )
            assert (bins - trial["start_bin"]).tolist() == [0, 4, 9, 10]
            assert trial["go_cue_bin"] - trial["start_bin"] == 3


def test_rows_never_span_a_gap(tmp_path):
    intervals = [[i, i + 0.9] for i in range(20)]
    recording = make_recording(obs_intervals=intervals)
    dataset = load(build_dataset([recording], tmp_path / "out", CONFIG), tmp_path)
    assert sum(len(dataset[split]) for split in dataset) == 20
    assert all(row["num_bins"] == 9 and row["num_context_bins"] == 0 for _, row in rows_of(dataset))


def test_excluded_trials_are_unscored_and_unlabelled_but_their_spikes_are_kept(tmp_path):
    recording = make_recording()
    entry = CorpusRecording(recording, excluded_trials={3: "result F", 4: "result F", 19: "result F"})
    folder = build_dataset([entry], tmp_path / "out", CONFIG)
    dataset = load(folder, tmp_path)
    assert {index for _, index in trial_splits(dataset)} == set(range(20)) - {3, 4, 19}
    assert sum(int(own_counts(row).sum()) for _, row in rows_of(dataset)) == recording.num_spikes
    for _, row in rows_of(dataset):
        times = row["start_time"] + (np.arange(row["num_bins"]) + 0.5) * 0.1
        excluded = np.isin(np.floor(times), [3, 4, 19])
        assert np.isnan(row_behavior(row)[excluded]).all()
    assert "3 trials result F (3, 4, 19)" in (folder / "README.md").read_text()
    for row in dataset["test"]:
        own = row["start_time"] + (np.arange(row["num_context_bins"], row["num_bins"]) + 0.5) * 0.1
        assert not np.isin(np.floor(own), [3, 4, 19]).any()


def test_bins_of_training_rows_without_trials_are_unlabelled_and_unscored(tmp_path):
    """Trial 0 is long and for test; trial 1, for training, lies within it: 1 to 2 s has no training trial."""
    starts = np.array([0.0, 0.2, 2.0, 3.0])
    table = pd.DataFrame({"start_time": starts, "stop_time": [1.0, 0.8, 2.8, 3.8]})
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"sessions": {"day1": {"train": [1, 3], "validation": [2], "test": [0]}}}))
    config = dataclasses.replace(CONFIG, split_file=str(path))
    recording = make_recording(trials=table, duration=4.0)
    dataset = load(build_dataset([recording], tmp_path / "out", config), tmp_path)
    without, with_trial = dataset["train"]
    assert without["trials"] == [] and (without["start_time"], without["num_bins"]) == (1.0, 10)
    assert not scored_bins(without).any() and np.isnan(row_behavior(without)).all()
    assert scored_bins(with_trial).sum() == 8


def test_a_split_file_decides_alone(tmp_path):
    lists = {"train": list(range(10)), "validation": [10, 11], "test": [12, 13, 14]}
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"sessions": {"day1": lists}}))
    entry = CorpusRecording(make_recording(), excluded_trials={0: "result F"})
    folder = build_dataset([entry], tmp_path / "out", dataclasses.replace(CONFIG, split_file=str(path)))
    splits = trial_splits(load(folder, tmp_path))
    assert {index for _, index in splits} == set(range(15))
    assert all(splits["day1", index] == {name} for name, indices in lists.items() for index in indices)
    build = json.loads((folder / "rpnt_build.json").read_text())
    assert build["sessions"][0]["excluded_trials"] == {"not named by the split file": [15, 16, 17, 18, 19]}
    assert build["options"]["split_file"]["file_name"] == "split.json"


def test_a_split_file_that_names_other_sessions_too_is_said(tmp_path, caplog):
    path = tmp_path / "split.json"
    path.write_text(
        json.dumps({"sessions": {name: {"train": [0], "test": [1]} for name in ("day1", "day9")}})
    )
    with caplog.at_level(logging.WARNING):
        build_dataset([make_recording()], tmp_path / "out", dataclasses.replace(CONFIG, split_file=str(path)))
    assert "also names ['day9']" in caplog.text


def test_trials_outside_the_observed_intervals_are_excluded_or_refused(tmp_path):
    recording = make_recording(obs_intervals=[[0.0, 15.0]])
    folder = build_dataset([recording], tmp_path / "out", CONFIG)
    build = json.loads((folder / "rpnt_build.json").read_text())
    assert build["sessions"][0]["excluded_trials"] == {"outside the observed intervals": [15, 16, 17, 18, 19]}
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"sessions": {"day1": {"train": [0], "test": [15]}}}))
    with pytest.raises(SplitError, match=r"must name observed trials, got \[15\] of session 'day1'"):
        build_dataset([recording], tmp_path / "out2", dataclasses.replace(CONFIG, split_file=str(path)))


def test_trials_without_a_start_or_stop_time_are_excluded(tmp_path):
    recording = make_recording()
    trials = recording.trials.copy()
    trials.loc[[3, 5], "start_time"], trials.loc[[0, 5, 8], "stop_time"] = np.nan, np.nan
    recording = make_recording(trials=trials)
    folder = build_dataset([recording], tmp_path / "out", CONFIG)
    build = json.loads((folder / "rpnt_build.json").read_text())
    assert build["sessions"][0]["excluded_trials"] == {
        "without a start time": [3, 5],
        "without a stop time": [0, 8],
    }
    dataset = load(folder, tmp_path)
    assert {index for _, index in trial_splits(dataset)} == set(range(20)) - {0, 3, 5, 8}
    assert sum(int(own_counts(row).sum()) for _, row in rows_of(dataset)) == recording.num_spikes
    for _, row in rows_of(dataset):
        times = row["start_time"] + (np.arange(row["num_bins"]) + 0.5) * 0.1
        assert np.isnan(row_behavior(row)[np.isin(np.floor(times), [0, 8])]).all()
        assert not scored_bins(row)[np.isin(np.floor(times), [0, 3, 5, 8])].any()
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"sessions": {"day1": {"train": [1], "test": [8]}}}))
    with pytest.raises(SplitError, match=r"got \[8\] of session 'day1', the first being without a stop time"):
        build_dataset([recording], tmp_path / "out2", dataclasses.replace(CONFIG, split_file=str(path)))


@pytest.mark.parametrize("behavior", [("cursor_vel",), ()])
def test_a_series_that_cannot_be_used_is_refused_with_its_reason_where_it_is_wanted(tmp_path, behavior):
    times = np.arange(2000) / 100
    times[7] = times[6]
    path = reach_file(tmp_path / "a.nwb", behavior=[series(timestamps=times), series("hand_vel")])
    reason = r"behaviour cursor_vel, .*'cursor_vel' cannot be used: .* increase strictly"
    with pytest.raises(RecordingError, match=reason):
        build_dataset([path], tmp_path / "out", dataclasses.replace(CONFIG, behavior=behavior))
    folder = build_dataset([path], tmp_path / "out", dataclasses.replace(CONFIG, behavior=("hand_vel",)))
    assert "series 'cursor_vel' cannot be used" in (folder / "README.md").read_text()


def test_blocks_stand_for_trials_and_guards_keep_splits_apart(tmp_path):
    recording = make_recording(trials=False, duration=200.0)
    dataset = load(build_dataset([recording], tmp_path / "out", CONFIG), tmp_path)
    assert sum(int(own_counts(row).sum()) for _, row in rows_of(dataset)) == recording.num_spikes
    splits = trial_splits(dataset)
    assert sorted(index for _, index in splits) == list(range(40))
    scored = {"train": [], "validation": [], "test": []}
    training = []
    for split, row in rows_of(dataset):
        bins = round(row["start_time"] / 0.1) + np.arange(row["num_bins"])
        scored[split].extend(bins[scored_bins(row)])
        if split == "train":
            training.extend(bins)
    assert len(scored["test"]) == 8 * 50
    for held_out in ("validation", "test"):
        assert np.abs(np.subtract.outer(scored[held_out], training)).min() > 10
    assert np.abs(np.subtract.outer(scored["test"], scored["validation"])).min() > 10


def test_a_folder_that_was_built_again_is_read_as_it_is_now(tmp_path):
    for bin_size, parent in ((0.1, "one"), (0.05, "two")):
        config = dataclasses.replace(CONFIG, bin_size=bin_size)
        folder = build_dataset([make_recording()], tmp_path / parent / "dataset", config)
        loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
        assert loaded["train"][0]["bin_size"] == bin_size


def test_a_built_folder_loads_without_this_package(tmp_path):
    folder = build_dataset([make_recording()], tmp_path / "out", CONFIG)
    code = f"""
import sys, datasets
dataset = datasets.load_dataset({str(folder)!r}, cache_dir={str(tmp_path / "cache")!r})
row = dataset["test"][0]
assert len(row["counts"]) == row["num_bins"] * len(row["unit_ids"])
stream = datasets.load_dataset({str(folder)!r}, split="train", streaming=True)
assert list(stream)[0]["session_id"] == "day1"  # to its end: threads that still read abort the exit
assert not any(name.startswith("rpnt_hf") for name in sys.modules)
print(sum(len(dataset[split]) for split in dataset))
"""
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert int(output.stdout) > 3


def test_parts_of_a_corpus_are_configs_of_the_folder(tmp_path):
    entries = [CorpusRecording(make_recording(name), name) for name in ("center_out", "random_target")]
    folder = build_dataset(entries, tmp_path / "out", CONFIG)
    assert datasets.get_dataset_config_names(str(folder)) == ["center_out", "random_target"]
    assert set(load(folder, tmp_path, "random_target")["train"]["session_id"]) == {"random_target"}


def test_the_card_lists_sessions_splits_and_options(tmp_path):
    path = reach_file(tmp_path / "sub-X_ses-CO-20200304_behavior+ecephys.nwb")
    folder = build_dataset([path], tmp_path / "out", CONFIG)
    text = (folder / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert [part["split"] for part in head["configs"][0]["data_files"]] == ["train", "validation", "test"]
    assert (
        "| default | sub-X_ses-CO-20200304 | X | center_out | 2020-03-04 | 3 (0) | M1 | 150 | 150 |" in text
    )
    assert "| `bin_size` | `0.1` |" in text and str(tmp_path) not in text
    build = json.loads((folder / "rpnt_build.json").read_text())
    assert build["options"]["bin_size"] == 0.1 and build["sessions"][0]["trials"]["train"] == 14
    assert str(tmp_path) not in (folder / "rpnt_build.json").read_text()


def test_equal_builds_give_equal_rows(tmp_path):
    first, second = (
        load(build_dataset([make_recording()], tmp_path / name, CONFIG), tmp_path / name)
        for name in ("a", "b")
    )
    for split in first:
        assert repr(first[split].to_list()) == repr(second[split].to_list())  # NaN is not equal to NaN


def test_rows_pass_many_row_groups_and_files(tmp_path, monkeypatch):
    monkeypatch.setattr("rpnt_hf.data.shards.ROWS_PER_GROUP", 2)
    monkeypatch.setattr("rpnt_hf.data.shards.BYTES_PER_SHARD", 1)
    folder = build_dataset([make_recording(duration=60.0)], tmp_path / "out", CONFIG)
    assert len(list(folder.glob("default/train-*.parquet"))) > 3
    assert sum(int(own_counts(row).sum()) for _, row in rows_of(load(folder, tmp_path))) == 800


def test_velocity_is_derived_only_where_asked(tmp_path):
    times = np.arange(2000) / 100
    position = BehaviorSeries("cursor_pos", times, np.stack([3 * times, -times], 1), ["x", "y"], "cm")
    recording = make_recording(behavior={"cursor_pos": position})
    with pytest.raises(
        RecordingError, match=r"cursor_vel or hand_vel, got \['cursor_pos'\] in session 'day1'"
    ):
        build_dataset([recording], tmp_path / "out", CONFIG)
    folder = build_dataset([recording], tmp_path / "out", dataclasses.replace(CONFIG, derive_velocity=True))
    row = load(folder, tmp_path)["train"][0]
    assert row["behavior_names"] == ["cursor_vel_x", "cursor_vel_y"]
    np.testing.assert_allclose(row_behavior(row)[scored_bins(row)].mean(axis=0), [3.0, -1.0], rtol=1e-3)


def test_files_of_one_session_share_units_and_number_their_blocks_on(tmp_path):
    files = [
        write_nwb(
            tmp_path / f"ses-{name}.nwb",
            [[0.1, 15.0], [3.0]],
            [series()],
            obs_intervals=np.array([[0.0, 20.0]]),
        )
        for name in ("A1", "A2", "B1")
    ]
    config = dataclasses.replace(CONFIG, session_pattern="ses-([A-Z])")
    splits = trial_splits(load(build_dataset(files, tmp_path / "out", config), tmp_path))
    assert sorted(splits) == [("A", index) for index in range(8)] + [("B", index) for index in range(4)]
    with pytest.raises(DatasetError, match="`session_pattern` must match the name of every file, got 'run-'"):
        build_dataset(files, tmp_path / "out2", dataclasses.replace(CONFIG, session_pattern="run-"))


def test_files_of_one_session_with_other_units_are_refused(tmp_path):
    observed = np.array([[0.0, 20.0]])
    files = [
        write_nwb(tmp_path / "ses-A1.nwb", [[0.1], [3.0]], [series()], obs_intervals=observed),
        write_nwb(tmp_path / "ses-A2.nwb", [[0.1]], [series()], obs_intervals=observed),
    ]
    with pytest.raises(RecordingError, match="must have the same units, got 2 and 1 units"):
        build_dataset(files, tmp_path / "out", dataclasses.replace(CONFIG, session_pattern="ses-([A-Z])"))


def test_spikes_without_behavior_are_taken_only_where_allowed(tmp_path):
    recording = make_recording(behavior={})
    with pytest.raises(RecordingError, match="must have the behaviour cursor_vel or hand_vel, got no series"):
        build_dataset([recording], tmp_path / "out", CONFIG)
    folder = build_dataset([recording], tmp_path / "out", dataclasses.replace(CONFIG, allow_no_behavior=True))
    row = load(folder, tmp_path)["train"][0]
    assert row["behavior"] == b"" and row["behavior_names"] == [] and not scored_bins(row).any()


def test_a_misspelt_series_is_answered_with_the_closest(tmp_path):
    with pytest.raises(RecordingError, match=r"behaviour cursor_vle, .*Did you mean `cursor_vel`"):
        build_dataset(
            [make_recording()], tmp_path / "out", dataclasses.replace(CONFIG, behavior=("cursor_vle",))
        )


def short_series(value=0.0):
    times = np.arange(1000) / 100
    return {"cursor_vel": BehaviorSeries("cursor_vel", times, np.full((1000, 2), value), ["x", "y"], "cm/s")}


@pytest.mark.parametrize(
    ("recordings", "config", "error", "message"),
    [
        ([], {}, DatasetError, "at least one recording, got none"),
        ([make_recording(), make_recording()], {}, DatasetError, "must be unique, got 'day1' twice"),
        ([make_recording(), "missing.nwb"], {}, RecordingError, "must be an NWB file, got 'missing.nwb'"),
        (
            [make_recording(behavior=short_series())],
            {},
            RecordingError,
            "must span all trials, got 'cursor_vel'",
        ),
        (
            [make_recording()],
            {"bin_size": 0.9},
            BinningError,
            "longer than a trial, got 0.9 s where trial 0 lasts",
        ),
        ([make_recording(duration=2.0)], {}, SplitError, "at least 3 trials or blocks"),
        ([make_recording(trials=False)], {"guard": 3.0}, SplitError, "must be longer than two guards"),
        (
            [make_recording(behavior=short_series(np.nan), trials=False)],
            {},
            RecordingError,
            "behaviour in at least one bin of a trial, got none of",
        ),
    ],
)
def test_a_build_that_fails_leaves_nothing(tmp_path, recordings, config, error, message):
    with pytest.raises(error, match=message):
        build_dataset(recordings, tmp_path / "new" / "out", dataclasses.replace(CONFIG, **config))
    assert list((tmp_path / "new").iterdir()) == []


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(
        DatasetError, match=r"must not exist or be an empty folder, got .* which holds something"
    ):
        build_dataset([make_recording()], tmp_path / "out", CONFIG)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    build_dataset([make_recording()], tmp_path / "out", CONFIG)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "default",
        "rpnt_build.json",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"bin_size": 0.0}, BinningError, "`bin_size` must be above 0 s"),
        ({"context_length": -1.0}, ConfigurationError, "`context_length` must be at least 0, got -1.0"),
        ({"guard": float("nan")}, ConfigurationError, "`guard` must be at least 0, got nan"),
        ({"block_length": 0.0}, ConfigurationError, "`block_length` must be above 0 s"),
        ({"license": "CC BY 4.0"}, ConfigurationError, "`license` must be an identifier in lower case"),
    ],
)
def test_options_out_of_range_are_refused(config, error, message):
    with pytest.raises(error, match=message):
        BuilderConfig(**({"bin_size": 0.1} | config))


def test_a_real_session_has_its_known_numbers(tmp_path, shared_data):
    path = next(shared_data.glob("reach/sub-X*.nwb"))
    config = BuilderConfig(bin_size=0.05, split_file=str(shared_data / "reach_split.json"))
    folder = build_dataset([path], tmp_path / "out", config)
    dataset = load(folder, tmp_path)
    assert {split: sum(int(scored_bins(row).sum()) for row in dataset[split]) for split in dataset} == {
        "train": 8785,
        "validation": 1255,
        "test": 2492,
    }
    assert (
        sum(int(own_counts(row).sum()) for _, row in rows_of(dataset))
        == read_nwb(path).num_spikes
        == 1_073_553
    )


def test_a_bin_size_in_milliseconds_is_refused():
    with pytest.raises(
        BinningError, match=r"`bin_size` must be a width in seconds .*got 50\. .* by 1000: 0\.05"
    ):
        dataclasses.replace(CONFIG, bin_size=50)
