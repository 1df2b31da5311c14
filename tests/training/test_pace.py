"""How many steps there is time for, and runs that have so many."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from small_run import Copying, lines, session
from tymbal.files import CHECKSUM
from tymbal.training import callbacks
from tymbal.training.batches import BatchPlan
from tymbal.training.optimization import Pace, schedule_scale, warmup_steps

LONG = BatchPlan(length=100, batch_sizes=(10,), epochs=1000)


def settled(pace: Pace, seconds: list[float], *, paused: tuple[int, ...] = ()) -> tuple[int, int | None]:
    """The step at which it is told how many steps fit, where steps take so many seconds; and how many."""
    elapsed = 0.0
    for step, each in enumerate(seconds, 1):
        elapsed += each
        steps = pace.take(step, elapsed, pauses=step in paused)
        if steps is not None:
            return step, steps
    return len(seconds), None


def test_pace__leaves_out_the_first_steps_and_holds_something_back():
    # Of 300 s, 3 % are held back. The first three steps take 2 s, the next eight 1 s: 291 - 14 = 277 are left.
    assert settled(Pace(LONG, 300), [2, 2, 2] + 20 * [1]) == (11, 11 + 277)


def test_pace__measures_a_share_of_the_time():
    assert settled(Pace(LONG, 3000), 100 * [1.0]) == (63, 2910)  # 60 s behind the third step


def test_pace__of_slow_steps_one_has_to_do():
    assert settled(Pace(LONG, 100), 9 * [10.0]) == (2, 9)
    assert settled(Pace(LONG, 100), [60.0, 30.0, 5.0]) == (2, 3)  # one more, at least
    assert settled(Pace(LONG, 100), [200.0, 1.0]) == (2, None)  # the time is over


def test_pace__counts_evaluations_in():
    # 30 clips to evaluate on take a third of their second a clip x 0.1: 1 s after every 20 steps, and at the end.
    pace = Pace(LONG, 300, evaluated=30, every=200)
    assert settled(pace, 11 * [1.0]) == (11, 11 + int((291 - 11 - 1) / (1 + 1 / 20)))
    # One that was measured, in 16 s, says how long it takes: 9 s, and its step is as long as the others.
    pace = Pace(LONG, 300, evaluated=30, every=200)
    assert settled(pace, [1.0] * 5 + [10.0] + 5 * [1.0], paused=(5,)) == (7, 7 + int((291 - 16 - 9) / (1 + 9 / 20)))


def test_pace__counts_clips_and_ends_with_the_epochs():
    growing = BatchPlan(length=100, batch_sizes=(10, 20), epochs=1000)
    # After epoch 0, 10 steps, a step has twice the clips, and takes as long for each: 11 steps in 12 s, then 139 left.
    assert settled(Pace(growing, 300), 10 * [1.0] + [2.0]) == (11, 11 + (291 - 12) // 2)
    short = BatchPlan(length=100, batch_sizes=(10,), epochs=3)
    assert settled(Pace(short, 300), 20 * [1.0]) == (11, 30)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module whose training steps take the given seconds, on a clock of its own, and which may be interrupted."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def make(seconds: float, *, until: int | None = None) -> Copying:
        class Slow(Copying):
            def forward(self, x: Tensor, **_: Tensor) -> dict[str, Any]:
                if len(self.shapes) == until:
                    raise KeyboardInterrupt
                clock.now += seconds * self.training
                return super().forward(x)

        return Slow()

    return make


CHOSEN: dict[str, Any] = {"epochs": 1000, "eval_every": 5, "log_every": 1}  # 5 steps an epoch


def plan_of(run: Path) -> dict[str, Any]:
    newest = max(run.glob("checkpoints/checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    return json.loads((newest / "manifest.json").read_text())["plan"]


def rates_after(run: Path) -> dict[int, float]:
    """The learning rate of each step, by the number of steps that are done before it."""
    return {line["step"] - 1: line["learning_rate"] for line in lines(run) if "loss" in line}


def weights(run: Path) -> dict[str, Tensor]:
    return torch.load(run / "model" / "weights.pt", weights_only=True)


def assert_same(run: Path, other: Path) -> None:
    ours, theirs = weights(run), weights(other)
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_train__warmup_and_decay_end_with_the_minutes(tmp_path: Path, slow: Any):
    result = session(tmp_path, slow(1), max_minutes=100 / 60, **CHOSEN)
    # After 6 steps; of 97 s, 6 are gone, an evaluation of 6 clips counts 0.5 s at the end and after every 25 steps.
    assert plan_of(tmp_path) | {"measured": 6, "steps": 94} == plan_of(tmp_path)
    assert (result.ended, result.steps) == ("steps", 94)
    rates = rates_after(tmp_path)
    assert [rates[done] for done in range(7)] == [1e-2 * schedule_scale("cosine", done, 500, 5000) for done in range(7)]
    # That of the next step was set already when the plan was.
    planned = range(7, 94)
    assert [rates[done] for done in planned] == [1e-2 * schedule_scale("cosine", done, 10, 94) for done in planned]
    assert max(rates, key=lambda done: rates[done]) == warmup_steps(0.1, 94) == 10
    assert rates[93] < 1e-5
    assert [line["step"] for line in lines(tmp_path) if "eval_mse" in line] == [25, 50, 75, 94]


def test_train__a_plateau_has_the_warmup_of_the_steps_that_fit(tmp_path: Path, slow: Any):
    session(tmp_path, slow(1), max_minutes=100 / 60, schedule="plateau", **CHOSEN)
    rates = rates_after(tmp_path)
    assert [rates[done] for done in (6, 7, 9, 10, 20)] == pytest.approx([1.2e-4, 7e-3, 9e-3, 1e-2, 1e-2])


def test_train__a_resumed_run_ends_at_the_step_that_was_decided(
    tmp_path: Path, slow: Any, capsys: pytest.CaptureFixture[str]
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    session(whole, slow(1), max_minutes=100 / 60, **CHOSEN)
    with pytest.raises(KeyboardInterrupt):
        session(parts, slow(1, until=57), max_minutes=100 / 60, **CHOSEN)
    capsys.readouterr()
    result = session(parts, slow(0.1), max_minutes=100 / 60, **CHOSEN)
    assert (result.ended, result.steps) == ("steps", 94)
    assert "Continuing from step 50 of 94" in " ".join(capsys.readouterr().err.split())
    assert_same(parts, whole)
    last, rates = lines(parts)[-1], [[line.get("learning_rate") for line in lines(run)] for run in (parts, whole)]
    assert last["seconds"] == pytest.approx(50 + 4.4)
    assert rates[0] == rates[1]


def test_train__the_plan_holds_when_the_minutes_change_and_a_slow_end_is_cut(tmp_path: Path, slow: Any):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    session(whole, slow(1), max_minutes=100 / 60, **CHOSEN)
    with pytest.raises(KeyboardInterrupt):
        session(parts, slow(1, until=57), max_minutes=100 / 60, **CHOSEN)
    cut = session(parts, slow(10), max_minutes=100 / 60, **CHOSEN)
    assert (cut.ended, cut.steps) == ("minutes", 55)  # 50 s before, and 5 steps of 10 s
    assert session(parts, slow(10), max_minutes=100 / 60, **CHOSEN) == cut
    more = session(parts, slow(1), max_minutes=100, **CHOSEN)
    assert (more.ended, more.steps) == ("steps", 94)
    assert_same(parts, whole)


def test_train__stopped_before_the_decision_it_measures_anew_or_has_its_epochs(tmp_path: Path, slow: Any):
    chosen = {**CHOSEN, "epochs": 20, "save_every": 0.2}  # a checkpoint a step, 100 steps
    plain, parts = tmp_path / "plain", tmp_path / "parts"
    for run in (parts, tmp_path / "again"):
        with pytest.raises(KeyboardInterrupt):
            session(run, slow(1, until=3), max_minutes=1, **chosen)
        assert plan_of(run)["measured"] == 0
    session(plain, **chosen)
    assert session(parts, **chosen).steps == 100
    assert_same(parts, plain)
    assert "measured" not in plan_of(parts)
    again = session(tmp_path / "again", slow(1), max_minutes=1, **chosen)
    # Step 4 is the first that is looked at, and three more are a twentieth of the time; saving takes none of it.
    assert (plan_of(tmp_path / "again")["measured"], again.steps) == (7, 58)


def test_train__a_run_that_was_begun_without_a_plan_is_cut_as_before(tmp_path: Path, slow: Any):
    with pytest.raises(KeyboardInterrupt):
        session(tmp_path, slow(1, until=30), max_minutes=100 / 60, **CHOSEN)
    manifest = tmp_path / "checkpoints" / "checkpoint-25" / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["plan"]["measured"], content[CHECKSUM]  # of a version before it
    content["plan"]["steps"] = 5000
    manifest.write_text(json.dumps(content))
    result = session(tmp_path, slow(1), max_minutes=100 / 60, **CHOSEN)
    assert (result.ended, result.steps) == ("minutes", 100)
    assert plan_of(tmp_path)["steps"] == 5000
