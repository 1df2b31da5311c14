"""Preparing on a Dask cluster gives what one process gives, also where a worker is killed on the way."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import tymbal
from tymbal.errors import SettingsError

distributed = pytest.importorskip("distributed")

RATE = 8000
SMALL: dict[str, Any] = {
    "views": 2, "sample_rate": RATE, "window": 0.5, "mel_bins": 16, "n_fft": 256, "hop_length": 128, "workers": 1
}  # fmt: skip


def content(folder: Path) -> dict[str, bytes]:
    files = [*sorted((folder / "shards").iterdir()), folder / "index.parquet", folder / "failures.csv"]
    return {file.name: file.read_bytes() for file in files}


def kill_one(cluster: Any, work: Path) -> None:
    """Kills a worker as soon as a shard is done."""
    while not list(work.glob("0*.json")):
        time.sleep(0.005)
    os.kill(next(iter(cluster.workers.values())).process.pid, signal.SIGKILL)


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_dask__gives_the_same_bytes_although_a_worker_is_killed(tmp_path: Path) -> None:
    for number in range(300):
        random = np.random.default_rng(number)
        path = tmp_path / "sound" / f"{number:03d}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, random.normal(0, 0.1, RATE // 2), RATE, subtype="PCM_16")
    alone = tymbal.prepare(tmp_path / "sound", tmp_path / "alone", **SMALL).path
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        killer = threading.Thread(target=kill_one, args=(cluster, tmp_path / "there" / "work"), daemon=True)
        killer.start()
        there = tymbal.prepare(
            tmp_path / "sound", tmp_path / "there", executor="dask", scheduler=cluster.scheduler_address, **SMALL
        ).path
        killer.join(timeout=10)
    assert not killer.is_alive()
    assert content(there) == content(alone)


def test_dask__needs_a_scheduler(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="there is no scheduler"):
        tymbal.prepare(tmp_path, tmp_path / "out", executor="dask")
