"""What an objective of pretraining is: a module around an encoder, its settings, and what builds one from the other.

An objective is one file that ends with `OBJECTIVE = ObjectiveSpec(...)`:

- its settings, a dataclass derived from `PretrainSettings` (or `ViewPairSettings`, and it is given pairs of views),
  whose docstring is its help and whose `recipes` are the defaults that choosing it brings along;
- its module, an `Objective`;
- a function that builds the module from an encoder, the data and the settings.

`tymbal.objectives.registry` finds it by name: by a line in its table, or by an entry point of another package in the
group `tymbal.objectives`. Nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

from tymbal.errors import ModelError
from tymbal.settings import PretrainSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tymbal.features.normalisation import Normalisation
    from tymbal.models.encoder import SpectrogramEncoder
    from tymbal.store.base import SpectrogramSource

__all__ = ["Objective", "ObjectiveSpec", "load_heads"]


class Objective(Protocol):
    """An `nn.Module` that learns by a loss on batches of a store.

    A batch has `spectrogram`, log-mel values as they are stored, of any float type, [batch, frames, mels], of pairs of
    views [batch, 2, frames, mels]; `frames`, real frames of each clip before padding, int64 [batch]; `row`, its number
    in the store, int64 [batch]; and `epoch`, that of each clip, int64 [batch]. Random numbers are drawn from `row`,
    `epoch` and the seed alone (`tymbal.randomness`): so a resumed run draws the same.

    Attributes:
        encoder: What is trained and, at the end, kept as the model.
        monitor: Name of the metric that tells better models, and whether higher is better.
        training: Whether it is in training mode; evaluation has fixed random numbers.
    """

    encoder: SpectrogramEncoder
    monitor: tuple[str, bool]
    training: bool

    def __call__(self, **batch: Tensor) -> dict[str, Any]:
        """Computes the loss of a batch.

        Returns:
            `loss`, a float32 scalar, the mean over the clips; and `sums`, tensors that are added up over batches and
            processes, among them `count`, the number of clips.
        """

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Turns sums over many batches into the figures that are reported, `loss` among them."""

    def head_state(self) -> dict[str, Tensor]:
        """What is trained beside the encoder, to be kept with the model; the tensors themselves, not copies."""

    def load_head_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes what `head_state` gave (`load_heads` does it); names that it lacks are left out.

        Raises:
            ModelError: Where a part is missing or has another shape.
        """

    def parameters(self) -> Iterator[nn.Parameter]:
        """As of every module."""

    def train(self, mode: bool = True) -> Self:
        """As of every module."""

    def eval(self) -> Self:
        """As of every module."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveSpec:
    """How an objective is configured and built.

    Attributes:
        settings: Its settings. The field `objective` is a `Literal` of the names that the file answers to.
        build: Puts the objective, its heads with random weights, on an encoder, for clips of `data` that are normalised
            so: `build(encoder, data, normalisation, settings)`.
        patches_may_overlap: Whether weights to start from keep patches that overlap. Where single patches are masked,
            a masked one would be seen in its neighbours.
    """

    settings: type[PretrainSettings]
    build: Callable[[SpectrogramEncoder, SpectrogramSource, Normalisation, Any], Objective]
    patches_may_overlap: bool = False


def load_heads(own: Mapping[str, Tensor], state: Mapping[str, Tensor], *, advice: str) -> None:
    """Copies weights by name into those of an objective; names that it lacks are left out.

    Args:
        own: Its weights, changed in place.
        state: Where from.
        advice: Why they may not fit.

    Raises:
        ModelError: Where one is missing or has another shape; nothing is copied then.
    """
    for name, value in own.items():
        if name not in state or state[name].shape != value.shape:
            other = "is missing" if name not in state else f"has shape {tuple(state[name].shape)}"
            raise ModelError(f"{name} of the objective's heads {other}, wanted is {tuple(value.shape)}", advice=advice)
    for name, value in own.items():
        value.copy_(state[name])
