from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from small_model import small_model
from tones import PITCHES, RATE, tone
from tymbal import embed, similar
from tymbal.errors import AudioError, ModelError, SettingsError, StoreError
from tymbal.inference.embeddings import nearest_approximately, nearest_exactly, rows_of, vectors

CPU = {"device": "cpu", "precision": "float32"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("encoder") / "model")


@pytest.fixture(scope="module")
def index(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sounds")
    for label in PITCHES:
        for number in range(4):
            sound = tone(label, seconds=0.335, seed=number)
            soundfile.write(folder / f"{label}-{number}.wav", sound, RATE, subtype="FLOAT")
    embed(encoder, folder, folder / "index.parquet", **CPU)
    return folder / "index.parquet"


@pytest.mark.parametrize("approximate", [False, True])
def test_similar__finds_the_clip_itself_and_then_its_like(
    encoder: Path, index: Path, tmp_path: Path, approximate: bool
):
    if approximate:
        pytest.importorskip("usearch")
    clip = index.parent / "low-2.wav"
    result = similar(encoder, clip, index, tmp_path / "out.csv", top=4, approximate=approximate, **CPU)
    first = result.neighbours[0]
    assert (first.file, first.start, first.similarity) == (str(clip), 0.0, pytest.approx(1, abs=1e-5))
    similarities = [one.similarity for one in result.neighbours]
    assert similarities == sorted(similarities, reverse=True)
    assert {Path(one.file).stem.partition("-")[0] for one in result.neighbours} == {"low"}
    with (tmp_path / "out.csv").open(newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == [one.file for one in result.neighbours]
    assert result.summary().startswith(f"1.0000  {clip}  0.00 to 0.34 s\n")


def test_similar__a_long_example_is_the_mean_of_its_windows(encoder: Path, index: Path, tmp_path: Path):
    soundfile.write(tmp_path / "long.wav", tone("high", seconds=5, seed=9), RATE)
    result = similar(encoder, tmp_path / "long.wav", index, top=12, batch_size=4, **CPU)
    embed(encoder, tmp_path / "long.wav", tmp_path / "long.parquet", per="file", **CPU)
    query = vectors(pq.read_table(tmp_path / "long.parquet"))[0]
    for one in result.neighbours:
        place = pq.read_table(index)["file"].to_pylist().index(one.file)
        other = vectors(pq.read_table(index))[place]
        cosine = query @ other / np.linalg.norm(query) / np.linalg.norm(other)
        assert one.similarity == pytest.approx(cosine, abs=1e-5)
    assert Path(result.neighbours[0].file).stem.startswith("high")


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


def test_similar__what_cannot_be_searched(encoder: Path, index: Path, tmp_path: Path, monkeypatch):
    clip = index.parent / "low-2.wav"
    other = small_model(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match="are another model's"):
        similar(other, clip, index, **CPU)
    with pytest.raises(StoreError, match="no such file of embeddings"):
        similar(encoder, clip, tmp_path / "absent.parquet", **CPU)
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(StoreError, match="no embeddings of tymbal embed"):
        similar(encoder, clip, tmp_path / "other.parquet", **CPU)
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(StoreError, match="no Parquet file"):
        similar(encoder, clip, tmp_path / "text.parquet", **CPU)
    soundfile.write(tmp_path / "short.wav", tone("low", seconds=0.01), RATE)
    with pytest.raises(AudioError, match=r"too short: 0\.01 s"):
        similar(encoder, tmp_path / "short.wav", index, **CPU)
    with pytest.raises(SettingsError, match="a table ends in"):
        similar(encoder, clip, index, tmp_path / "out.txt", **CPU)
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with pytest.raises(SettingsError, match=r"pip install 'tymbal\[search\]'"):
        similar(encoder, clip, index, approximate=True, **CPU)
