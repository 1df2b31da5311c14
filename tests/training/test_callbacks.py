"""What happens at fixed moments of a run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerControl

from tymbal.stopping import StopRequest
from tymbal.training import callbacks as signals
from tymbal.training.batches import BatchPlan
from tymbal.training.callbacks import Timetable, is_better


def test_agreement__about_once_a_second_and_never_less_than_a_step(monkeypatch: pytest.MonkeyPatch):
    now = 0.0
    asked: list[int] = []
    arguments = SimpleNamespace(world_size=2, device=torch.device("cpu"))
    state, control = SimpleNamespace(global_step=0), SimpleNamespace(should_training_stop=False)
    monkeypatch.setattr(signals.time, "monotonic", lambda: now)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_, **__: asked.append(state.global_step))
    callback = signals.StopOnSignal(StopRequest())
    callback.on_train_begin(arguments, state, control)
    for seconds in [0.1] * 40 + [5.0] * 5:
        now += seconds
        state.global_step += 1
        callback.on_step_end(arguments, state, control)
    # Step 41 is the tenth since they last met: the mean of those is 0.59 s.
    assert asked == [1, 11, 21, 31, 41, 43, 44, 45]


def due(steps: int, **settings: Any) -> dict[str, list[int]]:
    """The steps after which a timetable logs, evaluates, saves and stops: 10 clips in steps of 4, two epochs."""
    plan = BatchPlan(length=10, batch_sizes=(4,), epochs=2)
    timetable = Timetable(plan, **{"log_every": 100, "eval_every": 1.0, **settings})
    found: dict[str, list[int]] = {"log": [], "evaluate": [], "save": [], "training_stop": []}
    for step in range(1, steps + 1):
        control, state = TrainerControl(), SimpleNamespace(global_step=step, epoch=None)
        timetable.on_step_end(None, state, control)
        assert state.epoch == 4 * step / 10
        for name, when in found.items():
            when.extend([step] if getattr(control, f"should_{name}") else [])
    return found


def test_timetable__follows_the_epochs_of_the_plan():
    assert due(5) == {"log": [3, 5], "evaluate": [3, 5], "save": [3, 5], "training_stop": [5]}


def test_timetable__logs_wherever_it_evaluates_or_saves():
    every = due(5, log_every=2, eval_steps=4, save_every=0.4)
    assert every == {"log": [1, 2, 3, 4, 5], "evaluate": [4, 5], "save": [1, 2, 3, 4, 5], "training_stop": [5]}
    without = due(5, validates=False)
    assert without == {"log": [3, 5], "evaluate": [], "save": [3, 5], "training_stop": [5]}


def test_timetable__saves_a_new_best_model():
    timetable = Timetable(BatchPlan(length=10, batch_sizes=(4,)), log_every=1, eval_every=1.0)
    arguments = SimpleNamespace(metric_for_best_model="acc", greater_is_better=True)
    state = SimpleNamespace(global_step=3, best_metric=0.5, best_global_step=1)
    for value, best, saves in ((0.5, 1, False), (float("nan"), 1, False), (0.6, 3, True)):
        control = TrainerControl()
        timetable.on_evaluate(arguments, state, control, metrics={"eval_acc": value})
        assert (state.best_global_step, control.should_save) == (best, saves)


def test_is_better__greater_or_smaller():
    assert is_better(1.0, None, greater=True)
    assert is_better(0.4, 0.5, greater=False)
    assert not is_better(0.4, 0.5, greater=True)
    assert not is_better(0.5, 0.5, greater=False)
