"""Data sets of the Hub, by the real client, from a server on this machine."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tymbal
from embedded_sounds import NAMES, encoded, sound_table
from hub_server import Hub, Repository, client_settings, hub_server
from tones import RATE
from tymbal.audio import hub_datasets
from tymbal.audio.hub_datasets import HubDataset
from tymbal.audio.sources import located, read_source
from tymbal.errors import ManifestError, StoreError
from tymbal.store.packed.packed_store import Store

BIRDS = "someone/birds"
SMALL = {"sample_rate": RATE, "mel_bins": 16, "window": 0.335, "workers": 1}
CARD = """---
configs:
- config_name: HSN
  data_files:
  - split: train
    path: HSN/train-*
  - split: test_5s
    path: [HSN/test_5s-*]
- config_name: POW
  data_files: POW/*.parquet
---
# Birds
"""


def table(folder: Path, count: int, first: int = 0) -> bytes:
    labels = [n % 3 for n in range(count)]
    sounds = [encoded(NAMES[n % 3], seed=first + n) for n in range(count)]
    return sound_table(folder / f"{first}.parquet", sounds, labels=labels).read_bytes()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("TYMBAL_CACHE", str(tmp_path / "tymbal-cache"))
    hub_datasets._headers.cache_clear()
    with hub_server() as server:
        for name, value in client_settings(server, tmp_path).items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.setattr("huggingface_hub.hf_file_system.HfFileSystem.cachable", False)
        files = {
            "README.md": CARD.encode(),
            "HSN/train-00000-of-00001.parquet": table(tmp_path / "made", 6),
            "HSN/test_5s-00000-of-00001.parquet": table(tmp_path / "made", 3, first=10),
            "POW/part.parquet": table(tmp_path / "made", 3, first=20),
        }
        server.repositories[BIRDS] = birds = Repository(private=False)
        birds.commit(files)
        yield server


def test_parquet__is_streamed_and_recorded_with_its_commit(hub: Hub, tmp_path: Path) -> None:
    commit = hub.repositories[BIRDS].refs["main"]
    made = tymbal.prepare(f"hf://datasets/{BIRDS}/HSN", tmp_path / "store", **SMALL)
    assert made.failures == []
    store = Store.open(tmp_path / "store")
    rows = store.index.to_pylist()
    assert [(row["split"], row["labels"][0]) for row in rows if row["split"] == "test"] == [
        ("test", name) for name in NAMES
    ]
    assert len(rows) == 9
    assert commit in store.provenance["source"]
    assert all(commit in row["file"] for row in rows)
    # Nothing was kept but what was computed, and what headers say.
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").rglob("*.parquet"))

    # The same numbers as from the table here.
    here = tmp_path / "made" / "0.parquet"
    tymbal.prepare(here, tmp_path / "local", **SMALL)
    local = Store.open(tmp_path / "local")
    train = np.array([n for n, row in enumerate(rows) if Path(row["file"]).parent.name.startswith("train")])
    np.testing.assert_array_equal(store.gather(train), local.gather(np.arange(6)))


def test_branch__that_moved_stays_where_a_preparation_was_begun(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"hf://datasets/{BIRDS}/HSN:train"
    before = hub.repositories[BIRDS].refs["main"]
    real = tymbal.prepare.__globals__["_build"]

    def stopped(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setitem(tymbal.prepare.__globals__, "_build", stopped)
    with pytest.raises(KeyboardInterrupt):
        tymbal.prepare(source, tmp_path / "store", **SMALL)
    monkeypatch.setitem(tymbal.prepare.__globals__, "_build", real)
    asked = len(hub.asked)
    _, files = hub.repositories[BIRDS].commits[-1]
    hub.repositories[BIRDS].commit({**files, "HSN/train-00000-of-00001.parquet": table(tmp_path / "made", 4, first=30)})
    tymbal.prepare(source, tmp_path / "store", **SMALL)
    store = Store.open(tmp_path / "store")
    assert len(store.index) == 6
    assert before in store.provenance["source"]
    assert not any("revision" in path and before not in path for _, path in hub.asked[asked:])
    fresh = tymbal.prepare(source, tmp_path / "new", **SMALL)
    assert fresh.failures == []
    assert len(Store.open(tmp_path / "new").index) == 4
    assert tymbal.prepare(f"hf://datasets/{BIRDS}@{before}/HSN:train", tmp_path / "old", **SMALL).failures == []
    assert len(Store.open(tmp_path / "old").index) == 6


def test_headers__are_fetched_once(hub: Hub, tmp_path: Path) -> None:
    source = f"hf://datasets/{BIRDS}/POW"
    tymbal.prepare(source, tmp_path / "one", **SMALL)
    first = hub.sent
    hub_datasets._headers.cache_clear()
    tymbal.prepare(source, tmp_path / "two", **SMALL)
    assert 0 < hub.sent - first < first
    kept = next((tmp_path / "tymbal-cache" / "hub-lists" / "headers").glob("*.jsonl")).read_text().splitlines()
    assert [json.loads(line)["rate"] for line in kept] == [RATE] * 3


def test_network__that_goes_stops_and_what_was_done_goes_on(hub: Hub, tmp_path: Path) -> None:
    source = f"hf://datasets/{BIRDS}/HSN:train"
    listed = located(source)
    hub.fails = True
    with pytest.raises(
        StoreError, match=r"the Hugging Face Hub gave no answer about hf://datasets/someone/birds@[\s\S]*run the same"
    ):
        read_first(listed)
    hub.fails = False
    assert tymbal.prepare(source, tmp_path / "store", **SMALL).failures == []


def read_first(listed: Any) -> None:
    from tymbal.audio.decode import read

    read(read_source(listed).clips[0].file)


def test_audiofolder__with_and_without_a_table(hub: Hub, tmp_path: Path) -> None:
    sounds = {f"train/{name}/{n}.wav": encoded(name, seed=n) for name in NAMES for n in range(2)}
    hub.repositories["someone/plain"] = plain = Repository(private=False)
    plain.commit({"README.md": b"# Plain", **sounds, "test/low/9.wav": encoded("low", seed=9)})
    made = tymbal.prepare("hf://datasets/someone/plain", tmp_path / "plain", **SMALL)
    assert made.failures == []
    rows = Store.open(tmp_path / "plain").index.to_pylist()
    assert sorted(row["labels"][0] for row in rows) == sorted([*NAMES * 2, "low"])
    assert [row["id"] for row in rows if row["split"] == "test"] == ["test/low/9.wav"]

    text = "file_name,species\nlow/0.wav,owl\nlow/1.wav,wren\n"
    hub.repositories["someone/table"] = listed = Repository(private=False)
    listed.commit({"train/metadata.csv": text.encode(), **sounds})
    clips = read_source("hf://datasets/someone/table").clips
    assert [(clip.labels, clip.split) for clip in clips] == [(("owl",), "train"), (("wren",), "train")]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf://datasets/someone/birds", r"has several configurations\n  Name one, as .*birds/HSN. It has: HSN, POW"),
        ("hf://datasets/someone/birds/XYZ", r"no configuration or folder XYZ\n  It has: HSN, POW"),
        (
            "hf://datasets/someone/birds/HSN:dev",
            r"birds/HSN:dev has no files of this split\n  Its files are: HSN/test_5s",
        ),
        ("hf://datasets/someone/birds@v9/HSN", "someone/birds has no revision v9 on the Hugging Face Hub"),
        ("hf://datasets/someone/none", "the Hugging Face Hub shows no data set of this name"),
        ("hf://datasets/nothing", r"is no name of a data set on the Hub\n  Write hf://datasets/owner/name"),
    ],
)
def test_mistakes__are_said_plainly(hub: Hub, source: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        read_source(source)


def test_offline__is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ManifestError, match=r"[\s\S]*hf download --repo-type dataset someone/birds"):
        read_source("hf://datasets/someone/birds")


def test_name__has_parts_in_one_order() -> None:
    parsed = HubDataset.parse("hf:/datasets/a/b@v1/x/y:test_5s")  # as a path has it
    assert (parsed.name, parsed.revision, parsed.config, parsed.split) == ("a/b", "v1", "x/y", "test_5s")
    assert str(parsed) == "hf://datasets/a/b@v1/x/y:test_5s"
    assert HubDataset.parse("hf://datasets/a/b") == HubDataset("a/b")


def test_command_line__pretrains_from_the_hub_in_processes_of_its_own(hub: Hub, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_CACHE": str(tmp_path / "home" / "hub"),
    }
    flags = "--device cpu --precision float32 --width 16 --depth 1 --heads 2 --patch 8x8 --mel-bins 16 --max-steps 2"
    command = [sys.executable, "-m", "tymbal", "pretrain", f"hf://datasets/{BIRDS}/HSN:train", "-o", "run"]
    command += ["--objective", "joint", "--sample-rate", str(RATE), "--batch-size", "2", *flags.split()]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "a data set on the Hugging Face Hub" in done.stderr
    assert "hf://datasets/someone/birds/HSN:train: 6 clips at commit" in done.stderr
    assert io.StringIO((tmp_path / "run" / "run.yaml").read_text()).read().count("hf:/") >= 1
