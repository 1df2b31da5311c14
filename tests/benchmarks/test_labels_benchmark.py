"""The trial of labels runs to its end, and continues without computing again; what it measures is not looked at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "labels.py"


def test_labels__runs_and_continues(shared: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(shared / "data"), "--only", "digits", "--short", "--output", str(tmp_path / "out")]
    tables = []
    for _ in range(2):
        done = subprocess.run([sys.executable, str(BENCHMARK), *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        tables.append(done.stdout.partition("\n\n")[0])
    assert tables[0] == tables[1]
    for start in ("scratch", "reconstruction", "joint", "scratch, longer"):
        assert f"| {start} |" in tables[0]
    # Three starts with one clip a class and with all, and the longer one.
    assert (tmp_path / "out" / "figures.jsonl").read_text().count("\n") == 7
