"""Settings of reports, of the page to explore, and of the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tymbal.settings.fields import check, check_seed, parse_patch, setting

__all__ = ["DoctorSettings", "ExploreSettings", "ReportSettings"]


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """A page that shows what came out.

    Attributes:
        data: The store of a run, if it has moved since.
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

    group = "page"

    data: str | None = setting(None, example="moved/store", only_for=("pretrain", "finetune"))
    map: Literal["tsne", "pca", "umap"] = setting("tsne", only_for=("store", "pretrain", "finetune"))
    map_clips: int = setting(800, only_for=("store", "pretrain", "finetune"))
    examples: int = setting(12, only_for=("store",))
    rebuilt: int = setting(3, only_for=("pretrain",))
    mistakes: int = setting(12, only_for=("finetune", "predictions"))
    sounds: int = setting(12, only_for=("store", "pretrain", "finetune", "predictions"))
    sound_seconds: float = setting(3.0, only_for=("store", "pretrain", "finetune", "predictions"))
    batch_size: int = setting(64, only_for=("pretrain", "finetune"))
    device: str = "auto"
    seed: int = setting(42, only_for=("store", "pretrain", "finetune"))

    def __post_init__(self) -> None:
        check(self.map_clips >= 0, "map_clips", self.map_clips, "0 or more")
        check(self.sounds >= 0, "sounds", self.sounds, "0 or more")
        check(self.sound_seconds > 0, "sound_seconds", self.sound_seconds, "a time in seconds above 0")
        check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        check_seed(self.seed)
        for name in ("examples", "rebuilt", "mistakes"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "1 or more")


@dataclass(frozen=True, kw_only=True)
class ExploreSettings:
    """A page on which sounds are dropped, looked at and compared.

    Attributes:
        host: Address at which the page is served. The default one is reached from this machine alone. There is no
            password: whoever reaches another address can use the page and hear the sounds of the store.
        port: Its port. `None` is the first free one from 7860 on.
        browser: Open the page in a browser.
        top: Neighbours in the store that are shown.
        window: Length of a window in seconds. `None` is that of the embeddings that are given, else the length that the
            model was trained on.
        hop: Seconds from one window of a recording to the next. `None` is half a window.
        minutes: How much of a recording is looked at, from its beginning.
        upload_gb: Largest sound that the page takes, in GB.
        uploads_gb: What it keeps of all sounds together, in GB, while they are looked at.
        pooling: What an embedding is, as in `tymbal embed`. Embeddings that are given have their own.
        approximate: Search for neighbours as `tymbal similar --approximate` does. For millions.
        batch_size: Windows a batch.
        precision: As in training.
        device: As in training.
    """

    group = "page"

    host: str = "127.0.0.1"
    port: int | None = setting(None, example="7861")
    browser: bool = True
    top: int = 8
    window: float | None = setting(None, example="5")
    hop: float | None = setting(None, example="2.5")
    minutes: float = 60.0
    upload_gb: float = 1.0
    uploads_gb: float = 4.0
    pooling: Literal["auto", "mean", "rows", "grid", "grid2", "grid4", "grid8", "cls"] = "auto"
    approximate: bool = False
    batch_size: int = 8
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        check(bool(self.host), "host", self.host, "an address, as 127.0.0.1")
        check(self.port is None or 1 <= self.port <= 65535, "port", self.port, "a port, 1 to 65535")
        check(self.top >= 1, "top", self.top, "1 or more")
        check(self.window is None or self.window > 0, "window", self.window, "a time in seconds above 0")
        check(self.hop is None or self.hop > 0, "hop", self.hop, "a time in seconds above 0")
        check(self.minutes > 0, "minutes", self.minutes, "a time in minutes above 0")
        check(self.upload_gb > 0, "upload_gb", self.upload_gb, "a size in GB above 0")
        check(self.uploads_gb >= self.upload_gb, "uploads_gb", self.uploads_gb, f"{self.upload_gb:g} GB or more")
        check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")


@dataclass(frozen=True, kw_only=True)
class DoctorSettings:
    """What this machine can do.

    Attributes:
        size: Named size of the encoder that is tried, as in pretraining.
        patch: Mel bins x frames of its patches, as in pretraining.
        encode: What the encoder sees, as in pretraining.
        batch_size: Clips a step; fewer are tried where a step takes long.
        seconds: About how long is tried; 0 tries nothing.
        teacher: Also try a student of this teacher, as `pretrain --objective distill` takes one, on the store.
        precision: As in training.
        device: As in training.
        json: Print JSON.
    """

    group = "trial"

    size: Literal["mini", "tiny", "small", "base"] = setting("small", needs=("seconds",))
    patch: str = setting("16x16", needs=("seconds",))
    encode: Literal["all", "visible"] = setting("all", needs=("seconds",))
    batch_size: int = setting(64, needs=("seconds",))
    seconds: float = 10.0
    teacher: str | None = setting(None, path=True, example="configs/speech_embedding.yaml")
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    device: str = "auto"
    json: bool = False

    def __post_init__(self) -> None:
        parse_patch(self.patch)
        check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        check(self.seconds >= 0, "seconds", self.seconds, "a time in seconds, 0 or more")
