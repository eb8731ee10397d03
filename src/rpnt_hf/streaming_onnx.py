"""The step of `streaming_step.py` as a graph of standard ONNX operators, and its runner in ONNX Runtime.

The graph is written node by node: building it takes a fraction of a second, where tracing takes several, and
a decoder is made each time that a loop starts. Tests hold it equal to the torch step on every switch.

Legend: as in `streaming_step.py`.
"""

import importlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .streaming_step import LayerWeights, StepState, StreamingStep

if TYPE_CHECKING:
    import onnx

__all__ = ["OnnxBackend", "build_step_graph", "find_obstacle", "make_session"]

OPSET = 20  # the first with `Gelu`
IR_VERSION = 9
# Activations of the feed-forward layers that are one operator here, by `hidden_act`.
ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "gelu": ("Gelu", {}),
    "gelu_new": ("Gelu", {"approximate": "tanh"}),
    "gelu_pytorch_tanh": ("Gelu", {"approximate": "tanh"}),
    "relu": ("Relu", {}),
    "tanh": ("Tanh", {}),
}


def find_obstacle(step: StreamingStep) -> str | None:
    """Says what keeps a step from running in ONNX Runtime.

    Args:
        step ([`StreamingStep`]): Prepared weights.

    Returns:
        `str` or `None`: The end of an error message, or None where nothing does.
    """
    if step.device.type != "cpu" or step.dtype != torch.float32:
        return f"it takes a model on the CPU in float32, and this one is {step.dtype} on {step.device}"
    if step.config.hidden_act not in ACTIVATIONS:
        return f"it has `hidden_act` {', '.join(ACTIVATIONS)}, and this model has '{step.config.hidden_act}'"
    try:
        importlib.import_module("onnx")
        importlib.import_module("onnxruntime")
    except ImportError as error:
        return f"`{error.name}` cannot be imported: pip install 'rpnt_hf[onnx]'"
    return None


class _Graph:
    """Collects nodes and constants; every method returns the name of what it made."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.names: dict[str, str] = {}  # of values that are outputs

    def input(self, name: str, *shape: int) -> str:
        import onnx

        self.inputs.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
        return name

    def output(self, name: str, source: str, *shape: int) -> None:
        import onnx

        self.outputs.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
        self.names[source] = name

    def constant(self, value: Tensor | NDArray[Any] | list[int] | float) -> str:
        import onnx

        if isinstance(value, Tensor):
            value = value.detach().numpy()
        array = np.asarray(value, dtype=np.int64 if isinstance(value, list) else np.float32)
        name = f"constant_{len(self.constants)}"
        self.constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def many(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        import onnx

        names = [f"{kind}_{len(self.nodes)}_{which}" for which in range(outputs)]
        self.nodes.append(onnx.helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self.many(kind, *inputs, outputs=1, **attributes)[0]

    def finish(self) -> None:
        """Gives outputs their names where they are made, instead of copying them."""
        for node in self.nodes:
            for side in (node.input, node.output):
                side[:] = [self.names.get(name, name) for name in side]

    def reshape(self, source: str, *shape: int) -> str:
        return self.op("Reshape", source, self.constant(list(shape)))

    def split(self, source: str, *sizes: int, axis: int = -1) -> list[str]:
        return self.many("Split", source, self.constant(list(sizes)), outputs=len(sizes), axis=axis)

    def linear(self, source: str, weight: Tensor, bias: Tensor) -> str:
        return self.op("Gemm", source, self.constant(weight), self.constant(bias))

    def norm(self, source: str, size: int, epsilon: float, gain: Any = None, shift: Any = None) -> str:
        gain = self.constant(np.ones(size) if gain is None else gain)
        shift = self.constant(np.zeros(size) if shift is None else shift)
        return self.op("LayerNormalization", source, gain, shift, axis=-1, epsilon=epsilon)


class _StepBuilder:
    """Writes the graph of one step for a fixed number of streams; method by method as `StreamingStep`."""

    def __init__(self, step: StreamingStep, batch_size: int) -> None:
        self.step, self.config, self.graph = step, step.config, _Graph()
        self.batch_size, self.rows = batch_size, batch_size * step.num_sites
        self.heads, self.size, self.width = (
            self.config.num_attention_heads, self.config.head_size, self.config.hidden_size,
        )  # fmt: skip
        self.places = self.config.num_anchors + step.slots

    def tables(self, cos: str, sin: str) -> tuple[str, str]:
        """Cosines and signed sines, shaped for `rotate`."""
        graph, pairs = self.graph, self.size // 2
        sites = self.step.num_sites
        signed = graph.op(
            "Concat",
            graph.reshape(graph.op("Neg", sin), sites, 1, 1, pairs),
            graph.reshape(sin, sites, 1, 1, pairs),
            axis=2,
        )
        return graph.reshape(cos, sites, 1, 1, pairs), signed

    def rotate(self, states: str, rotation: tuple[str, str]) -> list[str]:
        """(R, 2 * D) -> queries and keys, each (R, H, 1, d)."""
        graph, cos_sin, pairs = self.graph, rotation, self.size // 2
        # With one site the table is the same for all rows, and one axis fewer is needed.
        lead = (self.rows,) if self.step.num_sites == 1 else (self.batch_size, self.step.num_sites)
        states = graph.reshape(states, *lead, 2 * self.heads, 2, pairs)
        first, second = graph.split(states, 1, 1, axis=-2)
        swapped = graph.op("Concat", second, first, axis=-2)
        turned = graph.op("Add", graph.op("Mul", states, cos_sin[0]), graph.op("Mul", swapped, cos_sin[1]))
        turned = graph.reshape(turned, self.rows, 2 * self.heads, 1, self.size)
        return graph.split(turned, self.heads, self.heads, axis=1)

    def feed_forward(self, hidden: str, layer: LayerWeights) -> str:
        graph = self.graph
        normed = graph.norm(hidden, self.width, self.config.layer_norm_eps)
        kind, attributes = ACTIVATIONS[self.config.hidden_act]
        expanded = graph.op(kind, graph.linear(normed, layer.up_weight, layer.up_bias), **attributes)
        return graph.op("Add", hidden, graph.linear(expanded, layer.down_weight, layer.down_bias))

    def fused_query(self, query: str, mapped: str, layer: LayerWeights, index: int) -> str:
        """Kernel values of this bin pooled with the past, and the queries under them, (R, H, 1, E)."""
        graph, rows, heads, size = self.graph, self.rows, self.heads, self.size
        query_taps, key_taps = self.config.context_attention.taps
        terms = self.step.num_context_terms
        mapped = graph.norm(
            mapped,
            self.config.context_attention.context_size,
            self.config.layer_norm_eps,
            layer.context_norm_weight,
            layer.context_norm_bias,
        )
        assert layer.kernel_weight is not None and layer.kernel_bias is not None
        generated = graph.linear(graph.op("Gelu", mapped), layer.kernel_weight, layer.kernel_bias)
        values, score = graph.split(generated, terms, 1)
        weight = graph.op("Exp", graph.op("Mul", graph.op("Tanh", score), graph.constant(8.0)))
        values = graph.op("Mul", values, weight)
        graph.output(f"new_context_{index}", values, rows, terms)
        ring = graph.input(f"context_{index}", rows, self.step.slots, terms)
        past = graph.op("ReduceSum", ring, graph.constant([1]), keepdims=0)
        logits, total = graph.split(graph.op("Add", past, values), terms - 1, 1)
        logits = graph.reshape(graph.op("Div", logits, total), rows, heads, key_taps * query_taps)
        kernel = graph.reshape(graph.op("Softmax", logits, axis=-1), rows, heads, key_taps, query_taps)
        seen = query
        if query_taps > 1:
            earlier = graph.input(f"queries_{index}", rows, heads, query_taps - 1, size)
            seen = graph.op("Concat", earlier, query, axis=2)
        return graph.reshape(graph.op("MatMul", kernel, seen), rows, heads, 1, key_taps * size)

    def temporal_layer(
        self, hidden: str, layer: LayerWeights, rotation: tuple[str, str], key_bias: str, index: int
    ) -> str:
        graph, rows, heads, size, width = self.graph, self.rows, self.heads, self.size, self.width
        key_taps = self.config.context_attention.taps[1]
        normed = graph.norm(hidden, width, self.config.layer_norm_eps)
        projected = graph.linear(normed, layer.project_weight, layer.project_bias)
        others = [layer.project_weight.shape[1] - 3 * width] if layer.kernel_weight is not None else []
        states, value, *mapped = graph.split(projected, 2 * width, width, *others)
        query, fused_key = self.rotate(states, rotation)
        value = graph.reshape(value, rows, heads, 1, size)
        graph.output(f"new_queries_{index}", query, rows, heads, 1, size)
        graph.output(f"new_values_{index}", value, rows, heads, 1, size)
        if key_taps > 1:
            recent = graph.input(f"recent_keys_{index}", rows, heads, 1, (key_taps - 1) * size)
            fused_key = graph.op("Concat", fused_key, recent, axis=-1)
        graph.output(f"new_keys_{index}", fused_key, rows, heads, 1, key_taps * size)
        fused_query = query
        if mapped:
            fused_query = self.fused_query(query, mapped[0], layer, index)
        keys = graph.input(f"keys_{index}", rows, heads, self.places, key_taps * size)
        values = graph.input(f"values_{index}", rows, heads, self.places, size)
        past = graph.op("MatMul", fused_query, graph.op("Transpose", keys, perm=[0, 1, 3, 2]))
        past = graph.op("Add", past, key_bias)
        now = graph.op("MatMul", fused_query, graph.op("Transpose", fused_key, perm=[0, 1, 3, 2]))
        weights = graph.op("Softmax", graph.op("Concat", past, now, axis=-1), axis=-1)
        of_past, of_now = graph.split(weights, self.places, 1)
        own = graph.op("Mul", of_now, value)
        output = graph.reshape(graph.op("Add", graph.op("MatMul", of_past, values), own), rows, width)
        hidden = graph.op("Add", hidden, graph.linear(output, layer.output_weight, layer.output_bias))
        return self.feed_forward(hidden, layer)

    def spatial_layer(self, hidden: str, layer: LayerWeights, rotation: tuple[str, str], bias: str) -> str:
        graph, heads, size, width = self.graph, self.heads, self.size, self.width
        sites, streams = self.step.num_sites, self.batch_size
        normed = graph.norm(hidden, width, self.config.layer_norm_eps)
        projected = graph.linear(normed, layer.project_weight, layer.project_bias)
        states, value = graph.split(projected, 2 * width, width)
        parts = [*self.rotate(states, rotation), value]
        laid_out = [graph.reshape(part, streams, sites, heads, size) for part in parts]
        query, key, value = (graph.op("Transpose", part, perm=[0, 2, 1, 3]) for part in laid_out)
        scores = graph.op("MatMul", query, graph.op("Transpose", key, perm=[0, 1, 3, 2]))
        scores = graph.op("Add", scores, bias)
        if layer.anchor_keys is None or layer.anchor_values is None:
            output = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), value)
        else:
            anchors = layer.anchor_keys.shape[1]
            of_anchors = graph.op("MatMul", query, graph.constant(layer.anchor_keys.transpose(1, 2)))
            weights = graph.op("Softmax", graph.op("Concat", of_anchors, scores, axis=-1), axis=-1)
            of_anchors, of_sites = graph.split(weights, anchors, sites)
            output = graph.op(
                "Add",
                graph.op("MatMul", of_anchors, graph.constant(layer.anchor_values)),
                graph.op("MatMul", of_sites, value),
            )
        output = graph.reshape(graph.op("Transpose", output, perm=[0, 2, 1, 3]), self.rows, width)
        hidden = graph.op("Add", hidden, graph.linear(output, layer.output_weight, layer.output_bias))
        return self.feed_forward(hidden, layer)

    def embed(self) -> str:
        """Counts to the input of the first layer, (R, D)."""
        graph, step, rows, width = self.graph, self.step, self.rows, self.width
        sites, units = step.units.shape[:2]
        roots = graph.op("Sqrt", graph.input("spike_counts", self.batch_size, sites, units))
        if sites == 1:
            roots = graph.reshape(roots, rows, units)
            token = graph.op("MatMul", roots, graph.constant(step.units[0]))
        else:
            roots = graph.reshape(roots, self.batch_size, sites, 1, units)
            token = graph.reshape(graph.op("MatMul", roots, graph.constant(step.units)), rows, width)
        graph.output("new_tokens", token, rows, width)
        hidden = token
        if step.stem is not None:
            taps, now, bias, gain, shift = step.stem
            earlier = graph.input("tokens", rows, len(taps), width)
            past = graph.op("Mul", earlier, graph.constant(taps))
            past = graph.op("ReduceSum", past, graph.constant([1]), keepdims=0)
            own = graph.op("Add", graph.op("Mul", token, graph.constant(now)), graph.constant(bias))
            hidden = graph.op("Add", past, own)
            hidden = graph.norm(hidden, width, self.config.layer_norm_eps, gain, shift)
        if step.recurrence is not None:
            hidden = self.recur(hidden)
        if self.config.position_encoding == "sinusoidal":
            hidden = graph.op("Add", hidden, graph.input("positions", rows, width))
        return hidden

    def recur(self, hidden: str) -> str:
        """One bin of the recurrent stem, (R, D) -> (R, D)."""
        graph, rows, width = self.graph, self.rows, self.width
        assert self.step.recurrence is not None
        past = graph.input("recurrence", rows, 2, width)
        past = graph.reshape(past, rows, 2 * width)
        output, cell = graph.split(past, width, width)
        joined = graph.op("Concat", hidden, output, axis=-1)
        enter, keep, new, leave = graph.split(graph.linear(joined, *self.step.recurrence), *[width] * 4)
        kept = graph.op("Mul", graph.op("Sigmoid", keep), cell)
        entered = graph.op("Mul", graph.op("Sigmoid", enter), graph.op("Tanh", new))
        cell = graph.op("Add", kept, entered)
        output = graph.op("Mul", graph.op("Sigmoid", leave), graph.op("Tanh", cell))
        joined = graph.reshape(graph.op("Concat", output, cell, axis=-1), rows, 2, width)
        graph.output("new_recurrence", joined, rows, 2, width)
        return output

    def pool(self, states: str, weight: Tensor, bias: Tensor, site_bias: str) -> str:
        """Weighted mean over sites, (R, D) -> (B, D)."""
        graph, streams, sites = self.graph, self.batch_size, self.step.num_sites
        if sites == 1:
            return states
        scores = graph.reshape(graph.linear(states, weight, bias), streams, sites)
        weights = graph.op("Softmax", graph.op("Add", scores, site_bias), axis=-1)
        by_site = graph.reshape(states, streams, sites, self.width)
        pooled = graph.op("MatMul", graph.reshape(weights, streams, 1, sites), by_site)
        return graph.reshape(pooled, streams, self.width)

    def build(self) -> _Graph:
        graph, step, config = self.graph, self.step, self.config
        sites, pairs = step.num_sites, self.size // 2
        hidden = stem = self.embed()
        rotation = self.tables(graph.input("cos", sites, pairs), graph.input("sin", sites, pairs))
        key_bias = graph.input("key_bias", self.rows, self.places)
        key_bias = graph.reshape(key_bias, self.rows, 1, 1, self.places)
        for index, layer in enumerate(step.temporal):
            hidden = self.temporal_layer(hidden, layer, rotation, key_bias, index)
        site_bias = ""
        if sites > 1:
            site_bias = graph.input("site_bias", self.batch_size, sites)
        if step.spatial:
            cos, sin = step.spatial_tables
            turned = self.tables(graph.constant(cos), graph.constant(sin))
            if sites > 1:
                bias = graph.reshape(site_bias, self.batch_size, 1, 1, sites)
            else:
                bias = graph.constant(0.0)
            for layer in step.spatial:
                hidden = self.spatial_layer(hidden, layer, turned, bias)
        hidden = graph.norm(hidden, self.width, config.layer_norm_eps)
        pooled = self.pool(hidden, step.score_weight, step.score_bias, site_bias)
        predictions = graph.linear(pooled, step.readout_weight, step.readout_bias)
        if step.stem_readout is not None:
            score_weight, score_bias, weight = step.stem_readout
            pooled = self.pool(stem, score_weight, score_bias, site_bias)
            read = graph.op("MatMul", pooled, graph.constant(weight))
            predictions = graph.op("Add", predictions, read)
        graph.output("predictions", predictions, self.batch_size, config.num_targets)
        graph.finish()
        return graph


def build_step_graph(
    step: StreamingStep, batch_size: int, description: dict[str, Any] | None = None
) -> "onnx.ModelProto":
    """Makes the ONNX model of one step.

    Args:
        step ([`StreamingStep`]): Prepared weights, fp32 on the CPU.
        batch_size (`int`): Streams, which are fixed in the graph.
        description (`dict`, *optional*): Written into the metadata of the model, values as JSON.

    Returns:
        `onnx.ModelProto`: Inputs `spike_counts`, `cos`, `sin`, the fields of `StepState` (those of layers
        with the index of the layer, as `keys_0`) and, where the model has them, `site_bias` and `positions`;
        outputs `predictions` and the fields of `StepRows`, as `new_keys_0`. Arrays of size 0 are left out.
    """
    import onnx

    graph = _StepBuilder(step, batch_size).build()
    model = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, "rpnt_step", graph.inputs, graph.outputs, graph.constants),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="rpnt_hf",
    )
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in (description or {}).items()})
    return model


def make_session(model: Any, num_threads: int) -> Any:
    """Opens a model in ONNX Runtime on the CPU.

    Args:
        model (`bytes` or `str`): Serialised model, or the path of one.
        num_threads (`int`): Threads inside an operator.

    Returns:
        `onnxruntime.InferenceSession`
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


class OnnxBackend:
    """Runs the step in ONNX Runtime on arrays that are bound once, and share memory with the state.

    Args:
        step ([`StreamingStep`]): Prepared weights.
        state ([`StepState`]): State on the CPU in fp32, changed in place.
        num_threads (`int`): Threads of ONNX Runtime.
    """

    def __init__(self, step: StreamingStep, state: StepState, num_threads: int) -> None:
        config = step.config
        batch_size = len(state.key_bias) // step.num_sites
        model = build_step_graph(step, batch_size)
        self.session = make_session(model.SerializeToString(), num_threads)
        self.step = step
        self.state = {name: tensor.numpy() for name, tensor in state._asdict().items()}
        layers, rows, heads, _, width = self.state["keys"].shape
        size = config.head_size

        def zeros(*shape: int) -> NDArray[np.float32]:
            return np.zeros(shape, dtype=np.float32)

        self.inputs = {
            "spike_counts": zeros(batch_size, *step.units.shape[:2]),
            "cos": zeros(step.num_sites, size // 2),
            "sin": zeros(step.num_sites, size // 2),
            "site_bias": zeros(batch_size, step.num_sites),
            "positions": zeros(rows, config.hidden_size),
        }
        self.new = {
            "tokens": zeros(rows, config.hidden_size),
            "recurrence": np.zeros_like(self.state["recurrence"]),
            "queries": zeros(layers, rows, heads, size),
            "keys": zeros(layers, rows, heads, width),
            "values": zeros(layers, rows, heads, size),
            "context": zeros(layers, rows, step.num_context_terms),
        }
        self.predictions = zeros(batch_size, config.num_targets)
        self.absent = step.absent.numpy()
        self.binding = self.session.io_binding()
        for node in self.session.get_inputs():
            array = self._array(node.name, {**self.inputs, **self.state})
            self.binding.bind_cpu_input(node.name, array.reshape(node.shape))
        new = {f"new_{name}": array for name, array in self.new.items()}
        for node in self.session.get_outputs():
            array = self._array(node.name, {"predictions": self.predictions, **new})
            self.binding.bind_output(node.name, "cpu", 0, np.float32, node.shape, array.ctypes.data)

    @staticmethod
    def _array(name: str, arrays: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """Finds the memory of an input or output: of a whole array, or of one layer of it (`keys_0`)."""
        if name in arrays:
            return arrays[name]
        field, _, layer = name.rpartition("_")
        return arrays[field][int(layer)]

    def run(
        self,
        spike_counts: NDArray[Any],
        rotation: tuple[NDArray[np.float32], NDArray[np.float32]],
        recorded: NDArray[np.bool_] | None,
        positions: Tensor | None,
        slot: int,
    ) -> Tensor:
        """Decodes one bin, `(B, S, N)` -> `(B, K)`, and moves the state on."""
        inputs = self.inputs
        inputs["spike_counts"][:] = spike_counts
        inputs["cos"][:], inputs["sin"][:] = rotation
        inputs["site_bias"][:] = 0 if recorded is None else np.where(recorded, 0, self.step.blocked)
        if positions is not None:
            inputs["positions"][:] = positions.numpy()
        self.session.run_with_iobinding(self.binding)
        predictions = self.predictions.copy()
        if recorded is not None:
            predictions[~recorded.any(axis=1)] = self.absent
        self._push(slot, None if recorded is None else recorded.reshape(-1))
        return torch.from_numpy(predictions)

    def run_dry(self) -> None:
        """Does the work of one bin and forgets it: what it writes is overwritten by the next."""
        self.session.run_with_iobinding(self.binding)

    def _push(self, slot: int, recorded: NDArray[np.bool_] | None) -> None:
        """As `streaming_step.push_rows`, in numpy."""
        state, new = self.state, self.new
        if recorded is not None:
            missing = ~recorded
            new["tokens"][missing] = 0
            new["recurrence"][missing] = state["recurrence"][missing]
            for name in ("queries", "values", "context"):
                new[name][:, missing] = 0
            new["keys"][:, missing, :, : self.step.config.head_size] = 0
        for name, axis in (("tokens", 1), ("queries", 3)):
            history = np.moveaxis(state[name], axis, 0)
            if len(history):
                history[:-1] = history[1:]
                history[-1] = new[name]
        state["recurrence"][:] = new["recurrence"]
        state["recent_keys"][:] = new["keys"][..., : state["recent_keys"].shape[-1]]
        if slot >= 0:
            place = self.step.config.num_anchors + slot
            state["keys"][:, :, :, place] = new["keys"]
            state["values"][:, :, :, place] = new["values"]
            state["context"][:, :, slot] = new["context"]
            state["key_bias"][:, place] = 0 if recorded is None else np.where(recorded, 0, self.step.blocked)
