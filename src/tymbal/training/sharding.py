"""Weights, gradients and optimizer states shared out among the processes of a run: PyTorch's FSDP2 (`--shard`).

Each process holds a part of every tensor and has a block whole only while it computes with it. What is no training,
evaluations, pictures, checkpoints, models, goes on with the objective itself, which gets the weights of all processes
before it is used; so checkpoints are those of any run, and one with shards goes on without them and the other way
round. Between evaluations the objective lies in the memory of the CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from tymbal.compute.processes import processes
from tymbal.errors import SettingsError
from tymbal.models.encoder import Block
from tymbal.settings import TrainingSettings

__all__ = ["GatherEachStep", "Shards", "local"]


class Shards:
    """An objective that is trained in shards.

    Args:
        whole: The objective, with the weights to start from; the same in every process.
        device: The device to train on.

    Attributes:
        whole: The objective. It has the weights of the last `gather`.
        module: Its copy in shards, which is trained.
    """

    def __init__(self, whole: nn.Module, device: torch.device) -> None:
        self.whole = whole
        self.module = copy.deepcopy(whole)
        mesh = init_device_mesh(device.type, (processes(),))
        for part in self.module.modules():
            if isinstance(part, Block):
                fully_shard(part, mesh=mesh)
        fully_shard(self.module, mesh=mesh)
        self._device = device

    @staticmethod
    def check(settings: TrainingSettings, *, thaws: bool) -> None:
        """Refuses what does not go with shards.

        Args:
            settings: How to train.
            thaws: Whether parameters are frozen for some time.

        Raises:
            SettingsError: Something does not.
        """
        if processes() == 1:
            raise SettingsError(
                "shard shares out weights among processes, and there is one",
                advice="Leave out --shard, or start several: torchrun --nproc-per-node 2 -m tymbal ...",
            )
        others = {
            "compile": settings.compile,
            "layers that are unfrozen one after the other": thaws,
            "fp16": settings.precision == "fp16",
        }
        for name in (name for name, is_set in others.items() if is_set):
            raise SettingsError(f"shard does not go with {name}", advice="Leave out one of them.")

    @torch.no_grad()
    def gather(self) -> None:
        """Gives the objective the weights of all processes; each of them has to call it."""
        own = self.whole.state_dict()
        for name, value in self.module.state_dict().items():
            own[name].copy_(value.full_tensor() if isinstance(value, DTensor) else value)

    @torch.no_grad()
    def scatter(self) -> None:
        """Gives the shards the weights of the objective."""
        own = self.whole.state_dict()
        for name, value in self.module.state_dict().items():
            value.copy_(_like(value, own[name]))

    @contextmanager
    def at_hand(self) -> Iterator[None]:
        """Within it the objective is on the device that is trained on."""
        place = next(self.whole.parameters()).device
        self.whole.to(self._device)
        try:
            yield
        finally:
            self.whole.to(place)

    def groups(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Parameter groups of the objective as those of the shards."""
        names = {id(parameter): name for name, parameter in self.whole.named_parameters()}
        shards = dict(self.module.named_parameters())
        return [{**group, "params": [shards[names[id(each)]] for each in group["params"]]} for group in groups]

    def whole_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The state of an optimizer as without shards; each process has to call it."""
        state = optimizer.state_dict()
        values = {
            place: {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in own.items()}
            for place, own in state["state"].items()
        }
        return {**state, "state": values}

    def read_whole_states(self, optimizer: torch.optim.Optimizer) -> None:
        """Lets an optimizer of the shards load states that were written without any."""

        def share_out(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            return {**state, "state": {place: _shared(own, parameters[place]) for place, own in state["state"].items()}}

        optimizer.register_load_state_dict_pre_hook(share_out)


def local(value: Tensor) -> Tensor:
    """The part of a tensor that this process has; the tensor itself where it is not shared out."""
    return value.to_local() if isinstance(value, DTensor) else value


def _shared(state: Mapping[str, Any], parameter: nn.Parameter) -> dict[str, Any]:
    return {
        name: _like(parameter, value) if isinstance(value, Tensor) and value.shape == parameter.shape else value
        for name, value in state.items()
    }


def _like(shard: Tensor, value: Tensor) -> Tensor:
    """A value shared out as a tensor is."""
    if not isinstance(shard, DTensor) or isinstance(value, DTensor):
        return value
    return distribute_tensor(value.to(shard.device), shard.device_mesh, shard.placements)


class GatherEachStep(TrainerCallback):
    """Gives the objective its weights after every step, for what follows them step by step.

    Args:
        shards: The shards.
    """

    def __init__(self, shards: Shards) -> None:
        self._shards = shards

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._shards.gather()
