from __future__ import annotations

import csv
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tones import FEATURES, FRAMES, PITCHES, RATE, tone, tone_store
from tymbal import finetune, predict
from tymbal.errors import AudioError, ModelError, SettingsError
from tymbal.features.kaldi import LOG_FLOOR, KaldiFbank
from tymbal.models.classifier import SpectrogramClassifier
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.models.folder import load_model, save_model

CPU = {"device": "cpu", "precision": "float32"}
CLIP = FEATURES.samples_of(FRAMES) / RATE  # 0.335 s


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    tone_store(folder / "store")
    tiny = {"width": 16, "depth": 1, "heads": 2, "patch": "8x8", "batch_size": 12, "learning_rate": 3e-3}
    return finetune(folder / "store", folder / "run", epochs=12, eval_every=12, report_to=(), **tiny, **CPU).run


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, *parts: np.ndarray, rate: int = RATE) -> Path:
    soundfile.write(path, np.concatenate(parts), rate, subtype="FLOAT")
    return path


def best(rows: list[dict[str, str]]) -> list[tuple[str, str, str]]:
    """The best label of each window, in order."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        found.setdefault((row["start"], row["end"]), row)
    return [(row["start"], row["end"], row["label"]) for row in found.values()]


def test_predict__a_recording_of_three_tones(classifier: Path, tmp_path: Path) -> None:
    parts = [tone(label, seconds=CLIP, seed=50 + i) for i, label in enumerate(("low", "high", "middle"))]
    recording = write(tmp_path / "three.wav", *parts, tone("low", seconds=0.2, seed=60))
    result = predict(classifier, recording, tmp_path / "out.csv", **CPU)
    rows = table(tmp_path / "out.csv")
    assert list(rows[0]) == ["file", "start", "end", "label", "score"]
    assert {row["file"] for row in rows} == {str(recording)}
    assert best(rows) == [
        ("0.000", "0.335", "low"),
        ("0.335", "0.670", "high"),
        ("0.670", "1.005", "middle"),
        ("1.005", "1.205", "low"),
    ]
    for start in {row["start"] for row in rows}:
        scores = [float(row["score"]) for row in rows if row["start"] == start]
        assert sum(scores) == pytest.approx(1, abs=2e-6)
        assert scores == sorted(scores, reverse=True)
    assert (result.files, result.windows, result.failures) == (1, 4, ())
    assert result.seconds == pytest.approx(1.205)


def test_predict__scores_are_those_of_the_model(classifier: Path, tmp_path: Path) -> None:
    sound = tone("high", seconds=0.25, seed=3)
    predict(classifier, write(tmp_path / "a.wav", sound), tmp_path / "out.csv", **CPU)
    loaded = load_model(classifier)
    spectrogram = torch.full((1, FRAMES, 16), LOG_FLOOR)
    known = KaldiFbank(FEATURES)(torch.from_numpy(sound))
    spectrogram[0, : len(known)] = known
    facts, frames = loaded.description, torch.tensor([len(known)])
    x = facts.normalisation(spectrogram, frames)
    with torch.no_grad():
        expected = dict(zip(facts.labels, loaded.module(x, frames=frames).softmax(1)[0].tolist(), strict=True))
    assert {row["label"]: float(row["score"]) for row in table(tmp_path / "out.csv")} == pytest.approx(
        expected, abs=2e-6
    )


def test_predict__windows_overlap_and_rows_can_be_left_out(classifier: Path, tmp_path: Path) -> None:
    recording = write(tmp_path / "a.wav", tone("low", seconds=1.0))
    predict(classifier, recording, tmp_path / "out.csv", window=0.3, hop=0.1, top=1, **CPU)
    rows = table(tmp_path / "out.csv")
    assert [row["start"] for row in rows] == [f"{0.1 * i:.3f}" for i in range(8)]
    assert [row["end"] for row in rows] == [f"{0.1 * i + 0.3:.3f}" for i in range(8)]
    predict(classifier, recording, tmp_path / "sure.csv", window=0.3, hop=0.1, threshold=0.5, **CPU)
    assert all(float(row["score"]) >= 0.5 for row in table(tmp_path / "sure.csv"))


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_predict__does_not_depend_on_the_batches(classifier: Path, tmp_path: Path, batch_size: int) -> None:
    folder = tmp_path / "nights"
    folder.mkdir()
    for i, label in enumerate(PITCHES):
        write(folder / f"{label}.wav", tone(label, seconds=0.55 + 0.335 * i, seed=i))
    predict(classifier, folder, tmp_path / "out.csv", batch_size=batch_size, top=1, **CPU)
    rows = table(tmp_path / "out.csv")
    assert [(Path(row["file"]).stem, row["start"], row["label"]) for row in rows] == [
        ("high", "0.000", "high"),
        ("high", "0.335", "high"),
        ("low", "0.000", "low"),
        ("low", "0.335", "low"),
        ("low", "0.670", "low"),
        ("middle", "0.000", "middle"),
        ("middle", "0.335", "middle"),
        ("middle", "0.670", "middle"),
        ("middle", "1.005", "middle"),
    ]


def test_predict__other_rates_are_resampled(classifier: Path, tmp_path: Path) -> None:
    time = np.arange(48_000) / 48_000
    recording = write(tmp_path / "a.wav", (0.3 * np.sin(2 * np.pi * 300 * time)).astype(np.float32), rate=48_000)
    predict(classifier, recording, tmp_path / "out.csv", top=1, **CPU)
    rows = table(tmp_path / "out.csv")
    assert [row["end"] for row in rows] == ["0.335", "0.670", "1.000"]
    assert {row["label"] for row in rows} == {"low"}


def test_predict__bad_files_are_named_and_the_rest_done(classifier: Path, tmp_path: Path) -> None:
    good = write(tmp_path / "good.wav", tone("low"))
    (tmp_path / "text.wav").write_text("this is no sound")
    short = write(tmp_path / "short.wav", tone("low", seconds=0.01))
    broken = write(tmp_path / "broken.wav", tone("low", seconds=3), np.full(100, np.nan, np.float32))
    files = [tmp_path / "absent.wav", tmp_path / "text.wav", short, broken, good]
    result = predict(classifier, files, tmp_path / "out.csv", top=1, **CPU)
    assert result.files == 1
    rows = table(tmp_path / "failures.csv")
    assert [Path(row["file"]).name for row in rows] == ["absent.wav", "text.wav", "short.wav", "broken.wav"]
    assert rows[2]["reason"] == "too short: 0.01 s, less than one frame"
    assert "4 files could not be read, or not to their end" in result.summary()
    assert {Path(row["file"]).name for row in table(tmp_path / "out.csv")} <= {"good.wav", "broken.wav"}
    assert len([row for row in table(tmp_path / "out.csv") if row["file"] == str(good)]) == 1
    # A later run without failures does not leave the old table behind.
    predict(classifier, good, tmp_path / "out.csv", **CPU)
    assert table(tmp_path / "failures.csv") == []


def test_predict__nothing_readable_writes_no_table(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"none of 1 recordings could be read; the first: .*absent\.wav"):
        predict(classifier, tmp_path / "absent.wav", tmp_path / "out.csv", **CPU)
    (tmp_path / "empty").mkdir()
    with pytest.raises(AudioError, match="no sound files to score"):
        predict(classifier, tmp_path / "empty", tmp_path / "out.csv", **CPU)
    assert not (tmp_path / "out.csv").exists()


def test_predict__pretrained_model_is_sent_to_finetune(tmp_path: Path) -> None:
    config = EncoderConfig(width=16, depth=1, heads=2, mels=16, frames=FRAMES, patch=(8, 8), stride=(8, 8))
    description = ModelDescription(encoder=config, features=FEATURES, mean=-6, std=3, padding=LOG_FLOOR)
    save_model(tmp_path / "model", SpectrogramEncoder(config), description)
    with pytest.raises(ModelError, match=r"knows no labels yet\n  .*tymbal finetune"):
        predict(tmp_path / "model", write(tmp_path / "a.wav", tone("low")), tmp_path / "out.csv", **CPU)


def test_predict__several_labels_stand_for_themselves(tmp_path: Path) -> None:
    config = EncoderConfig(width=16, depth=1, heads=2, mels=16, frames=FRAMES, patch=(8, 8), stride=(8, 8))
    torch.manual_seed(0)
    model = SpectrogramClassifier(SpectrogramEncoder(config), 2)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([2.0, 1.0]))
    description = ModelDescription(
        encoder=config,
        features=FEATURES,
        mean=-6,
        std=3,
        padding=LOG_FLOOR,
        labels=("frog", "cicada"),
        pooling="mean",
        multilabel=True,
    )
    save_model(tmp_path / "model", model, description)
    predict(tmp_path / "model", write(tmp_path / "a.wav", tone("low")), tmp_path / "out.csv", **CPU)
    rows = {row["label"]: row["score"] for row in table(tmp_path / "out.csv")}
    assert rows == {"frog": "0.880797", "cicada": "0.731059"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"hop": 2.0}, "there would be gaps between windows"), ({"window": 0.01}, "shorter than one frame")],
)
def test_predict__impossible_windows(
    classifier: Path, tmp_path: Path, settings: dict[str, float], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        predict(classifier, write(tmp_path / "a.wav", tone("low")), tmp_path / "out.csv", **settings, **CPU)


def test_predict__memory_does_not_grow_with_the_recording(classifier: Path, tmp_path: Path) -> None:
    peaks = []
    for minutes in (1, 4):
        recording = tmp_path / f"{minutes}.wav"
        with soundfile.SoundFile(recording, "w", RATE, 1, subtype="PCM_16") as file:
            for _ in range(minutes):
                file.write(tone("low", seconds=60))
        predict(classifier, recording, tmp_path / "out.csv", top=1, **CPU)  # what is made once is made here
        tracemalloc.start()
        predict(classifier, recording, tmp_path / "out.csv", top=1, **CPU)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(table(tmp_path / "out.csv")) == -(-minutes * 60 // CLIP)
    assert peaks[1] < 1.2 * peaks[0]
