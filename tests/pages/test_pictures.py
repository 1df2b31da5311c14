"""Pictures as files that another library reads: their colours, their size, and what is covered."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from tymbal.pages.pictures import image, limits, overlay, png, sheet, spectrogram


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)


def shown(text: str) -> Image.Image:
    code = re.search(r'src="data:image/png;base64,([^"]*)"', text)
    assert code
    return Image.open(io.BytesIO(base64.b64decode(code[1])))


def test_overlay__is_the_denser_the_higher_the_value() -> None:
    picture = Image.open(io.BytesIO(overlay(np.array([[0.0, 0.5, 1.0, 2.0]]), between=(0, 1)))).convert("RGBA")
    pixels = [picture.getpixel((x, 0)) for x in range(4)]
    assert {pixel[:3] for pixel in pixels} == {(255, 140, 0)}
    assert [pixel[3] for pixel in pixels] == [0, pytest.approx(110, abs=3), 217, 217]


def test_png__in_grey_goes_from_black_to_white() -> None:
    picture = Image.open(io.BytesIO(png(np.array([[-1.0, 0.5, 1.0]]), between=(0, 1), grey=True))).convert("RGB")
    assert [picture.getpixel((x, 0))[0] for x in range(3)] == [0, pytest.approx(128, abs=3), 255]


def test_png__goes_from_dark_to_light_and_is_small() -> None:
    values = np.linspace(-1, 2, 300)[None].repeat(40, axis=0)
    content = png(values, between=(0, 1))
    found = pixels(content)
    assert found.shape == (40, 300, 3)
    assert found[0, 0].tolist() == [6, 5, 20]  # below the darkest, and so up to where it begins
    assert found[0, -1].tolist() == [253, 236, 178]
    brightness = found[0] @ [0.299, 0.587, 0.114]
    assert (np.diff(brightness) >= 0).all()
    assert len(np.unique(found[0], axis=0)) == 64
    assert Image.open(io.BytesIO(content)).mode == "P"
    assert len(content) < 700  # 12,000 values


def test_png__what_is_hidden_and_what_is_no_number() -> None:
    values = np.array([[0.0, np.nan, np.inf, -np.inf, 1.0]])
    hidden = np.array([[True, False, False, False, False]])
    found = pixels(png(values, between=(0, 1), hidden=hidden))[0].tolist()
    dark, light = [6, 5, 20], [253, 236, 178]
    assert found == [[126, 136, 145], dark, light, dark, light]


def test_limits__leave_out_what_is_rare() -> None:
    values = np.concatenate([np.full(10, -100.0), np.linspace(0, 1, 980), np.full(1, 50.0)])
    low, high = limits(values)
    assert low == pytest.approx(0.04, abs=0.01)
    assert high == pytest.approx(1.0, abs=0.01)
    same, above = limits(np.zeros(9))
    assert same < above


def test_spectrogram__low_frequencies_are_below_and_neighbours_are_averaged() -> None:
    values = np.zeros((10, 4))
    values[:5, 0] = 1.0  # the lowest bin, in the first half
    picture = shown(spectrogram(values, alt="a & b", between=(0, 1)))
    assert picture.size == (10, 4)
    bright = np.asarray(picture.convert("L")) > 100
    assert np.argwhere(bright).tolist() == [[3, column] for column in range(5)]
    text = spectrogram(values, alt="a & b", between=(0, 1), widest=5)
    assert 'alt="a &amp; b" width="5" height="4"' in text
    middle = np.asarray(shown(text).convert("L"))[3]
    assert middle[0] == middle[1] > middle[2] > middle[3] == middle[4]  # the third is half of each


def test_spectrogram__hidden_frames_are_covered_where_they_are() -> None:
    hidden = np.zeros((6, 2), bool)
    hidden[4:, 1] = True
    found = np.asarray(shown(spectrogram(np.zeros((6, 2)), alt="", between=(0, 1), hidden=hidden)).convert("RGB"))
    covered = (found == (126, 136, 145)).all(axis=2)
    assert np.argwhere(covered).tolist() == [[0, 4], [0, 5]]


def test_image__has_a_class_where_one_is_given() -> None:
    assert image(b"", alt='"', width=1, height=2).startswith('<img alt="&quot;" width="1" height="2"')
    assert image(b"", alt="", width=1, height=2, kind="over").startswith('<img class="over" alt=""')


def test_sheet__has_each_picture_in_its_place() -> None:
    dark, light = np.zeros((40, 12)), np.ones((40, 12))
    content = sheet(
        [[dark, light], [light, dark]], between=[(0, 1), (0, 2)], columns=("a" * 99, "b"), rows=("c", "d" * 99)
    )
    found = pixels(content)
    assert found.shape == (24 + 2 * (24 + 24 + 8), 2 * (80 + 8) + 8, 3)
    middles = [found[24 + 24 + 12 + row * 56, 8 + 40 + column * 88] for row in (0, 1) for column in (0, 1)]
    expected = [(6, 5, 20), (253, 236, 178), (174, 49, 100), (6, 5, 20)]  # half way up where the row's scale is wider
    np.testing.assert_allclose(middles, expected, atol=4)
    assert (found[:, -1] == 255).all()  # a title that is too long does not reach the edge
    assert (found[:20, 89:95] == 255).all()  # nor does that of a column reach the next one
