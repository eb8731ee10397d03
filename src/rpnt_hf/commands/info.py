# ruff: noqa: T201
"""`rpnt info`: versions and devices."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

DESCRIPTION = "Print versions and devices."
EXAMPLES = """\
examples:
  rpnt info
  rpnt info --json
"""
PACKAGES = (
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "huggingface_hub",
    "safetensors",
    "pynwb",
    "numpy",
    "pandas",
    "pyarrow",
    "scikit-learn",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `rpnt info`.

    Args:
        parser (`argparse.ArgumentParser`): Where to.
    """
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(arguments: argparse.Namespace) -> None:
    """Runs `rpnt info`.

    Args:
        arguments (`argparse.Namespace`): `json`, whether to print one JSON object instead of text.
    """
    information = describe_installation()
    if arguments.json:
        print(json.dumps(information))
        return
    width = max(len(name) for name in information["packages"])
    for name, version in information["packages"].items():
        print(f"{name:<{width}}  {version}")
    for device in information["devices"]:
        print(f"{'device':<{width}}  {device}")


def describe_installation() -> dict[str, Any]:
    """Collects versions and devices, for `rpnt info` and for reports of runs.

    Returns:
        `dict[str, Any]`: `packages`, name to version, and `devices`, a line for each.
    """
    import importlib.metadata
    import platform

    import torch

    import rpnt_hf

    versions = {"rpnt_hf": importlib.metadata.version("rpnt_hf"), "python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in PACKAGES}
    devices = [f"cpu ({os.cpu_count()} cores, {torch.get_num_threads()} threads, {platform.machine()})"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(f"cuda:{index} ({properties.name}, {properties.total_memory / 2**30:.0f} GiB)")
    if torch.backends.mps.is_available():
        devices.append("mps")
    return {"packages": versions, "devices": devices, "folder": str(Path(rpnt_hf.__file__).parent)}
