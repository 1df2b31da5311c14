"""What happens at fixed moments of a run."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tymbal.stopping import StopRequest
from tymbal.training import callbacks as signals


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
