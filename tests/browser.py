"""A page in a real browser without a window: what its scripts and pictures come to, and what it looks like."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here to look at pages with")

_LISTEN = """<script>
window.troubles = [];
addEventListener("error", (event) => window.troubles.push(String(event.message || event.target.outerHTML)), true);
</script>"""
_LOOK = """<script>
addEventListener("load", async () => {
  const found = await (async () => { %s })();
  const wide = [...document.querySelectorAll("body *")].filter((each) => !each.closest(".scroll, svg")
    && each.getBoundingClientRect().right > innerWidth + 1).map((each) => each.outerHTML.slice(0, 80));
  document.documentElement.dataset.seen = JSON.stringify({
    troubles: window.troubles, wide, found,
    pictures: document.images.length,
    broken: [...document.images].filter((each) => !each.complete || !each.naturalWidth).length,
    asked: performance.getEntriesByType("resource").map((each) => each.name)
      .filter((name) => !name.startsWith("data:")),
  });
});
</script>"""


def look(page: Path, *, script: str = "", width: int = 1200, picture: Path | None = None) -> dict[str, Any]:
    """Opens a page; gives errors of scripts, pictures, what sticks out to the right, and what `script` returns."""
    text = page.read_text(encoding="utf-8")
    watched = page.with_name(f"watched-{page.name}")
    watched.write_text(
        text.replace("<head>", "<head>" + _LISTEN, 1).replace("</body>", _LOOK % script + "</body>", 1),
        encoding="utf-8",
    )
    dumped = _run(watched, "--dump-dom", f"--window-size={width},900")
    if picture is not None:
        _run(page, f"--screenshot={picture}", f"--window-size={width},2400")
    seen = re.search(r'data-seen="([^"]*)"', dumped)
    assert seen, "the page's scripts did not come to their end"
    result: dict[str, Any] = json.loads(unescape(seen[1]))
    return result


def _run(page: Path, *flags: str) -> str:
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--virtual-time-budget=5000",
    ]
    data = f"--user-data-dir={page.parent / 'browser'}"
    run = subprocess.run([*command, data, *flags, page.as_uri()], capture_output=True, text=True, check=True)
    return run.stdout
