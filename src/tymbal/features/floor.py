"""The lowest value of a log-mel spectrogram: that of digital silence, and so of padding."""

from __future__ import annotations

import math

__all__ = ["ENERGY_FLOOR", "LOG_FLOOR"]

ENERGY_FLOOR = 1.1920928955078125e-07
"""The smallest energy before the logarithm (float32's epsilon, as in Kaldi)."""

LOG_FLOOR = math.log(ENERGY_FLOOR)
"""Log-mel value of digital silence."""
