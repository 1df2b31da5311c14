"""Runs all probes of a model: encoders, layers, poolings and readers, few clips of each class, folds."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from tymbal.compute.device import choose_device
from tymbal.errors import SettingsError, StoreError
from tymbal.evaluation.attentive import fit_attentive
from tymbal.evaluation.baseline import baseline_features
from tymbal.evaluation.embedding_cache import embed_with_cache
from tymbal.evaluation.labelled_clips import LabelledClips
from tymbal.evaluation.linear import grouped_folds
from tymbal.evaluation.probe_tasks import ProbeRow, ProbeTask, aggregate, draw_shots
from tymbal.evaluation.tokens import Tokens, write_tokens
from tymbal.inference.encoding import FrozenEncoder
from tymbal.inference.frontend import ReadyModel
from tymbal.models.encoder import SpectrogramEncoder
from tymbal.progress import Progress
from tymbal.settings import ProbeSettings
from tymbal.store.base import SpectrogramSource

if TYPE_CHECKING:
    Part = tuple[NDArray[np.int64], NDArray[np.int64]]
    Reader = Callable[[ProbeTask, NDArray[np.int64], NDArray[np.int64]], list[ProbeRow]]

__all__ = ["ProbeRun", "run_probes"]

_ORDER = ("baseline", "random", "model")


@dataclass(frozen=True)
class ProbeRun:
    """The results of all probes of a model.

    Attributes:
        rows: The lines of the table.
        clips: The clips that could be read for each of them.
    """

    rows: tuple[ProbeRow, ...]
    clips: LabelledClips


def run_probes(model: ReadyModel, store: SpectrogramSource, clips: LabelledClips, settings: ProbeSettings) -> ProbeRun:
    """Runs every probe: the baseline, the random encoder and the model, for each the layers, poolings and readers.

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
    if set(settings.readers) != {"attentive"}:
        read, moments = baseline_features(store, probes.rows)
        table += probes.on_features(read, moments, name="baseline", pooling="moments")
        with Progress(len(encoders) * len(probes.rows), "Embedding", unit="clips") as progress:
            embedded = {
                name: embed_with_cache(
                    encoder,
                    store,
                    probes.rows,
                    poolings=settings.pooling,
                    layers=layers,
                    cached=settings.cache,
                    progress=progress,
                )
                for name, encoder in encoders.items()
            }
        for name, embeddings in embedded.items():
            for (pooling, layer), values in embeddings.values.items():
                table += probes.on_features(embeddings.rows, values, name=name, pooling=pooling, layer=layer)
    if "attentive" in settings.readers:
        for name, encoder in encoders.items():
            table += _attentive_probes(encoder, store, probes, name=name, layers=layers)
    ordered = sorted(table, key=lambda row: _ORDER.index(row.features))
    return ProbeRun(tuple(ordered), clips.among(probes.rows[probes.readable]))


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
    """

    def __init__(self, store: SpectrogramSource, clips: LabelledClips, settings: ProbeSettings) -> None:
        self.rows = np.concatenate([clips.train, clips.validation])
        self.readable = np.ones(len(self.rows), np.bool_)
        self.settings = settings
        self._path = store.path
        self._multilabel = clips.multilabel
        self._truth, self._groups = clips.truth(store, self.rows), clips.groups(store, self.rows)
        self._parts = self._split(len(clips.train))

    @property
    def fits(self) -> int:
        """How often each set of features is learned from."""
        return len(self._parts) * (1 + len(self.settings.shots) * self.settings.draws)

    def on_features(
        self,
        rows: NDArray[np.int64],
        features: NDArray[np.floating[Any]],
        *,
        name: str,
        pooling: str,
        layer: int | None = None,
    ) -> list[ProbeRow]:
        """Probes features [clips, dimensions] of those rows that could be read, [clips]."""
        readers = self.settings.readers

        def read(task: ProbeTask, inside: NDArray[np.int64], outside: NDArray[np.int64]) -> list[ProbeRow]:
            chosen = features[np.concatenate([inside, outside])]
            return task.run(chosen, name=name, pooling=pooling, readers=readers)

        return self._run(read, rows, layer)

    def on_tokens(
        self, rows: NDArray[np.int64], tokens: Tokens, *, name: str, layer: int | None, progress: Progress
    ) -> list[ProbeRow]:
        """Probes the tokens of those rows that could be read, [clips]."""
        device = choose_device(self.settings.device)[0]

        def read(task: ProbeTask, inside: NDArray[np.int64], outside: NDArray[np.int64]) -> list[ProbeRow]:
            fitted = fit_attentive(
                tokens,
                inside,
                task.train,
                multilabel=task.multilabel,
                groups=task.groups,
                seed=task.seed,
                device=device,
            )
            scores = fitted.scores(tokens, outside)
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

        return self._run(read, rows, layer)

    def _run(self, read: Reader, rows: NDArray[np.int64], layer: int | None) -> list[ProbeRow]:
        place = _places(self.rows, rows)
        self.readable &= place >= 0
        table: list[ProbeRow] = []
        for shots in (None, *self.settings.shots):
            repeats = [
                read(self._task(inside, outside), place[inside], place[outside])
                for inside, outside in self._drawn(shots, place >= 0)
            ]
            merged = repeats[0] if len(repeats) == 1 else aggregate(repeats)
            table += [replace(row, layer=layer, shots=shots) for row in merged]
        return table

    def _split(self, train: int) -> list[Part]:
        """Places of the clips to learn from and to validate on: the store's split, or folds over both sides."""
        if self.settings.folds is None:
            return [(np.arange(train), np.arange(train, len(self.rows)))]
        seed, most = self.settings.seed, self.settings.folds
        folds = list(grouped_folds(self._truth, multilabel=self._multilabel, groups=self._groups, seed=seed, most=most))
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
            groups=None if self._groups is None else [self._groups[place] for place in inside],
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
