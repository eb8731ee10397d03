"""What makes a saved folder load where this package is not installed: its code, and an `auto_map` to it.

Used by `save_pretrained` and `push_to_hub` of configuration, models and processor. Not for what `rpnt push`
sends: that is `hub.py`.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

CONFIG_AUTO_MAP = {
    "AutoConfig": "configuration_rpnt.RPNTConfig",
    "AutoModel": "modeling_rpnt.RPNTModel",
    "AutoModelForPreTraining": "modeling_rpnt.RPNTForPreTraining",
    "AutoModelForSequenceClassification": "modeling_rpnt.RPNTForSequenceClassification",
    "AutoModelForTimeSeriesPrediction": "modeling_rpnt.RPNTForMotorDecoding",
}
PROCESSOR_AUTO_MAP = {
    "AutoFeatureExtractor": "processing_rpnt.RPNTProcessor",
    "AutoProcessor": "processing_rpnt.RPNTProcessor",
}

__all__ = ["CONFIG_AUTO_MAP", "PROCESSOR_AUTO_MAP", "SafetensorsOnly", "code_files", "save_code"]


class SafetensorsOnly:
    """Base of models whose weights are read from safetensors only: other formats can hold code."""

    @classmethod
    def from_pretrained(cls, *arguments: Any, **kwargs: Any) -> Any:
        """Loads a model as `PreTrainedModel.from_pretrained` does, with `use_safetensors=True`.

        Args:
            *arguments: Folder or id on the Hub, and so on, as in transformers.
            **kwargs: As in transformers.

        Returns:
            `PreTrainedModel`: The model; with `output_loading_info=True` a tuple with what was missing.
        """
        parent: Any = super()
        return parent.from_pretrained(*arguments, **{**kwargs, "use_safetensors": True, "weights_only": True})


def code_files(auto_map: Mapping[str, str]) -> list[Path]:
    """Lists the files that the classes of an `auto_map` are made of.

    In a process without this package, transformers fetches the files of each class that is loaded to a folder
    of its own: modules that are not in this one are left out, and saving a model adds them by itself.

    Args:
        auto_map (`Mapping[str, str]`): Auto class to "module.Class".

    Returns:
        `list[Path]`: The modules that lie beside this one, and what they import of it, sorted.
    """
    here = Path(__file__).parent
    modules = {here / f"{reference.split('.')[0]}.py" for reference in auto_map.values()}
    present = [module for module in modules if module.is_file()]
    siblings = (Path(path) for module in present for path in get_relative_import_files(module))
    return sorted({*present, *siblings})


def save_code(folder: Any, auto_map: Mapping[str, str]) -> None:
    """Copies the code of the classes of an `auto_map` into a folder.

    Args:
        folder (`str` or `Path`): Where to; made where it is missing.
        auto_map (`Mapping[str, str]`): Auto class to "module.Class".
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    for file in code_files(auto_map):
        shutil.copyfile(file, target / file.name)
