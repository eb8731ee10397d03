"""Connectivity maps of simulated sites against the couplings that were put in.

    python benchmarks/site_maps.py --out results

For each corpus: simulate sites with directed, delayed couplings, a common input, shared tuning and controls
that follow nothing; write NWB; build; pretrain a tiny model with two spatial layers; map the connectivity on
test trials. Scored by the area under the ROC curve over ordered pairs of sites against directed couplings,
and over unordered pairs against couplings in either direction, which is all that a symmetric map can know.
Each estimator is tested against shuffled trials; the shuffles themselves, and pairs with a control, say how
often a test finds what is not there.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import print_table, save_results
from scipy import stats
from sklearn.metrics import roc_auc_score

from rpnt_hf.analysis.connectivity import ESTIMATORS, Connectivity, load_pretrained, map_connectivity
from rpnt_hf.analysis.plots import plot_connectivity, save_figure
from rpnt_hf.data.builder import BuilderConfig, build_dataset, find_nwb_files
from rpnt_hf.data.loading import load_rows, view_rows
from rpnt_hf.data.simulate_sites import SimulatedSites, simulate_sites
from rpnt_hf.scripts import find_script, load_script

BIN_SIZE = 0.02
SIZE = {
    "num_sites": 10, "num_controls": 2, "num_units": 24, "num_trials": 240, "density": 0.3, "local": 1.0,
    "median_rate": 20.0,
}  # fmt: skip
QUICK = {"num_sites": 4, "num_controls": 1, "num_units": 6, "num_trials": 40, "density": 1.0}


def pretrain(simulated: SimulatedSites, folder: Path, seed: int, epochs: int | None) -> float:
    """Goes the whole way from NWB files to a checkpoint, unless it is there; gives bits per spike."""
    if (folder / "model" / "results.json").is_file():
        return float(
            json.loads((folder / "model" / "results.json").read_text())["validation"]["bits_per_spike"]
        )
    simulated.write(folder / "nwb")
    config = BuilderConfig(BIN_SIZE, proportions=(0.5, 0.1, 0.4), seed=seed)
    build_dataset(find_nwb_files(folder / "nwb"), folder / "data", config)
    argv = ["--config", str(find_script("training/configs/neuropixel_tiny_pretrain.yaml"))]
    argv += ["--data", str(folder / "data"), "--output_dir", str(folder / "model"), "--seed", str(seed)]
    argv += [] if epochs is None else ["--epochs", str(epochs)]
    results = load_script("training/pretrain.py").main([*argv, "--cpu", "true"])
    return float(results["validation"]["bits_per_spike"])


def score(found: Connectivity, simulated: SimulatedSites) -> dict[str, dict[str, float]]:
    """Holds each map against the couplings."""
    couplings = simulated.couplings
    pairs = ~np.eye(len(couplings), dtype=bool)
    upper = np.triu(pairs)
    control = pairs & (simulated.is_control[:, None] | simulated.is_control)
    scores = {}
    for name, one in found.maps.items():
        both = np.maximum(one.excess, one.excess.T)
        found_pairs = one.significant & pairs
        scores[name] = {
            "auroc": float(roc_auc_score(couplings[pairs], one.excess[pairs])),
            "auroc_raw": float(roc_auc_score(couplings[pairs], one.values[pairs])),
            "auroc_scores": float(roc_auc_score(couplings[pairs], one.scores[pairs])),
            "auroc_undirected": float(roc_auc_score((couplings | couplings.T)[upper], both[upper])),
            "found": int(found_pairs.sum()),
            "found_true": int((found_pairs & couplings).sum()),
            "found_reversed": int((found_pairs & couplings.T & ~couplings).sum()),
            "found_with_control": int((found_pairs & control).sum()),
            "found_in_shuffles": one.control_discoveries,
        }
    return scores


def run_corpus(
    seed: int, size: dict[str, Any], epochs: int | None, shuffles: int, out: Path, work: Path | None
) -> dict[str, Any]:
    """Simulates, pretrains, maps and scores one corpus."""
    began = time.perf_counter()
    simulated = simulate_sites(seed=seed, **size)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if work is None else work / f"corpus_{seed}"
        bits = pretrain(simulated, folder, seed, epochs)
        trained = time.perf_counter()
        model, processor = load_pretrained(folder / "model")
        rows = view_rows(load_rows(folder / "data", split="test"))
        found = map_connectivity(model, processor, rows, num_shuffles=shuffles, seed=seed)
    picture = plot_connectivity(
        found.maps["permutation"].excess,
        found.site_ids,
        found.site_positions,
        found.maps["permutation"].significant,
        label="nats per hidden entry",
        title=f"corpus {seed}: permutation",
    )
    save_figure(picture, out / f"site_maps_{seed}.png")
    return {
        "seed": seed,
        "couplings": int(simulated.couplings.sum()),
        "bits_per_spike": bits,
        "windows": found.settings["windows"],
        "scores": score(found, simulated),
        "seconds_training": trained - began,
        "seconds_maps": time.perf_counter() - trained,
    }


def summarize(corpora: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each estimator: means over corpora, and its lead over plain rate correlation."""
    rows = []
    of = {name: [corpus["scores"][name] for corpus in corpora] for name in ESTIMATORS}
    plain = np.array([one["auroc"] for one in of["rate_correlation"]])
    for name, scores in of.items():
        own = np.array([one["auroc"] for one in scores])
        lead = own - plain
        interval = (np.nan, np.nan)
        if len(lead) > 1 and np.ptp(lead) > 0:
            interval = tuple(stats.ttest_1samp(lead, 0.0).confidence_interval())
        total = {key: float(np.mean([one[key] for one in scores])) for key in scores[0]}
        rows.append(
            {
                "estimator": name,
                "AUROC": float(own.mean()),
                "s.d.": float(own.std(ddof=1)) if len(own) > 1 else np.nan,
                "lowest": float(own.min()),
                "undirected": total["auroc_undirected"],
                "lead over rate correlation": float(lead.mean()),
                "95 % from": float(interval[0]),
                "to": float(interval[1]),
                "pairs found": total["found"],
                "of them true": total["found_true"],
                "reversed": total["found_reversed"],
                "with a control": total["found_with_control"],
                "found in shuffles": total["found_in_shuffles"],
            }
        )
    return rows


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one small corpus, one epoch: does it run?")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), metavar="DIR")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)), metavar="N")
    parser.add_argument("--shuffles", type=int, default=20, metavar="N")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep corpora and checkpoints, and go on")
    parser.add_argument("--coupling", type=float, metavar="G", help="gain of the couplings (default 0.8)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = dict(QUICK if options.quick else SIZE)
    if options.coupling is not None:
        size["coupling"] = options.coupling
    corpora = []
    for seed in options.seeds[:1] if options.quick else options.seeds:
        epochs, shuffles = (1, 5) if options.quick else (None, options.shuffles)
        corpora.append(run_corpus(seed, size, epochs, shuffles, options.out, options.work))
        print(json.dumps(corpora[-1]), flush=True)
        rows = summarize(corpora)
        save_results(options.out, "site_maps", {"size": size, "table": rows, "corpora": corpora})
    print_table(f"Maps against couplings, {len(corpora)} corpora", rows)


if __name__ == "__main__":
    main()
