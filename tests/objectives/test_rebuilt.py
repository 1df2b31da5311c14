from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tymbal.evaluation.snapshots import can_rebuild, rebuilt_by
from tymbal.features.normalisation import Normalisation
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.objectives.reconstruction import ReconstructionObjective
from tymbal.objectives.ssast import SSASTObjective
from tymbal.store.dataset import NormalisedBatch

CONFIG = EncoderConfig(width=32, depth=1, heads=2, mels=32, frames=48, patch=(8, 8), stride=(8, 8))
NORMALISATION = Normalisation(mean=-5.0, std=4.0, padding=-15.0)


def clips(count: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    raw = 4 * torch.randn(count, 48, 32, generator=generator) - 5
    return raw, torch.full((count,), 48), torch.arange(count) + 10


def batch(raw: torch.Tensor, frames: torch.Tensor, rows: torch.Tensor) -> NormalisedBatch:
    return NormalisedBatch(NORMALISATION(raw, frames), frames, rows.numpy())


def objective(**options: object) -> SSASTObjective:
    torch.manual_seed(0)
    return SSASTObjective(
        SpectrogramEncoder(CONFIG), normalisation=NORMALISATION, mask="uniform", mask_ratio=0.5, **options
    ).eval()


@pytest.mark.parametrize("options", [{}, {"encode": "visible"}, {"task": "mpg"}, {"normalize_targets": True}])
def test_rebuilt_by__error_is_that_of_the_evaluation(options: dict[str, object]) -> None:
    ours = objective(**{"task": "joint", **options})
    raw, frames, rows = clips()
    found = rebuilt_by(ours, batch(raw, frames, rows))
    np.testing.assert_allclose(found.true, NORMALISATION(raw, frames), atol=1e-6)
    assert found.hidden.mean() == 0.5
    np.testing.assert_array_equal(found.made[~found.hidden], found.true[~found.hidden])
    again = rebuilt_by(ours, batch(raw[1:], frames[1:], rows[1:]))  # masks go with the rows
    np.testing.assert_array_equal(again.hidden, found.hidden[1:])
    if "normalize_targets" not in options:
        with torch.no_grad():
            sums = ours(spectrogram=raw, frames=frames, row=rows, epoch=torch.tensor([7, 8, 9]))["sums"]
        assert found.error.sum() == pytest.approx(float(sums["mse"]), rel=1e-5)


def test_rebuilt_by__mpc_lays_the_hidden_patches_where_it_would_put_them() -> None:
    ours = objective(task="mpc")
    raw, frames, rows = clips()
    with torch.no_grad():
        sums = ours(spectrogram=raw, frames=frames, row=rows, epoch=rows)["sums"]
    found = rebuilt_by(ours, batch(raw, frames, rows))
    assert found.puzzle
    assert (1 - found.error).sum() == pytest.approx(float(sums["acc"]), abs=1e-6)
    assert found.error.min() > 0.5  # it has learned nothing yet
    patches = found.true[0].reshape(6, 8, 4, 8).transpose(0, 2, 1, 3).reshape(24, 64)
    laid = found.made[0].reshape(6, 8, 4, 8).transpose(0, 2, 1, 3).reshape(24, 64)
    assert all((patches == each).all(axis=1).any() for each in laid)  # none is made up
    # A head that sees what it should not: every patch lies where it belongs.
    ours.heads["cpred"] = nn.Identity()
    ours.predict = lambda x, masks: torch.nn.functional.pad(10 * ours.encoder.patchify(x), (0, 0, 2, 0))
    solved = rebuilt_by(ours, batch(raw, frames, rows))
    np.testing.assert_array_equal(solved.made, solved.true)
    assert solved.error.tolist() == [0, 0, 0]


def test_rebuilt_by__reconstruction_is_the_whole_picture() -> None:
    torch.manual_seed(0)
    ours = ReconstructionObjective(
        SpectrogramEncoder(CONFIG), normalisation=NORMALISATION, channels=8, time_mask=20, frequency_mask=8
    ).eval()
    raw, frames, rows = clips()
    with torch.no_grad():
        sums = ours(spectrogram=raw, frames=frames, row=rows, epoch=rows)["sums"]
    found = rebuilt_by(ours, batch(raw, frames, rows))
    assert found.error.sum() == pytest.approx(float(sums["masked_mse"]), rel=1e-5)
    whole = np.square(found.made - found.true).mean(axis=(1, 2))
    assert whole.sum() == pytest.approx(float(sums["mse"]), rel=1e-5)
    assert 0 < found.hidden.mean() < 0.9


def test_can_rebuild__what_it_can() -> None:
    assert can_rebuild(objective(task="mpc"))
    assert not can_rebuild(nn.Linear(1, 1))
