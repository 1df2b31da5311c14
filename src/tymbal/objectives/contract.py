"""The contract of a pretraining objective: a module around an encoder, its settings, and the function that builds it.

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
from tymbal.progress import tell
from tymbal.settings import PretrainSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from tymbal.features.normalisation import Normalisation
    from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
    from tymbal.store.base import SpectrogramSource

__all__ = [
    "Objective",
    "ObjectiveSpec",
    "RebuildingObjective",
    "Rebuilt",
    "Trainable",
    "View",
    "ViewingObjective",
    "compares_clips",
    "continue_heads",
    "load_heads",
]


class Trainable(Protocol):
    """An `nn.Module` that learns by a loss on batches, of pretraining or of fine-tuning.

    Attributes:
        monitor: Name of the metric that tells better models, and whether higher is better.
    """

    monitor: tuple[str, bool]

    def __call__(self, **batch: Tensor) -> dict[str, Any]:
        """Computes the loss of a batch.

        Returns:
            `loss`, a float32 scalar, the mean over the clips; and `sums`, tensors that are added up over batches and
            processes, among them `count`, the number of clips.
        """

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Turns sums over many batches into the figures that are reported, `loss` among them.

        In evaluation, a figure `alarm_…` of 1 is a cause for alarm, which is logged and reported under that name.
        """


class Objective(Trainable, Protocol):
    """An `nn.Module` that learns from unlabelled clips, around an encoder.

    A batch has `spectrogram`, log-mel values as they are stored, of any float type, [batch, frames, mels], of pairs of
    views [batch, 2, frames, mels]; `frames`, real frames of each clip before padding, int64 [batch]; `row`, its number
    in the store, int64 [batch]; and `epoch`, that of each clip, int64 [batch]; where the store has a teacher's vectors
    (`SpectrogramSource.taught`) `target`, those of the clips, float32 [batch, parts, width]. Random numbers are drawn
    from `row`, `epoch` and the seed alone (`tymbal.randomness`): so a resumed run draws the same.

    An objective whose loss compares the clips of a batch with each other has an attribute `compares_clips` of True.
    While it trains it sees to it that the batch of all processes counts (`compute.processes.gather_batch`); evaluations
    give it batches of the size that all processes together train on, each in one process, so that their figures do not
    depend on how many there are, and of clips in a random order that stays the same, as in training.

    Attributes:
        encoder: The encoder to train, saved as the model at the end.
        training: Whether it is in training mode; evaluation has fixed random numbers.
    """

    encoder: SpectrogramEncoder
    training: bool

    def head_state(self) -> dict[str, Tensor]:
        """Trained weights beside the encoder's, to save with the model; the tensors themselves, not copies."""

    def load_head_state(self, state: Mapping[str, Tensor]) -> None:
        """Loads what `head_state` returned (`load_heads` does it); names that it lacks are ignored.

        Raises:
            ModelError: Where a part is missing or has another shape.
        """

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> object:
        """As of every module."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """As of every module."""

    def train(self, mode: bool = True) -> Self:
        """As of every module."""

    def eval(self) -> Self:
        """As of every module."""


class RebuildingObjective(Objective, Protocol):
    """An objective that rebuilds the masked part of a clip, which can be drawn.

    Attributes:
        normalisation: How spectrograms are normalised for the encoder.
    """

    normalisation: Normalisation

    def rebuilt(self, spectrogram: Tensor, frames: Tensor, row: Tensor) -> Rebuilt:
        """Hides parts of clips as in every evaluation, and rebuilds them; in evaluation mode.

        Args:
            spectrogram: Normalised, [clips, frames, mels].
            frames: Real frames of each clip, int64 [clips].
            row: Number of each clip in its store, int64 [clips].
        """


class ViewingObjective(Objective, Protocol):
    """An objective that compares views of a clip, which can be drawn.

    Attributes:
        normalisation: How spectrograms are normalised for the encoder.
    """

    normalisation: Normalisation

    def shown(self, spectrogram: Tensor, frames: Tensor, row: Tensor, *, epoch: int = 0) -> dict[str, View]:
        """Draws the views that the encoder is shown of clips; in evaluation mode.

        Args:
            spectrogram: Normalised, [clips, frames, mels].
            frames: Real frames of each clip, int64 [clips].
            row: Number of each clip in its store, int64 [clips].
            epoch: The epoch of the training that they are drawn for.
        """


@dataclass(frozen=True)
class View:
    """A view of some clips.

    Attributes:
        values: Normalised spectrograms, float32 [clips, frames, mels].
        frames: Frames of sound in each, int64 [clips].
        hidden: The values that the encoder does not see, bool [clips, frames, mels].
    """

    values: NDArray[np.float32]
    frames: NDArray[np.int64]
    hidden: NDArray[np.bool_]

    @classmethod
    def from_tensors(cls, values: Tensor, frames: Tensor, visible: Tensor | None, config: EncoderConfig) -> Self:
        """From tensors on any device; `visible` numbers the patches that are seen, [clips, visible], None is all."""
        spectrograms: NDArray[np.float32] = values.float().cpu().numpy()
        hidden: NDArray[np.bool_] = (values.isnan() | (visible is not None)).cpu().numpy()
        if visible is not None:
            columns = config.grid_of(values.shape[1])[1]
            for place, patches in enumerate(visible.tolist()):
                for patch in patches:
                    low, first = patch // columns * config.stride[0], patch % columns * config.stride[1]
                    hidden[place, first : first + config.patch[1], low : low + config.patch[0]] = False
        return cls(spectrograms, frames.cpu().numpy(), hidden)


@dataclass(frozen=True)
class Rebuilt:
    """Clips as they are, what of them was hidden, and what the objective made of the rest.

    Attributes:
        true: Normalised spectrograms, float32 [clips, frames, mels].
        hidden: The values that the encoder did not see, bool [clips, frames, mels].
        made: Rebuilt spectrograms, float32 [clips, frames, mels].
        error: Of each clip the mean squared error of what was hidden, [clips]; of a puzzle the share of patches that
            lie wrong.
        puzzle: Whether patches were laid, and not rebuilt.
    """

    true: NDArray[np.float32]
    hidden: NDArray[np.bool_]
    made: NDArray[np.float32]
    error: NDArray[np.float32]
    puzzle: bool

    @classmethod
    def from_tensors(cls, true: Tensor, hidden: Tensor, made: Tensor, *, wrong: Tensor | None = None) -> Self:
        """From tensors on any device; `wrong` is the share of patches that lie wrong, [clips], where it is a puzzle."""
        error = wrong
        if error is None:
            count = hidden.sum((1, 2)).clamp(min=1)  # masks may all happen to have no width
            error = (made - true).square().masked_fill(~hidden, 0.0).sum((1, 2)) / count
        floats = [each.float().cpu().numpy() for each in (true, made, error)]
        return cls(floats[0], hidden.cpu().numpy(), floats[1], floats[2], wrong is not None)


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


def compares_clips(module: object) -> bool:
    """Whether the loss of an objective compares the clips of a batch with each other (see `Objective`)."""
    return bool(getattr(module, "compares_clips", False))


def continue_heads(objective: Objective, state: Mapping[str, Tensor]) -> bool:
    """Goes on with the heads of an earlier pretraining, where they are those of this objective; says so.

    Returns:
        Whether it does.
    """
    own = objective.head_state()
    if not all(name in state and state[name].shape == value.shape for name, value in own.items()):
        return False
    objective.load_head_state(state)
    tell("Going on with the heads of its pretraining")
    return True


def load_heads(own: Mapping[str, Tensor], state: Mapping[str, Tensor], *, advice: str) -> None:
    """Copies weights by name into those of an objective; names that it lacks are left out.

    Args:
        own: Its weights, changed in place.
        state: The weights to copy.
        advice: Possible reasons for a misfit, for the error.

    Raises:
        ModelError: One is missing or has another shape; then nothing is copied.
    """
    for name, value in own.items():
        if name not in state or state[name].shape != value.shape:
            other = "is missing" if name not in state else f"has shape {tuple(state[name].shape)}"
            raise ModelError(
                f"{name} of the objective's heads {other}, expected is {tuple(value.shape)}", advice=advice
            )
    for name, value in own.items():
        value.copy_(state[name])
