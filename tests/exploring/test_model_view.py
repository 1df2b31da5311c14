from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor

from small_model import small_model
from tones import RATE, tone
from tymbal.audio.decode import read
from tymbal.errors import AudioError
from tymbal.exploring import drawing
from tymbal.exploring.model_view import ModelView, attention, likeness, readers
from tymbal.features.bank import filter_bank
from tymbal.inference.frontend import Embedder, Scorer
from tymbal.inference.streaming import Window, cut_for, windows
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.models.folder import load_model
from tymbal.objectives.lejepa import LeJEPASettings

LABELS = ("high", "low", "middle")


def view(folder: Path, *, labels: tuple[str, ...] = LABELS, hop: float | None = 0.1, batch_size: int = 4) -> ModelView:
    loaded = load_model(small_model(folder / "model", labels=labels, pooling="mean" if labels else None))
    cut = cut_for(loaded.description, hop=hop)
    scorer = Scorer(loaded) if labels else None
    return ModelView(Embedder(loaded), cut, scorer=scorer, batch_size=batch_size)


def recording(folder: Path, *, seconds: float = 2.0, name: str = "a.wav") -> Path:
    sound = np.concatenate([tone("low", seconds=seconds / 2), tone("high", seconds=seconds / 2)])
    soundfile.write(folder / name, sound, RATE, subtype="FLOAT")
    return folder / name


def test_look__is_the_window_as_the_model_sees_it(tmp_path: Path) -> None:
    model, file = view(tmp_path), recording(tmp_path)
    look = model.look(file, 5)
    samples, _ = read(file)
    piece = samples[5 * 800 : 5 * 800 + model.cut.length]
    assert (look.start, look.end) == (0.5, pytest.approx(0.5 + len(piece) / RATE))
    np.testing.assert_allclose(look.values, filter_bank(model.features)(torch.from_numpy(piece)).numpy(), atol=1e-5)
    assert look.tokens.shape == (2, 4, 16)
    assert look.reach == (16, 32)
    loaded = load_model(tmp_path / "model")
    window = Window(4000, piece)
    np.testing.assert_allclose(look.embedding, look.tokens.mean((0, 1)), atol=1e-5)
    np.testing.assert_allclose(look.scores, Scorer(loaded)([window], length=model.cut.length)[0], atol=1e-6)
    assert look.loudest[0] == 0  # 300 Hz lies in the lower row of patches
    assert model.look(file, 15).loudest[0] == 1
    for shares in look.attention.values():
        assert shares.shape == (2, 4)
        assert 0.3 < shares.sum() < 1


def test_look__has_the_views_of_a_pretraining_that_draws_some(tmp_path: Path) -> None:
    file = recording(tmp_path)
    assert view(tmp_path).look(file, 1).views == {}
    loaded = load_model(tmp_path / "model")
    objective = LeJEPASettings(parts=1, kept=0.5, kept_local=0.25).describe_objective()
    changed = replace(loaded, description=replace(loaded.description, objective=objective))
    look = ModelView(Embedder(changed), cut_for(loaded.description)).look(file, 1)
    assert list(look.views) == ["global view 1", "global view 2", "local view 1"]
    seen = [1 - each.hidden.mean() for each in look.views.values()]
    assert seen == [0.5, 0.5, 0.25]  # of two rows and four columns of patches
    page = drawing.views(look)
    assert page.count("<img") == 6
    assert page.count("of it are shown</figcaption>") == 3


def test_look__shows_no_padding(tmp_path: Path) -> None:
    model = view(tmp_path)
    look = model.look(recording(tmp_path, seconds=0.15))
    assert look.values.shape == (13, 16)
    assert look.tokens.shape == (2, 2, 16)
    assert look.reach == (16, 16)
    assert look.end == pytest.approx(0.15)


def test_look__what_cannot_be_seen_is_an_error(tmp_path: Path) -> None:
    model = view(tmp_path)
    with pytest.raises(AudioError, match=r"too short: 0\.01 s"):
        model.look(recording(tmp_path, seconds=0.01))
    (tmp_path / "b.wav").write_text("no sound")
    with pytest.raises(AudioError, match="unreadable"):
        model.look(tmp_path / "b.wav")


def test_look__attention_of_too_many_patches_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tymbal.exploring.model_view.MOST_TOKENS", 9)
    assert view(tmp_path).look(recording(tmp_path)).attention == {}


@pytest.mark.parametrize("samples", [1, 2680, 2681, 2900, 3480, 3481, 3700, 16_000])
def test_count__is_that_of_the_windows(tmp_path: Path, samples: int) -> None:
    model = view(tmp_path)
    cut = model.cut
    found = windows([np.zeros(samples, np.float32)], length=cut.length, hop=cut.hop, shortest=cut.shortest)
    assert model.count(samples / RATE) == len(list(found))


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_survey__sees_all_of_a_recording(tmp_path: Path, batch_size: int) -> None:
    model, file = view(tmp_path, batch_size=batch_size), recording(tmp_path)
    shares: list[float] = []
    survey = model.survey(file, most=60, advance=shares.append)
    assert survey is not None
    assert (survey.seconds, survey.until, survey.windows) == (2.0, 2.0, 18)
    assert shares[-1] == 1.0
    assert shares == sorted(shares)
    whole = filter_bank(model.features)(torch.from_numpy(read(file)[0])).numpy()
    assert survey.spectrum.shape == whole.shape
    np.testing.assert_allclose(survey.spectrum, whole, atol=1e-4)
    each = np.stack([model.look(file, number).scores for number in range(18)])
    np.testing.assert_allclose(survey.scores, each, atol=1e-5)
    np.testing.assert_allclose(survey.times[:3], [0.1675, 0.2675, 0.3675], atol=1e-4)


def test_survey__a_long_recording_has_no_more_columns(tmp_path: Path) -> None:
    model, file = view(tmp_path, hop=None, batch_size=64), recording(tmp_path, seconds=300)
    survey = model.survey(file, most=3600)
    assert survey is not None
    assert survey.windows == 896
    assert len(survey.spectrum) <= 1201
    assert len(survey.scores) == len(survey.times) == 448
    assert survey.times[-1] == pytest.approx(300, abs=0.7)
    half = len(survey.spectrum) // 2
    assert survey.spectrum[:half].mean(0).argmax() < survey.spectrum[half:].mean(0).argmax()


def test_survey__ends_where_it_is_told_to(tmp_path: Path) -> None:
    model, file = view(tmp_path), recording(tmp_path, seconds=10)
    survey = model.survey(file, most=1.0)
    assert survey is not None
    assert (survey.seconds, survey.windows) == (10.0, 10)
    assert survey.until == pytest.approx(1.235)
    asked = iter([True, True, False])
    assert model.survey(file, most=60, go_on=lambda: next(asked)) is None


def test_survey__of_an_encoder_has_no_scores(tmp_path: Path) -> None:
    survey = view(tmp_path, labels=()).survey(recording(tmp_path), most=60)
    assert survey is not None
    assert survey.scores is None


def test_likeness__is_the_cosine_of_tokens() -> None:
    tokens = np.array([[[1, 0], [1, 1]], [[0, 2], [-3, 0]]], np.float32)
    np.testing.assert_allclose(likeness(tokens, 0, 0), [[1, 0.5**0.5], [0, -1]], atol=1e-6)
    np.testing.assert_allclose(likeness(np.zeros((1, 2, 3), np.float32), 0, 1), [[0, 0]])


CONFIG = EncoderConfig(width=16, depth=3, heads=2, mels=16, frames=32, patch=(8, 8), stride=(8, 8))


def encoder() -> SpectrogramEncoder:
    torch.manual_seed(0)
    model = SpectrogramEncoder(CONFIG).eval()
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.normal_(std=0.3)
    return model


def by_hand(model: SpectrogramEncoder, x: Tensor) -> list[Tensor]:
    """The attention of each block from its input, [tokens, tokens], the mean over the heads."""
    found = []
    for block, tokens in zip(model.blocks, model(x, hidden_states=True).hidden_states, strict=False):
        queries, keys, _ = block.attention.qkv(block.norm1(tokens))[0].chunk(3, dim=1)
        heads = [(queries[:, part] @ keys[:, part].T / 8**0.5).softmax(1) for part in (slice(0, 8), slice(8, 16))]
        found.append((heads[0] + heads[1]) / 2)
    return found


@torch.no_grad()
def test_attention__is_that_of_the_blocks_by_hand() -> None:
    model, x = encoder(), torch.randn(1, 32, 16)
    blocks = by_hand(model, x)
    read = torch.tensor([0, 1])
    found = attention(model, x, readers=read)
    torch.testing.assert_close(found.last, blocks[-1][read].mean(0))
    product = torch.eye(10)
    for block in blocks:
        product = (0.5 * block + 0.5 * torch.eye(10)) @ product
    torch.testing.assert_close(found.rollout, product[read].mean(0))
    torch.testing.assert_close(found.rollout.sum(), torch.tensor(1.0))


def test_attention__leaves_nothing_behind_in_the_encoder() -> None:
    model, x = encoder(), torch.randn(1, 32, 16)
    before = model(x).tokens
    attention(model, x, readers=torch.tensor([2]))
    assert not any(module._forward_hooks for module in model.modules())
    torch.testing.assert_close(model(x).tokens, before)


def test_readers__are_the_tokens_that_are_pooled() -> None:
    def found(pooling: str | None) -> list[int]:
        return readers(pooling, prefix=2, grid=(2, 4), real_columns=3).tolist()

    patches = [2, 3, 4, 6, 7, 8]
    assert found("cls") == [0, 1]
    assert found("all") == found("all-normed-twice") == [0, 1, *patches]
    assert found("mean") == found("rows") == found("attention") == found(None) == patches
