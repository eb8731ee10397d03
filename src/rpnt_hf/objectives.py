"""What RPNT is trained on: masks, reconstruction of hidden counts, site contrast, behaviour (DESIGN 2.5).

Losses are sums divided by counts over all processes, so that two processes with half a batch each equal one
with all of it. Not here: the bits-per-spike score, which is in `metrics.py`.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.nn import functional as F

from .errors import ConfigurationError
from .random_rpnt import random_bits, uniforms


def draw_masks(
    seeds: np.ndarray,
    bin_mask: np.ndarray,
    unit_mask: np.ndarray,
    *,
    min_visible_bins: int = 1,
    min_visible_units: int = 1,
    site_mask_probability: float = 0.0,
    same_bins_probability: float = 0.0,
    max_unit_ratio: float = 0.99,
) -> tuple[np.ndarray, np.ndarray]:
    """Draws which bins and units of each window are hidden, for each site (DESIGN 2.5).

    A bin ratio and a unit ratio are uniform in [0.01, 0.99]; an entry is hidden where its bin or its unit is.
    The paper's multi-site loss feeds unmasked counts and scores visible ones; here hidden counts never reach
    the input. A window's masks depend on its own seed and shape, never on padding or on other windows.

    Args:
        seeds (`np.ndarray` of shape `(batch,)`, int64): Seed of each window.
        bin_mask (`np.ndarray` of shape `(batch, sites, bins)`, bool): True where a bin was recorded.
        unit_mask (`np.ndarray` of shape `(batch, sites, units)`, bool): True where there is a unit.
        min_visible_bins (`int`, *optional*, defaults to 1): Bins of a site that stay visible, as far as there
            are so many.
        min_visible_units (`int`, *optional*, defaults to 1): Units that stay visible likewise.
        site_mask_probability (`float`, *optional*, defaults to 0.0):
            Probability in [0, 1] that all bins of a site are hidden; at least one site stays.
        same_bins_probability (`float`, *optional*, defaults to 0.0):
            Probability in [0, 1] that a window hides the same bins at all sites: only the past is left to
            tell of them, not what other sites do at the same time.
        max_unit_ratio (`float`, *optional*, defaults to 0.99): Highest unit ratio, in [0.01, 0.99].

    Returns:
        `tuple`: `masked_bins` and `masked_units`, of the shapes of `bin_mask` and `unit_mask`, boolean, True
        = hidden and scored.

    Raises:
        ConfigurationError: A probability is outside [0, 1], a minimum is below 0, or the highest ratio is out
            of range.

    Example:
        ```python
        >>> bin_mask, unit_mask = np.ones((2, 1, 20), bool), np.ones((2, 1, 10), bool)
        >>> masked_bins, masked_units = draw_masks(np.array([3, 4]), bin_mask, unit_mask)
        >>> masked_bins.shape, masked_units.shape
        ((2, 1, 20), (2, 1, 10))
        ```
    """
    probabilities = (site_mask_probability, same_bins_probability)
    if not all(0 <= one <= 1 for one in probabilities) or min_visible_bins < 0 or min_visible_units < 0:
        raise ConfigurationError(
            "`site_mask_probability` and `same_bins_probability` must lie in [0, 1] and the visible minima "
            f"be 0 or more, got {site_mask_probability}, {same_bins_probability}, {min_visible_bins}, "
            f"{min_visible_units}."
        )
    if not 0.01 <= max_unit_ratio <= 0.99:
        raise ConfigurationError(f"`max_unit_ratio` must lie in [0.01, 0.99], got {max_unit_ratio}.")
    sites = np.arange(bin_mask.shape[1])
    same = uniforms(seeds[:, None], "same bins", np.zeros(1, int)) < same_bins_probability  # (batch, 1)

    def hide(
        purpose: str, present: np.ndarray, min_visible: int, alike: np.ndarray, max_ratio: float
    ) -> np.ndarray:
        ratio = 0.01 + (max_ratio - 0.01) * uniforms(seeds[:, None], f"{purpose} ratio", sites)
        ratio = np.where(alike, ratio[:, :1], ratio)
        count = present.sum(axis=2)
        num_hidden = np.minimum(np.rint(ratio * count).astype(int), np.maximum(count - min_visible, 0))
        places = (sites[:, None] << 32) + np.arange(present.shape[2])
        keys = random_bits(seeds[:, None, None], purpose, places) >> np.uint64(1)
        keys = np.where(alike[..., None], keys[:, :1], keys)
        keys = np.where(present, keys, np.uint64(2**64 - 1))
        last = np.maximum(num_hidden - 1, 0)[..., None]
        highest = np.take_along_axis(np.sort(keys, axis=2), last, axis=2)
        return present & (keys <= highest) & (num_hidden > 0)[..., None]

    masked_bins = hide("masked bins", bin_mask, min_visible_bins, same, 0.99)
    masked_units = hide("masked units", unit_mask, min_visible_units, np.zeros_like(same), max_unit_ratio)
    if site_mask_probability:
        recorded = bin_mask.any(axis=2)
        draws = np.where(recorded, uniforms(seeds[:, None], "masked sites", sites), -1.0)
        hidden = (draws < site_mask_probability) & (draws < draws.max(axis=1, keepdims=True))
        masked_bins |= hidden[..., None] & bin_mask
    return masked_bins, masked_units


class _Gathered(torch.autograd.Function):
    """Rows of all processes; each gets back the gradient that all of them have for its own rows.

    Processes must bring the same number of rows.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        own = own.contiguous()
        parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, own)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total.chunk(distributed.get_world_size())[distributed.get_rank()]


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def mean_over_processes(total: Tensor, count: Tensor) -> Tensor:
    """Divides a local sum by the global count, so that gradients averaged over processes are the global ones.

    Args:
        total (`torch.FloatTensor` of shape `()`): Sum of the local terms.
        count (`torch.Tensor` of shape `()`): Number of local terms.

    Returns:
        `torch.FloatTensor` of shape `()`: `total / count` on one process; 0 where there is no term at all.
    """
    count = count.to(total.dtype)
    if _is_distributed():
        count = count.detach().clone()
        distributed.all_reduce(count)
        count = count / distributed.get_world_size()
    return total / count.clamp_min(torch.finfo(total.dtype).tiny)


def poisson_nll(log_rates: Tensor, spike_counts: Tensor, scored: Tensor) -> Tensor:
    """Poisson negative log-likelihood of hidden counts, averaged per scored entry.

    DESIGN 2.5; reconstruction loss of arXiv:2601.17641 without the `log(y!)` constant: `exp(r) - y * r`.

    Args:
        log_rates (`torch.FloatTensor` of shape `(batch, sites, bins, units)`): Log of the expected count per
            bin.
        spike_counts (`torch.Tensor` of the same shape): Observed counts per bin, 0 or more.
        scored (`torch.BoolTensor` of the same shape): True where the count was hidden from the model.

    Returns:
        `torch.FloatTensor` of shape `()`: Nats per scored entry, 0 where nothing is scored.

    Example:
        ```python
        >>> y = torch.ones(1, 1, 2, 1); poisson_nll(torch.zeros(1, 1, 2, 1), y, y.bool())
        tensor(1.)
        ```
    """
    # Rates that are not scored must not reach `exp`: where it overflows, 0 times its gradient is NaN.
    log_rates = torch.where(scored, log_rates.float(), 0.0)
    nll = torch.where(scored, log_rates.exp() - spike_counts * log_rates, 0.0)
    return mean_over_processes(nll.sum(), scored.sum())


def site_contrastive(embeddings: Tensor, identities: Tensor, temperature: float) -> Tensor:
    """Contrasts windows of one site with windows of the others (DESIGN 2.5; arXiv:2601.17641).

    For each embedding, minus the mean over its positives (other windows of its site) of
    `log(exp(z_p . z_q / temperature) / sum_{r != p} exp(z_p . z_r / temperature))`. The official code
    averages embeddings over the batch first, which leaves each site itself as its only positive.

    Args:
        embeddings (`torch.FloatTensor` of shape `(items, size)`): One per window and site, any length.
        identities (`torch.LongTensor` of shape `(items,)`): Equal for windows of one site, -100 to leave one
            out.
        temperature (`float`): Above 0.

    Returns:
        `torch.FloatTensor` of shape `()`: Mean over the items of all processes that have a positive, else 0.

    Example:
        ```python
        >>> z = torch.eye(2).repeat(2, 1)
        >>> bool(site_contrastive(z, torch.tensor([0, 1, 0, 1]), 0.1) < 0.01)
        True
        ```
    """
    own = F.normalize(embeddings.float(), dim=-1)
    everyone, everyone_identities, first = own, identities, 0
    if _is_distributed():
        # Processes may bring different numbers of items (a last batch, more sites): -100 leaves padding out.
        most = torch.tensor(len(own), device=own.device)
        distributed.all_reduce(most, op=distributed.ReduceOp.MAX)
        missing = int(most) - len(own)
        own, identities = F.pad(own, (0, 0, 0, missing)), F.pad(identities, (0, missing), value=-100)
        everyone, everyone_identities = _Gathered.apply(own), _Gathered.apply(identities)
        first = distributed.get_rank() * len(own)
    rows = torch.arange(len(own), device=own.device)
    itself = rows[:, None] + first == torch.arange(len(everyone), device=own.device)[None]
    valid = everyone_identities != -100
    excluded = itself | ~valid[None]
    positive = (identities[:, None] == everyone_identities[None]) & ~excluded
    log_shares = (own @ everyone.T / temperature).masked_fill(excluded, -1e9).log_softmax(dim=-1)
    num_positives = positive.sum(dim=-1)
    has_positive = (num_positives > 0) & (identities != -100)
    per_item = -torch.where(positive, log_shares, 0.0).sum(dim=-1) / num_positives.clamp_min(1)
    return mean_over_processes(torch.where(has_positive, per_item, 0.0).sum(), has_positive.sum())


def behavior_loss(predictions: Tensor, labels: Tensor, scored: Tensor, scale: Tensor) -> Tensor:
    """Squared error in units of the s.d., per scored bin and target.

    Args:
        predictions (`torch.FloatTensor` of shape `(batch, bins, targets)`): In physical units.
        labels (`torch.FloatTensor` of the same shape): Likewise; may be NaN where not scored.
        scored (`torch.BoolTensor` of shape `(batch, bins)`): True where a bin counts.
        scale (`torch.FloatTensor` of shape `(targets,)`): Standard deviation of each target.

    Returns:
        `torch.FloatTensor` of shape `()`: Loss.
    """
    scored = (scored[..., None] & torch.isfinite(labels)).expand_as(predictions)
    loss = _squared_errors(predictions, labels, scored, scale)
    return mean_over_processes(torch.where(scored, loss, 0.0).sum(), scored.sum())


def variance_loss(
    predictions: Tensor, labels: Tensor, scored: Tensor, scale: Tensor, log_variances: Tensor
) -> Tensor:
    """Gaussian negative log-likelihood of predicted variances, without its constant.

    The predictions learn nothing from it: a likelihood lets them off where the variance is large (Seitzer et
    al. 2022, arXiv:2203.09168), so they learn from the squared error alone.

    Args:
        predictions (`torch.FloatTensor` of shape `(batch, bins, targets)`): In physical units.
        labels (`torch.FloatTensor` of the same shape): Likewise; may be NaN where not scored.
        scored (`torch.BoolTensor` of shape `(batch, bins)`): True where a bin counts.
        scale (`torch.FloatTensor` of shape `(targets,)`): Standard deviation of each target.
        log_variances (`torch.FloatTensor` of the shape of `predictions`):
            Log of the predicted variance in squared physical units.

    Returns:
        `torch.FloatTensor` of shape `()`: Nats per scored bin and target.
    """
    scored = (scored[..., None] & torch.isfinite(labels)).expand_as(predictions)
    errors = _squared_errors(predictions.detach(), labels, scored, scale)
    log_variances = torch.where(scored, log_variances.float() - 2 * scale.log(), 0.0)
    loss = 0.5 * (errors * torch.exp(-log_variances) + log_variances)
    return mean_over_processes(torch.where(scored, loss, 0.0).sum(), scored.sum())


def _squared_errors(predictions: Tensor, labels: Tensor, scored: Tensor, scale: Tensor) -> Tensor:
    errors = torch.where(scored, predictions.float(), 0.0) - torch.where(scored, labels, 0.0).float()
    return (errors / scale).square()


__all__ = [
    "behavior_loss", "draw_masks", "mean_over_processes", "poisson_nll", "site_contrastive", "variance_loss",
]  # fmt: skip
