"""Registers RPNT with the Auto classes of transformers; importing `rpnt_hf` is enough.

`AutoModelForMotorDecoding` is built on private names of transformers, which are kept to this file and tested.
"""

from collections import OrderedDict

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForTimeSeriesPrediction,
    AutoProcessor,
)
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping, auto_class_update
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from .configuration_rpnt import RPNTConfig
from .modeling_rpnt import RPNTForMotorDecoding, RPNTForPreTraining, RPNTForSequenceClassification, RPNTModel
from .processing_rpnt import RPNTProcessor

MODEL_FOR_MOTOR_DECODING_MAPPING = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class AutoModelForMotorDecoding(_BaseAutoModelClass):
    """Auto class of models that decode behaviour from spike counts."""

    _model_mapping = MODEL_FOR_MOTOR_DECODING_MAPPING  # type: ignore[assignment]


AutoModelForMotorDecoding = auto_class_update(AutoModelForMotorDecoding, head_doc="motor decoding")  # type: ignore[misc]


def register() -> None:
    """Registers configuration, models and processor; harmless when called again."""
    AutoConfig.register(RPNTConfig.model_type, RPNTConfig, exist_ok=True)
    AutoModel.register(RPNTConfig, RPNTModel, exist_ok=True)
    AutoModelForPreTraining.register(RPNTConfig, RPNTForPreTraining, exist_ok=True)
    AutoModelForSequenceClassification.register(RPNTConfig, RPNTForSequenceClassification, exist_ok=True)
    AutoModelForMotorDecoding.register(RPNTConfig, RPNTForMotorDecoding, exist_ok=True)
    # The route of transformers' own, for a process without this package.
    AutoModelForTimeSeriesPrediction.register(RPNTConfig, RPNTForMotorDecoding, exist_ok=True)
    AutoFeatureExtractor.register(RPNTConfig, RPNTProcessor, exist_ok=True)
    # Without this one a folder that carries its code would make AutoProcessor ask for `trust_remote_code`.
    AutoProcessor.register(RPNTConfig, RPNTProcessor, exist_ok=True)


register()
