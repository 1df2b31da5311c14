from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "inference.py"


def test_benchmark__compares_both_sides():
    command = [sys.executable, SCRIPT, "--trial", "--device", "cpu"]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for line in (
        r"stock extractor \((numpy|torchaudio)\) +\d+\.\d\d +1\.00 +1\.00",
        r"ours +\d+\.\d\d +\d+\.\d\d +\d+\.\d\d",
        r"tymbal predict, float32 +-?\d+\.\d\d +",
        r"tymbal embed, float32 +-?\d+\.\d\d +",
    ):
        assert re.search(line, run.stdout), run.stdout
    assert len(re.findall(r"stock, float32 +\S+ +1\.00 +1\.00", run.stdout)) == 2
