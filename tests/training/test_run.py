"""How a run goes: with a small stand-in for an objective, so that a run takes a tenth of a second."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tymbal.errors import SettingsError, TrainingError
from tymbal.settings import TrainingSettings
from tymbal.training.run import begin, train
from tymbal.training.run_folder import RunResult

WIDTH = 6


class Rows:
    """A dataset of random rows that notes what was asked for."""

    def __init__(self, length: int, seed: int = 0) -> None:
        self.rows = torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(seed))
        self.asked: list[list[int]] = []
        self.announced: list[list[int]] = []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        self.asked.append(list(indices))
        row = torch.tensor(indices) % len(self)
        return {"x": self.rows[row], "row": row}

    def announce(self, indices: Sequence[int]) -> None:
        self.announced.append(list(indices))


class Copying(nn.Module):
    """Learns to copy its input through dropout, which draws from the global generator."""

    monitor = ("mse", False)

    def __init__(self, *, dropout: float = 0.2, explode_at: int | None = None, scores: Sequence[float] = ()) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.layers = nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, WIDTH))
        self.explode_at = explode_at
        self.scores = list(scores)
        self.shapes: list[int] = []

    def forward(self, x: Tensor, **_: Tensor) -> dict[str, Any]:
        errors = (self.layers(x) - x).square().mean(1)
        if self.training:
            self.shapes.append(len(x))
            if len(self.shapes) == self.explode_at:
                errors = errors / 0
        return {"loss": errors.mean(), "sums": {"mse": errors.sum(), "count": torch.tensor(len(x))}}

    def metrics(self, sums: dict[str, Tensor]) -> dict[str, float]:
        mse = float(sums["mse"] / sums["count"])
        return {"mse": self.scores.pop(0) if self.scores and not self.training else mse}


def settings(**changes: Any) -> TrainingSettings:
    defaults = {"epochs": 3, "batch_size": 4, "learning_rate": 1e-2, "log_every": 2, "device": "cpu"}
    return TrainingSettings(**{**defaults, "precision": "float32", "report_to": (), **changes})


def session(run: Path, module: Copying | None = None, *, data: Rows | None = None, **changes: Any) -> RunResult:
    """Begins or continues a run as a verb does."""
    chosen = settings(**changes)
    finished = begin("pretrain", run, {"store": "rows"}, chosen, resume="auto")
    if finished is not None:
        return finished
    module = module or Copying()

    def finalise(result: RunResult) -> None:
        result.model.mkdir(exist_ok=True)
        (result.model / "config.json").write_text("{}")
        torch.save(module.state_dict(), result.model / "weights.pt")

    return train(
        module, data or Rows(20), Rows(6, seed=1), settings=chosen, run=run, verb="pretrain", finalise=finalise
    )


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def interrupt(run: Path, call: int, **changes: Any) -> None:
    """A session that ends with an error in the forward pass of a step."""

    class Interrupted(Copying):
        def forward(self, x: Tensor, **_: Tensor) -> dict[str, Any]:
            if len(self.shapes) == call:
                raise KeyboardInterrupt
            return super().forward(x)

    with pytest.raises(KeyboardInterrupt):
        session(run, Interrupted(), **changes)


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


def test_train__accumulated_batches_make_the_step_of_a_large_one(tmp_path: Path):
    weights = []
    for name, changes in {"large": {"batch_size": 8}, "small": {"batch_size": 2, "accumulate": 4}}.items():
        session(tmp_path / name, Copying(dropout=0), **changes)
        weights.append(torch.load(tmp_path / name / "model" / "weights.pt", weights_only=True))
    large, small = weights
    assert all(torch.allclose(large[key], small[key], atol=1e-6) for key in large)


def test_train__schedule_knows_the_exact_steps(tmp_path: Path):
    session(tmp_path / "run", epochs=5, batch_size=3, warmup=0.2, log_every=1, learning_rate=1.0, clip_norm=0.1)
    rates = [line["learning_rate"] for line in lines(tmp_path / "run") if "loss" in line]
    assert len(rates) == 34  # 100 clips in steps of 3
    assert rates.index(max(rates)) == 7
    assert rates[0] == 0
    assert max(rates) == 1
    assert 0 < rates[-1] < 0.01


@pytest.mark.parametrize("explode_at", [1, 7, 8])
def test_train__a_loss_that_is_not_finite_stops_the_run(explode_at: int, tmp_path: Path):
    run = tmp_path / "run"
    with pytest.raises(TrainingError) as caught:
        session(run, Copying(explode_at=explode_at))
    message = str(caught.value)
    assert "not a finite number" in message
    assert "--learning-rate (try 0.0033)" in message
    assert "tymbal scan" in message
    kept = {path.name for path in run.glob("checkpoints/*")}
    assert kept == (set() if explode_at == 1 else {"checkpoint-5"})
    assert not (run / "model").exists()
    assert all(line["step"] < explode_at for line in lines(run))


def test_train__weights_that_are_not_finite_are_never_saved(tmp_path: Path):
    class Broken(Copying):
        """Its loss stays finite, its weights do not."""

        def forward(self, x: Tensor, **_: Tensor) -> dict[str, Any]:
            outputs = super().forward(x)
            if len(self.shapes) == 7 and self.training:
                self.layers[3].bias.register_hook(lambda gradient: gradient * torch.nan)
            return {**outputs, "loss": outputs["loss"].nan_to_num()}

    run = tmp_path / "run"
    with pytest.raises(TrainingError, match="weights or optimizer are not finite"):
        session(run, Broken(), clip_norm=0.0)
    assert {path.name for path in run.glob("checkpoints/*")} == {"checkpoint-5"}


def test_train__stops_early_without_progress(tmp_path: Path):
    run = tmp_path / "run"
    result = session(run, Copying(scores=[0.5, 0.4, 0.4, 0.41, 0.1]), epochs=9, patience=2)
    assert (result.ended, result.steps, result.best_step) == ("patience", 20, 10)


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


def test_train__stops_when_the_minutes_are_used_up(tmp_path: Path):
    run = tmp_path / "run"
    result = session(run, epochs=100_000, max_minutes=0.5 / 60, eval_every=1e4)
    assert result.ended == "minutes"
    assert 0 < result.steps < 500_000
    last = lines(run)[-1]
    assert last["step"] == result.steps
    assert last["eval_mse"] == result.metrics["eval_mse"]
    assert 0.5 <= last["seconds"] < 5
    assert session(run, epochs=100_000, max_minutes=0.5 / 60, eval_every=1e4).steps == result.steps
    more = session(run, epochs=100_000, max_minutes=1 / 60, eval_every=1e4)
    assert more.steps > result.steps


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


def test_train__no_step_waits_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What would wait is reading a tensor from Python. A run of five times the steps reads no more of them."""
    reads = 0

    def counted(original: Any) -> Any:
        def read(*args: Any, **kwargs: Any) -> Any:
            nonlocal reads
            reads += 1
            return original(*args, **kwargs)

        return read

    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(Tensor, name, counted(getattr(Tensor, name)))
    totals = []
    for epochs in (4, 20):
        reads = 0
        session(tmp_path / str(epochs), epochs=epochs, eval_every=epochs, log_every=100)
        totals.append(reads)
    assert 0 < totals[0] == totals[1]


def test_train__evaluation_keeps_no_outputs(tmp_path: Path):
    class Wide(Copying):
        def forward(self, x: Tensor, **_: Tensor) -> dict[str, Any]:
            outputs = super().forward(x)
            if not self.training:
                held.append(len(alive))
                wide = torch.zeros(10_000)
                alive.add(wide)
                outputs["reconstruction"] = wide
            return outputs

    import weakref

    held: list[int] = []
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    session(tmp_path / "run", Wide(), batch_size=1)
    assert len(held) == 18
    assert max(held) <= 1


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


def test_begin__a_first_command_that_failed_does_not_bind(tmp_path: Path):
    begin("pretrain", tmp_path / "run", {"store": "rows"}, settings(seed=1), resume="auto")
    assert session(tmp_path / "run", seed=2).steps == 15


def test_begin__run_of_another_verb_is_refused(tmp_path: Path):
    session(tmp_path / "run")
    with pytest.raises(SettingsError, match="holds a 'pretrain' run, this is 'finetune'"):
        begin("finetune", tmp_path / "run", {"source": "rows"}, settings(), resume="auto")
