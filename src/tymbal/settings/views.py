"""Settings of pairs of augmented views."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from tymbal.settings.checks import check

__all__ = ["ViewSettings"]


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """Pairs of augmented views of each clip, for contrastive learning.

    With views, clips are 3 s at 22,050 Hz by default, one a file, as librosa's log-mel spectrograms, split 80 to 20.

    Attributes:
        views: Versions of each clip, each a pair of views; 0 keeps the clips as they are.
        augmentations: YAML file that says how views are drawn. `None` is configs/audio_augmentation_config.yaml where
            it is there, else the defaults.
        num_waveform_augs: Augmentations of the sound drawn for a view. `None` is as the file says.
        num_spectrogram_augs: Augmentations of the spectrogram drawn for a view. `None` is as the file says.
        view_mode: `spectral` makes all views from one transform of the clip; `exact` changes its samples, slower.
        write: A packed `store` of pairs; `pt`, a file a version, with metadata.json; or packed `waveforms`, of which
            training makes fresh views each epoch.
        part: Only a part of the work: `train`, `val`, or `3/8` for the third of eight parts. The same command without
            it does what is missing, checks and completes.
        preview: Only show some clips beside their views, to see and hear, as a page in the folder OUTPUT-preview.
        force: Go on although the disk seems too small.
    """

    views: int = 0
    augmentations: str | None = None
    num_waveform_augs: int | None = None
    num_spectrogram_augs: int | None = None
    view_mode: Literal["spectral", "exact"] = "spectral"
    write: Literal["store", "pt", "waveforms"] = "store"
    part: str | None = None
    preview: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        check(self.views >= 0, "views", self.views, "0 or more")
        for name in ("num_waveform_augs", "num_spectrogram_augs"):
            value = getattr(self, name)
            check(value is None or value >= 0, name, value, "0 or more")
        if self.part is not None:
            numbers = re.fullmatch(r"(\d+)/(\d+)", self.part)
            good = self.part in ("train", "val") or (numbers and 1 <= int(numbers[1]) <= int(numbers[2]))
            check(bool(good), "part", self.part, "train, val, or K/N with K from 1 to N")
        if not self.views:
            for name in ("augmentations", "num_waveform_augs", "num_spectrogram_augs", "part"):
                check(getattr(self, name) is None, name, getattr(self, name), "left out where there are no views")
            check(not self.preview, "preview", self.preview, "left out where there are no views")
            check(self.write == "store", "write", self.write, "store where there are no views")
