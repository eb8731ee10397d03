"""Spikes in, movement out: RPNT on the Hugging Face stack.

Importing this package registers it with the Auto classes of transformers.
"""

from .auto import AutoModelForMotorDecoding
from .configuration_rpnt import ContextAttentionConfig, MRoPEAxisConfig, RPNTConfig
from .data.nwb import Recording, read_nwb
from .data.simulate import simulate
from .modeling_rpnt import RPNTForMotorDecoding, RPNTForPreTraining, RPNTForSequenceClassification, RPNTModel
from .processing_rpnt import RPNTProcessor
from .streaming import StreamingDecoder

__version__ = "0.1.0"

__all__ = [
    "AutoModelForMotorDecoding",
    "ContextAttentionConfig",
    "MRoPEAxisConfig",
    "RPNTConfig",
    "RPNTForMotorDecoding",
    "RPNTForPreTraining",
    "RPNTForSequenceClassification",
    "RPNTModel",
    "RPNTProcessor",
    "Recording",
    "StreamingDecoder",
    "read_nwb",
    "simulate",
]
