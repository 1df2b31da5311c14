"""Checkpoints to resume from and weights to start from are told apart, whichever of the two is given for the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from training_setup import TINY, make_store
from tymbal.errors import CheckpointError, ModelError
from tymbal.models.folder import load_model
from tymbal.pretrain import pretrain
from tymbal.training.checkpoints import resolve_checkpoint

SHORT: dict[str, Any] = {**TINY, "max_steps": 3}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("data") / "store").path


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "run"
    pretrain(store, run, **SHORT)
    return run


def test_resume__takes_a_checkpoint_or_the_run_itself(run: Path, monkeypatch: pytest.MonkeyPatch):
    checkpoint = run / "checkpoints" / "checkpoint-3"
    assert resolve_checkpoint(checkpoint, run) == checkpoint
    monkeypatch.chdir(run.parent)
    assert resolve_checkpoint(Path("run"), run) is None
    assert resolve_checkpoint(Path("run/checkpoints"), run) is None


def test_resume__of_the_run_itself_insists_on_one(run: Path, store: Path, tmp_path: Path):
    assert pretrain(store, run, resume=run, **SHORT).steps == 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        pretrain(store, tmp_path / "empty", resume=tmp_path / "empty", **SHORT)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("model", "these are weights"),
        ("model/model.safetensors", "these are weights"),
        ("loose", "these are weights"),
        ("loose/best.pth", "these are weights"),
        ("trainer", "not written by Tymbal"),
        (".", "this is another run"),
        ("tensorboard", "no checkpoint of a run"),
        ("nowhere", "no such checkpoint"),
    ],
)
def test_resume__from_something_else_says_what_it_is(kind: str, message: str, run: Path, store: Path, tmp_path: Path):
    for folder in ("loose", "trainer"):
        (run / folder).mkdir(exist_ok=True)
        safetensors.torch.save_file({"a": torch.zeros(1)}, run / folder / "model.safetensors")
    (run / "loose" / "best.pth").touch()
    (run / "trainer" / "trainer_state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=message) as caught:
        pretrain(store, tmp_path / "new", resume=run / kind, **SHORT)
    assert ("--from" in str(caught.value)) == (kind not in ("tensorboard", "nowhere"))
    assert not (tmp_path / "new").exists()


def test_from__takes_a_run_and_refuses_its_checkpoint(run: Path, store: Path, tmp_path: Path):
    with pytest.raises(ModelError, match=r"checkpoint of a run(.|\n)*--resume"):
        pretrain(store, tmp_path / "a", from_=str(run / "checkpoints" / "checkpoint-3"), **SHORT)
    pretrain(store, tmp_path / "b", from_=str(run), **{**SHORT, "learning_rate": 1e-30})
    first, second = (load_model(each).module.state_dict() for each in (run, tmp_path / "b"))
    assert all(first[name].equal(second[name]) for name in first)
