"""The trial of labelling runs to its end, and continues without computing again; what it measures is not looked at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "labelling.py"


def test_labelling__runs_and_continues(shared: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(shared / "data"), "--short", "--output", str(tmp_path / "out")]
    tables = []
    for _ in range(2):
        done = subprocess.run([sys.executable, str(BENCHMARK), *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        tables.append(done.stdout.rpartition("\n\n")[0])
    assert tables[0] == tables[1]
    for title in ("**ESC-10, mfcc**: 40 windows", "**rare events, mfcc**: 160 windows", "| ours |", "| committee |"):
        assert title in tables[0]
    # Two sets, four ways, one seed.
    assert (tmp_path / "out" / "figures.jsonl").read_text().count("\n") == 8
