"""Ending in good order when the system asks for it: a queue at a time-out or a preemption, `docker stop`, a shutdown.

They ask with a signal, and kill some time later. Training finishes its step and writes a checkpoint first
(`training.callbacks`); what else can be continued ends on the spot, since its files are whole or absent. Either way the
exit status is `RUN_AGAIN`, by which a batch script knows that the same command continues.

A person asks with Ctrl-C: training writes its checkpoint, too, and ends on the spot where it is pressed again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from tymbal.progress import say

__all__ = [
    "RUN_AGAIN",
    "Interrupted",
    "StopRequest",
    "Stopped",
    "requested",
    "shielded",
    "stop_at_once",
    "survive_in_worker",
]

RUN_AGAIN = 75
"""Exit status of what was stopped by a signal and goes on when it is run again (EX_TEMPFAIL of sysexits.h)."""

# SIGUSR1: Slurm as its users set it, Grid Engine. SIGUSR2: LSF, Grid Engine. SIGBREAK: Windows.
_NAMES = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGBREAK")
_ECHO = 3.0
_KEY_ECHO = 0.3
"""Seconds in which a second Ctrl-C is the same one, without a launcher that passes on what it got."""
_NOTED = b"\nFinishing the step and writing a checkpoint. Ctrl-C once more stops at once, without.\n"


class Stopped(SystemExit):
    """A signal ended the work; the same command continues it.

    It passes through what handles errors, and a Python script that does not catch it ends with the status `RUN_AGAIN`.
    """

    def __init__(self) -> None:
        super().__init__(RUN_AGAIN)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C ended the work in good order, which was said; the same command continues it."""


class StopRequest:
    """Whether a signal asked to stop.

    Attributes:
        name: The signal received, such as SIGUSR1; None before any.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._since = 0.0

    def note(self, number: int) -> None:
        """Records a signal. One that comes again some seconds later ends the process at once.

        Queues and launchers often deliver one request twice: to a group of processes, and from parent to child.
        """
        now, by_key = time.monotonic(), number == signal.SIGINT
        if self.name is None:
            self.name = signal.Signals(number).name
            self._since = now
            if by_key:
                with contextlib.suppress(OSError):
                    os.write(2, _NOTED)  # a handler must not write to what is being written to
        elif now - self._since > (_KEY_ECHO if by_key and "WORLD_SIZE" not in os.environ else _ECHO):
            if by_key:
                raise KeyboardInterrupt
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


@contextlib.contextmanager
def requested() -> Iterator[StopRequest]:
    """Within it, signals and the first Ctrl-C are noted in what it yields instead of obeyed."""
    request = StopRequest()
    with _listening(request.note, keys=True):
        yield request


@contextlib.contextmanager
def stop_at_once() -> Iterator[None]:
    """Within it, a signal that is not noted raises `Stopped`, wherever the process is; and says so."""
    here: Stopped | None = None
    name = ""

    def end(number: int) -> None:
        nonlocal here, name
        here, name = Stopped(), signal.Signals(number).name
        raise here

    with _listening(end):
        try:
            yield
        except Stopped as stopped:
            if stopped is here:
                say(f"Stopped by {name}. The same command continues.")
            raise


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Processes that are started within it do not see SIGUSR1 and SIGUSR2. For systems that have them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def survive_in_worker(_: int = 0) -> None:
    """Makes a worker process ignore the signals that all processes of a job get; its parent may end it.

    Else the parent, which finishes what it is at, would fail for lack of its workers.
    """
    if not hasattr(signal, "sigwaitinfo"):
        return
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


_listeners: list[Callable[[int], None]] = []


def _dispatch(number: int, _: FrameType | None) -> None:
    _listeners[-1](number)


@contextlib.contextmanager
def _listening(listener: Callable[[int], None], *, keys: bool = False) -> Iterator[None]:
    """Sends signals to a listener, the innermost one; with `keys` also Ctrl-C.

    Signals that a program around us handles or ignores stay its own; and Python lets only the main thread handle any.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    names = (*_NAMES, "SIGINT") if keys else _NAMES
    before = {number: signal.getsignal(number) for number in (getattr(signal, n) for n in names if hasattr(signal, n))}
    ours = (signal.SIG_DFL, signal.default_int_handler, _dispatch)
    before = {number: handler for number, handler in before.items() if handler in ours}
    _listeners.append(listener)
    try:
        for number in before:
            signal.signal(number, _dispatch)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _listeners.pop()
