"""What one bin costs in a closed loop: the latency of `StreamingDecoder`, its floor, and its drift.

    python benchmarks/streaming.py --out results [--parts latency drift units sites]

Preset rpnt-microelectrode (4 layers, 256 wide, 8 heads, kernel 3 x 3, window 50, 7-bin stem) with 100 units
and random weights, one thread. Every backend runs in a tight loop and in a loop that waits for the end of
each bin, which finds colder caches, there also with `warm_up` called before the bin is due; the variants take
turns, so that a disturbance meets all of them. The floor is the time to read as many bytes as the weights
have; "products alone" runs the matrix products of the step and nothing else. The slow oracle computes the
window anew at each bin with the forward pass.

Run it on a quiet core: percentiles of a busy one say little about the decoder.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import make_parser, percentiles_ms, print_table, save_plot, save_results
from numpy.typing import NDArray

from rpnt_hf import RPNTConfig, RPNTForMotorDecoding, StreamingDecoder
from rpnt_hf.streaming_step import StreamingStep

BACKENDS = ("onnx", "torch")
PRESET, MANY_SITES = "rpnt-microelectrode", "rpnt-neuropixel"
ORACLE, FLOOR, PRODUCTS = "window anew", "floor: read the weights", "products alone"
UNITS = (16, 50, 100, 250, 500, 1000)
SITES = (1, 2, 4, 8, 16)
TURN_BINS = 100  # bins of one variant before the next takes its turn

Step = Callable[[int], Any]


def make_model(preset: str, num_units: int, **overrides: Any) -> RPNTForMotorDecoding:
    """A decoder with random weights."""
    torch.manual_seed(0)
    return RPNTForMotorDecoding(RPNTConfig.preset(preset, num_units=num_units, **overrides)).eval()


def draw_counts(num_bins: int, num_units: int) -> NDArray[np.uint8]:
    """Poisson counts, one spike a bin and unit."""
    return np.random.default_rng(0).poisson(1.0, size=(num_bins, num_units)).astype(np.uint8)


def time_bins(
    variants: dict[str, Step],
    num_bins: int,
    period: float = 0.0,
    warm_ups: Mapping[str, Callable[[], None]] | None = None,
) -> dict[str, list[float]]:
    """Latencies of each variant, in turns of some bins.

    With a period, every bin waits for its time; a variant with a warm-up runs it a quarter of the period
    before.
    """
    warm_ups = warm_ups or {}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for step in variants.values():
        for number in range(20):  # warm up
            step(number)
    while min(len(times) for times in seconds.values()) < num_bins:
        for name, step in variants.items():
            deadline = time.perf_counter() + period
            for number in range(TURN_BINS):
                if period:
                    if name in warm_ups:
                        time.sleep(max(deadline - period / 4 - time.perf_counter(), 0))
                        warm_ups[name]()
                    time.sleep(max(deadline - time.perf_counter(), 0))
                    deadline += period
                began = time.perf_counter()
                step(number)
                seconds[name].append(time.perf_counter() - began)
    return seconds


def weights_of(step: StreamingStep) -> list[torch.Tensor]:
    """Every weight that one bin reads."""
    layers = [weight for layer in [*step.temporal, *step.spatial] for weight in layer if weight is not None]
    return [*layers, *(step.stem or ()), step.units, step.readout_weight]


def make_step(decoder: StreamingDecoder, counts: NDArray[np.uint8]) -> Step:
    """Feeds a decoder one bin after another."""
    return lambda number: decoder.step(counts[number])


def make_variants(model: RPNTForMotorDecoding, counts: NDArray[np.uint8], sites: int = 1) -> dict[str, Step]:
    """A decoder for each backend, the oracle, and the two floors."""
    laid_out = counts.reshape(len(counts), sites, -1)
    window = int(model.config.attention_window or 0)
    batch = torch.from_numpy(laid_out[:window]).transpose(0, 1)[None].contiguous()
    variants: dict[str, Step] = {}
    for backend in BACKENDS:
        variants[backend] = make_step(StreamingDecoder(model, sites=sites, backend=backend), laid_out)
    step = StreamingDecoder(model, sites=sites, backend="torch").prepared
    weights = weights_of(step)
    stream = torch.ones(sum(weight.numel() for weight in weights))
    matrices = [weight for weight in weights if weight.ndim == 2 and min(weight.shape) > 1]
    inputs = [torch.ones(sites, len(matrix)) for matrix in matrices]

    @torch.inference_mode()
    def recompute(number: int) -> Any:
        return model(batch).predictions[0, -1]

    @torch.inference_mode()
    def read(number: int) -> Any:
        return stream.sum()

    @torch.inference_mode()
    def multiply(number: int) -> Any:
        return [part @ matrix for part, matrix in zip(inputs, matrices, strict=True)]

    return {**variants, ORACLE: recompute, FLOOR: read, PRODUCTS: multiply}


def measure_latency(preset: str, num_bins: int, period: float) -> list[dict[str, Any]]:
    """One bin in both loops."""
    model, counts = make_model(preset, 100), draw_counts(TURN_BINS, 100)
    variants = make_variants(model, counts)
    warmed = {f"{name}, warmed up": StreamingDecoder(model, backend=name) for name in BACKENDS}
    warm_ups = {name: decoder.warm_up for name, decoder in warmed.items()}
    # The oracle may take longer than a bin: it runs in the tight loop only.
    waiting = {name: step for name, step in variants.items() if name != ORACLE}
    waiting |= {name: make_step(decoder, counts) for name, decoder in warmed.items()}
    rows: list[dict[str, Any]] = []
    for loop, wait, timed in (("tight", 0.0, variants), (f"{1000 * period:.0f} ms", period, waiting)):
        for name, times in time_bins(timed, num_bins, wait, warm_ups).items():
            rows.append({"loop": loop, "variant": name, "min_ms": 1000 * min(times), **percentiles_ms(times)})
    anew = next(row["p50_ms"] for row in rows if row["variant"] == ORACLE)
    return [{**row, "window anew / this": anew / row["p50_ms"]} for row in rows]


def resident_mib() -> float:
    """Resident memory of this process now, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def measure_drift(preset: str, num_bins: int) -> list[dict[str, Any]]:
    """A long stream against the forward pass over all of it, and the memory that it takes meanwhile."""
    model, counts = make_model(preset, 100), draw_counts(num_bins, 100)
    with torch.inference_mode():
        expected = model(torch.from_numpy(counts)[None, None]).predictions[0].numpy()
    rows = []
    for backend in BACKENDS:
        decoder = StreamingDecoder(model, backend=backend)
        worst, settled = 0.0, 0.0
        for number in range(num_bins):
            if number == num_bins // 10:
                settled = resident_mib()
            worst = max(worst, float(np.abs(decoder.step(counts[number]).numpy() - expected[number]).max()))
        rows.append(
            {
                "backend": backend,
                "bins": num_bins,
                "difference_in_label_sd": worst,
                "sd_of_predictions": float(expected.std()),
                "grown_mib": resident_mib() - settled,
            }
        )
    return rows


def sweep(preset: str, sizes: list[tuple[int, int]], num_bins: int) -> list[dict[str, Any]]:
    """Cost of a bin against sites and units per site."""
    rows = []
    for sites, units in sizes:
        variants = make_variants(
            make_model(preset, sites * units), draw_counts(TURN_BINS, sites * units), sites
        )
        timed = {name: variants[name] for name in (*BACKENDS, ORACLE)}
        p50 = {name: percentiles_ms(times)["p50_ms"] for name, times in time_bins(timed, num_bins).items()}
        named = {f"{name}, p50 ms": value for name, value in p50.items()}
        rows.append(
            {
                "sites": sites,
                "units per site": units,
                **named,
                "window anew / onnx": p50[ORACLE] / p50["onnx"],
            }
        )
    return rows


def report_latency(options: argparse.Namespace) -> None:
    """One bin in every loop."""
    preset, bins, period = ("tiny", TURN_BINS, 0.002) if options.quick else (PRESET, 1000, 0.02)
    rows = measure_latency(preset, bins, period)
    print_table(f"One bin, {preset}, 100 units, one thread", rows)
    save_results(options.out, "streaming_latency", rows)


def report_drift(options: argparse.Namespace) -> None:
    """A long stream."""
    preset, bins = ("tiny", 500) if options.quick else (PRESET, 20_000)
    rows = measure_drift(preset, bins)
    print_table("A stream against the forward pass over all of it", rows)
    save_results(options.out, "streaming_drift", rows)


def report_sweep(options: argparse.Namespace, name: str, preset: str, sizes: list[tuple[int, int]]) -> None:
    """Cost against a size: units of one site, or sites."""
    sizes = sizes[:2] if options.quick else sizes
    preset, bins = ("tiny", TURN_BINS) if options.quick else (preset, 300)
    rows = sweep(preset, sizes, bins)
    print_table(f"One bin against {name}, {preset}", rows)
    save_results(options.out, f"streaming_{name}", rows)
    curves = {variant: [row[f"{variant}, p50 ms"] for row in rows] for variant in (*BACKENDS, ORACLE)}
    swept = [row["units per site" if name == "units" else "sites"] for row in rows]
    save_plot(options.out / f"streaming_{name}.png", swept, curves, name, "one bin, p50 (ms)")


PARTS = {
    "latency": report_latency,
    "drift": report_drift,
    "units": lambda options: report_sweep(options, "units", PRESET, [(1, size) for size in UNITS]),
    "sites": lambda options: report_sweep(options, "sites", MANY_SITES, [(size, 50) for size in SITES]),
}


def main() -> None:
    """Runs the benchmark."""
    options = make_parser(__doc__, PARTS).parse_args()
    torch.set_num_threads(1)
    for part in options.parts:
        PARTS[part](options)


if __name__ == "__main__":
    main()
