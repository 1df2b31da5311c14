"""The log of a run as curves, speed and figures, and what was rebuilt at its evaluations."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tymbal.evaluation.snapshots import Rebuilt, Snapshot
from tymbal.pages.page import NotShownError
from tymbal.reporting import run_part
from tymbal.reporting.run_part import learning_curves, rebuilt_in_course, run_tiles, speed


def entry(step: int, **figures: Any) -> dict[str, Any]:
    return {"step": step, "epoch": step / 10, "seconds": step * 2.0, **figures}


LOGGED = [
    entry(10, loss=2.0, batch_size=8),
    entry(20, loss=1.5, batch_size=8, alarm_collapse=True),
    entry(20, eval_loss=1.75, eval_acc=0.25),
    entry(40, loss=float("nan"), batch_size=8),
    entry(40, eval_loss=1.25, eval_acc=0.5),
]


def test_learning_curves__training_and_validation_share_a_chart() -> None:
    text = learning_curves(LOGGED)
    assert 'aria-label="loss: training 2 to 1.5, validation 1.75 to 1.25"' in text
    assert 'aria-label="telling patches apart: share that is right (validation): validation 0.25 to 0.5"' in text
    assert "Values that are not finite are left out of loss." in text
    assert "Alarms of the training: collapse at epoch 2.0." in text
    assert "batch_size" not in text
    with pytest.raises(NotShownError, match="nothing yet"):
        learning_curves([])


def test_learning_curves__what_was_logged_once_is_a_row() -> None:
    text = learning_curves([entry(1, loss=2.0), entry(2, loss=1.0), entry(2, eval_mAP=0.123456)])
    assert "<td>mean average precision</td><td>validation</td><td class=n>0.1235</td><td class=n>0.2</td>" in text
    assert text.count("<polyline") == 1


def test_learning_curves__top1_is_left_out_where_it_is_the_accuracy() -> None:
    both = [entry(n, eval_accuracy=0.1 * n, eval_top1=0.1 * n) for n in (1, 2)]
    assert learning_curves(both).count("<figure") == 1
    other = [entry(n, eval_accuracy=0.1 * n, eval_top1=0.2 * n) for n in (1, 2)]
    assert learning_curves(other).count("<figure") == 2


def test_speed__is_clips_by_seconds() -> None:
    text = speed(LOGGED)
    assert "Half of the time at least 4 clips a second" in text  # 10 steps of 8 clips in 20 s
    assert 'aria-label="clips a second: clips a second 4 to 4"' in text
    with pytest.raises(NotShownError, match="fewer than two"):
        speed(LOGGED[:1])


def test_run_tiles__are_those_of_the_model_once_the_run_has_ended() -> None:
    running = run_tiles(LOGGED, None)
    assert running == {
        "patches identified, validation": "50.0 %",
        "loss, validation": "1.25",
        "steps": "40",
        "epochs": "4.0",
        "time of training": "1 min 20 s",
        "ended": "not yet",
    }
    ended = run_tiles(LOGGED, {"metrics": {"eval_accuracy": 0.875}, "ended": "patience"})
    assert ended["accuracy, validation"] == "87.5 %"
    assert "loss, validation" not in ended
    assert ended["ended"] == "no progress"
    figures = {"eval_loss": 0.5, "eval_mAP": 0.25, "eval_prevalence": 0.125, "eval_accuracy": 0.875}
    several = run_tiles([], {"metrics": figures, "ended": "steps"})
    assert several == {"mAP, validation": "25.0 %", "prevalence, validation": "12.5 %", "ended": "all done"}
    assert run_tiles([], None) == {"ended": "not yet"}


def snapshot(step: int, *, made: float, rows: tuple[int, ...] = (3, 5)) -> Snapshot:
    true, hidden = np.zeros((2, 8, 4), np.float32), np.zeros((2, 8, 4), bool)
    hidden[:, :4] = True
    rebuilt = Rebuilt(true, hidden, np.where(hidden, np.float32(made), true), np.full(2, made**2, np.float32), False)
    names = tuple((f"/clips/{row}.wav", 0.0) for row in rows)
    return Snapshot(step, step / 10, rows, names, np.array([8, 6]), rebuilt)


def test_rebuilt_in_course__has_a_picture_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shots = [snapshot(10, made=9.0, rows=(1, 2)), snapshot(20, made=2.0), snapshot(30, made=0.5)]
    monkeypatch.setattr(run_part, "read_snapshots", lambda folder: shots)
    text = rebuilt_in_course(tmp_path, most=1)
    captions = re.findall(r"<figcaption>([^<]*)</figcaption>", text)
    assert captions == ["the clip", "what the encoder saw", "epoch 2: 4.000", "epoch 3: 0.250"]  # of the same clips
    assert "What is grey (50%) was hidden" in text
    assert "In the other pictures it is what the model made of the rest" in text
    assert "--columns:4" in text
    assert text.count("triptych") == 1
    assert rebuilt_in_course(tmp_path, most=9).count("triptych") == 2
    monkeypatch.setattr(run_part, "read_snapshots", lambda folder: [])
    with pytest.raises(NotShownError, match="nothing was written down"):
        rebuilt_in_course(tmp_path, most=1)
