"""Every setting of every verb before every kind of input: it changes what comes out, is refused, or is named.

A value other than the default is given for one setting after the other. `KEPT` has those whose effect these inputs do
not show, such as the overlap of windows where no recording is longer than one.
"""

from __future__ import annotations

import csv
import dataclasses
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile

import tymbal
from small_model import small_model
from tones import PITCHES, RATE, tone
from tymbal.config import setting_types
from tymbal.errors import TymbalError
from tymbal.settings import (
    ConvertSettings,
    EmbedSettings,
    MergeSettings,
    PredictSettings,
    PrepareSettings,
    ProbeSettings,
    ReportSettings,
    ScanSettings,
    SimilarSettings,
)

CPU = {"device": "cpu", "precision": "float32"}
SHORT = {"sample_rate": RATE, "mel_bins": 16, "window": 0.335, "workers": 1}
OF_SPEED = {"device", "precision", "batch_size", "workers", "cache", "executor", "preview", "force", "write", "part"}
OTHERS: dict[str, Any] = {
    "label_pattern": r"(l|i|o)",
    "group_pattern": r"(\d)_",
    "validation_pattern": "/1_",
    "label_separator": "|",
    "data_dir": "nowhere",
    "data_val": "nowhere.json",
    "data_val_dir": "nowhere",
    "augmentations": "augmentations.yaml",
    "label_csv": "labels.csv",
    "layer": "1",
    "shots": (1,),
    "label_thresholds": ("low=0.9",),
    "stride": "8x4",
    "data": "store",
    "sample_rate": 6000,
    "mel_bins": 20,
    "silence_db": -3.0,
    "min_seconds": 0.5,
    "frames": 48,
    "window": 0.2,
    "hop": 0.1,
    "reject": 0.0,
    "threshold": 0.2,
    "high_freq": 3000.0,
    "low_freq": 100.0,
    "n_fft": 256,
    "hop_length": 100,
    "teacher": "model",
    "readers": ("ridge",),
    "pooling": ("mean",),
    "validation": 0.4,
    "map_clips": 3,
    "views": 3,
    "filter_bank": "kaldi",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    rows = []
    for label in PITCHES:
        (root / "sound" / label).mkdir(parents=True)
        for i in range(8):
            seconds = {0: 1.0, 1: 0.2}.get(i, 0.335)
            file = root / "sound" / label / f"{i % 4}_{i}.wav"
            soundfile.write(file, tone(label, seconds=seconds, seed=i), RATE, subtype="PCM_16")
            split = "validation" if i % 4 == 0 else "train"
            rows.append({"file": file.relative_to(root), "label": label, "group": f"g{i % 4}", "split": split})
    with (root / "list.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (root / "labels.csv").write_text("index,mid,display_name\n0,low,Low\n1,middle,Middle\n2,high,High\n")
    (root / "augmentations.yaml").write_text("num_waveform_augs: 1\n")
    tymbal.prepare(root / "sound", root / "store", validation=0.25, **SHORT)
    tymbal.convert(root / "store", root / "pt", to="pt")
    tymbal.prepare(root / "sound", root / "pairs", views=2, **SHORT)
    small_model(root / "model", labels=tuple(PITCHES), pooling="mean", seed=1)
    small_model(root / "same", labels=tuple(PITCHES), pooling="mean", seed=1)
    tymbal.embed(root / "model", root / "sound", root / "index.parquet", **CPU)
    tymbal.predict(root / "model", root / "sound", root / "scores.csv", **CPU)
    tiny = {"width": 16, "depth": 1, "heads": 2, "patch": "8x8", "batch_size": 6, "report_to": ()}
    tymbal.finetune(root / "store", root / "run", epochs=1, **tiny, **CPU)
    return root


def files(folder: Path, *suffixes: str) -> list[tuple[str, bytes]]:
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix in suffixes and path.name != "store.json"]
    return [(str(path.relative_to(folder)), path.read_bytes()) for path in paths]


def writes(verb: str, *sources: str, to: str, suffixes: tuple[str, ...], **more: Any) -> Callable[..., Any]:
    """A verb with an output; what comes out are the files of these suffixes."""

    def run(root: Path, out: Path, settings: dict[str, Any]) -> Any:
        result = getattr(tymbal, verb)(*(root / source for source in sources), out / to, **{**more, **settings})
        print(result.summary(), file=sys.stderr)  # as the command line does
        return files(out, *suffixes)

    return run


def probe(data: str) -> Callable[..., Any]:
    def run(root: Path, out: Path, settings: dict[str, Any]) -> Any:
        few = {"readers": ("ridge", "knn"), "pooling": ("rows",), "cache": False}
        found = tymbal.probe(root / "model", root / data, **{**few, **CPU, **settings})
        rows = [(row.features, row.pooling, row.reader, row.shots, repr(row.scores), row.figures) for row in found.rows]
        return rows, found.train, found.classes, list(found.sides)

    return run


def similar(root: Path, out: Path, settings: dict[str, Any]) -> Any:
    return tymbal.similar(
        root / "model", root / "sound/low/0_0.wav", root / "index.parquet", **{**CPU, **settings}
    ).neighbours


PREPARED = {"to": "s", "suffixes": (".npy", ".parquet"), **SHORT}
TABLES = {"suffixes": (".csv", ".txt", ".npy"), **CPU}
MODEL = {"suffixes": (".safetensors", ".json")}
PACKED = {"suffixes": (".npy", ".pt", ".parquet", ".json")}
PAGE = {"to": "page.html", "suffixes": (".html",), "device": "cpu"}

CASES: dict[str, tuple[type, Callable[..., Any]]] = {
    "scan-folder": (ScanSettings, writes("scan", "sound", to="m.csv", suffixes=(".csv",))),
    "scan-list": (ScanSettings, writes("scan", "list.csv", to="m.csv", suffixes=(".csv",))),
    "prepare-folder": (PrepareSettings, writes("prepare", "sound", **PREPARED)),
    "prepare-list": (PrepareSettings, writes("prepare", "list.csv", **PREPARED)),
    "prepare-views": (PrepareSettings, writes("prepare", "sound", **PREPARED, views=2)),
    "probe-store": (ProbeSettings, probe("store")),
    "probe-sound": (ProbeSettings, probe("sound")),
    "probe-list": (ProbeSettings, probe("list.csv")),
    "probe-pt": (ProbeSettings, probe("pt/train.json")),
    "predict": (PredictSettings, writes("predict", "model", "sound", to="a.csv", **TABLES)),
    "predict-raven": (PredictSettings, writes("predict", "model", "sound", to="a", **TABLES, format="raven")),
    "embed-sound": (EmbedSettings, writes("embed", "model", "sound", to="a.npy", **TABLES)),
    "embed-store": (EmbedSettings, writes("embed", "model", "store", to="a.npy", **TABLES)),
    "similar": (SimilarSettings, similar),
    "convert-store": (ConvertSettings, writes("convert", "store", to="pt", **PACKED)),
    "convert-pairs": (ConvertSettings, writes("convert", "pairs", to="pt", **PACKED)),
    "convert-pt": (ConvertSettings, writes("convert", "pt/train.json", to="s", **PACKED)),
    "convert-model": (ConvertSettings, writes("convert", "model", to="m", **MODEL)),
    "report-store": (ReportSettings, writes("report", "store", **PAGE)),
    "report-run": (ReportSettings, writes("report", "run", **PAGE)),
    "report-table": (ReportSettings, writes("report", "scores.csv", **PAGE)),
    "merge-models": (MergeSettings, writes("merge", "model", "same", to="m", **MODEL, device="cpu")),
}

_SAME = {"labels", "split", "label_pattern", "filter_bank"}  # what they are here anyway
_LISTED = {"label_pattern", "label_separator"}  # the list says the same; no cell of it holds several
_CLIPS = {"min_fill", "shard_mib"}  # all last windows are full enough, all shards small
_PAGE = {
    "sound_seconds",
    "data",
    "mistakes",
    "sounds",
    "seed",
}  # of few short clips, where they were
KEPT: dict[str, set[str]] = {
    "scan-folder": _SAME,
    "scan-list": _LISTED,
    "prepare-folder": _SAME | _CLIPS,
    "prepare-list": _LISTED | _SAME | _CLIPS,
    "prepare-views": {*_SAME, *_CLIPS, "num_spectrogram_augs", "longer", "views"},
    "probe-list": _LISTED,
    "probe-pt": {"layout", "label_separator", "padding"},  # the figures of so few clips do not show it
    "predict": {"gap", "merge"},  # a label has one window
    "predict-raven": {"gap", "merge", "top"},
    "embed-sound": {"pooling"},  # auto is the mean
    "embed-store": {"pooling"},
    "convert-pt": {
        "dataset_std",
        "dataset_mean",
        "padding",
        "to",
        "layout",
        "label_separator",
        "shard_mib",
    },  # store.json
    "report-store": _PAGE,
    "report-run": _PAGE,
    "report-table": _PAGE,
}


def other_value(cls: type, field: dataclasses.Field[Any]) -> Any:
    """A value that is not the default."""
    kind, default = setting_types(cls)[field.name], field.default
    if field.name in OTHERS and (field.name != "pooling" or isinstance(default, tuple)):
        return OTHERS[field.name]
    names = [name for name in _names(kind) if name not in (default, *(default if isinstance(default, tuple) else ()))]
    if names:
        return (names[0],) if isinstance(default, tuple) else names[0]
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return default + 1 if isinstance(default, int) else default / 2 or 0.5
    kinds = typing.get_args(kind)
    return 2 if int in kinds else 0.5 if float in kinds else "x"


def _names(kind: Any) -> list[Any]:
    if typing.get_origin(kind) is typing.Literal:
        return list(typing.get_args(kind))
    return [name for part in typing.get_args(kind) for name in _names(part)]


def swallowed(case: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> set[str]:
    """Settings that are taken, change nothing and are not named."""
    cls, run = CASES[case]
    (tmp_path / "whole").mkdir()
    whole = run(root, tmp_path / "whole", {})
    found = set()
    for number, field in enumerate(each for each in dataclasses.fields(cls) if each.name not in OF_SPEED):
        out = tmp_path / str(number)
        out.mkdir()
        capsys.readouterr()
        try:
            result = run(root, out, {field.name: other_value(cls, field)})
        except TymbalError:
            continue
        said = capsys.readouterr().err.replace("-", "_")
        if _same(result, whole) and field.name not in said:
            found.add(field.name)
    return found


def _same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", CASES)
def test_settings__have_an_effect_or_are_named(
    case: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setenv("COLUMNS", "1000")
    assert swallowed(case, root, tmp_path, capsys) - KEPT.get(case, set()) == set()


@pytest.mark.parametrize("case", ["convert-store", "convert-model", "embed-store", "merge-models", "similar"])
def test_settings__have_an_effect_or_are_named__in_some_verbs(
    case: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setenv("COLUMNS", "1000")
    assert swallowed(case, root, tmp_path, capsys) - KEPT.get(case, set()) == set()
