from __future__ import annotations

from pathlib import Path

from tymbal.exploring.app import Uploads


def upload(folder: Path, name: str) -> Path:
    file = folder / name / "sound.wav"
    file.parent.mkdir(parents=True)
    file.write_text("sound")
    return file


def test_uploads__a_sound_goes_when_the_next_one_comes_or_the_session_ends(tmp_path: Path) -> None:
    uploads, first, second = Uploads(tmp_path), upload(tmp_path, "a"), upload(tmp_path, "b")
    uploads.hold("one", first)
    assert uploads.holds("one", first)
    uploads.hold("one", second)
    assert not first.parent.exists()
    assert second.exists()
    assert not uploads.holds("one", first)
    uploads.hold("one", None)
    assert list(tmp_path.iterdir()) == []


def test_uploads__a_shared_sound_stays_until_both_let_go(tmp_path: Path) -> None:
    uploads, file = Uploads(tmp_path), upload(tmp_path, "a")
    uploads.hold("one", file)
    uploads.hold("two", file)
    uploads.hold("one", file)
    uploads.hold("one", None)
    assert file.exists()
    uploads.hold("two", None)
    assert not file.exists()


def test_uploads__nothing_outside_its_folder_is_deleted(tmp_path: Path) -> None:
    file = upload(tmp_path, "mine")
    uploads = Uploads(tmp_path / "uploads")
    uploads.hold("one", file)
    uploads.hold("one", None)
    assert file.exists()
