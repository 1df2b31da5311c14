from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from small_model import small_model
from tones import RATE, tone, tone_store
from tymbal.exploring import drawing
from tymbal.exploring.library import Library, Neighbour
from tymbal.exploring.model_view import ModelView
from tymbal.inference.frontend import Embedder, Scorer
from tymbal.inference.streaming import cut_for
from tymbal.models.folder import load_model

LABELS = ("a", "<b>", "c_d", "e", "f", "g")


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> ModelView:
    folder = tmp_path_factory.mktemp("model")
    loaded = load_model(small_model(folder / "model", labels=LABELS, pooling="cls"))
    return ModelView(Embedder(loaded), cut_for(loaded.description, hop=0.1), scorer=Scorer(loaded))


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "a.wav", tone("low", seconds=1), RATE)
    return tmp_path / "a.wav"


def pictures(text: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/png;base64,([^"]*)"', text)
    return [Image.open(io.BytesIO(base64.b64decode(code))) for code in found]


def test_window__has_low_frequencies_below(view: ModelView, sound: Path) -> None:
    look = view.look(sound)
    text = drawing.window(look, view, patch=(0, 3))
    (picture,) = pictures(text)
    assert picture.size == (32, 16)
    shade = np.asarray(picture.convert("L"), float).mean(1)
    assert shade.argmax() >= 12  # 300 Hz
    assert 'data-rows="2" data-columns="4" data-row="0" data-column="3"' in text
    assert "0.00 to 0.34 s" in text


def test_window__a_rest_of_a_patch_is_drawn_as_silence(view: ModelView, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "short.wav", tone("low", seconds=0.15), RATE)
    look = view.look(tmp_path / "short.wav")
    assert len(look.values) == 13
    (picture,) = pictures(drawing.window(look, view, patch=(0, 0)))
    assert picture.size == (16, 16)
    assert np.asarray(picture.convert("L"))[:, 13:].max() < 20


def test_token_map__like_is_densest_at_its_patch(view: ModelView, sound: Path) -> None:
    text = drawing.token_map(view.look(sound), view, kind="like", patch=(1, 2))
    below, over = pictures(text)
    assert (below.size, over.size) == ((32, 16), (4, 2))
    dense = np.asarray(over.convert("RGBA"))[:, :, 3]
    assert dense[0, 2] == dense.max() == 217  # the upper row is the second
    assert dense.min() == 0
    assert "<span>1.00</span>" in text


def test_token_map__attention_says_from_where_it_is_read(view: ModelView, sound: Path) -> None:
    look = view.look(sound)
    text = drawing.token_map(look, view, kind="last", patch=(0, 0))
    assert "read from the class tokens; an even one is 12.500%" in text
    assert f"{look.attention['last'].max():.3%}" in text
    assert f"{1 - look.attention['last'].sum():.0%} is for class tokens and padding" in text
    bare = type(look)(**{**vars(look), "attention": {}})
    assert "choose a shorter --window" in drawing.token_map(bare, view, kind="rollout", patch=(0, 0))


def test_scores__the_best_five_with_their_names_as_text(view: ModelView, sound: Path) -> None:
    look = view.look(sound)
    text = drawing.scores(look, view)
    shares = [int(share) for share in re.findall(r"<b>(\d+)%</b>", text)]
    assert len(shares) == 5
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == round(100 * look.scores.max())
    assert "<b>c" not in text
    assert drawing.scores(type(look)(**{**vars(look), "scores": None}), view) == ""


def test_recording__draws_all_of_the_recording_and_its_scores(view: ModelView, sound: Path) -> None:
    survey, look = view.survey(sound, most=60), view.look(sound, 3)
    assert survey is not None
    text = drawing.recording(survey, look, view)
    assert text.count("<polyline") == 5
    assert "Not drawn, as they stay lower: 1 more" in text
    assert text.count('data-columns="8" data-row="0" data-column="3"') == 2
    assert "left:30.000%;width:33.500%" in text
    first = re.findall(r'points="([^ ]*) ', text)[-1]
    best = survey.scores.max(axis=0).argmax()
    assert [float(each) for each in first.split(",")] == pytest.approx(
        [167.5, 100 * (1 - survey.scores[0, best])], abs=0.06
    )
    assert "are shown (--minutes)" not in text
    assert "are shown (--minutes)" in drawing.recording(view.survey(sound, most=0.2), look, view)


def test_recording__one_window_has_none(view: ModelView, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "short.wav", tone("low", seconds=0.2), RATE)
    survey = view.survey(tmp_path / "short.wav", most=60)
    assert survey is not None
    assert drawing.recording(survey, view.look(tmp_path / "short.wav"), view) == ""


def neighbour(file: Path | str, *, row: int = 0, label: str | None = None) -> Neighbour:
    return Neighbour(row, str(file), 0.1, 0.3, label, 0.9876)


def test_cards__have_sound_and_spectrogram(view: ModelView, sound: Path) -> None:
    library = Library(sound.parent, sound, {})
    text = drawing.cards([neighbour(sound, label="<low>;x")], library, view)
    assert "&lt;low&gt;, x" in text
    assert "0.988" in text
    assert pictures(text)[0].size == (18, 16)
    code = re.search(r'src="data:audio/flac;base64,([^"]*)"', text)
    assert code
    wave, rate = soundfile.read(io.BytesIO(base64.b64decode(code[1])))
    assert len(wave) / rate == pytest.approx(0.2, abs=1e-3)


def test_cards__of_a_store_without_its_sound_show_the_spectrogram(view: ModelView, tmp_path: Path) -> None:
    store = tone_store(tmp_path / "store", clips=4)
    library = Library(tmp_path / "store", tmp_path, {}, store)
    text = drawing.cards([neighbour("/tones/low/1.wav", row=5, label="")], library, view)
    assert "no label" in text
    assert pictures(text)[0].size == (int(store.real_frames[5]), 16)
    assert "No sound: the file is not there any more." in text
    assert "<audio" not in text


def test_cards__say_what_is_not_there(view: ModelView, tmp_path: Path) -> None:
    library = Library(tmp_path, tmp_path, {})
    (tmp_path / "torn.wav").write_bytes(b"RIFF")
    text = drawing.cards([neighbour("/gone/a.wav"), neighbour(tmp_path / "torn.wav")], library, view)
    assert text.count("No spectrogram either.") == 2
    assert "the file is not there any more" in text
    assert "the sound cannot be read" in text
