"""Habits of the source that no linter checks: paths, prints, names of files and of parameters, docstrings."""

import ast
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("src", "training", "dataset_builders", "tests")
MODULES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
LIBRARY = [path for path in MODULES if path.is_relative_to(ROOT / "src")]
SOURCES = [path for path in MODULES if not path.is_relative_to(ROOT / "tests")]
TEXTS = [
    *MODULES,
    *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.y*ml")),
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
]

# The word used here, and what else people write for it.
PARAMETER_NAMES = {
    "bin_size": {"bin_width", "binsize", "bin_sz", "binwidth", "dt", "timestep"},
    "num_units": {"n_units", "num_neurons", "n_neurons", "num_cells"},
    "num_bins": {"n_bins", "num_timesteps", "n_timesteps", "seq_len", "num_steps_per_window"},
    "num_sites": {"n_sites", "num_areas"},
    "session_id": {"dataset_id", "session_name", "day_id"},
    "subject_id": {"monkey", "animal_id", "subject_name"},
    "spike_counts": {"neural_data", "spikes", "binned_spikes"},
    "spike_times": {"spiketimes", "spike_train", "spike_trains"},
    "log_rates": {"log_rate", "lograte"},
    "unit_mask": {"units_mask", "neuron_mask"},
    "bin_mask": {"bins_mask", "time_mask"},
    "masked_bins": {"mask_bins", "hidden_bins"},
    "masked_units": {"mask_units", "hidden_units"},
    "label_mask": {"labels_mask", "target_mask"},
    "label_lag": {"lag_bins", "labels_lag"},
    "seed": {"random_seed", "rng_seed"},
}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def definitions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]


def parameters(path: Path) -> set[str]:
    names: set[str] = set()
    for node in definitions(path):
        if node.name.startswith("_") and node.name != "__init__":
            continue
        if not isinstance(node, ast.ClassDef):
            arguments = node.args
            names |= {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
        else:
            fields = (item.target for item in node.body if isinstance(item, ast.AnnAssign))
            names |= {target.id for target in fields if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("path", TEXTS, ids=relative)
def test_text_is_ascii_and_names_no_path_of_one_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    strange = sorted({character for character in text if not character.isascii()})
    assert not strange, f"{relative(path)} holds characters beyond ASCII: {strange}"
    pattern = r"(?<![A-Za-z0-9_./-])/(?:home|Users|root|work|data|mnt|scratch)/[A-Za-z]"
    paths = [] if path == Path(__file__) else re.findall(pattern, text)
    assert not paths, f"{relative(path)} holds paths of one machine: {paths}"


def test_no_file_is_a_fork_of_another_or_a_drawer_for_odds_and_ends() -> None:
    forks = re.compile(r"^(old|new|tmp|copy)_|_(old|new|v\d+|fixed|final|backup|copy)$")
    drawers = {"utils", "util", "common", "helpers", "helper", "misc"}
    bad = [relative(path) for path in MODULES if forks.search(path.stem) or path.stem in drawers]
    assert not bad


def test_every_file_is_under_700_lines() -> None:
    long = {relative(path): lines for path in MODULES if (lines := len(path.read_text().splitlines())) >= 700}
    assert not long


def test_only_the_command_line_prints() -> None:
    printing = [
        f"{relative(path)}:{node.lineno}"
        for path in LIBRARY
        if path.name != "cli.py" and path.parent.name != "commands"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not printing


def test_every_public_name_has_a_docstring() -> None:
    missing = [relative(path) for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text()))]
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                missing += [] if ast.get_docstring(node) else [f"{relative(path)}:{node.lineno} {node.name}"]
    assert not missing


def test_one_concept_has_one_parameter_name() -> None:
    known = {other: name for name, others in PARAMETER_NAMES.items() for other in others}
    wrong = [
        f"{relative(path)}: `{name}` should be `{known[name]}`"
        for path in SOURCES
        for name in sorted(parameters(path))
        if name in known
    ]
    assert not wrong


def test_no_two_parameter_names_differ_only_in_spelling() -> None:
    used = Counter(name for path in SOURCES for name in parameters(path))
    spellings: dict[str, set[str]] = {}
    for name in used:
        key = re.sub(r"^n_", "num_", name).replace("_", "").lower()
        spellings.setdefault(key, set()).add(name)
    assert not [names for names in spellings.values() if len(names) > 1]


def test_files_that_travel_with_a_checkpoint_import_nothing_that_does_not() -> None:
    package = ROOT / "src" / "rpnt_hf"
    siblings = {path.stem for path in package.glob("*_rpnt.py")} | {"objectives", "errors"}
    allowed = {"torch", "numpy", "transformers", "huggingface_hub", *sys.stdlib_module_names}
    for name in siblings:
        for node in ast.walk(ast.parse((package / f"{name}.py").read_text())):
            if isinstance(node, ast.Import):
                assert all(alias.name.split(".")[0] in allowed for alias in node.names), name
            elif isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and node.module in siblings, (name, node.module)
            elif isinstance(node, ast.ImportFrom):
                assert str(node.module).split(".")[0] in allowed, (name, node.module)
