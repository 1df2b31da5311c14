"""The benchmark of small training steps runs to its end."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "small_steps.py"


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
