"""The classifier: shapes, gradients, and a head that learns."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tymbal.models.classifier import SpectrogramClassifier, Standardisation
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder

CONFIG = EncoderConfig(width=16, depth=1, heads=2, mels=32, frames=32)


@pytest.mark.parametrize("pooling", ["mean", "rows", "cls", "all", "attention"])
def test_classifier__gives_every_trainable_parameter_a_gradient(pooling):
    classifier = SpectrogramClassifier(SpectrogramEncoder(CONFIG), 3, pooling=pooling)
    logits = classifier(torch.randn(2, 50, 32))
    assert logits.shape == (2, 3)
    logits.square().sum().backward()
    without = [name for name, p in classifier.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []  # DistributedDataParallel stops at a parameter that has none


def test_classifier__head_norm_has_the_encoders_epsilon_unless_told():
    encoder = SpectrogramEncoder(CONFIG)
    assert SpectrogramClassifier(encoder, 2).head_norm.eps == 1e-6
    assert SpectrogramClassifier(encoder, 2, head_eps=1e-5).head_norm.eps == 1e-5


def test_classifier__tells_high_from_low():
    torch.manual_seed(0)
    spectrogram = 0.1 * torch.randn(8, 32, 32)
    spectrogram[:4, :, :16] += 1
    spectrogram[4:, :, 16:] += 1
    labels = torch.arange(8) // 4
    classifier = SpectrogramClassifier(SpectrogramEncoder(CONFIG), 2, pooling="mean")
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-2)
    for _ in range(12):
        loss = torch.nn.functional.cross_entropy(classifier(spectrogram), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert classifier(spectrogram).argmax(1).equal(labels)


@pytest.mark.parametrize("pooling", ["mean", "rows", "cls", "all", "attention"])
def test_classifier__pools_over_padding_or_not(pooling):
    spectrogram, frames = torch.randn(2, 64, 32), torch.tensor([20, 64])
    for skip in (True, False):
        torch.manual_seed(0)
        classifier = SpectrogramClassifier(SpectrogramEncoder(CONFIG), 3, pooling=pooling, skip_padding=skip).eval()
        without, told = classifier(spectrogram), classifier(spectrogram, frames=frames)
        assert torch.allclose(told[1], without[1], atol=1e-6)
        assert torch.allclose(told[0], without[0], atol=1e-6) == (not skip or pooling == "cls")


def test_standardisation__is_a_batch_norm_without_weights() -> None:
    torch.manual_seed(0)
    ours, theirs = Standardisation(5), nn.BatchNorm1d(5, affine=False)
    for _ in range(3):
        batch = 3 * torch.randn(16, 5) + torch.arange(5)
        torch.testing.assert_close(ours(batch), theirs(batch), atol=1e-5, rtol=0)
        # Theirs divides by one clip less.
        torch.testing.assert_close(ours.mean, theirs.running_mean)
    ours.variance.copy_(theirs.running_var)
    torch.testing.assert_close(ours.eval()(batch), theirs.eval()(batch), atol=1e-5, rtol=0)


def test_standardisation__begins_with_given_clips_and_does_not_trust_a_few() -> None:
    clips = 4 * torch.randn(50, 3, dtype=torch.float64) + 7
    norm = Standardisation(3)
    norm.begin(clips)
    standard = norm.eval()(clips)
    torch.testing.assert_close(standard.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(standard.std(0, correction=0), torch.ones(3), atol=1e-4, rtol=0)
    few = norm.train()(clips[:2])  # their own statistics would say -1 and 1
    expected = (clips[:2].float() - norm.mean) / norm.deviation
    torch.testing.assert_close(few, expected)
    assert few.abs().std() > 0.05


def _standardise(rank: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), Standardisation(3))
    parallel = nn.parallel.DistributedDataParallel(module, broadcast_buffers=False)
    part = torch.arange(64.0).view(16, 4).sin()[[slice(0, 8), slice(8, 16)][rank]]
    (parallel(part) ** 3).mean().backward()
    if rank == 1:
        torch.save({"gradient": module[0].weight.grad, **module[1].state_dict()}, f"{folder}/result.pt")
    dist.barrier()
    dist.barrier()  # a process that leaves while another one still talks takes it down
    dist.destroy_process_group()


def test_standardisation__of_two_processes_is_that_of_their_whole_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_standardise, args=(str(tmp_path),), nprocs=2)
    together = torch.load(tmp_path / "result.pt", weights_only=True)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), Standardisation(3))
    (module(torch.arange(64.0).view(16, 4).sin()) ** 3).mean().backward()
    torch.testing.assert_close(together["gradient"], module[0].weight.grad, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(together["mean"], module[1].mean)
    torch.testing.assert_close(together["variance"], module[1].variance)
