"""Where a session takes a run up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from small_run import Copying, Rows, interrupt, lines, session
from training_setup import TINY
from tymbal.errors import SettingsError
from tymbal.pretrain import pretrain


def test_train__resumes_the_global_generator(tmp_path: Path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    session(whole, save_every=0.4)
    interrupt(parts, 9, save_every=0.4)
    session(parts, save_every=0.4)
    ours, theirs = (torch.load(run / "model" / "weights.pt", weights_only=True) for run in (parts, whole))
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_train__batch_sizes_by_epoch_reach_the_model_across_a_resume(tmp_path: Path):
    sizes = {"batch_sizes": (1, 2, 5), "epochs": 4, "save_every": 0.25}
    expected = [1] * 20 + [2] * 10 + [5] * 8
    run = tmp_path / "run"
    interrupt(run, 24, **sizes)
    module, data = Copying(), Rows(20)
    result = session(run, module, data=data, **sizes)
    assert result.steps == len(expected) == 38
    # The last checkpoint before step 24 is that of step 23, where epoch 1 is a quarter done and more.
    start = 38 - len(module.shapes)
    assert start == 23
    assert module.shapes == expected[start:]
    assert data.announced == data.asked
    assert [line["batch_size"] for line in lines(run) if line["step"] in (20, 22, 32) and "loss" in line] == [1, 2, 5]


def test_train__patience_counts_across_a_resume(tmp_path: Path):
    run, chosen = tmp_path / "run", {"epochs": 9, "patience": 2}
    scores = [0.5, 0.4, 0.45, 0.44, 0.1]

    class Interrupted(Copying):
        def forward(self, x: Tensor, **_: Tensor) -> dict[str, Any]:
            if len(self.shapes) == 17:
                raise KeyboardInterrupt
            return super().forward(x)

    with pytest.raises(KeyboardInterrupt):
        session(run, Interrupted(scores=scores), **chosen)
    result = session(run, Copying(scores=scores[3:]), **chosen)
    assert (result.ended, result.steps, result.best_step) == ("patience", 20, 10)
    # Killed before its model was saved, it is not trained any further.
    (run / "result.json").unlink()
    (run / "model" / "config.json").rename(run / "gone")
    (run / "model" / "weights.pt").unlink()
    (run / "model").rmdir()
    module = Copying()
    assert session(run, module, **chosen) == result
    assert module.shapes == []


def test_pretrain__goals_need_validation(tmp_path):
    from training_setup import make_store

    store = make_store(tmp_path / "store", validation=0).path
    with pytest.raises(SettingsError, match="schedule plateau needs validation clips"):
        pretrain(store, tmp_path / "run", **{**TINY, "schedule": "plateau"})
