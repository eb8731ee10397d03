"""Spikes in, movement out: RPNT on the Hugging Face stack.

Importing this package registers it with the Auto classes of transformers, as soon as transformers is imported
too. What costs time to import is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .registration import register_when_needed

if TYPE_CHECKING:
    from .auto import AutoModelForMotorDecoding
    from .configuration_rpnt import ContextAttentionConfig, MRoPEAxisConfig, RPNTConfig
    from .data.nwb import Recording, read_nwb
    from .data.simulate import simulate
    from .hub import load_decoder
    from .modeling_rpnt import (
        RPNTForMotorDecoding,
        RPNTForPreTraining,
        RPNTForSequenceClassification,
        RPNTModel,
    )
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
    "load_decoder",
    "read_nwb",
    "simulate",
]

_MODULES = {
    "AutoModelForMotorDecoding": "auto",
    "ContextAttentionConfig": "configuration_rpnt",
    "MRoPEAxisConfig": "configuration_rpnt",
    "RPNTConfig": "configuration_rpnt",
    "RPNTForMotorDecoding": "modeling_rpnt",
    "RPNTForPreTraining": "modeling_rpnt",
    "RPNTForSequenceClassification": "modeling_rpnt",
    "RPNTModel": "modeling_rpnt",
    "RPNTProcessor": "processing_rpnt",
    "Recording": "data.nwb",
    "StreamingDecoder": "streaming",
    "load_decoder": "hub",
    "read_nwb": "data.nwb",
    "simulate": "data.simulate",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_when_needed()
