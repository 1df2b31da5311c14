"""Statistics of spectrogram values: their floor, and mean and deviation in mergeable pieces."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["ENERGY_FLOOR", "LOG_FLOOR", "Moments"]


@dataclass(frozen=True)
class Moments:
    """Running count, mean and squared deviation of values.

    Attributes:
        count: Number of values.
        mean: Their mean.
        m2: Sum of their squared distances from the mean.
    """

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0

    @classmethod
    def of(cls, values: npt.NDArray[np.floating]) -> Moments:
        """The moments of one array, computed in float64. Pass real frames only: padding would count as sound."""
        if values.size == 0:
            return cls()
        distances = values.astype(np.float64).ravel()
        mean = float(distances.mean())
        distances -= mean
        # No dot product: numpy gives it to a BLAS, whose threads then spin for milliseconds.
        np.multiply(distances, distances, out=distances)
        return cls(count=distances.size, mean=mean, m2=float(distances.sum()))

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets together."""
        count = self.count + other.count
        if count == 0:
            return self
        delta = other.mean - self.mean
        return Moments(
            count=count,
            mean=self.mean + delta * other.count / count,
            m2=self.m2 + other.m2 + delta * delta * self.count * other.count / count,
        )

    @property
    def std(self) -> float:
        """Standard deviation of the values (of the population); 0 without values."""
        return math.sqrt(self.m2 / self.count) if self.count else 0.0


ENERGY_FLOOR = 1.1920928955078125e-07
"""The smallest energy before the logarithm (float32's epsilon, as in Kaldi)."""

LOG_FLOOR = math.log(ENERGY_FLOOR)
"""Log-mel value of digital silence."""
