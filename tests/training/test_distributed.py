"""Two processes under torchrun do what one does with batches of twice the size."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from distributed_sessions import HALVES, THAWING
from safetensors.torch import load_file
from test_resume import assert_same, figures, weights

from tones import tone_store
from training_setup import TINY
from tymbal.config import write_yaml
from tymbal.errors import CheckpointError
from tymbal.finetune import finetune
from tymbal.pretrain import pretrain


def torchrun(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
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


def test_two_processes__one_cannot_take_their_run_up(folder: Path, store: Path):
    (folder / "whole" / "result.json").unlink()
    with pytest.raises(CheckpointError, match="processes: 2 -> 1"):
        pretrain(store, folder / "whole", **HALVES)
