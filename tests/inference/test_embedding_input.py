from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from damaged import delete, pt_store
from small_model import small_model
from tymbal import embed
from tymbal.data import DataSource
from tymbal.errors import AudioError
from tymbal.inference.spool import Spool
from tymbal.inference.tables import vectors

CPU = {"device": "cpu", "precision": "float32"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("encoder") / "model")


@pytest.mark.parametrize("per", ["window", "second"])
def test_embed__clips_that_became_unreadable_are_left_out_and_named(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per: str
) -> None:
    store = pt_store(tmp_path)
    monkeypatch.setattr("tymbal.inference.embedding_input._BLOCK", 10)
    monkeypatch.setattr(DataSource, "single_spectrograms", lambda _: store)
    folder, files = store.path.parent, store.index["file"].to_pylist()
    whole = embed(encoder, folder, tmp_path / "whole.parquet", per=per, **CPU)
    assert (whole.rows, whole.failures) == (24, ())
    delete(store, 4, 5, 23)
    # A stop between the blocks: what was left out of the first one is still known afterwards.
    ended = Spool.end

    def stop(spool: Spool, outcome) -> None:
        if outcome.place == "clips 20":
            raise KeyboardInterrupt
        ended(spool, outcome)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Spool, "end", stop)
        embed(encoder, folder, tmp_path / "left.parquet", per=per, **CPU)
    left = embed(encoder, folder, tmp_path / "left.parquet", per=per, **CPU)
    assert left.rows == 21
    assert [failure.file for failure in left.failures] == [files[row] for row in (4, 5, 23)]
    assert "spectrogram 23 of the store" in (tmp_path / "left.parquet.failures.csv").read_text()
    assert "3 files could not be read" in left.summary()
    rows = np.setdiff1d(np.arange(24), [4, 5, 23])
    tables = [pq.read_table(tmp_path / f"{name}.parquet") for name in ("whole", "left")]
    assert tables[1]["file"].to_pylist() == [files[row] for row in rows]
    np.testing.assert_allclose(vectors(tables[1]), vectors(tables[0])[rows], atol=1e-6)
    shutil.copy(store.paths[0], folder / "other.pt")  # so that it is still a folder of spectrograms
    delete(store, *rows.tolist())
    with pytest.raises(AudioError, match="none of 3 blocks of clips could be read"):
        embed(encoder, folder, tmp_path / "none.parquet", per=per, **CPU)
