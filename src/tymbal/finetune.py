"""A classifier from labelled sound: `tymbal finetune`.

    tymbal finetune labelled -o classifier --from run

The labels are those of the training clips, and stay with the model. The run folder is that of any training; the best
model on the validation clips lies in `classifier/model` and goes straight into `tymbal predict`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tymbal import config as configuration
from tymbal.compute.processes import on_rank_zero, processes, quiet_except_rank_zero
from tymbal.errors import StoreError
from tymbal.files import write_json, written_alone
from tymbal.progress import tell
from tymbal.settings import FinetuneSettings, PrepareSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tymbal.compute.int8 import Rounding
    from tymbal.data import DataSource
    from tymbal.evaluation.labelled_clips import LabelledClips
    from tymbal.features.normalisation import Normalisation
    from tymbal.models.classifier import SpectrogramClassifier
    from tymbal.models.description import ModelDescription
    from tymbal.store.base import SpectrogramSource
    from tymbal.store.dataset import StoreDataset
    from tymbal.training.callbacks import Evaluation
    from tymbal.training.run_folder import Resume, RunFolder, RunResult

__all__ = ["finetune"]

_BY_WIDTH = ("lp-ft", "scratch")
"""Recipes whose learning rate follows from the encoder's width."""

_EVALUATIONS = 10
"""Evaluations at most of a run that is as long as its `min_steps`: they cost more than learning from few clips."""

_LISTENED = 2000
"""Clips by which the level of the quietest ones is known."""

_ROUNDED, _SMALL = 256, 384
"""Validation clips that are scored in 8 bits, too, and the widest encoder for which there are so many."""

_RATE, _WIDTH = 1e-3, 128
"""The learning rate of an encoder, and its width; that of wider ones falls in proportion (Yang et al. 2021)."""


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
            split here), a manifest, or what `tymbal label` wrote, which is prepared into the run folder with the
            spectrogram settings of the weights that it starts from.
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
    from tymbal.training.beginning import begin
    from tymbal.training.run_folder import RunFolder

    run, arguments = Path(output), {"source": source, "output": output}
    data = open_data(source, _resolved(settings, config=config, begun=RunFolder(run).begun()))
    chosen = data.settings
    configuration.say_useless(chosen, settings)
    finished = begin("finetune", run, arguments, chosen, resume=resume)
    if finished is not None:
        return finished
    if chosen.classes == "seen" and chosen.data_val is None and data.has_sound:
        _check_labels(source, chosen, several=_may_have_several(data))
    store = data.spectrograms(run, features_at(chosen.from_, heads=chosen.heads))

    # What trains takes seconds to import: not before it is said what is learned from.
    from tymbal.evaluation.classifier_start import begin_head, starting_objective
    from tymbal.store.dataset import StoreDataset
    from tymbal.training.layers import add_adapters, freeze, layered_groups, merged, stages
    from tymbal.training.run import train

    clips = _clips(data, store, chosen, every=subsample(store, run, chosen))
    chosen = on_rank_zero(lambda: _with_patch(chosen, store, clips))
    objective, description, new_head = starting_objective(store, clips, chosen)
    encoder = objective.model.encoder
    if chosen.recipe == "notebook":
        _tell_of_notebooks(description)
    if new_head and chosen.pooling == "grid":
        chosen = replace(chosen, pooling=cast(Any, objective.model.pooling))
    on_rank_zero(lambda: RunFolder(run).record("finetune", arguments, chosen))
    if new_head and not _has_begun(run):
        begin_head(objective, store, clips, chosen)
    freeze(objective.model, chosen.train)
    add_adapters(encoder, chosen.lora, seed=chosen.seed)
    recorded = configuration.to_mapping(chosen)
    chosen = _with_least_steps(chosen, len(clips.train))

    def finalise(result: RunResult) -> None:
        from tymbal.models.folder import save_model

        provenance = {**description.provenance, "settings": recorded, "metrics": result.metrics}
        cost = _rounding(merged(objective.model), store, clips, description.normalisation)
        if cost is not None:
            provenance["int8"] = cost.to_json()
        level = None if clips.multilabel else _level(store, clips.train)
        save_model(result.model, merged(objective.model), replace(description, provenance=provenance, level=level))
        if result.model == RunFolder(run).model:
            _write_confusion(RunFolder(run), result, clips.classes)

    result = train(
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
        eval_start=chosen.eval_start,
        finalise=finalise,
    )
    if chosen.score_test:
        _score_test(result, store, chosen)
    return result


TEST = "test.json"
"""The figures of the test clips, in a run that has them scored."""


def _score_test(result: RunResult, store: SpectrogramSource, settings: FinetuneSettings) -> None:
    """Scores the clips of the split `test` by the saved model, which none of them had a part in choosing.

    Raises:
        StoreError: There are none with labels that the model knows.
    """
    from tymbal.evaluation.scoring import figures_of

    count = len(store.rows("test"))
    if not count:
        raise StoreError(
            "no clip has the split test, which score_test asks for",
            path=store.path,
            advice="Give the list a column split, or leave score_test out.",
        )
    figures = figures_of(result.model, store, split="test", batch_size=settings.batch_size, device=settings.device)
    leading = ("mAP", "auc", "t1_accuracy", "accuracy", "balanced_accuracy")
    said = ", ".join(f"{name} {figures[name]:.4f}" for name in leading if name in figures)
    tell(f"On {count:,} test clips: {said}")
    on_rank_zero(lambda: write_json(result.run / TEST, {name: float(value) for name, value in figures.items()}))


def _rounding(
    module: SpectrogramClassifier, store: SpectrogramSource, clips: LabelledClips, normalisation: Normalisation
) -> Rounding | None:
    """What `predict --precision int8` costs this classifier, on some validation clips."""
    import numpy as np
    import torch

    from tymbal.compute.int8 import rounding
    from tymbal.store.dataset import normalised_batches

    most = _ROUNDED if module.encoder.config.width <= _SMALL else _ROUNDED // 8
    some = clips.validation[np.unique(np.linspace(0, len(clips.validation) - 1, most).astype(np.int64))]
    batches = normalised_batches(store, some, normalisation=normalisation, batch_size=16, device="cpu")
    asked = ((batch.x, batch.frames, torch.from_numpy(clips.truth(store, batch.rows))) for batch in batches)
    return rounding(module, asked, multilabel=clips.multilabel)


def _level(store: SpectrogramSource, rows: NDArray[np.int64]) -> float | None:
    """Level of the quietest clips, see `ModelDescription.level`; None where none can be read any more."""
    import numpy as np

    from tymbal.features.normalisation import Normalisation, loudest
    from tymbal.store.dataset import normalised_batches

    some = rows[np.unique(np.linspace(0, len(rows) - 1, _LISTENED).astype(np.int64))]
    as_it_is = Normalisation(mean=0.0, std=0.5, padding=store.padding)
    batches = normalised_batches(store, some, normalisation=as_it_is, batch_size=64, device="cpu")
    levels = [loudest(batch.x, batch.frames).numpy() for batch in batches]
    return float(np.percentile(np.concatenate(levels), 1)) if levels else None


def _resolved(
    given: Mapping[str, Any], *, config: str | Path | None, begun: Mapping[str, Any] | None
) -> FinetuneSettings:
    """The settings, with the recipe that suits what it starts from.

    Args:
        given: The settings that the caller gave.
        config: A file with others.
        begun: What the run that is to be continued has recorded; None where there is none.
    """
    from tymbal.models.hub import pinned

    chosen = configuration.resolve(FinetuneSettings, given, config=config, begun=begun)
    source = pinned(chosen.from_, begun)
    if source != chosen.from_:
        given = {**{name: value for name, value in given.items() if name != "from"}, "from_": source}
        chosen = replace(chosen, from_=source)
    if begun is not None:  # what was left to the data was decided when the run began
        left = {"patch": "auto", "pooling": "grid"}
        given = {name: value for name, value in given.items() if left.get(name) != value}
    recipe = chosen.recipe
    if recipe == "auto" and begun is not None:
        recipe = begun.get("recipe", "none")
    if recipe not in ("auto", *_BY_WIDTH):
        return chosen
    if begun is not None and "learning_rate" in begun:
        rate = begun["learning_rate"]
    else:
        origin = None
        if chosen.from_ is not None:
            from tymbal.models.folder import open_checkpoint

            origin = open_checkpoint(chosen.from_, heads=chosen.heads).description
        if recipe == "auto":
            recipe = "scratch" if origin is None else "lp-ft" if "verb" in origin.provenance else "none"
        chosen = configuration.resolve(FinetuneSettings, {**given, "recipe": recipe}, config=config)
        if recipe not in _BY_WIDTH:
            return chosen
        rate = _RATE * min(1.0, _WIDTH / (chosen.shape[0] if origin is None else origin.encoder.width))
    given, by_width = {**given, "recipe": recipe}, {"learning_rate": rate}
    return configuration.resolve(FinetuneSettings, given, config=config, begun=begun, defaults=by_width)


def _tell_of_notebooks(description: ModelDescription) -> None:
    """Says where the classifier differs from those of the notebooks, and what stock transformers needs to load it."""
    from tymbal.models.classifier import SCRIPT_POOLING
    from tymbal.models.formats.huggingface import obstacle

    if description.pooling != SCRIPT_POOLING:
        tell(
            f"The head pools by {description.pooling}; that of the notebooks by {SCRIPT_POOLING}, which --pooling "
            f"{SCRIPT_POOLING} gives"
        )
    needed = {
        "--pooling cls": description.pooling != "cls",
        "--head-norm layer": description.standardise,
        "--normalize dataset": description.normalize != "dataset",
    }
    flags = [flag for flag, is_needed in needed.items() if is_needed]
    hinders = obstacle(description.encoder, None)
    if hinders is not None:
        tell(f"AutoModelForAudioClassification cannot hold the model without trust_remote_code=True: {hinders}")
    elif flags:
        tell(
            f"For AutoModelForAudioClassification with transformers' own extractor, train with {' '.join(flags)}. "
            "As it is, pipeline and Auto classes need trust_remote_code=True"
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


def _may_have_several(data: DataSource[FinetuneSettings]) -> bool | None:
    """Whether a clip may have several labels, or none; None where the clips tell."""
    loss = data.settings.loss
    return (data.has_negatives or None) if loss == "auto" else loss == "bce"


def _check_labels(source: str | Path, settings: FinetuneSettings, *, several: bool | None) -> None:
    """Refuses classes that occur only in validation, or too few, before sound is prepared."""
    from tymbal.evaluation.labelled_clips import refuse_too_few, refuse_unlearned
    from tymbal.preparation.clips import BACKGROUND, given_labels

    labels = given_labels(
        source, PrepareSettings(label_csv=settings.label_csv, label_separator=settings.label_separator)
    )
    taught = sorted(labels.get("train", set()) | labels.get(None, set()))
    taught += [] if settings.background is None or not taught else [BACKGROUND]
    refuse_too_few(taught, 1 if several else 2, path=str(source))
    if labels.get("train"):
        refuse_unlearned(sorted(labels.get("validation", set()) - labels["train"]), path=str(source))


def _clips(
    data: DataSource[FinetuneSettings], store: SpectrogramSource, settings: FinetuneSettings, *, every: int
) -> LabelledClips:
    from tymbal.audio.file_lists import table_classes
    from tymbal.evaluation.labelled_clips import labelled_clips

    table = table_classes(settings.label_csv) if settings.classes == "table" and settings.label_csv else None
    clips = labelled_clips(store, multilabel=_may_have_several(data), classes=table, every=every)
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


def _has_begun(run: Path) -> bool:
    """Whether weights come from a checkpoint anyway."""
    from tymbal.training.checkpoints import Checkpoints
    from tymbal.training.run_folder import RunFolder

    return Checkpoints(RunFolder(run).checkpoints).newest() is not None


def _with_patch(settings: FinetuneSettings, store: SpectrogramSource, clips: LabelledClips) -> FinetuneSettings:
    """The settings with the patch that suits the sound, which is said, where they leave it to that."""
    from tymbal.models.encoder_choice import patch_for, time_structure

    if settings.patch != "auto":
        return settings
    if settings.from_ is not None:
        return replace(settings, patch="16x16")  # without effect: it is that of the weights
    patch, why = patch_for(time_structure(store, clips.train), mels=store.mels, frames=store.frames)
    tell(f"Patches of {patch} mel bins x frames: {why}")
    return replace(settings, patch=patch)


def _with_least_steps(settings: FinetuneSettings, clips: int) -> FinetuneSettings:
    """The settings with more epochs, evaluated rarely, where few clips would make few steps."""
    if settings.max_steps is not None or not clips:
        return settings
    a_step = (settings.batch_sizes or (settings.batch_size,))[-1] * settings.accumulate * processes()
    factor = settings.min_steps * a_step / (settings.epochs * clips)
    if factor <= 1:
        return settings
    epochs = settings.epochs * factor
    return replace(settings, epochs=epochs, eval_every=max(settings.eval_every, epochs / _EVALUATIONS))


def _training_clips(store: SpectrogramSource, clips: LabelledClips, settings: FinetuneSettings) -> StoreDataset:
    from tymbal.evaluation.classifier_start import mixes_waveforms
    from tymbal.store.dataset import StoreDataset

    if not mixes_waveforms(settings):
        return StoreDataset(store, clips.train, labels=True)
    from tymbal.store.dataset import SoundDataset

    return SoundDataset(store, clips.train)


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
