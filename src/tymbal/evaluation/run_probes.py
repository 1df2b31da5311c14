"""Runs all probes of a model: plain lines, encoders, layers, poolings and readers, few clips of each class, folds."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from tymbal.compute.device import choose_device
from tymbal.errors import SettingsError, StoreError
from tymbal.evaluation.attentive import fit_attentive
from tymbal.evaluation.baseline import MOMENTS, PARTS, PREFERRED, coarser, plain_features
from tymbal.evaluation.embedding_cache import Tokens, embed_with_cache, write_tokens
from tymbal.evaluation.labelled_clips import LabelledClips
from tymbal.evaluation.linear import grouped_folds
from tymbal.evaluation.probe_tasks import READERS, ProbeRow, ProbeTask, aggregate, draw_shots
from tymbal.evaluation.selection import Choice, Verdict, choose, judge, mix_layers
from tymbal.evaluation.students import speeds
from tymbal.inference.encoding import FrozenEncoder, RowEmbeddings
from tymbal.inference.frontend import ReadyModel
from tymbal.inference.taught import kept_vectors
from tymbal.inference.teachers import open_teacher
from tymbal.models.classifier import GRIDS, pooled_width
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.progress import Progress
from tymbal.settings import ProbeSettings
from tymbal.store.base import SpectrogramSource

if TYPE_CHECKING:
    Part = tuple[NDArray[np.int64], NDArray[np.int64]]
    Reader = Callable[[ProbeTask, NDArray[np.int64], NDArray[np.int64]], list[ProbeRow]]

__all__ = ["ProbeRun", "run_probes"]

_ORDER = ("baseline", "plain", "random", "random+plain", "teacher", "model", "model+plain")

_MOST_VALUES = 5 * 10**8
"""Numbers of a grid's embeddings of all layers that are held at most: 2 GB."""


@dataclass(frozen=True)
class ProbeRun:
    """The results of all probes of a model.

    Attributes:
        rows: The lines of the table.
        clips: The clips that could be read for each of them.
        verdict: The model beside the best of plain line and random weights; None where neither was read.
        sides: Of the teacher and the model `megabytes` and `clips_per_second`, None where they are not known; empty
            without a teacher.
    """

    rows: tuple[ProbeRow, ...]
    clips: LabelledClips
    verdict: Verdict | None
    sides: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Block:
    """Features of the same clips in one or several ways, of which one is chosen inside the clips to learn from.

    Attributes:
        title: Tells it from other blocks.
        rows: The rows that could be read, [clips].
        ways: By name, the features, [clips, dimensions].
        preferred: The way that is kept unless another is clearly better.
        layers: The same of several layers whose learned sum is read; empty for others.
    """

    title: str
    rows: NDArray[np.int64]
    ways: Mapping[str, NDArray[np.float32]]
    preferred: str
    layers: tuple[Mapping[str, NDArray[np.float32]], ...] = ()


@dataclass(frozen=True)
class _Line:
    """A line of the table: blocks that are read side by side.

    Attributes:
        name: What the features are.
        blocks: One, or several side by side.
        layer: As in `ProbeRow`.
    """

    name: str
    blocks: tuple[_Block, ...]
    layer: int | str | None = None


def run_probes(model: ReadyModel, store: SpectrogramSource, clips: LabelledClips, settings: ProbeSettings) -> ProbeRun:
    """Runs every probe: plain lines, the random encoder and the model, for each the layers, poolings and readers.

    Args:
        model: The model.
        store: The store of the spectrograms.
        clips: The labelled ones.
        settings: Which probes; `cache` where the next one can read the same store.

    Raises:
        SettingsError: There are too few clips for folds, no such layer, or too little disk for tokens.
        StoreError: The clips cannot be read any more.
    """
    probes = _Probes(store, clips, settings)
    encoders = _encoders(model, settings)
    layers = settings.layers(encoders["model"].encoder.config.depth)
    table: list[ProbeRow] = []
    sides: dict[str, dict[str, float | None]] = {}
    if set(settings.readers) != {"attentive"}:
        read, plain = plain_features(store, probes.rows)
        lines = [_Line("baseline", (_Block("baseline", read, {"moments": plain[MOMENTS]}, "moments"),))]
        plain_block = _Block("plain", read, plain, PREFERRED)
        lines.append(_Line("plain", (plain_block,)))
        finest = _finest_grid(encoders["model"].encoder.config, len(probes.rows) * len(layers) * len(encoders))
        own_parts = model.description.own_parts
        # Rows are a grid of one part.
        grids = ("grid", "rows") if "grid" in settings.pooling else ()
        poolings = list(dict.fromkeys(finest if how in grids else how for how in settings.pooling))
        with Progress(len(encoders) * len(probes.rows), "Embedding", unit="clips") as progress:
            for name, encoder in encoders.items():
                embedded = embed_with_cache(
                    encoder,
                    store,
                    probes.rows,
                    poolings=poolings,
                    layers=layers,
                    cached=settings.cache,
                    progress=progress,
                )
                config = encoder.encoder.config
                own = _encoder_lines(embedded, name, settings, config, finest=finest, own_parts=own_parts)
                beside = _beside(own)
                lines += [*own, _Line(f"{name}+plain", (*beside.blocks, plain_block), beside.layer)]
        if settings.teacher is not None:
            line, sides = _teacher(settings.teacher, model, encoders["model"], store, probes)
            lines.append(line)
        with Progress(len(lines) * probes.fits, "Fitting", unit="fits") as progress:
            for line in lines:
                table += probes.on_features(line, progress)
    if "attentive" in settings.readers:
        for name, encoder in encoders.items():
            tokens = [None] if settings.layer == "mix" else layers
            table += _attentive_probes(encoder, store, probes, name=name, layers=tokens)
    ordered = sorted(table, key=lambda row: _ORDER.index(row.features))
    verdict = judge(ordered, groups=probes.groups, multilabel=clips.multilabel, readers=READERS)
    return ProbeRun(tuple(ordered), clips.among(probes.rows[probes.readable]), verdict, sides)


def _teacher(
    path: str, model: ReadyModel, encoder: FrozenEncoder, store: SpectrogramSource, probes: _Probes
) -> tuple[_Line, dict[str, dict[str, float | None]]]:
    """The line of a teacher, and sizes and speeds of it and the model."""
    teacher = open_teacher(path, store, parts=None, compared=model.description.own_parts, settings=probes.settings)
    with tempfile.TemporaryDirectory(prefix="tymbal-teacher-") as folder:
        kept = kept_vectors(teacher, store, probes.rows, Path(folder))
        rows = probes.rows[kept.known(probes.rows)]
        vectors = kept.gather(rows)
    ways = {"mean": vectors.mean(axis=1)}
    if teacher.parts > 1:
        ways = {"parts": vectors.reshape(len(rows), -1), **ways}
    return _Line("teacher", (_Block("teacher", rows, ways, next(iter(ways))),)), speeds(
        teacher, encoder.encoder, model.description, store, rows
    )


def _finest_grid(config: EncoderConfig, clips: int) -> str:
    """The pooling with the most parts of the time whose embeddings of all clips and layers can be held."""
    fitting = [how for how in ("rows", *GRIDS) if pooled_width(how, config) * clips <= _MOST_VALUES] or ["rows"]
    return fitting[-1]


def _encoder_lines(
    embedded: RowEmbeddings,
    name: str,
    settings: ProbeSettings,
    config: EncoderConfig,
    *,
    finest: str,
    own_parts: int,
) -> list[_Line]:
    """The lines of an encoder: poolings, and for each of them its layers.

    Args:
        embedded: Its embeddings.
        name: What its lines are called.
        settings: Poolings and layers.
        config: Its shape.
        finest: The pooling from which the grids are made.
        own_parts: Parts of the time that are kept unless others are clearly better.
    """
    lines: list[_Line] = []
    for how in settings.pooling:
        of_layers: dict[int | str | None, Mapping[str, NDArray[np.float32]]] = {}
        for (pooling, read), values in embedded.values.items():
            if how == "grid" and pooling == finest:
                of_layers[read] = _grids(values, finest, config)
            elif how == "rows" and "grid" in settings.pooling and pooling == finest:
                of_layers[read] = {how: _grids(values, finest, config)["grid:1"]}
            elif pooling == how:
                of_layers[read] = {how: values}
        if settings.layer == "both":
            names = next(iter(of_layers.values()))
            sides = list(of_layers.values())
            of_layers["both"] = {way: np.concatenate([side[way] for side in sides], axis=1) for way in names}
        mixed = tuple(of_layers.values())
        if settings.layer == "mix":
            of_layers = {None: of_layers[None], "mix": of_layers[None]}
        for layer, ways in of_layers.items():
            preferred = next(iter(ways))
            if how == "grid":
                preferred = f"grid:{max(parts for parts in PARTS if parts <= own_parts and f'grid:{parts}' in ways)}"
            title = f"{name} {how} {None if layer == 'mix' else layer}"  # parts are chosen by the last layer
            block = _Block(title, embedded.rows, ways, preferred, mixed if layer == "mix" else ())
            lines.append(_Line(name, (block,), layer))
    return lines


def _grids(values: NDArray[np.float32], finest: str, config: EncoderConfig) -> dict[str, NDArray[np.float32]]:
    """Embeddings [clips, rows x parts x width] by a grid of many parts, and by those of fewer."""
    most = GRIDS.get(finest, 1)
    cells = values.reshape(len(values), config.grid[0], most, config.width)
    return {f"grid:{parts}": values if parts == most else coarser(cells, parts) for parts in PARTS if parts <= most}


def _beside(lines: Sequence[_Line]) -> _Line:
    """The line of an encoder that is read side by side with the plain line: a grid, and the last layer, both or mix."""

    def rank(line: _Line) -> tuple[bool, bool, bool]:
        return len(line.blocks[0].ways) > 1, line.layer in ("both", "mix"), line.layer is None

    return max(lines, key=rank)


class _Probes:
    """The same probes for every set of features.

    Args:
        store: The store of the spectrograms.
        clips: The labelled ones.
        settings: Which probes.

    Attributes:
        rows: Rows of the store, those to learn from first, [clips].
        readable: Which of them could be read for every set of features so far, bool [clips].
        settings: As given.
        groups: The group of each of the rows; None where not all have one.
    """

    def __init__(self, store: SpectrogramSource, clips: LabelledClips, settings: ProbeSettings) -> None:
        self.rows = np.concatenate([clips.train, clips.validation])
        self.readable = np.ones(len(self.rows), np.bool_)
        self.settings = settings
        self._path = store.path
        self._multilabel = clips.multilabel
        self._truth, self.groups = clips.truth(store, self.rows), clips.groups(store, self.rows)
        self._choices: dict[tuple[str, bytes], Choice] = {}
        self._fits: dict[bytes, list[ProbeRow]] = {}
        self._parts = self._split(len(clips.train))

    @property
    def fits(self) -> int:
        """How often each set of features is learned from."""
        return len(self._parts) * (1 + len(self.settings.shots) * self.settings.draws)

    def on_features(self, line: _Line, progress: Progress) -> list[ProbeRow]:
        """Probes features of those rows that could be read in all blocks of a line."""
        readers = self.settings.readers
        places = [_places(self.rows, block.rows) for block in line.blocks]

        def read(task: ProbeTask, inside: NDArray[np.int64], outside: NDArray[np.int64]) -> list[ProbeRow]:
            sides: list[NDArray[np.float32]] = []
            weights: tuple[float, ...] = ()
            choices: list[Choice] = []
            for block, place in zip(line.blocks, places, strict=True):
                choices.append(self._choose(block, place[inside], task, inside))
                way, among = choices[-1].name, place[np.concatenate([inside, outside])]
                if block.layers:
                    mixed, weights = self._mix([layer[way][among] for layer in block.layers], task)
                    sides.append(mixed)
                else:
                    sides.append(block.ways[way][among])
            features = sides[0] if len(sides) == 1 else np.concatenate(sides, axis=1)
            pooling = "+".join(choice.name for choice in choices)
            key = hashlib.blake2b(features.tobytes(), person=b"%d" % len(inside)).digest()
            if key not in self._fits:  # `rows` are a grid of one part, the baseline is a plain line
                self._fits[key] = task.run(features, name=line.name, pooling=pooling, readers=readers)
            rows = [replace(row, features=line.name, pooling=pooling) for row in self._fits[key]]
            progress.advance()
            chosen_from = choices[0].figures if len(choices) == 1 else {}
            return [replace(row, chosen_from=chosen_from, layer_weights=weights) for row in rows]

        return self._run(read, places, line.layer)

    @staticmethod
    def _mix(layers: Sequence[NDArray[np.float32]], task: ProbeTask) -> tuple[NDArray[np.float32], tuple[float, ...]]:
        mixed, weights = mix_layers(layers, task.train, len(task.train), multilabel=task.multilabel)
        return mixed.astype(np.float32), weights

    def _choose(self, block: _Block, places: NDArray[np.int64], task: ProbeTask, inside: NDArray[np.int64]) -> Choice:
        """The way in which a block is read, chosen inside the clips of a task; once for the same clips."""
        key = (block.title, inside.tobytes())
        if key not in self._choices:
            self._choices[key] = choose(
                {name: values[places] for name, values in block.ways.items()},
                task.train,
                multilabel=task.multilabel,
                groups=task.groups,
                preferred=block.preferred,
                seed=task.seed,
            )
        return self._choices[key]

    def on_tokens(
        self, rows: NDArray[np.int64], tokens: Tokens, *, name: str, layer: int | None, progress: Progress
    ) -> list[ProbeRow]:
        """Probes the tokens of those rows that could be read, [clips]."""
        device = choose_device(self.settings.device)[0]
        place = _places(self.rows, rows)

        def read(task: ProbeTask, inside: NDArray[np.int64], outside: NDArray[np.int64]) -> list[ProbeRow]:
            fitted = fit_attentive(
                tokens,
                place[inside],
                task.train,
                multilabel=task.multilabel,
                groups=task.groups,
                seed=task.seed,
                device=device,
            )
            scores = fitted.scores(tokens, place[outside])
            row = task.row(
                scores,
                name=name,
                pooling="tokens",
                reader="attentive",
                dimensions=tokens.shape[1],
                strength=fitted.strength,
            )
            progress.advance()
            return [row]

        return self._run(read, [place], layer)

    def _run(self, read: Reader, places: Sequence[NDArray[np.int64]], layer: int | str | None) -> list[ProbeRow]:
        """Reads all parts of the clips, and few clips of each class.

        Args:
            read: Reads the clips at places of `rows` inside and outside of a part.
            places: Where each of the rows stands among those of each block; -1 where it could not be read.
            layer: Of the rows of the table.
        """
        readable = np.all([place >= 0 for place in places], axis=0)
        self.readable &= readable
        table: list[ProbeRow] = []
        for shots in (None, *self.settings.shots):
            repeats = [
                [replace(row, asked=outside) for row in read(self._task(inside, outside), inside, outside)]
                for inside, outside in self._drawn(shots, readable)
            ]
            merged = repeats[0] if len(repeats) == 1 else aggregate(repeats, folds=shots is None)
            table += [replace(row, layer=layer, shots=shots) for row in merged]
        return table

    def _split(self, train: int) -> list[Part]:
        """Places of the clips to learn from and to validate on: the store's split, or folds over both sides."""
        if self.settings.folds is None:
            return [(np.arange(train), np.arange(train, len(self.rows)))]
        seed, most = self.settings.seed, self.settings.folds
        folds = list(grouped_folds(self._truth, multilabel=self._multilabel, groups=self.groups, seed=seed, most=most))
        if not folds:
            raise SettingsError(
                "there are too few clips or groups for folds", advice="Leave folds out to take the split of the store."
            )
        return folds

    def _drawn(self, shots: int | None, readable: NDArray[np.bool_]) -> Iterator[Part]:
        """The readable clips of each part, or several times so few of each class to learn from."""
        for inside, outside in self._parts:
            train, validation = inside[readable[inside]], outside[readable[outside]]
            if not len(train) or not len(validation):
                side = "learn from" if not len(train) else "validate on"
                raise StoreError(f"not one of the clips to {side} can be read any more", path=self._path)
            if shots is None:
                yield train, validation
                continue
            for draw in range(self.settings.draws):
                yield train[draw_shots(self._truth[train], shots, seed=self.settings.seed + draw)], validation

    def _task(self, inside: NDArray[np.int64], outside: NDArray[np.int64]) -> ProbeTask:
        return ProbeTask(
            train=self._truth[inside],
            validation=self._truth[outside],
            groups=None if self.groups is None else [self.groups[place] for place in inside],
            multilabel=self._multilabel,
            neighbours=self.settings.neighbours,
            seed=self.settings.seed,
        )


def _places(rows: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.int64]:
    """The index of each of some rows [clips] among others; -1 if absent."""
    by_row = {row: place for place, row in enumerate(among.tolist())}
    return np.array([by_row.get(row, -1) for row in rows.tolist()], np.int64)


def _encoders(model: ReadyModel, settings: ProbeSettings) -> dict[str, FrozenEncoder]:
    """The model's, and the same with random weights."""

    def frozen(encoder: SpectrogramEncoder | None = None) -> FrozenEncoder:
        return model.frozen_encoder(encoder, skip_padding=settings.skip_padding, batch_size=settings.batch_size)

    own = frozen()
    if not settings.random:
        return {"model": own}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return {"random": frozen(SpectrogramEncoder(own.encoder.config)), "model": own}


def _attentive_probes(
    encoder: FrozenEncoder,
    store: SpectrogramSource,
    probes: _Probes,
    *,
    name: str,
    layers: Sequence[int | None],
) -> list[ProbeRow]:
    """Attentive probes of an encoder, whose tokens lie on the disk meanwhile."""
    table: list[ProbeRow] = []
    with tempfile.TemporaryDirectory(prefix="tymbal-tokens-", ignore_cleanup_errors=True) as folder:
        with Progress(len(probes.rows), f"Writing tokens ({name})", unit="clips") as progress:
            written = write_tokens(encoder, store, probes.rows, layers=layers, folder=Path(folder), progress=progress)
        with Progress(len(layers) * probes.fits, f"Attending ({name})", unit="probes") as progress:
            for layer, tokens in written.layers.items():
                table += probes.on_tokens(written.rows, tokens, name=name, layer=layer, progress=progress)
    return table
