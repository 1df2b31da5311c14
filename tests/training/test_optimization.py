"""What changes the weights and how fast: parameter groups, optimizers, schedules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import small_run
from training_setup import TINY
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.pretrain import pretrain
from tymbal.settings import PretrainSettings
from tymbal.training.batches import BatchPlan, PlannedBatchSampler
from tymbal.training.optimization import (
    Plateau,
    make_optimizer,
    make_schedule,
    parameter_groups,
    schedule_scale,
    step_scale,
    warmup_scale,
    warmup_steps,
)


def test_parameter_groups__only_matrices_decay():
    encoder = SpectrogramEncoder(EncoderConfig(width=8, depth=1, heads=2, mels=16, frames=16, patch=(8, 8)))
    named = dict(encoder.named_parameters())
    decayed, plain = parameter_groups(named.items(), learning_rate=0.1, weight_decay=0.05)
    names = {id(parameter): name for name, parameter in named.items()}
    assert {names[id(parameter)] for parameter in decayed["params"]} == {
        "patch_projection.weight",
        "blocks.0.attention.qkv.weight",
        "blocks.0.attention.projection.weight",
        "blocks.0.fc1.weight",
        "blocks.0.fc2.weight",
    }
    assert {"cls_token", "position_embedding", "norm.weight", "blocks.0.fc1.bias"} <= {
        names[id(parameter)] for parameter in plain["params"]
    }
    assert len(decayed["params"]) + len(plain["params"]) == len(named)
    assert (decayed["weight_decay"], plain["weight_decay"], decayed["lr"]) == (0.05, 0.0, 0.1)


def test_parameter_groups__frozen_parameters_are_in_none():
    layer = nn.Linear(2, 2)
    layer.weight.requires_grad = False
    (group,) = parameter_groups(layer.named_parameters(), learning_rate=0.1, weight_decay=0.05)
    assert group["params"] == [layer.bias]
    torch.optim.AdamW([group])


def optimizer(rate: float = 1.0) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate}])


def rate(schedule: Plateau) -> float:
    return schedule.optimizer.param_groups[0]["lr"]


def rates_of(schedule: Any, steps: int) -> list[float]:
    """The rates of so many steps."""
    rates = []
    for _ in range(steps):
        rates.append(rate(schedule))
        schedule.optimizer.step()
        schedule.step()
    return rates


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
    assert made.defaults["fused"]  # as fast as it can be, and the same last digits on every resume
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


def weights_after(run: Path, **changes: Any) -> dict[str, Tensor]:
    small_run.session(run, small_run.Copying(dropout=0), **changes)
    weights: dict[str, Tensor] = torch.load(run / "model" / "weights.pt", weights_only=True)
    return weights


@pytest.mark.parametrize(
    "changes", [{"clip_norm": 0.1}, {"adam_beta1": 0.5}, {"adam_beta2": 0.5}, {"weight_decay": 0.3}]
)
def test_settings_of_the_optimizer__change_the_weights(changes: dict[str, float], tmp_path: Path):
    plain = weights_after(tmp_path / "plain")
    changed = weights_after(tmp_path / "changed", **changes)
    assert all((changed[name] - plain[name]).abs().max() > 1e-4 for name in plain)


def test_steps__are_those_of_adamw_with_clipped_gradients(tmp_path: Path):
    clip, betas, decay = 0.05, (0.8, 0.9), 0.4
    ours = weights_after(
        tmp_path / "run",
        schedule="constant",
        warmup=0,
        epochs=2,
        clip_norm=clip,
        adam_beta1=betas[0],
        adam_beta2=betas[1],
        weight_decay=decay,
    )
    module, rows = small_run.Copying(dropout=0), small_run.Rows(20)
    matrices = [value for value in module.parameters() if value.ndim == 2]
    others = [value for value in module.parameters() if value.ndim == 1]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=1e-2, betas=betas)
    for indices in PlannedBatchSampler(BatchPlan(length=20, batch_sizes=(4,), epochs=2, seed=42)):
        module(**rows.__getitems__(indices))["loss"].backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), clip)
        assert norm > clip
        reference.step()
        reference.zero_grad()
    for name, value in module.state_dict().items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-6)


def test_warmup_scale__rises_in_equal_steps():
    assert [warmup_scale(step, 4) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert [warmup_scale(step, 0) for step in range(2)] == [1, 1]


def test_plateau__no_gain_is_no_progress_and_the_rate_keeps_its_warmup():
    schedule = Plateau(optimizer(8.0), warmup=4, patience=1, factor=0.5)
    for _ in range(2):
        schedule.optimizer.step()
        schedule.step()
    rates = []
    for value in (0.5, 0.5, 0.5, 0.6, 0.6):
        schedule.observe(value, greater=True)
        rates.append((rate(schedule), schedule.get_last_lr(), schedule.best, schedule.idle))
    # Half way through the warm-up: 4, and after the fall 2.
    assert rates == [(4, [4], 0.5, 0), (4, [4], 0.5, 1), (2, [2], 0.5, 0), (2, [2], 0.6, 0), (2, [2], 0.6, 1)]
    for _ in range(2):
        schedule.optimizer.step()
        schedule.step()
    assert rate(schedule) == 4


def test_plateau__what_is_not_a_number_at_first_is_no_best():
    schedule = Plateau(optimizer(), warmup=0, patience=5, factor=0.5)
    schedule.observe(float("nan"), greater=False)
    assert (schedule.best, schedule.idle) == (None, 1)
    schedule.observe(3.0, greater=False, min_progress=0.5)
    schedule.observe(2.5, greater=False, min_progress=0.5)
    assert (schedule.best, schedule.idle) == (3.0, 1)


def test_make_schedule__steps_fall_behind_the_warmup(capsys):
    settings = PretrainSettings(schedule="step", step_start=1, step_every=2, step_factor=0.5)
    plan = BatchPlan(length=10, batch_sizes=(5,), epochs=4)
    rates = rates_of(make_schedule(settings, plan, optimizer(8.0), warmup=4), plan.steps)
    # Two steps an epoch: half of it from epoch 1 on, a quarter from epoch 3 on.
    assert rates == [0, 2, 2, 3, 4, 4, 2, 2]
    assert make_schedule(settings, plan, optimizer(), warmup=8) is not None
    assert make_schedule(PretrainSettings(schedule="cosine"), plan, optimizer(), warmup=8) is None
    assert capsys.readouterr().err == ""


def test_make_schedule__a_plateau_has_its_settings():
    settings = PretrainSettings(schedule="plateau", plateau_patience=3, plateau_factor=0.3)
    schedule = make_schedule(settings, BatchPlan(length=10, batch_sizes=(5,)), optimizer(), warmup=2)
    assert isinstance(schedule, Plateau)
    assert (schedule.warmup, schedule.patience, schedule.factor) == (2, 3, 0.3)


def test_step_scale__a_rounding_error_moves_no_fall():
    plan = BatchPlan(length=30, batch_sizes=(1,), epochs=3)
    scale = step_scale(plan, start=0.1 + 0.2, every=0.1, factor=0.5)
    assert [scale(step) for step in (8, 9, 11, 12, 15)] == [1, 0.5, 0.5, 0.25, 0.125]


@pytest.mark.parametrize(("greater", "values"), [(True, (1.0, 1.06, 1.11)), (False, (1.0, 0.94, 0.89))])
def test_plateau__progress_is_counted_in_the_metric(greater: bool, values: tuple[float, ...]):
    schedule = Plateau(optimizer(), warmup=0, patience=9, factor=0.5)
    idle = []
    for value in values:
        schedule.observe(value, greater=greater, min_progress=0.1)
        idle.append(schedule.idle)
    assert idle == [0, 1, 0]


@pytest.mark.parametrize(
    ("name", "theirs"), [("cosine", "cosine"), ("linear", "linear"), ("constant", "constant_with_warmup")]
)
@pytest.mark.parametrize("warmup", [0, 7, 0.1])
def test_schedule_scale__is_that_of_transformers(name: str, theirs: str, warmup: float):
    from transformers import TrainingArguments, get_scheduler

    steps = 43
    rising = warmup_steps(warmup, steps)
    assert rising == TrainingArguments(warmup_steps=warmup, use_cpu=True).get_warmup_steps(steps)
    schedule = get_scheduler(theirs, optimizer(), num_warmup_steps=rising, num_training_steps=steps)
    expected = []
    for _ in range(steps + 1):
        expected.append(schedule.get_last_lr()[0])
        schedule.optimizer.step()
        schedule.step()
    assert [schedule_scale(name, step, rising, steps) for step in range(steps + 1)] == expected


def test_make_schedule__follows_what_the_plan_settles_on():
    plan = BatchPlan(length=10, batch_sizes=(1,), epochs=100, measured=0)
    schedule = make_schedule(PretrainSettings(warmup=0.1), plan, optimizer(2.0), warmup=100)
    assert schedule is not None
    rates = []
    for step in range(1, 51):
        schedule.optimizer.step()
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
        if step == 3:
            plan.settle(50, at=3)
    assert rates[:6] == pytest.approx([0.02, 0.04, 0.06, 1.6, 2.0, 2.0 * schedule_scale("cosine", 6, 5, 50)])
    assert rates[-1] == 0


def test_make_schedule__a_warmup_may_override_the_falls_in_it():
    settings = PretrainSettings(schedule="step", step_start=1, step_every=2, step_factor=0.5, fall_in_warmup=False)
    plan = BatchPlan(length=10, batch_sizes=(5,), epochs=4)
    rates = rates_of(make_schedule(settings, plan, optimizer(8.0), warmup=4), plan.steps)
    # The fall of epoch 1 is over with the warm-up; that of epoch 3 holds.
    assert rates == [0, 2, 4, 6, 8, 8, 4, 4]


def test_plateau__falls_in_the_warmup_may_be_over_with_it():
    schedule = Plateau(optimizer(2.0), warmup=2, patience=0, factor=0.5, fall_in_warmup=False)
    rates = []
    for value in (0.5, 0.4, 0.3, 0.2):
        schedule.observe(value, greater=True)
        schedule.optimizer.step()
        schedule.step()
        rates.append(rate(schedule))
    # The second and the third come at step 1 and 2 of the warm-up's 2; the fourth holds.
    assert rates == [1, 2, 2, 1]
