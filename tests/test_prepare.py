from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import tymbal
from tones import tone_store
from tymbal.audio.manifest import Manifest
from tymbal.errors import AudioError, SettingsError, StoreError
from tymbal.features.kaldi import LOG_FLOOR, KaldiFbank
from tymbal.preparation import build
from tymbal.preparation.record import _relevant, check_output
from tymbal.settings import FeatureSettings, PrepareSettings
from tymbal.store.packed.packed_store import Store

RATE = 16_000
SMALL = {"mel_bins": 16, "validation": 0.25}


def write_wav(path: Path, seconds: float, *, seed: int = 0, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).normal(0, 0.1, round(seconds * rate))
    soundfile.write(path, samples, rate, subtype="PCM_16")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """70 clips of 0.2 to 0.4 s in two classes: three shards."""
    root = tmp_path / "sound"
    for i in range(70):
        write_wav(root / ("frog" if i % 2 else "cicada") / f"{i:02d}.wav", 0.2 + 0.01 * (i % 21), seed=i)
    return root


def content(store: Path) -> dict[str, bytes]:
    """Everything in a store that may not depend on how it was made."""
    files = [*sorted((store / "shards").iterdir()), store / "index.parquet", store / "failures.csv"]
    return {file.name: file.read_bytes() for file in files}


def failures(store: Path) -> dict[str, str]:
    with (store / "failures.csv").open() as file:
        return {Path(row["file"]).name: row["reason"] for row in csv.DictReader(file)}


def test_prepare__spectrograms_are_those_of_the_files(folder: Path, tmp_path: Path) -> None:
    result = tymbal.prepare(folder, tmp_path / "store", **SMALL)
    store = result.store
    assert (len(store), store.frames, store.mels) == (70, 48, 16)
    assert result.failures == []
    assert sorted(path.name for path in store.path.iterdir()) == [
        "failures.csv",
        "index.parquet",
        "shards",
        "store.json",
    ]
    assert len(store.description.shards) == 3
    fbank = KaldiFbank(FeatureSettings(mel_bins=16))
    real = []
    for row in store.index.to_pylist():
        waveform = soundfile.read(row["file"], dtype="float32")[0]
        expected = fbank(torch.from_numpy(waveform)).numpy().astype(np.float16)
        number = row["shard"] * 32 + row["row"]
        stored = store.gather([number])[0]
        assert row["frames"] == len(expected)
        np.testing.assert_array_equal(stored[: len(expected)], expected)
        assert (stored[len(expected) :] == np.float16(LOG_FLOOR)).all()
        assert row["labels"] == [Path(row["file"]).parent.name]
        assert row["end"] == pytest.approx(len(waveform) / RATE, abs=1e-5)
        real.append(expected.astype(np.float64))
    assert store.mean == pytest.approx(np.concatenate(real).mean(), rel=1e-12)
    assert store.std == pytest.approx(np.concatenate(real).std(), rel=1e-12)
    assert store.labels == ["cicada", "frog"]
    assert len(store.rows("validation")) == round(70 / 4)
    assert "70 spectrograms of 48 frames x 16 mel bins" in result.summary()


def test_prepare__again_says_that_it_is_complete(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tymbal.prepare(folder, tmp_path / "store", **SMALL)
    before = content(tmp_path / "store")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "store" / "shards").iterdir()}
    assert len(tymbal.prepare(folder, tmp_path / "store", **SMALL, workers=2).store) == 70
    assert "is complete already" in capsys.readouterr().err.replace("\n", "")
    assert content(tmp_path / "store") == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_prepare__scanned_manifest_gives_the_same(folder: Path, tmp_path: Path) -> None:
    scanned = tymbal.scan(folder, tmp_path / "manifest.csv", validation=0.25)
    one = tymbal.prepare(folder, tmp_path / "one", **SMALL).store
    two = tymbal.prepare(tmp_path / "manifest.csv", tmp_path / "two", **SMALL).store
    three = tymbal.prepare(scanned.manifest, tmp_path / "three", **SMALL).store
    assert content(one.path)["00000.npy"] == content(two.path)["00000.npy"] == content(three.path)["00000.npy"]
    for column in ("id", "file", "frames", "labels", "split"):
        assert one.index[column].to_pylist() == two.index[column].to_pylist() == three.index[column].to_pylist()


def test_prepare__completes_a_scanned_manifest_as_asked(tmp_path: Path) -> None:
    for site in "abcdefgh":
        for number in range(3):
            write_wav(tmp_path / "sound" / f"owl_{site}_{number}.wav", 0.3, seed=ord(site) * 10 + number)
    manifest = tmp_path / "manifest.csv"
    tymbal.scan(tmp_path / "sound", manifest, labels="none", split="none")
    asked = {"group_pattern": "_([a-z])_", "label_pattern": "^([a-z]+)_", "validation": 0.25}
    index = tymbal.prepare(manifest, tmp_path / "store", **asked, window=0.3, workers=1).store.index
    rows = index.to_pylist()
    assert {row["labels"][0] for row in rows} == {"owl"}
    sides = {row["group"]: {other["split"] for other in rows if other["group"] == row["group"]} for row in rows}
    assert all(len(splits) == 1 for splits in sides.values())
    assert sorted(sides) == list("abcdefgh")
    assert sum(splits == {"validation"} for splits in sides.values()) == 2
    # The same settings say the same again; others contradict the manifest.
    tymbal.scan(tmp_path / "sound", manifest, **asked)
    again = tymbal.prepare(manifest, tmp_path / "again", **asked, window=0.3, workers=1).store.index
    assert again["split"].to_pylist() == index["split"].to_pylist()
    for name, value in {"group_pattern": r"_(\d)\.", "label_pattern": "_([a-z])_", "validation": 0.5}.items():
        with pytest.raises(SettingsError, match=name):
            tymbal.prepare(manifest, tmp_path / "never", **{name: value}, window=0.3, workers=1)
    anew = tymbal.prepare(manifest, tmp_path / "anew", split="clips", validation=0.5, window=0.3, workers=1).store.index
    assert anew["split"].to_pylist().count("validation") == 12


def test_prepare__says_that_a_manifest_has_no_split(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_wav(tmp_path / "sound" / "a.wav", 0.3)
    tymbal.scan(tmp_path / "sound", tmp_path / "m.csv", split="none")
    store = tymbal.prepare(tmp_path / "m.csv", tmp_path / "store", window=0.3, workers=1).store
    assert store.index["split"].to_pylist() == [None]
    assert "the manifest gives no split" in " ".join(capsys.readouterr().err.split())


def test_prepare__folders_that_are_closed_are_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wav(folder / "closed" / "a.wav", 0.3)
    look = os.scandir

    def closed(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return look(path)

    monkeypatch.setattr(os, "scandir", closed)
    result = tymbal.prepare(folder, tmp_path / "store", **SMALL)
    assert failures(tmp_path / "store")["closed"].startswith("unreadable: this folder cannot be looked into")
    assert len(result.failures) == 1


def test_prepare__names_what_fails_and_goes_on(folder: Path, tmp_path: Path) -> None:
    (folder / "frog" / "empty.wav").write_bytes(b"")
    (folder / "frog" / "text.wav").write_text("this is no sound, but a long text about frogs " * 20)
    soundfile.write(folder / "frog" / "silent.wav", np.zeros(5000), RATE)
    soundfile.write(folder / "frog" / "short.wav", np.full(300, 0.1), RATE)
    nan = np.full(5000, 0.1, np.float32)
    nan[7] = np.nan
    soundfile.write(folder / "frog" / "nan.wav", nan, RATE, subtype="FLOAT")
    whole = write_wav(folder / "frog" / "cut.wav", 0.3).read_bytes()
    (folder / "frog" / "cut.wav").write_bytes(whole[: len(whole) // 2])
    result = tymbal.prepare(folder, tmp_path / "store", **SMALL)
    assert len(result.store) == 70
    found = failures(tmp_path / "store")
    kinds = {name: reason.partition(":")[0] for name, reason in found.items()}
    assert kinds == {
        "cut.wav": "truncated",
        "empty.wav": "empty",
        "nan.wav": "not finite",
        "short.wav": "too short",
        "silent.wav": "silent",
        "text.wav": "unreadable",
    }
    assert len(result.failures) == 6
    assert all(failure.advice for failure in result.failures)
    ids = result.store.index["id"].to_pylist()
    assert len(set(ids)) == 70
    assert not {f"frog/{name}" for name in kinds} & set(ids)


def test_prepare__nothing_that_can_be_used(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(5000), RATE)
    with pytest.raises(AudioError, match=r"not one of its clips can be used\n.*silent: it has no sound"):
        tymbal.prepare(tmp_path / "silent.wav", tmp_path / "store")
    assert failures(tmp_path / "store") == {"silent.wav": "silent: it has no sound"}
    with pytest.raises(StoreError, match="has not finished"):
        Store.open(tmp_path / "store")


def test_prepare__long_files_become_windows(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "night.wav", 7.3, rate=22_050)
    samples, _ = soundfile.read(path)
    samples[2 * 22_050 - 3000 : 3 * 22_050 + 3000] = 0
    soundfile.write(path, samples, 22_050, subtype="PCM_16")
    store = tymbal.prepare(path, tmp_path / "store", window=1.0, frames=98, mel_bins=16).store
    # The window from 2 to 3 s has no sound, the rest after 7 s fills less than half a window.
    assert store.index["id"].to_pylist() == [f"night.wav#{i}-{i + 1}" for i in (0, 1, 3, 4, 5, 6)]
    assert failures(tmp_path / "store") == {"night.wav": "silent: the part from 2 s on has no sound"}
    assert store.real_frames.tolist() == [98] * 6
    assert store.index["end"].to_pylist()[0] == pytest.approx(0.995)


def test_prepare__sound_fills_the_frames_behind_a_window(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "night.wav", 3.0)
    store = tymbal.prepare(path, tmp_path / "store", window=1.0, mel_bins=16).store
    assert store.frames == 112
    assert store.real_frames.tolist() == [112, 112, 98]


def test_prepare__cropped(tmp_path: Path) -> None:
    path = write_wav(tmp_path / "night.wav", 3.0)
    waveform = soundfile.read(path, dtype="float32")[0]
    settings = {"window": 1.0, "frames": 98, "mel_bins": 16}
    store = tymbal.prepare(path, tmp_path / "store", longer="crop-centre", **settings).store
    expected = KaldiFbank(FeatureSettings(mel_bins=16))(torch.from_numpy(waveform[RATE : RATE + 15_920])).numpy()
    assert store.index["id"].to_pylist() == ["night.wav#1-2"]
    np.testing.assert_array_equal(store.gather([0])[0], expected.astype(np.float16))


def test_prepare__parts_that_a_table_names(tmp_path: Path) -> None:
    write_wav(tmp_path / "night.wav", 3.0)
    table = tmp_path / "parts.csv"
    table.write_text("file,start,end,label\nnight.wav,0.5,1.0,frog\nnight.wav,1.5,2.5,cicada;frog\n")
    store = tymbal.prepare(table, tmp_path / "store", mel_bins=16).store
    assert store.index["id"].to_pylist() == ["night.wav#0.5-1", "night.wav#1.5-2.5"]
    assert store.index["labels"].to_pylist() == [["frog"], ["cicada", "frog"]]
    assert store.real_frames.tolist() == [48, 98]
    assert store.multilabel


def test_prepare__copies_of_a_file_stay_on_one_side(tmp_path: Path) -> None:
    for i in range(12):
        write_wav(tmp_path / "sound" / f"{i:02d}.wav", 0.2, seed=i // 2)
    store = tymbal.prepare(tmp_path / "sound", tmp_path / "store", mel_bins=16, validation=0.34).store
    splits = store.index["split"].to_pylist()
    assert splits[::2] == splits[1::2]
    assert splits.count("validation") == 4


@pytest.mark.parametrize("changed", [{"mel_bins": 8}, {"window": 0.3}, {"seed": 1}])
def test_prepare__other_settings_are_refused(folder: Path, tmp_path: Path, changed: dict[str, object]) -> None:
    tymbal.prepare(folder, tmp_path / "store", **SMALL)
    (name,) = changed
    before = content(tmp_path / "store")
    with pytest.raises(StoreError, match=rf"other settings:\n +{name}: .* -> {changed[name]}\n  Choose"):
        tymbal.prepare(folder, tmp_path / "store", **{**SMALL, **changed})
    assert content(tmp_path / "store") == before


def test_prepare__other_files_are_refused(folder: Path, tmp_path: Path) -> None:
    tymbal.prepare(folder, tmp_path / "store", **SMALL)
    write_wav(folder / "frog" / "new.wav", 0.3)
    (folder / "frog" / "01.wav").unlink()
    with pytest.raises(StoreError, match=r"another source:\n +new: \S+new\.wav\n +gone: \S+01\.wav\n"):
        tymbal.prepare(folder, tmp_path / "store", **SMALL)


def test_prepare__does_not_write_among_other_things(folder: Path) -> None:
    with pytest.raises(StoreError, match="is no store, and not empty: it holds cicada"):
        tymbal.prepare(folder, folder)
    with pytest.raises(StoreError, match="is a file"):
        tymbal.prepare(folder, folder / "frog" / "01.wav")
    with pytest.raises(SettingsError, match="unknown setting 'windw'"):
        tymbal.prepare(folder, folder / "store", windw=3)


class Interrupted(Executor):
    """Does some tasks, then the process that did them dies."""

    def __init__(self, tasks: int) -> None:
        self.left = tasks

    def submit(self, fn, /, *args, **kwargs):
        future: Future = Future()
        if self.left == 0:
            future.set_exception(BrokenProcessPool())
        else:
            self.left -= fn is build.build_shard
            future.set_result(fn(*args, **kwargs))
        return future


def test_prepare__worker_that_dies(folder: Path, tmp_path: Path) -> None:
    whole = tymbal.prepare(folder, tmp_path / "whole", **SMALL).store
    with pytest.raises(StoreError, match=r"has died; what it had finished stays\n  Run the same command again"):
        tymbal.prepare(folder, tmp_path / "store", **SMALL, executor=Interrupted(2))
    with pytest.raises(StoreError, match=r"was begun with other settings:\n +mel_bins: 16 -> 8"):
        tymbal.prepare(folder, tmp_path / "store", mel_bins=8, validation=0.25)
    shard = tmp_path / "store" / "shards" / "00000.npy"
    written = shard.stat().st_mtime_ns
    tymbal.prepare(folder, tmp_path / "store", **SMALL)
    assert shard.stat().st_mtime_ns == written
    assert content(tmp_path / "store") == content(whole.path)


def test_prepare__full_disk(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(build, "write_text", full)
        with pytest.raises(StoreError, match=r"store: cannot be written: No space left on device\n  Make room"):
            tymbal.prepare(folder, tmp_path / "store", **SMALL)
    assert len(tymbal.prepare(folder, tmp_path / "store", **SMALL).store) == 70


def test_prepare__builds_again_what_was_lost(folder: Path, tmp_path: Path) -> None:
    whole = tymbal.prepare(folder, tmp_path / "whole", **SMALL).store
    with pytest.raises(StoreError, match="has died"):
        tymbal.prepare(folder, tmp_path / "store", **SMALL, executor=Interrupted(2))
    shards = tmp_path / "store" / "shards"
    (shards / "00000.npy").unlink()
    (shards / "00001.npy").write_bytes(b"half")
    (shards / "00002.npy.partial").write_bytes(b"a kill left this")
    tymbal.prepare(folder, tmp_path / "store", **SMALL)
    assert content(tmp_path / "store") == content(whole.path)


def test_prepare__one_process_or_several_write_the_same_bytes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = tymbal.prepare(folder, tmp_path / "one", **SMALL, workers=1).store
    with ThreadPoolExecutor(2) as threads:
        threaded = tymbal.prepare(folder, tmp_path / "threads", **SMALL, executor=threads).store
    monkeypatch.setattr(sys.modules["tymbal.prepare"], "_MUCH_SOUND", 0.0)
    two = tymbal.prepare(folder, tmp_path / "two", **SMALL, workers=2).store
    assert content(one.path) == content(two.path) == content(threaded.path)


KILLED = """
import sys, time
import tymbal
from tymbal.preparation import build
def slowly(*args, cut=build.cut, **keywords):
    time.sleep(0.02)
    return cut(*args, **keywords)
build.cut = slowly
tymbal.prepare(sys.argv[1], sys.argv[2], mel_bins=16, validation=0.25)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_prepare__killed_at_any_moment_continues_to_the_same_store(folder: Path, tmp_path: Path) -> None:
    whole = tymbal.prepare(folder, tmp_path / "whole", **SMALL).store
    store = tmp_path / "store"
    moments = [store / "shards" / "00000.npy.partial", store / "work" / "00000.json", store / "work" / "00001.json"]
    for moment in moments:
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(folder), str(store)])
        deadline = time.monotonic() + 60
        while not moment.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert moment.exists()
        with pytest.raises(StoreError, match="has not finished"):
            Store.open(store)
    tymbal.prepare(folder, store, **SMALL)
    assert content(store) == content(whole.path)
    assert not (store / "work").exists()


def test_prepare__manifest_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(tymbal.ManifestError):
        tymbal.prepare(tmp_path / "nowhere", tmp_path / "store")
    with pytest.raises(AudioError, match="not one of its clips"):
        tymbal.prepare(Manifest((), tmp_path), tmp_path / "store")
    assert not (tmp_path / "store" / "store.json").exists()


def test_prepare__files_that_are_away_for_a_while_are_no_plan(folder: Path, tmp_path: Path) -> None:
    files = sorted(folder.rglob("*.wav"))
    clips = tmp_path / "clips.csv"
    clips.write_text("file,label\n" + "".join(f"{file},{file.parent.name}\n" for file in files))
    whole = tymbal.prepare(clips, tmp_path / "whole", **SMALL).store
    (folder / "frog").rename(tmp_path / "away")
    with pytest.raises(AudioError, match=r"35 of 70 files cannot be reached; the first: .*frog.*missing.*\n.*again"):
        tymbal.prepare(clips, tmp_path / "store", **SMALL)
    assert not (tmp_path / "store").exists()
    assert len(tymbal.prepare(clips, tmp_path / "forced", **SMALL, force=True).store) == 35
    (folder / "cicada").rename(tmp_path / "away too")
    with pytest.raises(AudioError, match="70 of 70 files"):
        tymbal.prepare(clips, tmp_path / "store", **SMALL, force=True)
    (tmp_path / "away").rename(folder / "frog")
    (tmp_path / "away too").rename(folder / "cicada")
    tymbal.prepare(clips, tmp_path / "store", **SMALL)
    assert content(tmp_path / "store") == content(whole.path)


def test_prepare__files_that_go_away_in_the_middle_are_not_left_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tymbal.prepare(folder, tmp_path / "whole", **SMALL).store
    cut = build.cut

    def away(windows, **keywords):
        if int(Path(windows[0].file).stem) > 40:
            raise AudioError("unreadable: Input/output error", path=windows[0].file)
        return cut(windows, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(build, "cut", lambda windows, **keywords: _lazily(away, windows, keywords))
        for _ in range(2):
            with pytest.raises(AudioError, match="29 of 70 files cannot be reached"):
                tymbal.prepare(folder, tmp_path / "store", **SMALL)
        assert not (tmp_path / "store" / "store.json").exists()
    tymbal.prepare(folder, tmp_path / "store", **SMALL)
    assert content(tmp_path / "store") == content(whole.path)


def _lazily(cut, windows, keywords):
    yield from cut(windows, **keywords)


def test_prepare__what_could_not_be_opened_at_first_stays_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = folder / "frog" / "07.wav"
    sound = lost.read_bytes()
    lost.write_bytes(b"")
    whole = tymbal.prepare(folder, tmp_path / "whole", **SMALL).store
    with pytest.raises(StoreError, match="has died"):
        tymbal.prepare(folder, tmp_path / "store", **SMALL, executor=Interrupted(1))
    lost.write_bytes(sound)
    store = tymbal.prepare(folder, tmp_path / "store", **SMALL).store
    assert len(store) == len(whole) == 69
    assert content(store.path) == content(whole.path)
    assert failures(store.path) == {"07.wav": "empty: it has no bytes"} or "07.wav" in failures(store.path)
    assert "could not be opened when this was begun" in capsys.readouterr().err
    tymbal.prepare(folder, tmp_path / "store", **SMALL)  # complete, and again
    assert "could not be opened when this was begun" in capsys.readouterr().err


@pytest.mark.parametrize("more", [{}, {"views": 1, "write": "pt"}])
def test_prepare__what_could_not_be_opened_for_a_moment_is_no_other_source(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: dict[str, object]
) -> None:
    lost = folder / "frog" / "07.wav"
    sound = lost.read_bytes()
    lost.write_bytes(b"")
    tymbal.prepare(folder, tmp_path / "store", **SMALL, **more)
    lost.write_bytes(sound)
    for _ in range(2):
        result = tymbal.prepare(folder, tmp_path / "store", **SMALL, **more)
        assert [Path(failure.file).name for failure in result.failures] == ["07.wav"]
        said = capsys.readouterr().err
        assert "is complete already" in said
        assert "could not be opened when this was begun or came later: 1 file" in said


def test_prepare__nothing_that_can_be_used_begins_nothing(tmp_path: Path) -> None:
    (tmp_path / "sound").mkdir()
    (tmp_path / "sound" / "a.wav").write_bytes(b"")
    with pytest.raises(AudioError, match="not one of its clips can be used"):
        tymbal.prepare(tmp_path / "sound", tmp_path / "store", **SMALL)
    write_wav(tmp_path / "sound" / "a.wav", 0.3)
    assert len(tymbal.prepare(tmp_path / "sound", tmp_path / "store", **SMALL).store) == 1


def test_prepare__store_of_an_earlier_version_stays(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Labels with a bar between them were one class, and the group's pattern was passed over with a manifest."""
    rows = "".join(f"frog/{number:02d}.wav,frog|toad\n" for number in range(1, 9, 2))
    (folder / "list.csv").write_text("file,label\n" + rows)
    store = tmp_path / "store"
    tymbal.prepare(folder / "list.csv", store, label_separator=";", **SMALL)
    description = json.loads((store / "store.json").read_text())
    del description["provenance"]["reading"]
    del description["settings"]["label_separator"], description["checksum"]
    (store / "store.json").write_text(json.dumps(description))
    capsys.readouterr()
    again = tymbal.prepare(folder / "list.csv", store, **SMALL).store
    assert set(map(tuple, again.index["labels"].to_pylist())) == {("frog|toad",)}
    assert "as an earlier version read its source" in " ".join(capsys.readouterr().err.split())
    (folder / "list.csv").write_text("file,label\n" + rows + "cicada/00.wav,cicada\n")
    with pytest.raises(StoreError, match="new: "):
        tymbal.prepare(folder / "list.csv", store, **SMALL)


def test_prepare__channels_that_cancel_are_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, RATE)
    (tmp_path / "sound").mkdir()
    soundfile.write(tmp_path / "sound" / "a.wav", np.stack([wave, -wave], axis=1), RATE, subtype="FLOAT")
    store = tymbal.prepare(tmp_path / "sound", tmp_path / "store", mel_bins=16, workers=1).store
    soundfile.write(tmp_path / "mono.wav", wave, RATE, subtype="FLOAT")
    mono = tymbal.prepare(tmp_path / "mono.wav", tmp_path / "mono", mel_bins=16, workers=1).store
    np.testing.assert_array_equal(store.gather([0]), mono.gather([0]))
    said = " ".join(capsys.readouterr().err.split())
    assert "its channels cancel each other in the mean: the loudest one is read alone; 1 file, as" in said


def test_prepare__settings_without_effect_are_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_wav(tmp_path / "a.wav", 0.5)
    useless = {"hop": 0.1, "longer": "crop-start", "n_fft": 512, "view_mode": "exact"}
    tymbal.prepare(tmp_path / "a.wav", tmp_path / "store", window=0.3, mel_bins=16, workers=1, **useless)
    said = capsys.readouterr().err
    assert "n_fft has no effect with filter_bank=kaldi" in said
    assert "hop has no effect with longer=crop-start" in said
    assert "view_mode has no effect with views=0" in said
    assert said.count("has no effect") == 3


def test_check_output__knows_stores_of_before_a_separator_could_be_chosen(tmp_path: Path) -> None:
    tone_store(tmp_path / "store", clips=2, validation=1)
    description = json.loads((tmp_path / "store" / "store.json").read_text())
    made = {name: value for name, value in _relevant(PrepareSettings()).items() if name != "label_separator"}
    kept = {name: value for name, value in description.items() if "checksum" not in name}
    (tmp_path / "store" / "store.json").write_text(json.dumps({**kept, "settings": made}))
    for separator in (None, ";"):
        check_output(tmp_path / "store", PrepareSettings(label_separator=separator))
    with pytest.raises(StoreError, match=r"label_separator: \(not set\) -> '\|'"):
        check_output(tmp_path / "store", PrepareSettings(label_separator="|"))


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="names there are Unicode")
def test_prepare__names_files_whose_names_are_no_text(folder: Path, tmp_path: Path) -> None:
    os.rename(folder / "frog" / "01.wav", os.fsencode(folder / "frog") + b"/\xff.wav")  # noqa: PTH104
    assert len(tymbal.prepare(folder, tmp_path / "store", **SMALL).store) == 69
    assert failures(tmp_path / "store") == {"\\udcff.wav": "unreadable: its name is not UTF-8"}


@pytest.mark.parametrize("by_list", [False, True])
def test_prepare__goes_on_without_files_that_came_after_it_was_begun(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], by_list: bool
) -> None:
    def source() -> Path:
        if by_list:
            tymbal.scan(folder, tmp_path / "list.csv", validation=0.25)
        return tmp_path / "list.csv" if by_list else folder

    whole = tymbal.prepare(source(), tmp_path / "whole", **SMALL).store
    with pytest.raises(StoreError, match="has died"):
        tymbal.prepare(source(), tmp_path / "store", **SMALL, executor=Interrupted(1))
    write_wav(folder / "cicada" / "00new.wav", 0.41)  # the longest, which would be another window, too
    (folder / "a").mkdir()
    write_wav(folder / "a" / "b.wav", 0.3)
    with pytest.raises(StoreError, match="has died"):
        tymbal.prepare(source(), tmp_path / "store", **SMALL, executor=Interrupted(1))
    capsys.readouterr()
    tymbal.prepare(source(), tmp_path / "store", **SMALL)
    assert "came later: 2 files" in capsys.readouterr().err
    assert failures(tmp_path / "store") == dict.fromkeys(("00new.wav", "b.wav"), "added after this was begun")
    made = content(tmp_path / "store")
    for name, data in content(whole.path).items():
        assert name == "failures.csv" or made[name] == data, name
    tymbal.prepare(source(), tmp_path / "store", **SMALL)  # complete, and again
    assert "came later: 2 files" in capsys.readouterr().err
    write_wav(folder / "frog" / "later.wav", 0.3)
    with pytest.raises(StoreError, match=r"another source:\n +new: \S+later\.wav\n  Choose"):
        tymbal.prepare(source(), tmp_path / "store", **SMALL)
