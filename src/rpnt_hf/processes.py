"""What the processes of a training run share: batches, weights that are spread over them, one Accelerator.

Processes themselves come from `accelerate launch`, gradients are exchanged by DDP or FSDP2. Not here: losses,
which divide by counts of all processes (`objectives.py`), and the loops (`training/`).
"""

import datetime
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, FullyShardedDataParallelPlugin
from accelerate.data_loader import prepare_data_loader
from accelerate.state import PartialState
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedModel

from .data.windows import WindowCollator, WindowDataset, Windows, WindowSampler
from .errors import ConfigurationError

__all__ = [
    "SharedBatches",
    "WholeState",
    "let_go",
    "load_whole_weights",
    "make_accelerator",
    "make_loader",
    "part_of_batch",
    "prepare_with_copy",
    "total",
    "use_own_random_state",
    "whole_weights",
]

# How long processes wait for one another: the first one fetches a corpus. A dead one ends all at once.
PATIENCE = datetime.timedelta(hours=1)


def make_accelerator(
    output_dir: str | Path, *, cpu: bool, mixed_precision: str, accumulation_steps: int, tensorboard: bool
) -> Accelerator:
    """Makes the Accelerator of a run, for one process, DDP or FSDP2 as it was launched.

    Args:
        output_dir (`str` or `Path`): Folder of the run.
        cpu (`bool`): Use the CPU even where there is an accelerator.
        mixed_precision (`str`): "no" or "bf16".
        accumulation_steps (`int`): Batches per optimiser step.
        tensorboard (`bool`): Whether curves are written.

    Returns:
        `Accelerator`: Ready for `prepare`.

    Raises:
        ConfigurationError: It was launched with the first version of FSDP.
    """
    plugin = None
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        # Weights, metadata and losses stay float32, as under DDP: `autocast` casts what may be cast.
        plugin = FullyShardedDataParallelPlugin(mixed_precision_policy=MixedPrecisionPolicy())
        if plugin.fsdp_version != 2:
            raise ConfigurationError(
                f"`fsdp_version` must be 2, got {plugin.fsdp_version}. Change it in the file given to "
                "`accelerate launch --config_file`."
            )
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=mixed_precision,
        gradient_accumulation_steps=accumulation_steps,
        log_with="tensorboard" if tensorboard else None,
        project_dir=output_dir,
        fsdp_plugin=plugin,
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True),
            InitProcessGroupKwargs(timeout=PATIENCE),
        ],
    )
    if plugin is not None and accelerator.distributed_type == DistributedType.MULTI_CPU:
        # Accelerate shards on accelerators only and would fall back to DDP; torch shards over gloo as well.
        for state in (PartialState(), accelerator.state):  # the second copies from the first now and then
            state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = plugin
    return accelerator


def make_loader(
    accelerator: Accelerator, dataset: WindowDataset, sampler: WindowSampler, collator: WindowCollator
) -> Any:
    """Makes the loader of this process's part of every batch.

    Args:
        accelerator (`Accelerator`): The one of the run.
        dataset (`WindowDataset`): What windows are cut from.
        sampler (`WindowSampler`): Gives the batches of all processes together.
        collator (`WindowCollator`): Makes model inputs of windows.

    Returns:
        `DataLoader`: With inputs on the device of the process; it tells `accumulate` where an epoch ends.
    """
    loader = DataLoader(
        dataset,
        batch_sampler=SharedBatches(sampler, accelerator.process_index, accelerator.num_processes),
        collate_fn=collator,
        # Its own, so that making an iterator draws nothing from the stream that dropout uses.
        generator=torch.Generator(),
    )
    # Accelerate would deal out whole batches, and fill up the last round with windows already seen.
    return prepare_data_loader(
        loader, accelerator.device, num_processes=1, process_index=0, put_on_device=True
    )


def use_own_random_state(accelerator: Accelerator, seed: int) -> None:
    """Lets each process draw dropout of its own; the main one goes on as it would alone.

    Args:
        accelerator (`Accelerator`): The one of the run.
        seed (`int`): Seed of the run, from which all processes have made the same model.
    """
    if accelerator.process_index:
        torch.manual_seed(seed + accelerator.process_index)


def total(accelerator: Accelerator, count: int) -> int:
    """Adds up a number over the processes. For all processes.

    Args:
        accelerator (`Accelerator`): The one of the run.
        count (`int`): This process's number.

    Returns:
        `int`: The sum.
    """
    return int(accelerator.reduce(torch.tensor(count, device=accelerator.device), "sum"))


class SharedBatches(Sampler[Any]):
    """Yields this process's part of each batch of a sampler; a `batch_sampler`.

    Batches are those of all processes together, so that their number changes nothing about what is learned
    from when: each window of an epoch is in one batch, and in the part of one process.

    Args:
        sampler (`WindowSampler`): Gives the batches of all processes together.
        process_index (`int`): This process.
        num_processes (`int`): Their number.
    """

    def __init__(self, sampler: WindowSampler, process_index: int, num_processes: int) -> None:
        self.sampler = sampler
        self.process_index = process_index
        self.num_processes = num_processes

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch that the next iteration runs through."""
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.sampler:
            yield part_of_batch(batch, self.process_index, self.num_processes)

    def __len__(self) -> int:
        return len(self.sampler)


def part_of_batch(batch: Windows, index: int, num_parts: int) -> Windows:
    """Cuts a batch into parts of nearly equal size.

    Args:
        batch (`Windows`): At least one window.
        index (`int`): Which part.
        num_parts (`int`): Their number.

    Returns:
        `Windows`: The part. Where there are too few windows, one from which nothing is learned: each process
        has to take part in each step.
    """
    edges = [len(batch) * i // num_parts for i in (index, index + 1)]
    if edges[0] < edges[1]:
        return batch[edges[0] : edges[1]]
    idle = batch.table[:1].copy()
    idle[:, 3] = idle[:, 2]  # learns from `scored_from` on, and that is its end
    return Windows(idle)


def _is_sharded(module: nn.Module) -> bool:
    return any(isinstance(part, FSDPModule) for part in module.modules())


def prepare_with_copy(
    accelerator: Accelerator, model: PreTrainedModel, optimizer: torch.optim.Optimizer, copy: nn.Module
) -> tuple[Any, Any]:
    """Prepares a model and its optimiser, and spreads a copy of the model over the processes as the model is.

    Args:
        accelerator (`Accelerator`): The one of the run.
        model (`PreTrainedModel`): The model.
        optimizer (`torch.optim.Optimizer`): Its optimiser.
        copy (`nn.Module`): A copy of the model, which FSDP2 changes in place; else it stays as it is.

    Returns:
        `tuple`: Model and optimiser.
    """
    if accelerator.is_fsdp2:
        present = {type(part).__name__ for part in model.modules()}
        layers = [name for name in model._no_split_modules or [] if name in present]
        accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = layers
    prepared = accelerator.prepare(model, optimizer)
    if accelerator.is_fsdp2:
        fsdp2_prepare_model(accelerator, copy)
    return prepared


def let_go(module: nn.Module) -> None:
    """Drops the weights that a forward pass without a backward one has gathered from other processes.

    Args:
        module (`nn.Module`): May be spread over the processes.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Copies the weights of a model to the CPU. For all processes.

    Args:
        module (`nn.Module`): May be spread over the processes.

    Returns:
        `dict[str, torch.Tensor]`: The state dictionary; empty on other processes than the main one where the
        weights are spread.
    """
    if _is_sharded(module):
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return cast(dict[str, torch.Tensor], get_model_state_dict(module, options=options))
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}


def load_whole_weights(module: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Takes weights back from `whole_weights`. For all processes.

    Args:
        module (`nn.Module`): May be spread over the processes.
        weights (`dict[str, torch.Tensor]`): Where the module is spread, those of the main process count.
    """
    if _is_sharded(module):
        set_model_state_dict(
            module, dict(weights), options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        )
    else:
        module.load_state_dict(weights)


class WholeState:
    """Lets Accelerate save a module whole, also where its weights are spread over the processes.

    Args:
        module (`nn.Module`): The module.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def state_dict(self) -> dict[str, Any]:
        """Gives the weights, for Accelerate."""
        return whole_weights(self.module)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes them back."""
        load_whole_weights(self.module, state)
