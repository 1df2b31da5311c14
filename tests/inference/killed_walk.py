"""A walk over recordings that is killed before the nth of them is noted.

python killed_walk.py VERB MODEL FOLDER OUTPUT CALL
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import tymbal
from tymbal.inference import spool


def main() -> None:
    verb, model, folder, output, call = sys.argv[1:]
    spool._SECONDS = 0.0  # each recording is a part
    original, calls = spool.Spool.end, 0

    def counted(self: Any, outcome: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == int(call):
            os.kill(os.getpid(), signal.SIGKILL)
        original(self, outcome)

    spool.Spool.end = counted
    getattr(tymbal, verb)(model, folder, output, device="cpu", precision="float32")


if __name__ == "__main__":
    main()
