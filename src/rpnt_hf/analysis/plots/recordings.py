"""Pictures of what goes in: spikes, behaviour and built datasets."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from rpnt_hf.analysis.plots.style import BLACK, COLORS, GREY, LIGHT, STYLE, STYLES, new_figure, with_gaps
from rpnt_hf.errors import InputError

if TYPE_CHECKING:
    from rpnt_hf.data.nwb import BehaviorSeries, Recording

MAX_SERIES = 4  # in a picture of a recording
TIMELINE_BINS = 150
SPLIT_STYLES = {"train": COLORS[0], "validation": COLORS[4], "test": COLORS[1]}


def plot_raster(
    spike_times: Sequence[ArrayLike],
    start: float,
    stop: float,
    events: Mapping[str, ArrayLike] | None = None,
    sort: bool = True,
    unit_sites: ArrayLike | None = None,
    site_ids: Sequence[str] = (),
) -> Figure:
    """Draws spikes as ticks, one line per unit.

    Args:
        spike_times (`Sequence[ArrayLike]`): Spike times of each unit, s, as in `Recording.spike_times`.
        start (`float`): First moment to draw, s.
        stop (`float`): Last moment to draw, s.
        events (`Mapping[str, ArrayLike]`, *optional*): Times of events by name, s, drawn as vertical lines.
        sort (`bool`, *optional*, defaults to `True`): Whether the most active units are at the bottom, of
            their site where there are several.
        unit_sites (`ArrayLike` of shape `(num_units,)`, *optional*): Index of each unit's site in `site_ids`;
            units of one site then stand together, in the colour of the site.
        site_ids (`Sequence[str]`, *optional*): Names of the sites.

    Returns:
        `Figure`: The picture.

    Raises:
        InputError: If there are no units, `stop` is not after `start`, or sites do not fit the units.
    """
    if not len(spike_times) or not stop > start:
        raise InputError(
            f"A raster must have units and `stop` after `start`, got {len(spike_times)} units, {start} s to "
            f"{stop} s. Choose another window."
        )
    with rc_context(STYLE):
        figure = new_figure(7.2, min(1.3 + 0.045 * len(spike_times), 6.0))
        axes = figure.subplots()
        draw_raster(axes, spike_times, start, stop, sort, unit_sites, site_ids)
        # Beside the colours of sites, events are told apart by their dashes alone.
        sited = unit_sites is not None and len(np.unique(np.asarray(unit_sites))) > 1
        colors = [BLACK] * len(events or {}) if sited else list(COLORS)
        for index, times in enumerate((events or {}).values()):
            shown = [time for time in np.atleast_1d(np.asarray(times, dtype=float)) if start <= time <= stop]
            for time in shown:
                axes.axvline(
                    time,
                    color=colors[index % len(colors)],
                    linestyle=STYLES[index % len(STYLES)],
                    linewidth=1.3,
                )
        if events:
            handles = [
                Line2D([], [], color=colors[i % len(colors)], linestyle=STYLES[i % len(STYLES)], label=name)
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


def draw_raster(
    axes: Axes,
    spike_times: Sequence[ArrayLike],
    start: float,
    stop: float,
    sort: bool,
    unit_sites: ArrayLike | None = None,
    site_ids: Sequence[str] = (),
) -> None:
    """Draws the ticks of a raster into axes, sets their limits and, with several sites, names these.

    Args:
        axes (`Axes`): Where to.
        spike_times (`Sequence[ArrayLike]`): Spike times of each unit, s.
        start (`float`): First moment, s.
        stop (`float`): Last moment, s.
        sort (`bool`): Whether the most active units are at the bottom of their site.
        unit_sites (`ArrayLike` of shape `(num_units,)`, *optional*): Index of each unit's site.
        site_ids (`Sequence[str]`, *optional*): Names of the sites.

    Raises:
        InputError: If sites do not fit the units.
    """
    shown = [np.asarray(times, dtype=float) for times in spike_times]
    shown = [times[(times >= start) & (times <= stop)] for times in shown]
    sites = np.zeros(len(shown), dtype=int) if unit_sites is None else np.asarray(unit_sites, dtype=int)
    if sites.shape != (len(shown),) or (unit_sites is not None and sites.max(initial=0) >= len(site_ids)):
        raise InputError(
            f"`unit_sites` must index the {len(site_ids)} `site_ids` for each of {len(shown)} units, got "
            f"shape {sites.shape} up to {sites.max(initial=0)}. Pass those of the recording."
        )
    order = list(range(len(shown)))
    if sort:
        order.sort(key=lambda unit: len(shown[unit]), reverse=True)
    order.sort(key=lambda unit: sites[unit])  # keeps the order inside a site
    present = list(dict.fromkeys(int(sites[unit]) for unit in order))
    several = len(present) > 1
    colors = [site_color(present.index(sites[unit])) if several else BLACK for unit in order]
    axes.eventplot(
        [shown[unit] for unit in order], colors=colors, linelengths=0.85, linewidths=0.55, lineoffsets=1.0
    )
    axes.set_xlim(start, stop)
    axes.set_ylim(-0.8, len(shown) - 0.2)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    if several:
        _name_sites(
            axes, [site_ids[site] for site in present], [int((sites == site).sum()) for site in present]
        )


def site_color(index: int) -> str:
    """Gives the colour of a site; colours come again after six, since units of a site stand together.

    Args:
        index (`int`): Place of the site in the picture.

    Returns:
        `str`: The colour.
    """
    return COLORS[index % len(COLORS)]


def _name_sites(axes: Axes, names: Sequence[str], counts: Sequence[int]) -> None:
    """Writes the names of sites beside their units, as many as there is room for."""
    room = sum(counts) / 14
    middle, last = 0.0, -np.inf
    for index, (name, count) in enumerate(zip(names, counts, strict=True)):
        center = middle + count / 2 - 0.5
        if center - last >= room:
            axes.annotate(
                name, (1.0, center), xytext=(4, 0), xycoords=("axes fraction", "data"), fontsize=7.5,
                textcoords="offset points", color=site_color(index), va="center", annotation_clip=False,
            )  # fmt: skip
            last = center
        middle += count


def plot_recording(recording: "Recording", start: float | None = None, stop: float | None = None) -> Figure:
    """Draws a recording: spikes and behaviour of a while, rates of all units, and the whole session.

    Args:
        recording ([`Recording`]): The recording.
        start (`float`, *optional*): First moment of the raster, s; by default a moment in the middle.
        stop (`float`, *optional*): Last moment of the raster, s; 15 s later by default.

    Returns:
        `Figure`: Raster with site colours, up to four behaviour series below it, mean rates by site, and
        spikes per second over the session, with what was not observed in grey.

    Raises:
        InputError: If `stop` is not after `start`.
    """
    first, last = float(recording.obs_intervals[0, 0]), float(recording.obs_intervals[-1, 1])
    if start is None:
        start = _busy_moment(recording)
    stop = min(start + 15.0, last) if stop is None else stop
    if not stop > start:
        raise InputError(f"`stop` must be after `start`, got {start} s to {stop} s. Choose another window.")
    series = [one for one in recording.behavior.values() if one.values.shape[1] <= 6][:MAX_SERIES]
    rows = max(len(series), 1)
    with rc_context(STYLE):
        figure = new_figure(10.0, 4.3 + 0.95 * rows)
        grid = figure.add_gridspec(
            rows + 2, 2, width_ratios=[2.5, 1.0], height_ratios=[3.0, *[1.0] * rows, 0.9]
        )
        raster = figure.add_subplot(grid[0, 0])
        draw_raster(
            raster, recording.spike_times, start, stop, True, recording.unit_sites, recording.site_ids
        )
        raster.set_ylabel("unit, most active below")
        raster.set_title(f"{recording.session_id}: {recording.num_units} units")
        raster.tick_params(labelbottom=False)
        below = raster
        for index in range(len(series)):
            below = figure.add_subplot(grid[1 + index, 0], sharex=raster)
            _draw_series(below, series[index], start, stop)
            below.tick_params(labelbottom=index == len(series) - 1)
        if not series:
            below = figure.add_subplot(grid[1, 0], sharex=raster)
            below.text(
                0.5, 0.5, "no behaviour that can be used", transform=below.transAxes, ha="center", color=GREY
            )
            below.set_yticks([])
        below.set_xlabel("time (s)" + ("; grey: trials" if len(recording.trials) else ""))
        _shade_trials([raster, *figure.axes[1:]], recording, start, stop)
        _draw_rates(figure.add_subplot(grid[: rows + 1, 1]), recording)
        timeline = figure.add_subplot(grid[-1, :])
        _draw_timeline(timeline, recording, first, last, (start, stop))
    return figure


def _busy_moment(recording: "Recording") -> float:
    """Start of the longest observed interval's middle, or of the trial next to it."""
    begin, end = max(recording.obs_intervals.tolist(), key=lambda edges: edges[1] - edges[0])
    middle = begin + max((end - begin) / 2 - 7.5, 0.0)
    starts = recording.trials["start_time"].to_numpy(np.float64)
    starts = starts[np.isfinite(starts) & (starts >= begin) & (starts < end)]
    return float(starts[np.abs(starts - middle).argmin()]) if len(starts) else middle


def _draw_series(axes: Axes, series: "BehaviorSeries", start: float, stop: float) -> None:
    """Draws the dimensions of a behaviour series in a window."""
    inside = np.flatnonzero((series.timestamps >= start) & (series.timestamps <= stop))
    inside = inside[:: max(len(inside) // 4000, 1)]
    times, order = with_gaps(series.timestamps[inside])
    for k, name in enumerate(series.dimension_names):
        axes.plot(
            times, series.values[inside][order, k], color=COLORS[k % len(COLORS)], label=name or series.name,
            linestyle=STYLES[k % len(STYLES)], linewidth=1.2,
        )  # fmt: skip
    axes.set_ylabel(f"{series.name}\n({series.unit})", fontsize=7.5)
    axes.yaxis.set_major_locator(MaxNLocator(3))
    if len(series.dimension_names) > 1:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7.0, handlelength=1.4)


def _shade_trials(panels: Sequence[Axes], recording: "Recording", start: float, stop: float) -> None:
    """Marks the trials of a window; the last panel says what the marks are."""
    for _, trial in recording.trials.dropna(subset=["start_time", "stop_time"]).iterrows():
        begin, end = max(trial["start_time"], start), min(trial["stop_time"], stop)
        if begin < end:
            for axes in panels:
                axes.axvspan(begin, end, color=LIGHT, alpha=0.35, linewidth=0, zorder=0)


def _draw_rates(axes: Axes, recording: "Recording") -> None:
    """Draws the mean rate of every unit, site by site."""
    seconds = float(np.diff(recording.obs_intervals, axis=1).sum())
    rates = np.array([len(times) for times in recording.spike_times]) / seconds
    present = list(dict.fromkeys(sorted(recording.unit_sites.tolist())))
    place = 0
    for index, site in enumerate(present):
        values = np.sort(rates[recording.unit_sites == site])[::-1]
        color = site_color(index) if len(present) > 1 else BLACK
        axes.plot(np.arange(place, place + len(values)), values, ".", color=color, markersize=4)
        place += len(values)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if rates.min() < 0.1:
        axes.set_yscale("symlog", linthresh=0.1)
        axes.set_ylim(bottom=-0.02)
    else:
        axes.set_yscale("log")
        axes.set_ylim(10 ** np.floor(np.log10(rates.min())), 10 ** np.ceil(np.log10(rates.max() + 1e-9)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("unit, by site and rate" if len(present) > 1 else "unit, by rate")
    axes.set_ylabel("mean rate (spikes/s)")
    silent = int((rates == 0).sum())
    axes.set_title(f"Median {np.median(rates):.1f} spikes/s, {silent} silent", fontsize=8.5)
    axes.grid(axis="y", color=LIGHT, linewidth=0.5)


def _draw_timeline(
    axes: Axes, recording: "Recording", first: float, last: float, window: tuple[float, float]
) -> None:
    """Draws spikes per second over the session, what was not observed, and where the raster is."""
    edges = np.linspace(first, last, TIMELINE_BINS + 1)
    spikes = np.concatenate([*recording.spike_times, np.empty(0)])
    covered = np.interp(edges, *_observed_until(recording.obs_intervals))
    seconds = np.diff(covered)
    seen = seconds > 0.1 * np.diff(edges)
    rates = np.histogram(spikes, edges)[0] / np.where(seen, seconds, np.nan)
    axes.stairs(rates, edges, color=COLORS[0], linewidth=1.0, baseline=None)
    gaps = np.stack([recording.obs_intervals[:-1, 1], recording.obs_intervals[1:, 0]], axis=1)
    gaps = gaps[np.diff(gaps, axis=1)[:, 0] > 2 * (edges[1] - edges[0])]  # shorter ones would be a grey haze
    for begin, end in gaps:
        axes.axvspan(begin, end, color=GREY, alpha=0.4, linewidth=0)
    axes.axvspan(*window, color=COLORS[1], alpha=0.35, linewidth=0)
    axes.set_xlim(first, last)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(
        "time in the session (s); orange: shown above" + (", grey: not observed" if len(gaps) else "")
    )
    axes.set_ylabel("spikes/s,\nall units", fontsize=7.5)
    axes.yaxis.set_major_locator(MaxNLocator(3))


def _observed_until(intervals: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gives the edges of observed intervals, and the seconds observed until each."""
    lengths = np.cumsum(intervals[:, 1] - intervals[:, 0])
    return intervals.ravel(), np.stack([np.concatenate([[0.0], lengths[:-1]]), lengths], axis=1).ravel()


def plot_dataset(sessions: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Draws what a built dataset has of each session: minutes by split, and the rates of its units.

    Args:
        sessions (`Sequence[Mapping]`): Per session `session_id`, `minutes` (mapping of split to minutes) and
            `rates` (mean rate of each unit, spikes/s).
        title (`str`, *optional*): What stands above it.

    Returns:
        `Figure`: A bar for each session, and the median and the middle half of its rates.

    Raises:
        InputError: If there is no session.
    """
    if not sessions:
        raise InputError("`sessions` must hold at least one session, got none. Build the dataset again.")
    names = [str(session["session_id"]) for session in sessions]
    places = np.arange(len(sessions))
    with rc_context(STYLE):
        figure = new_figure(8.4, min(1.3 + 0.26 * len(sessions), 12.0))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[1.4, 1.0])
        offset = np.zeros(len(sessions))
        for split, color in SPLIT_STYLES.items():
            minutes = np.array([float(session["minutes"].get(split, 0.0)) for session in sessions])
            left.barh(places, minutes, left=offset, color=color, height=0.72, label=split)
            offset += minutes
        left.set_yticks(places, names, fontsize=8.0 if len(names) <= 30 else 5.5)
        left.set_ylim(len(names) - 0.4, -0.6)
        left.set_xlabel("minutes of rows, context included")
        left.set_title("Size")
        figure.suptitle(title, fontsize=9.5, fontweight="bold", x=0.01, ha="left")
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        for place, session in zip(places, sessions, strict=True):
            low, middle, high = _quartiles(np.asarray(session["rates"], dtype=float))
            right.plot([low, high], [place, place], color=GREY, linewidth=3.0, alpha=0.6)
            right.plot(middle, place, "o", color=BLACK, markersize=4)
        right.set_xlabel("rate of units (spikes/s): median, middle half")
        right.set_xlim(left=0)
        right.set_title("Rates")
        right.tick_params(labelleft=False)
        right.grid(axis="x", color=LIGHT, linewidth=0.5)
    return figure


def _quartiles(values: NDArray[np.float64]) -> tuple[float, float, float]:
    """Quartiles; NaN where there are no values."""
    if not len(values):
        return (float("nan"),) * 3
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return low, middle, high
