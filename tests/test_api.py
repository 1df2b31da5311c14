"""The public names, and that importing them costs nothing."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import tymbal
from tymbal.errors import SettingsError
from tymbal.files import sole_writer

VERBS = ("scan", "prepare", "pretrain", "probe", "finetune", "predict", "report", "embed", "similar")
VERBS += ("explore", "label", "merge", "push", "doctor", "convert", "demo")


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


def _imported(code: str) -> set[str]:
    """All modules that a fresh interpreter has imported when it has run `code`."""
    report = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return set(json.loads(run.stderr.splitlines()[-1]))


HEAVY = {"torch", "numpy", "transformers", "accelerate", "pyarrow", "sklearn", "scipy", "PIL"}
NEEDLESS = {"yaml", "rich", "pygments", "markdown_it", "attrs", "attr", "cyclopts", "pydantic"}


def test_import__imports_next_to_nothing():
    assert not _imported("import tymbal") & {*HEAVY, *NEEDLESS, "dataclasses", "inspect", "tymbal.config"}


@pytest.mark.parametrize("words", [["--help"], ["pretrain", "--help"], ["finetune", "--help-all"], ["prepare", "-h"]])
def test_help__imports_nothing_that_it_does_not_show(words):
    assert not _imported(f"from tymbal.cli import main\nassert main({words}) == 0") & {*HEAVY, *NEEDLESS}


@pytest.mark.parametrize("words", [["prepare", "sounds"], ["finetune", "a", "-o", "b", "--epoch", "3"]])
def test_mistake__is_found_before_anything_heavy_is_imported(words):
    assert not _imported(f"from tymbal.cli import main\nassert main({words}) == 2") & HEAVY


def test_scan__needs_no_torch(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(8000)) / 2, 8000)
    code = f"from tymbal.cli import main\nassert main(['scan', {str(tmp_path)!r}, '--workers', '1']) == 0"
    assert not _imported(code) & {"torch", "transformers"}


@pytest.mark.parametrize("verb", ["convert", "finetune", "merge", "pretrain", "probe", "report", "scan", "similar"])
def test_verbs__one_process_writes_an_output(verb: str, tmp_path: Path) -> None:
    output = tmp_path / "out.html"
    sources = [str(tmp_path)] * {"merge": 2, "probe": 2, "similar": 3}.get(verb, 1)
    with sole_writer(output), pytest.raises(SettingsError, match="another process is writing this output"):
        getattr(tymbal, verb)(*sources, output)
    assert not list(tmp_path.iterdir())
