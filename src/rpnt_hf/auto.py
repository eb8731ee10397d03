"""Registers RPNT with the Auto classes of transformers; importing `rpnt_hf` is enough.

Models are registered by name and imported when an Auto class asks for them, because the modules that models
of transformers need take longer to import than torch and transformers together. What this uses of private
names of transformers is kept to this file and tested.
"""

import sys
from collections import OrderedDict, UserDict
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoModelForTimeSeriesPrediction,
)
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping, auto_class_update
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from .configuration_rpnt import RPNTConfig
from .processing_rpnt import RPNTProcessor

PROCESSOR_TABLE = "transformers.models.auto.processing_auto"


class AutoModelForMotorDecoding(_BaseAutoModelClass):
    """Auto class of models that decode behaviour from spike counts."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())  # type: ignore[assignment]


AutoModelForMotorDecoding = auto_class_update(AutoModelForMotorDecoding, head_doc="motor decoding")  # type: ignore[misc]

MODELS: dict[Any, str] = {
    AutoModel: "RPNTModel",
    AutoModelForPreTraining: "RPNTForPreTraining",
    AutoModelForSequenceClassification: "RPNTForSequenceClassification",
    AutoModelForMotorDecoding: "RPNTForMotorDecoding",
    # The route of transformers' own, for a process without this package.
    AutoModelForTimeSeriesPrediction: "RPNTForMotorDecoding",
}


class _ModelClasses(UserDict):
    """Model classes by configuration class; ours by name, until somebody asks for one."""

    def __getitem__(self, key: Any) -> Any:
        value = super().__getitem__(key)
        return (
            getattr(import_module(".modeling_rpnt", __package__), value) if isinstance(value, str) else value
        )


class _ProcessorTableFinder(MetaPathFinder):
    """Registers the processor once transformers has imported its table of processors."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != PROCESSOR_TABLE:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register_processor(module)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def _register_processor(table: ModuleType) -> None:
    # Without this a folder that carries its code would make AutoProcessor ask for `trust_remote_code`.
    table.AutoProcessor.register(RPNTConfig, RPNTProcessor, exist_ok=True)


def register() -> None:
    """Registers configuration, models and processor; harmless when called again."""
    AutoConfig.register(RPNTConfig.model_type, RPNTConfig, exist_ok=True)
    AutoFeatureExtractor.register(RPNTConfig, RPNTProcessor, exist_ok=True)
    for auto_class, name in MODELS.items():
        mapping = auto_class._model_mapping
        if not isinstance(mapping._extra_content, _ModelClasses):
            mapping._extra_content = _ModelClasses(mapping._extra_content)
        mapping._extra_content[RPNTConfig] = name
    if PROCESSOR_TABLE in sys.modules:
        _register_processor(sys.modules[PROCESSOR_TABLE])
    elif not any(isinstance(finder, _ProcessorTableFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ProcessorTableFinder())


register()
