"""A finished preparation that is damaged: what is damaged is noticed, and made anew alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

import tymbal
from tymbal.errors import StoreError
from tymbal.preparation.build import read_sidecar
from tymbal.store.packed.format import NPY_HEADER
from tymbal.store.packed.packed_store import Store, open_store

SMALL = {"mel_bins": 16, "workers": 1}
PAIRS = {**SMALL, "views": 2, "write": "pt", "window": 0.3, "validation": 0.2}


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    folder = tmp_path / "sound"
    folder.mkdir()
    for i in range(70):
        samples = np.random.default_rng(i).normal(0, 0.1, 4800 + 40 * i)
        soundfile.write(folder / f"{i:02d}.wav", samples, 16_000, subtype="PCM_16")
    return folder


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    return tymbal.prepare(sound, tmp_path / "store", **SMALL).path


def flip(path: Path, place: int = -100) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.suffix in (".npy", ".pt", ".parquet")}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*") if path.suffix in (".npy", ".pt")}


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped": flip,
    "deleted": Path.unlink,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_prepare__again_makes_damaged_shards_anew_and_no_others(sound: Path, store: Path, damage: str) -> None:
    before, written = contents(store), times(store)
    assert len(written) == 3
    DAMAGE[damage](store / "shards" / "00001.npy")
    with pytest.raises(StoreError, match=r"00001.npy: (is missing|has \d+ bytes|row \d+ of the shard is not what)"):
        open_store(store).gather(np.arange(70))
    tymbal.prepare(sound, store, **SMALL)
    assert contents(store) == before
    assert {name for name, time in times(store).items() if time != written[name]} == {"00001.npy"}
    assert sorted(path.name for path in store.iterdir()) == ["failures.csv", "index.parquet", "shards", "store.json"]


@pytest.mark.parametrize("name", ["store.json", "index.parquet"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_prepare__again_makes_all_anew_where_the_description_is_damaged(
    sound: Path, store: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(store)
    DAMAGE[damage](store / name)
    with pytest.raises(StoreError):
        open_store(store)
    tymbal.prepare(sound, store, **SMALL)
    assert contents(store) == before
    if (name, damage) != ("store.json", "deleted"):
        assert "all of it is made anew" in capsys.readouterr().err


def test_prepare__again_does_not_put_other_sound_into_a_store(sound: Path, store: Path) -> None:
    flip(store / "shards" / "00000.npy")
    samples, rate = soundfile.read(sound / "03.wav")
    soundfile.write(sound / "03.wav", samples[::-1], rate, subtype="PCM_16")
    with pytest.raises(StoreError, match="cannot be made as it was: the sound that it was made of has changed"):
        tymbal.prepare(sound, store, **SMALL)


def test_gather__a_row_is_compared_when_it_is_first_read(store: Path) -> None:
    opened = open_store(store)
    whole = opened.gather([3, 40]).copy()
    path = store / "shards" / "00000.npy"
    row = 5
    flip(path, NPY_HEADER + row * opened.frames * opened.mels * 2 + 7)
    fresh = open_store(store)
    np.testing.assert_array_equal(fresh.gather([3, 40]), whole)
    with pytest.raises(
        StoreError, match=r"00000.npy: row 5 of the shard is not what was written: its checksum differs"
    ):
        fresh.gather([4, 5])
    with pytest.raises(StoreError, match="row 5 of the shard"):
        fresh.check_whole()


def test_gather__a_shard_cut_off_while_it_is_mapped_is_an_error(store: Path) -> None:
    opened = open_store(store)
    opened.gather([0, 1])
    with (store / "shards" / "00000.npy").open("rb+") as file:
        file.truncate(NPY_HEADER)
    with pytest.raises(StoreError, match=r"00000.npy: has become shorter since it was opened"):
        opened.gather([0, 1])


def test_prepare__stores_of_earlier_versions_are_read_and_repaired(sound: Path, store: Path) -> None:
    values = open_store(store).gather(np.arange(70)).copy()
    description = json.loads((store / "store.json").read_text())
    del description["checksum"], description["index_crc"]
    (store / "store.json").write_text(json.dumps(description))
    pq.write_table(pq.read_table(store / "index.parquet").drop_columns(["crc"]), store / "index.parquet")
    old = Store.open(store)
    assert old.checksums is None
    np.testing.assert_array_equal(old.gather(np.arange(70)), values)
    DAMAGE["cut"](store / "shards" / "00001.npy")
    tymbal.prepare(sound, store, **SMALL)
    np.testing.assert_array_equal(Store.open(store).gather(np.arange(70)), values)


@pytest.mark.parametrize(
    "change",
    [
        {"shards": [{"file": "../../other/00000.npy", "rows": 32, "bytes": 1000}]},
        {"shards": [{"file": "/etc/passwd", "rows": 32, "bytes": 1000}]},
        {"frames": 0},
        {"frames": 1e300},
        {"mels": -1},
        {"mels": "16"},
        {"statistics": {"mean": float("nan"), "std": 1.0, "frames": 3}},
        {"features": {"sample_rate": 10**400}},
        {"kind": ["spectrograms"]},
        {"views": None},
    ],
)
def test_open__a_description_from_a_stranger_is_refused(store: Path, change: dict[str, object]) -> None:
    description = json.loads((store / "store.json").read_text())
    del description["checksum"]
    (store / "store.json").write_text(json.dumps({**description, **change}))
    with pytest.raises(StoreError, match=r"store.json: is damaged|store.json: has \d"):
        open_store(store)


def test_open__frames_beyond_the_store_are_refused(store: Path) -> None:
    description = json.loads((store / "store.json").read_text())
    del description["checksum"], description["index_crc"]
    (store / "store.json").write_text(json.dumps(description))
    index = pq.read_table(store / "index.parquet")
    column = index.schema.get_field_index("frames")
    frames = index["frames"].to_pylist()
    pq.write_table(index.set_column(column, "frames", [[*frames[:-1], 10**6]]), store / "index.parquet")
    with pytest.raises(StoreError, match=r"index.parquet: has spectrograms of \d+ to 1000000 frames"):
        open_store(store)


@pytest.mark.parametrize("damage", DAMAGE)
def test_sidecar__a_shard_or_outcome_that_is_damaged_is_made_again(
    sound: Path, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = contents(tymbal.prepare(sound, tmp_path / "whole", **SMALL).path)
    store = tmp_path / "store"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sys.modules["tymbal.prepare"], "finish", _stop)
        tymbal.prepare(sound, store, **SMALL)
    DAMAGE[damage](store / "shards" / "00000.npy")
    DAMAGE[damage](store / "work" / "00001.json")
    assert read_sidecar(store, store / "work", 2) is not None
    if damage == "flipped":  # of a plan nothing but a new one can be made
        flip(store / "work" / "plan.json")
    tymbal.prepare(sound, store, **SMALL)
    assert contents(store) == whole
    if damage == "flipped":
        assert "plan.json is damaged" in capsys.readouterr().err


def _stop(*args: object, **keywords: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("version", ["this", "earlier"])
def test_prepare__again_makes_damaged_files_anew_and_no_others(sound: Path, tmp_path: Path, version: str) -> None:
    folder = tymbal.prepare(sound, tmp_path / "pairs", **PAIRS).path
    if version == "earlier":
        metadata = json.loads((folder / "metadata.json").read_text())
        for entry in metadata["train"] + metadata["val"]:
            del entry["tymbal"]["bytes"], entry["tymbal"]["crc"]
        (folder / "metadata.json").write_text(json.dumps(metadata))
    before, written = contents(folder), times(folder)
    names = sorted((folder / "train").iterdir())[:4]
    for path, damage in zip(names, DAMAGE.values(), strict=True):
        damage(path)
    if version == "earlier":  # a flipped byte can only be seen by a checksum
        names[0].unlink()
    tymbal.prepare(sound, folder, **PAIRS)
    assert contents(folder) == before
    anew = {name for name, time in times(folder).items() if time != written[name]}
    stems = {name.rpartition("_v")[0] for name in anew}
    assert {path.name for path in names} <= anew
    assert stems == {path.name.rpartition("_v")[0] for path in names}
