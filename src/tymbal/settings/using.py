"""Settings of what is done with models: probing, predicting, converting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tymbal.settings.checks import check, parse_patch
from tymbal.settings.data import PtSettings

__all__ = ["ConvertSettings", "PredictSettings", "ProbeSettings"]


@dataclass(frozen=True, kw_only=True)
class ProbeSettings(PtSettings):
    """What a frozen encoder knows: logistic regression and nearest neighbours on its embeddings.

    Attributes:
        pooling: What an embedding is: `mean` of the patch tokens, `rows` the mean over time with frequency rows kept
            apart, `cls` the class tokens. Several are read from one pass.
        layer: Blocks to go through; 0 is the embedded patches. `None` is all of them and the final norm.
        layers: `all` reads every layer, from the embedded patches on, beside the `last`.
        skip_padding: Pool over the patches that hold sound, not over those behind the end of a short clip.
        neighbours: Neighbours that vote.
        shots: Also learn from so few clips of each class: `1 5 10 50`.
        draws: How often such few clips are drawn anew.
        folds: Split the labelled clips anew into so many folds, whole groups together, instead of the store's split.
        cache: Keep embeddings in the user's cache folder ($TYMBAL_CACHE) for the next probe of the same.
        random: Also probe the same encoder with random weights.
        batch_size: Clips a batch.
        precision: As in training.
        device: As in training.
        seed: Seed of the random encoder and of the inner split that chooses the regularisation.
    """

    pooling: tuple[Literal["mean", "rows", "cls"], ...] = ("rows",)
    layer: int | None = None
    layers: Literal["last", "all"] = "last"
    skip_padding: bool = True
    neighbours: int = 10
    shots: tuple[int, ...] = ()
    draws: int = 5
    folds: int | None = None
    cache: bool = True
    random: bool = True
    batch_size: int = 64
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    device: str = "auto"
    seed: int = 42

    def __post_init__(self) -> None:
        super().__post_init__()
        check(len(self.pooling) >= 1, "pooling", self.pooling, "one way of pooling or more")
        check(self.layer is None or self.layer >= 0, "layer", self.layer, "0 or more")
        both = self.layer is not None and self.layers == "all"
        check(not both, "layer", self.layer, "None, where all layers are read")
        check(min(self.shots, default=1) >= 1, "shots", self.shots, "numbers of 1 or more")
        check(self.draws >= 1, "draws", self.draws, "1 or more")
        check(self.folds is None or self.folds >= 2, "folds", self.folds, "2 or more")
        check(self.neighbours >= 1, "neighbours", self.neighbours, "1 or more")
        check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """Scores for recordings of any length.

    Attributes:
        window: Length of a window in seconds. `None` is the length that the model was trained on.
        hop: Seconds from one window to the next. `None` is the window: no overlap.
        threshold: Rows with a lower score are left out.
        top: Keep this many best labels a window. `None` keeps all.
        batch_size: Windows a batch.
        precision: As in training.
        device: As in training.
    """

    window: float | None = None
    hop: float | None = None
    threshold: float = 0.0
    top: int | None = None
    batch_size: int = 32
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        check(self.window is None or self.window > 0, "window", self.window, "a time in seconds above 0")
        check(self.hop is None or self.hop > 0, "hop", self.hop, "a time in seconds above 0")
        check(0 <= self.threshold <= 1, "threshold", self.threshold, "a score from 0 to 1")
        check(self.top is None or self.top >= 1, "top", self.top, "1 or more")
        check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")


@dataclass(frozen=True, kw_only=True)
class ConvertSettings(PtSettings):
    """Stores and models from one format to another.

    Attributes:
        to: What to write. Of spectrograms: `store`, packed shards, or `pt`, a file each with SSAST's lists. Of a model:
            a `tymbal` folder; `hf`, one that stock transformers loads; `ssast` (or `pth`), one file. `None` is the
            other kind of spectrograms, a `tymbal` folder, or by the ending of the output.
        stride: Mel bins x frames from one patch to the next in a fine-tuned SSAST file, which may not tell.
        pooling: Pooling of a fine-tuned SSAST file, which does not tell: `mean` (ft_avgtok) or `cls` (ft_cls). `None`
            is mean.
        multilabel: The classes of a fine-tuned SSAST file do not exclude each other (it was trained with BCE).
        validation_fraction: As in training; by default none is drawn.
        shard_mib: Size of a shard file in MiB.
    """

    to: Literal["store", "pt", "tymbal", "hf", "ssast", "pth"] | None = None
    stride: str | None = None
    pooling: Literal["mean", "cls"] | None = None
    multilabel: bool = False
    validation_fraction: float = 0.0
    shard_mib: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride is not None:
            parse_patch(self.stride, setting="stride")
        check(self.shard_mib >= 1, "shard_mib", self.shard_mib, "1 or more")
