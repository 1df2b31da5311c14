"""Teachers: models on spectrograms or on sound, tables of embeddings, and ONNX files, kept and found again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import tymbal
from small_model import small_model
from tones import FEATURES, RATE, tone_folder, tone_store
from tymbal.errors import ModelError, SettingsError, StoreError
from tymbal.inference.taught import kept_vectors, recorded_vectors
from tymbal.inference.teacher_tables import TableTeacher
from tymbal.inference.teachers import Teacher, open_teacher
from tymbal.models.folder import load_model
from tymbal.objectives.distill import TeacherEncoder
from tymbal.settings import PretrainSettings
from tymbal.store.packed.packed_store import Store

CPU = PretrainSettings(device="cpu", precision="float32")


def opened(path: Path, store: Store, *, parts: int | None = None, compared: int = 4) -> Teacher:
    return open_teacher(str(path), store, parts=parts, compared=compared, settings=CPU)


def said(teacher: Teacher, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    answers = list(teacher.ask(rows))
    return np.concatenate([each.rows for each in answers]), np.concatenate([each.values for each in answers])


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of 12 tones whose recordings are there."""
    folder = tmp_path_factory.mktemp("sound")
    tone_folder(folder / "tones", clips=2)
    tymbal.prepare(folder / "tones", folder / "store", sample_rate=RATE, mel_bins=16, window=0.335, workers=1)
    return Store.open(folder / "store")


# Models


def test_model__says_of_the_spectrograms_what_its_tokens_do(tmp_path: Path):
    store = tone_store(tmp_path / "store", clips=6, validation=2)
    model = small_model(tmp_path / "model")
    teacher = opened(model, store)
    rows = np.array([3, 0, 17])
    asked, values = said(teacher, rows)
    assert (teacher.parts, teacher.width, teacher.hears) == (4, 32, False)
    encoder = TeacherEncoder(load_model(model), parts=4)
    frames = torch.from_numpy(store.real_frames[rows].astype(np.int64))
    expected = encoder(torch.from_numpy(store.gather(rows)), frames).numpy()
    assert asked.tolist() == rows.tolist()
    assert np.allclose(values, expected, atol=1e-5)
    assert opened(model, store, compared=1).parts == 1
    assert opened(model, store, parts=3).parts == 3


def test_model__of_other_spectrograms_hears_the_sound(sound: Store, tmp_path: Path):
    features = FEATURES.__class__(sample_rate=RATE * 2, mel_bins=24)
    model = small_model(tmp_path / "model", features=features, frames=40)
    teacher = opened(model, sound)
    rows = sound.rows()
    asked, values = said(teacher, rows)
    assert (teacher.hears, teacher.parts, teacher.width) == (True, 4, 48)
    assert asked.tolist() == rows.tolist()
    labels = sound.label_indices(rows)
    middle = values.mean(1)
    means = np.stack([middle[labels == label].mean(0) for label in range(3)])
    nearest = np.linalg.norm(middle[:, None] - means, axis=2).argmin(1)
    assert (nearest == labels).all()  # it hears which tone is which


def test_model__of_other_spectrograms_needs_the_sound(tmp_path: Path):
    store = tone_store(tmp_path / "store", clips=2, validation=1)  # whose files never were
    features = FEATURES.__class__(sample_rate=RATE * 2, mel_bins=24)
    teacher = opened(small_model(tmp_path / "model", features=features), store)
    (tmp_path / "run").mkdir()
    with pytest.raises(StoreError, match="says nothing of any clip"):
        kept_vectors(teacher, store, store.rows(), tmp_path / "run")
    assert "/tones/high/0.wav" in (tmp_path / "run" / "teacher.failures.csv").read_text()


# Keeping


class _Counting(Teacher):
    """Says of each row its number, and nothing of row 4."""

    name, parts, width, megabytes = "counting", 2, 3, None

    def __init__(self, stop_after: int = 10**9) -> None:
        self.facts = {"teacher": "counting"}
        self.asked: list[int] = []
        self.stop_after = stop_after

    def ask(self, rows: np.ndarray) -> Any:
        from tymbal.inference.teachers import Answer

        for row in rows.tolist():
            if len(self.asked) >= self.stop_after:
                raise KeyboardInterrupt
            self.asked.append(row)
            if row == 4:
                yield Answer(rows[:0], np.empty((0, 2, 3), np.float32), {row: "missing: for a test"})
            else:
                yield Answer(np.array([row]), np.full((1, 2, 3), row, np.float32))


def test_kept__is_asked_once_and_found_beside_the_store(tmp_path: Path):
    store = tone_store(tmp_path / "store", clips=4, validation=1)
    run = tmp_path / "run"
    run.mkdir()
    teacher = _Counting()
    vectors = kept_vectors(teacher, store, np.arange(8), run)
    assert vectors.path.parent == tmp_path / "store.teachers"
    assert vectors.gather(np.array([7, 2]))[:, 0, 0].tolist() == [7, 2]
    assert not vectors.known(np.array([4])).any()
    assert "for a test" in (run / "teacher.failures.csv").read_text()
    again = kept_vectors(teacher, store, np.arange(12), run)
    assert teacher.asked == list(range(12))  # the first eight only once
    assert again.path == vectors.path
    other = tone_store(tmp_path / "other", clips=5, validation=1)
    assert kept_vectors(teacher, other, np.arange(2), run).path.name != vectors.path.name


def test_kept__goes_on_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tymbal.inference.taught._BLOCK", 3)
    store = tone_store(tmp_path / "store", clips=4, validation=1)
    with pytest.raises(KeyboardInterrupt):
        kept_vectors(_Counting(stop_after=7), store, np.arange(12), tmp_path)
    teacher = _Counting()
    vectors = kept_vectors(teacher, store, np.arange(12), tmp_path)
    assert teacher.asked == list(range(6, 12))
    assert vectors.gather(np.array([0, 11]))[:, 1, 2].tolist() == [0, 11]
    record = tmp_path / "teacher.json"
    record.write_text(json.dumps({"kept": str(vectors.path), "known": 11}))
    assert recorded_vectors(record, store, np.arange(12)) is not None
    assert recorded_vectors(record, tone_store(tmp_path / "other", clips=5), np.arange(12)) is None
    record.write_text(json.dumps({"kept": str(vectors.path), "known": 12}))
    assert recorded_vectors(record, store, np.arange(12)) is None
    assert recorded_vectors(tmp_path / "nowhere", store, np.arange(12)) is None


def test_kept__what_could_not_be_read_is_asked_again(tmp_path: Path):
    store = tone_store(tmp_path / "store", clips=4, validation=1)
    teacher = _Counting()
    kept_vectors(teacher, store, np.arange(6), tmp_path)
    assert 4 not in kept_vectors(teacher, store, np.arange(6), tmp_path).pending(np.arange(6))
    teacher.facts, teacher.hears = {"teacher": "hearing"}, True
    assert kept_vectors(teacher, store, np.arange(6), tmp_path).pending(np.arange(6)).tolist() == [4]


# Tables


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return tone_store(tmp_path / "store", clips=4, validation=1)


def write_table(path: Path, columns: dict[str, Any], vectors: np.ndarray) -> Path:
    if path.suffix == ".npy":
        np.save(path, vectors)
        names = list(columns)
        rows = [",".join(names), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
        path.with_name(f"{path.stem}.rows.csv").write_text("\n".join(rows) + "\n")
    elif path.suffix == ".csv":
        names = [*columns, *(str(i) for i in range(vectors.shape[1]))]
        cells = zip(*columns.values(), *vectors.T.tolist(), strict=True)
        path.write_text("\n".join([",".join(names), *(",".join(map(str, row)) for row in cells)]) + "\n")
    else:
        pq.write_table(pa.table({**columns, "embedding": list(vectors.tolist())}), path)
    return path


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.npy"])
def test_table__windows_count_by_what_of_them_lies_in_a_part(store: Store, tmp_path: Path, name: str):
    files = [f"/tones/high/{number}.wav" for number in (1, 1, 2)]
    columns = {"filename": files, "Start (s)": [0.0, 0.2, 0.0], "End (s)": [0.2, 0.4, 5.0]}
    vectors = np.array([[1, 0], [0, 1], [7, 8]], np.float32)
    teacher = opened(write_table(tmp_path / name, columns, vectors), store, parts=2)
    asked, values = said(teacher, store.rows())
    ids = [store.index["id"].to_pylist()[row] for row in asked]
    assert ids == ["high/1", "high/2"]  # of the others it has no row
    half = 0.335 / 2
    share = (0.2 - half) / half
    expected = [[[1, 0], [share, 1 - share]], [[7, 8], [7, 8]]]
    assert np.allclose(values, expected, atol=1e-5)
    assert opened(tmp_path / name, store).parts == 2  # as windows begin in a clip
    assert opened(tmp_path / name, store, compared=1).parts == 1


def test_table__of_tymbal_embed_is_read(sound: Store, tmp_path: Path):
    model = small_model(tmp_path / "model")
    folder = Path(sound.index["file"].to_pylist()[0]).parents[2]
    tymbal.embed(model, folder, tmp_path / "seconds.parquet", per="second", device="cpu")
    tymbal.embed(model, sound.path, tmp_path / "clips.npy", device="cpu")
    for name in ("seconds.parquet", "clips.npy"):
        asked, values = said(opened(tmp_path / name, sound), sound.rows())
        assert asked.tolist() == sound.rows().tolist()
        assert values.shape[1:] == (1, 16)


def test_table__files_are_told_apart_by_as_much_of_their_path_as_it_takes(store: Store, tmp_path: Path):
    def table(*files: str) -> TableTeacher:
        vectors = np.arange(len(files), dtype=np.float32)[:, None]
        return TableTeacher(
            write_table(tmp_path / "t.parquet", {"file": list(files)}, vectors), store, parts=1, compared=1
        )

    moved = table("D:\\old\\tones\\low\\3.wav", "elsewhere/tones/high/3.wav")
    asked, values = said(moved, store.rows())
    names = [store.index["id"].to_pylist()[row] for row in asked]
    assert dict(zip(names, values[:, 0, 0].tolist(), strict=True)) == {"low/3": 0.0, "high/3": 1.0}
    with pytest.raises(SettingsError, match=r"rows of 3\.wav may be of"):
        table("3.wav")
    with pytest.raises(SettingsError, match="may be /tones/high/3"):
        table("a/high/3.wav", "b/high/3.wav")


@pytest.mark.parametrize(
    ("columns", "vectors", "message"),
    [
        ({"thing": ["a"]}, [[1.0]], "no column says of which file"),
        ({"file": ["a"], "start": [0.0]}, [[1.0]], "one of start and end"),
        ({"file": ["a", "b"]}, [[1.0], [1.0, 2.0]], "different lengths"),
    ],
)
def test_table__mistakes_are_named(
    store: Store, tmp_path: Path, columns: dict[str, Any], vectors: list[list[float]], message: str
):
    pq.write_table(pa.table({**columns, "embedding": vectors}), tmp_path / "t.parquet")
    with pytest.raises(SettingsError, match=message):
        opened(tmp_path / "t.parquet", store)


def test_table__that_is_none_is_said(store: Store, tmp_path: Path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(SettingsError, match="cannot be read"):
        opened(tmp_path / "t.parquet", store)
    np.save(tmp_path / "a.npy", np.ones((2, 3), np.float32))
    with pytest.raises(SettingsError, match="cannot be read"):
        opened(tmp_path / "a.npy", store)  # without its rows
    (tmp_path / "t.csv").write_text("file,score\na,b\n")
    with pytest.raises(SettingsError, match="no column has embeddings"):
        opened(tmp_path / "t.csv", store)


# ONNX files


def onnx_file(path: Path, *, nodes: list[Any], inputs: list[Any], initial: dict[str, np.ndarray]) -> Path:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(*each[:3], **each[3]) for each in nodes],
        "graph",
        [onnx.helper.make_tensor_value_info("x", kind, inputs)],
        [onnx.helper.make_tensor_value_info("y", kind, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in initial.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """Two files: mean square of every 100 samples beside 1, [1, 1, times, 2]; then means of 4 of these every 2."""
    folder = tmp_path / "teacher"
    folder.mkdir()
    shape = np.array([1, 1, -1, 100], np.int64)
    onnx_file(
        folder / "levels.onnx",
        nodes=[
            ("Reshape", ["x", "shape"], ["cut"], {}),
            ("Mul", ["cut", "cut"], ["square"], {}),
            ("ReduceMean", ["square"], ["level"], {"axes": [3], "keepdims": 1}),
            ("Mul", ["level", "zero"], ["none"], {}),
            ("Add", ["none", "one"], ["ones"], {}),
            ("Concat", ["level", "ones"], ["y"], {"axis": 3}),
        ],
        inputs=["batch", "samples"],
        initial={"shape": shape, "zero": np.zeros(1, np.float32), "one": np.ones(1, np.float32)},
    )
    onnx_file(
        folder / "means.onnx",
        nodes=[("ReduceMean", ["x"], ["y"], {"axes": [1], "keepdims": 1})],
        inputs=["windows", 4, 2, 1],
        initial={},
    )
    text = """
        sample_rate: 4000
        scale: 10
        before: 0.05
        shortest: 0.4
        every: 0.05
        hears: 0.1
        chain:
          - {file: levels.onnx, multiply: 0.5, add: 1.0}
          - {file: means.onnx, window: 4, step: 2, shape: [-1, 4, 2, 1]}
    """
    (folder / "teacher.yaml").write_text(text)
    return folder / "teacher.yaml"


def test_onnx__runs_as_its_description_says(sound: Store, chain: Path):
    teacher = opened(chain, sound, compared=1)
    assert (teacher.parts, teacher.width, teacher.hears) == (1, 2, True)
    rows = sound.rows()[:3]
    _, values = said(teacher, rows)
    for row, vectors in zip(rows.tolist(), values, strict=True):
        samples, _ = tymbal.audio.decode.read(sound.index["file"].to_pylist()[row], sample_rate=4000)
        padded = np.pad(samples, (200, 1600 - 200 - len(samples)))
        levels = np.square(10 * padded.reshape(-1, 100)).mean(1) / 2 + 1
        windows = np.stack([levels[start : start + 4].mean() for start in range(0, 16 - 3, 2)])[:6]
        assert np.allclose(vectors[0], [windows.mean(), 1.5], rtol=1e-4)


def test_onnx__gives_a_vector_for_each_part_of_the_time(sound: Store, chain: Path):
    assert opened(chain, sound).parts == 7
    # Of a clip of 1,340 samples behind 200 of silence 6 of 7 vectors end in it: each begins 200 after the one before.
    _, apart = said(opened(chain, sound, parts=6), sound.rows()[:2])
    _, halves = said(opened(chain, sound, parts=2), sound.rows()[:2])
    weights = np.array([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]) / 3
    assert np.allclose(halves, weights @ apart, rtol=1e-5)


def test_onnx__of_spectrograms_is_given_those_it_knows(sound: Store, tmp_path: Path):
    onnx_file(
        tmp_path / "mean.onnx",
        nodes=[("ReduceMean", ["x"], ["y"], {"axes": [1], "keepdims": 0})],
        inputs=["batch", "times", 8],
        initial={},
    )
    (tmp_path / "t.yaml").write_text(
        "sample_rate: 8000\nspectrogram: {mel_bins: 8}\nscale: 0.5\noffset: 2\nchain: [{file: mean.onnx}]\n"
    )
    teacher = opened(tmp_path / "t.yaml", sound)
    assert (teacher.parts, teacher.width) == (1, 8)
    _, values = said(teacher, sound.rows()[:1])
    samples, _ = tymbal.audio.decode.read(sound.index["file"].to_pylist()[0], sample_rate=8000)
    from tymbal.features.kaldi import KaldiFbank
    from tymbal.settings import FeatureSettings

    bank = KaldiFbank(FeatureSettings(sample_rate=8000, mel_bins=8))
    assert np.allclose(values[0, 0], bank(torch.from_numpy(samples)).mean(0).numpy() / 2 + 2, atol=1e-3)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sample_rate: 4000", "rate: 4000", "does not say sample_rate"),
        ("levels.onnx", "nowhere.onnx", "there is no such file"),
        ("chain:", "chains:", "chain"),
        ("window: 4", "window: 400", "takes 400 at once"),
        ("shape: [-1, 4, 2, 1]", "shape: [-1, 5, 2, 1]", "cannot be brought into the shape"),
        ("shape: [-1, 4, 2, 1]", "shape: [-1, 8]", "cannot be run on"),
        ("multiply: 0.5", "multply: 0.5", "multply"),
    ],
)
def test_onnx__mistakes_are_named(sound: Store, chain: Path, old: str, new: str, message: str):
    chain.write_text(chain.read_text().replace(old, new))
    with pytest.raises((ModelError, SettingsError), match=message):
        opened(chain, sound)


def test_onnx__that_is_damaged_or_bare_is_said(sound: Store, chain: Path):
    with pytest.raises(SettingsError, match="does not say what it hears"):
        opened(chain.parent / "levels.onnx", sound)
    (chain.parent / "levels.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match="no ONNX file"):
        opened(chain, sound)


@pytest.mark.parametrize("name", ["speech_embedding.yaml", "speech_embedding_one_file.yaml"])
def test_examples__ask_for_their_files(sound: Store, name: str):
    pytest.importorskip("onnxruntime")
    with pytest.raises(SettingsError, match="there is no such file of the teacher"):
        opened(Path(__file__).parents[2] / "configs" / name, sound)
