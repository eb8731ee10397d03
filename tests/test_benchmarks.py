"""Every benchmark runs with `--quick`, on sizes that say nothing about speed, and leaves its results."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "measure")
ARGUMENTS = {"gpu": ["--device", "cpu"]}


def run(script, *arguments):
    command = [sys.executable, FOLDER / f"{script}.py", *arguments]
    environment = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_benchmark_runs_and_leaves_its_results(script, tmp_path):
    finished = run(script, "--quick", "--out", tmp_path, *ARGUMENTS.get(script, []))
    assert finished.returncode == 0, finished.stderr[-2000:]
    results = list(tmp_path.glob(f"{script}*.json"))
    assert results and "|---|" in finished.stdout
    assert all(json.loads(path.read_text())["machine"]["torch"] for path in results)


def test_a_part_of_a_benchmark_runs_by_itself(tmp_path):
    finished = run("training_step", "--quick", "--parts", "context", "--out", tmp_path)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert [path.name for path in tmp_path.iterdir()] == ["training_step_context.json"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_gpu_benchmark_refuses_where_there_is_no_gpu(tmp_path):
    finished = run("gpu", "--out", tmp_path)
    assert finished.returncode == 1 and "needs a CUDA device" in finished.stderr
    assert not any(tmp_path.iterdir())
