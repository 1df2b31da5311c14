"""An objective: tell whether a clip is played backwards, the arrow of time (Wei et al. 2018).

    tymbal pretrain recordings -o run --objective arrow

Half of the clips are reversed; a linear layer on the mean token says which. Sounds that look alike both ways (hum,
rain) teach nothing; calls with an onset do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tymbal.features.normalisation import Normalisation
from tymbal.models.encoder import PREFIX_TOKENS, SpectrogramEncoder
from tymbal.objectives.contract import ObjectiveSpec, load_heads
from tymbal.randomness import EVALUATION, fold, uniform
from tymbal.settings import PretrainSettings
from tymbal.settings.fields import Recipe, check
from tymbal.store.base import SpectrogramSource


@dataclass(frozen=True, kw_only=True)
class ArrowSettings(PretrainSettings):
    """Whether a clip is played backwards.

    Attributes:
        reversed_share: Share of the clips that are reversed.
    """

    # Defaults that the objective brings along, below everything that a user gives.
    recipes: ClassVar[tuple[Recipe, ...]] = (
        Recipe(setting="objective", value="arrow", defaults={"learning_rate": 5e-4}),
    )

    objective: Literal["arrow"] = "arrow"
    reversed_share: float = 0.5

    def __post_init__(self) -> None:
        PretrainSettings.__post_init__(self)
        check(0 < self.reversed_share < 1, "reversed_share", self.reversed_share, "a fraction between 0 and 1")


class ArrowObjective(nn.Module):
    """A linear layer from the mean token to whether time runs backwards.

    Args:
        encoder: The encoder to train.
        normalisation: How spectrograms are normalised for it.
        share: Share of the clips that are reversed.
        seed: Seed of which.

    Attributes:
        monitor: The metric that tells better models, and whether higher is better.
    """

    monitor: tuple[str, bool] = ("accuracy", True)

    def __init__(self, encoder: SpectrogramEncoder, *, normalisation: Normalisation, share: float, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.encoder.mask_token.requires_grad = False  # nothing is masked; an unused weight would stop DDP
        self.normalisation, self.share, self.seed = normalisation, share, seed
        self.arrow = nn.Linear(encoder.config.width, 1)

    def forward(self, spectrogram: Tensor, frames: Tensor, row: Tensor, epoch: Tensor, **_: Tensor) -> dict[str, Any]:
        """Computes the loss of a batch, see `tymbal.objectives.contract.Objective`."""
        # Drawn from seed, epoch and row alone: the same on every device, rank and resumed run.
        key = fold(self.seed, epoch if self.training else torch.full_like(epoch, EVALUATION), row)
        backwards = uniform(key, 1, stream=0)[:, 0] < self.share
        shown = reverse(self.normalisation(spectrogram, frames), frames, backwards)
        tokens = self.encoder(shown).tokens[:, PREFIX_TOKENS:].float()
        logit = self.arrow(tokens.mean(dim=1))[:, 0]
        loss = nn.functional.binary_cross_entropy_with_logits(logit, backwards.float(), reduction="none")
        correct = ((logit > 0) == backwards).float()
        count = torch.full_like(correct[0], len(correct))
        return {"loss": loss.mean(), "sums": {"loss": loss.detach().sum(), "correct": correct.sum(), "count": count}}

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Figures of many batches, from the sums of what `forward` gave."""
        count = float(sums["count"])
        return {"loss": float(sums["loss"]) / count, "accuracy": float(sums["correct"]) / count}

    def head_state(self) -> dict[str, Tensor]:
        """The layer's weights, saved with the model."""
        return {f"arrow.{name}": value for name, value in self.arrow.state_dict().items()}

    def load_head_state(self, state: Mapping[str, Tensor]) -> None:
        """Loads what `head_state` gave."""
        load_heads(self.head_state(), state, advice="They are of another objective.")


def reverse(spectrogram: Tensor, frames: Tensor, which: Tensor) -> Tensor:
    """Turns the sound of some clips round; what is padding behind it stays there.

    Args:
        spectrogram: float32 [batch, frames, mels].
        frames: Frames of real sound, int64 [batch].
        which: The clips to reverse, bool [batch].
    """
    place = torch.arange(spectrogram.shape[1], device=frames.device).expand(len(frames), -1)
    mirrored = torch.where(place < frames[:, None], frames[:, None] - 1 - place, place)
    order = torch.where(which[:, None], mirrored, place)
    return spectrogram.gather(1, order.unsqueeze(2).expand_as(spectrogram))


def build(
    encoder: SpectrogramEncoder, data: SpectrogramSource, normalisation: Normalisation, settings: ArrowSettings
) -> ArrowObjective:
    """Puts the objective on an encoder; it needs nothing of the data beyond their normalisation."""
    del data
    return ArrowObjective(encoder, normalisation=normalisation, share=settings.reversed_share, seed=settings.seed)


OBJECTIVE = ObjectiveSpec(settings=ArrowSettings, build=build)
