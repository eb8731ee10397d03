"""RPNT attention as loops over bins and taps, to be checked against DESIGN 2.3 by eye."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from rpnt_hf.attention_rpnt import RPNTTemporalAttention


def reference_kernel(module: RPNTTemporalAttention, x_TD: Tensor, recorded: list[bool]) -> Tensor:
    """Kernels (H, T, Kq, Kk) of one site, each context summed afresh over the bins that it may see."""
    generator = module.context_kernel
    num_bins = len(x_TD)
    window = module.config.attention_window or num_bins
    kernels = []
    for t in range(num_bins):
        total, weights = torch.zeros(generator.context_proj.out_features, dtype=x_TD.dtype), 0.0
        for u in range(max(0, t - window + 1), t + 1):
            if recorded[u]:
                h = F.gelu(generator.norm(generator.context_proj(x_TD[u])))
                weight = torch.exp(8 * torch.tanh(generator.score(h)[0] / 8))
                total, weights = total + weight * h, weights + weight
        context = total / weights if torch.is_tensor(weights) else total
        logits = (generator.kernel_proj(context) + generator.kernel_bias).view(module.num_heads, -1)
        kernels.append(logits.softmax(-1).view(module.num_heads, *generator.kernel_size))
    return torch.stack(kernels, dim=1)


def rotate_pair_by_pair(state_d: Tensor, cos_P: Tensor, sin_P: Tensor) -> Tensor:
    """Rotates each channel pair (i, i + d/2) of one vector."""
    half = len(cos_P)
    out = list(state_d)
    for i in range(half):
        out[i] = state_d[i] * cos_P[i] - state_d[i + half] * sin_P[i]
        out[i + half] = state_d[i + half] * cos_P[i] + state_d[i] * sin_P[i]
    return torch.stack(out)


def reference_temporal_attention(
    module: RPNTTemporalAttention,
    x_TD: Tensor,
    cos_TP: Tensor,
    sin_TP: Tensor,
    channels_d: Tensor,
    recorded: list[bool],
) -> Tensor:
    """Output (T, D) of one site: scores are the convolved sums of DESIGN 2.3, one term at a time."""
    H, d, num_bins = module.num_heads, module.head_size, len(x_TD)
    window = module.config.attention_window or num_bins
    query_taps, key_taps = module.config.context_attention.taps
    if module.config.context_attention.enabled:
        kernel = reference_kernel(module, x_TD, recorded)
    else:
        kernel = torch.ones(H, num_bins, 1, 1, dtype=x_TD.dtype)
    qkv = module.qkv_proj(x_TD).view(num_bins, 3, H, d) * torch.tensor(recorded)[:, None, None, None]
    outputs = []
    for t in range(num_bins):
        heads = []
        for h in range(H):
            q = [rotate_pair_by_pair(qkv[u, 0, h], cos_TP[u], sin_TP[u]) for u in range(num_bins)]
            k = [rotate_pair_by_pair(qkv[u, 1, h], cos_TP[u], sin_TP[u]) for u in range(num_bins)]
            scores, values = [], []
            for a in range(module.num_anchors):
                anchor = module.anchor_keys[h, a] * channels_d
                score = 0.0
                for i in range(query_taps):
                    if t - i >= 0:
                        score = score + kernel[h, t, i].sum() * (q[t - i] @ anchor)
                scores.append(score / math.sqrt(d))
                values.append(module.anchor_values[h, a])
            for u in range(max(0, t - window + 1), t + 1):
                if not recorded[u]:
                    continue
                score = torch.zeros((), dtype=x_TD.dtype)
                for i in range(query_taps):
                    for j in range(key_taps):
                        if t - i >= 0 and u - j >= 0:
                            score = score + kernel[h, t, i, j] * (q[t - i] @ k[u - j])
                scores.append(score / math.sqrt(d))
                values.append(qkv[u, 2, h])
            if scores:
                heads.append(torch.stack(scores).softmax(0) @ torch.stack(values))
            else:
                heads.append(torch.zeros(d, dtype=x_TD.dtype))
        outputs.append(torch.cat(heads))
    return module.o_proj(torch.stack(outputs))
