from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tymbal.preparation.task_pool import TaskPool


def square(number: int) -> int:
    return number * number


def test_crew__runs_everything_somewhere() -> None:
    expected = [number * number for number in range(20)]
    with TaskPool(None, workers=1) as crew:
        assert list(crew.run(square, range(20), parallel=True)) == expected
    with ThreadPoolExecutor(3) as threads, TaskPool(threads, workers=None) as crew:
        assert sorted(crew.run(square, range(20), parallel=False)) == expected


def test_crew__processes_die_with_their_parent() -> None:
    script = """
import os, time
from tymbal.preparation.task_pool import TaskPool
if __name__ == "__main__":
    with TaskPool(None, workers=2) as crew:
        print(next(crew.run(os.path.abspath, ["."] * 2, parallel=True)), flush=True)
        print(*crew._pool._processes, flush=True)
        time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        parent.stdout.readline()
        children = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert len(children) == 2
    deadline = time.monotonic() + 20
    while any(_alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in children)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"
