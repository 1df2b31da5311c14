"""Every number that SSAST was recorded to compute, through the public functions: losses, accuracy and logits.

`ssast_*_expected.npz` beside the project says what the reference gives for weights and inputs that lie with it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tymbal
from tymbal.features.normalisation import Normalisation
from tymbal.objectives.ssast import SSASTObjective

NAMES = ("patch", "frame")
CLASSIFIERS = [(name, number) for name in NAMES for number in range(3)]


def recorded(shared: Path, name: str) -> dict[str, np.ndarray]:
    return dict(np.load(shared / "fixtures" / f"ssast_{name}_expected.npz"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("task", "figures"), [("mpc", ("nce", "acc")), ("mpg", ("mse",)), ("joint", ("nce", "mse"))])
def test_pretraining__losses_are_the_references(shared, name, task, figures):
    expected = recorded(shared, name)
    loaded = tymbal.load_model(shared / "fixtures" / f"ssast_{name}.pth")
    plain = Normalisation(mean=0, std=0.5, padding=0)
    objective = SSASTObjective(loaded.module, task=task, normalisation=plain, mask_ratio=0.5).eval()
    objective.load_head_state(loaded.objective_state)
    x, index = (torch.from_numpy(expected[key]) for key in ("input", "mask_index"))
    mask = torch.zeros(len(x), loaded.module.config.num_patches, dtype=torch.bool).scatter(1, index, value=True)
    with torch.no_grad():
        tokens = loaded.module(x, mask=mask).tokens
        result = objective.losses(tokens, loaded.module.patchify(x), index)
    found = objective.metrics(result["sums"])
    for figure in figures:
        assert found[figure] == pytest.approx(float(expected[figure]), abs=1e-4), figure
    total = {"mpc": expected["nce"], "mpg": expected["mse"], "joint": expected["nce"] + 10 * expected["mse"]}[task]
    assert float(result["loss"]) == pytest.approx(float(total), abs=1e-4)


@pytest.mark.parametrize(("name", "number"), CLASSIFIERS)
@pytest.mark.parametrize(("pooling", "task"), [("mean", "avgtok"), ("cls", "cls")])
def test_finetuning__logits_are_the_references(shared, name, number, pooling, task):
    expected = recorded(shared, name)
    stride = (int(expected[f"ft{number}_fstride"]), int(expected[f"ft{number}_tstride"]))
    path = shared / "fixtures" / f"ssast_{name}_finetune{number}.pth"
    model = tymbal.load_model(path, stride=stride, pooling=pooling)
    with torch.no_grad():
        logits = model.module(torch.from_numpy(expected[f"ft{number}_input"]))
    np.testing.assert_allclose(logits.numpy(), expected[f"ft{number}_{task}"], atol=1e-4)
