"""Masks and losses, each against a plain loop or a value worked out by hand."""

import math

import numpy as np
import pytest
import torch

from rpnt_hf.errors import ConfigurationError
from rpnt_hf.objectives import behavior_loss, draw_masks, poisson_nll, site_contrastive


def test_three_quarters_of_entries_are_hidden_on_average():
    generator = np.random.default_rng(0)
    hidden = []
    for _ in range(4000):
        bins, units = draw_masks(generator, 1, 50, 40)
        hidden.append((bins[0][:, None] | units[0][None]).mean())
    assert abs(np.mean(hidden) - 0.75) < 0.01
    assert np.std(hidden) > 0.15


def test_the_asked_number_of_bins_and_units_stays_visible():
    generator = np.random.default_rng(0)
    for _ in range(300):
        bins, units = draw_masks(generator, 3, 10, 6, min_visible_bins=4, min_visible_units=2)
        assert (~bins).sum(1).min() >= 4 and (~units).sum(1).min() >= 2


def test_a_single_bin_or_unit_is_never_hidden():
    for seed in range(50):
        bins, units = draw_masks(np.random.default_rng(seed), 1, 1, 1)
        assert not bins.any() and not units.any()


def test_whole_sites_are_hidden_at_the_asked_rate_and_one_always_stays():
    generator = np.random.default_rng(1)
    whole = np.array(
        [draw_masks(generator, 4, 20, 5, site_mask_probability=0.3)[0].all(1) for _ in range(3000)]
    )
    assert abs(whole.mean() - 0.3) < 0.02
    whole = np.array(
        [draw_masks(generator, 4, 20, 5, site_mask_probability=1.0)[0].all(1) for _ in range(50)]
    )
    assert (whole.sum(1) == 3).all()
    assert not draw_masks(generator, 1, 20, 5, site_mask_probability=1.0)[0].all()


def test_masks_repeat_with_their_seed():
    first, again, other = (draw_masks(np.random.default_rng(s), 2, 30, 7) for s in (5, 5, 6))
    assert (first[0] == again[0]).all() and (first[1] == again[1]).all()
    assert (first[0] != other[0]).any()


@pytest.mark.parametrize("kwargs", [{"site_mask_probability": 1.5}, {"min_visible_bins": -1}])
def test_impossible_masks_are_refused(kwargs):
    with pytest.raises(ConfigurationError, match="site_mask_probability"):
        draw_masks(np.random.default_rng(0), 1, 10, 10, **kwargs)


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
        std: behavior_loss(
            torch.zeros_like(labels),
            labels,
            scored,
            torch.tensor([7.0]),
            torch.full_like(labels, 2 * math.log(std)),
        ).item()
        for std in (2.0, 2.7, 3.0, 3.3, 4.0)
    }
    assert min(losses, key=losses.get) == 3.0


def test_predictions_learn_the_same_with_and_without_variances():
    labels, scored = torch.randn(1, 50, 2), torch.ones(1, 50, dtype=torch.bool)
    gradients = []
    for log_variances in (None, torch.randn(1, 50, 2)):
        predictions = torch.zeros(1, 50, 2, requires_grad=True)
        behavior_loss(predictions, labels, scored, torch.ones(2), log_variances).backward()
        gradients.append(predictions.grad)
    torch.testing.assert_close(*gradients)
