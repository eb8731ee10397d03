"""Rows that stay where they are: by URL, in memory of a file system, on a disk; whole or streamed."""

import json
import shutil
import subprocess
import sys
import threading

import datasets
import fsspec
import numpy as np
import pytest
import torch
from datasets.distributed import split_dataset_by_node
from file_server import FileServer
from small_corpus import make_recording
from training_runs import launch

from rpnt_hf.data import remote, shards
from rpnt_hf.data.builder import BuilderConfig, build_dataset
from rpnt_hf.data.loading import load_rows, unit_means, view_rows
from rpnt_hf.data.remote import RemoteDataset
from rpnt_hf.data.streamed import StreamedWindows, StreamSampler, recorded_unit_means, stream_rows
from rpnt_hf.data.windows import MaskingConfig, WindowCollator, WindowDataset
from rpnt_hf.errors import ConfigurationError, DatasetError
from rpnt_hf.processes import part_of_batch
from rpnt_hf.processing_rpnt import RPNTProcessor
from rpnt_hf.scripts import load_script

WINDOW = 10


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Six sessions in several files of several small row groups."""
    folder = tmp_path_factory.mktemp("streamed") / "dataset"
    kept = shards.ROWS_PER_GROUP, shards.BYTES_PER_SHARD
    shards.ROWS_PER_GROUP, shards.BYTES_PER_SHARD = 3, 8000
    try:
        recordings = [make_recording(f"day{day}", num_units=4 + day, seed=day) for day in range(6)]
        build_dataset(recordings, folder, BuilderConfig(0.05, context_length=0.25))
    finally:
        shards.ROWS_PER_GROUP, shards.BYTES_PER_SHARD = kept
    return folder


@pytest.fixture
def server(corpus, monkeypatch):
    monkeypatch.setattr(remote, "_pause", lambda seconds: None)
    with FileServer(corpus, r"train-") as server:
        yield server


@pytest.fixture
def in_memory(corpus):
    file_system = fsspec.filesystem("memory")
    file_system.put(str(corpus), "/corpus", recursive=True)
    yield "memory://corpus"
    file_system.rm("/corpus", recursive=True)


def rows_as_text(rows):
    return sorted(
        repr(
            {
                name: bytes(value) if name in ("counts", "observed", "behavior") else value
                for name, value in row.items()
            }
        )
        for row in rows
    )


def batch_of(rows, windows, batch):
    processor = RPNTProcessor.from_rows(rows)
    collator = WindowCollator(rows, processor, masking=MaskingConfig(), unit_dropout=0.2)
    return collator(windows.__getitems__(batch))


def assert_same(expected, got):
    assert expected.keys() == got.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", ["http", "memory", "file"])
def test_a_url_gives_the_rows_of_the_folder(corpus, server, in_memory, kind):
    url = {"http": server.url, "memory": in_memory, "file": f"file://{corpus}"}[kind]
    for split in ("train", "test"):
        assert rows_as_text(view_rows(load_rows(url, None, split))) == rows_as_text(
            view_rows(load_rows(corpus, None, split))
        )


def test_what_was_fetched_is_not_fetched_again_and_what_changed_is(corpus, server, tmp_path):
    load_rows(server.url, None, "train")
    fetched = [path for path, _ in server.requests if "train-" in path]
    load_rows(server.url, None, "train")
    assert [path for path, _ in server.requests if "train-" in path] == fetched and fetched
    build_dataset([make_recording("other")], tmp_path / "other", BuilderConfig(0.05))
    server.folder = tmp_path / "other"
    assert {row["session_id"] for row in load_rows(server.url, None, "train")} == {"other"}


def test_streamed_windows_are_those_of_rows_in_memory(corpus, server):
    rows, streamed = view_rows(load_rows(corpus)), stream_rows(server.url)
    for name in ("session_id", "unit_ids", "num_bins", "site_positions"):
        assert [str(row[name]) for row in rows] == [str(row[name]) for row in streamed]
    sampler = StreamSampler(streamed, WINDOW, 8, groups_in_memory=2)
    here, there = WindowDataset(rows), StreamedWindows(streamed, sampler)
    batches = sampler.batches(0)
    assert len(batches) > 5
    for batch in batches:
        expected, got = batch_of(rows, here, batch), batch_of(streamed, there, batch)
        assert_same(expected, got)


def test_gaps_are_streamed_too(tmp_path):
    from rpnt_hf.data.builder import CorpusRecording

    recording = make_recording("a")
    seen = [np.array([[0.0, 7.03], [9.0, 20.0]]), np.array([[2.0, 20.0]])]
    folder = build_dataset(
        [CorpusRecording(recording, site_intervals=seen), make_recording("b", seed=1)],
        tmp_path / "d",
        BuilderConfig(0.05),
    )
    rows, streamed = view_rows(load_rows(folder)), stream_rows(folder)
    sampler = StreamSampler(streamed, WINDOW, 8)
    here, there = WindowDataset(rows), StreamedWindows(streamed, sampler)
    gaps = 0
    for batch in sampler.batches(0):
        expected, got = batch_of(rows, here, batch), batch_of(streamed, there, batch)
        assert_same(expected, got)
        gaps += int((~got["bin_mask"]).sum())
    assert gaps


def test_memory_holds_a_few_groups_only(corpus):
    rows = stream_rows(corpus)
    sampler = StreamSampler(rows, WINDOW, 4, groups_in_memory=2)
    windows = StreamedWindows(rows, sampler)
    most = 0
    for batch in sampler.batches(0):
        needed = len(np.unique(sampler.group_of_row[batch.table[:, 0]]))
        windows.__getitems__(batch)
        held = {sampler.group_of_row[row] for row in range(len(rows)) if windows.counts[row].size}
        assert len(held) <= max(2, needed)
        most = max(most, len(held))
    assert most < sampler.num_groups


def test_processes_see_disjoint_rows_that_cover_everything(corpus):
    rows = stream_rows(corpus)
    sampler = StreamSampler(rows, WINDOW, 8, num_streams=2)
    for epoch in (0, 1):
        seen = [set(), set()]
        for batch in sampler.batches(epoch):
            for process in (0, 1):
                seen[process] |= set(part_of_batch(batch, process, 2).table[:, 0].tolist())
        assert not seen[0] & seen[1]
        with_windows = set(sampler.windows(epoch).table[:, 0].tolist())
        missing = with_windows - seen[0] - seen[1]
        # A session with one window among those in memory gives it in twos or not at all.
        assert len(missing) <= 2
        assert len(seen[0]) > 5 and len(seen[1]) > 5


def test_an_epoch_takes_every_window_once_and_in_pairs(corpus):
    rows = stream_rows(corpus)
    sampler = StreamSampler(rows, WINDOW, 8, groups_in_memory=100)
    tables = np.concatenate([batch.table for batch in sampler.batches(3)])
    assert len(np.unique(tables[:, 4])) == len(tables)
    assert len(tables) > 0.9 * len(sampler.windows(3))
    for batch in sampler.batches(3)[:-1]:
        sessions = [rows[row]["session_id"] for row in batch.table[:, 0]]
        assert len(batch) == 8 and sessions[::2] == sessions[1::2]


def test_the_streamed_order_is_a_function_of_seed_and_epoch(corpus):
    rows = stream_rows(corpus)
    one, other = (StreamSampler(rows, WINDOW, 8, seed=5, num_streams=2) for _ in range(2))
    other.batches(4)
    assert all(a == b for a, b in zip(one.batches(1), other.batches(1), strict=True))
    other.set_epoch(1)
    other.start_at(2)
    assert list(other) == one.batches(1)[2:]


def test_the_null_model_is_known_without_reading_counts(corpus):
    measured = unit_means(view_rows(load_rows(corpus)))
    recorded = recorded_unit_means(corpus, stream_rows(corpus))
    assert measured.keys() == recorded.keys()
    for name in measured:
        np.testing.assert_allclose(recorded[name], measured[name], rtol=1e-12)


@pytest.mark.parametrize("faults", [["cut"], ["status", "status"], ["cut", "status", "cut"]])
def test_faults_of_the_network_are_survived(server, tally, faults):
    expected = rows_as_text([dict(row) for row in stream_rows(server.url)])
    server.faults = list(faults)
    got = rows_as_text([dict(row) for row in stream_rows(server.url)])
    for fault in faults:
        tally.add(f"streaming: {fault}", 1, int(got == expected))
    assert got == expected and server.faults == []


def test_a_server_that_ignores_ranges_is_refused(server):
    server.faults = ["whole"] * 100
    with pytest.raises(DatasetError, match="must answer a range with that range to be streamed from"):
        stream_rows(server.url)


def test_wrong_bytes_from_a_server_are_refused(server, tally):
    server.faults = ["wrong"] * 100
    with pytest.raises(DatasetError, match="must be the one that was built, but the bytes of"):
        load_rows(server.url)
    with pytest.raises(DatasetError, match="must be Parquet as it was built"):
        stream_rows(server.url)
    tally.add("dataset at a URL: wrong bytes", 2, 2)


def test_a_damaged_file_is_never_streamed_as_if_it_were_whole(corpus, tmp_path, tally):
    """Bits are flipped all over the file: HTTP and disks do so without a word; SHA-256 needs whole files."""
    folder = tmp_path / "dataset"
    shutil.copytree(corpus, folder)
    path = sorted((folder / "default").glob("train-*.parquet"))[0]
    content = path.read_bytes()
    rng, verdicts = np.random.default_rng(0), {"refused": 0, "same": 0, "wrong": 0}
    expected = streamed_counts(folder)
    for _ in range(100):
        damaged = bytearray(content)
        damaged[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged))
        try:
            verdicts["same" if streamed_counts(folder) == expected else "wrong"] += 1
        except DatasetError:
            verdicts["refused"] += 1
    right = verdicts["refused"] + verdicts["same"]
    tally.add("streaming: file with a bit flipped", 100, right)
    assert not verdicts["wrong"] and verdicts["refused"] > 20, verdicts


def streamed_counts(folder):
    """Small columns and counts of the rows of the first file."""
    rows = stream_rows(folder)
    first = [row for row in rows if row["place"][0] == rows[0]["place"][0]]
    sampler = StreamSampler(first, WINDOW, 8)
    windows = StreamedWindows(first, sampler)
    for batch in sampler.batches(0):
        windows.__getitems__(batch)
    small = [{name: value for name, value in row.items() if name != "place"} for row in first]
    return repr(small), [counts.tobytes() for counts in windows.counts]


def test_groups_that_were_fetched_for_nothing_are_let_go(corpus):
    """Of an epoch in which a group gave no pair; another process may need it in the next."""
    rows = stream_rows(corpus)
    sampler = StreamSampler(rows, WINDOW, 8)
    windows = StreamedWindows(rows, sampler)
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        for batch in sampler:
            windows.__getitems__(batch)
        windows._coming[-1] = None
    sampler.set_epoch(2)
    windows.__getitems__(next(iter(sampler)))
    assert -1 not in windows._coming


def test_a_dataset_that_is_deleted_while_it_streams_is_said(corpus, tmp_path, tally):
    folder = tmp_path / "dataset"
    shutil.copytree(corpus, folder)
    rows = stream_rows(folder)
    sampler = StreamSampler(rows, WINDOW, 8, groups_in_memory=1)
    windows = StreamedWindows(rows, sampler)
    batches = sampler.batches(0)
    windows.__getitems__(batches[0])
    shutil.rmtree(folder)
    with pytest.raises(
        DatasetError, match=r"must stay where it is while it is used, but .*train-\d+\.parquet"
    ):
        for batch in batches:
            windows.__getitems__(batch)
    tally.add("dataset deleted under streaming", 1, 1)


def test_what_is_no_dataset_is_refused(tmp_path, corpus, server, monkeypatch):
    with pytest.raises(DatasetError, match=r"rpnt_build\.json' is not there"):
        stream_rows(tmp_path)
    with pytest.raises(DatasetError, match=r"rpnt_build\.json' is not there"):
        load_rows(f"{server.url}/none")
    with pytest.raises(DatasetError, match="`dataset_config` must be one of"):
        stream_rows(corpus, "defualt")
    with pytest.raises(DatasetError, match="could not be read in 6 tries"):
        stream_rows("http://127.0.0.1:9/dataset")
    for content in ({"sessions": []}, [], {"sessions": [], "shards": [{"name": "a"}]}):
        (tmp_path / "rpnt_build.json").write_text(json.dumps(content))
        with pytest.raises(DatasetError, match="must list its files"):
            stream_rows(tmp_path)
    for url in ("nothing://dataset", "s3://bucket/dataset"):
        with pytest.raises(DatasetError, match="of a kind that fsspec knows and has a package for"):
            load_rows(url)


def test_a_small_file_is_missing_or_refused_or_out_of_reach(corpus, server, monkeypatch):
    assert remote.small_file(server.url, "README.md").read_bytes() == (corpus / "README.md").read_bytes()
    assert remote.small_file(server.url, "none.md") is None
    server.pattern, server.faults = ".*", ["status"] * 100
    with pytest.raises(DatasetError, match=r"README\.md' could not be read in 6 tries"):
        remote.small_file(server.url, "README.md")


class Refusing:
    """A file system whose errors are of a kind of its own, as those of cloud services are."""

    def __init__(self, error):
        self.error = error

    def cat_file(self, path, start, end):
        raise self.error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError("not yours"), r"is refused \(not yours\)\. Check the URL and your rights"),
        (RuntimeError("no credentials"), r"could not be read in 6 tries\. .* \(no credentials\)"),
    ],
)
def test_whatever_a_file_system_raises_is_said(monkeypatch, error, message):
    monkeypatch.setattr(remote, "_pause", lambda seconds: None)
    monkeypatch.setattr(remote, "_file_system", lambda url: (Refusing(error), url))
    with pytest.raises(DatasetError, match=message):
        load_rows("s3://bucket/dataset")


def test_processes_without_a_group_or_a_pair_are_refused(corpus):
    rows = stream_rows(corpus)
    with pytest.raises(DatasetError, match="at least as many row groups as there are processes"):
        StreamSampler(rows, WINDOW, 2000, num_streams=1000)
    with pytest.raises(ConfigurationError, match="at least 2 for each of 2 processes, got 3"):
        StreamSampler(rows, WINDOW, 3, num_streams=2)


def test_plain_datasets_stream_the_folder_and_divide_it_by_node(corpus, server):
    """For those who train with something else."""
    data_files = [url for url, _ in RemoteDataset.open(server.url).files(None, "train")]
    whole = datasets.load_dataset("parquet", data_files=data_files, split="train", streaming=True)
    seen = [
        [(row["session_id"], row["start_time"]) for row in split_dataset_by_node(whole, rank, 2)]
        for rank in (0, 1)
    ]
    expected = sorted((row["session_id"], row["start_time"]) for row in load_rows(corpus))
    assert sorted(seen[0] + seen[1]) == expected and not set(seen[0]) & set(seen[1])


OPTIONS = """
    --preset tiny --window_bins 10 --batch_size 8 --epochs 1 --validate_every 1000 --checkpoint_every 3
    --cpu true --session_temperature 2
""".split()  # noqa: SIM905


def pretrain(data, out, *options):
    return load_script("training/pretrain.py").main(
        ["--data", str(data), "--output_dir", str(out), *OPTIONS, *options]
    )


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.slow
def test_pretraining_streams_from_a_url_and_gives_what_a_folder_gives(corpus, server, in_memory, tmp_path):
    local = pretrain(corpus, tmp_path / "local", "--streaming", "true")
    for name, url in (("http", server.url), ("memory", in_memory)):
        there = pretrain(url, tmp_path / name, "--streaming", "true")
        assert there["validation"]["bits_per_spike"] == local["validation"]["bits_per_spike"]
        ours, theirs = weights(tmp_path / name), weights(tmp_path / "local")
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    sessions = {session["session_id"]: session for session in there["data"]["sessions"]}
    assert sessions["day0"]["trials"]["train"] == 14 and sessions["day0"]["scored_bins"]["train"] > 0
    assert (tmp_path / "http" / "README.md").is_file()
    pretrain(server.url, tmp_path / "fetched")  # not streamed: brought into the cache


@pytest.mark.slow
def test_two_processes_stream_from_a_url(server, tmp_path):
    options = ("--streaming=true", "--epochs=1", "--validate_every=100", "--session_temperature=3")
    launch("pretrain", server.url, tmp_path / "out", *options, num_processes=2)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["num_processes"] == 2 and np.isfinite(results["validation"]["bits_per_spike"])


@pytest.mark.slow
def test_a_streamed_run_resumes_exactly(corpus, tmp_path):
    pretrain(corpus, tmp_path / "whole", "--streaming", "true")
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    last = sorted((tmp_path / "resumed" / "checkpoints").iterdir())[-1]
    shutil.rmtree(last)
    for name in ("model.safetensors", "results.json"):
        (tmp_path / "resumed" / name).unlink()
    pretrain(corpus, tmp_path / "resumed", "--streaming", "true", "--resume", "true")
    ours, theirs = weights(tmp_path / "resumed"), weights(tmp_path / "whole")
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.slow
def test_a_dataset_deleted_under_a_running_training(corpus, tmp_path, tally):
    """Whole rows are mapped from the cache and outlive their folder; streamed ones are missed, and said."""
    for streaming in ("false", "true"):
        folder = tmp_path / f"dataset-{streaming}"
        shutil.copytree(corpus, folder)
        command = [sys.executable, load_script("training/pretrain.py").__file__, "--data", folder]
        command += ["--output_dir", tmp_path / f"out-{streaming}", "--streaming", streaming, *OPTIONS]
        command += ["--epochs", "5", "--batch_size", "4"]
        process = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
        checkpoints = tmp_path / f"out-{streaming}" / "checkpoints"
        timer = threading.Event()
        while not list(checkpoints.glob("step_*")):
            assert process.poll() is None, process.stderr.read()
            timer.wait(0.05)
        shutil.rmtree(folder)
        _, text = process.communicate(timeout=170)
        if streaming == "true":
            survived = process.returncode == 1 and "must stay where it is while it is used" in text
            survived &= "Traceback" not in text
        else:
            survived = process.returncode == 0 and (tmp_path / "out-false" / "results.json").is_file()
        tally.add("dataset deleted under a training", 1, int(survived))
        assert survived, text[-2000:]
        assert not list(checkpoints.glob("unfinished_*"))
