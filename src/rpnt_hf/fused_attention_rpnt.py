"""Attention with context kernels at about the cost of ordinary attention, with no T x T tensor (DESIGN 2.3).

Exact forms of the same scores, one of which `context_attention` chooses: blocks of raw scores smoothed in
cache, or queries and keys `Kk` times as wide for the fused kernels of a GPU. Positions and projections are in
`attention_rpnt.py`.

Legend: `R` sequences (batch x sites), `H` heads, `G` = R * H, `T` bins, `d` head size, `A` anchors,
`Kq`, `Kk` kernel taps over queries and keys, `C` any number of channels.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

SHORT_WINDOW = 128  # up to this length a GPU takes a dense mask
KEPT_BINS = 256  # up to this length scores are kept for the backward pass, beyond it they are made again
QUERY_BLOCK = 64  # queries per block of scores; no sequence of more than twice as many sees a T x T tensor
SPARSE_TILE = 128  # queries and keys per tile of flex attention
CHUNK = 2**19  # scores that a thread works on at once: a few of these fit into its cache
MASKED = -1e30  # a finite floor: rows without any allowed key, bins before the recording, stay free of NaN


def at_least_fp32(states: Tensor) -> Tensor:
    """Widens half precision; double stays double."""
    return states.to(torch.promote_types(states.dtype, torch.float32))


def shift_bins(states: Tensor, bins: int) -> Tensor:
    """Moves `(..., T, C)` later by `bins`, with zeros before the first bin."""
    return states if bins == 0 else F.pad(states, (0, 0, bins, 0))[..., : states.shape[-2], :]


def fuse_queries(query: Tensor, kernel: Tensor) -> Tensor:
    """`Q'[t] = concat_j sum_i w_t[i, j] q[t - i]`: (..., T, d), (..., T, Kq, Kk) -> (..., T, Kk * d)."""
    fused = kernel[..., 0, :, None] * query[..., None, :]
    for tap in range(1, kernel.shape[-2]):
        fused = fused + kernel[..., tap, :, None] * shift_bins(query, tap)[..., None, :]
    return fused.flatten(-2)


def fuse_keys(key: Tensor, key_taps: int, num_anchors: int = 0) -> Tensor:
    """`K'[u] = concat_j k[u - j]`: (..., A + T, d) -> (..., A + T, Kk * d); anchors are repeated."""
    anchors, bins = key[..., :num_anchors, :], key[..., num_anchors:, :]
    fused = torch.cat([shift_bins(bins, tap) for tap in range(key_taps)], dim=-1)
    return torch.cat([torch.cat([anchors] * key_taps, dim=-1), fused], dim=-2) if num_anchors else fused


def _allowed_keys(
    queries: range, keys: range, num_anchors: int, window: int | None, device: torch.device
) -> Tensor:
    """(queries, anchors + keys), True where a query bin may look: at anchors, and back inside the window."""
    query_bins = torch.arange(queries.start, queries.stop, device=device)[:, None]
    key_bins = torch.arange(keys.start, keys.stop, device=device)[None]
    allowed = key_bins <= query_bins
    if window is not None:
        allowed = allowed & (key_bins > query_bins - window)
    return F.pad(allowed, (num_anchors, 0), value=True)


class _Block(NamedTuple):
    """A block of scores: bins of queries and keys, raw queries from which they are made, and heads."""

    queries: range
    keys: range
    raw_start: int
    heads: slice


def _blocks(
    num_heads: int, num_bins: int, num_anchors: int, taps: tuple[int, int], window: int | None
) -> Iterator[_Block]:
    """Last queries first: without a window their keys are all keys."""
    size = min(QUERY_BLOCK, num_bins)
    for start in reversed(range(0, num_bins, size)):
        stop = min(start + size, num_bins)
        # With a window the first Kk - 1 keys are there for the taps only: no query reaches them.
        first_key = 0 if window is None else max(0, start - window + 1 - (taps[1] - 1))
        heads = num_heads
        if not torch.compiler.is_compiling():
            num_scores = num_heads * (stop - start) * (num_anchors + stop - first_key)
            num_chunks = -(-num_scores // (CHUNK * torch.get_num_threads()))
            heads = -(-num_heads // num_chunks)
        for head in range(0, num_heads, heads):
            yield _Block(
                range(start, stop),
                range(first_key, stop),
                max(0, start - taps[0] + 1),
                slice(head, min(head + heads, num_heads)),
            )


def _rows_of_taps(block: _Block, query_taps: int) -> Iterator[tuple[int, slice, slice]]:
    """For each query tap the rows of the block that it reaches, and the raw rows that it reads."""
    lead, size = block.queries.start - block.raw_start, len(block.queries)
    for tap in range(query_taps):
        skipped = max(0, tap - lead)
        yield tap, slice(skipped, size), slice(skipped + lead - tap, size + lead - tap)


def _keys_of(states: Tensor, block: _Block, num_anchors: int) -> Tensor:
    """Anchors and the bins of a block, out of (G, A + T, C)."""
    states = states[block.heads]
    last = states[:, num_anchors + block.keys.start : num_anchors + block.keys.stop]
    if num_anchors == 0:
        return last
    if block.keys.start == 0:
        return states[:, : num_anchors + block.keys.stop]
    return torch.cat([states[:, :num_anchors], last], dim=1)


def _add_keys_of(total: Tensor, part: Tensor, block: _Block, num_anchors: int) -> None:
    if block.keys.start:
        total[block.heads, :num_anchors] += part[:, :num_anchors]
        part = part[:, num_anchors:]
    first = num_anchors + block.keys.start if block.keys.start else 0
    total[block.heads, first : num_anchors + block.keys.stop] += part


def _smooth(raw: Tensor, kernel: Tensor, block: _Block, num_anchors: int, scale: float) -> Tensor:
    """Scores of a block: `S'[t, u] = sum_ij w_t[i, j] S[t - i, u - j]`; anchors take `sum_j w`."""
    weights = kernel[block.heads, :, :, block.queries.start : block.queries.stop] * scale
    num_keys = raw.shape[-1] - num_anchors
    scores = raw[:, block.queries.start - block.raw_start :] * weights[:, 0, 0, :, None]
    # Anchors are few: with bins last in memory, passes over them are long enough to be fast.
    anchors = raw[..., :num_anchors].transpose(1, 2).contiguous()
    anchor_scores = raw.new_zeros(raw.shape[0], num_anchors, len(block.queries))
    for i, rows, raw_rows in _rows_of_taps(block, kernel.shape[1]):
        if num_anchors:
            shared = weights[:, i, :, rows].sum(1, keepdim=True)
            anchor_scores[..., rows].addcmul_(anchors[..., raw_rows], shared)
        taps = weights[:, i, :, rows, None].unbind(1)
        source, target = raw[:, raw_rows, num_anchors:], scores[:, rows, num_anchors:]
        for j in range(0 if i else 1, min(kernel.shape[2], num_keys)):
            length = num_keys - j
            target.narrow(2, j, length).addcmul_(source.narrow(2, 0, length), taps[j])
    scores[..., :num_anchors] = anchor_scores.transpose(1, 2)
    return scores


def _smooth_backward(
    grad_scores: Tensor,
    raw: Tensor,
    kernel: Tensor,
    grad_kernel: Tensor,
    block: _Block,
    num_anchors: int,
    scale: float,
) -> Tensor:
    """Gradient of the raw scores; that of the scaled kernels is added in its place."""
    bins = slice(block.queries.start, block.queries.stop)
    weights = kernel[block.heads, :, :, bins] * scale
    num_keys, lead = raw.shape[-1] - num_anchors, block.queries.start - block.raw_start
    grad_raw = grad_scores * weights[:, 0, 0, :, None]
    grad_raw = F.pad(grad_raw, (0, 0, lead, 0)) if lead else grad_raw
    products = torch.empty_like(grad_scores).view(-1)
    anchors, grad_anchors = (
        item[..., :num_anchors].transpose(1, 2).contiguous() for item in (raw, grad_scores)
    )
    grad_raw_anchors = torch.zeros_like(anchors)
    for i, rows, raw_rows in _rows_of_taps(block, kernel.shape[1]):
        grad_weights = grad_kernel[block.heads, i, :, bins][:, :, rows]
        if num_anchors:
            grad = grad_anchors[..., rows]
            grad_raw_anchors[..., raw_rows].addcmul_(grad, weights[:, i, :, rows].sum(1, keepdim=True))
            grad_weights += (grad * anchors[..., raw_rows]).sum(1, keepdim=True)
        taps, grad_taps = weights[:, i, :, rows, None].unbind(1), grad_weights.unbind(1)
        grad, source = grad_scores[:, rows, num_anchors:], raw[:, raw_rows, num_anchors:]
        grad_source = grad_raw[:, raw_rows, num_anchors:]
        for j in range(min(kernel.shape[2], num_keys)):
            length = num_keys - j
            grad_tap = grad.narrow(2, j, length)
            if i or j:
                grad_source.narrow(2, 0, length).addcmul_(grad_tap, taps[j])
            product = products[: grad_tap.numel()].view(grad_tap.shape)  # memory that is in cache already
            torch.mul(grad_tap, source.narrow(2, 0, length), out=product)
            grad_taps[j].add_(product.sum(-1))
    grad_raw[..., :num_anchors] = grad_raw_anchors.transpose(1, 2)
    return grad_raw


class _BlockAttention(torch.autograd.Function):
    """Causal attention over blocks of queries, with or without kernels that smooth the scores.

    The backward pass makes the scores of each block again, except for short sequences.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kernel: Tensor | None,
        key_bias: Tensor | None,
        num_anchors: int,
        window: int | None,
    ) -> Tensor:
        num_heads, num_bins = query.shape[:2]
        taps = (1, 1) if kernel is None else (kernel.shape[1], kernel.shape[2])
        output = value.new_empty(num_heads, num_bins, value.shape[-1])
        kept = []
        ctx.blocks = list(_blocks(num_heads, num_bins, num_anchors, taps, window))
        scale = 1 / math.sqrt(query.shape[-1])
        ctx.options = (num_anchors, window, scale, num_bins <= KEPT_BINS)
        for block in ctx.blocks:
            bins = slice(block.queries.start, block.queries.stop)
            raw, weights = _BlockAttention.weights(block, query, key, kernel, key_bias, ctx.options)
            values = _keys_of(value, block, num_anchors)
            if len(block.queries) == num_bins:
                torch.bmm(weights, values, out=output[block.heads])
            else:
                output[block.heads, bins] = torch.bmm(weights, values)
            if ctx.options[3]:
                kept += [raw, weights]
        ctx.save_for_backward(query, key, value, kernel, key_bias, output, *kept)
        return output

    @staticmethod
    def weights(
        block: _Block,
        query: Tensor,
        key: Tensor,
        kernel: Tensor | None,
        key_bias: Tensor | None,
        options: tuple[int, int | None, float, bool],
    ) -> tuple[Tensor, Tensor]:
        """Raw scores of a block (the backward pass of kernels needs them), and the weights of its queries."""
        num_anchors, window, scale, _ = options
        queries = query[block.heads, block.raw_start : block.queries.stop]
        keys = _keys_of(key, block, num_anchors)
        raw = torch.bmm(queries, keys.transpose(1, 2))
        # Kernels are smaller than scores, so the scale goes there.
        scores = raw.mul_(scale) if kernel is None else _smooth(raw, kernel, block, num_anchors, scale)
        # Causality bites in the last columns alone.
        edge = 0 if window is not None else block.queries.start
        allowed = _allowed_keys(block.queries, block.keys, num_anchors, window, query.device)[:, edge:]
        scores[..., edge:] += torch.where(allowed, 0.0, MASKED)
        if key_bias is not None:
            scores += _keys_of(key_bias, block, num_anchors).transpose(1, 2)
        weights = torch.softmax(scores, dim=-1, out=scores)
        return weights if kernel is None else raw, weights

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value, kernel, key_bias, output, *kept = ctx.saved_tensors
        num_anchors, _, scale, keeps = ctx.options
        # The first blocks may hold all queries, or reach all keys: then they write what others add to.
        holds_all, reaches_all = (part == range(query.shape[1]) for part in ctx.blocks[0][:2])
        grad_query = torch.empty_like(query) if holds_all else torch.zeros_like(query)
        make = torch.empty_like if reaches_all else torch.zeros_like
        grad_key, grad_value = make(key), make(value)
        grad_kernel = None if kernel is None else torch.zeros_like(kernel)
        for index, block in enumerate(ctx.blocks):
            bins = slice(block.queries.start, block.queries.stop)
            raw_bins = slice(block.raw_start, block.queries.stop)
            if keeps:
                raw, weights = kept[2 * index : 2 * index + 2]
            else:
                raw, weights = _BlockAttention.weights(block, query, key, kernel, key_bias, ctx.options)
            queries, keys = query[block.heads, raw_bins], _keys_of(key, block, num_anchors)
            grad_mixed = grad_output[block.heads, bins]
            row_sums = (grad_mixed * output[block.heads, bins]).sum(dim=-1, keepdim=True)
            values = _keys_of(value, block, num_anchors)
            grad_raw = torch.bmm(grad_mixed, values.transpose(1, 2)).sub_(row_sums).mul_(weights)
            if kernel is None or grad_kernel is None:
                grad_raw.mul_(scale)
            else:
                grad_raw = _smooth_backward(grad_raw, raw, kernel, grad_kernel, block, num_anchors, scale)
            if holds_all:
                torch.bmm(grad_raw, keys, out=grad_query[block.heads])
            else:
                grad_query[block.heads, raw_bins] += torch.bmm(grad_raw, keys)
            for total, first, second in ((grad_key, grad_raw, queries), (grad_value, weights, grad_mixed)):
                if reaches_all and block.queries.stop == query.shape[1]:  # straight into its place
                    torch.bmm(first.transpose(1, 2), second, out=total[block.heads])
                else:
                    part = torch.bmm(first.transpose(1, 2), second)
                    _add_keys_of(total, part, block, num_anchors)
        if grad_kernel is not None:
            grad_kernel.mul_(scale)
        return grad_query, grad_key, grad_value, grad_kernel, *[None] * 3


def _attend_on_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel: Tensor | None,
    key_mask: Tensor | None,
    num_anchors: int,
    window: int | None,
) -> Tensor:
    """Smooths blocks of scores: a pass per tap in cache costs less than wider queries and keys."""
    shape = value.shape
    if kernel is not None:
        kernel = at_least_fp32(kernel).movedim(-3, -1).flatten(0, 1).contiguous()
    key_bias = None
    if key_mask is not None:
        key_bias = torch.zeros(key_mask.shape, device=value.device).masked_fill_(~key_mask, MASKED)
        key_bias = F.pad(key_bias, (num_anchors, 0))[:, None].expand(*shape[:3]).reshape(-1, shape[2], 1)
    wide = [at_least_fp32(states).flatten(0, 1) for states in (query, key, value)]
    with torch.autocast(value.device.type, enabled=False):
        output = _BlockAttention.apply(*wide, kernel, key_bias, num_anchors, window)
    return output.unflatten(0, shape[:2]).to(value.dtype)


@functools.cache
def _compiled_flex_attention() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=False)


def _sparse_mask(
    num_bins: int, key_mask: Tensor | None, num_anchors: int, window: int | None, device: torch.device
) -> BlockMask:
    """Which tiles of keys a tile of queries needs, from tile numbers alone: never a T x T mask."""
    queries = torch.arange(-(-num_bins // SPARSE_TILE), device=device)[:, None] * SPARSE_TILE
    keys = torch.arange(-(-(num_anchors + num_bins) // SPARSE_TILE), device=device)[None] * SPARSE_TILE
    needed = keys < queries + SPARSE_TILE + num_anchors
    if window is not None:
        needed = needed & (keys + SPARSE_TILE > queries - window + 1 + num_anchors)
    needed = needed | (keys < num_anchors)
    order = needed.int().argsort(dim=-1, descending=True, stable=True).int()

    def allowed(sequence: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        bin_ = key - num_anchors
        seen = bin_ <= query
        if window is not None:
            seen = seen & (bin_ > query - window)
        if key_mask is not None:
            seen = seen & key_mask[sequence, bin_.clamp_min(0)]
        return seen | (bin_ < 0)

    return BlockMask.from_kv_blocks(
        needed.sum(dim=-1, dtype=torch.int32)[None, None],
        order[None, None],
        BLOCK_SIZE=SPARSE_TILE,
        mask_mod=allowed,
        seq_lengths=(num_bins, num_anchors + num_bins),
    )


def _attend_sparsely(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None,
    num_anchors: int,
    window: int | None,
    scale: float,
) -> Tensor:
    """Fused queries and keys through flex attention, which skips what lies outside of the window."""
    mask = _sparse_mask(query.shape[-2], key_mask, num_anchors, window, query.device)
    # Without compilation it would make all scores; on a CPU, where it has no backward, that is for tests.
    compiles = query.is_cuda and not torch.compiler.is_compiling()
    attend: Any = _compiled_flex_attention() if compiles else flex_attention
    return attend(query, key, value, block_mask=mask, scale=scale)


def _masked_bias(
    num_bins: int, key_mask: Tensor | None, num_anchors: int, window: int | None, device: torch.device
) -> Tensor:
    """What is added to the scores of a short sequence, (R or 1, 1, T, A + T): 0 or `MASKED`."""
    allowed = _allowed_keys(range(num_bins), range(num_bins), num_anchors, window, device)[None, None]
    if key_mask is not None:
        allowed = allowed & F.pad(key_mask, (num_anchors, 0), value=True)[:, None, None]
    return torch.where(allowed, 0.0, MASKED)


def context_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kernel: Tensor | None,
    key_mask: Tensor | None,
    num_anchors: int,
    window: int | None,
    return_weights: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Attends to anchors and to earlier bins in the window, scores smoothed by kernels (DESIGN 2.3).

    Args:
        query (`torch.FloatTensor` of shape `(R, H, T, d)`): Rotated queries.
        key (`torch.FloatTensor` of shape `(R, H, A + T, d)`): Rotated keys, anchors leading.
        value (`torch.FloatTensor` of shape `(R, H, A + T, d)`): Values, anchors leading.
        kernel (`torch.FloatTensor` of shape `(R, H, T, Kq, Kk)`, *optional*): Kernel of each head and bin.
        key_mask (`torch.BoolTensor` of shape `(R, T)`, *optional*): True where a bin may be attended.
        num_anchors (`int`): Leading keys that every query sees.
        window (`int`, *optional*): Bins that a query sees, its own included; None for all earlier ones.
        return_weights (`bool`, *optional*, defaults to `False`):
            Whether to return the weights, in one dense square.

    Returns:
        `tuple`: output `(R, H, T, d)` and, where asked, weights `(R, H, T, A + T)`.
    """
    # The one place where the form is chosen. Fused kernels of a GPU want few and wide products; a CPU is
    # faster at smoothing blocks of scores that its cache holds, at every length (docs/decisions.md).
    if not (value.is_cuda or return_weights):
        return _attend_on_blocks(query, key, value, kernel, key_mask, num_anchors, window), None
    num_bins, scale = query.shape[-2], 1 / math.sqrt(query.shape[-1])
    if kernel is not None:
        query, key = fuse_queries(query, kernel), fuse_keys(key, kernel.shape[-1], num_anchors)
    query, key = query.to(value.dtype), key.to(value.dtype)
    if num_bins > SHORT_WINDOW and not return_weights:
        return _attend_sparsely(query, key, value, key_mask, num_anchors, window, scale), None
    bias = _masked_bias(num_bins, key_mask, num_anchors, window, query.device)
    if not return_weights:
        bias = bias.to(query.dtype)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale), None
    scores = at_least_fp32(query @ key.transpose(-1, -2)) * scale + bias
    weights = scores.softmax(dim=-1).to(value.dtype)
    return weights @ value, weights


__all__ = ["context_attention", "fuse_keys", "fuse_queries", "shift_bins"]
