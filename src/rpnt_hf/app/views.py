"""Turns recordings and decoded movement into what the page draws: plain values, arrays as base64.

Drawing itself is `canvas.js`, in the visitor's browser, so that an interaction costs a small message and no
picture. Pictures for print are `rpnt_hf.analysis.plots`.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from rpnt_hf.data.nwb import BehaviorSeries, Recording
from rpnt_hf.errors import InputError

__all__ = [
    "default_series",
    "describe_scores",
    "facts_html",
    "observed_span",
    "packed",
    "recording_facts",
    "recording_window",
    "restarts",
    "site_rows",
]

MAX_SPIKES = 400_000
MAX_SAMPLES = 1_500


def packed(values: ArrayLike, dtype: str) -> str:
    """Packs an array for the browser.

    Args:
        values (`ArrayLike`): Any array.
        dtype (`str`): What the browser reads it as, little-endian, for example "<f4".

    Returns:
        `str`: Base64 of its bytes.
    """
    return base64.b64encode(np.ascontiguousarray(values, dtype=dtype).tobytes()).decode()


def site_rows(recording: Recording) -> tuple[NDArray[np.int64], list[dict[str, Any]]]:
    """Puts the units of a site beside one another, the first site at the top.

    Args:
        recording (`Recording`): Any recording.

    Returns:
        `tuple`: Units in the order of the rows, and for each site its `name` and number of `units`.
    """
    order = np.argsort(recording.unit_sites, kind="stable")
    counts = np.bincount(recording.unit_sites, minlength=len(recording.site_ids))
    sites = [
        {"name": name, "units": int(units)} for name, units in zip(recording.site_ids, counts, strict=True)
    ]
    return order, sites


def observed_span(recording: Recording) -> tuple[float, float]:
    """Gives the first and the last observed moment.

    Args:
        recording (`Recording`): Any recording.

    Returns:
        `tuple[float, float]`: Both in s.
    """
    return float(recording.obs_intervals[0, 0]), float(recording.obs_intervals[-1, 1])


def recording_facts(recording: Recording) -> list[tuple[str, str]]:
    """Says what is in a recording.

    Args:
        recording (`Recording`): Any recording.

    Returns:
        `list[tuple[str, str]]`: Name and value, as text.
    """
    observed = float(np.diff(recording.obs_intervals, axis=1).sum())
    rates = [len(times) / max(observed, 1e-9) for times in recording.spike_times]
    sites = ", ".join(
        f"{site['name']} ({site['units']})" if len(recording.site_ids) > 1 else str(site["name"])
        for site in site_rows(recording)[1]
    )
    series = [f"{one.name} ({one.unit})" for one in recording.behavior.values()]
    trials = f"{len(recording.trials)}"
    if len(recording.trials) and "result" in recording.trials.columns:
        trials += f" ({int((recording.trials['result'] == 'R').sum())} rewarded)"
    gaps = len(recording.obs_intervals) - 1
    duration = f"{observed / 60:.1f} min" if observed >= 120 else f"{observed:.0f} s"
    facts = [
        ("session", recording.session_id),
        ("subject", recording.subject_id or "not stated"),
        ("task", (recording.task or "not stated").replace("_", " ")),
        ("date", recording.recording_date.isoformat() if recording.recording_date else "not stated"),
        ("units", f"{recording.num_units}, median {np.median(rates):.1f} spikes/s"),
        ("sites", sites),
        ("trials", trials if len(recording.trials) else "none: scored everywhere"),
        ("observed", duration + (f" in {gaps + 1} parts" if gaps else "")),
        ("behaviour", ", ".join(series) or "none: it can be decoded, not scored or trained on"),
    ]
    if recording.unusable_behavior:
        facts.append(("cannot be used", ", ".join(recording.unusable_behavior)))
    return facts


def _spikes_between(times: NDArray[np.float64], start: float, stop: float) -> NDArray[np.float64]:
    return times[np.searchsorted(times, start) : np.searchsorted(times, stop)]


def recording_window(
    recording: Recording, start: float, seconds: float, series: str | None = None
) -> dict[str, Any]:
    """Cuts out what the raster and the behaviour below it show.

    Args:
        recording (`Recording`): Any recording.
        start (`float`): First moment in s.
        seconds (`float`): Length in s, above 0. A window with more than 400,000 spikes is cut short.
        series (`str`, *optional*): Name of the behaviour; the first velocity, or the first, where left out.

    Returns:
        `dict`: Plain values for the view "recording": spikes as fractions of the window in units of 1/65535,
        row by row, trials, gaps and samples of the behaviour.

    Raises:
        InputError: The window is empty.
    """
    if not seconds > 0:
        raise InputError(f"A window must be longer than 0 s, got {seconds}. Choose a longer one.")
    stop = start + seconds
    order, sites = site_rows(recording)
    rows = [_spikes_between(recording.spike_times[unit], start, stop) for unit in order]
    if (num_spikes := sum(map(len, rows))) > MAX_SPIKES:
        seconds *= MAX_SPIKES / num_spikes
        stop = start + seconds
        rows = [row[row < stop] for row in rows]
    flat = np.concatenate([*rows, np.empty(0)])
    edges = [(float(low), float(high)) for low, high in recording.obs_intervals]
    view = {
        "start": start,
        "stop": stop,
        "sites": sites,
        "spikes": packed(np.clip((flat - start) / seconds, 0, 1) * 65535, "<u2"),
        "spikes_per_row": packed([len(row) for row in rows], "<u4"),
        "trials": _trials_between(recording.trials, start, stop),
        "observed": [edge for edge in edges if edge[0] < stop and edge[1] > start],
        "behavior": None,
    }
    name = series if series in recording.behavior else default_series(recording)
    if name is not None:
        view["behavior"] = _samples_between(recording.behavior[name], start, stop)
    return view


def default_series(recording: Recording) -> str | None:
    """Names the behaviour that is shown first.

    Args:
        recording (`Recording`): Any recording.

    Returns:
        `str` or `None`: The first velocity, else the first series, else None.
    """
    names = list(recording.behavior)
    return next((name for name in names if name.endswith("_vel")), names[0] if names else None)


def _trials_between(trials: pd.DataFrame, start: float, stop: float) -> list[list[float]]:
    """Lists start, stop and whether it was rewarded (1), not (0) or is not said (-1)."""
    inside = trials[(trials["start_time"] < stop) & (trials["stop_time"] > start)]
    results = inside["result"] if "result" in trials.columns else [None] * len(inside)
    rewarded = [-1 if result is None else int(result == "R") for result in results]
    return [
        [float(first), float(last), good]
        for first, last, good in zip(inside["start_time"], inside["stop_time"], rewarded, strict=True)
    ]


def _samples_between(series: BehaviorSeries, start: float, stop: float) -> dict[str, Any]:
    low, high = np.searchsorted(series.timestamps, [start, stop])
    step = max((high - low) // MAX_SAMPLES, 1)
    chosen = slice(low, high, step)
    return {
        "name": series.name,
        "unit": series.unit,
        "dimensions": list(series.dimension_names),
        "times": packed(series.timestamps[chosen] - start, "<f4"),
        "values": packed(series.values[chosen], "<f4"),
    }


def restarts(times: NDArray[np.float64], starts: ArrayLike, bin_size: float) -> NDArray[np.bool_]:
    """Marks the bins at which a path that is integrated from velocity begins anew.

    Args:
        times (`np.ndarray` of shape `(num_bins,)`): Start of each bin in s.
        starts (`ArrayLike` of shape `(n,)`): Starts of trials in s; without any, a path lasts two seconds.
        bin_size (`float`): Width of a bin in s.

    Returns:
        `np.ndarray` of shape `(num_bins,)`, bool: True for the first bin, after gaps, and at trial starts.
    """
    begins = np.ones(len(times), dtype=bool)
    begins[1:] = np.diff(times) > 1.5 * bin_size
    known = np.asarray(starts, dtype=float)
    known = known[np.isfinite(known)]
    if len(known):
        places = np.searchsorted(times, known - bin_size / 2)
        begins[places[places < len(times)]] = True
    else:
        begins[:: max(round(2 / bin_size), 1)] = True
    return begins


def describe_scores(scores: Mapping[str, Any] | None) -> list[tuple[str, str, str]]:
    """Words the R2 of a decoder, bins that it was fitted to apart.

    Args:
        scores (`Mapping`, *optional*): From `decoding.score_table`; None where nothing was decoded.

    Returns:
        `list[tuple[str, str, str]]`: For bins not fitted to and for fitted ones: name, value, explanation.
    """
    scores = scores or {}
    described = []
    for suffix, name, note in (
        ("", "R2, new bins", "not trained or chosen on"),
        ("_fitted", "R2, fitted bins", "trained or chosen on: no test"),
    ):
        value, bins = scores.get(f"r2{suffix}"), scores.get(f"num_scored_bins{suffix}", 0)
        shown = "-" if value is None else f"{value:.3f}"
        described.append((name, shown, f"{bins:,} bins {note}" if bins else "no such bins here"))
    return described


def facts_html(facts: Sequence[tuple[str, str]]) -> str:
    """Writes facts as a definition list.

    Args:
        facts (`Sequence[tuple[str, str]]`): Name and value.

    Returns:
        `str`: HTML, escaped.
    """
    cells = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in facts
    )
    return f'<dl class="rpnt-facts">{cells}</dl>'
