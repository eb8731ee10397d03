"""What may influence an output: nothing later, nothing hidden, nothing out of reach, no padding."""

import pytest
import torch

from rpnt_hf import RPNTConfig, RPNTForMotorDecoding, RPNTForPreTraining, RPNTModel

SWITCHES = {
    "default": {},
    "no stem": {"stem_kernel": 1},
    "recurrent stem": {"stem_kernel": 1, "recurrent_stem": True},
    "both stems": {"recurrent_stem": True, "layer_scale": 0.5},
    "no kernels": {"context_attention": {"enabled": False}},
    "wide kernels": {"context_attention": {"kernel_size": (5, 4), "context_size": 8}},
    "no anchors": {"num_anchors": 0, "position_encoding": "rope"},
    "window": {"attention_window": 5},
    "spatial": {"num_spatial_layers": 2},
    "spatial without anchors": {"num_spatial_layers": 1, "num_anchors": 0},
    "slots": {"unit_embedding": "slots"},
    "rope": {"position_encoding": "rope"},
    "learned": {"position_encoding": "learned"},
    "sinusoidal": {"position_encoding": "sinusoidal"},
    "no positions": {"position_encoding": "none"},
    "variance": {"predict_variance": True},
    "eager": {"attn_implementation": "eager"},
    "learned window": {"position_encoding": "learned", "attention_window": 4},
}
BINS, UNITS = 24, 5


def make(cls, **overrides):
    settings = {"num_units": 3 * UNITS, "attention_window": None, "initializer_range": 0.2, **overrides}
    return cls(RPNTConfig.preset("tiny", **settings)).eval()


def make_counts(sites=2):
    return torch.poisson(torch.ones(2, sites, BINS, UNITS))


@torch.no_grad()
def outputs_of(model, **inputs):
    outputs = model(**inputs)
    return outputs.predictions if isinstance(model, RPNTForMotorDecoding) else outputs.log_rates


@pytest.mark.parametrize("cls", [RPNTForMotorDecoding, RPNTForPreTraining])
@pytest.mark.parametrize("switch", SWITCHES)
def test_changing_later_bins_leaves_every_earlier_output_unchanged(switch, cls):
    model, counts = make(cls, **SWITCHES[switch]), make_counts()
    bin_mask = torch.ones(2, 2, BINS, dtype=torch.bool)
    bin_mask[1, 0, 3:6] = False
    before = outputs_of(model, spike_counts=counts, bin_mask=bin_mask)
    time = 1 if cls is RPNTForMotorDecoding else 2
    for t in (1, 9, BINS - 1):
        changed, changed_mask = counts.clone(), bin_mask.clone()
        changed[:, :, t:] = torch.poisson(4 * torch.ones_like(counts[:, :, t:]))
        changed_mask[0, 1, t + 1 :] = False
        after = outputs_of(model, spike_counts=changed, bin_mask=changed_mask)
        earlier_before, earlier_after = (x.narrow(time, 0, t) for x in (before, after))
        torch.testing.assert_close(earlier_after, earlier_before, atol=1e-6, rtol=1e-6)
        assert (after.narrow(time, t, 1) - before.narrow(time, t, 1)).abs().max() > 1e-4


def test_changing_later_masks_leaves_earlier_rates_unchanged():
    model, counts = make(RPNTForPreTraining), make_counts()
    masked = torch.zeros(2, 2, BINS, dtype=torch.bool)
    later = masked.clone()
    later[:, :, 10:] = True
    before, after = (outputs_of(model, spike_counts=counts, masked_bins=m) for m in (masked, later))
    torch.testing.assert_close(before[:, :, :10], after[:, :, :10], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "overrides",
    [
        {"attention_window": 3},
        {"attention_window": 1},
        {"attention_window": 3, "stem_kernel": 1},
        {"attention_window": 2, "context_attention": {"kernel_size": (5, 2), "context_size": 8}},
        {"attention_window": 4, "context_attention": {"enabled": False}},
        {"attention_window": 3, "num_spatial_layers": 1},
    ],
    ids=str,
)
def test_a_bin_beyond_the_stated_reach_changes_nothing_and_one_within_does(overrides):
    model = make(RPNTForMotorDecoding, **overrides).double()
    reach, last = model.config.reach, BINS - 1
    counts = make_counts().double()
    assert reach < last
    before = outputs_of(model, spike_counts=counts)
    beyond, within = counts.clone(), counts.clone()
    beyond[:, :, : last - reach] += 3
    within[:, :, last - reach] += 3
    unchanged = outputs_of(model, spike_counts=beyond)[:, last]
    torch.testing.assert_close(unchanged, before[:, last], atol=1e-12, rtol=0)
    assert (outputs_of(model, spike_counts=within)[:, last] - before[:, last]).abs().max() > 1e-12


@pytest.mark.parametrize("switch", SWITCHES)
def test_hidden_counts_cannot_influence_any_prediction(switch):
    model, counts = make(RPNTForPreTraining, **SWITCHES[switch]), make_counts()
    masked_bins = torch.rand(2, 2, BINS) < 0.4
    masked_units = torch.rand(2, 2, UNITS) < 0.4
    hidden = masked_bins[..., None] | masked_units[:, :, None]
    changed = torch.where(hidden, torch.poisson(6 * torch.ones_like(counts)), counts)
    masks = {"masked_bins": masked_bins, "masked_units": masked_units}
    before = outputs_of(model, spike_counts=counts, **masks)
    after = outputs_of(model, spike_counts=changed, **masks)
    torch.testing.assert_close(before, after, atol=0, rtol=0)
    visible = counts + (~hidden).float()
    assert (outputs_of(model, spike_counts=visible, **masks) - before).abs().max() > 1e-4


@pytest.mark.parametrize("switch", SWITCHES)
def test_padding_units_bins_or_sites_does_not_change_real_outputs(switch):
    model, counts = make(RPNTForMotorDecoding, **SWITCHES[switch]), make_counts()
    unit_ids = torch.arange(UNITS).expand(2, 2, UNITS).clone()
    unit_mask = torch.ones(2, 2, UNITS, dtype=torch.bool)
    bin_mask = torch.ones(2, 2, BINS, dtype=torch.bool)
    metadata = torch.rand(2, 2, 6)
    before = outputs_of(
        model,
        spike_counts=counts,
        unit_ids=unit_ids,
        unit_mask=unit_mask,
        bin_mask=bin_mask,
        metadata=metadata,
    )

    def pad(tensor, dim, count, value):
        shape = list(tensor.shape)
        shape[dim] = count
        return torch.cat([tensor, torch.full(shape, value, dtype=tensor.dtype)], dim=dim)

    padded = {
        "spike_counts": pad(pad(pad(counts, 3, 2, 7.0), 2, 3, 7.0), 1, 1, 7.0),
        "unit_ids": pad(pad(unit_ids, 2, 2, 0), 1, 1, 0),
        "unit_mask": pad(pad(unit_mask, 2, 2, False), 1, 1, True),
        "bin_mask": pad(pad(bin_mask, 2, 3, False), 1, 1, False),
        "metadata": pad(metadata, 1, 1, 5.0),
    }
    after = outputs_of(model, **padded)[:, :BINS]
    torch.testing.assert_close(after, before, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("switch", SWITCHES)
def test_bins_before_the_recording_change_nothing(switch):
    model, counts = make(RPNTForMotorDecoding, **SWITCHES[switch]), make_counts()
    before = outputs_of(model, spike_counts=counts)
    earlier = torch.poisson(5 * torch.ones(2, 2, 4, UNITS))
    bin_mask = torch.cat([torch.zeros(2, 2, 4), torch.ones(2, 2, BINS)], dim=2).bool()
    after = outputs_of(model, spike_counts=torch.cat([earlier, counts], dim=2), bin_mask=bin_mask)
    torch.testing.assert_close(after[:, 4:], before, atol=5e-6, rtol=1e-5)


def test_permuting_units_with_their_ids_changes_nothing():
    model, counts = make(RPNTForPreTraining), make_counts()
    unit_ids = torch.randperm(3 * UNITS)[: 2 * UNITS].view(1, 2, UNITS).expand(2, -1, -1)
    order = torch.randperm(UNITS)
    before = outputs_of(model, spike_counts=counts, unit_ids=unit_ids)
    after = outputs_of(model, spike_counts=counts[..., order], unit_ids=unit_ids[..., order])
    torch.testing.assert_close(after, before[..., order], atol=1e-5, rtol=1e-5)


def test_windows_of_a_batch_do_not_see_each_other():
    model, counts = make(RPNTForMotorDecoding, num_spatial_layers=1), make_counts()
    both = outputs_of(model, spike_counts=counts)
    alone = outputs_of(model, spike_counts=counts[1:])
    torch.testing.assert_close(both[1:], alone, atol=1e-6, rtol=1e-5)


def test_an_absent_site_gives_zeros_and_no_nan():
    model = make(RPNTModel, num_spatial_layers=1, num_anchors=0)
    bin_mask = torch.zeros(2, 2, BINS, dtype=torch.bool)
    bin_mask[0, 0] = True
    states = model(make_counts(), bin_mask=bin_mask).last_hidden_state
    assert torch.isfinite(states).all()
    assert (states[1] == 0).all() and (states[0, 1] == 0).all()
    assert states[0, 0].abs().max() > 0
