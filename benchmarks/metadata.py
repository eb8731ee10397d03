"""Decoding where metadata matter by construction: MRoPE against time-only RoPE and shuffled metadata.

    python benchmarks/metadata.py --out results

For each corpus: simulate sessions of one subject with the same units; in every other session the cursor moves
at 90 degrees to what the units encode, as after a visuomotor rotation, and only the name of the task says so.
Units lie in slots that all sessions share, so nothing else can. One decoder learns all sessions from scratch
and is scored on their test trials. The arms differ in the position encoding, or in the tasks of the sessions:
shuffled, half of either kind carry the wrong name, in training and in test. Without the task the best that a
decoder can do is to point halfway. Corpora are the unit of the paired t-tests.
"""

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import print_table, save_results
from scipy import stats

from rpnt_hf.data.builder import BuilderConfig, build_dataset
from rpnt_hf.data.loading import load_rows, view_rows
from rpnt_hf.data.nwb import Recording
from rpnt_hf.data.rows import row_behavior, scored_bins
from rpnt_hf.data.simulate import simulate
from rpnt_hf.decoding import decode_rows
from rpnt_hf.hub import load_decoder
from rpnt_hf.metrics import r2_scores
from rpnt_hf.scripts import find_script, load_script

TASKS = ("plain", "rotated")
ARMS = {"MRoPE": ("mrope", False), "RoPE": ("rope", False), "MRoPE, shuffled": ("mrope", True)}
QUARTER = np.array([[0, 1], [-1, 0]])  # of a turn
AXES = [{"name": "time", "num_pairs": 8}, {"name": "task", "num_pairs": 4, "theta": 100.0}]
SIZE = {"num_subjects": 1, "sessions_per_subject": 8, "num_units": 48, "num_trials": 60, "drift": 0.0}
QUICK = {**SIZE, "sessions_per_subject": 4, "num_units": 12, "num_trials": 12}


def make_sessions(seed: int, size: dict[str, Any]) -> list[Recording]:
    """Simulates the sessions of a corpus: the units that all have, in one order, and the rotated cursor."""
    sessions = simulate(seed=seed, **size)
    shared = sorted(set.intersection(*(set(session.unit_ids) for session in sessions)))
    return [_rotated(_with_units(session, shared), index % 2) for index, session in enumerate(sessions)]


def _with_units(session: Recording, unit_ids: list[str]) -> Recording:
    kept = [session.unit_ids.index(unit_id) for unit_id in unit_ids]
    return dataclasses.replace(
        session,
        unit_ids=unit_ids,
        unit_sites=session.unit_sites[kept],
        spike_times=[session.spike_times[unit] for unit in kept],
    )


def _rotated(session: Recording, quarters: int) -> Recording:
    turned = {
        name: dataclasses.replace(series, values=series.values @ QUARTER.astype(series.values.dtype))
        for name, series in session.behavior.items()
    }
    return dataclasses.replace(
        session, task=TASKS[quarters], behavior=turned if quarters else session.behavior
    )


def shuffle_tasks(sessions: list[Recording], seed: int) -> list[Recording]:
    """Gives half of the sessions of each task, drawn at random, the name of the other one."""
    rng = np.random.default_rng(seed)
    wrong: set[int] = set()
    for task in TASKS:
        own = [index for index, session in enumerate(sessions) if session.task == task]
        wrong |= set(rng.choice(own, len(own) // 2, replace=False).tolist())
    other = dict(zip(TASKS, TASKS[::-1], strict=True))
    return [
        dataclasses.replace(session, task=other[str(session.task)]) if index in wrong else session
        for index, session in enumerate(sessions)
    ]


def decode_arm(sessions: list[Recording], encoding: str, seed: int, epochs: int | None) -> float:
    """Trains a decoder on all sessions; gives its R2 on test trials, the mean of the sessions."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build_dataset(sessions, folder / "data", BuilderConfig(0.05, seed=seed))
        fields = {
            "attention_window": 25,
            "unit_embedding": "slots",
            "position_encoding": encoding,
            "mrope_axes": AXES,
        }
        argv = ["--config", str(find_script("training/configs/tiny_finetune.yaml"))]
        argv += ["--data", str(folder / "data"), "--output_dir", str(folder / "model")]
        argv += ["--num_slots", str(len(sessions[0].unit_ids)), "--model", json.dumps(fields)]
        argv += ["--seed", str(seed), "--cpu", "true", "--epochs", str(epochs or 20)]
        load_script("training/finetune.py").main(argv)
        model, processor = load_decoder(str(folder / "model"))
        rows = view_rows(load_rows(folder / "data", split="test"))
        decoded = decode_rows(model, processor, rows)
    found: dict[str, list[tuple[Any, Any]]] = {}
    for row, predictions in zip(rows, decoded, strict=True):
        scored = scored_bins(row)
        found.setdefault(row["session_id"], []).append((row_behavior(row)[scored], predictions[scored]))
    scores = [
        r2_scores(*(np.concatenate(values) for values in zip(*pairs, strict=True)))["r2"]
        for pairs in found.values()
    ]
    return float(np.mean([score for score in scores if score is not None]))


def compare(scores: dict[str, list[float]]) -> list[dict[str, Any]]:
    """One row for each arm: the mean over corpora, and MRoPE's lead over it with its paired t-test."""
    rows = []
    for arm, values in scores.items():
        lead = np.array(scores["MRoPE"]) - np.array(values)
        row = {"arm": arm, "mean R2": float(np.mean(values)), "s.d.": float(np.std(values, ddof=1))}
        row |= {"MRoPE minus it": float(lead.mean()), "95 % from": np.nan, "to": np.nan, "p": np.nan}
        if np.ptp(lead) > 0:
            test = stats.ttest_1samp(lead, 0.0)
            low, high = test.confidence_interval()
            row |= {"95 % from": float(low), "to": float(high), "p": float(test.pvalue)}
        rows.append(row)
    return rows


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two small corpora, one epoch: does it run?")
    parser.add_argument("--out", type=Path, default=Path("benchmarks_out"), metavar="DIR")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)), metavar="N")
    parser.add_argument("--epochs", type=int, metavar="N", help="of training (20)")
    options = parser.parse_args()
    size, epochs = (QUICK, 1) if options.quick else (SIZE, options.epochs)
    seeds = options.seeds[:2] if options.quick else options.seeds
    scores: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for seed in seeds:
        sessions = make_sessions(seed, size)
        for arm, (encoding, shuffled) in ARMS.items():
            chosen = shuffle_tasks(sessions, seed) if shuffled else sessions
            scores[arm].append(decode_arm(chosen, encoding, seed, epochs))
        print(json.dumps({"seed": seed, **{arm: round(values[-1], 4) for arm, values in scores.items()}}))
    rows = compare(scores)
    print_table("R2 where the task turns the cursor", rows)
    save_results(options.out, "metadata", {"seeds": seeds, "scores": scores, "summary": rows})


if __name__ == "__main__":
    main()
