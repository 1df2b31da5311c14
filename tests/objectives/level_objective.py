"""An objective from outside, in one file: tell from its tokens how loud each clip is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from tymbal.features.normalisation import Normalisation
from tymbal.models.encoder import PREFIX_TOKENS, SpectrogramEncoder
from tymbal.objectives.contract import ObjectiveSpec, load_heads
from tymbal.settings import PretrainSettings
from tymbal.settings.fields import Recipe, check
from tymbal.store.base import SpectrogramSource


@dataclass(frozen=True, kw_only=True)
class LevelSettings(PretrainSettings):
    """How loud a clip is.

    Attributes:
        level_weight: Weight of the error in the loss.
    """

    recipes: ClassVar[tuple[Recipe, ...]] = (
        Recipe(setting="objective", value="level", defaults={"learning_rate": 2e-3, "schedule": "constant"}),
    )

    objective: Literal["level"] = "level"
    level_weight: float = 1.0

    def __post_init__(self) -> None:
        PretrainSettings.__post_init__(self)
        check(self.level_weight > 0, "level_weight", self.level_weight, "a number above 0")


class LevelObjective(nn.Module):
    """A line from the mean token to the mean of the log-mel values."""

    monitor: tuple[str, bool] = ("mse", False)

    def __init__(self, encoder: SpectrogramEncoder, *, normalisation: Normalisation, weight: float) -> None:
        super().__init__()
        self.encoder = encoder
        self.encoder.mask_token.requires_grad = False
        self.normalisation = normalisation
        self.weight = weight
        self.level = nn.Linear(encoder.config.width, 1)

    def forward(self, spectrogram: Tensor, frames: Tensor, **_: Any) -> dict[str, Any]:
        x = self.normalisation(spectrogram, frames)
        tokens = self.encoder(x).tokens[:, PREFIX_TOKENS:].float()
        level = self.level(tokens.mean(dim=1))[:, 0]
        error = (level - spectrogram.float().mean(dim=(1, 2))).square()
        count = torch.full_like(error[0], len(error), requires_grad=False)
        return {"loss": self.weight * error.mean(), "sums": {"mse": error.detach().sum(), "count": count}}

    def metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        mse = float(sums["mse"]) / float(sums["count"])
        return {"loss": self.weight * mse, "mse": mse}

    def head_state(self) -> dict[str, Tensor]:
        return {f"level.{name}": value for name, value in self.level.state_dict().items()}

    def load_head_state(self, state: Mapping[str, Tensor]) -> None:
        load_heads(self.head_state(), state, advice="They are of another objective.")


def build(
    encoder: SpectrogramEncoder, data: SpectrogramSource, normalisation: Normalisation, settings: LevelSettings
) -> LevelObjective:
    del data
    return LevelObjective(encoder, normalisation=normalisation, weight=settings.level_weight)


OBJECTIVE = ObjectiveSpec(settings=LevelSettings, build=build)
