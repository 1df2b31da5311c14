"""Two processes under torchrun do what one does with batches of twice the size."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_sessions import HALVES, OTHERS, SHARDED, THAWING, cut
from safetensors.torch import load_file
from test_resume import assert_same, figures, weights
from torch import nn

from tones import tone_store
from training_setup import TINY
from tymbal.config import write_yaml
from tymbal.errors import CheckpointError, SettingsError
from tymbal.finetune import finetune
from tymbal.pretrain import pretrain
from tymbal.settings import TrainingSettings
from tymbal.training.sharding import Shards


def torchrun(*arguments: str | Path, count: int = 2) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(count),
        *arguments,
    ]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)


@pytest.fixture(scope="module")
def folder(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run of two processes, and one that was killed and then run again from the command line."""
    folder = tmp_path_factory.mktemp("two")
    tone_store(folder / "tones", clips=10, validation=2)
    first = torchrun(Path(__file__).parent / "distributed_sessions.py", store, folder / "tones", folder)
    assert first.returncode != 0
    assert (folder / "whole" / "result.json").exists(), first.stderr
    assert [path.name for path in folder.glob("killed/checkpoints/checkpoint-*")] == ["checkpoint-5"]
    write_yaml(folder / "settings.yaml", HALVES)
    arguments = ["pretrain", store, "-o", folder / "killed", "--config", folder / "settings.yaml"]
    second = torchrun("-m", "tymbal", *arguments)
    assert second.returncode == 0, second.stderr
    (folder / "said.txt").write_text(second.stderr)
    return folder


def test_two_processes__equal_one_with_twice_the_batch(folder: Path, store: Path, tmp_path: Path):
    pretrain(store, tmp_path / "one", **TINY)
    ours, theirs = weights(folder / "whole"), weights(tmp_path / "one")
    assert ours.keys() == theirs.keys()
    # Masks depend on the clip, so both see the same; gradients are added up in another order. Where a gradient is zero
    # but for rounding, as that of a bias to which a softmax is blind, Adam makes whole steps of the rounding.
    blind = ("key.bias", "cpred.2.bias")
    names = [name for name in ours if not name.endswith(blind)]
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in names) < 2e-4
    assert sum(float((ours[name] - theirs[name]).abs().sum()) for name in names) < 1e-6 * sum(
        ours[name].numel() for name in names
    )
    for a, b in zip(figures(folder / "whole"), figures(tmp_path / "one"), strict=True):
        assert a.pop("batch_size", 4) * 2 == b.pop("batch_size", 8)
        assert a == pytest.approx(b, rel=1e-4)


def test_two_processes__thaw_alike(folder: Path, tmp_path: Path):
    finetune(folder / "tones", tmp_path / "one", **THAWING)
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (folder / "thawing", tmp_path / "one"))
    for name in ("confusion.csv", "confusion.png"):
        assert (folder / "thawing" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    assert len((folder / "thawing" / "classes.csv").read_text().splitlines()) == 1 + 3 * 3  # epochs, classes
    # A softmax is blind to the bias of the keys, the middle third: its gradient is nothing but rounding.
    for name, value in theirs.items():
        parts = zip(ours[name].chunk(3), value.chunk(3), strict=True) if name.endswith("qkv.bias") else []
        pairs = [pair for number, pair in enumerate(parts) if number != 1] or [(ours[name], value)]
        assert max(float((a - b).abs().max()) for a, b in pairs) < 2e-4, name


def test_two_processes__compare_the_clips_of_both(folder: Path, store: Path, tmp_path: Path):
    pretrain(store, tmp_path / "one", **{**TINY, "objective": "contrastive"})
    ours, theirs = figures(folder / "contrastive"), figures(tmp_path / "one")
    assert [line["eval_chance"] for line in ours if "eval_chance" in line] == pytest.approx([math.log(15)] * 4)
    for a, b in zip(ours, theirs, strict=True):
        names = {"loss", "chance", "eval_loss", "eval_acc", "eval_alignment", "eval_uniformity"} & b.keys()
        assert {name: a[name] for name in names} == pytest.approx({name: b[name] for name in names}, rel=1e-3, abs=1e-3)


def test_two_processes__resume_bit_equal_after_a_kill(folder: Path):
    assert_same(folder / "killed", folder / "whole")
    assert figures(folder / "killed") == figures(folder / "whole")


def test_two_processes__only_the_first_speaks_and_writes(folder: Path):
    said = (folder / "said.txt").read_text()
    assert said.count("Continuing from step 5 of 19") == 1
    assert said.count("clips to learn from") == 1
    assert len(list((folder / "whole" / "tensorboard").iterdir())) == 1
    assert {path.name for path in (folder / "whole" / "checkpoints" / "checkpoint-19").iterdir()} >= {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }


@pytest.mark.parametrize("objective", OTHERS)
def test_two_processes__are_one_with_every_objective(folder: Path, store: Path, tmp_path: Path, objective: str):
    pretrain(store, tmp_path / "one", **{**TINY, "objective": objective, "epochs": 1})
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (folder / objective, tmp_path / "one"))
    names = [name for name in ours if not name.endswith("qkv.bias")]
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in names) < 2e-4
    for a, b in zip(figures(folder / objective), figures(tmp_path / "one"), strict=True):
        assert a.pop("batch_size", 4) * 2 == b.pop("batch_size", 8)
        assert a == pytest.approx(b, rel=1e-4)


BLIND = ("key.bias", "qkv.bias", "cpred.2.bias", "layernorm.bias")
"""Where a gradient is zero but for rounding: a softmax is blind to them, or a batch norm behind it."""


@pytest.mark.parametrize("name", [*SHARDED, "resumed", "classifier", "classifier-True", "classifier-False"])
def test_shards__learn_what_whole_weights_do(folder: Path, name: str):
    shards, whole = folder / "shards" / name, folder / ("whole" if name == "resumed" else name.partition("-")[0])
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (shards, whole))
    assert ours.keys() == theirs.keys()
    assert max(float((ours[n] - theirs[n]).abs().max()) for n in ours if not n.endswith(BLIND)) < 2e-5
    for a, b in zip(figures(shards), figures(whole), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-6)


@pytest.mark.slow
def test_shards__resume_bit_equal_after_a_kill(folder: Path, store: Path, tmp_path: Path):
    arguments = (Path(__file__).parent / "distributed_sessions.py", store, folder / "tones", tmp_path)
    assert torchrun(*arguments, "killed").returncode != 0
    assert [path.name for path in tmp_path.glob("killed/checkpoints/checkpoint-*")] == ["checkpoint-5"]
    again = torchrun(*arguments, "again")
    assert again.returncode == 0, again.stderr
    assert_same(tmp_path / "killed", folder / "shards" / "whole")
    assert figures(tmp_path / "killed") == figures(folder / "shards" / "whole")


def test_shards__write_the_checkpoints_of_any_run(folder: Path, store: Path, tmp_path: Path):
    run = cut(folder / "shards" / "whole", tmp_path / "run")
    place = next((run / "checkpoints").glob("checkpoint-*"))
    states = [torch.load(at / "checkpoints" / place.name / "optimizer.pt") for at in (run, folder / "whole")]
    assert states[0]["state"].keys() == states[1]["state"].keys()
    for ours, theirs in zip(*(state["state"].values() for state in states), strict=True):
        assert {name: value.shape for name, value in ours.items()} == {n: value.shape for n, value in theirs.items()}
    saved = [load_file(at / "checkpoints" / place.name / "model.safetensors") for at in (run, folder / "whole")]
    assert saved[0].keys() == saved[1].keys()
    pretrain(store, run, **HALVES)  # one process goes on, without shards
    ours, theirs = weights(run), weights(folder / "whole")
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours if not name.endswith(BLIND)) < 2e-4


@pytest.mark.parametrize(
    ("changes", "thaws", "message"),
    [
        ({"compile": True}, False, "shard does not go with compile"),
        ({"precision": "fp16"}, False, "shard does not go with fp16"),
        ({}, True, "shard does not go with layers that are unfrozen"),
        ({}, False, "shard does not go with scale, a single number"),
    ],
)
def test_shards__what_does_not_go_with_them_is_refused(
    changes: dict[str, Any], thaws: bool, message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tymbal.training.sharding.processes", lambda: 2)
    monkeypatch.setattr("tymbal.training.sharding.choose_precision", lambda name, _: (getattr(torch, FLOATS[name]), ""))
    module = nn.Linear(2, 2)
    if "single" in message:
        module.register_parameter("scale", nn.Parameter(torch.tensor(1.0)))
    with pytest.raises(SettingsError, match=message):
        Shards.of(module, TrainingSettings(shard=True, device="cpu", **changes), thaws=thaws)


FLOATS = {"auto": "bfloat16", "fp16": "float16"}


def test_shards__of_one_process_are_none(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pretrain(store, tmp_path / "run", **{**TINY, "epochs": 1, "shard": True})
    assert "shard has no effect in one process" in capsys.readouterr().err


def test_two_processes__one_takes_their_run_up(
    folder: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = cut(folder / "whole", tmp_path / "run")
    pretrain(store, run, **HALVES)
    said = capsys.readouterr().err
    assert "1 process instead of 2: each takes 8 clips a step, so that a step is of the same clips" in said
    ours, theirs = weights(run), weights(folder / "whole")
    blind = ("key.bias", "cpred.2.bias")
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours if not name.endswith(blind)) < 2e-4


@pytest.mark.slow
def test_four_processes__are_one_and_go_on_with_what_two_began(folder: Path, store: Path, tmp_path: Path):
    cut(folder / "whole", tmp_path / "halves")
    run = torchrun(Path(__file__).parent / "distributed_sessions.py", store, folder / "tones", tmp_path, count=4)
    assert run.returncode == 0, run.stderr
    assert "4 processes instead of 2: each takes 2 clips a step" in run.stderr
    for objective in ("joint", "contrastive", "lejepa", *OTHERS):
        one = pretrain(store, tmp_path / "one" / objective, **{**TINY, "objective": objective, "epochs": 1}).run
        for a, b in zip(figures(tmp_path / objective), figures(one), strict=True):
            names = {"loss", "eval_loss"} & b.keys()
            assert {name: a[name] for name in names} == pytest.approx({name: b[name] for name in names}, rel=1e-3)
    ours, theirs = weights(tmp_path / "halves"), weights(folder / "whole")
    blind = ("key.bias", "cpred.2.bias")
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours if not name.endswith(blind)) < 2e-4


def test_two_processes__batches_that_cannot_be_shared_out_are_refused(
    folder: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = cut(folder / "whole", tmp_path / "run")
    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="processes: 2 -> 3"):
        patch.setattr("tymbal.training.session.processes", lambda: 3)
        pretrain(store, run, **HALVES)
