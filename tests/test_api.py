"""The public names, and that importing them costs nothing."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

import tymbal

VERBS = ("scan", "prepare", "pretrain", "probe", "finetune", "predict", "report", "embed", "similar")
VERBS += ("explore", "doctor", "convert", "demo")


@pytest.mark.parametrize("name", tymbal.__all__)
def test_api__every_public_name_is_there(name):
    assert getattr(tymbal, name) is not None


def test_api__a_verb_stays_a_function_after_its_module_was_imported():
    for verb in VERBS:
        importlib.import_module(tymbal._ORIGIN[verb])
    from tymbal.prepare import prepare

    assert tymbal.prepare is prepare
    assert all(callable(getattr(tymbal, verb)) for verb in VERBS)


def test_api__unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'pretrian'"):
        _ = tymbal.pretrian


def _processor_seconds(code: str) -> tuple[float, set[str]]:
    """Processor time of `code` beyond an empty interpreter's, and the top-level packages that it imported."""
    report = (
        "import time, sys, json; start = time.process_time()\n"
        f"{code}\n"
        "seconds = time.process_time() - start\n"
        "print(json.dumps([seconds, sorted({m.split('.')[0] for m in sys.modules})]), file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    seconds, modules = json.loads(run.stderr.splitlines()[-1])
    return seconds, set(modules)


def test_import__costs_next_to_nothing():
    seconds, modules = min(_processor_seconds("import tymbal") for _ in range(3))
    assert seconds < 0.1
    assert not modules & {"torch", "numpy", "transformers", "pyarrow", "sklearn", "rich", "yaml"}


def test_help__answers_at_once():
    code = "from tymbal.cli import main\nassert main(['pretrain', '--help']) == 0"
    seconds, modules = min(_processor_seconds(code) for _ in range(3))
    assert seconds < 0.5
    assert not modules & {"torch", "numpy", "transformers", "pyarrow", "sklearn"}
