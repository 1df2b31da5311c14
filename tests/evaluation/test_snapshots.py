from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from damaged import delete, pt_store
from training_setup import TINY, make_store
from tymbal import pretrain, report
from tymbal.evaluation.rebuilding import Snapshots
from tymbal.evaluation.snapshots import can_rebuild, kept_steps, read_snapshots, rebuilt_by
from tymbal.features.normalisation import Normalisation
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.objectives.reconstruction import ReconstructionObjective
from tymbal.objectives.ssast import SSASTObjective
from tymbal.store.dataset import NormalisedBatch
from tymbal.training.figures import read_metrics


def test_kept_steps__spread_over_the_course_with_first_and_last() -> None:
    kept: list[int] = []
    for step in range(1, 101):
        kept = kept_steps([*kept, step])
        assert kept[0] == 1
        assert kept[-1] == step
    assert len(kept) == 8
    ratios = np.divide(kept[1:], kept[:-1])
    assert ratios.max() < 4
    assert ratios.min() > 1.2
    assert kept_steps([5, 3]) == [3, 5]


def written(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run / "rebuilt").iterdir())}


def test_pretrain__snapshots_are_those_of_the_evaluations_and_change_no_weight(tmp_path: Path) -> None:
    make_store(tmp_path / "store")
    with_them = pretrain(tmp_path / "store", tmp_path / "with", **TINY, snapshots=2)
    without = pretrain(tmp_path / "store", tmp_path / "without", **TINY, snapshots=0)
    weights = [(run.model / "model.safetensors").read_bytes() for run in (with_them, without)]
    assert weights[0] == weights[1]
    assert not (tmp_path / "without" / "rebuilt").exists()
    found = read_snapshots(tmp_path / "with" / "rebuilt")
    assert [each.step for each in found] == [5, 10, 14, 19]
    lines = {line["step"]: line for line in read_metrics(tmp_path / "with" / "metrics.jsonl")}
    assert [each.epoch for each in found] == pytest.approx([lines[each.step]["epoch"] for each in found], abs=1e-3)
    assert all((each.rebuilt.hidden == found[0].rebuilt.hidden).all() for each in found)
    assert all((each.rebuilt.true == found[0].rebuilt.true).all() for each in found)
    assert found[-1].rebuilt.error.mean() < found[0].rebuilt.error.mean()
    assert found[0].names == (("39.wav", 0.0), ("42.wav", 0.0))
    assert sum(map(len, written(tmp_path / "with").values())) < 50_000


def test_pretrain__snapshots_are_the_same_after_a_stop(tmp_path: Path) -> None:
    make_store(tmp_path / "store")
    pretrain(tmp_path / "store", tmp_path / "whole", **TINY)
    pretrain(tmp_path / "store", tmp_path / "cut", **TINY, max_minutes=1e-6)  # ends after a step
    (tmp_path / "cut" / "rebuilt" / "00000007.safetensors").write_bytes(b"of a step that is done again")
    assert [each.step for each in read_snapshots(tmp_path / "cut" / "rebuilt")] == [1]
    pretrain(tmp_path / "store", tmp_path / "cut", **TINY)
    whole, cut = written(tmp_path / "whole"), written(tmp_path / "cut")
    assert cut.pop("00000001.safetensors")
    assert cut == whole


@pytest.mark.parametrize("objective", ["mpc", "reconstruction"])
def test_report__other_objectives_have_pictures_too(tmp_path: Path, objective: str) -> None:
    make_store(tmp_path / "store")
    settings = {**TINY, "epochs": 2, "objective": objective}
    pretrain(tmp_path / "store", tmp_path / "run", **settings)
    page = report(tmp_path / "run", map="pca", device="cpu", rebuilt=2).output.read_text()
    part = page.split('id="pretraining-run-hidden-and-rebuilt"')[1].split("</section>")[0]
    assert part.count("<img") == 2 * 4
    assert "Not shown" not in part
    assert ("% wrong" in part) == (objective == "mpc")
    for path in (tmp_path / "run" / "rebuilt").iterdir():
        path.unlink()
    (tmp_path / "run" / "rebuilt").rmdir()
    again = report(tmp_path / "run", map="pca", device="cpu", rebuilt=2).output.read_text()
    part = again.split('id="pretraining-run-hidden-and-rebuilt"')[1].split("</section>")[0]
    assert part.count("<img") == 2 * 4  # from the checkpoints


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


def test_snapshots__are_of_the_clips_that_can_be_read(tmp_path: Path) -> None:
    store = pt_store(tmp_path)
    torch.manual_seed(0)
    shape = EncoderConfig(width=16, depth=1, heads=2, mels=16, frames=32, patch=(8, 8), stride=(8, 8))
    ours = SSASTObjective(SpectrogramEncoder(shape), normalisation=NORMALISATION, mask="uniform", mask_ratio=0.5)
    snapshots = Snapshots(tmp_path / "rebuilt", ours, store, store.rows("validation"), clips=3)
    arguments = TrainingArguments(output_dir=str(tmp_path / "out"), report_to=[], use_cpu=True)
    (tmp_path / "rebuilt").mkdir()
    for step, lost in ((1, []), (2, [19]), (3, [17, 21])):
        delete(store, *lost)
        state = TrainerState(global_step=step, is_world_process_zero=True)
        snapshots.on_evaluate(arguments, state, TrainerControl())
    assert ours.training
    found = read_snapshots(tmp_path / "rebuilt")
    assert [(each.step, each.rows) for each in found] == [(1, (17, 19, 21)), (2, (17, 21))]
    np.testing.assert_allclose(found[1].rebuilt.made, found[0].rebuilt.made[[0, 2]], atol=2e-3)
    np.testing.assert_array_equal(found[1].frames, store.real_frames[[17, 21]])


def test_pretrain__pictures_that_cannot_be_written_stop_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_store(tmp_path / "store")
    whole = pretrain(tmp_path / "store", tmp_path / "whole", **TINY, snapshots=2)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tymbal.evaluation.snapshots.save_file", full)
    run = pretrain(tmp_path / "store", tmp_path / "run", **TINY, snapshots=2)
    assert (run.model / "model.safetensors").read_bytes() == (whole.model / "model.safetensors").read_bytes()
    assert "rebuilt after step 5 is not kept for the report: [Errno 28]" in capsys.readouterr().err
    assert list((tmp_path / "run" / "rebuilt").iterdir()) == []
