"""Configurations of BirdSet and BEANS, on small data of their layout, by the commands that they name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile
from sklearn.metrics import average_precision_score

import tymbal
from embedded_sounds import NAMES, encoded, sound_table
from small_model import small_model
from tones import RATE, tone
from tymbal.cli import main
from tymbal.errors import ManifestError, SettingsError
from tymbal.evaluation.linear import quality
from tymbal.evaluation.scoring import figures_of
from tymbal.store.packed.packed_store import Store

BIRD = "ebird_code_multilabel"
CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SMALL = ("--sample-rate", str(RATE), "--mel-bins", "16", "--workers", "1")


def soundscapes(folder: Path) -> Path:
    """BirdSet's columns: focal recordings to learn from, windows with several birds or none to be asked about."""
    sounds, labels = [], []
    for number in range(12):
        sounds.append(encoded(NAMES[number % 3], seed=number, seconds=0.5))
        labels.append([number % 3])
    sound_table(
        folder / "train-00000-of-00001.parquet",
        sounds,
        labels=labels,
        label_column=BIRD,
        filepath=pa.array(["x"] * 12),
        quality=pa.array(["A"] * 12),
    )
    windows = [[0], [1, 2], [], [2], [0, 1], []]
    mixed = []
    for number, heard in enumerate(windows):
        sound = sum(
            (tone(NAMES[label], seconds=0.5, seed=50 + number) for label in heard), np.zeros(RATE // 2, np.float32)
        )
        held = folder / "w.wav"
        soundfile.write(held, 0.3 * sound + 1e-3 * np.random.default_rng(number).normal(size=len(sound)), RATE)
        mixed.append(held.read_bytes())
        held.unlink()
    sound_table(
        folder / "test_5s-00000-of-00001.parquet",
        mixed,
        labels=windows,
        label_column=BIRD,
        filepath=pa.array(["y"] * 6),
        quality=pa.array([""] * 6),
    )
    return folder


def test_birdset__from_tables_to_its_three_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(CONFIGS / "birdset.yaml")
    store, model = str(tmp_path / "hsn"), str(small_model(tmp_path / "model"))
    folder = str(soundscapes(tmp_path / "birds"))
    assert main(["prepare", folder, "-o", store, "--config", config, *SMALL, "--window", "0.335"]) == 0
    rows = Store.open(store).index.to_pylist()
    test = [row for row in rows if row["split"] == "test"]
    assert [row["labels"] for row in test if row["start"] == 0.0][:3] == [["high"], ["low", "middle"], []]
    assert {row["split"] for row in rows} == {"train", "validation", "test"}
    assert main(["probe", model, store, "-o", str(tmp_path / "hsn.json"), "--config", config, "--device", "cpu"]) == 0
    table = json.loads((tmp_path / "hsn.json").read_text())
    assert table["validation"] == len(test)
    figures = next(row for row in table["rows"] if row["features"] == "model")
    assert {"mAP", "roc_auc", "t1_accuracy"} <= figures.keys()
    run = tmp_path / "classifier"
    short = ("--max-steps", "4", "--batch-size", "4", "--device", "cpu")
    assert main(["finetune", store, "-o", str(run), "--from", model, "--config", config, *short]) == 0
    found = json.loads((run / "test.json").read_text())
    assert "On " in capsys.readouterr().err
    again = figures_of(run, Store.open(store), split="test", device="cpu")
    assert found == pytest.approx(again, nan_ok=True)
    assert 0 <= found["t1_accuracy"] <= 1


def test_t1_accuracy__is_birdsets() -> None:
    truth = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0]], bool)
    scores = np.array([[0.1, 0.2, 0.9], [0.6, 0.5, 0.1], [0.9, 0.1, 0.1], [0.3, 0.2, 0.1]])
    figures = quality(scores, truth, multilabel=True)
    assert figures["t1_accuracy"] == pytest.approx(2 / 3)  # the window without a bird does not count
    expected = np.mean([average_precision_score(truth[:, n], scores[:, n]) for n in range(3)])
    assert figures["mAP"] == pytest.approx(expected)


def beans(folder: Path) -> Path:
    """BEANS's list of a classification task, its three lists one below the other."""
    lines = ["path,label,split"]
    for split, count in (("train", 4), ("valid", 2), ("test", 2)):
        for label in NAMES:
            for number in range(count):
                path = folder / f"{split}-{label}-{number}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, tone(label, seed=number + 10 * count), RATE)
                lines.append(f"{path.name},{label},{split}")
    (folder / "annotations.csv").write_text("\n".join(lines) + "\n")
    return folder / "annotations.csv"


def test_beans__classification(tmp_path: Path) -> None:
    config = str(CONFIGS / "beans_classification.yaml")
    store, model = str(tmp_path / "watkins"), str(small_model(tmp_path / "model"))
    assert main(["prepare", str(beans(tmp_path / "w")), "-o", store, "--config", config, *SMALL]) == 0
    assert main(["probe", model, store, "-o", str(tmp_path / "w.json"), "--config", config, "--device", "cpu"]) == 0
    table = json.loads((tmp_path / "w.json").read_text())
    assert (table["train"], table["validation"]) == (12, 6)
    assert "accuracy" in table["rows"][0]
    run = tmp_path / "classifier"
    short = ("--max-steps", "4", "--batch-size", "4", "--device", "cpu")
    assert main(["finetune", store, "-o", str(run), "--from", model, "--config", config, *short]) == 0
    assert "accuracy" in json.loads((run / "test.json").read_text())


def recordings(folder: Path) -> Path:
    """BEANS's list of a detection task: three recordings of 8 s, with a call here and there."""
    folder.mkdir()
    lines = []
    for split, shift in (("train", 0.0), ("valid", 0.5), ("test", 0.25)):
        sound = 1e-3 * np.random.default_rng(1).normal(size=8 * RATE)
        events = [{"st": 1 + shift, "ed": 1.5 + shift, "label": "low"}, {"st": 3.2, "ed": 4.3, "label": "high"}]
        for event in events:
            first = round(event["st"] * RATE)
            call = tone(event["label"], seconds=event["ed"] - event["st"])
            sound[first : first + len(call)] += call
        soundfile.write(folder / f"{split}.wav", sound, RATE)
        lines.append({"path": f"{split}.wav", "length": 8.0, "split": split, "annotations": events})
    soundfile.write(folder / "quiet.wav", 1e-3 * np.random.default_rng(2).normal(size=4 * RATE), RATE)
    lines.append({"path": "quiet.wav", "length": 4.0, "split": "train", "annotations": []})
    (folder / "annotations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "annotations.jsonl"


def test_beans__detection_in_windows(tmp_path: Path) -> None:
    config = str(CONFIGS / "beans_detection.yaml")
    store, model = str(tmp_path / "gibbons"), str(small_model(tmp_path / "model", frames=208))
    assert main(["prepare", str(recordings(tmp_path / "g")), "-o", store, "--config", config, *SMALL]) == 0
    rows = Store.open(store).index.to_pylist()
    train = {row["start"]: row["labels"] for row in rows if row["file"].endswith("train.wav")}
    assert train == {0.0: ["low"], 1.0: ["low"], 2.0: ["high"], 3.0: ["high"], 4.0: ["high"], 5.0: [], 6.0: []}
    assert [row["labels"] for row in rows if row["file"].endswith("quiet.wav")] == [[], [], []]
    assert main(["probe", model, store, "-o", str(tmp_path / "g.json"), "--config", config, "--device", "cpu"]) == 0
    table = json.loads((tmp_path / "g.json").read_text())
    assert (table["train"], table["validation"]) == (10, 7)
    assert "mAP" in table["rows"][0]


def test_columns_and_names__are_checked(tmp_path: Path) -> None:
    listed = beans(tmp_path / "w")
    small = {"sample_rate": RATE, "mel_bins": 16, "workers": 1}
    made = tymbal.prepare(listed, tmp_path / "store", columns=["label=label"], rename=["low=bass", "middle="], **small)
    labels = {tuple(row["labels"]) for row in made.store.index.to_pylist()}
    assert labels == {("high",), ("bass",), ()}
    with pytest.raises(ManifestError, match=r"no column ebird, which columns names\n  It has: file, split, label"):
        tymbal.prepare(listed, tmp_path / "x", columns=["label=ebird"], **small)
    with pytest.raises(SettingsError, match="columns is 'species=a', which is not one of file, start"):
        tymbal.prepare(listed, tmp_path / "x", columns=["species=a"], **small)
    with pytest.raises(SettingsError, match="rename is 'low', which is not a label and its new name"):
        tymbal.prepare(listed, tmp_path / "x", rename=["low"], **small)
