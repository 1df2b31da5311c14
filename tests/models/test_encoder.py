"""The encoder against arithmetic done by hand, and against itself with parts left out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tymbal.errors import ModelError, SettingsError
from tymbal.models.encoder import PREFIX_TOKENS, EncoderConfig, SpectrogramEncoder, resize_positions, take_columns


def small_encoder(**changes: object) -> SpectrogramEncoder:
    torch.manual_seed(0)
    shape = {"width": 32, "depth": 2, "heads": 2, "mels": 32, "frames": 48, "patch": (16, 16), "stride": (16, 16)}
    encoder = SpectrogramEncoder(EncoderConfig(**{**shape, **changes}))
    # Weights of another size than at the start, so that no term of the arithmetic is too small to be missed.
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    return encoder.eval()


@pytest.mark.parametrize(
    ("patch", "stride", "grid"),
    [((16, 16), (16, 16), (2, 3)), ((16, 16), (10, 10), (2, 4)), ((32, 2), (32, 2), (1, 24))],
)
def test_patches__are_those_of_a_convolution_in_frequency_first_order(patch, stride, grid):
    encoder = small_encoder(patch=patch, stride=stride)
    spectrogram = torch.randn(2, 48, 32)
    kernel = encoder.patch_projection.weight.reshape(32, 1, *patch)
    image = F.conv2d(spectrogram.transpose(1, 2).unsqueeze(1), kernel, encoder.patch_projection.bias, stride=stride)
    assert encoder.config.grid == grid == tuple(image.shape[2:])
    ours = encoder.patch_projection(encoder.patchify(spectrogram))
    torch.testing.assert_close(ours, image.flatten(2).transpose(1, 2), atol=1e-5, rtol=0)


def test_patchify__puts_mel_bins_before_frames():
    encoder = small_encoder()
    spectrogram = torch.arange(48 * 32).float().reshape(1, 48, 32)  # value = frame * 32 + mel bin
    patches = encoder.patchify(spectrogram)
    # Patch 4 is row 1, column 1: its first number is frame 16, bin 16; the next one is the next frame.
    assert patches[0, 4, 0] == 16 * 32 + 16
    assert patches[0, 4, 1] == 17 * 32 + 16
    assert patches[0, 4, 16] == 16 * 32 + 17


def test_stem__is_two_convolutions_before_the_patches():
    encoder = small_encoder(patch=(16, 8), stride=(16, 8), frames=50, stem=3)
    spectrogram = torch.randn(2, 50, 32)
    picture = spectrogram[:, :48].transpose(1, 2).unsqueeze(1)  # the last two frames fill no patch
    for convolution in (encoder.stem[0], encoder.stem[2]):
        picture = F.gelu(F.conv2d(picture, convolution.weight, convolution.bias, stride=2, padding=1))
    assert picture.shape == (2, 6, 8, 12)
    seen = encoder.seen(spectrogram)
    assert encoder.config.grid == (2, 6)
    assert encoder.config.projected_area == seen.shape[2] == 4 * 2 * 6
    # Patch 8 is row 1, column 2: bins 4 to 7 and frames 4 and 5 of the picture, its channels last.
    torch.testing.assert_close(seen[0, 8].view(4, 2, 6), picture[0, :, 4:8, 4:6].permute(1, 2, 0))
    assert encoder(spectrogram).tokens.shape == (2, PREFIX_TOKENS + 12, 32)


def test_stem__sees_nothing_behind_a_patch():
    encoder = small_encoder(patch=(32, 4), stride=(32, 4), stem=2)
    spectrogram = torch.randn(1, 48, 32, requires_grad=True)
    encoder.seen(spectrogram)[0, 5].sum().backward()
    heard = spectrogram.grad[0].abs().sum(1).nonzero().flatten().tolist()
    assert heard == list(range(17, 24))  # its own frames 20 to 23, and three before


def test_stem__sides_of_patches_are_multiples_of_4():
    with pytest.raises(SettingsError, match="a stem of 8 channels does not fit patches of 32x2 every 32x2"):
        EncoderConfig(width=8, depth=1, heads=1, mels=32, patch=(32, 2), stride=(32, 2), stem=8)
    with pytest.raises(SettingsError, match="a stem of -1 channels"):
        EncoderConfig(width=8, depth=1, heads=1, stem=-1)


def test_forward__equals_the_formula_written_out():
    encoder = small_encoder(depth=1, heads=2)
    spectrogram = torch.randn(2, 48, 32)
    block, width = encoder.blocks[0], 32
    patches = encoder.patch_projection(encoder.patchify(spectrogram))
    prefix = torch.cat([encoder.cls_token, encoder.distillation_token], 1).expand(2, -1, -1)
    x = torch.cat([prefix, patches], 1) + encoder.position_embedding
    q, k, v = block.attention.qkv(block.norm1(x)).split(width, dim=-1)
    heads = []
    for part in (slice(0, 16), slice(16, 32)):
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / 4.0).softmax(-1)
        heads.append(weights @ v[..., part])
    x = x + block.attention.projection(torch.cat(heads, -1))
    x = x + block.fc2(F.gelu(block.fc1(block.norm2(x))))
    torch.testing.assert_close(encoder(spectrogram).tokens, encoder.norm(x), atol=1e-5, rtol=0)


def test_forward__masked_patches_do_not_leak():
    encoder = small_encoder()
    spectrogram = torch.randn(1, 48, 32)
    mask = torch.tensor([[False, True, False, False, True, False]])
    changed = spectrogram.clone()
    changed[:, 16:32] += 1.0  # frames 16-31: column 1, that is patches 1 and 4
    torch.testing.assert_close(encoder(spectrogram, mask=mask).tokens, encoder(changed, mask=mask).tokens)
    assert not torch.allclose(encoder(spectrogram).tokens, encoder(changed).tokens)
    everything = torch.ones(1, 6, dtype=torch.bool)
    tokens = encoder(spectrogram, mask=everything, hidden_states=True).hidden_states[0]
    torch.testing.assert_close(tokens[:, PREFIX_TOKENS:], encoder.mask_token + encoder.position_embedding[:, 2:])


def test_forward__visible_equals_an_encoder_of_only_those_tokens():
    encoder = small_encoder()
    spectrogram = torch.randn(2, 48, 32)
    visible = torch.tensor([[0, 3, 5], [4, 2, 1]])
    output = encoder(spectrogram, visible=visible, hidden_states=True)
    whole = encoder(spectrogram, hidden_states=True).hidden_states[0]
    rows = torch.cat([torch.tensor([[0, 1], [0, 1]]), visible + PREFIX_TOKENS], dim=1)
    tokens = torch.stack([whole[i, rows[i]] for i in range(2)])
    for block in encoder.blocks:
        tokens = block(tokens)
    assert output.tokens.shape == (2, 5, 32)
    torch.testing.assert_close(output.tokens, encoder.norm(tokens))


def test_forward__all_visible_is_the_whole():
    encoder = small_encoder()
    spectrogram = torch.randn(2, 48, 32)
    everything = torch.arange(6).expand(2, -1)
    torch.testing.assert_close(encoder(spectrogram, visible=everything).tokens, encoder(spectrogram).tokens)


def test_forward__refuses_mask_with_visible():
    encoder = small_encoder()
    with pytest.raises(ValueError, match="not both"):
        encoder(torch.randn(1, 48, 32), mask=torch.ones(1, 6, dtype=torch.bool), visible=torch.zeros(1, 1).long())


@pytest.mark.parametrize("frames", [16, 31, 47, 48, 100, 333])
def test_forward__takes_any_length(frames):
    encoder = small_encoder(stride=(10, 10))
    output = encoder(torch.randn(1, frames, 32))
    assert output.grid == (2, (frames - 16) // 10 + 1)
    assert output.tokens.shape == (1, 2 + output.grid[0] * output.grid[1], 32)
    assert output.tokens.isfinite().all()


def test_forward__leaves_out_what_is_narrower_than_a_patch():
    encoder = small_encoder()
    spectrogram = torch.randn(1, 63, 32)
    torch.testing.assert_close(encoder(spectrogram).tokens, encoder(spectrogram[:, :48]).tokens)


def test_forward__names_what_does_not_fit():
    encoder = small_encoder()
    with pytest.raises(SettingsError, match="15 frames is shorter than one patch of 16"):
        encoder(torch.randn(1, 15, 32))
    with pytest.raises(ModelError, match="48 mel bins, but the encoder is made for 32"):
        encoder(torch.randn(1, 32, 48))


def test_config__refuses_what_does_not_fit():
    with pytest.raises(SettingsError, match="not a multiple of its 5 heads"):
        EncoderConfig(width=64, depth=1, heads=5)
    with pytest.raises(SettingsError, match="taller than a spectrogram of 64"):
        EncoderConfig(width=64, depth=1, heads=1, mels=64, patch=(128, 2))
    with pytest.raises(SettingsError, match="shorter than one patch"):
        EncoderConfig(width=64, depth=1, heads=1, frames=8)


def test_config__real_columns_cover_every_real_frame():
    config = EncoderConfig(width=8, depth=1, heads=1, mels=16, frames=48)
    frames = torch.tensor([0, 1, 16, 17, 32, 48, 60])
    assert config.real_columns(frames, 3).tolist() == [1, 1, 1, 2, 2, 3, 3]


def test_resize_positions__is_exact_on_a_plane():
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    plane = torch.stack([rows, columns], -1).reshape(1, 24, 2)
    positions = torch.cat([torch.full((1, 2, 2), 7.0), plane], 1)
    resized = resize_positions(positions, (4, 6), (4, 12))
    assert (resized[:, :2] == 7).all()
    image = resized[0, 2:].reshape(4, 12, 2)
    assert torch.equal(image[:, :, 0], torch.arange(4.0).unsqueeze(1).expand(4, 12))
    # Pixel centres (align_corners=False): column j of 12 lies at (j + .5) / 2 - .5 of 6.
    torch.testing.assert_close(image[0, 1:-1, 1], (torch.arange(1, 11) + 0.5) / 2 - 0.5)
    assert torch.equal(resize_positions(positions, (4, 6), (4, 6)), positions)


def test_resize_positions__cuts_the_middle():
    positions = torch.arange(2 + 24).float().reshape(1, 26, 1)
    cut = resize_positions(positions, (4, 6), (2, 3), cut=True)[0, 2:, 0].reshape(2, 3)
    whole = positions[0, 2:, 0].reshape(4, 6)
    assert torch.equal(cut, whole[1:3, 2:5])  # start = 6 // 2 - 3 // 2 = 2, as AST computes it


@pytest.mark.parametrize(("how", "first"), [("cut", 2), ("first", 0)])
def test_encoder__shorter_clips_take_neighbouring_positions(how: str, first: int):
    encoder = small_encoder()
    rows, columns = encoder.config.grid
    short = SpectrogramEncoder(replace(encoder.config, positions=how))
    short.load_state_dict(encoder.state_dict())
    whole = encoder.position_embedding[0, 2:].reshape(rows, columns, -1)
    taken = short.positions((rows, columns - 2))[0]
    start = columns // 2 - (columns - 2) // 2 if how == "cut" else 0
    assert taken[:2].equal(encoder.position_embedding[0, :2])
    assert taken[2:].reshape(rows, columns - 2, -1).equal(whole[:, start : start + columns - 2])
    assert short.positions((rows, columns)).equal(encoder.position_embedding)
    assert short.positions((rows, 2 * columns)).equal(encoder.positions((rows, 2 * columns)))
    positions = torch.arange(2 + 24).float().reshape(1, 26, 1)
    assert (
        take_columns(positions, (4, 6), 3, which=how)[0, 2:, 0]
        .reshape(4, 3)
        .equal(positions[0, 2:, 0].reshape(4, 6)[:, first : first + 3])
    )


def test_gradient_checkpointing__changes_no_gradient():
    encoder = small_encoder().train()
    spectrogram = torch.randn(2, 48, 32)
    gradients = []
    for checkpointing in (False, True):
        encoder.gradient_checkpointing = checkpointing
        encoder.zero_grad()
        encoder(spectrogram).tokens.square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in encoder.parameters() if parameter.grad is not None])
    assert len(gradients[0]) == len(list(encoder.parameters())) - 1  # all but the mask token
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_compile__has_no_graph_breaks():
    encoder = small_encoder(depth=1)
    compiled = torch.compile(encoder, fullgraph=True, backend="eager")
    spectrogram = torch.randn(2, 80, 32)  # not the length that it is made for
    mask = torch.arange(10).expand(2, -1) % 2 == 0
    torch.testing.assert_close(compiled(spectrogram, mask=mask).tokens, encoder(spectrogram, mask=mask).tokens)
    visible = torch.arange(3).expand(2, -1)
    torch.testing.assert_close(
        compiled(spectrogram, visible=visible).tokens, encoder(spectrogram, visible=visible).tokens
    )


def test_compile__in_bf16_traces_attention_and_its_gradients():
    encoder = small_encoder(depth=1)
    spectrogram = torch.randn(2, 80, 32)
    gradients = []
    for forward in (encoder, torch.compile(encoder, fullgraph=True, backend="aot_eager")):
        encoder.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            forward(spectrogram).tokens.square().mean().backward()
        gradients.append(encoder.blocks[0].attention.qkv.weight.grad.clone())
    largest = gradients[0].abs().max().item()
    torch.testing.assert_close(*gradients, atol=0.02 * largest, rtol=0)


def test_autocast__stays_close_and_keeps_float32_tokens():
    encoder = small_encoder()
    spectrogram = torch.randn(2, 48, 32)
    exact = encoder(spectrogram).tokens
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = encoder(spectrogram, mask=torch.zeros(2, 6, dtype=torch.bool)).tokens
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().mean() < 0.05


def test_encoder__prefix_alone_is_that_of_all_tokens():
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(EncoderConfig(width=32, depth=3, heads=4, mels=32, frames=64))
    spectrogram = torch.randn(2, 64, 32)
    alone, all_ = (encoder(spectrogram, prefix_only=only).tokens for only in (True, False))
    assert alone.shape == (2, PREFIX_TOKENS, 32)
    torch.testing.assert_close(alone, all_[:, :PREFIX_TOKENS], atol=1e-6, rtol=1e-6)
    used = [value for name, value in encoder.named_parameters() if name != "mask_token"]
    for own, other in zip(
        torch.autograd.grad(alone.square().sum(), used),
        torch.autograd.grad(all_[:, :PREFIX_TOKENS].square().sum(), used),
        strict=True,
    ):
        torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-4)
