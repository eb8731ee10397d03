"""A full disk, a read-only one, no permission: a clear error, and nothing corrupt left behind."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from file_server import DandiServer
from nwb_files import series, write_nwb
from small_corpus import build_small_corpus

from rpnt_hf.cli import main
from rpnt_hf.commands.output import write_table
from rpnt_hf.data import download
from rpnt_hf.data.builder import BuilderConfig, build_dataset
from rpnt_hf.data.loading import load_rows
from rpnt_hf.data.nwb_writer import write_nwb as write_recording
from rpnt_hf.data.simulate import simulate
from rpnt_hf.disk import explain_disk_errors
from rpnt_hf.errors import CheckpointError, DatasetError, DiskError, DownloadError, RPNTError
from rpnt_hf.scripts import load_script

CONFIG = BuilderConfig(bin_size=0.01)
NOBODY = 65534


class SmallDisk:
    """A disk of a few KiB that can be made larger, or read-only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("needs the right to mount a small disk")

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.folder)], check=True)

    def remove(self) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path):
    if shutil.which("mount") is None or sys.platform != "linux":
        pytest.skip("needs the small disks of Linux")
    small = SmallDisk(tmp_path / "disk")
    yield small
    small.remove()


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Three recordings whose counts do not compress well."""
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    paths = []
    for day in range(3):
        spike_times = [np.sort(rng.uniform(0, 40, 4000)) for _ in range(20)]
        paths.append(
            write_nwb(
                folder / f"day{day}.nwb",
                spike_times,
                behavior=[series(duration=40.0)],
                obs_intervals=np.array([[0.0, 40.0]]),
            )
        )
    return paths


def parquet_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}


@pytest.mark.parametrize("num_proc", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_build_on_a_full_disk_goes_on_when_there_is_room(disk, recordings, tmp_path, tally, num_proc):
    """Sizes at which it ends in the first session, in a later one, and while files are packed."""
    whole = parquet_of(build_dataset(recordings, tmp_path / "whole", CONFIG))
    out = disk.folder / "out"
    failed = 0
    for size in (80, 150, 250, 350, 450, 550, 650):
        disk.remount(f"size={size}k")
        try:
            build_dataset(recordings, out, CONFIG, num_proc=num_proc)
            break
        except DatasetError as error:
            assert "the disk is full. Free some room" in str(error)
            assert not out.exists() and not list(disk.folder.glob(".out-building/dataset"))
            assert not list(disk.folder.glob(".out-building/sessions/.*"))
            failed += 1
    disk.remount("size=8m")
    if not out.exists():
        build_dataset(recordings, out, CONFIG, num_proc=num_proc)
    survived = parquet_of(out) == whole
    tally.add("build on a full disk", failed, failed * survived)
    assert survived and failed >= 3 and [path.name for path in disk.folder.iterdir()] == ["out"]


def test_an_addition_on_a_full_disk_leaves_the_dataset_as_it_was(disk, recordings, tally):
    disk.remount("size=8m")
    out = build_dataset(recordings[:1], disk.folder / "out", CONFIG)
    before = parquet_of(out)
    used = shutil.disk_usage(disk.folder).used
    disk.remount(f"size={used // 1024 + 40}k")
    with pytest.raises(DatasetError, match="the disk is full"):
        build_dataset(recordings, out, CONFIG, add=True)
    tally.add("addition on a full disk", 1, int(parquet_of(out) == before))
    assert parquet_of(out) == before and (out / "README.md").stat().st_size


def test_a_read_only_disk_is_said(disk, recordings, tally, monkeypatch, tmp_path):
    disk.remount("ro")
    with pytest.raises(DatasetError, match=r"must be possible to write .*out', but the disk is read-only"):
        build_dataset(recordings, disk.folder / "out", CONFIG)
    with pytest.raises(DiskError, match="the disk is read-only"):
        write_table(pd.DataFrame({"time": [0.5]}), disk.folder / "table.parquet")
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "sub-C_ses-CO-1.nwb").write_bytes(b"abc")
    with DandiServer(tmp_path / "archive") as server:
        monkeypatch.setenv("DANDI_INSTANCE", f"{server.url}/api")
        with pytest.raises(DownloadError, match="the disk is read-only"):
            download.download_dandiset("000688", disk.folder / "nwb")
    corpus = build_small_corpus(tmp_path / "corpus")
    with pytest.raises(CheckpointError, match="Read-only"):
        load_script("training/pretrain.py").main(
            ["--data", str(corpus), "--output_dir", str(disk.folder / "run"), "--cpu", "true"]
        )
    tally.add("read-only disk", 4, 4)
    assert list(disk.folder.iterdir()) == []


def test_a_download_to_a_full_disk_goes_on_when_there_is_room(disk, tmp_path, monkeypatch, tally):
    pytest.importorskip("dandi")
    content = np.random.default_rng(0).bytes(3_000_000)
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "sub-C_ses-CO-1.nwb").write_bytes(content)
    out = disk.folder / "nwb"
    disk.remount("size=2m")
    with DandiServer(tmp_path / "archive") as server:
        monkeypatch.setenv("DANDI_INSTANCE", f"{server.url}/api")
        with pytest.raises(DownloadError, match=r"the disk is full.* What was fetched stays"):
            download.download_dandiset("000688", out)
        assert not list(out.glob("*.nwb"))
        disk.remount("size=8m")
        server.requests.clear()
        download.download_dandiset("000688", out)
        assert server.requests[0][1].startswith("bytes=")
    survived = (out / "sub-C_ses-CO-1.nwb").read_bytes() == content
    tally.add("download to a full disk", 1, int(survived))
    assert survived and len(list(out.iterdir())) == 3


def test_a_table_on_a_full_disk_leaves_the_one_before(disk, tally):
    path = disk.folder / "table.csv"
    write_table(pd.DataFrame({"time": [0.5]}), path)
    before = path.read_bytes()
    with pytest.raises(DiskError, match=r"must be possible to write .*table\.csv', but the disk is full"):
        write_table(pd.DataFrame({"time": np.random.default_rng(0).random(20_000)}), path)
    with pytest.raises(DiskError, match="the disk is full"):
        write_table(
            pd.DataFrame({"time": np.random.default_rng(0).random(20_000)}), path.with_suffix(".parquet")
        )
    tally.add("predictions on a full disk", 2, 2)
    assert path.read_bytes() == before and [path.name for path in disk.folder.iterdir()] == ["table.csv"]


def test_a_cache_on_a_full_disk_is_said(disk, recordings, tmp_path, monkeypatch, tally):
    import datasets

    folder = build_dataset(recordings, tmp_path / "dataset", CONFIG)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", disk.folder / "cache")
    with pytest.raises(DatasetError, match="must fit into the cache of `datasets`"):
        load_rows(folder)
    disk.remount("size=16m")
    assert len(load_rows(folder))
    tally.add("cache on a full disk", 1, 1)


def test_the_file_that_the_disk_refuses_is_named(tmp_path):
    with (
        pytest.raises(
            DiskError, match=r"to write 'out', but a file or folder of it is gone: .*: '.*day3\.nwb'"
        ),
        explain_disk_errors("out", DiskError),
    ):
        (tmp_path / "day3.nwb").stat()


# Everything is imported by a first build as root: another user may not be able to read this installation.
PERMISSION = """
import os, shutil, sys
home, recording, *arguments = sys.argv[1:]
os.environ["HF_HOME"] = home
from rpnt_hf.cli import main
import dandi.dandiapi
main(["build", "nwb", "--nwb-dir", recording, "--bin-size", "0.01", "--out", home + "/warm"])
main(["download", "synthetic", "--out", home + "/none"])
shutil.rmtree(home + "/warm")
os.setgid({nobody}); os.setuid({nobody})
sys.exit(main(arguments))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_of_another_user_is_said(tmp_path, recordings, tally):
    home, closed, archive = tmp_path / "home", tmp_path / "closed", tmp_path / "archive"
    for folder in (home, closed, archive):
        folder.mkdir()
    os.chown(home, NOBODY, NOBODY)
    closed.chmod(0o755)
    for parent in [*tmp_path.parents, tmp_path, recordings[0].parent, *recordings[0].parent.parents]:
        if "pytest-of" in str(parent):
            parent.chmod(0o755)
    (archive / "sub-C_ses-CO-1.nwb").write_bytes(b"abc")

    def run(*arguments, **environment):
        code = PERMISSION.format(nobody=NOBODY)
        command = [sys.executable, "-c", code, str(home), str(recordings[0]), *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
        )

    build = ["build", "nwb", "--nwb-dir", recordings[0], "--bin-size", "0.01", "--out", closed / "out"]
    done = run(*build)
    with DandiServer(archive) as server:
        fetched = run(
            "download", "perich_miller", "--out", closed / "nwb", DANDI_INSTANCE=f"{server.url}/api"
        )
    for finished in (done, fetched):
        assert finished.returncode == 2, finished.stderr
        assert "but there is no permission. Choose a folder of your own" in finished.stderr
        assert "Traceback" not in finished.stderr
    tally.add("no permission", 2, 2)
    assert list(closed.iterdir()) == []


OPTIONS = ["--preset", "tiny", "--window_bins", "10", "--batch_size", "8", "--cpu", "true"]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["pretrain", "finetune"])
def test_training_on_a_full_disk_keeps_the_last_checkpoint(disk, tmp_path, tally, script):
    corpus = build_small_corpus(tmp_path / "corpus")
    out = disk.folder / "run"
    options = ["--data", str(corpus), "--output_dir", str(out), *OPTIONS, "--epochs", "4"]
    options += ["--checkpoint_every", "2", "--keep_checkpoints", "2", "--validate_every", "2"]
    module = load_script(f"training/{script}.py")
    failed = 0
    for size in (100, 400, 1200, 2000, 2800, 3600, 4400, 5200, 6000):
        disk.remount(f"size={size}k")
        try:
            module.main([*options, "--resume", "true"])
            break
        except RPNTError as error:
            assert isinstance(error, CheckpointError), error
            failed += 1
            assert not (out / "results.json").exists()
            for checkpoint in (out / "checkpoints").glob("step_*"):
                assert list(checkpoint.glob("*.safetensors"))
    disk.remount("size=64m")
    shutil.rmtree(tmp_path / "reference", ignore_errors=True)
    if not (out / "results.json").exists():
        module.main([*options, "--resume", "true"])
    options[3] = str(tmp_path / "reference")
    module.main(options)
    names = ["model.safetensors"]
    survived = all((out / n).read_bytes() == (tmp_path / "reference" / n).read_bytes() for n in names)
    survived &= bool(json.loads((out / "results.json").read_text()))
    tally.add(f"{script} on a full disk", failed, failed * survived)
    assert survived and failed >= 2


@pytest.mark.slow
def test_decoding_to_a_full_disk_is_refused_in_one_line(disk, tmp_path, capsys, tally):
    recording = write_recording(simulate(num_subjects=1, sessions_per_subject=1)[0], tmp_path / "day.nwb")
    out = disk.folder / "predictions.csv"
    code = main(["decode", "rpnt-tiny-synthetic-decoder", str(recording), "--out", str(out)])
    text = capsys.readouterr().err
    tally.add("decode --out on a full disk", 1, int(code == 2 and not out.exists()))
    assert code == 2 and "the disk is full" in text and list(disk.folder.iterdir()) == []
