"""What a GPU reaches: windows and tokens a second, the share of its bf16 matrix rate, and peak memory.

    python benchmarks/gpu.py --out results [--parts steps attention]

Training steps of both presets under bf16 autocast, eager and compiled, at growing batches until the memory is
full; the rate of a large bf16 product on the same card, in the same turns, is what they are compared with.
Then context attention against the naive forms of `attention.py`, with and without a window. Without a CUDA
device it refuses; `--device cpu --quick` runs the same code on small sizes, for tests.
"""

import argparse
import math
import sys
from typing import Any

import attention
import torch
import training_step
from measure import make_parser, peak_memory_mib, print_table, save_plot, save_results, time_turns

TARGET_SHARE = 0.4
# Preset, sites and numbers of windows; batches grow until one does not fit.
STEPS = (
    (training_step.MICROELECTRODE, 1, (64, 512, 2048, 8192)),
    (training_step.NEUROPIXEL, 16, (8, 64, 256, 1024)),
)


def measure_step(
    preset: str, sites: int, batch_size: int, compiled: bool, product_size: int, options: argparse.Namespace
) -> dict[str, Any] | None:
    """One row: a training step beside a large product; None where the memory does not hold it."""
    on_gpu = options.device == "cuda"
    torch.compiler.reset()  # what was compiled for the row before would hold its memory
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    model = training_step.make_model(preset, 50 * sites).to(options.device)
    batch = training_step.make_batch(batch_size, sites, 50, 50, options.device)
    network: Any = torch.compile(model, fullgraph=True) if compiled else model
    variants = {
        "step": training_step.make_step(network, batch, bf16=True),
        "product": training_step.make_product(product_size, torch.bfloat16, options.device),
    }
    try:
        seconds = time_turns(variants, *((0.0, 1) if options.quick else (2.0, 5)))
    except torch.OutOfMemoryError:
        return None
    tokens = batch_size * sites * 50
    rate = training_step.step_flops(model, batch) / seconds["step"]
    best = 2 * product_size**3 / seconds["product"]
    return {
        "preset": preset,
        "sites": sites,
        "windows": batch_size,
        "compiled": compiled,
        "step, ms": 1000 * seconds["step"],
        "windows / s": batch_size / seconds["step"],
        "tokens / s": tokens / seconds["step"],
        "TFLOP/s": rate / 1e12,
        "product, TFLOP/s": best / 1e12,
        "share": rate / best,
        "target at the largest batch": f">= {TARGET_SHARE}",
        "peak, MiB": torch.cuda.max_memory_allocated() / 2**20 if on_gpu else peak_memory_mib(),
    }


def measure_steps(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Both presets at growing batches, eager and compiled."""
    rows = []
    for preset, sites, batches in (("tiny", 2, (2,)),) if options.quick else STEPS:
        for compiled in (False,) if options.quick else (False, True):
            for batch_size in batches:
                row = measure_step(
                    preset, sites, batch_size, compiled, 64 if options.quick else 8192, options
                )
                if row is None:
                    break
                rows.append(row)
    return rows


def measure_attention(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Forward and backward of context attention against the oracles."""
    rows = []
    for window in (None, attention.WINDOW):
        for num_bins, batch_size in ({20: 2} if options.quick else attention.CASES).items():
            variants = attention.make_variants(num_bins, batch_size, window, options.device)
            seconds = time_turns(variants, *((0.0, 1) if options.quick else (0.5, 5)))
            row: dict[str, Any] = {"bins": num_bins, "batch": batch_size, "window": window}
            row["ours, ms"] = 1000 * seconds[attention.OURS]
            for name in (attention.NAIVE, attention.ORACLE):
                row[f"{name} / ours"] = seconds.get(name, math.nan) / seconds[attention.OURS]
            rows.append(row)
    return rows


def report_steps(options: argparse.Namespace) -> None:
    """Prints and keeps the training steps."""
    rows = measure_steps(options)
    print_table("Training steps under bf16 autocast, windows of 50 bins with 50 units a site", rows)
    save_results(options.out, "gpu_steps", rows)
    shares: dict[str, list[float]] = {}
    sizes: dict[str, list[float]] = {}
    for row in rows:
        name = f"{row['preset']}{', compiled' if row['compiled'] else ''}"
        sizes.setdefault(name, []).append(float(row["windows"]))
        shares.setdefault(name, []).append(row["share"])
    for name, values in shares.items():
        path = options.out / f"gpu_{name.replace(', ', '_')}.png"
        save_plot(path, sizes[name], {name: values}, "windows", "share of the bf16 matrix rate")


def report_attention(options: argparse.Namespace) -> None:
    """Prints and keeps context attention."""
    rows = measure_attention(options)
    print_table("Context attention, forward and backward, fp32", rows)
    save_results(options.out, "gpu_attention", rows)


PARTS = {"steps": report_steps, "attention": report_attention}


def main() -> None:
    """Runs the benchmark."""
    parser = make_parser(__doc__, PARTS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is for tests only")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        steps = "; ".join(f"{preset}, {sites} sites, windows {batches}" for preset, sites, batches in STEPS)
        lengths = ", ".join(map(str, attention.CASES))
        sys.exit(
            "This benchmark needs a CUDA device, and torch sees none. There it would time training steps in "
            f"bf16, eager and compiled, beside a bf16 product of 8192 x 8192 ({steps}), and context "
            f"attention against both naive forms at {lengths} bins. Run it where there is one, with torch "
            "built for CUDA; `--device cpu --quick` only tries its code on small sizes."
        )
    for part in options.parts:
        PARTS[part](options)


if __name__ == "__main__":
    main()
