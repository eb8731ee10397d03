"""Gives the units of a new, labelled session embeddings by regression, before any of them is trained.

The token of a bin is a sum over units, linear in their embeddings (DESIGN 2.1). A decoder that was trained on
some sessions knows which tokens go with which movement: its token map, a ridge regression from the behaviour
around a bin to the token of the bin. A few labelled bins of a new session, put through that map, say which
tokens its units should add up to, and a second ridge regression which embeddings do so best. Training goes on
from there, slowly. Regression on what another population showed at the same behaviour is how linear latent
spaces of sessions are matched (Pandarinath et al. 2018, doi:10.1038/s41592-018-0109-9, "stitching").

Not for sessions without labels: see `stabilization.py`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge, RidgeCV

from rpnt_hf.data.rows import row_behavior, row_counts, row_site_observed, scored_bins
from rpnt_hf.modeling_rpnt import RPNTForMotorDecoding
from rpnt_hf.processing_rpnt import RPNTProcessor

__all__ = ["fit_token_map", "place_units"]

STEP = 0.1  # s between the moments whose behaviour the map reads
MAP_PENALTY = 1e-3  # per bin, on behaviour in standard deviations
PENALTIES = np.logspace(-4, 4, 33)
GAIN = 2.0  # ridge shrinks what it gives; chosen on held-out training trials (docs/research_log.md)
MAX_BINS = 50_000  # regressions of a few hundred columns need no more

Array = NDArray[np.float64]


def fit_token_map(model: RPNTForMotorDecoding, processor: RPNTProcessor, rows: Sequence[Any]) -> None:
    """Fits the token map of a decoder to the rows that it was trained on.

    Args:
        model (`RPNTForMotorDecoding`): With `unit_embedding` "vocabulary"; gets `token_map` and
            `config.token_map_step`.
        processor (`RPNTProcessor`): It knows the sessions.
        rows (`Sequence[Mapping]`): Training rows, all sites.
    """
    step = max(1, round(STEP / processor.bin_size))
    model.set_token_map(step)
    weight = _weight(model).double().cpu().numpy()
    features, tokens = [], []
    for row, units, bins, roots in _site_bins(rows):
        embeddings = weight[list(processor.session_rows(row["session_id"]))][units]
        features.append(_features(model, row, bins))
        tokens.append(roots @ embeddings)
    x, y = np.concatenate(features), np.concatenate(tokens)
    fitted = Ridge(alpha=MAP_PENALTY * len(x)).fit(x, y)
    values = np.concatenate([fitted.coef_.T, fitted.intercept_[None]])
    assert model.token_map is not None
    model.token_map.copy_(torch.from_numpy(values))


def place_units(
    model: RPNTForMotorDecoding, processor: RPNTProcessor, rows: Sequence[Any], sessions: Iterable[str]
) -> None:
    """Gives units the embeddings whose tokens come nearest to those of the token map, in labelled bins.

    The penalty is that of the least leave-one-out error. A site without labelled bins keeps what it has.

    Args:
        model (`RPNTForMotorDecoding`): With a token map; its unit embedding is changed in place.
        processor (`RPNTProcessor`): It knows the sessions.
        rows (`Sequence[Mapping]`): Labelled training rows; those of other sessions are passed over.
        sessions (`Iterable[str]`): Sessions whose units are placed.
    """
    weight = _weight(model)
    for session_id in sessions:
        assert model.token_map is not None
        token_map = model.token_map.double().cpu().numpy()
        parts: dict[tuple[int, ...], tuple[list[Array], list[Array]]] = {}
        for row, units, bins, roots in _site_bins([row for row in rows if row["session_id"] == session_id]):
            found = parts.setdefault(tuple(units), ([], []))
            found[0].append(roots)
            found[1].append(_features(model, row, bins) @ token_map[:-1] + token_map[-1])
        for units_of_site, (roots_of_rows, tokens) in parts.items():
            x, y = np.concatenate(roots_of_rows), np.concatenate(tokens)
            embeddings = GAIN * RidgeCV(PENALTIES, fit_intercept=False).fit(x, y).coef_.T
            rows_of_units = np.array(processor.session_rows(session_id))[list(units_of_site)]
            weight[rows_of_units.tolist()] = torch.from_numpy(embeddings).to(weight)


def _site_bins(
    rows: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[Mapping[str, Any], NDArray[np.int64], NDArray[np.int64], Array]]:
    """Yields, for each row and site: its units, its labelled bins, and what units add to tokens there.

    Of more than `MAX_BINS` labelled bins, every second, every third and so on, counted through all rows.
    """
    parts = []
    for row in rows:
        scored, unit_sites = scored_bins(row), np.asarray(row["unit_sites"])
        for site, seen in enumerate(row_site_observed(row).T):
            parts.append((row, np.flatnonzero(unit_sites == site), np.flatnonzero(scored & seen)))
    stride = max(1, math.ceil(sum(len(bins) for _, _, bins in parts) / MAX_BINS))
    count = 0
    for row, units, labelled in parts:
        bins = labelled[-count % stride :: stride]
        count += len(labelled)
        if len(units) and len(bins):
            yield row, units, bins, np.sqrt(row_counts(row)[bins][:, units] / len(units))


def _weight(model: RPNTForMotorDecoding) -> torch.Tensor:
    embedding: Any = model.get_input_embeddings()
    return embedding.weight.detach()  # shares its memory


def _features(model: RPNTForMotorDecoding, row: Mapping[str, Any], bins: NDArray[np.int64]) -> Array:
    """Behaviour at the moments around some bins in standard deviations, (bins, moments * K).

    Bins before the first and after the last count as those; unknown behaviour as the mean.
    """
    centred = row_behavior(row).astype(np.float64) - np.array(model.config.label_mean)
    standard = np.nan_to_num(centred / np.array(model.config.label_std))
    moments = bins[:, None] + np.array(model.config.token_map_moments)
    return standard[moments.clip(0, len(standard) - 1)].reshape(len(bins), -1)
