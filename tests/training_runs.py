"""Tiny runs of the training scripts, in this process and launched as processes of their own."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

from rpnt_hf.scripts import find_script, load_script

SMALL = [
    "--model.hidden_size=32", "--model.intermediate_size=32", "--model.num_attention_heads=1",
    "--model.num_hidden_layers=1", "--model.attention_window=8", "--model.stem_kernel=3", "--cpu=true",
    "--window_bins=16", "--batch_size=8", "--metadata_dropout=0.2", "--unit_dropout=0.1",
    "--optimizer.averaging_decay=0.9",
]  # fmt: skip
TIMES = ("bins_per_second",)


def run(script, corpus, output_dir, *arguments):
    main = load_script(f"training/{script}.py").main
    return main([f"--data={corpus}", f"--output_dir={output_dir}", *SMALL, *arguments])


def launch_command(script, corpus, output_dir, *arguments, num_processes=1, config="ddp.yaml"):
    """Command of a launched run; `--cpu` instead of the environment would silently run one process."""
    path = Path(script) if Path(script).is_file() else find_script(f"training/{script}.py")
    options = [str(path), f"--data={corpus}", f"--output_dir={output_dir}", *SMALL, *arguments]
    if num_processes == 1:
        return [sys.executable, *options]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        sys.executable, "-m", "accelerate.commands.launch",
        f"--config_file={find_script('training/accelerate')}/{config}",
        f"--num_processes={num_processes}", f"--main_process_port={port}", *options,
    ]  # fmt: skip


def launch_environment():
    return {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}


def launch(script, corpus, output_dir, *arguments, **launching):
    """Runs a script in processes of its own, and gives what it printed."""
    finished = subprocess.run(
        launch_command(script, corpus, output_dir, *arguments, **launching),
        env=launch_environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout + finished.stderr


def history(folder):
    """Every logged entry of a run, without timings: floats as they are, so that `==` compares every bit."""
    return without_times(json.loads((folder / "history.json").read_text()))


def without_times(entries):
    return [{name: value for name, value in entry.items() if name not in TIMES} for entry in entries]


def weights(folder):
    return load_file(folder / "model.safetensors")
