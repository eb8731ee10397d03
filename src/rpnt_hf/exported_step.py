"""Runs an exported step with numpy and onnxruntime alone.

`rpnt export --format onnx` copies this file beside `step.onnx` as `run_step.py`: it is the reference for a
host in another language, too.

The graph takes the counts of one bin and the past, and returns the decoded values and what the bin adds to
the past; it keeps nothing itself. `step_state.npz` has every input but the counts, as they are before the
first bin. The metadata of `step.onnx` says, in JSON, which unit of the session stands where in `spike_counts`
(`units` and `unit_index`; the shape is streams x sites x units), `bin_size` (s), `target_names`,
`target_units`, `label_lag`, and what is needed below. At each bin the host sets the `time_pairs` of `cos` and
`sin` to the angles bin * `frequencies`, runs the graph, and then

1. shifts `tokens` and `queries_0, ...` by one bin, oldest first, and appends `new_tokens`,
   `new_queries_0, ...`;
2. puts `new_recurrence` into `recurrence`, and the first part of `new_keys_0, ...` into
   `recent_keys_0, ...`;
3. writes `new_keys_0, ...`, `new_values_0, ...` and `new_context_0, ...` into slot bin % `num_slots` of their
   rings (for keys and values the anchors come first), and 0 into `key_bias` there.

An input that `step.onnx` does not list does not exist in that model. Not here: sites that fail (see
`StreamingDecoder`).
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ExportedStep"]


class ExportedStep:
    """A stream of bins through `step.onnx`.

    Args:
        folder (`str` or `Path`): Folder with `step.onnx` and `step_state.npz`.
        num_threads (`int`, *optional*, defaults to 1): Threads of onnxruntime.
    """

    def __init__(self, folder: str | Path, num_threads: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        path = str(Path(folder) / "step.onnx")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        properties = self.session.get_modelmeta().custom_metadata_map
        self.description: dict[str, Any] = {key: json.loads(value) for key, value in properties.items()}
        with np.load(Path(folder) / "step_state.npz") as arrays:
            self.initial = {name: arrays[name] for name in arrays.files}
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.reset()

    def reset(self) -> None:
        """Forgets the stream: the next bin is the first."""
        self.bin = 0
        self.inputs = {name: array.copy() for name, array in self.initial.items()}

    def step(self, counts: Any) -> NDArray[np.float32]:
        """Decodes the next bin.

        Args:
            counts (array of shape `(streams, units)` or `(streams, sites, units)`):
                Spikes of each unit in this bin; flat units in the order of `description["units"]`.

        Returns:
            `np.ndarray` of shape `(streams, targets)`: In `description["target_units"]`.
        """
        about, inputs = self.description, self.inputs
        counts = np.asarray(counts, dtype=np.float32)
        if counts.ndim == 2:
            counts = counts[:, np.array(about["unit_index"])]
        # In float64 and modulo a circle, since time grows without bound.
        angles = np.remainder(self.bin * np.array(about["frequencies"]), 2 * math.pi)
        first, stop = about["time_pairs"]
        inputs["cos"][:, first:stop], inputs["sin"][:, first:stop] = np.cos(angles), np.sin(angles)
        if "positions" in inputs:
            size = inputs["positions"].shape[1]
            half = (size + 1) // 2
            angles = self.bin * np.exp(np.arange(half) * (-math.log(10_000.0) / half))
            inputs["positions"][:] = np.concatenate([np.sin(angles), np.cos(angles)])[:size]
        results = self.session.run(None, {"spike_counts": counts, **inputs})
        new = dict(zip(self.outputs, results, strict=True))
        self._push(new)
        self.bin += 1
        return new["predictions"]

    def _push(self, new: dict[str, NDArray[np.float32]]) -> None:
        about, inputs = self.description, self.inputs
        if "tokens" in inputs:
            inputs["tokens"] = np.concatenate([inputs["tokens"][:, 1:], new["new_tokens"][:, None]], axis=1)
        if "recurrence" in inputs:
            inputs["recurrence"] = new["new_recurrence"]
        slots = about["num_slots"]
        slot = self.bin % slots if slots else 0
        place = about["num_anchors"] + slot
        if slots:
            inputs["key_bias"][:, place] = 0
        for layer in range(about["num_layers"]):
            queries, recent, context = (f"{name}_{layer}" for name in ("queries", "recent_keys", "context"))
            keys, values = new[f"new_keys_{layer}"], new[f"new_values_{layer}"]
            if queries in inputs:
                history = [inputs[queries][:, :, 1:], new[f"new_{queries}"]]
                inputs[queries] = np.concatenate(history, axis=2)
            if recent in inputs:
                inputs[recent] = keys[..., : inputs[recent].shape[-1]]
            if slots:
                inputs[f"keys_{layer}"][:, :, place : place + 1] = keys
                inputs[f"values_{layer}"][:, :, place : place + 1] = values
                if context in inputs:
                    inputs[context][:, slot] = new[f"new_{context}"]
