"""Models and corpora that are pushed over HTTP load in fresh processes, and are the same bit for bit.

A process "without this package" gets a folder of links to everything that is installed but `rpnt_hf`, and no
`site`: there `import rpnt_hf` fails because there is nothing to import.
"""

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from hub_server import HubServer
from safetensors.torch import load_file
from small_corpus import build_small_corpus

from rpnt_hf import RPNTConfig, RPNTForMotorDecoding, RPNTForPreTraining, RPNTProcessor
from rpnt_hf.adapters import AdapterBase, AdapterConfig, add_adapters, save_adapter

COUNTS = np.random.default_rng(0).poisson(1.0, size=(30, 6)).astype(np.uint8)
UNITS = [f"unit-{n}" for n in range(6)]

PUSH_SCRIPT = """
import json, sys

import huggingface_hub
import rpnt_hf

pushes, adapter = json.loads(sys.argv[1])
for class_name, folder, repo_id, tag, arguments in pushes:
    getattr(rpnt_hf, class_name).from_pretrained(folder).push_to_hub(repo_id, **arguments)
    rpnt_hf.RPNTProcessor.from_pretrained(folder).push_to_hub(repo_id)
    if tag:
        huggingface_hub.create_tag(repo_id, tag=tag)
huggingface_hub.create_repo("org/adapter")
huggingface_hub.upload_folder(folder_path=adapter, repo_id="org/adapter")
"""

# Loads each of the jobs, once or twice, and writes predictions and states. Where the package is installed
# the classes must be its own, whether or not other code is trusted; elsewhere those that came along.
LOAD_SCRIPT = """
import json, os, sys
from itertools import product

absent, counts, out, jobs, rounds = json.loads(sys.argv[1])
if absent:
    try:
        import rpnt_hf
    except ModuleNotFoundError:
        pass
    else:
        sys.exit("rpnt_hf can be imported here")
else:
    import rpnt_hf

import numpy as np
import peft
import torch
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForTimeSeriesPrediction
from transformers import AutoProcessor

home = "transformers_modules" if absent else "rpnt_hf"
results = {}
for trust, job in product((absent, True)[:rounds], jobs):
    name, auto_class, checkpoint, folder, arguments, adapter = job
    if folder:
        os.chdir(folder)
    if trust:
        arguments = {**arguments, "trust_remote_code": True}
    config = AutoConfig.from_pretrained(checkpoint, **arguments)
    processor = AutoProcessor.from_pretrained(checkpoint, **arguments)
    model = globals()[auto_class].from_pretrained(checkpoint, **arguments)
    encoder = AutoModel.from_pretrained(checkpoint, **arguments)
    for thing in (config, processor, model, encoder):
        assert type(thing).__module__.startswith(home), (name, type(thing))
    if adapter:
        model = peft.PeftModel.from_pretrained(model, adapter)
        processor = AutoProcessor.from_pretrained(adapter, **arguments)
    inputs = processor(np.array(counts, dtype=np.uint8), session_id="today")
    with torch.no_grad():
        outputs, states = model(**inputs), encoder(**inputs).last_hidden_state
    output = outputs.predictions if "predictions" in outputs else outputs.log_rates
    for key, value in ((name, output.numpy()), (name + " states", states.numpy())):
        assert key not in results or (results[key] == value).all(), key
        results[key] = value
if not absent:
    from rpnt_hf.hub import load_decoder

    model, processor = load_decoder("org/adapter")
    with torch.no_grad():
        results["merged"] = model(**processor(np.array(counts), session_id="today")).predictions.numpy()
np.savez(out, **results)
"""


@pytest.fixture(scope="module")
def without_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that is installed, by links, but this package."""
    folder = tmp_path_factory.mktemp("without")
    for site in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(site).iterdir():
            if "rpnt_hf" not in entry.name and entry.suffix != ".pth":
                (folder / entry.name).symlink_to(entry)
    return folder


def run(script, environment, arguments, cwd, without_package=None):
    """Runs a script in a fresh process, without this package where a folder of links is given."""
    command = [sys.executable]
    if without_package is not None:
        command += ["-S"]  # no site: neither the folder of this environment nor its .pth files
        environment = {**environment, "PYTHONPATH": str(without_package)}
    command += ["-c", script, json.dumps(arguments)]
    result = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


def outputs_of(model, processor):
    model.eval()
    inputs = processor(COUNTS, session_id="today")
    with torch.no_grad():
        outputs, states = model(**inputs), model.model(**inputs).last_hidden_state
    return (outputs.predictions if "predictions" in outputs else outputs.log_rates).numpy(), states.numpy()


def make_adapter(folder, processor):
    """Saves an adapter of folder/decoder, its base on the Hub, and gives what the two decode together."""
    model = RPNTForMotorDecoding.from_pretrained(folder / "decoder")
    base = AdapterBase.of(model, model.config.num_units, str(folder / "decoder"), "org/decoder")
    adapted = add_adapters(model, AdapterConfig(rank=2), rows=[1, 4])
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    save_adapter(adapted, base, folder / "adapter")
    processor.save_pretrained(folder / "adapter")
    with torch.no_grad():
        return adapted.eval()(**processor(COUNTS, session_id="today")).predictions.numpy()


@pytest.fixture(scope="module")
def pushed(hub, tmp_path_factory):
    """Pushes decoders, two versions of one, and a pretrained model; gives jobs and what they must give."""
    folder = tmp_path_factory.mktemp("pushed")
    processor = RPNTProcessor(bin_size=0.02, sessions={"today": UNITS}, window_bins=30)
    models = {}
    for seed, name in enumerate(("older", "decoder", "sharded", "pretrained")):
        torch.manual_seed(seed)
        model_class = RPNTForPreTraining if name == "pretrained" else RPNTForMotorDecoding
        config = RPNTConfig.preset("tiny", num_units=6, target_names=["x", "y"], target_units=["m/s", "m/s"])
        models[name] = model_class(config)
        models[name].save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    pushes = [
        ["RPNTForMotorDecoding", "older", "org/decoder", "v1", {}],
        ["RPNTForMotorDecoding", "decoder", "org/decoder", None, {}],
        ["RPNTForMotorDecoding", "decoder", "org/private", None, {"private": True}],
        ["RPNTForMotorDecoding", "sharded", "org/sharded", None, {"max_shard_size": "50KB"}],
        ["RPNTForPreTraining", "pretrained", "org/pretrained", None, {}],
    ]
    adapted = make_adapter(folder, processor)
    run(
        PUSH_SCRIPT,
        hub.environment(tmp_path_factory.mktemp("home")),
        [pushes, str(folder / "adapter")],
        folder,
    )
    assert sum(path.endswith(".safetensors") for path in hub.repository("org/sharded").files) > 2
    assert hub.repository("org/private").private
    hub.add_repository("rpnt-neuropixel", files=hub.repository("org/decoder").files)
    local, elsewhere = folder / "local", folder / "elsewhere"
    elsewhere.mkdir()
    models["sharded"].save_pretrained(local / "rpnt-neuropixel")
    processor.save_pretrained(local / "rpnt-neuropixel")
    decoder = "AutoModelForTimeSeriesPrediction"
    commit = hub.repository("org/decoder").at("v1").oid
    jobs = [
        ["decoder", decoder, "org/decoder", None, {}, None],
        ["tag", decoder, "org/decoder", None, {"revision": "v1"}, None],
        ["commit", decoder, "org/decoder", None, {"revision": commit}, None],
        ["sharded", decoder, "org/sharded", None, {}, None],
        ["pretrained", "AutoModelForPreTraining", "org/pretrained", None, {}, None],
        ["private", decoder, "org/private", None, {}, None],
        ["adapter", decoder, "org/decoder", None, {}, "org/adapter"],
        ["bare name", decoder, "rpnt-neuropixel", str(elsewhere), {}, None],
        ["local folder", decoder, "rpnt-neuropixel", str(local), {}, None],
    ]
    same = {
        **{"tag": "older", "commit": "older", "local folder": "sharded"},
        **dict.fromkeys(("private", "bare name", "adapter"), "decoder"),
    }
    expected = {}
    for name, *_ in jobs:
        expected[name], expected[f"{name} states"] = outputs_of(models[same.get(name, name)], processor)
    expected["adapter"] = adapted
    assert (expected["tag"] != expected["decoder"]).any() and (adapted != expected["decoder"]).any()
    return jobs, expected


def check(results, expected, jobs):
    names = {suffixed for name, *_ in jobs for suffixed in (name, f"{name} states")}
    with np.load(results) as loaded:
        assert set(loaded) - {"merged"} == names
        for name in sorted(names):
            np.testing.assert_array_equal(loaded[name], expected[name], err_msg=name)
        if "merged" in loaded:  # sums of weights, where peft sums what they give
            np.testing.assert_allclose(loaded["merged"], expected["adapter"], atol=1e-5)


@pytest.mark.parametrize(
    ("installed", "then_offline"),
    [
        pytest.param(False, False, id="package absent"),
        pytest.param(False, True, id="package absent, then offline", marks=pytest.mark.slow),
        pytest.param(True, True, id="package installed, then offline", marks=pytest.mark.slow),
    ],
)
def test_every_way_of_loading_gives_what_the_pushed_models_give(
    hub, pushed, without_package, tmp_path, installed, then_offline
):
    jobs, expected = pushed
    links = None if installed else without_package
    home, online, offline = tmp_path / "home", tmp_path / "online.npz", tmp_path / "offline.npz"
    arguments = [not installed, COUNTS.tolist()]
    run(LOAD_SCRIPT, hub.environment(home), [*arguments, str(online), jobs, 2], tmp_path, links)
    check(online, expected, jobs)
    if not then_offline:
        return
    with HubServer() as stopped:
        environment = stopped.environment(home, HF_HUB_OFFLINE="1")
    run(LOAD_SCRIPT, environment, [*arguments, str(offline), jobs, 1], tmp_path, links)
    check(offline, expected, jobs)


ROWS_SCRIPT = """
import hashlib, json, sys
import datasets

rows = {name: [] for name in json.loads(sys.argv[1])}
for name, digests in rows.items():
    for split, part in datasets.load_dataset(name).items():
        for row in part:
            for column, value in sorted(row.items()):
                content = value if isinstance(value, bytes) else repr(value).encode()
                digests.append([split, column, hashlib.sha256(content).hexdigest()])
print(json.dumps(rows))
"""


def test_model_and_corpus_come_back_bit_for_bit(hub, pushed, without_package, tmp_path):
    jobs, _ = pushed
    api = huggingface_hub.HfApi(endpoint=hub.url, token=hub.token)
    folder = build_small_corpus(tmp_path / "corpus")
    api.create_repo("org/corpus", repo_type="dataset")
    api.upload_folder(folder_path=folder, repo_id="org/corpus", repo_type="dataset")
    files = hub.repository("org/corpus", "dataset").files
    names = [path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()]
    assert {path for path in files if path != ".gitattributes"} == set(names)
    assert all(files[name] == (Path(folder) / name).read_bytes() for name in names)
    environment = hub.environment(tmp_path / "home")
    environment.pop("HF_DATASETS_CACHE", None)
    names = ["org/corpus", str(folder)]
    rows = json.loads(run(ROWS_SCRIPT, environment, names, tmp_path, without_package))
    assert rows["org/corpus"] == rows[str(folder)] and len(rows["org/corpus"]) > 50
    weights = load_file(Path(jobs[-1][3]) / "rpnt-neuropixel" / "model.safetensors")
    shards = [path for path in hub.repository("org/sharded").files if path.endswith(".safetensors")]
    (tmp_path / "shards").mkdir()
    for path in shards:
        (tmp_path / "shards" / path).write_bytes(hub.repository("org/sharded").files[path])
    back = {name: value for path in shards for name, value in load_file(tmp_path / "shards" / path).items()}
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)
