"""No session is so silent, small, long or loud that a loss or a gradient is no finite number."""

import itertools

import numpy as np
import pytest
import torch
from test_configuration import CHANGES

from rpnt_hf import RPNTConfig, RPNTForMotorDecoding, RPNTForPreTraining
from rpnt_hf.data.loading import label_statistics
from rpnt_hf.errors import DatasetError
from rpnt_hf.objectives import behavior_loss, poisson_nll, variance_loss

B, S, T, N = 4, 2, 7, 4
BASE = {
    "max_bins": {"position_encoding": "learned"},
    "hidden_size": {"mrope_axes": None},
    "num_attention_heads": {"mrope_axes": None},
}
SWITCHES = {
    "as it is": {},
    "dropout": {"dropout": 0.3},
    **{name: {**BASE.get(name, {}), name: value} for name, value in CHANGES.items()},
    "two spatial layers": {"num_spatial_layers": 2},
    "learned and windowed": {"position_encoding": "learned", "attention_window": 3, "max_bins": 7},
    "sinusoidal": {"position_encoding": "sinusoidal"},
    "no anchors": {"num_anchors": 0, "mrope_axes": None, "position_encoding": "rope"},
    "window of one": {"attention_window": 1},
}


def batch_of(bins=T, windows=B, sites=S, units=N, mean_count=1.0, seed=0):
    """Counts, masks, metadata and labels without anything special."""
    generator = torch.Generator().manual_seed(seed)
    shape = (windows, sites, bins, units)
    return {
        "spike_counts": torch.poisson(torch.full(shape, mean_count), generator=generator),
        "unit_mask": torch.ones(windows, sites, units, dtype=torch.bool),
        "bin_mask": torch.ones(windows, sites, bins, dtype=torch.bool),
        "masked_bins": torch.rand(windows, sites, bins, generator=generator) < 0.4,
        "masked_units": torch.rand(windows, sites, units, generator=generator) < 0.3,
        "metadata": torch.randn(windows, sites, 6, generator=generator),
        "labels": torch.arange(sites).expand(windows, sites).clone(),
        "behavior": torch.randn(windows, bins, 2, generator=generator),
        "label_mask": torch.ones(windows, bins, dtype=torch.bool),
    }


def with_(batch, **values):
    """Fills tensors of a batch with one value, or replaces them by a function of them."""
    return batch | {
        name: value(batch[name]) if callable(value) else torch.full_like(batch[name], value)
        for name, value in values.items()
    }


def first_only(tensor):
    """True in the first entry along the last axis, False elsewhere."""
    return torch.zeros_like(tensor).index_fill(-1, torch.tensor([0]), True)


def all_but_one(counts):
    return counts * (torch.arange(B) > 0).view(-1, 1, 1, 1)


def one_site_absent(bin_mask):
    return bin_mask & (torch.arange(S)[:, None] == 0)


CASES = {
    "ordinary": batch_of(),
    "silent": batch_of(mean_count=0.0),
    "one window silent": with_(batch_of(), spike_counts=all_but_one),
    "a thousand spikes per bin": batch_of(mean_count=1000.0),
    "one unit": batch_of(units=1),
    "one site": batch_of(sites=1),
    "one bin": batch_of(bins=1),
    "one window": batch_of(windows=1),
    "one of everything": batch_of(1, 1, 1, 1),
    "one of everything, silent": batch_of(1, 1, 1, 1, mean_count=0.0),
    "every bin hidden": with_(batch_of(), masked_bins=True),
    "every unit hidden": with_(batch_of(), masked_units=True),
    "everything hidden": with_(batch_of(), masked_bins=True, masked_units=True),
    "nothing hidden": with_(batch_of(), masked_bins=False, masked_units=False),
    "no bin recorded": with_(batch_of(), bin_mask=False),
    "one bin recorded": with_(batch_of(), bin_mask=first_only),
    "a site absent": with_(batch_of(), bin_mask=one_site_absent),
    "no unit there": with_(batch_of(), unit_mask=False),
    "one unit there": with_(batch_of(), unit_mask=first_only),
    "metadata unknown": with_(batch_of(), metadata=float("nan")),
    "metadata far away": with_(batch_of(), metadata=1e7),
    "behaviour constant": with_(batch_of(), behavior=3.0),
    "behaviour absent": with_(batch_of(), behavior=float("nan")),
    "behaviour without end": with_(batch_of(), behavior=float("inf")),
    "no bin scored": with_(batch_of(), label_mask=False),
    "no two windows of a site": with_(batch_of(), labels=lambda labels: torch.arange(B * S).view(B, S)),
    "no site to tell apart": with_(batch_of(), labels=-100),
}  # fmt: skip
MODEL_INPUTS = ("spike_counts", "unit_mask", "bin_mask", "metadata")


def make(kind, **fields):
    torch.manual_seed(0)
    return kind(RPNTConfig.preset("tiny", **{"num_units": S * N, "dropout": 0.0, **fields}))


def inputs_for(model, batch):
    """Arguments of `forward` for a model out of a batch."""
    inputs = {name: batch[name] for name in MODEL_INPUTS}
    inputs["metadata"] = inputs["metadata"][..., : len(model.config.metadata_axes)]
    if isinstance(model, RPNTForPreTraining):
        return inputs | {name: batch[name] for name in ("masked_bins", "masked_units", "labels")}
    labels = batch["behavior"][..., :1].expand(*batch["behavior"].shape[:2], model.config.num_targets)
    return inputs | {"labels": labels, "label_mask": batch["label_mask"]}


def loss_and_norm(model, batch, precision):
    """Loss, and norm of its gradient; every part of it must be finite."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = model(**inputs_for(model, batch)).loss
    loss.backward()
    bad = [
        name
        for name, one in model.named_parameters()
        if one.grad is not None and not one.grad.isfinite().all()
    ]
    assert loss.isfinite() and not bad, (loss, bad)
    grads = [one.grad.square().sum() for one in model.parameters() if one.grad is not None]
    return loss.item(), torch.stack(grads).sum().sqrt().item()


KINDS = {"pretraining": RPNTForPreTraining, "decoding": RPNTForMotorDecoding}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_finite(case, kind, precision):
    loss_and_norm(make(KINDS[kind]), CASES[case], precision)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("switch", SWITCHES)
def test_gradients_are_finite_with_every_switch(switch, kind):
    model = make(KINDS[kind], **SWITCHES[switch])
    for case in ("silent", "one of everything, silent", "everything hidden", "no bin recorded"):
        loss_and_norm(model, CASES[case], "fp32")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("switch", SWITCHES)
def test_gradients_are_finite_with_every_switch_in_every_case(switch, kind, precision):
    model = make(KINDS[kind], **SWITCHES[switch])
    with torch.autograd.detect_anomaly(check_nan=True):
        for case in CASES.values():
            loss_and_norm(model, case, precision)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["silent", "one window silent", "one unit"])
def test_large_first_gradients_of_silent_bins_are_gone_after_ten_clipped_steps(case, kind):
    """A new stem gives 0 for silent bins, where the slope of a layer norm is 316: it leaves that at once."""
    model = make(KINDS[kind])
    _, usual = loss_and_norm(model, CASES["ordinary"], "fp32")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    norms = []
    for _ in range(11):
        norms.append(loss_and_norm(model, CASES[case], "fp32")[1])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert norms[0] > 100 * usual > 3 * norms[-1], norms


def test_an_overflow_where_nothing_is_scored_costs_nothing():
    """`where` alone lets 0 times infinity through in the gradient."""
    log_rates = torch.tensor([[[[1.0, 200.0]]]], requires_grad=True)
    scored = torch.tensor([[[[True, False]]]])
    loss = poisson_nll(log_rates, torch.zeros(1, 1, 1, 2), scored)
    loss.backward()
    assert loss.item() == pytest.approx(np.e) and log_rates.grad.tolist() == [[[[pytest.approx(np.e), 0.0]]]]

    variances = torch.tensor([[[0.0], [-200.0]]], requires_grad=True)
    predictions = torch.tensor([[[1.0], [1e30]]], requires_grad=True)
    labels, scored, scale = torch.tensor([[[0.0], [np.nan]]]), torch.tensor([[True, True]]), torch.ones(1)
    variance_loss(predictions, labels, scored, scale, variances).backward()
    behavior_loss(predictions, labels, scored, scale).backward()
    assert variances.grad.isfinite().all() and predictions.grad.tolist() == [[[2.0], [0.0]]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("switch", SWITCHES)
def test_padding_changes_no_loss(switch, kind):
    """Windows of 3 to 7 bins, 1 to 4 units and 1 or 2 sites: each alone against all in one padded batch."""
    if switch == "dropout":
        pytest.skip("random")
    no_contrast = {"contrastive_weight": 0.0} if kind == "pretraining" else {}
    model = make(KINDS[kind], **{**SWITCHES[switch], **no_contrast})
    generator = torch.Generator().manual_seed(3)
    padded = {name: torch.zeros_like(value) for name, value in CASES["ordinary"].items()}
    padded["metadata"] = torch.full_like(CASES["ordinary"]["metadata"], float("nan"))
    padded["labels"] = torch.full_like(padded["labels"], -100)
    total, num_terms = 0.0, 0
    for window, (bins, sites, units) in enumerate([(7, 2, 4), (3, 1, 2), (5, 2, 1), (4, 1, 4)]):
        alone = batch_of(bins, 1, sites, units, seed=window)
        alone["unit_ids"] = torch.arange(units) + N * torch.arange(sites)[:, None]
        alone["label_mask"] = torch.rand(1, bins, generator=generator) < 0.7
        inputs = inputs_for(model, alone) | {"unit_ids": alone["unit_ids"][None]}
        with torch.no_grad():
            loss = model(**inputs).loss.double()
        scored = alone["masked_bins"][..., None] | alone["masked_units"][:, :, None]
        terms = int(scored.sum()) if kind == "pretraining" else int(alone["label_mask"].sum())
        total, num_terms = total + loss * terms, num_terms + terms
        places = {
            "spike_counts": (slice(sites), slice(bins), slice(units)),
            "unit_mask": (slice(sites), slice(units)), "bin_mask": (slice(sites), slice(bins)),
            "masked_bins": (slice(sites), slice(bins)),
            "masked_units": (slice(sites), slice(units)), "metadata": (slice(sites),),
            "labels": (slice(sites),), "behavior": (slice(bins),), "label_mask": (slice(bins),),
        }  # fmt: skip
        for name, place in places.items():
            padded[name][(window, *place)] = alone[name][0]
    padded["spike_counts"][~padded["bin_mask"]] = 77.0  # what lies in padding must not matter
    inputs = inputs_for(model, padded)
    inputs["unit_ids"] = (torch.arange(N) + N * torch.arange(S)[:, None]).expand(B, S, N)
    with torch.no_grad():
        found = model(**inputs).loss
    torch.testing.assert_close(found.double(), total / num_terms, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("switch", SWITCHES)
def test_losses_in_single_and_double_precision_agree(switch, kind):
    if switch == "dropout":
        pytest.skip("random")
    model = make(KINDS[kind], **SWITCHES[switch])
    inputs = inputs_for(model, batch_of(bins=7, mean_count=3.0, seed=5))
    with torch.no_grad():
        single = model(**inputs).loss
        double = model.double()(**inputs).loss
    torch.testing.assert_close(single.double(), double.double(), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_under_bf16_stay_near_those_of_fp32(kind):
    """The band of one step; 3 % of the loss."""
    model = make(KINDS[kind])
    for case in ("ordinary", "silent", "one unit", "a site absent"):
        single, _ = loss_and_norm(model, CASES[case], "fp32")
        half, _ = loss_and_norm(model, CASES[case], "bf16")
        assert abs(half - single) <= 0.03 * max(abs(single), 1.0), case


def test_a_row_of_many_hours_is_decoded_like_its_end():
    """Beyond the reach of a window nothing matters, so bins at 100,000 are those of a short row."""
    config = {"attention_window": 8, "num_units": 3, "num_hidden_layers": 1, "num_targets": 2}
    model = make(RPNTForMotorDecoding, **config).eval()
    counts = torch.poisson(torch.ones(1, 1, 20_000, 3), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = model(counts).predictions[:, -20:]
        end = model(counts[:, :, -200:]).predictions[:, -20:]
    torch.testing.assert_close(whole, end, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("constant", [0.0, 0.1, -3.3, 1e4, 1e-20])
def test_behaviour_that_never_varies_is_refused_as_a_target(constant):
    """The mean of equal numbers is off by a rounding, so that their deviation is not quite 0."""
    behavior = np.full((997, 2), constant, np.float32)
    behavior[:, 1] = np.arange(997)
    row = {
        "num_bins": 997, "num_context_bins": 0, "unit_ids": ["0"], "behavior_names": ["x", "y"],
        "behavior": behavior.tobytes(), "observed": np.ones(997, np.uint8).tobytes(), "trials": [],
        "session_id": "a", "start_time": 0.0,
    }  # fmt: skip
    with pytest.raises(DatasetError, match="Every target must vary"):
        label_statistics([row])


def test_the_same_seed_gives_the_same_bits():
    found = []
    for _ in range(2):
        model = make(RPNTForPreTraining, dropout=0.2)
        torch.manual_seed(7)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for seed in range(3):
            loss = model(**inputs_for(model, batch_of(seed=seed))).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found.append([loss.item(), *itertools.chain(*(p.flatten().tolist() for p in model.parameters()))])
    assert found[0] == found[1]
