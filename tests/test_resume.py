"""A run that is killed at any moment and resumed equals one that was left alone, bit for bit."""

import itertools
import json
import multiprocessing
import resource
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from filelock import FileLock
from small_corpus import build_small_corpus
from training_runs import history, launch, run, weights, without_times
from victims import IN_A_STEP, IN_A_WRITE, IN_AN_EPOCH_CHANGE, POLL, Victim, count_kinds

from rpnt_hf.checkpoints import LOCK, MANIFEST, RunFolder, find_damage, write_manifest
from rpnt_hf.errors import CheckpointError

OFTEN = ["--validate_every=1", "--keep_checkpoints=2", "--model.dropout=0.1"]
PRETRAIN, FINETUNE = [*OFTEN, "--checkpoint_every=3"], [*OFTEN, "--checkpoint_every=1"]


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps its state in classes; each run here starts as in a process of its own."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return build_small_corpus(tmp_path_factory.mktemp("corpus") / "built")


def assert_same_run(first, second):
    """Every logged number of every entry, and every bit of every weight."""
    assert history(first) == history(second)
    torch.testing.assert_close(weights(first), weights(second), rtol=0, atol=0)


def finished_checkpoints(folder):
    return sorted((folder / "checkpoints").glob("step_*"))


def saved_history(checkpoint):
    """The entries that a checkpoint holds, timings left out."""
    progress = torch.load(checkpoint / "custom_checkpoint_2.pkl", weights_only=False)
    return without_times(progress["history"])


def cut_off(content, rng):
    return content[: int(rng.integers(len(content)))]


def flip_a_bit(content, rng):
    changed = bytearray(content)
    changed[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def tear(checkpoint, rng):
    """Leaves a finished checkpoint as a power cut or a bad disk may."""
    path = rng.choice(sorted(checkpoint.iterdir()))
    path.write_bytes(rng.choice([cut_off, flip_a_bit])(path.read_bytes(), rng))


# Killed -----------------------------------------------------------------------------------------------------


def kill_and_resume(script, corpus, tmp_path, tally, num_kills, num_processes, arguments):
    """Runs a chain of kills and resumes beside a run that is left alone; everything random has a seed."""
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    launch(script, corpus, whole, *arguments, num_processes=num_processes)
    expected = history(whole)
    # Finetuning logs an entry an epoch, pretraining one a step.
    ends = {before["epoch"] for before, _ in itertools.pairwise(expected)}
    if script == "pretrain":
        pairs = itertools.pairwise(expected)
        ends = {before["step"] for before, after in pairs if after["epoch"] != before["epoch"]}
    launching = {"log": log, "epoch_ends": ends, "num_processes": num_processes}
    rng = np.random.default_rng(num_processes)
    moments, num_torn = [], 0
    for wanted in itertools.islice(itertools.cycle([IN_A_WRITE, IN_A_STEP, IN_AN_EPOCH_CHANGE]), num_kills):
        resume = f"--resume={'true' if killed.exists() else 'false'}"
        victim = Victim(script, corpus, killed, *arguments, resume, **launching)
        moments.append(victim.kill_when(wanted, rng))
        assert moments[-1] is not None, f"ended before kill {len(moments)}: {log.read_text()[-3000:]}"
        assert not (killed / "results.json").exists()
        found = [path for path in finished_checkpoints(killed) if not find_damage(path)]
        for path in found:  # whatever is found is a beginning of the run that was left alone
            assert saved_history(path) == expected[: len(saved_history(path))]
        if len(found) > 1 and len(moments) % 4 == 0:
            tear(found[-1], rng)
            num_torn += 1
    last = Victim(script, corpus, killed, *arguments, "--resume=true", **launching)
    assert last.finish() == 0, log.read_text()[-3000:]
    survived = history(killed) == history(whole)
    name = f"{script}, {num_processes} process{'es' if num_processes > 1 else ''}"
    counts = count_kinds(moments)
    for kind, count in counts.items():
        tally.add(f"{name}: kill -9 {kind}", count, count * survived)
    if num_torn:
        tally.add(f"{name}: newest checkpoint torn after a kill", num_torn, num_torn * survived)
    assert_same_run(killed, whole)
    steps = [entry["step"] for entry in history(killed)]
    assert steps == sorted(set(steps)), "an entry of the loss curve is there twice"
    return counts, num_torn


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_pretraining_killed_twenty_times_equals_one_left_alone(corpus, tmp_path, tally, num_processes):
    counts, num_torn = kill_and_resume(
        "pretrain", corpus, tmp_path, tally, 20, num_processes, [*PRETRAIN, "--epochs=40"]
    )
    assert all(counts.values()), counts  # each kind of moment was met
    assert num_torn


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_finetuning_killed_six_times_equals_one_left_alone(corpus, tmp_path, tally, num_processes):
    kill_and_resume("finetune", corpus, tmp_path, tally, 6, num_processes, [*FINETUNE, "--epochs=40"])


def test_a_run_killed_while_it_writes_a_checkpoint_equals_one_left_alone(corpus, tmp_path, tally):
    """In a fork of this process, which has imported everything already."""
    arguments = [*PRETRAIN, "--epochs=4"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    victim = multiprocessing.get_context("fork").Process(
        target=run, args=("pretrain", corpus, killed, *arguments), daemon=True
    )
    victim.start()
    while not list((killed / "checkpoints").glob("unfinished_*")):
        assert victim.is_alive(), victim.exitcode
        time.sleep(POLL)
    victim.kill()
    victim.join()
    assert victim.exitcode == -signal.SIGKILL and list((killed / "checkpoints").glob("unfinished_*"))
    run("pretrain", corpus, whole, *arguments)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    run("pretrain", corpus, killed, *arguments, "--resume=true")
    survived = history(killed) == history(whole)
    tally.add(f"pretrain, 1 process: kill -9 {IN_A_WRITE}", 1, int(survived))
    assert_same_run(killed, whole)


# Torn -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """A finished run of either script with its last two checkpoints."""
    folder = tmp_path_factory.mktemp("finished")
    for script, arguments in (("pretrain", PRETRAIN), ("finetune", FINETUNE)):
        run(script, corpus, folder / script, *arguments, "--epochs=3")
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
    return folder


@pytest.fixture
def unsaved(finished, tmp_path):
    """Copies of these runs as they are just before they save their results."""
    shutil.copytree(finished, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*"):
        if path.is_file() and "checkpoints" not in path.parts and path.name != "run_config.json":
            path.unlink()
    return tmp_path / "copy"


@pytest.mark.parametrize("script", ["pretrain", "finetune"])
def test_a_checkpoint_cut_off_or_changed_by_one_bit_is_noticed(unsaved, script, tally):
    checkpoint = finished_checkpoints(unsaved / script)[-1]
    assert find_damage(checkpoint) is None
    rng, noticed = np.random.default_rng(0), {cut_off: [], flip_a_bit: []}
    for path in sorted(checkpoint.iterdir()):
        content = path.read_bytes()
        for damage, times in ((cut_off, 4), (flip_a_bit, 12)):
            for _ in range(times):
                path.write_bytes(damage(content, rng))
                is_same = damage is flip_a_bit and path.name == MANIFEST and is_equal(path, content)
                noticed[damage].append(is_same or find_damage(checkpoint) is not None)
        path.unlink()
        assert f"`{path.name}`" in find_damage(checkpoint)
        path.write_bytes(content)
    assert find_damage(checkpoint) is None
    tally.add("checkpoint file cut off: noticed", len(noticed[cut_off]), sum(noticed[cut_off]))
    tally.add(
        "checkpoint file with a bit flipped: noticed", len(noticed[flip_a_bit]), sum(noticed[flip_a_bit])
    )
    assert all(noticed[cut_off]) and all(noticed[flip_a_bit])


def is_equal(path, content):
    """A bit of the manifest may be white space, or a name that is not read."""
    try:
        return json.loads(path.read_bytes()) == json.loads(content)
    except ValueError:
        return False


@pytest.mark.parametrize("script", ["pretrain", "finetune"])
def test_a_run_with_a_torn_checkpoint_goes_on_from_the_one_before(corpus, finished, unsaved, script, caplog):
    before, newest = finished_checkpoints(unsaved / script)
    tear(newest, np.random.default_rng(1))
    (unsaved / script / "checkpoints" / "unfinished_step_99999999").mkdir()
    arguments = PRETRAIN if script == "pretrain" else FINETUNE
    run(script, corpus, unsaved / script, *arguments, "--epochs=3", "--resume=true")
    assert f"Checkpoint {newest.name} is damaged" in caplog.text
    assert f"the run goes on from {before.name}" in caplog.text
    assert_same_run(unsaved / script, finished / script)
    kept = {path.name for path in (unsaved / script / "checkpoints").iterdir()} - {LOCK}
    assert kept == {before.name, newest.name, f"damaged_{newest.name}"}
    assert find_damage(newest) is None


def test_a_run_whose_checkpoints_are_all_torn_says_so_and_removes_none(corpus, unsaved):
    folder = unsaved / "pretrain"
    (finished_checkpoints(folder)[0] / MANIFEST).unlink()
    (finished_checkpoints(folder)[1] / "optimizer.bin").write_bytes(b"torn")
    before = sorted(path for path in folder.rglob("*"))
    with pytest.raises(
        CheckpointError, match=r"each is damaged: in step_.*`optimizer.bin` has 4 bytes.*`manifest"
    ):
        run("pretrain", corpus, folder, *PRETRAIN, "--epochs=3", "--resume=true")
    assert sorted(path for path in folder.rglob("*") if path.name != LOCK) == [
        path for path in before if path.name != LOCK
    ]


def test_a_run_goes_on_with_as_many_processes_as_it_had(corpus, unsaved):
    for checkpoint in finished_checkpoints(unsaved / "pretrain"):
        shutil.copy(checkpoint / "random_states_0.pkl", checkpoint / "random_states_1.pkl")
        write_manifest(checkpoint, 2)
    with pytest.raises(CheckpointError, match="with as many processes as it began with, 2, got 1"):
        run("pretrain", corpus, unsaved / "pretrain", *PRETRAIN, "--epochs=3", "--resume=true")


def test_a_checkpoint_needs_the_random_states_of_every_process(unsaved):
    checkpoint = finished_checkpoints(unsaved / "pretrain")[-1]
    with pytest.raises(CheckpointError, match=r"random_states_1.pkl did not arrive .* all nodes share"):
        write_manifest(checkpoint, 2)


# Refused ----------------------------------------------------------------------------------------------------


def test_what_differs_from_the_configuration_a_run_began_with_is_named(tmp_path):
    settings = {"epochs": 3, "masking": {"min_visible_bins": 1}}
    RunFolder(tmp_path / "run", settings, resume=False, keep=1).open()
    changed = {"epochs": 3, "masking": {"min_visible_bins": 2, "later": 0.5}}
    differences = r"`masking\.later` \(was 'absent', is 0\.5\), `masking\.min_visible_bins` \(was 1, is 2\)\."
    with pytest.raises(CheckpointError, match=f"there differ: {differences}"):
        RunFolder(tmp_path / "run", changed, resume=True, keep=1)
    RunFolder(tmp_path / "run", settings, resume=True, keep=1)


@pytest.mark.parametrize("content", ["", "[1]", '{"epochs"'])
def test_a_torn_configuration_of_a_run_is_said(tmp_path, content):
    RunFolder(tmp_path / "run", {"epochs": 3}, resume=False, keep=1).open()
    (tmp_path / "run" / "run_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"run_config\.json' cannot be read\. Start a new run"):
        RunFolder(tmp_path / "run", {"epochs": 3}, resume=True, keep=1)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_run_whose_folder_is_removed_says_so(corpus, tmp_path, monkeypatch, tally, when):
    """Before a checkpoint is begun, and when it is written but has not got its name."""
    save = RunFolder.save_checkpoint
    monkeypatch.setattr(
        "rpnt_hf.checkpoints.write_manifest", lambda folder, _: shutil.rmtree(tmp_path / "run")
    )

    def save_without_folder(folder, accelerator, step):
        if when == "before":
            shutil.rmtree(tmp_path / "run")
        save(folder, accelerator, step)

    monkeypatch.setattr(RunFolder, "save_checkpoint", save_without_folder)
    with pytest.raises(CheckpointError, match=r"step_00000003', but a file or folder of it is gone"):
        run("pretrain", corpus, tmp_path / "run", *PRETRAIN, "--epochs=3")
    tally.add("folder of a run removed under it", 1, 1)


def test_two_runs_do_not_write_to_one_folder(corpus, unsaved):
    """The processes of a launcher that was killed may go on for a while."""
    lock = FileLock(unsaved / "pretrain" / "checkpoints" / LOCK)
    with lock, pytest.raises(CheckpointError, match="another writes to"):
        run("pretrain", corpus, unsaved / "pretrain", *PRETRAIN, "--epochs=3", "--resume=true")


@pytest.mark.parametrize("left", [[], ["run_config.json.unfinished_"], ["checkpoints/.lock"]])
def test_a_run_killed_while_it_makes_its_folder_begins_again(corpus, tmp_path, left):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    for name in left:
        (tmp_path / "run" / name).touch()
    RunFolder(tmp_path / "run", {}, resume=False, keep=1)
    RunFolder(tmp_path / "run", {}, resume=True, keep=1)


@pytest.mark.parametrize("resume", ["true", "false"])
def test_a_run_killed_before_its_first_checkpoint_begins_again_where_asked_to(
    corpus, finished, tmp_path, resume
):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    shutil.copy(finished / "pretrain" / "run_config.json", tmp_path / "run")
    arguments = [*PRETRAIN, "--epochs=3", f"--resume={resume}"]
    if resume == "false":
        with pytest.raises(CheckpointError, match="holds something"):
            run("pretrain", corpus, tmp_path / "run", *arguments)
    else:
        run("pretrain", corpus, tmp_path / "run", *arguments)
        assert_same_run(tmp_path / "run", finished / "pretrain")


def test_a_full_disk_is_named_and_leaves_the_checkpoints_before_untouched(
    corpus, finished, tmp_path, monkeypatch, tally
):
    """The limit on the size of a file stands for it: every writer meets it, whatever it is written in."""
    save, limits = RunFolder.save_checkpoint, resource.getrlimit(resource.RLIMIT_FSIZE)

    def save_until_full(folder, accelerator, step):
        if step > 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        try:
            save(folder, accelerator, step)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    arguments = [*PRETRAIN, "--epochs=3"]
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", save_until_full)
        with pytest.raises(CheckpointError, match=r"step 6 cannot be written to .* go on by `--resume true`"):
            run("pretrain", corpus, tmp_path / "run", *arguments)
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} - {LOCK}
    assert names == {"step_00000003"}
    run("pretrain", corpus, tmp_path / "run", *arguments, "--resume=true")
    tally.add(
        "disk full in a checkpoint write", 1, int(history(tmp_path / "run") == history(finished / "pretrain"))
    )
    assert_same_run(tmp_path / "run", finished / "pretrain")
