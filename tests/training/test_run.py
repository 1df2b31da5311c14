"""How a run goes, from its beginning to its model."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from small_run import Copying, Rows, lines, session, settings
from tymbal.errors import SettingsError, TrainingError
from tymbal.training import callbacks
from tymbal.training.beginning import begin
from tymbal.training.run import train


def test_train__learns_and_reports(tmp_path: Path):
    result = session(tmp_path / "run", epochs=30, eval_every=5)
    assert (result.steps, result.ended) == (150, "steps")
    logged = lines(tmp_path / "run")
    evaluations = [line["eval_mse"] for line in logged if "eval_mse" in line]
    assert len(evaluations) == 6
    assert evaluations[-1] < 0.5 * evaluations[0]
    assert result.metrics["eval_mse"] == min(evaluations)
    # The loss of `Trainer` and the objective's sum are the same thing, computed in two ways.
    assert all(line["mse"] == pytest.approx(line["loss"], rel=1e-5) for line in logged if "loss" in line)


def test_train__saves_the_weights_of_the_best_step(tmp_path: Path):
    run = tmp_path / "run"
    module = Copying(scores=[0.5, 0.2, 0.3, 0.4])
    result = session(run, module, epochs=4, keep_checkpoints=1)
    assert (result.best_step, result.steps) == (10, 20)
    assert result.metrics["eval_mse"] == 0.2
    assert {path.name for path in run.glob("checkpoints/*")} == {"checkpoint-10", "checkpoint-20"}
    from safetensors.torch import load_file

    best = load_file(run / "checkpoints" / "checkpoint-10" / "model.safetensors")
    saved = torch.load(run / "model" / "weights.pt", weights_only=True)
    assert all(saved[name].equal(best[name]) for name in best)
    assert module.state_dict()["layers.0.weight"].equal(best["layers.0.weight"])


def test_train__stops_early_without_progress(tmp_path: Path):
    run = tmp_path / "run"
    result = session(run, Copying(scores=[0.5, 0.4, 0.4, 0.41, 0.1]), epochs=9, patience=2)
    assert (result.ended, result.steps, result.best_step) == ("patience", 20, 10)


def test_train__stops_when_the_minutes_are_used_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = 0.0

    class Slow(Copying):
        """Takes a second a step, on a clock of its own."""

        def forward(self, x: Tensor, **_: Tensor) -> dict[str, Any]:
            nonlocal now
            now += self.training
            return super().forward(x)

    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: now))
    run, chosen = tmp_path / "run", {"max_steps": 5000, "eval_every": 100}
    result = session(run, Slow(), max_minutes=10 / 60, **chosen)
    assert (result.ended, result.steps) == ("minutes", 10)
    last = lines(run)[-1]
    assert (last["step"], last["seconds"]) == (10, 10)
    assert last["eval_mse"] == result.metrics["eval_mse"]
    assert session(run, Slow(), max_minutes=10 / 60, **chosen).steps == 10
    more = session(run, Slow(), max_minutes=25 / 60, **chosen)
    assert (more.ended, more.steps, lines(run)[-1]["seconds"]) == ("minutes", 25, 25)


def test_train__without_validation_keeps_the_last_weights(tmp_path: Path):
    chosen = settings()
    begin("pretrain", tmp_path, {"store": "rows"}, chosen, resume="auto")
    result = train(
        Copying(), Rows(20), None, settings=chosen, run=tmp_path, verb="pretrain", finalise=lambda result: None
    )
    assert (result.steps, result.best_step) == (15, 15)
    assert "eval_mse" not in result.metrics
    with pytest.raises(SettingsError, match="patience needs validation"):
        train(Copying(), Rows(20), None, settings=settings(patience=1), run=tmp_path, verb="x", finalise=lambda _: None)


def test_train__deterministic_only_while_it_trains(tmp_path: Path):
    seen: list[bool] = []

    class Watching(Copying):
        def forward(self, x: Tensor, **_: Tensor) -> dict[str, Any]:
            seen.append(torch.are_deterministic_algorithms_enabled())
            return super().forward(x)

    session(tmp_path / "plain", Watching())
    assert set(seen) == {False}
    seen.clear()
    session(tmp_path / "run", Watching(), deterministic=True)
    assert set(seen) == {True}
    assert not torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert [line["loss"] for line in lines(tmp_path / "run") if "loss" in line] == [
        line["loss"] for line in lines(tmp_path / "plain") if "loss" in line
    ]


def test_train__what_has_no_deterministic_form_is_named(tmp_path: Path):
    class Unordered(Copying):
        def forward(self, x: Tensor, **_: Tensor) -> dict[str, Any]:
            torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
            return super().forward(x)

    session(tmp_path / "plain", Unordered())
    with pytest.raises(TrainingError, match="deterministic form on this device: put_ "):
        session(tmp_path / "run", Unordered(), deterministic=True)
    assert not torch.are_deterministic_algorithms_enabled()


def test_train__unknown_tracker_is_named(tmp_path: Path):
    with pytest.raises(SettingsError, match="report_to names wandbb, which is not one of tensorboard, wandb, mlflow"):
        session(tmp_path / "run", report_to=("wandbb",))
