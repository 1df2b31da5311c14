"""A classifier from labelled sound: `tymbal finetune`.

    tymbal finetune labelled -o classifier --from run

The labels are those of the training clips, and stay with the model. The run folder is that of any training; the best
model on the validation clips lies in `classifier/model` and goes straight into `tymbal predict`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tymbal import config as configuration
from tymbal._version import __version__
from tymbal.compute.processes import processes, quiet_except_rank_zero
from tymbal.errors import SettingsError
from tymbal.files import written_alone
from tymbal.progress import tell
from tymbal.settings import FeatureSettings, FinetuneSettings, PrepareSettings, parse_patch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from tymbal.data import DataSource
    from tymbal.evaluation.labelled_clips import LabelledClips
    from tymbal.features.normalisation import Normalisation
    from tymbal.models.classifier import SpectrogramClassifier
    from tymbal.models.description import ModelDescription
    from tymbal.objectives.batch_augmentation import Augmentation
    from tymbal.objectives.classification import ClassificationObjective, Ensemble
    from tymbal.store.base import SpectrogramSource
    from tymbal.store.dataset import StoreDataset
    from tymbal.training.callbacks import Evaluation
    from tymbal.training.run_folder import Resume, RunFolder, RunResult

__all__ = ["finetune"]


@dataclass(frozen=True, kw_only=True)
class _Start:
    """The classifier, features and normalisation that training starts with.

    Attributes:
        model: The classifier, its encoder with weights.
        features: How the spectrograms are made.
        normalisation: How they are normalised.
        objective: How it was pretrained, where that is known.
        head: Whether the head of the initial weights was taken, in words, if they have one.
        head_eps: Epsilon of the head's norm where it is not the encoder's.
        new_head: Whether the head's weights are random.
    """

    model: SpectrogramClassifier
    features: FeatureSettings
    normalisation: Normalisation
    objective: dict[str, Any] | None = None
    head: str | None = None
    head_eps: float | None = None
    new_head: bool = True


@quiet_except_rank_zero()
@written_alone
def finetune(
    source: str | Path,
    output: str | Path,
    *,
    resume: Resume = "auto",
    config: str | Path | None = None,
    on_evaluation: Callable[[Evaluation], None] | None = None,
    **settings: Any,
) -> RunResult:
    """Trains a classifier on labelled sound, from pretrained or random weights.

    Args:
        source: A store with labels and a split; or a folder with a folder a class (in `train/` and `validation/`, or
            split here) or a manifest, which is prepared into the run folder with the spectrogram settings of the
            weights that it starts from.
        output: The run folder.
        resume: `auto` continues the run in the output folder if there is one, True insists on one, False on none; or
            the folder of a checkpoint.
        config: YAML file with settings, or the `run.yaml` of an earlier run.
        on_evaluation: Told about every evaluation: its figures, and the module with its weights at that moment.
        **settings: See `tymbal.settings.FinetuneSettings`.

    Raises:
        StoreError: The clips cannot be learned from, for instance because a class occurs only in validation.
        ModelError: The weights to start from cannot be read or do not fit.
        SettingsError: Settings do not go together, or the folder holds another run.
        TrainingError: The loss is not finite.
    """
    from tymbal.data import open_data, subsample
    from tymbal.models.warm_start import features_at
    from tymbal.store.dataset import StoreDataset
    from tymbal.training.layers import freeze, layered_groups, stages
    from tymbal.training.run import begin, train
    from tymbal.training.run_folder import RunFolder

    data = open_data(source, configuration.resolve(FinetuneSettings, settings, config=config))
    chosen = data.settings
    run = Path(output)
    finished = begin("finetune", run, {"source": source, "output": output}, chosen, resume=resume)
    if finished is not None:
        return finished
    if chosen.classes == "seen" and chosen.data_val is None and data.has_sound:
        _check_labels(source, chosen)
    store = data.spectrograms(run, features_at(chosen.from_, heads=chosen.heads))
    clips = _clips(data, store, chosen, every=subsample(store, run, chosen))
    objective, description, new_head = _objective(store, clips, chosen)
    encoder = objective.model.encoder
    if chosen.head_start == "probe" and new_head and not _has_begun(run):
        _fit_head(objective, store, clips, chosen)
    freeze(objective.model, chosen.train)

    def finalise(result: RunResult) -> None:
        from tymbal.models.folder import save_model

        provenance = {**description.provenance, "metrics": result.metrics}
        save_model(result.model, objective.model, replace(description, provenance=provenance))
        if result.model == RunFolder(run).model:
            _write_confusion(RunFolder(run), result, clips.classes)

    return train(
        objective,
        _training_clips(store, clips, chosen),
        StoreDataset(store, clips.validation, labels=True),
        settings=chosen,
        run=run,
        verb="finetune",
        resume=resume,
        classes=clips.classes,
        weights=_weights(source, store, clips, chosen),
        on_evaluation=on_evaluation,
        groups=layered_groups(objective, encoder, chosen),
        stages=None if chosen.unfreeze_every is None else stages(encoder, chosen.unfreeze_every),
        finalise=finalise,
    )


def _write_confusion(folder: RunFolder, result: RunResult, classes: Sequence[str]) -> None:
    """Writes which classes the best model takes for which, as its evaluation counted them."""
    from tymbal.evaluation.scoring import draw_confusion, write_confusion, write_decisions
    from tymbal.training.checkpoints import Checkpoints
    from tymbal.training.records import read_counts

    for name in ("confusion.csv", "confusion.png"):
        (folder.path / name).unlink(missing_ok=True)  # an older run's
    counts = read_counts(Checkpoints(folder.checkpoints).path(result.best_step))
    if "decisions" in counts:
        write_decisions(folder.path / "confusion.csv", counts["decisions"].numpy(), classes)
    if "confusion" in counts:
        matrix = counts["confusion"].numpy()
        write_confusion(folder.path / "confusion.csv", matrix, classes)
        title = f"{matrix.sum():,} validation clips after step {result.best_step:,}: {matrix.trace():,} right"
        draw_confusion(folder.path / "confusion.png", matrix, classes, title=title)


def _check_labels(source: str | Path, settings: FinetuneSettings) -> None:
    """Refuses classes that occur only in validation, where folders or a list tell, before sound is prepared."""
    from tymbal.evaluation.labelled_clips import refuse_unlearned
    from tymbal.preparation.clips import given_labels

    labels = given_labels(
        source, PrepareSettings(label_csv=settings.label_csv, label_separator=settings.label_separator)
    )
    if labels.get("train"):
        refuse_unlearned(sorted(labels.get("validation", set()) - labels["train"]), path=str(source))


def _clips(
    data: DataSource[FinetuneSettings], store: SpectrogramSource, settings: FinetuneSettings, *, every: int
) -> LabelledClips:
    from tymbal.audio.file_lists import table_classes
    from tymbal.evaluation.labelled_clips import labelled_clips

    multilabel = {"auto": None, "ce": False, "bce": True}[settings.loss]
    table = table_classes(settings.label_csv) if settings.classes == "table" and settings.label_csv else None
    clips = labelled_clips(store, multilabel=multilabel, classes=table, every=every)
    if clips.left_out:
        tell(f"{clips.left_out:,} clips without a label are left out", warning=True)
    for folder in _empty_class_folders(data.path) if not data.is_packed else ():
        tell(f"{folder} holds no sound: the class is not learned from it", warning=True)
    if every > 1:
        tell(f"Of every class and split one clip in {every} is taken")
    kind = "any number of labels a clip" if clips.multilabel else "one label a clip"
    tell(
        f"{len(clips.classes)} classes, {kind}: {len(clips.train):,} clips to learn from, "
        f"{len(clips.validation):,} to validate on"
    )
    return clips


def _empty_class_folders(source: Path) -> list[Path]:
    """Folders that are named like classes but hold no file at all."""
    if not source.is_dir():
        return []
    splits = [source / name for name in ("train", "validation", "test") if (source / name).is_dir()]
    folders = [folder for parent in splits or [source] for folder in sorted(parent.iterdir()) if folder.is_dir()]
    return [folder for folder in folders if not any(each.is_file() for each in folder.rglob("*"))]


def _objective(
    store: SpectrogramSource, clips: LabelledClips, settings: FinetuneSettings
) -> tuple[ClassificationObjective, ModelDescription, bool]:
    """The classifier with its loss, what its model folder will say, and whether its head is new."""
    import torch

    from tymbal.models.classifier import GRIDS
    from tymbal.models.description import ModelDescription
    from tymbal.objectives.classification import ClassificationObjective

    # The same seed gives the same weights, independent of the caller's random numbers.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        start = _start(store, clips.classes, settings)
    model = start.model
    model.encoder.gradient_checkpointing = settings.gradient_checkpointing
    best_by = settings.best_by
    if best_by == "auto":
        best_by = "mAP" if clips.multilabel else "accuracy"
    objective = ClassificationObjective(
        model,
        normalisation=start.normalisation,
        columns=torch.from_numpy(clips.columns),
        multilabel=clips.multilabel,
        label_smoothing=settings.label_smoothing,
        class_weights=_class_weights(store, clips, settings),
        augmentation=_augmentation(settings),
        features=store.features if _mixes_waveforms(settings) else None,
        ensemble=_ensemble(clips) if settings.ensemble else None,
        seed=settings.seed,
        best_by=best_by,
    )
    provenance = {
        "verb": "finetune",
        "version": __version__,
        "from": settings.from_,
        "data": str(store.path),
        "settings": configuration.to_mapping(settings),
    }
    if start.head is not None:
        provenance["head"] = start.head
    description = ModelDescription(
        encoder=model.encoder.config,
        features=start.features,
        mean=start.normalisation.mean,
        std=start.normalisation.std,
        padding=start.normalisation.padding,
        normalize=start.normalisation.by,
        labels=clips.classes,
        pooling=model.pooling,
        skip_padding=model.skip_padding,
        multilabel=clips.multilabel,
        head_eps=start.head_eps,
        objective=start.objective,
        provenance=provenance,
    )
    if description.compared_parts and model.pooling in ("rows", *GRIDS):
        description = replace(description, embedding=model.pooling)
    return objective, description, start.new_head


def _has_begun(run: Path) -> bool:
    """Whether weights come from a checkpoint anyway."""
    from tymbal.training.checkpoints import Checkpoints
    from tymbal.training.run_folder import RunFolder

    return Checkpoints(RunFolder(run).checkpoints).newest() is not None


def _fit_head(
    objective: ClassificationObjective, store: SpectrogramSource, clips: LabelledClips, settings: FinetuneSettings
) -> None:
    from tymbal.compute.device import choose_device, choose_precision
    from tymbal.evaluation.head_start import fit_head

    device, _ = choose_device(settings.device)
    fitted, count = fit_head(
        objective.model,
        store,
        clips.train,
        clips.truth(store, clips.train),
        normalisation=objective.normalisation,
        multilabel=clips.multilabel,
        groups=clips.groups(store, clips.train),
        seed=settings.seed,
        device=device,
        dtype=choose_precision(settings.precision, device)[0],
    )
    tell(f"The head begins as a logistic regression on {count:,} clips, C = {fitted.strength:g}")


def _class_weights(store: SpectrogramSource, clips: LabelledClips, settings: FinetuneSettings) -> Tensor | None:
    import torch

    from tymbal.evaluation.labelled_clips import class_weights

    if settings.class_weights == "none":
        return None
    if settings.balance:
        tell(
            "Rare classes are drawn more often and weigh more: balance and class_weights do the same thing",
            warning=True,
        )
    return torch.from_numpy(class_weights(clips.truth(store, clips.train), multilabel=clips.multilabel))


def _augmentation(settings: FinetuneSettings) -> Augmentation | None:
    from tymbal.objectives.batch_augmentation import Augmentation

    chosen = Augmentation(**{each.name: getattr(settings, each.name) for each in fields(Augmentation)})
    return None if chosen == Augmentation(mixup_of=settings.mixup_of) else chosen


def _mixes_waveforms(settings: FinetuneSettings) -> bool:
    return settings.mixup > 0 and settings.mixup_of == "waveform"


def _training_clips(store: SpectrogramSource, clips: LabelledClips, settings: FinetuneSettings) -> StoreDataset:
    from tymbal.store.dataset import StoreDataset

    if not _mixes_waveforms(settings):
        return StoreDataset(store, clips.train, labels=True)
    from tymbal.store.dataset import SoundDataset

    return SoundDataset(store, clips.train)


def _ensemble(clips: LabelledClips) -> Ensemble:
    import torch

    from tymbal.objectives.classification import Ensemble

    if processes() > 1:
        raise SettingsError(
            "ensemble is for one process: several do not see each other's predictions",
            advice="Set ensemble to false, or train with one process.",
        )
    return Ensemble(torch.from_numpy(clips.validation), len(clips.classes), multilabel=clips.multilabel)


def _start(store: SpectrogramSource, labels: Sequence[str], settings: FinetuneSettings) -> _Start:
    from tymbal.inference.encoding import check_features
    from tymbal.models.description import features_of, normalisation_of
    from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
    from tymbal.models.warm_start import HeadChoice, warm_start_classifier

    width, depth, heads = settings.shape
    patch = parse_patch(settings.patch)
    stride = patch if settings.stride is None else parse_patch(settings.stride, setting="stride")
    target = EncoderConfig(
        width=width,
        depth=depth,
        heads=heads,
        mels=store.mels,
        frames=store.frames,
        patch=patch,
        stride=stride,
        stem=settings.stem,
    )
    head = HeadChoice(
        labels=labels,
        pooling=None if settings.pooling == "auto" else settings.pooling,
        skip_padding=settings.skip_padding,
        dropout=settings.dropout,
        new=settings.new_head,
    )
    if settings.from_ is None:
        tell(f"Starting from random weights: {width} wide, {depth} blocks, {heads} heads, patches of {settings.patch}")
        return _Start(
            model=head.draw(SpectrogramEncoder(target)),
            features=features_of(store),
            normalisation=normalisation_of(settings, store),
        )
    warm = warm_start_classifier(
        settings.from_, config=target, head=head, keep_stride=settings.stride is None, source_heads=settings.heads
    )
    check_features(store, warm.source, path=settings.from_)
    tell(f"Starting from {settings.from_}: {warm.report}")
    return _Start(
        model=warm.module,
        features=features_of(store, warm.source),
        normalisation=normalisation_of(settings, store, warm.source),
        objective=warm.source.objective,
        head=warm.report.head,
        head_eps=warm.head_eps,
        new_head="head.weight" in warm.report.new,
    )


def _weights(
    source: str | Path, store: SpectrogramSource, clips: LabelledClips, settings: FinetuneSettings
) -> NDArray[np.float64] | None:
    """Chances of the training clips; None where each comes once an epoch."""
    from tymbal.evaluation.labelled_clips import balanced_weights, read_weights

    if not settings.balance:
        return None
    if settings.weights_csv is None:
        return balanced_weights(clips.truth(store, clips.train))
    return read_weights(settings.weights_csv, source, store.index["file"].take(clips.train).to_pylist())
