"""Cost of a pretraining step against the number of sites; 64 sites of 50 units and 50 bins train.

    python benchmarks/sites.py --out results

Forward and backward of RPNTForPreTraining in fp32, with masks and two spatial layers, and the same without
the spatial stage, turn by turn. What the spatial stage adds is linear in the number of sites until its
scores, which are sites x sites at every bin, cost more than its products of matrices. No operation of a step
is repeated for each site: their number is counted.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import print_table, save_plot, save_results, time_turns
from torch.utils._python_dispatch import TorchDispatchMode

from rpnt_hf import RPNTConfig, RPNTForPreTraining
from rpnt_hf.objectives import draw_masks

SITES = (2, 4, 8, 16, 32, 64)
NUM_UNITS, NUM_BINS = 50, 50
LOSS_STEPS = 20
WITH, WITHOUT = "2 spatial layers", "no spatial stage"


class OperationCounter(TorchDispatchMode):
    """Counts the operations that torch dispatches."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


def make_step(
    num_sites: int, num_units: int, num_bins: int, num_spatial_layers: int
) -> tuple[RPNTForPreTraining, Callable[[], torch.Tensor]]:
    """A tiny model and one forward and backward pass of it on one window of random counts."""
    torch.manual_seed(0)
    config = RPNTConfig.preset(
        "tiny", num_units=num_sites * num_units, num_spatial_layers=num_spatial_layers, contrastive_weight=0.0
    )
    model = RPNTForPreTraining(config)
    counts = torch.poisson(torch.full((1, num_sites, num_bins, num_units), 0.3))
    present = np.ones((1, num_sites, num_bins), bool), np.ones((1, num_sites, num_units), bool)
    masked_bins, masked_units = map(torch.from_numpy, draw_masks(np.array([1]), *present))
    metadata = torch.randn(1, num_sites, len(config.metadata_axes))

    def step() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        loss = model(counts, metadata=metadata, masked_bins=masked_bins, masked_units=masked_units).loss
        loss.backward()
        return loss.detach()

    return model, step


def compare(num_sites: int, quick: bool) -> dict[str, Any]:
    """One row: milliseconds of a step with and without the spatial stage, and operations of a step."""
    steps = {
        name: make_step(num_sites, NUM_UNITS, NUM_BINS, layers)[1]
        for name, layers in ((WITH, 2), (WITHOUT, 0))
    }
    seconds = time_turns(steps, 0.02 if quick else 1.0, 1 if quick else 3)
    with OperationCounter() as counter:
        steps[WITH]()
    return {
        "sites": num_sites,
        **{f"{name}, ms": 1000 * seconds[name] for name in steps},
        "spatial stage, ms a site": 1000 * (seconds[WITH] - seconds[WITHOUT]) / num_sites,
        "a step, ms a site": 1000 * seconds[WITH] / num_sites,
        "operations": counter.count,
    }


def train(num_sites: int, num_steps: int) -> dict[str, Any]:
    """Trains on one window, to show that the loss falls at that size."""
    model, step = make_step(num_sites, NUM_UNITS, NUM_BINS, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(num_steps):
        losses.append(step().item())
        optimizer.step()
    return {
        "sites": num_sites,
        "units": NUM_UNITS,
        "bins": NUM_BINS,
        "first loss": losses[0],
        "last loss": losses[-1],
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few sites, one turn: does it run?")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), metavar="DIR")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    options = parser.parse_args()
    torch.set_num_threads(1 if options.quick else options.threads)
    sites = (2, 4) if options.quick else SITES
    rows = [compare(num_sites, options.quick) for num_sites in sites]
    print_table("A pretraining step, one window", rows)
    trained = train(4 if options.quick else 64, 2 if options.quick else LOSS_STEPS)
    print_table("Training", [trained])
    save_results(options.out, "sites", {"steps": rows, "training": trained})
    curves = {name: [row[f"{name}, ms"] for row in rows] for name in (WITH, WITHOUT)}
    curves["proportional, from 8 sites"] = [
        row["sites"]
        * next(one for one in rows if one["sites"] == sites[min(2, len(sites) - 1)])["a step, ms a site"]
        for row in rows
    ]
    save_plot(options.out / "sites.png", [float(n) for n in sites], curves, "sites", "ms a step")


if __name__ == "__main__":
    main()
