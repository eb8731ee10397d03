"""Real simultaneous probes: hidden areas predicted from the others, and the outcome of trials decoded.

    python benchmarks/real_probes.py --data DIR --out results

For each NWB file of the folder (trials with a column `feedback`; areas are sites): pretrain a tiny model with
and without its spatial stage on the training trials, in which whole areas are hidden and few units of the
others, then on test trials

- hide one area altogether and predict its counts from the others: bits per spike over a mean rate for each
  unit, beside the mean response of each unit over trials and a reduced-rank linear predictor from the other
  areas (rank, ridge and floor of the rates chosen on validation trials);
- decode feedback: the pretrained model finetuned as a classifier against logistic regression on counts
  (features and strength chosen on validation trials), by balanced accuracy.

Intervals are of 1,000 resamples of test trials, the same for both where two are compared. Trials are divided
once for each file; nothing is chosen on test trials. It goes on where it was interrupted.
"""

import argparse
import json
import math
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from measure import print_table, save_results
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rpnt_hf import RPNTConfig, RPNTForSequenceClassification
from rpnt_hf.analysis.connectivity import load_pretrained
from rpnt_hf.analysis.site_windows import SiteWindows, cut_site_windows
from rpnt_hf.data.builder import find_nwb_files
from rpnt_hf.data.loading import load_rows, view_rows
from rpnt_hf.data.simulate_sites import simulate_sites
from rpnt_hf.scripts import find_script, load_builder, load_script

BIN_SIZE, MIN_UNITS = 0.02, 15
SPLITS = ("train", "validation", "test")
RANKS, RIDGES = (1, 2, 4, 8, 16, 32, 64), (100.0, 300.0, 1000.0, 3000.0, 10_000.0, 30_000.0)
FLOORS = (0.02, 0.1, 0.3, 0.5, 0.7)  # of a unit's mean rate
SHARES = (0.0, 1.0)  # of the mean response over trials in what deviations are taken from
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Whole areas are hidden as on test trials, and few units of the others: more leaves little to learn from.
MASKING = {"site_mask_probability": 0.3, "min_visible_bins": 10_000, "max_unit_ratio": 0.4}
FIELDS = {"unit_readout": "own", "dropout": 0.2}
LEARNING_RATE, BATCH_SIZE, VALIDATE_EVERY = 0.003, 8, 50
LAGS = 2  # bins of the past that the linear predictor sees, beside the present one
NUM_RESAMPLES = 1000

Array = NDArray[np.float64]


def build(path: Path, folder: Path, label_column: str | None) -> Path:
    """Builds one file into a dataset with areas as sites."""
    builder = load_builder("neuropixel")
    parser = argparse.ArgumentParser()
    builder.add_arguments(parser)
    argv = ["--nwb-dir", str(path), "--out", str(folder / "data"), "--bin-size", str(BIN_SIZE)]
    argv += [
        "--sites",
        "areas",
        "--min-units",
        str(MIN_UNITS),
        "--allow-no-behavior",
        "--context-length",
        "0",
    ]
    argv += ["--proportions", "0.6", "0.15", "0.25"]
    argv += [] if label_column is None else ["--label-column", label_column]
    return builder.build(parser.parse_args(argv))


def pretrain(data: Path, out: Path, num_spatial_layers: int, options: argparse.Namespace) -> Path:
    """Pretrains a model with so many spatial layers."""
    config = find_script("training/configs/neuropixel_tiny_pretrain.yaml")
    fields = {
        **yaml.safe_load(config.read_text())["model"],
        **FIELDS,
        "num_spatial_layers": num_spatial_layers,
    }
    rows = load_rows(data, split="train")
    epochs = math.ceil(options.steps * BATCH_SIZE / len(rows))
    argv = ["--config", str(config), "--data", str(data), "--output_dir", str(out), "--cpu", "true"]
    argv += ["--model", json.dumps(fields), "--window_bins", str(max(rows["num_bins"])), "--seed", "0"]
    argv += ["--epochs", str(epochs), "--validate_every", str(VALIDATE_EVERY)]
    argv += ["--masking", json.dumps(MASKING), "--batch_size", str(BATCH_SIZE)]
    argv += ["--optimizer.learning_rate", str(LEARNING_RATE)]
    load_script("training/pretrain.py").main(argv)
    return out


def bits_per_spike(rates: Array, counts: Array, null: Array) -> Array:
    """Nats over the null model and spikes of each trial, (2, trials); rates (trials, bins, units)."""
    known = null > 0  # a unit that is silent in training would make one spike infinitely unlikely
    model = counts * np.log(np.maximum(rates, 1e-9)) - rates
    mean = counts * np.log(np.maximum(null, 1e-9)) - null
    return np.stack([((model - mean) * known).sum(axis=(1, 2)), (counts * known).sum(axis=(1, 2))])


@torch.inference_mode()
def predict_hidden(checkpoint: Path, windows: SiteWindows, site: int) -> Array:
    """Rates of a site of which every bin is hidden, (trials, bins, units)."""
    model, _ = load_pretrained(checkpoint)
    rates = []
    for batch in windows.batches(32):
        masked = torch.zeros_like(batch["bin_mask"])
        masked[:, site] = batch["bin_mask"][:, site]
        rates.append(model(**batch, masked_bins=masked).log_rates[:, site].exp())
    return torch.cat(rates).double().numpy()


def of_site(windows: SiteWindows, site: int) -> Array:
    """Counts of the units of a site, (trials, bins, units)."""
    return windows.spike_counts[:, site][..., windows.unit_mask[site]].astype(np.float64)


def predictors(windows: SiteWindows, site: int) -> Array:
    """Square-rooted counts of all other sites, at a bin and the two before it, (trials, bins, features)."""
    others = [of_site(windows, other) for other in range(windows.num_sites) if other != site]
    roots = np.sqrt(np.concatenate(others, axis=-1))
    shifted = [np.pad(roots, ((0, 0), (lag, 0), (0, 0)))[:, : roots.shape[1]] for lag in range(LAGS + 1)]
    return np.concatenate(shifted, axis=-1)


def reduced_rank(splits: dict[str, SiteWindows], site: int) -> tuple[Array, dict[str, float]]:
    """Reduced-rank regression of deviations from a mean, chosen on validation; rates on test.

    The mean is that of all bins, or that of each bin over trials, which few trials make noisy.
    """
    x = {split: predictors(windows, site) for split, windows in splits.items()}
    y = {split: of_site(windows, site) for split, windows in splits.items()}
    null = y["train"].mean(axis=(0, 1))
    best: tuple[float, Array, dict[str, float]] | None = None
    for share in SHARES:
        mean_x, mean_y = (
            (1 - share) * of["train"].mean(axis=(0, 1)) + share * of["train"].mean(axis=0) for of in (x, y)
        )
        features, targets = x["train"] - mean_x, y["train"] - mean_y
        features, targets = features.reshape(-1, features.shape[-1]), targets.reshape(-1, targets.shape[-1])
        is_wide = features.shape[1] > len(features)  # then the same solution is had from the smaller matrix
        gram = features @ features.T if is_wide else features.T @ features
        held_out = x["validation"] - mean_x
        for ridge in RIDGES:
            ridged = gram + ridge * np.eye(len(gram))
            if is_wide:
                full = features.T @ np.linalg.solve(ridged, targets)
            else:
                full = np.linalg.solve(ridged, features.T @ targets)
            fitted = features @ full
            directions = np.linalg.eigh(fitted.T @ fitted)[1][:, ::-1]
            for rank in RANKS:
                kept = directions[:, :rank] @ directions[:, :rank].T
                predicted = held_out @ full @ kept + mean_y
                for floor in FLOORS:
                    rates = np.maximum(predicted, floor * null + 1e-6)
                    gained, spikes = bits_per_spike(rates, y["validation"], null).sum(axis=1)
                    if best is None or gained / max(spikes, 1) > best[0]:
                        test = np.maximum((x["test"] - mean_x) @ full @ kept + mean_y, floor * null + 1e-6)
                        chosen = {"share": share, "rank": rank, "ridge": ridge, "floor": floor}
                        best = (gained / max(spikes, 1), test, chosen)
    assert best is not None
    return best[1], best[2]


def bits_interval(one: Array, other: Array | None = None) -> tuple[float, float, float]:
    """Bits per spike of (2, trials), less those of another where there is one, and the 95 % interval."""
    index = np.random.default_rng(0).integers(one.shape[1], size=(NUM_RESAMPLES, one.shape[1]))

    def bits(sums: Array) -> Array:
        gained, spikes = sums[:, np.concatenate([np.arange(one.shape[1])[None], index])].sum(axis=2)
        return np.asarray(gained / (spikes * math.log(2)))

    found = bits(one) - (0 if other is None else bits(other))
    low, high = np.percentile(found[1:], [2.5, 97.5])
    return float(found[0]), float(low), float(high)


def hidden_areas(
    splits: dict[str, SiteWindows], checkpoints: dict[str, Path]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Bits per spike of every way to predict each area from the others, and of all areas with intervals."""
    rows, totals = [], dict[str, Array]()
    for site, name in enumerate(splits["test"].site_ids):
        units = splits["test"].unit_mask[site]
        train, test = of_site(splits["train"], site), of_site(splits["test"], site)
        null, num_trials = train.mean(axis=(0, 1)), len(train)
        found = {
            label: predict_hidden(checkpoint, splits["test"], site)[..., units]
            for label, checkpoint in checkpoints.items()
        }
        # One trial's worth of the mean rate, so that no bin that was empty in training is impossible.
        found["mean response"] = np.broadcast_to((train.sum(axis=0) + null) / (num_trials + 1), test.shape)
        found["reduced-rank linear"], chosen = reduced_rank(splits, site)
        sums = {label: bits_per_spike(rates, test, null) for label, rates in found.items()}
        totals = {label: totals.get(label, np.zeros_like(one)) + one for label, one in sums.items()}
        bits = {label: float(one[0].sum() / (one[1].sum() * np.log(2))) for label, one in sums.items()}
        rows.append({"area": name, "units": int(units.sum()), "spikes": int(test.sum()), **bits, **chosen})
    pairs: list[tuple[str, str | None]] = [(label, None) for label in totals]
    pairs += [("RPNT", other) for other in totals if other != "RPNT"]
    overall = [
        {
            "what": label if other is None else f"{label} minus {other}",
            "trials": totals[label].shape[1],
            **dict(
                zip(
                    ("bits", "from", "to"),
                    bits_interval(totals[label], None if other is None else totals[other]),
                    strict=True,
                )
            ),
        }
        for label, other in pairs
    ]
    return rows, overall


def classify(
    checkpoint: Path, splits: dict[str, SiteWindows], labels: dict[str, NDArray[np.int64]], epochs: int
) -> NDArray[np.int64]:
    """Finetunes a checkpoint as a classifier of trials, and gives its classes on test trials."""
    torch.manual_seed(0)
    reference, _ = load_pretrained(checkpoint)
    config = RPNTConfig.from_dict(reference.config.to_dict())
    config.num_labels = 2
    model = RPNTForSequenceClassification(config)
    model.model.load_state_dict(reference.model.state_dict())
    weight = torch.tensor(
        len(labels["train"]) / (2 * np.bincount(labels["train"], minlength=2)), dtype=torch.float32
    )
    optimizer = torch.optim.AdamW(
        [
            {"params": model.model.parameters(), "lr": 1e-4},
            {"params": [*model.pooling.parameters(), *model.classifier.parameters()], "lr": 1e-3},
        ],
        weight_decay=0.1,
    )
    train = next(iter(splits["train"].batches(len(labels["train"]))))
    best, chosen = -1.0, None
    for _ in range(epochs):
        model.train()
        for batch in torch.randperm(len(labels["train"])).split(32):
            logits = model(**{name: value[batch] for name, value in train.items()}).logits
            loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels["train"])[batch], weight)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.inference_mode():
            classes = {
                split: torch.cat([model(**batch).logits for batch in splits[split].batches(64)])
                .argmax(1)
                .numpy()
                for split in ("validation", "test")
            }
        accuracy = balanced_accuracy_score(labels["validation"], classes["validation"])
        if accuracy > best:
            best, chosen = accuracy, classes["test"]
    assert chosen is not None
    return chosen


def logistic(splits: dict[str, SiteWindows], labels: dict[str, NDArray[np.int64]]) -> NDArray[np.int64]:
    """Logistic regression on counts of whole trials, or of four parts of them; classes on test trials."""
    best, chosen = -1.0, None
    for parts in (1, 4):
        features = {}
        for split, windows in splits.items():
            counts = np.concatenate([of_site(windows, site) for site in range(windows.num_sites)], axis=-1)
            pieces = np.array_split(counts, parts, axis=1)
            features[split] = np.sqrt(np.concatenate([piece.sum(axis=1) for piece in pieces], axis=1))
        for strength in STRENGTHS:
            model = make_pipeline(
                StandardScaler(), LogisticRegression(C=strength, class_weight="balanced", max_iter=300)
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.fit(features["train"], labels["train"])
            accuracy = balanced_accuracy_score(labels["validation"], model.predict(features["validation"]))
            if accuracy > best:
                best, chosen = accuracy, model.predict(features["test"])
    assert chosen is not None
    return chosen


def accuracy_interval(
    truth: NDArray[np.int64], classes: NDArray[np.int64], others: NDArray[np.int64] | None = None
) -> dict[str, float]:
    """Balanced accuracy on test trials, less that of others where there are some, and the 95 % interval."""
    generator = np.random.default_rng(0)

    def accuracy(index: NDArray[np.int64]) -> float:
        found = balanced_accuracy_score(truth[index], classes[index])
        return float(found - (0 if others is None else balanced_accuracy_score(truth[index], others[index])))

    drawn: list[float] = []
    while len(drawn) < NUM_RESAMPLES:
        index = generator.integers(len(truth), size=len(truth))
        if len(np.unique(truth[index])) == 2:
            drawn.append(accuracy(index))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"accuracy": accuracy(np.arange(len(truth))), "from": float(low), "to": float(high)}


def run_file(path: Path, folder: Path, options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Everything about one file: its areas, all of them together, and the outcome of trials."""
    data = build(path, folder, options.label_column)
    checkpoints = {
        name: pretrain(data, folder / f"model{layers}", layers, options)
        for name, layers in (("RPNT", 2), ("RPNT, no spatial stage", 0))
    }
    _, processor = load_pretrained(checkpoints["RPNT"])
    rows = {split: view_rows(load_rows(data, split=split)) for split in SPLITS}
    size = min(row["num_bins"] for found in rows.values() for row in found)  # no bin is padding
    splits = {split: cut_site_windows(found, processor, size) for split, found in rows.items()}
    areas, overall = hidden_areas(splits, checkpoints)
    if options.label_column is None:
        return _named(path, areas=areas, overall=overall, outcomes=[])
    labels = {
        split: np.array([trial["label"] for row in found for trial in row["trials"]])
        for split, found in rows.items()
    }
    classes = {
        "RPNT": classify(checkpoints["RPNT"], splits, labels, options.classifier_epochs),
        "logistic regression": logistic(splits, labels),
    }
    linear = classes["logistic regression"]
    outcomes = [
        {"decoder": name, "trials": len(found), **accuracy_interval(labels["test"], found)}
        for name, found in classes.items()
    ]
    outcomes.append(
        {
            "decoder": "RPNT minus logistic regression",
            "trials": len(linear),
            **accuracy_interval(labels["test"], classes["RPNT"], linear),
        }
    )
    return _named(path, areas=areas, overall=overall, outcomes=outcomes)


def _named(path: Path, **tables: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return {
        title: [{"file": path.stem.removesuffix("_ecephys"), **row} for row in rows]
        for title, rows in tables.items()
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one simulated file, one epoch: does it run?")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="folder of NWB files; needed but for --quick"
    )
    parser.add_argument("--files", type=int, metavar="N", help="only the first N files")
    parser.add_argument("--label-column", default="feedback", metavar="NAME", help="classes of the trials")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), metavar="DIR")
    parser.add_argument("--steps", type=int, default=1500, metavar="N", help="of pretraining, about (1500)")
    parser.add_argument("--classifier-epochs", type=int, default=10, metavar="N", help="of finetuning (10)")
    options = parser.parse_args()
    if options.data is None and not options.quick:
        parser.error("--data must name a folder of NWB files")
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, Any]]] = {"areas": [], "overall": [], "outcomes": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if options.quick:
            options.steps, options.label_column = 10, None
            simulate_sites(num_sites=3, num_controls=1, num_trials=30).write(folder / "nwb")
            options.data = folder / "nwb"
        for path in find_nwb_files(options.data)[: options.files]:
            settings = {
                name: str(getattr(options, name)) for name in ("steps", "classifier_epochs", "label_column")
            }
            done = options.out / f"real_probes_{path.stem}.json"
            known = json.loads(done.read_text()) if done.is_file() else {}
            if known.get("settings") != settings:
                known = {"settings": settings, "tables": run_file(path, folder / path.stem, options)}
                options.out.mkdir(parents=True, exist_ok=True)
                unfinished = done.with_suffix(".unfinished")
                unfinished.write_text(json.dumps(known))
                unfinished.replace(done)
            for title, rows in known["tables"].items():
                found[title] += rows
            print(f"{path.stem}: done", flush=True)
    print_table("Bits per spike of hidden areas", found["areas"])
    print_table("Bits per spike of all areas, and differences on the same resamples", found["overall"])
    if found["outcomes"]:
        print_table("Outcome of trials, balanced accuracy", found["outcomes"])
    save_results(options.out, "real_probes", found)


if __name__ == "__main__":
    main()
