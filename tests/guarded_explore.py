"""Runs the command line and writes down every address that the process asks for or connects to."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

log = Path(sys.argv[1])


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        place = arguments[1][0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        place = arguments[0]
    else:
        return
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{place}\n")


sys.addaudithook(watch)

if __name__ == "__main__":
    from tymbal.cli import main

    sys.exit(main(sys.argv[2:]))
