"""Every file of a store, run, model or unfinished work, damaged in every way, before every verb that reads it.

What comes out is an error that names a file, or what came out of the whole, or a warning; never a traceback, and never
other numbers without a word.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import soundfile

import tymbal
from small_model import small_model
from tones import PITCHES, RATE, tone
from tymbal.errors import StoreError, TymbalError
from tymbal.inference.spool import Spool

CPU = {"device": "cpu", "precision": "float32"}
TINY = {"width": 16, "depth": 1, "heads": 2, "patch": "8x8", "batch_size": 12, "report_to": ()}
SHORT = {"sample_rate": RATE, "mel_bins": 16, "window": 0.335, "validation": 0.25, "workers": 1}


def _flipped(data: bytes) -> bytes:
    if not data:
        return b"1"
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "deleted": lambda data: None,
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "flipped": _flipped,
    "garbage": lambda data: bytes(range(256)) * 4,
    "deep": lambda data: b'{"a":' * 100_000,
}


@dataclass(frozen=True)
class Case:
    """A folder, the files of it to damage, and a verb: from the folder and a place for its output to what came out."""

    folder: str
    run: Callable[[Path, Path], Any]
    skipped: tuple[str, ...] = ()


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sound, and what verbs made of it, in the places that they refer to."""
    root = tmp_path_factory.mktemp("things")
    for label in PITCHES:
        (root / "sound" / label).mkdir(parents=True)
        for i in range(12):
            soundfile.write(root / "sound" / label / f"{i}.wav", tone(label, seed=i), RATE, subtype="FLOAT")
    tymbal.prepare(root / "sound", root / "store", **SHORT)
    tymbal.prepare(root / "sound", root / "pairs", **SHORT, views=2, write="pt")
    tymbal.finetune(root / "store", root / "run", epochs=2, eval_every=1, **TINY, **CPU)
    tymbal.pretrain(root / "store", root / "encoder", max_steps=4, **TINY, **CPU)
    small_model(root / "model", labels=tuple(PITCHES), pooling="mean", seed=1)
    (root / "index").mkdir()
    tymbal.embed(root / "model", root / "sound", root / "index" / "index.parquet", **CPU)
    (root / "tables").mkdir()
    _predict(root / "model", root / "tables" / "scores.csv", root / "sound")
    _unfinished(root)
    return root


class _StopError(Exception):
    pass


def _unfinished(root: Path) -> None:
    """A preparation without its last shard, and predictions and embeddings without their last recording."""

    def stop(*_: object, **__: object) -> None:
        raise _StopError

    with pytest.MonkeyPatch.context() as patch:
        import sys

        patch.setattr(sys.modules["tymbal.prepare"], "finish", stop)
        with pytest.raises(_StopError):
            tymbal.prepare(root / "sound", root / "begun", **SHORT)
    ended = Spool.end

    def end(spool: Spool, outcome: Any) -> None:
        if outcome.place == "middle/9.wav":
            raise _StopError
        ended(spool, outcome)

    for name, verb in (("scores", _predict), ("vectors", _embed_sound)):
        (root / name).mkdir()
        with pytest.MonkeyPatch.context() as patch, pytest.raises(_StopError):
            patch.setattr(Spool, "end", end)
            verb(root / "model", root / name / ("out.csv" if verb is _predict else "out.npy"), root / "sound")


def _predict(model: Path, output: Path, sound: Path) -> str:
    tymbal.predict(model, sound, output, batch_size=1, **CPU)
    return output.read_text()


def _embed_sound(model: Path, output: Path, sound: Path) -> bytes:
    tymbal.embed(model, sound, output, batch_size=1, **CPU)
    return output.read_bytes()


def _probe(model: Path, store: Path) -> Any:
    rows = tymbal.probe(model, store, pooling=("mean",), readers=("ridge", "knn"), cache=False, **CPU).rows
    return [(row.features, row.reader, row.figures) for row in rows]


def _similar(model: Path, index: Path) -> Any:
    found = tymbal.similar(model, model.parent / "sound" / "low" / "0.wav", index / "index.parquet", **CPU)
    return [(one.file, round(one.similarity, 5)) for one in found.neighbours]


def _finetune(store: Path, output: Path, **more: Any) -> Any:
    result = tymbal.finetune(store, output / "run", epochs=1, **TINY, **CPU, **more)
    return {name: value for name, value in result.metrics.items() if name in ("eval_accuracy", "eval_loss")}


def _pretrain(store: Path, output: Path) -> Any:
    result = tymbal.pretrain(store, output / "run", max_steps=2, objective="joint", **TINY, **CPU)
    return {name: value for name, value in result.metrics.items() if name in ("eval_acc", "eval_loss")}


def _embed(source: Path, output: Path) -> bytes:
    tymbal.embed(source.parent / "model", source, output / "a.npy", **CPU)
    return (output / "a.npy").read_bytes()


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.suffix in (".npy", ".pt", ".pth")
    }


def _convert(to: str) -> Callable[[Path, Path], Any]:
    def convert(source: Path, output: Path) -> Any:
        tymbal.convert(source, output / "converted", to=to)
        return _contents(output)

    return convert


def _report(source: Path, output: Path) -> None:
    tymbal.report(source, output / "page.html", device="cpu")


def _doctor(source: Path, output: Path) -> None:
    del output
    result = tymbal.doctor(source, seconds=0, device="cpu")
    if any(str(source) in text for text in result.advice):  # a finding, and no error
        raise StoreError(result.advice[0])


def _prepare(source: Path, output: Path, **more: Any) -> Any:
    del output
    tymbal.prepare(source.parent / "sound", source, **SHORT, **more)
    return _contents(source)


def _continued(source: Path, output: Path) -> Any:
    del output
    result = tymbal.finetune(source.parent / "store", source, epochs=2, eval_every=1, **TINY, **CPU)
    return {name: value for name, value in result.metrics.items() if name in ("eval_acc", "eval_loss")}


CASES = {
    "store-embed": Case("store", _embed),
    "store-convert": Case("store", _convert("pt")),
    "store-doctor": Case("store", _doctor),
    "store-report": Case("store", _report),
    "store-prepare": Case("store", _prepare),
    "pairs-convert": Case("pairs", _convert("store")),
    "pairs-prepare": Case("pairs", lambda source, output: _prepare(source, output, views=2, write="pt")),
    "begun-prepare": Case("begun", _prepare),
    "scores-predict": Case(
        "scores",
        lambda source, output: _predict(source.parent / "model", source / "out.csv", source.parent / "sound"),
    ),
    "model-predict": Case("model", lambda source, output: _predict(source, output / "a.csv", source.parent / "sound")),
    "model-convert": Case("model", _convert("tymbal")),
    "run-predict": Case("run", lambda source, output: _predict(source, output / "a.csv", source.parent / "sound")),
    "run-report": Case("run", _report),
    "run-finetune": Case("run", _continued),
    "encoder-convert": Case("encoder", _convert("tymbal")),
    "encoder-report": Case("encoder", _report),
    "vectors-embed": Case(
        "vectors",
        lambda source, output: _embed_sound(source.parent / "model", source / "out.npy", source.parent / "sound"),
    ),
    "store-probe": Case("store", lambda source, output: _probe(source.parent / "model", source)),
    "model-probe": Case("model", lambda source, output: _probe(source, source.parent / "store")),
    "model-embed": Case(
        "model", lambda source, output: _embed_sound(source, output / "a.npy", source.parent / "sound")
    ),
    "model-similar": Case("model", lambda source, output: _similar(source, source.parent / "index")),
    "index-similar": Case("index", lambda source, output: _similar(source.parent / "model", source)),
    "store-finetune": Case("store", _finetune),
    "store-pretrain": Case("store", _pretrain),
    "encoder-finetune": Case(
        "encoder", lambda source, output: _finetune(source.parent / "store", output, from_=str(source))
    ),
    "pairs-doctor": Case("pairs", _doctor),
    "pairs-report": Case("pairs", _report),
    "tables-report": Case("tables", lambda source, output: _report(source / "scores.csv", output)),
}


def _files(folder: Path) -> Iterator[Path]:
    """Files of a folder; of many of one kind the first."""
    seen: set[tuple[str, str]] = set()
    for path in sorted(folder.rglob("*")):
        kind = (path.parent.name.rstrip("0123456789"), path.suffix if path.suffix in (".pt", ".npy") else path.name)
        if path.is_file() and kind not in seen and "tensorboard" not in path.parts:
            seen.add(kind)
            yield path


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_verbs__damage_is_an_error_or_mended_or_told(
    name: str, things: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    folder, kept = things / case.folder, tmp_path / "kept"
    shutil.copytree(folder, kept)

    def outcome(number: int) -> Any:
        output = tmp_path / str(number)
        output.mkdir()
        try:
            return case.run(folder, output)
        finally:
            shutil.rmtree(output)
            shutil.rmtree(folder)
            shutil.copytree(kept, folder)

    whole = outcome(0)
    tracebacks, silent = [], []
    for path in list(_files(folder)):
        for damage, function in DAMAGE.items():
            data = function(path.read_bytes())
            path.unlink() if data is None else path.write_bytes(data)
            capsys.readouterr()
            about = f"{path.relative_to(folder)} {damage}"
            try:
                result = outcome(1)
            except TymbalError:
                continue
            except Exception as error:  # noqa: BLE001 - what escapes is what is looked for
                tracebacks.append(f"{about}: {type(error).__name__}: {error}")
                continue
            said = capsys.readouterr().err
            if result != whole and path.name not in said and "damaged" not in said:
                silent.append(about)
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)
    assert not tracebacks, "\n".join(tracebacks)
    assert not silent, "\n".join(silent)
