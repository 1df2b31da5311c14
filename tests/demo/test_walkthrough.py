"""The whole way, as small as it goes."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import soundfile as sf

import tymbal
from tymbal.demo.walkthrough import SHORT
from tymbal.errors import SettingsError

TINY = replace(
    SHORT,
    each=3,
    known=2,
    recording=9,
    encoder={"width": 16, "depth": 1, "heads": 1},
    pretraining=4,
    finetuning=10 * 32 * 56,
)


@pytest.fixture
def tiny(monkeypatch):
    """Makes the demo tiny."""
    monkeypatch.setattr(importlib.import_module("tymbal.demo.walkthrough"), "SHORT", TINY)


def test_demo__wingbeats_the_whole_way_and_again(tiny, tmp_path, capsys):
    result = tymbal.demo(tmp_path / "demo", short=True)
    text = result.summary()
    assert "54 clips of a device that was never trained on (trap), 9 classes" in text
    assert (tmp_path / "demo" / "summary.txt").read_text() == text + "\n"
    for place in (
        "store/store.json",
        "pretrained/model",
        "classifier/model",
        "probe.csv",
        "predictions.csv",
        "report.html",
    ):
        assert (tmp_path / "demo" / place).exists()
    seconds = json.loads((tmp_path / "demo" / "seconds.json").read_text())
    assert set(seconds) == {"scan", "prepare", "pretrain", "probe", "finetune", "from-random", "predict", "report"}
    shown = capsys.readouterr().err
    assert f"$ tymbal scan {tmp_path / 'demo' / 'wingbeats'} -o {tmp_path / 'demo' / 'manifest.csv'}" in shown

    assert f"{tmp_path / 'demo' / 'report.html'}" in text
    page = (tmp_path / "demo" / "report.html").read_text()
    assert all(f'<section id="{part}' in page for part in ("store", "pretraining", "fine-tuning", "predictions"))
    reasons = set(re.findall("Not shown: ([^<]*)", page))
    # So little is learned in short form that nothing need be detected.
    assert reasons <= {
        "fewer than two logged steps do not tell a speed.",
        "there are no detections; no score reached the threshold.",
    }

    again = tymbal.demo(tmp_path / "demo", short=True)
    assert again.report.scores == result.report.scores
    assert again.report.found == result.report.found
    assert again.report.seconds["pretrain"] < seconds["pretrain"] + 2


def test_demo__sound_without_labels_ends_after_pretraining(tiny, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "sound").mkdir()
    for number in range(12):
        sf.write(tmp_path / "sound" / f"{number}.wav", 0.1 * rng.standard_normal(20_000), 16_000)
    result = tymbal.demo(tmp_path / "demo", data=tmp_path / "sound", short=True)
    assert result.report.scores is None
    assert "There are no labels" in result.summary()
    assert (tmp_path / "demo" / "pretrained" / "model").is_dir()
    assert not (tmp_path / "demo" / "classifier").exists()


def test_demo__patterns_need_sound_of_ones_own(tmp_path):
    with pytest.raises(SettingsError, match="sound of your own"):
        tymbal.demo(tmp_path / "demo", label_pattern="(a)")
