"""The builders of `dataset_builders/`, run as `rpnt build NAME` runs them."""

import argparse
import json
import re
import sys

import datasets
import numpy as np
import pytest
from huggingface_hub import DatasetCard
from nwb_files import reach_file, series, write_nwb
from pynwb.behavior import SpatialSeries

from rpnt_hf.data.builder import BuilderConfig, build_dataset
from rpnt_hf.data.download import download_dandiset
from rpnt_hf.data.rows import row_behavior, row_counts, scored_bins
from rpnt_hf.errors import ConfigurationError, DatasetError, RecordingError
from rpnt_hf.scripts import find_script, list_builders, load_builder, load_script

CENTER_OUT = "sub-C_ses-CO-20131003_behavior+ecephys.nwb"
RANDOM_TARGET = "sub-C_ses-RT-20131004_behavior+ecephys.nwb"


def run(name, *options):
    builder = load_builder(name)
    parser = argparse.ArgumentParser()
    builder.add_arguments(parser)
    return builder.build(parser.parse_args([str(option) for option in options]))


def load(folder, tmp_path, name="default"):
    return datasets.load_dataset(str(folder), name, cache_dir=str(tmp_path / "cache"))


def random_target_file(path, **overrides):
    """Twenty trials of 0.9 s with four go cues, the first of which comes after 0.25 s."""
    starts = np.arange(20, dtype=np.float64)
    trials = {
        "start_time": starts,
        "stop_time": starts + 0.9,
        "go_cue_time_array": [[start + 0.25, start + 0.4, start + 0.6, np.nan] for start in starts],
        "num_attempted": [3] * 20,
        "result": ["R"] * 19 + ["I"],
    }
    return reach_file(path, **({"trials": trials} | overrides))


def test_builders_are_found_in_the_checkout():
    assert {"nwb", "perich_miller"} <= set(list_builders())
    assert find_script("dataset_builders/nwb/builder.py").is_file()
    assert load_script("dataset_builders/nwb/builder.py") is load_builder("nwb")


def test_an_unknown_builder_is_answered_with_the_closest():
    with pytest.raises(
        ConfigurationError, match=r"must be one of .*, got 'perich_mill'.*Did you mean `perich_miller`"
    ):
        load_builder("perich_mill")
    with pytest.raises(
        ConfigurationError, match=r"must lie in training or dataset_builders or .*, got 'src/rpnt_hf'"
    ):
        find_script("src/rpnt_hf")


def test_center_out_and_random_target_are_parts_of_the_corpus(tmp_path):
    (tmp_path / "nwb" / "sub-C").mkdir(parents=True)
    reach_file(tmp_path / "nwb" / "sub-C" / CENTER_OUT)
    random_target_file(tmp_path / "nwb" / "sub-C" / RANDOM_TARGET)
    folder = run(
        "perich_miller", "--nwb-dir", tmp_path / "nwb", "--out", tmp_path / "out", "--bin-size", 0.05
    )
    assert datasets.get_dataset_config_names(str(folder)) == ["center_out", "random_target"]
    build = json.loads((folder / "rpnt_build.json").read_text())
    assert build["corpus"] == "perich_miller"
    assert [session["excluded_trials"] for session in build["sessions"]] == [
        {"result F": [5]},
        {"result I": [19]},
    ]
    trials = [trial for row in load(folder, tmp_path, "random_target")["train"] for trial in row["trials"]]
    assert {trial["scored_start_bin"] - trial["start_bin"] for trial in trials} == {5}
    assert {trial["go_cue_bin"] - trial["start_bin"] for trial in trials} == {5}
    assert {trial["scored_stop_bin"] - trial["start_bin"] for trial in trials} == {18}
    assert json.loads(trials[0]["trial_columns"])["go_cue_time_array"][3] is None
    assert "Perich and Miller" in (folder / "README.md").read_text()


def test_the_card_says_where_recordings_come_from_and_what_they_hold(tmp_path):
    (tmp_path / "000688" / "sub-C").mkdir(parents=True)
    path = reach_file(tmp_path / "000688" / "sub-C" / CENTER_OUT)
    (tmp_path / "000688" / "dandiset.yaml").write_text(
        "identifier: DANDI:000688\nversion: 0.250122.1735\nname: Reaching\nlicense:\n- spdx:CC-BY-4.0\n"
        "citation: Perich et al.\n"
    )
    options = ("--nwb-dir", path.parent, "--bin-size", 0.1)
    card = DatasetCard.load(run("perich_miller", *options, "--out", tmp_path / "out") / "README.md")
    build = json.loads((tmp_path / "out" / "rpnt_build.json").read_text())
    source = build["sessions"][0]["source"]
    assert card.data.license == "cc-by-4.0" and card.data.size_categories == ["n<1K"]
    facts = dict(re.findall(r"^\| (.+?) \| (.+) \|$", card.text, re.MULTILINE))
    assert facts["source"] == "DANDI:000688 0.250122.1735 Reaching" and facts["cite"] == "Perich et al."
    assert facts["subjects"] == "X" and facts["sessions"] == "1" and facts["units"] == "3"
    assert facts["behaviour"] == "cursor_vel_x (cm/s), cursor_vel_y (cm/s)"
    assert facts["split"].startswith(
        "trials drawn at random by session and condition, 0.7 : 0.1 : 0.2, seed 0"
    )
    num_bins = sum(build["sessions"][0]["bins"].values())
    assert facts["recorded"].endswith(f"in {num_bins} bins of 0.1 s")
    assert f"| {source['file_name']} | {source['sha256']} |" in card.text and "result F (5)" in card.text
    (tmp_path / "000688" / "dandiset.yaml").unlink()
    options = (*options, "--license", "cc0-1.0", "--out", tmp_path / "stated")
    card = DatasetCard.load(run("perich_miller", *options) / "README.md")
    assert card.data.license == "cc0-1.0" and "| source | files named below |" in card.text
    card = DatasetCard.load(run("nwb", *options[:4], "--out", tmp_path / "unknown") / "README.md")
    assert card.data.license is None and "| licence | not stated |" in card.text


def test_a_split_file_excludes_nothing_beyond_itself(tmp_path):
    path = reach_file(tmp_path / CENTER_OUT)
    split = tmp_path / "split.json"
    split.write_text(
        json.dumps({"file": CENTER_OUT, "trials": {"train": [4, 5, 6], "validation": [7], "test": [8]}})
    )
    options = ("--nwb-dir", path, "--bin-size", 0.1, "--split-file", split)
    folder = run("perich_miller", *options, "--out", tmp_path / "out")
    dataset = load(folder, tmp_path, "center_out")
    assert [trial["trial_index"] for row in dataset["train"] for trial in row["trials"]] == [4, 5, 6]
    with pytest.raises(ConfigurationError, match="must not be used with `--split-file`"):
        run("perich_miller", *options, "--out", tmp_path / "out2", "--exclude-outliers")


def test_outliers_lose_their_labels_where_asked_and_are_counted(tmp_path):
    """A jump of the velocity at 3 s and a position far outside at 7 s."""
    velocity = np.zeros((2000, 2))
    velocity[300] = 50.0
    position = np.full((2000, 2), 30.0)
    position[700:703] += 12.0
    behavior = [
        series(data=velocity),
        series("cursor_pos", kind=SpatialSeries, data=position, unit="cm"),
    ]
    path = reach_file(tmp_path / CENTER_OUT, behavior=behavior)
    options = ("--nwb-dir", path, "--bin-size", 0.01)
    kept = load(run("perich_miller", *options, "--out", tmp_path / "a"), tmp_path / "a", "center_out")
    folder = run("perich_miller", *options, "--out", tmp_path / "b", "--exclude-outliers")
    masked = load(folder, tmp_path / "b", "center_out")
    missing = set()
    for split in masked:
        for row, full in zip(masked[split], kept[split], strict=True):
            lost = np.isnan(row_behavior(row)) & ~np.isnan(row_behavior(full))
            missing |= set(np.round(row["start_time"] + np.flatnonzero(lost[:, 0]) * 0.01, 2).tolist())
    assert missing == {2.98, 2.99, 3.0, 3.01, 3.02, 3.03, 7.0, 7.01, 7.02}
    assert "9 of 2000 samples of cursor_vel are outliers" in (folder / "README.md").read_text()


def test_outliers_need_centimetres(tmp_path):
    path = reach_file(tmp_path / CENTER_OUT, behavior=[series(unit="m/s")])
    with pytest.raises(RecordingError, match="Outliers need `cursor_vel` in cm/s"):
        run(
            "perich_miller",
            "--nwb-dir",
            path,
            "--bin-size",
            0.1,
            "--out",
            tmp_path / "out",
            "--exclude-outliers",
        )


def test_velocity_is_derived_where_a_file_has_only_position(tmp_path):
    position = series("cursor_pos", kind=SpatialSeries, unit="cm")
    path = reach_file(tmp_path / CENTER_OUT, behavior=[position])
    folder = run("perich_miller", "--nwb-dir", path, "--bin-size", 0.1, "--out", tmp_path / "out")
    row = load(folder, tmp_path, "center_out")["train"][0]
    np.testing.assert_allclose(
        row_behavior(row)[scored_bins(row)], [[1.0, -1.0]] * scored_bins(row).sum(), rtol=1e-3
    )


def test_a_file_of_another_task_is_refused(tmp_path):
    path = reach_file(tmp_path / "sub-C_ses-1.nwb")
    with pytest.raises(RecordingError, match=r"task must be one of .*, got None in 'sub-C_ses-1.nwb'"):
        run("perich_miller", "--nwb-dir", path, "--bin-size", 0.1, "--out", tmp_path / "out")


def test_a_folder_without_nwb_files_is_refused(tmp_path):
    with pytest.raises(RecordingError, match="`--nwb-dir` must hold NWB files, got none"):
        run("nwb", "--nwb-dir", tmp_path, "--bin-size", 0.1, "--out", tmp_path / "out")


def test_download_names_the_extra_that_it_needs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dandi", None)
    monkeypatch.setitem(sys.modules, "dandi.dandiapi", None)
    with pytest.raises(ImportError, match=r"pip install rpnt_hf\[dandi\]"):
        download_dandiset(load_builder("perich_miller").DANDISET, tmp_path / "nwb")
    assert list(tmp_path.iterdir()) == []


def test_any_series_of_any_files_is_built_in_blocks(tmp_path):
    lever = series("lever", data=np.arange(4000.0), duration=40)
    observed = np.array([[0.0, 40.0]])
    write_nwb(tmp_path / "ses-A1.nwb", [[0.1, 15.0], [3.0]], [lever], obs_intervals=observed)
    lever = series("lever", data=np.arange(4000.0), duration=40)
    write_nwb(tmp_path / "ses-A2.nwb", [[0.1, 15.0], [3.0]], [lever], obs_intervals=observed)
    options = (
        "--nwb-dir",
        tmp_path,
        "--behavior",
        "lever",
        "--bin-size",
        0.1,
        "--block-length",
        4,
        "--guard",
        0.5,
    )
    folder = run("nwb", *options, "--session-pattern", "ses-([A-Z])", "--out", tmp_path / "out")
    dataset = load(folder, tmp_path)
    rows = [row for split in dataset for row in dataset[split]]
    assert {row["session_id"] for row in rows} == {"A"} and rows[0]["behavior_names"] == ["lever"]
    assert sum(int(row_counts(row)[row["num_context_bins"] :].sum()) for row in rows) == 6
    assert len({trial["trial_index"] for row in rows for trial in row["trials"]}) == 20


def test_proportions_may_leave_everything_to_training(tmp_path):
    path = reach_file(tmp_path / CENTER_OUT)
    options = ("--nwb-dir", path, "--bin-size", 0.1, "--proportions", 1, 0, 0)
    assert set(load(run("nwb", *options, "--out", tmp_path / "out"), tmp_path)) == {"train"}


def test_a_card_template_needs_its_placeholder(tmp_path):
    path = reach_file(tmp_path / CENTER_OUT)
    (tmp_path / "card.md").write_text("# Card\n")
    with pytest.raises(DatasetError, match=r"must contain `\{\{ build \}\}`"):
        build_dataset(
            [path], tmp_path / "out", BuilderConfig(bin_size=0.1), card_template=tmp_path / "card.md"
        )
    assert not (tmp_path / "out").exists()


def test_real_folders_are_built(tmp_path, shared_data):
    folder = run(
        "perich_miller", "--nwb-dir", shared_data / "reach", "--bin-size", 0.1, "--out", tmp_path / "reach"
    )
    sessions = json.loads((folder / "rpnt_build.json").read_text())["sessions"]
    assert [session["num_spikes"] for session in sessions][:3] == [81154, 43734, 82111]
    options = ("--behavior", "cursor_pos", "--bin-size", 0.1, "--session-pattern", "JS-([A-E])")
    folder = run("nwb", "--nwb-dir", shared_data / "joystick", *options, "--out", tmp_path / "joystick")
    sessions = json.loads((folder / "rpnt_build.json").read_text())["sessions"]
    assert len({session["session_id"] for session in sessions}) == 5
    assert all(session["num_spikes"] == session["num_spikes_in_file"] for session in sessions)
