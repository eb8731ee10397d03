"""Site-by-site maps of functional connectivity, from a pretrained model, with controls and significance.

A map says how much the activity of a target site (row) draws on that of a source site (column). It is
functional, not anatomical: what it says is about prediction. Every map is compared with the same map of data
in which the trials of each site are shuffled. Baselines without a model are in `site_statistics.py`, pictures
in `plots.py`.

Legend: `W` windows, `S` sites, `T` bins, `N` units, `A` anchors.
"""

import csv
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import false_discovery_control

from rpnt_hf.analysis.site_statistics import lagged_regression, partial_correlation, rate_correlation
from rpnt_hf.analysis.site_windows import SiteWindows, cut_site_windows
from rpnt_hf.attention_rpnt import RPNTSpatialAttention
from rpnt_hf.configuration_rpnt import RPNTConfig
from rpnt_hf.errors import CheckpointError, ConfigurationError
from rpnt_hf.hub import checkpoint_folder
from rpnt_hf.modeling_rpnt import RPNTForPreTraining
from rpnt_hf.processing_rpnt import RPNTProcessor

__all__ = [
    "ESTIMATORS",
    "Connectivity",
    "ConnectivityMap",
    "Permutation",
    "attention_rollout",
    "compare_with_shuffles",
    "load_pretrained",
    "map_connectivity",
    "write_connectivity",
]

ESTIMATORS: Mapping[str, str] = {
    "permutation": "nats an entry by which the past of the source helps to predict the target",
    "attention": "spatial attention of the target to the source, rolled out over layers",
    "rate_correlation": "root mean square correlation of the rates of their units",
    "partial_correlation": "the same of population modes, the other sites held fixed",
    "lagged_regression": "log ratio of residuals of the target without and with the past of the source",
}
OF_MODEL = ("permutation", "attention")
FALSE_DISCOVERY_RATE = 0.05

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class ConnectivityMap:
    """One map with its control; rows are targets, columns sources, NaN on the diagonal and where unknown.

    Args:
        values (`np.ndarray` of shape `(sites, sites)`): The estimate, from the data as they are.
        excess (`np.ndarray` of the same shape): What of it is left when the mean over shuffles is taken off.
        scores (`np.ndarray` of the same shape): The excess in standard errors, of the shuffles.
        p_values (`np.ndarray` of the same shape): One-sided permutation p of the score.
        q_values (`np.ndarray` of the same shape): The same, adjusted for the false discovery rate over pairs.
        control_discoveries (`float`): Pairs that are found on average when shuffled data are taken for the
            data.
    """

    values: Matrix
    excess: Matrix
    scores: Matrix
    p_values: Matrix
    q_values: Matrix
    control_discoveries: float

    @property
    def significant(self) -> NDArray[np.bool_]:
        """`np.ndarray` of shape `(sites, sites)`, bool: True where `q_values` are at most 0.05."""
        return np.nan_to_num(self.q_values, nan=1.0) <= FALSE_DISCOVERY_RATE


@dataclass(frozen=True)
class Connectivity:
    """The maps of one session.

    Args:
        session_id (`str`): The session.
        site_ids (`list[str]`): Its sites, in the order of the maps.
        site_positions (`np.ndarray` of shape `(sites, 3)`): Their places in mm, NaN where unknown.
        maps (`dict[str, ConnectivityMap]`): By name of the estimator.
        settings (`dict[str, Any]`): How they were made.
    """

    session_id: str
    site_ids: list[str]
    site_positions: Matrix
    maps: dict[str, ConnectivityMap]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Gives everything as plain values, with null for NaN.

        Returns:
            `dict[str, Any]`: Ready for JSON.
        """
        maps = {
            name: {
                "meaning": ESTIMATORS[name],
                **{
                    field: _plain(getattr(found, field))
                    for field in ("values", "excess", "scores", "p_values", "q_values")
                },
                "significant_pairs": [
                    {"target": self.site_ids[target], "source": self.site_ids[source]}
                    for target, source in np.argwhere(found.significant)
                ],
                "control_discoveries": found.control_discoveries,
            }
            for name, found in self.maps.items()
        }
        return {
            "session_id": self.session_id,
            "site_ids": self.site_ids,
            "site_positions": _plain(self.site_positions),
            "maps": maps,
            "settings": self.settings,
        }


def map_connectivity(
    model: RPNTForPreTraining,
    processor: RPNTProcessor,
    rows: Sequence[Mapping[str, Any]],
    *,
    window_bins: int | None = None,
    align: str = "start",
    before: int = 0,
    bins: tuple[int, int] | None = None,
    estimators: Sequence[str] = tuple(ESTIMATORS),
    num_shuffles: int = 20,
    hidden_every: int = 4,
    batch_size: int = 32,
    seed: int = 0,
) -> Connectivity:
    """Makes the maps of one session, each with its shuffle control.

    Args:
        model (`RPNTForPreTraining`): Pretrained, with a spatial stage.
        processor (`RPNTProcessor`): Its processor.
        rows (`Sequence[Mapping]`): Rows of one session of a built dataset; best those of validation and test.
        window_bins (`int`, *optional*): Bins of the window that is cut at each trial; that of training where
            None.
        align (`str`, *optional*, defaults to `"start"`): What windows are cut at: "start", "go_cue" or
            "move_onset" of each trial.
        before (`int`, *optional*, defaults to 0): Bins of a window that lie before that event.
        bins (`tuple[int, int]`, *optional*): First bin and stop of the part of the window that is averaged;
            None for all.
        estimators (`Sequence[str]`, *optional*): Names out of `ESTIMATORS`; all by default.
        num_shuffles (`int`, *optional*, defaults to 20): Shuffles of the trials of each site, at least 5.
        hidden_every (`int`, *optional*, defaults to 4): Distance of the bins that are hidden at a time,
            at least 2.
        batch_size (`int`, *optional*, defaults to 32): Windows at a time.
        seed (`int`, *optional*, defaults to 0): Seed of everything drawn.

    Returns:
        `Connectivity`: The maps.

    Raises:
        ConfigurationError: A name is unknown or a number out of range.
        CheckpointError: The model has no spatial stage.
        DatasetError: The rows are not of one session with two sites, or hold too few trials.
        InputError: The rows do not fit the processor.
    """
    unknown = [name for name in estimators if name not in ESTIMATORS]
    if unknown or not estimators:
        raise ConfigurationError(
            f"`estimators` must be names out of {', '.join(ESTIMATORS)}, got {', '.join(unknown) or 'none'}."
        )
    if num_shuffles < 5 or hidden_every < 2 or batch_size < 1:
        raise ConfigurationError(
            "`num_shuffles` must be at least 5, `hidden_every` at least 2 and `batch_size` at least 1, got "
            f"{num_shuffles}, {hidden_every} and {batch_size}."
        )
    if model.config.num_spatial_layers == 0 and set(estimators) & set(OF_MODEL):
        raise CheckpointError(
            f"Maps by {' and '.join(OF_MODEL)} must come from a model with spatial layers, got "
            "`num_spatial_layers`=0: its sites see nothing of each other. Pretrain 'rpnt-neuropixel', or ask "
            "for other `estimators`."
        )
    size = window_bins or processor.window_bins or 50
    windows = cut_site_windows(rows, processor, size, align=align, before=before)
    chosen = slice(*(bins or (0, windows.num_bins)))
    if len(range(windows.num_bins)[chosen]) == 0:
        raise ConfigurationError(
            f"`bins` must leave at least one of the {windows.num_bins} bins of a window, got {bins}."
        )
    generator = np.random.default_rng(seed)
    orders = [None, *(windows.draw_order(generator) for _ in range(num_shuffles))]
    statistics: dict[str, Callable[[SiteWindows], Matrix]] = {
        "attention": lambda data: attention_rollout(model, data, chosen, batch_size),
        "rate_correlation": lambda data: rate_correlation(data, chosen),
        "partial_correlation": lambda data: partial_correlation(data, chosen),
        "lagged_regression": lambda data: lagged_regression(data, chosen),
    }
    maps = {}
    for name in estimators:
        if name == "permutation":
            permutation = Permutation(model, windows, chosen, hidden_every, batch_size)
            found = [permutation.map(generator, order) for order in orders]
        else:
            found = [
                statistics[name](windows if order is None else windows.reordered(order)) for order in orders
            ]
        maps[name] = compare_with_shuffles(found[0], np.stack(found[1:]))
    settings = {
        "windows": windows.num_windows,
        "left_out_trials": windows.num_left_out,
        "window_bins": windows.num_bins,
        "bin_size": processor.bin_size,
        "align": align,
        "before": before,
        "bins": [chosen.start, chosen.stop],
        "num_shuffles": num_shuffles,
        "hidden_every": hidden_every,
        "seed": seed,
        "false_discovery_rate": FALSE_DISCOVERY_RATE,
    }
    return Connectivity(windows.session_id, windows.site_ids, windows.site_positions, maps, settings)


def compare_with_shuffles(values: Matrix, shuffled: NDArray[np.float64]) -> ConnectivityMap:
    """Tests a map against maps of shuffled data.

    Each pair is studentised by its own shuffles, and so is each shuffle by the others; the p-value of a pair
    is its rank among the studentised shuffles of all pairs, so that 20 shuffles resolve p-values of one in a
    thousand where there are 8 sites.

    Args:
        values (`np.ndarray` of shape `(sites, sites)`): The map of the data; the diagonal is not looked at.
        shuffled (`np.ndarray` of shape `(shuffles, sites, sites)`): Maps of shuffled data, at least 5.

    Returns:
        `ConnectivityMap`: The map with p-values, and what the same test finds in the shuffles.
    """
    num_shuffles = len(shuffled)
    values, shuffled = values.copy(), shuffled.copy()
    diagonal = np.arange(len(values))
    values[diagonal, diagonal] = shuffled[:, diagonal, diagonal] = np.nan
    null = np.stack(
        [_studentised(shuffled[one], np.delete(shuffled, one, axis=0)) for one in range(num_shuffles)]
    )
    found = [
        int((_adjusted(_ranks(null[one], np.delete(null, one, axis=0))) <= FALSE_DISCOVERY_RATE).sum())
        for one in range(num_shuffles)
    ]
    scores = _studentised(values, shuffled)
    p_values = _ranks(scores, null)
    excess = values - shuffled.mean(axis=0)
    return ConnectivityMap(values, excess, scores, p_values, _adjusted(p_values), float(np.mean(found)))


def _studentised(values: Matrix, shuffled: NDArray[np.float64]) -> Matrix:
    """Distance from the mean of shuffles, in standard errors of a new value from the same distribution."""
    spread = shuffled.std(axis=0, ddof=1) * np.sqrt(1 + 1 / len(shuffled))
    return (values - shuffled.mean(axis=0)) / np.maximum(spread, np.finfo(np.float64).tiny)


def _ranks(scores: Matrix, null: NDArray[np.float64]) -> Matrix:
    """One-sided p-value of each score among all of the null distribution; NaN stays."""
    ordered = np.sort(null[np.isfinite(null)])
    above = len(ordered) - np.searchsorted(ordered, scores, side="left")
    return np.where(np.isfinite(scores), (1 + above) / (1 + len(ordered)), np.nan)


def _adjusted(p_values: Matrix) -> Matrix:
    """Benjamini and Hochberg over the pairs that have a p-value."""
    known = np.isfinite(p_values)
    adjusted = np.full_like(p_values, np.nan)
    if known.any():
        adjusted[known] = false_discovery_control(p_values[known])
    return adjusted


def attention_rollout(
    model: RPNTForPreTraining, windows: SiteWindows, bins: slice, batch_size: int = 32
) -> Matrix:
    """Averages how much sites attend to sites, through all spatial layers.

    Heads are averaged, anchors left out and the rest normalised; a layer passes on half of what it has and
    half of what it attends to, and layers are multiplied (attention rollout, Abnar and Zuidema 2020).

    Args:
        model (`RPNTForPreTraining`): Pretrained, with a spatial stage.
        windows (`SiteWindows`): What it sees, nothing of it hidden.
        bins (`slice`): Bins of the windows that are averaged.
        batch_size (`int`, *optional*, defaults to 32): Windows at a time.

    Returns:
        `np.ndarray` of shape `(sites, sites)`: Mean over the bins in which both sites were recorded; NaN
        where there is none.
    """
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the only one that gives weights
    total = np.zeros((windows.num_sites, windows.num_sites))
    count = np.zeros_like(total)
    try:
        for batch in windows.batches(batch_size):
            outputs = _run(model, batch, output_spatial_attentions=True)
            shape = batch["bin_mask"].shape
            rolled = torch.eye(shape[1], device=model.device)
            for weights in outputs.spatial_attentions:
                attended = weights.float().mean(dim=1)[..., -shape[1] :]
                attended = attended / attended.sum(dim=-1, keepdim=True).clamp_min(1e-9)
                rolled = (0.5 * attended + 0.5 * torch.eye(shape[1], device=model.device)) @ rolled
            present = batch["bin_mask"][:, :, bins].double().transpose(1, 2).numpy()  # (B, bins, S)
            values = rolled.unflatten(0, (shape[0], shape[2]))[:, bins].double().cpu().numpy()
            both = present[..., :, None] * present[..., None, :]
            total += (values * both).sum(axis=(0, 1))
            count += both.sum(axis=(0, 1))
    finally:
        model.set_attn_implementation(implementation)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


class Permutation:
    """Measures how much worse a site is predicted from the past when a source comes from another trial.

    Every `hidden_every`-th bin is hidden at all sites at once, in as many turns, so that each bin is scored
    once. A bin is told by the past of its own site and of the others, never by what others do at the same
    time, which follows from the target as well as it leads to it. Then each site in turn is replaced by what
    it did in another trial of the same condition: what this costs is what its past tells of the target
    beyond all others, in the sense of Granger, with the network in the place of the linear model. Hiding the
    source instead counts against it what the network wrongly expects of it.

    Sites meet in the spatial stage only. What precedes it is computed once, and kept, for all sources and all
    orders of the trials: a state of `hidden_size` for each window, site and bin that is scored.

    Args:
        model (`RPNTForPreTraining`): Pretrained, best with `same_bins_probability` above 0, so that it knows
            bins that are hidden at all sites.
        windows (`SiteWindows`): What it sees.
        bins (`slice`): Bins of the windows that are scored.
        hidden_every (`int`, *optional*, defaults to 4): Distance of hidden bins, at least 2.
        batch_size (`int`, *optional*, defaults to 32): Windows at a time.
    """

    def __init__(
        self,
        model: RPNTForPreTraining,
        windows: SiteWindows,
        bins: slice,
        hidden_every: int = 4,
        batch_size: int = 32,
    ) -> None:
        self.model, self.windows, self.bins, self.batch_size = model, windows, bins, batch_size
        turns = torch.arange(windows.num_bins) % hidden_every
        kept = []
        for batch in windows.batches(batch_size):
            states = [self._alone(batch, batch["bin_mask"] & (turns == turn)) for turn in range(hidden_every)]
            own = torch.stack(states)[turns, :, :, torch.arange(windows.num_bins)]  # (T, B, S, D)
            kept.append(own[bins].permute(1, 2, 0, 3))
        self._states = torch.cat(kept)  # (W, S, bins, D), on the CPU

    def map(
        self, generator: np.random.Generator, order: NDArray[np.int64] | None = None, num_draws: int = 1
    ) -> Matrix:
        """Makes the map, of the windows as they are or with the trials of each site in another order.

        Args:
            generator (`np.random.Generator`): Draws the trials that replace those of a source.
            order (`np.ndarray` of shape `(windows, sites)`, *optional*): As of `SiteWindows.draw_order`.
            num_draws (`int`, *optional*, defaults to 1): Trials that replace each, one after the other.

        Returns:
            `np.ndarray` of shape `(sites, sites)`: Nats per entry of the target (row) that the source
            (column) saves; NaN where they were never recorded together, and on the diagonal.
        """
        S = self.windows.num_sites
        order = np.repeat(np.arange(self.windows.num_windows)[:, None], S, 1) if order is None else order
        windows = self.windows.reordered(order)
        others = [np.take_along_axis(order, windows.draw_order(generator), axis=0) for _ in range(num_draws)]
        total, count = np.zeros((S, S)), np.zeros((S, S))
        for index, batch in zip(
            np.split(np.arange(len(order)), range(self.batch_size, len(order), self.batch_size)),
            windows.batches(self.batch_size),
            strict=True,
        ):
            batch["spike_counts"] = batch["spike_counts"][:, :, self.bins]
            recorded = batch["bin_mask"] = batch["bin_mask"][:, :, self.bins]
            states = self._states[order[index], np.arange(S)]
            whole = self._nats(states, batch, recorded)  # (B, S, bins)
            units = batch["unit_mask"].sum(dim=2)[..., None]
            for drawn in others:
                replaced = self._states[drawn[index], np.arange(S)]
                known = torch.from_numpy(self.windows.bin_mask[:, :, self.bins][drawn[index], np.arange(S)])
                for source in range(S):
                    mixed = states.clone()
                    mixed[:, source] = replaced[:, source]
                    scored = recorded & (recorded & known)[:, source, None]
                    lost = (self._nats(mixed, batch, recorded) - whole) * scored
                    total[:, source] += lost.sum(dim=(0, 2)).numpy()
                    count[:, source] += (scored * units).sum(dim=(0, 2)).numpy()
        values = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        np.fill_diagonal(values, np.nan)
        return values

    def _alone(self, batch: dict[str, torch.Tensor], masked: torch.Tensor) -> torch.Tensor:
        """States of every site before the spatial stage, (B, S, T, D)."""
        states: list[torch.Tensor] = []
        first = self.model.model.spatial_layers[0]
        hook = first.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
        try:
            _run(self.model, batch, masked_bins=masked)
        finally:
            hook.remove()
        return states[0].cpu()

    @torch.inference_mode()
    def _nats(
        self, states: torch.Tensor, batch: dict[str, torch.Tensor], bin_mask: torch.Tensor
    ) -> torch.Tensor:
        """Poisson negative log-likelihood after the spatial stage, summed over units, (B, S, bins)."""
        encoder, device = self.model.model, self.model.device
        inputs = {name: value.to(device) for name, value in batch.items()}
        rotation = encoder.rotary(inputs["metadata"], states.shape[2], device)[1]
        channels = encoder.rotary.anchor_channels(RPNTSpatialAttention.zero_axes, device)
        states, bin_mask = states.to(device), bin_mask.to(device)
        for layer in encoder.spatial_layers:
            states = layer(states, rotation, channels, bin_mask)
        log_rates = self.model._log_rates(encoder.norm(states), inputs["unit_ids"]).float()
        nats = log_rates.exp() - inputs["spike_counts"] * log_rates
        return nats.masked_fill(~inputs["unit_mask"][:, :, None], 0.0).sum(dim=3).double().cpu()


@torch.inference_mode()
def _run(model: RPNTForPreTraining, batch: dict[str, torch.Tensor], **others: Any) -> Any:
    inputs = {name: value.to(model.device) for name, value in batch.items()}
    others = {
        name: value.to(model.device) if isinstance(value, torch.Tensor) else value
        for name, value in others.items()
    }
    return model.eval()(**inputs, **others)


def load_pretrained(checkpoint: str | Path) -> tuple[RPNTForPreTraining, RPNTProcessor]:
    """Loads a pretrained model with the head that predicts rates.

    Args:
        checkpoint (`str` or `Path`): Folder that `training/pretrain.py` wrote, or its id on the Hub.

    Returns:
        `tuple`: The model and its processor.

    Raises:
        CheckpointError: There is no such checkpoint, or it is not one of pretraining.
        HubError: It is on the Hub, and cannot be had from there.
    """
    folder = checkpoint_folder(checkpoint)
    try:
        config = RPNTConfig.from_pretrained(folder)
        if "RPNTForPreTraining" not in (config.architectures or []):
            raise CheckpointError(
                f"The checkpoint must be one of pretraining (RPNTForPreTraining), got "
                f"{config.architectures} in '{checkpoint}': a decoder predicts no rates. Give the folder "
                "that it was finetuned from."
            )
        return RPNTForPreTraining.from_pretrained(folder).eval(), RPNTProcessor.from_pretrained(folder)
    except OSError as error:
        raise CheckpointError(f"The checkpoint '{checkpoint}' must load, but it does not: {error}") from error


def write_connectivity(found: Connectivity, out: str | Path, plot: bool = False) -> list[Path]:
    """Writes the maps of a session as `connectivity.json` and `connectivity.csv`, whole or not at all.

    Args:
        found (`Connectivity`): The maps.
        out (`str` or `Path`): Folder; made where it is missing. Files of those names are replaced.
        plot (`bool`, *optional*, defaults to `False`): Whether each map is drawn as `ESTIMATOR.png` too.

    Returns:
        `list[Path]`: The files.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".writing-") as temporary:
        folder = Path(temporary)
        (folder / "connectivity.json").write_text(json.dumps(found.to_dict(), indent=2) + "\n")
        with (folder / "connectivity.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            fields = ("values", "excess", "scores", "p_values", "q_values")
            writer.writerow(
                ["session_id", "estimator", "target", "source", "value", *fields[1:], "significant"]
            )
            for name, one in found.maps.items():
                for target, source in np.argwhere(~np.eye(len(found.site_ids), dtype=bool)):
                    numbers = [getattr(one, field)[target, source] for field in fields]
                    writer.writerow(
                        [
                            found.session_id, name, found.site_ids[target], found.site_ids[source],
                            *("" if np.isnan(number) else f"{number:.6g}" for number in numbers),
                            int(one.significant[target, source]),
                        ]
                    )  # fmt: skip
        names = ["connectivity.json", "connectivity.csv"]
        for name, one in found.maps.items() if plot else ():
            from rpnt_hf.analysis.plots import plot_connectivity, save_figure  # takes a second

            figure = plot_connectivity(
                one.excess,
                found.site_ids,
                found.site_positions,
                one.significant,
                label="excess over shuffled trials",
                title=f"{found.session_id}: {name.replace('_', ' ')}",
            )
            save_figure(figure, folder / f"{name}.png")
            names.append(f"{name}.png")
        paths = [out / name for name in names]
        for path in paths:
            (folder / path.name).replace(path)
    return paths


def _plain(values: Matrix) -> list[Any]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in values]
