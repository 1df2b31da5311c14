from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from small_model import small_model
from tones import FEATURES, FRAMES, PITCHES, RATE, tone, tone_store
from tymbal import convert, embed, scan, similar
from tymbal.errors import AudioError, ModelError, SettingsError
from tymbal.features.kaldi import LOG_FLOOR, KaldiFbank
from tymbal.inference.encoding import FrozenEncoder
from tymbal.inference.spool import Outcome, Spool
from tymbal.models.classifier import pool
from tymbal.models.folder import load_model, save_model
from tymbal.settings import FeatureSettings

CPU = {"device": "cpu", "precision": "float32"}
CLIP = FEATURES.samples_of(FRAMES) / RATE  # 0.335 s


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("encoder") / "model")


@pytest.fixture
def nights(tmp_path: Path) -> Path:
    folder = tmp_path / "nights"
    folder.mkdir()
    for number, label in enumerate(PITCHES):
        sound = tone(label, seconds=0.5 + 0.4 * number, seed=number)
        soundfile.write(folder / f"20240322_19000{number}.wav", sound, RATE, subtype="FLOAT")
    return folder


def vectors(path: Path) -> np.ndarray:
    return np.array(pq.read_table(path)["embedding"].to_pylist(), np.float32)


def by_hand(model: Path, sound: np.ndarray, frames: int, *, pooling: str = "mean") -> np.ndarray:
    """Embeddings of one window from the parts of the library, padded to `frames`."""
    loaded = load_model(model)
    known = KaldiFbank(loaded.description.features)(torch.from_numpy(sound))
    spectrogram = torch.full((1, frames, known.shape[1]), LOG_FLOOR)
    spectrogram[0, : len(known)] = known
    count = torch.tensor([len(known)])
    with torch.no_grad():
        output = loaded.module(loaded.description.normalisation(spectrogram, count))
    real = loaded.description.encoder.real_columns(count, output.grid[1])
    return pool(output.tokens, how=pooling, grid=output.grid, real_columns=real)[0].numpy()


@pytest.mark.parametrize("pooling", ["mean", "rows", "cls"])
def test_embed__windows_of_recordings(encoder: Path, nights: Path, tmp_path: Path, pooling: str):
    result = embed(encoder, nights, tmp_path / "out.parquet", pooling=pooling, batch_size=3, **CPU)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.column_names == ["file", "start", "end", "start_time", "end_time", "embedding"]
    assert (result.rows, result.dimensions) == (9, 32 if pooling == "rows" else 16)
    assert table["start"].to_pylist() == pytest.approx([0, CLIP, 0, CLIP, 2 * CLIP, 0, CLIP, 2 * CLIP, 3 * CLIP])
    assert table["end"].to_pylist()[-1] == pytest.approx(1.3)
    assert table["start_time"].to_pylist()[3] == "2024-03-22T19:00:01.335"
    sound = tone("low", seconds=0.9, seed=1)
    length = round(CLIP * RATE)
    expected = [by_hand(encoder, sound[length * i : length * (i + 1)], FRAMES, pooling=pooling) for i in range(3)]
    np.testing.assert_allclose(vectors(tmp_path / "out.parquet")[2:5], expected, atol=1e-5)


def test_embed__every_format_says_the_same(encoder: Path, nights: Path, tmp_path: Path):
    for ending in ("parquet", "npy", "csv"):
        result = embed(encoder, nights, tmp_path / f"out.{ending}", **CPU)
        assert all(path.is_file() for path in result.written)
    expected = vectors(tmp_path / "out.parquet")
    npy = np.load(tmp_path / "out.npy", allow_pickle=False)
    assert npy.dtype == np.float32
    np.testing.assert_array_equal(npy, expected)
    with (tmp_path / "out.rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "start", "end", "start_time", "end_time"]
    assert len(rows) == len(expected)
    with (tmp_path / "out.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    found = [[float(row[f"embedding_{i}"]) for i in range(16)] for row in table]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert [{name: row[name] for name in rows[0]} for row in table] == rows


def test_embed__seconds(tmp_path: Path):
    features = FeatureSettings(sample_rate=RATE, mel_bins=16)
    model = small_model(tmp_path / "model", features=features, frames=336)  # 3.375 s: three whole seconds
    sound = np.concatenate([tone(label, seconds=1.0) for label in ("low", "high", "low", "middle")])
    soundfile.write(tmp_path / "a.wav", np.concatenate([sound, sound[: RATE // 2]]), RATE, subtype="FLOAT")
    result = embed(model, tmp_path / "a.wav", tmp_path / "out.parquet", per="second", **CPU)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["start"].to_pylist() == [0, 1, 2, 3, 4]
    assert table["end"].to_pylist() == [1, 2, 3, 4, 4.5]
    assert result.rows == 5
    # The mean of the columns whose middle is in the second: patches of 8 frames of 10 ms.
    loaded = load_model(model)
    spectrogram = KaldiFbank(features)(torch.from_numpy(sound[: 3 * RATE]))[None]
    count = torch.tensor([spectrogram.shape[1]])
    with torch.no_grad():
        output = loaded.module(loaded.description.normalisation(spectrogram, count))
    columns = output.tokens[0, 2:].view(*output.grid, -1).mean(0)
    middles = 0.08 * np.arange(len(columns)) + 0.035 + 0.0125
    expected = [columns[np.floor(middles) == second].mean(0).numpy() for second in range(3)]
    np.testing.assert_allclose(vectors(tmp_path / "out.parquet")[:3], expected, atol=1e-5)


def test_embed__files(encoder: Path, nights: Path, tmp_path: Path):
    embed(encoder, nights, tmp_path / "files.parquet", per="file", **CPU)
    embed(encoder, nights, tmp_path / "windows.parquet", **CPU)
    table, windows = pq.read_table(tmp_path / "files.parquet"), pq.read_table(tmp_path / "windows.parquet")
    assert table["end"].to_pylist() == pytest.approx([0.5, 0.9, 1.3])
    weights = np.array(windows["end"]) - np.array(windows["start"])
    expected = np.average(vectors(tmp_path / "windows.parquet")[2:5], axis=0, weights=weights[2:5])
    np.testing.assert_allclose(vectors(tmp_path / "files.parquet")[1], expected, atol=1e-6)


def test_embed__a_store(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tymbal.inference.embedding_input._BLOCK", 20)
    store = tone_store(tmp_path / "store", multilabel=True)
    result = embed(encoder, tmp_path / "store", tmp_path / "out.parquet", batch_size=7, **CPU)
    table = pq.read_table(tmp_path / "out.parquet")
    loaded = load_model(encoder)
    rows, facts = store.rows(), loaded.description
    expected = FrozenEncoder(loaded.module, facts.normalisation).embed(store, rows).values["mean", None]
    np.testing.assert_allclose(vectors(tmp_path / "out.parquet"), expected, atol=1e-5)
    assert result.rows == 48
    assert table["id"].to_pylist() == store.index["id"].to_pylist()
    assert table["label"].to_pylist()[:2] == ["high", "high;low"]
    embed(encoder, tmp_path / "store", tmp_path / "seconds.parquet", per="second", **CPU)
    assert pq.read_table(tmp_path / "seconds.parquet")["end"].to_pylist()[:2] == pytest.approx([0.2, 0.335])


def test_embed__spectrograms_in_pt_files(encoder: Path, tmp_path: Path):
    tone_store(tmp_path / "store")
    convert(tmp_path / "store", tmp_path / "pt", to="pt")
    plain = tmp_path / "plain"
    plain.mkdir()
    for file in (tmp_path / "pt").rglob("*.pt"):
        shutil.copy(file, plain / file.name)
    for per, end in (("window", 0.335), ("second", 0.335)):
        embed(encoder, plain, tmp_path / "plain.parquet", per=per, **CPU)
        table = pq.read_table(tmp_path / "plain.parquet")
        assert table["file"].to_pylist()[1] == str(plain / "high_1.pt")
        # Nothing tells where the sound ends but its frames.
        assert table["end"].to_pylist()[:2] == pytest.approx([FEATURES.samples_of(18) / RATE, end])
    embed(encoder, tmp_path / "store", tmp_path / "store.parquet", **CPU)
    embed(encoder, plain, tmp_path / "plain.parquet", **CPU)
    ids = pq.read_table(tmp_path / "store.parquet")["id"].to_pylist()
    order = np.argsort([place.replace("/", "_") + ".pt" for place in ids])
    expected = vectors(tmp_path / "store.parquet")[order]
    np.testing.assert_allclose(vectors(tmp_path / "plain.parquet"), expected, atol=1e-5)


def test_embed__a_store_is_continued(encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr("tymbal.inference.embedding_input._BLOCK", 20)
    tone_store(tmp_path / "store")
    embed(encoder, tmp_path / "store", tmp_path / "whole.npy", **CPU)
    ended = Spool.end

    def stop(spool: Spool, outcome: Outcome) -> None:
        if outcome.place == "clips 40":
            raise KeyboardInterrupt
        ended(spool, outcome)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Spool, "end", stop)
        embed(encoder, tmp_path / "store", tmp_path / "out.npy", **CPU)
    embed(encoder, tmp_path / "store", tmp_path / "out.npy", **CPU)
    assert "Continuing: 2 of 3 blocks of clips are done" in capsys.readouterr().err
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), np.load(tmp_path / "whole.npy"))


def test_embed__bad_files_are_named_and_the_rest_done(encoder: Path, nights: Path, tmp_path: Path):
    (nights / "text.wav").write_text("this is no sound")
    result = embed(encoder, nights, tmp_path / "out.parquet", **CPU)
    assert result.rows == 9
    assert "1 file could not be read" in result.summary()
    assert "text.wav" in (tmp_path / "out.parquet.failures.csv").read_text()
    with pytest.raises(AudioError, match=r"none of 1 recordings could be read; the first: .*text\.wav"):
        embed(encoder, nights / "text.wav", tmp_path / "none.parquet", **CPU)
    assert not (tmp_path / "none.parquet").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_embed__killed_it_continues(encoder: Path, nights: Path, tmp_path: Path):
    script = Path(__file__).parent / "inference" / "killed_walk.py"
    command = [sys.executable, script, "embed", encoder, nights, tmp_path / "out.parquet", "3"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "out.parquet").exists()
    with pytest.raises(SettingsError, match=r"begun with something else:\n    pooling: 'mean' -> 'rows'"):
        embed(encoder, nights, tmp_path / "out.parquet", pooling="rows", **CPU)
    embed(encoder, nights, tmp_path / "out.parquet", **CPU)
    embed(encoder, nights, tmp_path / "whole.parquet", **CPU)
    found, expected = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("out", "whole"))
    assert found.drop_columns(["embedding"]) == expected.drop_columns(["embedding"])
    np.testing.assert_allclose(vectors(tmp_path / "out.parquet"), vectors(tmp_path / "whole.parquet"), atol=1e-5)
    assert not (tmp_path / "out.parquet.unfinished").exists()


def test_embed__many_short_recordings_are_few_row_groups(encoder: Path, nights: Path, tmp_path: Path):
    for number in range(50):
        soundfile.write(nights / f"{number}.wav", tone("low", seed=number), RATE)
    embed(encoder, nights, tmp_path / "out.parquet", **CPU)
    assert pq.ParquetFile(tmp_path / "out.parquet").metadata.num_row_groups == 1


def test_embed__its_file_says_how_it_was_made(encoder: Path, nights: Path, tmp_path: Path):
    embed(encoder, nights, tmp_path / "out.parquet", layer=1, **CPU)
    told = json.loads(pq.read_schema(tmp_path / "out.parquet").metadata[b"tymbal"])
    assert (told["pooling"], told["layer"], told["per"], told["skip_padding"]) == ("mean", 1, "window", True)


def test_embed__grid_is_what_the_model_compared(tmp_path: Path, nights: Path):
    plain = small_model(tmp_path / "plain")
    loaded = load_model(plain)
    objective = {"objective": "lejepa", "parts": 4}
    save_model(tmp_path / "parts", loaded.module, replace(loaded.description, objective=objective))
    outs = {}
    for name, model, pooling in (
        ("own", tmp_path / "parts", "grid"), ("four", plain, "grid4"), ("none", plain, "grid"), ("rows", plain, "rows"),
    ):  # fmt: skip
        outs[name] = tmp_path / f"{name}.parquet"
        embed(model, nights, outs[name], pooling=pooling, **CPU)
    assert vectors(outs["own"]).shape == (9, 2 * 4 * 16)
    np.testing.assert_array_equal(vectors(outs["own"]), vectors(outs["four"]))
    np.testing.assert_array_equal(vectors(outs["none"]), vectors(outs["rows"]))
    recorded = {name: json.loads(pq.read_schema(path).metadata[b"tymbal"])["pooling"] for name, path in outs.items()}
    assert recorded == {"own": "grid4", "four": "grid4", "none": "rows", "rows": "rows"}
    # Whoever looks for similar sounds embeds them in the same way.
    short = tmp_path / "short.wav"
    soundfile.write(short, tone("low", seed=5), RATE)
    embed(tmp_path / "parts", tmp_path / "short.wav", tmp_path / "short.parquet", pooling="grid", **CPU)
    result = similar(tmp_path / "parts", short, tmp_path / "short.parquet", **CPU)
    assert result.neighbours[0].similarity == pytest.approx(1, abs=1e-5)


def test_embed__auto_is_what_is_recorded_with_the_model(tmp_path: Path, nights: Path):
    """New models of objectives that compare parts of the time are read by them; all models before by the mean."""
    old, new = small_model(tmp_path / "old"), tmp_path / "new"
    loaded = load_model(old)
    assert "embedding" not in json.loads((old / "config.json").read_text())["tymbal"]
    objective = {"objective": "lejepa", "parts": 4}
    save_model(new, loaded.module, replace(loaded.description, objective=objective, embedding="grid4"))
    for model, expected in ((old, "mean"), (new, "grid4")):
        embed(model, nights, tmp_path / "auto.parquet", **CPU)
        auto = vectors(tmp_path / "auto.parquet")
        embed(model, nights, tmp_path / "asked.parquet", pooling=expected, **CPU)
        np.testing.assert_array_equal(auto, vectors(tmp_path / "asked.parquet"))
        told = json.loads(pq.read_schema(tmp_path / "auto.parquet").metadata[b"tymbal"])
        assert told["pooling"] == expected
        (tmp_path / "auto.parquet").unlink(), (tmp_path / "asked.parquet").unlink()
    embed(new, nights, tmp_path / "seconds.parquet", per="second", window=1.0, **CPU)
    told = json.loads(pq.read_schema(tmp_path / "seconds.parquet").metadata[b"tymbal"])
    assert told["pooling"] == "rows"


def test_embed__cells_of_a_grid_are_ordered_by_row_then_by_time(tmp_path: Path, nights: Path):
    """Row from low to high, part of the time, channel: means of neighbouring parts are those of half as many."""
    encoder = small_model(tmp_path / "model")
    tables = {}
    for pooling in ("rows", "grid2", "grid4"):
        embed(encoder, nights, tmp_path / f"{pooling}.parquet", pooling=pooling, **CPU)
        tables[pooling] = vectors(tmp_path / f"{pooling}.parquet").reshape(9, 2, -1, 16)  # [clips, rows, parts, width]
    np.testing.assert_allclose(tables["grid4"].reshape(9, 2, 2, 2, 16).mean(3), tables["grid2"], atol=1e-5)
    np.testing.assert_allclose(tables["grid4"].mean(2, keepdims=True), tables["rows"], atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"per": "second", "pooling": "grid"}, "pooling is 'grid', which is not mean or rows"),
        ({"layer": 3}, "the encoder has 2 blocks"),
        ({"per": "second", "pooling": "cls"}, "pooling is 'cls', which is not mean or rows"),
        ({"per": "second", "window": 1.5}, "a whole number of seconds"),
        ({"hop": 1.0}, "gaps between windows"),
    ],
)
def test_embed__impossible_settings(
    encoder: Path, nights: Path, tmp_path: Path, settings: dict[str, object], message: str
):
    with pytest.raises(SettingsError, match=message):
        embed(encoder, nights, tmp_path / "out.parquet", **settings, **CPU)


def test_embed__what_a_store_refuses(encoder: Path, tmp_path: Path):
    tone_store(tmp_path / "store")
    with pytest.raises(SettingsError, match="the clips of a store are cut already"):
        embed(encoder, tmp_path / "store", tmp_path / "out.parquet", per="file", **CPU)
    other = small_model(tmp_path / "other", features=FeatureSettings(sample_rate=RATE, mel_bins=24))
    with pytest.raises(ModelError, match="other spectrograms"):
        embed(other, tmp_path / "store", tmp_path / "out.parquet", **CPU)
    with pytest.raises(SettingsError, match="does not tell its format"):
        embed(encoder, tmp_path / "store", tmp_path / "out.txt", **CPU)


def test_embed__what_another_verb_left_out_stays_named(encoder: Path, nights: Path, tmp_path: Path):
    (nights / "text.wav").write_text("this is no sound")
    scan(nights, tmp_path / "out.csv", workers=1)
    (nights / "text.wav").unlink()
    embed(encoder, nights, tmp_path / "out.parquet", **CPU)
    assert "text.wav" in (tmp_path / "out.failures.csv").read_text()
