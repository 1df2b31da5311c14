"""Examples that come as YAML, as a command line and in Python say the same."""

from __future__ import annotations

import os
import runpy
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tymbal
from tymbal import config
from tymbal.cli import main
from tymbal.settings import PretrainSettings

EXAMPLES = Path(__file__).parents[1] / "examples"
CLASSES = {"pretrain": PretrainSettings}


def command(script: Path, *arguments: str) -> list[str]:
    """What the one command of a shell script gives to tymbal."""
    text = script.read_text().replace("\\\n", " ")
    line = next(line for line in text.splitlines() if line.startswith("tymbal "))
    for number, argument in enumerate(arguments, start=1):
        line = line.replace(f'"${number}"', shlex.quote(argument))
    return shlex.split(line)[1:]


@pytest.mark.parametrize(("name", "verb"), [("reconstruction", "pretrain")])
def test_examples__are_the_same_in_all_three_forms(name: str, verb: str, monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple[tuple[str, ...], dict[str, Any]]] = []

    def record(*arguments: str | os.PathLike[str], resume: object = None, **keywords: Any) -> SimpleNamespace:
        calls.append((tuple(map(os.fspath, arguments)), keywords))
        return SimpleNamespace(summary=lambda: "")

    monkeypatch.setitem(vars(tymbal), verb, record)
    cls = CLASSES[verb]
    settings = config.resolve(cls, {}, config=EXAMPLES / f"{name}.yaml")
    assert main(command(EXAMPLES / f"{name}.sh", "recordings", "run")) == 0
    runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]("recordings", "run")
    for arguments, keywords in calls:
        assert arguments == ("recordings", "run")
        assert config.resolve(cls, keywords) == settings
    assert len(calls) == 2
