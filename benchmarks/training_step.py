"""Training is bound by arithmetic: what a step costs beside the matrix products that it cannot do without.

    python benchmarks/training_step.py --out results [--parts context precision sites] [--sites 1 16]

Forward, backward and AdamW in train mode with dropout, fp32 on two threads unless said. Four questions:
what context attention adds to a step; what bf16 saves; which share of the rate of a large matrix product the
multi-site step reaches (6 x parameters x tokens, and attention, counted as arithmetic); and what the loops
over sites and bins of the paper's code cost, against folding both into the batch.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from measure import make_parser, print_table, save_plot, save_results, time_turns
from torch import Tensor, nn

from rpnt_hf import RPNTConfig, RPNTForMotorDecoding

MICROELECTRODE, NEUROPIXEL = "rpnt-microelectrode", "rpnt-neuropixel"
SITES = (1, 2, 4, 8, 16, 32, 64)
Step = Callable[[], Any]


def make_model(preset: str, num_units: int, **overrides: Any) -> RPNTForMotorDecoding:
    """A decoder with random weights, in train mode."""
    torch.manual_seed(0)
    return RPNTForMotorDecoding(RPNTConfig.preset(preset, num_units=num_units, **overrides)).train()


def make_batch(batch_size: int, sites: int, num_bins: int, units: int, device: str) -> dict[str, Tensor]:
    """Random counts with everything that the collator adds for decoding."""
    torch.manual_seed(0)
    batch = {
        "spike_counts": torch.poisson(torch.full((batch_size, sites, num_bins, units), 0.5)).to(torch.uint8),
        "unit_ids": torch.arange(sites * units).view(1, sites, units).repeat(batch_size, 1, 1),
        "unit_mask": torch.ones(batch_size, sites, units, dtype=torch.bool),
        "bin_mask": torch.ones(batch_size, sites, num_bins, dtype=torch.bool),
        "labels": torch.randn(batch_size, num_bins, 2),
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


def make_step(model: nn.Module, batch: dict[str, Tensor], bf16: bool = False) -> Step:
    """One step of training."""
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    device = batch["spike_counts"].device.type

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()

    return step


def step_flops(model: RPNTForMotorDecoding, batch: dict[str, Tensor]) -> float:
    """Arithmetic of a step: 6 x parameters x tokens, and the products of attention, causal ones by half."""
    config = model.config
    B, S, T, _ = batch["spike_counts"].shape
    parameters = sum(
        parameter.numel() for name, parameter in model.named_parameters() if "unit_embedding" not in name
    )
    keys = min(T, config.attention_window or T)
    per_token = 6 * config.num_hidden_layers * keys + 12 * config.num_spatial_layers * S
    return B * S * T * (6 * parameters + per_token * config.hidden_size)


def make_product(size: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Step:
    """A square matrix product, 2 x size^3 of arithmetic."""
    first, second = torch.randn(2, size, size, dtype=dtype, device=device)
    return lambda: first @ second


def loop_over(attention: nn.Module, axis: int) -> None:
    """Makes attention run once for each site (axis 1) or bin (axis 2), as the paper's code does."""
    whole = attention.forward

    def part(tensor: Tensor, index: int) -> Tensor:
        return tensor.narrow(axis, index, 1) if tensor.shape[axis] > 1 else tensor

    def looped(
        states: Tensor, rotation: tuple[Tensor, Tensor], channels: Tensor, mask: Tensor
    ) -> tuple[Tensor, None]:
        pieces = []
        for i in range(states.shape[axis]):
            turned = (part(rotation[0], i), part(rotation[1], i)) if axis == 1 else rotation
            pieces.append(whole(part(states, i), turned, channels, part(mask, i))[0])
        return torch.cat(pieces, dim=axis), None

    attention.forward = looped  # type: ignore[method-assign]


def make_looped(model: RPNTForMotorDecoding) -> RPNTForMotorDecoding:
    """The same model with loops over sites in temporal layers and over bins in spatial ones."""
    for layers, axis in ((model.model.temporal_layers, 1), (model.model.spatial_layers, 2)):
        for layer in layers:
            assert isinstance(layer.attention, nn.Module)
            loop_over(layer.attention, axis)
    return model


def compare_context(
    preset: str, sizes: list[tuple[int, int]], turns: tuple[float, int]
) -> list[dict[str, Any]]:
    """A step with and without context attention, at several lengths."""
    rows = []
    for batch_size, num_bins in sizes:
        batch = make_batch(batch_size, 1, num_bins, 100, "cpu")
        without = make_model(preset, 100, context_attention={"enabled": False})
        variants = {"on": make_step(make_model(preset, 100), batch), "off": make_step(without, batch)}
        seconds = time_turns(variants, *turns)
        rows.append(
            {
                "batch": batch_size,
                "bins": num_bins,
                "with context, ms": 1000 * seconds["on"],
                "without, ms": 1000 * seconds["off"],
                "with / without": seconds["on"] / seconds["off"],
                "target": "<= 1.35",
            }
        )
    return rows


def compare_precision(
    preset: str, batch: dict[str, Tensor], turns: tuple[float, int]
) -> list[dict[str, Any]]:
    """A step in fp32 and under bf16 autocast."""
    variants = {name: make_step(make_model(preset, 100), batch, name == "bf16") for name in ("fp32", "bf16")}
    seconds = time_turns(variants, *turns)
    return [
        {
            "batch": len(batch["spike_counts"]),
            "fp32, ms": 1000 * seconds["fp32"],
            "bf16, ms": 1000 * seconds["bf16"],
            "fp32 / bf16": seconds["fp32"] / seconds["bf16"],
            "target": ">= 1.4",
        }
    ]


def sweep_sites(preset: str, sites: list[int], product_size: int, turns: tuple[float, int]) -> list[dict]:
    """The multi-site step and its share of the rate of a product, against sites; and the loops."""
    rows = []
    for count in sites:
        batch = make_batch(8, count, 50, 50, "cpu")
        model = make_model(preset, 50 * count)
        variants = {
            "step": make_step(model, batch),
            "bf16": make_step(make_model(preset, 50 * count), batch, bf16=True),
            "product": make_product(product_size),
        }
        seconds = time_turns(variants, *turns)
        loops = make_step(make_looped(make_model(preset, 50 * count)), batch)
        seconds |= time_turns({"loops": loops}, 0.0, 1)  # too slow for turns
        rate = step_flops(model, batch) / seconds["step"]
        best = 2 * product_size**3 / seconds["product"]
        rows.append(
            {
                "sites": count,
                "step, ms": 1000 * seconds["step"],
                "step, GFLOP/s": rate / 1e9,
                "product, GFLOP/s": best / 1e9,
                "share": rate / best,
                "target": ">= 0.55" if count == 16 else "",
                "fp32 / bf16": seconds["step"] / seconds["bf16"],
                "loops / step": seconds["loops"] / seconds["step"],
            }
        )
    return rows


def measure_context(options: argparse.Namespace) -> None:
    """What context attention adds to a step."""
    preset, sizes = (
        ("tiny", [(2, 10)]) if options.quick else (MICROELECTRODE, [(64, 50), (16, 200), (8, 500)])
    )
    rows = compare_context(preset, sizes, turns_of(options))
    print_table(f"A training step with context attention, {preset}", rows)
    save_results(options.out, "training_step_context", rows)


def measure_precision(options: argparse.Namespace) -> None:
    """What bf16 saves."""
    preset, batch_size = ("tiny", 2) if options.quick else (MICROELECTRODE, 64)
    rows = compare_precision(preset, make_batch(batch_size, 1, 50, 100, "cpu"), turns_of(options))
    print_table(f"bf16 autocast, {preset}", rows)
    save_results(options.out, "training_step_precision", rows)


def measure_sites(options: argparse.Namespace) -> None:
    """Arithmetic beside a large product, and the loops of the paper's code."""
    preset, product_size = ("tiny", 64) if options.quick else (NEUROPIXEL, 2048)
    sites = [1, 2] if options.quick else options.sites
    rows = sweep_sites(preset, sites, product_size, turns_of(options))
    print_table(f"8 windows of 50 bins, 50 units a site, {preset}", rows)
    save_results(options.out, "training_step_sites", rows)
    curves = {"step": [row["step, ms"] for row in rows]}
    curves["loops over sites and bins"] = [row["step, ms"] * row["loops / step"] for row in rows]
    save_plot(
        options.out / "training_step_sites.png", [float(n) for n in sites], curves, "sites", "step (ms)"
    )


def turns_of(options: argparse.Namespace) -> tuple[float, int]:
    """Seconds and turns of each variant, at least."""
    return (0.0, 1) if options.quick else (2.0, 4)


PARTS = {"context": measure_context, "precision": measure_precision, "sites": measure_sites}


def main() -> None:
    """Runs the benchmark."""
    parser = make_parser(__doc__, PARTS)
    parser.add_argument("--sites", nargs="+", type=int, default=list(SITES), help="numbers of sites to sweep")
    options = parser.parse_args()
    torch.set_num_threads(1 if options.quick else 2)
    for part in options.parts:
        PARTS[part](options)


if __name__ == "__main__":
    main()
