"""The benchmark of a GPU runs to its end on the CPU, so that it works the day a card is there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(BENCHMARK), *arguments], capture_output=True, text=True, check=False)


def test_gpu__short_form_measures_every_part_on_the_cpu(tmp_path: Path) -> None:
    done = run("--short", "--device", "cpu", "--no-compile", "--json", str(tmp_path / "gpu.json"))
    assert done.returncode == 0, done.stderr
    figures = {each["name"]: each for each in json.loads((tmp_path / "gpu.json").read_text())["figures"]}
    for name in ("joint, all tokens", "joint, visible tokens", "lejepa", "contrastive", "distill"):
        assert figures[f"step of {name}"]["value"] > 0
        assert "% MFU" in figures[f"step of {name}"]["note"]
    assert {"tymbal predict, recordings of 10 s", "tymbal embed, recordings of 10 s"} <= figures.keys()
    assert figures["filter bank of 10 s"]["value"] > 0
    assert figures["loss of joint beside the CPU's, float32"]["value"] == 0
    assert figures["loss of joint beside the CPU's, bf16"]["value"] <= 1e-3
    assert figures["loss by torchrun with one process beside that without"]["value"] == 0
    assert all(name in done.stdout for name in figures)


def test_gpu__parts_behind_the_time_are_named() -> None:
    done = run("--short", "--device", "cpu", "--minutes", "0")
    assert done.returncode == 0, done.stderr
    assert "steps: left out, the time is up" in done.stdout


def test_gpu__without_one_is_told() -> None:
    if torch.cuda.is_available():
        return
    done = run()
    assert done.returncode == 1
    assert "There is no GPU. --short --device cpu tries the script on the CPU" in done.stderr
