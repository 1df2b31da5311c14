from __future__ import annotations

import csv
import json
import os
import signal
import struct
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from tones import FEATURES, FRAMES, PITCHES, RATE, tone, tone_store
from tymbal import finetune, predict
from tymbal.errors import AudioError, ModelError, SettingsError
from tymbal.features.kaldi import LOG_FLOOR, KaldiFbank
from tymbal.inference.spool import Outcome, Spool
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
    assert list(rows[0]) == ["file", "start", "end", "label", "score", "start_time", "end_time"]
    assert {row["start_time"] for row in rows} == {""}
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


def test_predict__in_8_bits_says_by_how_much_it_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tone_store(tmp_path / "store")
    wide = {"width": 64, "depth": 1, "heads": 2, "patch": "8x8", "max_steps": 2}
    run = finetune(tmp_path / "store", tmp_path / "run", eval_every=12, report_to=(), **wide, **CPU).run
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert "In 8 bits" in card
    assert "largest difference of a score" in card
    sound = write(tmp_path / "a.wav", *(tone("high", seconds=2, seed=seed) for seed in range(3)))
    scores: dict[str, dict[tuple[str, str], float]] = {}
    for precision in ("float32", "int8"):
        out = tmp_path / f"{precision}.csv"
        predict(run, sound, out, precision=precision, device="cpu")
        scores[precision] = {(row["start"], row["label"]): float(row["score"]) for row in table(out)}
    assert scores["int8"] == pytest.approx(scores["float32"], abs=1e-2)
    assert scores["int8"] != scores["float32"]
    assert "8 bits: scores of the first 8 windows differ by up to 0.0" in capsys.readouterr().err


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
    rows = table(tmp_path / "out.failures.csv")
    assert [Path(row["file"]).name for row in rows] == ["absent.wav", "text.wav", "short.wav", "broken.wav"]
    assert rows[2]["reason"] == "too short: 0.01 s, less than one frame"
    assert "4 files could not be read, or not to their end" in result.summary()
    assert {Path(row["file"]).name for row in table(tmp_path / "out.csv")} <= {"good.wav", "broken.wav"}
    assert len([row for row in table(tmp_path / "out.csv") if row["file"] == str(good)]) == 1
    # A later run without failures does not leave the old table behind.
    predict(classifier, good, tmp_path / "out.csv", **CPU)
    assert table(tmp_path / "out.failures.csv") == []


def test_predict__nothing_readable_writes_no_table(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"none of 1 recordings could be read; the first: .*absent\.wav"):
        predict(classifier, tmp_path / "absent.wav", tmp_path / "out.csv", **CPU)
    (tmp_path / "empty").mkdir()
    with pytest.raises(AudioError, match="there are no sound files"):
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


def test_predict__windows_in_a_row_become_detections(classifier: Path, tmp_path: Path) -> None:
    parts = [tone("low", seconds=3 * CLIP, seed=1), tone("high", seconds=CLIP, seed=2), tone("low", seconds=CLIP)]
    recording = write(tmp_path / "20240322_191730.wav", *parts)
    result = predict(classifier, recording, tmp_path / "out.csv", **CPU)
    rows = table(tmp_path / "out.detections.csv")
    assert [(row["start"], row["end"], row["label"], row["windows"]) for row in rows] == [
        ("0.000", "1.005", "low", "3"),
        ("1.005", "1.340", "high", "1"),
        ("1.340", "1.675", "low", "1"),
    ]
    assert (rows[1]["start_time"], rows[1]["end_time"]) == ("2024-03-22T19:17:31.005", "2024-03-22T19:17:31.340")
    low = [float(row["score"]) for row in table(tmp_path / "out.csv") if row["label"] == "low"]
    assert float(rows[0]["score"]) == max(low[:3])
    assert result.detections == 3
    assert result.written == (tmp_path / "out.csv", tmp_path / "out.detections.csv")
    # The table of windows has all scores, that of detections those above 0.5.
    assert len(table(tmp_path / "out.csv")) == 5 * 3
    predict(classifier, recording, tmp_path / "out.csv", merge=False, **CPU)
    assert [row["windows"] for row in table(tmp_path / "out.detections.csv")] == ["1"] * 5


def test_predict__thresholds_by_label(classifier: Path, tmp_path: Path) -> None:
    recording = write(tmp_path / "a.wav", tone("low", seconds=CLIP), tone("high", seconds=CLIP))
    predict(classifier, recording, tmp_path / "a.csv", threshold=0.5, label_thresholds=["low=1.0", "middle=0"], **CPU)
    assert [row["label"] for row in table(tmp_path / "a.csv")] == ["middle", "high", "middle"]
    with pytest.raises(SettingsError, match="'lo', which is no label of the model"):
        predict(classifier, recording, tmp_path / "a.csv", label_thresholds=["lo=0.5"], **CPU)


def test_predict__every_table_says_the_same(classifier: Path, tmp_path: Path) -> None:
    recording = write(tmp_path / "20240322_191730.wav", tone("low", seconds=0.8))
    for ending in ("csv", "parquet", "json", "jsonl"):
        predict(classifier, recording, tmp_path / f"out.{ending}", **CPU)
    expected = table(tmp_path / "out.csv")
    found = {
        "parquet": pq.read_table(tmp_path / "out.parquet").to_pylist(),
        "json": json.loads((tmp_path / "out.json").read_text()),
        "jsonl": [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()],
    }
    for rows in found.values():
        assert list(rows[0]) == list(expected[0])
        text = [{**row, **{key: f"{row[key]:.3f}" for key in ("start", "end")}} for row in rows]
        assert [{**row, "score": f"{row['score']:.6f}"} for row in text] == expected
    assert pq.read_table(tmp_path / "out.detections.parquet")["windows"].to_pylist() == [3]


def test_predict__raven_and_audacity_have_a_file_a_recording(classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "nights" / "deep").mkdir(parents=True)
    write(tmp_path / "nights" / "a.wav", tone("low", seconds=2 * CLIP))
    write(tmp_path / "nights" / "deep" / "a.wav", tone("middle", seconds=CLIP), tone("high", seconds=CLIP))
    (tmp_path / "nights" / "bad.wav").write_text("no sound")
    for kind in ("raven", "audacity"):
        result = predict(classifier, tmp_path / "nights", tmp_path / kind, format=kind, **CPU)
        assert (result.detections, result.written) == (3, (tmp_path / kind,))
        assert [Path(row["file"]).name for row in table(tmp_path / kind / "failures.csv")] == ["bad.wav"]
    raven = (tmp_path / "raven" / "deep" / "a.selections.txt").read_text().splitlines()
    rows = list(csv.DictReader(raven, delimiter="\t"))
    assert [(row["Begin Time (s)"], row["End Time (s)"], row["Label"]) for row in rows] == [
        ("0.000000", "0.335000", "middle"),
        ("0.335000", "0.670000", "high"),
    ]
    assert {row["High Freq (Hz)"] for row in rows} == {"4000.0"}
    assert rows[0]["Begin Path"] == str(tmp_path / "nights" / "deep" / "a.wav")
    label = (tmp_path / "audacity" / "a.labels.txt").read_text().split("\t")
    assert label[:2] == ["0.000000", "0.670000"]
    assert label[2].startswith("low ")
    assert not (tmp_path / "raven" / "bad.selections.txt").exists()
    slow = write(tmp_path / "slow.wav", tone("low", seconds=1.0)[::2], rate=RATE // 2)
    predict(classifier, slow, tmp_path / "slow.txt", format="raven", threshold=0.0, **CPU)
    assert (tmp_path / "slow.txt").read_text().splitlines()[1].split("\t")[5:7] == ["20.0", "2000.0"]
    predict(classifier, tmp_path / "nights" / "a.wav", tmp_path / "one.txt", format="audacity", **CPU)
    assert (tmp_path / "one.txt").read_text().split("\t") == label


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("out", {}, "name does not tell its format"),
        ("out.txt", {}, "name does not tell its format"),
        ("out.txt", {"format": "raven"}, "is one file, but raven has one for each of the 2 recordings"),
        ("a.wav", {"format": "raven"}, "is a file, but raven files go into a folder"),
        (".", {"format": "csv"}, "is a folder, and csv is one table"),
    ],
)
def test_predict__outputs_that_cannot_be(
    classifier: Path, tmp_path: Path, name: str, settings: dict[str, str], message: str
) -> None:
    files = [write(tmp_path / f"{letter}.wav", tone("low")) for letter in "ab"]
    with pytest.raises(SettingsError, match=message):
        predict(classifier, files, tmp_path / name, **settings, **CPU)


def test_predict__what_cannot_be_written_is_named(classifier: Path, tmp_path: Path) -> None:
    recording = write(tmp_path / "a.wav", tone("low"))
    with pytest.raises(SettingsError, match=r"cannot be written: .*\n  A part of the path is a file"):
        predict(classifier, recording, recording / "out.csv", **CPU)


def test_predict__into_this_folder(classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    predict(classifier, write(tmp_path / "a.wav", tone("low")), ".", format="raven", **CPU)
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["a.selections.txt"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_predict__killed_it_continues_to_the_same_tables(classifier: Path, tmp_path: Path) -> None:
    folder = tmp_path / "nights"
    folder.mkdir()
    for number in range(8):
        write(folder / f"{number}.wav", tone("low", seconds=0.4 + 0.1 * number, seed=number))
    (folder / "4.wav").write_text("no sound")
    script = Path(__file__).parent / "inference" / "killed_walk.py"
    command = [sys.executable, script, "predict", classifier, folder, tmp_path / "out.csv", "6"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "out.csv").exists()
    unfinished = tmp_path / "out.csv.unfinished"
    assert len(list(unfinished.glob("*.parquet"))) == 5
    with pytest.raises(SettingsError, match=r"begun with something else:\n    hop: None -> 0\.1\n"):
        predict(classifier, folder, tmp_path / "out.csv", hop=0.1, **CPU)
    result = predict(classifier, folder, tmp_path / "out.csv", batch_size=3, **CPU)
    predict(classifier, folder, tmp_path / "whole.csv", **CPU)
    for ending in ("csv", "detections.csv"):
        found, expected = table(tmp_path / f"out.{ending}"), table(tmp_path / f"whole.{ending}")
        # Other batches round otherwise.
        scores = [[float(row.pop("score")) for row in rows] for rows in (found, expected)]
        assert found == expected
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert result.files == 7
    assert [Path(row["file"]).name for row in table(tmp_path / "out.failures.csv")] == ["4.wav"]
    assert not unfinished.exists()


def test_predict__what_is_done_is_not_done_again(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [write(tmp_path / f"{number}.wav", tone("low", seed=number)) for number in range(3)]

    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("tymbal.inference.tables.Csv.open", broken)
        predict(classifier, files, tmp_path / "out.csv", **CPU)
    # All is scored, the tables were not written: one recording is new, one has changed.
    files.append(write(tmp_path / "3.wav", tone("high", seed=4)))
    write(files[1], tone("middle", seconds=0.3, seed=5))
    predict(classifier, files, tmp_path / "out.csv", top=None, **CPU)
    assert "Continuing: 2 of 4 recordings are done" in capsys.readouterr().err
    assert [row[2] for row in best(table(tmp_path / "out.csv"))] == ["low", "middle"]
    assert [Path(file).stem for file in dict.fromkeys(row["file"] for row in table(tmp_path / "out.csv"))] == [
        "0",
        "1",
        "2",
        "3",
    ]


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


def test_predict__memory_does_not_grow_with_the_number_of_recordings(classifier: Path, tmp_path: Path) -> None:
    one = write(tmp_path / "one.wav", tone("low", seconds=0.335))
    peaks = []
    for count in (100, 400):
        folder = tmp_path / f"{count}"
        folder.mkdir()
        for number in range(count):
            (folder / f"{number}.wav").hardlink_to(one)
        predict(classifier, folder, tmp_path / "out.csv", **CPU)
        tracemalloc.start()
        predict(classifier, folder, tmp_path / "out.csv", **CPU)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # A path and what became of it are kept of each.
    assert peaks[1] - peaks[0] < 300 * 4096


def sparse(path: Path, *, hours: float, rate: int) -> Path:
    """Digital silence that takes no place on the disk."""
    size = round(hours * 3600 * rate) * 2
    sizes = [struct.pack("<I", number) for number in (size + 36, 16, rate, rate * 2, size)]
    with path.open("wb") as file:
        file.write(b"RIFF" + sizes[0] + b"WAVEfmt " + sizes[1] + b"\1\0\1\0" + sizes[2] + sizes[3] + b"\2\0\x10\0data")
        file.write(sizes[4])
        file.truncate(44 + size)
    return path


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize(("hours", "rate"), [(24, 16_000), (1, 384_000)])
def test_predict__a_long_recording_in_little_memory(classifier: Path, tmp_path: Path, hours: float, rate: int) -> None:
    peaks = []
    for length in (0.02, hours):
        recording = sparse(tmp_path / "20240322_191730.wav", hours=length, rate=rate)
        code = (
            "import sys, tymbal; result = tymbal.predict(*sys.argv[1:], window=10, top=1, device='cpu')\n"
            "assert not result.failures\n"
            "print([line for line in open('/proc/self/status') if 'VmHWM' in line][0].split()[1])"
        )
        command = [sys.executable, "-c", code, classifier, recording, tmp_path / "o.parquet"]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks.append(int(run.stdout) / 1024)
        found = pq.read_table(tmp_path / "o.parquet")
        assert found.num_rows == -(-length * 360 // 1)
        assert found["end"][-1].as_py() == pytest.approx(length * 3600)
    print(f"{hours} h at {rate:,} Hz: peak {peaks[1]:.0f} MiB, of which {peaks[0]:.0f} MiB after the first minute")
    assert peaks[1] < peaks[0] + 64


def test_predict__recordings_that_are_away_for_a_while_cost_nothing(
    classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, away = tmp_path / "share", tmp_path / "away"
    folder.mkdir()
    for i in range(30):
        write(folder / f"{i:02d}.wav", tone("low" if i % 2 else "high", seed=i))
    predict(classifier, folder, tmp_path / "whole.csv", **CPU)
    spooled = tmp_path / "out.csv.unfinished"
    ended = Spool.end

    def unmounted(spool: Spool, outcome: Outcome) -> None:
        ended(spool, outcome)
        if outcome.place == "17.wav":
            folder.rename(away)
            folder.mkdir()

    with monkeypatch.context() as patch:
        patch.setattr(Spool, "end", unmounted)
        about = pytest.raises(AudioError, match=r"1\d of 30 files cannot be reached; the first.*missing")
        with about:
            predict(classifier, folder, tmp_path / "out.csv", **CPU, batch_size=1)
    assert not (tmp_path / "out.csv").exists()
    assert spooled.is_dir()
    for gone in (False, True):  # an empty mount point, and none
        if gone:
            folder.rmdir()
        with pytest.raises(AudioError, match=r"there (are no sound files|is no such folder)"):
            predict(classifier, folder, tmp_path / "out.csv", **CPU, batch_size=1)
        assert spooled.is_dir()
    away.rename(folder)
    capsys.readouterr()
    result = predict(classifier, folder, tmp_path / "out.csv", **CPU, batch_size=1)
    assert "Continuing: 1" in capsys.readouterr().err
    assert (result.files, result.failures) == (30, ())
    rows, whole = table(tmp_path / "out.csv"), table(tmp_path / "whole.csv")
    assert [row["file"] for row in rows] == [row["file"] for row in whole]
    np.testing.assert_allclose([float(row["score"]) for row in rows], [float(row["score"]) for row in whole], atol=2e-6)
    assert not spooled.exists()


def test_predict__nothing_that_was_done_goes_where_nothing_can_be_read(classifier: Path, tmp_path: Path) -> None:
    recording = write(tmp_path / "a.wav", tone("low"))
    sound = recording.read_bytes()
    recording.write_bytes(b"")
    with pytest.raises(AudioError, match="none of 1 recordings"):
        predict(classifier, recording, tmp_path / "out.csv", **CPU)
    assert (tmp_path / "out.csv.unfinished" / "record.json").is_file()
    recording.write_bytes(sound)
    assert predict(classifier, recording, tmp_path / "out.csv", **CPU).files == 1
    assert not (tmp_path / "out.csv.unfinished").exists()


def test_predict__refuses_a_window_beyond_memory_before_it_writes(classifier: Path, tmp_path: Path) -> None:
    recording = write(tmp_path / "low.wav", tone("low", seed=1))
    with pytest.raises(SettingsError, match=r"32 windows of 1e\+12 s are spectrograms of .* more than this machine"):
        predict(classifier, recording, tmp_path / "out.csv", window=1e12, **CPU)
    assert list(tmp_path.iterdir()) == [recording]


def test_predict__names_nothing_in_what_is_far_quieter_than_its_clips(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faint = 10 ** (-80 / 20) * np.random.default_rng(0).normal(size=round(2 * CLIP * RATE))
    recording = write(tmp_path / "gaps.wav", faint, tone("low", seconds=CLIP, seed=70), faint)
    level = load_model(classifier).description.level
    assert level is not None
    predict(classifier, recording, tmp_path / "out.csv", **CPU)
    assert {(row["start"], row["end"]) for row in table(tmp_path / "out.csv")} == {("0.670", "1.005")}
    assert [row["label"] for row in table(tmp_path / "out.detections.csv")] == ["low"]
    assert "4 windows of 5 are more than 10 dB quieter" in capsys.readouterr().err
    predict(classifier, recording, tmp_path / "all.csv", reject=None, **CPU)
    assert len({row["start"] for row in table(tmp_path / "all.csv")}) == 5
    predict(classifier, recording, tmp_path / "far.csv", reject=200.0, **CPU)
    assert (tmp_path / "far.csv").read_text() == (tmp_path / "all.csv").read_text()


def test_predict__detects_no_background(classifier: Path, tmp_path: Path) -> None:
    loaded = load_model(classifier)
    save_model(tmp_path / "model", loaded.module, replace(loaded.description, background="low"))
    parts = [tone(label, seconds=CLIP, seed=50 + i) for i, label in enumerate(("low", "high", "low"))]
    recording = write(tmp_path / "three.wav", *parts)
    predict(tmp_path / "model", recording, tmp_path / "out.csv", **CPU)
    assert [row[2] for row in best(table(tmp_path / "out.csv"))] == ["low", "high", "low"]
    assert [row["label"] for row in table(tmp_path / "out.detections.csv")] == ["high"]
