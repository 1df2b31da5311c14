"""Shows progress: a bar on a terminal, a plain line now and then in a log file.

Everything goes to stderr, so that a verb's result on stdout can be piped. `Meter` does the arithmetic, `Progress` shows
it; `tell` is how a verb says something in passing.

    with Progress(len(clips), "Preparing", unit="clips") as progress:
        for clip in clips:
            ...
            progress.advance(failed=0 if good else 1)
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress

__all__ = ["Meter", "Progress", "counted", "duration", "quietly", "say", "tell"]

_quiet: ContextVar[bool] = ContextVar("tymbal_quiet", default=False)


@contextlib.contextmanager
def quietly(quiet: bool = True) -> Iterator[None]:
    """Within it, no progress and no passing remarks are shown; warnings still are."""
    token = _quiet.set(quiet)
    try:
        yield
    finally:
        _quiet.reset(token)


def tell(text: str, *, warning: bool = False) -> None:
    """Prints one remark on stderr, above a running bar. Warnings are printed even in quiet mode."""
    if warning or not _quiet.get():
        say(text, style="yellow" if warning else None)


@contextlib.contextmanager
def worded(words: Callable[[str], str]) -> Iterator[None]:
    """Prints remarks in the words of another command line.

    Args:
        words: Puts a text into these words.
    """
    before = _worded.set(words)
    try:
        yield
    finally:
        _worded.reset(before)


_worded: ContextVar[Callable[[str], str]] = ContextVar("worded", default=str)


def say(text: str, *, style: str | None = None) -> None:
    """Prints on stderr in any case; the style shows on a terminal only."""
    _console().print(_worded.get()(text), style=style, markup=False, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds as a person says them: `8 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def counted(count: int, name: str) -> str:
    """A number of things: `1 file`, `2,000 files`."""
    return f"{count:,} {name}" if count == 1 else f"{count:,} {name}s"


_SETTLING = 4.0
"""Seconds after the first items before what is left is estimated."""


class Meter:
    """Counts what is done and tells rate and remaining time.

    The rate is that of the last `span` seconds, so that a nap of the machine does not spoil the estimate for the rest.
    Nor does the first batch, which is a slow one: what is left is estimated from some seconds after it on, and by what
    came after it. Items done before the start (a resumed run) do not count.

    Args:
        total: The number of items; None if unknown.
        done: How many were done before.
        span: Seconds that the rate looks back.
        clock: Seconds that only grow.
    """

    def __init__(
        self, total: int | None, *, done: int = 0, span: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total = total
        self.done = done
        self.failed = 0
        self._span = span
        self._clock = clock
        self._start = clock()
        self._first: tuple[float, int] | None = None
        self._marks: deque[tuple[float, int]] = deque([(self._start, done)])

    def advance(self, count: int = 1, *, failed: int = 0) -> None:
        """Counts `count` more, of which `failed` went wrong."""
        now = self._clock()
        self.done += count
        self.failed += failed
        if self._first is None and self.done > self._marks[0][1]:
            self._first = now, self.done
        # A mark a hundredth of the span is plenty, and keeps the deque short at a hundred thousand clips a second.
        if now - self._marks[-1][0] >= self._span / 100:
            self._marks.append((now, self.done))
            while len(self._marks) > 2 and now - self._marks[1][0] >= self._span:
                self._marks.popleft()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start

    @property
    def rate(self) -> float | None:
        """How many a second; None before anything is done."""
        since, before = self._marks[0]
        seconds = self._clock() - since
        return (self.done - before) / seconds if seconds > 0 and self.done > before else None

    @property
    def remaining(self) -> float | None:
        """Seconds left; None where the total is unknown, and within some seconds after the first items."""
        if self.total is None or self._first is None:
            return None
        now, left = self._clock(), max(0, self.total - self.done)
        since, before = max(self._first, self._marks[0])
        if now - self._first[0] < _SETTLING or self.done == before:
            return None if left else 0.0
        return left * (now - since) / (self.done - before)

    def text(self, unit: str = "") -> str:
        """One line: `1,200/8,000 clips, 340/s, 20 s left, 3 failed`."""
        count = f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"
        parts = [f"{count} {unit}".rstrip()]
        if self.rate is not None:
            parts.append(f"{self.rate:,.0f}/s" if self.rate >= 10 else f"{self.rate:.2g}/s")
        if self.total is not None and self.done >= self.total:
            parts.append(duration(self.elapsed))
        elif self.remaining is not None:
            parts.append(f"{duration(self.remaining)} left")
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        return ", ".join(parts)


class Progress:
    """Shows how far something is; a context manager.

    Args:
        total: The number of items; None if unknown.
        description: The activity, in one or two words.
        unit: The unit of the count.
        done: How many were done before (a resumed run).
        quiet: Show nothing. None follows `quietly`.
        every: Seconds between two lines where stderr is no terminal.
    """

    def __init__(
        self,
        total: int | None,
        description: str,
        *,
        unit: str = "",
        done: int = 0,
        quiet: bool | None = None,
        every: float = 10.0,
    ) -> None:
        self.meter = Meter(total, done=done)
        self._description = description
        self._unit = unit
        self._quiet = _quiet.get() if quiet is None else quiet
        self._every = every
        self._note = ""
        self._last_line = time.monotonic()
        self._bar: RichProgress | None = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if not self._quiet and _console().is_terminal:
            self._bar = _rich_bar()
            self._task = self._bar.add_task(self._description, total=self.meter.total, text=self._text())
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._show()
            self._bar.stop()
            self._bar = None
        elif not self._quiet:
            self._line()

    @property
    def total(self) -> int | None:
        """How many there are; may change on the way."""
        return self.meter.total

    @total.setter
    def total(self, total: int | None) -> None:
        self.meter.total = total

    def advance(self, count: int = 1, *, failed: int = 0, note: str | None = None) -> None:
        """Counts `count` more, of which `failed` went wrong; `note` is shown behind the figures until the next one."""
        self.meter.advance(count, failed=failed)
        if note is not None:
            self._note = note
        if self._bar is not None:
            self._show()
        elif not self._quiet and time.monotonic() - self._last_line >= self._every:
            self._line()

    def _text(self) -> str:
        figures = self.meter.text(self._unit)
        return f"{figures}, {self._note}" if self._note else figures

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, total=self.meter.total, completed=self.meter.done, text=self._text())

    def _line(self) -> None:
        self._last_line = time.monotonic()
        tell(f"{self._description}: {self._text()}")


def _rich_bar() -> RichProgress:
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[text]}", markup=False),
        console=_console(),
        refresh_per_second=5,
    )


_consoles: dict[int, Console] = {}


def _console() -> Console:
    """The console of the present stderr, which a bar and a remark have to share, and tests replace."""
    from rich.console import Console

    key = id(sys.stderr)
    if key not in _consoles:
        _consoles.clear()
        _consoles[key] = Console(stderr=True)
    return _consoles[key]
