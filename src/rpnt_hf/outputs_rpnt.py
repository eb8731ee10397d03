"""What the forward passes of RPNT return; the networks are in `modeling_rpnt.py`."""

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import ModelOutput


@dataclass
class RPNTModelOutput(ModelOutput):
    """Output of the encoder.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch, sites, bins, hidden_size)`):
            One vector per site and bin, from that bin and earlier ones; 0 where `bin_mask` is False.
        stem_state (`torch.FloatTensor` of shape `(batch, sites, bins, hidden_size)`, *optional*):
            Output of the recurrent stem; with `config.recurrent_stem`.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*):
            Input of the first layer and output of each, of the same shape; with `output_hidden_states=True`.
        attentions (`tuple[torch.FloatTensor]`, *optional*):
            Per temporal layer `(batch, sites, heads, bins, anchors + bins)`; with `output_attentions=True`
            and `attn_implementation="eager"`.
        spatial_attentions (`tuple[torch.FloatTensor]`, *optional*):
            Per spatial layer `(batch * bins, heads, sites, anchors + sites)`; with
            `output_spatial_attentions=True` and `attn_implementation="eager"`.
    """

    last_hidden_state: Tensor | None = None
    stem_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    spatial_attentions: tuple[Tensor, ...] | None = None


@dataclass
class RPNTForPreTrainingOutput(ModelOutput):
    """Output of masked pretraining.

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*): Sum of the two terms; with masks.
        poisson_loss (`torch.FloatTensor` of shape `()`, *optional*): Nats per hidden entry.
        contrastive_loss (`torch.FloatTensor` of shape `()`, *optional*): Unweighted site contrast; with
            `labels`.
        log_rates (`torch.FloatTensor` of shape `(batch, sites, bins, units)`): Log expected count per bin.
        hidden_states, attentions, spatial_attentions: As in [`RPNTModelOutput`].
    """

    loss: Tensor | None = None
    poisson_loss: Tensor | None = None
    contrastive_loss: Tensor | None = None
    log_rates: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    spatial_attentions: tuple[Tensor, ...] | None = None


@dataclass
class RPNTForMotorDecodingOutput(ModelOutput):
    """Output of the decoder.

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*): With `labels`; see `objectives.behavior_loss`.
        predictions (`torch.FloatTensor` of shape `(batch, bins, num_targets)`): Behaviour in
            `config.target_units`.
        log_variances (`torch.FloatTensor` of the same shape, *optional*): With `config.predict_variance`;
            of the distributions that `config.variance_dof` shapes.
        hidden_states, attentions, spatial_attentions: As in [`RPNTModelOutput`].
    """

    loss: Tensor | None = None
    predictions: Tensor | None = None
    log_variances: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    spatial_attentions: tuple[Tensor, ...] | None = None


@dataclass
class RPNTForSequenceClassificationOutput(ModelOutput):
    """Output of the window classifier.

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*): Cross-entropy; with `labels`.
        logits (`torch.FloatTensor` of shape `(batch, num_labels)`): One row per window.
        hidden_states, attentions, spatial_attentions: As in [`RPNTModelOutput`].
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    spatial_attentions: tuple[Tensor, ...] | None = None


__all__ = [
    "RPNTForMotorDecodingOutput",
    "RPNTForPreTrainingOutput",
    "RPNTForSequenceClassificationOutput",
    "RPNTModelOutput",
]
