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


def test_learning__runs_and_draws(shared: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    arguments = ["--data", str(shared / "data"), "--only", "digits", "--short", "--output", output]
    done = run("views_learning.py", *arguments)
    assert done.returncode == 0, done.stderr
    arms = ("random", "joint", "reconstruction", "contrastive, 5 generated", "contrastive, fresh, masked")
    assert all(f"| {arm}, rows |" in done.stdout for arm in arms)
    figures = (tmp_path / "out" / "figures.jsonl").read_text()
    assert figures.count("\n") == 15  # the baseline, and seven encoders in two poolings
    picture = tmp_path / "picture.png"
    drawn = run("views_learning.py", *arguments, "--picture", str(picture))
    assert drawn.returncode == 0, drawn.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert drawn.stdout.partition("\n\n")[0] == done.stdout.partition("\n\n")[0]
