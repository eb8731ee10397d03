"""What every benchmark needs: interleaved timing, a table of ratios, a plot of cost against size.

Times of one machine mean little elsewhere, so benchmarks compare variants in one run, turn by turn, and print
ratios.
"""

import argparse
import json
import math
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "make_parser",
    "peak_memory_mib",
    "percentiles_ms",
    "print_table",
    "save_plot",
    "save_results",
    "time_turns",
]


Part = Callable[[argparse.Namespace], None]


def make_parser(description: str | None, parts: Mapping[str, Part]) -> argparse.ArgumentParser:
    """Makes the options that benchmarks share.

    Args:
        description (`str`, *optional*): Docstring of the script.
        parts (`dict[str, Callable]`): What it measures, by name; `--parts` chooses among them.

    Returns:
        `argparse.ArgumentParser`: With `--quick`, `--out` and `--parts`.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, few turns: does it run?")
    parser.add_argument("--out", type=Path, default=Path("benchmarks_out"), metavar="DIR", help="results")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts), help="measure only these")
    return parser


def time_turns(
    variants: Mapping[str, Callable[..., Any]], min_seconds: float = 2.0, min_turns: int = 5
) -> dict[str, float]:
    """Times variants turn by turn, so that a disturbance meets all of them alike.

    Args:
        variants (`dict[str, Callable]`): Name to a call that does the work once.
        min_seconds (`float`, *optional*, defaults to 2.0): Time to spend on each variant, at least.
        min_turns (`int`, *optional*, defaults to 5): Turns of each variant, of one call or more.

    Returns:
        `dict[str, float]`: Minimum seconds of one call; the least disturbed turn.
    """
    for run in variants.values():
        run()
    best = dict.fromkeys(variants, math.inf)
    for _ in range(min_turns):
        for name, run in variants.items():
            spent = 0.0
            # A turn is a stretch of time: a slow variant runs once in it, a fast one often.
            while spent <= min_seconds / min_turns:
                began = time.perf_counter()
                run()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                elapsed = time.perf_counter() - began
                spent += elapsed
                best[name] = min(best[name], elapsed)
    return best


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """Prints rows as a Markdown table; floats with four significant digits.

    Args:
        title (`str`): Line above the table.
        rows (`list[dict]`): Column to value, the same columns in each.
    """
    print(f"\n## {title}\n")
    columns = list(rows[0])
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        cells = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()]
        print("| " + " | ".join(cells) + " |")


def save_results(folder: Path, name: str, content: Any) -> None:
    """Writes `FOLDER/NAME.json` with the machine beside the figures.

    Args:
        folder (`Path`): Made where it is missing.
        name (`str`): Name of the benchmark and its part.
        content: Plain values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    machine = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"machine": machine, "results": content}, indent=2) + "\n")
    print(f"\nwritten: {path}")


def save_plot(
    path: Path, sizes: list[float], curves: dict[str, list[float]], xlabel: str, ylabel: str
) -> None:
    """Draws cost against size on logarithmic axes.

    Args:
        path (`Path`): PNG to write.
        sizes (`list[float]`): Sizes swept.
        curves (`dict[str, list[float]]`): Name to cost at each size.
        xlabel (`str`): What the size is.
        ylabel (`str`): What the cost is, with its unit.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
    for name, costs in curves.items():
        axes.plot(sizes, costs, marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel=xlabel, ylabel=ylabel)
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.minorticks_off()
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def peak_memory_mib() -> float:
    """Gives the highest resident memory of this process so far, in MiB.

    On Linux not `ru_maxrss`, which a process takes over from the one that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def percentiles_ms(seconds: list[float]) -> dict[str, float]:
    """Gives p50, p95 and p99 of latencies, in milliseconds.

    Args:
        seconds (`list[float]`): At least 100 latencies.

    Returns:
        `dict[str, float]`: `p50_ms`, `p95_ms`, `p99_ms`.
    """
    cuts = statistics.quantiles(seconds, n=100)
    return {f"p{which}_ms": 1000 * cuts[which - 1] for which in (50, 95, 99)}
