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

from tymbal.compute.device import choose_device, choose_precision
from tymbal.compute.processes import processes, rank
from tymbal.errors import SettingsError
from tymbal.models.encoder import Block
from tymbal.progress import tell
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
        self.whole = whole.to(device)
        for value in (*whole.parameters(), *whole.buffers()):
            torch.distributed.broadcast(value.detach(), src=0)
        self.module = _copied(whole)
        mesh = init_device_mesh(device.type, (processes(),))
        for part in self.module.modules():
            if isinstance(part, Block):
                fully_shard(part, mesh=mesh)
        fully_shard(self.module, mesh=mesh)
        self.whole.to("cpu")
        self._device = device

    @classmethod
    def of(cls, module: nn.Module, settings: TrainingSettings, *, thaws: bool) -> Shards | None:
        """The shards of an objective; None where there is one process, or `shard` is not set.

        Args:
            module: The objective.
            settings: How to train.
            thaws: Whether parameters are frozen for some time.

        Raises:
            SettingsError: Something does not go with shards.
        """
        if not settings.shard:
            return None
        if processes() == 1:
            tell("shard has no effect in one process, which holds all weights; torchrun starts several", warning=True)
            return None
        device = choose_device(settings.device)[0]
        single = [name for name, value in module.named_parameters() if value.ndim == 0]
        is_fp16 = choose_precision(settings.precision, device)[0] is torch.float16
        refused = (
            (settings.compile, "compile", "Leave out --compile."),
            (thaws, "layers that are unfrozen one after the other", "Leave out --unfreeze-every and --head-warmup."),
            (is_fp16, "fp16, whose loss is scaled", "Use --precision bf16 or --precision float32."),
            (bool(single), f"{', '.join(single)}, a single number", "Give it the shape [1] in the objective."),
        )
        for _, what, otherwise in (each for each in refused if each[0]):
            raise SettingsError(f"shard does not go with {what}", advice=f"{otherwise} Or train without --shard.")
        return cls(module, device)

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
        """The state of an optimizer as without shards, for the first process; each has to call it, and gets nothing.

        Tensors go to the memory of the CPU one by one: together they are as large as what shards save.
        """
        state = optimizer.state_dict()
        values: dict[Any, dict[str, Any]] = {}
        for place, own in state["state"].items():
            whole = {name: value.full_tensor().cpu() for name, value in own.items() if isinstance(value, DTensor)}
            if rank() == 0:
                values[place] = {**own, **whole}
        groups = [{**group, "fused": True} for group in state["param_groups"]]  # as `make_optimizer` has it
        return {"state": values, "param_groups": groups}

    def read_whole_states(self, optimizer: torch.optim.Optimizer) -> None:
        """Lets an optimizer of the shards load states that were written without any."""

        def share_out(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            own = {name: optimizer.param_groups[0][name] for name in ("fused", "foreach")}
            return {
                "state": {place: _shared(values, parameters[place]) for place, values in state["state"].items()},
                "param_groups": [{**group, **own} for group in state["param_groups"]],
            }

        optimizer.register_load_state_dict_pre_hook(share_out)


def local(value: Tensor) -> Tensor:
    """The part of a tensor that this process has; the tensor itself where it is not shared out."""
    return value.to_local() if isinstance(value, DTensor) else value


def _copied(module: nn.Module) -> nn.Module:
    """A copy of a module and of its weights and buffers; what else it knows, settings or tables, is shared."""
    known = [value for part in module.modules() for value in vars(part).values()]
    return copy.deepcopy(module, {id(value): value for value in known if not isinstance(value, nn.Module | dict | set)})


def _shared(state: Mapping[str, Any], parameter: nn.Parameter) -> dict[str, Any]:
    return {
        name: _like(parameter, value) if isinstance(value, Tensor) and value.shape == parameter.shape else value
        for name, value in state.items()
    }


def _like(shard: Tensor, value: Tensor) -> Tensor:
    """A value shared out as a tensor is."""
    if not isinstance(shard, DTensor) or isinstance(value, DTensor):
        return value
    # Each process has the whole and takes its part: nothing is sent.
    return distribute_tensor(value.to(shard.device), shard.device_mesh, shard.placements, src_data_rank=None)


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
