"""All questions of a probe: encoders, layers, poolings and readers, few clips of each class, folds."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from tymbal.compute.device import choose_device
from tymbal.errors import SettingsError
from tymbal.evaluation.attentive import fit_attentive
from tymbal.evaluation.baseline import baseline_features
from tymbal.evaluation.embedding_cache import embed_with_cache
from tymbal.evaluation.labelled_clips import LabelledClips
from tymbal.evaluation.linear import grouped_folds
from tymbal.evaluation.probe_tasks import ProbeRow, ProbeTask, aggregate, draw_shots
from tymbal.evaluation.tokens import Tokens, write_tokens
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import SpectrogramEncoder
from tymbal.models.folder import LoadedModel
from tymbal.progress import Progress
from tymbal.settings import ProbeSettings
from tymbal.store.base import SpectrogramSource

if TYPE_CHECKING:
    Part = tuple[NDArray[np.int64], NDArray[np.int64]]
    Reader = Callable[[ProbeTask, NDArray[np.int64], NDArray[np.int64]], list[ProbeRow]]

__all__ = ["run_probes"]

_ORDER = ("baseline", "random", "model")


def run_probes(
    loaded: LoadedModel, store: SpectrogramSource, clips: LabelledClips, settings: ProbeSettings, *, lasting: bool
) -> list[ProbeRow]:
    """Asks everything; gives the lines of the table.

    Args:
        loaded: The model.
        store: Where the spectrograms are.
        clips: The labelled ones.
        settings: What to ask.
        lasting: Whether the store will still be there for the next probe.

    Raises:
        SettingsError: There are too few clips for folds, no such layer, or too little disk for tokens.
    """
    asked = _Survey(store, clips, settings)
    encoders = _encoders(loaded, settings)
    layers = [settings.layer] if settings.layers == "last" else [*range(encoders["model"].config.depth + 1), None]
    found: list[ProbeRow] = []
    if set(settings.readers) != {"attentive"}:
        found += asked.pooled(baseline_features(store, asked.rows), name="baseline", pooling="moments")
        with Progress(len(encoders) * len(asked.rows), "Embedding", unit="clips") as progress:
            made = {
                name: embed_with_cache(
                    encoder,
                    loaded.description,
                    store,
                    asked.rows,
                    layers=layers,
                    settings=settings,
                    lasting=lasting,
                    progress=progress,
                )
                for name, encoder in encoders.items()
            }
        for name, embeddings in made.items():
            for (pooling, layer), features in embeddings.items():
                found += asked.pooled(features, name=name, pooling=pooling, layer=layer)
    if "attentive" in settings.readers:
        for name, encoder in encoders.items():
            found += _attended(encoder, loaded.description, store, asked, name=name, layers=layers)
    return sorted(found, key=lambda row: _ORDER.index(row.features))


class _Survey:
    """The same questions for every set of features.

    Args:
        store: Where the spectrograms are.
        clips: The labelled ones.
        settings: What to ask.

    Attributes:
        rows: Rows of the store, those to learn from first, [clips].
        settings: As given.
    """

    def __init__(self, store: SpectrogramSource, clips: LabelledClips, settings: ProbeSettings) -> None:
        self.rows = np.concatenate([clips.train, clips.validation])
        self.settings = settings
        self._multilabel = clips.multilabel
        self._truth, self._groups = clips.truth(store, self.rows), clips.groups(store, self.rows)
        self._parts = self._split(len(clips.train))

    @property
    def questions(self) -> int:
        """How often each set of features is learned from."""
        return len(self._parts) * (1 + len(self.settings.shots) * self.settings.draws)

    def pooled(
        self, features: NDArray[np.floating[Any]], *, name: str, pooling: str, layer: int | None = None
    ) -> list[ProbeRow]:
        """Asks about features [clips, dimensions]."""
        readers = self.settings.readers

        def read(question: ProbeTask, inside: NDArray[np.int64], outside: NDArray[np.int64]) -> list[ProbeRow]:
            chosen = features[np.concatenate([inside, outside])]
            return question.run(chosen, name=name, pooling=pooling, readers=readers)

        return self._ask(read, layer)

    def attended(self, tokens: Tokens, *, name: str, layer: int | None, progress: Progress) -> list[ProbeRow]:
        """Asks about tokens of the clips."""
        device = choose_device(self.settings.device)[0]

        def read(question: ProbeTask, inside: NDArray[np.int64], outside: NDArray[np.int64]) -> list[ProbeRow]:
            fitted = fit_attentive(
                tokens,
                inside,
                question.train,
                multilabel=question.multilabel,
                groups=question.groups,
                seed=question.seed,
                device=device,
            )
            scores = fitted.scores(tokens, outside)
            row = question.row(
                scores,
                name=name,
                pooling="tokens",
                reader="attentive",
                dimensions=tokens.shape[1],
                strength=fitted.strength,
            )
            progress.advance()
            return [row]

        return self._ask(read, layer)

    def _ask(self, read: Reader, layer: int | None) -> list[ProbeRow]:
        asked: list[ProbeRow] = []
        for shots in (None, *self.settings.shots):
            repeats = [read(self._question(inside, outside), inside, outside) for inside, outside in self._drawn(shots)]
            merged = repeats[0] if len(repeats) == 1 else aggregate(repeats)
            asked += [replace(row, layer=layer, shots=shots) for row in merged]
        return asked

    def _split(self, train: int) -> list[Part]:
        """Places of the clips to learn from and to be asked: the store's split, or folds over both sides."""
        if self.settings.folds is None:
            return [(np.arange(train), np.arange(train, len(self.rows)))]
        seed, most = self.settings.seed, self.settings.folds
        found = list(grouped_folds(self._truth, multilabel=self._multilabel, groups=self._groups, seed=seed, most=most))
        if not found:
            raise SettingsError(
                "there are too few clips or groups for folds", advice="Leave folds out to take the split of the store."
            )
        return found

    def _drawn(self, shots: int | None) -> Iterator[Part]:
        """The parts, or each several times with so few clips of each class to learn from."""
        for inside, outside in self._parts:
            if shots is None:
                yield inside, outside
                continue
            for draw in range(self.settings.draws):
                yield inside[draw_shots(self._truth[inside], shots, seed=self.settings.seed + draw)], outside

    def _question(self, inside: NDArray[np.int64], outside: NDArray[np.int64]) -> ProbeTask:
        return ProbeTask(
            train=self._truth[inside],
            validation=self._truth[outside],
            groups=None if self._groups is None else [self._groups[place] for place in inside],
            multilabel=self._multilabel,
            neighbours=self.settings.neighbours,
            seed=self.settings.seed,
        )


def _encoders(loaded: LoadedModel, settings: ProbeSettings) -> dict[str, SpectrogramEncoder]:
    """The model's, and the same with random weights."""
    module = loaded.module
    encoder = module if isinstance(module, SpectrogramEncoder) else module.encoder
    if not settings.random:
        return {"model": encoder}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return {"random": SpectrogramEncoder(encoder.config), "model": encoder}


def _attended(
    encoder: SpectrogramEncoder,
    description: ModelDescription,
    store: SpectrogramSource,
    asked: _Survey,
    *,
    name: str,
    layers: Sequence[int | None],
) -> list[ProbeRow]:
    """Attentive probes of an encoder, whose tokens lie on the disk meanwhile."""
    found: list[ProbeRow] = []
    with tempfile.TemporaryDirectory(prefix="tymbal-tokens-", ignore_cleanup_errors=True) as folder:
        with Progress(len(asked.rows), f"Writing tokens ({name})", unit="clips") as progress:
            made = write_tokens(
                encoder,
                description,
                store,
                asked.rows,
                layers=layers,
                settings=asked.settings,
                folder=Path(folder),
                progress=progress,
            )
        with Progress(len(layers) * asked.questions, f"Attending ({name})", unit="probes") as progress:
            for layer, tokens in made.items():
                found += asked.attended(tokens, name=name, layer=layer, progress=progress)
    return found
