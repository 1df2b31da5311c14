"""The template package, installed as a user would: each verb takes what it adds."""

from __future__ import annotations

import csv
import importlib
import importlib.metadata
import json
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tones import tone_folder
from tymbal.cli import main
from tymbal.config import read_run_yaml
from tymbal.features.bank import filter_bank
from tymbal.inference.predictions import read_predictions
from tymbal.models.folder import load_model
from tymbal.objectives import registry
from tymbal.plugins import FILTER_BANKS, TABLE_FORMATS
from tymbal.settings import FeatureSettings

PACKAGE = Path(__file__).resolve().parents[2] / "examples" / "plugin"
BANK = ("--filter-bank", "linear", "--sample-rate", "8000", "--mel-bins", "16")
SMALL = ("--device", "cpu", "--precision", "float32", "--width", "16", "--depth", "1", "--heads", "2", "--patch", "8x8")


def forget() -> None:
    importlib.invalidate_caches()
    registry._plugins.cache_clear()
    registry.spec.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "tymbal_example"]:
        del sys.modules[name]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Installs the package from what its `pyproject.toml` says, and gives that."""
    described: dict[str, Any] = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    place = tmp_path / "site"
    shutil.copytree(PACKAGE / "src", place, ignore=shutil.ignore_patterns("__pycache__"))
    info = place / f"tymbal_example-{described['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {described['name']}\nVersion: 1.0\n")
    groups = [
        "\n".join((f"[{group}]", *(f"{name} = {value}" for name, value in points.items())))
        for group, points in described["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups) + "\n")
    monkeypatch.syspath_prepend(place)
    forget()
    yield described
    monkeypatch.undo()
    forget()


def test_template__adds_a_name_of_each_kind(project: dict[str, Any]) -> None:
    assert registry.names()[-1] == "arrow"
    assert FILTER_BANKS.names()[-1] == "linear"
    assert TABLE_FORMATS.names()[-1] == "dcase"
    own = importlib.metadata.distribution("tymbal-example").entry_points
    assert {point.group for point in own} == {registry._GROUP, FILTER_BANKS.group, TABLE_FORMATS.group}


def test_template__goes_through_every_verb(
    project: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound, store, run = tone_folder(tmp_path / "sound"), str(tmp_path / "store"), str(tmp_path / "run")
    assert main(["prepare", str(sound), "-o", store, *BANK, "--workers", "1"]) == 0
    training = ("--objective", "arrow", "--batch-size", "4", "--max-steps", "6", "--eval-steps", "3")
    assert main(["pretrain", store, "-o", run, *training, *SMALL]) == 0
    settings = read_run_yaml(tmp_path / "run").settings
    assert (settings["reversed_share"], settings["learning_rate"]) == (0.5, 5e-4)
    last = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any(0 <= line.get("eval_accuracy", -1) <= 1 for line in last)
    assert load_model(tmp_path / "run").description.features.filter_bank == "linear"
    assert load_file(tmp_path / "run/model/objective.safetensors").keys() >= {"arrow.weight", "arrow.bias"}

    heads = ("--from", run, "--device", "cpu", "--max-steps", "4", "--batch-size", "4")
    assert main(["finetune", store, "-o", str(tmp_path / "classifier"), *heads]) == 0
    table = tmp_path / "nights.tsv"
    files = [str(sound / "validation" / name / "0.wav") for name in ("high", "low")]
    assert main(["predict", str(tmp_path / "classifier"), *files, "-o", str(table), "--device", "cpu"]) == 0
    with table.open() as opened:
        rows = list(csv.DictReader(opened, delimiter="\t"))
    assert list(rows[0]) == ["filename", "onset", "offset", "event_label"]
    assert {(row["filename"], row["onset"], row["offset"]) for row in rows} == {
        (name, "0.000", "0.335") for name in files
    }
    assert [tuple(row) for row in read_predictions(table).rows] == [
        (row["filename"], 0.0, 0.335, row["event_label"], 1.0) for row in rows
    ]
    assert main(["embed", run, str(sound), "-o", str(tmp_path / "embeddings.parquet"), "--device", "cpu"]) == 0
    assert main(["report", run, "-o", str(tmp_path / "report.html")]) == 0
    capsys.readouterr()
    assert main(["pretrain", "--help", "arrow"]) == 0
    assert "--reversed-share  Share of the clips that are reversed." in " ".join(capsys.readouterr().out.split("\n"))
    assert main(["pretrain", store, "-o", "x", "--objective", "arrow", "--reversed-share", "1"]) == 2
    assert "reversed_share is 1.0, which is not a fraction between 0 and 1" in capsys.readouterr().err


def test_linear_bank__a_tone_lies_in_its_band(project: dict[str, Any], tmp_path: Path) -> None:
    settings = FeatureSettings(filter_bank="linear", sample_rate=8000, mel_bins=39, low_freq=0.0)
    bank = filter_bank(settings)
    weights = bank.mel_weights()
    assert weights.shape == (39, 129)
    assert weights.max(dim=1).values.min() > 0.8
    tone = torch.sin(2 * torch.pi * 1500.0 * torch.arange(4000) / 8000)
    spectrogram = bank(tone)
    assert spectrogram.shape == (bank.frames_of(4000), 39) == (48, 39)
    assert set(spectrogram.argmax(dim=1).tolist()) == {round(bank.bin_at(1500.0))} == {14}


def test_arrow__reverses_sound_and_not_what_pads_it(project: dict[str, Any]) -> None:
    reverse = importlib.import_module("tymbal_example.arrow").reverse
    clips = torch.arange(8.0).view(2, 4, 1)
    turned = reverse(clips, torch.tensor([3, 4]), torch.tensor([True, False]))
    assert turned[:, :, 0].tolist() == [[2, 1, 0, 3], [4, 5, 6, 7]]
