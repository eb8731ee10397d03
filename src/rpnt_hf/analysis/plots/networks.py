"""Pictures of what a network does inside: attention over time, context kernels, couplings of sites."""

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from rpnt_hf.analysis.plots.style import BLACK, COLORS, GREY, LIGHT, MAP, STYLE, STYLES, new_figure
from rpnt_hf.errors import InputError

MAX_HEADS = 4  # maps in a picture; the curves show all heads
MAX_ARROWS = 60  # more hide one another
MIN_KERNEL_WEIGHT = 1e-3  # lower end of the colours: kernels begin with 99 % on one tap


def plot_attention(
    weights: ArrayLike, bin_size: float, num_anchors: int = 0, start_time: float = 0.0, title: str = ""
) -> Figure:
    """Draws attention over time: which earlier bins each bin looks at, by head, and at what lag on average.

    Args:
        weights (`ArrayLike` of shape `(heads, bins, anchors + bins)`): Attention of one layer and site, as in
            `RPNTModelOutput.attentions`; rows sum to 1.
        bin_size (`float`): Width of a bin, s.
        num_anchors (`int`, *optional*, defaults to 0): How many of the keys, the first, are anchors, which
            have no time; what goes to them is told in the titles.
        start_time (`float`, *optional*, defaults to 0.0): Time of the first bin, s.
        title (`str`, *optional*): What stands above it.

    Returns:
        `Figure`: A map for each of the first four heads, and the mean weight by lag of every head.

    Raises:
        InputError: If the shape is another one.
    """
    maps = np.asarray(weights, dtype=float)
    if maps.ndim != 3 or maps.shape[2] != num_anchors + maps.shape[1]:
        raise InputError(
            f"`weights` must have shape (heads, bins, {num_anchors} anchors + bins), got {maps.shape}. Pass "
            "the attention of one layer, one site and one window."
        )
    to_anchors, maps = maps[..., :num_anchors].sum(axis=-1).mean(axis=-1), maps[..., num_anchors:]
    num_heads, num_bins = maps.shape[:2]
    shown = min(num_heads, MAX_HEADS)
    times = start_time + bin_size * np.array([0, num_bins])
    future = np.triu(np.ones((num_bins, num_bins), dtype=bool), 1)
    top = max(float(np.quantile(maps[:, ~future], 0.995)), 1e-6)
    with rc_context(STYLE):
        figure = new_figure(2.05 * shown + 3.3, 3.0)
        panels = figure.subplots(1, shown + 1, width_ratios=[1.0] * shown + [1.25], squeeze=False)[0]
        for head, axes in enumerate(panels[:-1]):
            image = axes.imshow(
                np.ma.masked_equal(maps[head], 0.0),  # the future, and what lies before the window
                cmap=MAP,
                norm=PowerNorm(0.5, vmin=0, vmax=top),
                extent=(*times, times[1], times[0]),
                interpolation="nearest",
                aspect="auto",
            )
            note = f" ({100 * to_anchors[head]:.0f} % to anchors)" if num_anchors else ""
            axes.set_title(f"head {head + 1}{note}", fontsize=8.0)
            axes.set_xlabel("attended bin (s)")
            axes.xaxis.set_major_locator(MaxNLocator(3))
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.tick_params(labelleft=head == 0)
        panels[0].set_ylabel("time of the bin (s)")
        bar = figure.colorbar(image, ax=list(panels[:-1]), shrink=0.62, pad=0.01, extend="max")
        bar.set_label("attention weight")
        by_lag = np.array([np.diagonal(maps, -lag, 1, 2).mean(axis=1) for lag in range(num_bins)])
        attended = min(int(np.flatnonzero(by_lag.max(axis=1))[-1]) + 3, num_bins)
        lags = bin_size * np.arange(attended)
        for head in range(num_heads):
            mean = by_lag[:attended, head]
            color, style = COLORS[head % len(COLORS)], STYLES[head // len(COLORS) % len(STYLES)]
            panels[-1].plot(lags, mean, color=color, linestyle=style, label=f"head {head + 1}")
        panels[-1].set_title("Mean over bins", fontsize=8.0)
        panels[-1].set_xlabel("lag (s)")
        panels[-1].set_ylabel("attention weight")
        panels[-1].set_yscale("symlog", linthresh=1e-3, linscale=0.3)
        panels[-1].set_ylim(bottom=0)
        panels[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=7.0, handlelength=1.4)
        figure.suptitle(title, fontsize=9.5, fontweight="bold", x=0.01, ha="left")
    return figure


def plot_context_kernels(kernels: Sequence[ArrayLike], bin_size: float, title: str = "") -> Figure:
    """Draws the kernels of context attention: their mean by layer and head, and how much they smooth.

    Args:
        kernels (`Sequence[ArrayLike]`): Per layer kernels of shape `(heads, bins, query taps, key taps)`, of
            one site; each sums to 1.
        bin_size (`float`): Width of a bin, s.
        title (`str`, *optional*): What stands above it.

    Returns:
        `Figure`: A map of the mean kernel for each layer and head, and the share of each layer's kernels away
        from tap (0, 0), which alone would be ordinary attention, over time.

    Raises:
        InputError: If there is no layer, or a shape is another one.
    """
    layers = [np.asarray(layer, dtype=float) for layer in kernels]
    if not layers or any(layer.ndim != 4 or layer.shape != layers[0].shape for layer in layers):
        raise InputError(
            "`kernels` must hold an array of shape (heads, bins, query taps, key taps) for each layer, all "
            f"of one shape, got {[layer.shape for layer in layers]}. Pass those of a model with context "
            "attention."
        )
    num_heads, num_bins = layers[0].shape[:2]
    with rc_context(STYLE):
        figure = new_figure(1.35 * num_heads + 4.0, 1.35 * len(layers) + 0.9)
        grid = figure.add_gridspec(len(layers), num_heads + 1, width_ratios=[1.0] * num_heads + [2.3])
        panels = []
        for row, layer in enumerate(layers):
            for head in range(num_heads):
                axes = figure.add_subplot(grid[row, head])
                mean = layer[head].mean(axis=0)
                norm = LogNorm(MIN_KERNEL_WEIGHT, 1.0, clip=True)
                image = axes.imshow(mean, cmap=MAP, norm=norm, origin="upper")
                for (i, j), weight in np.ndenumerate(mean) if mean.size <= 16 else ():
                    color = "white" if weight < 0.05 else BLACK
                    axes.text(j, i, f"{weight:.2f}", ha="center", va="center", fontsize=6, color=color)
                axes.set_xticks(range(mean.shape[1]))
                axes.set_yticks(range(mean.shape[0]))
                axes.tick_params(labelleft=head == 0, labelbottom=row == len(layers) - 1, length=2)
                if row == 0:
                    axes.set_title(f"head {head + 1}", fontsize=8.0)
                if head == 0:
                    axes.set_ylabel(f"layer {row + 1}\nquery bins back", fontsize=8.0)
                if row == len(layers) - 1:
                    axes.set_xlabel("key bins back", fontsize=8.0)
                panels.append(axes)
        bar = figure.colorbar(image, ax=panels, shrink=0.8, pad=0.015, extend="min")
        bar.set_label("mean kernel weight")
        axes = figure.add_subplot(grid[:, -1])
        times = bin_size * np.arange(num_bins)
        for row, layer in enumerate(layers):
            away = 100 * (1 - layer[..., 0, 0].mean(axis=0))
            axes.plot(times, away, color=COLORS[row % len(COLORS)], linestyle=STYLES[row % len(STYLES)],
                      label=f"layer {row + 1}")  # fmt: skip
        axes.set_xlabel("time in the window (s)")
        axes.set_ylabel("weight away from tap (0, 0) (%)")
        axes.set_ylim(bottom=0)
        axes.set_title("Smoothing, mean over heads", fontsize=8.0)
        axes.legend(loc="best", fontsize=7.0, handlelength=2.0)
        figure.suptitle(title, fontsize=9.5, fontweight="bold", x=0.01, ha="left")
    return figure


def plot_connectivity(
    strength: ArrayLike,
    site_ids: Sequence[str],
    site_positions: ArrayLike | None = None,
    significant: ArrayLike | None = None,
    label: str = "strength",
    title: str = "",
) -> Figure:
    """Draws which sites follow which, as a matrix and as arrows between their places.

    Args:
        strength (`ArrayLike` of shape `(num_sites, num_sites)`): How strongly the site of a row follows the
            site of a column; NaN where nothing was measured. The diagonal is not drawn.
        site_ids (`Sequence[str]`): Names of the sites.
        site_positions (`ArrayLike` of shape `(num_sites, 3)`, *optional*): Places in mm, NaN where unknown.
            The two axes along which they spread most are drawn. Where none is known, sites stand on a circle.
        significant (`ArrayLike` of shape `(num_sites, num_sites)`, bool, *optional*): What is to be shown as
            arrows and marked in the matrix; by default what is above 0.
        label (`str`, *optional*, defaults to `"strength"`): What the numbers are, with their unit.
        title (`str`, *optional*): What stands above it.

    Returns:
        `Figure`: The picture, with at most the 60 strongest arrows. Sites without a place stand below the
        others, as open circles.

    Raises:
        InputError: If the shapes do not fit each other.
    """
    matrix = np.array(strength, dtype=float)
    count = len(site_ids)
    places = np.full((count, 3), np.nan) if site_positions is None else np.asarray(site_positions, float)
    if matrix.shape != (count, count) or places.shape != (count, 3) or count == 0:
        raise InputError(
            f"`strength` must have shape ({count}, {count}) and `site_positions` ({count}, 3) for {count} "
            f"`site_ids`, at least one, got {matrix.shape} and {places.shape}."
        )
    np.fill_diagonal(matrix, np.nan)
    marked = np.nan_to_num(matrix) > 0 if significant is None else np.asarray(significant, bool)
    marked = marked & np.isfinite(matrix) & ~np.eye(count, dtype=bool)
    low, high = _limits(matrix)
    with rc_context(STYLE):
        figure = new_figure(8.4, 4.5 + 0.06 * max(map(len, site_ids)))  # the matrix is square at any height
        left, right = figure.subplots(1, 2, width_ratios=[1.05, 1.0])
        colors = "PuOr_r" if low < 0 else MAP  # both can be told apart with any colour vision
        image = left.imshow(np.ma.masked_invalid(matrix), cmap=colors, vmin=low, vmax=high, aspect="auto")
        left.set_box_aspect(1)
        left.set_facecolor(LIGHT)
        size = 8.0 * min(12 / count, 1.0) if count <= 24 else 6.0
        named = range(0, count, -(-count // 28))
        left.set_xticks(named, [site_ids[site] for site in named], rotation=90, fontsize=size)
        left.set_yticks(named, [site_ids[site] for site in named], fontsize=size)
        if significant is not None:
            rows, columns = np.nonzero(marked)
            size = 4.0 * min(14 / count, 1.0)
            left.plot(columns, rows, "o", color="white", markersize=size, markeredgecolor=BLACK, linewidth=0)
        left.set_xlabel("source")
        left.set_ylabel("site that follows")
        left.set_title(title or "Connectivity")
        figure.colorbar(image, ax=left, shrink=0.8, label=label)
        _draw_arrows(right, matrix, marked, list(site_ids), places, max(abs(low), abs(high)))
    return figure


def _limits(matrix: NDArray[np.float64]) -> tuple[float, float]:
    """Ends of the colours: from 0, or to both sides alike where there are negative values."""
    values = matrix[np.isfinite(matrix)]
    high = max(float(np.abs(values).max(initial=0.0)), 1e-12)
    return (-high if (values < 0).any() else 0.0), high


def _layout(places: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_], tuple[str, str]]:
    """Gives points in the plane, which of them are known places, and the names of the axes."""
    found = np.isfinite(places)
    lowest, highest = (
        np.where(found, places, np.inf).min(axis=0),
        np.where(found, places, -np.inf).max(axis=0),
    )
    spread = np.where(found.any(axis=0), highest - lowest, 0.0)
    if not spread.any():
        angles = np.pi / 2 - 2 * np.pi * np.arange(len(places)) / len(places)
        return np.stack([np.cos(angles), np.sin(angles)], axis=1), np.zeros(len(places), bool), ("", "")
    axes = np.sort(np.argsort(-spread, kind="stable")[:2])
    known = np.asarray(found[:, axes].all(axis=1))
    points = places[:, axes].copy()
    low, high = lowest[axes], highest[axes]
    step = max(float((high - low).max()), 1e-9)
    unknown = np.flatnonzero(~known)
    points[unknown, 0] = np.linspace(low[0], max(high[0], low[0] + step), len(unknown) + 2)[1:-1]
    points[unknown, 1] = low[1] - 0.3 * step
    names = ("x (mm)", "y (mm)", "z (mm)")
    return points, known, (names[axes[0]], names[axes[1]])


def _draw_arrows(
    axes: Axes,
    matrix: NDArray[np.float64],
    marked: NDArray[np.bool_],
    names: Sequence[str],
    places: NDArray[np.float64],
    high: float,
) -> None:
    """Draws sites at their places and an arrow from source to follower for each marked entry."""
    points, known, labels = _layout(places)
    middle = points.mean(axis=0)
    reach = max(float(np.abs(points - middle).max()), 1e-9)
    pairs = sorted(np.argwhere(marked).tolist(), key=lambda pair: abs(matrix[tuple(pair)]))
    for target, source in pairs[-MAX_ARROWS:]:
        share = abs(matrix[target, source]) / high
        axes.add_patch(
            FancyArrowPatch(
                tuple(points[source]), tuple(points[target]), arrowstyle="-|>", mutation_scale=7 + 5 * share,
                connectionstyle="arc3,rad=0.14", linewidth=0.6 + 2.2 * share, shrinkA=7, shrinkB=7,
                color=COLORS[0] if matrix[target, source] > 0 else COLORS[1], alpha=0.35 + 0.6 * share,
            )
        )  # fmt: skip
    for point, name, is_known in zip(points, names, known | (labels[0] == ""), strict=True):
        face = BLACK if is_known else "white"
        axes.plot(*point, "o", color=BLACK, markerfacecolor=face, markersize=6, zorder=3)
        distances = np.hypot(*(points - point).T)
        near = (distances > 0) & (distances < 0.3 * reach)  # names turn away from neighbours
        away = (point - (points[near].mean(axis=0) if near.any() else middle)) / reach
        offset = 9 * away / max(float(np.hypot(*away)), 1e-9)
        axes.annotate(
            name, point, xytext=offset, textcoords="offset points", fontsize=7.5, zorder=4,
            ha="left" if offset[0] >= 0 else "right", va="bottom" if offset[1] >= 0 else "top",
        )  # fmt: skip
    room = min(0.13 + 0.06 * max(map(len, names)), 1.0)  # inches of 3.2 for names at the edge
    reach *= max(1.35, 1 / (1 - 2 * room / 3.2))
    axes.set_xlim(middle[0] - reach, middle[0] + reach)
    axes.set_ylim(middle[1] - reach, middle[1] + reach)
    axes.set_box_aspect(1)  # limits are as wide as high: one scale for both axes
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    notes = [f"strongest {MAX_ARROWS} of {len(pairs)}"] if len(pairs) > MAX_ARROWS else []
    if labels[0] == "":
        axes.set_axis_off()
        axes.set_title("Source to follower (places unknown)")
    else:
        axes.set_title("Source to follower")
        notes += [] if known.all() else ["open: place unknown"]
    axes.annotate("; ".join(notes), (0.01, 0.01), xycoords="axes fraction", color=GREY, fontsize=7)
