"""A signal in the middle of a run: the step is finished, a checkpoint written, and the next session goes on from it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from small_run import Copying, lines, session
from tymbal import stopping
from tymbal.stopping import RUN_AGAIN, Interrupted, Stopped
from tymbal.training.checkpoints import verify

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows delivers no such signals")


class Signalled(Copying):
    """Gets a signal in the middle of its nth training batch."""

    def __init__(self, call: int, number: int = signal.SIGUSR1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.call = call
        self.number = number

    def forward(self, x: Tensor, **_: Tensor) -> dict[str, Any]:
        result = super().forward(x)
        if self.training and len(self.shapes) == self.call:
            os.kill(os.getpid(), self.number)
        return result


def weights(run: Path) -> Mapping[str, Tensor]:
    return torch.load(run / "model" / "weights.pt", weights_only=True)


def saved(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in run.glob("checkpoints/checkpoint-*"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    session(run)
    return run


# 15 steps, evaluated and saved after 5, 10 and 15.
@pytest.mark.parametrize(("call", "number"), [(1, signal.SIGTERM), (7, signal.SIGUSR1), (10, signal.SIGUSR2)])
def test_signal__ends_bit_equal(
    call: int, number: int, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "run"
    with pytest.raises(Stopped) as caught:
        session(run, Signalled(call, number))
    assert caught.value.code == RUN_AGAIN
    name = signal.Signals(number).name
    assert f"Stopped by {name} after step {call} of 15. The same command continues.\n" in capsys.readouterr().err
    assert saved(run)[-1] == call
    assert verify(run / "checkpoints" / f"checkpoint-{call}")["step"] == call
    assert not (run / "model").exists()
    result = session(run)
    assert (result.steps, result.ended) == (15, "steps")
    assert f"Continuing from step {call} of 15" in capsys.readouterr().err
    ours, theirs = weights(run), weights(whole)
    assert [name for name in theirs if not ours[name].equal(theirs[name])] == []
    assert [line for line in lines(run) if "eval_mse" in line][-1]["eval_mse"] == lines(whole)[-1]["eval_mse"]


@pytest.fixture
def python_interrupts() -> Iterator[None]:
    """Ctrl-C as Python handles it by itself: a package that an earlier test imported may handle it in its own way."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_interrupts")
def test_interrupt__writes_a_checkpoint_first_and_ends_bit_equal(
    whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    run = tmp_path / "run"
    with pytest.raises(Interrupted):
        session(run, Signalled(7, signal.SIGINT))
    told = capfd.readouterr().err
    assert "Ctrl-C once more stops at once" in told
    assert "Stopped by Ctrl-C after step 7 of 15. The same command continues.\n" in told
    assert saved(run)[-1] == 7
    session(run)
    ours, theirs = weights(run), weights(whole)
    assert [name for name in theirs if not ours[name].equal(theirs[name])] == []


@pytest.mark.usefixtures("python_interrupts")
def test_interrupt__twice_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Impatient(Signalled):
        def forward(self, x: Tensor, **_: Tensor) -> dict[str, Any]:
            result = super().forward(x)
            if self.training and len(self.shapes) == self.call:
                os.kill(os.getpid(), signal.SIGINT)
            return result

    monkeypatch.setattr(stopping, "_KEY_ECHO", 0.0)
    with pytest.raises(KeyboardInterrupt) as caught:
        session(tmp_path / "run", Impatient(7, signal.SIGINT))
    assert not isinstance(caught.value, Interrupted)
    assert saved(tmp_path / "run")[-1] == 5
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signal__with_accumulated_batches_the_step_is_finished(tmp_path: Path):
    module = Signalled(3)
    with pytest.raises(Stopped):
        session(tmp_path / "run", module, accumulate=4)
    assert len(module.shapes) == 4
    assert saved(tmp_path / "run") == [1]


def test_signal__in_the_last_step_the_run_is_finished(whole: Path, tmp_path: Path):
    assert session(tmp_path / "run", Signalled(15)).steps == 15
    ours, theirs = weights(tmp_path / "run"), weights(whole)
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_signal__reaches_processes_that_load_batches_too(tmp_path: Path):
    class AllSignalled(Signalled):
        def forward(self, x: Tensor, **_: Tensor) -> dict[str, Any]:
            if self.training and len(self.shapes) == self.call - 1:
                children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
                assert len(children) >= 2
                # Not from here: these processes obey their parent.
                subprocess.run(["kill", "-TERM", *children], check=True)
                time.sleep(0.1)
            return super().forward(x)

    with pytest.raises(Stopped):
        session(tmp_path / "run", AllSignalled(7, signal.SIGTERM), workers=2)
    assert saved(tmp_path / "run")[-1] == 7


def test_signal__in_one_of_two_processes_stops_both_at_the_same_step(tmp_path: Path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    tests = Path(__file__).parents[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")]),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": port,
    }
    command = [sys.executable, str(Path(__file__).parent / "signalled_sessions.py"), str(tmp_path)]
    processes = [
        subprocess.Popen(
            command, env={**environment, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["status"] == RUN_AGAIN
    step = first["saved"][-1]
    assert 5 <= step < 20
    assert f"Stopped after step {step} of 20." in said[0]
    assert "Stopped" not in said[1]
    ours, theirs = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert [name for name in theirs if not ours[name].equal(theirs[name])] == []
