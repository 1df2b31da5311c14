from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from small_model import small_model
from tones import tone_store
from tymbal import probe
from tymbal.evaluation import embedding_cache as cache
from tymbal.inference.encoding import FrozenEncoder
from tymbal.machine import cache_folder

QUICK = {"device": "cpu", "precision": "float32"}


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TYMBAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_probe__embeddings_are_kept_for_the_same_and_for_nothing_else(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, store = small_model(tmp_path / "model"), tone_store(tmp_path / "store").path
    made: list[int] = []
    embed = FrozenEncoder.embed
    monkeypatch.setattr(FrozenEncoder, "embed", lambda *a, **k: made.append(1) or embed(*a, **k))
    first = probe(model, store, pooling=("rows",), **QUICK)
    assert len(made) == len(list(kept.glob("*.npy"))) == 2
    assert probe(model, store, pooling=("rows",), **QUICK).rows == first.rows
    assert len(made) == 2
    probe(small_model(tmp_path / "other", seed=2), store, pooling=("rows",), random=False, **QUICK)
    probe(model, store, random=False, skip_padding=False, **QUICK)
    tone_store(tmp_path / "second", clips=8)
    probe(model, tmp_path / "second", random=False, **QUICK)
    assert len(made) == 5
    for file in kept.glob("*.npy"):
        file.write_bytes(file.read_bytes()[:100])
    assert probe(model, store, random=False, **QUICK).figure("model") == first.figure("model")
    assert len(made) == 6
    probe(model, store, random=False, cache=False, **QUICK)
    assert len(made) == 7


def test_keep__lets_go_of_what_was_not_used_for_longest(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_ROOM", 1500)
    for number, name in enumerate(("old", "new")):
        cache.save(name, np.zeros(150, np.float32))
        os.utime(kept / f"{name}.npy", (number, number))
    assert cache.load("old") is not None  # and so it is the one used last
    cache.save("newest", np.zeros(150, np.float32))
    assert sorted(path.stem for path in kept.iterdir()) == ["newest", "old"]
    assert cache.load("new") is None


def test_probe__needs_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TYMBAL_CACHE", "XDG_CACHE_HOME", "HOME", "LOCALAPPDATA", "USERPROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 2**30, raising=False)
    with pytest.raises(OSError, match="TYMBAL_CACHE names one"):
        cache_folder()
    assert cache.place_for_table("key") is None
    model, store = small_model(tmp_path / "model"), tone_store(tmp_path / "store").path
    assert probe(model, store, random=False, **QUICK).rows
