"""Writes a decoder of one session for programs without this package, and checks what was written.

Two programs: the offline model (windows of any length in, behaviour at every bin out) and the step (one bin
and the state in, behaviour and new state out).

- format "onnx": `offline.onnx`, `step.onnx`, `step_state.npz` (the state before the first bin) and
  `run_step.py`, which runs the step with numpy and onnxruntime alone and documents state in and state out.
- format "torch": `offline.pt2`, `step.pt2` and `step_state.npz`, for `torch.export.load(path).module()` in a
  process with torch alone. The step takes `spike_counts`, and the arrays of `step_state.npz` by name; it
  returns `predictions` and the fields of `StepRows`, and `streaming_step.push_rows` says where those go.

The offline model takes `spike_counts` (batch, sites, bins, units), with units placed as `unit_index` says,
and `bin_mask` (batch, sites, bins), True where a bin was recorded; it returns `predictions` (batch, bins,
targets). Attention is dense there: memory grows with the square of the bins.

Units, bin size, targets and session are inside the files: in the metadata of ONNX models, and as
`description.json` in `.pt2`. Both formats compute in fp32 on the CPU.
"""

import copy
import itertools
import json
import logging
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from . import exported_step
from .errors import CheckpointError, ConfigurationError, DatasetError, closest_names
from .export_offline import OfflineDecoder
from .modeling_rpnt import RPNTForMotorDecoding
from .processing_rpnt import RPNTProcessor
from .progress import progress_bar
from .streaming import StreamingDecoder
from .streaming_onnx import build_step_graph, find_obstacle, make_session
from .streaming_step import StepRows, StepState, StreamingStep, push_rows

__all__ = ["export_decoder"]

logger = logging.getLogger(__name__)

FORMATS = ("onnx", "torch")
FORMAT_VERSION = 1
PARITY = 1e-4  # of the label s.d.
MOST_BINS = 200  # of the streams and windows that are compared

Offline = Callable[[Tensor, Tensor], Tensor]  # counts (B, S, T, N) and bin mask (B, S, T) to (B, T, K)
Stream = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # counts (B, S, N) of the next bin to (B, K)


def export_decoder(
    model: RPNTForMotorDecoding,
    processor: RPNTProcessor,
    folder: str | Path,
    format: str,
    session_id: str | None = None,
    batch_size: int = 1,
    max_bins: int | None = None,
) -> dict[str, Any]:
    """Exports the offline model and the step, and compares both with the model.

    Args:
        model ([`RPNTForMotorDecoding`]): The decoder; it is copied, in fp32 on the CPU.
        processor ([`RPNTProcessor`]): Its processor.
        folder (`str` or `Path`): Folder to write, whole or not at all; must not exist or be empty.
        format (`str`): "onnx" or "torch".
        session_id (`str`, *optional*): Session of the processor; may be left out where there is one.
        batch_size (`int`, *optional*, defaults to 1): Parallel streams of the step, which are fixed in it.
        max_bins (`int`, *optional*): Longest stream, for a model without `attention_window`.

    Returns:
        `dict[str, Any]`: `offline` and `step`, each with `parity` (largest difference from the model in label
        s.d.), `exported_ms` and `torch_ms` (median time of a window, or of a bin), `num_bins`; and `files`.

    Raises:
        CheckpointError: What was exported differs from the model by more than 1e-4 of the label s.d.; nothing
            is written.
        ConfigurationError: The format is unknown, its extra is missing, or the model cannot stream.
        DatasetError: The folder holds something.
        InputError: The session is unknown.
    """
    if format not in FORMATS:
        raise ConfigurationError(
            f"`format` must be one of {', '.join(FORMATS)}, got '{format}'.{closest_names(format, FORMATS)}"
        )
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DatasetError(
            f"`out` must not exist or be an empty folder, got '{folder}', which holds something. Remove it "
            "or choose another one."
        )
    if session_id is None and len(processor.sessions) == 1:
        session_id = next(iter(processor.sessions))
    model = copy.deepcopy(model).cpu().float().eval()
    decoder = StreamingDecoder(model, processor, session_id, batch_size, max_bins=max_bins, backend="torch")
    obstacle = find_obstacle(decoder.prepared) if format == "onnx" else None
    if obstacle is not None:
        raise ConfigurationError(f"`format`='onnx' must have what it needs, but {obstacle}.")
    description = _describe(decoder, processor, session_id or "")
    num_bins = min(4 * decoder.window, MOST_BINS, decoder.max_bins or MOST_BINS)

    folder.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary,
        progress_bar(total=4, desc="Exporting", unit="part") as bar,
    ):
        unfinished = Path(temporary) / folder.name
        unfinished.mkdir()
        initial: dict[str, Any] = _initial_inputs(decoder, per_layer=format == "onnx")
        np.savez(unfinished / "step_state.npz", **initial)
        if format == "onnx":
            step = _write_onnx_step(decoder, description, unfinished)
            bar.update()
            offline = _write_onnx_offline(decoder, description, unfinished)
        else:
            step = _write_torch_step(decoder, description, unfinished)
            bar.update()
            offline = _write_torch_offline(decoder, description, unfinished)
        bar.update()
        report = {"offline": _compare_offline(offline, decoder, processor, session_id, num_bins)}
        bar.update()
        report["step"] = _compare_step(step, decoder, processor, session_id, num_bins)
        bar.update()
        for part, figures in report.items():
            if not figures["parity"] <= PARITY:
                raise CheckpointError(
                    f"The exported {part} must equal the model within {PARITY} of the label s.d., got a "
                    f"difference of {figures['parity']:.1e} over {figures['num_bins']} bins. Nothing was "
                    "written; try the other format, and report this."
                )
        if folder.exists():
            folder.rmdir()
        unfinished.rename(folder)
    return {**report, "files": sorted(path.name for path in folder.iterdir())}


def _describe(decoder: StreamingDecoder, processor: RPNTProcessor, session_id: str) -> dict[str, Any]:
    """What a host needs to know, ready for JSON."""
    config, step = decoder.model.config, decoder.prepared
    return {
        "format_version": FORMAT_VERSION,
        "session_id": session_id,
        "units": processor.sessions[session_id],
        "unit_index": decoder.unit_index.tolist(),
        "bin_size": processor.bin_size,
        "target_names": config.target_names or [f"target_{k}" for k in range(config.num_targets)],
        "target_units": config.target_units or [""] * config.num_targets,
        "label_std": config.label_std or [1.0] * config.num_targets,
        "label_lag": config.label_lag,
        "attention_window": config.attention_window,
        "max_bins": decoder.max_bins,
        "num_streams": decoder.batch_size,
        "num_layers": len(step.temporal),
        "num_anchors": config.num_anchors,
        "num_slots": decoder.window - 1,
        "frequencies": step.frequencies.tolist(),
        "time_pairs": [step.time_pairs.start, step.time_pairs.stop],
    }


def _initial_inputs(decoder: StreamingDecoder, per_layer: bool) -> dict[str, NDArray[np.float32]]:
    """Every input of the step but the counts, as before the first bin."""
    step, rows = decoder.prepared, decoder.batch_size * decoder.num_sites
    inputs = {
        "cos": step.cos.numpy(),
        "sin": step.sin.numpy(),
        "site_bias": np.zeros((decoder.batch_size, decoder.num_sites), dtype=np.float32),
        "positions": np.zeros((rows, step.config.hidden_size), dtype=np.float32),
    }
    state = {name: tensor.numpy() for name, tensor in step.empty_state(decoder.batch_size)._asdict().items()}
    if not per_layer:
        return inputs | state
    for name, array in state.items():
        layered = name not in ("key_bias", "tokens", "recurrence")
        inputs |= {f"{name}_{i}": part for i, part in enumerate(array)} if layered else {name: array}
    graph = build_step_graph(step, decoder.batch_size).graph
    shapes = {node.name: [size.dim_value for size in node.type.tensor_type.shape.dim] for node in graph.input}
    return {name: array.reshape(shapes[name]) for name, array in inputs.items() if name in shapes}


class _StepOfArrays(nn.Module):
    """The step with one tensor for each name, as a program without this package can call it."""

    def __init__(self, step: StreamingStep) -> None:
        super().__init__()
        self.step = step

    def forward(
        self,
        spike_counts: Tensor,
        cos: Tensor,
        sin: Tensor,
        site_bias: Tensor,
        positions: Tensor,
        key_bias: Tensor,
        tokens: Tensor,
        recurrence: Tensor,
        queries: Tensor,
        recent_keys: Tensor,
        keys: Tensor,
        values: Tensor,
        context: Tensor,
    ) -> tuple[Tensor, ...]:
        state = StepState(key_bias, tokens, recurrence, queries, recent_keys, keys, values, context)
        predictions, rows = self.step(spike_counts, cos, sin, site_bias, positions, state)
        return predictions, *rows


def _example_window(decoder: StreamingDecoder, num_bins: int, batch_size: int) -> tuple[Tensor, Tensor]:
    """Counts (B, S, T, N) as recordings have them, and bins of which some were not recorded."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.ones(batch_size, num_bins, decoder.num_flat_units), generator=generator)
    laid_out = counts[..., torch.from_numpy(decoder.unit_index)].transpose(1, 2).contiguous()
    bin_mask = torch.rand(laid_out.shape[:3], generator=generator) < 0.9
    return laid_out, bin_mask


def _trace_offline(decoder: StreamingDecoder) -> Any:
    example = _example_window(decoder, num_bins=5, batch_size=2)
    batch, bins = torch.export.Dim("batch"), torch.export.Dim("bins")
    dims = {name: {0: batch, 2: bins} for name in ("spike_counts", "bin_mask")}
    return torch.export.export(OfflineDecoder(decoder.prepared, decoder.model), example, dynamic_shapes=dims)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keeps from users what the exporters of torch say about packages that this one does not use."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        exporter.setLevel(level)


def _write_onnx_step(decoder: StreamingDecoder, description: dict[str, Any], folder: Path) -> Stream:
    import onnx

    graph = build_step_graph(decoder.prepared, decoder.batch_size, description)
    onnx.save(graph, folder / "step.onnx")
    shutil.copyfile(exported_step.__file__, folder / "run_step.py")
    return exported_step.ExportedStep(folder).step


@torch.no_grad()
def _write_onnx_offline(decoder: StreamingDecoder, description: dict[str, Any], folder: Path) -> Offline:
    import onnx

    with _quiet_exporter():
        program = torch.onnx.export(
            _trace_offline(decoder), dynamo=True, verbose=False, output_names=["predictions"]
        )
    assert program is not None
    offline = program.model_proto
    onnx.helper.set_model_props(offline, {key: json.dumps(value) for key, value in description.items()})
    onnx.save(offline, folder / "offline.onnx")
    session = make_session(str(folder / "offline.onnx"), num_threads=1)

    def run(spike_counts: Tensor, bin_mask: Tensor) -> Tensor:
        inputs = {"spike_counts": spike_counts.numpy(), "bin_mask": bin_mask.numpy()}
        return torch.from_numpy(session.run(None, inputs)[0])

    return run


def _save_program(program: Any, description: dict[str, Any], path: Path) -> Callable[..., Any]:
    """Writes a traced program, and loads it again."""
    with _quiet_exporter():
        torch.export.save(program, path, extra_files={"description.json": json.dumps(description)})
        return torch.export.load(path).module()


@torch.no_grad()
def _write_torch_offline(decoder: StreamingDecoder, description: dict[str, Any], folder: Path) -> Offline:
    with _quiet_exporter():
        program = _trace_offline(decoder)
    return _save_program(program, description, folder / "offline.pt2")


@torch.no_grad()
def _write_torch_step(decoder: StreamingDecoder, description: dict[str, Any], folder: Path) -> Stream:
    inputs = {name: torch.from_numpy(array) for name, array in _initial_inputs(decoder, False).items()}
    counts = torch.ones(decoder.batch_size, *decoder.prepared.units.shape[:2])
    with _quiet_exporter():
        program = torch.export.export(_StepOfArrays(decoder.prepared), (counts,), kwargs=inputs)
    exported = _save_program(program, description, folder / "step.pt2")
    prepared, state = decoder.prepared, StepState(*(inputs[name] for name in StepState._fields))
    bins = itertools.count()

    @torch.inference_mode()
    def run(spike_counts: NDArray[np.float32]) -> NDArray[np.float32]:
        number = next(bins)
        angles = np.remainder(number * prepared.frequencies, 2 * np.pi)
        for name, turned in (("cos", np.cos(angles)), ("sin", np.sin(angles))):
            inputs[name][:, prepared.time_pairs] = torch.from_numpy(turned).float()
        if prepared.config.position_encoding == "sinusoidal":
            age = torch.full((len(inputs["positions"]),), number)
            inputs["positions"] = decoder.model.model.embeddings.positions(age)
        predictions, *rows = exported(torch.from_numpy(spike_counts), **inputs)
        slot = number % prepared.slots if prepared.window > 1 else -1
        push_rows(state, StepRows(*rows), slot, None, prepared.blocked)
        return predictions.numpy()

    return run


@torch.no_grad()
def _forward(
    decoder: StreamingDecoder,
    processor: RPNTProcessor,
    session_id: str | None,
    spike_counts: Tensor,
    bin_mask: Tensor,
) -> Tensor:
    """The model itself on windows of the session, (B, T, K)."""
    _, *arrays = processor.session_inputs(session_id)
    unit_ids, unit_mask, metadata = (
        torch.from_numpy(array).expand(len(spike_counts), -1, -1) for array in arrays
    )
    return decoder.model(spike_counts, unit_ids, unit_mask, bin_mask, metadata).predictions


def _difference(exported: Tensor, expected: Tensor, decoder: StreamingDecoder) -> float:
    """Largest difference in label s.d."""
    scale = torch.tensor(decoder.model.config.label_std or [1.0] * expected.shape[-1])
    return ((exported - expected).abs() / scale).max().item()


def _median_ms(run: Callable[[], Any], turns: int) -> float:
    seconds = []
    for _ in range(turns):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds)


def _compare_offline(
    exported: Offline,
    decoder: StreamingDecoder,
    processor: RPNTProcessor,
    session_id: str | None,
    num_bins: int,
) -> dict[str, Any]:
    window = _example_window(decoder, num_bins, batch_size=3)
    expected = _forward(decoder, processor, session_id, *window)
    parity = _difference(exported(*window), expected, decoder)
    one = tuple(part[:1] for part in window)
    return {
        "parity": parity,
        "exported_ms": _median_ms(lambda: exported(*one), 5),
        "torch_ms": _median_ms(lambda: _forward(decoder, processor, session_id, *one), 5),
        "num_bins": num_bins,
    }


def _compare_step(
    exported: Stream,
    decoder: StreamingDecoder,
    processor: RPNTProcessor,
    session_id: str | None,
    num_bins: int,
) -> dict[str, Any]:
    spike_counts, _ = _example_window(decoder, num_bins, decoder.batch_size)
    everywhere = torch.ones(spike_counts.shape[:3], dtype=torch.bool)
    expected = _forward(decoder, processor, session_id, spike_counts, everywhere)
    seconds: dict[str, list[float]] = {"exported_ms": [], "torch_ms": []}
    streamed = []
    for number in range(num_bins):
        counts = spike_counts[:, :, number].contiguous().numpy()
        began = time.perf_counter()
        streamed.append(torch.from_numpy(exported(counts)))
        between = time.perf_counter()
        decoder.step(counts)
        seconds["exported_ms"].append(between - began)
        seconds["torch_ms"].append(time.perf_counter() - between)
    return {
        "parity": _difference(torch.stack(streamed, dim=1), expected, decoder),
        **{name: 1000 * statistics.median(times) for name, times in seconds.items()},
        "num_bins": num_bins,
    }
