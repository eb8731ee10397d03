"""Importing the package imports little, and everything that it names comes when it is asked for."""

import json
import subprocess
import sys

import pytest

import rpnt_hf

HEAVY = (
    "accelerate", "datasets", "h5py", "matplotlib", "pandas", "peft", "pyarrow", "pynwb", "scipy", "sklearn",
    "transformers.modeling_utils",
)  # fmt: skip


def fresh(code: str) -> str:
    """Runs code in a process of its own and gives what it printed."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_neither_importing_the_package_nor_help_imports_anything_heavy() -> None:
    code = f"""
import json, sys
import rpnt_hf
found = [name for name in {HEAVY} if name in sys.modules]
from rpnt_hf.cli import main
try:
    main(["info", "--help"])
except SystemExit:
    print(json.dumps(found + [name for name in {HEAVY} if name in sys.modules]))
"""
    printed = fresh(code)
    assert printed.startswith("usage: rpnt info")
    assert json.loads(printed.splitlines()[-1]) == []


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["decode", "--help"]])
def test_help_and_version_import_neither_torch_nor_transformers(words: list[str]) -> None:
    code = f"""
import json, sys
sys.argv = ["rpnt", *{words!r}]
from rpnt_hf.cli import main
try:
    main()
except SystemExit:
    print(json.dumps(sorted(sys.modules)))
"""
    imported = set(json.loads(fresh(code).splitlines()[-1]))
    assert not imported & {*HEAVY, "torch", "transformers", "huggingface_hub", "numpy"}
    commands = {name.removeprefix("rpnt_hf.commands.") for name in imported if "rpnt_hf.commands." in name}
    assert commands == {"output"} | ({"decode"} if "decode" in words else set())


def test_every_public_name_is_listed_and_comes_when_asked_for() -> None:
    assert set(rpnt_hf.__all__) <= set(dir(rpnt_hf))
    for name in rpnt_hf.__all__:
        assert getattr(rpnt_hf, name).__module__.split(".")[0] in ("rpnt_hf", "transformers"), name
    with pytest.raises(AttributeError, match="has no attribute 'RPNTModle'"):
        rpnt_hf.RPNTModle  # noqa: B018


# In each, the package is imported at another time than the Auto classes.
ORDERS = {
    "package first": "import rpnt_hf, transformers; from transformers import AutoProcessor",
    "tables first": "from transformers import AutoModel, AutoProcessor; import transformers, rpnt_hf",
    "configuration first": "from rpnt_hf.configuration_rpnt import RPNTConfig; import transformers, rpnt_hf",
}


@pytest.mark.parametrize("order", ORDERS)
def test_auto_classes_know_the_models_in_whatever_order_things_are_imported(order: str, tmp_path) -> None:
    code = f"""
{ORDERS[order]}
config = rpnt_hf.RPNTConfig.preset("tiny", num_units=3)
model = transformers.AutoModelForPreTraining.from_config(config)
assert type(model) is rpnt_hf.RPNTForPreTraining
assert rpnt_hf.RPNTForPreTraining in transformers.AutoModelForPreTraining._model_mapping.values()
rpnt_hf.RPNTProcessor(bin_size=0.02, sessions={{"a": ["0"]}}).save_pretrained({str(tmp_path)!r})
config.save_pretrained({str(tmp_path)!r})
for auto_class in (transformers.AutoProcessor, transformers.AutoFeatureExtractor):
    assert type(auto_class.from_pretrained({str(tmp_path)!r})) is rpnt_hf.RPNTProcessor
assert not any(type(finder).__name__ == "_ProcessorTableFinder" for finder in __import__("sys").meta_path)
"""
    fresh(code)
