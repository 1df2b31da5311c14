"""The page to label on: what the server answers, and an hour's work by keyboard in a real browser."""

from __future__ import annotations

import contextlib
import csv
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile

from browser import needs_browser
from live_browser import LiveBrowser
from small_model import small_model
from tones import RATE, WINDOW, evening, heard_at, tone
from tymbal.errors import SettingsError
from tymbal.labelling.page import LabelPage
from tymbal.labelling.server import serving
from tymbal.labelling.session import Session
from tymbal.pages.serving import free_port
from tymbal.settings import LabelSettings


class Client:
    """What sends requests to a page in this process.

    Args:
        page: The page.
        port: Its port.
    """

    def __init__(self, page: LabelPage, port: int) -> None:
        self.page, self.port = page, port

    def send(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        """The status, content and headers of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        content = body if body is None or isinstance(body, bytes) else json.dumps(body)
        connection.request(method, path, body=content, headers=headers or {})
        answer = connection.getresponse()
        result = answer.status, answer.read(), dict(answer.getheaders())
        connection.close()
        return result

    def ask(self, path: str, body: Any = None) -> Any:
        """What an answer in JSON says."""
        status, content, _ = self.send("GET" if body is None else "POST", path, body)
        assert status == 200, content
        return json.loads(content)

    def steps(self, *steps: dict[str, Any]) -> Any:
        """Sends steps."""
        return self.ask("/steps", {"identity": self.ask("/state")["identity"], "steps": list(steps)})


@contextlib.contextmanager
def served(folder: Path, **settings: Any) -> Iterator[Client]:
    """A page on two recordings, in this process."""
    model = small_model(folder / "model", pooling="rows")
    recordings = evening(folder / "recordings", windows=12)
    chosen = LabelSettings(device="cpu", pooling="rows", who="ann", **settings)
    session = Session.open(model, recordings, folder / "labels", chosen)
    (folder / "dropped").mkdir()
    page = LabelPage(session, folder / "dropped", count=6, most=200_000, facts="24 windows")
    port = free_port("127.0.0.1", None)
    with serving(page, host="127.0.0.1", port=port):
        yield Client(page, port)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with served(tmp_path_factory.mktemp("page")) as found:
        yield found


def table(folder: Path) -> list[dict[str, str]]:
    """The rows of the table of labels."""
    with (folder / "labels" / "labels.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def said(start: float) -> dict[str, Any]:
    """The right answer to a window."""
    name = heard_at(start)
    return {"kind": "nothing"} if name is None else {"labels": [name]}


def test_server__answers_its_own_page_alone(tmp_path: Path) -> None:
    with served(tmp_path) as client:
        own, elsewhere = f"http://127.0.0.1:{client.port}", "https://elsewhere.example"
        status, content, headers = client.send("GET", "/")
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert not re.search(rb'(?:src|href)="(?:https?:)?//', content)
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        step = {"identity": client.ask("/state")["identity"], "steps": [{"row": 0, "kind": "nothing"}]}
        for foreign in (elsewhere, "null", own + "1", f"http://localhost:{client.port}"):
            assert client.send("POST", "/steps", step, {"Origin": foreign})[0] == 403
        assert client.send("POST", "/steps", step, {"Sec-Fetch-Site": "cross-site"})[0] == 403
        assert client.send("GET", "/sound?row=0", None, {"Sec-Fetch-Site": "cross-site"})[0] == 403
        assert client.send("GET", "/", None, {"Host": "elsewhere.example"})[0] == 400
        assert not (tmp_path / "labels" / "labels.csv").exists()
        assert client.send("POST", "/steps", step, {"Origin": own})[0] == 200
        assert len(table(tmp_path)) == 1


@pytest.mark.parametrize(
    ("method", "path", "body", "refused"),
    [
        ("GET", "/picture?row=24", None, (422, "there is no window 24")),
        ("GET", "/sound?row=-1", None, (400, "names no window")),
        ("GET", "/sound?row=../../secret", None, (400, "names no window")),
        ("GET", "/labels.csv", None, (404, "nothing here")),
        ("POST", "/clips", b"{", (400, "no JSON")),
        ("POST", "/clips", [1], (400, "no JSON object")),
        ("POST", "/clips", {"by": "magic"}, (422, "by is 'magic'")),
        ("POST", "/clips", {"count": 10_000}, (422, "count is 10000")),
        ("POST", "/clips", {"colour": "red"}, (422, "colour")),
        ("POST", "/clips", {"example": True}, (422, "no sound was dropped")),
        ("POST", "/clips", {"by": "review"}, (422, "nothing to review")),
        ("POST", "/steps", {"identity": "x", "steps": []}, (422, "another labelling")),
        ("POST", "/label", {"name": " "}, (422, "a label is")),
        ("POST", "/clips", b" " * 1_000_001, (413, "more than 1 MB")),
        ("POST", "/example?name=a.wav", b"x" * 200_001, (413, "more than 0.2 MB")),
        ("POST", "/example?name=a.wav", b"this is a letter", (422, "unreadable")),
    ],
)
def test_server__says_what_is_wrong(
    client: Client, method: str, path: str, body: Any, refused: tuple[int, str]
) -> None:
    status, content, _ = client.send(method, path, body)
    assert (status, refused[1] in content.decode()) == (refused[0], True), content
    assert list(client.page.folder.iterdir()) == []
    assert client.send("GET", "/state")[0] == 200


def test_server__gives_pictures_sounds_and_clips(tmp_path: Path) -> None:
    with served(tmp_path, labels=("low", "high")) as client:
        clips = client.ask("/clips", {"count": 6, "by": "random"})["clips"]
        assert len({clip["row"] for clip in clips}) == 6
        assert {clip["name"] for clip in clips} <= {"evening-0.wav", "evening-1.wav"}
        assert all(clip["when"] == f"at 0:{int(clip['start']):02d}" for clip in clips)
        status, picture, headers = client.send("GET", f"/picture?row={clips[0]['row']}")
        assert (status, headers["Content-Type"], picture[:4]) == (200, "image/png", b"\x89PNG")
        status, sound, headers = client.send("GET", f"/sound?row={clips[0]['row']}")
        assert (status, headers["Content-Type"], sound[:4]) == (200, "audio/flac", b"fLaC")
        status, large, _ = client.send("GET", f"/large?row={clips[0]['row']}")
        assert status == 200
        assert b"kHz" in large
        again = client.ask("/clips", {"count": 20, "skip": [clip["row"] for clip in clips]})["clips"]
        assert not {clip["row"] for clip in clips} & {clip["row"] for clip in again}
        assert client.ask("/state")["labels"] == ["low", "high"]
        hertz = client.ask("/state")["hertz"]
        assert (len(hertz), hertz == sorted(hertz)) == (17, True)


def test_server__a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    with served(tmp_path) as client:
        (clip,) = client.ask("/clips", {"count": 1})["clips"]
        for file in (tmp_path / "recordings").iterdir():
            file.unlink()
        for kind in ("picture", "sound"):
            status, content, _ = client.send("GET", f"/{kind}?row={clip['row']}")
            assert (status, b"there is no such file" in content) == (422, True), content


def test_steps__twice_is_as_once(tmp_path: Path) -> None:
    first = {"row": 3, "labels": ["low", "high"], "start": 1.1, "end": 1.3, "low": 200.0, "high": 3500.0}
    second = {"row": 5, "kind": "nothing", "check": True}
    with served(tmp_path) as client:
        assert client.steps(first, second)["done"] == 2
        before = table(tmp_path)
        assert client.steps(first, second)["answered"] == 2  # their reply was lost
        assert table(tmp_path) == before
        assert [row["label"] for row in before] == ["low", "high", ""]
        assert [before[0][name] for name in ("start", "end", "low", "high")] == ["1.100", "1.300", "200.0", "3500.0"]
        assert before[2]["round"] == "check"
        back = {**second, "undo": True}
        assert client.steps(back, back)["answered"] == 1  # the second one takes nothing more back
        assert client.steps({**first, "undo": True})["answered"] == 0


def test_steps__one_that_cannot_be_taken_stops_those_behind_it(tmp_path: Path) -> None:
    good, bad = {"row": 1, "kind": "unsure"}, {"row": 2, "kind": "perhaps"}
    with served(tmp_path) as client:
        told = client.steps(good, bad, {"row": 4, "kind": "unsure"})
        assert told["done"] == 1
        assert "perhaps" in told["refused"]
        assert client.steps({"row": 99, "kind": "unsure"})["refused"].startswith("there is no window 99")
        assert client.steps({"row": 4, "labels": []})["refused"].startswith("the answer names no label")
        assert len(table(tmp_path)) == 1


def test_clips__of_the_blind_sample_come_without_an_opinion(tmp_path: Path) -> None:
    with served(tmp_path) as client:
        client.steps(*({"row": row, "labels": ["low"] if row % 4 == 0 else ["high"]} for row in range(8)))
        assert all(clip["scores"] for clip in client.ask("/clips", {"count": 4})["clips"])
        blind = client.ask("/clips", {"count": 4, "check": True})["clips"]
        assert [(clip["scores"], clip["reason"]) for clip in blind] == [([], "")] * 4


def test_box__is_where_the_label_is_heard(tmp_path: Path) -> None:
    with served(tmp_path) as client:
        assert client.ask("/box?row=9&label=high") == {"box": None}  # there is no head yet
        client.steps(*({"row": row, **said(row * WINDOW)} for row in range(12)))
        box = client.ask("/box?row=19&label=high")["box"]
        assert box is None or 7 * WINDOW - 1e-3 <= box["start"] < box["end"] <= 8 * WINDOW + 1e-3
        assert client.ask("/box?row=19&label=nobody") == {"box": None}


def test_example__a_dropped_sound_finds_what_is_like_it(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "high.flac", tone("high", seconds=WINDOW, seed=400), RATE)
    with served(tmp_path) as client:
        sent = (tmp_path / "high.flac").read_bytes()
        assert client.ask("/example?name=high.flac", sent) == {"name": "high.flac"}
        assert list((tmp_path / "dropped").iterdir()) == []
        found = client.ask("/clips", {"count": 1, "example": True})["clips"]
        assert [heard_at(clip["start"]) for clip in found] == ["high"]


def test_knowledge__counts_and_asks_for_a_check(tmp_path: Path) -> None:
    with served(tmp_path, labels=("<low>",)) as client:
        client.steps({"row": 0, "labels": ["<low>"]}, {"row": 1, "kind": "nothing"})
        html = client.ask("/knowledge")["html"]
        assert "&lt;low&gt;" in html
        assert "A blind check tells" in html
        assert "<low>" not in html


def test_review__detections_come_first_and_precision_stands_beside(tmp_path: Path) -> None:
    table = tmp_path / "night.review.csv"
    lines = [f"{tmp_path}/recordings/evening-0.wav,{row * WINDOW},{(row + 1) * WINDOW},low,{score},40"
             for row, score in ((3, 0.95), (5, 0.92), (7, 0.15))]  # fmt: skip
    table.write_text("\n".join(["file,start,end,label,score,of", *lines]))
    with served(tmp_path, review=str(table)) as client:
        assert next(iter(client.ask("/state")["ways"].items())) == ("review", "To review")
        clips = client.ask("/clips", {"by": "review", "count": 2})["clips"]
        assert [(clip["row"], clip["scores"], clip["reason"]) for clip in clips] == [
            (3, [["low", 0.95]], "band 0.9-1.0"),
            (5, [["low", 0.92]], "band 0.9-1.0"),
        ]
        client.steps({"row": 3, "labels": ["low"]}, {"row": 5, "kind": "nothing"})
        assert [clip["row"] for clip in client.ask("/clips", {"by": "review"})["clips"]] == [7]
        assert client.ask("/clips", {"by": "review", "skip": [7]})["clips"] == []
        html = client.ask("/knowledge")["html"]
        assert html.startswith("<h2>What was reviewed</h2><h3>low</h3>")
        assert "2 of 40" in html
        assert ">50%<" in html


def test_serving__an_address_that_is_taken_is_told(tmp_path: Path) -> None:
    with served(tmp_path) as client:
        taken = serving(client.page, host="127.0.0.1", port=client.port)
        with pytest.raises(SettingsError, match="the port was taken meanwhile"), taken:
            pass


# In a browser, with a server that is killed.


@contextlib.contextmanager
def process(folder: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """`tymbal label` as a person starts it."""
    words = ["label", str(folder / "model"), str(folder / "recordings"), "-o", str(folder / "labels"), "--no-browser"]
    words += ["--port", str(port), "--device", "cpu", "--pooling", "rows", "--clips", "16"]
    run = subprocess.Popen(
        [sys.executable, "-m", "tymbal", *words, "--labels", "low", "high"],
        env={**os.environ, "TMPDIR": str(folder / "tmp")},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert run.stderr is not None
        told = []
        for line in run.stderr:
            told.append(line)
            if "The page is at" in line:
                break
        assert told[0].strip() == f"Starting: the page will be at http://127.0.0.1:{port}", told
        assert "The page is at" in told[-1], told
        yield run
    finally:
        run.kill()
        run.communicate()


READY = "typeof clip === 'function' && !!clip() && !clip().answer && !document.body.classList.contains('busy')"


def answer(browser: LiveBrowser, count: int) -> None:
    """Answers clips by keyboard, as the truth is."""
    for _ in range(count):
        name = heard_at(browser.wait(f"{READY} && [clip().start]")[0])
        browser.press({"low": "1", "high": "2", None: "n"}[name])


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_page__labels_boxes_and_the_blind_check(tmp_path: Path, width: int, dark: bool) -> None:
    with served(tmp_path) as client, LiveBrowser(tmp_path) as browser:
        browser.open(f"http://127.0.0.1:{client.port}/", width=width, height=800, dark=dark)
        browser.wait(READY)
        assert browser.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        for name in ("low", "frog; toad"):  # by name, as there is none yet
            browser.wait(READY)
            browser.press("+")
            browser.wait("document.querySelector('#naming').open")
            browser.evaluate(f"document.querySelector('#name').value = {name!r}")
            browser.evaluate("document.querySelector('#naming button').click()")
            browser.wait("!document.querySelector('#naming').open")
        browser.wait("state.labels.length === 2 && state.answered === 2 && !queue.length")
        first = browser.evaluate("clips().map((one) => one.row)")
        browser.press("ArrowLeft")
        browser.press("ArrowLeft")
        browser.evaluate("give('frog; toad', true)")  # as shift and 2 do
        browser.wait("!queue.length")
        assert [row["label"] for row in table(tmp_path)] == ["frog; toad", "low", "frog; toad"]
        _drag(browser, "#grid [aria-current] .area", (0.25, 0.02), (0.75, 0.5))
        browser.wait("!queue.length && !!clip().box")
        start = first[0] % 12 * WINDOW
        drawn = table(tmp_path)[1:]
        for row in drawn:
            assert float(row["start"]) == pytest.approx(start + WINDOW / 4, abs=0.02)
            assert float(row["end"]) == pytest.approx(start + 3 * WINDOW / 4, abs=0.02)
            assert float(row["high"]) == pytest.approx(1100, rel=0.15)  # the middle of the mel scale up to 4 kHz
        browser.press("Delete")
        browser.wait("!queue.length && !clip().box")
        assert table(tmp_path)[1]["high"] == ""
        browser.press("c")
        browser.wait(f"{READY} && wish.check")
        assert browser.evaluate("document.querySelector('#yes').hidden && !document.querySelector('.score, .reason')")
        browser.press("n")
        browser.wait("state.answered === 3 && !queue.length")
        assert table(tmp_path)[-1]["round"] == "check"
        browser.press("Enter")
        browser.wait("document.querySelector('#large').open && !!document.querySelector('#large .area img')")
        browser.press("u")
        browser.wait("state.answered === 4 && !queue.length")
        browser.press("Escape")
        assert not browser.evaluate("document.querySelector('#large').open")
        browser.press("Backspace")
        browser.wait("state.answered === 3 && !queue.length")
        browser.picture(tmp_path / "page.png")
        assert browser.troubles == []


def _drag(browser: LiveBrowser, selector: str, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drags the mouse over an element, from and to shares of its width and of its height from below."""
    frame = browser.evaluate(f"document.querySelector({selector!r}).getBoundingClientRect().toJSON()")
    for kind, (across, up) in (("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)):
        at = {"x": frame["left"] + across * frame["width"], "y": frame["bottom"] - up * frame["height"]}
        browser.call("Input.dispatchMouseEvent", type=kind, button="left", buttons=1, clickCount=1, **at)


@needs_browser
def test_page__sixty_answers_by_keyboard_outlive_the_server(tmp_path: Path) -> None:
    small_model(tmp_path / "model", pooling="rows")
    evening(tmp_path / "recordings")
    (tmp_path / "tmp").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    saved = "document.querySelector('#saved').innerText"
    with LiveBrowser(tmp_path) as browser:
        with process(tmp_path, port) as server:
            browser.open(f"http://127.0.0.1:{port}/", width=1280, height=800)
            answer(browser, 60)
            browser.wait(f"{saved} === 'All answers are on the disk'")
            server.send_signal(signal.SIGKILL)
            server.wait()
        rows = table(tmp_path)
        assert len(rows) == 60
        assert all((row["label"] or None) == heard_at(float(row["start"])) for row in rows)
        assert len({row["round"] for row in rows}) >= 4  # the head was fitted anew, for each page at least
        assert browser.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        assert browser.evaluate("clips().every((one) => one.scores.length === 2)")
        answer(browser, 2)  # to nobody
        assert browser.wait(f"{saved}.includes('2 answers wait') && {saved}")
        browser.picture(tmp_path / "lost.png")
        assert len(table(tmp_path)) == 60
        with process(tmp_path, port) as server:
            browser.wait(f"{saved} === 'All answers are on the disk'")
            assert len(table(tmp_path)) == 62
            browser.press("Backspace")
            browser.wait(f"{saved} === 'All answers are on the disk' && state.answered === 61")
            assert len(table(tmp_path)) == 61
            server.send_signal(signal.SIGINT)
            assert server.wait(timeout=30) == 0
        here = (f"http://127.0.0.1:{port}/", "data:", "blob:", "about:")
        assert [address for address in browser.asked if not address.startswith(here)] == []
    assert list((tmp_path / "tmp").glob("tymbal-label-*")) == []
