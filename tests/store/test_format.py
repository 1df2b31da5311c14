"""What lies in a store folder, and what may be wrong with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_store import FRAMES, MELS

from tymbal.errors import StoreError
from tymbal.files import with_checksum
from tymbal.store.packed.format import ShardFile
from tymbal.store.packed.packed_store import Store


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(with_checksum({**json.loads(path.read_text()), **values})))


def test_open__damaged_description(store: Store) -> None:
    file = store.path / "store.json"
    whole = file.read_text()
    change(file, schema=2)
    with pytest.raises(StoreError, match="schema 2, this version of Tymbal reads 1\n  Update"):
        Store.open(store.path)
    file.write_text(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match="is damaged"):
        Store.open(store.path)
    file.write_text(whole)
    change(file, dtype="float32")
    with pytest.raises(StoreError, match="dtype is 'float32'"):
        Store.open(store.path)
    file.write_text(whole)
    change(file, features={"sample_rate": 16000, "bins": 3})
    with pytest.raises(StoreError, match="is damaged"):
        Store.open(store.path)


def test_gather__shard_of_another_shape(store: Store) -> None:
    wrong = np.zeros((5, MELS, FRAMES), np.float16)
    np.save(store.path / "shards" / "00000.npy", wrong)
    with pytest.raises(StoreError, match=r"00000.npy: holds float16 \[5, 4, 8\]"):
        Store.open(store.path).gather([0])


def test_read__shard_that_became_shorter(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Store.open(store.path)
    opened.gather([20])
    (store.path / "shards" / "00004.npy").write_bytes(b"")
    monkeypatch.setattr(ShardFile, "cached", lambda self, row: False)
    with pytest.raises(StoreError, match="shorter since it was opened"):
        opened.gather([20])


def test_read__shard_that_becomes_shorter_in_the_middle_of_a_row(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, path = Store.open(store.path), store.path / "shards" / "00004.npy"
    whole = ShardFile._read_at

    def cut(shard: ShardFile, start: int, out: memoryview) -> int:
        got = whole(shard, start, out[: len(out) // 2 or 1])
        os.truncate(path, start + got)
        return got

    monkeypatch.setattr(ShardFile, "_read_at", cut)
    with pytest.raises(StoreError, match=r"00004.npy: has become shorter since it was opened"):
        opened.gather([20])


@pytest.mark.parametrize("rows", ["[20]", "list(range(23)) * 2000"])  # of many, threads share the copying
def test_read__no_cut_at_any_moment_kills_the_process(rows: str, store: Store) -> None:
    program = f"""
import os, threading
from tymbal.errors import StoreError
from tymbal.store import parallel_copy
from tymbal.store.packed.packed_store import Store
parallel_copy._MOST_KEPT = 0  # rows that are in memory are not read again
opened = Store.open({str(store.path)!r})
rows = {rows}
opened.gather(rows)
threading.Timer(0.05, os.truncate, ({str(store.path / "shards" / "00004.npy")!r}, 100)).start()
try:
    while True:
        opened.gather(rows)
except StoreError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert "00004.npy: has become shorter since it was opened" in done.stdout


def test_read__without_preadv_threads_share_a_place_and_get_their_own_rows(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tymbal.store.packed.format._HAS_PREADV", False)
    rows = list(range(23)) * 2000
    np.testing.assert_array_equal(store.gather(rows)[:23], store.gather(list(range(23))))
