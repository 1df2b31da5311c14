"""Which layers of a classifier are trained, how fast, and from when on; and averages of weights over epochs.

A pretrained encoder knows most in its lower blocks, and forgets it when a new head sends large gradients through all of
them. Three ways to spare it, which go together: freezing the lower blocks for good; a learning rate that falls from
layer to layer towards the input (Clark et al. 2020; BEiT, Bao et al. 2022); and gradual unfreezing, from the head down
(ULMFiT, Howard and Ruder 2018).

A fourth is to leave the weights and to train adapters beside them, products of two narrow matrices (LoRA, Hu et al.
2022), which are added to the weights when a model is saved.

SSAST's recipe for AudioSet averages the weights after epochs 6 to 25. They need not all be kept for it: a running mean
is, and it lies in every checkpoint, so that a resumed run averages what an uninterrupted one would have. So does an
exponential moving average from step to step (Polyak and Juditsky 1992), in whose place the weights are while a model is
evaluated.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from tymbal.errors import SettingsError
from tymbal.models.classifier import SpectrogramClassifier
from tymbal.models.encoder import SpectrogramEncoder
from tymbal.progress import tell
from tymbal.settings import FinetuneSettings, PretrainSettings, TrainingSettings
from tymbal.training.batches import BatchPlan
from tymbal.training.checkpoints import EMA_FILE
from tymbal.training.optimization import parameter_groups

__all__ = [
    "MovingAverage",
    "Stages",
    "Unfreezing",
    "WeightAverage",
    "add_adapters",
    "freeze",
    "heads_first",
    "layered_groups",
    "merged",
    "stages",
]

_ENCODERS = ("model.encoder.", "encoder.")
"""What stands before the encoder's names in a classifier that is trained, and in an objective of pretraining."""

Named = list[tuple[str, nn.Parameter]]


def freeze(model: SpectrogramClassifier, train: str) -> None:
    """Freezes what is never to be trained.

    Args:
        model: The classifier.
        train: `all`, `head`, or the number of last blocks that are trained with the head.

    Raises:
        SettingsError: The encoder has fewer blocks.
    """
    if train != "all":
        model.encoder.freeze_below(0 if train == "head" else int(train))


def layered_groups(
    objective: nn.Module, encoder: SpectrogramEncoder, settings: FinetuneSettings | PretrainSettings
) -> list[Any]:
    """Parameter groups for the optimizer: the head at its own rate, and rates that fall from layer to layer below it.

    The final norm has the full rate, the last block `layer_decay` of it, the next one that squared, and so on down to
    the embedded patches. The first group is the one whose rate is logged: the fastest of the encoder.

    Args:
        objective: The objective that is trained, with the classifier as `model`, or with the encoder itself.
        encoder: The encoder in it.
        settings: Rates and decays.
    """
    by_layer: dict[int, Named] = {}
    head: Named = []
    for name, parameter in objective.named_parameters():
        prefix = next((prefix for prefix in _ENCODERS if name.startswith(prefix)), None)
        if prefix is not None:
            layer = 0 if settings.layer_decay == 1 else _layer(name.removeprefix(prefix), encoder)
            by_layer.setdefault(layer, []).append((name, parameter))
        else:
            head.append((name, parameter))
    rate, decay = settings.learning_rate, settings.weight_decay
    groups: list[dict[str, Any]] = []
    for below, named in sorted(by_layer.items()):
        groups += parameter_groups(named, learning_rate=rate * settings.layer_decay**below, weight_decay=decay)
    factor = settings.head_lr_factor if isinstance(settings, FinetuneSettings) else 1.0
    return groups + parameter_groups(head, learning_rate=rate * factor, weight_decay=decay)


def _layer(name: str, encoder: SpectrogramEncoder) -> int:
    """How far below the head a parameter of the encoder lies: 0 is the final norm, 1 the last block."""
    depth = encoder.config.depth
    if name.startswith("norm."):
        return 0
    return depth - int(name.split(".")[1]) if name.startswith("blocks.") else depth + 1


@dataclass(frozen=True)
class Stages:
    """Stages of unfreezing: which parameters are unfrozen at which epoch.

    Attributes:
        parameters: Parameters of each stage, in the order in which they thaw.
        every: Epochs from one stage to the next; the first thaws after as many.
    """

    parameters: tuple[tuple[nn.Parameter, ...], ...]
    every: float


def stages(encoder: SpectrogramEncoder, every: float) -> Stages:
    """The stages of gradual unfreezing: the final norm with the last block, block by block, then the embedded patches.

    Parameters that stay frozen are in none.
    """
    by_layer: dict[int, list[nn.Parameter]] = {}
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            by_layer.setdefault(max(1, _layer(name, encoder)), []).append(parameter)
    return Stages(tuple(tuple(layer) for _, layer in sorted(by_layer.items())), every)


def heads_first(encoder: SpectrogramEncoder, epochs: float) -> Stages | None:
    """One stage: for some epochs the heads are trained alone, then all that is to be trained; None for 0 epochs."""
    trained = tuple(parameter for parameter in encoder.parameters() if parameter.requires_grad)
    return Stages((trained,), epochs) if epochs and trained else None


class Unfreezing(TrainerCallback):
    """Unfreezes stage after stage as epochs pass.

    Which parameters a step trains follows from its number alone, so that a resumed run goes on as an uninterrupted
    one. A frozen parameter has no gradient: the optimizer does not change it, not even by weight decay, and begins its
    moments when it is unfrozen.

    Args:
        stages: Stages of unfreezing.
        plan: Gives the epoch of each step.
    """

    def __init__(self, stages: Stages, plan: BatchPlan) -> None:
        self._stages = stages
        self._plan = plan
        count = self.thawed(plan.steps - 1)
        if count < len(stages.parameters):
            tell(
                f"The run ends before all is thawed: {len(stages.parameters) - count} of {len(stages.parameters)} "
                "layers are never trained",
                warning=True,
            )

    def thawed(self, step: int) -> int:
        """Number of stages that are trained in the step with this number, counted from 0."""
        passed = math.floor(self._plan.epoch_after(step) / self._stages.every + 1e-9)
        return min(passed, len(self._stages.parameters))

    @override
    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        count = self.thawed(state.global_step)
        _thaw(self._stages.parameters[:count], thawed=True)
        _thaw(self._stages.parameters[count:], thawed=False)


def _thaw(parameters: Iterable[Sequence[nn.Parameter]], *, thawed: bool) -> None:
    for stage in parameters:
        for parameter in stage:
            parameter.requires_grad_(thawed)


_FILE = "average.safetensors"
_COUNT = "averaged"


class WeightAverage(TrainerCallback):
    """Averages the weights after the evaluations of some epochs.

    Args:
        module: Whose weights.
        settings: Which epochs.

    Attributes:
        count: How many were averaged so far.
    """

    def __init__(self, module: nn.Module, settings: TrainingSettings) -> None:
        if settings.average_from is None:
            raise ValueError("average_from is not set")
        self._module = module
        self._first = settings.average_from
        self._last = math.inf if settings.average_to is None else settings.average_to
        self._period = settings.eval_every if settings.eval_steps is None else None
        self._mean: dict[str, Tensor] = {}
        self.count = 0

    @override
    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        epoch = float(state.epoch or 0.0)
        if self._period is not None:  # an epoch mostly ends within a step
            epoch = math.floor(epoch / self._period + 1e-9) * self._period
        if self._first - 1e-9 <= epoch <= self._last + 1e-9:
            self.add()

    @torch.no_grad()
    def add(self) -> None:
        """Adds the current weights to the mean."""
        self.count += 1
        for name, value in self._module.state_dict().items():
            if name not in self._mean or not value.is_floating_point():
                self._mean[name] = value.detach().clone()
            else:
                self._mean[name].lerp_(value, 1 / self.count)

    def apply(self) -> None:
        """Sets the module's weights to their mean."""
        self._module.load_state_dict(self._mean)

    def save(self, checkpoint: Path) -> None:
        """Writes the mean into a checkpoint that is being written."""
        if self.count:
            count = torch.tensor(self.count)
            save_file(
                {_COUNT: count, **{name: value.contiguous() for name, value in self._mean.items()}}, checkpoint / _FILE
            )

    def load(self, checkpoint: Path) -> None:
        """Loads the mean from a checkpoint, if it has one."""
        if (checkpoint / _FILE).is_file():
            self._mean = load_file(checkpoint / _FILE)
            self.count = int(self._mean.pop(_COUNT))
            devices = {name: value.device for name, value in self._module.state_dict().items()}
            self._mean = {name: value.to(devices[name]) for name, value in self._mean.items()}


class MovingAverage(TrainerCallback):
    """An exponential moving average of the weights, which is what is evaluated and saved as the model.

    It begins with the weights that training starts from, and so keeps a part of them: after n steps `decay`^n.

    Args:
        module: Whose weights.
        decay: Share of the average that a step leaves.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module = module
        self._decay = decay
        self._mean: dict[str, Tensor] = {}

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._mean:  # now that the module is on its device
            self._mean = {name: value.detach().clone() for name, value in self._module.state_dict().items()}

    @override
    @torch.no_grad()
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        for name, value in self._module.state_dict().items():
            if value.is_floating_point():
                self._mean[name].lerp_(value, 1 - self._decay)
            else:
                self._mean[name].copy_(value)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the module has the averaged weights."""
        own = {name: value.detach().clone() for name, value in self._module.state_dict().items()}
        self._module.load_state_dict(self._mean or own)
        try:
            yield
        finally:
            self._module.load_state_dict(own)

    def save(self, checkpoint: Path) -> None:
        """Writes the average into a checkpoint that is being written."""
        save_file({name: value.contiguous() for name, value in self._mean.items()}, checkpoint / EMA_FILE)

    def load(self, checkpoint: Path) -> None:
        """Loads the average from a checkpoint."""
        devices = {name: value.device for name, value in self._module.state_dict().items()}
        self._mean = {name: value.to(devices[name]) for name, value in load_file(checkpoint / EMA_FILE).items()}


Module = TypeVar("Module", SpectrogramEncoder, SpectrogramClassifier)


def add_adapters(encoder: SpectrogramEncoder, rank: int, *, seed: int) -> None:
    """Puts low-rank adapters beside the linear layers of the blocks that are trained; the rest of the encoder freezes.

    Args:
        encoder: The encoder, changed in place. It computes the same as before.
        rank: Rank of the adapters; 0 does nothing.
        seed: Seed of their first weights.

    Raises:
        SettingsError: `peft` is not installed, or no block is trained.
    """
    if not rank:
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise SettingsError(
            f"lora needs the package peft, which cannot be imported: {error}", advice="pip install 'tymbal[peft]'"
        ) from None
    targets = [
        name
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("blocks.") and module.weight.requires_grad
    ]
    if not targets:
        raise SettingsError("lora has no block to train", advice="Set train to all, or to a number of blocks.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets), encoder)
    count = sum(value.numel() for value in encoder.parameters() if value.requires_grad)
    whole = sum(value.numel() for value in encoder.parameters()) - count
    tell(f"Adapters of rank {rank}: {count:,} weights of the encoder are trained, beside {whole:,} that stay")


def merged(module: Module) -> Module:
    """The same model without adapters, which are added to its weights; one without adapters is returned as it is."""
    if not any(name.endswith(".base_layer") for name, _ in module.named_modules()):
        return module
    plain = copy.deepcopy(module)
    for name, adapted in list(plain.named_modules()):
        if hasattr(adapted, "base_layer"):
            adapted.merge()
            plain.set_submodule(name, adapted.get_base_layer())
    return plain
