"""The command `rpnt`: the main path from recordings to decoded movement, one subcommand for each step.

Not for training: `training/pretrain.py` and `training/finetune.py` run under `accelerate launch`. Everything
heavy is imported inside the command that needs it.
"""

import argparse
import dataclasses
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpnt_hf.errors import RPNTError
from rpnt_hf.scripts import list_builders, load_builder

if TYPE_CHECKING:
    import pandas as pd

DEMO_HELP = """\
Run the whole path on simulated recordings: no data, no network, at most five minutes on two cores.

Recordings of three subjects are simulated and written as NWB, built into a dataset and used for
pretraining, all but one session. A decoder of that session is then trained from scratch and from the
pretrained weights and compared with ridge regression, saved, loaded again through the Auto classes and
run on the NWB file.
"""
DEMO_EXAMPLES = """\
examples:
  rpnt demo --out demo_out
  rpnt demo --out demo_out --seed 3

writes:
  DIR/report.md, DIR/report.json    scores of the three decoders, with times
  DIR/decoder/                      the finetuned checkpoint, for `rpnt decode` and from_pretrained
  DIR/*.png                         decoded trajectories by direction, velocity traces, training curves
"""
BUILD_HELP = "Turn recordings into a dataset of binned spikes and behaviour, split for training and test."
BUILD_EXAMPLES = """\
examples:
  rpnt build synthetic --help
  rpnt build nwb --nwb-dir recordings --behavior cursor_vel --bin-size 0.05 --out dataset
  rpnt build perich_miller --nwb-dir 000688 --bin-size 0.05 --out dataset

The result is a folder of Parquet with a card; `datasets.load_dataset(folder)` reads it without this package.
Each builder has its own options: `rpnt build NAME --help`.
"""
DECODE_HELP = "Decode movement from an NWB file; score it where the file has the behaviour."
DECODE_EXAMPLES = """\
examples:
  rpnt decode demo_out/decoder FILE.nwb
  rpnt decode demo_out/decoder FILE.nwb --out predictions.parquet

The last line of the output is JSON: r2 (mean over the decoded dimensions), r2_variance_weighted and
num_scored_bins, on bins that the decoder was neither trained nor chosen on; r2_fitted and so on, on bins
that it was, which are no test; num_bins and seconds. Scores are null where there is no bin or no behaviour
to compare with.
"""
STREAM_HELP = "Replay an NWB file through a decoder bin by bin, as in a closed loop, and time every step."
STREAM_EXAMPLES = """\
examples:
  rpnt stream demo_out/decoder FILE.nwb
  rpnt stream demo_out/decoder FILE.nwb --realtime --max-seconds 30 --plot trace.png

In a terminal, decoded (o) and true (.) movement are drawn as the bins come. The last line of the output is
JSON: the scores of `rpnt decode`, num_bins, bin_size (s), backend, latency_ms (p50, p95, p99, max of a step),
missed_deadlines (steps that ended later than one bin after the bin was there), wakeup_lateness_ms (with
--realtime: from the end of a bin to the start of its step), interrupted and seconds. Ctrl-C ends the replay
and prints the same for what ran.
"""
EVALUATE_HELP = """\
Compare decoders on the sessions of a built dataset, with intervals and a verdict.

PROTOCOL is one of within-session, few-shot, cross-session, cross-task, cross-subject, ablation. Our decoder
is trained in every mode of the protocol (pretrained first where there is transfer, never on the session that
is decoded), and ridge, Kalman filter, MLP, GRU and LSTM on the same trials. Test trials are scored once.
PROTOCOL falcon feeds a finished decoder (--checkpoint) bin by bin through the interface of that benchmark.
"""
EVALUATE_EXAMPLES = """\
examples:
  rpnt evaluate within-session --data dataset --out evaluation --num-proc 2
  rpnt evaluate few-shot --data dataset --out few --recipe transfer --targets SESSION --amounts 8 16 100%
  rpnt evaluate ablation --data dataset --out ablation --seeds 0 1 2 3 4
  rpnt evaluate falcon --data dataset --checkpoint decoder --held-out SESSION --out falcon

An evaluation that was interrupted goes on where it stopped when the same command is given again.

writes:
  DIR/results.md, DIR/results.json    scores, intervals, comparisons, failed runs, command, commit, seeds
  DIR/*.png                           scores by session and by training trials, trajectories by direction
  DIR/runs/                           every decoder with its predictions
"""
PUSH_HELP = """\
Push a checkpoint or a built dataset to the Hub, in one commit.

Of a checkpoint: weights (safetensors only), configuration, processor, card, evaluation results, and the code
that loads them where this package is not installed. Of a dataset: Parquet and card. A folder that holds
anything else is refused, but for what training leaves there, which stays.
"""
PUSH_EXAMPLES = """\
examples:
  rpnt push demo_out/decoder my-lab/reach-decoder --dry-run
  rpnt push demo_out/decoder my-lab/reach-decoder --private
  rpnt push dataset my-lab/reaching

The last line of the output is JSON: repo_id, repo_type, files, bytes, and url and commit (null in a dry run).
A token with the right to write is needed: `hf auth login`, or HF_TOKEN.
"""
EXPORT_HELP = """\
Export the decoder of one session for programs without this package: the offline model (a window in, behaviour
at every bin out) and the step of a stream (a bin and the state in, behaviour and new state out).

Both are compared with the model before anything is written, and timed.
"""
EXPORT_EXAMPLES = """\
examples:
  rpnt export demo_out/decoder --format onnx --out exported --session-id SESSION
  rpnt export demo_out/decoder --format torch --out exported --session-id SESSION

writes:
  DIR/offline.onnx, DIR/step.onnx     or .pt2; session, units, bin size and targets are inside
  DIR/step_state.npz                  the state before the first bin
  DIR/run_step.py                     onnx: runs the step with numpy and onnxruntime alone; says how

The last line of the output is JSON: `offline` and `step`, each with parity (largest difference from the model
in label s.d.), exported_ms and torch_ms (medians of a window of num_bins bins, and of one bin); and `files`.
"""
INFO_EXAMPLES = """\
examples:
  rpnt info
  rpnt info --json
"""
PACKAGES = (
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "huggingface_hub",
    "safetensors",
    "pynwb",
    "numpy",
    "pandas",
    "pyarrow",
    "scikit-learn",
)


def build_parser() -> argparse.ArgumentParser:
    """Describes every command of `rpnt`.

    Returns:
        `argparse.ArgumentParser`: Parser whose result has `run`, the function that takes the arguments.
    """
    parser = argparse.ArgumentParser(
        prog="rpnt",
        description="Spikes in, movement out: RPNT, a pretrained transformer for intracortical recordings.",
        epilog="`rpnt COMMAND --help` explains a command, with examples. First: rpnt demo --out demo_out",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, summary: str, description: str, examples: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=description,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    demo = add("demo", "run the whole path on simulated recordings", DEMO_HELP, DEMO_EXAMPLES)
    demo.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write; new or empty")
    demo.add_argument("--seed", type=int, default=0, help="seed of simulation and training (default 0)")
    demo.set_defaults(run=run_demo)

    build = add("build", "turn recordings into a dataset", BUILD_HELP, BUILD_EXAMPLES)
    build.add_argument("name", metavar="NAME", help=f"builder: {', '.join(list_builders())}")
    build.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="options of that builder")
    build.set_defaults(run=run_build)

    decode = add("decode", "decode movement from an NWB file", DECODE_HELP, DECODE_EXAMPLES)
    decode.add_argument("checkpoint", metavar="CHECKPOINT", help="folder or Hub id of a decoder")
    decode.add_argument("recording", type=Path, metavar="FILE.nwb", help="recording to decode")
    decode.add_argument(
        "--out", type=Path, metavar="FILE", help="write one row per bin, .parquet or .csv; replaces the file"
    )
    decode.add_argument("--session-id", metavar="ID", help="session of the checkpoint whose units these are")
    repairing = "sort spikes and drop duplicates instead of refusing them"
    decode.add_argument("--repair-spikes", action="store_true", help=repairing)
    decode.set_defaults(run=run_decode)

    stream = add("stream", "replay an NWB file bin by bin, in real time or not", STREAM_HELP, STREAM_EXAMPLES)
    stream.add_argument("checkpoint", metavar="CHECKPOINT", help="folder or Hub id of a decoder")
    stream.add_argument("recording", type=Path, metavar="FILE.nwb", help="recording to replay")
    stream.add_argument("--realtime", action="store_true", help="wait for the end of each bin")
    stream.add_argument("--max-seconds", type=float, metavar="S", help="replay this much of the recording")
    stream.add_argument(
        "--backend", choices=("torch", "onnx"), help="what computes a step (default: the faster)"
    )
    stream.add_argument("--session-id", metavar="ID", help="session of the checkpoint whose units these are")
    stream.add_argument("--out", type=Path, metavar="FILE", help="write one row per bin, .parquet or .csv")
    stream.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the decoded and the true trace")
    stream.add_argument("--repair-spikes", action="store_true", help=repairing)
    stream.set_defaults(run=run_stream)

    evaluate = add("evaluate", "compare decoders on a built dataset", EVALUATE_HELP, EVALUATE_EXAMPLES)
    evaluate.add_argument("protocol", metavar="PROTOCOL", help="what is compared; see above")
    evaluate.add_argument(
        "--data", required=True, metavar="DATASET", help="folder of `rpnt build`, or Hub name"
    )
    evaluate.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    evaluate.add_argument("--dataset-config", metavar="NAME", help="part of the corpus")
    evaluate.add_argument(
        "--recipe", default="reach", help="NAME of training/configs/NAME_*.yaml (default reach)"
    )
    evaluate.add_argument(
        "--targets", nargs="+", default=[], metavar="SESSION", help="sessions to decode (all)"
    )
    evaluate.add_argument("--methods", nargs="+", default=[], metavar="NAME", help="decoders, or arms (all)")
    evaluate.add_argument(
        "--amounts", nargs="+", default=[], metavar="N", help="training data: 10%% or 16 trials"
    )
    evaluate.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED", help="(0 1 2)")
    evaluate.add_argument("--num-proc", type=int, default=1, metavar="N", help="runs at a time (default 1)")
    evaluate.add_argument("--min-steps", type=int, default=400, metavar="N", help="steps on few trials (400)")
    evaluate.add_argument("--checkpoint", help="falcon: the decoder, a folder or Hub id")
    evaluate.add_argument(
        "--held-out", nargs="+", default=[], metavar="SESSION", help="falcon: held-out ones"
    )
    evaluate.set_defaults(run=run_evaluate)

    export = add("export", "write a decoder for other programs", EXPORT_HELP, EXPORT_EXAMPLES)
    export.add_argument("checkpoint", metavar="CHECKPOINT", help="folder or Hub id of a decoder")
    export.add_argument("--format", required=True, choices=("onnx", "torch"), help="ONNX, or torch.export")
    export.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write; new or empty"
    )
    export.add_argument(
        "--session-id", metavar="ID", help="session of the checkpoint; needed where there are several"
    )
    export.add_argument(
        "--batch-size", type=int, default=1, metavar="N", help="parallel streams of the step (default 1)"
    )
    export.add_argument(
        "--max-bins", type=int, metavar="N", help="longest stream of a model without a window"
    )
    export.set_defaults(run=run_export)

    push = add("push", "push a checkpoint or a dataset to the Hub", PUSH_HELP, PUSH_EXAMPLES)
    push.add_argument(
        "folder", type=Path, metavar="CHECKPOINT_OR_DATASET", help="folder of a checkpoint or a built dataset"
    )
    push.add_argument("repo_id", metavar="REPO_ID", help="where to, OWNER/NAME; made where it does not exist")
    push.add_argument("--private", action="store_true", help="make it private")
    push.add_argument("--revision", metavar="R", help="branch to push to (default main)")
    push.add_argument(
        "--dry-run", action="store_true", help="list what would go and what stays; contact nobody"
    )
    push.set_defaults(run=run_push)

    info = add("info", "print versions and devices", "Print versions and devices.", INFO_EXAMPLES)
    info.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    info.set_defaults(run=run_info)
    return parser


def run_demo(arguments: argparse.Namespace) -> None:
    """Runs `rpnt demo`.

    Args:
        arguments (`argparse.Namespace`): `out` and `seed`.
    """
    from rpnt_hf.demo import run

    report = run(arguments.out, seed=arguments.seed)
    print((arguments.out / "report.md").read_text())
    print(json.dumps(report["r2"]))


def run_build(arguments: argparse.Namespace) -> None:
    """Runs `rpnt build NAME ...`.

    Args:
        arguments (`argparse.Namespace`): `name` and `options`, the words that follow it.

    Raises:
        RPNTError: The input, or the Hub, does not fit.
    """
    builder = load_builder(arguments.name)
    parser = argparse.ArgumentParser(
        prog=f"rpnt build {arguments.name}",
        description=builder.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    builder.add_arguments(parser)
    sharing = parser.add_argument_group("sharing")
    sharing.add_argument("--push-to-hub", metavar="REPO_ID", help="push the dataset there, OWNER/NAME")
    sharing.add_argument("--private", action="store_true", help="make that repository private")
    options = parser.parse_args(arguments.options)
    if options.push_to_hub is None:
        print(builder.build(options))
        return
    from rpnt_hf.hub import check_access
    from rpnt_hf.push import plan_push, push

    check_access(options.push_to_hub)  # before the work, not after it
    folder = builder.build(options)
    print(folder)
    url, commit = push(plan_push(folder, options.push_to_hub), options.private)
    print(f"{url} at {commit}")


def run_export(arguments: argparse.Namespace) -> None:
    """Runs `rpnt export`.

    Args:
        arguments (`argparse.Namespace`): `checkpoint`, `format`, `out`, `session_id`, `batch_size` and
            `max_bins`.

    Raises:
        RPNTError: The checkpoint cannot be exported, or what was exported differs from it.
    """
    from rpnt_hf.export import export_decoder
    from rpnt_hf.hub import load_decoder

    model, processor = load_decoder(arguments.checkpoint)
    report = export_decoder(
        model, processor, arguments.out, arguments.format, arguments.session_id, arguments.batch_size,
        arguments.max_bins,
    )  # fmt: skip
    for name in report["files"]:
        print(arguments.out / name)
    print(json.dumps(report))


def run_push(arguments: argparse.Namespace) -> None:
    """Runs `rpnt push`.

    Args:
        arguments (`argparse.Namespace`): `folder`, `repo_id`, `private`, `revision` and `dry_run`.

    Raises:
        CheckpointError: The folder is no whole checkpoint, or holds something that is not to be pushed.
        DatasetError: Likewise of a dataset.
        HubError: The Hub cannot be reached or refuses, or there is no token.
    """
    from rpnt_hf.push import plan_push, push

    plan = plan_push(arguments.folder, arguments.repo_id)
    sizes = plan.sizes()
    for name, size in sizes.items():
        print(f"{size:>12,}  {name}")
    for name, reason in plan.staying.items():
        print(f"{'stays':>12}  {name} ({reason})")
    url, commit = None, None
    if not arguments.dry_run:
        url, commit = push(plan, arguments.private, arguments.revision)
    report = {"repo_id": plan.repo_id, "repo_type": plan.repo_type, "url": url, "commit": commit}
    print(json.dumps({**report, "files": len(sizes), "bytes": sum(sizes.values())}))


def run_decode(arguments: argparse.Namespace) -> None:
    """Runs `rpnt decode`.

    Args:
        arguments (`argparse.Namespace`): `checkpoint`, `recording`, `out`, `session_id` and
            `repair_spikes`.

    Raises:
        CheckpointError: The checkpoint is missing, or is no decoder.
        HubError: It is on the Hub, and cannot be had from there.
        RecordingError: The recording cannot be read.
        InputError: The recording does not fit the checkpoint.
    """
    from rpnt_hf.data.nwb import read_nwb
    from rpnt_hf.decoding import decode_recording, score_table
    from rpnt_hf.hub import load_decoder

    began = time.perf_counter()
    recording = read_nwb(arguments.recording, repair_spikes=arguments.repair_spikes)
    if arguments.session_id is not None:
        recording = dataclasses.replace(recording, session_id=arguments.session_id)
    model, processor = load_decoder(arguments.checkpoint)
    table = decode_recording(model, processor, recording)
    scores = score_table(table)
    if arguments.out is not None:
        write_table(table, arguments.out)
        print(arguments.out)
    seconds = round(time.perf_counter() - began, 3)
    print(json.dumps({**scores, "num_bins": len(table), "seconds": seconds}))


def run_stream(arguments: argparse.Namespace) -> None:
    """Runs `rpnt stream`.

    Args:
        arguments (`argparse.Namespace`): `checkpoint`, `recording`, `realtime`, `max_seconds`, `backend`,
            `session_id`, `out`, `plot` and `repair_spikes`.

    Raises:
        CheckpointError: The checkpoint is missing, or is no decoder.
        HubError: It is on the Hub, and cannot be had from there.
        RecordingError: The recording cannot be read.
        InputError: The recording does not fit the checkpoint.
        KeyboardInterrupt: The user stopped it; what ran has been printed.
    """
    from rpnt_hf.data.nwb import read_nwb
    from rpnt_hf.hub import load_decoder
    from rpnt_hf.replay import plot_replay, replay_recording, shown_in_terminal

    began = time.perf_counter()
    recording = read_nwb(arguments.recording, repair_spikes=arguments.repair_spikes)
    if arguments.session_id is not None:
        recording = dataclasses.replace(recording, session_id=arguments.session_id)
    model, processor = load_decoder(arguments.checkpoint)
    replay = replay_recording(
        model,
        processor,
        recording,
        realtime=arguments.realtime,
        max_seconds=arguments.max_seconds,
        show=shown_in_terminal(model, processor, sys.stderr),
        **({} if arguments.backend is None else {"backend": arguments.backend}),
    )
    if arguments.out is not None:
        write_table(replay.table, arguments.out)
        print(arguments.out)
    if arguments.plot is not None:
        print(plot_replay(replay, model, arguments.plot))
    seconds = round(time.perf_counter() - began, 3)
    print(json.dumps({**replay.report(), "seconds": seconds}), flush=True)
    if replay.interrupted:
        raise KeyboardInterrupt


def write_table(table: "pd.DataFrame", path: Path) -> None:
    """Writes a table as Parquet, or as CSV where the name says so, whole or not at all; replaces a file.

    Args:
        table (`pd.DataFrame`): What to write.
        path (`Path`): File to write; its folder is made where it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        unfinished = Path(folder) / path.name
        if path.suffix == ".csv":
            table.to_csv(unfinished, index=False)
        else:
            table.to_parquet(unfinished, index=False)
        unfinished.replace(path)


def run_evaluate(arguments: argparse.Namespace) -> None:
    """Runs `rpnt evaluate`.

    Args:
        arguments (`argparse.Namespace`): `protocol` and the arguments of `evaluation.evaluate.evaluate`.
    """
    from rpnt_hf.errors import ConfigurationError

    options = {name: value for name, value in vars(arguments).items() if name != "run"}
    of_falcon = {name: options.pop(name) for name in ("checkpoint", "held_out")}
    if arguments.protocol == "falcon":
        from rpnt_hf.evaluation.falcon import evaluate_falcon

        if arguments.checkpoint is None:
            raise ConfigurationError("Protocol 'falcon' must have the decoder as `--checkpoint`, got none.")
        results = evaluate_falcon(
            data=arguments.data, out=arguments.out, dataset_config=arguments.dataset_config, **of_falcon
        )
        found = results["sessions"]
    else:
        from rpnt_hf.evaluation.evaluate import evaluate

        results = evaluate(**options)
        names = ("session", "amount", "decoder", "r2", "r2_interval")
        found = [{name: row[name] for name in names} for row in results["scores"]]
    print((arguments.out / "results.md").read_text())
    print(json.dumps(found))


def run_info(arguments: argparse.Namespace) -> None:
    """Runs `rpnt info`.

    Args:
        arguments (`argparse.Namespace`): `json`, whether to print one JSON object instead of text.
    """
    information = describe_installation()
    if arguments.json:
        print(json.dumps(information))
        return
    width = max(len(name) for name in information["packages"])
    for name, version in information["packages"].items():
        print(f"{name:<{width}}  {version}")
    for device in information["devices"]:
        print(f"{'device':<{width}}  {device}")


def describe_installation() -> dict[str, Any]:
    """Collects versions and devices, for `rpnt info` and for reports of runs.

    Returns:
        `dict[str, Any]`: `packages`, name to version, and `devices`, a line for each.
    """
    import importlib.metadata
    import platform

    import torch

    import rpnt_hf

    versions = {"rpnt_hf": importlib.metadata.version("rpnt_hf"), "python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    devices = [f"cpu ({os.cpu_count()} cores, {torch.get_num_threads()} threads, {platform.machine()})"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(f"cuda:{index} ({properties.name}, {properties.total_memory / 2**30:.0f} GiB)")
    if torch.backends.mps.is_available():
        devices.append("mps")
    return {"packages": versions, "devices": devices, "folder": str(Path(rpnt_hf.__file__).parent)}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv (`Sequence[str]`, *optional*): Words after `rpnt`; those of the process where left out.

    Returns:
        `int`: 0, 2 where the input or the Hub refused (`RPNTError`), or an option does not exist, 1 where the
        machine refused (a file, a missing extra), 130 where the user interrupted.
    """
    arguments = build_parser().parse_args(argv)
    handler = logging.StreamHandler(sys.stderr)
    loggers = [logging.getLogger(name) for name in ("rpnt_hf", "rpnt_hf_scripts")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        arguments.run(arguments)
    except RPNTError as error:
        print(f"rpnt: {error}", file=sys.stderr)
        return 2
    except (OSError, ImportError) as error:
        print(f"rpnt: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("rpnt: interrupted", file=sys.stderr)
        return 130
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
    return 0


if __name__ == "__main__":
    sys.exit(main())
