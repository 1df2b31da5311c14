"""What a fine-tuning starts with: the classifier with its loss, and a new head's first weights."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from tymbal._version import __version__
from tymbal.compute.device import choose_device, choose_precision
from tymbal.compute.processes import on_rank_zero, processes
from tymbal.errors import SettingsError
from tymbal.evaluation.head_start import choose_pooling, fit_head
from tymbal.evaluation.labelled_clips import LabelledClips, class_weights
from tymbal.features.normalisation import Normalisation
from tymbal.inference.encoding import check_features
from tymbal.models.classifier import GRIDS, SCRIPT_POOLING, SpectrogramClassifier, Standardisation
from tymbal.models.description import ModelDescription, features_of, normalisation_of
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.models.encoder_choice import is_filled
from tymbal.models.warm_start import POOLING, HeadChoice, warm_start_classifier
from tymbal.objectives.batch_augmentation import Augmentation
from tymbal.objectives.classification import ClassificationObjective, Ensemble
from tymbal.preparation.clips import BACKGROUND
from tymbal.progress import tell
from tymbal.settings import FeatureSettings, FinetuneSettings, parse_patch
from tymbal.settings.augmentation import SpectrogramViews
from tymbal.store.base import SpectrogramSource

__all__ = ["begin_head", "mixes_waveforms", "starting_objective"]


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


def starting_objective(
    store: SpectrogramSource, clips: LabelledClips, settings: FinetuneSettings
) -> tuple[ClassificationObjective, ModelDescription, bool]:
    """The classifier with its loss, what its model folder will say, and whether its head is new.

    Args:
        store: The clips' spectrograms.
        clips: Which of them to learn from and to validate on, and their labels.
        settings: The settings.

    Raises:
        ModelError: The weights to start from cannot be read, or do not fit the spectrograms.
        SettingsError: Settings do not fit the weights, or an ensemble is asked of several processes.
    """
    # The same seed gives the same weights, independent of the caller's random numbers.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        start = _start(store, clips, settings)
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
        # Mixed sounds would need mixed labels, which is mixup's part.
        views=replace(SpectrogramViews().times(settings.view_strength), mix=0.0) if settings.view_strength else None,
        features=store.features if mixes_waveforms(settings) else None,
        ensemble=_ensemble(clips) if settings.ensemble else None,
        seed=settings.seed,
        best_by=best_by,
    )
    provenance = {
        "verb": "finetune",
        "version": __version__,
        "from": settings.from_,
        "data": store.location,
    }
    if start.head is not None:
        provenance["head"] = start.head
    background = None if settings.background is None else BACKGROUND
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
        standardise=isinstance(model.head_norm, Standardisation),
        multilabel=clips.multilabel,
        background=background,
        head_eps=start.head_eps,
        objective=start.objective,
        provenance=provenance,
    )
    if description.compared_parts and model.pooling in ("rows", *GRIDS):
        description = replace(description, embedding=model.pooling)
    return objective, description, start.new_head


def begin_head(
    objective: ClassificationObjective, store: SpectrogramSource, clips: LabelledClips, settings: FinetuneSettings
) -> None:
    """Gives a new head its first weights, and the statistics that it standardises by."""
    regression = settings.head_start == "probe"
    if not regression and not isinstance(objective.model.head_norm, Standardisation):
        return
    fitted, count = fit_head(
        objective.model,
        store,
        clips.train,
        clips.truth(store, clips.train),
        groups=clips.groups(store, clips.train),
        scale=settings.head_scale,
        regression=regression,
        **_how_to_read(clips, settings, objective.normalisation),
    )
    if fitted is not None:
        tell(f"The head begins as a logistic regression on {count:,} clips, C = {fitted.strength:g}")


def _start(store: SpectrogramSource, clips: LabelledClips, settings: FinetuneSettings) -> _Start:

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
        attend_to_padding=settings.recipe != "scratch" or settings.pooling == "cls" or is_filled(store),
    )

    def otherwise(encoder: SpectrogramEncoder, source: ModelDescription | None) -> str:
        if settings.pooling == "auto":
            return POOLING
        if source is not None and source.knows_parts:
            return source.own_grid
        return _pooling_of_new_head(encoder, store, clips, settings, normalisation_of(settings, store, source))

    standardises = settings.head_norm == "auto" and settings.pooling not in ("cls", SCRIPT_POOLING)
    head = HeadChoice(
        labels=clips.classes,
        pooling=None if settings.pooling in ("auto", "grid") else settings.pooling,
        otherwise=otherwise,
        skip_padding=settings.skip_padding,
        dropout=settings.dropout,
        standardise=settings.head_norm == "batch" or standardises,
        eps=settings.head_epsilon,
        new=settings.new_head,
    )
    if settings.from_ is None:
        tell(f"Starting from random weights: {width} wide, {depth} blocks, {heads} heads, patches of {settings.patch}")
        return _Start(
            model=head.draw(SpectrogramEncoder(target), None),
            features=features_of(store),
            normalisation=normalisation_of(settings, store),
            head_eps=settings.head_epsilon,
        )
    warm = warm_start_classifier(
        settings.from_,
        config=target,
        head=head,
        keep_stride=settings.stride is None,
        positions=settings.positions,
        source_heads=settings.heads,
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


def _pooling_of_new_head(
    encoder: SpectrogramEncoder,
    store: SpectrogramSource,
    clips: LabelledClips,
    settings: FinetuneSettings,
    normalisation: Normalisation,
) -> str:
    """The grid that reads the training clips best, in folds of whole groups; the same in all processes."""

    def chosen() -> str:
        return choose_pooling(
            encoder,
            store,
            clips.train,
            clips.truth(store, clips.train),
            groups=clips.groups(store, clips.train),
            **_how_to_read(clips, settings, normalisation),
        )

    how = on_rank_zero(chosen)
    tell(f"The head pools by {how}, which reads the training clips best")
    return how


def _how_to_read(clips: LabelledClips, settings: FinetuneSettings, normalisation: Normalisation) -> dict[str, Any]:
    """What reading clips before the training needs besides them."""
    device, _ = choose_device(settings.device)
    return {
        "normalisation": normalisation,
        "multilabel": clips.multilabel,
        "seed": settings.seed,
        "device": device,
        "dtype": choose_precision(settings.precision, device)[0],
    }


def _class_weights(store: SpectrogramSource, clips: LabelledClips, settings: FinetuneSettings) -> Tensor | None:

    if settings.class_weights == "none":
        return None
    if settings.balance:
        tell(
            "Rare classes are drawn more often and weigh more: balance and class_weights do the same thing",
            warning=True,
        )
    return torch.from_numpy(class_weights(clips.truth(store, clips.train), multilabel=clips.multilabel))


def _augmentation(settings: FinetuneSettings) -> Augmentation | None:

    chosen = Augmentation(**{each.name: getattr(settings, each.name) for each in fields(Augmentation)})
    return None if chosen == Augmentation(mixup_of=settings.mixup_of) else chosen


def mixes_waveforms(settings: FinetuneSettings) -> bool:
    """Whether mixup lays sounds over each other, not spectrograms."""
    return settings.mixup > 0 and settings.mixup_of == "waveform"


def _ensemble(clips: LabelledClips) -> Ensemble:

    if processes() > 1:
        raise SettingsError(
            "ensemble is for one process: several do not see each other's predictions",
            advice="Set ensemble to false, or train with one process.",
        )
    return Ensemble(torch.from_numpy(clips.validation), len(clips.classes), multilabel=clips.multilabel)
