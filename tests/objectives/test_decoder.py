"""The visible-only form: what the decoder computes, that nothing masked leaks into it, and that it learns."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tymbal.errors import ModelError, SettingsError
from tymbal.features.normalisation import Normalisation
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.objectives.decoder import VisibleDecoder, sine_positions
from tymbal.objectives.ssast import SSASTObjective

CONFIG = EncoderConfig(width=32, depth=1, heads=2, mels=32, frames=96)  # 2 rows x 6 columns of patches
NORMALISATION = Normalisation(mean=-5.0, std=4.0, padding=-15.0)


def objective(**options: object) -> SSASTObjective:
    torch.manual_seed(0)
    defaults = {"normalisation": NORMALISATION, "encode": "visible"}
    return SSASTObjective(SpectrogramEncoder(CONFIG), **{**defaults, **options})


def batch(size: int = 4, frames: int = 96, real: int | None = None) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "spectrogram": (4 * torch.randn(size, frames, 32, generator=generator) - 5).half(),
        "frames": torch.full((size,), real or frames),
        "row": torch.arange(size) + 10,
        "epoch": torch.zeros(size, dtype=torch.int64),
    }


def masks_of(ours: SSASTObjective, clips: dict[str, torch.Tensor]):
    return ours.make_masks(clips["spectrogram"].shape[1], clips["frames"], clips["row"], clips["epoch"])


def test_sine_positions__say_row_and_column():
    positions = sine_positions((3, 5), 16)
    assert positions.shape == (15, 16)
    # Patch 7 of five columns is row 1, column 2; the rates of four numbers are 1, 1/10, 1/100, 1/1000.
    angles = torch.cat([number * 10.0 ** -torch.arange(4) for number in (1, 2)])
    row, column = angles.split(4)
    torch.testing.assert_close(positions[7], torch.cat([row.sin(), row.cos(), column.sin(), column.cos()]))
    assert torch.cdist(positions, positions).fill_diagonal_(1).min() > 0.1


def test_decoder__puts_each_token_in_its_place():
    torch.manual_seed(0)
    decoder = VisibleDecoder(CONFIG)
    decoder.blocks = nn.ModuleList()  # what goes into the blocks comes out
    tokens, visible = torch.randn(2, 5, 32), torch.tensor([[0, 3, 11], [9, 2, 4]])
    with torch.no_grad():
        decoded = decoder(tokens, visible, (2, 6))
        expected = decoder.mask_token + sine_positions((2, 6), 32).expand(2, -1, -1)
        for clip in range(2):
            for number, patch in enumerate(visible[clip]):
                expected[clip, patch] += decoder.embed(tokens[clip, 2 + number]) - decoder.mask_token[0, 0]
        torch.testing.assert_close(decoded[:, 2:], decoder.norm(expected))
        torch.testing.assert_close(decoded[:, :2], decoder.norm(decoder.embed(tokens[:, :2])))


def test_decoder__may_be_narrower_and_deeper():
    ours = objective(decoder_width=16, decoder_depth=3)
    assert [block.attention.heads for block in ours.decoder.blocks] == [1, 1, 1]
    clips = batch()
    tokens = ours.predict(clips["spectrogram"].float(), masks_of(ours, clips))
    assert tokens.shape == (4, 2 + 12, 16)
    assert ours.heads["cpred"][0].in_features == 16
    assert ours(**clips)["loss"].isfinite()
    with pytest.raises(SettingsError, match="24 is not a multiple of 16"):
        objective(decoder_width=24)


def test_predict__sees_nothing_of_the_masked_patches():
    ours, clips = objective(), batch()
    masks = masks_of(ours, clips)
    spectrogram = clips["spectrogram"].float().requires_grad_()
    tokens = ours.predict(spectrogram, masks)
    (tokens * torch.randn_like(tokens)).sum().backward()
    by_patch = ours.encoder.patchify(spectrogram.grad).abs().sum(2)
    assert (by_patch[masks.mask] == 0).all()
    assert (by_patch[~masks.mask] > 0).all()
    noise = masks.mask.view(4, 2, 6).repeat_interleave(16, 1).repeat_interleave(16, 2).transpose(1, 2)
    with torch.no_grad():
        changed = torch.where(noise, 100.0, spectrogram)
        torch.testing.assert_close(ours.predict(changed, masks), tokens, rtol=0, atol=0)


def test_forward__encodes_visible_patches_only():
    ours, lengths = objective(), []
    ours.encoder.blocks[0].register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    ours(**batch())
    ours(**batch(real=40))
    assert lengths == [2 + 3, 2 + 3]  # 9 of 12 patches are masked, however long the sound


def test_forward__has_the_losses_of_the_whole_form():
    ours, clips = objective(mse_weight=3.0), batch(3)
    spectrogram, masks = (clips["spectrogram"].float() + 5) / 8, masks_of(ours, clips)
    tokens, patches = ours.predict(spectrogram, masks), ours.encoder.patchify(spectrogram)
    nce = mse = 0.0
    for clip in range(3):
        seen, true = tokens[clip, 2 + masks.index[clip]], patches[clip, masks.index[clip]]
        nce -= (true @ ours.heads["cpred"](seen).T).log_softmax(-1).diag().mean() / 3
        mse += (ours.heads["gpred"](seen) - true).square().mean() / 3
    torch.testing.assert_close(ours(**clips)["loss"], nce + 3 * mse)


def test_forward__learns_from_sound_only():
    ours, clips = objective(mask_ratio=0.5), batch(2, real=40)  # columns 0-2 of 6 hold sound
    masks = masks_of(ours, clips)
    assert masks.valid.sum(1).tolist() == [3, 3]
    other = clips["spectrogram"].clone()
    for patch in masks.index[0][~masks.valid[0]].tolist():  # padding that is not shown
        row, column = divmod(patch, 6)
        assert column > 2
        other[0, 16 * column : 16 * column + 16, 16 * row : 16 * row + 16] = 7
    assert (other != clips["spectrogram"]).any()
    assert ours(**clips)["loss"] == ours(**{**clips, "spectrogram": other})["loss"]


@pytest.mark.parametrize("task", ["joint", "mpc", "mpg"])
def test_objective__learns_a_pattern(task):
    # Every clip is the same ramp along time: what is masked follows from where it is.
    ours = objective(task=task, mask="uniform", mask_ratio=0.5)
    ramp = torch.linspace(-9, -1, 96).view(1, 96, 1).expand(8, 96, 32)
    optimizer = torch.optim.AdamW(ours.parameters(), lr=3e-3)
    losses = []
    for step in range(25):
        clips = {**batch(8), "spectrogram": ramp, "epoch": torch.full((8,), step)}
        losses.append(ours(**clips)["loss"])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("task", ["joint", "mpc", "mpg"])
def test_objective__trains_every_parameter_or_freezes_it(task):
    ours = objective(task=task)
    ours(**batch())["loss"].backward()
    assert [name for name, p in ours.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not ours.encoder.mask_token.requires_grad
    assert SSASTObjective(ours.encoder, normalisation=NORMALISATION).encoder.mask_token.requires_grad


def test_forward__compiles_without_graph_breaks():
    ours, clips = objective(), batch()
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**clips)["loss"], ours(**clips)["loss"])


def test_forward__never_waits_for_the_device():
    ours = objective()
    with FakeTensorMode(allow_non_fake_inputs=True):  # shapes without values: reading one (.item(), bool()) raises
        clips = {"row": torch.arange(4), "epoch": torch.zeros(4, dtype=torch.int64), "frames": torch.full((4,), 50)}
        assert ours(spectrogram=torch.empty(4, 96, 32, dtype=torch.float16), **clips)["loss"].shape == ()


def test_forward__losses_are_float32_under_autocast():
    ours, clips = objective(), batch()
    exact = ours(**clips)["loss"].item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ours(**clips)["loss"]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=0.02)


def test_head_state__carries_the_decoder():
    source, clips = objective(), batch()
    torch.manual_seed(1)
    target = SSASTObjective(source.encoder, normalisation=NORMALISATION, encode="visible")
    assert target(**clips)["loss"] != source(**clips)["loss"]
    state = {name: value.clone() for name, value in source.head_state().items()}
    target.load_head_state(state)
    assert target(**clips)["loss"] == source(**clips)["loss"]
    whole = objective(encode="all")
    whole.load_head_state(state)  # its heads fit; the decoder has no place
    assert torch.equal(whole.heads["gpred"][0].weight, source.heads["gpred"][0].weight)
    with pytest.raises(ModelError, match=r"decoder\.mask_token .* is missing"):
        target.load_head_state(whole.head_state())


def test_objective__names_what_it_does_not_know():
    with pytest.raises(SettingsError, match="all or visible"):
        objective(encode="masked")
    with pytest.raises(SettingsError, match="5 to 3 patches"):
        objective(cluster=(5, 3))


def test_objective__draws_clusters_of_the_sides_asked_for():
    clips = batch(16)
    # Four patches in squares of two are one square: two columns of time with both rows.
    whole = {sides: masks_of(objective(cluster=(sides, sides), mask_count=4), clips) for sides in (1, 2)}
    columns = {sides: masks.mask.view(16, 2, 6).all(1).sum(1) for sides, masks in whole.items()}
    assert columns[2].tolist() == [2] * 16
    assert columns[1].sum() < 16
