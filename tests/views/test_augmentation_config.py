from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tymbal.errors import SettingsError
from tymbal.settings.augmentation import AugmentationSettings, Background
from tymbal.views.augmentation_config import augmentation_from, augmentation_mapping, read_augmentation

SHIPPED = Path(__file__).parents[2] / "configs" / "audio_augmentation_config.yaml"


def test_shipped_file__says_the_defaults() -> None:
    assert read_augmentation(SHIPPED) == AugmentationSettings()


def test_shipped_file__for_short_clips_is_read() -> None:
    settings = read_augmentation(SHIPPED.with_name("short_clips.yaml"))
    assert (settings.num_waveform_augs, settings.num_spectrogram_augs) == (2, 1)
    assert settings.waveform.gain is None
    assert settings.spectrogram.roll is None


def test_mapping__comes_back_the_same(tmp_path: Path) -> None:
    text = """
num_waveform_augs: 1
num_spectrogram_augs: 0
waveform:
  background: {folder: noises, snr: [0, 10], probability: 0.5}
  gain:
spectrogram: {}
strategies:
  - {num_waveform_augs: 2}
"""
    (tmp_path / "some.yaml").write_text(text)
    settings = read_augmentation(tmp_path / "some.yaml")
    assert settings.waveform.background == Background(folder=str(tmp_path / "noises"), snr=(0.0, 10.0), probability=0.5)
    assert settings.names("spectrogram", settings.of_version(0)) == ()
    assert augmentation_from(yaml.safe_load(yaml.safe_dump(augmentation_mapping(settings)))) == settings


def test_default_path__is_used_where_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_augmentation() == AugmentationSettings()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "audio_augmentation_config.yaml").write_text("num_waveform_augs: 1")
    assert read_augmentation().num_waveform_augs == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("waveform: {gian: {}}", "Did you mean gain"),
        ("wave: {}", "unknown name 'wave'"),
        ("waveform: {gain: {dB: [0, 1]}}", "unknown setting 'dB'"),
        ("waveform: {gain: {db: [3, 1]}}", "ascending"),
        ("waveform: {gain: {db: 3}}", "two numbers"),
        ("waveform: {gain: {probability: 2}}", "fraction from 0 to 1"),
        ("num_waveform_augs: 50", "as many as may be drawn"),
        ("num_waveform_augs: many", "whole number"),
        ("{num_waveform_augs: 1, waveform: {background: {}}}", "no folder"),
        ("strategies: [{waveform: [background], num_waveform_augs: 1}]", "is not set under waveform"),
        ("strategies: 3", "not a list"),
    ],
)
def test_mistakes__are_named_with_the_file(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(text)
    with pytest.raises(SettingsError, match=message) as caught:
        read_augmentation(tmp_path / "wrong.yaml")
    assert caught.value.path == str(tmp_path / "wrong.yaml")
