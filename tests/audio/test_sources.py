import csv
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tymbal.audio.manifest import Clip, Manifest
from tymbal.audio.sources import find_recordings, read_source, sound_files
from tymbal.errors import ManifestError


@pytest.fixture
def touch(tmp_path):
    """Files that only have names: listing opens none."""

    def touch(*names: str):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return touch


def ids(listing):
    return [clip.id for clip in listing.clips]


# --- folders


def test_folder__recursive_any_case_no_hidden(touch):
    root = touch("b.WAV", "x/y/a.Flac", "x/c.m4a", ".h/d.wav", "x/._c.wav", "__MACOSX/e.wav", "notes.txt", "x/f.jpg")
    assert ids(read_source(root)) == ["b.WAV", "x/c.m4a", "x/y/a.Flac"]


def test_folder__links_are_followed_once(touch):
    root = touch("data/a.wav", "all/b.wav")
    (root / "all" / "data").symlink_to(root / "data")
    (root / "all" / "self").symlink_to(root / "all")
    assert ids(read_source(root / "all")) == ["b.wav", "data/a.wav"]


def test_folder__without_sound(touch):
    with pytest.raises(ManifestError, match="no sound files in this folder"):
        read_source(touch("a.txt"))


def test_source__that_is_not_there(tmp_path):
    with pytest.raises(ManifestError, match="no such folder or list"):
        read_source(tmp_path / "none")


def test_source__of_another_kind(touch):
    with pytest.raises(ManifestError, match="no list of sound files"):
        read_source(touch("a.docx") / "a.docx")


def test_source__one_sound_file(touch):
    assert ids(read_source(touch("a.wav") / "a.wav")) == ["a.wav"]


# --- Hugging Face AudioFolder


def test_audio_folder__metadata_csv(touch):
    root = touch("train/a.wav", "train/b.wav", "test/c.wav", "test/unlisted.wav")
    (root / "metadata.csv").write_text(
        "file_name,label,text\ntrain/a.wav,rain,x\ntrain/b.wav,wind,\ntest/c.wav,rain,\n"
    )
    listing = read_source(root)
    assert ids(listing) == ["train/a.wav", "train/b.wav", "test/c.wav"]
    assert [clip.labels for clip in listing.clips] == [("rain",), ("wind",), ("rain",)]
    assert "text" in listing.notes[0]
    assert listing.notes[1] == "sound files that metadata.csv does not list were left out: 1, as test/unlisted.wav"


def test_audio_folder__metadata_in_split_folders(touch):
    root = touch("train/a.wav", "validation/b.wav")
    for split, name in (("train", "a"), ("validation", "b")):
        (root / split / "metadata.jsonl").write_text(json.dumps({"file_name": f"{name}.wav", "label": name}) + "\n")
    listing = read_source(root)
    assert [(clip.id, clip.split, clip.labels) for clip in listing.clips] == [
        ("train/a.wav", "train", ("a",)),
        ("validation/b.wav", "validation", ("b",)),
    ]


def test_audio_folder__another_metadata_csv_is_not_read(touch):
    root = touch("a.wav")
    (root / "metadata.csv").write_text("sensor,site\n1,2\n")
    listing = read_source(root)
    assert ids(listing) == ["a.wav"]
    assert listing.notes == ["metadata.csv was not read: it has no column file_name"]


# --- lists


ROWS = [
    {"file": "a.wav", "start": 0.5, "end": 1.5, "label": "rain;wind", "group": "g", "split": "val"},
    {"file": "b.wav", "start": None, "end": None, "label": None, "group": None, "split": "TRAIN"},
]


def _csv(path):
    path.write_text("file,start,end,label,group,split\na.wav,0.5,1.5,rain;wind,g,val\nb.wav,,,,,TRAIN\n", "utf-8-sig")


def _tsv(path):
    head = "Path\tBegin Time (s)\tEnd Time (s)\tSpecies\tRecording ID\tsubset\n"
    path.write_text(head + "a.wav\t.5\t1.5\train;wind\tg\tval\nb.wav\t\t\t\t\tTRAIN\n")


def _semicolons(path):
    path.write_text('filename;onset;stop;class;speaker;set\na.wav;0.5;1.5;"rain;wind";g;val\nb.wav;;;;;TRAIN\n')


def _json(path):
    path.write_text(json.dumps(ROWS))


def _jsonl(path):
    rows = [{**ROWS[0], "label": ["rain", "wind"]}, {"file": "b.wav", "split": "TRAIN"}]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")


def _parquet(path):
    pq.write_table(pa.Table.from_pylist(ROWS), path)


@pytest.mark.parametrize(
    ("name", "fill"),
    [
        ("l.csv", _csv),
        ("l.tsv", _tsv),
        ("semi.csv", _semicolons),
        ("l.json", _json),
        ("l.jsonl", _jsonl),
        ("l.parquet", _parquet),
    ],
)
def test_list__of_any_format(touch, name, fill):
    root = touch("a.wav", "b.wav")
    fill(root / name)
    listing = read_source(root / name)
    first, second = listing.clips
    assert listing.labelled
    assert listing.notes == []
    assert (first.id, first.start, first.end, first.group) == ("a.wav#0.5-1.5", 0.5, 1.5, "g")
    assert (first.labels, first.split) == (("rain", "wind"), "validation")
    assert (second.id, second.start, second.end, second.group) == ("b.wav", 0.0, None, None)
    assert (second.labels, second.split) == ((), "train")
    assert second.file == str(root / "b.wav")


def test_list__plain_text(touch, monkeypatch):
    root = touch("sub/a.wav", "here/b.wav")
    (root / "sub" / "list.txt").write_text(f"# comment\na.wav\n\nb.wav\n{root}/here/b.wav\n")
    monkeypatch.chdir(root / "here")
    listing = read_source(root / "sub" / "list.txt")
    # b.wav is not beside the list, but in the working directory: one clip with its full path.
    assert ids(listing) == ["sub/a.wav", "here/b.wav"]
    assert listing.root == root


def test_list__columns_without_meaning_are_told(touch):
    root = touch("a.wav")
    (root / "l.csv").write_text("path,weather,take\na.wav,1,2\n")
    assert read_source(root / "l.csv").notes == ["l.csv: columns without a meaning here were ignored: weather, take"]


@pytest.mark.parametrize(
    ("cells", "expected", "says"),
    [
        (["owl;wren", "wren"], [("owl", "wren"), ("wren",)], None),
        (["owl|wren", "crow"], [("owl", "wren"), ("crow",)], "'|' stands between labels, as in 'owl|wren'"),
        (["owl,wren", "owl", "wren"], [("owl", "wren"), ("owl",), ("wren",)], "',' stands between labels"),
        (["owl, wren", "crow"], [("owl, wren",), ("crow",)], "labels with commas were taken whole, as 'owl, wren'"),
        (["owl; a|b", "wren"], [("owl", "a|b"), ("wren",)], None),
        (['["owl", "wren"]', "['crow']"], [("owl", "wren"), ("crow",)], None),
        (["[owl]", "[1, 2]"], [("[owl]",), ("1", "2")], None),
    ],
)
def test_list__several_labels_in_a_cell(touch, cells, expected, says):
    root = touch(*(f"{index}.wav" for index in range(len(cells))))
    with (root / "l.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "label"], *([f"{index}.wav", cell] for index, cell in enumerate(cells))])
    listing = read_source(root / "l.csv")
    assert [clip.labels for clip in listing.clips] == expected
    assert len(listing.notes) == (says is not None)
    assert says is None or says in listing.notes[0]


def test_list__separator_as_set(touch):
    root = touch("a.wav", "b.wav")
    (root / "l.csv").write_text("file,label\na.wav,owl/wren\nb.wav,crow;x\n")
    listing = read_source(root / "l.csv", label_separator="/")
    assert ([clip.labels for clip in listing.clips], listing.notes) == ([("owl", "wren"), ("crow;x",)], [])


def test_list__our_manifest_has_semicolons_whatever_its_labels_hold(touch):
    root = touch("a.wav", "b.wav")
    clips = tuple(
        Clip(str(root / f"{name}.wav"), labels=labels) for name, labels in (("a", ("x|y", "1,2")), ("b", ("x|y",)))
    )
    Manifest(clips, root).write(root / "m.csv")
    listing = read_source(root / "m.csv")
    assert ([clip.labels for clip in listing.clips], listing.notes) == ([("x|y", "1,2"), ("x|y",)], [])


def test_list__parquet_of_lists_bytes_and_others(touch):
    root = touch("a.wav", "b.wav")
    table = pa.table({"file": [b"a.wav", b"b.wav"], "label": [["owl", "wren, big"], []], "group": [b"x", b"y"]})
    pq.write_table(table, root / "l.parquet")
    listing = read_source(root / "l.parquet")
    assert [(clip.id, clip.labels, clip.group) for clip in listing.clips] == [
        ("a.wav", ("owl", "wren, big"), "x"),
        ("b.wav", (), "y"),
    ]
    pq.write_table(pa.table({"file": ["a.wav"], "label": [b"\xff\xfe"]}), root / "l.parquet")
    with pytest.raises(ManifestError, match="label in row 1 is bytes that are no text"):
        read_source(root / "l.parquet")
    for label, says in (
        ({"name": "owl"}, "a mapping of name"),
        ([{"name": "owl"}], "a mapping of name"),
        ([["owl"]], "a list"),
    ):
        (root / "l.json").write_text(json.dumps([{"file": "a.wav", "label": label}]))
        with pytest.raises(ManifestError, match=f"label in row 1 is {says}"):
            read_source(root / "l.json")
    (root / "l.json").write_text(json.dumps([{"file": ["a.wav"], "label": "owl"}]))
    with pytest.raises(ManifestError, match="file in row 1 is a list"):
        read_source(root / "l.json")


def test_list__hugging_face_audio(touch):
    root = touch("a.wav")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    for content in (None, b"RIFF\xff" * 10_000):
        audio = {"bytes": content, "path": "a.wav"}
        pq.write_table(pa.table({"audio": pa.array([audio], kind), "label": ["owl"]}), root / "l.parquet")
        if content is None:
            assert ids(read_source(root / "l.parquet")) == ["a.wav"]
            continue
        assert ids(read_source(root / "l.parquet")) == ["l.parquet#0/a.wav"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("file,label,label\na.wav,owl,\n", "the columns 'label' and 'label' have one meaning"),
        ("file,Label,label\na.wav,owl,wren\n", "the columns 'Label' and 'label' have one meaning"),
        ("file,class,species\na.wav,3,wren\n", "the columns 'class' and 'species' have one meaning"),
        ("file,label,species\na.wav,3,wren\n", "the columns 'label' and 'species' have one meaning"),
        ("path,filename\na.wav,b.wav\n", "the columns 'filename' and 'path' have one meaning"),
        ("file,label\na.wav,owl,wren\n", "row 2 has 3 cells, and the header 2"),
        ("file,start\n\n\na.wav,x\n", "start in row 4 is 'x'"),
        ("\n\nfile,start\n\na.wav,x\n", "start in row 5 is 'x'"),
        ('file,note,start\na.wav,"two\nlines",0\nb.wav,,x\n', "start in row 3 is 'x'"),
    ],
)
def test_list__columns_and_rows_that_would_be_lost(touch, content, says):
    root = touch("a.wav")
    (root / "l.csv").write_text(content)
    with pytest.raises(ManifestError, match=re.escape(says)):
        read_source(root / "l.csv")


def test_list__two_columns_that_say_the_same_and_our_own_beside_another(touch):
    root = touch("a.wav")
    (root / "l.csv").write_text("file,path,label,species,group,speaker\na.wav,/old/a.wav,owl,owl,g,s\n")
    (clip,) = read_source(root / "l.csv").clips
    assert (clip.id, clip.labels, clip.group) == ("a.wav", ("owl",), "g")


RAVEN = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\t"


@pytest.mark.parametrize("name", ["l.txt", "l.tsv"])
def test_list__raven_selection_table(touch, name):
    root = touch("a.wav", "b.wav")
    rows = [
        "1\tWaveform 1\t1\t0.1\t0.5\ta.wav\t0.1\towl",
        "1\tSpectrogram 1\t1\t0.1\t0.5\ta.wav\t0.1\towl",
        "2\tSpectrogram 1\t1\t61.0\t61.5\tb.wav\t1.0\twren",
    ]
    (root / name).write_text("\n".join([RAVEN + "Begin File\tFile Offset (s)\tAnnotation", *rows]) + "\n")
    clips = read_source(root / name).clips
    assert [(clip.id, clip.labels) for clip in clips] == [("a.wav#0.1-0.5", ("owl",)), ("b.wav#1-1.5", ("wren",))]
    (root / name).write_text(RAVEN + "Annotation\n1\tWaveform 1\t1\t0.1\t0.5\towl\n")
    with pytest.raises(ManifestError, match="Raven selection table that does not say"):
        read_source(root / name)


def test_list__names_in_another_form(touch):
    root = touch("in/caf\u00e9.wav")
    (root / "l.csv").write_text("file\nin\\cafe\u0301.wav\n", "utf-8")
    assert read_source(root / "l.csv").clips[0].file == str(root / "in/caf\u00e9.wav")


def test_list__number_labels(touch):
    root = touch("a.wav", "b.wav")
    pq.write_table(pa.table({"file": ["a.wav", "b.wav"], "label": [3.0, None]}), root / "l.parquet")
    assert [clip.labels for clip in read_source(root / "l.parquet").clips] == [("3",), ()]


def test_list__rows_of_one_clip_are_merged(touch):
    root = touch("a.wav")
    (root / "l.csv").write_text("file,start,end,label,group\na.wav,0,1,rain,\na.wav,0,1,wind,g\na.wav,1,2,rain,g\n")
    clips = read_source(root / "l.csv").clips
    assert [(clip.id, clip.labels, clip.group) for clip in clips] == [
        ("a.wav#0-1", ("rain", "wind"), "g"),
        ("a.wav#1-2", ("rain",), "g"),
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("size,colour\n1,2\n", "no column names the sound files; it has size, colour"),
        ("file\n", "it lists no files"),
        ("", "no columns at all"),
        ("file,start\na.wav,soon\n", "start in row 2 is 'soon', which is not a number"),
        ("file,start\na.wav,nan\n", "start in row 2 is 'nan'"),
        ("file,start,end\na.wav,0,1\na.wav,3,2\n", "row 3 runs from 3 to 2 s"),
        ("file,start\na.wav,-1\n", "row 2 runs from -1 to None s"),
        ("file,label\n,x\n", "row 2 names no file"),
        ("file,split\na.wav,left\n", "split in row 2 is 'left'"),
        ("file,split\na.wav,train\na.wav,test\n", "row 3 gives a.wav another split than a row before: test and train"),
    ],
)
def test_list__mistakes(touch, content, says):
    root = touch("a.wav")
    (root / "l.csv").write_text(content)
    with pytest.raises(ManifestError) as caught:
        read_source(root / "l.csv")
    assert says in caught.value.what
    assert caught.value.path == str(root / "l.csv")
    assert caught.value.advice


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("l.json", b"{", "line 1 is no JSON"),
        ("l.json", b'{"a": 1}', "neither a list of objects"),
        ("l.json", b"[1]", "entry 1 is no object"),
        ("l.jsonl", b'{"file": "a.wav"}\nx\n', "line 2 is no JSON"),
        ("l.parquet", b"no parquet", "it is no Parquet file"),
        ("l.csv", b"file\n\xff\xfe\xff.wav\n", "it is not UTF-8"),
    ],
)
def test_list__damaged(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ManifestError, match=says):
        read_source(tmp_path / name)


# --- SSAST


def ssast(root):
    rows = [{"wav": str(root / "a.wav"), "labels": "/m/1,/m/2"}, {"wav": str(root / "b.wav"), "labels": "/m/2"}]
    (root / "train.json").write_text(json.dumps({"data": rows}))
    (root / "labels.csv").write_text('index,mid,display_name\n0,/m/1,"Rain, heavy"\n1,/m/2,Wind\n')
    return root / "train.json"


def test_ssast__json_with_label_table(touch):
    root = touch("a.wav", "b.wav")
    source = ssast(root)
    assert [clip.labels for clip in read_source(source).clips] == [("/m/1", "/m/2"), ("/m/2",)]
    named = read_source(source, label_csv=str(root / "labels.csv"))
    assert [clip.labels for clip in named.clips] == [("Rain, heavy", "Wind"), ("Wind",)]


def test_ssast__label_table_mistakes(touch):
    root = touch("a.wav", "b.wav")
    source = ssast(root)
    (root / "labels.csv").write_text("index,mid,display_name\n0,/m/1,Rain\n")
    with pytest.raises(ManifestError, match=r"1 labels of the list are not in this table, as /m/2"):
        read_source(source, label_csv=str(root / "labels.csv"))
    (root / "labels.csv").write_text("index,name\n0,Rain\n")
    with pytest.raises(ManifestError, match="lacks the columns mid and display_name"):
        read_source(source, label_csv=str(root / "labels.csv"))
    with pytest.raises(ManifestError, match="No such file"):
        read_source(source, label_csv=str(root / "none.csv"))


def test_sound_files__links_to_themselves_are_named(write, tmp_path):
    write("a/good.wav")
    for name in ("loop.wav", "loop"):
        (tmp_path / "a" / name).symlink_to(name)
    files, failures = sound_files(tmp_path / "a")
    assert files == [str(tmp_path / "a/good.wav")]
    assert sorted(failure.file for failure in failures) == [str(tmp_path / "a/loop"), str(tmp_path / "a/loop.wav")]


def test_find_recordings__one_list_gives_its_files_and_a_text_among_others_is_none(touch, capsys):
    root = touch("a/x.wav", "b.wav")
    table = root / "raven.csv"
    table.write_text("file,start,end\na/x.wav,0,1\na/x.wav,1,2\nb.wav,0,1\n")
    recordings, failures = find_recordings(table)
    assert [(each.path, each.place) for each in recordings] == [
        (root / "a/x.wav", "a/x.wav"),
        (root / "b.wav", "b.wav"),
    ]
    assert failures == []
    assert "lists parts of files" in capsys.readouterr().err
    recordings, _ = find_recordings([root / "b.wav", table])
    assert [each.path for each in recordings] == [root / "b.wav", table]
