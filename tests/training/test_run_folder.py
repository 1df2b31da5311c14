"""A run folder: begun, continued, refused, or finished."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from small_run import session, settings
from tymbal.errors import CheckpointError, SettingsError
from tymbal.objectives import registry
from tymbal.settings import FinetuneSettings
from tymbal.training.beginning import begin
from tymbal.training.run_folder import RunFolder, RunResult


def test_begin__a_first_command_that_failed_does_not_bind(tmp_path: Path):
    begin("pretrain", tmp_path / "run", {"store": "rows"}, settings(seed=1), resume="auto")
    assert session(tmp_path / "run", seed=2).steps == 15


def test_begin__run_of_another_verb_is_refused(tmp_path: Path):
    session(tmp_path / "run")
    with pytest.raises(SettingsError, match="holds a 'pretrain' run, this is 'finetune'"):
        begin("finetune", tmp_path / "run", {"source": "rows"}, settings(), resume="auto")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run of a classifier with a checkpoint, on data of which nothing is left."""
    folder = RunFolder(tmp_path / "run")
    assert begun(folder) is None
    folder.checkpoints.joinpath("checkpoint-5").mkdir(parents=True)
    return folder


def begun(folder: RunFolder, source: str | Path = "gone", *, resume: Any = "auto", **changes: Any) -> RunResult | None:
    return folder.begin("finetune", {"source": source}, FinetuneSettings(**changes), resume=resume)


def test_begin__says_each_setting_that_differs(folder: RunFolder):
    assert begun(folder) is None
    with pytest.raises(SettingsError) as caught:
        begun(folder, seed=1, mixup=0.25, log_every=3)
    assert caught.value.what.splitlines()[1:] == ["    seed: 42 -> 1", "    mixup: 0.0 -> 0.25"]
    assert caught.value.path == str(folder.path)


def test_begin__what_changes_no_weight_may_change(folder: RunFolder):
    assert begun(folder, log_every=3, workers=1, device="cpu", max_minutes=3.0, keep_checkpoints=5) is None


def test_begin__never_and_always(folder: RunFolder, tmp_path: Path):
    assert begun(folder, resume=True) is None
    with pytest.raises(SettingsError, match="holds a run already"):
        begun(folder, resume=False)
    with pytest.raises(CheckpointError, match="no run to resume"):
        begun(RunFolder(tmp_path / "new"), resume=True)
    (folder.path / "run.yaml").unlink()
    with pytest.raises(SettingsError, match=r"holds checkpoints but no run\.yaml"):
        begun(folder)


def test_begin__a_path_is_the_same_from_wherever_the_command_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    weights, table, other = (tmp_path / name for name in ("weights", "labels.csv", "other"))
    for path in (weights, other):
        path.mkdir()
    table.write_text("")
    folder = RunFolder(tmp_path / "run")
    begun(folder, from_=str(weights), label_csv=str(table))
    folder.checkpoints.joinpath("checkpoint-5").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert begun(folder, from_="weights", label_csv="other/../labels.csv") is None
    with pytest.raises(SettingsError) as caught:
        begun(folder, from_="other", label_csv="labels.csv")
    assert caught.value.what.splitlines()[1:] == [f"    from: '{weights}' -> '{os.path.realpath(other)}'"]


def test_begin__data_that_are_gone_may_lie_elsewhere(tmp_path: Path):
    old, new = tmp_path / "old", tmp_path / "new"
    for path in (old, new):
        path.mkdir()
    folder = RunFolder(tmp_path / "run")
    begun(folder, old, data_dir=str(old))
    folder.checkpoints.joinpath("checkpoint-5").mkdir(parents=True)
    with pytest.raises(SettingsError) as caught:
        begun(folder, new, data_dir=str(new))
    assert [line.split(":")[0].strip() for line in caught.value.what.splitlines()[1:]] == ["data_dir", "source"]
    assert caught.value.what.splitlines()[-1] == f"    source: {old} -> {new}"
    (tmp_path / "link").symlink_to(old)
    assert begun(folder, tmp_path / "link", data_dir=str(tmp_path / "link")) is None
    for place in (old, tmp_path / "link"):
        place.rename(tmp_path / f"{place.name}-away")
    assert begun(folder, new, data_dir=str(new)) is None


@pytest.fixture
def finished(folder: RunFolder) -> RunFolder:
    begun(folder, max_minutes=2.0)
    folder.model.mkdir()
    (folder.model / "config.json").write_text("{}")
    return folder


def result(folder: RunFolder, ended: str = "steps") -> RunResult:
    return RunResult(run=folder.path, model=folder.model, metrics={"eval_acc": 0.5}, steps=10, best_step=5, ended=ended)


def test_begin__a_finished_run_has_its_result(finished: RunFolder):
    finished.finish(result(finished))
    assert begun(finished, max_minutes=3.0) == result(finished)
    (finished.model / "config.json").unlink()
    assert begun(finished, max_minutes=3.0) is None


def test_begin__more_minutes_go_on_where_minutes_ended_it(finished: RunFolder):
    finished.finish(result(finished, "minutes"))
    assert begun(finished, max_minutes=2.0) == result(finished, "minutes")
    assert begun(finished, max_minutes=3.0) is None


def test_begin__a_finished_run_without_checkpoints_is_a_run(finished: RunFolder):
    finished.finish(result(finished))
    finished.checkpoints.joinpath("checkpoint-5").rmdir()
    with pytest.raises(SettingsError, match="seed: 42 -> 1"):
        begun(finished, seed=1)


def test_summary__says_what_came_out(folder: RunFolder):
    metrics = {"eval_acc": 0.51239, "eval_runtime": 3.0, "loss": 1.0}
    ended = RunResult(run=folder.path, model=folder.model, metrics=metrics, steps=1000, best_step=500, ended="patience")
    assert ended.summary() == (
        "Trained for 1,000 steps: no progress for too long.\n"
        "On the validation clips, after step 500: acc 0.5124\n"
        f"Model: {folder.model}\nAll figures: {folder.metrics}"
    )
    plain = RunResult(run=folder.path, model=folder.model, steps=3, best_step=3, ended="steps")
    assert plain.summary().splitlines()[:2] == ["Trained for 3 steps: all done.", f"Model: {folder.model}"]


def test_begin__a_run_that_recorded_older_names_of_settings_goes_on(tmp_path: Path):
    names = {"time_mask_width": 8, "window": 0.5, "frames": 64, "validation": 0.2}
    older = {"time_mask_width": "time_mask", "window": "clip_seconds", "frames": "target_length"}
    older |= {"validation": "validation_fraction", "frequency_mask_width": "frequency_mask"}
    chosen = registry.resolve({"objective": "reconstruction", **names})
    begin("pretrain", tmp_path, {"store": "rows"}, chosen, resume="auto")
    (tmp_path / "checkpoints" / "checkpoint-5").mkdir(parents=True)
    text = (tmp_path / "run.yaml").read_text()
    for new, old in older.items():
        assert f"\n  {new}:" in text
        text = text.replace(f"\n  {new}:", f"\n  {old}:")
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(SettingsError, match=r"begun with other settings:\n    time_mask_width: 8 -> 9\n  Give"):
        begin("pretrain", tmp_path, {"store": "rows"}, replace(chosen, time_mask_width=9), resume="auto")
    assert begin("pretrain", tmp_path, {"store": "rows"}, chosen, resume="auto") is None
    assert "\n  window: 0.5" in (tmp_path / "run.yaml").read_text()


def test_run_folder__names_its_files():
    folder = RunFolder(Path("run"))
    places = ["checkpoints", "model", "average", "metrics", "log", "classes", "rebuilt", "tensorboard"]
    assert [getattr(folder, place).as_posix() for place in places] == [
        "run/checkpoints",
        "run/model",
        "run/average",
        "run/metrics.jsonl",
        "run/log.txt",
        "run/classes.csv",
        "run/rebuilt",
        "run/tensorboard",
    ]
