"""Rates, remaining time, and what a log file and a terminal show."""

from __future__ import annotations

import pytest

from tymbal.progress import Meter, Progress, counted, duration, quietly, tell


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_duration__as_people_say_it():
    assert [duration(s) for s in (0.2, 59.6, 200, 7500)] == ["0 s", "1 min 00 s", "3 min 20 s", "2 h 05 min"]


def test_meter__rate_and_remaining():
    clock = Clock()
    meter = Meter(100, clock=clock)
    assert meter.rate is None
    assert meter.text("clips") == "0/100 clips"
    clock.now += 2
    meter.advance(40, failed=3)
    assert (meter.rate, meter.remaining) == (20.0, None)
    assert meter.text("clips") == "40/100 clips, 20/s, 3 failed"
    clock.now += 4
    meter.advance(40)
    assert meter.text("clips") == "80/100 clips, 13/s, 2 s left, 3 failed"
    clock.now += 2
    meter.advance(20)
    assert meter.text("clips") == "100/100 clips, 12/s, 8 s, 3 failed"


def test_meter__the_first_batch_is_no_measure_of_what_is_left():
    clock = Clock()
    meter = Meter(101, clock=clock)
    clock.now += 8  # memory is taken, kernels are chosen
    meter.advance(1)
    assert meter.remaining is None
    for _ in range(20):
        clock.now += 0.3
        meter.advance(1)
    assert meter.remaining == pytest.approx(24.0)


def test_meter__what_was_done_before_does_not_count():
    clock = Clock()
    meter = Meter(1000, done=900, clock=clock)
    clock.now += 10
    meter.advance(10)
    assert meter.rate == 1.0
    clock.now += 5
    meter.advance(5)
    assert meter.remaining == 85.0


def test_meter__forgets_a_slow_start():
    clock = Clock()
    meter = Meter(None, span=60, clock=clock)
    clock.now += 600
    meter.advance(1)
    for _ in range(100):
        clock.now += 1
        meter.advance(5)
    assert meter.rate == pytest.approx(5.0)
    assert meter.text() == "501, 5/s"


def test_progress__lines_where_there_is_no_terminal(capsys):
    with Progress(4, "Preparing", unit="clips", every=0) as progress:
        progress.advance(2)
        progress.advance(2, failed=1, note="loss 0.5")
    out, err = capsys.readouterr()
    assert out == ""
    first, second, last = err.splitlines()
    assert first.startswith("Preparing: 2/4 clips,")
    assert second.startswith("Preparing: 4/4 clips,")
    assert last.endswith("1 failed, loss 0.5")


def test_progress__a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with Progress(4, "Preparing", unit="clips") as progress:
        progress.advance(4)
        tell("half of it was silence")
    err = capsys.readouterr().err
    assert "half of it was silence" in err
    assert "━" in err
    assert "4/4 clips" in err


def test_quietly__only_warnings(capsys):
    with quietly(), Progress(2, "Preparing", every=0) as progress:
        progress.advance(2)
        tell("a remark")
        tell("a warning", warning=True)
    assert capsys.readouterr().err == "a warning\n"
    tell("a remark [with brackets]")
    assert capsys.readouterr().err == "a remark [with brackets]\n"


def test_counted__one_and_many() -> None:
    assert [counted(count, "file") for count in (0, 1, 2000)] == ["0 files", "1 file", "2,000 files"]
