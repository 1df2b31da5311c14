"""Preparing as jobs of Slurm without Slurm: made-up `sbatch` and `scancel` that run the jobs here."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import tymbal

pytest.importorskip("dask_jobqueue")

RECIPE = Path(__file__).parents[2] / "examples" / "hpc" / "prepare_dask.py"
BASH = shutil.which("bash") or "bash"
RATE = 8000
SMALL: dict[str, Any] = {
    "views": 2, "sample_rate": RATE, "window": 0.5, "mel_bins": 16, "n_fft": 256, "hop_length": 128
}  # fmt: skip

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("setsid") is None, reason="needs setsid and Linux's loopback"
)

SBATCH = """
echo "sbatch $1" >> "$JOBS/calls"
number=$(grep -c sbatch "$JOBS/calls")
cp "$1" "$JOBS/$number.sh"
setsid "$BASH" "$JOBS/$number.sh" > "$JOBS/$number.log" 2>&1 &
echo $! > "$JOBS/$number.pid"
echo "Submitted batch job $number"
"""
SCANCEL = """
echo "scancel $1" >> "$JOBS/calls"
kill -- "-$(cat "$JOBS/$1.pid")"
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    for name, script in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!{BASH}\n{script}")
        program.chmod(0o755)
    (tmp_path / "jobs").mkdir()
    return {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "BASH": BASH,
        "JOBS": str(tmp_path / "jobs"),
        "TYMBAL": f"{sys.executable} -m tymbal",
    }


def sound(folder: Path) -> Path:
    folder.mkdir()
    for number in range(300):
        random = np.random.default_rng(number)
        soundfile.write(folder / f"{number:03d}.wav", random.normal(0, 0.1, RATE // 2), RATE, subtype="PCM_16")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    files = [*sorted((folder / "shards").iterdir()), folder / "index.parquet", folder / "failures.csv"]
    return {file.name: file.read_bytes() for file in files}


def group(jobs: Path, number: int) -> int:
    return int((jobs / f"{number}.pid").read_text())


def is_running(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("dies", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_recipe__runs_from_the_first_job_to_the_last(dies: bool, environment: dict[str, str], tmp_path: Path) -> None:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    source, jobs = sound(tmp_path / "sound"), tmp_path / "jobs"
    options = ["--jobs=1", "--cores=2", "--memory=4GB", "--account=me", "--interface=lo", "--directive=--qos=low"]
    command = [sys.executable, RECIPE, *options, "--", source, "-o", tmp_path / "there", *flags]
    recipe = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        if dies:
            work = tmp_path / "there" / "work"
            while recipe.poll() is None and not list(work.glob("0*.json")):
                time.sleep(0.005)
            os.killpg(group(jobs, 1), signal.SIGKILL)
        said = recipe.communicate(timeout=150)[1]
    finally:
        recipe.terminate()
        recipe.wait(timeout=30)
    assert recipe.returncode == 0, said
    alone = tymbal.prepare(source, tmp_path / "alone", workers=1, **SMALL).path
    assert content(tmp_path / "there") == content(alone)
    script = (jobs / "1.sh").read_text()
    for line in ("#SBATCH -A me", "#SBATCH --cpus-per-task=2", "#SBATCH --qos=low", "export OMP_NUM_THREADS=1"):
        assert line in script.splitlines()
    calls = (jobs / "calls").read_text()
    assert calls.count("sbatch") >= (2 if dies else 1)
    last = calls.count("sbatch")
    assert f"scancel {last}" in calls
    ends = time.monotonic() + 20
    while any(is_running(group(jobs, number)) for number in range(1, last + 1)):
        assert time.monotonic() < ends, "a job is still running"
        time.sleep(0.05)
