"""Clips of all lengths, rates and defects, fine-tuned on and scored: what is bad is named, the rest goes on."""

from __future__ import annotations

import csv
import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from test_finetune import TINY, pretrained
from tones import PITCHES, RATE, tone, tone_store
from tymbal import Store, finetune, predict
from tymbal.errors import AudioError, StoreError
from tymbal.objectives.classification import ClassificationObjective

LENGTHS = (0.3, 1.0, 5.0, 60.0)


def pure(label: str, *, rate: int, seconds: float = 1.0) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * PITCHES[label] * time)).astype(np.float32)


def write(path: Path, sound: np.ndarray, rate: int = RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound, rate, subtype="FLOAT")


def write_odd(folder: Path, label: str) -> None:
    """Sound that is good but unusual, and sound that is bad."""
    write(folder / "two channels.wav", np.stack([pure(label, rate=RATE), pure(label, rate=RATE) / 2], axis=1))
    write(folder / "8 kHz.wav", pure(label, rate=8000), 8000)
    write(folder / "192 kHz.wav", pure(label, rate=192_000), 192_000)
    write(folder / "silence.wav", np.zeros(RATE, np.float32))
    broken = pure(label, rate=RATE)
    broken[4000] = np.nan
    write(folder / "not a number.wav", broken)
    (folder / "empty.wav").write_bytes(b"")


def failures(path: Path) -> dict[str, str]:
    with path.open(encoding="utf-8", newline="") as file:
        return {Path(row["file"]).name: row["reason"] for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd")
    for place, label in enumerate(("high", "low")):
        for number, seconds in enumerate(LENGTHS):
            sound = tone(label, seconds=seconds, seed=10 * place + number)
            write(folder / "sound" / "train" / label / f"{seconds} s.wav", sound)
            write(folder / "sound" / "validation" / label / f"{seconds} s.wav", sound[::-1])
    write_odd(folder / "sound" / "train" / "low", "low")
    pretrained(folder / "model")
    return folder


def test_finetune__takes_what_is_odd_and_names_what_is_bad(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = finetune(folder / "sound", tmp_path / "run", from_=folder / "model", max_steps=2, **TINY)
    named = failures(result.run / "failures.csv")
    said = " ".join(capsys.readouterr().err.split())
    assert f"3 files or parts of files were left out: {result.run / 'failures.csv'} says why" in said
    assert named.keys() == {"silence.wav", "not a number.wav", "empty.wav"}
    assert "silent" in named["silence.wav"]
    assert "finite" in named["not a number.wav"]
    index = Store.open(result.run / "store").index.to_pylist()
    windows = {Path(row["file"]).name: 0 for row in index}
    for row in index:
        windows[Path(row["file"]).name] += 1
    # A minute of sound in two classes and two splits is cut into windows of 10.24 s: nothing of it is lost.
    expected = {"0.3 s.wav": 4, "1.0 s.wav": 4, "5.0 s.wav": 4, "60.0 s.wav": 4 * 6}
    assert windows == {**expected, "two channels.wav": 1, "8 kHz.wav": 1, "192 kHz.wav": 1}
    assert np.isfinite(result.metrics["eval_loss"])


def test_finetune__one_second_clips_alone(folder: Path, tmp_path: Path) -> None:
    for split in ("train", "validation"):
        for label in ("high", "low"):
            write(tmp_path / "sound" / split / label / "1.wav", tone(label, seconds=1.0))
    result = finetune(tmp_path / "sound", tmp_path / "run", from_=folder / "model", max_steps=1, **TINY)
    assert Store.open(result.run / "store").frames == 112  # 98 frames, to a multiple of 16


def test_finetune__nothing_but_bad_clips_is_an_error_that_says_so(folder: Path, tmp_path: Path) -> None:
    for split in ("train", "validation"):
        for label in ("high", "low"):
            write(tmp_path / "sound" / split / label / "1.wav", np.zeros(RATE, np.float32))
    with pytest.raises((AudioError, StoreError), match="silent"):
        finetune(tmp_path / "sound", tmp_path / "run", from_=folder / "model", max_steps=1, **TINY)


def test_predict__takes_what_is_odd_and_names_what_is_bad(folder: Path, tmp_path: Path) -> None:
    tone_store(tmp_path / "store", clips=6, validation=2)
    run = finetune(tmp_path / "store", tmp_path / "run", from_=folder / "model", max_steps=2, **TINY).run
    result = predict(run, folder / "sound" / "train" / "low", tmp_path / "scores.csv", device="cpu", top=1)
    named = failures(tmp_path / "scores.failures.csv")
    assert named.keys() == {"not a number.wav", "empty.wav"}
    with (tmp_path / "scores.csv").open(encoding="utf-8", newline="") as file:
        ends = {Path(row["file"]).name: float(row["end"]) for row in csv.DictReader(file)}
    assert ends == pytest.approx(
        {f"{seconds} s.wav": seconds for seconds in LENGTHS}
        | {f"{name}.wav": 1.0 for name in ("two channels", "8 kHz", "192 kHz")},
        abs=0.026,  # less than a frame at the end may be left out
    )
    assert result.files == len(ends) + 1  # silence is read, and is nothing that was learned


def live_bytes() -> int:
    """Bytes of all tensors that something holds."""
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.layout is torch.strided:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def test_evaluation__holds_no_more_for_more_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = ClassificationObjective.forward

    def watched(self: ClassificationObjective, *args: Any, **batch: Any) -> dict[str, Any]:
        if not self.training:
            seen.append(live_bytes())
        return original(self, *args, **batch)

    monkeypatch.setattr(ClassificationObjective, "forward", watched)
    peaks = {}
    for clips in (8, 40):
        tone_store(tmp_path / f"store{clips}", clips=clips + 4, validation=clips)  # of each of three classes
        gc.collect()
        seen.clear()
        finetune(tmp_path / f"store{clips}", tmp_path / f"run{clips}", max_steps=1, **{**TINY, "pooling": "mean"})
        assert len(seen) == 3 * clips / TINY["batch_size"]
        peaks[clips] = max(seen)
    assert peaks[40] == peaks[8]
