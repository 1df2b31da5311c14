"""The settings of every stage: one frozen dataclass a stage, and nothing else defines a setting.

Python keyword arguments, command-line flags, YAML files, `run.yaml` and the help text are all made from these classes
(`tymbal.config` does that); a default or a description stands here once. This module imports nothing heavy, so that
`tymbal --help` answers at once.

Units are seconds, Hz, and fractions between 0 and 1. `None` means "chosen for you", and the description says how.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from tymbal.errors import SettingsError

__all__ = [
    "SIZES",
    "ConvertSettings",
    "FeatureSettings",
    "FinetuneSettings",
    "PredictSettings",
    "PrepareSettings",
    "PretrainSettings",
    "ProbeSettings",
    "PtSettings",
    "ScanSettings",
    "TrainingSettings",
    "parse_patch",
]

SIZES: dict[str, tuple[int, int, int]] = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}
"""Width, depth and attention heads of the named encoders (those of DeiT, AST and SSAST)."""


def parse_patch(text: str, *, setting: str = "patch") -> tuple[int, int]:
    """Reads `16x16` or `128x2`: mel bins x frames."""
    match = re.fullmatch(r"\s*(\d+)\s*x\s*(\d+)\s*", text)
    if match is None or "0" in (match[1], match[2]):
        raise SettingsError(
            f"{setting} is {text!r}, which is not mel bins x frames", advice=f"Example: {setting} 16x16."
        )
    return int(match[1]), int(match[2])


def _check(condition: bool, setting: str, value: object, wanted: str) -> None:
    if not condition:
        raise SettingsError(f"{setting} is {value!r}, which is not {wanted}", advice=f"Set {setting} to {wanted}.")


@dataclass(frozen=True, kw_only=True)
class ScanSettings:
    r"""Finding sound files and what they are.

    Attributes:
        labels: Where labels come from. `auto` takes the manifest's column, else class folders (all one deep, at least
            two), else none. `folder` takes the outermost folder. A folder `A,B` stands for two labels.
        label_pattern: Regular expression on the path relative to the folder; its first group is the label.
        label_csv: SSAST's `index,mid,display_name` table, for JSON lists whose labels are mids.
        group_pattern: Regular expression on the path; its first group names what must stay on one side of a split
            (a recording, a site, a speaker).
        split: How clips are split into train and validation. `auto` keeps a validation split that the manifest or
            train/validation folders give; else it splits whole groups where there are groups and whole files where
            there are none, parts and exact copies of a file staying together. `groups` and `clips` split anew, `clips`
            singly. Clips that are given as test stay test.
        validation_pattern: Regular expression on the path; what it finds is validation, the rest train.
        validation: Fraction of clips (or groups) for validation.
        stratify: Keep the proportions of the labels on both sides.
        seed: Seed of the split.
        silence_db: A file whose peak is below this level, in dB of full scale, counts as silent.
        min_seconds: A file shorter than this, in seconds, counts as too short.
        workers: Processes that read files. `None` is one a core.
    """

    labels: Literal["auto", "folder", "column", "none"] = "auto"
    label_pattern: str | None = None
    label_csv: str | None = None
    group_pattern: str | None = None
    split: Literal["auto", "clips", "groups", "keep", "none"] = "auto"
    validation_pattern: str | None = None
    validation: float = 0.1
    stratify: bool = False
    seed: int = 42
    silence_db: float = -100.0
    min_seconds: float = 0.025
    workers: int | None = None

    def __post_init__(self) -> None:
        _check(0 <= self.validation < 1, "validation", self.validation, "a fraction from 0 to below 1")
        _check(self.workers is None or self.workers >= 1, "workers", self.workers, "1 or more")
        for name in ("label_pattern", "group_pattern", "validation_pattern"):
            pattern = getattr(self, name)
            if pattern is None:
                continue
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise SettingsError(f"{name} {pattern!r} is not a regular expression: {error}") from None
            if name != "validation_pattern" and groups < 1:
                raise SettingsError(
                    f"{name} {pattern!r} has no group",
                    advice="Put round brackets around the part of the path that is wanted, as in 'site_([a-z]+)'.",
                )


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """How a waveform becomes a spectrogram (Kaldi's filter bank, as AST and SSAST compute it).

    Attributes:
        sample_rate: Rate in Hz to which every file is resampled.
        mel_bins: Number of mel bins.
        frame_length: Length of a frame in seconds.
        frame_shift: Time between two frames in seconds.
        low_freq: Lower edge of the lowest mel bin in Hz.
        high_freq: Upper edge of the highest mel bin in Hz; 0 is half the sample rate.
    """

    sample_rate: int = 16_000
    mel_bins: int = 128
    frame_length: float = 0.025
    frame_shift: float = 0.010
    low_freq: float = 20.0
    high_freq: float = 0.0

    def __post_init__(self) -> None:
        _check(self.sample_rate >= 1000, "sample_rate", self.sample_rate, "1000 Hz or more")
        _check(self.mel_bins >= 4, "mel_bins", self.mel_bins, "4 or more")
        _check(self.frame_shift > 0, "frame_shift", self.frame_shift, "a time in seconds above 0")
        _check(self.frame_length > 0, "frame_length", self.frame_length, "a time in seconds above 0")
        high = self.high_freq or self.sample_rate / 2
        _check(0 <= self.low_freq < high, "low_freq", self.low_freq, f"at least 0 and below {high:g} Hz")
        _check(high <= self.sample_rate / 2, "high_freq", self.high_freq, f"at most {self.sample_rate / 2:g} Hz")

    @property
    def window_samples(self) -> int:
        """Samples in a frame (Kaldi truncates)."""
        return int(self.sample_rate * self.frame_length)

    @property
    def shift_samples(self) -> int:
        """Samples between two frames."""
        return int(self.sample_rate * self.frame_shift)

    def frames_of(self, samples: int) -> int:
        """Whole frames in `samples` samples; 0 where they are shorter than one frame."""
        return 0 if samples < self.window_samples else 1 + (samples - self.window_samples) // self.shift_samples

    def samples_of(self, frames: int) -> int:
        """Fewest samples that give `frames` frames."""
        return self.window_samples + (frames - 1) * self.shift_samples


@dataclass(frozen=True, kw_only=True)
class PrepareSettings(ScanSettings, FeatureSettings):
    """Sound files to a store of spectrograms.

    Attributes:
        window: Length of a clip in seconds. `None` is the length of `frames` where that is set, else the longest
            clip's length, at most 10.24 s.
        hop: Seconds from one window to the next in a longer file. `None` is the window: no overlap.
        longer: What happens to a file longer than the window: cut into windows, or cropped to one.
        frames: Frames of a spectrogram. `None` is the window's frames rounded up to a multiple of 16, so that patches
            fit; real sound fills the difference where there is any, else silence.
        min_fill: A last window is kept if at least this fraction of it is sound (a file's only window always is).
        shard_mib: Size of a shard file in MiB.
    """

    window: float | None = None
    hop: float | None = None
    longer: Literal["windows", "crop-start", "crop-centre"] = "windows"
    frames: int | None = None
    min_fill: float = 0.5
    shard_mib: int = 64

    def __post_init__(self) -> None:
        ScanSettings.__post_init__(self)
        FeatureSettings.__post_init__(self)
        _check(self.window is None or self.window > 0, "window", self.window, "a time in seconds above 0")
        _check(self.hop is None or self.hop > 0, "hop", self.hop, "a time in seconds above 0")
        _check(self.frames is None or self.frames >= 1, "frames", self.frames, "1 or more")
        _check(0 < self.min_fill <= 1, "min_fill", self.min_fill, "a fraction above 0, at most 1")
        _check(self.shard_mib >= 1, "shard_mib", self.shard_mib, "1 or more")

    def features(self) -> FeatureSettings:
        """The part of these settings that says what a spectrogram is."""
        return FeatureSettings(**{name: getattr(self, name) for name in FeatureSettings.__dataclass_fields__})

    def scan(self) -> ScanSettings:
        """The part of these settings that `scan` takes, for a folder that was not scanned before."""
        return ScanSettings(**{name: getattr(self, name) for name in ScanSettings.__dataclass_fields__})


@dataclass(frozen=True, kw_only=True)
class PtSettings:
    """Spectrograms that exist already, each in a `.pt` file, as SSAST's users have them.

    Attributes:
        data_dir: Folder of a list's `.pt` files. `None` looks beside the list: in the folder of its name, in
            `precomputed`, in its own.
        data_val: List of the clips to validate on.
        data_val_dir: Folder of their `.pt` files. `None` looks in `data_dir`, then beside the list.
        validation_fraction: Fraction of the clips for validation, where no list or folder says.
        label_csv: SSAST's `index,mid,display_name` table, for lists whose labels are mids.
        target_length: Frames of a spectrogram: shorter files are padded, longer ones cut. `None` is the longest file's,
            at most 1024, rounded up to a multiple of 16.
        mel_bins: Mel bins of the files. `None` is 128.
        layout: Whether a file holds frames x mel bins or mel bins x frames. `auto` tells by the number of mel bins, and
            leaves square files out.
        dataset_mean: Mean of the log-mel values. `None` computes it.
        dataset_std: Standard deviation of the log-mel values. `None` computes it.
        padding: What short clips are padded with: `silence`, or `zeros` as SSAST does, which is louder than silence.
            `None` is silence, in fine-tuning what the weights to start from know.
    """

    data_dir: str | None = None
    data_val: str | None = None
    data_val_dir: str | None = None
    validation_fraction: float = 0.1
    label_csv: str | None = None
    target_length: int | None = None
    mel_bins: int | None = None
    layout: Literal["auto", "frames-mels", "mels-frames"] = "auto"
    dataset_mean: float | None = None
    dataset_std: float | None = None
    padding: Literal["silence", "zeros"] | None = None

    def __post_init__(self) -> None:
        fraction = self.validation_fraction
        _check(0 <= fraction < 1, "validation_fraction", fraction, "a fraction from 0 to below 1")
        _check(self.target_length is None or self.target_length >= 1, "target_length", self.target_length, "1 or more")
        _check(self.mel_bins is None or self.mel_bins >= 4, "mel_bins", self.mel_bins, "4 or more")
        _check(self.dataset_std is None or self.dataset_std > 0, "dataset_std", self.dataset_std, "a number above 0")


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What pretraining and fine-tuning have in common.

    Attributes:
        epochs: Passes over the training clips.
        max_steps: Optimizer steps, instead of epochs.
        max_minutes: Stop, with a final evaluation and a saved model, when this many minutes have passed. The schedule
            still spans `epochs` or `max_steps`.
        batch_size: Clips a step and device.
        batch_sizes: Clips a step and device by epoch, as in 1, 1, 2, 4, instead of one number; the last one holds on.
        accumulate: Batches whose gradients are added up before a step.
        learning_rate: Highest learning rate.
        optimizer: How weights are changed.
        schedule: What the learning rate does after the warm-up: falls along a `cosine` or a line to 0, stays, falls in
            steps of some epochs, or falls whenever the validation metric stays on a plateau.
        warmup: Warm-up: a fraction of all steps below 1, a number of steps from 1 on.
        step_start: Epochs after which the learning rate falls first, with `step`.
        step_every: Epochs between its falls, with `step`.
        step_factor: What it is multiplied by at each fall, with `step`.
        plateau_patience: Evaluations without progress after which it falls, with `plateau`.
        plateau_factor: What it is multiplied by then, with `plateau`.
        weight_decay: Weight decay, decoupled in AdamW, an L2 penalty in Adam and SGD; not applied to norms, biases,
            tokens and position embeddings.
        adam_beta1: First beta of AdamW and Adam; the momentum of SGD.
        adam_beta2: Second beta of AdamW and Adam.
        clip_norm: Largest norm of the gradient; 0 does not clip.
        precision: Arithmetic of the encoder. `auto` is bf16 where the hardware computes it, else float32.
        device: `auto` takes CUDA, then Apple's MPS, then the CPU, and says why. Where CUDA cannot be used, `cuda` fails
            and `cuda-or-cpu` takes the CPU with a warning, also where the GPU's memory is too small.
        compile: Compile the step with torch.compile.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, more time.
        seed: Seed of weights, order, masks and augmentation.
        eval_every: Epochs between evaluations (fractions allowed).
        eval_steps: Steps between evaluations, instead of epochs.
        save_every: Epochs between checkpoints (fractions allowed). `None` is after every evaluation.
        keep_checkpoints: Checkpoints that are kept, beside the best.
        patience: Evaluations without progress after which training stops early; 0 never stops early.
        min_progress: What counts as progress of the monitored metric.
        average_from: Epoch from which the weights after every evaluation are averaged. The average is evaluated, too,
            and kept as a second model, `average`, in the run folder. `None` averages nothing.
        average_to: Last epoch of the average. `None` is the end.
        log_every: Steps between logged figures.
        report_to: Trackers by name: tensorboard, wandb, mlflow.
        workers: Processes that load batches. 0 gathers whole batches in this process, the fastest for packed stores.
    """

    epochs: float = 100
    max_steps: int | None = None
    max_minutes: float | None = None
    batch_size: int = 64
    batch_sizes: tuple[int, ...] = ()
    accumulate: int = 1
    learning_rate: float = 5e-4
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    schedule: Literal["cosine", "linear", "constant", "step", "plateau"] = "cosine"
    warmup: float = 0.1
    step_start: float = 10
    step_every: float = 5
    step_factor: float = 0.5
    plateau_patience: int = 2
    plateau_factor: float = 0.5
    weight_decay: float = 0.05
    adam_beta1: float = 0.9
    adam_beta2: float = 0.98
    clip_norm: float = 1.0
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    device: str = "auto"
    compile: bool = False
    gradient_checkpointing: bool = False
    seed: int = 42
    eval_every: float = 1
    eval_steps: int | None = None
    save_every: float | None = None
    keep_checkpoints: int = 2
    patience: int = 0
    min_progress: float = 0.0
    average_from: float | None = None
    average_to: float | None = None
    log_every: int = 10
    report_to: tuple[str, ...] = ("tensorboard",)
    workers: int = 0

    def __post_init__(self) -> None:
        _check(self.epochs > 0, "epochs", self.epochs, "a number above 0")
        _check(self.max_steps is None or self.max_steps >= 1, "max_steps", self.max_steps, "1 or more")
        _check(self.max_minutes is None or self.max_minutes > 0, "max_minutes", self.max_minutes, "above 0")
        _check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        _check(min(self.batch_sizes, default=1) >= 1, "batch_sizes", self.batch_sizes, "numbers of 1 or more")
        first, last = self.average_from, self.average_to
        _check(first is None or first >= 0, "average_from", first, "0 or more")
        _check(last is None or last >= (first or 0), "average_to", last, f"{first or 0:g} or more")
        _check(self.accumulate >= 1, "accumulate", self.accumulate, "1 or more")
        _check(self.learning_rate > 0, "learning_rate", self.learning_rate, "a number above 0")
        _check(self.warmup >= 0, "warmup", self.warmup, "0 or more")
        for name in ("step_start", "step_every"):
            _check(getattr(self, name) > 0, name, getattr(self, name), "a number of epochs above 0")
        for name in ("step_factor", "plateau_factor"):
            _check(0 < getattr(self, name) < 1, name, getattr(self, name), "a number between 0 and 1")
        _check(self.plateau_patience >= 0, "plateau_patience", self.plateau_patience, "0 or more")
        for name in ("adam_beta1", "adam_beta2"):
            _check(0 <= getattr(self, name) < 1, name, getattr(self, name), "a number from 0 to below 1")
        _check(self.clip_norm >= 0, "clip_norm", self.clip_norm, "0 or more")
        _check(self.eval_every > 0, "eval_every", self.eval_every, "a number of epochs above 0")
        _check(self.eval_steps is None or self.eval_steps >= 1, "eval_steps", self.eval_steps, "1 or more")
        _check(self.save_every is None or self.save_every > 0, "save_every", self.save_every, "a number above 0")
        _check(self.keep_checkpoints >= 1, "keep_checkpoints", self.keep_checkpoints, "1 or more")
        _check(self.workers >= 0, "workers", self.workers, "0 or more")


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(PtSettings, TrainingSettings):
    """Learning from unlabelled spectrograms.

    Attributes:
        objective: What is learned: `mpc` tells each masked patch from the others of its clip, `mpg` rebuilds it,
            `joint` does both (SSAST, Gong et al. 2022).
        from_: Start from these weights: a run, a model folder, a Hugging Face or SSAST checkpoint.
        size: Named size of the encoder: tiny 192/12/3, small 384/12/6, base 768/12/12 (width/depth/heads).
        width: Width of the encoder, instead of the named size's.
        depth: Blocks of the encoder, instead of the named size's.
        heads: Attention heads, instead of the named size's.
        patch: Mel bins x frames of a patch: 16x16, or 128x2 for frame patches.
        encode: What the encoder sees: `all` patches, the masked ones as a mask token (SSAST), or only the `visible`
            ones, with a light decoder that predicts the others: several times faster, and another model (MAE-AST,
            Baade et al. 2022).
        decoder_depth: Blocks of the decoder, with `visible`.
        decoder_width: Width of the decoder, with `visible`. `None` is that of the encoder.
        mask: How masked patches are drawn: `cluster` in squares, `uniform` singly, `frame` whole columns of time.
            `auto` is cluster for patches and uniform for frame patches.
        cluster_min: Shortest side of a cluster, in patches.
        cluster_max: Longest side of a cluster, in patches.
        mask_ratio: Fraction of the patches that is masked.
        mask_count: Number of masked patches, instead of the fraction.
        mask_padding: Also mask and rebuild patches that hold only padding (the reference does).
        mse_weight: Weight of the mpg loss in `joint`.
        normalize_targets: Rebuild each patch after standardising it (He et al. 2022), instead of the patch itself.
    """

    objective: Literal["joint", "mpc", "mpg"] = "joint"
    from_: str | None = None
    size: Literal["tiny", "small", "base"] = "small"
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    patch: str = "16x16"
    encode: Literal["all", "visible"] = "all"
    decoder_depth: int = 2
    decoder_width: int | None = None
    mask: Literal["auto", "cluster", "uniform", "frame"] = "auto"
    cluster_min: int = 3
    cluster_max: int = 5
    mask_ratio: float = 0.75
    mask_count: int | None = None
    mask_padding: bool = False
    mse_weight: float = 10.0
    normalize_targets: bool = False

    def __post_init__(self) -> None:
        TrainingSettings.__post_init__(self)
        PtSettings.__post_init__(self)
        parse_patch(self.patch)
        _check(0 < self.mask_ratio < 1, "mask_ratio", self.mask_ratio, "a fraction between 0 and 1")
        _check(self.mask_count is None or self.mask_count >= 1, "mask_count", self.mask_count, "1 or more")
        _check(self.decoder_depth >= 1, "decoder_depth", self.decoder_depth, "1 or more")
        _check(self.decoder_width is None or self.decoder_width >= 1, "decoder_width", self.decoder_width, "1 or more")
        _check(self.cluster_min >= 1, "cluster_min", self.cluster_min, "1 or more")
        _check(self.cluster_max >= self.cluster_min, "cluster_max", self.cluster_max, f"{self.cluster_min} or more")
        width, _, heads = self.shape
        _check(width % heads == 0, "width", width, f"a multiple of the {heads} heads")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Width, depth and heads of the encoder."""
        width, depth, heads = SIZES[self.size]
        return self.width or width, self.depth or depth, self.heads or heads


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(PtSettings, TrainingSettings):
    """A classifier from labelled clips.

    Attributes:
        from_: Start from these weights: a run, a model folder, a Hugging Face or SSAST checkpoint. `None` starts
            from random weights of the named size.
        size: Named size of the encoder, where it starts from random weights.
        width: Width of the encoder, instead of the named size's.
        depth: Blocks of the encoder, instead of the named size's.
        heads: Attention heads, instead of the named size's.
        patch: Mel bins x frames of a patch, where the encoder starts from random weights.
        stride: Mel bins x frames from one patch to the next. `None` is that of the weights it starts from; less than
            the patch makes patches overlap.
        pooling: What the head sees: `mean` of the patch tokens, `rows` the mean over time with frequency rows kept
            apart, `cls` the class tokens as in stock Hugging Face models.
        train: `all`, `head`, or the number of last blocks that are trained with the head.
        head_lr_factor: Learning rate of the head, as a multiple.
        loss: `auto` is cross entropy, or binary cross entropy where a clip has several labels.
        best_by: Metric on the validation clips that tells the best model. `auto` is accuracy, or mAP where a clip may
            have several labels; `top1` is how often the highest score is that of a label that the clip has.
        label_smoothing: Label smoothing of the cross entropy.
        frequency_mask: Widest frequency mask in mel bins (SpecAugment); 0 is none.
        time_mask: Widest time mask in frames (SpecAugment); 0 is none.
        mixup: Fraction of the training clips that are mixed with another of their batch, their labels too.
        mixup_of: What is mixed: `log-mel` values, or `energy`, as when waveforms are mixed, but for their interference.
        noise: Uniform noise on the normalised spectrogram, of at most this height; each clip gets its own part of it.
        roll: Most frames that a clip is shifted by in time, around its end.
        balance: Draw clips by weights instead of each once an epoch: 1000 / count of each of its labels, added up, so
            that rare classes come as often as common ones.
        weights_csv: Weights to draw by: a line for each entry of the training list, in its order.
        classes: The classes of the model: those `seen` in training, or all of the `table` in `label_csv`, in its order.
        ensemble: Also score the mean of the predictions of all evaluations so far (SSAST's cumulative figures).
        dropout: Dropout before the head's linear layer.
    """

    epochs: float = 30
    learning_rate: float = 1e-4
    batch_size: int = 32
    from_: str | None = None
    size: Literal["tiny", "small", "base"] = "small"
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    patch: str = "16x16"
    stride: str | None = None
    pooling: Literal["mean", "rows", "cls"] = "mean"
    train: str = "all"
    head_lr_factor: float = 1.0
    loss: Literal["auto", "ce", "bce"] = "auto"
    best_by: Literal["auto", "accuracy", "top1", "balanced_accuracy", "f1", "mAP", "auc", "loss"] = "auto"
    label_smoothing: float = 0.0
    frequency_mask: int = 0
    time_mask: int = 0
    mixup: float = 0.0
    mixup_of: Literal["log-mel", "energy"] = "log-mel"
    noise: float = 0.0
    roll: int = 0
    balance: bool = False
    weights_csv: str | None = None
    classes: Literal["seen", "table"] = "seen"
    ensemble: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        TrainingSettings.__post_init__(self)
        PtSettings.__post_init__(self)
        parse_patch(self.patch)
        if self.stride is not None:
            parse_patch(self.stride, setting="stride")
        _check(self.train in ("all", "head") or self.train.isdigit(), "train", self.train, "all, head or a number")
        _check(self.head_lr_factor > 0, "head_lr_factor", self.head_lr_factor, "a number above 0")
        _check(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "a fraction below 1")
        _check(self.frequency_mask >= 0, "frequency_mask", self.frequency_mask, "0 or more mel bins")
        _check(self.time_mask >= 0, "time_mask", self.time_mask, "0 or more frames")
        _check(0 <= self.mixup <= 1, "mixup", self.mixup, "a fraction from 0 to 1")
        _check(self.noise >= 0, "noise", self.noise, "0 or more")
        _check(self.roll >= 0, "roll", self.roll, "0 or more frames")
        if self.classes == "table" and self.label_csv is None:
            raise SettingsError("classes is table, but there is no table", advice="Give label_csv.")
        if self.weights_csv is not None and not self.balance:
            raise SettingsError("weights_csv has no effect without balance", advice="Set balance, or leave it out.")
        _check(0 <= self.dropout < 1, "dropout", self.dropout, "a fraction below 1")
        width, _, heads = self.shape
        _check(width % heads == 0, "width", width, f"a multiple of the {heads} heads")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Width, depth and heads of an encoder that starts from random weights."""
        width, depth, heads = SIZES[self.size]
        return self.width or width, self.depth or depth, self.heads or heads


@dataclass(frozen=True, kw_only=True)
class ProbeSettings(PtSettings):
    """What a frozen encoder knows: logistic regression and nearest neighbours on its embeddings.

    Attributes:
        pooling: What an embedding is: `mean` of the patch tokens, `rows` the mean over time with frequency rows kept
            apart, `cls` the class tokens. Several are read from one pass.
        layer: Blocks to go through; 0 is the embedded patches. `None` is all of them and the final norm.
        skip_padding: Pool over the patches that hold sound, not over those behind the end of a short clip.
        neighbours: Neighbours that vote.
        random: Also probe the same encoder with random weights.
        batch_size: Clips a batch.
        precision: As in training.
        device: As in training.
        seed: Seed of the random encoder and of the inner split that chooses the regularisation.
    """

    pooling: tuple[Literal["mean", "rows", "cls"], ...] = ("rows",)
    layer: int | None = None
    skip_padding: bool = True
    neighbours: int = 10
    random: bool = True
    batch_size: int = 64
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    device: str = "auto"
    seed: int = 42

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(len(self.pooling) >= 1, "pooling", self.pooling, "one way of pooling or more")
        _check(self.layer is None or self.layer >= 0, "layer", self.layer, "0 or more")
        _check(self.neighbours >= 1, "neighbours", self.neighbours, "1 or more")
        _check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")


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
        _check(self.window is None or self.window > 0, "window", self.window, "a time in seconds above 0")
        _check(self.hop is None or self.hop > 0, "hop", self.hop, "a time in seconds above 0")
        _check(0 <= self.threshold <= 1, "threshold", self.threshold, "a score from 0 to 1")
        _check(self.top is None or self.top >= 1, "top", self.top, "1 or more")
        _check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")


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
        _check(self.shard_mib >= 1, "shard_mib", self.shard_mib, "1 or more")
