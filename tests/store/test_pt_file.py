"""What one `.pt` file may hold, and what may be wrong with it."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from tymbal.errors import StoreError
from tymbal.store.pt import pt_file
from tymbal.store.pt.pt_file import examine, load_spectrogram, read_archive, read_at

MELS = 8
VALUES = torch.from_numpy(np.random.default_rng(0).normal(-6, 3, (20, MELS)))
HALF = VALUES.half()
WIDE = torch.full((30, 3 * MELS), 7.0, dtype=torch.float16)
WIDE[4:24, MELS : 2 * MELS] = HALF


def save(path: Path, content: object, **options: object) -> str:
    path.parent.mkdir(exist_ok=True)
    torch.save(content, path, **options)
    return str(path)


@pytest.mark.parametrize(
    ("content", "fast"),
    [
        pytest.param(HALF, True, id="float16"),
        pytest.param(VALUES.float(), True, id="float32"),
        pytest.param(VALUES, True, id="float64"),
        pytest.param(HALF[None], True, id="leading one"),
        pytest.param(HALF[None, None], True, id="two leading ones"),
        pytest.param(HALF.T.contiguous(), True, id="transposed"),
        pytest.param(HALF.T, True, id="transposed view"),
        pytest.param(HALF.T.contiguous()[None], True, id="transposed, leading one"),
        pytest.param(WIDE[4:24, MELS : 2 * MELS], True, id="part of a larger tensor"),
        pytest.param({"fbank": HALF}, True, id="dict"),
        pytest.param({"fbank": HALF, "sr": 16000, "path": "a.wav"}, True, id="dict with plain values"),
        pytest.param(OrderedDict(fbank=HALF, label=torch.ones(5)), False, id="dict with a label vector"),
        pytest.param((HALF, torch.tensor(3)), False, id="pair"),
        pytest.param(torch.nn.Parameter(HALF), True, id="parameter"),
        pytest.param(HALF.bfloat16(), False, id="bfloat16"),
    ],
)
def test_file__in_any_form_gives_the_same_values(tmp_path, content, fast):
    path = save(tmp_path / "a.pt", content)
    loaded = load_spectrogram(path, mels=MELS)
    assert loaded.shape == (20, MELS)
    wanted = HALF.bfloat16() if loaded.dtype == torch.bfloat16 else VALUES.to(loaded.dtype)
    assert loaded.equal(wanted)
    found = examine(path, mels=MELS)
    assert (found.real, found.place.frames) == (20, 20)
    assert found.place.size == Path(path).stat().st_size
    assert (found.place.offset > 0) is fast
    reference = wanted.double().numpy()
    assert found.mean == pytest.approx(reference.mean(), rel=1e-6)
    assert found.m2 == pytest.approx(((reference - reference.mean()) ** 2).sum(), rel=1e-6)
    if fast:
        out = np.zeros((13, MELS), np.float16)
        assert read_at(path, found.place, MELS, out)
        np.testing.assert_array_equal(out, wanted[:13].half().numpy())


def test_file__in_the_old_format_is_read_slowly(tmp_path):
    path = save(tmp_path / "a.pt", HALF, _use_new_zipfile_serialization=False)
    assert load_spectrogram(path, mels=MELS).equal(HALF)
    assert examine(path, mels=MELS).place.offset == -1


def test_examine__zeros_at_the_end_are_padding(tmp_path):
    padded = torch.zeros(32, MELS, dtype=torch.float16)
    padded[:20] = HALF
    padded[7] = 0  # a frame of zeros between others is none
    found = examine(save(tmp_path / "a.pt", padded), mels=MELS)
    assert (found.real, found.place.frames) == (20, 32)
    assert found.mean == pytest.approx(float(padded[:20].double().mean()), rel=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(torch.zeros(MELS, MELS).half() - 1, r"^ambiguous: \[8, 8\] can be", id="square"),
        pytest.param(VALUES[:, :5], r"^wrong shape: it holds \[20, 5\], which has no side of 8 mel bins", id="bins"),
        pytest.param(torch.ones(2, 20, MELS), r"^wrong shape: it holds \[2, 20, 8\]", id="two"),
        pytest.param(torch.ones(MELS), r"^wrong shape: it holds \[8\]", id="vector"),
        pytest.param({"a": HALF, "b": HALF}, "^wrong shape: it holds 2 of them", id="two by name"),
        pytest.param({"rate": 16000}, "^wrong shape: it holds a dict, not", id="none"),
        pytest.param("text", "^wrong shape: it holds a str, not", id="text"),
        pytest.param(torch.ones(20, MELS, dtype=torch.int16), "^wrong shape: it holds int16 values", id="integers"),
        pytest.param(
            torch.ones(20, MELS).to_sparse(), "^wrong shape: it holds float32 values, not a dense", id="sparse"
        ),
        pytest.param(torch.ones(0, MELS), "^empty: it has no frames", id="no frames"),
        pytest.param(torch.zeros(20, MELS), "^empty: every value is 0", id="zeros"),
        pytest.param(torch.full((20, MELS), torch.nan), "^not finite", id="nan"),
        pytest.param(torch.full((20, MELS), -torch.inf), "^not finite", id="infinite"),
        pytest.param(torch.full((20, MELS), 1e6), r"^out of range: 1e\+06 is no logarithm", id="energies"),
    ],
)
def test_examine__what_cannot_be_used_is_said(tmp_path, content, message):
    path = save(tmp_path / "a.pt", content)
    with pytest.raises(StoreError) as raised:
        examine(path, mels=MELS)
    assert raised.value.path == path
    assert raised.value.advice
    with pytest.raises(StoreError, match=message):
        raise StoreError(raised.value.what)


@pytest.mark.parametrize("layout", ["frames-mels", "mels-frames"])
def test_examine__a_square_file_is_what_the_layout_says(tmp_path, layout):
    square = VALUES[:MELS].half()
    path = save(tmp_path / "a.pt", square if layout == "frames-mels" else square.T)
    assert load_spectrogram(path, mels=MELS, layout=layout).equal(square)
    other = save(tmp_path / "b.pt", HALF.T if layout == "frames-mels" else HALF)
    with pytest.raises(StoreError, match="wrong shape"):
        examine(other, mels=MELS, layout=layout)


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["torch", "old torch", "pickle", "new pickle"])
def test_examine__a_malicious_pickle_is_refused_and_named(tmp_path, how):
    path, mark = tmp_path / "a.pt", tmp_path / "mark"
    if "pickle" in how:
        path.write_bytes(pickle.dumps({"fbank": Evil(mark)}, protocol=2 if how == "pickle" else 5))
    else:
        save(path, {"fbank": HALF, "evil": Evil(mark)}, _use_new_zipfile_serialization=how == "torch")
    what = "holds more than tensors" if how == "new pickle" else r"wants to use \w+\.system when it is opened"
    with pytest.raises(StoreError, match=f"unsafe: it {what}, and was refused"):
        examine(str(path), mels=MELS)
    assert not mark.exists()


def test_examine__missing_and_empty(tmp_path):
    with pytest.raises(StoreError, match="missing: there is no such file"):
        examine(str(tmp_path / "a.pt"), mels=MELS)
    (tmp_path / "b.pt").touch()
    with pytest.raises(StoreError, match="empty: it has no bytes"):
        examine(str(tmp_path / "b.pt"), mels=MELS)
    (tmp_path / "c.pt").mkdir()
    with pytest.raises(StoreError, match="unreadable: Is a directory"):
        examine(str(tmp_path / "c.pt"), mels=MELS)


def test_examine__damage_of_any_kind_is_a_named_failure(tmp_path):
    whole = Path(save(tmp_path / "a.pt", {"fbank": HALF, "note": "text"})).read_bytes()
    random = np.random.default_rng(0)
    damaged = [whole[:end] for end in range(0, len(whole), 61)]
    for _ in range(150):
        flipped = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            flipped[place] = random.integers(256)
        damaged.append(bytes(flipped))
    damaged += [random.bytes(size) for size in (1, 10, 1000)] + [b"PK\x03\x04" + random.bytes(500)]
    path, refused, agreed = tmp_path / "b.pt", 0, 0
    for data in damaged:
        path.write_bytes(data)
        try:
            found = examine(str(path), mels=MELS)
        except StoreError as error:
            refused += 1
            assert error.what.partition(":")[0] in {"empty", "unreadable", "unsafe", "wrong shape", "not finite"} | {
                "out of range"
            }
            continue
        out = np.zeros((found.place.frames, MELS), np.float16)
        assert found.place.offset < 0 or read_at(str(path), found.place, MELS, out)
        try:
            loaded = load_spectrogram(str(path), mels=MELS)
        except StoreError:  # torch minds bytes that matter to nobody; then pickle and storage are whole
            assert whole[64:200] in data
        else:
            agreed += found.place.offset > 0
            np.testing.assert_array_equal(out, loaded.half().numpy() if found.place.offset > 0 else 0)
    assert agreed > 10
    assert refused > len(whole) // 61


def test_examine__remembers_what_a_pickle_means(tmp_path, monkeypatch):
    first = examine(save(tmp_path / "a.pt", {"fbank": HALF.T}), mels=MELS)
    monkeypatch.setattr(pt_file, "_spectrogram", lambda *_, **__: pytest.fail("read by torch.load again"))
    path = save(tmp_path / "b" / "longer name.pt", {"fbank": (HALF + 1).T})
    second = examine(path, mels=MELS)
    assert second.place.offset != first.place.offset
    assert second.mean == pytest.approx(float((HALF + 1).double().mean()), rel=1e-6)
    out = np.zeros((20, MELS), np.float16)
    assert read_at(path, second.place, MELS, out)
    np.testing.assert_array_equal(out, (HALF + 1).numpy())


def test_read_archive__only_what_it_understands(tmp_path):
    data = Path(save(tmp_path / "a.pt", HALF)).read_bytes()
    archive = read_archive(data)
    assert archive.size == HALF.numel() * 2
    assert data[archive.start : archive.start + archive.size] == HALF.numpy().tobytes()
    assert read_archive(data + b"x") is None
    assert read_archive(data.replace(b"little", b"biggie")) is None
    assert read_archive(Path(save(tmp_path / "b.pt", [HALF, HALF + 1])).read_bytes()) is None
    with zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data/0", bytes(1000))
    assert read_archive((tmp_path / "c.pt").read_bytes()) is None


def test_read_at__notices_that_a_file_has_changed(tmp_path):
    path = save(tmp_path / "a.pt", HALF)
    place = examine(path, mels=MELS).place
    out = np.zeros((20, MELS), np.float16)
    save(tmp_path / "a.pt", HALF + 1)
    os.utime(path, ns=(place.modified + 1000, place.modified + 1000))
    assert not read_at(path, place, MELS, out)
    os.utime(path, ns=(place.modified, place.modified))
    assert read_at(path, place, MELS, out)
    os.truncate(path, place.offset + 10)
    assert not read_at(path, place, MELS, out)
