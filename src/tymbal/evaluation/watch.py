"""Watches a pretraining beside its loss: the spread of its embeddings, and the scores of a probe on them.

With every evaluation some fixed validation clips are embedded, the same each time, so that the figures compare:

- `rank`: the effective rank of the embeddings, RankMe (Garrido et al. 2023): the exponential of the entropy of their
  singular values. Where it falls, embeddings use fewer and fewer directions.
- `cosine`: the mean cosine of pairs of clips. Near 1 all clips look alike to the encoder: it has collapsed.

Where a run goes on from weights, what a probe reads before the first step is what they knew; what falls below that by
more than chance is forgotten, and an alarm.

Where labels are given, logistic regression and nearest neighbours read the frozen embeddings every few epochs, in the
way that the objective compares clips: its own parts of the time, the middle layer and the last one side by side. What
random weights and the plain line give in the same way stands beside, since only what is above counts.

Nothing here draws from the random numbers of the training or changes its weights.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tymbal.compute.device import choose_precision
from tymbal.data import open_data
from tymbal.evaluation.baseline import PREFERRED, plain_features
from tymbal.evaluation.labelled_clips import LabelledClips, labelled_clips
from tymbal.evaluation.probe_tasks import ProbeTask
from tymbal.evaluation.selection import choose
from tymbal.inference.encoding import FrozenEncoder, check_features
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import SpectrogramEncoder
from tymbal.progress import tell
from tymbal.settings import PretrainSettings, PtSettings
from tymbal.store.base import SpectrogramSource

__all__ = ["LabelProbe", "Watch", "alarms", "mean_cosine", "rank_me"]

_CLIPS = 256
_MOST_PROBED = 2000
_COLLAPSED = 0.9999
_ALIKE = 0.99
_ONE_DIRECTION = 2.0
_FEWEST = 8
"""Clips from which on their likeness says something; a single one is like itself."""
_STILL = 8
"""Evaluations without progress that are a plateau."""
_FALL = 0.02
"""How far a probe may fall below what it read before the first step, beside its standard error."""

_ADVICE = {
    "collapse": "All clips look alike to the encoder. Begin again with a lower --learning-rate or a longer --warmup.",
    "plateau": f"No progress for {_STILL} evaluations. More epochs will hardly help: more clips, a larger --size or "
    "another --mask-ratio might; --patience ends such a run.",
    "forgetting": "The probe reads less than before the first step. What keeps more of what the weights knew: fewer "
    "epochs, a lower --learning-rate, an --ema nearer to 1, or --lora 8.",
    "not_finite": "Embeddings of some clips are not finite numbers. Lower --learning-rate, or --precision float32.",
}

Figures = Mapping[str, Any]


class LabelProbe:
    """A probe that is repeated, beside what needs no training: random weights read alike, and the plain line.

    Args:
        store: Labelled clips.
        clips: Which of them to learn from and which to validate on.
        every: Epochs from one to the next.
        seed: Seed of the choice of clips, if there are too many, of the random weights and of the inner split.
        pooling: How embeddings are pooled.
        both: Whether the middle layer is read beside the last one.
    """

    def __init__(
        self,
        store: SpectrogramSource,
        clips: LabelledClips,
        *,
        every: float,
        seed: int,
        pooling: str = "mean",
        both: bool = False,
    ) -> None:
        self._store, self._clips, self._every, self._seed = store, clips, every, seed
        self._pooling, self._both = pooling, both
        self._levels: dict[str, float] = {}
        generator = np.random.default_rng(seed)
        self._rows = tuple(
            np.sort(generator.permutation(rows)[:_MOST_PROBED]) for rows in (clips.train, clips.validation)
        )

    @classmethod
    def open(cls, settings: PretrainSettings, description: ModelDescription) -> LabelProbe | None:
        """Opens what `probe_data` names, for the model of a description; None where it names nothing.

        Raises:
            StoreError: It cannot be read or has no labels.
            SettingsError: Its spectrograms are made in another way than those that the model learns from.
        """
        if settings.probe_data is None:
            return None
        store = open_data(settings.probe_data, PtSettings()).single_spectrograms()
        check_features(store, description, path=settings.probe_data)
        own = settings.probe_pooling == "grid"
        return cls(
            store,
            labelled_clips(store),
            every=settings.probe_every,
            seed=settings.seed,
            pooling=description.own_grid if own else settings.probe_pooling,
            both=own,
        )

    def is_due(self, epoch: float, before: float) -> bool:
        """Whether a multiple of `every` lies between the epoch of the last probe, 0 at first, and this one."""
        return int(epoch / self._every + 1e-6) > int(before / self._every + 1e-6)

    def fall(self, figure: float) -> float:
        """How far this figure may fall by chance, and a little more, before it counts as forgetting."""
        return _FALL + math.sqrt(max(figure * (1 - figure), 0.0) / max(len(self._rows[1]), 1))

    def read(self, encoder: FrozenEncoder) -> dict[str, float]:
        """Figures of logistic regression (`probe_…`) and nearest neighbours (`knn_…`).

        With them stand those of the same encoder with random weights (`probe_random_…`, `knn_random_…`) and of the best
        plain line (`probe_plain_…`, `knn_plain_…`); they are computed once.
        """
        figures = self._figures("", *self._embedded(encoder))
        if not self._levels:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self._seed)
                untrained = SpectrogramEncoder(encoder.encoder.config)
            other = FrozenEncoder(untrained, encoder.normalisation, device=encoder.device)
            self._levels = self._figures("random_", *self._embedded(other)) | self._plain()
        return figures | self._levels

    def _embedded(self, encoder: FrozenEncoder) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        layers = [encoder.encoder.config.depth // 2, None] if self._both else [None]
        embedded = encoder.embed(self._store, np.concatenate(self._rows), poolings=[self._pooling], layers=layers)
        return embedded.rows, np.concatenate([embedded.values[self._pooling, layer] for layer in layers], axis=1)

    def _plain(self) -> dict[str, float]:
        read, lines = plain_features(self._store, np.concatenate(self._rows))
        train = self._rows[0][np.isin(self._rows[0], read)]
        chosen = choose(
            {name: values[: len(train)] for name, values in lines.items()},
            self._clips.truth(self._store, train),
            multilabel=self._clips.multilabel,
            groups=self._clips.groups(self._store, train),
            preferred=PREFERRED,
            seed=self._seed,
        )
        return self._figures("plain_", read, lines[chosen.name])

    def _figures(self, name: str, read: NDArray[np.int64], features: NDArray[np.float32]) -> dict[str, float]:
        """Figures of features [clips, dimensions] of the rows that could be read, those to learn from first."""
        train, validation = (side[np.isin(side, read)] for side in self._rows)
        if not len(train) or not len(validation):
            return {}
        task = ProbeTask(
            train=self._clips.truth(self._store, train),
            validation=self._clips.truth(self._store, validation),
            groups=self._clips.groups(self._store, train),
            multilabel=self._clips.multilabel,
            neighbours=10,
            seed=self._seed,
        )
        figure = "mAP" if self._clips.multilabel else "accuracy"
        rows = task.run(features, name=name, pooling=self._pooling)
        readers = {"logistic": "probe", "knn": "knn"}
        return {f"{readers[row.reader]}_{name}{figure}": row.figures[figure] for row in rows}


class Watch:
    """Measures the encoder's embeddings at every evaluation.

    Args:
        encoder: The encoder that is trained.
        description: How its model normalises.
        store: The validation clips.
        rows: Their rows.
        history: Gives the figures that the run has logged so far, one mapping a line of its metrics file.
        monitor: Name of the metric that tells better models, and whether higher is better.
        probe: Read labels too; None does not.
        precision: Arithmetic of the embeddings, as of the training.
    """

    def __init__(
        self,
        encoder: SpectrogramEncoder,
        description: ModelDescription,
        store: SpectrogramSource,
        rows: NDArray[np.int64],
        *,
        history: Callable[[], Sequence[Figures]],
        monitor: tuple[str, bool],
        probe: LabelProbe | None = None,
        precision: str = "float32",
    ) -> None:
        self._encoder = encoder
        self._precision = precision
        self._normalisation = description.normalisation
        self._store = store
        self._rows = rows[np.unique(np.linspace(0, len(rows) - 1, _CLIPS).astype(np.int64))]
        self._history = history
        self._monitor = monitor
        self._probe = probe

    def __call__(self, figures: Figures, epoch: float) -> dict[str, float]:
        """Measures the embeddings of an evaluation.

        Args:
            figures: Figures of this evaluation, `eval_…`.
            epoch: Epochs that are done.

        Returns:
            `eval_rank`, `eval_cosine`, if a probe is due `eval_probe_…` and `eval_knn_…`, and an `alarm_…` of 1 for
            each new alarm.
        """
        before = self._history()
        watched: dict[str, float] = {}
        with undisturbed():
            device = self._encoder.position_embedding.device
            encoder = FrozenEncoder(self._encoder, self._normalisation, device=device)
            dtype, _ = choose_precision(self._precision, device)
            watching = FrozenEncoder(self._encoder, self._normalisation, device=device, dtype=dtype)
            vectors = watching.embed(self._store, self._rows).values["mean", None]
            if not len(vectors):  # no file of them can be read any more
                return {}
            if np.isfinite(vectors).all():
                watched = {"eval_rank": rank_me(vectors), "eval_cosine": mean_cosine(vectors)}
                last = max((line["epoch"] for line in before if _is_probed(line)), default=0.0)
                if self._probe is not None and (epoch == 0 or self._probe.is_due(epoch, last)):
                    watched |= {f"eval_{name}": value for name, value in self._probe.read(encoder).items()}
        fall = None if self._probe is None else self._probe.fall
        for name in alarms([*before, {**figures, "epoch": epoch, **watched}], monitor=self._monitor, fall=fall):
            if name == "collapse" and len(vectors) < _FEWEST:
                continue
            watched[f"alarm_{name}"] = 1.0
            tell(f"{name.replace('_', ' ').capitalize()} (epoch {epoch:.1f}): {_ADVICE[name]}", warning=True)
        return watched


def rank_me(vectors: NDArray[np.floating]) -> float:
    """Effective rank of embeddings [clips, dimensions], from 1 to the smaller of both (Garrido et al. 2023)."""
    values = np.linalg.svd(vectors.astype(np.float64), compute_uv=False)
    shares = values / max(values.sum(), 1e-300) + 1e-7
    return float(np.exp(-(shares * np.log(shares)).sum()))


def mean_cosine(vectors: NDArray[np.floating]) -> float:
    """Mean cosine of all pairs of embeddings [clips, dimensions]; 1 for a single one."""
    unit = vectors.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-300)
    count = len(unit)
    return 1.0 if count < 2 else float((np.square(unit.sum(axis=0)).sum() - count) / (count * (count - 1)))


def alarms(
    lines: Sequence[Figures], *, monitor: tuple[str, bool], fall: Callable[[float], float] | None = None
) -> list[str]:
    """Causes for alarm in the last of the logged lines that no earlier line has given: each is given once a run.

    Args:
        lines: Lines of the metrics file, the last with the figures of an evaluation.
        monitor: Name of the metric that tells better models, and whether higher is better.
        fall: How far what a probe read before the first step may fall; None where nothing is probed.
    """
    given = {key for line in lines for key in line}
    evaluated = [line for line in lines if any(key.startswith("eval_") for key in line)]
    name, greater = monitor
    values = [line[f"eval_{name}"] for line in evaluated if line.get(f"eval_{name}") is not None]
    ranks = [line["eval_rank"] for line in evaluated if line.get("eval_rank") is not None]
    now = lines[-1]
    causes = []
    if "eval_rank" not in now:
        causes.append("not_finite")
    elif now["eval_cosine"] >= _COLLAPSED or (now["eval_cosine"] >= _ALIKE and _has_shrunk(ranks)):
        causes.append("collapse")
    if len(values) > _STILL:
        better = max if greater else min
        best, latest = better(values[:-_STILL]), better(values[-_STILL:])
        if (latest <= best) if greater else (latest >= best):
            causes.append("plateau")
    if fall is not None and _has_forgotten(evaluated, fall):
        causes.append("forgetting")
    return [cause for cause in causes if f"alarm_{cause}" not in given]


def _has_forgotten(lines: Sequence[Figures], fall: Callable[[float], float]) -> bool:
    """Whether a probe that was read before the first step reads less in the last line, beyond what may fall."""
    start = next((line for line in lines if line.get("epoch") == 0 and _is_probed(line)), None)
    if start is None:
        return False
    known = ((start[name], lines[-1].get(name)) for name in ("eval_probe_accuracy", "eval_probe_mAP") if name in start)
    return any(now is not None and now < before - fall(before) for before, now in known)


def _has_shrunk(ranks: Sequence[float]) -> bool:
    """Whether the effective rank has fallen to a half, or was never more than a direction, twice in a row."""
    return ranks[-1] < max(ranks) / 2 or (len(ranks) > 1 and max(ranks[-2:]) < _ONE_DIRECTION)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within it random numbers may be drawn; afterwards all generators are as they were."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - others' generator, which is put back
    with torch.random.fork_rng(devices=[]):  # embedding draws nothing on a device
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def _is_probed(line: Figures) -> bool:
    return any(key.startswith("eval_probe_") for key in line)
