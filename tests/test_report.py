"""Reports: the same content for programs and for people, and what is needed to run it again."""

import functools
import json

import numpy as np
import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from huggingface_hub import HfApi, hf_hub_download
from small_corpus import build_small_corpus, make_recording

from rpnt_hf.data.builder import BuilderConfig, CorpusRecording, build_dataset
from rpnt_hf.data.loading import load_rows, view_rows
from rpnt_hf.errors import InputError
from rpnt_hf.evaluation.report import (
    describe_data,
    describe_hardware,
    describe_run,
    shared_name,
    write_report,
)

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


def test_the_markdown_keeps_the_sign_and_size_of_small_differences(tmp_path):
    row = {"large": 1234.5678, "plain": 0.95828, "small": -0.00087534, "p": 0.0000374, "none": 0.0}
    write_report({"table": [row]}, tmp_path)
    assert "| 1235 | 0.958 | -0.00088 | 3.7e-05 | 0 |" in (tmp_path / "report.md").read_text()


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


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("/somewhere/deep/dataset", "dataset"),
        ("--data=/somewhere/my data/set", "--data=set"),
        ("--data", "--data"),
        ("runs/pretrained", "runs/pretrained"),
        ("lab/rpnt", "lab/rpnt"),
        ('--sessions=["a", "b"]', """'--sessions=["a", "b"]'"""),
        ('--data=["/somewhere/a", "/else/where/b"]', """'--data=["a", "b"]'"""),
        ("--url=https://host/lab/rpnt", "--url=https://host/lab/rpnt"),
    ],
)
def test_of_absolute_paths_only_the_last_part_is_told(argument, shown):
    assert describe_run(["finetune.py", argument])["command"] == f"finetune.py {shown}"


def test_a_checkpoint_is_named_without_the_place_where_it_lies(tmp_path, monkeypatch):
    (tmp_path / "runs" / "pretrained").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "runs" / "pretrained")
    assert shared_name(tmp_path / "runs" / "pretrained") == "pretrained"
    assert shared_name("../pretrained") == shared_name(".") == "pretrained"
    assert shared_name("lab/rpnt-neuropixel") == "lab/rpnt-neuropixel"


def splits_of(corpus, *names):
    return {name: view_rows(load_rows(corpus, split=name)) for name in names}


def test_the_facts_about_data_are_those_of_its_rows_and_its_card(tmp_path):
    corpus = build_small_corpus(tmp_path / "built")
    splits = splits_of(corpus, "train", "test")
    facts = describe_data(str(corpus), None, splits)
    build = json.loads((corpus / "rpnt_build.json").read_text())
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["name"], facts["on_hub"], facts["corpus"], facts["revision"]) == (
        "built",
        False,
        "nwb",
        None,
    )
    assert facts["split_options"] == build["options"]
    assert f"content {facts['fingerprint']}" in (corpus / "README.md").read_text()
    assert (facts["bin_size"], facts["behavior_units"]) == (0.05, ["cm/s", "cm/s"])
    assert facts["subjects"] == ["A", "B"]
    for session, built in zip(facts["sessions"], build["sessions"], strict=True):
        for name in ("session_id", "subject_id", "task", "recording_date", "site_ids", "num_units"):
            assert session[name] == built[name]
        for name in ("trials", "bins", "scored_bins"):
            assert session[name] == {split: built[name][split] for split in ("train", "test")}


def test_facts_that_a_dataset_does_not_state_are_none(tmp_path):
    corpus = build_small_corpus(tmp_path / "built")
    splits = splits_of(corpus, "train")
    (corpus / "rpnt_build.json").unlink()
    (corpus / "README.md").unlink()
    for row in splits["train"]:
        row |= {"subject_id": None, "recording_date": None}
    facts = describe_data(str(corpus), None, splits)
    for name in ("corpus", "title", "license", "fingerprint", "split_options", "config"):
        assert facts[name] is None
    assert (facts["subjects"], facts["provenance"], facts["tags"]) == ([], {}, [])
    assert facts["sessions"][0]["recording_date"] is None


def test_the_fingerprint_is_that_of_the_part_that_is_read(tmp_path):
    recordings = [
        CorpusRecording(make_recording("a"), config_name="first"),
        CorpusRecording(make_recording("b", seed=1), config_name="second"),
    ]
    corpus = build_dataset(recordings, tmp_path / "built", BuilderConfig(0.05))
    found = {
        name: describe_data(str(corpus), name, {"train": view_rows(load_rows(corpus, name))})
        for name in ("first", "second", None)
    }
    assert found["first"]["fingerprint"] != found["second"]["fingerprint"]
    assert found[None]["fingerprint"] == found["first"]["fingerprint"]  # the default part
    assert found[None]["config"] == "first"


def test_a_dataset_on_the_hub_is_named_with_its_revision(tmp_path, hub, monkeypatch):
    corpus = build_small_corpus(tmp_path / "built")
    splits = splits_of(corpus, "train")
    api = HfApi(endpoint=hub.url, token=hub.token)
    api.create_repo("lab/facts", repo_type="dataset")
    commit = api.upload_folder(repo_id="lab/facts", repo_type="dataset", folder_path=corpus)
    download = functools.partial(
        hf_hub_download, endpoint=hub.url, token=hub.token, cache_dir=tmp_path / "cache"
    )
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    found, local = describe_data("lab/facts", None, splits), describe_data(str(corpus), None, splits)
    assert (found["name"], found["on_hub"], found["revision"]) == ("lab/facts", True, commit.oid)
    same = ("corpus", "fingerprint", "split_options", "config", "sessions")
    assert {name: found[name] for name in same} == {name: local[name] for name in same}
    assert describe_data("lab/nothing", None, splits)["corpus"] is None


@pytest.fixture
def fresh_accelerate():
    """Leaves nothing of an accelerator for tests that follow."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def test_hardware_is_described_by_name(fresh_accelerate):
    described = describe_hardware(Accelerator(cpu=True))
    assert described["device_type"] == "cpu" and described["num_processes"] == 1
    assert described["device"] and described["mixed_precision"] == "no" and described["threads"] >= 1
