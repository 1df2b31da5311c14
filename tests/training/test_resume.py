"""A run that is killed and run again ends with the weights of a run that was left alone, bit by bit."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from killed_sessions import SCENARIOS
from safetensors.torch import load_file

from training_setup import TINY, make_store
from tymbal.errors import CheckpointError, SettingsError
from tymbal.pretrain import pretrain
from tymbal.training import checkpoints, session
from tymbal.training.checkpoints import Checkpoints, verify


def weights(run: Path) -> dict[str, Any]:
    return {**load_file(run / "model" / "model.safetensors"), **load_file(run / "model" / "objective.safetensors")}


def assert_same(run: Path, reference: Path) -> None:
    ours, theirs = weights(run), weights(reference)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not ours[name].equal(theirs[name])] == []


def figures(run: Path) -> list[dict[str, Any]]:
    """Logged figures without those of time."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "second" not in k and "runtime" not in k} for line in lines]


def run_script(name: str, *arguments: str | Path) -> None:
    path = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path.parent), os.environ.get("PYTHONPATH", "")])}
    subprocess.run([sys.executable, path / name, *arguments], check=True, timeout=300, env=environment)


@pytest.fixture(scope="module")
def whole(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was left alone."""
    run = tmp_path_factory.mktemp("whole") / "run"
    result = pretrain(store, run, **TINY)
    assert (result.steps, result.ended) == (19, "steps")
    return run


@pytest.fixture(scope="module")
def killed(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one killed run a scenario."""
    folder = tmp_path_factory.mktemp("killed")
    run_script("killed_sessions.py", store, folder, *SCENARIOS)
    return folder


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_resume__ends_bit_equal_after_a_kill(scenario: str, killed: Path, whole: Path, store: Path):
    run = killed / scenario
    left = {path.name for path in run.glob("checkpoints/*")}
    assert left == SCENARIOS[scenario].left
    assert not (run / "model").exists()
    result = pretrain(store, run, **TINY)
    assert result.steps == 19
    assert_same(run, whole)
    assert figures(run) == figures(whole)
    assert {path.name for path in run.glob("checkpoints/*")} == {path.name for path in whole.glob("checkpoints/*")}


def test_resume__two_workers_make_no_difference(whole: Path, store: Path, tmp_path: Path):
    pretrain(store, tmp_path / "run", **TINY, workers=2)
    assert_same(tmp_path / "run", whole)


@pytest.fixture
def stopped(whole: Path, tmp_path: Path) -> Path:
    """The run as it was after its last checkpoint, before its model was saved."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "model")
    (run / "result.json").unlink()
    return run


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", ["optimizer.pt", "rng_state.pth", "model.safetensors", "manifest.json"])
def test_resume__passes_over_a_damaged_checkpoint(
    damage: str, stopped: Path, whole: Path, store: Path, capsys: pytest.CaptureFixture[str]
):
    newest, before = (Checkpoints(stopped / "checkpoints").path(step) for step in (19, 14))
    assert verify(newest)["step"] == 19
    if damage == "model.safetensors":
        flip_a_byte(newest / damage)
    else:
        (newest / damage).unlink()
    with pytest.raises(CheckpointError, match="manifest" if damage == "manifest.json" else damage):
        verify(newest)
    pretrain(store, stopped, **TINY)
    said = capsys.readouterr().err
    assert "damaged checkpoint" in said
    assert f"step {verify(before)['step']} of 19" in said
    assert_same(stopped, whole)
    assert figures(stopped) == figures(whole)


def test_resume__a_disk_that_does_not_answer_decides_nothing(
    stopped: Path, whole: Path, store: Path, monkeypatch: pytest.MonkeyPatch
):
    """No other checkpoint is taken instead: neither to go on from nor, at the end, for the best model."""
    read, left = checkpoints.read_json, 0

    def failing(path: Path) -> object:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read(path)

    monkeypatch.setattr(checkpoints, "read_json", failing)
    failures = 0
    while left == 0:
        left = failures + 1
        try:
            pretrain(store, stopped, **TINY)
        except SettingsError as error:
            assert "manifest.json: cannot be" in str(error)
            assert not (stopped / "result.json").exists()
            failures += 1
    assert failures >= 2
    assert_same(stopped, whole)


def test_resume__from_a_named_checkpoint_that_is_damaged_is_refused(stopped: Path, store: Path):
    newest = stopped / "checkpoints" / "checkpoint-19"
    (newest / "optimizer.pt").unlink()
    with pytest.raises(CheckpointError, match=r"lacks optimizer\.pt"):
        pretrain(store, stopped, resume=newest, **TINY)


def test_resume__from_an_earlier_checkpoint_keeps_the_later_ones(stopped: Path, store: Path):
    with pytest.raises(CheckpointError, match="later checkpoints, up to step 19"):
        pretrain(store, stopped, resume=stopped / "checkpoints" / "checkpoint-14", **TINY)


def test_resume__other_settings_are_refused_with_what_differs(stopped: Path, store: Path):
    with pytest.raises(SettingsError) as caught:
        pretrain(store, stopped, **{**TINY, "mask_ratio": 0.7, "seed": 1})
    assert "mask_ratio: 0.5 -> 0.7" in str(caught.value)
    assert "seed: 42 -> 1" in str(caught.value)


def test_resume__what_does_not_matter_may_change(stopped: Path, whole: Path, store: Path):
    pretrain(store, stopped, **{**TINY, "log_every": 3, "workers": 1, "keep_checkpoints": 1})
    assert_same(stopped, whole)


def test_resume__another_store_is_refused(stopped: Path, store: Path, tmp_path: Path):
    other = make_store(tmp_path / "other", train=38)
    with pytest.raises(SettingsError, match="store: "):
        pretrain(other.path, stopped, **TINY)
    # Where the first store is gone, it may have moved; but then it has to be the same.
    recorded = stopped / "run.yaml"
    recorded.write_text(recorded.read_text().replace(str(store), str(tmp_path / "gone")))
    with pytest.raises(CheckpointError, match="clips: 37 -> 38"):
        pretrain(other.path, stopped, **TINY)


def test_resume__a_finished_run_says_so(whole: Path, store: Path, capsys: pytest.CaptureFixture[str]):
    before = (whole / "model" / "model.safetensors").stat().st_mtime_ns
    result = pretrain(store, whole, **TINY)
    told = capsys.readouterr().err
    assert "finished already" in told
    assert "To train on" not in told
    pretrain(store, whole, **TINY, max_minutes=9)
    assert f"To train on: --from {whole} -o ANOTHER_FOLDER" in capsys.readouterr().err
    assert result.metrics["eval_acc"] == figures(whole)[-1]["eval_acc"]
    assert (whole / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_resume__never_and_always(whole: Path, store: Path, tmp_path: Path):
    with pytest.raises(SettingsError, match="holds a run already"):
        pretrain(store, whole, resume=False, **TINY)
    with pytest.raises(CheckpointError, match="no run to resume"):
        pretrain(store, tmp_path / "new", resume=True, **TINY)


def test_resume__of_another_run_takes_its_best_checkpoint_and_figures_along(whole: Path, store: Path, tmp_path: Path):
    other, run = tmp_path / "other", tmp_path / "new"
    shutil.copytree(whole, other)
    first = min(other.glob("checkpoints/*"), key=lambda path: int(path.name.rpartition("-")[2]))
    result = pretrain(store, run, resume=first, **TINY)
    assert_same(run, whole)
    assert figures(run) == figures(whole)
    assert result.best_step == json.loads((whole / "result.json").read_text())["best_step"]
    session._take_along(first, Checkpoints(tmp_path / "third" / "checkpoints"), best=19)
    assert verify(tmp_path / "third" / "checkpoints" / "checkpoint-19")["step"] == 19
    assert (tmp_path / "third" / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("content", [b"", b"{", b'{"a":' * 100_000, b'{"ended": 3}'])
def test_resume__a_damaged_result_is_written_again(content: bytes, whole: Path, store: Path, tmp_path: Path, capsys):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    before = json.loads((run / "result.json").read_text())
    (run / "result.json").write_bytes(content)
    pretrain(store, run, **TINY)
    assert "result.json is damaged" in " ".join(capsys.readouterr().err.split())
    after = json.loads((run / "result.json").read_text())
    assert (after["steps"], after["best_step"]) == (before["steps"], before["best_step"])
    assert_same(run, whole)
    (run / "result.json").write_bytes(content)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match=r"result.json: is damaged .* no checkpoints"):
        pretrain(store, run, **TINY)
    assert_same(run, whole)
