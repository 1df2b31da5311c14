"""What each of two processes does: a whole run, one in which only the second process gets a signal, and its rest.

RANK=… WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=… python signalled_sessions.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from test_signals import Signalled, saved

from small_run import Copying, session
from tymbal.compute.processes import rank
from tymbal.stopping import Stopped
from tymbal.training import callbacks as signals


def main() -> None:
    folder = Path(sys.argv[1])
    session(folder / "whole", epochs=8)
    # They agree every few of these steps, which take milliseconds.
    signals._SECONDS = 0.05
    try:
        session(folder / "run", Signalled(5) if rank() == 1 else Copying(), epochs=8)
        status = 0
    except Stopped as stopped:
        status = stopped.code
    (folder / f"{rank()}.json").write_text(json.dumps({"status": status, "saved": saved(folder / "run")}))
    session(folder / "run", epochs=8)


if __name__ == "__main__":
    main()
