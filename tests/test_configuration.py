"""Configurations: every field is checked, every field does something, unknown keys are refused."""

import dataclasses
import json

import pytest
import torch
from transformers import AutoConfig

from rpnt_hf import (
    ContextAttentionConfig,
    MRoPEAxisConfig,
    RPNTConfig,
    RPNTForMotorDecoding,
    RPNTForPreTraining,
)
from rpnt_hf.errors import ConfigurationError


@pytest.mark.parametrize("preset", ["rpnt-microelectrode", "rpnt-neuropixel", "tiny"])
def test_a_configuration_survives_saving(preset, tmp_path):
    config = RPNTConfig.preset(preset, num_units=7, label_mean=[0.5, -1.0], label_std=[2.0, 3.0])
    config.save_pretrained(tmp_path)
    assert RPNTConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


def test_an_unknown_key_is_refused_with_the_closest_match_named():
    with pytest.raises(ConfigurationError, match=r"`hidden_siz`. Did you mean `hidden_size`"):
        RPNTConfig(hidden_siz=64)
    with pytest.raises(ConfigurationError, match=r"`num_pair`. Did you mean `num_pairs`"):
        RPNTConfig(mrope_axes=[{"name": "time", "num_pair": 8}])
    with pytest.raises(ConfigurationError, match=r"`kernel_sizes`. Did you mean `kernel_size`"):
        RPNTConfig(context_attention={"kernel_sizes": (3, 3)})
    with pytest.raises(ConfigurationError, match=r"'tyny'.*`tiny`"):
        RPNTConfig.preset("tyny")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hidden_size": 63}, "even multiple of `num_attention_heads`"),
        ({"num_attention_heads": 0}, "`num_attention_heads` must be at least 1, got 0"),
        ({"num_units": 0}, "`num_units` must be at least 1, got 0"),
        ({"dropout": 1.0}, r"`dropout` must lie in \[0, 1\), got 1.0"),
        ({"attention_window": 0}, "`attention_window` must be None or at least 1 bin, got 0"),
        ({"num_anchors": 0}, "could do nothing with `num_anchors`=0"),
        ({"hidden_size": 512, "num_attention_heads": 2}, "at most 256"),
        ({"mrope_axes": [{"name": "subject", "num_pairs": 1}]}, "must name 'time' once"),
        ({"mrope_axes": [{"name": "time", "num_pairs": 2}]}, "at least half"),
        ({"mrope_axes": [{"name": "tme", "num_pairs": 2}]}, "'tme'. Did you mean `time`"),
        ({"mrope_axes": [{"name": "time", "num_pairs": -1}]}, "`num_pairs` >= 0"),
        ({"context_attention": {"kernel_size": (0, 3)}}, "two numbers >= 1"),
        ({"label_mean": [1.0]}, "`label_mean` must have 2 entries"),
        ({"label_std": [1.0, 0.0]}, "`label_std` must be above 0"),
        ({"variance_dof": [3.0]}, "`variance_dof` must have 2 entries"),
        ({"variance_dof": [3.0, 2.0]}, "`variance_dof` must be above 2"),
        ({"contrastive_temperature": 0}, "`contrastive_temperature` must be above 0"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_field_is_refused_with_its_value(overrides, message):
    with pytest.raises(ConfigurationError, match=message):
        RPNTConfig.preset("tiny", **overrides)


def test_a_field_of_the_wrong_type_is_refused():
    with pytest.raises(Exception, match="stem_kernel"):
        RPNTConfig(stem_kernel="seven")


def test_a_newer_format_is_refused_before_anything_else_is_read(tmp_path):
    config = RPNTConfig.preset("tiny")
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["format_version"] == 1
    newer = {**saved, "format_version": 7, "stem_kernel": "of another type", "field_of_the_future": 1}
    (tmp_path / "config.json").write_text(json.dumps(newer))
    message = "`format_version` must be at most 1.*got 7.*pip install --upgrade rpnt_hf"
    for load in (
        RPNTConfig.from_pretrained,
        AutoConfig.from_pretrained,
        RPNTForMotorDecoding.from_pretrained,
    ):
        with pytest.raises(ConfigurationError, match=message):
            load(tmp_path)
    with pytest.raises(ConfigurationError, match=message):
        RPNTConfig(format_version=7, field_of_the_future=1)
    for strange in (0, True, "1", None):
        with pytest.raises(ConfigurationError, match="whole number from 1"):
            RPNTConfig.from_dict({**saved, "format_version": strange})
    saved.pop("format_version")  # as before there was one
    assert RPNTConfig.from_dict(saved).format_version == 1


def test_default_axes_give_half_of_the_pairs_to_time_and_fit_every_head_size():
    for hidden_size in (2, 6, 16, 32, 64, 256):
        config = RPNTConfig(
            hidden_size=hidden_size, num_attention_heads=1, context_attention={"enabled": False}
        )
        pairs = {axis.name: axis.num_pairs for axis in config.mrope_axes}
        assert sum(pairs.values()) <= hidden_size // 2 <= 2 * pairs["time"]


def test_tables_of_pairs_in_the_docstring_are_those_of_the_presets():
    rows = [
        line.split("|")[1:-1]
        for line in RPNTConfig.preset.__doc__.splitlines()
        if line.strip().startswith('| "')
    ]
    assert len(rows) == 3
    for name, _, pairs, time, sites, subject, day, task, rest in (
        [cell.strip() for cell in row] for row in rows
    ):
        config = RPNTConfig.preset(name.strip('"'))
        have = {axis.name: axis.num_pairs for axis in config.mrope_axes}
        stated = [time, *sites.split(", "), subject, day, task]
        assert [have[a] for a in ("time", "site_x", "site_y", "site_z", "subject", "day", "task")] == list(
            map(int, stated)
        )
        assert config.head_size // 2 == int(pairs) == sum(have.values()) + int(rest)


CHANGES = {
    "num_units": 12, "unit_embedding": "slots", "unit_readout": "own", "hidden_size": 32,
    "intermediate_size": 64, "num_hidden_layers": 1,
    "num_spatial_layers": 1, "num_attention_heads": 4, "hidden_act": "relu", "layer_norm_eps": 0.5,
    "initializer_range": 0.1, "stem_kernel": 1, "position_encoding": "none", "num_anchors": 1,
    "attention_window": 2, "recurrent_stem": True, "layer_scale": 0.3,
    "context_attention": ContextAttentionConfig(enabled=False), "num_targets": 3, "predict_variance": True,
    "mrope_axes": [MRoPEAxisConfig("time", 10)], "contrastive_weight": 0.9, "contrastive_temperature": 0.7,
    "projection_size": 5, "max_bins": 9, "label_mean": [5.0, 6.0], "label_std": [5.0, 6.0],
}  # fmt: skip
# Carried beside the weights: names, units, the lag that the processor applies to labels, the shape of errors,
# the moments that the token map reads, the format.
CARRIED = {
    "target_names", "target_units", "label_lag", "variance_dof", "token_map_step", "format_version",
}  # fmt: skip


def run(**overrides):
    torch.manual_seed(0)
    config = RPNTConfig.preset("tiny", **{"num_units": 8, "dropout": 0.0, **overrides})
    counts = torch.poisson(torch.ones(4, 2, 7, 4), generator=torch.Generator().manual_seed(1))
    decoding = RPNTForMotorDecoding(config)(counts, metadata=torch.ones(4, 2, len(config.metadata_axes)))
    masked = torch.arange(7).expand(4, 2, 7) % 2 == 0
    labels = torch.tensor([[0, 1]] * 4)
    loss = RPNTForPreTraining(config)(counts, masked_bins=masked, labels=labels).loss
    variances = () if decoding.log_variances is None else decoding.log_variances.flatten().tolist()
    return (*decoding.predictions.flatten().tolist(), *variances, loss.item())


@pytest.mark.parametrize("field", sorted(set(RPNTConfig.__annotations__) - {"model_type"} - CARRIED))
def test_every_field_changes_the_result(field):
    base = {
        "max_bins": {"position_encoding": "learned"},
        "hidden_size": {"mrope_axes": None},
        "num_attention_heads": {"mrope_axes": None},
        "contrastive_temperature": {"contrastive_weight": 0.5},
        "projection_size": {"contrastive_weight": 0.5},
    }.get(field, {})
    if field == "dropout":
        assert run(dropout=0.5) != run()
    else:
        assert run(**{**base, field: CHANGES[field]}) != run(**base)


def test_fields_with_a_test_above_are_all_there_are():
    own = {field.name for field in dataclasses.fields(RPNTConfig)} & set(RPNTConfig.__annotations__)
    assert own == set(CHANGES) | CARRIED | {"dropout"}
