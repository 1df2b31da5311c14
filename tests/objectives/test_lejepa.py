from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from training_setup import BY_CLIP, COLUMNS, noisy_batch
from tymbal.errors import ModelError, SettingsError
from tymbal.models.encoder import SpectrogramEncoder
from tymbal.objectives import lejepa
from tymbal.objectives.lejepa import LeJEPAObjective, LeJEPASettings, sigreg, visible_patches
from tymbal.randomness import fold
from tymbal.settings import DataChoice
from tymbal.settings.augmentation import SpectrogramViews


def objective(patch: tuple[int, int] = COLUMNS.patch, **settings: Any) -> LeJEPAObjective:
    torch.manual_seed(0)
    return LeJEPAObjective(
        SpectrogramEncoder(replace(COLUMNS, patch=patch, stride=patch)),
        normalisation=BY_CLIP,
        settings=LeJEPASettings(**{"parts": 2, "projection": 8, "slices": 16, **settings}),
        views=SpectrogramViews(),
        frames=20.0,
        seed=3,
    )


def test_sigreg__is_the_integral_written_out() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(2, 40, 6, generator=generator) * 1.3 + 0.2
    directions = torch.nn.functional.normalize(torch.randn(6, 5, generator=generator), dim=0)
    points = [-5 + 10 * place / 16 for place in range(17)]
    total = 0.0
    for view in embeddings.double():
        for slope in directions.double().T:
            values = (view @ slope).tolist()
            heights = []
            for t in points:
                real = sum(math.cos(t * x) for x in values) / len(values) - math.exp(-t * t / 2)
                imaginary = sum(math.sin(t * x) for x in values) / len(values)
                heights.append((real**2 + imaginary**2) * math.exp(-t * t / 2))
            area = sum((left + right) / 2 * 10 / 16 for left, right in itertools.pairwise(heights))
            total += area * len(values)
    assert float(sigreg(embeddings, directions)) == pytest.approx(total / 10, rel=1e-5)


def test_sigreg__is_small_for_a_standard_normal_and_large_for_a_collapse() -> None:
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(8, 32, generator=generator), dim=0)
    normal = sigreg(torch.randn(1, 512, 8, generator=generator), directions)
    shifted = sigreg(torch.randn(1, 512, 8, generator=generator) + 1, directions)
    collapsed = sigreg(torch.zeros(1, 512, 8), directions)
    assert float(normal) < 2
    assert 20 < float(shifted) < float(collapsed)


@pytest.mark.parametrize("drawn", [0.0, 1 - 2.0**-24])
def test_objective__is_finite_for_the_extreme_numbers_that_are_drawn(
    drawn: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lejepa, "uniform", lambda keys, count, *, stream: torch.full((1, count), drawn))
    assert objective()(**noisy_batch())["loss"].isfinite()


def test_visible_patches__take_sound_first() -> None:
    keys = fold(1, torch.arange(200))
    heard = (torch.arange(6) < 4).repeat(2).expand(200, -1)
    few, many = visible_patches(keys, heard, 3), visible_patches(keys, heard, 10)
    assert heard.gather(1, few).all()
    assert (heard.gather(1, many).sum(1) == 8).all()
    assert (many.diff(dim=1) > 0).all()
    shares = torch.bincount(few.flatten(), minlength=12)[heard[0]] / 200
    assert (shares - 3 / 8).abs().max() < 0.12


def test_objective__draws_by_epoch_in_training_only() -> None:
    module = objective()
    inputs = noisy_batch()
    later = {**inputs, "epoch": torch.ones(8, dtype=torch.int64)}
    module.train()
    first = float(module(**inputs)["loss"].detach())
    assert first == float(module(**inputs)["loss"].detach())
    assert first != float(module(**later)["loss"].detach())
    module.eval()
    assert float(module(**inputs)["loss"].detach()) == float(module(**later)["loss"].detach())


@pytest.mark.parametrize("mixing", ["levels", "energies"])
def test_shown__is_what_the_encoder_sees_in_training(mixing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Views, their length and their visible patches are those of a training step of that epoch.

    Nothing else of a view is drawn.
    """
    module, clips = objective(kept=0.5, kept_local=0.2, mixing=mixing), noisy_batch()
    given: list[tuple[torch.Tensor, torch.Tensor]] = []
    forward = SpectrogramEncoder.forward

    def watched(self: SpectrogramEncoder, x: torch.Tensor, **how: Any) -> Any:
        given.append((x.detach().clone(), how["visible"].clone()))
        return forward(self, x, **how)

    monkeypatch.setattr(SpectrogramEncoder, "forward", watched)
    module.train()(**{**clips, "epoch": torch.full((8,), 2)})
    normalised = module.normalisation(clips["spectrogram"], clips["frames"])
    shown = module.eval().shown(normalised, clips["frames"], clips["row"], epoch=2)
    assert list(shown) == ["global view 1", "global view 2", "local view 1"]
    encoded = [pair for x, visible in given for pair in zip(x.split(8), visible.split(8), strict=True)]
    for view, (drawn, visible) in zip(shown.values(), encoded, strict=True):
        seen = ~torch.from_numpy(view.hidden)
        expected = module.encoder.patchify(torch.from_numpy(view.values))
        torch.testing.assert_close(drawn, expected.gather(1, visible.unsqueeze(2).expand_as(drawn)))
        for place in range(8):  # patches are as high as the spectrogram, and two frames long
            frames = torch.zeros(24, dtype=torch.bool)
            for patch in visible[place].tolist():
                frames[2 * patch : 2 * patch + 2] = True
            assert torch.equal(seen[place], frames[:, None].expand(-1, 16))


def test_settings__mixing_follows_from_the_sound() -> None:
    assert LeJEPASettings().fitted(DataChoice(steady=True)).mixing == "energies"
    assert LeJEPASettings().fitted(DataChoice()).mixing == "levels"
    assert LeJEPASettings(mixing="levels").fitted(DataChoice(steady=True)).mixing == "levels"
    assert LeJEPASettings(patch="16x16").depends_on_structure
    assert not LeJEPASettings(patch="16x16", mixing="levels").depends_on_structure


def test_settings__weight_of_sigreg_follows_from_the_patch() -> None:
    assert LeJEPASettings().fitted(DataChoice(full_height=True)).sigreg_weight == 0.1
    assert LeJEPASettings().fitted(DataChoice()).sigreg_weight == 0.05
    assert LeJEPASettings(sigreg_weight=0.2).fitted(DataChoice(full_height=True)).sigreg_weight == 0.2


@pytest.mark.parametrize("mixing", ["levels", "energies"])
@pytest.mark.parametrize("patch", [(16, 2), (4, 4), (5, 3)])
def test_step__of_what_is_seen_is_that_of_whole_views(patch: tuple[int, int], mixing: str) -> None:
    """Drawing only the patches that are seen changes neither loss nor gradients."""
    figures = []
    for alone in (True, False):
        module = objective(patch, kept=0.5, kept_local=0.2, mixing=mixing).train()
        assert module._draws_what_is_seen
        module._draws_what_is_seen = alone
        loss = module(**noisy_batch())["loss"]
        loss.backward()
        figures.append((loss.detach(), module.encoder.patch_projection.weight.grad))
    torch.testing.assert_close(figures[0][0], figures[1][0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(figures[0][1], figures[1][1], rtol=1e-4, atol=1e-6)


def test_objective__gives_every_parameter_a_gradient_and_learns() -> None:
    module = objective(sigreg_weight=0.2).train()
    asked = noisy_batch(32, seed=9)
    before = module.eval()(**asked)["sums"]
    optimizer = torch.optim.AdamW(module.train().parameters(), lr=3e-3)
    for step in range(80):
        outputs = module(**{**noisy_batch(16, seed=step), "epoch": torch.full((16,), step)})
        optimizer.zero_grad()
        outputs["loss"].backward()
        missing = [name for name, value in module.named_parameters() if value.requires_grad and value.grad is None]
        assert missing == []
        optimizer.step()
    figures = module.metrics(outputs["sums"])
    assert figures["loss"] == pytest.approx(0.8 * figures["agreement"] + 0.2 * figures["sigreg"], rel=1e-5)
    after = module.eval()(**asked)["sums"]
    assert module.metrics(after)["sigreg"] < module.metrics(before)["sigreg"]
    assert module.metrics(after)["loss"] < 0.95 * module.metrics(before)["loss"]


def test_objective__does_not_see_what_a_clip_is_padded_with() -> None:
    module = objective().eval()
    inputs = noisy_batch()
    louder = inputs["spectrogram"].clone()
    louder[torch.arange(24) >= inputs["frames"][:, None]] = 3.0
    same = module(**{**inputs, "spectrogram": louder})
    assert float(same["loss"].detach()) == float(module(**inputs)["loss"].detach())


def test_head_state__goes_on_and_refuses_another_shape() -> None:
    module, other = objective().train(), objective(seed=1)
    module(**noisy_batch())  # moves the statistics of batch norm
    other.load_head_state({name: value.clone() for name, value in module.head_state().items()})
    for name, value in other.head_state().items():
        assert torch.equal(value, module.head_state()[name])
    with pytest.raises(ModelError, match="another projection"):
        objective(projection=4).load_head_state(module.head_state())


@pytest.mark.parametrize(("name", "value"), [("global_views", 1), ("kept", 0.0), ("sigreg_weight", 1.0), ("parts", 0)])
def test_settings__are_checked(name: str, value: float) -> None:
    with pytest.raises(SettingsError, match=name):
        LeJEPASettings(**{name: value})


def _work(rank: int, folder: str) -> None:
    import os

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    module = objective().train()
    parallel = nn.parallel.DistributedDataParallel(module)
    part = {name: value[4 * rank : 4 * rank + 4] for name, value in noisy_batch().items()}
    loss = parallel(**part)["loss"]
    loss.backward()
    gradients = {name: value.grad for name, value in module.named_parameters() if value.grad is not None}
    if rank == 0:
        torch.save({"loss": loss.detach(), **gradients}, f"{folder}/result.pt")
    dist.barrier()  # a process that leaves while another one still talks takes it down
    dist.destroy_process_group()


def test_two_processes__are_one_with_their_noisy_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_work, args=(str(tmp_path),), nprocs=2)
    together = torch.load(tmp_path / "result.pt", weights_only=True)
    module = objective().train()
    loss = module(**noisy_batch())["loss"]
    loss.backward()
    assert float(together.pop("loss")) == pytest.approx(float(loss.detach()), abs=1e-5)
    for name, value in module.named_parameters():
        if value.grad is not None:
            assert torch.allclose(together[name], value.grad, atol=1e-5), name


def test_encoder__that_does_not_attend_to_padding_gives_the_same_however_long_it_is() -> None:
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(COLUMNS).eval()
    clip = torch.randn(1, 12, 16)
    padded = torch.cat([clip, torch.full((1, 12, 16), 7.0)], 1)
    frames = torch.tensor([12])
    # The positions of a shorter grid would be resized: those of the long one are cut.
    short = SpectrogramEncoder(replace(COLUMNS, frames=12)).eval()
    state = encoder.state_dict()
    state["position_embedding"] = state["position_embedding"][:, :8]
    short.load_state_dict(state)
    long_tokens, short_tokens = encoder(padded, frames=frames).tokens[:, :8], short(clip).tokens
    assert torch.allclose(long_tokens, short_tokens, atol=1e-5)
    bf16 = torch.autocast("cpu", dtype=torch.bfloat16)
    with bf16:
        assert torch.allclose(encoder(padded, frames=frames).tokens[:, :8].float(), short_tokens, atol=0.1)
