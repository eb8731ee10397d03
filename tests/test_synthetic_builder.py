"""The synthetic corpus: simulated, written as NWB, built by the ordinary path."""

import argparse

import datasets
import numpy as np
import pytest

from rpnt_hf.data.nwb import read_nwb
from rpnt_hf.data.rows import row_behavior, row_counts, scored_bins
from rpnt_hf.errors import BinningError, DatasetError
from rpnt_hf.evaluation.comparators import KalmanDecoder, RidgeDecoder
from rpnt_hf.metrics import r2_scores
from rpnt_hf.scripts import load_builder


def build(folder, *options):
    builder = load_builder("synthetic")
    parser = argparse.ArgumentParser()
    builder.add_arguments(parser)
    common = ["--out", str(folder / "dataset"), "--nwb-dir", str(folder / "nwb"), "--bin-size", "0.05"]
    return builder.build(parser.parse_args([*common, *options]))


def load(folder, name):
    return datasets.load_dataset(str(folder / "dataset"), name, cache_dir=str(folder / "cache"))


SMALL = ("--num-subjects", "1", "--num-units", "4", "--num-trials", "12")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    build(folder, *SMALL, "--tasks", "center_out", "random_target", "--num-sites", "2")
    return folder


def test_a_corpus_is_built_from_the_nwb_files_that_it_leaves(corpus):
    files = sorted(path.relative_to(corpus / "nwb") for path in corpus.rglob("*.nwb"))
    assert [path.parts[0] for path in files] == ["sub-A", "sub-A"]
    assert [path.name[:12] for path in files] == ["sub-A_ses-CO", "sub-A_ses-RT"]
    for path, name in zip(files, ("center_out", "random_target"), strict=True):
        splits = load(corpus, name)
        assert set(splits) == {"train", "validation", "test"}
        recording = read_nwb(corpus / "nwb" / path)
        row = splits["train"][0]
        assert row["session_id"] == recording.session_id
        assert row["unit_ids"] == recording.unit_ids
        assert row["source"]["file_name"] == path.name
        assert row["behavior_names"] == ["cursor_vel_x", "cursor_vel_y"]
        np.testing.assert_allclose(row["site_positions"], recording.site_positions)
        own = [
            int(row_counts(row)[row["num_context_bins"] :].sum())
            for split in splits.values()
            for row in split
        ]
        spikes = sum(times.size for times in recording.spike_times)
        assert abs(sum(own) - spikes) <= 4  # less than one bin at the end of the recording


def test_failed_trials_are_in_no_split(corpus):
    splits = load(corpus, "center_out")
    recording = read_nwb(next((corpus / "nwb").rglob("*CO*.nwb")))
    rewarded = np.flatnonzero(recording.trials["result"] == "R")
    used = [trial["trial_index"] for split in splits.values() for row in split for trial in row["trials"]]
    assert sorted(used) == rewarded.tolist()


def test_random_target_trials_are_scored_from_the_first_go_cue(corpus):
    row = load(corpus, "random_target")["train"][0]
    for trial in row["trials"]:
        assert trial["scored_start_bin"] - trial["go_cue_bin"] in (0, 1)
        assert trial["scored_stop_bin"] <= trial["stop_bin"]


def test_a_failed_build_leaves_nothing(tmp_path):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.txt").write_text("keep")
    with pytest.raises(DatasetError, match="holds something"):
        build(tmp_path, *SMALL)
    with pytest.raises(BinningError, match="bin_size"):
        build(tmp_path / "other", *SMALL, "--bin-size", "0")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["dataset", "mine.txt"]


def test_a_folder_of_nwb_files_that_holds_something_is_refused(corpus):
    with pytest.raises(DatasetError, match="`--nwb-dir` must not exist or be an empty folder"):
        build(corpus, *SMALL)


def test_ridge_and_kalman_decode_a_simulated_session_but_not_perfectly(tmp_path):
    options = ("--num-subjects", "1", "--sessions-per-subject", "1", "--num-trials", "100")
    build(tmp_path, *options)
    splits = load(tmp_path, "center_out")
    scores = {}
    for decoder in (RidgeDecoder(num_lags=10), KalmanDecoder()):
        decoder.fit(splits["train"], splits["validation"])
        rows = list(splits["test"])
        masks = [scored_bins(row) for row in rows]
        targets = np.concatenate([row_behavior(row)[mask] for row, mask in zip(rows, masks, strict=True)])
        decoded = np.concatenate([decoder.predict(row)[mask] for row, mask in zip(rows, masks, strict=True)])
        scores[type(decoder).__name__] = r2_scores(targets, decoded)["r2"]
    assert 0.5 < scores["RidgeDecoder"] < 0.85
    assert 0.3 < scores["KalmanDecoder"] < 0.85
