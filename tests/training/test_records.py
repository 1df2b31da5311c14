"""What a run writes down as it goes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tymbal.training.batches import BatchPlan
from tymbal.training.figures import HEADER, is_figure, log_line, metrics_at_step, read_metrics
from tymbal.training.records import MetricsFile

PLACE = {"step": 19, "epoch": 1.0, "seconds": 3725.4}


def test_log_line__has_the_loss_first_and_the_batch_size_last():
    line = {**PLACE, "batch_size": 1024, "accuracy": 0.41234567, "loss": 1.02345, "learning_rate": 9.3e-05}
    assert HEADER == " elapsed   epoch    step\n"
    assert log_line(line) == (
        " 1:02:05    1.00      19  loss 1.023, accuracy 0.4123, learning rate 9.3e-05, batch size 1,024\n"
    )


def test_log_line__of_an_evaluation_says_so_and_leaves_out_its_speed():
    line = {**PLACE, "eval_accuracy": 0.5, "eval_loss": None, "eval_runtime": 3.0, "eval_samples_per_second": 9.0}
    assert log_line(line) == " 1:02:05    1.00      19  validation: loss not a number, accuracy 0.5\n"
    assert [name for name in line if is_figure(name)] == ["eval_accuracy", "eval_loss"]


def write(path: Path, *steps: int, torn: str = "") -> None:
    path.write_text(
        "".join(json.dumps({"step": step, "epoch": step / 5, "seconds": step}) + "\n" for step in steps) + torn
    )


def test_read_metrics__leaves_out_a_torn_line(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    write(path, 1, 2, torn='{"step": 3, "lo')
    assert [line["step"] for line in read_metrics(path)] == [1, 2]


def test_metrics_at_step__are_those_of_all_its_lines(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    lines: list[dict[str, Any]] = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "eval_loss": 1.0}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert metrics_at_step(path, 2) == {"step": 2, "loss": 2.0, "eval_loss": 1.0}


def test_metrics_file__goes_on_at_the_checkpoint(tmp_path: Path):
    path, log = tmp_path / "metrics.jsonl", tmp_path / "log.txt"
    write(path, 5, 10, 11, torn='{"step": 12')
    plan = BatchPlan(length=20, batch_sizes=(4, 2), epochs=9)
    file = MetricsFile(path, log, plan, lambda: 12.345)
    state = SimpleNamespace(is_world_process_zero=True, global_step=10, epoch=2.0, log_history=[{}])
    file.on_train_begin(None, state, None)
    assert [line["step"] for line in read_metrics(path)] == [5, 10]
    state.global_step, state.epoch = 12, 2.20004
    file.on_log(None, state, None, logs={"loss": float("nan"), "epoch": 2.2})
    file.on_train_end(None, state, None)
    assert state.log_history == []
    assert read_metrics(path)[-1] == {"step": 12, "epoch": 2.2, "seconds": 12.35, "batch_size": 2, "loss": None}
    assert log.read_text().splitlines()[-1] == " 0:00:12    2.20      12  loss not a number, batch size 2"


def test_metrics_file__other_processes_write_nothing(tmp_path: Path):
    file = MetricsFile(tmp_path / "metrics.jsonl", tmp_path / "log.txt", BatchPlan(length=1, batch_sizes=(1,)), float)
    state = SimpleNamespace(is_world_process_zero=False, global_step=1, epoch=1.0, log_history=[])
    file.on_train_begin(None, state, None)
    file.on_log(None, state, None, logs={"loss": 1.0})
    file.on_train_end(None, state, None)
    assert list(tmp_path.iterdir()) == []
