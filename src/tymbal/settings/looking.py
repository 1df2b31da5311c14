"""Settings of what is there to be looked at: reports, and what the machine can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tymbal.settings.checks import check, parse_patch

__all__ = ["DoctorSettings", "ReportSettings"]


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """A page that shows what came out.

    Attributes:
        data: The store of a run, where it is not any more where the run found it.
        map: How the clips of a map are laid out: `tsne`, `pca`, or `umap`, which needs the extra `umap`.
        map_clips: Clips of a map at most.
        examples: Clips of a store that are shown.
        rebuilt: Clips whose hidden parts are shown as the model rebuilt them; at most as many as were written down in
            pretraining (its `snapshots`).
        mistakes: Mistakes that are shown; of predictions, the surest ones.
        sounds: Sounds of each map, and of all else together, at most; 0 is none.
        sound_seconds: Length of a sound at most.
        batch_size: Clips a batch.
        device: As in training.
        seed: Seed of what is drawn at random.
    """

    data: str | None = None
    map: Literal["tsne", "pca", "umap"] = "tsne"
    map_clips: int = 800
    examples: int = 12
    rebuilt: int = 3
    mistakes: int = 12
    sounds: int = 12
    sound_seconds: float = 3.0
    batch_size: int = 64
    device: str = "auto"
    seed: int = 42

    def __post_init__(self) -> None:
        check(self.map_clips >= 0, "map_clips", self.map_clips, "0 or more")
        check(self.sounds >= 0, "sounds", self.sounds, "0 or more")
        check(self.sound_seconds > 0, "sound_seconds", self.sound_seconds, "a time in seconds above 0")
        check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        for name in ("examples", "rebuilt", "mistakes"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")


@dataclass(frozen=True, kw_only=True)
class DoctorSettings:
    """What this machine can do.

    Attributes:
        size: Named size of the encoder that is tried, as in pretraining.
        patch: Mel bins x frames of its patches, as in pretraining.
        encode: What the encoder sees, as in pretraining.
        batch_size: Clips a step; fewer are tried where a step takes long.
        seconds: About how long is tried; 0 tries nothing.
        precision: As in training.
        device: As in training.
        json: Print JSON.
    """

    size: Literal["tiny", "small", "base"] = "small"
    patch: str = "16x16"
    encode: Literal["all", "visible"] = "all"
    batch_size: int = 64
    seconds: float = 10.0
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    device: str = "auto"
    json: bool = False

    def __post_init__(self) -> None:
        parse_patch(self.patch)
        check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        check(self.seconds >= 0, "seconds", self.seconds, "a time in seconds, 0 or more")
