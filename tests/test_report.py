"""Reports: the same content for programs and for people, and what is needed to run it again."""

import json

import numpy as np
import pytest

from rpnt_hf.errors import InputError
from rpnt_hf.evaluation.report import write_report

RESULTS = {
    "title": "Two decoders",
    "summary": "Test trials of one session.",
    "table": [
        {"decoder": "ridge", "R2": np.float32(0.5), "bins": 1200},
        {"decoder": "a|b", "R2": None, "bins": 1200},
    ],
    "figures": ["velocity_traces.png"],
    "seeds": [0, 1],
    "r2": {"ridge": np.array([0.25, float("nan")])},
}


def test_both_files_are_written_and_nothing_else(tmp_path):
    report = write_report(RESULTS, tmp_path / "new")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["report.json", "report.md"]
    assert json.loads((tmp_path / "new" / "report.json").read_text()) == report
    assert report["r2"] == {"ridge": [0.25, None]}
    assert report["table"][0]["R2"] == 0.5


def test_the_markdown_has_table_figures_and_how_to_run_it_again(tmp_path):
    write_report(RESULTS, tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# Two decoders\n\nTest trials of one session.")
    assert (
        "| decoder | R2 | bins |\n| --- | --- | --- |\n| ridge | 0.500 | 1200 |\n| a\\|b | - | 1200 |" in text
    )
    assert "![velocity traces](velocity_traces.png)" in text
    assert "Seeds: 0, 1" in text and "Command: `" in text and "torch 2" in text


def test_the_run_names_no_folder_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/rpnt", "demo", "--out", "my results"])
    run = write_report({}, tmp_path)["run"]
    assert run["command"] == "rpnt demo --out 'my results'"
    assert run["versions"]["numpy"] == np.__version__
    assert run["commit"] is None or len(run["commit"].rstrip("+")) == 40


def test_a_report_is_replaced_as_a_whole(tmp_path):
    write_report(RESULTS, tmp_path)
    with pytest.raises(InputError, match=r"got object at `results\.r2\.bad`"):
        write_report({"r2": {"bad": object()}}, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["title"] == "Two decoders"


def test_rows_with_different_keys_are_refused(tmp_path):
    with pytest.raises(InputError, match="Rows of `table` must have the same keys"):
        write_report({"table": [{"a": 1}, {"b": 2}]}, tmp_path)
