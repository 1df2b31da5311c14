"""One writer a folder, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from tymbal import files
from tymbal.errors import SettingsError, StoreError
from tymbal.files import PARTIAL, locked, partial_file, replace_file, replace_folder, sole_writer, written_alone

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


@pytest.mark.skipif(sys.platform == "win32", reason="flock is not how Windows locks")
def test_replace_file__two_at_once_share_no_file(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    with replace_file(path) as first:
        first.write_text("first, of many letters")
        with replace_file(path) as second:
            assert second != first
            second.write_text("second")
        assert path.read_text() == "second"
        assert first.read_text() == "first, of many letters"
    assert path.read_text() == "first, of many letters"
    assert [each.name for each in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="flock is not how Windows locks")
def test_replace_folder__two_at_once_share_no_file(tmp_path: Path) -> None:
    with replace_folder(tmp_path / "model") as first:
        (first / "a").write_text("first")
        with replace_folder(tmp_path / "model") as second:
            (second / "b").write_text("second")
        assert [each.name for each in (tmp_path / "model").iterdir()] == ["b"]
        assert (first / "a").read_text() == "first"
    assert [each.name for each in (tmp_path / "model").iterdir()] == ["a"]
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


def test_partial_file__a_left_over_is_emptied(tmp_path: Path) -> None:
    (tmp_path / f"a{PARTIAL}").write_text("left by a kill")
    with partial_file(tmp_path / "a") as aside:
        assert not aside.exists() or aside.read_text() == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("renames", [0, 1, 2])
def test_replace_folder__a_stop_between_renames_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool, renames: int
) -> None:
    with replace_folder(tmp_path / "model") as aside:
        (aside / "old").write_text("")
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    done = []
    rename = Path.rename

    def stopping(self: Path, target: Path) -> Path:
        if len(done) == renames and "model" in self.name:
            done.append(self)
            raise KeyboardInterrupt
        done.append(self)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stopping)
    try:
        with replace_folder(tmp_path / "model") as aside:
            (aside / "new").write_text("")
    except KeyboardInterrupt:
        assert not exchanges
    content = [each.name for each in (tmp_path / "model").iterdir()]
    assert content in (["old"], ["new"])
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


def test_replace_folder__a_kill_between_renames_is_mended_by_the_next(tmp_path: Path) -> None:
    (tmp_path / f"model.old{PARTIAL}").mkdir()
    (tmp_path / f"model.old{PARTIAL}" / "old").write_text("")
    with pytest.raises(ValueError, match="no"), replace_folder(tmp_path / "model"):
        raise ValueError("no")
    assert [each.name for each in (tmp_path / "model").iterdir()] == ["old"]


def test_sole_writer__is_for_one_and_leaves_no_lock(tmp_path: Path) -> None:
    with sole_writer(tmp_path / "new" / "model"):
        busy = pytest.raises(SettingsError, match=r"another process is writing this output\n.*another output")
        with busy, sole_writer(tmp_path / "new" / "model"):
            pass
        with sole_writer(tmp_path / "new" / "other"):
            pass
    with sole_writer(tmp_path / "new" / "model"):
        pass
    assert not list((tmp_path / "new").iterdir())


def test_sole_writer__errors_of_the_system_are_about_the_output(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        pytest.raises(SettingsError, match=r"model: cannot be written: No space left"),
        sole_writer(tmp_path / "model"),
    ):
        raise full
    elsewhere = OSError(errno.EIO, "Input/output error", "/media/stick/a.wav")
    with (
        pytest.raises(SettingsError, match=r"a.wav: cannot be read or written: Input"),
        sole_writer(tmp_path / "model"),
    ):
        raise elsewhere
    with pytest.raises(OSError, match="no number"), sole_writer(tmp_path / "model"):
        raise OSError("no number")


def test_written_alone__locks_the_output_of_a_verb(tmp_path: Path) -> None:
    seen = []

    @written_alone
    def verb(source: str, output: Path | None = None) -> int:
        seen.extend(path.name for path in tmp_path.iterdir())
        return len(source)

    assert verb("ab") == 2
    assert not seen
    assert verb("abc", output=tmp_path / "page.html") == 3
    assert seen == [".page.html.lock"]
    with sole_writer(tmp_path / "page.html"), pytest.raises(SettingsError, match="another process"):
        verb("abc", tmp_path / "page.html")
