from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from tymbal.errors import ModelError
from tymbal.features.normalisation import ENERGY_FLOOR, Normalisation
from tymbal.models.classifier import pool_cells
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.objectives.contrastive import ContrastiveObjective, crossed_masks, effective_rank, nt_xent
from tymbal.randomness import fold
from tymbal.settings.augmentation import SpectrogramViews

CONFIG = EncoderConfig(width=16, depth=2, heads=2, mels=16, frames=24, patch=(4, 4), stride=(4, 4))


def objective(**settings: Any) -> ContrastiveObjective:
    torch.manual_seed(0)
    normal = Normalisation(mean=0.0, std=0.5, padding=-4.0)
    return ContrastiveObjective(
        SpectrogramEncoder(CONFIG), normalisation=normal, clips=torch.arange(64), projection=8, **settings
    )


def batch(count: int = 6, seed: int = 1) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    clips = torch.randn(count, 1, 24, 16, generator=random)
    views = clips + 0.2 * torch.randn(count, 2, 24, 16, generator=random)
    return {
        "spectrogram": views.half(),
        "frames": torch.full((count,), 24),
        "row": torch.arange(count),
        "epoch": torch.zeros(count, dtype=torch.int64),
    }


def unit(count: int, width: int = 5, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(2, count, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


def written_out(projected: torch.Tensor, clips: list[int], temperature: float) -> float:
    views = [(clip, row) for row in projected for clip, row in zip(clips, row, strict=True)]
    count, total = len(clips), 0.0
    for place, (clip, own) in enumerate(views):
        partner = (place + count) % (2 * count)
        below = 0.0
        for other, (name, vector) in enumerate(views):
            if other == partner or name != clip:
                below += math.exp(float(own @ vector) / temperature)
        total -= math.log(math.exp(float(own @ views[partner][1]) / temperature) / below)
    return total / len(views)


@pytest.mark.parametrize("clips", [[0, 1, 2, 3], [0, 1, 0, 3]])
def test_nt_xent__is_the_formula(clips: list[int]) -> None:
    projected = unit(4)
    loss, hits = nt_xent(projected, torch.tensor(clips), temperature=0.3)
    assert float(loss) == pytest.approx(written_out(projected, clips, 0.3), rel=1e-5)
    assert hits.shape == (8,)


def test_nt_xent__is_symmetric_and_falls_with_alignment() -> None:
    projected, clips = unit(5), torch.arange(5)
    loss, _ = nt_xent(projected, clips, temperature=0.2)
    assert float(nt_xent(projected.flip(0), clips, temperature=0.2)[0]) == pytest.approx(float(loss), rel=1e-6)
    same, hits = nt_xent(projected[:1].repeat(2, 1, 1), clips, temperature=0.2)
    assert same < loss
    assert hits.all()


def test_crossed_masks__hide_columns_of_one_view_and_rows_of_the_other() -> None:
    keys = fold(1, torch.arange(50))
    first, second = crossed_masks(keys, (4, 6), ratio=0.5)
    assert first.shape == (50, 4 * 3)
    assert second.shape == (50, 2 * 6)
    for patches in first:
        assert len(set((patches % 6).tolist())) == 3
        assert patches.equal(patches.sort().values)
    assert all(len(set((patches // 6).tolist())) == 2 for patches in second)
    share = torch.zeros(6).index_add(0, (first % 6).flatten(), torch.ones(first.numel())) / first.numel()
    assert ((share - 1 / 6).abs() < 0.05).all()


def test_crossed_masks__hide_as_much_of_a_short_sound_as_of_a_long_one() -> None:
    keys = fold(1, torch.arange(300))
    length = torch.arange(300) % 8  # 0 to 7 columns of sound at the start of 7
    heard = torch.arange(7) < length[:, None]
    first, second = crossed_masks(keys, (2, 7), ratio=0.5, heard=heard)
    seen = torch.zeros(300, 7, dtype=torch.bool).scatter(1, first[:, : first.shape[1] // 2], True)
    assert (seen.sum(1) == 3).all()
    for columns, stays in enumerate((0, 1, 1, 1, 2, 3, 3, 3)):
        assert ((seen & heard).sum(1)[length == columns] == stays).all()
    plain = crossed_masks(keys, (2, 7), ratio=0.5)
    assert second.equal(plain[1])
    assert first[length == 7].equal(plain[0][length == 7])
    assert len(set(map(tuple, first[length == 4].tolist()))) > 3


def test_crossed_masks__are_pinned() -> None:
    # A run that is continued must hide the same patches.
    keys = fold(7, torch.arange(3))
    first, second = crossed_masks(keys, (3, 4), ratio=0.5)
    assert first.tolist() == [[1, 2, 5, 6, 9, 10], [1, 3, 5, 7, 9, 11], [1, 2, 5, 6, 9, 10]]
    assert second.tolist() == [[4, 5, 6, 7], [0, 1, 2, 3], [8, 9, 10, 11]]
    heard = torch.arange(4) < torch.tensor([4, 2, 1])[:, None]
    first, second = crossed_masks(keys, (3, 4), ratio=0.6, heard=heard)
    assert first.tolist() == [[1, 2, 5, 6, 9, 10], [1, 3, 5, 7, 9, 11], [0, 2, 4, 6, 8, 10]]
    assert second.tolist() == [[4, 5, 6, 7], [0, 1, 2, 3], [8, 9, 10, 11]]


@pytest.mark.parametrize(("ratio", "columns", "rows"), [(-0.5, 4, 3), (0.0, 4, 3), (0.9, 1, 1), (1.0, 1, 1)])
def test_crossed_masks__one_stays_and_no_more_than_there_are(ratio: float, columns: int, rows: int) -> None:
    first, second = crossed_masks(fold(7, torch.arange(3)), (3, 4), ratio=ratio)
    assert (first.shape, second.shape) == ((3, 3 * columns), (3, 4 * rows))


@pytest.mark.parametrize("mask", ["none", "crossed"])
def test_objective__learns_and_reports(mask: Any) -> None:
    module = objective(mask=mask)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    before = None
    for step in range(30):
        inputs = batch()
        inputs["epoch"] += step
        out = module(**inputs)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        before = before or float(out["loss"].detach())
    figures = module.metrics(out["sums"])
    assert figures["loss"] == pytest.approx(float(out["loss"].detach()))
    assert figures["loss"] < 0.7 * before
    assert figures["acc"] > 0.6
    assert 0 <= figures["alignment"] < 1
    assert figures["uniformity"] < -0.5
    assert 1 < figures["rank"] <= 12
    unused = [name for name, value in module.named_parameters() if value.requires_grad and value.grad is None]
    assert unused == []


SILENCE = math.log(ENERGY_FLOOR)


def padded_batch() -> dict[str, torch.Tensor]:
    """Three clips of 8 of 24 frames of sound, which a shift has moved to frame 4 of both views."""
    inputs = batch(3)
    inputs["spectrogram"] = inputs["spectrogram"] - 4
    inputs["spectrogram"][:, :, :4] = SILENCE
    inputs["spectrogram"][:, :, 12:] = SILENCE
    return inputs


def test_objective__embeds_a_short_clip_as_it_is_embedded_later() -> None:
    inputs = padded_batch()
    module = objective(padded=torch.ones(64, dtype=torch.bool)).eval()
    module.normalisation = Normalisation(mean=-6.0, std=4.0, padding=SILENCE, by="clip")
    sound = inputs["spectrogram"][:, 0]
    found = module.embed(sound, inputs["row"], inputs["epoch"], view=0)
    heard = torch.zeros(3, 24, dtype=torch.bool)
    heard[:, 4:12] = True
    values = sound.float()[heard].view(3, 8, 16)
    normal = torch.full((3, 24, 16), (SILENCE + 6) / 8)
    deviation = values.flatten(1).std(1, correction=0)
    normal[:, 4:12] = (values - values.mean((1, 2), keepdim=True)) / (2 * deviation[:, None, None])
    tokens = module.encoder(normal).tokens[:, 2:].unflatten(1, (4, 6))
    torch.testing.assert_close(found, tokens[:, :, 1:3].mean((1, 2)), atol=1e-4, rtol=1e-4)


def test_objective__silence_within_a_whole_clip_is_sound() -> None:
    inputs = padded_batch()
    known = objective(padded=torch.tensor([False, True] * 32))
    known.normalisation = Normalisation(mean=-6.0, std=4.0, padding=SILENCE, by="clip")
    unknown = objective()
    unknown.normalisation = known.normalisation
    found, plain = (
        module.embed(inputs["spectrogram"][:, 0], inputs["row"], inputs["epoch"], view=0) for module in (known, unknown)
    )
    torch.testing.assert_close(found[[0, 2]], plain[[0, 2]])
    assert (found[1] - plain[1]).abs().max() > 0.1


def test_objective__where_only_silence_is_seen_it_is_finite() -> None:
    inputs = padded_batch()
    inputs["spectrogram"][0] = SILENCE
    module = objective(mask="crossed", padded=torch.ones(64, dtype=torch.bool))
    module.normalisation = Normalisation(mean=-6.0, std=4.0, padding=SILENCE, by="clip")
    out = module(**inputs)
    out["loss"].backward()
    assert math.isfinite(float(out["loss"].detach()))
    assert all(value.grad.isfinite().all() for value in module.parameters() if value.grad is not None)


def test_objective__by_parts_is_the_same_as_at_once() -> None:
    whole, parts = objective(mask="crossed"), objective(mask="crossed", chunk=4)
    for module in (whole, parts):
        module(**batch())["loss"].backward()
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-4)


def test_objective__by_parts_is_the_same_with_batch_norm_and_cells() -> None:
    settings: dict[str, Any] = {"norm": True, "parts": 2, "mask": "random", "carried": True}
    whole, parts = objective(**settings), objective(chunk=4, **settings)
    for module in (whole, parts):
        module(**batch())["loss"].backward()
    for (name, one), other in zip(whole.named_parameters(), parts.parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(one.grad, other.grad, atol=2e-6, rtol=1e-4, msg=name)


def test_nt_xent__of_groups_has_no_negatives_of_others() -> None:
    projected, groups = unit(6), [0, 1, 0, 1, 0, 2]
    loss, hits = nt_xent(projected, torch.arange(6), temperature=0.3, groups=torch.tensor(groups))
    total = 0.0
    for group in range(3):
        own = [place for place, name in enumerate(groups) if name == group]
        total += len(own) * written_out(projected[:, own], own, 0.3)
    assert float(loss) == pytest.approx(total / 6, rel=1e-5)
    assert hits[[5, 11]].all()  # one that is alone in its group finds itself
    every = nt_xent(projected, torch.arange(6), temperature=0.3, groups=torch.zeros(6, dtype=torch.int64))
    assert float(every[0]) == float(nt_xent(projected, torch.arange(6), temperature=0.3)[0])


def test_objective__cells_are_parts_of_the_sound_wherever_it_lies() -> None:
    module = objective(parts=2, carried=True).eval()
    inputs = batch(3)
    heard = torch.zeros(3, 24, dtype=torch.bool)
    heard[0, 4:12] = heard[1] = True
    heard[2, 20:] = heard[2, :8] = True  # around the end of the window
    views = inputs["spectrogram"][:, 0]
    found = module.embed(views, inputs["row"], inputs["epoch"], view=0, heard=heard)
    normal = module.normalisation.without(views, ~heard, masked=torch.zeros(3, 24, 16, dtype=torch.bool))
    tokens = module.encoder(normal).tokens[:, 2:].unflatten(1, (4, 6))
    for clip, columns in enumerate(([1, 2], [0, 1, 2, 3, 4, 5], [0, 1, 5])):
        kept = tokens[clip : clip + 1, :, columns].flatten(1, 2)
        real = torch.tensor([len(columns)])
        cells = pool_cells(kept, grid=(4, len(columns)), parts=2, real_columns=real)
        torch.testing.assert_close(found[clip], cells[0].flatten(), atol=1e-5, rtol=1e-4)


def test_objective__masked_cells_have_no_part_in_the_mean_of_a_clip() -> None:
    inputs = padded_batch()
    clip = Normalisation(mean=-6.0, std=4.0, padding=SILENCE, by="clip")
    module, before = objective(carried=True), objective()
    module.normalisation = before.normalisation = clip
    views, row, epoch = inputs["spectrogram"][:, 0], inputs["row"], inputs["epoch"]
    masked = torch.zeros(3, 24, 16, dtype=torch.bool)
    masked[:, :, 3:6] = True
    hidden = views.masked_fill(masked, SILENCE)
    heard = torch.zeros(3, 24, dtype=torch.bool)
    heard[:, 4:12] = True
    known = module.embed(hidden, row, epoch, view=0, heard=heard, masked=masked)
    # By their value they are found, too; what stood there does not matter.
    torch.testing.assert_close(module.embed(hidden, row, epoch, view=0, heard=heard), known)
    torch.testing.assert_close(module.embed(views, row, epoch, view=0, heard=heard, masked=masked), known)
    assert (before.embed(hidden, row, epoch, view=0, heard=heard) - known).abs().max() > 0.05


def drawing(**settings: Any) -> ContrastiveObjective:
    common: dict[str, Any] = {"norm": True, "parts": 2, "mask": "random", "carried": True, "real": 16.0}
    return objective(views=SpectrogramViews(), **{**common, **settings})


def singles(count: int = 6) -> dict[str, torch.Tensor]:
    inputs, frames = batch(count), (torch.arange(count) * 2 + 12).clamp(max=24)
    return {**inputs, "spectrogram": inputs["spectrogram"][:, 0], "frames": frames}


def test_objective__draws_views_of_spectrograms_by_clip_and_epoch_alone() -> None:
    module, inputs = drawing(), singles()
    loss = float(module(**inputs)["loss"].detach())
    assert float(drawing()(**inputs)["loss"].detach()) == loss
    behind = inputs["spectrogram"].clone()
    for clip, frames in enumerate(inputs["frames"].tolist()):
        behind[clip, frames:] = 7.0
    assert float(drawing()(**{**inputs, "spectrogram": behind})["loss"].detach()) == loss
    assert float(drawing()(**{**inputs, "epoch": inputs["epoch"] + 1})["loss"].detach()) != loss
    module.eval()
    there, later = module(**inputs), module(**{**inputs, "epoch": inputs["epoch"] + 1})
    assert float(there["loss"]) == float(later["loss"])


def test_objective__finds_views_of_spectrograms_after_some_steps() -> None:
    module, inputs = drawing(mask="none"), singles(16)
    smooth = torch.randn(16, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    inputs["spectrogram"] = F.interpolate(smooth, (24, 16), mode="bilinear")[:, 0]
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for step in range(60):
        out = module(**{**inputs, "epoch": inputs["epoch"] + step})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
    unused = [name for name, value in module.named_parameters() if value.requires_grad and value.grad is None]
    assert unused == []
    module.eval()
    figures = module.metrics(module(**inputs)["sums"])
    assert figures["chance"] == pytest.approx(math.log(31))
    assert figures["acc"] > 0.5


def test_metrics__tell_of_a_loss_that_stays_at_chance(capsys: pytest.CaptureFixture) -> None:
    module = objective().eval()
    sums = {**module(**batch())["sums"], "loss": torch.tensor(6 * 2.39), "count": torch.tensor(6.0)}
    assert module.metrics(sums)["chance"] == pytest.approx(math.log(11))  # 2.398
    good = {**sums, "loss": torch.tensor(6 * 2.0)}
    found = [module.metrics(each).get("alarm_chance") for each in (sums, good, sums, sums, sums, sums)]
    assert found == [None, None, None, None, 1.0, None]
    assert capsys.readouterr().err.count("has stayed at chance") == 1


def test_objective__masks_depend_on_the_epoch_only_in_training() -> None:
    module, inputs = objective(mask="crossed"), batch()
    later = {**inputs, "epoch": inputs["epoch"] + 1}
    assert float(module(**inputs)["loss"]) != float(module(**later)["loss"])
    module.eval()
    assert float(module(**inputs)["loss"]) == float(module(**later)["loss"])


def test_rank__counts_directions_and_a_collapse_is_told(capsys: pytest.CaptureFixture) -> None:
    vectors = F.pad(torch.eye(4).repeat(3, 1), (0, 1), value=1.0)
    assert effective_rank(vectors.T @ vectors) == pytest.approx(3, rel=1e-6)  # four corners span three directions
    same = F.pad(torch.ones(5, 4), (0, 1), value=1.0)
    assert effective_rank(same.T @ same) == 1
    module = objective()
    for value in module.encoder.parameters():
        torch.nn.init.zeros_(value)
    sums = module(**batch())["sums"]
    assert module.metrics(sums)["rank"] < 1.1
    assert "have collapsed" in capsys.readouterr().err.replace("\n", " ")


def test_head_state__comes_back() -> None:
    module, other = objective(), objective()
    torch.nn.init.ones_(module.projection[0].weight)
    other.load_head_state(module.head_state())
    assert other.projection[0].weight.equal(module.projection[0].weight)
    with pytest.raises(ModelError, match="projection"):
        other.load_head_state({})


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    # The second process could not read one of its clips.
    projected = unit(5)[:, :3] if rank == 0 else unit(5)[:, 3:]
    clips = torch.arange(5)[:3] if rank == 0 else torch.arange(5)[3:]
    projected = projected.clone().requires_grad_()
    loss, hits = nt_xent(projected, clips, temperature=0.3, everywhere=True)
    (loss * len(clips)).backward()
    torch.save((loss.detach() * len(clips), hits.sum(), projected.grad), f"{folder}/{rank}.pt")
    dist.barrier()  # a process that leaves while another one still talks takes it down
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed")
def test_nt_xent__of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_of_two, args=(str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    projected = unit(5).requires_grad_()
    loss, hits = nt_xent(projected, torch.arange(5), temperature=0.3)
    (loss * 5).backward()
    assert float(sum(part[0] for part in parts)) == pytest.approx(float(loss) * 5, rel=1e-5)
    assert int(sum(part[1] for part in parts)) == int(hits.sum())
    torch.testing.assert_close(torch.cat([part[2] for part in parts], dim=1), projected.grad)


def half_of_the_batch(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    module = drawing()
    out = module(**{name: value[4 * rank : 4 * rank + 4] for name, value in singles(8).items()})
    out["loss"].backward()
    gradients = {name: value.grad for name, value in module.named_parameters() if value.grad is not None}
    sums = {name: out["sums"][name] for name in ("count", "loss", "acc", "alignment", "uniformity", "moment")}
    statistics = module.projection[1].running_var
    torch.save((out["loss"].detach(), gradients, sums, statistics), f"{folder}/{rank}.pt")
    dist.barrier()  # a process that leaves while another one still talks takes it down
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed")
def test_objective__of_two_processes_is_that_of_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(half_of_the_batch, args=(str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    module = drawing()
    out = module(**singles(8))
    out["loss"].backward()
    for loss, _, _, statistics in parts:
        assert float(loss) == pytest.approx(float(out["loss"].detach()), rel=1e-5)
        torch.testing.assert_close(statistics, module.projection[1].running_var)
    for name, value in module.named_parameters():
        if value.grad is not None:  # DDP takes the mean over processes
            together = (parts[0][1][name] + parts[1][1][name]) / 2
            torch.testing.assert_close(together, value.grad, atol=1e-5, rtol=1e-4, msg=name)
    for name, value in parts[0][2].items():
        torch.testing.assert_close(value + parts[1][2][name], out["sums"][name], atol=1e-4, rtol=1e-4, msg=name)
