"""Pictures of recordings, decoded movement and training, in one style.

Figures are made without pyplot, so they need no display and leave no state. Colours can be told apart by
colour-blind readers and in grey print. Not for analyses: these functions only draw what they get.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from rpnt_hf.errors import InputError

__all__ = [
    "plot_amounts",
    "plot_calibration",
    "plot_overview",
    "plot_raster",
    "plot_sessions",
    "plot_training_curves",
    "plot_trajectories",
    "plot_velocity_traces",
    "save_figure",
]

# Okabe and Ito (2008): distinct with any colour vision.
BLACK, GREY, LIGHT = "#1a1a1a", "#6b6b6b", "#c9ccd1"
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DIRECTION_COLORS = ("#0072B2", "#56B4E9", "#009E73", "#A8A000", "#E69F00", "#D55E00", "#CC79A7", "#7A4DA0")
STYLES: tuple[Any, ...] = ("-", (0, (4, 1.2)), (0, (1.2, 1.2)), (0, (6, 1.2, 1.2, 1.2)))
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 7.0,
    "axes.labelsize": 9.0,
    "axes.labelcolor": BLACK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": BLACK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": BLACK,
    "ytick.labelcolor": BLACK,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}
DPI = 200


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Writes a figure to a file, whole or not at all.

    Args:
        figure (`Figure`): What to write.
        path (`str` or `Path`): The file; its ending gives the format (png, pdf, svg).

    Returns:
        `Path`: The file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        unfinished = Path(folder) / path.name
        with rc_context(STYLE):
            figure.savefig(unfinished, dpi=DPI)
        os.replace(unfinished, path)
    return path


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
        figure = _figure(7.2, 1.35 + 1.45 * num_targets)
        panels = figure.subplots(num_targets, 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        seconds, order = _with_gaps(seconds)
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
        figure = _figure(0.7 + 2.55 * len(groups), 3.35)
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


def plot_training_curves(
    histories: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Mapping[str, Any]]],
) -> Figure:
    """Draws loss and validation score over training.

    Args:
        histories (`Sequence[Mapping]` or `Mapping[str, Sequence[Mapping]]`):
            Log entries of one run, or of several by name. An entry has `step` or `epoch`, and numbers: keys
            with "loss" go to the left panel, keys with "r2" or "bits" to the right one; others are not drawn.

    Returns:
        `Figure`: The picture.

    Raises:
        InputError: If no entry holds a number to draw.
    """
    runs = histories if isinstance(histories, Mapping) else {"": histories}
    curves: dict[str, dict[str, tuple[list[float], list[float]]]] = {"loss": {}, "score": {}}
    position = "step" if all("step" in entry for run in runs.values() for entry in run) else "epoch"
    for run_name, run in runs.items():
        for entry in run:
            for key, value in entry.items():
                panel = (
                    "loss" if "loss" in key else "score" if "r2" in key.split("_") or "bits" in key else None
                )
                if panel is None or not isinstance(value, int | float) or not np.isfinite(value):
                    continue
                if key.endswith("variance_weighted"):
                    continue
                label = f"{run_name}: {_readable(key)}" if run_name else _readable(key)
                xs, ys = curves[panel].setdefault(label, ([], []))
                xs.append(float(entry[position]))
                ys.append(float(value))
    drawn = {name: lines for name, lines in curves.items() if lines}
    if not drawn:
        raise InputError(
            "`histories` must hold entries with a loss, an R2 or bits per spike, got none. Pass the "
            "training log."
        )
    with rc_context(STYLE):
        figure = _figure(3.6 * len(drawn) + 0.2, 3.0)
        panels = figure.subplots(1, len(drawn), squeeze=False)[0]
        for axes, (name, lines) in zip(panels, drawn.items(), strict=True):
            for index, (label, (xs, ys)) in enumerate(lines.items()):
                color, style = COLORS[index % len(COLORS)], STYLES[index % len(STYLES)]
                marker = "o" if len(xs) < 25 else None
                axes.plot(xs, ys, color=color, linestyle=style, marker=marker, markersize=3, label=label)
            axes.set_title("Loss" if name == "loss" else "Validation score")
            axes.set_xlabel(position)
            axes.set_ylabel("loss (nats or squared error)" if name == "loss" else _score_label(lines))
            axes.grid(axis="y", color=LIGHT, linewidth=0.5)
            axes.set_axisbelow(True)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.legend(loc="best", handlelength=2.4)
    return figure


def plot_amounts(
    curves: Mapping[str, Sequence[tuple[float, float, float, float]]], title: str = ""
) -> Figure:
    """Draws score against the number of training trials, with intervals.

    Args:
        curves (`Mapping[str, Sequence[tuple]]`): Decoder to points (trials, R2, low end, high end); the ends
            may be NaN.
        title (`str`, *optional*): What stands above it.

    Returns:
        `Figure`: The picture; R2 below 0 is drawn at the lower edge.

    Raises:
        InputError: There is no point.
    """
    if not any(curves.values()):
        raise InputError("`curves` must hold at least one point, got none. Pass scores of finished runs.")
    with rc_context(STYLE):
        figure = _figure(4.8, 3.4)
        axes = figure.subplots()
        for index, (name, points) in enumerate(curves.items()):
            if not len(points):
                continue
            trials, scores, low, high = np.asarray(sorted(points), dtype=float).T
            color, style = COLORS[index % len(COLORS)], STYLES[index // len(COLORS) % len(STYLES)]
            axes.plot(trials, scores, color=color, linestyle=style, marker="o", markersize=3, label=name)
            axes.fill_between(trials, low, high, color=color, alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_ylim(bottom=max(axes.get_ylim()[0], 0.0))
        axes.set_xlabel("training trials")
        axes.set_ylabel("test $R^2$ (95 % interval)")
        axes.set_title(title)
        axes.grid(axis="y", color=LIGHT, linewidth=0.5)
        axes.legend(loc="lower right", fontsize=7.5)
    return figure


def plot_sessions(scores: Mapping[str, Mapping[str, float]], title: str = "") -> Figure:
    """Draws the score of every decoder on every session, lines joining the same session.

    Args:
        scores (`Mapping[str, Mapping[str, float]]`): Decoder to session to R2; a session may be absent.
        title (`str`, *optional*): What stands above it.

    Returns:
        `Figure`: The picture.

    Raises:
        InputError: There is no score.
    """
    sessions = sorted({session for values in scores.values() for session in values})
    if not sessions:
        raise InputError("`scores` must hold at least one session, got none. Pass scores of finished runs.")
    with rc_context(STYLE):
        figure = _figure(max(3.2, 0.75 * len(scores) + 2.2), 3.4)
        axes = figure.subplots()
        places = np.arange(len(scores))
        for index, session in enumerate(sessions):
            values = [by_session.get(session, np.nan) for by_session in scores.values()]
            color = COLORS[index % len(COLORS)]
            axes.plot(places, values, color=color, marker="o", markersize=3.5, linewidth=1.0, label=session)
        axes.set_xticks(places, list(scores), rotation=30, ha="right")
        axes.set_ylabel("test $R^2$")
        axes.set_title(title)
        axes.grid(axis="y", color=LIGHT, linewidth=0.5)
        axes.legend(loc="lower right", fontsize=6.5)
    return figure


def plot_calibration(coverage: Mapping[str, Sequence[tuple[float, float]]]) -> Figure:
    """Draws how many test values lie inside intervals of a nominal width.

    Args:
        coverage (`Mapping[str, Sequence[tuple]]`): Name, such as "before" and "after calibration", to points
            (nominal, observed), both in [0, 1].

    Returns:
        `Figure`: The picture, with the diagonal that a calibrated decoder follows.

    Raises:
        InputError: There is no point.
    """
    if not any(coverage.values()):
        raise InputError("`coverage` must hold at least one point, got none. Pass a decoder's intervals.")
    with rc_context(STYLE):
        figure = _figure(3.4, 3.4)
        axes = figure.subplots()
        axes.plot([0, 100], [0, 100], color=GREY, linewidth=0.8, linestyle=STYLES[1])
        for index, (name, points) in enumerate(coverage.items()):
            nominal, observed = 100 * np.asarray(sorted(points), dtype=float).T
            color, style = COLORS[index % len(COLORS)], STYLES[index % len(STYLES)]
            axes.plot(nominal, observed, color=color, linestyle=style, marker="o", markersize=3, label=name)
        axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
        axes.set_xlabel("nominal coverage (%)")
        axes.set_ylabel("test values inside (%)")
        axes.set_title("Calibration")
        axes.legend(loc="upper left")
    return figure


def plot_raster(
    spike_times: Sequence[ArrayLike],
    start: float,
    stop: float,
    events: Mapping[str, ArrayLike] | None = None,
    sort: bool = True,
) -> Figure:
    """Draws spikes as ticks, one line per unit.

    Args:
        spike_times (`Sequence[ArrayLike]`): Spike times of each unit, s, as in `Recording.spike_times`.
        start (`float`): First moment to draw, s.
        stop (`float`): Last moment to draw, s.
        events (`Mapping[str, ArrayLike]`, *optional*): Times of events by name, s, drawn as vertical lines.
        sort (`bool`, *optional*, defaults to `True`): Whether the most active units are at the bottom.

    Returns:
        `Figure`: The picture.

    Raises:
        InputError: If there are no units, or `stop` is not after `start`.
    """
    if not len(spike_times) or not stop > start:
        raise InputError(
            f"A raster must have units and `stop` after `start`, got {len(spike_times)} units, {start} s to "
            f"{stop} s. Choose another window."
        )
    with rc_context(STYLE):
        figure = _figure(7.2, min(1.3 + 0.045 * len(spike_times), 6.0))
        axes = figure.subplots()
        _draw_raster(axes, spike_times, start, stop, sort)
        for index, times in enumerate((events or {}).values()):
            shown = [time for time in np.atleast_1d(np.asarray(times, dtype=float)) if start <= time <= stop]
            for time in shown:
                axes.axvline(time, color=COLORS[index], linestyle=STYLES[index], linewidth=1.3)
        if events:
            handles = [
                Line2D([], [], color=COLORS[i], linestyle=STYLES[i], label=name)
                for i, name in enumerate(events)
            ]
            anchor = (1.0, 1.0)
            axes.legend(
                handles=handles,
                loc="lower right",
                bbox_to_anchor=anchor,
                ncols=len(events),
                borderaxespad=0.2,
            )
        axes.set_title(f"Spikes of {len(spike_times)} units")
        axes.set_xlabel("time (s)")
        axes.set_ylabel("unit" + (", most active below" if sort else ""))
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
        figure = _figure(10.0, 3.3)
        grid = figure.add_gridspec(2, 3, width_ratios=[1.0, 0.30, 1.0], hspace=0.08)
        raster = figure.add_subplot(grid[:, 0])
        _draw_raster(raster, shifted, 0.0, stop, sort=False)
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

        seconds, order = _with_gaps(seconds - origin)
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


def _figure(width: float, height: float) -> Figure:
    """Makes an empty figure of a size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _with_gaps(seconds: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Gives times and order of bins, with a NaN where bins do not follow one another: lines break there."""
    order = np.arange(len(seconds))
    if len(seconds) < 3:
        return seconds, order
    steps = np.diff(seconds)
    breaks = np.flatnonzero(steps > 1.5 * np.median(steps)) + 1
    return np.insert(seconds, breaks, np.nan), np.insert(order, breaks, order[breaks])


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


def _draw_raster(axes: Axes, spike_times: Sequence[ArrayLike], start: float, stop: float, sort: bool) -> None:
    """Draws the ticks of a raster and sets its limits."""
    shown = [np.asarray(times, dtype=float) for times in spike_times]
    shown = [times[(times >= start) & (times <= stop)] for times in shown]
    if sort:
        shown.sort(key=len, reverse=True)
    axes.eventplot(shown, colors=BLACK, linelengths=0.85, linewidths=0.55, lineoffsets=1.0)
    axes.set_xlim(start, stop)
    axes.set_ylim(-0.8, len(shown) - 0.2)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))


def _readable(key: str) -> str:
    """Writes a key of a training log as words."""
    return key.replace("_", " ").replace("r2", "$R^2$")


def _score_label(labels: Mapping[str, Any]) -> str:
    """Names the axis of scores."""
    kinds = [
        kind
        for kind, word in (("$R^2$", "$R^2$"), ("bits per spike", "bits"))
        if any(word in label for label in labels)
    ]
    return " / ".join(kinds)
