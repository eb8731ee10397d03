"""The spatial stage at 2 to 64 sites: masks, order, coordinates, gradients, the contrast between sites."""

import numpy as np
import pytest
import torch
from transformers import AutoModel

from rpnt_hf import RPNTConfig, RPNTForMotorDecoding, RPNTForPreTraining, RPNTModel
from rpnt_hf.objectives import draw_masks, site_contrastive

BATCH, BINS, UNITS = 2, 6, 3
SITES = [2, 5, 16, 64]


def make_config(num_sites, **fields):
    preset = {"num_units": num_sites * UNITS, "num_spatial_layers": 2, "hidden_size": 32, "dropout": 0.0}
    return RPNTConfig.preset("tiny", **(preset | {"mrope_axes": axes()} | fields))


def axes(time=4):
    names = {"time": time, "site_x": 1, "site_y": 1, "site_z": 1}
    return [{"name": name, "num_pairs": pairs} for name, pairs in names.items()]


def make_inputs(num_sites):
    generator = torch.Generator().manual_seed(3)
    counts = torch.poisson(torch.ones(BATCH, num_sites, BINS, UNITS), generator=generator)
    return {
        "spike_counts": counts,
        "unit_ids": torch.arange(num_sites * UNITS).view(1, num_sites, UNITS).expand(BATCH, -1, -1),
        "unit_mask": torch.ones(BATCH, num_sites, UNITS, dtype=torch.bool),
        "bin_mask": torch.ones(BATCH, num_sites, BINS, dtype=torch.bool),
        "metadata": torch.randn(BATCH, num_sites, 3, generator=generator),
    }


def permuted(inputs, order):
    return {name: value[:, order] for name, value in inputs.items()}


@pytest.mark.parametrize("num_sites", SITES)
def test_an_absent_site_changes_nothing_at_the_others_whatever_it_holds(num_sites):
    model = RPNTModel(make_config(num_sites)).eval()
    inputs = make_inputs(num_sites)
    inputs["bin_mask"][:, 1] = False
    before = model(**inputs).last_hidden_state
    for name, value in {"spike_counts": 9.0, "metadata": 4.0}.items():
        inputs[name] = inputs[name].clone()
        inputs[name][:, 1] = value
    after = model(**inputs).last_hidden_state
    torch.testing.assert_close(after, before)
    assert not before[:, 1].any()


@pytest.mark.parametrize("num_sites", SITES)
def test_a_site_that_is_absent_could_as_well_not_be_in_the_batch(num_sites):
    model = RPNTModel(make_config(num_sites)).eval()
    inputs = make_inputs(num_sites)
    inputs["bin_mask"][:, -1] = False
    rest = permuted(inputs, list(range(num_sites - 1)))
    torch.testing.assert_close(
        model(**inputs).last_hidden_state[:, :-1], model(**rest).last_hidden_state, atol=1e-5, rtol=1e-5
    )


def test_a_site_absent_in_some_bins_is_seen_in_the_others_only():
    model = RPNTModel(make_config(3)).eval()
    inputs = make_inputs(3)
    inputs["bin_mask"][:, 1, :2] = False
    before = model(**inputs).last_hidden_state
    inputs["spike_counts"] = inputs["spike_counts"].clone()
    inputs["spike_counts"][:, 1, :2] = 7.0
    torch.testing.assert_close(model(**inputs).last_hidden_state, before)
    inputs["spike_counts"][:, 1, 2:] = 7.0
    changed = (model(**inputs).last_hidden_state - before).abs().amax(dim=(0, 3))
    assert (changed[0, :2] == 0).all() and (changed[0, 2:] > 1e-4).all()


@pytest.mark.parametrize("num_sites", SITES)
def test_sites_have_no_order(num_sites):
    model = RPNTModel(make_config(num_sites)).eval()
    inputs = make_inputs(num_sites)
    order = torch.randperm(num_sites, generator=torch.Generator().manual_seed(1)).tolist()
    torch.testing.assert_close(
        model(**permuted(inputs, order)).last_hidden_state,
        model(**inputs).last_hidden_state[:, order],
        atol=1e-5,
        rtol=1e-5,
    )


def test_predictions_of_behaviour_do_not_depend_on_the_order_of_sites():
    model = RPNTForMotorDecoding(make_config(5)).eval()
    inputs = make_inputs(5)
    order = [3, 1, 4, 0, 2]
    torch.testing.assert_close(
        model(**permuted(inputs, order)).predictions, model(**inputs).predictions, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("num_sites", SITES)
def test_what_one_site_predicts_draws_on_every_other_site(num_sites):
    model = RPNTForPreTraining(make_config(num_sites))
    inputs = make_inputs(num_sites)
    counts = inputs["spike_counts"] = inputs["spike_counts"].clone().add_(1.0).requires_grad_()
    (gradient,) = torch.autograd.grad(model(**inputs).log_rates[:, 0].square().sum(), counts)
    assert (gradient.abs().amax(dim=(0, 2, 3)) > 0).all()


@pytest.mark.parametrize("num_sites", SITES)
def test_the_loss_teaches_the_units_of_every_site(num_sites):
    model = RPNTForPreTraining(make_config(num_sites))
    inputs = make_inputs(num_sites)
    seeds = np.arange(BATCH)
    masks = draw_masks(
        seeds, inputs["bin_mask"].numpy(), inputs["unit_mask"].numpy(), site_mask_probability=0.3
    )
    labels = torch.arange(num_sites).expand(BATCH, -1)
    outputs = model(
        **inputs, masked_bins=torch.tensor(masks[0]), masked_units=torch.tensor(masks[1]), labels=labels
    )
    outputs.loss.backward()
    gradient = model.model.embeddings.unit_embedding.weight.grad.view(num_sites, -1)
    assert (gradient.abs().amax(dim=1) > 0).all()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.model.spatial_layers.parameters())


def test_without_a_spatial_stage_sites_see_nothing_of_each_other():
    model = RPNTForPreTraining(make_config(3, num_spatial_layers=0))
    inputs = make_inputs(3)
    counts = inputs["spike_counts"] = inputs["spike_counts"].clone().add_(1.0).requires_grad_()
    (gradient,) = torch.autograd.grad(model(**inputs).log_rates[:, 0].square().sum(), counts)
    assert gradient[:, 0].any() and not gradient[:, 1:].any()


@pytest.mark.parametrize("num_sites", SITES)
def test_hidden_sites_leave_at_least_one(num_sites):
    bin_mask = np.ones((50, num_sites, BINS), dtype=bool)
    unit_mask = np.ones((50, num_sites, UNITS), dtype=bool)
    masked, _ = draw_masks(np.arange(50), bin_mask, unit_mask, site_mask_probability=1.0)
    assert (masked.all(axis=2).sum(axis=1) == num_sites - 1).all()


@pytest.mark.parametrize("num_sites", SITES)
def test_the_contrast_is_small_where_sites_are_told_apart_and_chance_where_they_are_not(num_sites):
    identities = torch.arange(num_sites).repeat(4)
    apart = torch.eye(num_sites)[identities]
    # Of 4 N - 1 others, 3 are positives, all equally near; elsewhere similarity is 0 against 10.
    expected = np.log(3 + 4 * (num_sites - 1) * np.exp(-10))
    assert site_contrastive(apart, identities, 0.1).item() == pytest.approx(expected, abs=1e-4)
    same = torch.ones(4 * num_sites, 8)
    assert site_contrastive(same, identities, 0.1).item() == pytest.approx(
        np.log(4 * num_sites - 1), abs=1e-4
    )


def test_displacements_matter_to_the_spatial_stage_and_common_shifts_do_not():
    model = RPNTModel(make_config(4, num_anchors=0)).eval()
    inputs = make_inputs(4)
    before = model(**inputs).last_hidden_state
    shifted = {**inputs, "metadata": inputs["metadata"] + torch.tensor([1.0, -2.0, 0.5])}
    torch.testing.assert_close(model(**shifted).last_hidden_state, before, atol=1e-4, rtol=1e-4)
    moved = {**inputs, "metadata": inputs["metadata"].clone()}
    moved["metadata"][:, 0] += 1.0
    assert (model(**moved).last_hidden_state - before).abs().max() > 1e-4


def test_the_preset_has_a_spatial_stage_and_loads_from_a_folder_of_its_name(tmp_path, monkeypatch):
    config = RPNTConfig.preset("rpnt-neuropixel", num_units=12)
    assert (config.num_spatial_layers, config.hidden_size, config.num_attention_heads) == (2, 384, 12)
    small = RPNTConfig.preset(
        "rpnt-neuropixel", num_units=12, hidden_size=48, intermediate_size=64, num_attention_heads=2,
        num_hidden_layers=1, mrope_axes=axes(time=6),
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    model = RPNTForPreTraining(small).eval()
    model.save_pretrained("rpnt-neuropixel")
    loaded = AutoModel.from_pretrained("rpnt-neuropixel").eval()
    assert isinstance(loaded, RPNTModel) and len(loaded.spatial_layers) == 2
    counts = torch.ones(1, 4, BINS, UNITS)
    torch.testing.assert_close(
        loaded(counts).last_hidden_state, model.model(counts).last_hidden_state, atol=0, rtol=0
    )
