"""Trials of different days, paired: by condition, inside a split, aligned, each used once, seeded."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from rpnt_hf.data.builder import BuilderConfig, build_dataset
from rpnt_hf.data.loading import load_rows, unit_means, view_rows
from rpnt_hf.data.nwb import BehaviorSeries, Recording
from rpnt_hf.data.pairing import PairingConfig, pair_days
from rpnt_hf.data.rows import row_behavior, row_counts, row_observed, row_site_observed
from rpnt_hf.data.windows import WindowCollator, WindowDataset, WindowSampler
from rpnt_hf.errors import ConfigurationError, RecordingError
from rpnt_hf.processing_rpnt import RPNTProcessor

BIN_SIZE = 0.05
DIRECTIONS = (0.0, np.pi)


def make_day(name, num_trials, seed, subject_id="N", num_units=2):
    """Each trial lasts 2 s; unit 0 fires at the go cue, 0.8 to 1.2 s after the start; speed is the trial."""
    rng = np.random.default_rng(seed)
    starts = np.arange(num_trials) * 3.0 + 0.1
    cues = starts + rng.uniform(0.8, 1.2, num_trials)
    times = np.arange(0, num_trials * 3.0 + 1, 0.01)
    trial = np.searchsorted(starts, times + 1e-9) - 1
    return Recording.from_arrays(
        name,
        [cues + 0.001, *(np.sort(rng.uniform(0, times[-1], 40 * num_trials)) for _ in range(num_units - 1))],
        trials=pd.DataFrame(
            {
                "start_time": starts,
                "stop_time": starts + 2.0,
                "go_cue_time": cues,
                "target_dir": [DIRECTIONS[index % 2] for index in range(num_trials)],
                "result": "R",
            }
        ),
        behavior={"cursor_vel": BehaviorSeries("cursor_vel", times, trial.astype(float), [""], "cm/s")},
        obs_intervals=np.array([[0.0, times[-1]]]),
        unit_ids=[f"u{unit}" for unit in range(num_units)],
        site_ids=["M1"],
        site_positions=np.array([[float(seed), 0.0, 1.0]]),
        subject_id=subject_id,
        task="center_out",
    )


def make_splits(num_trials):
    return [("train", "train", "test", "validation", None)[index % 5] for index in range(num_trials)]


@pytest.fixture(scope="module")
def days():
    sizes = {"a": 40, "b": 30, "c": 20}
    return [
        (make_day(name, size, seed, num_units=2 + seed), make_splits(size))
        for seed, (name, size) in enumerate(sizes.items())
    ]


@pytest.fixture(scope="module")
def rows(days, tmp_path_factory):
    entry = pair_days(days, PairingConfig(BIN_SIZE, before=0.5, after=0.75, seed=4))
    folder = build_dataset([entry], tmp_path_factory.mktemp("paired") / "data", BuilderConfig(BIN_SIZE))
    return {split: view_rows(load_rows(folder, split=split)) for split in ("train", "validation", "test")}


def partners(rows):
    return [json.loads(row["trials"][0]["trial_columns"])["paired_trials"] for row in rows]


def test_trials_of_a_pair_share_condition_and_split_and_each_is_used_once(days, rows):
    for split, found in rows.items():
        for day, (_, splits) in enumerate(days):
            used = [trials[day] for trials in partners(found) if trials[day] >= 0]
            assert sorted(used) == [index for index, own in enumerate(splits) if own == split]
        for row, trials in zip(found, partners(found), strict=True):
            directions = {
                recording.trials["target_dir"][trial]
                for (recording, _), trial in zip(days, trials, strict=True)
                if trial >= 0
            }
            assert len(directions) == 1 and row["trials"][0]["target_dir"] == pytest.approx(directions.pop())


def test_all_trials_of_a_pair_have_their_event_in_the_same_bin(rows):
    for row in [row for found in rows.values() for row in found]:
        assert row["num_bins"] == 25 and row["trials"][0]["go_cue_bin"] == 10
        first_units = [row["unit_sites"].index(site) for site in range(3)]
        present = row_site_observed(row)[10]
        np.testing.assert_array_equal(row_counts(row)[10, first_units], present)
        assert row_counts(row)[:, first_units].sum() == present.sum()


def test_the_spikes_of_a_piece_are_those_of_its_trial(days, rows):
    row = rows["train"][0]
    (recording, _), trial = days[0], partners(rows["train"])[0][0]
    edges = recording.trials["go_cue_time"][trial] + (np.arange(26) - 10) * BIN_SIZE
    inside = np.histogram(recording.spike_times[1], edges)[0]
    counts = row_counts(row)[:, 1]
    observed = row_site_observed(row)[:, 0]
    assert observed.sum() >= 20 and (counts[observed] == inside[observed]).mean() > 0.9
    assert counts.sum() == pytest.approx(inside[observed].sum(), abs=1)


def test_a_day_with_fewer_trials_is_absent_from_some_pairs_and_its_counts_are_none(rows):
    absent = [(row, trials) for row, trials in zip(rows["train"], partners(rows["train"]), strict=True)]
    missing = [row for row, trials in absent if trials[2] == -1]
    assert missing
    for row in missing:
        assert not row_site_observed(row)[:, 2].any() and row_site_observed(row)[:, 0].any()
        assert not row_counts(row)[:, np.array(row["unit_sites"]) == 2].any()


def test_bins_beyond_a_trial_are_not_recorded_at_its_site():
    days = [(make_day(name, 10, seed), ["train"] * 10) for seed, name in enumerate("ab")]
    entry = pair_days(days, PairingConfig(BIN_SIZE, before=2.0, after=2.0))
    assert all(0.8 < np.diff(site).max() <= 2.0 for site in entry.site_intervals)
    starts = entry.recording.obs_intervals[:, 0]
    for site, times in zip(entry.recording.unit_sites, entry.recording.spike_times, strict=True):
        intervals = entry.site_intervals[site]
        which = np.searchsorted(intervals[:, 0] - 1e-6, times, side="right") - 1
        assert (times < intervals[which, 1] + 1e-6).all()
    assert len(starts) == 10


def test_the_same_seed_pairs_alike_and_another_one_otherwise(days):
    def drawn(seed):
        return pair_days(days, PairingConfig(BIN_SIZE, seed=seed)).recording.trials["paired_trials"].tolist()

    assert drawn(1) == drawn(1) != drawn(2)


def test_behaviour_is_the_mean_over_the_days_that_are_there(days, rows):
    for row, trials in zip(rows["test"], partners(rows["test"]), strict=True):
        assert row["behavior_names"] == ["cursor_vel"]
        expected = np.mean([trial for trial in trials if trial >= 0])
        assert row_behavior(row)[10, 0] == pytest.approx(expected)


def test_the_card_tells_how_days_were_paired(days, tmp_path):
    entry = pair_days(days, PairingConfig(BIN_SIZE, align="go_cue", seed=7))
    folder = build_dataset([entry], tmp_path / "data", BuilderConfig(BIN_SIZE))
    card = (folder / "README.md").read_text()
    assert "aligned on go_cue" in card and "seed 7" in card and "paired day 'b'" in card
    assert "8 in no split" in card  # of day a, every fifth of 40


def test_what_days_do_not_share_is_unknown_and_names_tell_them_apart(days):
    recording = pair_days(days, PairingConfig(BIN_SIZE)).recording
    assert recording.recording_date is None and recording.subject_id == "N"
    assert recording.site_ids == ["a:M1", "b:M1", "c:M1"]
    assert recording.unit_ids[:3] == ["a:u0", "a:u1", "b:u0"]
    np.testing.assert_array_equal(recording.site_positions[:, 0], [0, 1, 2])


def test_windows_and_processor_take_a_site_that_is_absent_as_absent(rows):
    found = rows["train"]
    processor = RPNTProcessor.from_rows([row for one in rows.values() for row in one])
    sampler = WindowSampler(found, 25, 8, training=False)
    batch = WindowCollator(found, processor)(WindowDataset(found).__getitems__(sampler.batches(0)[0]))
    for number, row in enumerate(found[: len(batch["bin_mask"])]):
        np.testing.assert_array_equal(batch["bin_mask"][number], row_site_observed(row).T)
        np.testing.assert_array_equal(processor(row)["bin_mask"][0], row_site_observed(row).T)
        assert row_observed(row).tolist() == row_site_observed(row).any(axis=1).tolist()


def test_the_mean_count_of_a_unit_is_over_the_bins_of_its_site(rows):
    found = rows["train"]
    (means,) = unit_means(found).values()
    bins = sum(row_site_observed(row)[:, 2].sum() for row in found)
    spikes = sum(row_counts(row)[:, -1].sum(dtype=int) for row in found)
    assert means[-1] == pytest.approx(spikes / bins)


def test_days_that_cannot_be_paired_are_refused(days):
    with pytest.raises(RecordingError, match="at least two, of one subject and one task, got 1"):
        pair_days(days[:1], PairingConfig(BIN_SIZE))
    other = (make_day("d", 10, 5, subject_id="M"), make_splits(10))
    with pytest.raises(RecordingError, match="of one subject and one task, got 2"):
        pair_days([days[0], other], PairingConfig(BIN_SIZE))
    with pytest.raises(RecordingError, match="must have trials with a condition and `move_onset_time`"):
        pair_days(days, PairingConfig(BIN_SIZE, align="move_onset"))
    with pytest.raises(ConfigurationError, match="`before` must be a whole number of bins"):
        PairingConfig(BIN_SIZE, before=0.12)


def test_trials_that_failed_are_not_paired(days):
    recording, splits = days[0]
    failed = dataclasses.replace(recording, trials=recording.trials.assign(result=["F", "R"] * 20))
    entry = pair_days([(failed, splits), days[1]], PairingConfig(BIN_SIZE))
    used = [trials[0] for trials in entry.recording.trials["paired_trials"]]
    assert all(trial % 2 for trial in used if trial >= 0)
    assert any("not rewarded" in note for note in entry.notes)
