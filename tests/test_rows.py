"""Rows of a built dataset, written by hand, and what is read out of them."""

import datasets
import numpy as np
import pytest

from rpnt_hf.data import loading
from rpnt_hf.data.rows import reach_bins, row_behavior, row_counts, row_observed, scored_bins
from rpnt_hf.errors import DatasetError


def make_row(trials, num_context_bins=2, observed=None, behavior=None):
    """Ten bins, three units, two targets."""
    counts = np.arange(30, dtype=np.uint8).reshape(10, 3)
    behavior = np.ones((10, 2), dtype=np.float32) if behavior is None else behavior
    observed = np.ones(10, dtype=np.uint8) if observed is None else observed
    return {
        "session_id": "a",
        "start_time": 0.0,
        "num_bins": 10,
        "num_context_bins": num_context_bins,
        "unit_ids": ["0", "1", "2"],
        "counts": counts.tobytes(),
        "observed": observed.tobytes(),
        "behavior": behavior.tobytes(),
        "behavior_names": ["vel_x", "vel_y"][: behavior.shape[1]],
        "trials": trials,
    }


def make_trial(scored_start_bin, scored_stop_bin, go_cue_bin):
    return {
        "scored_start_bin": scored_start_bin,
        "scored_stop_bin": scored_stop_bin,
        "go_cue_bin": go_cue_bin,
    }


def test_counts_are_bins_by_units_and_share_memory_with_the_row():
    counts = row_counts(make_row([]))
    assert counts.shape == (10, 3) and counts.dtype == np.uint8
    assert counts[4].tolist() == [12, 13, 14]
    assert not counts.flags.writeable and not counts.flags.owndata


def test_observed_and_behavior_have_one_entry_per_bin():
    row = make_row([])
    assert row_observed(row).tolist() == [True] * 10
    assert row_behavior(row).shape == (10, 2)


def test_scored_bins_are_the_scored_intervals_of_the_trials():
    row = make_row([make_trial(2, 4, 3), make_trial(6, 9, 8)])
    assert np.flatnonzero(scored_bins(row)).tolist() == [2, 3, 6, 7, 8]
    assert np.flatnonzero(reach_bins(row)).tolist() == [3, 8]


def test_context_bins_are_never_scored():
    row = make_row([make_trial(0, 5, 1)], num_context_bins=3)
    assert np.flatnonzero(scored_bins(row)).tolist() == [3, 4]
    assert np.flatnonzero(reach_bins(row)).tolist() == [3, 4]


def test_without_trials_every_bin_after_the_context_is_scored():
    assert np.flatnonzero(scored_bins(make_row([]))).tolist() == list(range(2, 10))
    assert not reach_bins(make_row([])).any()


def test_a_trial_without_a_go_cue_has_no_reach():
    assert not reach_bins(make_row([make_trial(2, 8, -1)])).any()


def test_unobserved_bins_and_bins_without_behavior_are_not_scored():
    behavior = np.ones((10, 2), dtype=np.float32)
    behavior[4, 1] = np.nan
    observed = np.ones(10, dtype=np.uint8)
    observed[6] = 0
    row = make_row([make_trial(3, 8, 5)], behavior=behavior, observed=observed)
    assert np.flatnonzero(scored_bins(row)).tolist() == [3, 5, 7]


def test_a_row_without_behavior_scores_nothing():
    row = make_row([make_trial(3, 8, 5)], behavior=np.ones((10, 0), dtype=np.float32))
    assert row_behavior(row).shape == (10, 0)
    assert not scored_bins(row).any()


def test_counts_that_do_not_fill_the_bins_are_refused():
    row = make_row([]) | {"counts": b"123"}
    with pytest.raises(
        DatasetError, match=r"`counts` must hold 10 x 3 values, got 3 in the row of session 'a'"
    ):
        row_counts(row)


def test_trials_are_counted_with_one_look_at_each_row(monkeypatch):
    looks = []
    monkeypatch.setattr(loading, "scored_bins", lambda row: looks.append(row) or scored_bins(row))
    trials = [make_trial(2, 4, 3) | {"start_bin": 2, "stop_bin": 4} for _ in range(2)]
    rows = [make_row(trials), make_row([])]
    assert loading.select_trials(rows)[1] == 2
    assert len(looks) == 2


def test_rows_without_a_source_are_refused(tmp_path):
    columns = {name: [0] for name in loading.COLUMNS if name != "source"}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "train-00000.parquet")
    with pytest.raises(DatasetError, match="but source are missing"):
        loading.load_rows(tmp_path)
