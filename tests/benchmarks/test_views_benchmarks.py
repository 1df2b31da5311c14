"""The benchmarks of views run to their end; what they measure is not looked at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("name", "arguments", "wanted"),
    [
        ("views.py", ["--clips", "3", "--few", "2", "--versions", "2"], ["spectral, packed", "left out. Give --peer"]),
        ("views_training.py", ["--clips", "6", "--few", "3", "--batch", "2"], ["packed pairs", "fresh, CPU"]),
    ],
)
def test_benchmark__runs(name: str, arguments: list[str], wanted: list[str], tmp_path: Path) -> None:
    done = run(name, *arguments, "--rounds", "1", "--folder", str(tmp_path))
    assert done.returncode == 0, done.stderr
    for text in wanted:
        assert text in done.stdout


def test_peer__that_is_absent_is_named(tmp_path: Path) -> None:
    done = run("views.py", "--clips", "2", "--few", "1", "--peer", sys.executable, "--folder", str(tmp_path))
    assert done.returncode != 0
    assert "the peer cannot run: absent: audiomentations" in done.stderr
