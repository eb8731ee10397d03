"""Context attention with a kernel per bin costs a fraction of the naive form, and no T x T tensor.

    python benchmarks/attention.py --out results [--parts full window memory]

Forward and backward in fp32 on two threads, 256 wide, 8 heads, kernel 3 x 3, from queries, keys, values and
the context's input to the output. Two slow oracles take turns with it, both over the whole score matrix: one
kernel per sample, as in the paper's code (a grouped convolution), and a kernel per bin, which is the same
function as ours and is checked to be. No form has anchors; a row with the four of the presets stands beside.
Peak memory is that of a process of its own.
"""

import argparse
import math
import multiprocessing
from collections.abc import Callable
from typing import Any

import torch
from measure import make_parser, peak_memory_mib, print_table, save_plot, save_results, time_turns
from torch import Tensor
from torch.nn import functional as F

from rpnt_hf import RPNTConfig, RPNTModel
from rpnt_hf.attention_rpnt import RPNTContextKernel
from rpnt_hf.fused_attention_rpnt import context_attention

NAIVE, ORACLE, OURS, ANCHORS = "a kernel per sample", "a kernel per bin", "ours", "ours, 4 anchors"
CASES = {50: 64, 100: 32, 250: 16, 500: 8, 1000: 4, 2000: 2, 4000: 1, 8000: 1}  # bins: batch
NAIVE_BINS = 2000  # longest for the oracles, which hold several squares of scores
TARGETS = {(50, None): 1.0, (500, None): 3.0, (2000, None): 6.0, (2000, 50): 15.0}  # bins, window: ratio
HIDDEN_SIZE, NUM_HEADS, WINDOW = 256, 8, 50

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def make_inputs(num_bins: int, batch_size: int, device: str = "cpu") -> Inputs:
    """Random queries, keys and values (B, H, T, d), and the input of the context (B, 1, T, D)."""
    torch.manual_seed(0)
    shape = (3, batch_size, NUM_HEADS, num_bins, HIDDEN_SIZE // NUM_HEADS)
    query, key, value = torch.randn(shape, device=device).unbind()
    context = torch.randn(batch_size, 1, num_bins, HIDDEN_SIZE, device=device)
    for states in (query, key, value, context):
        states.requires_grad_()
    return query, key, value, context


def make_generator(window: int | None, device: str = "cpu") -> RPNTContextKernel:
    """The part of the network that makes kernels, with weights that use every tap."""
    config = RPNTConfig.preset("rpnt-microelectrode", num_hidden_layers=1, attention_window=window)
    layer: Any = RPNTModel(config).temporal_layers[0]
    torch.nn.init.normal_(layer.attention.context_kernel.kernel_bias)
    return layer.attention.context_kernel.to(device)


def attend(inputs: Inputs, generator: RPNTContextKernel, num_anchors: int = 0) -> Tensor:
    """The package's own form."""
    query, key, value, context = inputs
    if num_anchors:
        key, value = (F.pad(states, (0, 0, num_anchors, 0)) for states in (key, value))
    kernel = generator(context, None)[:, 0]
    return context_attention(query, key, value, kernel, None, num_anchors, generator.window)[0]


def attend_by_squares(inputs: Inputs, generator: RPNTContextKernel, per_bin: bool) -> Tensor:
    """Convolves the matrix of scores, with a kernel per bin or per sample."""
    query, key, value, context = inputs
    B, H, T, d = query.shape
    query_taps, key_taps = generator.kernel_size
    scores = query @ key.transpose(-1, -2) / math.sqrt(d)
    bins = torch.arange(T, device=query.device)
    future = bins[None] > bins[:, None]
    if generator.window is not None:
        future = future | (bins[None] <= bins[:, None] - generator.window)
    if per_bin:
        kernel = generator(context, None)[:, 0]
        padded = F.pad(scores, (key_taps - 1, 0, query_taps - 1, 0))
        smoothed = torch.zeros_like(scores)
        for i in range(query_taps):
            for j in range(key_taps):
                shifted = padded[..., query_taps - 1 - i :, key_taps - 1 - j :][..., :T, :T]
                smoothed = smoothed + kernel[..., i, j, None] * shifted
    else:
        pooled = generator.context_terms(context, None).sum(dim=2, keepdim=True)
        kernel = generator.kernels(pooled, context.dtype).reshape(B * H, 1, query_taps, key_taps)
        scores = scores.masked_fill(future, 0.0).view(1, B * H, T, T)
        padding = (query_taps // 2, key_taps // 2)
        smoothed = F.conv2d(scores, kernel, padding=padding, groups=B * H).view(B, H, T, T)
    return smoothed.masked_fill(future, -torch.inf).softmax(dim=-1) @ value


def make_variants(
    num_bins: int, batch_size: int, window: int | None, device: str = "cpu"
) -> dict[str, Callable[[], Any]]:
    """Forward and backward of every form that can run at this length."""
    inputs, generator = make_inputs(num_bins, batch_size, device), make_generator(window, device)
    leaves = [*inputs, *generator.parameters()]
    gradient = torch.randn_like(inputs[0])

    def both_ways(form: Callable[[], Tensor]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(form(), leaves, gradient)

    forms: dict[str, Callable[[], Tensor]] = {
        OURS: lambda: attend(inputs, generator),
        ANCHORS: lambda: attend(inputs, generator, num_anchors=4),
    }
    if num_bins <= NAIVE_BINS:
        forms[NAIVE] = lambda: attend_by_squares(inputs, generator, per_bin=False)
        forms[ORACLE] = lambda: attend_by_squares(inputs, generator, per_bin=True)
        torch.testing.assert_close(forms[OURS](), forms[ORACLE](), atol=1e-3, rtol=1e-3)
    return {name: both_ways(form) for name, form in forms.items()}


def compare(num_bins: int, batch_size: int, window: int | None, quick: bool) -> dict[str, Any]:
    """One row: milliseconds of each form, and ratios to ours."""
    variants = make_variants(num_bins, batch_size, window)
    seconds = time_turns(variants, 0.02 if quick else 0.5, 1 if quick else 3)
    row: dict[str, Any] = {"bins": num_bins, "batch": batch_size, "window": window}
    for name in (OURS, ANCHORS, NAIVE, ORACLE):
        row[f"{name}, ms"] = 1000 * seconds[name] if name in seconds else math.nan
    for name in (NAIVE, ORACLE):
        row[f"{name} / ours"] = seconds[name] / seconds[OURS] if name in seconds else math.nan
    target = TARGETS.get((num_bins, window))
    row["target"] = "" if target is None else f">= {target:g}"
    return row


def _run_once(num_bins: int, window: int | None, pipe: Any) -> None:
    torch.set_num_threads(2)
    before = peak_memory_mib()
    make_variants(num_bins, 1, window)[OURS]()
    pipe.send((before, peak_memory_mib()))


def measure_memory(num_bins: int, window: int | None) -> dict[str, Any]:
    """Peak memory of one forward and backward pass, in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_run_once, args=(num_bins, window, sender))
    process.start()
    before, peak = receiver.recv()
    process.join()
    target = "< 1500" if num_bins == max(CASES) else ""
    return {"bins": num_bins, "window": window, "libraries, MiB": before, "peak, MiB": peak, "target": target}


def cases_of(options: argparse.Namespace) -> dict[int, int]:
    """Bins and batches to measure."""
    return {20: 2, 150: 1} if options.quick else CASES


def compare_lengths(options: argparse.Namespace, window: int | None) -> None:
    """Every form at every length."""
    cases = cases_of(options)
    rows = [compare(num_bins, batch_size, window, options.quick) for num_bins, batch_size in cases.items()]
    title = "all earlier bins" if window is None else f"a window of {window} bins"
    print_table(f"Context attention to {title}, forward and backward", rows)
    name = "attention_full" if window is None else "attention_window"
    save_results(options.out, name, rows)
    curves = {
        form: [row[f"{form}, ms"] / (row["bins"] * row["batch"]) for row in rows]
        for form in (OURS, NAIVE, ORACLE)
    }
    save_plot(options.out / f"{name}.png", [float(n) for n in cases], curves, "bins", "ms per bin")


def compare_memory(options: argparse.Namespace) -> None:
    """The longest sequence, with a window and without."""
    rows = [measure_memory(max(cases_of(options)), window) for window in (None, WINDOW)]
    print_table("Peak memory of a process, one sequence", rows)
    save_results(options.out, "attention_memory", rows)


PARTS = {
    "full": lambda options: compare_lengths(options, None),
    "window": lambda options: compare_lengths(options, WINDOW),
    "memory": compare_memory,
}


def main() -> None:
    """Runs the benchmark."""
    options = make_parser(__doc__, PARTS).parse_args()
    torch.set_num_threads(1 if options.quick else 2)
    for part in options.parts:
        PARTS[part](options)


if __name__ == "__main__":
    main()
