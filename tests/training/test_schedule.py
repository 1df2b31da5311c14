"""Schedules: the rates that they give, and that a plateau survives a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from training_setup import TINY
from tymbal.errors import SettingsError
from tymbal.pretrain import pretrain
from tymbal.settings import PretrainSettings
from tymbal.training.batches import BatchPlan
from tymbal.training.optimization import Plateau, make_optimizer, make_schedule, parameter_groups, step_scale


def optimizer(rate: float = 1.0) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate}])


def rate(schedule: Plateau) -> float:
    return schedule.optimizer.param_groups[0]["lr"]


def test_plateau__warms_up_and_falls_after_patience():
    schedule = Plateau(optimizer(2.0), warmup=4, patience=1, factor=0.5)
    seen = []
    for _ in range(6):
        seen.append(rate(schedule))
        schedule.optimizer.step()
        schedule.step()
    assert seen == [0, 0.5, 1.0, 1.5, 2.0, 2.0]
    rates = []
    for value in (0.3, 0.5, 0.5, 0.4, float("nan"), 0.2, 0.6):
        schedule.observe(value, greater=True)
        rates.append(rate(schedule))
    assert rates == [2, 2, 2, 1, 1, 0.5, 0.5]
    other = Plateau(optimizer(2.0), warmup=4, patience=1, factor=0.5)
    other.load_state_dict(schedule.state_dict())
    assert (other.scale, other.best, other.idle) == (0.25, 0.6, 0)


def test_plateau__lower_may_be_better():
    schedule = Plateau(optimizer(), warmup=0, patience=0, factor=0.1)
    for value, wanted in ((3.0, 1.0), (2.0, 1.0), (1.95, 0.1), (1.0, 0.1)):
        schedule.observe(value, greater=False, min_progress=0.1)
        assert rate(schedule) == pytest.approx(wanted)


def test_step_scale__falls_after_epochs():
    plan = BatchPlan(length=10, batch_sizes=(5,), epochs=8)
    scale = step_scale(plan, start=3, every=2, factor=0.5)
    assert [scale(2 * epoch) for epoch in range(9)] == [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]


def test_make_schedule__says_that_a_warmup_is_too_long(capsys):
    settings = PretrainSettings(schedule="plateau", learning_rate=1e-3)
    make_schedule(settings, BatchPlan(length=10, batch_sizes=(5,)), optimizer(), warmup=1000)
    assert "warm-up of 1,000 steps is longer than the run of 2" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)]
)
def test_make_optimizer__is_what_was_asked_for(name, kind):
    settings = PretrainSettings(optimizer=name, adam_beta1=0.95, adam_beta2=0.999, weight_decay=5e-7)
    groups = parameter_groups(nn.Linear(2, 2).named_parameters(), learning_rate=1e-3, weight_decay=5e-7)
    made = make_optimizer(settings, groups)
    assert type(made) is kind
    assert [group["weight_decay"] for group in made.param_groups] == [5e-7, 0.0]
    assert made.defaults.get("betas", (made.defaults.get("momentum"), 0.999)) == (0.95, 0.999)


SLOW = {**TINY, "schedule": "plateau", "plateau_patience": 0, "min_progress": 10.0, "warmup": 6, "eval_steps": 4}


def logged(run: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["learning_rate"]) for line in lines if "loss" in line]


def test_pretrain__plateau_goes_on_after_a_kill(store, tmp_path, monkeypatch):
    from tymbal.training.trainer import TymbalTrainer

    whole = pretrain(store, tmp_path / "whole", **SLOW, average_from=2)
    rates = dict(logged(whole.run))
    # Nothing counts as progress: the first evaluation is the best, every later one halves the rate.
    assert [rates[step] / 3e-3 for step in (2, 4, 8, 12, 16, 19)] == pytest.approx([1 / 6, 1 / 2, 1, 0.5, 0.25, 0.125])
    calls, original = [], TymbalTrainer.compute_loss

    def failing(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 15:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(TymbalTrainer, "compute_loss", failing)
    with pytest.raises(KeyboardInterrupt):
        pretrain(store, tmp_path / "killed", **SLOW, average_from=2)
    result = pretrain(store, tmp_path / "killed", **SLOW, average_from=2)
    assert logged(result.run) == logged(whole.run)
    for model in ("model", "average"):
        for run in (whole.run, result.run):
            assert (run / model / "config.json").is_file()
        ours, theirs = ((run / model / "model.safetensors").read_bytes() for run in (whole.run, result.run))
        assert ours == theirs
    assert (whole.run / "model" / "model.safetensors").read_bytes() != theirs


def test_pretrain__goals_need_validation(tmp_path):
    from training_setup import make_store

    store = make_store(tmp_path / "store", validation=0).path
    with pytest.raises(SettingsError, match="schedule plateau needs validation clips"):
        pretrain(store, tmp_path / "run", **{**TINY, "schedule": "plateau"})


def test_order__weights_draw_with_replacement():
    import numpy as np

    weights = np.array([0.0, 1.0, 3.0, 0.0])
    plan = BatchPlan(length=4, batch_sizes=(2,), epochs=500, weights=weights)
    drawn = np.concatenate([plan.order(epoch) for epoch in range(500)])
    share = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(share, [0, 0.25, 0.75, 0], atol=0.03)
    assert (plan.order(3) == plan.order(3)).all()
    assert plan.fingerprint() != BatchPlan(length=4, batch_sizes=(2,), epochs=500).fingerprint()
