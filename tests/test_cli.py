"""The command `rpnt`, where it needs no trained model."""

import argparse
import io
import json
import logging
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from nwb_files import write_nwb

from rpnt_hf.cli import COMMANDS, build_parser, list_commands, main
from rpnt_hf.commands.build import builder_parser
from rpnt_hf.commands.output import print_json, write_table
from rpnt_hf.progress import progress_bar
from rpnt_hf.scripts import load_builder, load_script


def help_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_help_is_a_table_of_contents(capsys: pytest.CaptureFixture[str]) -> None:
    printed = help_of([], capsys)
    for group, commands in COMMANDS.items():
        _, found, rest = printed.partition(f"\n{group}:\n")
        assert found and all(f"    {command} " in rest.partition("\n\n")[0] for command in commands)
    assert {"demo", "build", "decode", "push", "info"} <= set(list_commands())
    assert all(f"\n    {code} " in printed for code in (0, 1, 2, 130))


def test_every_module_of_a_command_is_in_the_table_of_contents() -> None:
    folder = Path(sys.modules[main.__module__].__file__ or "").parent / "commands"
    assert {path.stem for path in folder.glob("*.py")} - {"__init__", "output"} == set(list_commands())


@pytest.mark.parametrize("command", list_commands())
def test_help_of_every_command_has_examples_that_parse(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, found, examples = help_of([command], capsys).partition("\nexamples:\n")
    lines = re.findall(r"^  (rpnt .*)$", examples, re.MULTILINE)
    assert found and any(line.split()[1] == command for line in lines)
    for line in lines:
        words = shlex.split(line.partition(" > ")[0])[1:]
        if "--help" not in words:
            arguments = build_parser(words[:1]).parse_args(words)
            assert arguments.run.__module__ == f"rpnt_hf.commands.{words[0]}"
            if words[0] == "build":
                builder_parser(arguments.name, load_builder(arguments.name)).parse_args(arguments.options)


@pytest.mark.parametrize("command", list_commands())
def test_every_command_can_speak_json_and_be_quiet(command: str) -> None:
    parser = argparse.ArgumentParser(add_help=False)
    for action in build_parser([command])._actions:
        if isinstance(action, argparse._SubParsersAction):
            parser = action.choices[command]
    options = {option for action in parser._actions for option in action.option_strings}
    assert {"--json", "--quiet"} <= options


def test_unknown_command_is_one_line_with_the_closest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["decod", "x"]) == 2
    printed = capsys.readouterr()
    assert "Did you mean `decode`" in printed.err and printed.err.count("\n") == 1


def test_without_a_command_the_table_of_contents_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 0 and "Start here:" in capsys.readouterr().out


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
    others = ["--nwb-dir", str(tmp_path / "nwb2"), "--out", str(tmp_path / "again")]
    assert main(["build", "synthetic", *others, "--bin-size", "0.05", *sizes, "--json", "--quiet"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"folder": str(tmp_path / "again"), "url": None, "commit": None}
    assert printed.err == ""


def test_info_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    information = json.loads(capsys.readouterr().out)
    assert information["packages"]["rpnt_hf"] and information["devices"][0].startswith("cpu")
    assert (Path(information["training"]) / "finetune.py").is_file()
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert all(version in printed for version in information["packages"].values())


def test_json_has_no_numbers_that_json_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"r2": float("nan"), "list": [np.float32(1.5), np.int64(2)], "array": np.array([1.0, np.inf])})
    assert capsys.readouterr().out == '{"r2": null, "list": [1.5, 2], "array": [1.0, null]}\n'


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "silent"), [(Terminal(), False), (io.StringIO(), True)])
def test_bars_show_rate_and_time_left_in_a_terminal_only(
    stream: io.StringIO, silent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    for _ in progress_bar(range(3), unit="session", delay=0, mininterval=0):
        pass
    drawn = stream.getvalue()
    assert (drawn == "") if silent else re.search(r"3/3 \[\d+:\d+<\d+:\d+, .*session/s\]", drawn)


def test_quiet_silences_bars_and_messages_while_the_command_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)

    def describe() -> dict[str, dict[str, str]]:
        logging.getLogger("rpnt_hf").info("a message")
        list(progress_bar(range(3), delay=0, mininterval=0))
        raise OSError("no such device")

    monkeypatch.setattr("rpnt_hf.commands.info.describe_installation", describe)
    assert main(["info", "--quiet"]) == 1
    assert terminal.getvalue() == "rpnt: OSError: no such device\n"
    assert main(["info"]) == 1
    assert "a message" in terminal.getvalue() and "3/3" in terminal.getvalue()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["rpnt", "dec"], "decode"),
        (["rpnt", "stream", "--back"], "--backend"),
        (["rpnt", "stream", "--backend", "o"], "onnx"),
        (["rpnt", "build", "per"], "perich_miller"),
        (["rpnt", "build", "nwb", "--deri"], "--derive-velocity"),
        (["rpnt", "decode", "folder", "--out", "rec"], "recording.nwb"),
    ],
)
def test_bash_completes(
    typed: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    (tmp_path / "rpnt.bash").write_text(capsys.readouterr().out)
    (tmp_path / "recording.nwb").touch()
    words = " ".join(map(shlex.quote, typed))
    code = f"""
source rpnt.bash
COMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}
function=$(complete -p rpnt | sed 's/.*-F \\([^ ]*\\).*/\\1/')
$function rpnt {shlex.quote(typed[-1])} {shlex.quote(typed[-2])} 2>/dev/null
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    found = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert expected in found.stdout.split(), (found.stdout, found.stderr)


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_completion_of_other_shells_knows_every_command(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(command in script for command in list_commands()) and "derive-velocity" in script


def test_completion_names_the_package_that_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "zsh"]) == 1
    assert "pip install shtab" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["pretrain", "finetune"])
def test_every_option_of_training_has_a_help_text(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_script(f"training/{script}.py").main(["--help"])
    options = re.split(r"\n  --", capsys.readouterr().out.split("options:", 1)[1])[1:]
    assert len(options) > 20
    for option in options:
        text = re.sub(r"\(.*?\)|^\S+( [A-Z_]+| \{\S+\}| \[\S+\]| CONFIG)?", "", " ".join(option.split()))
        assert len(text.split()) >= 3, option


@pytest.mark.parametrize(
    "words",
    [
        ["decode", "decoder", "a.nwb", "--plot", "trace.txt"],
        ["stream", "decoder", "a.nwb", "--plot", "trace"],
        ["inspect", "a.nwb", "--plot", "a.nwb"],
        ["adapt", "decoder", "a.nwb", "--out", "new", "--plot", "new.jpeg"],
    ],
)
def test_a_picture_of_no_format_is_refused_before_any_work(words, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert "argument --plot: the file must end in .png or .pdf or .svg, got" in capsys.readouterr().err


def test_a_table_of_no_format_is_refused_before_any_work(capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["decode", "decoder", "a.nwb", "--out", "predictions.xlsx"])
    assert "argument --out: the file must end in .csv or .parquet" in capsys.readouterr().err


def test_decode_writes_csv_where_the_name_says_so(tmp_path: Path) -> None:
    write_table(pd.DataFrame({"time": [0.5], "scored": [True]}), tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "time,scored\n0.5,True\n"
