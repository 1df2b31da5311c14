from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_store import FRAMES, MELS

from tymbal.features.kaldi import LOG_FLOOR
from tymbal.store.packed.writer import open_shard


def test_shard__cuts_and_pads(tmp_path: Path) -> None:
    path = tmp_path / "shards" / "00000.npy"
    with open_shard(path, frames=FRAMES, mels=MELS) as writer:
        assert writer.append(np.ones((FRAMES + 3, MELS), np.float32)) == FRAMES
        assert writer.append(np.ones((1, MELS), np.float32)) == 1
    values = np.load(path)
    assert values.shape == (2, FRAMES, MELS)
    assert (values[0] == 1).all()
    assert (values[1, 1:] == np.float16(LOG_FLOOR)).all()
    assert writer.moments.count == (FRAMES + 1) * MELS
    assert (writer.moments.mean, writer.moments.std) == (1.0, 0.0)


def test_shard__whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "00000.npy"
    with pytest.raises(KeyError), open_shard(path, frames=FRAMES, mels=MELS) as writer:
        writer.append(np.ones((1, MELS), np.float32))
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_shard__is_what_numpy_writes(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, FRAMES, MELS)).astype(np.float16)
    np.save(tmp_path / "numpy.npy", values)
    with open_shard(tmp_path / "ours.npy", frames=FRAMES, mels=MELS) as writer:
        for value in values:
            writer.append(value)
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "numpy.npy").read_bytes()
