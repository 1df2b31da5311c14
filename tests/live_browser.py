"""A browser without a window that is steered while a page runs: files are dropped, places are clicked, pictures taken.

Chromium takes commands of its DevTools protocol through a pair of pipes, so that no port and no library is needed. It
resolves no name and reaches nothing but this machine: a page that needs the network fails.
"""

from __future__ import annotations

import base64
import json
import os
import select
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from browser import CHROMIUM


class LiveBrowser:
    """A tab of Chromium.

    Args:
        folder: Where it keeps its files.
        width: Of the window.

    Attributes:
        asked: Addresses that the page asked for.
        troubles: Errors of scripts and of the console.
    """

    def __init__(self, folder: Path, *, width: int = 1280) -> None:
        assert CHROMIUM is not None
        self.asked: list[str] = []
        self.troubles: list[str] = []
        self._number = 0
        self._buffer = b""
        read_here, write_there = os.pipe()
        read_there, write_here = os.pipe()
        # Chromium reads from 3 and writes to 4.
        steer = f'exec "$@" 3<&{read_there} 4>&{write_there}'
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
        flags += ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", f"--window-size={width},1000"]
        flags += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--no-first-run"]
        flags += ["--autoplay-policy=no-user-gesture-required", f"--user-data-dir={folder / 'profile'}"]
        self._process = subprocess.Popen(
            ["bash", "-c", steer, "bash", CHROMIUM, *flags],
            pass_fds=(read_there, write_there),
            stderr=subprocess.DEVNULL,
        )
        os.close(read_there)
        os.close(write_there)
        self._out, self._in = write_here, read_here
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out)
        os.close(self._in)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and waits for its answer."""
        self._number += 1
        number = self._number
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + 60
        while time.monotonic() < end:
            found = self._next(end)
            if found.get("id") == number:
                assert "error" not in found, f"{method}: {found['error']}"
                result: dict[str, Any] = found["result"]
                return result
        raise TimeoutError(method)

    def evaluate(self, script: str) -> Any:
        """What an expression, which may be a promise, comes to."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str, *, seconds: float = 90) -> Any:
        """Waits until an expression is true, and gives it."""
        end = time.monotonic() + seconds
        while True:
            found = self.evaluate(script)
            if found:
                return found
            if time.monotonic() > end:
                text = self.evaluate("document.body.innerText")
                raise TimeoutError(f"{script}\n{text}\n{self.troubles}")
            time.sleep(0.1)

    def open(self, url: str, *, dark: bool = False, width: int = 1280, height: int = 1000) -> None:
        """Opens an address in a window of some size."""
        phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)

    def drop(self, selector: str, file: Path) -> None:
        """Gives a file to an input, once that is there."""
        self.wait(f"!!document.querySelector({selector!r})")
        found = self.call("Runtime.evaluate", expression=f"document.querySelector({selector!r})")["result"]
        self.call("DOM.setFileInputFiles", files=[str(file)], objectId=found["objectId"])

    def click(self, selector: str, *, across: float = 0.5, up: float = 0.5) -> None:
        """Clicks into an element with the mouse, at a share of its width and height."""
        self.evaluate(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        box = self.evaluate(f"document.querySelector({selector!r}).getBoundingClientRect().toJSON()")
        at = {"x": box["left"] + across * box["width"], "y": box["bottom"] - up * box["height"]}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **at)

    def press(self, key: str) -> None:
        """Presses a key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def picture(self, path: Path) -> None:
        """Takes a picture of the whole page."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        path.write_bytes(base64.b64decode(data))

    def _next(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                raise TimeoutError("Chromium does not answer")
            data = os.read(self._in, 1 << 20)
            if not data:
                raise EOFError("Chromium has ended")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        self._heard(found.get("method", ""), found.get("params", {}))
        return found

    def _heard(self, method: str, told: dict[str, Any]) -> None:
        listeners: dict[str, Callable[[], None]] = {
            "Network.requestWillBeSent": lambda: self.asked.append(told["request"]["url"]),
            "Network.webSocketCreated": lambda: self.asked.append(told["url"]),
            "Runtime.exceptionThrown": lambda: self.troubles.append(json.dumps(told["exceptionDetails"])[:500]),
        }
        if method == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
            self.troubles.append(json.dumps(told["args"])[:500])
        elif method == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.troubles.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        elif method in listeners:
            listeners[method]()
