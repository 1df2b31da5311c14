"""Signals: noted, obeyed at once, or left to others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import tymbal
from tymbal import stopping
from tymbal.cli import main
from tymbal.stopping import RUN_AGAIN, Stopped, requested, stop_at_once, survive_in_worker

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows delivers no such signals")


def test_requested__notes_a_signal_and_leaves_no_handler():
    with requested() as request:
        assert request.name is None
        os.kill(os.getpid(), signal.SIGUSR1)
        assert request.name == "SIGUSR1"
        # Delivered again by a launcher that passes on what its group of processes got already.
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.name == "SIGUSR1"
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_requested__a_second_signal_ends_the_process_at_once():
    child = os.fork()
    if child == 0:
        stopping._ECHO = 0.05
        with requested():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGUSR1)
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGUSR1


def test_requested__leaves_handlers_of_others_alone():
    seen = []
    signal.signal(signal.SIGUSR2, lambda number, _: seen.append(number))
    try:
        with requested() as request:
            os.kill(os.getpid(), signal.SIGUSR2)
            assert request.name is None
        assert seen == [signal.SIGUSR2]
    finally:
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)


def test_requested__in_another_thread_changes_nothing():
    handlers = []

    def work():
        with requested() as request:
            handlers.append((request.name, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert handlers == [(None, signal.SIG_DFL)]


def test_stop_at_once__raises_and_says_so_once(capsys):
    with pytest.raises(Stopped) as caught, stop_at_once():
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == RUN_AGAIN == 75
    assert capsys.readouterr().err == "Stopped by SIGTERM. The same command continues.\n"


def test_stop_at_once__leaves_what_is_noted_inside_to_the_inside(capsys):
    with pytest.raises(Stopped), stop_at_once():
        with requested() as request:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert request.name == "SIGUSR1"
        raise Stopped  # as training does, which has said why
    assert capsys.readouterr().err == ""


def test_stopped__ends_a_script_with_its_status():
    script = "from tymbal.stopping import Stopped\ntry:\n    raise Stopped\nexcept Exception:\n    pass"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (75, "")


def test_command_line__a_verb_that_continues_ends_with_status_75(monkeypatch, capsys, tmp_path):
    def interrupted(*_, **__):
        os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setitem(vars(tymbal), "prepare", interrupted)
    assert main(["prepare", str(tmp_path), "-o", str(tmp_path / "store")]) == 75
    assert "Stopped by SIGUSR1" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="this system does not say who sent a signal")
def test_survive_in_worker__outlives_the_signals_of_a_job_but_not_its_parent():
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        survive_in_worker()
        os.write(write, b"x")
        time.sleep(20)
        os._exit(1)
    os.read(read, 1)
    subprocess.run(["kill", "-USR1", str(child)], check=True)
    subprocess.run(["kill", "-USR2", str(child)], check=True)
    subprocess.run(["kill", "-TERM", str(child)], check=True)
    time.sleep(0.2)
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, signal.SIGTERM)
    assert os.waitpid(child, 0)[1] == 0


CREW = """
import time
from tymbal.preparation.task_pool import TaskPool
from tymbal.stopping import stop_at_once

with stop_at_once(), TaskPool(None, 2) as crew:
    for _ in crew.run(time.sleep, [0.1] * 600, parallel=True):
        print("done", flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="this system does not say who sent a signal")
@pytest.mark.parametrize("name", ["USR1", "TERM"])
def test_stop_at_once__workers_finish_what_they_are_at(name: str):
    command = [sys.executable, "-c", CREW]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        # As Slurm does, to all processes of the step.
        subprocess.run(["kill", f"-{name}", "--", f"-{process.pid}"], check=True)
        _, said = process.communicate(timeout=30)
    assert process.returncode == RUN_AGAIN
    assert said == f"Stopped by SIG{name}. The same command continues.\n"
