"""The part of a report that one source makes: a store, a run, a probe, or predictions."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from html import escape
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tymbal import config as configuration
from tymbal.audio.failures import failures_beside
from tymbal.compute.device import choose_device
from tymbal.config import RUN_FILE, RunFile
from tymbal.data import open_data
from tymbal.errors import SettingsError, StoreError
from tymbal.evaluation.baseline import baseline_features
from tymbal.evaluation.scoring import LabelledScores, score_validation
from tymbal.inference.encoding import FrozenEncoder
from tymbal.inference.predictions import detections_path, is_annotations
from tymbal.inference.taught import TEACHER_FILE
from tymbal.models.encoder import SpectrogramEncoder
from tymbal.models.folder import load_model
from tymbal.objectives import registry
from tymbal.pages.page import NotShownError, Part, Section, details, section, table, tiles
from tymbal.pages.players import Sounds
from tymbal.reporting.classifier_part import by_class, confusion, mistakes
from tymbal.reporting.drawn_clips import Clips, choose_rows, embedding_map
from tymbal.reporting.predictions_part import Predictions
from tymbal.reporting.probes_part import Probes
from tymbal.reporting.run_part import (
    learning_curves,
    rebuilt_from_checkpoints,
    rebuilt_in_course,
    run_tiles,
    shown_views,
    speed,
    teacher_and_student,
)
from tymbal.reporting.store_part import balance, copies, examples, left_out, lengths, store_tiles
from tymbal.settings import PtSettings, ReportSettings
from tymbal.store.base import SpectrogramSource
from tymbal.training.figures import read_metrics
from tymbal.training.run_folder import RunFolder, read_result

__all__ = ["PageContext", "part_of"]

_FAILURES = "failures.csv"
_RUNS = {"pretrain": "Pretraining", "finetune": "Fine-tuning"}


@dataclass(frozen=True)
class PageContext:
    """State that the parts of a page share.

    Attributes:
        numbers: Numbers that nothing on the page has yet.
        stores: Stores that are on the page.
        kinds: Kinds of sources that are on it, as `only_for` of the settings names them.
    """

    numbers: Iterator[int] = field(default_factory=lambda: count(1))
    stores: set[Path] = field(default_factory=set)
    kinds: set[str] = field(default_factory=set)


def part_of(source: Path, settings: ReportSettings, context: PageContext) -> Part:
    """Recognises the kind of a source, and makes its part of the page.

    Args:
        source: A store, a run folder, what predict wrote, or the table of a probe.
        settings: The settings of the report.
        context: State that the parts of the page share.

    Raises:
        SettingsError: It is nothing that can be reported on.
        StoreError: It is a store that cannot be read.
    """
    if (source / RUN_FILE).is_file():
        record = configuration.read_run_yaml(source)
        if record.verb in _RUNS:
            context.kinds.add(record.verb)
            return _run_part(source, record, settings, context)
    probes = Probes.read(source) if source.is_file() and source.suffix == ".json" else None
    if probes is not None:
        context.kinds.add("probe")
        return _probe_part(probes)
    if source.is_file() or is_annotations(source):
        context.kinds.add("predictions")
        return _predictions_part(Predictions.read(source), settings, context)
    data = open_data(source, PtSettings())
    if data.has_rows:
        context.kinds.add("store")
        return _store_part(data.store(), settings, context)
    raise SettingsError(
        "there is nothing to report on" if data.exists else "there is no such file or folder",
        path=source,
        advice="Give a store, the folder of a run of pretrain or finetune, what predict wrote, or the .json of probe.",
    )


def _store_part(source: SpectrogramSource, settings: ReportSettings, context: PageContext) -> Part:
    context.stores.add(source.path.resolve())
    store = source.singles()
    clips = Clips(store, _sounds(settings, store.path.parent, context.numbers))
    mapped = Clips(store, _sounds(settings, store.path.parent, context.numbers))

    def draw_map() -> str:
        rows = choose_rows(mapped, most=settings.map_clips, seed=settings.seed)
        what = "Mean and spread of the mel bins (no model has a part in it)"
        rows, moments = baseline_features(store, rows)
        return embedding_map({what: moments}, mapped, rows, settings)

    sections = [
        section("Labels", lambda: balance(store)),
        section("Lengths and origin", lambda: lengths(store)),
        section("Some clips", lambda: _with_remark(examples(clips, most=settings.examples, seed=settings.seed), clips)),
        section("Map of the clips", lambda: _with_remark(draw_map(), mapped)),
        section("Copies", lambda: copies(clips)),
        section("Left out", lambda: left_out(store.path / _FAILURES)),
        section("Settings", lambda: _facts(source.recorded_settings, source.provenance)),
    ]
    return _part("Store", store.path, store_tiles(source), sections)


def _run_part(path: Path, record: RunFile, settings: ReportSettings, context: PageContext) -> Part:
    logged = read_metrics(path / "metrics.jsonl")
    result = path / "result.json"
    try:
        ended = read_result(result) if result.is_file() else None
    except ValueError as error:
        raise SettingsError(f"is damaged ({error})", path=result, advice="Run the training's command again.") from None
    with tempfile.TemporaryDirectory(prefix="tymbal-report-") as folder:
        run = _Run(path, record, settings, Path(folder), context)
        own = (_classified if record.verb == "finetune" else _rebuilt)(run, logged)
        sections = [
            section("Learning curves", lambda: learning_curves(logged)),
            *own,
            section("Map of the clips", run.map),
            *run.labels(),
            section("Left out", lambda: left_out(path / _FAILURES)),
            section("Speed", lambda: speed(logged)),
            section("Settings", lambda: _facts(record.settings, record.versions, record.machine)),
        ]
    return _part(_RUNS[record.verb], path, run_tiles(logged, ended), sections)


def _rebuilt(run: _Run, logged: list[dict[str, Any]]) -> list[Section]:
    def some() -> NDArray[np.int64]:
        splits = set(run.store.index["split"].to_pylist())
        rows = run.store.rows("validation" if "validation" in splits else None)
        return np.sort(np.random.default_rng(run.settings.seed).permutation(rows)[: run.settings.rebuilt])

    def draw() -> str:
        folder = RunFolder(run.path).rebuilt
        if folder.is_dir():
            return rebuilt_in_course(folder, most=run.settings.rebuilt)
        return rebuilt_from_checkpoints(run.path, run.clips, some(), logged)

    def views() -> str:
        if run.source.views != 1 or run.source.samples is not None:
            raise NotShownError("the views of this run are made from waveforms: tymbal prepare --preview shows them")
        return shown_views(load_model(run.path), run.clips, some())

    name = run.record.settings.get("objective")
    if name in registry.names() and registry.spec(name).settings.compares_views:
        taught = run.path / TEACHER_FILE
        met = [section("Teacher and student", lambda: teacher_and_student(taught))] if taught.exists() else []
        return [*met, section("Views", views)]
    return [section("Hidden and rebuilt", draw)]


def _classified(run: _Run, _: list[dict[str, Any]]) -> list[Section]:
    def surest() -> str:
        return _with_remark(mistakes(run.scored, run.clips, most=run.settings.mistakes), run.clips)

    return [
        section("Confusion", lambda: confusion(run.scored)),
        section("Surest mistakes", surest),
        section("Class by class", lambda: by_class(run.scored)),
    ]


def _predictions_part(predictions: Predictions, settings: ReportSettings, context: PageContext) -> Part:
    sounds = _sounds(settings, predictions.path.parent, context.numbers)

    def surest() -> str:
        drawn = predictions.surest(sounds, most=settings.mistakes)
        return drawn + _remark(sounds)

    other = detections_path(predictions.path) if predictions.of_windows else None
    failures = predictions.path / _FAILURES
    if not predictions.path.is_dir():
        older = predictions.path.with_name(_FAILURES)  # an earlier version's, for all outputs of a folder
        own = failures_beside(predictions.path)
        failures = older if older.is_file() and not own.is_file() else own
    sections = [
        section("Labels", predictions.labels),
        *([] if other is None else [section("Detections", lambda: Predictions.read(other).labels())]),
        section("How sure", predictions.sureness),
        section("Along the recordings", predictions.over_time),
        section(f"Surest {predictions.kind}", surest),
        section("Left out", lambda: left_out(failures) if failures.is_file() else "<p>No recording was left out.</p>"),
    ]
    kind = "Predictions" if predictions.of_windows else "Detections"
    return _part(kind, predictions.path, predictions.tiles(), sections)


def _probe_part(probes: Probes) -> Part:
    sections = [
        section("What it knows", probes.bars),
        section("Layer by layer", probes.by_layer),
        section("From few clips", probes.by_shots),
        section("Confusion", probes.confusion),
        section(
            "Settings",
            lambda: _facts({"model": probes.facts["model"], "data": probes.facts["data"]}, probes.facts["settings"]),
        ),
    ]
    return _part("Probe", probes.path, probes.tiles(), sections)


@dataclass(frozen=True)
class _Run:
    """The data that the sections of a run share, each read on first use.

    Attributes:
        path: The run folder.
        record: Its run.yaml.
        settings: The settings of the report.
        scratch: An empty folder.
        context: State that the parts of the page share.
    """

    path: Path
    record: RunFile
    settings: ReportSettings
    scratch: Path
    context: PageContext

    @cached_property
    def source(self) -> SpectrogramSource:
        """The clips that the run learned from, as they are kept: spectrograms, pairs of views, or waveforms."""
        given = self.settings.data or self.record.arguments.get("store") or self.record.arguments.get("source")
        # A folder that holds run and store may have moved as a whole.
        places = [self.path / "store"]
        if given is not None:
            places += [Path(given), self.path.parent / Path(given).name]
        for place in places:
            data = open_data(place, PtSettings())
            if place.is_dir() and data.is_packed:
                return data.store()
        if given is None or not Path(given).exists():
            raise StoreError(
                "the clips of the run are not there any more", path=given, advice="Say where they are: --data STORE."
            )
        chosen = configuration.from_mapping(
            PtSettings,
            {
                each.name: self.record.settings[each.name]
                for each in fields(PtSettings)
                if each.name in self.record.settings
            },
        )
        data = open_data(given, chosen)
        if data.has_views:
            return data.store()
        return data.spectrograms(self.scratch, load_model(self.path).description.features)

    @cached_property
    def store(self) -> SpectrogramSource:
        """These clips, a spectrogram each."""
        return self.source.singles()

    @cached_property
    def clips(self) -> Clips:
        """The clips, ready to be drawn."""
        return Clips(self.store, _sounds(self.settings, self.store.path.parent, self.context.numbers))

    @cached_property
    def scored(self) -> LabelledScores:
        """The classifier's scores of the validation clips."""
        device = choose_device(self.settings.device)[0]
        return score_validation(load_model(self.path), self.store, batch_size=self.settings.batch_size, device=device)

    def labels(self) -> list[Section]:
        """The labels, unless the store has its own part of the page."""
        labels = section("Labels", lambda: balance(self.store))
        return [] if "store" in vars(self) and self.store.path.resolve() in self.context.stores else [labels]

    def map(self) -> str:
        """A map of what the model makes of the clips."""
        loaded = load_model(self.path)
        module = loaded.module
        encoder = module if isinstance(module, SpectrogramEncoder) else module.encoder
        mapped = Clips(self.store, _sounds(self.settings, self.store.path.parent, self.context.numbers))
        rows = choose_rows(mapped, most=self.settings.map_clips, seed=self.settings.seed)
        frozen = FrozenEncoder(
            encoder,
            loaded.description.normalisation,
            batch_size=self.settings.batch_size,
            device=choose_device(self.settings.device)[0],
        )
        pooling = loaded.description.embedding or "mean"
        embeddings = frozen.embed(self.store, rows, poolings=[pooling])
        vectors = {"Embeddings of the model": embeddings.values[pooling, None]}
        if self.record.verb == "pretrain" and self.record.settings.get("from_") is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.settings.seed)
                frozen.encoder = SpectrogramEncoder(encoder.config).to(frozen.device).eval()
            before = frozen.embed(self.store, embeddings.rows, poolings=[pooling])
            kept = np.isin(embeddings.rows, before.rows)
            vectors = {
                "Before the pretraining: embeddings by random weights": before.values[pooling, None],
                "After it: embeddings of the model": embeddings.values[pooling, None][kept],
            }
            embeddings = before
        return _with_remark(embedding_map(vectors, mapped, embeddings.rows, self.settings), mapped)


def _part(kind: str, path: Path, figures: Mapping[str, str], sections: list[Section]) -> Part:
    lead = f'<p class="path">{escape(str(path))}</p>{tiles(figures)}'
    return Part(f"{kind}: {path.resolve().name}", lead, tuple(sections))


def _sounds(settings: ReportSettings, beside: Path, numbers: Iterator[int]) -> Sounds:
    return Sounds(most=settings.sounds, seconds=settings.sound_seconds, beside=beside, numbers=numbers)


def _with_remark(body: str, clips: Clips) -> str:
    return body + _remark(clips.sounds)


def _remark(sounds: Sounds) -> str:
    text = sounds.remark()
    return f'<p class="soft screen">{escape(text)}</p>' if text else ""


def _facts(*parts: Mapping[str, Any]) -> str:
    """Settings, versions and the like; those chosen by hand or worth knowing come first."""
    rows = [(str(name), _value_text(value)) for part in parts for name, value in part.items()]
    return details(f"{len(rows)} settings, versions and the like", table(("name", "value"), rows))


def _value_text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "" if value is None else str(value)
