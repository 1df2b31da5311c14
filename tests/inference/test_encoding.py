from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from damaged import delete, pt_store
from tones import FEATURES, FRAMES, tone_store
from tymbal.errors import ModelError, SettingsError
from tymbal.features.kaldi import LOG_FLOOR
from tymbal.inference.encoding import FrozenEncoder, check_features
from tymbal.models.classifier import pool
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.settings import FeatureSettings

CONFIG = EncoderConfig(width=16, depth=2, heads=2, mels=16, frames=FRAMES, patch=(8, 4), stride=(8, 4))
DESCRIPTION = ModelDescription(encoder=CONFIG, features=FEATURES, mean=-6.0, std=3.0, padding=LOG_FLOOR)


def encoder() -> SpectrogramEncoder:
    torch.manual_seed(0)
    return SpectrogramEncoder(CONFIG)


def test_frozen_encoder__is_pooling_of_the_tokens_of_each_clip(tmp_path: Path) -> None:
    store, model = tone_store(tmp_path / "store", clips=5), encoder().eval()
    rows = np.array([7, 0, 3])
    frozen = FrozenEncoder(model, DESCRIPTION.normalisation, batch_size=2)
    embeddings = frozen.embed(store, rows, poolings=("mean", "rows", "cls"))
    assert embeddings.rows.tolist() == rows.tolist()
    found = {how: each for (how, _), each in embeddings.values.items()}
    assert {how: each.shape for how, each in found.items()} == {"mean": (3, 16), "rows": (3, 32), "cls": (3, 16)}
    for place, row in enumerate(rows):
        frames = int(store.real_frames[row])
        raw = torch.from_numpy(store.gather([row]))
        x = DESCRIPTION.normalisation(raw, torch.tensor([frames]))
        with torch.no_grad():
            output = model(x)
        real = torch.tensor([-(-frames // 4)])
        for how, each in found.items():
            expected = pool(output.tokens, how=how, grid=output.grid, real_columns=real)
            np.testing.assert_allclose(each[place], expected[0], atol=2e-6)


def test_frozen_encoder__padding_is_pooled_only_where_wanted(tmp_path: Path) -> None:
    store, model = tone_store(tmp_path / "store", clips=3), encoder()
    short = np.flatnonzero(store.real_frames < FRAMES)
    full = np.flatnonzero(store.real_frames == FRAMES)
    assert len(short)
    for rows, same in ((full, True), (short, False)):
        skipped, taken = (
            FrozenEncoder(model, DESCRIPTION.normalisation, skip_padding=skip)
            .embed(store, rows, poolings=("rows",))
            .values["rows", None]
            for skip in (True, False)
        )
        assert np.allclose(skipped, taken, atol=1e-6) == same


def test_frozen_encoder__layers(tmp_path: Path) -> None:
    store, model = tone_store(tmp_path / "store", clips=2), encoder()
    rows = np.arange(4)
    first, last, final = (
        FrozenEncoder(model, DESCRIPTION.normalisation).embed(store, rows, layers=[layer]).values["mean", layer]
        for layer in (0, 2, None)
    )
    assert not np.allclose(first, last)
    assert not np.allclose(last, final)
    with pytest.raises(SettingsError, match="layer is 3, but the encoder has 2 blocks"):
        FrozenEncoder(model, DESCRIPTION.normalisation).embed(store, rows, layers=[3])


def test_check_features__names_what_differs(tmp_path: Path) -> None:
    store = tone_store(tmp_path / "store", clips=2)
    check_features(store, DESCRIPTION)
    other = ModelDescription(
        encoder=CONFIG, features=FeatureSettings(sample_rate=16_000, mel_bins=16), mean=0, std=1, padding=0
    )
    with pytest.raises(ModelError, match="sample_rate: 16000 -> 8000"):
        check_features(store, other)


def test_frozen_encoder__says_of_which_rows_embeddings_are(tmp_path: Path) -> None:
    store, frozen = pt_store(tmp_path), FrozenEncoder(encoder(), DESCRIPTION.normalisation, batch_size=4)
    rows = np.array([7, 0, 3, 20, 11])
    whole = frozen.embed(store, rows, poolings=("mean", "rows"), layers=[1, None])
    delete(store, 0, 20)
    left = frozen.embed(store, rows, poolings=("mean", "rows"), layers=[1, None])
    assert left.rows.tolist() == [7, 3, 11]
    assert whole.values.keys() == left.values.keys()
    for place, values in left.values.items():
        np.testing.assert_allclose(values, whole.values[place][[0, 2, 4]], atol=1e-6)
    delete(store, 7, 3, 11)
    none = frozen.embed(store, rows, poolings=("mean", "rows"))
    assert none.rows.tolist() == []
    assert {how: values.shape for (how, _), values in none.values.items()} == {"mean": (0, 16), "rows": (0, 32)}
