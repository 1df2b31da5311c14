"""Where in a window a model hears what it scores: a box in time and frequency, proposed from the tokens of its patches.

A token's share of a score is the gradient of the score with respect to the token, times how the token differs from
what the recordings sound like in its row of patches (one step of integrated gradients, Sundararajan et al. 2017, from
such a sound; Grad-CAM, Selvaraju et al. 2017, takes the token as it is). Tokens are those behind the first quarter of
the blocks, where they are still about their own place: later ones tell of the whole clip. The box reaches as far as
shares stay above half of the largest, in time first, then in frequency. Patches as high as the spectrogram tell times
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tymbal.features.bank import filter_bank
from tymbal.inference.encoding import Encoded
from tymbal.inference.frontend import Embedder
from tymbal.inference.streaming import Window

__all__ = ["Box", "BoxFinder", "around_peak"]

_PART = 0.5
_SMOOTH = (0.25, 0.5, 0.25)
_WHOLE = 0.9
"""A box that is so much of the window, or of the band, narrows nothing."""


@dataclass(frozen=True)
class Box:
    """A part of a window.

    Attributes:
        start: Where it begins, in seconds.
        end: Where it ends.
        low: Its lowest frequency in Hz; None is any.
        high: Its highest frequency; None is any.
    """

    start: float
    end: float
    low: float | None = None
    high: float | None = None

    def after(self, begin: float, end: float) -> Box:
        """The box in a recording, of a window that begins and ends there."""
        return replace(self, start=begin + self.start, end=min(begin + self.end, end))


class BoxFinder:
    """Finds boxes in windows.

    Args:
        embedder: The encoder.
        length: Samples of a full window.
        references: Windows that stand for what the recordings sound like, at least one frame each; none is silence.
    """

    def __init__(self, embedder: Embedder, *, length: int, references: Sequence[Window]) -> None:
        self._embedder, self._length = embedder, length
        self._bank = filter_bank(embedder.description.features)
        how = embedder.record()
        self._pooling, self._layer, self._skip = str(how["pooling"]), how["layer"], bool(how["skip_padding"])
        self._usual = torch.zeros(())
        if references:
            passed = [self._encode(window) for window in references]
            self._usual = torch.stack([each.patches(each.leaf).mean(1) for each in passed]).mean(0)[:, None]

    def find(self, window: Window, direction: NDArray[np.float32]) -> Box | None:
        """The box in a window, in seconds from its beginning; None where nothing in it speaks for the score.

        Args:
            window: At least one frame.
            direction: The gradient of a score with respect to the embedding, [dimensions].
        """
        shares = self.shares(window, direction)
        found = around_peak(shares)
        if found is None:
            return None
        config, features = self._embedder.encoder.config, self._embedder.description.features
        rate, frames = features.sample_rate, config.stride[1]
        (bottom, top), (first, last) = found
        seconds = len(window.samples) / rate
        start = first * frames * self._bank.shift_samples / rate
        end = min(self._bank.samples_of((last - 1) * frames + config.patch[1]) / rate, seconds)
        rows = len(shares)
        whole_time, whole_band = end - start >= _WHOLE * seconds, top - bottom >= _WHOLE * rows
        if whole_time and whole_band:
            return None
        if whole_time:
            start, end = 0.0, seconds
        low = self._bank.hertz_at(bottom * config.stride[0] - 0.5)
        high = self._bank.hertz_at((top - 1) * config.stride[0] + config.patch[0] - 0.5)
        return Box(start, end) if whole_band else Box(start, end, low, high)

    def shares(self, window: Window, direction: NDArray[np.float32]) -> NDArray[np.float32]:
        """What each patch that holds sound adds to a score, [rows, columns], the lowest frequencies first.

        Args:
            window: At least one frame.
            direction: As in `find`.
        """
        passed = self._encode(window)
        score = (passed.pooled @ torch.from_numpy(direction).to(passed.pooled)).sum()
        (gradient,) = torch.autograd.grad(score, passed.leaf)
        added = passed.patches(gradient) * (passed.patches(passed.leaf) - self._usual)
        shares: NDArray[np.float32] = added.sum(-1).detach().cpu().numpy()
        return shares[:, : passed.columns]

    def _encode(self, window: Window) -> _Pass:
        """A pass of the encoder through which gradients flow."""
        embedder, config = self._embedder, self._embedder.encoder.config
        x, frames = embedder.front([window], length=self._length)
        with torch.enable_grad():
            output = embedder.encoder(x.requires_grad_(), frames=frames, hidden_states=True)
            states = output.hidden_states
            pooled = output.tokens if self._layer is None else states[self._layer]
            columns = config.real_columns(frames, output.grid[1])
            real = columns if self._skip else None
            embedding = Encoded(pooled.float(), output.grid, config.prefix_tokens, real).pooled(self._pooling)[0]
        last = config.depth if self._layer is None else self._layer
        return _Pass(states[-(-last // 4)], embedding, output.grid, config.prefix_tokens, int(columns[0]))


@dataclass(frozen=True)
class _Pass:
    """What the encoder made of one window.

    Attributes:
        leaf: Tokens to which the score is traced, [1, prefix + patches, width].
        pooled: The embedding, [dimensions].
        grid: Rows and columns of patches.
        prefix: Tokens in front of them.
        columns: Columns at the start that hold sound.
    """

    leaf: Tensor
    pooled: Tensor
    grid: tuple[int, int]
    prefix: int
    columns: int

    def patches(self, values: Tensor) -> Tensor:
        """Values of the tokens as those of the patches, [rows, columns, width]."""
        return values[0, self.prefix :].reshape(*self.grid, -1)


def around_peak(shares: NDArray[np.float32]) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The rows and the columns, each from and up to, around the largest shares that stay above half of them.

    Args:
        shares: [rows, columns].

    Returns:
        None where no share is above 0.
    """
    above = np.maximum(shares, 0)
    if not above.any():
        return None
    over_time = np.convolve(np.pad(above.sum(0), 1, mode="edge"), _SMOOTH, mode="valid")
    first, last = _stretch(over_time)
    return _stretch(above[:, first:last].sum(1)), (first, last)


def _stretch(values: NDArray[np.float32]) -> tuple[int, int]:
    """The places, from and up to, around the largest value that have half of it."""
    peak = int(np.argmax(values))
    low = np.flatnonzero(values < _PART * values[peak])
    before, behind = low[low < peak], low[low > peak]
    return int(before[-1]) + 1 if len(before) else 0, int(behind[0]) if len(behind) else len(values)
