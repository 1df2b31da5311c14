"""The examples of fine-tuning say the same thing three times, and work."""

from __future__ import annotations

import importlib.util
import os
import stat
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace

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
from tymbal.settings import FeatureSettings, FinetuneSettings, PrepareSettings

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
VERBS = {"prepare": PrepareSettings, "finetune": FinetuneSettings}


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("finetuning", EXAMPLES / "finetuning.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Settings with which the verbs were called."""
    found: dict[str, object] = {}

    def record(verb: str) -> None:
        def recorded(*arguments: object, **keywords: object) -> SimpleNamespace:
            given = {name: value for name, value in keywords.items() if name != "resume"}
            found[verb] = config.from_mapping(VERBS[verb], given)
            return SimpleNamespace(summary=str)

        monkeypatch.setitem(vars(tymbal), verb, recorded)

    for verb in VERBS:
        record(verb)
    return found


@pytest.fixture
def yaml() -> dict[str, object]:
    """Settings of the YAML file, with the weights to start from."""
    found = {verb: config.read_settings(cls, EXAMPLES / "finetuning.yaml") for verb, cls in VERBS.items()}
    found["finetune"]["from"] = "pretrained"
    return {verb: config.from_mapping(cls, found[verb]) for verb, cls in VERBS.items()}


def test_examples__yaml_and_python_mean_the_same(called: dict[str, object], yaml: dict[str, object]) -> None:
    script().main("labelled", "pretrained", "out")
    assert called == yaml
    assert (yaml["finetune"].train, yaml["finetune"].warmup, yaml["prepare"].window) == ("3", 3, 1.0)


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_examples__yaml_and_flags_mean_the_same(
    called: dict[str, object], yaml: dict[str, object], tmp_path: Path
) -> None:
    # The script finds a `tymbal` that writes down its arguments.
    fake = tmp_path / "tymbal"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@" END >> "$SAID"\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SAID": str(tmp_path / "said")}
    arguments = ["labelled", "pretrained", "out"]
    subprocess.run(["/bin/sh", EXAMPLES / "finetuning.sh", *arguments], check=True, env=environment)
    for command in (tmp_path / "said").read_text().split("END\n")[:-1]:
        assert main(command.splitlines()) == 0
    assert called == yaml


def test_examples__python_trains_a_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = EncoderConfig(width=16, depth=4, heads=2, mels=128, frames=112)
    torch.manual_seed(5)
    description = ModelDescription(encoder=shape, features=FeatureSettings(), mean=-7.0, std=4.0, padding=LOG_FLOOR)
    save_model(tmp_path / "pretrained", SpectrogramEncoder(shape), description)
    tone_folder(tmp_path / "labelled", clips=2)
    module = script()
    monkeypatch.setitem(module.RECIPE, "epochs", 1)
    module.main(str(tmp_path / "labelled"), str(tmp_path / "pretrained"), str(tmp_path / "out"))
    assert load_model(tmp_path / "out" / "classifier").description.labels == ("high", "low", "middle")
    assert (tmp_path / "out" / "classifier" / "confusion.png").is_file()
