"""A window of sound as the model sees it, its attention, and one pass over a whole recording.

Rollout (Abnar and Zuidema 2020, "Quantifying attention flow in transformers") multiplies the attention of the blocks,
half of each being what a token keeps of itself. Both are read where the model reads: from the class tokens where they
are what is pooled, else from the patches, whose mean is.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tymbal.audio.decode import info, stream
from tymbal.audio.failures import problem
from tymbal.config import from_mapping, with_todays_names
from tymbal.exploring.downsample import Downsampler
from tymbal.features.bank import filter_bank
from tymbal.inference.frontend import Embedder, Scorer
from tymbal.inference.streaming import Cut, Window, windows
from tymbal.models.encoder import Block, SpectrogramEncoder
from tymbal.objectives.contract import View
from tymbal.objectives.lejepa import LeJEPAObjective, LeJEPASettings
from tymbal.settings.augmentation import SpectrogramViews

__all__ = ["MOST_TOKENS", "Attention", "Look", "ModelView", "Survey", "attention", "likeness", "readers"]

_BLOCK = 10.0  # seconds decoded at a time
_SPECTRUM_COLUMNS = 600
_SCORE_COLUMNS = 400


@dataclass(frozen=True)
class Look:
    """A window of a sound as the model sees it.

    Attributes:
        start: Where it begins, in seconds.
        end: Where its sound ends, in seconds.
        values: Its log-mel spectrogram without padding, float32 [frames, mels].
        reach: Mel bins and frames, from the lowest and the first, that these patches cover; the last may be padding.
        loudest: Row and column of the patch with the loudest spot.
        tokens: Tokens of the patches that hold sound, float32 [rows, columns, width].
        embedding: [dimensions].
        attention: Shares of attention of these patches by kind (`last`, `rollout`), [rows, columns] each; empty where
            the window has too many patches.
        scores: Scores of the labels, [labels]; None of an encoder.
        views: Views of it as its pretraining draws them, by name; empty of models that were pretrained in another way.
    """

    start: float
    end: float
    values: NDArray[np.float32]
    reach: tuple[int, int]
    loudest: tuple[int, int]
    tokens: NDArray[np.float32]
    embedding: NDArray[np.float32]
    attention: dict[str, NDArray[np.float32]]
    scores: NDArray[np.float32] | None
    views: Mapping[str, View] = field(default_factory=dict)


@dataclass(frozen=True)
class Survey:
    """A recording from its beginning to its end, or to where the looking ends.

    Attributes:
        seconds: How long the recording is.
        until: Up to where it was looked at, in seconds.
        spectrum: Log-mel values, means over equal stretches of time, [columns, mels].
        scores: Scores of the labels, each the highest of some windows, [columns, labels]; None of an encoder.
        times: The middle of the columns of `scores` in seconds, [columns].
        windows: Windows that were looked at.
    """

    seconds: float
    until: float
    spectrum: NDArray[np.float32]
    scores: NDArray[np.float32] | None
    times: NDArray[np.float64]
    windows: int


class ModelView:
    """A model that looks at the sounds a person drops.

    Args:
        embedder: The encoder.
        cut: How recordings are cut.
        scorer: The classifier; None of an encoder.
        batch_size: Windows that are scored at once.

    Attributes:
        cut: How recordings are cut.
        features: How spectrograms are made.
        labels: Names of the labels; empty of an encoder.
        pooling: How tokens are pooled for the scores, or for embeddings of an encoder.
    """

    def __init__(self, embedder: Embedder, cut: Cut, *, scorer: Scorer | None = None, batch_size: int = 32) -> None:
        self.cut = cut
        self.features = embedder.description.features
        self.labels: tuple[str, ...] = () if scorer is None else scorer.labels
        self.pooling = str(embedder.record()["pooling"]) if scorer is None else scorer.description.pooling
        self._embedder, self._scorer, self._batch_size = embedder, scorer, batch_size
        self._fbank = filter_bank(self.features)
        # Attention is read inside the modules: another thread's must not be mistaken for it.
        self._lock = threading.Lock()

    @property
    def window(self) -> float:
        """Seconds of a window."""
        return self.cut.length / self.cut.rate

    @property
    def hop(self) -> float:
        """Seconds from one window to the next."""
        return self.cut.hop / self.cut.rate

    def count(self, seconds: float) -> int:
        """Windows of a recording of some length: those of `tymbal.inference.streaming`."""
        samples = round(seconds * self.cut.rate)
        last = max(0, math.ceil((samples - self.cut.length) / self.cut.hop))
        return last + 1 if last == 0 or samples - last * self.cut.hop >= self.cut.shortest else last

    def look(self, path: Path, number: int = 0) -> Look:
        """Runs the model on one window of a recording.

        Args:
            path: The recording.
            number: Which of its windows.

        Raises:
            AudioError: The window cannot be read, or is shorter than a frame.
        """
        first = number * self.cut.hop
        begin = first / self.cut.rate
        samples = next(stream(path, sample_rate=self.cut.rate, block=self.window, start=begin))
        if len(samples) < self.cut.shortest:
            raise problem("too short", f"{len(samples) / self.cut.rate:.4g} s, less than one frame", path)
        with self._lock:
            return self._look(Window(first, samples))

    def _look(self, window: Window) -> Look:
        x, frames = self._embedder.front([window], length=self.cut.length)
        encoded = self._embedder.encode(x, frames)
        encoder = self._embedder.encoder
        config, (rows, all_columns) = encoder.config, encoded.grid
        columns = int(config.real_columns(frames, all_columns)[0])
        patches = encoded.tokens[0, encoded.prefix :].view(rows, all_columns, -1)[:, :columns]
        peaks = encoder.patchify(x)[0].amax(1).view(encoded.grid)[:, :columns]
        loudest = divmod(int(peaks.argmax()), columns)
        return Look(
            start=window.start / self.cut.rate,
            end=window.end / self.cut.rate,
            values=self._fbank(torch.from_numpy(window.samples)).numpy(),
            reach=(
                (rows - 1) * config.stride[0] + config.patch[0],
                (columns - 1) * config.stride[1] + config.patch[1],
            ),
            loudest=loudest,
            tokens=patches.cpu().numpy(),
            embedding=self._embedder.clips(x, frames)[0],
            attention=self._attention(x, encoded.grid, columns),
            scores=None if self._scorer is None else self._scorer([window], length=self.cut.length)[0],
            views=self._views(x, frames),
        )

    def _views(self, x: Tensor, frames: Tensor) -> dict[str, View]:
        """Views of LeJEPA, with nothing laid over them; by the settings that the model's description keeps."""
        how = self._embedder.description.objective or {}
        if how.get("objective") != "lejepa":
            return {}
        settings = from_mapping(LeJEPASettings, with_todays_names(LeJEPASettings, how))
        objective = LeJEPAObjective(
            self._embedder.encoder,
            normalisation=self._embedder.description.normalisation,
            settings=settings,
            views=SpectrogramViews().times(settings.view_strength),
            frames=float(frames[0]),
        )
        return objective.eval().shown(x, frames, torch.zeros_like(frames))

    def _attention(self, x: Tensor, grid: tuple[int, int], columns: int) -> dict[str, NDArray[np.float32]]:
        encoder = self._embedder.encoder
        prefix = encoder.config.prefix_tokens
        if prefix + grid[0] * grid[1] > MOST_TOKENS:
            return {}
        read = readers(self.pooling, prefix=prefix, grid=grid, real_columns=columns)
        shares = attention(encoder, x, readers=read.to(x.device))
        kinds = {"last": shares.last, "rollout": shares.rollout}
        return {kind: each[prefix:].view(grid)[:, :columns].numpy() for kind, each in kinds.items()}

    def survey(
        self,
        path: Path,
        *,
        most: float,
        advance: Callable[[float], None] = lambda _: None,
        go_on: Callable[[], bool] = lambda: True,
    ) -> Survey | None:
        """Goes through a recording in memory that does not grow with it.

        Args:
            path: The recording.
            most: Seconds that are looked at, at most.
            advance: Receives the share that is done.
            go_on: Whether to go on; called before each batch.

        Returns:
            The whole recording; None where `go_on` said no.

        Raises:
            AudioError: It cannot be read.
        """
        seconds = info(path).duration
        spectrum = Downsampler(_SPECTRUM_COLUMNS, self.features.mel_bins, "mean")
        scores = Downsampler(_SCORE_COLUMNS, len(self.labels), "max")
        done = until = 0
        tail = np.empty((0, self.features.mel_bins), np.float32)  # no window behind the last one has these
        for batch in self._batches(path, most):
            if not go_on():
                return None
            for window in batch:
                frames = self._fbank(torch.from_numpy(window.samples)).numpy()
                new = self._new(done)
                spectrum.add(frames[:new])
                tail, done, until = frames[new:], done + 1, window.end
            if self._scorer is not None:
                with self._lock:
                    scores.add(self._scorer(batch, length=self.cut.length))
            advance(min(1.0, until / self.cut.rate / max(min(seconds, most), 1e-9)))
        spectrum.add(tail)
        middle = np.arange(len(scores.values)) * scores.rows_per_column + (scores.rows_per_column - 1) / 2
        return Survey(
            seconds=max(seconds, until / self.cut.rate),
            until=until / self.cut.rate,
            spectrum=spectrum.values,
            scores=None if self._scorer is None else scores.values,
            times=np.minimum(middle * self.hop + self.window / 2, until / self.cut.rate),
            windows=done,
        )

    def _batches(self, path: Path, most: float) -> Iterator[list[Window]]:
        blocks = stream(path, sample_rate=self.cut.rate, block=_BLOCK)
        batch: list[Window] = []
        for window in windows(blocks, length=self.cut.length, hop=self.cut.hop, shortest=self.cut.shortest):
            if window.start >= most * self.cut.rate:
                break
            if len(window.samples) < self.cut.shortest:
                raise problem("too short", f"{len(window.samples) / self.cut.rate:.4g} s, less than one frame", path)
            batch.append(window)
            if len(batch) == self._batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _new(self, number: int) -> int:
        """Frames of a window that the next one does not have."""
        step = self.cut.hop / self.features.shift_samples
        return round((number + 1) * step) - round(number * step)


def likeness(tokens: NDArray[np.float32], row: int, column: int) -> NDArray[np.float32]:
    """How like one patch all patches are: the cosine of the angle between their tokens, [rows, columns].

    Args:
        tokens: [rows, columns, width].
        row: Row of the patch, the lowest frequencies first.
        column: Its column.
    """
    unit = tokens / np.maximum(np.linalg.norm(tokens, axis=2, keepdims=True), np.finfo(np.float32).tiny)
    cosines: NDArray[np.float32] = unit @ unit[row, column]
    return cosines


MOST_TOKENS = 2500
"""Above this number of tokens no attention is computed: it grows with the square."""


@dataclass(frozen=True)
class Attention:
    """Shares of attention that the tokens of one clip get; each sums to 1.

    Attributes:
        last: In the last block, the mean over its heads, [tokens].
        rollout: Through all blocks, [tokens].
    """

    last: Tensor
    rollout: Tensor


def readers(pooling: str | None, *, prefix: int, grid: tuple[int, int], real_columns: int) -> Tensor:
    """The tokens from which a model reads, int64.

    Args:
        pooling: How it pools; see `tymbal.models.classifier.pool`. `None` is as `mean`.
        prefix: Tokens in front of the patches.
        grid: Rows and columns of patches.
        real_columns: Columns at the start that hold sound.
    """
    rows, columns = grid
    front = torch.arange(prefix)
    patches = prefix + torch.arange(rows * columns).view(rows, columns)[:, :real_columns].flatten()
    if pooling == "cls":
        return front
    return torch.cat([front, patches]) if pooling is not None and pooling.startswith("all") else patches


@torch.inference_mode()
def attention(encoder: SpectrogramEncoder, x: Tensor, *, readers: Tensor) -> Attention:
    """Computes the attention inside an encoder, in float32.

    Args:
        encoder: In evaluation mode.
        x: One normalised spectrogram, [1, frames, mels].
        readers: Tokens from which it is read, int64 [readers].
    """
    blocks: list[Tensor] = []
    heads = encoder.config.heads

    def keep(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        blocks.append(_weights(output[0].float(), heads))

    handles = [cast(Block, block).attention.qkv.register_forward_hook(keep) for block in encoder.blocks]
    try:
        encoder(x)
    finally:
        for handle in handles:
            handle.remove()
    last = blocks[-1][readers].mean(0)
    flow = torch.zeros_like(last)
    flow[readers] = 1 / len(readers)
    for weights in reversed(blocks):  # a row through the product of the blocks, from the last to the first
        flow = 0.5 * flow + 0.5 * flow @ weights
    return Attention(last.cpu(), flow.cpu())


def _weights(qkv: Tensor, heads: int) -> Tensor:
    """The mean over the heads of their attention, [tokens, 3 x width] to [tokens, tokens], head by head for memory."""
    length, width = qkv.shape[0], qkv.shape[1] // 3
    queries, keys = qkv.view(length, 3, heads, width // heads).permute(1, 2, 0, 3)[:2]  # [heads, tokens, channels]
    total = torch.zeros(length, length, device=qkv.device)
    for query, key in zip(queries, keys, strict=True):
        total += (query @ key.T / query.shape[1] ** 0.5).softmax(1)
    return total / heads
