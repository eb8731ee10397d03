import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import HubServer

REPOSITORY = Path(__file__).resolve().parents[1]
pytest_plugins = ["pytester", "tally"]

# Before matplotlib or a Hugging Face library is imported by a test: no display, no network.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")  # the test server speaks LFS
os.environ.pop("HF_HUB_OFFLINE", None)  # tests speak to a Hub of their own, on this machine
# Fixtures of modules and sessions load datasets through a cache of this run.
DATASET_CACHE = tempfile.TemporaryDirectory(prefix="rpnt-tests-")
os.environ["HF_DATASETS_CACHE"] = DATASET_CACHE.name


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what needs a GPU where there is none, however the tests were selected."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    """Keeps the suite at one thread: tiny tensors gain nothing, and results do not depend on the cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Starts every test from the same random state, so that the order of tests changes nothing."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(autouse=True)
def own_dataset_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives every test a cache of its own, in this process and in those that it starts."""
    import datasets

    folder = tmp_path_factory.mktemp("datasets-cache", numbered=True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder))


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real recordings beside the repository; tests that need it are skipped where it is absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no folder of real recordings (`shared/data`) beside the repository")
    return folder


@pytest.fixture(scope="session")
def hub() -> Iterator[HubServer]:
    """A Hub on the loopback interface, one for the session: tests use repositories of their own names."""
    with HubServer() as server:
        yield server


@pytest.fixture
def lab(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """This process as that of somebody of the lab, with the test server as its Hub."""
    import huggingface_hub
    import transformers.utils.hub

    # transformers keeps a client of its own, with the endpoint of its first use.
    for client in (huggingface_hub.hf_api.api, transformers.utils.hub.hf_api()):
        monkeypatch.setattr(client, "endpoint", hub.url)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + template)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    return hub


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `rpnt demo` leaves, with its sessions, but of a corpus too small to learn from."""
    from rpnt_hf.demo import run

    out = tmp_path_factory.mktemp("demo") / "demo_out"
    run(out, build_options=["--num-units", "8", "--num-trials", "12"], epochs=1)
    return out
