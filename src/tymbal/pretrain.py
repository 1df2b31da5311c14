"""An encoder from unlabelled sound: `tymbal pretrain`.

    tymbal pretrain store -o run --max-minutes 10
    tymbal pretrain recordings -o run --objective reconstruction

Run again after a stop, it continues where the last checkpoint was written, to the same weights as without the stop. The
best encoder on the validation clips lies in `run/model`, with the heads that it was pretrained with, and goes straight
into `tymbal probe` and `tymbal finetune --from run`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tymbal import config as configuration
from tymbal._version import __version__
from tymbal.compute.processes import on_rank_zero, quiet_except_rank_zero
from tymbal.errors import SettingsError
from tymbal.files import written_alone
from tymbal.objectives import registry
from tymbal.objectives.contract import continue_heads
from tymbal.progress import tell
from tymbal.settings import DataChoice, PretrainSettings, ViewPairSettings
from tymbal.values import plain

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from tymbal.evaluation.watch import Watch
    from tymbal.models.description import ModelDescription
    from tymbal.objectives.contract import Objective
    from tymbal.store.base import SpectrogramSource
    from tymbal.training.callbacks import Evaluation
    from tymbal.training.run_folder import Resume, RunResult

__all__ = ["pretrain"]

_FILLING, _GROUPS = 2, 10
"""Batches that a group has to fill, and groups that have to do so, for batches of one group each: of a few speakers an
encoder learns each by itself, and not what they have in common."""


@quiet_except_rank_zero()
@written_alone
def pretrain(
    store: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    resume: Resume = "auto",
    config: str | os.PathLike[str] | None = None,
    on_evaluation: Callable[[Evaluation], None] | None = None,
    **settings: Any,
) -> RunResult:
    """Pretrains an encoder on the spectrograms of a store.

    Args:
        store: A store; a folder or an SSAST list of `.pt` spectrograms; or a folder of sound files or a manifest, which
            is prepared into the run folder first.
        output: The run folder.
        resume: `auto` continues the run in the output folder if there is one, True insists on one, False on none; or
            the folder of a checkpoint.
        config: YAML file with settings, or the `run.yaml` of an earlier run.
        on_evaluation: Called at every evaluation with its figures, and the module with its weights at that moment.
        **settings: See `tymbal.settings.PretrainSettings`, and the settings of the objective in its own file, as
            `tymbal.objectives.ssast.SSASTSettings`.

    Raises:
        StoreError: The store cannot be read or has no clips to learn from.
        ModelError: The weights to start from cannot be read or do not fit.
        SettingsError: Settings do not go together, or the folder holds another run.
        CheckpointError: There is nothing to resume from, or it belongs to other data.
        TrainingError: The loss is not finite.
    """
    from tymbal.data import dataset_of, open_data, subsample
    from tymbal.models.hub import pinned
    from tymbal.models.warm_start import features_at
    from tymbal.training.beginning import begin
    from tymbal.training.run_folder import RunFolder

    run = Path(output)
    begun = RunFolder(run).begun()
    resolved = registry.resolve(settings, config=config, begun=begun)
    source = open_data(store, replace(resolved, from_=pinned(resolved.from_, begun)))
    chosen = source.settings
    arguments = {"store": store, "output": output}
    configuration.say_useless(chosen, settings)
    finished = begin("pretrain", run, arguments, chosen, resume=resume)
    if finished is not None:
        return finished
    paired = isinstance(chosen, ViewPairSettings)
    features = features_at(chosen.from_, heads=chosen.heads)
    data = source.view_pairs(run, features) if paired else source.spectrograms(run, features)

    # What trains takes seconds to import: not before it is said what is learned from.
    from tymbal.evaluation.rebuilding import Snapshots
    from tymbal.evaluation.snapshots import can_rebuild
    from tymbal.evaluation.students import compare
    from tymbal.inference.taught import taught
    from tymbal.objectives.distill import DistillObjective, DistillSettings
    from tymbal.training.layers import heads_first, layered_groups, merged
    from tymbal.training.run import train

    train_rows, validation_rows = _rows(data, every=subsample(data, run, chosen))
    chosen = on_rank_zero(lambda: _fitted(chosen, data, train_rows))
    on_rank_zero(lambda: RunFolder(run).record("pretrain", arguments, chosen))
    if isinstance(chosen, DistillSettings):
        train_rows, validation_rows = taught(data, chosen, run, train_rows, validation_rows)
    objective, description, new_heads = _objective(data, chosen)
    module = cast("nn.Module", objective)
    watch = _watch(objective, description, data, validation_rows, settings=chosen, run=run)
    snapshots = []
    if chosen.snapshots and len(validation_rows) and can_rebuild(module):
        folder = RunFolder(run).rebuilt
        snapshots = [Snapshots(folder, module, data, validation_rows, clips=chosen.snapshots)]

    def finalise(result: RunResult) -> None:
        from tymbal.models.folder import save_model

        described = replace(description, provenance={**description.provenance, "metrics": result.metrics})
        save_model(
            result.model,
            merged(objective.encoder),
            described,
            objective_state=objective.head_state(),
        )
        if isinstance(chosen, DistillSettings) and isinstance(objective, DistillObjective):
            compare(objective, described, data, validation_rows, settings=chosen, run=run)

    warming = chosen.head_warmup if new_heads and chosen.from_ is not None else 0.0
    return train(
        module,
        dataset_of(data, train_rows, chosen),
        dataset_of(data, validation_rows, chosen),
        settings=chosen,
        run=run,
        verb="pretrain",
        resume=resume,
        clip_groups=data.required_groups("batches is group")[train_rows] if chosen.groups_batches else None,
        groups=layered_groups(module, objective.encoder, chosen) if chosen.layer_decay < 1 else None,
        stages=heads_first(objective.encoder, warming),
        eval_start=chosen.eval_start,
        on_evaluation=on_evaluation,
        watch=watch,
        callbacks=snapshots,
        finalise=finalise,
    )


def _watch(
    objective: Objective,
    description: ModelDescription,
    data: SpectrogramSource,
    rows: NDArray[np.int64],
    *,
    settings: PretrainSettings,
    run: Path,
) -> Watch | None:
    """What looks at the embeddings with every evaluation; None where there is nothing to look at.

    Raises:
        SettingsError: A probe is asked for, and there are no validation clips.
    """
    from tymbal.evaluation.watch import LabelProbe, Watch
    from tymbal.training.figures import read_metrics
    from tymbal.training.run_folder import RunFolder

    probe = LabelProbe.open(settings, description)
    if probe is not None and not len(rows):
        raise SettingsError(
            "probe_data is read with evaluations, and there are no validation clips",
            advice="Prepare the store with a validation split, or do without probe_data.",
        )
    if not len(rows) or data.views != 1 or data.samples is not None:  # on pairs, an objective watches itself
        return None
    metrics = RunFolder(run).metrics
    return Watch(
        objective.encoder,
        description,
        data,
        rows,
        history=lambda: read_metrics(metrics),
        monitor=objective.monitor,
        probe=probe,
        precision=settings.precision,
    )


def _rows(store: SpectrogramSource, *, every: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to learn from and rows to validate on, one in `every`; without splits, all are learned from."""
    train = store.rows("train" if store.splits else None)
    validation = store.rows("validation") if "validation" in store.splits else train[:0]
    if every > 1:
        train, validation = train[::every], validation[::every]
        tell(f"Of every split one clip in {every} is taken")
    tell(f"{len(train):,} clips to learn from, {len(validation):,} to validate on")
    return train, validation


def _fitted(settings: PretrainSettings, store: SpectrogramSource, rows: NDArray[np.int64]) -> PretrainSettings:
    """The settings with what they leave to the data, which is said.

    Args:
        settings: The resolved settings.
        store: The data.
        rows: Rows to learn from.
    """
    from tymbal.models.encoder_choice import is_full_height, patch_for, size_for, time_structure
    from tymbal.models.folder import open_checkpoint

    size, patch = settings.size, settings.patch
    structure = time_structure(store, rows) if settings.depends_on_structure else None
    if settings.from_ is not None:
        known = open_checkpoint(settings.from_, heads=settings.heads).description.encoder.patch
        patch = f"{known[0]}x{known[1]}"
    elif patch == "auto" and structure is not None:
        patch, why = patch_for(structure, mels=store.mels, frames=store.frames)
        tell(f"Patches of {patch} mel bins x frames: {why}")
    if size == "auto" and settings.from_ is None and not (settings.width and settings.depth):
        size, why = size_for(store, rows)
        tell(f"Size {size}, for {why}")
    numbers = store.group_numbers()
    counts = np.zeros(1) if numbers is None else np.bincount(numbers[rows])
    filling = counts[counts >= _FILLING * max(settings.batch_size, *settings.batch_sizes, 1)]
    grouped = len(filling) >= _GROUPS and 2 * filling.sum() >= len(rows)
    height = is_full_height(patch, store.mels)
    steady = structure is not None and structure.steady
    return settings.fitted(DataChoice(size=size, patch=patch, full_height=height, grouped=bool(grouped), steady=steady))


def _objective(store: SpectrogramSource, settings: PretrainSettings) -> tuple[Objective, ModelDescription, bool]:
    """The encoder with its objective, what its model folder will say, and whether the objective's heads are new."""
    import torch

    from tymbal.inference.encoding import check_features
    from tymbal.models.description import ModelDescription, features_of, normalisation_of
    from tymbal.models.folder import open_checkpoint
    from tymbal.models.warm_start import first_encoder
    from tymbal.training.layers import add_adapters

    spec = registry.spec(settings.objective)
    # The same seed gives the same weights, independent of the caller's random numbers.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        encoder, origin = first_encoder(
            settings, mels=store.mels, frames=store.frames, keep_stride=spec.patches_may_overlap
        )
        if origin is not None:
            check_features(store, origin, path=settings.from_)
        normalisation = normalisation_of(settings, store, origin)
        objective = spec.build(encoder, store, normalisation, settings)
    new_heads = settings.from_ is None or not continue_heads(
        objective, open_checkpoint(settings.from_, heads=settings.heads).objective
    )
    encoder.gradient_checkpointing = settings.gradient_checkpointing
    if settings.train != "all":
        encoder.freeze_below(int(settings.train))
    add_adapters(encoder, settings.lora, seed=settings.seed)
    chosen = configuration.to_mapping(settings)
    described = ModelDescription(
        encoder=encoder.config,
        features=features_of(store, origin),
        mean=normalisation.mean,
        std=normalisation.std,
        padding=normalisation.padding,
        normalize=normalisation.by,
        objective=plain(settings.describe_objective()),
        provenance={
            "verb": "pretrain",
            "version": __version__,
            "from": settings.from_,
            "data": store.location,
            "settings": chosen,
        },
    )
    # What an objective compares part by part is read so.
    embedding = described.own_grid if described.compared_parts else None
    return objective, replace(described, embedding=embedding), new_heads
