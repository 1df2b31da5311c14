"""Every verb on a disk that is full, gone, or not ours, at any call of Python's and of libraries'.

What comes out is exit status 2 and a file's name, or all the same as without the fault, or a file named that was left
out; never a traceback. The same command finishes afterwards.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile

import tymbal
from faulty_walk import CASES
from small_model import small_model
from tones import PITCHES, RATE, tone
from tymbal.files import disk_errors

TESTS = Path(__file__).parent
ERRORS = ("ENOSPC", "EACCES", "EIO", "ENOTDIR")
MOST = 60
"""Calls of a command that fail in the long trial, spread over all."""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler, for calls of libraries to fail")
    library = tmp_path_factory.mktemp("shim") / "faulty_calls.so"
    source = TESTS / "faulty_calls.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", library, source, "-ldl", "-lpthread"], check=True)
    return library


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands of `faulty_walk` are about, in one folder."""
    root = tmp_path_factory.mktemp("root")
    for label in PITCHES:
        (root / "sound" / label).mkdir(parents=True)
        for i in range(4):
            soundfile.write(root / "sound" / label / f"{i}.wav", tone(label, seed=i), RATE, subtype="PCM_16")
    tymbal.prepare(root / "sound", root / "store", sample_rate=RATE, mel_bins=16, window=0.335, validation=0.25)
    tymbal.convert(root / "store", root / "pt", to="pt")
    small_model(root / "model", labels=tuple(PITCHES), pooling="mean", seed=1)
    cpu = {"device": "cpu", "precision": "float32"}
    tymbal.embed(root / "model", root / "sound", root / "index.parquet", **cpu)
    tiny = {"width": 16, "depth": 1, "heads": 2, "patch": "8x8", "batch_size": 6}
    tymbal.finetune(root / "store", root / "run", epochs=1, report_to=(), **tiny, **cpu)
    return root


def walk(shim: Path, root: Path, case: str, points: list[tuple[int, str]]) -> list[dict[str, Any]]:
    process = subprocess.run(
        [sys.executable, TESTS / "faulty_walk.py", shim, case],
        input=json.dumps(points),
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "LD_PRELOAD": str(shim), "TYMBAL_CACHE": str(root / "cache")},
        check=False,
    )
    outcomes = [json.loads(line) for line in process.stdout.splitlines()]
    assert (process.returncode, len(outcomes)) == (0, 1 + len(points)), process.stderr[-2000:]
    assert outcomes[0]["status"] == 0, outcomes[0]["said"]
    return outcomes


def fault(case: str, outcome: dict[str, Any], root: Path) -> str | None:
    """What is wrong with the outcome of a fault."""
    if not outcome["kind"]:  # what runs beside the command, as a writer of TensorBoard's, made fewer calls this time
        return None
    parts = [part.removesuffix(".partial") for part in Path(outcome["path"]).relative_to(root).parts]
    name = parts[-1].removeprefix(".").removesuffix(".lock")
    named = name in outcome["said"] + outcome["left_out"]
    why, error = None, outcome["said"].rpartition("Error:")[2]
    if outcome["status"] is None:
        why = "a traceback"
    elif outcome["status"] not in (0, 2):
        why = f"status {outcome['status']}"
    elif outcome["status"] == 2 and not any(part.removesuffix(".unfinished") in error for part in [*parts[1:], name]):
        # On a full disk a sound may be read, and the output not written.
        why = None if outcome["error"] == "ENOSPC" and "out" in error else "an error without the file's name"
    elif outcome["status"] == 0 and not outcome["same"] and not named:
        why = "another result without a word"
    goes_on = outcome["again"] == 0 or (case.startswith("convert") and outcome["same"])  # which overwrites nothing
    if why is None and not goes_on:
        why = "the same command does not finish"
    elif why is None and not outcome["same_again"] and not (outcome["status"] == 0 and named):
        why = "another result afterwards"
    if why is None:
        return None
    place = f"{outcome['error']} at {outcome['kind']} {outcome['call']} of {outcome['path']}"
    return f"{why}: {place}\n{outcome['said'][-600:]}\n{outcome['said_again'][-300:]}"


def faults(shim: Path, root: Path, case: str, most: int) -> list[str]:
    calls = walk(shim, root, case, [])[0]["calls"]
    chosen = range(0, calls, -(-calls // most))
    points = [(call, ERRORS[place % len(ERRORS)]) for place, call in enumerate(chosen)]
    return [why for outcome in walk(shim, root, case, points)[1:] if (why := fault(case, outcome, root)) is not None]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", CASES)
def test_verbs__faults_of_the_disk_are_named_and_the_same_command_finishes(shim: Path, root: Path, case: str) -> None:
    assert not (found := faults(shim, root, case, MOST)), "\n".join(found)


@pytest.mark.parametrize(("case", "most"), [("predict", 8), ("finetune", 4)])
def test_verbs__some_faults_of_the_disk(shim: Path, root: Path, case: str, most: int) -> None:
    assert not (found := faults(shim, root, case, most)), "\n".join(found)


@pytest.mark.parametrize(
    ("raised", "number"),
    [
        (OSError(28, "No space left on device"), 28),
        (
            RuntimeError("[enforce fail at inline_container.cc:747] . open file failed with strerror: Not a directory"),
            20,
        ),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"), 5),
        (RuntimeError("unable to open file <a> in read-only mode: Input/output error (5)"), 5),
    ],
)
def test_disk_errors__have_a_number_and_the_name_of_a_file(raised: Exception, number: int) -> None:
    with pytest.raises(OSError, match=r"'folder/a\.pt'") as error, disk_errors("folder/a.pt"):
        raise raised
    assert error.value.errno == number


def test_disk_errors__others_stay_as_they_are() -> None:
    for other in (RuntimeError("CUDA error: out of memory"), OSError("of a library"), ValueError("x")):
        with pytest.raises(type(other)) as error, disk_errors("folder"):
            raise other
        assert error.value is other
        assert getattr(error.value, "filename", None) is None
