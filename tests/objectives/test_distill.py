"""Learning to give a teacher's vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from training_setup import BY_CLIP, COLUMNS, noisy_batch
from tymbal.errors import ModelError, SettingsError
from tymbal.models.classifier import pool_cells
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.models.folder import LoadedModel
from tymbal.objectives import registry
from tymbal.objectives.distill import DistillObjective, DistillSettings, Target, TeacherEncoder
from tymbal.objectives.lejepa import LeJEPAObjective
from tymbal.settings import DataChoice, FeatureSettings
from tymbal.settings.augmentation import SpectrogramViews
from tymbal.settings.training import ENDLESS


def objective(*, teacher: TeacherEncoder | None = None, **settings: Any) -> DistillObjective:
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(COLUMNS)
    chosen = DistillSettings(**{"parts": 2, "projection": 8, "slices": 16, **settings})
    joined = None
    if chosen.with_:
        joined = LeJEPAObjective(
            encoder, normalisation=BY_CLIP, settings=chosen, views=SpectrogramViews(), frames=20.0, seed=3
        )
    generator = torch.Generator().manual_seed(5)
    return DistillObjective(
        encoder,
        normalisation=BY_CLIP,
        settings=chosen,
        views=SpectrogramViews().times(chosen.view_strength),
        target=Target(torch.randn(2, 5, generator=generator) / 4, torch.rand(2, 5, generator=generator) + 1),
        frames=20.0,
        teacher=teacher,
        joined=joined,
        seed=3,
    )


def batch(count: int = 8, seed: int = 1) -> dict[str, torch.Tensor]:
    """Clips, and as their teacher's vectors mixtures of the means of their mel bins, the same for all clips."""
    given = noisy_batch(count, seed)
    mixture = torch.randn(16, 5, generator=torch.Generator().manual_seed(7))
    normal = BY_CLIP(given["spectrogram"], given["frames"])
    middle = torch.stack([clip[:length].mean(0) for clip, length in zip(normal, given["frames"], strict=True)])
    return {**given, "target": torch.stack([middle @ mixture, -middle @ mixture], 1)}


@pytest.mark.parametrize("how", ["squared", "cosine", "smooth_l1"])
def test_loss__is_that_of_standardised_vectors(how: str):
    module, inputs = objective(teacher_loss=how).eval(), batch()
    outputs = module(**inputs)
    wanted = (inputs["target"] - module.target_mean) / module.target_deviation
    given = module.predicted(module.normalisation(inputs["spectrogram"], inputs["frames"]), inputs["frames"])
    error = given - wanted
    cosine = (given * wanted).sum(2) / given.norm(dim=2) / wanted.norm(dim=2)
    small = error.abs() < 1
    expected = {
        "squared": error.square().mean(),
        "cosine": (1 - cosine).mean(),
        "smooth_l1": torch.where(small, error.square() / 2, error.abs() - 0.5).mean(),
    }[how]
    assert float(outputs["loss"].detach()) == pytest.approx(float(expected), rel=1e-5)
    figures = module.metrics(outputs["sums"])
    assert figures["fit"] == pytest.approx(1 - float(error.square().sum() / wanted.square().sum()), rel=1e-5)
    assert figures["teacher_cosine"] == pytest.approx(float(cosine.mean()), rel=1e-5)
    assert module.monitor == (("teacher_cosine" if how == "cosine" else "fit"), True)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"teacher_loss": "cosine"},
        {"projection_layers": 2, "student_norm": "none"},
        {"seen": 0.5},
        {"with_": ("lejepa", "0.5")},
    ],
)
def test_objective__gives_every_parameter_a_gradient_and_learns(changes: dict[str, Any]):
    module = objective(view_strength=0.0, **changes)
    asked = batch(32, seed=9)
    before = module.eval()(**asked)["sums"]
    optimizer = torch.optim.AdamW(module.train().parameters(), lr=3e-3)
    for step in range(80):
        outputs = module(**{**batch(16, seed=step), "epoch": torch.full((16,), step)})
        optimizer.zero_grad()
        outputs["loss"].backward()
        missing = [name for name, value in module.named_parameters() if value.requires_grad and value.grad is None]
        assert missing == []
        optimizer.step()
    after = module.eval()(**asked)["sums"]
    name = module.monitor[0]
    assert module.metrics(after)[name] > max(0.3, module.metrics(before)[name])


def test_objective__draws_by_epoch_in_training_only():
    module, inputs = objective(), batch()
    later = {**inputs, "epoch": torch.ones(8, dtype=torch.int64)}
    module.train()
    first = float(module(**inputs)["loss"].detach())
    assert first == float(module(**inputs)["loss"].detach())
    assert first != float(module(**later)["loss"].detach())
    module.eval()
    assert float(module(**inputs)["loss"].detach()) == float(module(**later)["loss"].detach())


def test_objective__never_mixes_clips():
    module, inputs = objective().train(), batch()
    clips = module.normalisation(inputs["spectrogram"], inputs["frames"])
    shown = module.eval().shown(clips, inputs["frames"], inputs["row"])
    alone = module.shown(clips[:1], inputs["frames"][:1], inputs["row"][:1])
    assert list(shown) == ["the student's view"]
    view, single = shown["the student's view"], alone["the student's view"]
    assert torch.equal(torch.from_numpy(view.values[:1]), torch.from_numpy(single.values))
    assert not view.hidden.any()


def test_step__of_what_the_student_sees_is_that_of_whole_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing only the patches that are seen changes neither loss nor gradients."""
    figures = []
    for alone in (True, False):
        module = objective(seen=0.5).train()
        given: list[torch.Size] = []
        module.encoder.register_forward_pre_hook(lambda _, args, shapes=given: shapes.append(args[0].shape))
        monkeypatch.setattr(EncoderConfig, "cuts_apart", alone)
        loss = module(**batch())["loss"]
        loss.backward()
        figures.append((loss.detach(), module.encoder.patch_projection.weight.grad, given[0]))
    torch.testing.assert_close(figures[0][0], figures[1][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(figures[0][1], figures[1][1], rtol=1e-4, atol=1e-6)
    assert figures[0][2] == (8, 5, 32) and figures[1][2] == (8, 24, 16)


def test_joined__adds_the_loss_of_lejepa_on_the_same_encoder():
    inputs = batch()
    module, alone = objective(with_=("lejepa", "0.5")).train(), objective().train()
    state = {name: value for name, value in module.state_dict().items() if not name.startswith("joined.")}
    alone.load_state_dict(state)
    beside = module.joined
    assert beside is not None
    assert beside.encoder is module.encoder
    own = float(alone(**inputs)["loss"].detach())
    other = float(beside(**{name: inputs[name] for name in inputs if name != "target"})["loss"].detach())
    outputs = module(**inputs)
    assert float(outputs["loss"].detach()) == pytest.approx(own + 0.5 * other, rel=1e-5)
    assert module.metrics(outputs["sums"])["lejepa_loss"] == pytest.approx(other, rel=1e-5)
    assert module.compares_clips
    assert not alone.compares_clips
    names = list(module.state_dict())
    assert len([name for name in names if "patch_projection.weight" in name]) == 1


def test_numbers__that_never_change_teach_nothing():
    module, inputs = objective(), batch()
    module.target_deviation[0, 0] = 0.0
    assert torch.equal(module.standardised(inputs["target"])[:, 0, 0], torch.zeros(8))
    assert module(**inputs)["loss"].isfinite()


def test_head_state__goes_on_and_refuses_another_teacher():
    module, other = objective().train(), objective()
    module(**batch())  # moves the statistics of the norm
    other.load_head_state({name: value.clone() for name, value in module.head_state().items()})
    for name, value in other.head_state().items():
        assert torch.equal(value, module.head_state()[name])
    assert not any(name.startswith("encoder.") for name in module.head_state())
    with pytest.raises(ModelError, match="another teacher"):
        objective(parts=4).load_head_state(module.head_state())


def teacher(*, normalize: Any = "dataset", patch: tuple[int, int] = (8, 4), parts: int = 2) -> TeacherEncoder:
    torch.manual_seed(4)
    config = EncoderConfig(width=12, depth=1, heads=2, mels=16, frames=24, patch=patch, stride=patch)
    encoder = SpectrogramEncoder(config)
    description = ModelDescription(
        encoder=config, features=FeatureSettings(mel_bins=16), mean=-5, std=3, padding=0.0, normalize=normalize
    )
    return TeacherEncoder(LoadedModel(encoder, description, {}), parts=parts)


def test_teacher__gives_its_rows_side_by_side_for_each_part_of_the_time():
    asked, inputs = teacher(), batch()
    vectors = asked(inputs["spectrogram"], inputs["frames"])
    assert vectors.shape == (8, 2, 24)
    x = asked.normalisation(inputs["spectrogram"], inputs["frames"])
    tokens = asked.encoder(x).tokens[:, 2:]
    columns = asked.encoder.config.real_columns(inputs["frames"], 6)
    cells = pool_cells(tokens, grid=(2, 6), parts=2, real_columns=columns)  # by row, then by time
    torch.testing.assert_close(vectors[:, 0], torch.cat([cells[:, 0], cells[:, 2]], 1))
    torch.testing.assert_close(vectors[:, 1], torch.cat([cells[:, 1], cells[:, 3]], 1))


@pytest.mark.parametrize("normalize", ["dataset", "clip"])
def test_teacher_views__are_heard_as_the_store_would_have_them(normalize: Any):
    """Without any change the view is the clip, and the teacher says of it what it says of that."""
    asked, inputs = teacher(normalize=normalize), batch()
    module = objective(teacher=asked, view_strength=1.0).train()
    still = SpectrogramViews(pitch=0, frequency_shift=0, tempo=0, equaliser=0, gain=0, mix=0)
    module.views = still
    heard: list[torch.Tensor] = []
    original = asked.encoded

    def watched(x: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
        heard.append(original(x, frames)[:, :, :5])
        return heard[-1]

    asked.encoded = watched  # type: ignore[method-assign]
    module(**{name: inputs[name] for name in inputs if name != "target"})
    x = asked.normalisation(inputs["spectrogram"], inputs["frames"])
    torch.testing.assert_close(heard[0], original(x, inputs["frames"])[:, :, :5], atol=1e-3, rtol=1e-3)
    assert not any("teacher" in name for name in module.state_dict())
    assert all(not value.requires_grad for value in asked.encoder.parameters())


def test_settings__are_checked():
    assert DistillSettings(with_=("lejepa", "0.5")).joined_weight == 0.5
    assert DistillSettings(with_=("lejepa",)).joined_weight == 1.0
    for name, value in [
        ("with_", ("mpg", "0.5")),
        ("with_", ("lejepa", "much")),
        ("with_", ("lejepa", "-1")),
        ("seen", 0.0),
        ("teacher_parts", 0),
        ("projection_layers", 3),
    ]:
        with pytest.raises(SettingsError, match=name.strip("_")):
            DistillSettings(**{name: value})


def test_settings__take_what_the_sound_suggests():
    columns, squares = DataChoice(full_height=True, grouped=True), DataChoice()
    assert DistillSettings().fitted(columns).parts == 4
    assert DistillSettings().fitted(squares).parts == 1
    assert DistillSettings().fitted(columns).epochs == 30
    assert DistillSettings(max_minutes=2.0).fitted(columns).epochs == ENDLESS
    assert DistillSettings(epochs=7).fitted(columns).epochs == 7
    assert DistillSettings().fitted(columns).batches == "mixed"
    assert DistillSettings(with_=("lejepa",)).fitted(columns).batches == "group"
    assert registry.resolve({"objective": "distill", "with": ("lejepa", "1")}).with_ == ("lejepa", "1")


def _work(rank: int, folder: str) -> None:
    import os

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    module = objective(with_=("lejepa", "0.5")).train()
    parallel = nn.parallel.DistributedDataParallel(module)
    part = {name: value[8 * rank : 8 * rank + 8] for name, value in batch(16).items()}
    parallel(**part)["loss"].backward()
    gradients = {name: value.grad for name, value in module.named_parameters() if value.grad is not None}
    if rank == 0:
        torch.save(gradients, f"{folder}/result.pt")
    dist.barrier()  # a process that leaves while another one still talks takes it down
    dist.destroy_process_group()


def test_two_processes__are_one_with_their_batch(tmp_path: Path):
    torch.multiprocessing.spawn(_work, args=(str(tmp_path),), nprocs=2)
    together = torch.load(tmp_path / "result.pt", weights_only=True)
    module = objective(with_=("lejepa", "0.5")).train()
    module(**batch(16))["loss"].backward()
    own = {name: value.grad for name, value in module.named_parameters() if value.grad is not None}
    assert own.keys() == together.keys()
    for name, value in own.items():
        assert torch.allclose(together[name], value, atol=1e-5), name


@pytest.mark.parametrize(("full_height", "share"), [(True, 1.0), (False, 0.4)])
def test_seen__all_of_columns_and_less_of_squares(full_height: bool, share: float) -> None:
    assert DistillSettings().fitted(DataChoice(full_height=full_height)).seen == share
    assert DistillSettings(seen=0.7).fitted(DataChoice(full_height=full_height)).seen == 0.7
