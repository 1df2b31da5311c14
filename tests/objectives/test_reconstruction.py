"""Reconstruction of masked spectrograms: what goes in, what it is held to, and what is counted."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional

from tymbal.errors import ModelError
from tymbal.features.normalisation import Normalisation
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.objectives.reconstruction import ReconstructionObjective

CONFIG = EncoderConfig(width=32, depth=1, heads=2, mels=32, frames=96, patch=(16, 8), stride=(16, 8))
NORMALISATION = Normalisation(mean=-5.0, std=4.0, padding=-15.0)
MASKS = {"time_masks": 2, "time_mask": 20, "frequency_masks": 3, "frequency_mask": 4}


def objective(**options: object) -> ReconstructionObjective:
    torch.manual_seed(0)
    values = {"normalisation": NORMALISATION, "channels": 8, **MASKS, **options}
    return ReconstructionObjective(SpectrogramEncoder(CONFIG), **values)


def batch(size: int = 4, frames: int = 96, real: int | None = None) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "spectrogram": (4 * torch.randn(size, frames, 32, generator=generator) - 5).half(),
        "frames": torch.full((size,), real or frames),
        "row": torch.arange(size) + 10,
        "epoch": torch.zeros(size, dtype=torch.int64),
    }


def masks_of(ours: ReconstructionObjective, clips: dict[str, torch.Tensor]) -> torch.Tensor:
    return ours.make_masks(clips["spectrogram"].shape[1], clips["frames"], clips["row"], clips["epoch"])


def test_forward__the_encoder_sees_masks_and_the_target_is_clean(monkeypatch):
    ours, clips = objective(), batch()
    clips["frames"] = torch.tensor([96, 20, 50, 96])
    seen = []

    def watched(spectrogram: torch.Tensor) -> torch.Tensor:
        seen.append(spectrogram)
        return torch.full_like(spectrogram, 0.25)

    monkeypatch.setattr(ours, "reconstruct", watched)
    output = ours(**clips)
    clean, masked = NORMALISATION(clips["spectrogram"], clips["frames"]), masks_of(ours, clips)
    assert masked.any()
    assert seen[0].equal(torch.where(masked, 0.0, clean))
    figures = ours.metrics(output["sums"])
    whole, hidden = [], []
    for clip, frames in enumerate(clips["frames"].tolist()):
        error = (clean[clip, :frames] - 0.25).square()
        whole.append(error.mean())
        hidden.append(error[masked[clip, :frames]].mean())
    assert figures["mse"] == figures["loss"] == pytest.approx(torch.stack(whole).mean().item(), rel=1e-5)
    assert figures["masked_mse"] == pytest.approx(torch.stack(hidden).mean().item(), rel=1e-5)
    assert output["loss"].item() == pytest.approx(figures["loss"], rel=1e-6)


def test_forward__a_clip_without_a_masked_part_does_not_count_as_rebuilt():
    # Half of all masks of at most one frame have no width.
    ours, clips = objective(time_masks=1, time_mask=1, frequency_masks=0), batch(64)
    output = ours(**clips)
    has_mask = masks_of(ours, clips).any(2).any(1)
    assert 0 < has_mask.sum() < 64
    assert output["sums"]["masked_count"] == has_mask.sum()
    assert 0 < ours.metrics(output["sums"])["masked_mse"] < 100
    none = {"mse": 2.0, "count": 2, "masked_mse": 0.0, "masked_count": 0}
    assert ours.metrics(none) == {"loss": 1.0, "mse": 1.0, "masked_mse": 0.0}


def test_make_masks__numbers_and_widths_are_as_set():
    clips = {**batch(300), "frames": torch.full((300,), 60)}
    masked = masks_of(objective(), clips)
    assert not masked[:, 60:].any()
    band, stretch = masked[:, :60].all(1), masked[:, :60].all(2)
    assert masked[:, :60].equal(band[:, None, :] | stretch[:, :, None])
    runs = [functional.pad(part.int(), (1, 0)).diff(dim=1).eq(1).sum(1) for part in (stretch, band)]
    assert [int(run.max()) for run in runs] == [2, 3]
    assert stretch.sum(1).max() <= 40
    assert band.sum(1).max() <= 12
    # Widths are uniform from 0 on; stretches and bands of a clip may overlap.
    assert 14 < stretch.sum(1).float().mean() < 20
    only_bands = masks_of(objective(time_masks=0), clips)
    assert only_bands[:, :60].all(1).equal(only_bands.any(1))


def test_make_masks__change_with_the_epoch_but_not_in_evaluation():
    ours, first = objective(), batch()
    second = {**first, "epoch": first["epoch"] + 1}
    assert masks_of(ours, first).equal(masks_of(ours, first))
    assert not masks_of(ours, first).equal(masks_of(ours, second))
    alone = {name: value[2:3] for name, value in first.items()}
    assert masks_of(ours, alone)[0].equal(masks_of(ours, first)[2])
    ours.eval()
    assert masks_of(ours, first).equal(masks_of(ours, second))
    assert not masks_of(ours, first).equal(masks_of(objective(seed=7).eval(), first))


def test_reconstruct__convolves_over_time_with_rows_kept_apart():
    ours = objective().eval()
    block = ours.encoder.blocks[0]
    for layer in (block.attention.projection, block.fc2):  # now a token is a function of its own patch
        torch.nn.init.zeros_(layer.weight)
    spectrogram = torch.randn(1, 96, 32)
    low, high = spectrogram.clone(), spectrogram.clone()
    low[:, 48:56, :16] += 1  # column 6 of 12
    high[:, 48:56, 16:] += 1
    with torch.no_grad():
        before, with_low, with_high = (ours.reconstruct(each) for each in (spectrogram, low, high))
    changed = (with_low - before).abs().amax((0, 2)) > 1e-6
    assert changed.nonzero().flatten().tolist() == list(range(46, 58))  # two convolutions reach two frames further
    assert (with_low - with_high).abs().max() > 1e-3


@pytest.mark.parametrize("frames", [96, 40, 101])
def test_reconstruct__gives_as_many_frames_as_the_target(frames):
    ours = objective()
    tokens, grid, _ = ours.encoder(spectrogram := torch.randn(2, frames, 32))
    patches = ours.projector(tokens[:, 2:]).view(2, *grid, 8, 8)  # channels of each of the 8 frames of a column
    over_time = torch.cat([patches[:, row].flatten(1, 2).transpose(1, 2) for row in range(grid[0])], dim=1)
    expected = functional.interpolate(ours.decoder(over_time), size=frames, mode="linear")
    torch.testing.assert_close(ours.reconstruct(spectrogram), expected.transpose(1, 2))


def test_forward__all_that_is_trained_has_a_gradient():
    ours = objective()
    output = ours(**batch())
    output["loss"].backward()
    assert [name for name, p in ours.named_parameters() if p.grad is None] == ["encoder.mask_token"]
    assert not ours.encoder.mask_token.requires_grad
    assert ours.monitor == ("mse", False)


def test_forward__clips_count_equally_so_that_batches_add_up():
    ours, whole = objective(), batch(4)
    whole["frames"] = torch.tensor([96, 20, 50, 96])
    halves = [{key: value[part] for key, value in whole.items()} for part in (slice(0, 2), slice(2, 4))]
    together, apart = ours(**whole), [ours(**half) for half in halves]
    torch.testing.assert_close(together["loss"], torch.stack([half["loss"] for half in apart]).mean())
    added = {name: sum(half["sums"][name] for half in apart) for name in together["sums"]}
    assert ours.metrics(added) == pytest.approx(ours.metrics(together["sums"]), rel=1e-5)


def test_forward__is_float32_under_autocast():
    ours, clips = objective(), batch()
    exact = ours(**clips)["loss"].item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ours(**clips)["loss"]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("training", [True, False])
def test_forward__never_waits_for_the_device(training):
    ours = objective().train(training)
    with FakeTensorMode(allow_non_fake_inputs=True):  # shapes without values: reading one (.item(), bool()) raises
        clips = {"row": torch.arange(4), "epoch": torch.zeros(4, dtype=torch.int64), "frames": torch.full((4,), 50)}
        output = ours(spectrogram=torch.empty(4, 96, 32, dtype=torch.float16), **clips)
        with pytest.raises(DataDependentOutputException):
            float(output["loss"].detach())
    assert output["loss"].shape == ()


def test_forward__compiles_without_graph_breaks():
    ours, clips = objective(), batch()
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**clips)["loss"], ours(**clips)["loss"])


def test_objective__learns_what_is_masked():
    # Every clip is a ramp along time of its own height: what is masked follows from what is seen.
    ours, given = objective(), batch(16)
    heights = torch.linspace(-3, 3, 16)[:, None, None]
    ramps = torch.linspace(-9, -1, 96).view(1, 96, 1).expand(16, 96, 32) + heights
    optimizer = torch.optim.AdamW(ours.parameters(), lr=3e-3)
    figures = []
    for step in range(30):
        output = ours(**{**given, "spectrogram": ramps, "epoch": torch.full((16,), step)})
        figures.append(ours.metrics(output["sums"]))
        optimizer.zero_grad()
        output["loss"].backward()
        optimizer.step()
    assert figures[-1]["masked_mse"] < 0.3 * figures[0]["masked_mse"]
    assert figures[-1]["mse"] < 0.3 * figures[0]["mse"]


def test_head_state__goes_out_and_in():
    source, target = objective(), objective(seed=1)
    with torch.no_grad():
        source.projector.bias.fill_(0.5)
    state = source.head_state()
    assert set(state) == {f"{name}.{part}" for name in ("projector", "decoder.0", "decoder.2") for part in PARTS}
    target.load_head_state(state)
    assert (target.projector.bias == 0.5).all()
    with pytest.raises(ModelError, match=r"projector\.weight .* has shape \(64, 32\), expected is \(128, 32\)"):
        objective(channels=16).load_head_state(state)


PARTS = ("weight", "bias")
