"""Windows a second from a memory-mapped dataset to the tensors that a model takes, in one process.

    python benchmarks/loader.py --out results

The loader is what training uses: WindowSampler, WindowDataset and WindowCollator in a DataLoader. Two slow
oracles run beside it, turn by turn: a dataset with a nested list for each window, read row by row as the
`datasets` documentation does it; and a loop that gives each window a generator and a layout of its own. Both
must give the same counts (units as recorded).
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from measure import make_parser, print_table, save_plot, save_results, time_turns
from torch.utils.data import DataLoader

from rpnt_hf.data.loading import view_rows
from rpnt_hf.data.rows import row_counts
from rpnt_hf.data.schema import FEATURES
from rpnt_hf.data.windows import MaskingConfig, WindowCollator, WindowDataset, WindowSampler
from rpnt_hf.processing_rpnt import RPNTProcessor

WINDOW_BINS = 50
NUM_SLOTS = 50


def write_rows(folder: Path, num_units: int, num_bins: int) -> list[dict[str, Any]]:
    """Writes four sessions of random counts as a dataset, and views its rows where they are mapped."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "session_id": f"session {i}", "subject_id": "A", "task": "center_out", "recording_date": None,
            "site_ids": ["M1"], "site_positions": [[0.0, 0.0, 0.0]], "bin_size": 0.02, "start_time": 0.0,
            "num_bins": num_bins, "num_context_bins": 0, "unit_ids": [str(n) for n in range(num_units)],
            "unit_sites": [0] * num_units, "observed": bytes([1]) * num_bins, "trials": [],
            "counts": rng.poisson(0.4, (num_bins, num_units)).astype(np.uint8).tobytes(),
            "behavior": rng.standard_normal((num_bins, 2)).astype(np.float32).tobytes(),
            "behavior_names": ["cursor_vel_x", "cursor_vel_y"], "behavior_units": ["cm/s", "cm/s"],
            "source": {"file_name": None, "sha256": None},
        }
        for i in range(4)
    ]  # fmt: skip
    datasets.Dataset.from_list(rows, features=FEATURES).save_to_disk(folder)
    return view_rows(datasets.load_from_disk(folder))


def make_loader(
    rows: list[dict[str, Any]], num_slots: int | None, batch_size: int, is_masked: bool
) -> tuple[Callable[[], int], WindowSampler, DataLoader[Any]]:
    """The loader of training; a call runs an epoch and gives the number of windows."""
    mode: dict[str, Any] = {"unit_embedding": "slots", "num_slots": num_slots} if num_slots else {}
    processor = RPNTProcessor.from_rows(rows, **mode)
    sampler = WindowSampler(rows, WINDOW_BINS, batch_size, pairs=is_masked)
    collator = WindowCollator(rows, processor, masking=MaskingConfig() if is_masked else None)
    loader: DataLoader[Any] = DataLoader(WindowDataset(rows), batch_sampler=sampler, collate_fn=collator)

    def run() -> int:
        sampler.set_epoch(sampler.epoch + 1)
        return sum(len(batch["spike_counts"]) for batch in loader)

    return run, sampler, loader


def run_window_by_window(rows: list[dict[str, Any]], num_slots: int | None, num_windows: int) -> torch.Tensor:
    """A generator, a layout and a slice for each window; the counts of a batch."""
    mode: dict[str, Any] = {"unit_embedding": "slots", "num_slots": num_slots} if num_slots else {}
    processor = RPNTProcessor.from_rows(rows, **mode)
    sites = [np.asarray(row["unit_sites"]) for row in rows]
    counts = []
    for i in range(num_windows):
        row = i % len(rows)
        start = (i // len(rows)) * WINDOW_BINS
        rng = np.random.default_rng(i)
        index, _, present = processor.unit_layout(rows[row]["session_id"], sites[row], 1, rng)
        window = row_counts(rows[row])[start : start + WINDOW_BINS]
        counts.append(window[:, index] * present)
    return torch.from_numpy(np.stack(counts)).transpose(1, 2)


def write_nested(rows: list[dict[str, Any]], folder: Path, num_windows: int) -> datasets.Dataset:
    """The same windows as nested lists, one row for each."""
    windows = [
        row_counts(rows[i % len(rows)])[(i // len(rows)) * WINDOW_BINS :][:WINDOW_BINS].tolist()
        for i in range(num_windows)
    ]
    nested = datasets.Features({"counts": datasets.List(datasets.List(datasets.Value("uint8")))})
    datasets.Dataset.from_dict({"counts": windows}, features=nested).save_to_disk(folder)
    return datasets.load_from_disk(folder)


def measure_size(folder: Path, num_units: int, batch_size: int, quick: bool) -> dict[str, Any]:
    """Compares all ways at one number of units."""
    num_bins = WINDOW_BINS * (40 if quick else max(400_000 // num_units, 2000) // 4)
    rows = write_rows(folder / f"rows{num_units}", num_units, num_bins)
    few = 64 if quick else 256  # the oracles are slow
    nested = write_nested(rows, folder / f"nested{num_units}", few)
    slots = min(NUM_SLOTS, num_units // 2)

    def read_nested() -> torch.Tensor:
        return torch.stack([torch.tensor(nested[i]["counts"], dtype=torch.uint8) for i in range(few)])

    fast = {
        "all units": make_loader(rows, None, batch_size, False),
        "units sampled": make_loader(rows, slots, batch_size, False),
        "all units, masks": make_loader(rows, None, batch_size, True),
        "units sampled, masks": make_loader(rows, slots, batch_size, True),
    }
    by_window = run_window_by_window(rows, None, few)[:, 0]
    assert torch.equal(by_window, read_nested())
    ordered = WindowSampler(rows, WINDOW_BINS, num_bins, training=False)
    collator = WindowCollator(rows, RPNTProcessor.from_rows(rows))
    together = collator(WindowDataset(rows).__getitems__(ordered.windows(0)))["spike_counts"][:, 0]
    per_row = len(together) // len(rows)
    assert torch.equal(
        together.view(len(rows), per_row, *together.shape[1:]).transpose(0, 1).flatten(0, 1)[:few], by_window
    )
    sizes = {name: run() for name, (run, _, _) in fast.items()}
    variants: dict[str, Callable[[], Any]] = {name: run for name, (run, _, _) in fast.items()}
    variants |= {
        "nested lists": read_nested,
        "window by window": lambda: run_window_by_window(rows, None, few),
        "window by window, sampled": lambda: run_window_by_window(rows, slots, few),
    }
    seconds = time_turns(variants, min_seconds=0.05 if quick else 1.0, min_turns=1 if quick else 5)
    rates = {name: sizes.get(name, few) / value for name, value in seconds.items()}
    return {
        "units": num_units,
        "slots": slots,
        **rates,
        "all units / nested lists": rates["all units"] / rates["nested lists"],
        "sampled / window by window": rates["units sampled"] / rates["window by window, sampled"],
    }


def sweep_units(options: argparse.Namespace) -> None:
    """All ways at several numbers of units."""
    sizes = [16, 50] if options.quick else [16, 50, 100, 250, 1000]
    with tempfile.TemporaryDirectory() as temporary:
        rows = [measure_size(Path(temporary), size, options.batch_size, options.quick) for size in sizes]
    print_table(f"Windows a second: {WINDOW_BINS} bins, batches of {options.batch_size}, one process", rows)
    save_results(options.out, "loader", rows)
    names = [
        "all units",
        "units sampled",
        "units sampled, masks",
        "window by window, sampled",
        "nested lists",
    ]
    curves = {name: [row[name] for row in rows] for name in names}
    save_plot(options.out / "loader.png", [float(size) for size in sizes], curves, "units", "windows / s")


def main() -> None:
    """Runs the benchmark."""
    parser = make_parser(__doc__, {"units": sweep_units})
    parser.add_argument("--batch-size", type=int, default=256, help="windows in a batch")
    options = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    sweep_units(options)


if __name__ == "__main__":
    main()
