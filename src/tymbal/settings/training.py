"""Settings of pretraining and fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self

from tymbal.errors import SettingsError
from tymbal.settings.fields import (
    CONTINUE,
    LP_FT,
    NOTEBOOK,
    SCRATCH,
    SIZES,
    Recipe,
    check,
    check_seed,
    nature,
    parse_patch,
    setting,
)
from tymbal.settings.sound import PtSettings, SoundSettings

__all__ = [
    "ENDLESS",
    "DataChoice",
    "FinetuneSettings",
    "PretrainSettings",
    "TrainingSettings",
    "ViewPairSettings",
]


ENDLESS = 100_000.0
"""Epochs of a run that something else ends: its minutes, or what an objective makes of its data."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What pretraining and fine-tuning have in common.

    Attributes:
        epochs: Passes over the training clips.
        max_steps: Optimizer steps, instead of epochs.
        max_minutes: Train for this many minutes: the first steps are measured, and the run then has as many steps as
            fit, at most those of `epochs` (in pretraining only where those are given, too); learning rate and warm-up
            span them, also after a stop. What would take longer after all is ended, with a final evaluation and a
            saved model. With `max_steps` the minutes only end it.
        batch_size: Clips a step and device.
        batch_sizes: Clips a step and device by epoch, as in 1, 1, 2, 4, instead of one number; the last one holds on.
        accumulate: Batches whose gradients are added up before a step.
        learning_rate: Highest learning rate.
        optimizer: How weights are changed.
        schedule: What the learning rate does after the warm-up: falls along a `cosine` or a line to 0, stays, falls in
            steps of some epochs, or falls whenever the validation metric stays on a plateau.
        warmup: Warm-up: a fraction of all steps below 1, a number of steps from 1 on.
        fall_in_warmup: Whether falls of `step` and `plateau` hold that come during the warm-up; in SSAST they do not.
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
        precision: Arithmetic of the encoder. `auto` is bf16 where the hardware computes it, fp16 on other NVIDIA GPUs,
            else float32.
        device: `auto` takes CUDA, then Apple's MPS, then the CPU, and says why. Where CUDA cannot be used, `cuda` fails
            and `cuda-or-cpu` takes the CPU with a warning, also where the GPU's memory is too small.
        compile: Compile the step with torch.compile.
        shard: Share out weights, gradients and optimizer states among the processes of torchrun (FSDP): each needs less
            memory, for more traffic.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, more time.
        normalize: Whose mean and standard deviation spectrograms are normalised by: those of each `clip`, which takes
            out how loud it is, or of the `dataset`, as in AST and SSAST, which stock Hugging Face extractors need.
            `auto` is as the weights to start from have it, else clip.
        seed: Seed of weights, order, masks and augmentation.
        deterministic: Let the same seed give the same weights also on a GPU, at the price of some speed. On a CPU it
            does anyway.
        every: Take one clip in so many of every split (with labels, of every class), to try a run out.
        eval_every: Epochs between evaluations (fractions allowed).
        eval_steps: Steps between evaluations, instead of epochs.
        save_every: Epochs between checkpoints (fractions allowed). `None` is after every evaluation.
        keep_checkpoints: Number of the newest checkpoints to keep, beside the best.
        patience: Evaluations without progress after which training stops early; 0 never stops early.
        min_progress: What counts as progress of the monitored metric.
        average_from: Epoch from which the weights after every evaluation are averaged. The average is evaluated, too,
            and saved as a second model, `average`, in the run folder. `None` averages nothing.
        average_to: Last epoch of the average. `None` is the end.
        ema: Decay, from step to step, of an exponential moving average of the weights, which begins with those that
            training starts from. It is what is evaluated and saved. 0 averages nothing.
        lora: Rank of low-rank adapters (Hu et al. 2022), beside the linear layers of all blocks that are trained: they
            and the head alone are then trained, which takes less memory and changes less, and are merged into the
            weights that are saved. Needs the extra `peft`. 0 trains the weights themselves.
        log_every: Steps between logged figures.
        report_to: Trackers by name: tensorboard, wandb, mlflow, trackio. All but the first go where their environment
            variables say, Trackio without any into its folder on this machine.
        workers: Processes that load batches. 0 gathers whole batches in this process, the fastest for packed stores.
    """

    group = "training"

    epochs: float = setting(100, first=True, needs=("!max_steps",))
    max_steps: int | None = setting(None, example="2000")
    max_minutes: float | None = setting(None, resumable=True, first=True, example="4")
    batch_size: int = setting(64, first=True, needs=("!batch_sizes",))
    batch_sizes: tuple[int, ...] = setting((), example="1 1 2 4")
    accumulate: int = 1
    learning_rate: float = setting(5e-4, group="optimizer", first=True)
    optimizer: Literal["adamw", "adam", "sgd"] = setting("adamw", group="optimizer")
    schedule: Literal["cosine", "linear", "constant", "step", "plateau"] = setting("cosine", group="optimizer")
    warmup: float = setting(0.1, group="optimizer")
    fall_in_warmup: bool = setting(True, group="optimizer", before=True)
    step_start: float = setting(10, group="optimizer", needs=("schedule=step",))
    step_every: float = setting(5, group="optimizer", needs=("schedule=step",))
    step_factor: float = setting(0.5, group="optimizer", needs=("schedule=step",))
    plateau_patience: int = setting(2, group="optimizer", needs=("schedule=plateau",))
    plateau_factor: float = setting(0.5, group="optimizer", needs=("schedule=plateau",))
    weight_decay: float = setting(0.05, group="optimizer", before=0.05)
    adam_beta1: float = setting(0.9, group="optimizer")
    adam_beta2: float = setting(0.98, group="optimizer", before=0.98, needs=("optimizer!=sgd",))
    clip_norm: float = setting(1.0, group="optimizer")
    precision: Literal["auto", "float32", "bf16", "fp16"] = setting("auto", group="machine")
    device: str = setting("auto", resumable=True, group="machine", first=True)
    compile: bool = setting(False, resumable=True, group="machine")
    shard: bool = setting(False, resumable=True, group="machine")
    gradient_checkpointing: bool = setting(False, resumable=True, group="machine")
    normalize: Literal["auto", "dataset", "clip"] = "auto"
    seed: int = setting(42, first=True)
    deterministic: bool = setting(False, resumable=True, group="machine")
    every: int = 1
    eval_every: float = setting(1, group="evaluation", needs=("!eval_steps",))
    eval_steps: int | None = setting(None, group="evaluation", example="200")
    save_every: float | None = setting(None, resumable=True, group="evaluation", example="0.5")
    keep_checkpoints: int = setting(2, resumable=True, group="evaluation")
    patience: int = setting(0, group="evaluation")
    min_progress: float = setting(0.0, group="evaluation", needs=("patience",))
    average_from: float | None = setting(None, group="evaluation", example="10")
    average_to: float | None = setting(None, group="evaluation", example="20", needs=("average_from",))
    ema: float = setting(0.0, before=0.0, group="optimizer")
    lora: int = setting(0, before=0, group="layers")
    log_every: int = setting(10, resumable=True, group="evaluation")
    report_to: tuple[str, ...] = setting(("tensorboard",), resumable=True, group="evaluation")
    workers: int = setting(0, resumable=True, group="machine")

    def __post_init__(self) -> None:
        check(self.epochs > 0, "epochs", self.epochs, "a number above 0")
        check(self.max_steps is None or self.max_steps >= 1, "max_steps", self.max_steps, "1 or more")
        check(self.max_minutes is None or self.max_minutes > 0, "max_minutes", self.max_minutes, "above 0")
        check(self.batch_size >= 1, "batch_size", self.batch_size, "1 or more")
        check(self.log_every >= 1, "log_every", self.log_every, "1 or more")
        check_seed(self.seed)
        check(min(self.batch_sizes, default=1) >= 1, "batch_sizes", self.batch_sizes, "numbers of 1 or more")
        first, last = self.average_from, self.average_to
        check(first is None or first >= 0, "average_from", first, "0 or more")
        check(last is None or last >= (first or 0), "average_to", last, f"{first or 0:g} or more")
        check(0 <= self.ema < 1, "ema", self.ema, "a number from 0 to below 1")
        if self.ema and first is not None:
            raise SettingsError(
                "average_from and ema both average the weights", advice="Set ema to 0, or leave it out."
            )
        check(self.lora >= 0, "lora", self.lora, "0 or more")
        check(self.accumulate >= 1, "accumulate", self.accumulate, "1 or more")
        check(self.learning_rate > 0, "learning_rate", self.learning_rate, "a number above 0")
        check(self.warmup >= 0, "warmup", self.warmup, "0 or more")
        for name in ("step_start", "step_every"):
            check(getattr(self, name) > 0, name, getattr(self, name), "a number of epochs above 0")
        for name in ("step_factor", "plateau_factor"):
            check(0 < getattr(self, name) < 1, name, getattr(self, name), "a number between 0 and 1")
        check(self.plateau_patience >= 0, "plateau_patience", self.plateau_patience, "0 or more")
        for name in ("adam_beta1", "adam_beta2"):
            check(0 <= getattr(self, name) < 1, name, getattr(self, name), "a number from 0 to below 1")
        check(self.clip_norm >= 0, "clip_norm", self.clip_norm, "0 or more")
        check(self.every >= 1, "every", self.every, "1 or more")
        check(self.eval_every > 0, "eval_every", self.eval_every, "a number of epochs above 0")
        check(self.eval_steps is None or self.eval_steps >= 1, "eval_steps", self.eval_steps, "1 or more")
        check(self.save_every is None or self.save_every > 0, "save_every", self.save_every, "a number above 0")
        check(self.keep_checkpoints >= 1, "keep_checkpoints", self.keep_checkpoints, "1 or more")
        check(self.workers >= 0, "workers", self.workers, "0 or more")


@dataclass(frozen=True, kw_only=True)
class DataChoice:
    """What data suggest for the settings that leave it to them.

    Attributes:
        size: Named size of the encoder.
        patch: Its patch.
        full_height: Whether patches, also given ones, are as high as the spectrogram.
        grouped: Whether most clips are of groups large enough for batches of one group.
        steady: Whether clips differ in their spectra alone, hardly in how they unfold.
    """

    size: Literal["auto", "mini", "tiny", "small", "base"] = "mini"
    patch: str = "16x16"
    full_height: bool = False
    grouped: bool = False
    steady: bool = False


@dataclass(frozen=True, kw_only=True)
class PretrainSettings(SoundSettings, PtSettings, TrainingSettings):
    """Learning from unlabelled spectrograms: what all objectives share.

    The settings of a run are those of its objective, whose class is derived from this one in the objective's own file
    (`tymbal.objectives.registry`).

    Attributes:
        recipe: Which defaults hold, those behind semicolons. `continue` goes on from weights and keeps what they know:
            a lower learning rate that falls from layer to layer, new heads first trained alone, a moving average of the
            weights, and an evaluation before the first step. `none` trains as from random weights. `auto` is continue
            with `from`, and none without, or with the objective reconstruction, whose defaults are for that.
        epochs: Passes over the training clips. Where they are not given, lejepa takes 30 with patches as high as the
            spectrogram, and others as many as fit into `max_minutes`.
        objective: What is learned: `lejepa` makes views of a clip agree and spreads clips like a standard normal
            (Balestriero & LeCun 2025); `contrastive` tells the two views of each clip from those of all others (SimCLR,
            Chen et al. 2020); `mpc` tells each masked patch from the others of its clip, `mpg` rebuilds it, `joint`
            does both (SSAST, Gong et al. 2022); `reconstruction` rebuilds the whole spectrogram from one with masked
            stretches and bands; `distill` gives the vectors of a `teacher`: a larger model, another program's
            embeddings, ONNX files. What each takes besides, and its defaults, shows for example `tymbal pretrain --help
            lejepa`.
        from_: Start from these weights: a run, a model folder, a Hugging Face or SSAST checkpoint, or the weights that
            a script has saved of such an encoder.
        size: Named size of the encoder: mini 128/4/4, tiny 192/12/3, small 384/12/6, base 768/12/12
            (width/depth/heads). `auto` chooses by how much sound there is.
        width: Width of the encoder, instead of the named size's.
        depth: Blocks of the encoder, instead of the named size's.
        heads: Attention heads, instead of the named size's; also of weights to start from that do not tell.
        patch: Mel bins x frames of a patch: 16x16, or 128x4 for patches as high as the spectrogram. `auto` chooses by
            the sound: the latter where clips unfold in time, as words do; is that of the weights to start from.
        stem: Channels of a convolutional stem before the patches, where weights are drawn anew; 0 is none.
        positions: What clips that are shorter than those of the weights to start from take of their position
            embeddings: those of the middle (`cut`, as AST and SSAST), the `first`, which padded clips have had, or all,
            squeezed (`resize`). Longer clips stretch them. `auto` is as in earlier versions: cut for SSAST files,
            else squeezed. The model keeps the choice for clips that are shorter still.
        train: What is trained of the encoder: `all`, or the number of its last blocks.
        layer_decay: What the learning rate is multiplied by from each layer of the encoder to the one below it, down to
            the embedded patches; 1 trains all equally fast.
        head_warmup: Epochs in which the objective's heads are trained alone, where they are new and the encoder is not.
        eval_start: Evaluate before the first step, too, with the probe if there is one, and save that model where none
            is better.
        probe_data: A store with labels and a split, whose embeddings are read in the course of the training, with
            evaluations: `eval_probe_accuracy` by logistic regression, `eval_knn_accuracy` by nearest neighbours, beside
            those of random weights and of the best plain line (`eval_probe_random_accuracy`, …). Where it is read
            before the first step, a later fall by more than two points and its standard error is an alarm.
        probe_every: Epochs from one such probe to the next.
        probe_pooling: How it reads: `grid` as the objective compares clips, by rows of mel bins and as many parts of
            the time, the middle layer and the last one side by side; `mean` or `rows` of the last layer's patches.
        snapshots: Validation clips of which it is written down, at evaluations over the whole training, what the model
            rebuilds of them: the pictures of `tymbal report`. 0 writes nothing.
    """

    verb: ClassVar[str] = "pretrain"
    group = "encoder"
    recipes: ClassVar[tuple[Recipe, ...]] = (CONTINUE,)
    continues: ClassVar[bool] = True
    """Whether the recipe of a run that starts from weights is `continue` where none is chosen."""
    compares_views: ClassVar[bool] = False

    batch_size: int = 32
    learning_rate: float = 1e-3
    eval_every: float = 5
    objective: str = setting("lejepa", first=True)
    from_: str | None = setting(None, path=True, first=True, example="runs/first")
    size: Literal["auto", "mini", "tiny", "small", "base"] = setting("auto", by_data=True, first=True)
    width: int | None = setting(None, example="192", needs=("!from_",))
    depth: int | None = setting(None, example="6", needs=("!from_",))
    heads: int | None = setting(None, example="3")
    patch: str = setting("auto", by_data=True, first=True)
    stem: int = setting(0, before=0, needs=("!from_",))
    positions: Literal["cut", "first", "resize", "auto"] = setting("cut", before="auto", needs=("from_",))
    train: str = setting("all", first=True)
    recipe: Literal["auto", "continue", "none"] = setting("auto", before="none", group="training", first=True)
    layer_decay: float = setting(1.0, before=1.0, group="layers")
    head_warmup: float = setting(0.0, before=0.0, group="layers")
    eval_start: bool = setting(False, before=False, group="evaluation")
    probe_data: str | None = setting(
        None, path=True, resumable=True, group="evaluation", first=True, example="labelled_store"
    )
    probe_every: float = setting(5.0, resumable=True, group="evaluation", needs=("probe_data",))
    probe_pooling: Literal["grid", "mean", "rows"] = setting(
        "grid", before="mean", resumable=True, group="evaluation", needs=("probe_data",)
    )
    snapshots: int = setting(3, resumable=True, group="evaluation")

    def __post_init__(self) -> None:
        TrainingSettings.__post_init__(self)
        PtSettings.__post_init__(self)
        SoundSettings.__post_init__(self)
        if self.patch != "auto":
            parse_patch(self.patch)
        check(self.stem >= 0, "stem", self.stem, "0 or more")
        check(self.train == "all" or self.train.isdigit(), "train", self.train, "all or a number of blocks")
        check(0 < self.layer_decay <= 1, "layer_decay", self.layer_decay, "a number above 0, at most 1")
        check(self.head_warmup >= 0, "head_warmup", self.head_warmup, "a number of epochs, 0 or more")
        check(self.probe_every > 0, "probe_every", self.probe_every, "a number of epochs above 0")
        check(self.snapshots >= 0, "snapshots", self.snapshots, "0 or more")
        width, _, heads = self.shape
        check(width % heads == 0, "width", width, f"a multiple of the {heads} heads")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Width, depth and heads of the encoder."""
        width, depth, heads = SIZES["mini" if self.size == "auto" else self.size]
        return self.width or width, self.depth or depth, self.heads or heads

    @property
    def groups_batches(self) -> bool:
        """Whether the clips of a batch are to be of one group."""
        return False

    @property
    def depends_on_structure(self) -> bool:
        """Whether anything is left to how the sound unfolds in time."""
        return self.patch == "auto" and self.from_ is None

    def fitted(self, choice: DataChoice) -> Self:
        """These settings with all that they leave to the data."""
        size = choice.size if self.size == "auto" else self.size
        return replace(self, size=size, patch=choice.patch if self.patch == "auto" else self.patch)

    @classmethod
    def refuse(cls, others: Mapping[str, Any]) -> None:
        """Refuses settings of other objectives that contradict this one; those that merely do nothing are remarked on.

        Args:
            others: The given settings of other objectives, by field name.

        Raises:
            SettingsError: One of them contradicts the objective.
        """

    def describe_objective(self) -> dict[str, Any]:
        """The objective and its own settings, as the description of a model keeps them."""
        common = {field.name for field in fields(PretrainSettings)}
        own = [field.name for field in fields(self) if field.name not in common]
        natures = {name: nature(self, name) for name in ("objective", *own)}
        # Model folders keep the name that a setting had first, so that all versions read them.
        return {
            next(iter(each.aliases), name): getattr(self, name)
            for name, each in natures.items()
            if each.describes_model
        }


@dataclass(frozen=True, kw_only=True)
class ViewPairSettings(PretrainSettings):
    """Pretraining on two views of each clip; an objective with these settings is given pairs.

    Attributes:
        view_source: Where the views come from: `generated` before (tymbal prepare --views), `fresh` from waveforms in
            every epoch, or drawn from the clip's one `spectrogram`, which any store of spectrograms, folder of .pt
            files or sound has. `auto` takes what the source holds; sound becomes waveforms.
        augmentations: YAML file that says how views are drawn, those of spectrograms under `spectrogram_views`; or a
            function of one's own, as `mypackage:louder`, which then makes the views alone. `None` is
            configs/audio_augmentation_config.yaml if that exists, else the defaults.
    """

    compares_views: ClassVar[bool] = True
    draws_views: ClassVar[bool] = False
    """Whether the objective draws views from single spectrograms by itself, where it is given those."""

    view_source: Literal["auto", "generated", "fresh", "spectrogram"] = setting(
        "auto", aliases=("views",), describes_model=False
    )
    augmentations: str | None = setting(None, path=True, describes_model=False, example="configs/short_clips.yaml")

    @property
    def carries_padding(self) -> bool:
        """Whether the objective takes, with fresh views, which frames are sound and which cells are masked."""
        return False


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(SoundSettings, PtSettings, TrainingSettings):
    """A classifier from labelled clips.

    Attributes:
        recipe: Which defaults hold, those behind semicolons. `lp-ft` keeps what was pretrained: the head begins as a
            logistic regression on what the encoder gives, whose figures are those of step 0, and is then trained with
            the encoder (Kumar et al. 2022). `scratch` trains the same head from random weights. In both the learning
            rate is 1e-3 for an encoder 128 wide, and less in proportion for wider ones. `notebook` is how one-second
            clips are usually fine-tuned on. `none` is how AST and SSAST are. `auto` is lp-ft from a model of Tymbal,
            none from one of another program, and scratch without one.
        from_: Start from these weights: a run, a model folder, a Hugging Face or SSAST checkpoint, or the weights that
            a script has saved of such an encoder. `None` starts from random weights of the named size.
        size: Named size of the encoder, where it starts from random weights.
        width: Width of the encoder, instead of the named size's.
        depth: Blocks of the encoder, instead of the named size's.
        heads: Attention heads, instead of the named size's; also of weights to start from that do not tell.
        patch: Mel bins x frames of a patch, where the encoder starts from random weights. `auto` chooses it from the
            sound, as pretraining does.
        stem: Channels of a convolutional stem before the patches, where it starts from random weights; 0 is none.
        stride: Mel bins x frames from one patch to the next. `None` is that of the weights it starts from; less than
            the patch makes patches overlap.
        positions: What clips that are shorter than those of the weights to start from take of their position
            embeddings: those of the middle (`cut`, as AST and SSAST), the `first`, which padded clips have had, or all,
            squeezed (`resize`). Longer clips stretch them. `auto` is as in earlier versions: cut for SSAST files,
            else squeezed. The model keeps the choice for clips that are shorter still.
        pooling: What the head sees: `mean` of the patch tokens, `all` the mean of patch and class tokens alike, `rows`
            the mean over time with frequency rows kept apart, `grid2`, `grid4` and `grid8` rows over so many equal
            parts of the time, `cls` the class tokens as in stock Hugging Face models, `attention` a mean of the patch
            tokens whose weights are learned; `all-normed-twice` is the mean of all tokens after a second final norm, as
            the notebooks around Hugging Face's AST have it. `auto` is as the head that is taken over has it, else
            mean; `grid` likewise, else rows over as many parts as the pretraining compared, or, where it compared none,
            as read the training clips best in folds of whole groups.
        skip_padding: Pool over the patches that hold sound, not over those behind the end of a short clip. `None` is as
            the head that is taken over has it, else true.
        new_head: Draw a new head also where the weights to start from are those of a classifier of the same labels,
            whose head is otherwise taken over.
        head_start: What a new head begins as: `random` weights, or a `probe`, a logistic regression on what the encoder
            gives before training. A head that fits from the first step on changes a pretrained encoder less (Kumar et
            al. 2022).
        head_scale: Largest standard deviation over clips of the scores of a head that begins as a probe; 0 leaves them
            as they are. Which label is the likeliest stays the same, but large scores would ask much of the encoder.
        head_norm: What a new head has in front of its linear layer: a `layer` norm, as AST and SSAST, or a `batch` norm
            without weights, which standardises each number over clips. `auto` is the latter, but with cls pooling a
            layer norm, so that stock transformers can hold the model.
        head_epsilon: Epsilon of a new head's layer norm: 1e-5 in SSAST. `None` is that of the encoder, as stock
            transformers has it.
        train: `all`, `head`, or the number of last blocks that are trained with the head.
        head_lr_factor: Learning rate of the head, as a multiple.
        layer_decay: What the learning rate is multiplied by from each layer of the encoder to the one below it, down to
            the embedded patches; 1 trains all equally fast.
        unfreeze_every: Epochs from one thaw to the next: the head is trained first, after as many epochs also the last
            block, and so on downwards. `None` trains all from the start.
        loss: `auto` is cross entropy, or binary cross entropy where a clip has several labels.
        best_by: Metric on the validation clips that tells the best model. `auto` is accuracy, or mAP where a clip may
            have several labels; `top1` is how often the highest score is that of a label that the clip has; `f1` is the
            mean over the classes, `weighted_f1` that over the clips' classes.
        label_smoothing: How far labels are pulled towards equal chances; of the binary cross entropy towards even odds.
        class_weights: Weights of the loss: `balanced` lets all classes count the same, however many clips they have.
        frequency_mask: Widest frequency mask in mel bins (SpecAugment); 0 is none.
        time_mask: Widest time mask in frames (SpecAugment); 0 is none.
        mixup: Fraction of the training clips that are mixed with another of their batch, their labels too.
        mixup_of: What is mixed: `log-mel` values; `energy`, as when waveforms are mixed, but for their interference; or
            the `waveform`s, for which the sound files are decoded anew in every epoch.
        noise: Uniform noise on the normalised spectrogram, of at most this height; each clip gets its own part of it.
        roll: Most frames that a clip is shifted by in time, around its end.
        view_strength: How strongly pitch, tempo, colour and level of training clips are changed, as a fraction of the
            spectrogram views of pretraining; 0 is not at all.
        balance: Draw clips by weights instead of each once an epoch: 1000 / count of each of its labels, added up, so
            that rare classes come as often as common ones.
        weights_csv: Weights to draw by: a line for each entry of the training list, in its order.
        background: Folder of sound in which nothing is to be found, cut into windows as long as the clips: one more
            class, `background`, which `predict` detects nowhere. Without it a classifier of one label a clip names
            something everywhere.
        classes: The classes of the model: those `seen` in training, or all of the `table` in `label_csv`, in its order.
        ensemble: Also score the mean of the predictions of all evaluations so far (SSAST's cumulative figures).
        dropout: Dropout before the head's linear layer.
        min_steps: Steps to train for at least, where the epochs come to fewer; it is then evaluated ten times at most.
        eval_start: Evaluate before the first step, too, and save that model where none is better.
        score_test: Score the clips of the split `test` by the saved model at the end, into `test.json`, as benchmarks
            ask for: the model was chosen by the validation clips.
    """

    group = "classifier"

    recipes: ClassVar[tuple[Recipe, ...]] = (LP_FT, SCRATCH, NOTEBOOK)

    epochs: float = 30
    learning_rate: float = 1e-4
    batch_size: int = 32
    recipe: Literal["auto", "lp-ft", "scratch", "notebook", "none"] = setting("auto", before="none", first=True)
    from_: str | None = setting(None, path=True, group="encoder", first=True, example="runs/first")
    size: Literal["mini", "tiny", "small", "base"] = setting("small", group="encoder", first=True)
    width: int | None = setting(None, group="encoder", example="192", needs=("!from_",))
    depth: int | None = setting(None, group="encoder", example="6", needs=("!from_",))
    heads: int | None = setting(None, group="encoder", example="3")
    patch: str = setting("16x16", group="encoder", by_data=True)
    stem: int = setting(0, group="encoder", before=0, needs=("!from_",))
    stride: str | None = setting(None, group="encoder", example="10x10")
    positions: Literal["cut", "first", "resize", "auto"] = setting(
        "cut", group="encoder", before="auto", needs=("from_",)
    )
    pooling: Literal[
        "auto", "grid", "mean", "all", "rows", "grid2", "grid4", "grid8", "cls", "attention", "all-normed-twice"
    ] = setting("auto", first=True, by_data=True)
    skip_padding: bool | None = None
    new_head: bool = setting(False, needs=("from_",))
    head_start: Literal["random", "probe"] = "random"
    head_scale: float = setting(1.0, before=0.0, needs=("head_start=probe",))
    head_norm: Literal["auto", "layer", "batch"] = setting("layer", before="layer")
    head_epsilon: float | None = setting(None, example="1e-5", needs=("head_norm!=batch",))
    train: str = setting("all", group="layers", first=True)
    head_lr_factor: float = setting(1.0, group="layers")
    layer_decay: float = setting(1.0, group="layers")
    unfreeze_every: float | None = setting(None, group="layers", example="1")
    loss: Literal["auto", "ce", "bce"] = "auto"
    best_by: Literal["auto", "accuracy", "top1", "balanced_accuracy", "f1", "weighted_f1", "mAP", "auc", "loss"] = (
        setting("auto", first=True)
    )
    label_smoothing: float = setting(0.0, group="augmentation")
    class_weights: Literal["none", "balanced"] = setting("none", group="balance")
    frequency_mask: int = setting(0, group="augmentation")
    time_mask: int = setting(0, group="augmentation")
    mixup: float = setting(0.0, group="augmentation", first=True)
    mixup_of: Literal["log-mel", "energy", "waveform"] = setting("log-mel", group="augmentation")
    noise: float = setting(0.0, group="augmentation")
    roll: int = setting(0, group="augmentation")
    view_strength: float = setting(0.0, before=0.0, group="augmentation")
    balance: bool = setting(False, group="balance")
    weights_csv: str | None = setting(None, group="balance", example="train_weight.csv")
    background: str | None = setting(
        None, path=True, data=True, only_for=("sound",), first=True, example="quiet_nights"
    )
    classes: Literal["seen", "table"] = "seen"
    ensemble: bool = False
    dropout: float = 0.0
    min_steps: int = setting(0, before=0, group="training")
    eval_start: bool = setting(False, before=False, group="evaluation")
    score_test: bool = setting(False, before=False, resumable=True, group="evaluation")

    def __post_init__(self) -> None:
        TrainingSettings.__post_init__(self)
        PtSettings.__post_init__(self)
        SoundSettings.__post_init__(self)
        if self.patch != "auto":
            parse_patch(self.patch)
        if self.stride is not None:
            parse_patch(self.stride, setting="stride")
        check(self.train in ("all", "head") or self.train.isdigit(), "train", self.train, "all, head or a number")
        check(self.head_lr_factor > 0, "head_lr_factor", self.head_lr_factor, "a number above 0")
        check(0 < self.layer_decay <= 1, "layer_decay", self.layer_decay, "a number above 0, at most 1")
        every = self.unfreeze_every
        check(every is None or every > 0, "unfreeze_every", every, "a number of epochs above 0")
        if every is not None and self.train == "head":
            raise SettingsError(
                "unfreeze_every has no effect where only the head is trained",
                advice="Set train to all or to the number of blocks that may thaw, or leave unfreeze_every out.",
            )
        check(0 <= self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "a fraction below 1")
        check(self.frequency_mask >= 0, "frequency_mask", self.frequency_mask, "0 or more mel bins")
        check(self.time_mask >= 0, "time_mask", self.time_mask, "0 or more frames")
        check(0 <= self.mixup <= 1, "mixup", self.mixup, "a fraction from 0 to 1")
        check(self.noise >= 0, "noise", self.noise, "0 or more")
        check(self.roll >= 0, "roll", self.roll, "0 or more frames")
        check(self.view_strength >= 0, "view_strength", self.view_strength, "0 or more")
        check(self.head_epsilon is None or self.head_epsilon > 0, "head_epsilon", self.head_epsilon, "above 0")
        check(self.head_scale >= 0, "head_scale", self.head_scale, "0 or more")
        check(self.min_steps >= 0, "min_steps", self.min_steps, "0 or more")
        if self.pooling == "all-normed-twice" and self.head_norm == "batch":
            raise SettingsError(
                "head_norm has no effect with pooling all-normed-twice, behind which only a linear layer stands",
                advice="Leave one of them out.",
            )
        if self.classes == "table" and self.label_csv is None:
            raise SettingsError("classes is table, but there is no table", advice="Give label_csv.")
        if self.background is not None and self.classes == "table":
            raise SettingsError(
                "background is a class that the table of labels does not have", advice="Leave classes out."
            )
        if self.weights_csv is not None and not self.balance:
            raise SettingsError("weights_csv has no effect without balance", advice="Set balance, or leave it out.")
        check(0 <= self.dropout < 1, "dropout", self.dropout, "a fraction below 1")
        width, _, heads = self.shape
        check(width % heads == 0, "width", width, f"a multiple of the {heads} heads")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Width, depth and heads of an encoder that starts from random weights."""
        width, depth, heads = SIZES[self.size]
        return self.width or width, self.depth or depth, self.heads or heads
