"""What transformers users take for granted: saving, loading, Auto classes, types, checkpointing, refusals."""

import copy
import inspect
import math

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForTimeSeriesPrediction,
)

from rpnt_hf import (
    AutoModelForMotorDecoding,
    RPNTConfig,
    RPNTForMotorDecoding,
    RPNTForPreTraining,
    RPNTForSequenceClassification,
    RPNTModel,
)
from rpnt_hf.dropout_rpnt import RPNTDropout
from rpnt_hf.errors import ConfigurationError, InputError

CLASSES = [RPNTModel, RPNTForPreTraining, RPNTForMotorDecoding, RPNTForSequenceClassification]
AUTO = {
    RPNTModel: AutoModel,
    RPNTForPreTraining: AutoModelForPreTraining,
    RPNTForMotorDecoding: AutoModelForMotorDecoding,
    RPNTForSequenceClassification: AutoModelForSequenceClassification,
}


def make(cls=RPNTForMotorDecoding, **overrides):
    return cls(RPNTConfig.preset("tiny", **{"num_units": 12, "num_spatial_layers": 1, **overrides})).eval()


def make_inputs(batch=3, sites=2, bins=9, units=6):
    return {
        "spike_counts": torch.poisson(torch.ones(batch, sites, bins, units)).to(torch.uint8),
        "bin_mask": torch.rand(batch, sites, bins) < 0.9,
        "metadata": torch.rand(batch, sites, 6),
    }


def main_output(outputs):
    return next(value for key, value in outputs.items() if key != "loss")


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    "overrides", [{}, {"unit_embedding": "slots"}, {"position_encoding": "learned"}], ids=str
)
def test_saving_and_loading_is_bit_equal_and_works_twice_in_one_process(cls, overrides, tmp_path):
    model, inputs = make(cls, **overrides), make_inputs()
    model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    expected = main_output(model(**inputs))
    for _ in range(2):
        loaded, info = AUTO[cls].from_pretrained(tmp_path, output_loading_info=True)
        assert type(loaded) is cls and not any(info[key] for key in ("missing_keys", "unexpected_keys"))
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
        assert dict(loaded.named_buffers()).keys() == dict(model.named_buffers()).keys()
        # Outputs to float noise: loaded weights lie elsewhere in memory, and kernels differ with alignment.
        torch.testing.assert_close(main_output(loaded.eval()(**inputs)), expected, atol=1e-6, rtol=1e-5)
    assert type(AutoConfig.from_pretrained(tmp_path)) is RPNTConfig


def test_the_decoder_loads_through_the_time_series_class_of_transformers(tmp_path):
    make().save_pretrained(tmp_path)
    assert type(AutoModelForTimeSeriesPrediction.from_pretrained(tmp_path)) is RPNTForMotorDecoding


def test_a_folder_named_like_a_hub_model_loads(tmp_path, monkeypatch):
    RPNTModel(RPNTConfig.preset("tiny", num_units=4)).save_pretrained(tmp_path / "rpnt-neuropixel")
    monkeypatch.chdir(tmp_path)
    assert type(AutoModel.from_pretrained("rpnt-neuropixel")) is RPNTModel


def test_the_encoder_moves_from_pretraining_to_decoding_unchanged(tmp_path):
    pretrained = make(RPNTForPreTraining)
    pretrained.save_pretrained(tmp_path)
    decoder, info = RPNTForMotorDecoding.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == {
        "decoder.weight", "decoder.bias", "site_pooling.score.weight", "site_pooling.score.bias",
    }  # fmt: skip
    for name, tensor in pretrained.model.state_dict().items():
        assert torch.equal(decoder.model.state_dict()[name], tensor), name
    assert all(torch.isfinite(parameter).all() for parameter in decoder.parameters())


def test_the_site_contrast_is_in_the_loss_only_where_it_has_a_weight():
    inputs = {**make_inputs(), "masked_bins": torch.rand(3, 2, 9) < 0.5, "labels": torch.tensor([[0, 1]] * 3)}
    torch.manual_seed(0)
    without = make(RPNTForPreTraining)(**inputs)
    assert without.loss == without.poisson_loss and without.contrastive_loss > 0
    torch.manual_seed(0)
    outputs = make(RPNTForPreTraining, contrastive_weight=0.5)(**inputs)
    torch.testing.assert_close(outputs.loss, outputs.poisson_loss + 0.5 * outputs.contrastive_loss)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_parameter_is_initialised_and_used(cls):
    model = make(cls, predict_variance=True)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    inputs = make_inputs(batch=4)
    if cls is RPNTForPreTraining:
        outputs = model(**inputs, masked_bins=torch.rand(4, 2, 9) < 0.5, labels=torch.tensor([[0, 1]] * 4))
        loss = outputs.loss
    elif cls is RPNTModel:
        loss = model(**inputs, masked_bins=torch.rand(4, 2, 9) < 0.5).last_hidden_state.square().sum()
    elif cls is RPNTForMotorDecoding:
        loss = model(**inputs, labels=torch.randn(4, 9, 2)).loss
    else:
        loss = model(**inputs, labels=torch.tensor([0, 1, 1, -100])).loss
    loss.backward()
    unused = {name for name, p in model.named_parameters() if p.grad is None}
    masked_only = (
        {"model.embeddings.mask_embedding"} if "masked_bins" not in inputs and cls in CLASSES[2:] else set()
    )
    assert unused <= masked_only


def test_forward_takes_the_arguments_that_the_design_names():
    base = ["spike_counts", "unit_ids", "unit_mask", "bin_mask", "metadata"]
    expected = {
        RPNTModel: [*base, "masked_bins", "masked_units"],
        RPNTForPreTraining: [*base, "masked_bins", "masked_units", "labels"],
        RPNTForMotorDecoding: [*base, "labels", "label_mask"],
        RPNTForSequenceClassification: [*base, "labels"],
    }
    for cls, names in expected.items():
        assert list(inspect.signature(cls.forward).parameters)[1:-1] == names


def test_only_spike_counts_are_needed():
    assert make()(torch.ones(1, 2, 5, 6)).predictions.shape == (1, 5, 2)


def test_default_units_are_own_rows_of_each_site_in_a_vocabulary_and_shared_slots_otherwise():
    counts = torch.ones(1, 2, 5, 6)
    ids = make(RPNTModel).default_unit_ids(counts)
    assert ids.tolist() == [[[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]]
    ids = make(RPNTModel, unit_embedding="slots").default_unit_ids(counts)
    assert ids.tolist() == [[[0, 1, 2, 3, 4, 5]] * 2]


def test_hidden_states_and_tuples_come_out_as_transformers_gives_them():
    model, inputs = make(), make_inputs()
    outputs = model(**inputs, output_hidden_states=True)
    assert len(outputs.hidden_states) == 2 + 1 + 1
    assert all(state.shape == (3, 2, 9, 64) for state in outputs.hidden_states)
    assert torch.equal(model(**inputs, return_dict=False)[0], outputs.predictions)
    assert "hidden_states" not in model(**inputs)


def test_activation_checkpointing_gives_the_same_gradients():
    plain = make().train()
    plain.config.dropout = 0.0
    for module in plain.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    checkpointed = copy.deepcopy(plain)
    checkpointed.activation_checkpointing_enable()
    inputs, labels = make_inputs(), torch.randn(3, 9, 2)
    for model in (plain, checkpointed):
        model(**inputs, labels=labels).loss.backward()
    for (name, p), q in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_bf16_weights_and_autocast_stay_close_to_fp32():
    model, inputs = make(), make_inputs()
    expected = model(**inputs).predictions
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = model(**inputs, labels=torch.randn(3, 9, 2))
    autocast.loss.backward()
    cast = copy.deepcopy(model).to(torch.bfloat16)(**inputs)
    assert autocast.predictions.dtype == cast.predictions.dtype == torch.float32
    torch.testing.assert_close(autocast.predictions, expected, atol=0.05, rtol=0.05)
    torch.testing.assert_close(cast.predictions, expected, atol=0.05, rtol=0.05)


def test_bf16_autocast_works_over_several_blocks():
    model = make(num_spatial_layers=0)
    counts = torch.poisson(torch.ones(1, 1, 300, 6))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(counts, labels=torch.randn(1, 300, 2))
    outputs.loss.backward()
    torch.testing.assert_close(outputs.predictions, model(counts).predictions, atol=0.05, rtol=0.05)


def test_the_step_compiles_as_one_graph():
    model, inputs = make(), make_inputs()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        compiled(**inputs).predictions, model(**inputs).predictions, atol=1e-5, rtol=1e-5
    )


TARGETS = {
    RPNTForPreTraining: lambda: {
        "labels": torch.tensor([[0, 1]] * 3),
        "masked_bins": torch.rand(3, 2, 9) < 0.5,
        "masked_units": torch.rand(3, 2, 6) < 0.5,
    },
    RPNTForMotorDecoding: lambda: {"labels": torch.randn(3, 9, 2)},
    RPNTForSequenceClassification: lambda: {"labels": torch.tensor([0, 1, -100])},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "backend"),
    [*((cls, "aot_eager") for cls in TARGETS), (RPNTForMotorDecoding, "inductor")],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_training_compiles_as_one_graph_with_the_same_gradients(cls, backend):
    model = make(cls, dropout=0.0).train()
    inputs = make_inputs() | TARGETS[cls]()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend=backend)
    losses = [network(**inputs).loss for network in (model, compiled)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for (name, p), q in zip(model.named_parameters(), compiled.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_its_share_keeps_the_mean_and_repeats_with_the_seed(p):
    dropout, ones = RPNTDropout(p), torch.ones(3, 33_333, requires_grad=True)
    outputs = []
    for _ in range(2):
        torch.manual_seed(1)
        outputs.append(dropout(ones))
    assert torch.equal(*outputs) and not torch.equal(dropout(ones), outputs[0])
    share = (outputs[0] == 0).double().mean().item()
    assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / 99_999) + 2**-17
    assert abs(outputs[0].mean().item() - 1) < 0.05
    halves = (outputs[0].detach()[:, :16_000] == 0, outputs[0].detach()[:, 16_000:32_000] == 0)
    assert abs((halves[0] & halves[1]).double().mean().item() - p * p) < 0.01  # independent draws
    (gradient,) = torch.autograd.grad(outputs[0].sum(), ones)
    assert torch.equal(gradient, outputs[0])
    assert torch.equal(dropout.eval()(ones), ones)


def test_labels_are_physical_and_the_network_sees_them_normalised():
    model = make(label_mean=[100.0, -50.0], label_std=[10.0, 20.0])
    predictions = model(torch.zeros(1, 1, 5, 6)).predictions[0].mean(0)
    assert abs(predictions[0] - 100) < 10 and abs(predictions[1] + 50) < 20
    labels = model(torch.zeros(1, 1, 5, 6)).predictions + torch.tensor([10.0, 20.0])
    assert model(torch.zeros(1, 1, 5, 6), labels=labels).loss.item() == pytest.approx(1.0, rel=1e-4)


def test_bins_without_behaviour_are_left_out_of_the_loss():
    model, inputs = make(), make_inputs(batch=1)
    labels = torch.randn(1, 9, 2)
    mask = torch.ones(1, 9, dtype=torch.bool)
    mask[0, 4:] = False
    blank = labels.clone()
    blank[0, 4:] = math.nan
    expected = model(**inputs, labels=labels, label_mask=mask).loss
    torch.testing.assert_close(model(**inputs, labels=blank).loss, expected)
    torch.testing.assert_close(model(**inputs, labels=blank, label_mask=mask).loss, expected)


def test_new_units_get_rows_and_old_rows_stay(tmp_path):
    model = make()
    before = model.model.embeddings.unit_embedding.weight.clone()
    model.resize_unit_vocabulary(20)
    weight = model.model.embeddings.unit_embedding.weight
    assert weight.shape == (20, 64) and torch.equal(weight[:12], before) and model.config.num_units == 20
    assert weight[12:].std() > 0 and weight.requires_grad
    model.save_pretrained(tmp_path)
    assert torch.equal(
        RPNTForMotorDecoding.from_pretrained(tmp_path).model.embeddings.unit_embedding.weight, weight
    )
    with pytest.raises(ConfigurationError, match="at least the 20 rows"):
        model.resize_unit_vocabulary(19)
    with pytest.raises(ConfigurationError, match=r"'vocabulary'.*'slots'"):
        make(unit_embedding="slots").resize_unit_vocabulary(20)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spike_counts": torch.ones(9, 6)}, r"\(batch, sites, bins, units\), got \(9, 6\)"),
        (
            {"bin_mask": torch.ones(3, 2, 8).bool()},
            r"`bin_mask` must have shape \(3, 2, 9\), got \(3, 2, 8\)",
        ),
        ({"metadata": torch.ones(3, 2, 5)}, r"`metadata` must have shape \(3, 2, 6\)"),
        ({"unit_ids": torch.ones(3, 2, 5).long()}, r"`unit_ids` must have shape \(3, 2, 6\)"),
        ({"unit_mask": torch.ones(3, 6).bool()}, r"`unit_mask` must have shape \(3, 2, 6\)"),
        ({"spike_counts": torch.ones(3, 2, 9, 7)}, "at most 12 units .*with 14"),
        ({"unit_ids": torch.full((3, 2, 6), 12)}, "`unit_ids` must be below 12"),
        ({"label_masks": torch.ones(3, 9).bool()}, "`label_masks`. Did you mean `label_mask`"),
        ({"past_key_values": None}, "use StreamingDecoder"),
        ({"labels": torch.ones(3, 9, 3)}, r"`labels` must have shape \(3, 9, 2\)"),
        (
            {"label_mask": torch.ones(3, 9, 2).bool(), "labels": torch.ones(3, 9, 2)},
            "`label_mask` must have shape",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_inputs_that_do_not_fit_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        make()(**{**make_inputs(), **change})


def test_learned_positions_refuse_windows_longer_than_they_know():
    with pytest.raises(InputError, match=r"at most 8 bins"):
        make(position_encoding="learned", max_bins=8)(torch.ones(1, 1, 9, 6))


@pytest.mark.parametrize("unit_embedding", ["vocabulary", "slots"])
def test_rates_start_at_the_stated_mean_count(unit_embedding):
    model = make(RPNTForPreTraining, unit_embedding=unit_embedding)
    model.set_mean_count(0.2)
    assert abs(model(**make_inputs()).log_rates.exp().mean().item() - 0.2) < 0.05
    with pytest.raises(InputError, match=r"`mean_count` must be above 0 .* got 0\.0"):
        model.set_mean_count(0.0)


def test_readouts_of_their_own_start_at_the_mean_count_of_each_unit(tmp_path):
    model = make(RPNTForPreTraining, unit_readout="own")
    means = torch.linspace(0.1, 1.2, 12)
    model.set_mean_count(means)
    inputs = make_inputs()
    unit_ids = torch.arange(12).view(1, 2, 6).expand(3, 2, 6)
    rates = model(**inputs, unit_ids=unit_ids).log_rates.exp()
    torch.testing.assert_close(rates, means[unit_ids][:, :, None].expand_as(rates))
    with torch.no_grad():
        model.own_readout.weight[:, :-1].normal_()
    before = model(**inputs).log_rates
    assert before[0, 0].std() > 0 and not hasattr(model, "unit_readout")
    model.resize_unit_vocabulary(20)
    torch.testing.assert_close(model(**inputs).log_rates, before)
    torch.testing.assert_close(model.own_readout.weight[12:, -1], means.log().mean().expand(8))
    assert not model.own_readout.weight[12:, :-1].any()
    model.save_pretrained(tmp_path)
    loaded = RPNTForPreTraining.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(**inputs).log_rates, before)
    with pytest.raises(InputError, match=r"`mean_count` must be above 0 .* got 0\.0"):
        model.set_mean_count(torch.zeros(20))
    with pytest.raises(ConfigurationError, match=r"`unit_readout`='own' needs"):
        make(RPNTForPreTraining, unit_readout="own", unit_embedding="slots")


def test_classification_learns_from_whole_windows():
    model = make(RPNTForSequenceClassification, num_labels=4)
    outputs = model(**make_inputs(), labels=torch.tensor([0, 3, -100]))
    assert outputs.logits.shape == (3, 4)
    expected = torch.nn.functional.cross_entropy(outputs.logits[:2], torch.tensor([0, 3]))
    torch.testing.assert_close(outputs.loss, expected)


def test_a_few_steps_of_pretraining_lower_the_loss_and_repeat_with_the_seed():
    def losses():
        torch.manual_seed(1)
        model = make(RPNTForPreTraining).train()
        counts = torch.poisson(torch.rand(4, 2, 9, 6) * 6)
        masked = torch.rand(4, 2, 9) < 0.5
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        values = []
        for _ in range(12):
            loss = model(counts, masked_bins=masked, labels=torch.tensor([[0, 1]] * 4)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            values.append(loss.item())
        return values

    first = losses()
    assert first[-1] < first[0] - 0.5
    assert first == losses()
