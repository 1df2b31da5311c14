"""The benchmark of small training steps runs to its end."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "small_steps.py"


def test_small_steps__stands_a_whole_run_beside_its_steps() -> None:
    command = [sys.executable, str(SCRIPT), "--whole", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = re.search(r"2 steps: ([\d.]+) s of processor time, ([\d.]+) times the bare steps", done.stdout)
    assert found, done.stdout
    assert float(found[1]) > 0 and float(found[2]) > 1


def test_small_steps__short_form_says_where_the_time_goes() -> None:
    command = [sys.executable, str(SCRIPT), "--short", "--only", "distill"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "its products alone" in done.stdout
    found = re.search(r"mini-1s distill +([\d.]+) +([\d.]+) +([\d.]+)", done.stdout)
    assert found, done.stdout
    whole, alone, share = map(float, found.groups())
    assert 0 < alone < whole
    assert share < 1
