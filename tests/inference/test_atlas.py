"""Embeddings as embedding-atlas opens them, with places, neighbours and sounds."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

import tymbal
from small_model import small_model
from tones import RATE, tone_folder, tone_store
from tymbal.inference import atlas
from tymbal.inference.atlas import EmbeddingAtlas, laid_out
from tymbal.inference.tables import EMBEDDING, vectors

SCHEMA = pa.schema([("file", pa.string()), (EMBEDDING, pa.list_(pa.float32(), 3))])


def test_atlas__has_a_place_neighbours_and_the_sound_of_each_row(tmp_path: Path) -> None:
    sound = tone_folder(tmp_path / "sound", clips=3)
    model = small_model(tmp_path / "model")
    tymbal.embed(model, sound, tmp_path / "plain.parquet", device="cpu")
    done = tymbal.embed(model, sound, tmp_path / "atlas.parquet", format="embedding-atlas", device="cpu")
    assert done.rows == 18
    table = pq.read_table(tmp_path / "atlas.parquet")
    plain = pq.read_table(tmp_path / "plain.parquet")
    assert set(plain.column_names) < set(table.column_names)
    np.testing.assert_array_equal(vectors(table), vectors(plain))
    assert table.schema.field("audio").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = table.select(["id", "file", "projection_x", "projection_y", "__neighbors", "audio"]).to_pylist()
    assert [row["id"] for row in rows] == list(range(18))
    assert set(table.column("folder").to_pylist()) == {"high", "low", "middle"}
    assert len({(row["projection_x"], row["projection_y"]) for row in rows}) == 18
    unit = vectors(table) / np.linalg.norm(vectors(table), axis=1, keepdims=True)
    for number, row in enumerate(rows):
        near = row["__neighbors"]
        assert near["ids"][0] == number
        assert len(near["ids"]) == 11
        expected = np.sort(1 - unit[number] @ unit.T)[:11]
        np.testing.assert_allclose(near["distances"], np.maximum(expected, 0), atol=1e-5)
        played, rate = soundfile.read(io.BytesIO(row["audio"]["bytes"]))
        assert (rate, len(played)) == (RATE, 2680)
    # The same file is searched as any other.
    found = tymbal.similar(model, rows[4]["file"], tmp_path / "atlas.parquet", device="cpu", top=1)
    assert found.neighbours[0].file == rows[4]["file"]


def test_atlas__of_a_store_whose_sounds_are_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tone_store(tmp_path / "store").path
    tymbal.embed(small_model(tmp_path / "model"), store, tmp_path / "a.parquet", format="embedding-atlas", device="cpu")
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.column("audio").null_count == len(table) == 48
    assert "48 rows have no sound to play" in capsys.readouterr().err


def test_atlas__is_bounded_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(atlas, "_MOST_ROWS", 10)
    values = np.arange(105, dtype=np.float32).reshape(35, 3)
    with EmbeddingAtlas().open_embeddings(tmp_path / "a.parquet", SCHEMA, {"verb": "embed"}) as write:
        for start in range(0, 35, 7):
            part = values[start : start + 7]
            column = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), 3)
            write(pa.table({"file": pa.array(["gone.wav"] * len(part)), EMBEDDING: column}, schema=SCHEMA))
    table = pq.read_table(tmp_path / "a.parquet")
    np.testing.assert_array_equal(vectors(table), values[::4])
    assert "Of 35 embeddings one in 4 is in a.parquet" in capsys.readouterr().err


def test_laid_out__keeps_groups_apart_and_takes_few() -> None:
    random = np.random.default_rng(0)
    groups = np.repeat(np.eye(3, 8) * 20, 20, axis=0) + random.normal(size=(60, 8))
    places = laid_out(groups)
    centres = places.reshape(3, 20, 2).mean(axis=1)
    spread = places.reshape(3, 20, 2).std(axis=1).max()
    apart = min(np.linalg.norm(centres[a] - centres[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert apart > spread
    assert laid_out(np.ones((3, 4))).shape == (3, 2)
    assert laid_out(random.normal(size=(1, 4))).shape == (1, 2)
    assert laid_out(random.normal(size=(2, 4))).shape == (2, 2)
