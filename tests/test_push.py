"""What a push sends, leaves and refuses; and that a pushed corpus is used without this package."""

import ast
import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from hub_server import HubServer

from rpnt_hf import RPNTConfig, RPNTForMotorDecoding, RPNTProcessor, sharing_rpnt
from rpnt_hf.cli import main
from rpnt_hf.data.rows import row_behavior, row_counts, row_observed, row_to_arrays
from rpnt_hf.errors import CheckpointError, DatasetError, HubError
from rpnt_hf.push import plan_push, push

CARD = "---\nlicense: mit\n---\n# A decoder\n\nLoad it as `OWNER/NAME`.\n"
WEIGHTS = "model.safetensors"
PACKAGE = Path(sharing_rpnt.__file__).parent


def imported(name: str) -> set[str]:
    """A module and what it imports of its siblings, by its syntax."""
    nodes = ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text()))
    siblings = {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and node.level}
    return {f"{name}.py"}.union(*(imported(sibling) for sibling in siblings))


CODE = imported("modeling_rpnt") | imported("processing_rpnt")
SENT = {"README.md", ".eval_results/rpnt.yaml", "config.json", "preprocessor_config.json", WEIGHTS, *CODE}
SIZES = [
    "--num-subjects", "1", "--sessions-per-subject", "2", "--num-units", "4", "--num-trials", "12",
    "--tasks", "center_out", "random_target",
]  # fmt: skip
LEFT = {"checkpoints", "run_config.json", "history.json", "results.json", "tensorboard"}


def tiny_model():
    return RPNTForMotorDecoding(RPNTConfig.preset("tiny", num_units=3, num_hidden_layers=1))


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory):
    """What training leaves, training itself left out."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    tiny_model().save_pretrained(folder)
    RPNTProcessor(bin_size=0.05, sessions={"a": ["0", "1", "2"]}).save_pretrained(folder)
    for name in ("checkpoints/step_00000002", "tensorboard", ".eval_results"):
        (folder / name).mkdir(parents=True)
    texts = {
        "README.md": CARD, ".eval_results/rpnt.yaml": "- value: 0.5\n", "history.json": "[]",
        "results.json": '{"data": "/somewhere/of/mine"}', "run_config.json": '{"data": "/somewhere/of/mine"}',
        "checkpoints/step_00000002/optimizer.bin": "state", "tensorboard/events.out.tfevents.1": "curves",
    }  # fmt: skip
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def run(saved_run, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(saved_run, tmp_path / "run")


@pytest.fixture(scope="module")
def saved_dataset(tmp_path_factory):
    """A corpus of two parts, as the builder writes it."""
    folder = tmp_path_factory.mktemp("corpus")
    folders = ["--nwb-dir", str(folder / "nwb"), "--out", str(folder / "dataset")]
    assert main(["build", "synthetic", *folders, "--bin-size", "0.05", *SIZES]) == 0
    return folder / "dataset"


@pytest.fixture
def dataset(saved_dataset, tmp_path):
    return shutil.copytree(saved_dataset, tmp_path / "dataset")


# What goes, what stays, what is refused


def test_a_run_folder_sends_what_loads_it_and_leaves_what_trained_it(run):
    plan = plan_push(run, "org/reach")
    assert {"attention_rpnt.py", "configuration_rpnt.py", "errors.py", "layout_rpnt.py"} < CODE
    assert set(plan.files) == SENT and set(plan.staying) == LEFT and plan.repo_type == "model"
    assert plan.files["README.md"] == CARD.replace("OWNER/NAME", "org/reach").encode()
    assert all(plan.files[name].read_bytes() == (PACKAGE / name).read_bytes() for name in CODE)
    before = json.loads((run / "config.json").read_text())
    assert json.loads(plan.files["config.json"]) == before
    assert {reference.split(".")[1] for reference in before["auto_map"].values()} == {
        "RPNTConfig", "RPNTModel", "RPNTForPreTraining", "RPNTForSequenceClassification",
        "RPNTForMotorDecoding",
    }  # fmt: skip


def test_code_and_auto_map_are_of_this_installation_whatever_the_folder_has(run):
    for name in CODE:
        (run / name).unlink()
    (run / "errors.py").write_text("raise SystemExit\n")
    for name in ("config.json", "preprocessor_config.json"):
        content = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps({**content, "auto_map": {"AutoModel": "other/repo--x.Y"}}))
    plan = plan_push(run, "org/reach")
    assert set(plan.files) == SENT and plan.files["errors.py"].read_bytes() != b"raise SystemExit\n"
    config, processor = (json.loads(plan.files[name]) for name in ("config.json", "preprocessor_config.json"))
    assert len(config["auto_map"]) == 5 and len(processor["auto_map"]) == 2
    assert "other" not in str(config) + str(processor)


@pytest.mark.parametrize(
    "name",
    [
        "sub-A/monday.nwb", "optimizer.bin", "pytorch_model.bin", "notes.txt", "rows.parquet", "train.py",
        ".env", ".eval_results/notes.md", "checkpoints.zip", "results/results.json",
    ],
)  # fmt: skip
def test_anything_else_is_refused_by_name(run, name):
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text("x")
    with pytest.raises(CheckpointError, match=rf"must hold nothing but .* got {name}.* move such files"):
        plan_push(run, "org/reach")


def test_links_to_outside_are_refused(run, tmp_path):
    (tmp_path / "LICENSE").write_text("mine")
    (run / "LICENSE").symlink_to(tmp_path / "LICENSE")
    with pytest.raises(CheckpointError, match=r"got LICENSE \(a link to outside\)"):
        plan_push(run, "org/reach")
    (run / "LICENSE").unlink()
    (run / "more").symlink_to(tmp_path)
    with pytest.raises(CheckpointError, match=r"got more \(a link to outside\)"):
        plan_push(run, "org/reach")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "config.json",
            "/lustre/me/run",
            "a path of this machine, but line .* of `config.json`.*./lustre/me",
        ),
        ("preprocessor_config.json", "C:\\\\Users\\\\me", "a path of this machine.*`preprocessor_config"),
        ("README.md", "see ~/runs", "a path of this machine, but line 7 of `README.md`"),
        ("README.md", "see file:///lustre/me", "a path of this machine, but line 7 of `README.md`"),
        (".eval_results/rpnt.yaml", "# /gpfs/me", "a path of this machine, but line 2"),
        ("README.md", "hf_" + "a" * 34, "an access token, but line 7 of `README.md`"),
    ],
)
def test_text_that_tells_of_this_machine_is_refused(run, name, text, said):
    path = run / name
    content = path.read_text()
    if path.suffix == ".json":
        path.write_text(content.replace("{", f'{{\n"_name_or_path": "{text}",', 1))
    else:
        path.write_text(f"{content}{text}\n")
    with pytest.raises(CheckpointError, match=said) as raised:
        plan_push(run, "org/reach")
    assert "hf_aaa" not in str(raised.value)


@pytest.mark.parametrize(
    "text",
    ["speeds in cm/s, M1/PMd, 1/2/3, and/or", "[x](https://a.org/b/c)", "`src/rpnt_hf/hub.py`", "</td></tr>"],
)
def test_text_that_only_looks_like_a_path_goes(run, text):
    (run / "README.md").write_text(CARD + text)
    assert text.encode() in plan_push(run, "org/reach").files["README.md"]


def test_a_checkpoint_that_is_not_whole_is_refused(run, tmp_path):
    def refused(match, repo_id="org/reach", folder=run):
        with pytest.raises(CheckpointError, match=match):
            plan_push(folder, repo_id)

    for name in ("preprocessor_config.json", "README.md", WEIGHTS):
        (run / name).rename(tmp_path / name)
        refused(f"must hold all of .* lacks {name}")
        (tmp_path / name).rename(run / name)
    whole = (run / WEIGHTS).read_bytes()
    (run / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    refused("must be whole safetensors files")
    (run / WEIGHTS).write_bytes(whole)
    shutil.copyfile(run / WEIGHTS, run / "model-00001-of-00002.safetensors")
    refused("must be one file, or come with an index")
    index = run / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"x": "model-00001-of-00002.safetensors"}}')
    refused("index.json` names must be those that are there, got .'model.safetensors'")
    index.write_text("{")
    refused("`model.safetensors.index.json` must be JSON")
    index.unlink()
    (run / "model-00001-of-00002.safetensors").unlink()
    (run / "README.md").write_text("# No head\n")
    refused("A card must begin with metadata")
    (run / "README.md").write_text(CARD)
    (run / "config.json").write_text('{"architectures": ["BertModel"]}')
    refused(r"must be a model of rpnt_hf, got \['BertModel'\]")
    (run / "config.json").unlink()
    refused("with neither. Recordings are not pushed")
    refused("is no folder", folder=run / "absent")
    for repo_id in ("reach", "org/reach/more", "org/re ach", "../org/reach", ""):
        with pytest.raises(HubError, match="REPO_ID must be OWNER/NAME"):
            plan_push(run, repo_id)


def test_an_adapter_must_name_a_base_that_others_find(run, tmp_path, monkeypatch):
    (run / WEIGHTS).rename(run / "adapter_model.safetensors")
    (tmp_path / "runs" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for base in ("base", "../base", "runs/base"):
        (run / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        with pytest.raises(CheckpointError, match="must name its base as others find it"):
            plan_push(run, "org/adapter")
    (run / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    sent = set(plan_push(run, "org/adapter").files)
    assert {"adapter_config.json", "adapter_model.safetensors", "processing_rpnt.py"} < sent
    assert "modeling_rpnt.py" not in sent and WEIGHTS not in sent


def test_a_dataset_sends_parquet_and_its_cards(dataset):
    plan = plan_push(dataset, "org/corpus")
    here = {path.relative_to(dataset).as_posix() for path in dataset.rglob("*") if path.is_file()}
    assert set(plan.files) == here and len(here) == 8 and plan.repo_type == "dataset" and not plan.staying
    assert b'load_dataset("org/corpus", "center_out", split="train")' in plan.files["README.md"]


def test_a_dataset_that_is_not_to_be_shared_as_it_is_is_refused(dataset):
    def refused(match):
        with pytest.raises(DatasetError, match=match):
            plan_push(dataset, "org/corpus")

    (dataset / "monday.nwb").write_text("x")
    refused("must hold nothing but .* got monday.nwb")
    (dataset / "monday.nwb").unlink()
    card = (dataset / "README.md").read_text()
    (dataset / "README.md").write_text(card.replace("license: apache-2.0\n", "", 1))
    refused("must state its licence .* `--license cc-by-4.0`")
    (dataset / "README.md").write_text(card.replace("config_name: center_out", "config_name: other"))
    refused(r"\['other', 'random_target'\] and \['center_out', 'random_target'\]")
    (dataset / "README.md").write_text(card)
    table = dataset / "center_out" / "train-00000.parquet"
    whole = table.read_bytes()
    table.write_bytes(whole[:-50])
    refused("must be whole, but 'center_out/train-00000.parquet'")


# Over HTTP


def test_a_push_is_one_commit_and_leaves_nothing_of_the_one_before(lab, run):
    url, first = push(plan_push(run, "org/reach"))
    repository = lab.repository("org/reach")
    assert url.endswith("org/reach") and set(repository.files) == {*SENT, ".gitattributes"}
    assert [commit.title for commit in repository.branches["main"].history()] == [
        "Push model with rpnt_hf", "initial commit",
    ]  # fmt: skip
    repository.add_files({"logo.png": b"theirs"})
    (run / WEIGHTS).unlink()
    shutil.rmtree(run / ".eval_results")
    tiny_model().save_pretrained(run, max_shard_size="50KB")
    _, second = push(plan_push(run, "org/reach"))
    shards = {name for name in repository.files if name.endswith(".safetensors")}
    assert len(shards) > 1 and WEIGHTS not in shards and "logo.png" in repository.files
    assert ".eval_results/rpnt.yaml" not in repository.files
    assert repository.branches["main"].oid == second and set(repository.at(first).files) > SENT


def test_a_branch_is_pushed_to_without_touching_main(lab, run):
    push(plan_push(run, "org/branched"), revision="v2")
    repository = lab.repository("org/branched")
    assert set(repository.files) == {".gitattributes"}
    assert set(repository.branches["v2"].files) == {*SENT, ".gitattributes"}


def test_private_is_private_or_refused(lab, run):
    push(plan_push(run, "org/hidden"), private=True)
    assert lab.repository("org/hidden").private
    lab.add_repository("org/open")
    with pytest.raises(HubError, match="cannot be pushed as private: it exists and is public"):
        push(plan_push(run, "org/open"), private=True)
    assert set(lab.repository("org/open").files) == {".gitattributes"}


def test_a_push_that_breaks_off_leaves_the_repository_as_it_was(lab, run, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between its attempts
    before = push(plan_push(run, "org/kept"))[1]
    (run / "README.md").write_text(CARD + "changed")
    lab.break_requests("*/org/kept/commit/*", "error")
    with pytest.raises(HubError, match=r"'org/kept' cannot be pushed: the Hub refused.*status 503"):
        push(plan_push(run, "org/kept"))
    assert lab.repository("org/kept").branches["main"].oid == before


def test_who_may_not_push_is_told_why(lab, run, monkeypatch):
    plan = plan_push(run, "strangers/reach")
    with pytest.raises(HubError, match="'strangers/reach' cannot be pushed: the token has no right to"):
        push(plan)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(HubError, match=r"the token is not valid\. .*status 401"):
        push(plan)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "absent")
    asked = len(lab.requests)
    with pytest.raises(HubError, match=r"must have an access token .* got none.* `hf auth login`"):
        push(plan)
    assert len(lab.requests) == asked


def test_a_push_without_network_says_so(run, monkeypatch):
    with HubServer() as stopped:
        url = stopped.url
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setenv("HF_TOKEN", "hf_lab")
    with pytest.raises(HubError, match=f"the Hub at {url} cannot be reached"):
        push(plan_push(run, "org/reach"))


def test_push_to_hub_of_transformers_keeps_the_card(lab, run):
    push(plan_push(run, "org/both"))
    tiny_model().push_to_hub("org/both")
    RPNTProcessor(bin_size=0.1).push_to_hub("org/both")
    repository = lab.repository("org/both")
    assert repository.files["README.md"].decode().split() == CARD.replace("OWNER/NAME", "org/both").split()
    assert set(repository.files) == {*SENT, ".gitattributes"}
    assert json.loads(repository.files["preprocessor_config.json"])["bin_size"] == 0.1


def test_a_dry_run_lists_and_contacts_nobody(lab, run, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    asked = len(lab.requests)
    assert main(["push", str(run), "org/dry", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lab.requests) == asked and ("model", "org/dry") not in lab.repositories
    listed = {line.split()[1]: line.split()[0] for line in lines[:-1]}
    assert set(listed) == SENT | LEFT and {listed[name] for name in LEFT} == {"stays"}
    assert listed[WEIGHTS] == f"{(run / WEIGHTS).stat().st_size:,}"
    report = json.loads(lines[-1])
    assert report["files"] == len(SENT) and report["commit"] is None
    assert report["bytes"] == sum(int(listed[name].replace(",", "")) for name in SENT)


# A corpus, in a process without this package: the card's own example, whole and streamed

SCRIPT = """
import json, re, sys
import datasets, huggingface_hub

try:
    import rpnt_hf
except ModuleNotFoundError:
    pass
else:
    sys.exit("rpnt_hf can be imported here")
card = huggingface_hub.DatasetCard.load("org/built")
example = re.search(r"```python\\n(.*?)```", card.text, re.DOTALL)[1]
names = {}
exec(example, names)
rows = datasets.load_dataset("org/built", "center_out")
streamed = datasets.load_dataset("org/built", "center_out", streaming=True)
found = []
for split in rows:
    for row, other in zip(rows[split], streamed[split], strict=True):
        assert row == other
        counts, observed, behavior = names["to_arrays"](row)
        shapes = [[*map(int, array.shape), str(array.dtype)] for array in (counts, observed, behavior)]
        found.append([split, shapes, [array.tobytes().hex() for array in (counts, observed, behavior)]])
first = names["to_arrays"](rows["train"][0])
assert all((a == b).all() for a, b in zip(first[:2], (names["counts"], names["observed"])))
print(json.dumps({"licence": card.data.license, "parts": datasets.get_dataset_config_names("org/built"),
                  "rows": found}))
"""


def test_a_corpus_that_the_builder_pushes_is_used_without_this_package(lab, tmp_path, capsys, monkeypatch):
    folders = ["--nwb-dir", str(tmp_path / "nwb"), "--out", str(tmp_path / "dataset")]
    options = ["build", "synthetic", *folders, "--bin-size", "0.05", *SIZES, "--license", "cc-by-4.0"]
    assert main([*options, "--push-to-hub", "org/built", "--private"]) == 0
    printed = capsys.readouterr().out.splitlines()
    repository = lab.repository("org/built", "dataset")
    assert printed[0] == str(tmp_path / "dataset") and repository.branches["main"].oid in printed[1]
    assert repository.private

    site = tmp_path / "site"
    site.mkdir()
    for folder in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(folder).iterdir():
            if "rpnt_hf" not in entry.name and entry.suffix != ".pth":
                (site / entry.name).symlink_to(entry)
    environment = lab.environment(tmp_path / "home", PYTHONPATH=str(site))
    environment.pop("HF_DATASETS_CACHE", None)
    result = subprocess.run(
        [sys.executable, "-S", "-c", SCRIPT], env=environment, cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-4000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["licence"] == "cc-by-4.0" and found["parts"] == ["center_out", "random_target"]
    import datasets

    expected = []
    for split, rows in datasets.load_dataset(str(tmp_path / "dataset"), "center_out").items():
        for row in rows:
            arrays = (row_counts(row), row_observed(row), row_behavior(row))
            shapes = [[*array.shape, str(array.dtype)] for array in arrays]
            expected.append([split, shapes, [array.tobytes().hex() for array in arrays]])
            named = row_to_arrays(row)
            assert list(named) == ["counts", "observed", "behavior"]
            for array, other in zip(arrays, named.values(), strict=True):
                np.testing.assert_array_equal(array, other)
    assert found["rows"] == expected and len(expected) > 3


def test_a_build_that_could_not_be_pushed_is_not_begun(lab, tmp_path, capsys):
    folders = ["--nwb-dir", str(tmp_path / "nwb"), "--out", str(tmp_path / "dataset")]
    options = ["build", "synthetic", *folders, "--bin-size", "0.05", "--push-to-hub"]
    assert main([*options, "no-owner"]) == 2
    assert "REPO_ID must be OWNER/NAME" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
