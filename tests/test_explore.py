"""The page to explore sounds: served as the command line does it, looked at in a real browser."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import tymbal
from browser import needs_browser
from live_browser import LiveBrowser
from small_model import small_model
from tones import PITCHES, RATE, tone
from tymbal.cli import main
from tymbal.errors import ModelError, SettingsError
from tymbal.explore import _open
from tymbal.settings import ExploreSettings

SECONDS = 4.0


@dataclass(frozen=True)
class Server:
    """A page that is served by another process.

    Attributes:
        url: Where.
        folder: What was made for it: sounds, recording.wav, junk.wav, and the process's own files for the moment.
        process: The process.
    """

    url: str
    folder: Path
    process: subprocess.Popen[str]

    def asked(self) -> set[str]:
        """Hosts that the process asked for or connected to."""
        return set((self.folder / "asked").read_text().split())

    def kept(self) -> list[Path]:
        """Uploads that are on the disk."""
        return [path for path in self.uploads().rglob("*") if path.is_file() and path.stat().st_size]

    def uploads(self) -> Path:
        """The folder of uploads."""
        (found,) = (self.folder / "tmp").glob("tymbal-explore-*")
        return found


def material(folder: Path) -> None:
    """A classifier, a folder of tones, a recording of them, and a file that is none."""
    small_model(folder / "model", labels=tuple(PITCHES), pooling="mean")
    (folder / "sounds").mkdir()
    for label in PITCHES:
        for number in range(4):
            soundfile.write(folder / "sounds" / f"{label}-{number}.flac", tone(label, seed=number), RATE)
    parts = [tone(label, seconds=SECONDS / 4, seed=9) for label in ("low", "high", "middle", "high")]
    soundfile.write(folder / "recording.wav", np.concatenate(parts), RATE)
    (folder / "junk.wav").write_text("this is a letter")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("needs pip install 'tymbal[explore]'")
    folder = tmp_path_factory.mktemp("explore")
    material(folder)
    (folder / "tmp").mkdir()
    guard = Path(__file__).with_name("guarded_explore.py")
    words = ["explore", str(folder / "model"), str(folder / "sounds"), "--no-browser", "--device", "cpu"]
    words += ["--top", "5", "--hop", "0.1"]
    process = subprocess.Popen(
        [sys.executable, str(guard), str(folder / "asked"), *words],
        env={**os.environ, "TMPDIR": str(folder / "tmp")},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Server(_address(process), folder, process)
    finally:
        process.kill()
        process.wait()


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    told = ""
    for line in process.stderr:
        told += line
        if told == line:
            assert re.match(r"Starting: the page will be at http://127\.0\.0\.1:\d+$", line.strip())
        found = re.search(r"The page is at (\S+)", line)
        if found:
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return found[1]
    raise AssertionError(told)


@contextlib.contextmanager
def _dropped(server: Server, folder: Path, **how: Any) -> Iterator[LiveBrowser]:
    """A browser in which the recording was dropped, and all of it is drawn."""
    with LiveBrowser(folder) as browser:
        browser.open(server.url, **how)
        browser.drop("#sound input[type=file]", server.folder / "recording.wav")
        browser.wait("document.querySelectorAll('#recording img').length && document.querySelectorAll('.card').length")
        yield browser


_SEEN = """(async () => {
  const sounds = [...document.querySelectorAll("#neighbours audio")];
  await Promise.all(sounds.map((each) => each.readyState ? 0 : new Promise((done) => each.onloadedmetadata = done)));
  const all = [...document.querySelectorAll(".tymbal img")];
  const text = (place) => document.querySelector(place).innerText;
  return {
    seconds: sounds.map((each) => each.duration),
    sizes: all.map((each) => [each.complete, each.naturalWidth, each.naturalHeight]),
    lines: [...document.querySelectorAll("#recording polyline")].map((each) => each.points.length),
    bars: [...document.querySelectorAll("#scores b")].map((each) => parseInt(each.innerText)),
    wide: document.documentElement.scrollWidth - innerWidth,
    files: [...document.querySelectorAll(".card .path")].map((each) => each.innerText),
    alike: [...document.querySelectorAll(".card .head b")].map((each) => Number(each.innerText)),
    notice: text("#notice"), window: text("#window h3"), map: text("#map h3"),
  };
})()"""


@needs_browser
def test_page__shows_what_the_model_sees(server: Server, tmp_path: Path) -> None:
    with _dropped(server, tmp_path) as browser:
        seen = browser.evaluate(_SEEN)
        assert seen["sizes"][0] == [True, 398, 16]  # the recording, a frame a pixel
        assert seen["sizes"][1] == [True, 32, 16]  # the window
        assert seen["sizes"][2:4] == [[True, 32, 16], [True, 4, 2]]  # its map: what lies below, and the patches over it
        assert all(complete and wide and high for complete, wide, high in seen["sizes"])
        assert len(seen["sizes"]) == 4 + 5
        assert seen["lines"] == [38, 38, 38]
        assert len(seen["bars"]) == 3
        assert sum(seen["bars"]) == pytest.approx(100, abs=1)
        assert seen["seconds"] == pytest.approx([0.335] * 5, abs=0.01)
        assert all("low-" in file for file in seen["files"][:3])
        assert seen["alike"] == sorted(seen["alike"], reverse=True)
        assert (seen["notice"], seen["window"]) == ("", "Spectrogram 0.00 to 0.34 s")
        browser.picture(tmp_path / "explore.png")
        _check(browser, server)
    assert (tmp_path / "explore.png").stat().st_size > 50_000


@needs_browser
def test_page__patches_maps_and_windows_are_chosen(server: Server, tmp_path: Path) -> None:
    chosen = "[...document.querySelectorAll('[data-name=window], [data-name=map]')].map((each) => "
    chosen += "[each.dataset.row, each.dataset.column].join())"
    with _dropped(server, tmp_path) as browser:
        browser.click("[data-name=window]", across=0.9, up=0.9)
        browser.wait(f"{chosen}.join(' ') === '1,3 1,3'")
        browser.press("ArrowLeft")  # the focus is there still, though all was drawn anew
        browser.wait(f"{chosen}.join(' ') === '1,2 1,2'")
        before = browser.evaluate("document.querySelector('#map .over').src")
        browser.click("#kind label:nth-of-type(2)")
        browser.wait("document.querySelector('#map h3').innerText === 'Attention, last block'")
        assert browser.evaluate("document.querySelector('#map .over').src") != before
        browser.click("[data-name=scores]", across=0.4)  # into the high tone
        browser.wait("document.querySelector('#window h3').innerText === 'Spectrogram 1.50 to 1.83 s'")
        browser.wait("document.querySelector('.card .path').innerText.includes('high-')")
        assert browser.evaluate("document.querySelector('#at input').value") == "16"
        assert browser.evaluate("document.querySelector('[data-name=recording]').dataset.column") == "15"
        assert browser.evaluate("document.querySelector('#map h3').innerText") == "Attention, last block"
        _check(browser, server)


@needs_browser
@pytest.mark.parametrize(("name", "dark", "width"), [("dark", True, 1280), ("phone", False, 412)])
def test_page__suits_the_dark_and_a_phone(server: Server, tmp_path: Path, name: str, dark: bool, width: int) -> None:
    with _dropped(server, tmp_path, dark=dark, width=width) as browser:
        assert browser.evaluate(_SEEN)["wide"] <= 0
        colour = browser.evaluate("getComputedStyle(document.querySelector('.tymbal h1')).color")
        assert (min(map(int, re.findall(r"\d+", colour))) > 200) == dark
        browser.picture(tmp_path / f"{name}.png")
        _check(browser, server)


@needs_browser
def test_page__what_is_no_sound_is_told_and_uploads_go(server: Server, tmp_path: Path) -> None:
    with _dropped(server, tmp_path) as browser:
        assert [path.name for path in server.kept()] == ["recording.wav"]
        browser.click("#sound button[aria-label=Clear]")
        browser.wait("document.querySelector('#notice').innerText.startsWith('Drop a sound above')")
        assert browser.evaluate("document.querySelectorAll('.tymbal img').length") == 0
        browser.drop("#sound input[type=file]", server.folder / "junk.wav")
        told = browser.wait("document.querySelector('#notice .warn')?.innerText")
        assert told.splitlines() == ["junk.wav: unreadable: it is text, not sound", _ADVICE]
        assert "Error" not in browser.evaluate("document.body.innerText")
        assert [path.name for path in server.kept()] == ["junk.wav"]
    end = time.monotonic() + 20
    while server.kept() and time.monotonic() < end:
        time.sleep(0.2)
    assert server.kept() == []


_ADVICE = "Leave it out, or put the sound in its place."


@needs_browser
def test_page__takes_a_recording_and_formats_that_browsers_do_not_know(server: Server, tmp_path: Path) -> None:
    sound, rate = soundfile.read(server.folder / "recording.wav")
    soundfile.write(tmp_path / "a.caf", sound, rate)
    with LiveBrowser(tmp_path) as browser:
        browser.open(server.url)
        browser.drop("input[data-testid$=upload-button]", tmp_path / "a.caf")
        browser.wait("document.querySelectorAll('#recording img').length === 1")
        browser.click("#sound button[aria-label=Clear]")
        browser.wait("document.querySelectorAll('#recording img').length === 0")
        browser.click("#sound button[aria-label='Record audio']")
        browser.wait("!!document.querySelector('#sound .record-button')")
        browser.click("#sound .record-button")
        browser.wait("document.querySelector('#sound .stop-button').checkVisibility()")
        time.sleep(1.5)  # of a beep that Chromium makes for tests
        browser.click("#sound .stop-button")
        browser.wait("document.querySelectorAll('#window img, #notice .warn').length")
        assert browser.evaluate("document.querySelectorAll('#window img').length") == 1


def _check(browser: LiveBrowser, server: Server) -> None:
    assert browser.troubles == []
    here = (server.url, "data:", "blob:", "about:")
    assert [address for address in browser.asked if not address.startswith(here)] == []


def test_server__answers_this_machine_alone(server: Server) -> None:
    assert server.url.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(server.url) as page:
        assert page.status == 200
        text = page.read().decode()
    assert not re.search(r'(?:src|href)="(?:https?:)?//', text)
    strange = urllib.request.Request(server.url, headers={"Host": "elsewhere.example"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(strange)


def _sent(server: Server, headers: dict[str, str], *, body: bytes = b"{}", to: str = "gradio_api/upload") -> int:
    """The status of a request to the server, by default an upload."""
    request = urllib.request.Request(f"{server.url}{to}", data=body, headers=headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


_FORM = {"Content-Type": "multipart/form-data; boundary=x"}
_UPLOAD = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.wav"\r\n\r\nRIFF\r\n--x--\r\n'


def test_server__takes_nothing_from_other_sites(server: Server) -> None:
    own = server.url.rstrip("/")
    before = len(list(server.uploads().rglob("*")))
    for foreign in ("https://elsewhere.example", "null", own.replace("127.0.0.1", "localhost"), own + "1"):
        assert _sent(server, {**_FORM, "Origin": foreign}, body=_UPLOAD) == 403
        assert _sent(server, {"Origin": foreign}, to="gradio_api/queue/join") == 403
    assert _sent(server, {**_FORM, "Sec-Fetch-Site": "cross-site"}, body=_UPLOAD) == 403
    assert len(list(server.uploads().rglob("*"))) == before
    assert _sent(server, {**_FORM, "Origin": own, "Sec-Fetch-Site": "same-origin"}, body=_UPLOAD) == 200
    assert _sent(server, _FORM, body=_UPLOAD) == 200  # a program of this machine's own
    linked = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    with urllib.request.urlopen(urllib.request.Request(server.url, headers=linked)) as page:
        assert page.status == 200
    for each in server.uploads().rglob("a.wav"):
        each.unlink()


def test_server__gives_no_file_but_uploads(server: Server) -> None:
    for path in (server.folder / "recording.wav", Path(__file__), server.folder / "sounds" / "low-0.flac"):
        with pytest.raises(urllib.error.HTTPError, match=r"40[34]"):
            urllib.request.urlopen(f"{server.url}gradio_api/file={path}")


def test_server__asks_nobody_and_leaves_nothing(server: Server) -> None:  # the last test: it ends the server
    assert server.asked() <= {"127.0.0.1", "localhost", "None", "::1"}
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=30) == 75
    assert list((server.folder / "tmp").glob("tymbal-explore-*")) == []
    assert server.asked() <= {"127.0.0.1", "localhost", "None", "::1"}


def test_explore__without_gradio_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["explore", str(tmp_path / "model")]) == 2
    told = capsys.readouterr().err
    assert "Error: the page needs Gradio, which is not installed" in told
    assert "pip install 'tymbal[explore]'" in told


def test_explore__embeddings_of_another_model_are_refused(tmp_path: Path) -> None:
    model, other = small_model(tmp_path / "model"), small_model(tmp_path / "other", seed=1)
    soundfile.write(tmp_path / "a.wav", tone("low"), RATE)
    tymbal.embed(model, tmp_path / "a.wav", tmp_path / "a.parquet", window=0.2, pooling="rows", device="cpu")
    settings = ExploreSettings(device="cpu")
    view, library, facts = _open(str(model), tmp_path / "a.parquet", settings)
    assert (view.window, view.hop, view.pooling) == (0.2, 0.1, "rows")
    assert library is not None
    assert "no classifier" in facts
    with pytest.raises(ModelError, match="are another model's"):
        _open(str(other), tmp_path / "a.parquet", settings)


# In a process of its own: Gradio brings pydantic, and with it the command line converts values differently.
def test_explore__an_address_that_is_taken_is_told(tmp_path: Path) -> None:
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("needs pip install 'tymbal[explore]'")
    model = small_model(tmp_path / "model")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = ["explore", str(model), "--port", str(port), "--no-browser", "--device", "cpu"]
        run = subprocess.run([sys.executable, "-m", "tymbal", *words], check=False, capture_output=True, text=True)
    assert run.returncode == 2
    assert f"Error: the page cannot be served at http://127.0.0.1:{port}" in run.stderr
    assert "Traceback" not in run.stderr


def test_settings__the_page_is_for_this_machine() -> None:
    assert ExploreSettings().host == "127.0.0.1"
    for wrong in ({"port": 0}, {"port": 70_000}, {"minutes": 0.0}, {"top": 0}, {"host": ""}):
        with pytest.raises(SettingsError):
            ExploreSettings(**wrong)
