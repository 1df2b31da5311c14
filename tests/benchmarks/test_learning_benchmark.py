"""The benchmark of learning runs to its end and continues without computing again; its figures are not looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "learning.py"


def test_learning__runs_and_continues(shared: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = ["--data", str(shared / "data"), "--sets", "digits", "--short", "--speed", "--output", str(output)]
    tables = []
    for more in ([], [], ["--table"]):
        command = [sys.executable, str(BENCHMARK), *arguments, *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        tables.append(done.stdout.partition(" processor minutes this time")[0].rpartition("\n")[0])
    assert tables[0] == tables[1] == tables[2]
    for line in ("plain", "random", "default, 1 min", "default + plain, 1 min", "mpg, 1 min"):
        assert f"| {line} |" in tables[0]
    rows = [json.loads(line) for line in (output / "figures.jsonl").read_text().splitlines()]
    cells = [(row["row"], row["cell"]) for row in rows]
    assert [cell for cell in cells if cell[1] in ("pretraining", "probe")] == [
        ("default", "pretraining"),
        ("default", "probe"),
        ("mpg", "pretraining"),
        ("mpg", "probe"),
    ]
    assert {row["labels"] for row in rows if "labels" in row} == {"1", "all"}
