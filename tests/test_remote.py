"""Verbs on stores elsewhere: prepared to an S3 server, and trained from there with faults on the way."""

from __future__ import annotations

import http.server
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import tymbal
from s3_server import S3, s3_server
from small_model import small_model
from tones import RATE, tone_folder, tone_store
from training_setup import TINY, make_store
from tymbal.errors import SettingsError, StoreError, TymbalError
from tymbal.store.packed.packed_store import open_store

PREPARE = {"sample_rate": RATE, "mel_bins": 16, "window": 0.3, "workers": 1}


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[S3]:
    with s3_server(monkeypatch, tmp_path / "cache") as server:
        yield server


def weights(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "model" / "model.safetensors")


def test_pretrain__ends_with_the_weights_of_a_local_store_whatever_fails_on_the_way(s3: S3, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    url = s3.upload(store.path, "ridges")
    tymbal.pretrain(store.path, tmp_path / "local", **TINY)
    faults = ("500", "reset", "altered", "slow", "etag")
    s3.fault = lambda number, method, path: faults[number // 2 % 5] if number % 2 else None
    tymbal.pretrain(url, tmp_path / "remote", **TINY)
    local, remote = weights(tmp_path / "local"), weights(tmp_path / "remote")
    assert local.keys() == remote.keys()
    for name, values in local.items():
        np.testing.assert_array_equal(remote[name], values, err_msg=name)
    assert len([number for number in range(len(s3.asked)) if number % 2]) >= 2
    assert f"store: {url}\n" in (tmp_path / "remote" / "run.yaml").read_text()
    with pytest.raises(SettingsError, match="workers cannot read a store elsewhere"):
        tymbal.pretrain(url, tmp_path / "workers", **TINY, workers=1)


def test_prepare__writes_a_store_elsewhere_as_it_would_here(s3: S3, tmp_path: Path, capsys: object) -> None:
    sounds = tone_folder(tmp_path / "sounds")
    local = tymbal.prepare(sounds, tmp_path / "store", **PREPARE)
    url = s3.url("birds")
    result = tymbal.prepare(sounds, url, **PREPARE)
    assert result.summary().startswith(f"{url}: {len(local.store)} spectrograms")
    assert sorted(s3.names()) == [
        "birds/failures.csv",
        "birds/index.parquet",
        "birds/shards/00000.npy",
        "birds/store.json",
    ]
    assert s3.get("birds/shards/00000.npy") == (tmp_path / "store/shards/00000.npy").read_bytes()
    np.testing.assert_array_equal(result.store.gather(range(6)), local.store.gather(range(6)))
    assert not list((tmp_path / "cache/outgoing").glob("**/*.npy"))
    before = len(s3.asked)
    again = tymbal.prepare(sounds, url, **PREPARE)  # is complete already: nothing is written
    assert len(again.store) == len(local.store)
    assert not [method for method, _, _ in s3.asked[before:] if method not in ("GET", "HEAD")]
    with pytest.raises(StoreError, match="made with other settings"):
        tymbal.prepare(sounds, url, **{**PREPARE, "mel_bins": 20})


def test_prepare__stopped_while_it_writes_goes_on(s3: S3, tmp_path: Path) -> None:
    sounds = tone_folder(tmp_path / "sounds")
    url = s3.url("birds")
    command = [sys.executable, "-m", "tymbal", "prepare", str(sounds), "-o", url, "--window", "0.3", "--workers", "1"]
    command += ["--sample-rate", str(RATE), "--mel-bins", "16"]
    reached, release = threading.Event(), threading.Event()

    def wait_at_the_index(number: int, method: str, path: str) -> None:
        if method == "PUT" and path.endswith("index.parquet"):
            reached.set()
            release.wait(60)

    s3.fault = wait_at_the_index
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert reached.wait(120)
        process.send_signal(signal.SIGKILL)
        process.wait()
    release.set()
    s3.fault = lambda number, method, path: "500" if number % 4 == 3 else None
    assert "birds/store.json" not in s3.names()
    with pytest.raises(StoreError, match="there is no store"):
        open_store(url)
    time.sleep(0.1)
    before = len(s3.asked)
    result = tymbal.prepare(sounds, url, **PREPARE)
    assert len(result.store) == 24
    assert not [path for method, path, _ in s3.asked[before:] if method == "PUT" and path.endswith(".npy")]
    assert "birds/work/claim" not in s3.names()


def test_prepare__of_somebody_else_or_into_something_else(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sounds = tone_folder(tmp_path / "sounds")
    s3.put("taken/work/claim", b"another")
    with pytest.raises(StoreError, match="somebody else prepares a store there"):
        tymbal.prepare(sounds, s3.url("taken"), **PREPARE)
    s3.put("letters/a.txt", b"hello")
    with pytest.raises(StoreError, match=r"s3://sounds/letters: is no store, and not empty: it holds a\.txt"):
        tymbal.prepare(sounds, s3.url("letters"), **PREPARE)
    with pytest.raises(SettingsError, match="preview writes to a folder of this machine"):
        tymbal.prepare(sounds, s3.url("new"), **PREPARE, views=1, preview=True)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://nowhere/birds", "s3://nowhere: there is no such bucket|there is no such bucket"),
        ("s3://sounds/birds", "s3://sounds/birds: there is no store"),
        ("s3a://sounds/birds", "s3a:// is no kind of address"),
        ("s3://", "is no address of a folder"),
        ("https://user:password@server/birds", "is no address of a folder"),
        ("s3://sounds/../birds", "is no address of a folder"),
        ("https://server/birds?signature=1", "is no address of a folder"),
        ("az://container/birds", "no credentials were found"),
    ],
)
def test_open_data__mistakes_in_addresses_are_told(s3: S3, tmp_path: Path, url: str, says: str) -> None:
    with pytest.raises(TymbalError, match=says) as caught:
        tymbal.pretrain(url, tmp_path / "run", **TINY)
    assert caught.value.advice


def test_open_data__without_credentials(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = s3.upload(make_store(tmp_path / "store").path, "ridges")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text("[me]\naws_access_key_id = someone\naws_secret_access_key = secret\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StoreError) as caught:
        open_store(url)
    assert "AWS_ACCESS_KEY_ID" in str(caught.value.advice)
    monkeypatch.setenv("AWS_PROFILE", "me")
    assert len(open_store(url)) == 45


def test_open_data__from_a_web_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("obstore", reason="stores elsewhere need the extra remote")
    store = make_store(tmp_path / "served" / "ridges")
    monkeypatch.setenv("TYMBAL_CACHE", str(tmp_path / "cache"))
    handler = partial(_Ranges, directory=str(tmp_path / "served"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        opened = open_store(f"http://127.0.0.1:{server.server_port}/ridges")
        np.testing.assert_array_equal(opened.gather([1, 40]), store.gather([1, 40]))
        with pytest.raises(SettingsError, match="web addresses are for reading"):
            tymbal.prepare(tone_folder(tmp_path / "sounds"), f"http://127.0.0.1:{server.server_port}/new", **PREPARE)
    finally:
        server.shutdown()
        server.server_close()


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves files, and parts of them."""

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        path = Path(self.translate_path(self.path))
        if asked is None or not path.is_file():
            super().do_GET()
            return
        start, stop = (int(each) for each in asked.removeprefix("bytes=").split("-"))
        content = path.read_bytes()
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{min(stop, len(content) - 1)}/{len(content)}")
        self.send_header("Content-Length", str(len(content[start : stop + 1])))
        self.end_headers()
        self.wfile.write(content[start : stop + 1])

    def log_message(self, *args: object) -> None:
        """Says nothing."""


def test_pretrain__run_elsewhere_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    with pytest.raises(SettingsError, match=r"s3://sounds/run: is no path of this machine"):
        tymbal.pretrain(store.path, "s3://sounds/run", **TINY)
    assert not (Path.cwd() / "s3:").exists()


def test_address() -> None:
    from tymbal.files import address

    assert address("s3://bucket/a/") == "s3://bucket/a"
    assert address(Path("s3://bucket/a")) == "s3://bucket/a"
    assert address("C:/sounds") is None
    assert address("sounds/a:b") is None


def test_embed__reads_a_store_elsewhere_and_refuses_sound_there(s3: S3, tmp_path: Path) -> None:
    url = s3.upload(tone_store(tmp_path / "store").path, "tones")
    model = small_model(tmp_path / "model")
    tymbal.embed(model, url, tmp_path / "remote.npy")
    tymbal.embed(model, tmp_path / "store", tmp_path / "local.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "remote.npy"), np.load(tmp_path / "local.npy"))
    with pytest.raises(TymbalError, match="there is no such folder") as caught:
        tymbal.prepare(url, tmp_path / "again", **PREPARE)
    assert "Sound is read on the machine where it is" in str(caught.value)
