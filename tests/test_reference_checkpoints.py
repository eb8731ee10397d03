"""The checkpoints that come with the package load by name and score as they say."""

import importlib.util
import json
from pathlib import Path

import pytest

from rpnt_hf import RPNTForPreTraining, load_decoder, simulate
from rpnt_hf.decoding import decode_recording, score_table
from rpnt_hf.errors import CheckpointError
from rpnt_hf.scripts import find_reference_checkpoint

FOLDER = Path(__file__).parents[1] / "reference_checkpoints"
NAMES = ("rpnt-tiny-synthetic", "rpnt-tiny-synthetic-decoder")


def results_of(name):
    return json.loads((FOLDER / name / "results.json").read_text())


def test_reference_checkpoints_are_small_and_hold_no_code():
    files = [path for name in NAMES for path in (FOLDER / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2e6
    assert {path.suffix for path in files} == {".safetensors", ".json", ".md", ".yaml"}


def test_the_decoder_scores_on_a_simulated_recording_what_its_results_say(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # found beside the package, not in the folder at hand
    model, processor = load_decoder("rpnt-tiny-synthetic-decoder")
    recording = simulate(num_subjects=1, sessions_per_subject=1)[0]
    scores = score_table(decode_recording(model, processor, recording))
    expected = results_of("rpnt-tiny-synthetic-decoder")["test"]
    assert scores["num_scored_bins"] == expected["scored_bins"]
    assert scores["r2"] == pytest.approx(expected["r2"], abs=1e-3)
    assert scores["r2"] > 0.8


def test_the_pretrained_model_never_saw_the_session_of_the_decoder():
    recording = simulate(num_subjects=1, sessions_per_subject=1, num_trials=1)[0]
    assert recording.session_id not in results_of("rpnt-tiny-synthetic")["sessions"]
    assert results_of("rpnt-tiny-synthetic-decoder")["sessions"] == [recording.session_id]
    _, loading = RPNTForPreTraining.from_pretrained(FOLDER / "rpnt-tiny-synthetic", output_loading_info=True)
    assert not any(loading.values())


def test_pretraining_pays_with_all_trials_and_the_readme_shows_every_comparison():
    make = importlib.util.spec_from_file_location("make_reference", FOLDER / "make.py")
    module = importlib.util.module_from_spec(make)
    make.loader.exec_module(module)
    runs = json.loads((FOLDER / "comparison.json").read_text())
    assert module.table(runs) in (FOLDER / "README.md").read_text()
    most = max(run["training_trials"] for run in runs)
    scores = {(run["seed"], run["init"]): run["r2"] for run in runs if run["training_trials"] == most}
    assert all(scores[seed, "rpnt-tiny-synthetic"] > scores[seed, "scratch"] for seed in module.SEEDS)


def test_only_names_of_reference_checkpoints_are_found():
    assert find_reference_checkpoint(NAMES[0]) == FOLDER / NAMES[0]
    for name in ("rpnt-tiny", "..", f"../{NAMES[0]}", f"reference_checkpoints/{NAMES[0]}"):
        assert find_reference_checkpoint(name) is None
    with pytest.raises(CheckpointError, match="must hold a trained decoder"):
        load_decoder(NAMES[0])
