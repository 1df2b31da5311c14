from dataclasses import replace

from tymbal.audio.findings import find
from tymbal.audio.manifest import Clip


def clip(name: str, split: str | None = "train", **keywords) -> Clip:
    return Clip(f"/data/{name}", split=split, id=keywords.pop("id", name), **keywords)


def kinds(found) -> list[str]:
    return [finding.kind for finding in found]


def test_find__nothing_to_tell():
    assert find([clip("a.wav", hash="1"), clip("b.wav", "validation", hash="2")]) == []


def test_find__duplicates_are_files_not_parts():
    clips = [clip("a.wav", hash="1"), clip("b.wav", hash="1"), clip("c.wav", "validation", hash="2")]
    found = find(clips)
    assert kinds(found) == ["duplicates"]
    assert found[0].text == "exact copies of another file: 1, as a.wav = b.wav"
    assert found[0].files == ("a.wav", "b.wav")
    parts = [clip("a.wav", hash="1", start=0, end=1, id="a.wav#0-1"), clip("a.wav", hash="1", start=1, id="a.wav#1-")]
    assert kinds(find([*parts, clip("b.wav", "validation")])) == []


def test_find__what_straddles_the_split():
    copies = [clip("a.wav", hash="1"), clip("b.wav", "validation", hash="1")]
    assert kinds(find(copies)) == ["duplicates", "duplicate straddles"]
    assert find(copies)[1].text.endswith("1 such, as a.wav and b.wav")
    groups = [clip("a.wav", group="site 1"), clip("b.wav", "validation", group="site 1")]
    assert kinds(find(groups)) == ["group straddles"]
    assert "(site 1)" in find(groups)[0].text
    parts = [clip("a.wav", start=0, end=1, id="a.wav#0-1"), clip("a.wav", "test", start=1, end=2, id="a.wav#1-2")]
    assert kinds(find([*parts, clip("c.wav", "validation")])) == ["file straddles"]
    assert find([replace(one, split=None) for one in groups]) == []


def test_find__copies_with_different_labels():
    clips = [
        clip("a.wav", hash="1", labels=("x",)),
        clip("b.wav", hash="1"),
        clip("c.wav", "validation", labels=("x",)),
    ]
    found = find(clips)
    assert kinds(found) == ["duplicates", "label conflict", "no label"]
    assert found[1].text.endswith("as a.wav (x) and b.wav (none)")


def test_find__labels_that_differ_in_case():
    found = find([clip("a.wav", labels=("Wren",)), clip("b.wav", "validation", labels=("wren",))])
    assert [finding.text for finding in found] == ["labels differ only in case: Wren/wren"]


def test_find__no_validation():
    assert kinds(find([clip("a.wav"), clip("b.wav")], notes=["told before"])) == ["note", "no validation"]
