"""NWB files of every kind: read as plain h5py reads them, or refused by a `RecordingError`; nothing else.

Of a damaged file it cannot be known what it once held: HDF5 keeps no checksums of most bytes. What is held
here is that a reading equals what plain h5py reads from that same damaged file, and never contradicts itself.
"""

import shutil
import traceback

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nwb_bases import READ, REFUSED, write_versions
from nwb_mutations import MUTATIONS, mutate
from nwb_oracle import bins_of, count_plainly, read_plainly
from nwb_worker import BIN_SIZE, Worker, judge

from rpnt_hf import RPNTConfig, RPNTForMotorDecoding, RPNTProcessor
from rpnt_hf.cli import main
from rpnt_hf.data.nwb import read_nwb
from rpnt_hf.errors import RecordingError

FINE = ("read", "refused")


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """Paths of base files by name; `lean-` ones carry no schema, so that nearly all of their bytes matter."""
    return write_versions(tmp_path_factory.mktemp("bases"))


@pytest.fixture(scope="session")
def worker():
    with Worker() as worker:
        yield worker


def expected_of(names):
    """What must follow from mutations: one bad one is bad in any company unless another takes its object."""
    if all(name in READ for name in names):
        return ("read",)
    return ("refused",) if len(names) == 1 and names[0] in REFUSED else FINE


def damage(content, rng, flips):
    """Flips bits of a file, or cuts it off."""
    if flips == 0:
        return content[: rng.integers(len(content))]
    content = bytearray(content)
    for position in rng.integers(len(content), size=flips):
        content[position] ^= 1 << int(rng.integers(8))
    return bytes(content)


@pytest.mark.parametrize("name", ["full", "intervals", "bare", "timed"])
def test_a_file_is_read_as_plain_h5py_reads_it(bases, name):
    for path in (bases[name], bases[f"lean-{name}"]):
        assert judge(path) == ("read", "")


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_one_change_is_read_right_or_refused(bases, tmp_path, name, tally):
    for base in ("lean-full", "lean-intervals", "full"):
        applied = mutate(bases[base], tmp_path / "a.nwb", [name], seed=0)
        if applied:
            break
    else:
        pytest.fail(f"{name} changes none of the files")
    verdict, why = judge(tmp_path / "a.nwb")
    good = verdict in expected_of([name])
    tally.add(f"NWB files with changed contents, {verdict}", 1, int(good))
    assert good, f"{verdict}: {why}"


@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(
    base=st.sampled_from(["lean-full", "lean-intervals", "lean-bare", "lean-timed"]),
    names=st.lists(st.sampled_from(sorted(MUTATIONS)), min_size=2, max_size=5, unique=True),
    seed=st.integers(0, 2**32 - 1),
)
def test_changes_together_are_read_right_or_refused(bases, tmp_path_factory, base, names, seed):
    path = tmp_path_factory.getbasetemp() / "together.nwb"
    applied = mutate(bases[base], path, names, seed)
    verdict, why = judge(path)
    assert verdict in expected_of(applied), f"{verdict}: {applied} {why}"


def test_files_with_flipped_bits_and_cut_files_end_nothing(bases, tmp_path, worker, tally):
    assert not failures_of_damage(bases, tmp_path / "a.nwb", worker, tally, range(16))


def count(tally, kind, found, failures):
    for verdict, number in found.items():
        tally.add(f"{kind}, {verdict}", number, number)
    if failures:
        tally.add(f"{kind}, neither", len(failures), 0)


def failures_of_damage(bases, path, worker, tally, seeds):
    """Damages files at seeded positions and lists what went wrong."""
    failures, found = [], {"read": 0, "refused": 0}
    names = [name for name in bases if name.startswith("lean-")]
    for seed in seeds:
        rng = np.random.default_rng([1, seed])
        flips = int(rng.choice([0, 1, 1, 1, 2, 5, 20]))
        path.write_bytes(damage(bases[names[seed % len(names)]].read_bytes(), rng, flips))
        verdict, why = worker.judge(path)
        if verdict in FINE:
            found[verdict] += 1
        else:
            failures.append((seed, names[seed % len(names)], verdict, why))
    count(tally, "NWB files with damaged bytes", found, failures)
    return failures


def failures_of_change(bases, path, worker, tally, seeds):
    """Changes files in one to four ways and lists what went wrong; no file may take all of the memory."""
    failures, found = [], {"read": 0, "refused": 0}
    names = list(bases)
    for seed in seeds:
        rng = np.random.default_rng([2, seed])
        base = names[rng.choice(len(names), p=[0.025] * 4 + [0.225] * 4)]
        chosen = rng.choice(sorted(MUTATIONS), rng.integers(1, 5), replace=False).tolist()
        applied = mutate(bases[base], path, chosen, seed)
        verdict, why = worker.judge(path)
        if verdict in expected_of(applied):
            found[verdict] += 1
        else:
            failures.append((seed, base, applied, verdict, why))
    count(tally, "NWB files with changed contents", found, failures)
    return failures


@pytest.mark.slow
def test_thousands_of_changed_files_are_read_right_or_refused(bases, tmp_path, worker, tally):
    assert not failures_of_change(bases, tmp_path / "a.nwb", worker, tally, range(2500))


@pytest.mark.slow
def test_thousands_of_damaged_files_end_nothing(bases, tmp_path, worker, tally):
    assert not failures_of_damage(bases, tmp_path / "a.nwb", worker, tally, range(2500))


def test_repaired_spikes_are_the_same_spikes_in_order(bases, tmp_path):
    for name in ("spikes_out_of_order", "spikes_twice"):
        mutate(bases["lean-full"], tmp_path / "a.nwb", [name], seed=0)
        repaired = read_nwb(tmp_path / "a.nwb", repair_spikes=True).spike_times
        before = read_nwb(bases["lean-full"]).spike_times
        for times, original in zip(repaired, before, strict=True):
            assert set(times) <= set(original) and len(times) >= len(original) - 1
            assert (np.diff(times) > 0).all()


@pytest.fixture(scope="session")
def decoder(tmp_path_factory, bases):
    """A decoder of random weights for the session and units of the full base file."""
    torch.manual_seed(0)
    unit_ids = read_nwb(bases["lean-full"]).unit_ids
    config = RPNTConfig.preset(
        "tiny", num_units=len(unit_ids), num_hidden_layers=1, attention_window=8,
        target_names=["cursor_vel_x", "cursor_vel_y"],
    )  # fmt: skip
    processor = RPNTProcessor(bin_size=BIN_SIZE, sessions={"session-1": unit_ids}, window_bins=20)
    folder = tmp_path_factory.mktemp("decoder")
    RPNTForMotorDecoding(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def problem_of_build(path, folder):
    """What is wrong with `rpnt build nwb` of a file: None, or words."""
    out = folder / "built"
    code = main(
        ["build", "nwb", "--nwb-dir", str(path), "--bin-size", str(BIN_SIZE), "--out", str(out),
         "--allow-no-behavior", "--block-length", "0.5", "--guard", "0"]
    )  # fmt: skip
    left = sorted(other.name for other in folder.iterdir() if other != out)
    if code not in (0, 2):
        return f"exit code {code}"
    if code == 2:
        return f"left behind: {left}" if left or out.exists() else None
    if left:
        return f"left behind beside the dataset: {left}"
    plain = read_plainly(path)
    tables = [pq.read_table(file) for file in sorted(out.rglob("*.parquet"))]
    counted = 0
    for row in (row for table in tables for row in table.to_pylist()):
        width = row["num_context_bins"] * len(row["unit_ids"])
        counted += sum(row["counts"][width:])
    _, outside = count_plainly(plain["spikes"], as_read(path), BIN_SIZE)
    there = sum(map(len, plain["spikes"]))
    return None if counted + outside == there else f"{counted} spikes built, {outside} outside of {there}"


def as_read(path):
    return [tuple(interval) for interval in read_nwb(path).obs_intervals.tolist()]


def problem_of_decode(path, decoder, folder):
    """What is wrong with `rpnt decode` of a file: None, or words."""
    out = folder / "decoded.csv"
    code = main(["decode", str(decoder), str(path), "--out", str(out), "--session-id", "session-1"])
    left = sorted(other.name for other in folder.iterdir() if other != out)
    if code not in (0, 2) or left or out.exists() != (code == 0):
        return f"exit code {code}, table {out.exists()}, left behind: {left}"
    if code == 0:
        table = pd.read_csv(out)
        starts = [bins_of(stop, start, BIN_SIZE) for start, stop in as_read(path)]
        if len(table) != sum(starts) or not np.isfinite(table["cursor_vel_x_predicted"]).all():
            return f"{len(table)} bins of {sum(starts)}"
    return None


def failures_of_commands(bases, decoder, folder, tally, seeds):
    """Runs both commands on changed files and lists what went wrong."""
    failures, done = [], 0
    names = [name for name in bases if name.startswith("lean-")]
    for seed in seeds:
        rng = np.random.default_rng([3, seed])
        chosen = rng.choice(sorted(MUTATIONS), rng.integers(1, 3), replace=False).tolist()
        own = folder / str(seed)
        (own / "in").mkdir(parents=True)
        path = own / "in" / "a.nwb"
        applied = mutate(bases[names[seed % len(names)]], path, chosen, seed)
        for problem in (problem_of_build, lambda path, where: problem_of_decode(path, decoder, where)):
            where = own / f"out{done}"
            where.mkdir()
            done += 1
            try:
                what = problem(path, where)
            except Exception:
                what = traceback.format_exc()
            if what is not None:
                failures.append((seed, names[seed % len(names)], applied, what))
        shutil.rmtree(own)
    tally.add("commands on changed NWB files", done, done - len(failures))
    return failures


def test_commands_work_or_refuse_in_one_line_and_leave_nothing(bases, decoder, tmp_path, tally, capsys):
    assert not failures_of_commands(bases, decoder, tmp_path, tally, range(3))
    said = capsys.readouterr().err
    assert "Traceback" not in said


@pytest.mark.slow
def test_commands_work_or_refuse_on_hundreds_of_files(bases, decoder, tmp_path, tally):
    assert not failures_of_commands(bases, decoder, tmp_path, tally, range(300))


@pytest.mark.parametrize(
    "name",
    ["units/id", "units/electrodes_index", "units/obs_intervals", "intervals/trials", "general/subject",
     "general/session_id", "processing/behavior/force", "acquisition/lever/data"],
)  # fmt: skip
def test_an_object_that_cannot_be_opened_is_no_broken_link(bases, tmp_path, name):
    """pynwb leaves such an object out and goes on."""
    content = bytearray(bases["lean-full"].read_bytes())
    with h5py.File(bases["lean-full"]) as file:
        where = h5py.h5g.get_objinfo(file[name].id).objno[0]
    content[where] ^= 0x80  # the version of the object's header
    (tmp_path / "a.nwb").write_bytes(bytes(content))
    with pytest.raises(RecordingError, match=r"an object that can be opened, got one that cannot|got none"):
        read_nwb(tmp_path / "a.nwb")


def test_text_of_a_damaged_type_does_not_end_the_process(bases, tmp_path, worker):
    """One bit makes variable text into a list of bytes, which libhdf5 2.0.0 crashes on."""
    content = bases["lean-bare"].read_bytes()
    text = b"namespace".ljust(16, b"\0") + b"\x19\x01"
    assert text in content
    (tmp_path / "a.nwb").write_bytes(content.replace(text, text[:-1] + b"\x05", 1))
    verdict, why = worker.judge(tmp_path / "a.nwb")
    assert verdict == "refused" and "must be text or numbers, got a list of bytes" in why
