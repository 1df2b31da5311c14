from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

import tymbal
from small_model import small_model
from tones import RATE, tone
from tymbal.errors import StoreError
from tymbal.inference.embeddings import nearest_approximately, nearest_exactly, read_embeddings, read_rows, rows_of
from tymbal.inference.tables import vectors


def embeddings(path: Path, values: np.ndarray) -> Path:
    array = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    names = pa.array([f"{number}" for number in range(len(values))])
    table = pa.table({"file": names, "embedding": array}).replace_schema_metadata({"tymbal": '{"model": "x"}'})
    pq.write_table(table, path, row_group_size=700)
    return path


def test_nearest__exact_is_that_of_all_at_once(tmp_path: Path):
    generator = np.random.default_rng(0)
    values = generator.normal(size=(20_000, 12)).astype(np.float32)
    values[7] = 0
    query = generator.normal(size=12).astype(np.float32)
    path = embeddings(tmp_path / "a.parquet", values)
    rows, scores = nearest_exactly(path, query, 25)
    expected = values @ query / np.maximum(np.linalg.norm(values, axis=1), 1e-12) / np.linalg.norm(query)
    assert rows.tolist() == np.argsort(-expected)[:25].tolist()
    np.testing.assert_allclose(scores, expected[rows], atol=1e-6)
    assert [row["file"] for row in rows_of(path, rows)] == [str(row) for row in rows]
    assert len(nearest_exactly(path, query, 30_000)[0]) == 20_000


def test_read_rows__are_those_of_their_groups_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    values = np.random.default_rng(0).normal(size=(500, 12)).astype(np.float32)
    path = embeddings(tmp_path / "a.parquet", values)
    table = pq.read_table(path)
    pq.write_table(table, path, row_group_size=60)
    monkeypatch.setattr("tymbal.inference.embeddings.CHUNK_BYTES", 4 * 12 * 25)  # pieces smaller than groups
    wanted = np.array([0, 59, 60, 61, 119, 300, 499])
    found = list(read_rows(path, wanted, ["file"]))
    np.testing.assert_array_equal(np.concatenate([rows for rows, _ in found]), wanted)
    np.testing.assert_array_equal(np.concatenate([vectors(batch) for _, batch in found]), values[wanted])
    assert [name for _, batch in found for name in batch.column("file").to_pylist()] == [str(row) for row in wanted]
    assert list(read_rows(path, wanted[:0])) == []
    every = np.arange(500)
    np.testing.assert_array_equal(np.concatenate([rows for rows, _ in read_rows(path, every)]), every)


def test_nearest__an_index_is_kept_until_the_file_changes(tmp_path: Path):
    pytest.importorskip("usearch")
    values = np.random.default_rng(0).normal(size=(500, 12)).astype(np.float32)
    path = embeddings(tmp_path / "a.parquet", values)
    rows, scores = nearest_approximately(path, values[3], 5)
    exact = nearest_exactly(path, values[3], 5)
    assert len(set(rows.tolist()) & set(exact[0].tolist())) >= 4
    np.testing.assert_allclose(scores[0], 1, atol=1e-5)
    kept = tmp_path / "a.parquet.usearch"
    made = kept.stat().st_mtime_ns
    nearest_approximately(path, values[4], 5)
    assert kept.stat().st_mtime_ns == made
    embeddings(path, values[::-1].copy()[:400])
    assert nearest_approximately(path, values[-1], 1)[0].tolist() == [0]


def test_read_embeddings__a_flipped_byte_is_noticed(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone("low", seconds=3, seed=1), RATE)
    tymbal.embed(small_model(tmp_path / "model"), tmp_path / "a.wav", tmp_path / "a.parquet", device="cpu")
    data = (tmp_path / "a.parquet").read_bytes()
    whole = [batch.to_pydict() for batch in read_embeddings(tmp_path / "a.parquet")]
    noticed = 0
    for place in range(4, len(data) - 8, 131):
        (tmp_path / "b.parquet").write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            found = [batch.to_pydict() for batch in read_embeddings(tmp_path / "b.parquet")]
        except StoreError as error:
            assert "b.parquet" in str(error)
            noticed += 1
        else:
            assert found == whole
    assert noticed > 0
