from __future__ import annotations

import numpy as np
import pytest
import torch

from tymbal.compat.ssast_command import d_prime, finetuning_row, pretraining_row, save_pretrained, write_rows
from tymbal.features.normalisation import Normalisation
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.objectives.ssast import SSASTObjective


def test_rows__have_the_columns_of_the_reference():
    train = {"loss": 5.0, "acc": 0.1, "nce": 3.0, "mse": 0.2, "learning_rate": 1e-4}
    found = {"eval_acc": 0.3, "eval_nce": 2.5, "eval_mse": 0.15}
    assert pretraining_row("joint")(train, found) == [0.1, 5.0, 0.3, 0.15, 1e-4]
    assert pretraining_row("mpc")(train, found) == [0.1, 5.0, 0.3, 2.5, 1e-4]
    assert pretraining_row("mpg")(train, found) == [0.2, 5.0, 0.15, 0.15, 1e-4]
    figures = {"mAP": 0.4, "auc": 0.9, "middle_precision": 0.1, "middle_recall": 0.7, "loss": 0.3}
    figures |= {"ensemble_mAP": 0.45, "ensemble_auc": 0.91}
    row = finetuning_row("mAP")(train, {f"eval_{name}": value for name, value in figures.items()})
    assert row == pytest.approx([0.4, 0.9, 0.1, 0.7, 1.812388, 5.0, 0.3, 0.45, 0.91, 1e-4], abs=1e-6)


def test_d_prime__at_its_ends():
    assert d_prime(0.5) == 0
    assert d_prime(1.0) == np.inf
    assert np.isnan(d_prime(float("nan")))


def test_write_rows__numpy_reads_them(tmp_path):
    write_rows(tmp_path / "a.csv", [[1.5, float("nan")], [-2e-9, 3.0]])
    np.testing.assert_array_equal(np.loadtxt(tmp_path / "a.csv", delimiter=","), [[1.5, np.nan], [-2e-9, 3.0]])


@pytest.mark.parametrize("settings", [{"task": "mpc"}, {"task": "joint", "encode": "visible"}])
def test_save_pretrained__has_both_heads_whatever_was_trained(settings, tmp_path):
    config = EncoderConfig(width=64, depth=1, heads=1, mels=32, frames=32)
    torch.manual_seed(1)
    normalisation = Normalisation(mean=0, std=1, padding=0)
    objective = SSASTObjective(SpectrogramEncoder(config), normalisation=normalisation, mask_ratio=0.5, **settings)
    save_pretrained(tmp_path / "a.pth", objective.encoder, objective.head_state())
    written = torch.load(tmp_path / "a.pth", weights_only=True)
    heads = {name for name in written if "predlayer" in name}
    assert heads == {f"module.{h}predlayer.{i}.{part}" for h in "cg" for i in (0, 2) for part in ("weight", "bias")}
    assert written["module.gpredlayer.2.weight"].shape == (256, 64)
    trained = written["module.cpredlayer.0.weight"].equal(objective.heads["cpred"][0].weight)
    assert trained == (objective.decoder is None)
