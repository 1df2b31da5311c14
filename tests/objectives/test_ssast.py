"""SSAST's losses against the reference's recorded ones, and what ours adds to them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tymbal.config import to_mapping
from tymbal.errors import ModelError, SettingsError
from tymbal.features.normalisation import Normalisation
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.objectives import registry
from tymbal.objectives.ssast import SSASTObjective, SSASTSettings, contrast, rebuild

CONFIG = EncoderConfig(width=32, depth=1, heads=2, mels=32, frames=96)
NORMALISATION = Normalisation(mean=-5.0, std=4.0, padding=-15.0)


def objective(**options: object) -> SSASTObjective:
    torch.manual_seed(0)
    return SSASTObjective(SpectrogramEncoder(CONFIG), **{"normalisation": NORMALISATION, **options})


def batch(size: int = 4, frames: int = 96, real: int | None = None) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "spectrogram": (4 * torch.randn(size, frames, 32, generator=generator) - 5).half(),
        "frames": torch.full((size,), real or frames),
        "row": torch.arange(size) + 10,
        "epoch": torch.zeros(size, dtype=torch.int64),
    }


@pytest.mark.parametrize("name", ["patch", "frame"])
def test_losses__are_those_of_the_reference(shared, name):
    from tymbal.models.formats.ssast_checkpoint import read

    checkpoint = read(shared / "fixtures" / f"ssast_{name}.pth")
    encoder = SpectrogramEncoder(checkpoint.description.encoder)
    encoder.load_state_dict(checkpoint.encoder)
    ours = SSASTObjective(encoder, task="joint", normalisation=Normalisation(mean=0.0, std=0.5, padding=0)).eval()
    ours.load_head_state(checkpoint.objective)
    expected = np.load(shared / "fixtures" / f"ssast_{name}_expected.npz")
    spectrogram, index = torch.from_numpy(expected["input"]), torch.from_numpy(expected["mask_index"])
    mask = torch.zeros(3, encoder.config.num_patches, dtype=torch.bool).scatter(1, index, value=True)
    with torch.no_grad():
        tokens = encoder(spectrogram, mask=mask).tokens
        output = ours.losses(tokens, encoder.patchify(spectrogram), index)
    figures = ours.metrics({key: float(value) for key, value in output["sums"].items()})
    for metric in ("acc", "nce", "mse"):
        assert abs(figures[metric] - float(expected[metric])) < 1e-4, metric
    assert float(output["loss"]) == pytest.approx(float(expected["nce"] + 10 * expected["mse"]), abs=1e-3)


def test_contrast__equals_the_loop_over_the_batch():
    torch.manual_seed(0)
    predicted, true = torch.randn(3, 7, 5), torch.randn(3, 7, 5)
    predicted[:, :4] += 0.7 * true[:, :4]
    nce, acc = contrast(predicted, true, torch.ones(3, 7, dtype=torch.bool))
    for clip in range(3):
        chances = (true[clip] @ predicted[clip].T).log_softmax(-1)
        assert nce[clip] == pytest.approx(-chances.diag().mean().item(), abs=1e-5)
        assert acc[clip] == pytest.approx((chances.argmax(0) == torch.arange(7)).float().mean().item())
    assert 0 < acc.mean() < 1


def test_losses__ignore_what_is_not_valid():
    torch.manual_seed(0)
    predicted, true = torch.randn(2, 7, 5, requires_grad=True), torch.randn(2, 7, 5)
    valid = torch.tensor([[True] * 7, [True, False, True, True, False, True, False]])
    nce, acc = contrast(predicted, true, valid)
    mse = rebuild(predicted, true, valid)
    kept = valid[1]
    alone_nce, alone_acc = contrast(predicted[1:, kept], true[1:, kept], torch.ones(1, 4, dtype=torch.bool))
    alone_mse = rebuild(predicted[1:, kept], true[1:, kept], torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(torch.stack([nce[1], acc[1], mse[1]]), torch.cat([alone_nce, alone_acc, alone_mse]))
    (nce.sum() + mse.sum()).backward()
    assert (predicted.grad[1, ~kept] == 0).all()
    assert predicted.grad.isfinite().all()
    assert (predicted.grad[1, kept] != 0).any()


@pytest.mark.parametrize("task", ["joint", "mpc", "mpg"])
def test_forward__loss_agrees_with_its_metrics(task):
    ours = objective(task=task, mse_weight=3.0)
    output = ours(**batch())
    figures = ours.metrics(output["sums"])
    assert output["loss"].dtype == torch.float32
    assert figures["loss"] == pytest.approx(output["loss"].item(), rel=1e-6)
    assert (
        figures.keys()
        == {"joint": {"loss", "nce", "acc", "mse"}, "mpc": {"loss", "nce", "acc"}, "mpg": {"loss", "mse"}}[task]
    )
    assert output["sums"]["count"] == 4
    assert ours.monitor == (("mse", False) if task == "mpg" else ("acc", True))
    output["loss"].backward()
    assert [name for name, p in ours.named_parameters() if p.grad is None] == []


def test_forward__clips_count_equally_so_that_batches_add_up():
    ours = objective()
    whole = batch(4)
    whole["frames"] = torch.tensor([96, 20, 50, 96])
    halves = [{key: value[part] for key, value in whole.items()} for part in (slice(0, 2), slice(2, 4))]
    # What two ranks, or two accumulated batches, average is what one batch of all their clips gives.
    together = ours(**whole)["loss"]
    apart = torch.stack([ours(**half)["loss"] for half in halves]).mean()
    torch.testing.assert_close(together, apart)


def test_forward__training_masks_change_with_the_epoch_and_evaluation_masks_do_not():
    ours = objective()
    first, second = batch(), batch()
    second["epoch"] = second["epoch"] + 1
    assert ours(**first)["loss"] == ours(**first)["loss"]
    assert ours(**first)["loss"] != ours(**second)["loss"]
    ours.eval()
    assert ours(**first)["loss"] == ours(**second)["loss"]
    assert objective(seed=7).eval()(**first)["loss"] != ours(**first)["loss"]


def test_forward__padding_is_left_alone_unless_asked_for():
    padded = batch(2, real=40)  # columns 0-2 of 6 hold sound
    arguments = {"length": 96, "frames": padded["frames"], "row": padded["row"], "epoch": padded["epoch"]}
    masks = objective(mask_ratio=0.5).make_masks(**arguments)
    assert masks.valid.sum(1).tolist() == [3, 3]
    assert not masks.mask.view(2, 2, 6)[:, :, 3:].any()
    assert objective(mask_ratio=0.5, mask_padding=True).make_masks(**arguments).valid.sum(1).tolist() == [6, 6]
    assert objective()(**padded)["loss"].isfinite()


def test_forward__targets_are_standardised_when_asked_for():
    clips = batch()
    plain, standardised = objective(task="mpg"), objective(task="mpg", normalize_targets=True, target_floor=1e-3)
    shifted = {**clips, "spectrogram": clips["spectrogram"].float() * 2 + 3}
    for ours in (plain, standardised):
        # A head that gives 0 everywhere: the error is the mean square of the targets.
        ours.heads["gpred"][2].weight.data.zero_()
        ours.heads["gpred"][2].bias.data.zero_()
    assert standardised(**clips)["loss"].item() == pytest.approx(1, abs=1e-3)
    assert standardised(**shifted)["loss"].item() == pytest.approx(1, abs=1e-3)
    assert plain(**shifted)["loss"].item() > 1.1 * plain(**clips)["loss"].item()


def test_forward__quiet_patches_stay_quiet():
    clips = batch()
    noise = torch.randn(clips["spectrogram"].shape, generator=torch.Generator().manual_seed(0))
    for deviation, floor, wanted in [(1, 0.1, 0.990), (0.1, 0.1, 0.5), (0.01, 0.1, 0.0099), (0.01, 1e-3, 0.990)]:
        ours = objective(
            task="mpg",
            normalisation=Normalisation(mean=0.0, std=0.5, padding=0),
            normalize_targets=True,
            target_floor=floor,
        )
        ours.heads["gpred"][2].weight.data.zero_()
        ours.heads["gpred"][2].bias.data.zero_()
        # What is to be rebuilt has a mean square of v / (v + floor^2), where v is the variance of the patch.
        mean_square = ours(**{**clips, "spectrogram": deviation * noise})["loss"].item()
        assert mean_square == pytest.approx(wanted, rel=0.05)


def test_settings__targets_are_standardised_unless_a_run_was_begun_without():
    today = registry.resolve({"objective": "mpg"})
    assert (today.normalize_targets, today.target_floor) == (True, 0.1)
    old = {name: value for name, value in to_mapping(today).items() if name != "target_floor"}
    for begun, wanted in ((False, (False, 1e-3)), (True, (True, 1e-3))):
        recorded = {**old, "normalize_targets": begun}
        resumed = registry.resolve({"objective": "mpg"}, begun=recorded)
        assert (resumed.normalize_targets, resumed.target_floor) == wanted
    assert registry.resolve({"objective": "mpg"}, begun=to_mapping(today)) == today


def test_forward__losses_are_float32_under_autocast():
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
        with pytest.raises(torch._subclasses.fake_tensor.DataDependentOutputException):
            float(output["loss"].detach())
    assert output["loss"].shape == ()


def test_forward__compiles_without_graph_breaks():
    ours, clips = objective(), batch()
    compiled = torch.compile(ours, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**clips)["loss"], ours(**clips)["loss"])


@pytest.mark.parametrize("task", ["joint", "mpc", "mpg"])
def test_objective__learns_a_pattern(task):
    # Every clip is the same ramp along time: what is masked follows from what is seen.
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


def test_head_state__goes_out_and_in():
    source, target = objective(), objective(task="mpc", seed=1)
    with torch.no_grad():
        source.heads["cpred"][0].bias.fill_(0.5)
    state = source.head_state()
    assert set(state) == {
        f"{head}.{i}.{part}" for head in ("cpred", "gpred") for i in (0, 2) for part in ("weight", "bias")
    }
    target.load_head_state(state)
    assert (target.heads["cpred"][0].bias == 0.5).all()
    with pytest.raises(ModelError, match=r"gpred\.0\.weight .* is missing"):
        source.load_head_state(target.head_state())


def test_objective__says_what_does_not_fit_at_once():
    with pytest.raises(SettingsError, match="12 patches"):
        objective(mask_count=400)
    with pytest.raises(SettingsError, match="joint, mpc, mpg"):
        objective(task="contrastive")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cluster_min": 4, "cluster_max": 3}, "cluster_max is 3.*4 or more"),
        ({"cluster_min": 0}, "cluster_min is 0"),
        ({"decoder_depth": 0}, "decoder_depth is 0"),
        ({"decoder_width": 0}, "decoder_width is 0"),
    ],
)
def test_settings__say_what_they_want(wrong, message):
    with pytest.raises(SettingsError, match=message):
        SSASTSettings(**wrong)
