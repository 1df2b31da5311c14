"""A file written where the test wants it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from made_sounds import tone

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a waveform ([samples] or [samples, channels]) to a file below the test's folder."""

    def write(name: str, waveform: npt.NDArray[np.float32] | None = None, rate: int = 16_000, **keywords: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, tone(1.0, rate) if waveform is None else waveform, rate, **keywords)
        return path

    return write
