"""What `rpnt inspect` says of recordings, datasets and checkpoints."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pynwb
import pytest
from nwb_files import reach_file, series, write_nwb
from pynwb.behavior import SpatialSeries
from small_corpus import BIN_SIZE, build_small_corpus
from stream_models import make

from rpnt_hf import RPNTForPreTraining, RPNTProcessor
from rpnt_hf.cli import build_parser, main
from rpnt_hf.commands.build import builder_parser
from rpnt_hf.configuration_rpnt import RPNTConfig
from rpnt_hf.errors import CheckpointError
from rpnt_hf.inspection.checkpoint import checkpoint_maps, inspect_checkpoint
from rpnt_hf.inspection.recording import inspect_nwb
from rpnt_hf.scripts import find_reference_checkpoint, load_builder

DECODER = "rpnt-tiny-synthetic-decoder"


def inspected(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    assert main(["inspect", *words, "--json", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    return json.loads(printed)


def problems_of(path: Path) -> list[str]:
    return [problem["problem"] for problem in inspect_nwb(path)[1]["problems"]]


def test_a_file_is_described_by_what_was_written_into_it(tmp_path, capsys):
    path = reach_file(tmp_path / "a.nwb", spike_times=[np.arange(0.05, 20, 0.1), [0.5, 3.0], []])
    report = inspected([str(path)], capsys)
    assert report["session_id"] == "a" and report["subject_id"] == "X"
    assert report["recording_date"] == "2020-03-04"
    assert report["observed"] == {"start": 0.0, "stop": 20.0, "seconds": 20.0, "num_intervals": 1}
    assert report["units"]["num_spikes"] == 202 and report["units"]["silent"] == ["2"]
    assert report["units"]["rates"]["max"] == pytest.approx(10.0)
    assert report["units"]["rates"]["median"] == pytest.approx(0.1)
    assert report["sites"] == [{"site_id": "M1", "num_units": 3, "position_mm": None}]
    assert report["trials"]["num_trials"] == 20
    assert report["trials"]["seconds"]["median"] == pytest.approx(0.8)
    assert report["trials"]["columns"]["result"] == "F, R"
    assert report["trials"]["columns"]["target_id"] == "0 to 3"
    (velocity,) = report["behavior"]
    assert (velocity["name"], velocity["unit"], velocity["num_gaps"]) == ("cursor_vel", "cm/s", 0)
    assert velocity["rate_hz"] == pytest.approx(100.0) and velocity["nan_share"] == 0.0


def test_the_text_names_problems_with_advice_and_the_build(tmp_path, capsys):
    path = reach_file(tmp_path / "a.nwb")
    assert main(["inspect", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "a.nwb: recording 'a'" in printed and "behaviour  cursor_vel x/y (cm/s): 100 Hz" in printed
    assert "1 of 20 trials have a `result` other than 'R'" in printed and "--split-file" in printed
    assert f"rpnt build nwb --nwb-dir {path} --bin-size 0.05 --behavior cursor_vel --out dataset" in printed


def test_a_file_without_problems_says_so(tmp_path, capsys):
    trials = {"start_time": np.arange(20.0), "stop_time": np.arange(20.0) + 0.8}
    path = reach_file(tmp_path / "a.nwb", trials=trials)
    assert main(["inspect", str(path)]) == 0
    assert "No problems found." in capsys.readouterr().out


def test_gaps_and_missing_samples_are_measured(tmp_path):
    times = np.delete(np.arange(2000) / 100, np.arange(500, 700))
    values = np.stack([times, -times], axis=1)
    values[:90] = np.nan
    path = reach_file(tmp_path / "a.nwb", behavior=[series(data=values, timestamps=times)])
    (found,) = inspect_nwb(path)[1]["behavior"]
    assert found["num_gaps"] == 1 and found["longest_gap"] == pytest.approx(2.01)
    assert found["nan_share"] == pytest.approx(0.05)
    assert any("5.0 % of the samples of 'cursor_vel' are NaN" in problem for problem in problems_of(path))


UNSORTED = [[0.5, 0.3, 0.3], [1.0, 2.0]]
FAST = np.arange(0, 20, 0.0008)
FILES = {
    "must increase strictly, got 1 unsorted and 1 duplicate": {"spike_times": UNSORTED},
    "1 of 3 units have no spikes": {"spike_times": [[0.5], [1.0], []]},
    "1 of 2 units have more than 1 % of their intervals below 1 ms (most: 100.0 %)": {
        "spike_times": [FAST, [1.0]]
    },
    "1 units fire more than 200 spikes/s": {"spike_times": [FAST, [1.0]]},
    "1 units have the same spikes as another, such as 0 and 2": {"spike_times": [[0.5], [1.0], [0.5]]},
    "2 of 4 spikes lie outside the observed intervals": {"spike_times": [[0.5, 21.0, 22.0], [1.0]]},
    "no unit has a spike for 16.0 s": {"spike_times": [[1.0, 2.0, 18.0]]},
    "'cursor_vel' goes from 0.0 to 10.0 s, and 10 of 20 trials lie outside": {
        "behavior": [series(duration=10.0)]
    },
    "'cursor_vel' has a sample every 200 ms": {"behavior": [series(rate=5.0)]},
    "there are no trials": {"trials": None},
    "series 'cursor_vel' cannot be used": {
        "behavior": [series(timestamps=np.zeros(2000))]
    },
}  # fmt: skip


@pytest.mark.parametrize("expected", FILES)
def test_a_problem_is_found_and_has_advice(expected, tmp_path):
    path = reach_file(tmp_path / "a.nwb", **FILES[expected])
    found = [problem for problem in inspect_nwb(path)[1]["problems"] if expected in problem["problem"]]
    assert len(found) == 1, problems_of(path)
    assert len(found[0]["advice"].split()) > 4


def test_a_good_file_has_none_of_these_problems(tmp_path):
    found = problems_of(reach_file(tmp_path / "a.nwb"))
    assert not [problem for problem in found for expected in FILES if expected in problem]


def position_only():
    times = np.arange(2000) / 100
    data = np.stack([np.sin(times), np.cos(times)], axis=1)
    return SpatialSeries(name="cursor_pos", data=data, unit="cm", timestamps=times, reference_frame="centre")


BUILDS = {
    "velocity": ({}, "--bin-size 0.05 --behavior cursor_vel"),
    "slow behaviour": ({"behavior": [series(rate=10.0)]}, "--bin-size 0.1 --behavior cursor_vel"),
    "another name": ({"behavior": [series(name="wrist_torque")]}, "--bin-size 0.05 --behavior wrist_torque"),
    "position": ({"behavior": [position_only()]}, "--bin-size 0.05 --behavior cursor_vel --derive-velocity"),
    "spikes alone": ({"behavior": []}, "--bin-size 0.05 --allow-no-behavior"),
    "short trials": (
        {"trials": {"start_time": np.arange(20.0), "stop_time": np.arange(20.0) + 0.03}},
        "--bin-size 0.02 --behavior cursor_vel",
    ),
    "unsorted spikes": (
        {"spike_times": [[*np.arange(0.5, 20), 0.2], [1.0]]}, "--bin-size 0.05 --behavior cursor_vel",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BUILDS)
def test_the_proposed_build_takes_the_file(case, tmp_path, monkeypatch):
    options, expected = BUILDS[case]
    path = reach_file(tmp_path / "a.nwb", **options)
    command = inspect_nwb(path)[1]["build"]
    repair = " --repair-spikes" if case == "unsorted spikes" else ""
    assert command == f"rpnt build nwb --nwb-dir {path} {expected} --out dataset{repair}"
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)[1:]
    builder = load_builder("nwb")
    arguments = build_parser(["build"]).parse_args(words)
    folder = builder.build(builder_parser("nwb", builder).parse_args(arguments.options))
    assert (folder / "README.md").is_file()


def test_a_file_that_no_build_takes_says_why(tmp_path):
    path = reach_file(
        tmp_path / "a.nwb", num_trials=1, trials={"start_time": [0.0], "stop_time": [0.001]}, behavior=[]
    )
    report = inspect_nwb(path)[1]
    assert report["build"] is None
    assert any("no build takes it" in problem["problem"] for problem in report["problems"])


def test_a_broken_file_is_refused_with_code_2(tmp_path, capsys):
    (tmp_path / "a.nwb").write_bytes(b"not a recording")
    assert main(["inspect", str(tmp_path / "a.nwb")]) == 2
    printed = capsys.readouterr()
    assert "must be a whole NWB 2.x file" in printed.err and not printed.out


def test_what_is_nothing_is_refused_without_asking_the_hub(capsys):
    assert main(["inspect", "no-such-thing"]) == 2
    assert "must be an NWB file, a folder, a bundled checkpoint or an id" in capsys.readouterr().err


def test_sites_and_places_are_told(tmp_path):
    path = write_nwb(
        tmp_path / "a.nwb",
        [[0.5], [0.7], [0.9]],
        groups=("M1", "PMd"),
        group_of_unit=[0, 1, 1],
        positions=[[1000.0, 0.0, 0.0], [0.0, 2000.0, 0.0], [0.0, 4000.0, 0.0]],
        obs_intervals=np.array([[0.0, 1.0]]),
    )
    assert inspect_nwb(path)[1]["sites"] == [
        {"site_id": "M1", "num_units": 1, "position_mm": [1.0, 0.0, 0.0]},
        {"site_id": "PMd", "num_units": 2, "position_mm": [0.0, 3.0, 0.0]},
    ]


def test_a_dataset_is_described_by_its_rows(tmp_path, capsys):
    folder = build_small_corpus(tmp_path / "dataset")
    report = inspected([str(folder)], capsys)
    assert report["bin_size"] == BIN_SIZE and report["kind"] == "dataset"
    sessions = {session["session_id"]: session for session in report["sessions"]}
    assert {name: session["num_units"] for name, session in sessions.items()} == {"a": 6, "b": 5}
    assert sessions["a"]["targets"] == ["cursor_vel_x", "cursor_vel_y"]
    assert sessions["a"]["sites"] == ["M1", "PMd"]
    trials = sessions["a"]["trials"]
    assert sum(trials.values()) == 20 and trials == {"train": 14, "validation": 2, "test": 4}
    assert sum(split["scored_bins"] for split in report["splits"].values()) == 2 * 400
    built = json.loads((folder / "rpnt_build.json").read_text())["sessions"][0]
    assert sessions["a"]["num_spikes"] == built["num_spikes"]
    seconds = 20.0  # every bin of a session is in one split, less the context that rows share
    assert sum(sessions["a"]["rates"]) * seconds == pytest.approx(built["num_spikes"], rel=0.02)
    assert [problem["problem"] for problem in report["problems"]] == ["the card states no licence"]


def test_the_text_of_a_dataset_names_sessions_and_splits(tmp_path, capsys):
    folder = build_small_corpus(tmp_path / "dataset")
    assert main(["inspect", str(folder), "--plot", str(tmp_path / "d.png")]) == 0
    printed = capsys.readouterr().out
    assert "2 of 2 subjects (A, B)" in printed and "cursor_vel_x (cm/s)" in printed
    assert "licence    not stated" in printed and "14           2     4" in printed
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_data_is_refused(tmp_path, capsys):
    assert main(["inspect", str(tmp_path)]) == 2
    assert "must be a folder that `rpnt build` wrote" in capsys.readouterr().err


def test_a_decoder_is_described_without_its_weights(capsys):
    report = inspected([DECODER], capsys)
    assert report["architecture"] == "RPNTForMotorDecoding" and report["bin_size"] == 0.05
    assert report["num_parameters"] == 147_817 == inspect_checkpoint(DECODER)["num_parameters"]
    assert [target["name"] for target in report["targets"]] == ["cursor_vel_x", "cursor_vel_y"]
    assert report["targets"][0]["std"] == pytest.approx(7.578, abs=0.001)
    decoded = [session["session_id"] for session in report["sessions"] if session["decoded_in_training"]]
    assert decoded == ["sub-A_ses-CO-20240127"] and len(report["sessions"]) == 12
    low, high = report["scores"]["interval"]
    assert low < report["scores"]["test_r2"] < high
    assert report["training"]["license"] == "apache-2.0"
    assert report["usage"][0] == f"rpnt decode {DECODER} FILE.nwb"


def test_a_pretrained_model_is_described_with_what_to_do_next(tmp_path, capsys):
    config = RPNTConfig.preset("tiny", num_units=3)
    model = RPNTForPreTraining(config)
    model.save_pretrained(tmp_path)
    RPNTProcessor(bin_size=0.02, sessions={"day1": ["a", "b", "c"]}).save_pretrained(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    count = sum(parameter.numel() for parameter in model.parameters())
    assert f"parameters {count:,}" in printed and "bins       0.02 s" in printed
    assert "day1, 3 units" in printed and "trained    not said" in printed
    assert f"--init {tmp_path} --output_dir decoder" in printed


def test_a_checkpoint_without_a_processor_is_refused(tmp_path):
    make().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"which has no `preprocessor_config.json`"):
        inspect_checkpoint(tmp_path)


def test_a_checkpoint_is_drawn_on_random_spikes_or_on_a_recording(tmp_path, capsys):
    assert main(["inspect", DECODER, "--plot", str(tmp_path / "c.png"), "--quiet"]) == 0
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert str(tmp_path / "c.png") in capsys.readouterr().out
    maps = checkpoint_maps(DECODER)
    assert maps.kernels[0].shape == (1, 2, 100, 3, 3)  # 5 s of bins of 50 ms
    again = checkpoint_maps(DECODER, seed=1)
    assert not np.array_equal(again.kernels[0], maps.kernels[0])


def test_a_checkpoint_that_was_trained_here_is_drawn_by_its_training(tmp_path, monkeypatch, capsys):
    shutil.copytree(find_reference_checkpoint(DECODER), tmp_path / "decoder")
    history = [{"epoch": i, "train_loss": 1.0 / (i + 1), "validation_r2": 0.1 * i} for i in range(4)]
    (tmp_path / "decoder" / "history.json").write_text(json.dumps(history))
    drawn = []
    monkeypatch.setattr("rpnt_hf.analysis.plots.save_figure", lambda figure, path: drawn.append(figure))
    assert main(["inspect", str(tmp_path / "decoder"), "--plot", str(tmp_path / "c.png"), "--json"]) == 0
    assert [axes.get_title(loc="left") for axes in drawn[0].axes] == ["Loss", "Validation score"]


def test_real_recordings_can_be_inspected(shared_data):
    for path in sorted(shared_data.glob("*/*.nwb"))[::8]:
        report = inspect_nwb(path)[1]
        with pynwb.NWBHDF5IO(str(path), "r") as io:
            file = io.read()
            assert report["units"]["num_units"] == len(file.units)
            assert report["trials"]["num_trials"] == (0 if file.trials is None else len(file.trials))
        assert report["build"]
