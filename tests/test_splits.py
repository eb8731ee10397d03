"""Splits of trials and blocks: no overlap, guards, and split files."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpnt_hf.data.splits import SPLITS, SplitFile, draw_split, make_blocks, split_bins
from rpnt_hf.errors import SplitError


@settings(max_examples=100, deadline=None)
@given(st.integers(3, 300), st.integers(1, 9), st.integers(0, 5))
def test_a_drawn_split_has_the_asked_proportions_in_every_stratum(num_trials, num_strata, seed):
    strata = [str(index % num_strata) for index in range(num_trials)]
    splits = draw_split(strata, "day1", seed)
    assert splits.count("validation") == max(1, round(0.1 * num_trials))
    assert splits.count("test") == max(1, round(0.2 * num_trials))
    assert splits.count("train") >= 1
    for name in set(strata):
        own = [split for split, stratum in zip(splits, strata, strict=True) if stratum == name]
        assert abs(own.count("test") - 0.2 * len(own)) <= 2


def test_a_split_depends_on_seed_and_session_only():
    strata = ["a"] * 50
    assert draw_split(strata, "day1", 0) == draw_split(strata, "day1", 0)
    assert draw_split(strata, "day1", 0) != draw_split(strata, "day1", 1)
    assert draw_split(strata, "day1", 0) != draw_split(strata, "day2", 0)


def test_a_part_of_zero_gets_no_trial():
    assert set(draw_split(["a"] * 10, "day1", 0, (1.0, 0.0, 0.0))) == {"train"}


@pytest.mark.parametrize("proportions", [(0.5, 0.5), (0.7, 0.1, 0.1), (0.0, 0.5, 0.5), (1.2, -0.1, -0.1)])
def test_proportions_that_are_none_are_refused(proportions):
    with pytest.raises(SplitError, match="`proportions` must be three parts"):
        draw_split(["a"] * 10, "day1", 0, proportions)


def test_two_trials_cannot_be_divided():
    with pytest.raises(SplitError, match="at least 3 trials or blocks to be divided, got 2 in 'day1'"):
        draw_split(["a", "b"], "day1", 0)


def test_blocks_tile_every_interval():
    blocks = make_blocks(np.array([[0.0, 17.0], [20.0, 23.0], [30.0, 30.05]]), 0.1, 5.0, 1.0)
    assert blocks["start_time"].tolist() == [0.0, 5.0, 10.0, 20.0]
    np.testing.assert_allclose(blocks["stop_time"], [5.0, 10.0, 17.0, 23.0])


def test_a_block_must_be_longer_than_two_guards():
    with pytest.raises(
        SplitError, match=r"`block_length` must be longer than two guards, got 2.0 s with a `guard` of 1.0"
    ):
        make_blocks(np.array([[0.0, 17.0]]), 0.1, 2.0, 1.0)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*SPLITS, None]), min_size=1, max_size=12), st.integers(0, 2**31))
def test_every_bin_of_a_test_trial_is_in_test_and_excluded_trials_never_are(splits, seed):
    rng = np.random.default_rng(seed)
    first = np.cumsum(rng.integers(0, 6, len(splits))) + 1
    stop = first + rng.integers(1, 8, len(splits))
    num_bins = int(stop.max()) + 3
    bins, excluded = split_bins(num_bins, first, stop, splits)
    for index, split in enumerate(splits):
        own = np.arange(num_bins) >= first[index]
        own &= np.arange(num_bins) < stop[index]
        if split == "test":
            assert (bins[own] == 2).all() and not excluded[own].any()
        if split == "validation":
            assert (bins[own] >= 1).all()
    if "test" not in splits:
        assert (bins < 2).all()
    if all(split is None for split in splits):
        assert excluded.all() and (bins == 0).all()


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (["train", None, "test"], [0, 0, 0, 0, 2, 2]),
        (["test", None, "train"], [2, 2, 0, 0, 0, 0]),
        (["validation", None, "test"], [1, 1, 1, 1, 2, 2]),
        (["test", None, "test"], [2, 2, 0, 0, 2, 2]),
        ([None, "validation", "train"], [1, 1, 1, 1, 0, 0]),
        ([None, "test", "train"], [0, 0, 2, 2, 0, 0]),
    ],
)
def test_segments_of_excluded_trials_join_a_neighbour_that_is_not_test(splits, expected):
    bins, excluded = split_bins(6, np.array([0, 2, 4]), np.array([2, 4, 6]), splits)
    assert bins.tolist() == expected
    assert excluded.reshape(3, 2).all(axis=1).tolist() == [split is None for split in splits]


def test_bins_before_the_first_trial_and_between_trials_join_the_segment_before():
    bins, _ = split_bins(10, np.array([2, 6]), np.array([4, 8]), ["test", "train"])
    assert bins.tolist() == [2, 2, 2, 2, 2, 2, 0, 0, 0, 0]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(SPLITS), min_size=1, max_size=15), st.integers(0, 3))
def test_no_training_bin_lies_within_the_guard_of_a_held_out_block(splits, guard_bins):
    first = np.arange(len(splits)) * 8
    bins, _ = split_bins(8 * len(splits), first, first + 8, splits, guard_bins)
    blocks = np.repeat([SPLITS.index(split) for split in splits], 8)
    assert (bins[blocks == 2] == 2).all() and (bins >= blocks).all()
    for distance in range(1, guard_bins + 1):
        apart = (
            np.stack([blocks[:-distance], bins[distance:]]),
            np.stack([blocks[distance:], bins[:-distance]]),
        )
        for block, other in apart:
            assert not ((block == 2) & (other < 2)).any()
            assert not ((block == 1) & (other == 0)).any()
    for index, split in enumerate(splits):
        assert (bins[first[index] : first[index] + 8] == SPLITS.index(split)).any()


def write(tmp_path, content):
    path = tmp_path / "split.json"
    path.write_text(json.dumps(content))
    return path


def test_both_forms_of_split_file_are_read(tmp_path):
    lists = {"train": [0, 1], "test": [3]}
    several = SplitFile.read(write(tmp_path, {"sessions": {"day1": lists}}))
    assert several.splits_of("day1", None, 5) == {0: "train", 1: "train", 3: "test"}
    single = SplitFile.read(write(tmp_path, {"file": "folder/a.nwb", "trials": lists, "bin_size": 0.1}))
    assert single.splits_of("any", "a.nwb", 5) == {0: "train", 1: "train", 3: "test"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must have `sessions`, or `file` and `trials`"),
        ({"sessions": {"day1": {"training": [0]}}}, r"one of .*, got \['training'\] for 'day1'"),
        ({"sessions": {"day1": {"train": [0], "test": [0]}}}, "trial 0 of 'day1' in train and test"),
        ({"sessions": {"day1": {"train": ["0"]}}}, "named by its index, got '0'"),
        ({"sessions": {"day1": {"train": []}}}, "at least one trial in a split, got none for 'day1'"),
    ],
)
def test_a_split_file_that_breaks_a_rule_is_refused(tmp_path, content, message):
    with pytest.raises(SplitError, match=message):
        SplitFile.read(write(tmp_path, content))


def test_a_split_file_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "split.json").write_text("{")
    with pytest.raises(SplitError, match="must be a JSON file"):
        SplitFile.read(tmp_path / "split.json")
    with pytest.raises(SplitError, match="must be a JSON file"):
        SplitFile.read(tmp_path / "missing.json")


def test_a_session_or_trial_that_is_not_there_is_refused(tmp_path):
    split = SplitFile.read(write(tmp_path, {"sessions": {"day1": {"train": [0, 7]}}}))
    with pytest.raises(SplitError, match=r"nothing for session 'day2'.*Did you mean `day1`"):
        split.splits_of("day2", None, 9)
    with pytest.raises(SplitError, match=r"trials from 0 to 6, got \[7\] for session 'day1'"):
        split.splits_of("day1", None, 7)
