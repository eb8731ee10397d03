"""Masks and losses, each against a plain loop or a value worked out by hand."""

import math

import numpy as np
import pytest
import torch

from rpnt_hf.errors import ConfigurationError
from rpnt_hf.objectives import behavior_loss, draw_masks, poisson_nll, site_contrastive, variance_loss


def draw(seeds, sites, bins, units, **options):
    """Masks of windows without padding."""
    shape = (len(seeds), sites)
    return draw_masks(
        np.asarray(seeds), np.ones((*shape, bins), bool), np.ones((*shape, units), bool), **options
    )


def test_three_quarters_of_entries_are_hidden_on_average():
    bins, units = draw(np.arange(4000), 1, 50, 40)
    hidden = (bins[..., None] | units[:, :, None]).mean(axis=(1, 2, 3))
    assert abs(hidden.mean() - 0.75) < 0.01
    assert hidden.std() > 0.15


def test_the_asked_number_of_bins_and_units_stays_visible():
    bins, units = draw(np.arange(300), 3, 10, 6, min_visible_bins=4, min_visible_units=2)
    assert (~bins).sum(2).min() == 4 and (~units).sum(2).min() == 2


def test_a_single_bin_or_unit_is_never_hidden():
    bins, units = draw(np.arange(50), 1, 1, 1)
    assert not bins.any() and not units.any()


def test_the_number_hidden_is_the_drawn_share_of_those_that_are_there():
    """Every share from 0.01 to 0.99 of 100 is met equally often, and each bin is hidden equally often."""
    bins, units = draw(np.arange(20_000), 1, 100, 100)
    for masked in (bins[:, 0], units[:, 0]):
        share = masked.mean(axis=1)
        assert share.min() == 0.01 and share.max() == 0.99
        assert abs(share.mean() - 0.5) < 0.01 and abs(share.std() - 0.98 / math.sqrt(12)) < 0.005
        np.testing.assert_allclose(masked.mean(axis=0), 0.5, atol=0.02)
    assert abs(np.corrcoef(bins.mean(axis=(1, 2)), units.mean(axis=(1, 2)))[0, 1]) < 0.03


def test_padding_is_never_hidden_and_changes_no_mask():
    seeds, bin_mask, unit_mask = np.arange(200), np.zeros((200, 3, 15), bool), np.zeros((200, 3, 9), bool)
    bin_mask[:, :2, :10], unit_mask[:, :2, :6] = True, True
    options = {"site_mask_probability": 0.3, "min_visible_units": 2}
    bins, units = draw_masks(seeds, bin_mask, unit_mask, **options)
    small_bins, small_units = draw(seeds, 2, 10, 6, **options)
    assert (bins[:, :2, :10] == small_bins).all() and (units[:, :2, :6] == small_units).all()
    assert not (bins & ~bin_mask).any() and not (units & ~unit_mask).any()


def test_whole_sites_are_hidden_at_the_asked_rate_and_one_always_stays():
    whole = draw(np.arange(3000), 4, 20, 5, site_mask_probability=0.3)[0].all(2)
    assert abs(whole.mean() - 0.3) < 0.02
    whole = draw(np.arange(50), 4, 20, 5, site_mask_probability=1.0)[0].all(2)
    assert (whole.sum(1) == 3).all() and len(np.unique(whole, axis=0)) == 4
    assert not draw([1], 1, 20, 5, site_mask_probability=1.0)[0].all()


def test_windows_hide_the_same_bins_at_all_sites_at_the_asked_rate():
    bins, units = draw(np.arange(2000), 3, 20, 8, same_bins_probability=0.4)
    alike = (bins == bins[:, :1]).all((1, 2))
    assert abs(alike.mean() - 0.4) < 0.04
    assert (units == units[:, :1]).all((1, 2)).mean() < 0.1
    free = draw(np.arange(2000), 3, 20, 8)[0]
    assert (bins[~alike] == free[~alike]).all() and (bins[:, 0] == free[:, 0]).all()


def test_no_more_units_are_hidden_than_asked():
    assert draw(np.arange(500), 2, 20, 100)[1].mean(2).max() > 0.9
    assert 0.35 < draw(np.arange(500), 2, 20, 100, max_unit_ratio=0.4)[1].mean(2).max() <= 0.4


def test_masks_repeat_with_their_seed_whatever_else_is_in_the_batch():
    bins, units = draw([5, 6, 5], 2, 30, 7)
    alone_bins, alone_units = draw([5], 2, 30, 7)
    for i in (0, 2):
        assert (bins[i] == alone_bins[0]).all() and (units[i] == alone_units[0]).all()
    assert (bins[1] != bins[0]).any()


@pytest.mark.parametrize(
    "kwargs", [{"site_mask_probability": 1.5}, {"min_visible_bins": -1}, {"max_unit_ratio": 1.0}]
)
def test_impossible_masks_are_refused(kwargs):
    with pytest.raises(ConfigurationError, match=r"max_unit_ratio|site_mask_probability"):
        draw([0], 1, 10, 10, **kwargs)


def test_poisson_loss_counts_hidden_entries_only():
    log_rates = torch.randn(2, 1, 3, 4)
    counts = torch.poisson(torch.ones(2, 1, 3, 4))
    scored = torch.rand(2, 1, 3, 4) < 0.5
    terms = [
        math.exp(log_rates[i]) - counts[i].item() * log_rates[i].item()
        for i in np.ndindex(*counts.shape)
        if scored[i]
    ]
    torch.testing.assert_close(poisson_nll(log_rates, counts, scored), torch.tensor(np.mean(terms)).float())
    assert poisson_nll(log_rates, counts, torch.zeros_like(scored)) == 0


def contrastive_by_loops(embeddings, identities, temperature):
    z = [e / e.norm() for e in embeddings]
    losses = []
    for p, identity in enumerate(identities):
        positives = [q for q in range(len(z)) if q != p and identities[q] == identity and identity != -100]
        if positives:
            others = [r for r in range(len(z)) if r != p and identities[r] != -100]
            total = sum(math.exp(float(z[p] @ z[r]) / temperature) for r in others)
            losses.append(
                -np.mean([math.log(math.exp(float(z[p] @ z[q]) / temperature) / total) for q in positives])
            )
    return np.mean(losses) if losses else 0.0


def test_site_contrast_equals_its_definition_written_as_loops():
    embeddings = torch.randn(9, 5, dtype=torch.float64)
    identities = torch.tensor([0, 1, 0, 2, 1, 0, -100, 3, -100])
    expected = contrastive_by_loops(embeddings, identities.tolist(), 0.3)
    assert abs(site_contrastive(embeddings, identities, 0.3).item() - expected) < 1e-6


def test_site_contrast_without_any_positive_is_zero_with_zero_gradient():
    embeddings = torch.randn(3, 4, requires_grad=True)
    loss = site_contrastive(embeddings, torch.tensor([0, 1, 2]), 0.1)
    loss.backward()
    assert loss == 0 and torch.equal(embeddings.grad, torch.zeros(3, 4))


def test_behavior_loss_is_in_units_of_the_standard_deviation_and_skips_unscored_bins():
    labels = torch.tensor([[[1.0, 10.0], [math.nan, math.nan], [3.0, math.nan]]])
    predictions = torch.zeros(1, 3, 2, requires_grad=True)
    scored = torch.tensor([[True, False, True]])
    loss = behavior_loss(predictions, labels, scored, torch.tensor([2.0, 5.0]))
    assert loss.item() == pytest.approx(((1 / 2) ** 2 + (10 / 5) ** 2 + (3 / 2) ** 2) / 3)
    loss.backward()
    assert torch.isfinite(predictions.grad).all() and (predictions.grad[0, 1] == 0).all()


def test_variance_loss_is_least_at_the_true_variance():
    labels = torch.randn(1, 20_000, 1) * 3.0
    scored = torch.ones(1, 20_000, dtype=torch.bool)
    losses = {
        std: variance_loss(
            torch.zeros_like(labels),
            labels,
            scored,
            torch.tensor([7.0]),
            torch.full_like(labels, 2 * math.log(std)),
        ).item()
        for std in (2.0, 2.7, 3.0, 3.3, 4.0)
    }
    assert min(losses, key=losses.get) == 3.0


def test_predictions_learn_nothing_from_variances():
    labels, scored = torch.randn(1, 50, 2), torch.ones(1, 50, dtype=torch.bool)
    predictions = torch.zeros(1, 50, 2, requires_grad=True)
    log_variances = torch.randn(1, 50, 2, requires_grad=True)
    variance_loss(predictions, labels, scored, torch.ones(2), log_variances).backward()
    assert predictions.grad is None and log_variances.grad.abs().max() > 0
