"""Examples of docstrings and of the README run as written."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import rpnt_hf

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(module.name for module in pkgutil.walk_packages(rpnt_hf.__path__, "rpnt_hf."))


class FencedExamples(doctest.DocTestParser):
    """Reads examples in fenced blocks, as in transformers' docstrings; a fence is no expected output."""

    def parse(self, string: str, name: str = "<string>") -> list[str | doctest.Example]:
        return super().parse(re.sub(r"^\s*```(python)?\s*$", "", string, flags=re.MULTILINE), name)


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings_print_what_they_say(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module(name)
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    for test in doctest.DocTestFinder(parser=FencedExamples()).find(module, name):
        runner.run(test, out=report.append)
    assert not runner.summarize(verbose=False).failed, "".join(report)


def readme_examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("example", [text for text in readme_examples() if "demo_out" not in text])
def test_examples_of_the_readme_run(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})


def test_readme_names_only_files_that_exist() -> None:
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"\]\(([^):#]+)\)", text)) | set(
        re.findall(r"`((?:src|training|docs|tests)/[\w./]+)`", text)
    )
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]
