"""Stores and models between formats: `tymbal convert IN OUT --to FORMAT`.

    tymbal convert train.json store --data-dir spectrograms      SSAST's .pt files to a packed store
    tymbal convert store folder --to pt                          and back, each value the same
    tymbal convert audio_model.100.pth model                     SSAST's checkpoint to a model folder
    tymbal convert run model --to hf                             one that stock transformers loads
    tymbal convert run audio_model.pth                           and one that SSAST loads
    tymbal convert run model.pth                                 or, of reconstruction, scripts around transformers' AST
    tymbal convert run model.onnx                                waveforms in, scores out, for any runtime

What is written appears whole or not at all. What a format cannot hold is refused; what it can, comes back the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tymbal import config as configuration
from tymbal.errors import SettingsError
from tymbal.files import replace_folder, written_alone
from tymbal.progress import Progress
from tymbal.settings import ConvertSettings, PtSettings

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from tymbal.models.formats.convert_model import ModelLayout
    from tymbal.store.base import SpectrogramSource
    from tymbal.store.packed.writer import Entry

__all__ = ["ConvertResult", "convert"]

_STORES = ("store", "pt")
_TO_STORES = "Use --to store or pt."
_MODELS = ("tymbal", "hf", "ssast", "pth", "onnx")
_FILES = {"ssast": ".pth", "pth": ".pth", "onnx": ".onnx"}
_WEIGHTS = (".pth", ".bin", ".ckpt", ".pt", ".safetensors")
_BATCH = 64
_OF_SPECTROGRAMS = (
    "data_dir",
    "data_val",
    "data_val_dir",
    "validation",
    "label_separator",
    "mel_bins",
    "layout",
    "padding",
    "shard_mib",
)
_OF_PT = tuple(each.name for each in fields(PtSettings))
_OF_MODELS = ("stride", "heads", "pooling", "multilabel", "transformers")


@dataclass(frozen=True)
class ConvertResult:
    """The outcome of `convert`.

    Attributes:
        output: The folder or file.
        to: Its format.
        notes: Remarks on it.
    """

    output: Path
    to: str
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """The result as a person reads it."""
        return "\n".join([f"{self.output}: {self.to}", *self.notes])


@written_alone
def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    config: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> ConvertResult:
    """Converts spectrograms or a model to another format.

    Args:
        source: A store; a folder or a list of `.pt` spectrograms; or a model: a run, a model folder, a name on the
            Hugging Face hub, an SSAST file, the weights that a script saved.
        output: The folder, or the `.pth` or `.onnx` file, to write. It must not exist yet.
        config: YAML file with settings.
        **settings: See `tymbal.settings.ConvertSettings`.

    Raises:
        SettingsError: The output exists, or the source cannot become the requested format.
        StoreError: Spectrograms cannot be read.
        ModelError: The model cannot be read, or the format cannot hold it.
    """
    from tymbal.data import open_data

    chosen = configuration.resolve(ConvertSettings, settings, config=config)
    configuration.say_useless(chosen)
    target = Path(output)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise SettingsError("the output exists already", path=target, advice="Choose another place, or delete it.")
    data = open_data(source, chosen)
    if _is_model(data.path) or not data.exists:  # a name on the hub; the loader reports a missing one
        _refuse_useless(chosen, _OF_SPECTROGRAMS, f"{source} is a model")
        return _model(source, target, chosen)
    _refuse_useless(chosen, _OF_MODELS, f"{source} is no model")
    if not data.has_rows:
        raise SettingsError(
            "this is no store, holds no .pt spectrograms and no model",
            path=source,
            advice="Sound becomes a store by `tymbal prepare`. Where .pt files lie elsewhere, give --data-dir.",
        )
    if data.is_packed or data.has_views:
        _refuse_useless(chosen, _OF_PT, f"{source} is {data.what}, which has all of this in it")
    to = chosen.to or ("pt" if data.is_packed else "store")
    if to == "pt":
        _refuse_useless(chosen, ("shard_mib",), "files of spectrograms are not packed")
    if to not in _STORES:
        what = "pairs of views" if data.has_views else "spectrograms"
        raise SettingsError(f"{what} cannot become a model ({to})", path=source, advice=_TO_STORES)
    if data.has_views:
        return _pairs(data.store(), target, chosen, to=to)
    return _spectrograms(data.single_spectrograms(), target, chosen, to=to)


def _refuse_useless(settings: ConvertSettings, names: Iterable[str], why: str) -> None:
    """Refuses settings for what the source is not, which would have no effect."""
    given = [name for name in names if getattr(settings, name) != getattr(ConvertSettings, name)]
    if given:
        raise SettingsError(f"{given[0]} has no effect: {why}", advice=f"Leave out {' and '.join(given)}.")


def _pairs(pairs: SpectrogramSource, target: Path, settings: ConvertSettings, *, to: str) -> ConvertResult:
    """Pairs of views, to the other form."""
    from tymbal.store.pairs.pair_store import pack_pairs, unpack_pairs

    if to == "pt":
        return ConvertResult(target, f"{unpack_pairs(pairs, target):,} files of pairs of views")
    count = pack_pairs(pairs, target, shard_mib=settings.shard_mib)
    lost = len(pairs) - count
    notes = (f"{lost:,} files were left out: {target / 'failures.csv'}",) if lost else ()
    return ConvertResult(target, f"{count:,} packed pairs of views", notes)


def _is_model(path: Path) -> bool:
    """Whether a path holds a model: weights, or the folder of a model or a run."""
    from tymbal.models.weights import weights_in

    if any((folder / "config.json").is_file() for folder in (path, path / "model")):
        return True
    return (path.is_file() and path.suffix in _WEIGHTS) or weights_in(path) is not None


def _model(source: str | os.PathLike[str], output: Path, settings: ConvertSettings) -> ConvertResult:
    from tymbal.models.formats.convert_model import convert_model

    by_ending = {".pth": "pth", ".onnx": "onnx"}
    target = settings.to or by_ending.get(output.suffix, "tymbal")
    if target not in _MODELS:
        raise SettingsError(
            f"a model cannot become spectrograms ({target})",
            path=source,
            advice="Use --to tymbal, hf, ssast, pth or onnx.",
        )
    ending = _FILES.get(target)
    if output.suffix != ending if ending else output.suffix in by_ending:
        what = f"is one file, OUTPUT{ending}" if ending else f"is a folder, without {output.suffix}"
        raise SettingsError(f"what --to {target} writes {what}", path=output, advice="Rename the output.")
    to = None if target == "pth" else cast("ModelLayout", target)
    layout, notes = convert_model(source, output, to=to, settings=settings)
    return ConvertResult(output, f"a model for {_NAMES[layout]}", tuple(notes))


_NAMES = {
    "tymbal": "Tymbal",
    "hf": "transformers and Tymbal",
    "ssast": "SSAST",
    "script": "scripts around transformers' AST",
    "onnx": "ONNX runtimes",
}


def _spectrograms(store: SpectrogramSource, output: Path, settings: ConvertSettings, *, to: str) -> ConvertResult:
    from tymbal.store.pt.pt_writer import write_pt

    notes = []
    if to == "pt":
        write_pt(output, store)
    else:
        notes = _pack(store, output, settings)
    what = "packed spectrograms" if to == "store" else "files of spectrograms, with their lists"
    return ConvertResult(output, f"{len(store):,} {what}", tuple(notes))


def _pack(store: SpectrogramSource, output: Path, settings: ConvertSettings) -> list[str]:
    """Writes a packed store; gives what is worth knowing of it."""
    from tymbal.audio.failures import write_failures
    from tymbal.store.packed.writer import write_store

    with replace_folder(output) as aside, Progress(len(store), "Packing", unit="spectrograms") as progress:
        write_store(
            aside,
            _entries(store, progress),
            features=store.features,
            frames=store.frames,
            mels=store.mels,
            padding=store.padding,
            statistics=(store.mean, store.std),
            rows_per_shard=max(1, settings.shard_mib * 2**20 // (store.frames * store.mels * 2)),
            provenance={"source": str(Path(store.path).absolute()), "verb": "convert"},
        )
        failures = store.failures
        write_failures(aside / "failures.csv", failures)
    notes = []
    if failures:
        notes.append(f"{len(failures):,} files were left out: {output / 'failures.csv'}")
    if store.rounds:
        notes.append("Values of more than 16 bits were rounded to float16, as in every store.")
    return notes


def _entries(store: SpectrogramSource, progress: Progress) -> Iterator[tuple[npt.NDArray[np.float16], Entry]]:
    """All spectrograms of a store in order, without their padding."""
    from tymbal.store.packed.writer import Entry

    rows = store.rows()
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        store.announce(rows[start + _BATCH : start + 2 * _BATCH])
        entries = store.index.take(part).to_pylist()
        for values, row in zip(store.gather(part), entries, strict=True):
            del row["shard"], row["row"]
            row["labels"] = tuple(row["labels"] or ())
            yield values[: row["frames"]], Entry(**row)
        progress.advance(len(part))
