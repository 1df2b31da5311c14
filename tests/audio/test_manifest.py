import os
import unicodedata

import pyarrow.parquet as pq
import pytest

from tymbal.audio.manifest import Clip, Manifest, clip_id, place
from tymbal.errors import ManifestError


def manifest(root):
    clips = (
        Clip(str(root / "rain" / "a.wav"), labels=("rain", "wind"), split="train", duration=5.0, id="rain/a.wav"),
        Clip("/elsewhere/b.wav", 1.5, 86_399.125, group="site 1", sample_rate=192_000, channels=2, hash="ab"),
        Clip(str(root / "ü, é.wav"), labels=("a, b",), hash="0012", duration=0.1, id="ü, é.wav"),
    )
    return Manifest(clips, root)


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_manifest__comes_back_as_it_was(tmp_path, name):
    before = manifest(tmp_path)
    before.write(tmp_path / name)
    after = Manifest.read(tmp_path / name)
    assert after.clips[1:] == before.clips[1:]
    # An id is only taken for Tymbal's own beside a hash.
    assert after.clips[0].labels == ("rain", "wind")
    assert len(after) == 3
    assert after.labels() == ["a, b", "rain", "wind"]


def test_manifest__moves_with_its_files(tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    Manifest((Clip(str(folder / "a.wav")),), folder).write(folder / "m.csv")
    assert (folder / "m.csv").read_text().splitlines()[1].startswith("a.wav,")
    folder.rename(tmp_path / "two")
    assert Manifest.read(tmp_path / "two" / "m.csv").clips[0].file == str(tmp_path / "two" / "a.wav")


def test_manifest__parquet_types(tmp_path):
    manifest(tmp_path).write(tmp_path / "m.parquet")
    schema = pq.read_schema(tmp_path / "m.parquet")
    assert str(schema.field("label").type).startswith("list<")
    assert str(schema.field("sample_rate").type) == "int32"


def test_manifest__semicolon_in_a_label(tmp_path):
    odd = Manifest((Clip("/a.wav", labels=("a;b",)),), tmp_path)
    with pytest.raises(ManifestError, match="holds a semicolon"):
        odd.write(tmp_path / "m.csv")
    assert not (tmp_path / "m.csv").exists()
    odd.write(tmp_path / "m.parquet")
    assert Manifest.read(tmp_path / "m.parquet").clips[0].labels == ("a;b",)


def test_manifest__other_suffix(tmp_path):
    with pytest.raises(ManifestError, match=r"written as \.csv or \.parquet"):
        manifest(tmp_path).write(tmp_path / "m.xlsx")


def test_clip__id():
    assert clip_id("rain/a.wav") == "rain/a.wav"
    assert clip_id("a.wav", 0.0, 2.5) == "a.wav#0-2.5"
    assert clip_id("a.wav", 86_399.125) == "a.wav#86399.125-"
    assert Clip("/a#1.wav", 1.0, 2.0).id == "/a#1.wav#1-2"
    assert place(Clip("/a#1.wav", 1.0, 2.0)) == place(Clip("/a#1.wav")) == "/a#1.wav"


def test_manifest__scanned(tmp_path):
    done = Clip("/a.wav", hash="ab", duration=1.0)
    assert Manifest((done,), tmp_path).scanned
    assert not Manifest((done, Clip("/b.wav")), tmp_path).scanned


@pytest.mark.skipif(os.name == "nt", reason="there such a path leads somewhere")
def test_manifest__names_of_other_machines_and_of_nowhere(tmp_path, monkeypatch):
    (tmp_path / "~tmp").mkdir()
    (tmp_path / "~tmp" / "a.wav").touch()
    (tmp_path / "list.csv").write_text("file\nC:\\data\\b.wav\n~tmp/a.wav\n" + "x" * 5000 + ".wav\n")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 2**30)
    files = [clip.file for clip in Manifest.read(tmp_path / "list.csv")]
    assert files == ["C:\\data\\b.wav", str(tmp_path / "~tmp" / "a.wav"), str(tmp_path / ("x" * 5000 + ".wav"))]


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize(("on_disk", "listed"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_manifest__names_with_other_code_points(tmp_path, on_disk, listed, absolute):
    name = unicodedata.normalize(on_disk, "café.wav")
    (tmp_path / name).touch()
    written = unicodedata.normalize(listed, "café.wav")
    (tmp_path / "list.csv").write_text(f"file\n{tmp_path / written if absolute else written}\n", encoding="utf-8")
    assert [clip.file for clip in Manifest.read(tmp_path / "list.csv")] == [str(tmp_path / name)]
