"""Stores elsewhere, read from a real S3 server behind a proxy that injects faults."""

from __future__ import annotations

import errno
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_store import small_store

from s3_server import S3, s3_server
from tymbal.errors import SettingsError, StoreError
from tymbal.store.packed import mirror as module
from tymbal.store.packed.mirror import mirror
from tymbal.store.packed.packed_store import Store, open_store
from tymbal.store.packed.writer import Entry, write_store


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[S3]:
    with s3_server(monkeypatch, tmp_path / "cache") as server:
        yield server


def local_store(path: Path, *, rows: int = 40, rows_per_shard: int = 16, frames: int = 20, seed: int = 0) -> Store:
    random = np.random.default_rng(seed)
    entries = [Entry(id=str(i), file=f"{i}.wav", start=0.0, end=0.2, frames=frames) for i in range(rows)]
    values = [(random.normal(size=(frames, 16)), entry) for entry in entries]
    return write_store(path, values, features=None, frames=frames, mels=16, rows_per_shard=rows_per_shard)


def test_gather__rows_are_those_of_the_store(s3: S3, tmp_path: Path) -> None:
    local = local_store(tmp_path / "store")
    store = open_store(s3.upload(local.path, "birds"))
    assert store.location == "s3://sounds/birds"
    assert not s3.ranges()
    rows = np.random.default_rng(0).permutation(40)[:20]
    np.testing.assert_array_equal(store.gather(rows).view(np.int16), local.gather(rows).view(np.int16))
    assert len(s3.ranges()) == 3  # of each shard one range, in which the few rows between came along
    between = np.arange(rows.min() + 1, rows.max())
    np.testing.assert_array_equal(store.gather([5, 5, *between]), local.gather([5, 5, *between]))
    assert len(s3.ranges()) <= 6


def test_gather__again_from_the_cache_by_another_process(s3: S3, tmp_path: Path) -> None:
    local = local_store(tmp_path / "store")
    store = open_store(s3.upload(local.path, "birds"))
    expected = store.gather(range(40)).copy()
    before = len(s3.ranges())
    for again in (open_store("s3://sounds/birds"), pickle.loads(pickle.dumps(store))):
        np.testing.assert_array_equal(again.gather(range(40)), expected)
    assert len(s3.ranges()) == before


def test_announce__rows_are_fetched_before_they_are_asked_for(s3: S3, tmp_path: Path) -> None:
    local = local_store(tmp_path / "store")
    store = open_store(s3.upload(local.path, "birds"))
    store.announce([1, 2, 35])
    store.announce([2, 20])
    np.testing.assert_array_equal(store.gather([1, 2, 35]), local.gather([1, 2, 35]))
    np.testing.assert_array_equal(store.gather([2, 20]), local.gather([2, 20]))
    assert len(s3.ranges()) == 3
    assert store.ahead == 4
    assert local.ahead == 1


@pytest.mark.parametrize("fault", ["slow", "500", "reset", "altered", "etag"])
def test_gather__faults_on_the_way_change_nothing(s3: S3, tmp_path: Path, fault: str) -> None:
    local = local_store(tmp_path / "store", rows=60, rows_per_shard=8)
    url = s3.upload(local.path, "birds")
    s3.fault = lambda number, method, path: fault if number % 3 == 1 else None
    store = open_store(url)
    for rows in np.random.default_rng(0).permutation(60).reshape(6, 10):
        store.announce(rows)
        np.testing.assert_array_equal(store.gather(rows), local.gather(rows))
    faulty = [number for number, (_, path, _) in enumerate(s3.asked) if number % 3 == 1 and "/shards/" in path]
    assert len(faulty) >= 2


@pytest.mark.parametrize(
    ("fault", "says"), [("500", "cannot be reached"), ("403", "may not be read"), ("altered", "checksum differs")]
)
def test_gather__what_stays_wrong_is_an_error_with_the_address(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, says: str
) -> None:
    monkeypatch.setattr("tymbal.store.packed.remote_folder._TRIES", 2)
    monkeypatch.setattr("tymbal.store.packed.remote_folder._RETRIES", 1)
    store = open_store(s3.upload(local_store(tmp_path / "store").path, "birds"))
    s3.fault = lambda number, method, path: fault
    with pytest.raises(StoreError, match=says) as caught:
        store.gather([5])
    assert "s3://sounds/birds/shards/00000.npy" in str(caught.value)
    assert caught.value.advice


def test_gather__store_that_is_replaced_meanwhile(s3: S3, tmp_path: Path) -> None:
    store = open_store(s3.upload(local_store(tmp_path / "store").path, "birds"))
    store.gather([1])
    other = local_store(tmp_path / "other", seed=1)
    s3.upload(other.path, "birds")
    with pytest.raises(StoreError, match="Was the store replaced"):
        store.gather([30])
    again = open_store("s3://sounds/birds")
    np.testing.assert_array_equal(again.gather(range(40)), other.gather(range(40)))


def test_gather__what_a_kill_has_left_in_the_cache_is_fetched_again(s3: S3, tmp_path: Path) -> None:
    local = local_store(tmp_path / "store")
    store = open_store(s3.upload(local.path, "birds"))
    store.gather(range(40))
    shard = mirror("s3://sounds/birds") / "shards" / "00001.npy"
    content = bytearray(shard.read_bytes())
    content[300:900] = bytes(600)
    shard.write_bytes(content)
    np.testing.assert_array_equal(open_store("s3://sounds/birds").gather(range(40)), local.gather(range(40)))
    shard.unlink()
    np.testing.assert_array_equal(open_store("s3://sounds/birds").gather(range(40)), local.gather(range(40)))


def test_cache__is_bounded(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = local_store(tmp_path / "store", rows=240, rows_per_shard=24, frames=64)  # ten shards of 48 KiB
    monkeypatch.setenv("TYMBAL_CACHE_GIB", str(200 / 2**20))
    store = open_store(s3.upload(local.path, "birds"))
    for _ in range(2):
        for rows in np.random.default_rng(0).permutation(240).reshape(24, 10):
            np.testing.assert_array_equal(store.gather(rows), local.gather(rows))
    shards = list((tmp_path / "cache").glob("stores/**/shards/*.npy"))
    held = sum(path.stat().st_blocks * 512 for path in shards)
    assert len(shards) == 10
    assert 0 < held <= 240 * 1024
    monkeypatch.setenv("TYMBAL_CACHE_GIB", "much")
    with pytest.raises(SettingsError, match="TYMBAL_CACHE_GIB is 'much'"):
        open_store("s3://sounds/birds")


def test_cache__full_disk_keeps_nothing_and_loses_nothing(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_space(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    local = local_store(tmp_path / "store")
    store = open_store(s3.upload(local.path, "birds"))
    monkeypatch.setattr(module._Cache, "_write", no_space)
    for _ in range(2):
        np.testing.assert_array_equal(store.gather([1, 20]), local.gather([1, 20]))
    assert len(s3.ranges()) == 4
    assert capsys.readouterr().err.count("rows that are fetched are not kept") == 1


def test_open__without_checksums(s3: S3, tmp_path: Path) -> None:
    local = local_store(tmp_path / "store")
    index = pq.read_table(local.path / "index.parquet")
    pq.write_table(index.drop_columns(["crc"]), local.path / "index.parquet")
    text = (local.path / "store.json").read_text()
    described = json.loads(text)
    described.pop("index_crc")
    described.pop("checksum")
    (local.path / "store.json").write_text(json.dumps(described))
    url = s3.upload(local.path, "old")
    with pytest.raises(StoreError, match="no checksums"):
        open_store(url)


def test_open__index_that_is_missing_or_altered(s3: S3, tmp_path: Path) -> None:
    local = local_store(tmp_path / "store")
    s3.put("half/store.json", (local.path / "store.json").read_bytes())
    with pytest.raises(StoreError, match=r"s3://sounds/half/index\.parquet: is missing"):
        open_store("s3://sounds/half")
    s3.put("half/index.parquet", (local.path / "index.parquet").read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match="checksum differs"):
        open_store("s3://sounds/half")
    s3.put("half/index.parquet", (local.path / "index.parquet").read_bytes())
    assert len(open_store("s3://sounds/half")) == 40


def test_url_of__folder_outside_of_the_cache_reaches_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TYMBAL_CACHE", str(tmp_path / "cache"))
    store = small_store(tmp_path / "store")
    (store.path / "elsewhere.json").write_text('{"url": "s3://sounds/birds"}')
    assert module.url_of(store.path) is None
    assert Store.open(store.path).location == str(store.path)
