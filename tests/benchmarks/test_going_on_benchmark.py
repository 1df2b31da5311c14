"""The trial of going on from a checkpoint runs to its end, and continues without computing again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "going_on.py"


def test_going_on__runs_and_continues(shared: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(shared / "data"), "--short", "--output", str(tmp_path / "out")]
    arguments += ["--arms", "continue", "none"]
    tables = []
    for _ in range(2):
        done = subprocess.run([sys.executable, str(BENCHMARK), *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        tables.append(done.stdout.partition("\n\n")[0])
    assert tables[0] == tables[1]
    for row in ("start", "continue", "none"):
        assert f"| {row} |" in tables[0]
    assert (tmp_path / "out" / "figures.jsonl").read_text().count("\n") == 3
