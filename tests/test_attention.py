"""Fused attention against the loops of `reference_rpnt.py`, and properties of the rotary axes."""

import math

import pytest
import torch
from reference_rpnt import reference_temporal_attention

from rpnt_hf import fused_attention_rpnt
from rpnt_hf.attention_rpnt import (
    RPNTRotaryEmbedding,
    RPNTSpatialAttention,
    RPNTTemporalAttention,
    rotate,
    windowed_sum,
)
from rpnt_hf.configuration_rpnt import MRoPEAxisConfig, RPNTConfig
from rpnt_hf.fused_attention_rpnt import context_attention, fuse_keys, fuse_queries
from rpnt_hf.modeling_rpnt import RPNTForMotorDecoding, RPNTModel

CASES = {
    "plain": {"context_attention": {"enabled": False}, "num_anchors": 0, "position_encoding": "rope"},
    "anchors": {"context_attention": {"enabled": False}, "num_anchors": 3},
    "kernels": {"num_anchors": 0, "position_encoding": "rope"},
    "kernels and anchors": {"num_anchors": 2},
    "wide kernels": {"context_attention": {"kernel_size": (4, 5), "context_size": 6}},
    "query kernel only": {"context_attention": {"kernel_size": (3, 1), "context_size": 6}},
    "window": {"attention_window": 4},
    "window of one": {"attention_window": 1, "num_anchors": 1},
    "window without anchors": {"attention_window": 3, "num_anchors": 0, "position_encoding": "rope"},
    "no positions": {"position_encoding": "none"},
}


def small_config(**overrides):
    settings = {
        "num_units": 6,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_anchors": 2,
        "dropout": 0.0,
        "stem_kernel": 3,
        "initializer_range": 0.3,
        "context_attention": {"kernel_size": (2, 3), "context_size": 6},
        "mrope_axes": [
            MRoPEAxisConfig("time", 2, theta=100.0),
            MRoPEAxisConfig("subject", 1),
            MRoPEAxisConfig("site_x", 1),
        ],
    }
    return RPNTConfig(**{**settings, **overrides})


def trained_attention(config):
    """An attention module whose kernels are far from their start, so that every tap matters."""
    model = RPNTModel(config).double()
    module = model.temporal_layers[0].attention
    if config.context_attention.enabled:
        torch.nn.init.normal_(module.context_kernel.kernel_bias)
        torch.nn.init.normal_(module.context_kernel.kernel_proj.weight)
    return module


@pytest.mark.parametrize("block", [128, 4], ids=["one block", "blockwise"])
@pytest.mark.parametrize("case", CASES)
def test_fused_attention_equals_the_loop_oracle_in_values_and_gradients(case, block, monkeypatch):
    monkeypatch.setattr(fused_attention_rpnt, "QUERY_BLOCK", block)
    config = small_config(**CASES[case])
    module = trained_attention(config)
    num_bins = 11
    x = torch.randn(2, 1, num_bins, 16, dtype=torch.float64, requires_grad=True)
    metadata = torch.tensor([[[2.0, 0.3]], [[math.nan, 1.0]]], dtype=torch.float64)
    bin_mask = torch.ones(2, 1, num_bins, dtype=torch.bool)
    bin_mask[1, 0, :2] = False
    bin_mask[1, 0, 6] = False
    rotary = RPNTRotaryEmbedding(config)
    (cos, sin), _ = rotary(metadata, num_bins, x.device)
    channels = rotary.anchor_channels(("time",), x.device)

    fused, _ = module(x, (cos, sin), channels, bin_mask)
    looped = torch.stack(
        [
            reference_temporal_attention(
                module,
                x[b, 0],
                cos[b, 0, 0].double(),
                sin[b, 0, 0].double(),
                channels,
                bin_mask[b, 0].tolist(),
            )
            for b in range(2)
        ]
    )[:, None]
    weight = torch.randn_like(fused) * bin_mask[..., None]
    torch.testing.assert_close(fused * bin_mask[..., None], looped * bin_mask[..., None], atol=1e-10, rtol=0)
    leaves = [x, *module.parameters()]
    fused_gradients = torch.autograd.grad((fused * weight).sum(), leaves, allow_unused=True)
    looped_gradients = torch.autograd.grad((looped * weight).sum(), leaves, allow_unused=True)
    for fused_gradient, looped_gradient in zip(fused_gradients, looped_gradients, strict=True):
        torch.testing.assert_close(fused_gradient, looped_gradient, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("taps", [None, (2, 3)], ids=["plain", "kernels"])
@pytest.mark.parametrize("window", [None, 3, 40])
def test_attention_over_blocks_passes_the_numerical_gradient_check(window, taps, monkeypatch):
    monkeypatch.setattr(fused_attention_rpnt, "QUERY_BLOCK", 3)
    monkeypatch.setattr(fused_attention_rpnt, "CHUNK", 30)
    query, key, value = (
        torch.randn(1, 2, n, 4, dtype=torch.float64, requires_grad=True) for n in (8, 10, 10)
    )
    mask = torch.ones(1, 8, dtype=torch.bool)
    mask[0, 2] = False
    inputs = [query, key, value]
    if taps:
        inputs.append(torch.rand(1, 2, 8, *taps, dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradcheck(
        lambda q, k, v, w=None: context_attention(q, k, v, w, mask, 2, window)[0], inputs
    )


@pytest.mark.parametrize("window", [None, 1, 3, 5, 7, 64])
def test_windowed_sum_equals_slices_summed_one_by_one(window):
    terms = torch.randn(2, 13, 3, dtype=torch.float64)
    width = window or 13
    expected = torch.stack([terms[:, max(0, t - width + 1) : t + 1].sum(1) for t in range(13)], dim=1)
    torch.testing.assert_close(windowed_sum(terms, window), expected, atol=1e-12, rtol=0)


def test_long_sequences_never_build_a_square_of_scores():
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.extend(
                t.numel() for t in (out if isinstance(out, tuple | list) else [out]) if torch.is_tensor(t)
            )
            return out

    num_bins, config = 2048, small_config()
    module = RPNTModel(config).temporal_layers[0].attention
    rotary = RPNTRotaryEmbedding(config)
    rotation, _ = rotary(None, num_bins, torch.device("cpu"))
    x = torch.randn(1, 1, num_bins, 16, requires_grad=True)
    with Watch():
        module(x, rotation, rotary.anchor_channels(("time",), x.device), None)[0].sum().backward()
    assert max(sizes) < 2 * num_bins * num_bins // 4  # 2 heads


def make_heads(num_bins, num_anchors=3, taps=(3, 3), device="cpu"):
    """Queries, keys, values and kernels of two sequences and two heads, and which bins were recorded."""
    query, key, value = (
        torch.randn(2, 2, bins, 16, device=device)
        for bins in (num_bins, num_anchors + num_bins, num_anchors + num_bins)
    )
    kernel = torch.randn(2, 2, num_bins, 9, device=device).softmax(-1).unflatten(-1, taps)
    recorded = torch.rand(2, num_bins, device=device) < 0.9
    return query, key, value, kernel, recorded, num_anchors


@pytest.mark.parametrize("window", [None, 1, 50, 200])
@pytest.mark.parametrize("num_bins", [140, 300])
@torch.no_grad()
def test_the_sparse_form_of_a_gpu_equals_the_dense_one(window, num_bins):
    query, key, value, kernel, recorded, num_anchors = make_heads(num_bins)
    dense, _ = context_attention(
        query, key, value, kernel, recorded, num_anchors, window, return_weights=True
    )
    fused = fuse_queries(query, kernel), fuse_keys(key, 3, num_anchors)
    sparse = fused_attention_rpnt._attend_sparsely(*fused, value, recorded, num_anchors, window, 1 / 4)
    torch.testing.assert_close(sparse, dense, atol=1e-5, rtol=1e-5)


def test_tiles_outside_of_the_window_are_left_out_on_a_gpu():
    mask = fused_attention_rpnt._sparse_mask(4096, None, 4, 50, torch.device("cpu"))
    assert mask.kv_num_blocks.max() == 4  # its own, those before, the anchors, and a shift by them
    assert mask.kv_num_blocks.shape == (1, 1, 32) and mask.kv_indices.shape == (1, 1, 32, 33)
    unlimited = fused_attention_rpnt._sparse_mask(4096, None, 4, None, torch.device("cpu"))
    assert unlimited.kv_num_blocks.sum() == sum(range(2, 34))


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("num_bins", [50, 300])
def test_attention_on_a_gpu_equals_that_on_a_cpu_in_values_and_gradients(num_bins, window):
    *states, recorded, num_anchors = make_heads(num_bins)
    results = []
    for device in ("cpu", "cuda"):
        leaves = [item.to(device).detach().requires_grad_() for item in states]
        output, _ = context_attention(*leaves, recorded.to(device), num_anchors, window)
        weight = torch.linspace(-1, 1, output.numel(), device=device).view_as(output)
        weight = weight * recorded.to(device)[:, None, :, None]
        gradients = torch.autograd.grad((output * weight).sum(), leaves)
        results.append([item.cpu() for item in (output, *gradients)])
    for here, there in zip(*results, strict=True):
        torch.testing.assert_close(here, there, atol=5e-3, rtol=5e-3)


def test_eager_attention_equals_the_default_one():
    counts = torch.poisson(torch.ones(2, 3, 9, 2))
    mask = torch.rand(2, 3, 9) < 0.8
    config = small_config(num_spatial_layers=1)
    model = RPNTForMotorDecoding(config).eval()
    default = model(counts, bin_mask=mask)
    model.set_attn_implementation("eager")
    eager = model(counts, bin_mask=mask, output_attentions=True, output_spatial_attentions=True)
    torch.testing.assert_close(eager.predictions, default.predictions, atol=1e-5, rtol=1e-5)
    assert [tuple(a.shape) for a in eager.attentions] == [(2, 3, 2, 9, 11)] * 2
    assert [tuple(a.shape) for a in eager.spatial_attentions] == [(18, 2, 3, 5)]


# --- rotary metadata axes (DESIGN 2.2)
# ---------------------------------------------------------------------------


def scores(query, key, cos, sin):
    return rotate(query, cos, sin) @ rotate(key, cos, sin).transpose(-1, -2)


def test_shifting_all_times_leaves_scores_unchanged():
    config = small_config()
    rotary = RPNTRotaryEmbedding(config)
    metadata = torch.tensor([[[1.0, 2.0]]])
    query, key = torch.randn(2, 1, 1, 2, 12, 8, dtype=torch.float64)
    early, _ = rotary(metadata, 12, query.device)
    late, _ = rotary(metadata, 12, query.device, first_bin=500_000)  # 2.8 h of 20 ms bins
    torch.testing.assert_close(scores(query, key, *early), scores(query, key, *late), atol=2e-6, rtol=0)
    assert not torch.allclose(scores(query, key, *early), query @ key.transpose(-1, -2), atol=1e-2)


def test_shifting_all_sites_leaves_spatial_scores_unchanged():
    config = small_config(num_spatial_layers=1)
    rotary = RPNTRotaryEmbedding(config)
    positions = torch.tensor([[[1.0, 0.2], [1.0, 1.4], [1.0, 2.5]]], dtype=torch.float64)
    moved = positions + torch.tensor([0.0, 7.5], dtype=torch.float64)
    query, key = torch.randn(2, 1, 1, 2, 3, 8, dtype=torch.float64)
    _, here = rotary(positions, 1, query.device)
    _, there = rotary(moved, 1, query.device)
    torch.testing.assert_close(scores(query, key, *here), scores(query, key, *there), atol=2e-6, rtol=0)
    stretched = positions * torch.tensor([1.0, 2.0], dtype=torch.float64)
    _, far = rotary(stretched, 1, query.device)
    assert not torch.allclose(scores(query, key, *here), scores(query, key, *far), atol=1e-2)


ALL_AXES = ["site_x", "site_y", "site_z", "subject", "day", "task"]


def all_axes_config(**overrides):
    axes = [MRoPEAxisConfig("time", 8, theta=100.0)] + [MRoPEAxisConfig(name, 1) for name in ALL_AXES]
    return small_config(hidden_size=64, mrope_axes=axes, **overrides)


@pytest.mark.parametrize("num_spatial_layers", [0, 1])
@pytest.mark.parametrize("axis", ALL_AXES)
def test_changing_any_metadata_axis_changes_the_output(axis, num_spatial_layers):
    model = RPNTForMotorDecoding(all_axes_config(num_spatial_layers=num_spatial_layers)).eval()
    counts = torch.poisson(torch.ones(1, 2, 8, 3))
    metadata = torch.ones(1, 2, 6)
    changed = metadata.clone()
    changed[0, 1, ALL_AXES.index(axis)] = 2.5
    unknown = metadata.clone()
    unknown[0, 1, ALL_AXES.index(axis)] = math.nan
    zero = metadata.clone()
    zero[0, 1, ALL_AXES.index(axis)] = 0.0
    outputs = [model(counts, metadata=m).predictions for m in (metadata, changed, unknown, zero)]
    for a in range(4):
        for b in range(a):
            assert (outputs[a] - outputs[b]).abs().max() > 1e-5, (a, b)


@pytest.mark.parametrize("anchors", [2, 0])
def test_sites_act_on_each_other_only_through_the_spatial_stage(anchors):
    config = all_axes_config(num_spatial_layers=1, num_anchors=anchors)
    model = RPNTModel(config).eval()
    counts = torch.poisson(torch.ones(1, 2, 8, 3))
    metadata = torch.ones(1, 2, 6)
    changed = metadata.clone()
    changed[0, 1, 0] = 3.0
    before, after = (model(counts, metadata=m).last_hidden_state[0, 0] for m in (metadata, changed))
    assert (before - after).abs().max() > 1e-5


def test_an_axis_without_pairs_changes_nothing():
    axes = [MRoPEAxisConfig("time", 2), MRoPEAxisConfig("subject", 1), MRoPEAxisConfig("day", 0)]
    model = RPNTForMotorDecoding(small_config(mrope_axes=axes)).eval()
    counts = torch.poisson(torch.ones(1, 1, 8, 3))
    here = model(counts, metadata=torch.tensor([[[1.0, 5.0]]])).predictions
    there = model(counts, metadata=torch.tensor([[[1.0, 900.0]]])).predictions
    torch.testing.assert_close(here, there, atol=0, rtol=0)


def test_unknown_pairs_add_nothing_to_any_score():
    config = all_axes_config()
    rotary = RPNTRotaryEmbedding(config)
    metadata = torch.ones(1, 1, 6)
    metadata[0, 0, 1] = math.nan  # site_y: the three site axes are dropped together
    (cos, sin), _ = rotary(metadata, 4, metadata.device)
    assert (cos[..., 8:11] == 0).all() and (sin[..., 8:11] == 0).all()
    assert (cos[..., 11:14].square() + sin[..., 11:14].square() - 1).abs().max() < 1e-6


@pytest.mark.parametrize("encoding", ["rope", "learned", "sinusoidal", "none"])
def test_metadata_change_nothing_under_an_encoding_without_them(encoding):
    model = RPNTForMotorDecoding(all_axes_config(position_encoding=encoding)).eval()
    counts = torch.poisson(torch.ones(1, 1, 8, 3))
    known = model(counts, metadata=torch.ones(1, 1, 6)).predictions
    torch.testing.assert_close(known, model(counts).predictions, atol=0, rtol=0)


def test_every_encoding_gives_another_output():
    counts = torch.poisson(torch.ones(1, 1, 12, 3), generator=torch.Generator().manual_seed(0))
    outputs = []
    for encoding in ("mrope", "rope", "learned", "sinusoidal", "none"):
        torch.manual_seed(3)
        model = RPNTForMotorDecoding(all_axes_config(position_encoding="none")).eval()
        other = RPNTForMotorDecoding(all_axes_config(position_encoding=encoding)).eval()
        other.load_state_dict(model.state_dict(), strict=False)
        outputs.append(other(counts, metadata=torch.ones(1, 1, 6)).predictions)
    for a in range(5):
        for b in range(a):
            assert (outputs[a] - outputs[b]).abs().max() > 1e-5, (a, b)


def test_anchor_keys_are_zero_in_the_pairs_a_stage_must_not_see():
    rotary = RPNTRotaryEmbedding(all_axes_config())
    temporal = rotary.anchor_channels(RPNTTemporalAttention.zero_axes, torch.device("cpu"))
    spatial = rotary.anchor_channels(RPNTSpatialAttention.zero_axes, torch.device("cpu"))
    assert temporal.tolist() == ([False] * 8 + [True] * 8) * 2
    assert spatial.tolist() == ([False] * 11 + [True] * 5) * 2


def test_rotation_stays_in_fp32_under_autocast():
    config = small_config()
    rotation, _ = RPNTRotaryEmbedding(config)(torch.ones(1, 1, 2), 6, torch.device("cpu"))
    assert rotation[0].dtype == torch.float32
    query = torch.randn(1, 1, 2, 6, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(rotate(query, *rotation), rotate(query.clone(), *rotation), atol=0, rtol=0)
        assert rotate(query, *rotation).dtype == torch.float32


def test_kernels_start_as_ordinary_attention():
    module = RPNTModel(RPNTConfig.preset("tiny", num_units=4)).temporal_layers[0].attention
    kernel = module.context_kernel(torch.randn(1, 1, 30, 64), None)
    assert kernel.shape == (1, 1, 2, 30, 3, 3)
    torch.testing.assert_close(kernel.sum((-1, -2)), torch.ones(1, 1, 2, 30))
    assert kernel[..., 0, 0].min() > 0.95
