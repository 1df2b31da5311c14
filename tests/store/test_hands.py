from __future__ import annotations

import multiprocessing
import threading

import pytest

from tymbal.store import parallel_copy as hands
from tymbal.store.parallel_copy import copy_in_parallel

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hands, "cores", lambda: 4)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 64])
def test_in_parts__does_each_item_once(count: int) -> None:
    done: list[int] = []
    copy_in_parallel(lambda start, stop: done.extend(range(start, stop)), count, MIB)
    assert sorted(done) == list(range(count))


def test_in_parts__shares_large_work_and_keeps_small_work_here() -> None:
    names: set[int] = set()
    both = threading.Barrier(2, timeout=10)

    def work(start: int, stop: int) -> None:
        names.add(threading.get_ident())
        both.wait()

    copy_in_parallel(work, 2, MIB)
    assert len(names) == 2
    seen: list[int] = []
    copy_in_parallel(lambda start, stop: seen.append(threading.get_ident()), 100, 100)
    assert seen == [threading.get_ident()]


def test_in_parts__an_error_in_any_part_is_raised() -> None:
    def work(start: int, stop: int) -> None:
        if start > 0:
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        copy_in_parallel(work, 4, MIB)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_in_parts__works_in_a_forked_process() -> None:
    copy_in_parallel(lambda start, stop: None, 4, MIB)
    child = multiprocessing.get_context("fork").Process(
        target=copy_in_parallel, args=(lambda start, stop: None, 4, MIB)
    )
    child.start()
    child.join(20)
    assert child.exitcode == 0
