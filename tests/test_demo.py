"""The demo on a corpus too small to learn from, and what it leaves behind."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from rpnt_hf import AutoModelForMotorDecoding
from rpnt_hf.cli import main
from rpnt_hf.demo import run
from rpnt_hf.errors import DatasetError


def test_demo_leaves_a_report_pictures_and_a_decoder(demo: Path) -> None:
    report = json.loads((demo / "report.json").read_text())
    assert set(report["r2"]) == {"ridge", "from scratch", "pretrained"}
    assert all((demo / name).stat().st_size > 1000 for name in report["figures"])
    assert "| pretrained |" in (demo / "report.md").read_text()
    assert AutoModelForMotorDecoding.from_pretrained(demo / "decoder").config.num_targets == 2


def test_demo_decodes_the_nwb_file_as_it_decodes_the_rows(demo: Path) -> None:
    report = json.loads((demo / "report.json").read_text())
    assert report["r2_from_nwb"] == pytest.approx(report["r2"]["pretrained"], abs=0.02)


def test_demo_leaves_cards_with_the_scores_of_its_report(demo: Path) -> None:
    report = json.loads((demo / "report.json").read_text())
    for folder, name in (("scratch", "from scratch"), ("decoder", "pretrained")):
        card = ModelCard.load(demo / folder / "README.md")
        assert card.data.eval_results[0].metric_value == pytest.approx(report["r2"][name], abs=1e-6)
        assert (card.data.license, card.data.datasets) == ("apache-2.0", ["synthetic"])
        assert f"| {report['held_out']['session_id']} |" in card.text and "these are simulated" in card.text
    pretrained = ModelCard.load(demo / "pretrained" / "README.md")
    assert pretrained.data.eval_results[0].metric_type == "bits_per_spike"
    assert report["held_out"]["session_id"] not in pretrained.text.split("## Training")[0]


def test_demo_refuses_a_folder_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match="`out` must not exist or be an empty folder"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_decode_prints_scores_as_json_on_its_last_line(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = sorted((demo / "nwb").rglob("*.nwb"))[-1]
    out = tmp_path / "new" / "predictions.parquet"
    assert main(["decode", str(demo / "decoder"), str(recording), "--out", str(out)]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = ("r2", "r2_variance_weighted", "num_scored_bins")
    fitted = {f"{name}_fitted" for name in names}
    assert set(scores) == {*names, *fitted, "num_bins", "seconds"}
    assert scores["num_bins"] > scores["num_scored_bins_fitted"] > scores["num_scored_bins"] > 0
    report = json.loads((demo / "report.json").read_text())
    assert scores["r2"] == pytest.approx(report["r2"]["pretrained"], abs=0.02)  # test trials only
    assert [path.name for path in out.parent.iterdir()] == ["predictions.parquet"]


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [("pretrained", "must hold a trained decoder"), ("nothing", "must be a folder with a saved model")],
)
def test_decode_refuses_what_is_no_decoder(
    demo: Path, checkpoint: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recording = sorted((demo / "nwb").rglob("*.nwb"))[-1]
    assert main(["decode", str(demo / checkpoint), str(recording)]) == 2
    assert message in capsys.readouterr().err


def test_decode_refuses_a_checkpoint_that_lacks_weights(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = tmp_path / "decoder"
    shutil.copytree(demo / "decoder", checkpoint, ignore=shutil.ignore_patterns("checkpoints"))
    weights = load_file(checkpoint / "model.safetensors")
    del weights["decoder.weight"]
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert main(["decode", str(checkpoint), str(sorted((demo / "nwb").rglob("*.nwb"))[-1])]) == 2
    assert "decoder.weight (1 in all" in capsys.readouterr().err
