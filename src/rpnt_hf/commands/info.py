"""`rpnt info`: versions and devices."""

import argparse
import os
from pathlib import Path
from typing import Any

from rpnt_hf.commands.output import print_json, print_text
from rpnt_hf.scripts import find_script

DESCRIPTION = (
    "Print versions and devices, as a report of a bug needs them, and where the training scripts are."
)
EXAMPLES = """\
examples:
  rpnt info
  rpnt info --json
"""
PACKAGES = (
    "torch", "transformers", "datasets", "accelerate", "huggingface_hub", "safetensors", "pynwb", "numpy",
    "pandas", "pyarrow", "scikit-learn",
)  # fmt: skip
EXTRAS = ("onnx", "onnxruntime", "peft", "gradio", "dandi", "pylsl", "tensorboard", "shtab")
VARIABLES = ("HF_ENDPOINT", "HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `rpnt info`: none but those of every command.

    Args:
        parser (`argparse.ArgumentParser`): Where to.
    """


def run(arguments: argparse.Namespace) -> None:
    """Runs `rpnt info`.

    Args:
        arguments (`argparse.Namespace`): Only the options of every command.
    """
    information = describe_installation()
    lines = [
        *information["packages"].items(),
        ("extras", ", ".join(f"{name} {version}" for name, version in information["extras"].items())),
        ("system", information["system"]),
        *(("device", device) for device in information["devices"]),
        *information["environment"].items(),
        ("folder", information["folder"]),
        ("training", information["training"]),
    ]
    width = max(len(name) for name, _ in lines)
    print_text(arguments, "\n".join(f"{name:<{width}}  {text}" for name, text in lines))
    if arguments.json:
        print_json(information)


def describe_installation() -> dict[str, Any]:
    """Collects versions and devices, for `rpnt info` and for reports of runs.

    Returns:
        `dict[str, Any]`: `packages`, name to version, `extras`, the optional ones that are installed,
        `system`, `devices`, a line for each, `environment`, variables that change what this package does, and
        `folder` and `training`, where the package and the training scripts are.
    """
    import importlib.metadata
    import importlib.util
    import platform

    import torch

    import rpnt_hf

    versions = {"rpnt_hf": importlib.metadata.version("rpnt_hf"), "python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    installed = [name for name in EXTRAS if importlib.util.find_spec(name) is not None]
    devices = [f"cpu ({os.cpu_count()} cores, {torch.get_num_threads()} threads, {platform.machine()})"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        devices.append(f"cuda:{index} ({properties.name}, {memory}, CUDA {torch.version.cuda})")
    if torch.backends.mps.is_available():
        devices.append("mps")
    return {
        "packages": versions,
        "extras": {name: importlib.metadata.version(name) for name in installed},
        "system": platform.platform(),
        "devices": devices,
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "folder": str(Path(rpnt_hf.__file__).parent),
        "training": str(find_script("training")),
    }
