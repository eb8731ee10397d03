"""Examples of docstrings and blocks of the documentation run as written, and what pages mention exists."""

import doctest
import importlib
import pkgutil
import re
import shutil
from pathlib import Path

import pytest
import yaml
from docs_blocks import (
    NOT_RUN,
    OUTPUT,
    ROOT,
    RUN_LANGUAGES,
    SHOWN_LANGUAGES,
    PageRun,
    find_blocks,
    indented_blocks,
    pages,
    read_blocks,
)

import rpnt_hf
from rpnt_hf.cli import build_parser, list_commands
from rpnt_hf.scripts import list_builders, load_builder

MODULES = sorted(module.name for module in pkgutil.walk_packages(rpnt_hf.__path__, "rpnt_hf."))
PAGES = pages()
TUTORIALS = ["docs/tutorials/neuroscientist.md", "docs/tutorials/engineer.md"]
# Pages whose blocks take more than ten seconds together.
SLOW_PAGES = {*TUTORIALS, "docs/how_to/few_trials.md"}
IMAGE_LIMIT = 200_000  # bytes
FOLDERS = ("training", "examples", "dataset_builders", "benchmarks", "reference_checkpoints", "docs", "tests")


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


@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs_or_says_why_it_does_not(page: str) -> None:
    for block in read_blocks(page):
        assert block.language in RUN_LANGUAGES + SHOWN_LANGUAGES, (
            f"{block}: the fence must name one of {RUN_LANGUAGES + SHOWN_LANGUAGES}, got '{block.language}'"
        )
        if block.language in RUN_LANGUAGES:
            reason = block.title.removeprefix(NOT_RUN)
            assert not block.title or (block.title != reason and len(reason.split()) > 1), (
                f"{block}: the title must be '{NOT_RUN}REASON', got '{block.title}'"
            )
    indented = indented_blocks((ROOT / page).read_text())
    assert not indented, f"{page}: fence the blocks at lines {indented}"


BAD_BLOCKS = {
    "```python\n1 / 0\n```": "division by zero",
    '```python\nprint(1)\n```\n```text title="Output"\n2\n```': "this was printed",
    "```bash\nfalse | true\n```": "exit code 1",
    "```bash\nrpnt decode nothing.nwb nothing.nwb\n```": "`rpnt decode nothing.nwb nothing.nwb` failed",
}


@pytest.mark.parametrize("text", BAD_BLOCKS)
def test_a_block_that_fails_or_prints_something_else_is_noticed(text: str) -> None:
    run = PageRun()
    with pytest.raises((AssertionError, ArithmeticError), match=BAD_BLOCKS[text]):
        for block in find_blocks(text):
            run.run(block)


def test_a_command_of_ours_may_write_into_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("docs_blocks.subprocess", None)  # no shell is needed
    for block in find_blocks("```bash\nrpnt completion bash > rpnt.sh\nrpnt completion zsh > rpnt.zsh\n```"):
        PageRun().run(block)
    assert "rpnt" in (tmp_path / "rpnt.sh").read_text() and "compdef" in (tmp_path / "rpnt.zsh").read_text()


def test_blocks_inside_lists_and_marked_ones_are_found() -> None:
    text = "- item\n\n    ```python\n    x = 1\n    ```\n\n"
    text += '```bash title="Not run: no GPU here"\nls\n```\n\ntext\n\n    ls\n'
    inside, marked = find_blocks(text)
    assert (inside.code, inside.runs, marked.runs) == ("x = 1\n", True, False)
    assert indented_blocks(text) == [13]


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * (page in SLOW_PAGES)) for page in PAGES]
)
def test_blocks_of_a_page_run(page: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch) -> None:
    blocks = read_blocks(page)
    if not any(block.runs for block in blocks):
        return
    monkeypatch.chdir(tmp_path)
    for folder in FOLDERS:
        (tmp_path / folder).symlink_to(ROOT / folder)
    code = "".join(block.code for block in blocks if block.runs)
    if "demo_out" in code:  # what `make demo` leaves, on a corpus too small to learn from
        leave = shutil.ignore_patterns("checkpoints")
        shutil.copytree(request.getfixturevalue("demo"), tmp_path / "demo_out", ignore=leave)
    environment = {}
    if "my-lab/" in code:  # a Hub of this machine
        lab = request.getfixturevalue("lab")
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", lab.url)
        environment = {"HF_ENDPOINT": lab.url, "HF_TOKEN": lab.token, "HF_HUB_DISABLE_XET": "1"}
    run = PageRun(environment)
    for block in blocks:
        run.run(block)


@pytest.mark.parametrize("page", PAGES)
def test_an_output_follows_the_block_that_printed_it(page: str) -> None:
    blocks = read_blocks(page)
    for before, block in zip([None, *blocks], blocks, strict=False):
        if block.title == OUTPUT:
            assert before is not None and before.runs, f"{block}: no block that runs is above it"


def _mentions(page: str) -> list[str]:
    """Commands that a page names, in blocks and in spans of code."""
    text = (ROOT / page).read_text()
    spans = re.findall(r"(?<!`)`(rpnt [^`\n]+)`", text)
    lines = [
        line for block in read_blocks(page) if block.language == "bash"
        for line in block.code.replace("\\\n", " ").splitlines()
    ]  # fmt: skip
    return spans + [line for line in lines if re.match(r"\s*(\w+=\S+ )*rpnt ", line)]


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_that_a_page_mentions_exist(page: str) -> None:
    for mention in _mentions(page):
        words = mention.split("rpnt ", 1)[1].split("#")[0].split()
        if words[0].startswith("-") or words[0] == "COMMAND":
            continue
        assert words[0] in list_commands(), f"{page}: there is no command `rpnt {words[0]}`"
        parser = build_parser([words[0]])
        choices = parser._subparsers._group_actions[0].choices  # type: ignore[union-attr, index]
        known = set(choices[words[0]]._option_string_actions)
        if words[0] == "build" and len(words) > 1 and words[1] in list_builders():
            load_builder(words[1]).add_arguments(choices[words[0]])
            known = {*choices[words[0]]._option_string_actions, "--push-to-hub", "--private"}
        options = {word.split("=")[0] for word in words if re.match(r"--[a-z]", word)}
        assert options <= known, f"{page}: `rpnt {words[0]}` has no {sorted(options - known)}"


@pytest.mark.parametrize("page", PAGES)
def test_names_and_files_that_a_page_mentions_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    for name in set(re.findall(r"`(rpnt_hf(?:\.\w+)+)(?:\(\))?`|^::: (rpnt_hf[\w.]+)", text, re.MULTILINE)):
        path = next(filter(None, name))
        if path.endswith(".py"):
            continue
        module, _, last = path.rpartition(".")
        try:
            importlib.import_module(path)
        except ImportError:
            assert hasattr(importlib.import_module(module), last), f"{page}: there is no `{path}`"
    files = re.findall(r"`((?:src|training|tests|benchmarks|dataset_builders|docs)/[\w./]+\w)`", text)
    missing = [name for name in files if not (ROOT / name).exists()]
    assert not missing, f"{page}: there are no {missing}"


@pytest.mark.parametrize("page", PAGES)
def test_links_and_images_of_a_page_exist(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    root_pages = {"docs/changelog.md": "CHANGELOG.md", "docs/contributing.md": "CONTRIBUTING.md"}
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:|#", target):
            continue
        path = ((ROOT / page).parent / target.split("#")[0]).resolve()
        name = path.relative_to(ROOT).as_posix()
        assert (ROOT / root_pages.get(name, name)).exists(), f"{page}: there is no {target}"


def test_images_are_small_and_every_one_is_shown() -> None:
    shown = "".join((ROOT / page).read_text() for page in PAGES)
    for image in (ROOT / "docs").rglob("*.png"):
        assert image.stat().st_size <= IMAGE_LIMIT, f"{image.name} has {image.stat().st_size} bytes"
        assert image.name in shown, f"no page shows {image.name}"


def test_every_public_name_is_on_an_api_page() -> None:
    listed = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    objects = {name.rsplit(".", 1)[-1] for name in re.findall(r"^::: ([\w.]+)", listed, re.MULTILINE)}
    assert set(rpnt_hf.__all__) <= objects


def test_the_navigation_of_the_site_lists_every_page() -> None:
    def leaves(part: object) -> list[str]:
        if isinstance(part, str):
            return [part]
        items = part.values() if isinstance(part, dict) else part
        return [leaf for item in items for leaf in leaves(item)]  # type: ignore[attr-defined]

    listed = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    there = [page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")]
    assert sorted(listed) == sorted([*there, "changelog.md", "contributing.md"])


def test_targets_of_make_that_pages_mention_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = "".join((ROOT / page).read_text() for page in PAGES)
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)) <= targets


def test_every_command_has_a_line_in_the_documentation() -> None:
    text = "".join((ROOT / page).read_text() for page in PAGES)
    assert [name for name in list_commands() if f"rpnt {name}" not in text] == []
