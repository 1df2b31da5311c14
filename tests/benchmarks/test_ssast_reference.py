"""The peer of the benchmarks computes what SSAST computes, and the benchmark compares what it says it compares."""

from __future__ import annotations

import argparse
import importlib
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

FAKE = """
import sys
import torch
sys.path.insert(0, {benchmarks!r})
from _ssast_reference import ReferenceSSAST

print("a greeting that is no answer")

class ASTModel(torch.nn.Module):
    def __init__(self, *, fshape, tshape, fstride, tstride, input_fdim, input_tdim, model_size, pretrain_stage):
        super().__init__()
        assert (fshape, tshape, fstride, tstride, model_size, pretrain_stage) == (16, 16, 16, 16, "tiny", True)
        self.model = ReferenceSSAST(width=8, depth=1, heads=2, mels=input_fdim, frames=input_tdim)

    def forward(self, spectrogram, task, mask_patch):
        return getattr(self.model, task[-3:])(spectrogram, mask_patch)
"""


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.mark.parametrize(("name", "patch", "frames"), [("patch", (16, 16), 256), ("frame", (128, 2), 128)])
def test_reference__has_the_recorded_losses(load, shared, name, patch, frames):
    module = load("_ssast_reference")
    weights = torch.load(shared / "fixtures" / f"ssast_{name}.pth", weights_only=True)
    weights = {name.removeprefix("module."): value for name, value in weights.items() if ".head" not in name}
    width, depth = weights["mask_embed"].shape[2], len({key.split(".")[2] for key in weights if "v.blocks" in key})
    reference = module.ReferenceSSAST(width=width, depth=depth, heads=width // 64, frames=frames, patch=patch)
    reference.load_state_dict(weights)
    recorded = np.load(shared / "fixtures" / f"ssast_{name}_expected.npz")
    spectrogram, index = torch.from_numpy(recorded["input"]), torch.from_numpy(recorded["mask_index"])
    with torch.no_grad():
        acc, nce = reference.mpc(spectrogram, index.shape[1], index)
        mse = reference.mpg(spectrogram, index.shape[1], index)
    for figure, wanted in ((acc, "acc"), (nce, "nce"), (mse, "mse")):
        assert abs(float(figure) - float(recorded[wanted])) < 1e-4, wanted


def test_reference__draws_masks_with_the_known_bias(load):
    draw, source = load("_ssast_reference").draw_cluster, random.Random(0)
    rate, draws = np.zeros(512), 200
    for _ in range(draws):
        chosen = draw(512, 64, 400, source)
        assert len(set(chosen)) == 400
        rate[chosen] += 1 / draws
    assert rate[0] == rate[-1] == 0
    known = [0.415, 0.670, 0.812, 0.872, 0.889, 0.888, 0.885, 0.819]
    np.testing.assert_allclose(rate.reshape(8, 64).mean(1), known, atol=0.015)


def arguments(**options: object) -> argparse.Namespace:
    small = {"size": "tiny", "frames": 64, "mels": 64, "batch": 2, "masked": 10, "rounds": 2, "threads": 1}
    flags = {
        "finetune": 0,
        "compile": False,
        "clock": "process_time",
        "plain_malloc": True,
        "reference_python": None,
        "ssast": None,
    }
    return argparse.Namespace(**{**small, **flags, **options})


def test_step__checks_that_both_sides_compute_the_same(load, capsys):
    step, reference = load("ssast_step"), load("_ssast_reference")
    torch.manual_seed(0)
    model = reference.ReferenceSSAST(width=32, depth=1, heads=2, mels=64, frames=64)
    step.check_losses(model, torch.randn(2, 64, 64), 10)
    ours, theirs = [float(word) for word in capsys.readouterr().out.split() if word[0].isdigit() and "." in word][:2]
    assert ours == pytest.approx(theirs, abs=1e-4)
    model.mpg = lambda *given: torch.zeros((), requires_grad=True)
    with pytest.raises(SystemExit, match="not the same"):
        step.check_losses(model, torch.randn(2, 64, 64), 10)


def test_step__times_all_sides(load, monkeypatch):
    step, reference = load("ssast_step"), load("_ssast_reference")
    model = reference.ReferenceSSAST(width=32, depth=1, heads=2, mels=64, frames=64)
    before = model.v.pos_embed.detach().clone()
    monkeypatch.setattr(step, "has_bf16", lambda device: False)
    sides = step.all_sides(arguments(), model, torch.randn(2, 64, 64), torch.device("cpu"))
    seconds = step.measure(sides, 2)
    assert [len(times) for times in seconds.values()] == [2, 2, 2]
    assert all(time > 0 for times in seconds.values() for time in times)
    assert not torch.equal(model.v.pos_embed, before)
    lines = step.figures(sides, seconds).splitlines()
    assert [line.split("  ")[0] for line in lines[1:4]] == [
        "the reference's algorithm",
        "ours, one pass",
        "ours, visible only (2)",
    ]
    assert lines[1].endswith("1.00")
    assert "probe" in lines[4]


def test_step__of_fine_tuning_has_equal_losses_and_its_bound(load, monkeypatch, capsys):
    step, reference = load("ssast_step"), load("_ssast_reference")
    model = reference.ReferenceSSAST(width=192, depth=1, heads=3, mels=64, frames=64)
    monkeypatch.setattr(step, "has_bf16", lambda device: False)
    sides = step.finetuning_sides(arguments(finetune=3), model, torch.randn(2, 64, 64), torch.device("cpu"))
    theirs, ours = (float(word.rstrip(",")) for word in capsys.readouterr().out.split() if word[0].isdigit())
    assert ours == pytest.approx(theirs, abs=2e-6)
    seconds = step.measure(sides, 2)
    assert list(seconds) == ["the reference's algorithm", "ours, float32", "the products of ours in float32 alone"]
    assert all(time > 0 for times in seconds.values() for time in times)


@pytest.mark.slow
def test_step__asks_another_environment_for_its_seconds(load, tmp_path):
    (tmp_path / "src" / "models").mkdir(parents=True)
    (tmp_path / "src" / "models" / "__init__.py").write_text(FAKE.format(benchmarks=str(BENCHMARKS)))
    step = load("ssast_step")
    given = arguments(reference_python=sys.executable, ssast=str(tmp_path))
    peer = step.Peer(given, torch.device("cpu"))
    assert all(0 < peer.step() < 60 for _ in range(3))
    (tmp_path / "src" / "models" / "__init__.py").write_text("raise ImportError('no timm')")
    with pytest.raises(SystemExit, match="ended with 1"):
        step.Peer(given, torch.device("cpu")).step()
