"""The page of a preview: clips beside their views, with one brightness and one loudness."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from browser import look, needs_browser
from tymbal.settings import FeatureSettings
from tymbal.settings.augmentation import AugmentationSettings, Gain, SpectrogramAugmentations, WaveformAugmentations
from tymbal.views.make import ViewMaker
from tymbal.views.preview import Example, Shown, preview_page, write_preview

RATE = 8000
FEATURES = FeatureSettings(sample_rate=RATE, mel_bins=16)
QUIETER = AugmentationSettings(
    num_waveform_augs=1,
    num_spectrogram_augs=0,
    waveform=WaveformAugmentations(gain=Gain(db=(-6.0, -6.0))),
    spectrogram=SpectrogramAugmentations(),
)


def pixels(code: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(code))).convert("L"), float)


def chirps(count: int = 2) -> np.ndarray:
    time = np.arange(RATE // 2) / RATE
    return np.stack([0.3 * np.sin(2 * np.pi * (300 + 200 * n + 500 * time) * time) for n in range(count)]).astype(
        np.float32
    )


def test_preview_page__has_one_brightness_for_a_clip_and_its_views() -> None:
    bright, dim = np.zeros((8, 4), np.float32), np.full((8, 4), -7.0, np.float32)
    wave = np.zeros(80, np.float32)
    view = Shown(dim, wave, ("gain -6 dB", "<b>"))
    example = Example("a/<b>.wav", Shown(bright, wave, ()), (view, view), (-14.0, 0.0))
    text = preview_page([example], QUIETER, mode="exact", seed=7, rate=RATE)
    pictures = [pixels(code) for code in re.findall(r'data:image/png;base64,([^"]*)"', text)]
    assert [picture.shape for picture in pictures] == [(4, 8)] * 3
    assert pictures[0].mean() > 230
    assert 60 < pictures[1].mean() < 120  # half way
    assert re.findall(r"<h4>([^<]*)</h4><img", text) == ["the clip", "version 0, view 1", "version 0, view 2"]
    assert text.count("<li>gain -6 dB</li><li>&lt;b&gt;</li>") == 2
    assert "<h3>a/&lt;b&gt;.wav</h3>" in text
    assert 'alt="version 0, view 2 of a/&lt;b&gt;.wav"' in text
    assert "Views are made in exact mode, from seed 7: 1 changes of the sound and 0 of the spectrogram" in text
    assert "sample by sample" not in text


@pytest.mark.parametrize("mode", ["spectral", "exact"])
def test_write_preview__has_a_page_and_a_sheet_of_all_views(tmp_path: Path, mode: str) -> None:
    maker = ViewMaker(QUIETER, FEATURES, RATE // 2, mode=mode)
    write_preview(tmp_path / "p", maker, chirps(), ("one", "two"), versions=2, seed=1)
    text = (tmp_path / "p" / "index.html").read_text()
    assert text.count("<audio") == 2 * 5
    assert text.count("<img") == 2 * 5 + 2 * 5
    assert re.findall(r"<section id=\"[^\"]*\"><h3>(\w+)</h3>", text) == ["one", "two", "one", "two"]
    waves = [
        soundfile.read(io.BytesIO(base64.b64decode(code)))[0]
        for code in re.findall(r'data:audio/flac;base64,([^"]*)"', text)
    ]
    assert float(np.abs(waves[0]).max()) == pytest.approx(0.9, abs=1e-3)
    np.testing.assert_allclose(waves[1], waves[0] * 10 ** (-6 / 20), atol=1e-4)
    frames = (RATE // 2 - 200) // 80 + 1
    with Image.open(tmp_path / "p" / "pairs.png") as picture:
        assert picture.size == (5 * (2 * frames + 8) + 8, 24 + 2 * (24 + 2 * 16 + 8))


@needs_browser
@pytest.mark.parametrize("width", [1280, 500])
def test_write_preview__browser_shows_it_whole(tmp_path: Path, width: int) -> None:
    maker = ViewMaker(QUIETER, FEATURES, RATE // 2)
    write_preview(tmp_path / "p", maker, chirps(), ("one", "two"), versions=1, seed=1)
    script = "const figures = [...document.querySelectorAll('.pair figure')].slice(0, 3);"
    script += "return figures.map((each) => each.getBoundingClientRect()).map((each) => [each.left, each.top]);"
    seen = look(tmp_path / "p" / "index.html", width=width, script=script)
    assert seen["troubles"] == seen["wide"] == seen["asked"] == []
    assert (seen["pictures"], seen["broken"]) == (16, 0)
    (clip, first, second) = seen["found"]
    assert first[1] == second[1]  # the views of a version lie side by side
    assert first[0] < second[0]
    assert (clip[0] < first[0]) == (width == 1280)  # beside the clip, or below it on a phone
    assert (clip[1] < first[1]) == (width == 500)
