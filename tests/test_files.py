"""One writer a folder, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from tymbal.errors import StoreError
from tymbal.files import PARTIAL, locked, replace_file, replace_folder

BUSY = StoreError("another process")


def test_lock__is_for_one(tmp_path: Path) -> None:
    folder, busy = tmp_path / "work", StoreError("another process")
    with locked(folder, busy), pytest.raises(StoreError, match="another process"), locked(folder, busy):
        pass
    with locked(folder, busy):
        pass


def test_lock__parts_do_not_stand_in_each_others_way(tmp_path: Path) -> None:
    with locked(tmp_path, BUSY, part="1/3"), locked(tmp_path, BUSY, part="2/3"):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["lock-1-3", "lock-2-3"]
        with pytest.raises(StoreError, match="another process"), locked(tmp_path, BUSY, part="1/3"):
            pass


HOLDER = """
import sys
from pathlib import Path
from tymbal.errors import StoreError
from tymbal.files import locked

with locked(Path(sys.argv[1]), StoreError("held")):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_lock__ends_with_a_process_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match="another process"), locked(tmp_path, BUSY):
            pass
        holder.kill()
        holder.wait()
        with locked(tmp_path, BUSY):
            pass


@pytest.mark.skipif(sys.platform == "win32", reason="flock is not how Windows locks")
def test_lock__goes_on_where_the_file_system_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    for number in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):

        def flock(handle: int, operation: int, number: int = number) -> None:
            raise OSError(number, "no locks")

        monkeypatch.setattr(fcntl, "flock", flock)
        with locked(tmp_path, BUSY), locked(tmp_path, BUSY):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_lock__a_folder_that_cannot_be_written_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), locked(tmp_path / "file" / "work", BUSY):
        pass


def test_replace_file__an_error_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    path.write_text("old")
    with pytest.raises(ValueError, match="half"), replace_file(path) as aside:
        aside.write_text("half")
        raise ValueError("half")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_replace_folder__has_nothing_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").write_text("")
    (tmp_path / f"model{PARTIAL}").mkdir()
    (tmp_path / f"model{PARTIAL}" / "leftover").write_text("")
    with replace_folder(path) as aside:
        (aside / "new").write_text("")
        assert [each.name for each in path.iterdir()] == ["old"]
    assert [each.name for each in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]
