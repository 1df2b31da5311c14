from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

import tymbal
from small_model import small_model
from tones import FEATURES, tone_folder, tone_store
from tymbal.config import to_keywords
from tymbal.errors import DeviceError, SettingsError
from tymbal.features.kaldi import KaldiFbank
from tymbal.features.librosa import LibrosaMel

QUICK = {"size": "tiny", "patch": "8x8", "batch_size": 4, "seconds": 0.05, "device": "cpu"}


def test_doctor__store_model_and_machine_give_minutes_an_epoch(tmp_path: Path) -> None:
    tone_store(tmp_path / "store")
    result = tymbal.doctor(tmp_path / "store", **QUICK)
    trial = result.trial
    assert trial is not None
    assert trial.frames == 32
    assert trial.batch_size == 4
    assert 0 < trial.clips_per_second < trial.step
    assert result.epoch_seconds == pytest.approx(36 / trial.clips_per_second)
    assert trial.features > 100
    text = result.summary()
    assert max(map(len, text.splitlines())) < 80
    assert "This store, size tiny, this machine: " in text
    assert "48 of 32 frames x 16 mel bins" in text
    assert text.count("\n\n") == 7


def test_doctor__json_has_everything(tmp_path: Path) -> None:
    tone_store(tmp_path / "store", clips=6, validation=2)
    found = json.loads(tymbal.doctor(tmp_path / "store", **QUICK, json=True).summary())
    assert set(found["software"]) >= {"tymbal", "torch", "torch build", "transformers", "python"}
    assert set(found["hardware"]) >= {"processor", "cores", "processor does", "trains on", "precision"}
    assert found["hardware"]["trains on"] == "cpu (asked for)"
    assert "FLAC" in found["decoders"]["libsndfile"]
    assert found["free_disk"] > 0
    assert found["trial"]["step"] > 0
    assert found["epoch_seconds"] > 0


def test_doctor__without_a_store_and_without_a_trial(tmp_path: Path) -> None:
    result = tymbal.doctor(seconds=0, device="cpu")
    assert result.trial is None
    assert result.epoch_seconds is None
    assert result.store == {}


@pytest.mark.parametrize("what", ["shard", "values", "nothing"])
def test_doctor__a_store_that_is_not_whole_is_a_finding(tmp_path: Path, what: str) -> None:
    store = tone_store(tmp_path / "store", clips=6, validation=2)
    shard = tmp_path / "store" / store.description.shards[0].file
    content = bytearray(shard.read_bytes())
    if what == "shard":
        shard.write_bytes(content[:-100])
    elif what == "values":
        content[128:130] = b"\x00\x7c"  # infinity in float16
        shard.write_bytes(content)
    path = tmp_path / ("other" if what == "nothing" else "store")
    result = tymbal.doctor(path, seconds=0, device="cpu")
    said = {"shard": "bytes, not", "values": "row 0 of the shard is not what was written", "nothing": "no such folder"}
    assert any(said[what] in text and str(path) in text for text in result.advice)
    assert result.store == {}


def test_doctor__slow_steps_and_long_epochs_get_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("tymbal.doctor")  # its function has the same name
    tone_store(tmp_path / "store")
    slow = module.Trial(features=900.0, loading=0.004, step=0.002, batch_size=2, frames=32)
    monkeypatch.setattr(module, "try_out", lambda *_: slow)
    result = tymbal.doctor(tmp_path / "store", **QUICK | {"size": "base"})
    advice = "\n".join(result.advice)
    assert "try --size small, --encode visible, shorter clips, or a GPU" in advice
    assert "Loading holds the training up" in advice
    assert "2 were tried" in advice


def test_doctor__what_cannot_be_tried_is_refused(tmp_path: Path) -> None:
    tone_store(tmp_path / "store", clips=6, validation=2)
    with pytest.raises(SettingsError):
        tymbal.doctor(tmp_path / "store", **QUICK | {"patch": "64x64"})
    with pytest.raises(DeviceError):
        tymbal.doctor(device="cuda:77", seconds=0)


def test_doctor__times_the_filter_bank_of_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tymbal.prepare(tone_folder(tmp_path / "sound"), tmp_path / "store", filter_bank="librosa", sample_rate=8000)
    counts = {KaldiFbank: 0, LibrosaMel: 0}
    for kind in counts:
        compute = kind.__call__

        def counted(self: Any, waveform: Any, kind: Any = kind, compute: Any = compute) -> Any:
            assert self.settings.filter_bank == "librosa"
            counts[kind] += 1
            return compute(self, waveform)

        monkeypatch.setattr(kind, "__call__", counted)
    trial = tymbal.doctor(tmp_path / "store", **QUICK).trial
    assert trial is not None
    assert trial.features > 0
    assert counts[KaldiFbank] == 0
    assert counts[LibrosaMel] >= 2  # a first time that does not count, and one that does


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ("pairs", "24 pairs of views of 48 frames x 16 mel bins"),
        ("files", "24 pairs of views of 48 frames x 16 mel bins"),
        ("waveforms", "12 waveforms of 4,000 samples, or 48 frames x 16 mel bins"),
    ],
)
def test_doctor__pairs_and_waveforms_are_tried_as_they_are_learned_from(form: str, says: str, tmp_path: Path) -> None:
    sound = tone_folder(tmp_path / "sound", clips=2)
    write = {"pairs": "store", "files": "pt", "waveforms": "waveforms"}[form]
    how = {"views": 1 if form == "waveforms" else 2, "write": write, "window": 0.5, "workers": 1}
    tymbal.prepare(sound, tmp_path / form, **how, **to_keywords(FEATURES))
    result = tymbal.doctor(tmp_path / form, **QUICK)
    trial = result.trial
    assert result.advice == tuple(text for text in result.advice if str(tmp_path) not in text)
    assert result.store["clips"] == says
    assert trial is not None
    assert trial.loading is not None
    assert min(trial.loading, trial.step) > 0
    clips = (12 if form == "waveforms" else 24) // 2  # half of them are for validation
    assert result.epoch_seconds == pytest.approx(clips / trial.clips_per_second)


def test_doctor__says_how_long_a_teacher_and_a_student_take(tmp_path: Path):
    store = tone_store(tmp_path / "store", clips=6, validation=2)
    teacher = small_model(tmp_path / "teacher")
    trial = {"seconds": 0.2, "size": "mini", "patch": "16x2", "batch_size": 4, "device": "cpu"}
    found = tymbal.doctor(store.path, teacher=str(teacher), **trial)
    assert found.teacher["asking_seconds"] == pytest.approx(18 / found.teacher["asking_rate"])
    assert found.teacher["epoch_seconds"] == pytest.approx(12 / found.teacher["student_rate"])
    assert "for all of the store, once" in found.summary()
    assert tymbal.doctor(store.path, **trial).teacher == {}
    nowhere = tymbal.doctor(store.path, teacher=str(tmp_path / "nothing.yaml"), **trial)
    assert nowhere.teacher == {}
    assert any("there is no such" in text for text in nowhere.advice)
