"""Finds the scripts that travel with the package, and imports them by path.

`training/`, `dataset_builders/`, `model_cards/` and `reference_checkpoints/` lie at the root of a checkout,
and inside the installed wheel. Not for user code.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from rpnt_hf.errors import ConfigurationError, closest_names

MODULE_PREFIX = "rpnt_hf_scripts."
SCRIPT_FOLDERS = ("training", "dataset_builders", "model_cards", "reference_checkpoints")


def find_script(name: str) -> Path:
    """Finds a script of the wheel or the checkout.

    Args:
        name (`str`): Path from the root of the project, for example `"dataset_builders/nwb/builder.py"`.

    Returns:
        `Path`: where it is.

    Raises:
        ConfigurationError: If there is no such script.
    """
    package = Path(__file__).resolve().parent
    for root in (package, package.parents[1]):
        if name.split("/")[0] in SCRIPT_FOLDERS and (root / name).exists():
            return root / name
    raise ConfigurationError(
        f"A script must lie in {' or '.join(SCRIPT_FOLDERS)}, got '{name}', which is neither beside the "
        f"package nor in it ('{package}'). Install the package again, or run from a checkout."
    )


def find_reference_checkpoint(name: str) -> Path | None:
    """Finds a checkpoint that came with the package.

    Args:
        name (`str`): Its name, for example `"rpnt-tiny-synthetic-decoder"`.

    Returns:
        `Path` or `None`: its folder, or None where there is none of that name.
    """
    if name != Path(name).name:
        return None
    try:
        folder = find_script(f"reference_checkpoints/{name}")
    except ConfigurationError:
        return None
    return folder if (folder / "config.json").is_file() else None


def load_script(name: str) -> ModuleType:
    """Imports a script by its path.

    Args:
        name (`str`): Path from the root of the project, for example `"training/finetune.py"`.

    Returns:
        `ModuleType`: the module, the same one at each call.

    Raises:
        ConfigurationError: If there is no such script.
    """
    path = find_script(name)
    parts = (MODULE_PREFIX.rstrip("."), *Path(name).with_suffix("").parts)
    module_name = ".".join(parts)
    if module_name in sys.modules:
        return sys.modules[module_name]
    for depth in range(1, len(parts)):  # packages without files, so that the module can be imported by name
        package = ModuleType(".".join(parts[:depth]))
        package.__path__ = []
        sys.modules.setdefault(package.__name__, package)
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses of a script look their module up here
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]
        raise
    return module


def list_builders() -> list[str]:
    """Lists the dataset builders.

    Returns:
        `list[str]`: names that `rpnt build NAME` takes.
    """
    return sorted(path.parent.name for path in find_script("dataset_builders").glob("*/builder.py"))


def load_builder(name: str) -> ModuleType:
    """Imports a dataset builder.

    Args:
        name (`str`): Name of a folder of `dataset_builders`.

    Returns:
        `ModuleType`: with `add_arguments(parser)` and `build(arguments) -> Path`.

    Raises:
        ConfigurationError: If there is no such builder.
    """
    builders = list_builders()
    if name not in builders:
        raise ConfigurationError(
            f"The builder must be one of {builders}, got '{name}'. Choose one of "
            f"those.{closest_names(name, builders)}"
        )
    return load_script(f"dataset_builders/{name}/builder.py")
