"""Pictures of decoded movement: traces, trajectories, and the idea of the package."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from rpnt_hf.analysis.plots.recordings import draw_raster
from rpnt_hf.analysis.plots.style import (
    BLACK,
    COLORS,
    DIRECTION_COLORS,
    GREY,
    LIGHT,
    STYLE,
    STYLES,
    new_figure,
    with_gaps,
)
from rpnt_hf.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


def plot_velocity_traces(
    targets: ArrayLike,
    predictions: ArrayLike | Mapping[str, ArrayLike],
    times: ArrayLike,
    r2: float | Mapping[str, float | None] | None = None,
    names: Sequence[str] = ("x velocity", "y velocity"),
    unit: str = "cm/s",
    trial_starts: ArrayLike = (),
) -> Figure:
    """Draws decoded over true velocity, one panel per dimension.

    Args:
        targets (`ArrayLike` of shape `(num_bins, K)`): True values; NaN leaves a gap.
        predictions (`ArrayLike` of the same shape, or `Mapping[str, ArrayLike]`):
            Decoded values of one decoder, or of several by name.
        times (`ArrayLike` of shape `(num_bins,)`): Time of each bin, s. A step of more than 1.5 bins leaves a
            gap.
        r2 (`float` or `Mapping[str, float | None]`, *optional*): Test R2 of the decoder, or of each by name.
        names (`Sequence[str]`, *optional*, defaults to `("x velocity", "y velocity")`): Names of the
            dimensions.
        unit (`str`, *optional*, defaults to `"cm/s"`): Unit of the values.
        trial_starts (`ArrayLike` of shape `(n,)`, *optional*): Times to mark as starts of trials, s.

    Returns:
        `Figure`: The picture.

    Raises:
        InputError: If shapes differ.
    """
    decoded = predictions if isinstance(predictions, Mapping) else {"decoded": predictions}
    scores = r2 if isinstance(r2, Mapping) else dict.fromkeys(decoded, r2)
    truth, seconds = np.asarray(targets, dtype=float), np.asarray(times, dtype=float)
    arrays = {name: np.asarray(values, dtype=float) for name, values in decoded.items()}
    for name, values in arrays.items():
        if values.shape != truth.shape or truth.shape[:1] != seconds.shape or truth.shape[1] > len(names):
            raise InputError(
                f"`targets` and `predictions` must have shape ({len(seconds)}, up to {len(names)}), got "
                f"{truth.shape} and {values.shape} for '{name}'. Pass one row per bin of `times`, and a name "
                "per column."
            )
    with rc_context(STYLE):
        num_targets = truth.shape[1]
        figure = new_figure(7.2, 1.35 + 1.45 * num_targets)
        panels = figure.subplots(num_targets, 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        seconds, order = with_gaps(seconds)
        for dimension, axes in enumerate(panels):
            axes.axhline(0, color=LIGHT, linewidth=0.8, zorder=0)
            for start in np.asarray(trial_starts, dtype=float):
                axes.axvline(start, color=LIGHT, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
            axes.plot(seconds, truth[order, dimension], color=GREY, linewidth=2.6, alpha=0.65, label="true")
            for index, (name, values) in enumerate(arrays.items()):
                label = name if scores.get(name) is None else f"{name} ($R^2$ {scores[name]:.2f})"
                axes.plot(
                    seconds,
                    values[order, dimension],
                    color=COLORS[index],
                    linestyle=STYLES[index],
                    label=label,
                )
            axes.set_ylabel(f"{names[dimension]} ({unit})")
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.margins(x=0.01)
        panels[0].set_title("Decoded and true velocity, test trials")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), handlelength=2.4)
        panels[-1].set_xlabel("time (s)")
        figure.align_ylabels()
    return figure


def plot_predictions(
    table: "pd.DataFrame", unit: str = "cm/s", title: str = "", max_seconds: float = 30.0
) -> Figure:
    """Draws decoded over true behaviour in the part of a recording that has the most bins to score.

    Args:
        table (`pd.DataFrame`): From `decoding.decode_recording` or of a `Replay`.
        unit (`str`, *optional*, defaults to `"cm/s"`): Unit of the values.
        title (`str`, *optional*): What stands above it, before the kind of bins that are shown.
        max_seconds (`float`, *optional*, defaults to 30.0): Length of what is shown, s.

    Returns:
        `Figure`: The picture. Bins that were neither trained on nor chosen on are preferred, and the title
        says where they are others.

    Raises:
        InputError: If there is no bin.
    """
    if not len(table):
        raise InputError("`table` must hold at least one bin, got none. Decode a longer recording.")
    times = table["time"].to_numpy(float)
    step = float(np.median(np.diff(times))) if len(times) > 1 else 1.0
    width = min(max(round(max_seconds / step), 1), len(table))
    unseen = (table["scored"] & ~table["fitted"]).to_numpy()
    wanted = unseen if unseen.any() else table["scored"].to_numpy()
    sums = np.convolve(wanted, np.ones(width, dtype=int), mode="valid")
    first = int(sums.argmax())
    shown = table.iloc[first : first + width]
    names = [name.removesuffix("_predicted") for name in table.columns if name.endswith("_predicted")]
    figure = plot_velocity_traces(
        shown[names].to_numpy(),
        shown[[f"{name}_predicted" for name in names]].to_numpy(),
        shown["time"].to_numpy(),
        names=[name.replace("_", " ") for name in names],
        unit=unit,
    )
    fitted = bool(shown["fitted"].to_numpy()[wanted[first : first + width]].any())
    kind = "bins that the decoder was fitted to" if fitted else "bins that the decoder was not fitted to"
    with rc_context(STYLE):
        figure.axes[0].set_title(f"{title}: {kind}" if title else f"Decoded and true, {kind}")
    return figure


def plot_trajectories(
    targets: Sequence[ArrayLike],
    predictions: Sequence[ArrayLike] | Mapping[str, Sequence[ArrayLike]],
    directions: ArrayLike,
    bin_size: float,
    r2: float | Mapping[str, float | None] | None = None,
    unit: str = "cm",
) -> Figure:
    """Draws decoded beside true trajectories of reaches, coloured by target direction.

    Velocity is integrated from the first bin of each reach, which is put at the origin.

    Args:
        targets (`Sequence[ArrayLike]`): True velocity of each reach, shape `(num_bins, 2)`.
        predictions (`Sequence[ArrayLike]` or `Mapping[str, Sequence[ArrayLike]]`):
            Decoded velocity of the same reaches, of one decoder or of several by name.
        directions (`ArrayLike` of shape `(num_reaches,)`): Direction of each target, radians; NaN unknown
            (grey).
        bin_size (`float`): Width of a bin, s.
        r2 (`float` or `Mapping[str, float | None]`, *optional*): Test R2 of the decoder, or of each by name.
        unit (`str`, *optional*, defaults to `"cm"`): Unit of length.

    Returns:
        `Figure`: The picture.

    Raises:
        InputError: If the numbers of reaches or the shapes differ, or there is no reach.
    """
    decoded = predictions if isinstance(predictions, Mapping) else {"decoded": predictions}
    scores = r2 if isinstance(r2, Mapping) else dict.fromkeys(decoded, r2)
    angles = np.asarray(directions, dtype=float)
    groups = {"true": _paths(targets, bin_size)}
    groups |= {name: _paths(reaches, bin_size) for name, reaches in decoded.items()}
    for name, reaches in groups.items():
        if [len(path) for path in reaches] != [len(path) for path in groups["true"]] or len(
            reaches
        ) != angles.size:
            raise InputError(
                f"Every group must have the {angles.size} reaches of `directions` with equal bins, got "
                f"{len(reaches)} for '{name}'. Cut all of them at the same bins."
            )
    if angles.size == 0:
        raise InputError("`targets` must hold at least one reach, got none. Choose trials with a direction.")
    reach = max(float(np.abs(path).max()) for path in groups["true"])
    farthest = max(float(np.abs(path).max()) for paths in groups.values() for path in paths)
    limit = 1.06 * min(farthest, 1.5 * reach)
    with rc_context(STYLE):
        figure = new_figure(0.7 + 2.55 * len(groups), 3.35)
        panels = figure.subplots(1, len(groups), sharex=True, sharey=True, squeeze=False)[0]
        for axes, (name, reaches) in zip(panels, groups.items(), strict=True):
            for path, angle in zip(reaches, angles, strict=True):
                color = _direction_color(angle)
                axes.plot(*path.T, color=color, linewidth=1.1, alpha=0.75)
                axes.plot(*path[-1], "o", color=color, markersize=3.0, markeredgewidth=0)
            axes.plot(0, 0, "+", color=BLACK, markersize=7, markeredgewidth=1.2)
            score = scores.get(name)
            axes.set_title(name if score is None else f"{name} ($R^2$ {score:.2f})", fontsize=9.0)
            axes.set_aspect("equal")
            axes.set_xlim(-limit, limit)
            axes.set_ylim(-limit, limit)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, symmetric=True))
            axes.yaxis.set_major_locator(MaxNLocator(5, integer=True, symmetric=True))
            axes.set_xlabel(f"x ({unit})")
        panels[0].set_ylabel(f"y ({unit})")
        _direction_key(panels[-1], angles)
    return figure


def plot_overview(
    spike_times: Sequence[ArrayLike],
    targets: ArrayLike,
    predictions: ArrayLike,
    times: ArrayLike,
    r2: float | None = None,
    name: str = "RPNT",
    unit: str = "cm/s",
) -> Figure:
    """Draws the idea of the package in one picture: spikes go in, movement comes out.

    Args:
        spike_times (`Sequence[ArrayLike]`): Spike times of each unit, s.
        targets (`ArrayLike` of shape `(num_bins, 2)`): True velocity; NaN leaves a gap.
        predictions (`ArrayLike` of shape `(num_bins, 2)`): Decoded velocity.
        times (`ArrayLike` of shape `(num_bins,)`): Time of each bin, s; also the window of the raster.
        r2 (`float`, *optional*): Test R2 over the whole session, not only over this window.
        name (`str`, *optional*, defaults to `"RPNT"`): Name in the box between spikes and movement.
        unit (`str`, *optional*, defaults to `"cm/s"`): Unit of the velocity.

    Returns:
        `Figure`: The picture.
    """
    truth, decoded = np.asarray(targets, dtype=float), np.asarray(predictions, dtype=float)
    seconds = np.asarray(times, dtype=float)
    origin = seconds[0]
    shifted = [np.asarray(spikes, dtype=float) - origin for spikes in spike_times]
    stop = float(seconds[-1] - origin)
    with rc_context(STYLE):
        figure = new_figure(10.0, 3.3)
        grid = figure.add_gridspec(2, 3, width_ratios=[1.0, 0.30, 1.0], hspace=0.08)
        raster = figure.add_subplot(grid[:, 0])
        draw_raster(raster, shifted, 0.0, stop, sort=False)
        raster.set_title(f"Spikes of {len(shifted)} units")
        raster.set_xlabel("time (s)")
        raster.set_ylabel("unit")

        middle = figure.add_subplot(grid[:, 1])
        middle.set_axis_off()
        middle.set_xlim(0, 1)
        middle.set_ylim(0, 1)
        middle.add_patch(
            FancyBboxPatch(
                (0.22, 0.42), 0.56, 0.20, boxstyle="round,pad=0.02,rounding_size=0.05",
                facecolor=COLORS[0], edgecolor="none",
            )
        )  # fmt: skip
        middle.text(0.5, 0.52, name, color="white", ha="center", va="center", fontsize=13, fontweight="bold")
        for left, right in ((-0.02, 0.19), (0.81, 1.02)):
            arrow: dict[str, Any] = {
                "arrowstyle": "-|>",
                "mutation_scale": 15,
                "color": GREY,
                "linewidth": 1.8,
                "clip_on": False,
            }
            middle.add_patch(FancyArrowPatch((left, 0.52), (right, 0.52), **arrow))

        seconds, order = with_gaps(seconds - origin)
        limit = 1.1 * float(np.nanmax(np.abs(np.concatenate([truth, decoded]))))
        for dimension, label in enumerate("xy"):
            axes = figure.add_subplot(grid[dimension, 2])
            axes.axhline(0, color=LIGHT, linewidth=0.8, zorder=0)
            axes.plot(seconds, truth[order, dimension], color=GREY, linewidth=2.8, alpha=0.65, label="true")
            axes.plot(seconds, decoded[order, dimension], color=COLORS[1], linewidth=1.6, label="decoded")
            axes.set_xlim(0, stop)
            axes.set_ylim(-limit, limit)
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=True, symmetric=True))
            axes.set_ylabel(f"{label} ({unit})")
            if dimension == 0:
                score = "" if r2 is None else f" (test $R^2$ {r2:.2f})"
                axes.set_title(f"Velocity{score}")
                axes.legend(
                    loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.1, handlelength=1.6
                )
                axes.tick_params(labelbottom=False)
            else:
                axes.set_xlabel("time (s)")
    return figure


def _paths(velocities: Sequence[ArrayLike], bin_size: float) -> list[NDArray[np.float64]]:
    """Integrates the velocity of each reach, from the origin."""
    paths = [
        np.cumsum(np.nan_to_num(np.asarray(velocity, dtype=float)), axis=0) * bin_size
        for velocity in velocities
    ]
    return [np.concatenate([np.zeros((1, 2)), path]) for path in paths]


def _direction_color(angle: float) -> str:
    """Gives the colour of the nearest of eight directions; grey where it is unknown."""
    if not np.isfinite(angle):
        return GREY
    return DIRECTION_COLORS[round(angle / (np.pi / 4)) % 8]


def _direction_key(axes: Axes, angles: NDArray[np.float64]) -> None:
    """Draws a small clock of the directions that occur."""
    known = np.unique(np.round(angles[np.isfinite(angles)] % (2 * np.pi), 6))
    if known.size == 0:
        return
    key = axes.inset_axes((0.83, 0.84, 0.17, 0.17))
    key.set_in_layout(False)
    key.set_axis_off()
    key.set_aspect("equal")
    key.text(0, -1.7, "target", ha="center", va="center", fontsize=7)
    for angle in known:
        place = (np.cos(angle), np.sin(angle))
        key.add_patch(Circle(place, 0.22, color=_direction_color(angle), linewidth=0))
    key.set_xlim(-1.3, 1.3)
    key.set_ylim(-1.3, 1.3)
