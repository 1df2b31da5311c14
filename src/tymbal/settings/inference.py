"""Settings of what is done with models: probing, predicting, converting."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from tymbal.plugins import TABLE_FORMATS
from tymbal.settings.fields import check, check_seed, parse_patch, setting
from tymbal.settings.sound import PtSettings

__all__ = [
    "ConvertSettings",
    "EmbedSettings",
    "LabelSettings",
    "MergeSettings",
    "PredictSettings",
    "ProbeSettings",
    "PushSettings",
    "SimilarSettings",
]


@dataclass(frozen=True, kw_only=True)
class ProbeSettings(PtSettings):
    """What a frozen encoder knows: linear regression and nearest neighbours on its embeddings.

    Attributes:
        readers: What reads: `ridge` regression of the labels, in closed form (of what is pretrained it reads several
            points more than the next), `logistic` regression, `knn`, and `attentive`, which looks at every token of a
            clip with learned queries instead of at their mean. That finds what is short, takes about as long as another
            pass of the encoder, and disk space for all tokens while it reads them.
        pooling: What an embedding is: `mean` of the patch tokens, `rows` the mean over time with frequency rows kept
            apart, `cls` the class tokens; `grid2`, `grid4` and `grid8` the rows over so many equal parts of the time,
            in order, and `grid` over 1, 2, 4 or 8 of them: as many as the pretraining compared (1 where it compared
            none), or as read more than a standard error better inside the training clips. Several are read from one
            pass.
        layer: Blocks to go through; 0 is the embedded patches. `None` (or `last`) is all of them and the final norm;
            `all` reads every layer, from the embedded patches on, beside that; `both` the middle layer, that, and the
            two side by side; `mix` that, and a weighted sum of all layers, each standardised, whose weights are learned
            inside the training clips.
        skip_padding: Pool over the patches that hold sound, not over those behind the end of a short clip.
        asked: The split whose clips are asked about: `validation`, or `test`, as benchmarks have one. Strengths and
            descriptions are chosen inside the clips to learn from either way.
        multilabel: Whether a clip may have several labels, or none, which then tells that nothing of them is heard.
            `None` tells by whether any clip has several.
        neighbours: Neighbours that vote.
        shots: Also learn from so few clips of each class: `1 5 10 50`.
        draws: How often such few clips are drawn anew.
        folds: Split the labelled clips anew into so many folds, whole groups together, instead of the store's split.
        cache: Keep embeddings in the user's cache folder ($TYMBAL_CACHE) for the next probe of the same.
        random: Also probe the same encoder with random weights.
        teacher: Also probe a teacher, as `pretrain --objective distill` takes one: its vectors of the parts of a clip
            side by side, or their mean, as reads better inside the training clips. Its size and speed stand beside.
        batch_size: Clips a batch.
        precision: As in training.
        device: As in training.
        seed: Seed of the random encoder and of the inner split that chooses the regularisation.
    """

    group = "probe"

    readers: tuple[Literal["logistic", "ridge", "knn", "attentive"], ...] = setting(
        ("ridge", "logistic", "knn"), first=True
    )
    pooling: tuple[Literal["mean", "rows", "grid", "grid2", "grid4", "grid8", "cls"], ...] = setting(
        ("rows", "grid"), first=True
    )
    layer: str | None = setting(None, aliases=("layers",), first=True, example="6")
    skip_padding: bool = True
    asked: Literal["validation", "test"] = "validation"
    multilabel: bool | None = setting(None, example="true")
    neighbours: int = setting(10, first=True, needs=("readers=knn",))
    shots: tuple[int, ...] = setting((), first=True, example="1 5 10 50")
    draws: int = setting(5, first=True, needs=("shots",))
    folds: int | None = setting(None, first=True, example="5")
    cache: bool = setting(True, first=True)
    random: bool = setting(True, first=True)
    teacher: str | None = setting(None, path=True, first=True, example="configs/speech_embedding.yaml")
    batch_size: int = setting(64, first=True)
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    device: str = setting("auto", first=True)
    seed: int = setting(42, first=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(len(self.readers) >= 1, "readers", self.readers, "one reader or more")
        check(len(self.pooling) >= 1, "pooling", self.pooling, "one way of pooling or more")
        good = self.layer in (None, "last", "all", "both", "mix") or self.layer.isdecimal()
        check(good, "layer", self.layer, "last, both, mix, all, or a number of 0 or more")
        check(min(self.shots, default=1) >= 1, "shots", self.shots, "numbers of 1 or more")
        check(self.draws >= 1, "draws", self.draws, "1 or more")
        check(self.folds is None or self.folds >= 2, "folds", self.folds, "2 or more")
        check(self.neighbours >= 1, "neighbours", self.neighbours, "1 or more")
        check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        check_seed(self.seed)

    def layers(self, depth: int) -> list[int | None]:
        """The layers that are read of an encoder of so many blocks; None is the last one with the final norm."""
        if self.layer == "all":
            return [*range(depth + 1), None]
        if self.layer == "both":
            return [depth // 2, None]
        if self.layer == "mix":  # the last block without its norm would be there twice
            return [*range(depth), None]
        return [None if self.layer in (None, "last") else int(self.layer)]


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """Scores for recordings of any length.

    Attributes:
        window: Length of a window in seconds. `None` is the length that the model was trained on.
        hop: Seconds from one window to the next. `None` is the window: no overlap, so that what lies across two windows
            may be missed; a quarter of a window finds more, in four times the time.
        threshold: Lower scores are left out. `None` is 0 in the table of windows; for detections what a review has
            written into the model, else 0.5.
        label_thresholds: Thresholds of single labels, which stand above `threshold`: `robin=0.3 wren=0.8`.
        top: Keep this many best labels a window. `None` keeps all.
        merge: Join windows in a row with the same label into one detection.
        gap: Seconds between two windows that are joined nevertheless.
        review: Draw so many windows of each label and each tenth of the score from 0.1 on, into NAME.review.csv: what
            to check first (`tymbal label --review`), to know the precision and set thresholds. 0 draws none.
        format: `csv`, `parquet`, `json` (an array) or `jsonl`: a table of windows and beside it one of detections;
            `raven` or `audacity`: a file of detections for each recording, in a folder; `kaleidoscope`: detections in
            one `id.csv`. `None` tells by the ending of the output. Cells are what files and labels are called: a
            spreadsheet takes those that begin with =, +, - or @ for formulas, unless their columns are imported as
            text.
        reject: Windows that are so many dB quieter than the quietest clips that a classifier of one label a clip has
            learned from have no label, and no row: such a classifier has to name something everywhere. `None` keeps
            them all. Models of earlier versions do not know how loud their clips were, and keep all.
        batch_size: Windows a batch.
        precision: As in training, or `int8`: linear layers multiply integers of 8 bits, for a CPU without bf16: 1.6
            (small encoders) to 3 times (large ones) as fast. Scores differ a little: by how much says the model's card,
            and the first windows are scored in float32, too.
        device: As in training.
    """

    group = "windows"

    window: float | None = setting(None, example="5")
    hop: float | None = setting(None, example="2.5")
    threshold: float | None = setting(None, example="0.4")
    label_thresholds: tuple[str, ...] = setting((), example="robin=0.3 wren=0.8")
    top: int | None = setting(None, example="3")
    merge: bool = setting(True, resumable=True)
    gap: float = setting(0.0, resumable=True, needs=("merge",))
    review: int = setting(0, resumable=True)
    reject: float | None = 10.0
    format: str | None = setting(
        None, resumable=True, choices=("csv", "parquet", "json", "jsonl", "raven", "audacity", "kaleidoscope")
    )
    batch_size: int = setting(32, resumable=True)
    precision: Literal["auto", "float32", "bf16", "fp16", "int8"] = setting("auto", resumable=True)
    device: str = setting("auto", resumable=True)

    def __post_init__(self) -> None:
        _check_format(self.format)
        check(self.window is None or self.window > 0, "window", self.window, "a time in seconds above 0")
        check(self.hop is None or self.hop > 0, "hop", self.hop, "a time in seconds above 0")
        every = self.threshold
        check(every is None or 0 <= every <= 1, "threshold", every, "a score from 0 to 1")
        for item in self.label_thresholds:
            check(_is_threshold(item), "label_thresholds", item, "a label and a score from 0 to 1, as in robin=0.3")
        check(self.top is None or self.top >= 1, "top", self.top, "1 or more")
        check(self.gap >= 0, "gap", self.gap, "a time in seconds, 0 or more")
        check(self.review >= 0, "review", self.review, "0 or more")
        check(self.reject is None or self.reject >= 0, "reject", self.reject, "0 dB or more")
        check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")


@dataclass(frozen=True, kw_only=True)
class EmbedSettings:
    """Embeddings of sound or of a store.

    Attributes:
        per: What has an embedding: each `window` of a recording (each clip of a store), each `second`, or each `file`,
            as the mean of its windows.
        pooling: What an embedding is: `mean` of the patch tokens, `rows` the mean over time with frequency rows kept
            apart, `cls` the class tokens; `grid2`, `grid4` and `grid8` the rows over so many equal parts of the time,
            in order, and `grid` over as many as the model knows: those of its classifier or of its pretraining, else 1.
            Cells are ordered by row from low to high, then by time, and each is as wide as the encoder. `auto` is
            recorded with the model: `grid` where its pretraining compared parts of the time (`lejepa`,
            `contrastive`), else `mean`; with `--per second` `rows` and `mean`.
        layer: Blocks to go through; 0 is the embedded patches. `None` is all of them and the final norm.
        skip_padding: Pool over the patches that hold sound, not over those behind the end of a short clip.
        window: Length of a window in seconds. `None` is the length that the model was trained on, by second the whole
            seconds of it. A store has its own.
        hop: Seconds from one window to the next. `None` is the window: no overlap.
        format: `parquet`, `csv`, `npy` with the rows in a CSV beside it, or `embedding-atlas`: Parquet with a place on
            a plane and the sound of each row, which embedding-atlas shows. `None` tells by the ending of the output.
        batch_size: Windows a batch.
        precision: As in training, or `int8`: linear layers multiply integers of 8 bits, for a CPU without bf16: 1.6
            (small encoders) to 3 times (large ones) as fast, and embeddings differ a little.
        device: As in training.
    """

    group = "windows"

    per: Literal["window", "second", "file"] = "window"
    pooling: Literal["auto", "mean", "rows", "grid", "grid2", "grid4", "grid8", "cls"] = "auto"
    layer: int | None = setting(None, example="6")
    skip_padding: bool = setting(True, needs=("pooling!=cls",))
    window: float | None = setting(None, example="5")
    hop: float | None = setting(None, example="2.5")
    format: str | None = setting(None, resumable=True, choices=("parquet", "csv", "npy", "embedding-atlas"))
    batch_size: int = setting(32, resumable=True)
    precision: Literal["auto", "float32", "bf16", "fp16", "int8"] = setting("auto", resumable=True)
    device: str = setting("auto", resumable=True)

    def __post_init__(self) -> None:
        check(self.layer is None or self.layer >= 0, "layer", self.layer, "0 or more")
        _check_format(self.format)
        check(self.window is None or self.window > 0, "window", self.window, "a time in seconds above 0")
        check(self.hop is None or self.hop > 0, "hop", self.hop, "a time in seconds above 0")
        check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        if self.per == "second":
            whole = self.window is None or self.window.is_integer()
            check(whole, "window", self.window, "a whole number of seconds, for an embedding each second")
            timed = self.pooling in ("auto", "mean", "rows")
            check(timed, "pooling", self.pooling, "mean or rows, for an embedding each second")


@dataclass(frozen=True, kw_only=True)
class SimilarSettings:
    """What sounds like a clip, among sounds with embeddings.

    Attributes:
        top: Number of neighbours to return.
        approximate: Search an index that is made once and kept beside the embeddings, instead of comparing with all of
            them; needs the extra `search`. For millions.
        batch_size: Windows a batch.
        precision: As in training.
        device: As in training.
    """

    group = "search"

    top: int = 10
    approximate: bool = False
    batch_size: int = 32
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        check(self.top >= 1, "top", self.top, "1 or more")
        check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")


@dataclass(frozen=True, kw_only=True)
class LabelSettings:
    """Labels of recordings, window by window, with a model that says which come next.

    Attributes:
        labels: Names of the labels, in the order of their keys; more come with answers.
        several: A window may have several labels, or none. Off, every window has one.
        begin: Annotations to begin with: Raven's, Audacity's or CSV files, or folders of them.
        review: A table of `tymbal predict --review` of the model: its windows are to be checked.
        least_precision: Write the thresholds into the model from which on each label's windows have this precision, as
            the answers to the review say. `None` writes none.
        who: Who answers, as the table says. `None` is the name of the account.
        merge: Join tables of labels into one instead, and say how far they agree.
        format: Also write the labels as annotations when the labelling ends, a file a recording: `raven` or `audacity`.
        clips: Clips that the page shows at once.
        host: Address at which the page is served. The default one is reached from this machine alone. There is no
            password: whoever reaches another address can hear the recordings and label them.
        port: Its port. `None` is the first free one from 7860 on.
        browser: Open the page in a browser.
        upload_gb: Largest sound that can be dropped on the page, in GB.
        window: Length of a window in seconds. `None` is the length that the model was trained on.
        hop: Seconds from one window to the next. `None` is the window: no overlap.
        pooling: What an embedding is, as in `tymbal embed`.
        most: Windows that are looked through at once; of more, so many are drawn at random, and those that are most
            like an example come to them.
        batch_size: Windows a batch.
        precision: As in training.
        device: As in training.
        seed: Seed of all draws.
    """

    group = "labelling"

    labels: tuple[str, ...] = setting((), first=True, example="robin wren")
    several: bool = setting(True, first=True)
    begin: tuple[str, ...] = setting((), first=True, example="raven_tables")
    review: str | None = setting(None, path=True, first=True, example="night.review.csv")
    least_precision: float | None = setting(None, first=True, example="0.9")
    who: str | None = setting(None, first=True, example="anna")
    merge: bool = setting(False, first=True)
    format: Literal["raven", "audacity"] | None = setting(None, first=True)
    clips: int = setting(12, group="page")
    host: str = setting("127.0.0.1", group="page")
    port: int | None = setting(None, group="page", example="7861")
    browser: bool = setting(True, group="page")
    upload_gb: float = setting(1.0, group="page")
    window: float | None = setting(None, group="windows", example="5")
    hop: float | None = setting(None, group="windows", example="2.5")
    pooling: Literal["auto", "mean", "rows", "grid", "grid2", "grid4", "grid8", "cls"] = setting(
        "auto", group="windows"
    )
    most: int = setting(100_000, group="windows")
    batch_size: int = setting(32, group="windows")
    precision: Literal["auto", "float32", "bf16", "fp16"] = setting("auto", group="windows")
    device: str = setting("auto", group="windows")
    seed: int = 42

    def __post_init__(self) -> None:
        check(len(set(self.labels)) == len(self.labels), "labels", self.labels, "names that differ")
        for label in self.labels:
            check(label.strip() not in ("", "?"), "labels", label, "a name with a letter")
        check(1 <= self.clips <= 100, "clips", self.clips, "1 to 100")
        check(bool(self.host), "host", self.host, "an address, as 127.0.0.1")
        check(self.port is None or 1 <= self.port <= 65535, "port", self.port, "a port, 1 to 65535")
        check(self.upload_gb > 0, "upload_gb", self.upload_gb, "a size in GB above 0")
        check(self.window is None or self.window > 0, "window", self.window, "a time in seconds above 0")
        check(self.hop is None or self.hop > 0, "hop", self.hop, "a time in seconds above 0")
        least = self.least_precision
        check(least is None or 0 < least < 1, "least_precision", least, "a share between 0 and 1")
        check(least is None or self.review is not None, "least_precision", least, "None without a review")
        check(self.most >= 100, "most", self.most, "100 or more")
        check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class ConvertSettings(PtSettings):
    """Stores and models from one format to another.

    Attributes:
        to: What to write. Of spectrograms: `store`, packed shards, or `pt`, a file each with SSAST's lists. Of a model:
            a `tymbal` folder; `hf`, one that stock transformers loads; `ssast`, one file; `pth`, one file as scripts
            around transformers' AST save it (`encoder.* / projector.* / decoder.*`) where the model was pretrained by
            reconstruction, else SSAST's; `onnx`, one file that takes waveforms (extra `onnx`). `None` is the other kind
            of spectrograms, a `tymbal` folder, or by the ending of the output.
        stride: Mel bins x frames from one patch to the next in a file that may not tell: a fine-tuned one of SSAST, or
            one of a script.
        heads: Attention heads in a file of a script, which does not tell. `None` is the width over 64.
        pooling: Pooling of a fine-tuned SSAST file, which does not tell: `mean` (ft_avgtok) or `cls` (ft_cls); and of
            an encoder's embedding in ONNX. `None` is mean.
        frames: Frames of a spectrogram, as in training. Of a model: the length for which its position embeddings are
            written, as 1024, which scripts around AST expect. `None` is the model's own.
        transformers: Whose names an encoder has with `pth`: those of a module in the memory of transformers `4`, which
            are those on disk, or `5`.
        multilabel: The classes of a fine-tuned SSAST file do not exclude each other (it was trained with BCE).
        validation: As in training; by default none is drawn.
        shard_mib: Size of a shard file in MiB.
    """

    group = "formats"

    to: Literal["store", "pt", "tymbal", "hf", "ssast", "pth", "onnx"] | None = setting(None, first=True)
    stride: str | None = setting(None, first=True, example="10x10")
    heads: int | None = setting(None, first=True, example="3")
    pooling: Literal["mean", "cls"] | None = setting(None, first=True)
    transformers: Literal["4", "5"] = "4"
    multilabel: bool = setting(False, first=True)
    validation: float = setting(0.0, first=True)
    shard_mib: int = setting(64, first=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stride is not None:
            parse_patch(self.stride, setting="stride")
        check(self.heads is None or self.heads >= 1, "heads", self.heads, "1 or more")
        check(self.shard_mib >= 1, "shard_mib", self.shard_mib, "1 or more")


@dataclass(frozen=True, kw_only=True)
class PushSettings:
    """A model on the Hugging Face Hub.

    Attributes:
        license: Licence under which others may use the model, as an identifier of the Hub: `cc-by-4.0`, `cc-by-nc-4.0`,
            `apache-2.0`, `mit`, `other`. It has to be given: the licence of the sound that it learned from may decide.
        private: Show it only to its owner, and to those whom they let in.
        probes: Tables that `tymbal probe -o TABLE.json` wrote, for the card: the model beside random weights and the
            best plain line. Those that lie in the run folder are taken in any case.
        message: Message of the commit. `None` is one that names the version of Tymbal.
    """

    group = "sharing"

    license: str | None = setting(None, first=True, example="cc-by-4.0")
    private: bool = setting(True, first=True)
    probes: tuple[str, ...] = setting((), path=True, first=True, example="probe.json")
    message: str | None = setting(None, first=True, example="2026-06")

    def __post_init__(self) -> None:
        known = self.license is None or re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.license)
        check(bool(known), "license", self.license, "an identifier of the Hub, as cc-by-4.0")


@dataclass(frozen=True, kw_only=True)
class MergeSettings(PtSettings):
    """One classifier of two, or of one and clips of further labels.

    Attributes:
        shared: The scores of a label that both classifiers have, where a clip may have several labels: the `mean` of
            both before the sigmoid, or those of the `first` or of the `second`.
        label: Label of clips that have none. `None` is the name of their folder.
        recall: Share of the new clips, each held out once, that must still be recognised by a new label: its threshold
            rises as far as that allows, so that it takes as little as possible from the labels that were there.
        pseudo: Embeddings that stand for the sound that the classifier learned from and that is not there, for each of
            its labels; drawn from the mean and deviation that its head keeps.
        strength: How far the weights of new labels are held back, an L2 penalty.
        batch_size: Clips a batch.
        device: As in training.
        seed: Seed of what is drawn.
    """

    group = "merging"

    shared: Literal["mean", "first", "second"] = setting("mean", first=True, only_for=("model",))
    label: str | None = setting(None, first=True, example="cicada", only_for=("clips",))
    recall: float = setting(0.9, first=True, only_for=("clips",))
    pseudo: int = setting(200, first=True, only_for=("clips",))
    strength: float = setting(0.1, first=True, only_for=("clips",))
    batch_size: int = setting(64, first=True)
    device: str = setting("auto", first=True)
    seed: int = setting(42, first=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 < self.recall <= 1, "recall", self.recall, "a fraction above 0, at most 1")
        check(self.pseudo >= 1, "pseudo", self.pseudo, "1 or more")
        check(self.strength > 0, "strength", self.strength, "a number above 0")
        check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        check_seed(self.seed)


def _check_format(name: str | None) -> None:
    if name is not None:
        TABLE_FORMATS.check(name)


def _is_threshold(item: str) -> bool:
    label, _, value = item.rpartition("=")
    try:
        return bool(label) and 0 <= float(value) <= 1
    except ValueError:
        return False
