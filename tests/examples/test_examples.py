"""Examples that come as YAML, as a shell script and in Python say the same, and work."""

from __future__ import annotations

import os
import runpy
import stat
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tymbal
from tones import tone_folder
from tymbal import config
from tymbal.cli import main
from tymbal.features.kaldi import LOG_FLOOR
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.models.folder import load_model, save_model
from tymbal.objectives import registry
from tymbal.settings import FeatureSettings, FinetuneSettings, PrepareSettings

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RESOLVE: dict[str, Callable[..., object]] = {
    "prepare": partial(config.resolve, PrepareSettings),
    "pretrain": registry.resolve,
    "finetune": partial(config.resolve, FinetuneSettings),
}
GIVEN = {
    "reconstruction": ("recordings", "run"),
    "finetuning": ("labelled", "pretrained", "out"),
}

Calls = dict[str, tuple[tuple[str, ...], object]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What the verbs were given: paths, and settings."""
    found: Calls = {}

    def record(verb: str) -> None:
        def recorded(*arguments: str | os.PathLike[str], resume: object = None, **keywords: Any) -> SimpleNamespace:
            found[verb] = (tuple(map(os.fspath, arguments)), RESOLVE[verb](keywords))
            return SimpleNamespace(summary=str)

        monkeypatch.setitem(vars(tymbal), verb, recorded)

    for verb in RESOLVE:
        record(verb)
    return found


def by_yaml(name: str) -> dict[str, object]:
    """Settings of the verbs of a YAML file; the weights to start from are no matter of the file."""
    sections = config.read_yaml(EXAMPLES / f"{name}.yaml")
    given = {"finetune": {"from_": "pretrained"}} if name == "finetuning" else {}
    return {verb: RESOLVE[verb](given.get(verb, {}), config=EXAMPLES / f"{name}.yaml") for verb in sections}


@pytest.mark.parametrize("name", GIVEN)
def test_examples__python_means_what_yaml_means(name: str, calls: Calls) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](*GIVEN[name])
    assert {verb: settings for verb, (_, settings) in calls.items()} == by_yaml(name)


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
@pytest.mark.parametrize("name", GIVEN)
def test_examples__flags_mean_what_python_means(name: str, calls: Calls, tmp_path: Path) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](*GIVEN[name])
    by_python = dict(calls)
    calls.clear()
    # The script finds a `tymbal` that writes down its arguments.
    fake = tmp_path / "tymbal"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@" END >> "$SAID"\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SAID": str(tmp_path / "said")}
    subprocess.run(["/bin/sh", EXAMPLES / f"{name}.sh", *GIVEN[name]], check=True, env=environment)
    for command in (tmp_path / "said").read_text().split("END\n")[:-1]:
        assert main(command.splitlines()) == 0
    assert calls == by_python


def test_examples__fine_tune_by_the_recipe() -> None:
    settings = by_yaml("finetuning")
    assert (settings["finetune"].train, settings["finetune"].warmup, settings["prepare"].window) == ("3", 3, 1.0)


def test_examples__python_trains_a_classifier(tmp_path: Path) -> None:
    shape = EncoderConfig(width=16, depth=4, heads=2, mels=128, frames=112)
    torch.manual_seed(5)
    description = ModelDescription(encoder=shape, features=FeatureSettings(), mean=-7.0, std=4.0, padding=LOG_FLOOR)
    save_model(tmp_path / "pretrained", SpectrogramEncoder(shape), description)
    tone_folder(tmp_path / "labelled", clips=2)
    module = runpy.run_path(str(EXAMPLES / "finetuning.py"))
    module["RECIPE"]["epochs"] = 1
    module["main"](str(tmp_path / "labelled"), str(tmp_path / "pretrained"), str(tmp_path / "out"))
    assert load_model(tmp_path / "out" / "classifier").description.labels == ("high", "low", "middle")
    assert (tmp_path / "out" / "classifier" / "confusion.png").is_file()
