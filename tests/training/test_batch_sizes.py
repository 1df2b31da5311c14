"""A batch size by epoch reaches the model, on time, and goes on after a kill as if there had been none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from batch_size_sessions import GROWING, KILLS
from safetensors.torch import load_file
from test_resume import figures, run_script

from tones import tone_store
from tymbal.finetune import finetune
from tymbal.objectives.classification import ClassificationObjective

SIZES = [1] * 30 + [2] * 8 + [4] * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 15 clips to learn from, a run that was left alone, and killed ones."""
    folder = tmp_path_factory.mktemp("sizes")
    tone_store(folder / "store", clips=7, validation=2)
    run_script("batch_size_sessions.py", folder / "store", folder)
    return folder


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Clips of each batch that reaches the model in training."""
    seen: list[int] = []
    original = ClassificationObjective.forward

    def watched(self: ClassificationObjective, spectrogram: torch.Tensor, **batch: Any) -> dict[str, Any]:
        if self.training:
            seen.append(len(spectrogram))
        return original(self, spectrogram, **batch)

    monkeypatch.setattr(ClassificationObjective, "forward", watched)
    return seen


@pytest.mark.parametrize(("kill", "places"), [("second-epoch", (20, 15)), ("third-epoch", (33, 30))])
def test_batch_sizes__reach_the_model_across_a_kill(
    kill: str, places: tuple[int, int], folder: Path, tmp_path: Path, shapes: list[int]
) -> None:
    done, resumed_at = places
    before = [int(line) for line in (folder / f"{kill}.txt").read_text().split()]
    assert before == SIZES[:done]
    assert {path.name for path in (folder / kill / "checkpoints").iterdir()} == KILLS[kill].left
    result = finetune(folder / "store", folder / kill, **GROWING)
    assert shapes == SIZES[resumed_at:]
    assert result.steps == len(SIZES) == 42
    shapes.clear()
    whole = finetune(folder / "store", tmp_path / "whole", **GROWING)
    assert shapes == SIZES
    # Learning rates are among the figures: the schedule knows the exact number of steps.
    assert figures(result.run) == figures(whole.run)
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (result.run, whole.run))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_batch_sizes__are_logged_by_epoch(folder: Path, tmp_path: Path) -> None:
    run = finetune(folder / "store", tmp_path / "run", **GROWING).run
    logged = [(line["epoch"], line["batch_size"]) for line in figures(run) if "batch_size" in line]
    by_epoch = {number: {size for epoch, size in logged if number < epoch <= number + 1} for number in range(4)}
    # The last batch of the third epoch reaches a clip into the fourth, and the last one a little beyond it.
    assert by_epoch == {0: {1}, 1: {1}, 2: {2}, 3: {2, 4}}
    assert logged[-1] == (pytest.approx(62 / 15, abs=1e-4), 4)
    assert "batch size 4" in (run / "log.txt").read_text()
