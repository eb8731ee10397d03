"""Decoding at simulated sites that were left out of pretraining, with true, shuffled and unknown coordinates.

    python benchmarks/cross_site.py --out results

For each corpus: simulate many sites, one a day, whose tuning varies smoothly over the cortex; leave some out,
drawn at random; pretrain on the others; decode each from 10 % of its training trials (or what --amounts
says). Corpora are the unit of the paired t-tests: the sites of one are averaged. It goes on where it was
interrupted.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import print_table, save_results

from rpnt_hf.data.builder import BuilderConfig, build_dataset
from rpnt_hf.data.simulate_sites import simulate_sites
from rpnt_hf.evaluation.cross_site import METHODS, compare_arms, evaluate_cross_site, list_sites

BIN_SIZE = 0.05
SIZE = {
    "num_sites": 48, "num_controls": 0, "num_units": 16, "num_trials": 40, "simultaneous": False,
    "local": 0.2, "common": 0.0, "depth": 1.0, "private": 0.1, "smoothness": 2.5, "spread": 6.0,
    "median_rate": 20.0,
}  # fmt: skip
PROPORTIONS = (0.6, 0.1, 0.3)
QUICK = {**SIZE, "num_sites": 3, "num_trials": 20}


def run_corpus(
    seed: int, size: dict[str, Any], out: Path, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Builds one corpus, leaves sites out and gives the rows of its table."""
    folder = out / f"corpus_{seed}"
    data = folder / "data"
    if not data.is_dir():
        simulated = simulate_sites(seed=seed, **size)
        build_dataset(simulated.recordings, data, BuilderConfig(BIN_SIZE, proportions=PROPORTIONS, seed=seed))
    names = [target.name for target in list_sites(data)]
    drawn = np.random.default_rng(seed).choice(len(names), size=options.left_out, replace=False)
    results = evaluate_cross_site(
        data,
        folder / "evaluation",
        recipe=options.recipe,
        targets=[names[index] for index in drawn],
        methods=options.methods,
        amounts=options.amounts,
        seeds=options.model_seeds,
        min_steps=20 if options.quick else options.min_steps,
        together=True,
    )
    if results["failed"]:
        print(json.dumps(results["failed"]), flush=True)
    return [{**row, "target": f"corpus {seed}", "site": row["target"]} for row in results["table"]]


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one small corpus, few steps: does it run?")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), metavar="DIR")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(11, 21)), metavar="N")
    parser.add_argument("--left-out", type=int, default=6, metavar="N", help="sites of each corpus (6)")
    parser.add_argument("--model-seeds", type=int, nargs="+", default=[0], metavar="N")
    parser.add_argument("--amounts", nargs="+", default=["10%"], metavar="N", help="training trials (10%%)")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--recipe", default="neuropixel_slots")
    parser.add_argument("--min-steps", type=int, default=150, metavar="N")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.quick:
        options.seeds, options.methods, options.left_out = options.seeds[:1], ["scratch", "full"], 2
    size = QUICK if options.quick else SIZE
    table: list[dict[str, Any]] = []
    for seed in options.seeds:
        table += run_corpus(seed, size, options.out, options)
        last = table[-1]["target"]
        names = ("site", "decoder", "coordinates", "amount", "r2")
        print(
            json.dumps([{name: row[name] for name in names} for row in table if row["target"] == last]),
            flush=True,
        )
    scores: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for row in table:
        key = (row["decoder"], row["coordinates"], row["amount"])
        scores.setdefault(key, {}).setdefault(row["target"], []).append(row["r2"])
    rows = []
    for (decoder, coordinates, amount), of_corpora in scores.items():
        means = [np.mean(values) for values in of_corpora.values()]
        rows.append(
            {"decoder": decoder, "coordinates": coordinates, "amount": amount,
             "mean r2": float(np.mean(means)), "s.d.": float(np.std(means)), "corpora": len(means)}
        )  # fmt: skip
    print_table("R2 at a site never seen", rows)
    comparisons = compare_arms(table)
    if comparisons:
        print_table("Comparisons over corpora", comparisons)
    save_results(
        options.out, "cross_site", {"size": size, "table": rows, "comparisons": comparisons, "runs": table}
    )


if __name__ == "__main__":
    main()
