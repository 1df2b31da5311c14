from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from training_setup import TINY, make_store
from tymbal import pretrain, report
from tymbal.evaluation.snapshots import kept_steps, read_snapshots
from tymbal.training.records import read_metrics


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
