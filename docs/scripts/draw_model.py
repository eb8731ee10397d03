"""Draws the figures of the page on the model, from the modules themselves.

    python docs/scripts/draw_model.py [--out docs/images]

A simulated recording goes through the decoder that travels with the package; what is drawn is what its
modules give. Nothing is sketched by hand.
"""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch
from numpy.typing import NDArray

from rpnt_hf import RPNTConfig, StreamingDecoder, load_decoder, simulate
from rpnt_hf.analysis.plots.style import COLORS, GREY, LIGHT, STYLE
from rpnt_hf.attention_rpnt import RPNTRotaryEmbedding, rotate
from rpnt_hf.fused_attention_rpnt import fuse_keys, fuse_queries
from rpnt_hf.objectives import draw_masks

BINS = 60  # 3 s
HEAD = 0
MASK_SEED = 4

Inputs = dict[str, torch.Tensor]


def main(argv: Sequence[str] | None = None) -> list[Path]:
    """Draws all figures.

    Args:
        argv (`Sequence[str]`, *optional*): Options; those of the process where absent.

    Returns:
        `list[Path]`: What was written.
    """
    parser = argparse.ArgumentParser(description="Draw the figures of the page on the model.")
    folder = Path(__file__).resolve().parents[1] / "images"
    parser.add_argument("--out", type=Path, default=folder, metavar="DIR", help="folder for the pictures")
    out: Path = parser.parse_args(argv).out
    out.mkdir(parents=True, exist_ok=True)
    model, processor = load_decoder("rpnt-tiny-synthetic-decoder")
    model.eval()
    recording = simulate(num_subjects=1, sessions_per_subject=1)[0]
    inputs = {name: value[:1] for name, value in processor(recording).items()}
    inputs |= {
        "spike_counts": inputs["spike_counts"][:, :, :BINS],
        "bin_mask": inputs["bin_mask"][:, :, :BINS],
    }
    found = record(model, inputs)
    pictures = {
        "model_flow.png": lambda: draw_flow(inputs, found, processor.bin_size),
        "model_masks.png": lambda: draw_hidden(inputs),
        "model_mrope.png": draw_rotations,
        "model_context.png": lambda: draw_context(found),
        "model_streaming.png": lambda: draw_stream(model, processor, recording.session_id, inputs, found),
    }
    with rc_context(STYLE):
        for name, draw in pictures.items():
            figure = draw()
            FigureCanvasAgg(figure)
            figure.savefig(out / name, dpi=110)
    return [out / name for name in pictures]


@torch.inference_mode()
def record(model: Any, inputs: Inputs) -> dict[str, Any]:
    """Runs the decoder and keeps what passes between its parts.

    Args:
        model (`RPNTForMotorDecoding`): The decoder.
        inputs (`dict[str, torch.Tensor]`): One window.

    Returns:
        `dict`: `tokens` and `hidden` of shape `(bins, hidden)`, `predictions` `(bins, targets)`, and of one
        head of the last layer `kernels` `(bins, Kq, Kk)`, rotated `query` and `key` `(bins, d)`.
    """
    found: dict[str, Any] = {}
    attention = model.model.temporal_layers[-1].attention

    def keep_tokens(module: Any, arguments: Any, output: torch.Tensor) -> None:
        found["tokens"] = output[0, 0].numpy()

    def keep_attention(module: Any, arguments: Any, keywords: dict[str, Any], output: Any) -> None:
        bound = (
            dict(zip(("hidden_states", "rotation", "channels", "bin_mask"), arguments, strict=False))
            | keywords
        )
        states, (cos, sin) = bound["hidden_states"], bound["rotation"]
        query, key, _ = module.project(states, None).transpose(-3, -2)
        found["query"], found["key"] = (rotate(part, cos, sin)[0, 0, HEAD] for part in (query, key))
        found["kernels"] = module.context_kernel(states, bound["bin_mask"])[0, 0, HEAD]

    handles = [
        model.model.embeddings.register_forward_hook(keep_tokens),
        attention.register_forward_hook(keep_attention, with_kwargs=True),
    ]
    outputs = model(**inputs, output_hidden_states=True)
    for handle in handles:
        handle.remove()
    return found | {
        "predictions": outputs.predictions[0].numpy(), "hidden": outputs.hidden_states[-1][0, 0].numpy(),
    }  # fmt: skip


def draw_flow(inputs: Inputs, found: dict[str, Any], bin_size: float) -> Figure:
    """Draws what one window looks like at every station on its way through the decoder."""
    counts = inputs["spike_counts"][0, 0].numpy().T
    figure = Figure(figsize=(10.0, 2.9), layout="constrained")
    panels = figure.subplots(1, 4)
    seconds = BINS * bin_size
    stations: list[tuple[str, str, NDArray[Any], str]] = [
        (f"1 Counts\n{counts.shape[0]} units x {BINS} bins", "unit", counts, "Greys"),
        (
            f"2 Tokens, one a bin\n{found['tokens'].shape[1]} numbers each",
            "channel",
            found["tokens"].T,
            "RdBu",
        ),
        (
            f"3 After the layers\n{found['hidden'].shape[1]} numbers each",
            "channel",
            found["hidden"].T,
            "RdBu",
        ),
    ]
    for axes, (title, label, values, colors) in zip(panels, stations, strict=False):
        limit = np.percentile(np.abs(values), 99)
        low = 0 if colors == "Greys" else -limit
        shown = {"aspect": "auto", "origin": "lower", "extent": (0, seconds, 0, len(values))}
        axes.imshow(values, cmap=colors, vmin=low, vmax=limit, interpolation="nearest", **shown)
        axes.set_title(title)
        axes.set_ylabel(label)
    times = bin_size * np.arange(BINS)
    for k, name in enumerate("xy"):
        panels[3].plot(times, found["predictions"][:, k], color=COLORS[k], label=name)
    panels[3].set_title("4 Decoded velocity\n2 numbers each")
    panels[3].set_ylabel("cm/s")
    panels[3].legend(ncols=2, loc="lower right")
    panels[3].set_xlim(0, seconds)
    for axes in panels:
        axes.set_xlabel("time (s)")
    for left, right in itertools.pairwise(panels):
        arrow = {"arrowstyle": "-|>", "mutation_scale": 14, "color": GREY, "linewidth": 1.6}
        ends = {"coordsA": "axes fraction", "coordsB": "axes fraction", "axesA": left, "axesB": right}
        figure.add_artist(ConnectionPatch((1.02, 1.04), (-0.04, 1.04), **ends, **arrow))
    return figure


def draw_hidden(inputs: Inputs) -> Figure:
    """Draws which entries of four windows pretraining hides."""
    counts = inputs["spike_counts"][0].numpy()
    seeds = np.arange(MASK_SEED, MASK_SEED + 4)
    bin_mask = np.ones((4, 1, BINS), dtype=bool)
    unit_mask = np.ones((4, 1, counts.shape[-1]), dtype=bool)
    masked_bins, masked_units = draw_masks(seeds, bin_mask, unit_mask)
    figure = Figure(figsize=(10.0, 2.7), layout="constrained")
    panels = figure.subplots(1, 4, sharex=True, sharey=True)
    visible = np.minimum(counts[0].T, 3) / 3
    for axes, bins, units in zip(panels, masked_bins[:, 0], masked_units[:, 0], strict=True):
        hidden = bins[None, :] | units[:, None]
        axes.imshow(
            np.ma.masked_array(visible, hidden), cmap="Greys", vmin=0, vmax=1, aspect="auto", origin="lower"
        )
        axes.imshow(
            np.ma.masked_array(np.ones_like(visible), ~hidden),
            cmap=ListedColormap([COLORS[5]]), aspect="auto", origin="lower", alpha=0.75,
        )  # fmt: skip
        axes.set_title(f"{bins.mean():.0%} of bins, {units.mean():.0%} of units:\n{hidden.mean():.0%} hidden")
        axes.set_xlabel("bin")
    panels[0].set_ylabel("unit")
    return figure


def draw_rotations() -> Figure:
    """Draws the rotation of every pair of a head over time, for a known and an unknown subject."""
    config = RPNTConfig.preset("tiny")
    rotary = RPNTRotaryEmbedding(config)
    names = config.metadata_axes
    values = {"site_x": 1.5, "site_y": -2.0, "site_z": 0.8, "subject": 2.0, "day": 20.0, "task": 1.0}
    figure = Figure(figsize=(10.0, 3.4), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    owners = [axis.name for axis in config.mrope_axes for _ in range(axis.num_pairs)]
    owners += ["unrotated"] * (config.head_size // 2 - len(owners))
    cases = {
        "all metadata known": values,
        "another subject": {**values, "subject": 5.0},
        "subject unknown": {**values, "subject": np.nan},
    }
    for axes, (title, coordinates) in zip(panels, cases.items(), strict=True):
        metadata = torch.tensor([[[coordinates[name] for name in names]]])
        (cos, sin), _ = rotary(metadata, 40, torch.device("cpu"))
        angle = torch.atan2(sin, cos)[0, 0, 0].numpy().T
        absent = (cos.square() + sin.square())[0, 0, 0].numpy().T < 0.5
        image = axes.imshow(
            np.ma.masked_array(angle, absent),
            cmap="twilight",
            vmin=-np.pi,
            vmax=np.pi,
            aspect="auto",
            interpolation="nearest",
        )
        axes.set_facecolor("white")
        for row in np.flatnonzero(absent.all(axis=1)):
            axes.text(20, row, "times 0", ha="center", va="center", fontsize=7)
        axes.set_title(title)
        axes.set_xlabel("bin")
    panels[0].set_yticks(range(len(owners)), owners, fontsize=7)
    panels[0].set_ylabel("pair of channels, by axis")
    bar = figure.colorbar(image, ax=panels, ticks=[-np.pi, 0, np.pi], label="rotation (rad)")
    bar.ax.set_yticklabels(["-pi", "0", "pi"])
    return figure


def draw_context(found: dict[str, Any]) -> Figure:
    """Draws scores of one head before and after its context kernels, and three of the kernels."""
    query, key, kernels = found["query"], found["key"], found["kernels"]
    scale = query.shape[-1] ** -0.5
    raw = (query @ key.T * scale).numpy()
    taps = kernels.shape[1:]
    smooth = (fuse_queries(query[None, None], kernels[None, None]) @ fuse_keys(key[None, None], taps[1]).mT)[
        0, 0
    ]
    smooth = (smooth * scale).numpy()
    future = np.triu(np.ones_like(raw, dtype=bool), 1)
    figure = Figure(figsize=(10.0, 3.1), layout="constrained")
    grid = figure.add_gridspec(3, 3, width_ratios=[1.0, 1.0, 0.42])
    limit = np.percentile(np.abs(raw[~future]), 99)
    for column, (title, scores) in enumerate({"Scores q . k": raw, "After the kernels": smooth}.items()):
        axes = figure.add_subplot(grid[:, column])
        image = axes.imshow(np.ma.masked_array(scores, future), cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.set_facecolor(LIGHT)
        axes.set_title(title)
        axes.set_xlabel("key bin")
        axes.set_ylabel("query bin")
    figure.colorbar(image, ax=figure.axes, shrink=0.8, label="score")
    chosen = (5, BINS // 2, BINS - 1)
    for place, number in enumerate(chosen):
        _draw_kernel(
            figure.add_subplot(grid[place, 2]), kernels[number].numpy(), number, place == len(chosen) - 1
        )
    return figure


def _draw_kernel(axes: Axes, kernel: NDArray[np.float32], number: int, is_last: bool) -> None:
    axes.imshow(kernel, cmap="Greys", vmin=0, vmax=1)
    for (i, j), value in np.ndenumerate(kernel):
        axes.text(
            j,
            i,
            f"{value:.2f}",
            ha="center",
            va="center",
            fontsize=6.5,
            color="white" if value > 0.5 else "black",
        )
    axes.set_xticks(
        range(kernel.shape[1]), [f"-{j}" if j else "0" for j in range(kernel.shape[1])] if is_last else []
    )
    axes.set_yticks(range(kernel.shape[0]), [f"-{i}" if i else "0" for i in range(kernel.shape[0])])
    axes.set_title(f"Kernel of bin {number}", fontsize=8)
    if is_last:
        axes.set_xlabel("key tap", fontsize=8)
    axes.set_ylabel("query", fontsize=8)


def draw_stream(model: Any, processor: Any, session_id: str, inputs: Inputs, found: dict[str, Any]) -> Figure:
    """Draws what a stream remembers, and that it decodes as the whole window does."""
    decoder = StreamingDecoder(model, processor, session_id, backend="torch")
    index = torch.from_numpy(decoder.unit_index)
    counts = inputs["spike_counts"][0]
    ages, steps = [], []
    born: dict[int, int] = {}
    anchors = model.config.num_anchors
    empty = decoder.state.key_bias[0].clone()
    before = decoder.state.values[0, 0, HEAD].clone()
    for number in range(BINS):
        steps.append(decoder.step(counts[:, number]).numpy())
        now = decoder.state.values[0, 0, HEAD]
        for slot in torch.where((now != before).any(dim=-1))[0].tolist():
            born[slot] = number
        before = now.clone()
        ages.append([number - born[slot] if slot in born else np.nan for slot in range(anchors, len(empty))])
    assert index.numel() == counts.shape[-1]
    figure = Figure(figsize=(10.0, 2.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=[1.1, 1.0, 1.1])
    image = left.imshow(
        np.array(ages).T, cmap="viridis_r", aspect="auto", origin="lower", interpolation="nearest"
    )
    left.set_facecolor(LIGHT)
    left.set_title("The ring of one layer:\nwhich bin each slot holds")
    left.set_xlabel("bins so far")
    left.set_ylabel("slot")
    figure.colorbar(image, ax=left, label="age (bins)")
    sizes = {
        name.replace("_", " "): tensor.numel() * tensor.element_size() / 1024
        for name, tensor in decoder.state._asdict().items()
    }
    names = sorted((name for name in sizes if sizes[name]), key=sizes.__getitem__)
    middle.barh(names, [sizes[name] for name in names], color=COLORS[0])
    middle.set_title(f"All that it remembers:\n{sum(sizes.values()):.0f} KiB, however long it runs")
    middle.set_xlabel("KiB")
    middle.set_xscale("log")
    for k, name in enumerate("xy"):
        right.plot(
            found["predictions"][:, k], color=LIGHT, linewidth=5, label="whole window" if k == 0 else None
        )
        right.plot(np.array(steps)[:, k], color=COLORS[k], linewidth=1.3, label=f"bin by bin, {name}")
    largest = np.abs(np.array(steps) - found["predictions"]).max()
    right.set_title(f"Bin by bin equals at once:\nlargest difference {largest:.0e} cm/s")
    right.set_xlabel("bin")
    right.set_ylabel("velocity (cm/s)")
    right.legend(loc="lower right", fontsize=7)
    return figure


if __name__ == "__main__":
    main()
