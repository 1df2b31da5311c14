from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from small_model import small_model
from tones import PITCHES, RATE, tone, tone_store
from tymbal import embed
from tymbal.errors import ManifestError, ModelError, SettingsError, StoreError
from tymbal.evaluation import embedding_cache as cache
from tymbal.exploring import library
from tymbal.exploring.library import Library, open_library
from tymbal.models.folder import load_model
from tymbal.models.weights import fingerprint
from tymbal.settings import ExploreSettings

CPU = {"device": "cpu", "precision": "float32"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TYMBAL_CACHE", str(tmp_path / "cache"))


def tones(folder: Path, *, each: int = 3) -> Path:
    folder.mkdir()
    for label in PITCHES:
        for number in range(each):
            soundfile.write(folder / f"{label}-{number}.wav", tone(label, seed=number), RATE, subtype="FLOAT")
    return folder


def opened(source: Path, model: Path, **settings: object) -> Library:
    found = fingerprint(load_model(model).module)
    return open_library(
        source,
        model=str(model),
        fingerprint=found,
        mels=16,
        pooling="mean",
        settings=ExploreSettings(**CPU, **settings),
    )


def test_library__a_folder_of_sound_is_embedded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sounds = small_model(tmp_path / "model"), tones(tmp_path / "sounds")
    found = opened(sounds, model)
    assert len(found) == 9
    embed(model, sounds / "low-1.wav", tmp_path / "one.parquet", **CPU)
    from tymbal.inference.embeddings import read_embeddings
    from tymbal.inference.tables import vectors

    query = vectors(next(read_embeddings(tmp_path / "one.parquet")))[0]
    nearest = found.nearest(query, 3)
    assert (nearest[0].file, nearest[0].start) == (str(sounds / "low-1.wav"), 0.0)
    assert nearest[0].similarity == pytest.approx(1, abs=1e-5)
    assert {Path(one.file).stem.partition("-")[0] for one in nearest} == {"low"}
    with monkeypatch.context() as patch:
        patch.setattr(library, "embed", lambda *_, **__: pytest.fail("computed again"))
        assert opened(sounds, model).table == found.table
    os.utime(sounds / "low-1.wav", ns=(1, 1))
    assert opened(sounds, model).table != found.table
    assert opened(sounds, model, window=0.2).table != found.table


def test_library__a_store_keeps_its_rows_and_labels(tmp_path: Path) -> None:
    model, store = small_model(tmp_path / "model"), tone_store(tmp_path / "store", clips=4)
    found = opened(tmp_path / "store", model)
    assert len(found) == len(store) == 12
    assert found.window is None
    query = np.random.default_rng(0).normal(size=16).astype(np.float32)
    for one in found.nearest(query, 12):
        assert one.file == store.index["file"][one.row].as_py()
        assert one.label == store.index["labels"][one.row].as_py()[0]


def test_library__embeddings_that_are_given_are_taken(tmp_path: Path) -> None:
    model, sounds = small_model(tmp_path / "model"), tones(tmp_path / "sounds")
    embed(model, sounds, tmp_path / "table.parquet", window=0.2, **CPU)
    found = opened(tmp_path / "table.parquet", model)
    assert found.table == tmp_path / "table.parquet"
    assert found.window == 0.2
    assert not (tmp_path / "cache").exists()
    with pytest.raises(SettingsError, match="windows of their own"):
        opened(tmp_path / "table.parquet", model, window=0.3)


def test_library__what_there_can_be_no_neighbours_in(tmp_path: Path) -> None:
    model = small_model(tmp_path / "model")
    with pytest.raises(SettingsError, match="no such file or folder"):
        opened(tmp_path / "absent", model)
    with pytest.raises(StoreError, match="no such file of embeddings"):
        opened(tmp_path / "absent.parquet", model)
    (tmp_path / "table.csv").write_text("a,b\n")
    with pytest.raises(ManifestError):
        opened(tmp_path / "table.csv", model)
    tone_store(tmp_path / "store", clips=5)
    other = small_model(tmp_path / "other", frames=32, seed=1)
    assert len(opened(tmp_path / "store", other)) == 15
    from dataclasses import replace

    from tones import FEATURES

    strange = small_model(tmp_path / "strange", features=replace(FEATURES, frame_shift=0.012))
    with pytest.raises(ModelError, match="made with other spectrograms"):
        opened(tmp_path / "store", strange)


def test_place_for_table__those_not_used_for_longest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_ROOM", 250)
    for number, key in enumerate(("a", "b", "c")):
        place = cache.place_for_table(key)
        assert place is not None
        place.write_bytes(bytes(100))
        os.utime(place.parent, (number, number))
    os.utime(tmp_path / "cache" / "tables" / "a", (9, 9))
    assert cache.place_for_table("c") == tmp_path / "cache" / "tables" / "c" / "embeddings.parquet"
    assert sorted(path.name for path in (tmp_path / "cache" / "tables").iterdir()) == ["a", "c"]


def test_place_for_table__a_cache_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TYMBAL_CACHE", str(tmp_path / "file"))
    assert cache.place_for_table("a") is None
    model, sounds = small_model(tmp_path / "model"), tones(tmp_path / "sounds", each=1)
    with pytest.raises(StoreError, match="cache folder cannot be written to"):
        opened(sounds, model)
