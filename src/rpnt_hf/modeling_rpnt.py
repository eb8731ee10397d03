"""The RPNT network: spike counts of many sites in, representations, firing rates or behaviour out.

Fang et al. 2026, arXiv:2601.17641. Where this differs from the paper or its released code, the line that
differs says so; docs/decisions.md has the measurements. Not here: masks and losses (`objectives.py`), data,
training.

Legend: `B` batch, `S` sites, `T` bins, `N` units, `D` hidden size, `H` heads, `d` head size, `K` targets, `A`
anchors.
"""

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention_rpnt import (
    RPNTAttention,
    RPNTContextKernel,
    RPNTRotaryEmbedding,
    RPNTSpatialAttention,
    RPNTTemporalAttention,
)
from .configuration_rpnt import RPNTConfig
from .dropout_rpnt import RPNTDropout
from .embeddings_rpnt import RPNTEmbeddings, RPNTUnitReadout
from .errors import ConfigurationError, InputError, closest_names
from .objectives import behavior_loss, mean_over_processes, poisson_nll, site_contrastive, variance_loss
from .outputs_rpnt import (
    RPNTForMotorDecodingOutput,
    RPNTForPreTrainingOutput,
    RPNTForSequenceClassificationOutput,
    RPNTModelOutput,
)
from .sharing_rpnt import SafetensorsOnly


class RPNTLayer(GradientCheckpointingLayer):
    """Attention and feed-forward, each normalised before and added after."""

    attention_class: type[RPNTAttention]

    def __init__(self, config: RPNTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = self.attention_class(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(config.hidden_size, config.intermediate_size),
            ACT2FN[config.hidden_act],
            RPNTDropout(config.dropout),
            nn.Linear(config.intermediate_size, config.hidden_size),
        )
        self.dropout = RPNTDropout(config.dropout)
        self.scaled = config.layer_scale is not None
        if self.scaled:  # not in the paper; Touvron et al. 2021, arXiv:2103.17239
            self.attention_scale = nn.Parameter(torch.empty(config.hidden_size))
            self.mlp_scale = nn.Parameter(torch.empty(config.hidden_size))

    def forward(
        self,
        hidden_states: Tensor,
        rotation: tuple[Tensor, Tensor],
        channels: Tensor,
        bin_mask: Tensor | None,
    ) -> Tensor:
        attended, _ = self.attention(self.attention_norm(hidden_states), rotation, channels, bin_mask)
        if self.scaled:
            attended = attended * self.attention_scale
        hidden_states = hidden_states + self.dropout(attended)
        expanded = self.mlp(self.mlp_norm(hidden_states))
        if self.scaled:
            expanded = expanded * self.mlp_scale
        return hidden_states + self.dropout(expanded)


class RPNTTemporalLayer(RPNTLayer):
    """Layer over the bins of each site."""

    attention_class = RPNTTemporalAttention


class RPNTSpatialLayer(RPNTLayer):
    """Layer over the sites at each bin."""

    attention_class = RPNTSpatialAttention


class RPNTMaskedPooling(nn.Module):
    """Weighted mean over positions with learned scores; 0 where no position is valid."""

    def __init__(self, config: RPNTConfig) -> None:
        super().__init__()
        self.score = nn.Linear(config.hidden_size, 1)

    def forward(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """(..., positions, D), mask (..., positions) -> (..., D)."""
        scores = self.score(states).float()[..., 0]
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min / 2)
        weights = scores.softmax(dim=-1).to(states.dtype)
        return (weights[..., None] * states).sum(dim=-2)


class RPNTPreTrainedModel(SafetensorsOnly, PreTrainedModel):
    """Base of all RPNT models: configuration, initialisation, loading and saving."""

    config: RPNTConfig
    config_class = RPNTConfig
    base_model_prefix = "model"
    main_input_name = "spike_counts"
    input_modalities = ("time",)  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # losses are means: the Trainer must divide by accumulation steps itself
    _no_split_modules = ["RPNTTemporalLayer", "RPNTSpatialLayer"]  # noqa: RUF012
    _supports_sdpa = True
    _can_compile_fullgraph = True
    _can_record_outputs = {  # noqa: RUF012
        "hidden_states": OutputRecorder(RPNTLayer),
        "attentions": RPNTTemporalAttention,
        "spatial_attentions": RPNTSpatialAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, RPNTEmbeddings):
            init.normal_(module.mask_embedding, std=std)
            if module.stem_kernel > 1:  # as large as the token that it is added to
                init.normal_(module.stem_weight, std=module.stem_kernel**-0.5)
                init.zeros_(module.stem_bias)
        elif isinstance(module, nn.LSTM):
            for parameter in module.parameters():
                init.uniform_(parameter, -(module.hidden_size**-0.5), module.hidden_size**-0.5)
        elif isinstance(module, RPNTLayer) and self.config.layer_scale is not None:
            init.constant_(module.attention_scale, self.config.layer_scale)
            init.constant_(module.mlp_scale, self.config.layer_scale)
        elif isinstance(module, RPNTAttention) and module.num_anchors:
            init.normal_(module.anchor_keys, std=1.0)
            init.normal_(module.anchor_values, std=std)
        elif isinstance(module, RPNTContextKernel):
            # Starts as ordinary attention: 99 % of every kernel on tap (0, 0).
            taps = math.prod(module.kernel_size)
            start = torch.zeros(self.config.num_attention_heads, taps)
            start[:, 0] = math.log(99 * max(taps - 1, 1))
            init.copy_(module.kernel_bias, start.flatten())
        elif isinstance(module, RPNTUnitReadout):
            init.zeros_(module.weight)

    def resize_unit_vocabulary(self, num_units: int) -> None:
        """Adds rows to the unit embedding, for the units of new sessions; earlier rows stay as they are.

        Args:
            num_units (`int`): Rows after the call, not fewer than now.

        Raises:
            ConfigurationError: The model uses slots, or the vocabulary would shrink.
        """
        if self.config.unit_embedding != "vocabulary":
            raise ConfigurationError(
                "Only a model with `unit_embedding`='vocabulary' can take new units, got 'slots'. Sample "
                "the units into its slots instead."
            )
        embeddings: Any = self.base_model.embeddings
        if num_units < self.config.num_units:
            raise ConfigurationError(
                f"`num_units` must be at least the {self.config.num_units} rows that exist, got {num_units}. "
                "Rows are never dropped, since other sessions use them."
            )
        old = embeddings.unit_embedding
        new = nn.Embedding(
            num_units, self.config.hidden_size, device=old.weight.device, dtype=old.weight.dtype
        )
        self._init_weights(new)
        with torch.no_grad():
            new.weight[: self.config.num_units] = old.weight
        new.weight.requires_grad = old.weight.requires_grad
        embeddings.unit_embedding = new
        self.config.num_units = num_units


_OUTPUT_ARGUMENTS = {"output_attentions", "output_hidden_states", "output_spatial_attentions", "return_dict"}


def _refuse_unknown_arguments(arguments: dict[str, Any]) -> None:
    for name in arguments.keys() - _OUTPUT_ARGUMENTS:
        known = [*inspect.signature(RPNTModel.forward).parameters, *_OUTPUT_ARGUMENTS, "labels", "label_mask"]
        raise InputError(
            f"Every argument of `forward` must be known, got `{name}`.{closest_names(name, known)} To decode "
            "bin by bin with a state, use StreamingDecoder."
        )


class RPNTModel(RPNTPreTrainedModel):
    """Encoder: temporal layers per site, then spatial layers over sites (DESIGN 2.4).

    Example:
        ```python
        >>> model = RPNTModel(RPNTConfig.preset("tiny", num_units=10)).eval()
        >>> model(torch.ones(1, 1, 20, 10)).last_hidden_state.shape
        torch.Size([1, 1, 20, 64])
        ```
    """

    def __init__(self, config: RPNTConfig) -> None:
        super().__init__(config)
        self.embeddings = RPNTEmbeddings(config)
        self.rotary = RPNTRotaryEmbedding(config)
        self.temporal_layers = nn.ModuleList(
            RPNTTemporalLayer(config) for _ in range(config.num_hidden_layers)
        )
        self.spatial_layers = nn.ModuleList(
            RPNTSpatialLayer(config) for _ in range(config.num_spatial_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = RPNTDropout(config.dropout)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Returns the unit embedding."""
        return self.embeddings.unit_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the unit embedding; to add units call `resize_unit_vocabulary`."""
        self.embeddings.unit_embedding = value  # type: ignore[assignment]

    def default_unit_ids(self, spike_counts: Tensor) -> Tensor:
        """Unit rows where none are given: `s * N + n` in a vocabulary, `n` with slots, which sites share.

        Args:
            spike_counts (`torch.Tensor` of shape `(batch, sites, bins, units)`): Counts.

        Returns:
            `torch.LongTensor` of shape `(1, sites, units)`.

        Raises:
            InputError: There are more units than rows.
        """
        S, N = spike_counts.shape[1], spike_counts.shape[3]
        own_rows = self.config.unit_embedding == "vocabulary"
        needed = S * N if own_rows else N
        if needed > self.config.num_units:
            raise InputError(
                f"Without `unit_ids`, `spike_counts` may hold at most {self.config.num_units} units "
                f"(RPNTConfig.num_units), got shape {tuple(spike_counts.shape)} with {needed}. Pass "
                "`unit_ids` from RPNTProcessor, or make a model with enough units."
            )
        unit_ids = torch.arange(N, device=spike_counts.device).expand(S, N)
        if own_rows:
            unit_ids = unit_ids + N * torch.arange(S, device=spike_counts.device)[:, None]
        return unit_ids[None]

    def _check_shapes(
        self, spike_counts: Tensor, others: dict[str, tuple[Tensor | None, tuple[int, ...]]]
    ) -> None:
        for name, (tensor, expected) in others.items():
            if tensor is not None and tuple(tensor.shape) != expected:
                raise InputError(
                    f"`{name}` must have shape {expected}, got {tuple(tensor.shape)} beside `spike_counts` "
                    f"of shape {tuple(spike_counts.shape)}. RPNTProcessor makes inputs that fit."
                )

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        spike_counts: Tensor,
        unit_ids: Tensor | None = None,
        unit_mask: Tensor | None = None,
        bin_mask: Tensor | None = None,
        metadata: Tensor | None = None,
        masked_bins: Tensor | None = None,
        masked_units: Tensor | None = None,
        **kwargs: Any,
    ) -> RPNTModelOutput:
        """Encodes windows of spike counts.

        Args:
            spike_counts (`torch.Tensor` of shape `(batch, sites, bins, units)`):
                Spikes per bin, 0 or more, uint8 or float.
            unit_ids (`torch.LongTensor` of shape `(batch, sites, units)`, *optional*):
                Rows of the unit embedding; see `default_unit_ids` for the default.
            unit_mask (`torch.BoolTensor` of shape `(batch, sites, units)`, *optional*):
                True where a unit is real and not padding. All True by default.
            bin_mask (`torch.BoolTensor` of shape `(batch, sites, bins)`, *optional*):
                True where a bin was recorded; False counts as before the recording, at all bins as an absent
                site.
            metadata (`torch.FloatTensor` of shape `(batch, sites, axes)`, *optional*):
                Coordinates on `config.metadata_axes`, in their units; NaN, the default, is unknown.
            masked_bins (`torch.BoolTensor` of shape `(batch, sites, bins)`, *optional*):
                True where a bin is hidden: its counts are replaced by a learned vector.
            masked_units (`torch.BoolTensor` of shape `(batch, sites, units)`, *optional*):
                True where a unit is hidden: it is left out of the sum over units.

        Returns:
            [`RPNTModelOutput`]

        Raises:
            InputError: Shapes do not fit each other or the configuration.
        """
        if spike_counts.ndim != 4:
            raise InputError(
                "`spike_counts` must have shape (batch, sites, bins, units), got "
                f"{tuple(spike_counts.shape)}. Add the missing axes, for instance spike_counts[None, None] "
                "for one window of one site."
            )
        _refuse_unknown_arguments(kwargs)
        B, S, T, N = spike_counts.shape
        axes = self.config.metadata_axes
        self._check_shapes(
            spike_counts,
            {
                "unit_ids": (unit_ids, (B, S, N)),
                "unit_mask": (unit_mask, (B, S, N)),
                "bin_mask": (bin_mask, (B, S, T)),
                "metadata": (metadata, (B, S, len(axes))),
                "masked_bins": (masked_bins, (B, S, T)),
                "masked_units": (masked_units, (B, S, N)),
            },
        )
        if self.config.position_encoding == "learned" and self.config.max_bins < T:
            raise InputError(
                f"A window must have at most {self.config.max_bins} bins (RPNTConfig.max_bins, learned "
                f"positions), got shape {tuple(spike_counts.shape)}. Cut it, or use "
                "`position_encoding`='mrope'."
            )
        if unit_ids is None:
            unit_ids = self.default_unit_ids(spike_counts)
        elif not torch.compiler.is_compiling() and int(unit_ids.max()) >= self.config.num_units:
            raise InputError(
                f"`unit_ids` must be below {self.config.num_units} (RPNTConfig.num_units), got "
                f"{int(unit_ids.max())}. New units need `resize_unit_vocabulary`, with the ids of "
                "RPNTProcessor."
            )
        visible = torch.ones_like(unit_ids, dtype=torch.bool) if unit_mask is None else unit_mask
        if masked_units is not None:
            visible = visible & ~masked_units

        embedded = self.embeddings(spike_counts, unit_ids, visible, masked_bins, bin_mask)
        hidden_states = self.dropout(embedded)
        temporal_rotation, spatial_rotation = self.rotary(metadata, T, spike_counts.device)
        channels = self.rotary.anchor_channels(RPNTTemporalAttention.zero_axes, spike_counts.device)
        for layer in self.temporal_layers:
            hidden_states = layer(hidden_states, temporal_rotation, channels, bin_mask)
        channels = self.rotary.anchor_channels(RPNTSpatialAttention.zero_axes, spike_counts.device)
        for layer in self.spatial_layers:
            hidden_states = layer(hidden_states, spatial_rotation, channels, bin_mask)
        hidden_states = self.norm(hidden_states)
        if bin_mask is not None:
            hidden_states = hidden_states * bin_mask[..., None]
        return RPNTModelOutput(
            last_hidden_state=hidden_states, stem_state=embedded if self.config.recurrent_stem else None
        )


class RPNTForPreTraining(RPNTPreTrainedModel):
    """Encoder with a head for firing rates; learns from hidden counts and from telling sites apart."""

    def __init__(self, config: RPNTConfig) -> None:
        super().__init__(config)
        self.model = RPNTModel(config)
        if config.unit_readout == "own":
            self.own_readout = RPNTUnitReadout(config.num_units, config.hidden_size)
        elif config.unit_embedding == "vocabulary":
            # Rates by dot product with the unit's own embedding, so that new units need no new head.
            self.unit_readout = nn.Sequential(
                nn.Linear(config.hidden_size, config.hidden_size),
                ACT2FN[config.hidden_act],
                nn.Linear(config.hidden_size, config.hidden_size + 1),
            )
        else:
            self.slot_readout = nn.Linear(config.hidden_size, config.num_units)
        self.site_projection = nn.Linear(config.hidden_size, config.projection_size)
        self.post_init()

    @torch.no_grad()
    def set_mean_count(self, mean_count: float | Tensor) -> None:
        """Lets an untrained rate head start at the mean count of the corpus instead of one spike per bin.

        Args:
            mean_count (`float` or `torch.FloatTensor` of shape `(num_units,)`):
                Spikes per unit and bin, above 0; of each unit only with `unit_readout` "own".

        Raises:
            InputError: The mean is not above 0.
        """
        start = torch.as_tensor(mean_count, dtype=torch.float32)
        if not bool((start > 0).all()):
            raise InputError(
                f"`mean_count` must be above 0 spikes per bin, got {float(start.min())}. Check the counts."
            )
        if self.config.unit_readout == "own":
            self.own_readout.weight[:, -1] = start.log()
        elif self.config.unit_embedding == "slots":
            self.slot_readout.bias.fill_(start.log())
        else:
            last: Any = self.unit_readout[-1]
            last.bias[-1] = start.log()

    def resize_unit_vocabulary(self, num_units: int) -> None:
        """Adds rows to the unit embedding, as in [`RPNTModel`], and to readouts of the units' own.

        Args:
            num_units (`int`): Rows after the call, not fewer than now.

        Raises:
            ConfigurationError: The model uses slots, or the vocabulary would shrink.
        """
        super().resize_unit_vocabulary(num_units)
        if self.config.unit_readout == "own":  # new ones begin at the geometric mean of the rates of old ones
            old = self.own_readout.weight
            new = RPNTUnitReadout(num_units, self.config.hidden_size, device=old.device, dtype=old.dtype)
            self._init_weights(new)
            with torch.no_grad():
                new.weight[:, -1] = old[:, -1].mean()
                new.weight[: len(old)] = old
            new.weight.requires_grad = old.requires_grad
            self.own_readout = new

    def _log_rates(self, hidden_states: Tensor, unit_ids: Tensor) -> Tensor:
        """(B, S, T, D) -> (B, S, T, N)."""
        if self.config.unit_readout == "own":
            weights, bias = self.own_readout(unit_ids).split([self.config.hidden_size, 1], dim=-1)
            return hidden_states @ weights.transpose(-1, -2) + bias.transpose(-1, -2)
        if self.config.unit_embedding == "slots":
            slots = self.slot_readout(hidden_states)
            return slots.gather(-1, unit_ids[:, :, None].expand(*slots.shape[:3], -1))
        embedding = self.model.embeddings.unit_embedding(unit_ids) / self.config.initializer_range
        weights, bias = self.unit_readout(embedding).split([self.config.hidden_size, 1], dim=-1)
        weights = weights / math.sqrt(self.config.hidden_size)
        return hidden_states @ weights.transpose(-1, -2) + bias.transpose(-1, -2)

    @can_return_tuple
    def forward(
        self,
        spike_counts: Tensor,
        unit_ids: Tensor | None = None,
        unit_mask: Tensor | None = None,
        bin_mask: Tensor | None = None,
        metadata: Tensor | None = None,
        masked_bins: Tensor | None = None,
        masked_units: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> RPNTForPreTrainingOutput:
        """Predicts rates, and the loss on hidden counts where masks are given.

        Args:
            spike_counts, unit_ids, unit_mask, bin_mask, metadata, masked_bins, masked_units:
                As in [`RPNTModel`]. With either mask, hidden entries of real units and recorded bins are
                scored.
            labels (`torch.LongTensor` of shape `(batch, sites)`, *optional*):
                Identity of the site (of the session, where there is one site), equal for windows of the same
                one;
                -100 leaves one out. Adds the site-contrastive term.

        Returns:
            [`RPNTForPreTrainingOutput`]

        Raises:
            InputError: Shapes do not fit each other or the configuration.
        """
        outputs = self.model(
            spike_counts, unit_ids, unit_mask, bin_mask, metadata, masked_bins, masked_units, **kwargs
        )
        hidden_states = outputs.last_hidden_state
        if unit_ids is None:
            unit_ids = self.model.default_unit_ids(spike_counts)
        log_rates = self._log_rates(hidden_states, unit_ids)

        loss = poisson_loss = contrastive_loss = None
        if masked_bins is not None or masked_units is not None:
            scored = torch.zeros_like(log_rates, dtype=torch.bool)
            if masked_bins is not None:
                scored = scored | masked_bins[..., None]
            if masked_units is not None:
                scored = scored | masked_units[:, :, None]
            if unit_mask is not None:
                scored = scored & unit_mask[:, :, None]
            if bin_mask is not None:
                scored = scored & bin_mask[..., None]
            loss = poisson_loss = poisson_nll(log_rates, spike_counts, scored)
            if labels is not None:
                self.model._check_shapes(spike_counts, {"labels": (labels, tuple(spike_counts.shape[:2]))})
                contrastive_loss = self._contrast(hidden_states, labels, bin_mask)
                loss = loss + self.config.contrastive_weight * contrastive_loss
        return RPNTForPreTrainingOutput(
            loss=loss,
            poisson_loss=poisson_loss,
            contrastive_loss=contrastive_loss,
            log_rates=log_rates,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            spatial_attentions=outputs.spatial_attentions,
        )

    def _contrast(self, hidden_states: Tensor, labels: Tensor, bin_mask: Tensor | None) -> Tensor:
        # The official code averages over the batch first; here every window and site is an item of its own.
        if bin_mask is None:
            mean = hidden_states.mean(dim=2)
        else:
            num_bins = bin_mask.sum(dim=-1, keepdim=True)
            mean = hidden_states.sum(dim=2) / num_bins.clamp_min(1)
            labels = torch.where(num_bins[..., 0] > 0, labels, -100)
        embeddings = self.site_projection(mean).flatten(0, 1)
        return site_contrastive(embeddings, labels.flatten(), self.config.contrastive_temperature)


class RPNTForMotorDecoding(RPNTPreTrainedModel):
    """Encoder with a head that gives behaviour, such as hand velocity, at every bin (DESIGN 2.4).

    Example:
        ```python
        >>> model = RPNTForMotorDecoding(RPNTConfig.preset("tiny", num_units=10)).eval()
        >>> model(torch.ones(1, 1, 20, 10)).predictions.shape
        torch.Size([1, 20, 2])
        ```
    """

    token_map: Tensor | None  # (moments * K + 1, D): from behaviour in standard deviations, and a constant

    def __init__(self, config: RPNTConfig) -> None:
        super().__init__(config)
        self.model = RPNTModel(config)
        self.site_pooling = RPNTMaskedPooling(config)
        self.decoder = nn.Linear(
            config.hidden_size, config.num_targets * (2 if config.predict_variance else 1)
        )
        if config.recurrent_stem:  # a readout of its own; predictions are the mean of both
            self.stem_pooling = RPNTMaskedPooling(config)
            self.stem_decoder = nn.Linear(config.hidden_size, config.num_targets)
        self.dropout = RPNTDropout(config.dropout if config.recurrent_stem else 0.0)
        self.set_token_map(config.token_map_step)
        self.post_init()

    def set_token_map(self, step: int | None) -> None:
        """Makes room for a token map, which says what token goes with which behaviour (`token_map.py`).

        Args:
            step (`int`, *optional*): Bins between the moments at which it reads behaviour; None for no map.
        """
        self.config.token_map_step = step
        size = len(self.config.token_map_moments) * self.config.num_targets + 1, self.config.hidden_size
        self.register_buffer("token_map", None if step is None else self.decoder.weight.new_zeros(size))

    def decode(
        self, hidden_states: Tensor, stem_state: Tensor | None, bin_mask: Tensor | None
    ) -> tuple[list[Tensor], Tensor | None, Tensor]:
        """Reads behaviour out of the encoder's states, each bin by itself.

        Args:
            hidden_states (`torch.FloatTensor` of shape `(B, S, T, D)`): Last hidden state.
            stem_state (`torch.FloatTensor` of shape `(B, S, T, D)`, *optional*): Output of a recurrent stem.
            bin_mask (`torch.BoolTensor` of shape `(B, S, T)`, *optional*): True where a bin was recorded.

        Returns:
            `tuple`: predictions (B, T, K) of each readout and log variances (B, T, K) or None, in physical
            units, and the label s.d. (K,).
        """
        site_mask = None if bin_mask is None else bin_mask.transpose(1, 2)
        pooled = self.site_pooling(hidden_states.transpose(1, 2), site_mask)
        decoded = self.decoder(self.dropout(pooled)).float()
        K = self.config.num_targets
        mean = decoded.new_tensor(self.config.label_mean or [0.0] * K)
        scale = decoded.new_tensor(self.config.label_std or [1.0] * K)
        log_variances = decoded[..., K:] + 2 * scale.log() if self.config.predict_variance else None
        readouts = [mean + scale * decoded[..., :K]]
        if stem_state is not None:
            pooled = self.stem_pooling(stem_state.transpose(1, 2), site_mask)
            readouts.append(mean + scale * self.stem_decoder(self.dropout(pooled)).float())
        return readouts, log_variances, scale

    @can_return_tuple
    def forward(
        self,
        spike_counts: Tensor,
        unit_ids: Tensor | None = None,
        unit_mask: Tensor | None = None,
        bin_mask: Tensor | None = None,
        metadata: Tensor | None = None,
        labels: Tensor | None = None,
        label_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> RPNTForMotorDecodingOutput:
        """Decodes behaviour bin by bin, each bin from itself and earlier ones.

        Args:
            spike_counts, unit_ids, unit_mask, bin_mask, metadata: As in [`RPNTModel`].
            labels (`torch.FloatTensor` of shape `(batch, bins, num_targets)`, *optional*):
                Behaviour in physical units; NaN entries are not scored.
            label_mask (`torch.BoolTensor` of shape `(batch, bins)`, *optional*):
                True where a bin is scored; all bins by default.

        Returns:
            [`RPNTForMotorDecodingOutput`]

        Raises:
            InputError: Shapes do not fit each other or the configuration.
        """
        outputs = self.model(spike_counts, unit_ids, unit_mask, bin_mask, metadata, **kwargs)
        readouts, log_variances, scale = self.decode(outputs.last_hidden_state, outputs.stem_state, bin_mask)
        predictions = torch.stack(readouts).mean(dim=0)

        loss = None
        if labels is not None:
            bins = (spike_counts.shape[0], spike_counts.shape[2])
            self.model._check_shapes(
                spike_counts,
                {"labels": (labels, (*bins, self.config.num_targets)), "label_mask": (label_mask, bins)},
            )
            scored = (
                torch.ones(bins, dtype=torch.bool, device=labels.device) if label_mask is None else label_mask
            )
            if bin_mask is not None:
                scored = scored & bin_mask.any(dim=1)
            # Each readout learns by itself; the variance is that of their mean.
            parts = [behavior_loss(readout, labels, scored, scale) for readout in readouts]
            loss = torch.stack(parts).mean()
            if log_variances is not None:
                loss = loss + variance_loss(predictions, labels, scored, scale, log_variances)
        return RPNTForMotorDecodingOutput(
            loss=loss,
            predictions=predictions,
            log_variances=log_variances,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            spatial_attentions=outputs.spatial_attentions,
        )


class RPNTForSequenceClassification(RPNTPreTrainedModel):
    """Encoder with a head that names a whole window, such as its reach direction."""

    def __init__(self, config: RPNTConfig) -> None:
        super().__init__(config)
        self.model = RPNTModel(config)
        self.pooling = RPNTMaskedPooling(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels or 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        spike_counts: Tensor,
        unit_ids: Tensor | None = None,
        unit_mask: Tensor | None = None,
        bin_mask: Tensor | None = None,
        metadata: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> RPNTForSequenceClassificationOutput:
        """Classifies windows.

        Args:
            spike_counts, unit_ids, unit_mask, bin_mask, metadata: As in [`RPNTModel`].
            labels (`torch.LongTensor` of shape `(batch,)`, *optional*): Class of each window; -100 is left
                out.

        Returns:
            [`RPNTForSequenceClassificationOutput`]

        Raises:
            InputError: Shapes do not fit each other or the configuration.
        """
        outputs = self.model(spike_counts, unit_ids, unit_mask, bin_mask, metadata, **kwargs)
        mask = None if bin_mask is None else bin_mask.flatten(1)
        logits = self.classifier(self.pooling(outputs.last_hidden_state.flatten(1, 2), mask)).float()
        loss = None
        if labels is not None:
            self.model._check_shapes(spike_counts, {"labels": (labels, (spike_counts.shape[0],))})
            total = F.cross_entropy(logits, labels, reduction="sum", ignore_index=-100)
            loss = mean_over_processes(total, (labels != -100).sum())
        return RPNTForSequenceClassificationOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            spatial_attentions=outputs.spatial_attentions,
        )


__all__ = [
    "RPNTForMotorDecoding",
    "RPNTForPreTraining",
    "RPNTForSequenceClassification",
    "RPNTModel",
    "RPNTPreTrainedModel",
]
