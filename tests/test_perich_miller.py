"""The tables that the field reports on DANDI:000688, each by one command, on small files of its layout."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from rpnt_hf import simulate
from rpnt_hf.cli import main
from rpnt_hf.commands.evaluate import DEFAULTS
from rpnt_hf.data.nwb_writer import write_nwb
from rpnt_hf.evaluation.protocols import Session, plan
from rpnt_hf.scripts import find_script

CONFIGS = Path(find_script("training/configs"))
TABLES = {"c_co": 2, "t_co": 6, "t_rt": 6}  # sessions that the field decodes
SHORT = {"epochs": 1, "validate_every": 1, "checkpoint_every": 1, "mixed_precision": "no"}


def read(name):
    return yaml.safe_load((CONFIGS / f"perich_miller_{name}.yaml").read_text())


def test_the_tables_decode_the_sessions_of_the_field():
    tables = {name: read(name) for name in TABLES}
    assert {name: len(table["targets"]) for name, table in tables.items()} == TABLES
    assert all(set(table) <= set(DEFAULTS) for table in tables.values())
    assert all(target.startswith("sub-C_ses-CO-2016") for target in tables["c_co"]["targets"])
    everything = {target for table in tables.values() for target in table["targets"]}
    assert len(everything) == sum(TABLES.values())
    assert all(set(table["held_out"]) == everything for table in tables.values())


def test_no_base_learns_from_a_held_out_session():
    sessions = [Session(name, name[0], "center_out", 20) for name in ("a1", "a2", "b1", "c1")]
    runs, _ = plan("few-shot", sessions, targets=["a1"], methods=["full", "units"], held_out=["a1", "b1"])
    assert {run.base.sources for run in runs} == {("a2", "c1")}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two sessions that are decoded and two to learn from, named and built as those of the archive."""
    folder = tmp_path_factory.mktemp("000688")
    names = {"sub-C": ["CO-20161013", "CO-20150309"], "sub-T": ["RT-20130820", "CO-20130819"]}
    for number, (subject, sessions) in enumerate(names.items()):
        recordings = simulate(
            num_subjects=1, sessions_per_subject=2, num_units=12, num_trials=24, seed=number,
            tasks=("center_out", "center_out") if subject == "sub-C" else ("random_target", "center_out"),
        )  # fmt: skip
        for session, recording in zip(sessions, recordings, strict=True):
            (folder / subject).mkdir(exist_ok=True)
            recording = dataclasses.replace(recording, session_id=session, subject_id=subject[-1])
            write_nwb(recording, folder / subject / f"{subject}_ses-{session}_behavior+ecephys.nwb")
    out = folder / "dataset"
    words = ["build", "perich_miller", "--nwb-dir", folder, "--bin-size", "0.05", "--out", out]
    assert main([str(word) for word in words]) == 0
    return out


@pytest.mark.slow
@pytest.mark.parametrize("table", ["c_co", "t_rt"])
def test_one_command_makes_a_table(table, dataset, tmp_path, capsys):
    recipe = tmp_path / "recipes"
    recipe.mkdir()
    for kind in ("pretrain", "finetune"):  # the shipped ones, with fewer steps
        content = read(kind) | {name: value for name, value in SHORT.items() if name in read(kind)}
        (recipe / f"perich_miller_{kind}.yaml").write_text(yaml.safe_dump(content))
    comparators = {name: settings | {"epochs": 1} for name, settings in read("comparators").items()}
    (recipe / "perich_miller_comparators.yaml").write_text(yaml.safe_dump(comparators))
    # Of the sessions of the corpus only these are there.
    here = ["sub-C_ses-CO-20161013", "sub-T_ses-RT-20130820", "sub-T_ses-CO-20130819"]
    options = read(table)
    options |= {name: [one for one in options[name] if one in here] for name in ("targets", "held_out")}
    config = tmp_path / "table.yaml"
    config.write_text(yaml.safe_dump(options))
    out = tmp_path / "out"
    words = [
        "evaluate",
        "--config",
        config,
        "--data",
        dataset,
        "--out",
        out,
        "--seeds",
        "0",
        "--min-steps",
        "1",
    ]
    assert main([str(word) for word in [*words, "--recipe", recipe / "perich_miller"]]) == 0
    scores = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {score["decoder"] for score in scores} == set(options["methods"])
    assert {score["session"] for score in scores} == set(options["targets"])
    bases = [json.loads(path.read_text()) for path in (out / "bases").glob("*/run.json")]
    assert [base["sources"] for base in bases] == [["sub-C_ses-CO-20150309"]] * 2
    shutil.rmtree(out)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("recipee: tiny", "got `recipee`.* Did you mean `recipe`"),
        ("- tiny", "must hold options by name, got list"),
        ("recipe: [", "must be a readable YAML file"),
        ("recipe: tiny", "must be given PROTOCOL, got none"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused(content, message, tmp_path, capsys):
    path = tmp_path / "table.yaml"
    path.write_text(content)
    assert main(["evaluate", "--config", str(path), "--data", "d", "--out", str(tmp_path / "out")]) == 2
    assert re.search(message, capsys.readouterr().err, re.DOTALL)
