"""Corpora of many sessions: parallel builds, interruptions, additions, locks."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import datasets
import pytest
from nwb_files import reach_file
from slow_reader import slow_read

from rpnt_hf.data.builder import BuilderConfig, build_dataset
from rpnt_hf.data.loading import load_rows
from rpnt_hf.data.nwb import read_nwb
from rpnt_hf.data.staging import StagingFolder
from rpnt_hf.errors import ConfigurationError, DatasetError, RecordingError

CONFIG = BuilderConfig(bin_size=0.1)
READ = []
UNSOUND = set()


@pytest.fixture(autouse=True)
def forget():
    READ.clear()
    UNSOUND.clear()


def counting_read(path):
    READ.append(path.name)
    if path.name in UNSOUND:
        raise RecordingError(f"A recording must be sound, got '{path.name}'.")
    return read_nwb(path)


def killed_read(path, name):
    if Path(path).name == name:
        os.kill(os.getpid(), signal.SIGKILL)
    return read_nwb(path)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    return [reach_file(folder / f"day{day}.nwb", seed=day, subject_id=f"S{day % 2}") for day in range(5)]


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def parquet_of(folder):
    return {name: digest for name, digest in contents(folder).items() if name.endswith(".parquet")}


def rows_of(folder, cache):
    loaded = datasets.load_dataset(str(folder), cache_dir=str(cache))
    return {split: sorted(map(repr, loaded[split])) for split in loaded}


def test_processes_change_no_byte(tmp_path, recordings):
    one = build_dataset(recordings, tmp_path / "one", CONFIG)
    two = build_dataset(recordings, tmp_path / "two", CONFIG, num_proc=2)
    assert contents(one) == contents(two) and len(contents(one)) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_the_build_file_lists_the_files_with_their_digests(tmp_path, recordings):
    folder = build_dataset(recordings[:2], tmp_path / "out", CONFIG)
    found = contents(folder)
    shards = json.loads((folder / "rpnt_build.json").read_text())["shards"]
    parquet = {name: digest for name, digest in found.items() if name.endswith(".parquet")}
    assert {shard["name"]: shard["sha256"] for shard in shards} == parquet
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert sum(shard["rows"] for shard in shards) == sum(map(len, loaded.values()))


def test_rows_fill_files_up_to_their_size_and_groups_stay_small(tmp_path, recordings, monkeypatch):
    import pyarrow.parquet as pq

    from rpnt_hf.data import shards

    whole = build_dataset(recordings, tmp_path / "whole", CONFIG)
    monkeypatch.setattr(shards, "BYTES_PER_SHARD", 2000)
    monkeypatch.setattr(shards, "ROWS_PER_GROUP", 4)
    small = build_dataset(recordings, tmp_path / "small", CONFIG)
    files = sorted((small / "default").glob("train-*.parquet"))
    assert len(files) > 2
    for path in files:
        metadata = pq.read_metadata(path)
        assert max(metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)) <= 4
    assert rows_of(whole, tmp_path / "cache") == rows_of(small, tmp_path / "cache")


def test_a_build_that_stopped_goes_on_without_what_is_finished(tmp_path, recordings, caplog):
    out = tmp_path / "out"
    UNSOUND.add("day3.nwb")
    with pytest.raises(RecordingError, match=r"must be sound, got 'day3\.nwb'"):
        build_dataset(recordings, out, CONFIG, read=counting_read)
    assert not out.exists() and "3 finished sessions stay" in caplog.text
    READ.clear()
    UNSOUND.clear()
    build_dataset(recordings, out, CONFIG, read=counting_read)
    assert READ == ["day3.nwb", "day4.nwb"]
    assert contents(out) == contents(
        build_dataset(recordings, tmp_path / "whole", CONFIG, read=counting_read)
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_a_build_without_a_finished_session_leaves_nothing(tmp_path, recordings):
    UNSOUND.add("day0.nwb")
    with pytest.raises(RecordingError):
        build_dataset(recordings, tmp_path / "out", CONFIG, read=counting_read)
    UNSOUND.add("day4.nwb")
    with pytest.raises(RecordingError):
        build_dataset(recordings[1:], tmp_path / "out", CONFIG, read=counting_read, keep_finished=False)
    assert list(tmp_path.iterdir()) == []


def test_what_is_finished_is_taken_only_for_the_same_files_and_options(tmp_path, recordings):
    files = [tmp_path / path.name for path in recordings[:3]]
    for path, source in zip(files, recordings, strict=False):
        path.write_bytes(source.read_bytes())
    broken = tmp_path / "day9.nwb"
    broken.write_bytes(b"not an NWB file")
    out = tmp_path / "out"
    with pytest.raises(RecordingError):
        build_dataset([*files, broken], out, CONFIG, read=counting_read)
    os.utime(files[1], (0, 0))
    READ.clear()
    build_dataset(files, out, CONFIG, read=counting_read)
    assert READ == ["day1.nwb"]
    with pytest.raises(RecordingError):
        build_dataset([*files, broken], tmp_path / "other", CONFIG, read=counting_read)
    READ.clear()
    build_dataset(files, tmp_path / "other", BuilderConfig(bin_size=0.05), read=counting_read)
    assert len(READ) == 3


def test_a_copy_that_ended_early_is_not_taken_for_a_dataset(tmp_path, recordings, tally):
    """`datasets` takes the files that are there; sessions of the others would be gone without a word."""
    out = build_dataset(recordings[:2], tmp_path / "out", CONFIG)
    build_dataset(recordings[:3], out, CONFIG, add=True)
    whole = len(load_rows(out))
    last = out / "default" / "train-00001.parquet"
    content, refused = last.read_bytes(), 0
    for left in (content[:-9], b"", None):
        last.unlink()
        if left is not None:
            last.write_bytes(left)
        with pytest.raises(
            DatasetError, match=r"must have every file .*train-00001\.parquet' has \d+ of \d+"
        ):
            load_rows(out)
        last.write_bytes(content)
        refused += 1
    tally.add("dataset copied in part", 3, refused)
    assert len(load_rows(out)) == whole
    (out / "rpnt_build.json").write_text("{")
    with pytest.raises(DatasetError, match=r"must list its files, but that of .* cannot be read"):
        load_rows(out)


@pytest.mark.slow
def test_a_process_that_is_killed_is_said(tmp_path, recordings, tally):
    out = tmp_path / "out"
    with pytest.raises(DatasetError, match="one was killed while building: often because memory ran out"):
        build_dataset(recordings, out, CONFIG, num_proc=2, read=partial(killed_read, name="day4.nwb"))
    tally.add("process of a build killed", 1, int(not out.exists()))
    assert not out.exists()


def test_a_session_is_added_and_the_rest_is_not_touched(tmp_path, recordings):
    out = build_dataset(recordings[:3], tmp_path / "out", CONFIG)
    before = contents(out)
    rows = rows_of(out, tmp_path / "cache")
    build_dataset(recordings, out, CONFIG, add=True, read=counting_read)
    assert READ == ["day3.nwb", "day4.nwb"]
    after = contents(out)
    kept = {name: digest for name, digest in before.items() if name.endswith(".parquet")}
    assert {name: after[name] for name in kept} == kept
    assert "default/train-00001.parquet" in after
    assert [path.name for path in tmp_path.iterdir() if path.name[0] == "."] == []
    whole = rows_of(build_dataset(recordings, tmp_path / "whole", CONFIG), tmp_path / "cache")
    now = rows_of(out, tmp_path / "cache")
    assert now == whole and all(set(rows[split]) < set(now[split]) for split in rows)
    built = json.loads((out / "rpnt_build.json").read_text())
    assert [session["session_id"] for session in built["sessions"]] == [f"day{day}" for day in range(5)]
    assert contents(build_dataset(recordings, out, CONFIG, add=True)) == after  # nothing new


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BuilderConfig(bin_size=0.05), r"there differ: `bin_size` \(was 0\.1, is 0\.05\)"),
        (BuilderConfig(bin_size=0.1, seed=1), r"there differ: `seed` \(was 0, is 1\)"),
    ],
)
def test_an_addition_with_other_options_is_refused(tmp_path, recordings, config, message):
    out = build_dataset(recordings[:1], tmp_path / "out", CONFIG)
    before = contents(out)
    with pytest.raises(DatasetError, match=message):
        build_dataset(recordings[:2], out, config, add=True)
    with pytest.raises(DatasetError, match="must hold a built dataset to add to"):
        build_dataset(recordings[:2], tmp_path / "none", CONFIG, add=True)
    assert contents(out) == before and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_recording_that_changed_is_not_added(tmp_path, recordings):
    path = tmp_path / "day0.nwb"
    path.write_bytes(recordings[0].read_bytes())
    out = build_dataset([path], tmp_path / "out", CONFIG)
    path.unlink()
    reach_file(path, seed=77)
    with pytest.raises(DatasetError, match=r"must not change, but .*day0\.nwb' differs"):
        build_dataset([path], out, CONFIG, add=True)


def test_a_session_id_is_added_once(tmp_path, recordings):
    out = build_dataset(recordings[:1], tmp_path / "out", CONFIG)
    other = reach_file(tmp_path / "other.nwb", seed=5, session_id="day0")
    with pytest.raises(DatasetError, match="must be unique, got 'day0' twice"):
        build_dataset([recordings[0], other], out, CONFIG, add=True)
    with pytest.raises(DatasetError, match="must be unique, got 'day0' twice"):
        build_dataset([recordings[0], other], tmp_path / "both", CONFIG)


def test_an_addition_that_was_killed_between_its_last_steps_is_undone(tmp_path, recordings, monkeypatch):
    out = build_dataset(recordings[:2], tmp_path / "out", CONFIG)
    before = contents(out)

    def killed(self):
        out.rename(self.previous)
        os._exit(9)

    pid = os.fork()
    if pid == 0:
        monkeypatch.setattr(StagingFolder, "finish", killed)
        build_dataset(recordings[:3], out, CONFIG, add=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9 and not out.exists()
    build_dataset(recordings[:3], out, CONFIG, add=True, read=counting_read)
    assert READ == []  # it was staged
    kept = {name: digest for name, digest in before.items() if name.endswith(".parquet")}
    assert {name: contents(out)[name] for name in kept} == kept
    assert not (tmp_path / ".out-building").exists()


def test_an_addition_that_was_killed_after_its_last_step_is_done(tmp_path, recordings, monkeypatch):
    out = build_dataset(recordings[:2], tmp_path / "out", CONFIG)
    pid = os.fork()
    if pid == 0:
        monkeypatch.setattr(StagingFolder, "__exit__", lambda *_: os._exit(9))
        build_dataset(recordings[:3], out, CONFIG, add=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9 and (tmp_path / ".out-building").exists()
    build_dataset(recordings[:4], out, CONFIG, add=True, read=counting_read)
    assert READ == ["day3.nwb"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    built = json.loads((out / "rpnt_build.json").read_text())
    assert [session["session_id"] for session in built["sessions"]] == [f"day{day}" for day in range(4)]


def test_a_dataset_whose_build_file_is_torn_is_not_added_to(tmp_path, recordings):
    out = build_dataset(recordings[:1], tmp_path / "out", CONFIG)
    for content in ("", "{}", "[1]"):
        (out / "rpnt_build.json").write_text(content)
        with pytest.raises(
            DatasetError, match=r"must say what a dataset was built from, but .* cannot be read"
        ):
            build_dataset(recordings[:2], out, CONFIG, add=True)


def test_names_are_given_to_what_is_on_the_disk(tmp_path, recordings, monkeypatch):
    """A machine that dies may lose what was written last, but not after `fsync`; a name says it is whole."""
    flushed, names = set(), []
    flush, rename = os.fsync, Path.rename

    def record_flush(descriptor):
        flushed.add(os.fstat(descriptor).st_ino)
        flush(descriptor)

    def record_rename(path, target):
        inodes = {other.stat().st_ino for other in [path, *path.rglob("*")]}
        names.append((target, inodes - flushed))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", record_flush)
    monkeypatch.setattr(Path, "rename", record_rename)
    build_dataset(recordings[:2], tmp_path / "out", CONFIG)
    assert len(names) == 3 and names[-1][0] == tmp_path / "out"
    assert all(not left for _, left in names), names


def test_a_recording_that_is_given_twice_is_refused(tmp_path, recordings):
    with pytest.raises(DatasetError, match=r"must be given once, got .*day1\.nwb' twice"):
        build_dataset([*recordings[:2], recordings[1]], tmp_path / "out", CONFIG)


def test_what_is_finished_survives_a_call_that_is_refused(tmp_path, recordings):
    out = tmp_path / "out"
    UNSOUND.add("day3.nwb")
    with pytest.raises(RecordingError):
        build_dataset(recordings, out, CONFIG, read=counting_read)
    with pytest.raises(DatasetError, match="must hold a built dataset to add to"):
        build_dataset(recordings, out, CONFIG, add=True)
    UNSOUND.clear()
    READ.clear()
    build_dataset(recordings, out, CONFIG, read=counting_read)
    assert READ == ["day3.nwb", "day4.nwb"]


def test_the_card_of_a_large_corpus_stays_short(tmp_path, recordings, monkeypatch):
    from rpnt_hf.data import card

    monkeypatch.setattr(card, "MAX_LISTED", 2)
    text = (build_dataset(recordings, tmp_path / "out", CONFIG) / "README.md").read_text()
    assert "The first 2 of 5 recordings are listed here" in text and "day1.nwb" in text
    assert "day2.nwb" not in text and "| sessions | 5 |" in text


def test_the_number_of_processes_must_be_positive(tmp_path, recordings):
    with pytest.raises(ConfigurationError, match="`num_proc` must be at least 1, got 0"):
        build_dataset(recordings, tmp_path / "out", CONFIG, num_proc=0)


SLOW_BUILD = """
import sys, time
from functools import partial
from pathlib import Path
sys.path.insert(0, {tests!r})
from slow_reader import slow_read
from rpnt_hf.data.builder import BuilderConfig, build_dataset
if __name__ == "__main__":
    read = partial(slow_read, seconds=float(sys.argv[2]))
    build_dataset(sys.argv[4:], sys.argv[1], BuilderConfig(0.1), read=read, num_proc=int(sys.argv[3]))
"""


def start(tmp_path, out, seconds, num_proc, files):
    script = tmp_path / "build.py"
    script.write_text(SLOW_BUILD.format(tests=str(Path(__file__).parent)))
    command = [sys.executable, script, out, seconds, num_proc, *files]
    return subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_sessions(out, number, process, seconds=90):
    staged = out.with_name(f".{out.name}-building") / "sessions"
    until = time.monotonic() + seconds
    while len([path for path in staged.glob("*") if path.name[0] != "."]) < number:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("num_proc", [1, 2])
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_build_goes_on_and_gives_the_same(tmp_path, recordings, tally, num_proc, sign):
    out = tmp_path / "out"
    process = start(tmp_path, out, 0.5, num_proc, recordings)
    wait_for_sessions(out, 2, process)
    group = os.getpgid(process.pid)
    # Ctrl-C reaches all processes of a terminal, kill -9 one.
    os.killpg(group, sign) if sign == signal.SIGINT else os.kill(process.pid, sign)
    process.wait(60)
    assert not out.exists()
    staged = sorted((tmp_path / ".out-building" / "sessions").glob("[!.]*"))
    assert 2 <= len(staged) <= 5
    done = start(tmp_path, out, 0.5, num_proc, recordings)
    wait = done.communicate(timeout=120)
    assert done.returncode == 0, wait[1]
    expected = build_dataset(recordings, tmp_path / "whole", CONFIG, read=partial(slow_read, seconds=0.0))
    # The wait is an option of the reader, and options stand in card and build file.
    survived = parquet_of(out) == parquet_of(expected)
    tally.add(f"build stopped by {sign.name}, {num_proc} processes", 1, int(survived))
    assert survived and not (tmp_path / ".out-building").exists()


@pytest.mark.slow
def test_two_builds_into_one_folder(tmp_path, recordings, tally):
    out = tmp_path / "out"
    first = start(tmp_path, out, 1.0, 1, recordings)
    wait_for_sessions(out, 1, first)
    with pytest.raises(DatasetError, match=r"One build at a time must write .*out', but another"):
        build_dataset(recordings, out, CONFIG)
    first.kill()
    first.wait()
    build_dataset(recordings, out, CONFIG)  # the lock of a dead process holds nobody up
    tally.add("second build into one folder", 1, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["build.py", "out"]
