"""Makes the reference checkpoints: minutes on two CPU cores, no data and no network.

    python reference_checkpoints/make.py [--compare]

Simulates a corpus, pretrains `rpnt-tiny-synthetic` on all sessions but the first of subject A, and
finetunes `rpnt-tiny-synthetic-decoder` on that one, through low-rank adapters that are merged into it.
`--compare` also trains decoders from scratch and from the pretrained weights, with few training trials and
with all, and writes the table of the README beside this file. Runs that are finished are not repeated.
"""

import argparse
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rpnt_hf.adapters import load_adapter_decoder
from rpnt_hf.cards import write_card
from rpnt_hf.data.simulate import SimulationConfig, simulate_session
from rpnt_hf.scripts import find_script, load_builder, load_script

PRETRAINED, DECODER = "rpnt-tiny-synthetic", "rpnt-tiny-synthetic-decoder"
KEPT = ("model.safetensors", "config.json", "preprocessor_config.json", "results.json", "README.md")
CONFIGS = {"scratch": "tiny_finetune.yaml", PRETRAINED: "reference_finetune.yaml"}  # by `init`
BIN_SIZE = 0.05  # s
SESSIONS_PER_SUBJECT = 4
SEEDS = (0, 1, 2)
TRIALS = {8: 300, 16: 300, None: 80}  # training trials, None for all, to epochs
README = """\
# Reference checkpoints

Two small checkpoints that load by name, `load_decoder("{decoder}")`, and are made by one command on a CPU:

    make reference-checkpoints

- `{pretrained}`: pretrained without labels on {sessions} simulated sessions of three subjects.
- `{decoder}`: a decoder of cursor velocity, finetuned from it on session {held_out}, which was held out. This
  session is simulated again by `simulate(num_subjects=1, sessions_per_subject=1)[0]`.

They are for trying things out and for tests. Nothing about real recordings follows from them.

R2 on the test trials of session {held_out}, mean over seeds {seeds} (lowest to highest), from scratch
(`tiny_finetune.yaml`) and from the pretrained weights with low-rank adapters (`reference_finetune.yaml`),
for the same number of epochs. A seed also chooses the trials. One session and few test trials: a direction,
no more.

| training trials | from scratch | pretrained | difference by seed |
|---|---|---|---|
{rows}

`comparison.json` has every run; `python reference_checkpoints/make.py --compare` writes both.
"""


def train(script: str, config: str, output_dir: str, **options: Any) -> dict[str, Any]:
    """Runs a training script on the dataset in the working folder, unless that run is finished."""
    finished = Path(output_dir) / "results.json"
    if finished.is_file():
        return json.loads(finished.read_text(encoding="utf-8"))
    path = os.path.relpath(find_script(f"training/configs/{config}"))
    argv = ["--config", path, "--data", "dataset", "--output_dir", output_dir, "--cpu", "true"]
    for name, value in {"resume": True, **options}.items():
        argv += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return load_script(f"training/{script}.py").main(argv)


def build_corpus(seed: int) -> None:
    """Simulates the corpus and builds the dataset, unless it is there."""
    if Path("dataset").exists():
        return
    builder = load_builder("synthetic")
    parser = argparse.ArgumentParser()
    builder.add_arguments(parser)
    options = [
        "--nwb-dir", "nwb", "--out", "dataset", "--bin-size", str(BIN_SIZE), "--seed", str(seed),
        "--corpus-seed", str(seed), "--sessions-per-subject", str(SESSIONS_PER_SUBJECT),
    ]  # fmt: skip
    builder.build(parser.parse_args(options))


def keep(made: Path, folder: Path) -> None:
    """Copies what is committed of a run: not its code, which the package has, nor its checkpoints."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in KEPT:
        shutil.copyfile(made / name, folder / name)
    shutil.copytree(made / ".eval_results", folder / ".eval_results")


def merge(adapter: Path, folder: Path) -> None:
    """Merges an adapter into its base and saves the decoder whole, with the results of its training."""
    model, processor = load_adapter_decoder(adapter)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    results = json.loads((adapter / "results.json").read_text(encoding="utf-8"))
    text = json.dumps({**results, "kind": "decoder"}, indent=2) + "\n"
    (folder / "results.json").write_text(text, encoding="utf-8")
    write_card(folder)


def compare(held_out: str) -> list[dict[str, Any]]:
    """Trains decoders of the held-out session, with and without the weights, for all seeds and trials."""
    runs = []
    for (trials, epochs), seed, (init, config) in itertools.product(TRIALS.items(), SEEDS, CONFIGS.items()):
        options = {} if trials is None else {"training_trials": trials}
        folder = f"compare/{trials or 'all'}_{seed}_{init}"
        results = train(
            "finetune", config, folder, sessions=[held_out], init=init, seed=seed, epochs=epochs, **options
        )
        runs.append(
            {
                "training_trials": results["training_trials"],
                "seed": seed,
                "init": init,
                "mode": results["mode"],
                "epochs": epochs,
                "r2": results["test"]["r2"],
                "interval": results["test"]["intervals"]["r2"],
            }
        )
    return runs


def table(runs: list[dict[str, Any]]) -> str:
    """Renders the comparison as rows of Markdown."""
    rows = []
    for trials in sorted({run["training_trials"] for run in runs}):
        scores = {
            init: [run["r2"] for run in runs if (run["training_trials"], run["init"]) == (trials, init)]
            for init in CONFIGS
        }
        cells = [f"{np.mean(r2):.3f} ({min(r2):.3f} to {max(r2):.3f})" for r2 in scores.values()]
        differences = np.subtract(scores[PRETRAINED], scores["scratch"])
        cells.append(", ".join(f"{difference:+.3f}" for difference in differences))
        rows.append(f"| {trials} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    """Makes the checkpoints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument(
        "--work", type=Path, default=Path("runs/reference"), help="folder for the runs; finished ones stay"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the checkpoints")
    parser.add_argument("--compare", action="store_true", help="compare with decoders from scratch")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    arguments.work.mkdir(parents=True, exist_ok=True)
    os.chdir(arguments.work)  # so that commands in the cards name no folder of this machine
    torch.set_num_threads(1)
    build_corpus(seed=0)
    held_out = simulate_session(SimulationConfig(num_trials=1), 0, 0).session_id
    pretrained = train("pretrain", "reference_pretrain.yaml", PRETRAINED, exclude_sessions=[held_out])
    train("finetune", CONFIGS[PRETRAINED], "adapter", sessions=[held_out], init=PRETRAINED)
    merge(Path("adapter"), Path(DECODER))
    for name in (PRETRAINED, DECODER):
        keep(Path(name), out / name)
    if arguments.compare:
        runs = compare(held_out)
        (out / "comparison.json").write_text(json.dumps(runs, indent=2) + "\n", encoding="utf-8")
        text = README.format(
            pretrained=PRETRAINED,
            decoder=DECODER,
            sessions=len(pretrained["sessions"]),
            held_out=held_out,
            seeds=", ".join(str(seed) for seed in SEEDS),
            rows=table(runs),
        )
        (out / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
