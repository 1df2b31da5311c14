"""A pretraining that encodes visible patches only, and one that goes on from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training_setup import TINY
from tymbal.models.folder import load_model
from tymbal.pretrain import pretrain

VISIBLE = {**TINY, "encode": "visible", "decoder_width": 8, "mask": "cluster", "cluster_min": 1, "cluster_max": 2}


def test_pretrain__keeps_the_decoder_and_goes_on_with_it(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    pretrain(store, tmp_path / "first", **VISIBLE, max_steps=2)
    model = load_model(tmp_path / "first")
    chosen = {name: model.description.objective[name] for name in ("encode", "decoder_width", "cluster_max")}
    assert chosen == {"encode": "visible", "decoder_width": 8, "cluster_max": 2}
    assert model.objective_state["decoder.embed.weight"].shape == (8, 16)
    assert "heads of its pretraining" not in capsys.readouterr().err
    still = {**VISIBLE, "from_": str(tmp_path / "first"), "learning_rate": 1e-12, "max_steps": 1}
    pretrain(store, tmp_path / "second", **still)
    assert "heads of its pretraining" in capsys.readouterr().err
    for name, value in load_model(tmp_path / "second").objective_state.items():
        torch.testing.assert_close(value, model.objective_state[name])
