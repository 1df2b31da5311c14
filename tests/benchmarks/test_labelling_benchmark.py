"""The trial of labelling runs to its end, and continues without computing again; what it measures is not looked at."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from small_model import small_model

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "labelling.py"


def test_labelling__runs_and_continues(shared: Path, tmp_path: Path) -> None:
    encoder = small_model(tmp_path / "encoder", frames=100)
    arguments = [
        "--data",
        str(shared / "data"),
        "--short",
        "--output",
        str(tmp_path / "out"),
        "--encoder",
        str(encoder),
    ]
    tables = []
    for _ in range(2):
        done = subprocess.run([sys.executable, str(BENCHMARK), *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        tables.append(done.stdout.rpartition("\n\n")[0])
    assert tables[0] == tables[1]
    for title in (
        "**ESC-10, mfcc**: 40 windows",
        "**rare events, mfcc**: 160 windows",
        "| ours |",
        "| committee |",
        "IoU of boxes",
    ):
        assert title in tables[0]
    # Two sets, two embeddings, four ways, one seed.
    assert (tmp_path / "out" / "figures.jsonl").read_text().count("\n") == 16


def test_needed__is_when_three_figures_have_been_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARK.parent)
    needed = importlib.import_module("labelling").needed
    curve = [(10, 0.2, 0.0), (20, 0.96, 0.1), (30, 0.94, 0.2), (40, 0.95, 0.3), (50, 0.5, 0.4)]
    assert needed(curve, 1.0) == 40
    assert needed(curve, 2.0) == float("inf")
    assert needed(curve[:2], 0.1) == float("inf")
