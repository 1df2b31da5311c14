"""An attentive probe: learned queries that look for what tells the classes among all tokens of a clip, and a line.

A mean over tokens drowns what is short; whether an encoder knows of a call of 50 ms in ten seconds shows only where a
reader may look for it. So frozen encoders are read by cross-attention with a learned query and a linear layer (Bardes
et al. 2024, V-JEPA; Darcet et al. 2025, CAPI). Here a query meets the tokens as they are: the projection to keys can be
multiplied into it, that to values into the linear layer, so that nothing is lost and the reader stays small.

Tokens are standardised with statistics of the clips that a reader learns from, inside each fold anew, so that a query
of zeros is the very logistic regression
of `tymbal.evaluation.linear` on the mean of the tokens. The strength of the regularisation, which draws queries to
zeros too, is chosen as in it, by cross-validation inside the training clips. All strengths of all inner folds, and
those on all training clips, are trained side by side, from one reading of the tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from tymbal.evaluation.embedding_cache import Tokens
from tymbal.evaluation.linear import grouped_folds, quality

__all__ = ["STRENGTHS", "Attentive", "fit_attentive"]

STRENGTHS: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Inverse regularisation strengths (scikit-learn's C) that are tried, from strong to weak."""

_QUERIES = 4
_EPOCHS = 15
_STEPS = (300, 2000)
_RATE = 1e-2
_FIRST = 0.5  # standard deviation of the scores of tokens at the beginning: enough to tell the queries apart
_BATCH = 64
_MOST_VALUES = 2**25  # of a batch
_FOLDS = 3


@dataclass(frozen=True)
class Attentive:
    """A fitted attentive probe.

    Attributes:
        strength: The chosen C.
        readers: The one reader that was chosen.
    """

    strength: float
    readers: _Readers

    def scores(self, tokens: Tokens, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Log-odds (several labels) or unnormalised log-probabilities (one label), [clips, classes]."""
        return self.readers.scores(tokens, places)[:, 0]


def fit_attentive(
    tokens: Tokens,
    places: NDArray[np.int64],
    truth: NDArray[np.bool_],
    *,
    multilabel: bool = False,
    groups: Sequence[str] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 42,
    device: torch.device | str = "cpu",
) -> Attentive:
    """Fits an attentive probe.

    Args:
        tokens: Tokens of clips.
        places: The clips to learn from, [clips].
        truth: Which of them has which label, [clips, classes].
        multilabel: Whether a clip may have several labels, or none.
        groups: The group of each clip; clips of a group stay together in the inner split.
        strengths: Candidates for C, from strong to weak.
        seed: Seed of the first queries, of the order of the clips and of the inner split.
        device: The device to compute on.
    """
    folds = list(grouped_folds(truth, multilabel=multilabel, groups=groups, seed=seed, most=_FOLDS))
    inside = np.ones((len(folds) + 1, len(places)), bool)  # the last learns from all
    for fold, (_, outside) in enumerate(folds):
        inside[fold, outside] = False
    scales = _scales(tokens, places, inside, torch.device(device))
    readers = _Readers(scales, inside, strengths, truth.shape[1], seed=seed, several=multilabel)
    readers.fit(tokens, places, truth, seed=seed)
    last = len(folds) * len(strengths)
    if not folds:  # too few clips to choose: as the logistic regression
        chosen = int(np.argmin(np.abs(np.log(strengths))))
        return Attentive(strengths[chosen], readers.only(last + chosen))
    figure = "mAP" if multilabel else "accuracy"
    scores = readers.scores(tokens, places)
    reached = [
        np.mean(
            [
                quality(scores[out, fold * len(strengths) + place], truth[out], multilabel=multilabel)[figure]
                for fold, (_, out) in enumerate(folds)
            ]
        )
        for place in range(len(strengths))
    ]
    chosen = int(np.argmax(reached))
    return Attentive(strengths[chosen], readers.only(last + chosen))


@dataclass(frozen=True)
class _Scales:
    """Statistics of the tokens of the clips that teach each set of readers, each float32 [sets, width].

    Attributes:
        centre: Mean of the clips' means.
        by_token: Inverse standard deviation of the tokens, for what queries look at.
        by_clip: Inverse standard deviation of the clips' means, for what they take away.
    """

    centre: Tensor
    by_token: Tensor
    by_clip: Tensor


def _scales(tokens: Tokens, places: NDArray[np.int64], inside: NDArray[np.bool_], device: torch.device) -> _Scales:
    """Statistics of each of the sets, bool [sets, clips]: those outside of a fold have no part in its own."""
    sets = torch.from_numpy(inside).double()
    sums = torch.zeros(3, len(inside), tokens.shape[1], dtype=torch.float64)
    for part in _parts(places, tokens):
        values, real = tokens.batch(places[part])
        weight = (real / real.sum(1, keepdim=True)).unsqueeze(2)
        means = (values * weight).sum(1).double()
        every = (values.square() * weight).sum(1).double()
        sums += torch.stack([sets[:, part] @ each for each in (means, means.square(), every)])
    centre, square, every = sums / sets.sum(1, keepdim=True)

    def inverse(variance: Tensor) -> Tensor:
        spread = variance.clamp(min=0).sqrt()
        usable = spread > 1e-4 * (1 + centre.abs())
        return torch.where(usable, 1 / spread.clamp(min=1e-12), 0.0).float().to(device)

    by_token, by_clip = inverse(every - centre.square()), inverse(square - centre.square())
    return _Scales(centre.float().to(device), by_token, by_clip)


class _Readers:
    """Attentive probes side by side: one for each strength, for each set of training clips.

    Args:
        scales: Statistics of the tokens.
        inside: Which clips teach which set, bool [sets, clips].
        strengths: Strengths.
        classes: Number of classes.
        seed: Seed of the first queries.
        several: Whether a clip may have several labels.
    """

    def __init__(
        self,
        scales: _Scales,
        inside: NDArray[np.bool_],
        strengths: Sequence[float],
        classes: int,
        *,
        seed: int,
        several: bool,
    ) -> None:
        device, width = scales.centre.device, scales.centre.shape[1]
        readers = len(inside) * len(strengths)
        # All begin alike, so that only strength and clips make a difference.
        first = torch.randn(_QUERIES, width, generator=torch.Generator().manual_seed(seed)) * _FIRST
        self._scales = scales
        self._several = several
        self._inside = torch.from_numpy(inside)
        self._strengths = strengths
        self.queries = first.to(device).repeat(readers, 1, 1).requires_grad_()
        self.weight = torch.zeros(readers, _QUERIES * width, classes, device=device, requires_grad=True)
        self.bias = torch.zeros(readers, classes, device=device, requires_grad=True)

    def only(self, reader: int) -> _Readers:
        """A copy with one of the readers only."""
        chosen = object.__new__(_Readers)
        place = reader // len(self._strengths)
        scales = (self._scales.centre, self._scales.by_token, self._scales.by_clip)
        chosen._scales, chosen._several = _Scales(*(each[place : place + 1] for each in scales)), self._several
        chosen._inside, chosen._strengths = self._inside[-1:], self._strengths
        for name in ("queries", "weight", "bias"):
            setattr(chosen, name, getattr(self, name)[reader : reader + 1].detach().clone())
        return chosen

    def __call__(self, values: Tensor, real: Tensor) -> Tensor:
        """Reads tokens [batch, tokens, width]; gives [batch, readers, classes]."""
        readers, queries, width = self.queries.shape
        scales = self._scales
        each = readers // len(scales.centre)
        middle = scales.centre[-1]  # any: a query's scores of all tokens move alike
        values = values - middle
        looking = self.queries * scales.by_token.repeat_interleave(each, dim=0)[:, None]
        looked = values @ looking.reshape(-1, width).T / math.sqrt(width)
        shares = looked.masked_fill(~real.unsqueeze(2), -torch.inf).softmax(1)  # [batch, tokens, readers x queries]
        pooled = (shares.transpose(1, 2) @ values).reshape(len(values), readers, queries, width)
        moved, by_clip = (
            part.repeat_interleave(each, dim=0)[:, None] for part in (scales.centre - middle, scales.by_clip)
        )
        flat = ((pooled - moved) * by_clip).flatten(2)
        return torch.einsum("brf,rfc->brc", flat, self.weight) + self.bias

    def fit(self, tokens: Tokens, places: NDArray[np.int64], truth: NDArray[np.bool_], *, seed: int) -> None:
        """Trains all of them, with Adam and a learning rate that falls along a cosine."""
        parameters = [self.queries, self.weight, self.bias]
        device = self.queries.device
        optimizer = torch.optim.Adam(parameters, lr=_RATE, betas=(0.9, 0.98))
        known = torch.from_numpy(truth)
        # scikit-learn's C weighs the sum over the clips against half the square of the weights.
        count = self._inside.sum(1, dtype=torch.float64)
        penalty = (1 / (count[:, None] * torch.tensor(self._strengths, dtype=torch.float64))).flatten()
        pull = penalty.float().to(device)[:, None, None]
        each = len(list(_parts(places, tokens)))
        steps = int(np.clip(_EPOCHS * each, *_STEPS))
        generator = np.random.default_rng(seed)
        step = 0
        while step < steps:
            order = generator.permutation(len(places))
            for part in _parts(places, tokens):
                chosen = order[part]
                values, real = tokens.batch(places[chosen])
                for group in optimizer.param_groups:
                    group["lr"] = _RATE * (1 + math.cos(math.pi * step / steps)) / 2
                optimizer.zero_grad()
                loss = self._loss(self(values.to(device), real.to(device)), known[chosen], self._inside[:, chosen])
                torch.autograd.backward(loss)
                for value in (self.queries, self.weight):
                    if value.grad is not None:
                        value.grad.add_(pull * value.detach())
                optimizer.step()
                step += 1
                if step == steps:
                    break

    def scores(self, tokens: Tokens, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scores of each clip by each reader, [clips, readers, classes]."""
        device = self.queries.device
        scores: list[NDArray[np.float32]] = []
        with torch.no_grad():
            for part in _parts(places, tokens):
                values, real = tokens.batch(places[part])
                scores.append(self(values.to(device), real.to(device)).cpu().numpy())
        return np.concatenate(scores).astype(np.float64)

    def _loss(self, logits: Tensor, truth: Tensor, inside: Tensor) -> Tensor:
        """The sum of the readers' losses, each the mean over the clips that teach it."""
        truth, weight = truth.to(logits), inside.to(logits)
        if self._several:
            by_clip = F.binary_cross_entropy_with_logits(
                logits, truth[:, None].expand_as(logits), reduction="none"
            ).sum(2)
        else:
            by_clip = -(logits.log_softmax(2) * truth[:, None]).sum(2)
        weight = (weight / weight.sum(1, keepdim=True).clamp(min=1)).T  # [batch, sets]
        return (by_clip.reshape(len(by_clip), weight.shape[1], -1) * weight.unsqueeze(2)).sum()


def _parts(places: NDArray[np.int64], tokens: Tokens) -> Iterator[slice]:
    """Batches, as large as memory allows."""
    size = max(1, min(_BATCH, _MOST_VALUES // (tokens.shape[0] * tokens.shape[1])))
    for start in range(0, len(places), size):
        yield slice(start, start + size)
