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
from tymbal.inference.tables import vectors

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
