"""Several processes do what one does with the same batches; and only the main one writes."""

import datetime
import json
import multiprocessing
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from small_corpus import build_small_corpus
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from training_runs import SMALL, history, launch, launch_environment, run, weights
from victims import IN_A_STEP, Victim

from rpnt_hf.data.loading import load_rows, view_rows
from rpnt_hf.data.windows import MaskingConfig, WindowCollator, WindowDataset, WindowSampler
from rpnt_hf.errors import ConfigurationError
from rpnt_hf.initialization import from_scratch
from rpnt_hf.modeling_rpnt import RPNTForPreTraining
from rpnt_hf.processes import SharedBatches, make_accelerator, part_of_batch
from rpnt_hf.scripts import find_script

DIMENSIONS = {
    "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 1, "num_hidden_layers": 1,
    "attention_window": 8,
}  # fmt: skip
CONFIGS = sorted(find_script("training/accelerate").glob("*.yaml"))


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps its state in classes; each run here starts as in a process of its own."""
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return build_small_corpus(tmp_path_factory.mktemp("corpus") / "built")


@pytest.fixture(scope="module")
def rows(corpus):
    return view_rows(load_rows(corpus))


# Shares of a batch ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_processes", [1, 2, 3, 7])
@pytest.mark.parametrize("pairs", [True, False])
def test_every_window_of_an_epoch_is_in_the_part_of_one_process(rows, num_processes, pairs):
    sampler = WindowSampler(rows, 16, 10, seed=3, pairs=pairs)
    shares = [list(SharedBatches(sampler, index, num_processes)) for index in range(num_processes)]
    batches = sampler.batches(0)
    assert [len(share) for share in shares] == [len(batches)] * num_processes
    assert num_processes < 3 or any(len(batch) % num_processes for batch in batches)  # some are uneven
    for parts, batch in zip(zip(*shares, strict=True), batches, strict=True):
        taught = [part.table[part.table[:, 3] < part.table[:, 2]] for part in parts]
        np.testing.assert_array_equal(np.concatenate(taught), batch.table)
        assert max(map(len, taught)) - min(map(len, taught)) <= 1
        assert min(map(len, parts)) >= 1  # each takes part in each step


@pytest.fixture(scope="module")
def pretraining(rows):
    """A small model without dropout, and what makes its inputs."""
    torch.manual_seed(0)
    fields = {**DIMENSIONS, "dropout": 0.0}
    model, processor = from_scratch(RPNTForPreTraining, "tiny", fields, rows, window_bins=16)
    return model, WindowCollator(rows, processor, masking=MaskingConfig())


def test_nothing_is_learned_from_a_window_of_a_process_without_one(rows, pretraining):
    model, collator = pretraining
    batch = WindowSampler(rows, 16, 2, pairs=True).batches(0)[0]
    idle = part_of_batch(batch, 0, 5)
    inputs = collator(WindowDataset(rows).__getitems__(idle))
    assert not inputs["masked_bins"].any() and not inputs["masked_units"].any()
    assert (inputs["labels"] == -100).all()
    outputs = model(**inputs)
    assert outputs.loss == outputs.poisson_loss == outputs.contrastive_loss == 0


# Losses and gradients of forked processes -------------------------------------------------------------------


def _work(function, rank, num_processes, meeting, answers):
    distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=num_processes)
    answers.put((rank, function(rank)))
    distributed.barrier()
    distributed.destroy_process_group()


def in_processes(function, num_processes, tmp_path):
    """Calls `function(rank)` in forked gloo processes; gives the answers by rank."""
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    shared = (num_processes, tmp_path / "meeting", answers)
    processes = [
        context.Process(target=_work, args=(function, rank, *shared), daemon=True)
        for rank in range(num_processes)
    ]
    for process in processes:
        process.start()
    try:
        found = dict(answers.get(timeout=60) for _ in processes)
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    return [found[rank] for rank in range(num_processes)]


@pytest.mark.parametrize(("num_windows", "num_processes"), [(8, 2), (7, 2), (8, 3), (2, 3)])
def test_loss_and_gradients_of_processes_are_those_of_one(
    rows, pretraining, tmp_path, num_windows, num_processes
):
    """With the contrastive term, whose negatives and positives are then on other processes."""
    model, collator = pretraining
    model.config.contrastive_weight = 1.0
    batch = WindowSampler(rows, 16, 8, seed=1, pairs=True).batches(0)[0][:num_windows]

    def step(rank):
        part, wrapped = batch, model
        if distributed.is_initialized():
            part = part_of_batch(batch, rank, num_processes)
            wrapped = DistributedDataParallel(model, find_unused_parameters=True)
        model.zero_grad()
        outputs = wrapped(**collator(WindowDataset(rows).__getitems__(part)))
        outputs.loss.backward()
        losses = torch.stack([outputs.loss, outputs.poisson_loss, outputs.contrastive_loss]).detach()
        return losses.numpy(), {name: value.grad.numpy() for name, value in model.named_parameters()}

    answers = in_processes(step, num_processes, tmp_path)
    losses, gradients = step(0)
    assert losses[2] > 0.1
    # Each process divides its sums by its share of the global counts, so that their mean is the loss.
    np.testing.assert_allclose(np.mean([found for found, _ in answers], axis=0), losses, rtol=1e-6)
    for _, found in answers:  # as exchanged
        for name, gradient in gradients.items():
            np.testing.assert_allclose(found[name], gradient, atol=1e-6, rtol=1e-4, err_msg=name)


# Launched ---------------------------------------------------------------------------------------------------

MARKED = """
import os, runpy
import safetensors.torch
def save_nothing(*arguments, **options):
    raise AssertionError("not the main process")
if os.environ["RANK"] == "0":
    os.umask(0o022)
else:
    os.umask(0o077)  # files show which process made them, but for safetensors, which sets their mode itself
    safetensors.torch.save_file = save_nothing
print(f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}", flush=True)
runpy.run_path(SCRIPT, run_name="__main__")
"""


def launch_marked(script, tmp_path, corpus, output_dir, *arguments):
    """Launches a script in two processes so that the files that each makes carry its mark."""
    path = tmp_path / f"{script}_marked.py"
    path.write_text(MARKED.replace("SCRIPT", repr(str(find_script(f"training/{script}.py")))))
    printed = launch(path, corpus, output_dir, *arguments, num_processes=2)
    assert "process 0 of 2" in printed and "process 1 of 2" in printed
    return printed


def assert_close(first, second):
    """Within rounding, but for a bias that a softmax takes away: Adam amplifies its gradient, mere noise."""
    for state in (first, second):
        state.pop("site_pooling.score.bias", None)
    torch.testing.assert_close(first, second, rtol=1e-3, atol=2e-4)


def written_by_others(folder):
    return {
        path.name
        for path in [folder, *folder.rglob("*")]
        if not stat.S_IMODE(path.stat().st_mode) & stat.S_IRGRP and path.suffix != ".safetensors"
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("pretrain", ["--epochs=4", "--validate_every=1", "--checkpoint_every=5"]),
        ("pretrain", ["--epochs=4", "--validate_every=1", "--accumulation_steps=2"]),
        ("finetune", ["--epochs=4", "--checkpoint_every=2"]),
    ],
)
def test_two_processes_equal_one_with_the_same_global_batches(corpus, rows, tmp_path, script, arguments):
    arguments = [*arguments, "--model.dropout=0"]
    sampler = WindowSampler(rows, 16, 10, pairs=script == "pretrain")
    last = [len(sampler.batches(epoch)[-1]) for epoch in range(4)]
    assert any(size % 2 for size in last) or script == "pretrain", "a last batch should be uneven here"
    printed = launch_marked(script, tmp_path, corpus, tmp_path / "two", *arguments, "--batch_size=5")
    alone = run(script, corpus, tmp_path / "one", *arguments, "--batch_size=10")
    together = json.loads((tmp_path / "two" / "results.json").read_text())
    assert (together["num_processes"], alone["num_processes"]) == (2, 1)
    first, second = history(tmp_path / "two"), history(tmp_path / "one")
    assert [entry["step"] for entry in first] == [entry["step"] for entry in second]
    for entry, expected in zip(first, second, strict=True):
        assert entry == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert_close(weights(tmp_path / "two"), weights(tmp_path / "one"))
    # Counted once, whatever the number of processes.
    counted = ("hidden_entries", "scored_bins", "trials")
    counts, expected = (
        [run.get(split, {}).get(name, 0) for split in ("validation", "test") for name in counted]
        for run in (together, alone)
    )
    assert counts == expected != [0] * len(counts)
    # One line an entry, by the main process alone; files too, but for each process's own random states.
    lines = [line for line in printed.splitlines() if "  loss " in line]
    assert len(lines) == len(first)
    assert written_by_others(tmp_path / "two") == {"random_states_1.pkl"}


@pytest.mark.slow
def test_fsdp2_trains_resumes_and_exports_as_one_process_does(corpus, tmp_path, tally):
    arguments = ["--epochs=6", "--validate_every=1", "--checkpoint_every=4", "--model.dropout=0"]
    launching = {"num_processes": 2, "config": "fsdp2.yaml"}
    launch("pretrain", corpus, tmp_path / "whole", *arguments, "--batch_size=4", **launching)
    checkpoint = sorted((tmp_path / "whole" / "checkpoints").glob("step_*"))[-1]
    assert (checkpoint / "pytorch_model_fsdp.bin").is_file(), "the weights were not sharded"

    run("pretrain", corpus, tmp_path / "one", *arguments, "--batch_size=8")
    for entry, expected in zip(history(tmp_path / "whole"), history(tmp_path / "one"), strict=True):
        assert entry == pytest.approx(expected, rel=1e-4, abs=1e-5)
    exported = RPNTForPreTraining.from_pretrained(tmp_path / "whole")
    expected = RPNTForPreTraining.from_pretrained(tmp_path / "one")
    assert_close(exported.state_dict(), expected.state_dict())
    assert type(exported.config).from_pretrained(tmp_path / "whole").architectures == ["RPNTForPreTraining"]
    names = {path.name for path in (tmp_path / "whole").glob("*.safetensors")}
    assert names == {"model.safetensors"}

    killed = tmp_path / "killed"
    victim = Victim(
        "pretrain", corpus, killed, *arguments, "--batch_size=4",
        log=tmp_path / "log", epoch_ends=set(), **launching,
    )  # fmt: skip
    assert victim.wait(lambda: len(victim.steps) >= 9), (tmp_path / "log").read_text()[-3000:]
    assert victim.kill_when(IN_A_STEP, np.random.default_rng(0))
    launch("pretrain", corpus, killed, *arguments, "--batch_size=4", "--resume=true", **launching)
    survived = history(killed) == history(tmp_path / "whole")
    tally.add("pretrain, 2 processes, FSDP2: kill -9", 1, int(survived))
    assert survived
    torch.testing.assert_close(weights(killed), weights(tmp_path / "whole"), rtol=0, atol=0)


def test_processes_wait_for_the_first_to_fetch_a_large_corpus(tmp_path):
    """NCCL gives up after ten minutes where nothing is said."""
    accelerator = make_accelerator(
        tmp_path, cpu=True, mixed_precision="no", accumulation_steps=1, tensorboard=False
    )
    assert accelerator.init_handler.timeout >= datetime.timedelta(hours=1)


def test_finetuning_refuses_fsdp2(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "is_fsdp2", True)
    with pytest.raises(ConfigurationError, match="with DDP, got FSDP2"):
        run("finetune", corpus, tmp_path / "run", "--epochs=1")
    assert not (tmp_path / "run").exists()


# Configurations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_takes_the_configurations(path):
    config = load_config_from_file(str(path))
    expected = {
        "one_gpu": (DistributedType.NO, 1),
        "ddp": (DistributedType.MULTI_GPU, 1),
        "multi_node_ddp": (DistributedType.MULTI_GPU, 2),
        "fsdp2": (DistributedType.FSDP, 1),
    }
    assert (config.distributed_type, config.num_machines) == expected[path.stem]
    assert (config.fsdp_config or {}).get("fsdp_version") == (2 if path.stem == "fsdp2" else None)
    arguments = launch_command_parser().parse_args([f"--config_file={path}", "training/pretrain.py"])
    launched, *_ = _validate_launch_command(arguments)
    assert launched.num_processes == config.num_processes
    assert (launched.multi_gpu, launched.use_fsdp) == (path.stem.endswith("ddp"), path.stem == "fsdp2")
    assert launched.fsdp_version == 2 or path.stem != "fsdp2"


def test_there_is_a_configuration_for_each_way_to_launch():
    assert [path.stem for path in CONFIGS] == ["ddp", "fsdp2", "multi_node_ddp", "one_gpu"]


# Slurm ------------------------------------------------------------------------------------------------------

SRUN = """#!/bin/bash
# Stands for Slurm: starts a command on two "nodes", which are this machine.
shift  # its option
for node in 0 1; do SLURM_NODEID=$node "$@" & started+=($!); done
for process in "${started[@]}"; do wait "$process" || failed=1; done
exit "${failed:-0}"
"""


def test_the_page_on_launching_shows_the_slurm_file_whole(repository):
    page, file = (
        (repository / name).read_text()
        for name in ("docs/distributed.md", "training/accelerate/pretrain.sbatch")
    )
    assert file in page
    for path in CONFIGS:
        assert path.name in page


@pytest.mark.slow
def test_the_slurm_file_launches_two_nodes_and_resumes(corpus, tmp_path, repository):
    for name, text in (("srun", SRUN), ("scontrol", "#!/bin/bash\necho 127.0.0.1\necho 127.0.0.1\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {
        **launch_environment(), "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DATA": str(corpus), "OUTPUT": str(tmp_path / "run"), "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "1",
        "SLURM_JOB_NODELIST": "this", "SLURM_JOB_ID": str(os.getpid()),
    }  # fmt: skip
    command = ["bash", "training/accelerate/pretrain.sbatch", *SMALL, "--epochs=2"]
    for _ in range(2):  # the second goes on with what the first has finished
        finished = subprocess.run(
            command, env=environment, cwd=repository, capture_output=True, text=True, timeout=300
        )
        assert finished.returncode == 0, finished.stderr[-3000:]
        assert json.loads((tmp_path / "run" / "results.json").read_text())["num_processes"] == 2
    assert "resumed from" in finished.stderr
