from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from damaged import delete, pt_store
from small_model import small_model
from tones import tone_store
from tymbal import probe
from tymbal.errors import SettingsError, StoreError
from tymbal.evaluation import embedding_cache as module
from tymbal.evaluation.embedding_cache import write_tokens
from tymbal.inference.encoding import FrozenEncoder
from tymbal.models.folder import load_model
from tymbal.progress import Progress

QUICK = {"device": "cpu", "precision": "float32"}


def test_write_tokens__their_mean_is_the_embedding(tmp_path: Path) -> None:
    store = tone_store(tmp_path / "store", clips=6, validation=2)
    loaded = load_model(small_model(tmp_path / "model"))
    rows = np.array([0, 3, 7, 8, 16])
    frozen = FrozenEncoder(loaded.module, loaded.description.normalisation, batch_size=2)
    progress = Progress(5, "Writing", unit="clips")
    written = write_tokens(frozen, store, rows, layers=[1, None], folder=tmp_path, progress=progress)
    assert written.rows.tolist() == rows.tolist()
    for layer, tokens in written.layers.items():
        values, real = tokens.batch(np.array([4, 0, 2]))
        patches = real.clone()
        patches[:, : tokens.prefix] = False
        means = (values * patches.unsqueeze(2)).sum(1) / patches.sum(1, keepdim=True)
        expected = frozen.embed(store, rows[[4, 0, 2]], layers=[layer]).values["mean", layer]
        torch.testing.assert_close(means, torch.from_numpy(expected), rtol=2e-3, atol=2e-3)
        assert not real[1].all()  # a short clip
        assert tokens.path.stat().st_size == 5 * 10 * 16 * 2


def test_probe__tokens_that_the_disk_cannot_hold_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, model = tone_store(tmp_path / "store", clips=4, validation=1).path, small_model(tmp_path / "model")
    full = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: full)
    with pytest.raises(SettingsError, match="tokens for an attentive probe take"):
        probe(model, store, readers=("attentive",), **QUICK)


def test_write_tokens__of_clips_that_can_be_read(tmp_path: Path) -> None:
    store, loaded = pt_store(tmp_path), load_model(small_model(tmp_path / "model"))
    frozen = FrozenEncoder(loaded.module, loaded.description.normalisation, batch_size=2)
    rows = np.array([0, 3, 7, 8, 16])

    def write(name: str):
        (tmp_path / name).mkdir()
        progress = Progress(5, "Writing", unit="clips")
        return write_tokens(frozen, store, rows, layers=[None], folder=tmp_path / name, progress=progress)

    whole = write("whole")
    delete(store, 0, 8)
    left = write("left")
    assert left.rows.tolist() == [3, 7, 16]
    for one, other in zip(
        left.layers[None].batch(np.arange(3)), whole.layers[None].batch(np.array([1, 2, 4])), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)
    delete(store, 3, 7, 16)
    with pytest.raises(StoreError, match="not one of the clips can be read any more"):
        write("none")
