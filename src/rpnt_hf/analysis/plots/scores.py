"""Pictures of scores: over training, trials, sessions and intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from rpnt_hf.analysis.plots.style import BLACK, COLORS, GREY, LIGHT, MARKERS, STYLE, STYLES, new_figure
from rpnt_hf.errors import InputError

MAX_NAMED_SESSIONS = 12


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
        figure = new_figure(3.6 * len(drawn) + 0.2, 3.0)
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
        `Figure`: The picture. Decoders stand a little beside one another; R2 below 0 is drawn at the lower
        edge.

    Raises:
        InputError: There is no point.
    """
    if not any(curves.values()):
        raise InputError("`curves` must hold at least one point, got none. Pass scores of finished runs.")
    shown = {name: np.asarray(sorted(points), dtype=float) for name, points in curves.items() if len(points)}
    with rc_context(STYLE):
        figure = new_figure(5.8, 3.4)
        axes = figure.subplots()
        for index, (name, points) in enumerate(shown.items()):
            trials, *scores = points.T
            middle, low, high = _at_least_zero(*scores)
            aside = 1.02 ** (index - (len(shown) - 1) / 2)  # so that intervals do not hide each other
            ends = np.maximum([middle - low, high - middle], 0.0)
            axes.errorbar(
                trials * aside, middle, ends, elinewidth=0.9, markersize=4,
                color=COLORS[index % len(COLORS)], marker=MARKERS[index % len(MARKERS)],
                linestyle=STYLES[index // len(COLORS) % len(STYLES)], label=name,
            )  # fmt: skip
        axes.set_xscale("log")
        ticks: list[float] = []
        for amount in sorted({float(point[0]) for points in curves.values() for point in points}):
            if not ticks or amount > 1.25 * ticks[-1]:  # closer ones would write over each other
                ticks.append(amount)
        axes.set_xticks(ticks, [f"{amount:g}" for amount in ticks])
        axes.minorticks_off()
        axes.set_xlabel("training trials")
        axes.set_ylabel(_score_name(any((points[:, 1:] < 0).any() for points in shown.values()), True))
        axes.set_title(title)
        axes.grid(axis="y", color=LIGHT, linewidth=0.5)
        figure.legend(loc="outside right upper", fontsize=7.5)
    return figure


def plot_sessions(scores: Mapping[str, Mapping[str, float]], title: str = "") -> Figure:
    """Draws the score of every decoder on every session; thin lines join the same session.

    Args:
        scores (`Mapping[str, Mapping[str, float]]`): Decoder to session to R2; a session may be absent.
        title (`str`, *optional*): What stands above it.

    Returns:
        `Figure`: The picture, with the mean over sessions as a bar; R2 below 0 is drawn at the lower edge.
        More than twelve sessions are grey, and not named.

    Raises:
        InputError: There is no score.
    """
    sessions = sorted({session for values in scores.values() for session in values})
    if not sessions:
        raise InputError("`scores` must hold at least one session, got none. Pass scores of finished runs.")
    table = np.array(
        [[by_session.get(session, np.nan) for session in sessions] for by_session in scores.values()],
        dtype=float,
    )
    few = len(sessions) <= MAX_NAMED_SESSIONS
    with rc_context(STYLE):
        figure = new_figure(0.55 * len(scores) + 3.2, 3.4)
        axes = figure.subplots()
        places = np.arange(len(scores))
        for index, values in enumerate(_at_least_zero(*table.T)):
            color = COLORS[index % len(COLORS)] if few else GREY
            marker = MARKERS[index % len(MARKERS)] if few else "."
            label = sessions[index] if few else f"{len(sessions)} sessions" if index == 0 else None
            axes.plot(places, values, marker, color=color, markersize=4.5, label=label, zorder=3)
            if len(sessions) > 1:
                axes.plot(places, values, color=color, linewidth=0.7, alpha=0.4)
        if len(sessions) > 1:
            for place, values in zip(places, table, strict=True):
                mean = max(float(np.nanmean(values)), 0.0) if np.isfinite(values).any() else np.nan
                label = "mean" if place == 0 else None
                axes.plot(
                    place + np.array([-0.28, 0.28]), [mean, mean], color=BLACK, linewidth=2.2, label=label
                )
        axes.set_xticks(places, list(scores), rotation=30, ha="right")
        axes.set_xlim(-0.5, len(scores) - 0.5)
        axes.set_ylabel(_score_name(bool((table < 0).any()), False))
        axes.set_title(title)
        axes.grid(axis="y", color=LIGHT, linewidth=0.5)
        axes.set_axisbelow(True)
        figure.legend(loc="outside right upper", fontsize=7.5)
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
        figure = new_figure(3.4, 3.4)
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


def _at_least_zero(*scores: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Moves R2 below 0, which may be any number, to the lower edge."""
    return [np.maximum(values, 0.0) for values in scores]


def _score_name(has_negative: bool, has_intervals: bool) -> str:
    """Names the axis of R2."""
    notes = ["95 % interval"] * has_intervals + ["below 0 at the edge"] * has_negative
    return "test $R^2$" + (f" ({', '.join(notes)})" if notes else "")


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
