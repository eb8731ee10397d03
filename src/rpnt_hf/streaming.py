"""Decodes bin by bin inside a closed loop: counts of one bin in, behaviour out, state in between.

Equal to the forward pass over the whole stream. Here are the stream and its rings; the arithmetic of one bin
is in `streaming_step.py`, and its ONNX form in `streaming_onnx.py`. Not for files: that is `decoding.py`.

Legend: `B` parallel streams, `S` sites, `N` units, `P` rotation pairs, `W` bins in the window, `K` targets.
"""

import logging
import math
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import streaming_onnx
from .errors import CheckpointError, ConfigurationError, InputError, closest_names
from .modeling_rpnt import RPNTForMotorDecoding
from .processing_rpnt import RPNTProcessor
from .streaming_step import StepState, StreamingStep, push_rows

logger = logging.getLogger(__name__)

BACKENDS = ("torch", "onnx")


class Backend(Protocol):
    """Runs the step on a state that it shares with the decoder, and writes the new rows into it."""

    def run(
        self,
        spike_counts: NDArray[Any],
        rotation: tuple[NDArray[np.float32], NDArray[np.float32]],
        recorded: NDArray[np.bool_] | None,
        positions: Tensor | None,
        slot: int,
    ) -> Tensor:
        """Decodes one bin, `(B, S, N)` -> `(B, K)`, and moves the state on."""
        ...

    def run_dry(self) -> None:
        """Does the work of one bin and forgets it: the state stays as it is."""
        ...


class TorchBackend:
    """Runs the step in torch, on the device and in the type of the model.

    Args:
        step ([`StreamingStep`]): Prepared weights.
        state ([`StepState`]): State that is changed in place.
    """

    def __init__(self, step: StreamingStep, state: StepState) -> None:
        self.step, self.state = step, state
        self.no_positions = torch.zeros((), device=step.device)
        self.all_sites = torch.zeros(1, step.num_sites, dtype=step.wide, device=step.device)

    def run(
        self,
        spike_counts: NDArray[Any],
        rotation: tuple[NDArray[np.float32], NDArray[np.float32]],
        recorded: NDArray[np.bool_] | None,
        positions: Tensor | None,
        slot: int,
    ) -> Tensor:
        """Decodes one bin, `(B, S, N)` -> `(B, K)`, and moves the state on."""
        step = self.step
        cos, sin = (torch.from_numpy(table).to(step.device) for table in rotation)
        mask, site_bias = None, self.all_sites
        if recorded is not None:
            mask = torch.from_numpy(recorded).to(step.device)
            site_bias = self.all_sites.expand(mask.shape).masked_fill(~mask, step.blocked)
        predictions, rows = step(
            torch.from_numpy(spike_counts).to(step.device),
            cos,
            sin,
            site_bias.expand(len(spike_counts), -1),
            self.no_positions if positions is None else positions,
            self.state,
        )
        push_rows(self.state, rows, slot, None if mask is None else mask.flatten(), step.blocked)
        if mask is not None:
            predictions = torch.where(mask.any(dim=1, keepdim=True), predictions, step.absent)
        return predictions

    def run_dry(self) -> None:
        """Does the work of one bin and forgets it: the state stays as it is."""
        step, rows = self.step, len(self.state.key_bias)
        counts = torch.zeros(rows // step.num_sites, *step.units.shape[:2], device=step.device)
        site_bias = self.all_sites.expand(len(counts), -1)
        step(counts, step.cos, step.sin, site_bias, self.no_positions, self.state)


class StreamingDecoder:
    """Runs a decoder one bin at a time, in constant time and memory (DESIGN 2.6).

    Rings hold what the attention window still needs: fused keys, values and context terms of its bins, in any
    order, since positions are in the keys. The context is summed afresh at every bin, because running
    differences drift. Weights are copied when the decoder is made: after the model has changed, make another.

    Args:
        model ([`RPNTForMotorDecoding`]):
            The decoder; it is put into evaluation mode.
        processor ([`RPNTProcessor`], *optional*):
            Its processor, for the units and metadata of a session. Without one, `sites` and the default units
            of the model are taken, and metadata are unknown.
        session_id (`str`, *optional*):
            Session of the processor whose units come in; required with a vocabulary.
        batch_size (`int`, *optional*, defaults to 1):
            Parallel streams of that session, 1 or more.
        sites (`int`, *optional*, defaults to 1):
            Sites, where there is no processor.
        max_bins (`int`, *optional*):
            Longest stream, for a model without `attention_window`, whose memory it sets.
        backend (`str`, *optional*):
            "onnx" runs each bin in ONNX Runtime: a model on the CPU in fp32, and the extra
            `rpnt_hf[onnx]`. "torch" runs any model anywhere. None takes "onnx", which is faster, where it
            can be.
        num_threads (`int`, *optional*, defaults to 1):
            Threads of ONNX Runtime, 1 or more; torch has its own setting (`torch.set_num_threads`).

    Raises:
        ConfigurationError: The model has learned positions, or neither a window nor `max_bins`, or layers
            that are not plain (adapters that are not merged); or the backend is unknown or cannot run this
            model here.
        InputError: The session is unknown.

    Example:
        ```python
        >>> import numpy as np
        >>> from rpnt_hf import RPNTConfig
        >>> decoder = StreamingDecoder(RPNTForMotorDecoding(RPNTConfig.preset("tiny", num_units=3)))
        >>> decoder.step(np.array([0, 2, 1])).shape
        torch.Size([2])
        ```
    """

    def __init__(
        self,
        model: RPNTForMotorDecoding,
        processor: RPNTProcessor | None = None,
        session_id: str | None = None,
        batch_size: int = 1,
        sites: int = 1,
        max_bins: int | None = None,
        backend: str | None = None,
        num_threads: int = 1,
    ) -> None:
        config = model.config
        if config.position_encoding == "learned":
            raise ConfigurationError(
                "A stream has no last bin, so `position_encoding` must not be 'learned', got 'learned'. "
                "Train with 'mrope' to stream."
            )
        if config.attention_window is None and max_bins is None:
            raise ConfigurationError(
                "A stream needs `attention_window` in the configuration of the model, or `max_bins`, got "
                "neither: its memory would grow without end. Train with a window, or state the longest "
                "stream."
            )
        for name, value in (("batch_size", batch_size), ("sites", sites), ("num_threads", num_threads)):
            if value < 1:
                raise ConfigurationError(f"`{name}` must be at least 1, got {value}.")
        self.model = model.eval()
        self.batch_size = batch_size
        self.max_bins = max_bins if config.attention_window is None else None
        self.window = int(config.attention_window or max_bins or 0)
        trained = processor.window_bins if processor is not None else None
        if trained is not None and config.attention_window is not None and config.attention_window > trained:
            logger.warning(
                "`attention_window` is %d bins but training windows had %d: keys further back were never "
                "trained.",
                config.attention_window, trained,
            )  # fmt: skip
        self._take_session(processor, session_id, sites)
        self._rotation = (
            self.prepared.cos.cpu().numpy().astype(np.float32),
            self.prepared.sin.cpu().numpy().astype(np.float32),
        )
        self.backend = self._choose_backend(backend)
        self.state = self.prepared.empty_state(batch_size)
        self._backend: Backend
        if self.backend == "onnx":
            self._backend = streaming_onnx.OnnxBackend(self.prepared, self.state, num_threads)
        else:
            self._backend = TorchBackend(self.prepared, self.state)
        self.reset()

    def _take_session(self, processor: RPNTProcessor | None, session_id: str | None, sites: int) -> None:
        """Lays out the units of the session and prepares the weights once; each step only gathers."""
        device, metadata = self.model.device, None
        if processor is None:
            units = self.model.config.num_units
            units = units // sites if self.model.config.unit_embedding == "vocabulary" else units
            unit_ids = self.model.model.default_unit_ids(torch.zeros(1, sites, 1, units, device=device))[0]
            unit_mask = torch.ones_like(unit_ids, dtype=torch.bool)
            self.unit_index = np.arange(sites * units).reshape(sites, units)
            self.num_flat_units = sites * units
        else:
            index, *arrays = processor.session_inputs(session_id)
            self.unit_index = index
            unit_ids, unit_mask, metadata = (torch.from_numpy(array).to(device) for array in arrays)
            self.num_flat_units = len(processor.sessions[session_id or ""])
        self.num_sites = len(self.unit_index)
        self.prepared = StreamingStep(self.model, unit_ids, unit_mask, metadata, self.window)
        laid_out, flat = self.unit_index.shape, (self.num_flat_units,)
        several: list[tuple[int, ...]] = [(self.batch_size, *flat), (self.batch_size, *laid_out)]
        self._shapes = several if self.batch_size > 1 else [laid_out, flat, several[1]]

    def _choose_backend(self, backend: str | None) -> str:
        if backend not in (None, *BACKENDS):
            raise ConfigurationError(
                f"`backend` must be one of {', '.join(BACKENDS)} or None, got "
                f"'{backend}'.{closest_names(str(backend), BACKENDS)}"
            )
        if backend == "torch":
            return backend
        obstacle = streaming_onnx.find_obstacle(self.prepared)
        if backend == "onnx" and obstacle is not None:
            raise ConfigurationError(
                f"`backend`='onnx' must have what it needs, but {obstacle}. Or take `backend`='torch'."
            )
        return "torch" if obstacle is not None else "onnx"

    def _turn_time(self) -> None:
        """Sets the rotation to the current bin: the pairs of time turn, those of metadata stay."""
        # float64 modulo a circle: time grows without bound, and an fp32 angle is off by 5e-3 after 2.5 h.
        angles = np.remainder(self._bin * self.prepared.frequencies, 2 * math.pi)
        cos, sin = self._rotation
        cos[:, self.prepared.time_pairs] = np.cos(angles)
        sin[:, self.prepared.time_pairs] = np.sin(angles)

    def reset(self) -> None:
        """Forgets the stream: the next bin is the first."""
        self._bin = 0
        self._age = torch.zeros(self.batch_size, self.num_sites, dtype=torch.long)
        for tensor, empty in zip(self.state, self.prepared.empty_state(self.batch_size), strict=True):
            tensor.copy_(empty)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Does the work of one bin and forgets it; the stream goes on where it was.

        Between two bins other work takes the weights out of the caches of the processor, and the next step
        pays for reading them again. Call this shortly before a bin is due, where there is time to spare.
        """
        self._backend.run_dry()

    def state_dict(self) -> dict[str, Any]:
        """Copies the state, for another process or for going back.

        Returns:
            `dict[str, Any]`: The number of bins so far and tensors on the CPU; `torch.save`, `pickle` and
            `load_state_dict` take it, whatever the backend.
        """
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in self.state._asdict().items()}
        return {"bin": self._bin, "age": self._age.clone(), **tensors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state.

        Args:
            state (`dict[str, Any]`): From `state_dict` of a decoder with the same model, session and batch
                size, of either backend.

        Raises:
            CheckpointError: The state belongs to another model, session or batch size.
        """
        own = {"age": self._age, **self.state._asdict()}
        expected = {name: tuple(tensor.shape) for name, tensor in own.items()}
        arrived = {name: tuple(value.shape) for name, value in state.items() if name != "bin"}
        if expected != arrived or "bin" not in state:
            differing = [name for name in expected if expected[name] != arrived.get(name)] or ["bin"]
            name = differing[0]
            raise CheckpointError(
                "The state must come from a decoder with the same model, session and batch size, whose "
                f"`{name}` has shape {expected.get(name, ())}, got {arrived.get(name, 'none')}. Make the "
                "decoder in the same way."
            )
        self._bin = int(state["bin"])
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def _checked(self, counts: Any) -> NDArray[Any]:
        """Counts as (B, S, N), or an error that leaves the state as it was."""
        if isinstance(counts, Tensor):
            counts = counts.detach().cpu()
            counts = (counts.float() if counts.dtype == torch.bfloat16 else counts).numpy()
        counts = np.asarray(counts)
        if counts.shape not in self._shapes:
            raise InputError(
                f"`counts` of one bin must have shape {' or '.join(map(str, self._shapes))}, got "
                f"{counts.shape} at bin {self._bin}. The stream goes on where it was."
            )
        if counts.dtype.kind not in "buif":
            raise InputError(
                f"`counts` must be numbers, got {counts.dtype} at bin {self._bin}. The stream goes on where "
                "it was."
            )
        # NaN fails the first comparison and infinity the second, so a good bin costs one pass.
        if not 0 <= counts.min() <= counts.max() < math.inf:
            if counts.dtype.kind == "f" and not np.isfinite(counts).all():
                raise InputError(
                    f"`counts` must be finite, got NaN or infinity at bin {self._bin}. The stream goes on "
                    "where it was; for a site that failed pass `site_mask`."
                )
            raise InputError(
                f"`counts` must be 0 or more, got {counts.min()} at bin {self._bin}. The stream goes on "
                "where it was."
            )
        if counts.shape[-1] == self.num_flat_units and counts.shape[-2:] != self.unit_index.shape:
            counts = counts[..., self.unit_index]
        dtype = np.float64 if self.prepared.dtype == torch.float64 else np.float32
        return np.ascontiguousarray(counts, dtype=dtype).reshape(self.batch_size, *self.unit_index.shape)

    def _checked_sites(self, site_mask: Any) -> NDArray[np.bool_] | None:
        """Sites as (B, S), None where all were recorded, or an error."""
        if site_mask is None:
            return None
        if isinstance(site_mask, Tensor):
            site_mask = site_mask.detach().cpu().numpy()
        recorded = np.asarray(site_mask, dtype=bool)
        if recorded.shape not in ((self.num_sites,), (self.batch_size, self.num_sites)):
            raise InputError(
                f"`site_mask` must have shape {(self.num_sites,)} or {(self.batch_size, self.num_sites)}, "
                f"got {recorded.shape} at bin {self._bin}. The stream goes on where it was."
            )
        if recorded.all():
            return None
        return np.broadcast_to(recorded, (self.batch_size, self.num_sites)).copy()

    @torch.inference_mode()
    def step(self, counts: Any, site_mask: Any = None) -> Tensor:
        """Takes the counts of the next bin and decodes it.

        Args:
            counts (array of shape `(N,)`, `(S, N)`, `(B, N)` or `(B, S, N)`):
                Spikes of each unit in this bin, 0 or more; flat units in the order of the session.
            site_mask (array of shape `(S,)` or `(B, S)`, *optional*):
                True where a site was recorded in this bin; all by default.

        Returns:
            `torch.FloatTensor` of shape `(K,)`, or `(B, K)` with several streams: behaviour in
            `config.target_units`, `label_lag` bins ahead.

        Raises:
            InputError: Counts or sites of the wrong shape, counts negative or not finite, or a stream longer
                than `max_bins`. The state is as before.
        """
        spike_counts = self._checked(counts)
        recorded = self._checked_sites(site_mask)
        if self.max_bins is not None and self._bin >= self.max_bins:
            raise InputError(
                f"The stream must end after `max_bins`={self.max_bins} bins, got one more. Call `reset`, or "
                "train with `attention_window`."
            )
        positions = None
        if self.model.config.position_encoding == "sinusoidal":
            age = self._age.to(self.model.device)
            positions = self.model.model.embeddings.positions(age).flatten(0, 1)
        self._turn_time()
        slot = self._bin % (self.window - 1) if self.window > 1 else -1
        predictions = self._backend.run(spike_counts, self._rotation, recorded, positions, slot)
        self._age += 1 if recorded is None else torch.from_numpy(recorded) | (self._age > 0)
        self._bin += 1
        return predictions if self.batch_size > 1 else predictions[0]


__all__ = ["StreamingDecoder"]
