"""The command `rpnt`, where it needs no trained model."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from nwb_files import write_nwb

from rpnt_hf.cli import main, write_table
from rpnt_hf.scripts import load_script


def test_help_is_a_table_of_contents(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert all(f"\n    {command} " in printed for command in ("demo", "build", "decode", "push", "info"))


@pytest.mark.parametrize("command", ["demo", "build", "decode", "push", "info"])
def test_help_of_every_command_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert f"\n  rpnt {command}" in capsys.readouterr().out


@pytest.mark.parametrize("builder", ["nwb", "perich_miller", "synthetic"])
def test_help_of_every_builder_names_its_options(builder: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["build", builder, "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "--bin-size" in printed and "--nwb-dir" in printed


def test_unknown_builder_is_one_line_with_the_closest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "perich_miler"]) == 2
    printed = capsys.readouterr()
    assert "Did you mean `perich_miller`?" in printed.err
    assert printed.err.count("\n") == 1 and not printed.out


def test_missing_recording_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decode", str(tmp_path), str(tmp_path / "absent.nwb")]) == 2
    assert "absent.nwb" in capsys.readouterr().err


def test_decode_repairs_spikes_only_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_nwb(tmp_path / "a.nwb", [[0.5], [0.3, 0.1]], obs_intervals=np.array([[0.0, 1.0]]))
    assert main(["decode", str(tmp_path), str(path)]) == 2
    assert "`--repair-spikes` (`repair_spikes=True`)" in capsys.readouterr().err
    assert main(["decode", str(tmp_path), str(path), "--repair-spikes"]) == 2
    printed = capsys.readouterr().err
    assert "sorted the spikes of 1 units" in printed and "CHECKPOINT must be a folder" in printed


def test_build_synthetic_makes_a_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--num-subjects", "1", "--sessions-per-subject", "1", "--num-units", "4", "--num-trials", "12"]
    folders = ["--nwb-dir", str(tmp_path / "nwb"), "--out", str(tmp_path / "dataset")]
    assert main(["build", "synthetic", *folders, "--bin-size", "0.05", *sizes]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "dataset")
    assert (tmp_path / "dataset" / "README.md").is_file()


def test_info_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    information = json.loads(capsys.readouterr().out)
    assert information["packages"]["rpnt_hf"] and information["devices"][0].startswith("cpu")


@pytest.mark.parametrize("script", ["pretrain", "finetune"])
def test_every_option_of_training_has_a_help_text(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_script(f"training/{script}.py").main(["--help"])
    options = re.split(r"\n  --", capsys.readouterr().out.split("options:", 1)[1])[1:]
    assert len(options) > 20
    for option in options:
        text = re.sub(r"\(.*?\)|^\S+( [A-Z_]+| \{\S+\}| \[\S+\]| CONFIG)?", "", " ".join(option.split()))
        assert len(text.split()) >= 3, option


def test_decode_writes_csv_where_the_name_says_so(tmp_path: Path) -> None:
    write_table(pd.DataFrame({"time": [0.5], "scored": [True]}), tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "time,scored\n0.5,True\n"
