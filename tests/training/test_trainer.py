"""What `TymbalTrainer` does otherwise than `Trainer`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from small_run import Copying, lines, session
from tymbal.errors import TrainingError


def test_train__accumulated_batches_make_the_step_of_a_large_one(tmp_path: Path):
    weights = []
    for name, changes in {"large": {"batch_size": 8}, "small": {"batch_size": 2, "accumulate": 4}}.items():
        session(tmp_path / name, Copying(dropout=0), **changes)
        weights.append(torch.load(tmp_path / name / "model" / "weights.pt", weights_only=True))
    large, small = weights
    assert all(torch.allclose(large[key], small[key], atol=1e-6) for key in large)


def test_train__schedule_knows_the_exact_steps(tmp_path: Path):
    session(tmp_path / "run", epochs=5, batch_size=3, warmup=0.2, log_every=1, learning_rate=1.0, clip_norm=0.1)
    rates = [line["learning_rate"] for line in lines(tmp_path / "run") if "loss" in line]
    assert len(rates) == 34  # 100 clips in steps of 3
    assert rates.index(max(rates)) == 7
    assert rates[0] == 0
    assert max(rates) == 1
    assert 0 < rates[-1] < 0.01


@pytest.mark.parametrize("explode_at", [1, 7, 8])
def test_train__a_loss_that_is_not_finite_stops_the_run(explode_at: int, tmp_path: Path):
    run = tmp_path / "run"
    with pytest.raises(TrainingError) as caught:
        session(run, Copying(explode_at=explode_at))
    message = str(caught.value)
    assert "not a finite number" in message
    assert "--learning-rate (try 0.0033)" in message
    assert "tymbal scan" in message
    kept = {path.name for path in run.glob("checkpoints/*")}
    assert kept == (set() if explode_at == 1 else {"checkpoint-5"})
    assert not (run / "model").exists()
    assert all(line["step"] < explode_at for line in lines(run))


def test_train__weights_that_are_not_finite_are_never_saved(tmp_path: Path):
    class Broken(Copying):
        """Its loss stays finite, its weights do not."""

        def forward(self, x: Tensor, **_: Tensor) -> dict[str, Any]:
            outputs = super().forward(x)
            if len(self.shapes) == 7 and self.training:
                self.layers[3].bias.register_hook(lambda gradient: gradient * torch.nan)
            return {**outputs, "loss": outputs["loss"].nan_to_num()}

    run = tmp_path / "run"
    with pytest.raises(TrainingError, match="weights or optimizer are not finite"):
        session(run, Broken(), clip_norm=0.0)
    assert {path.name for path in run.glob("checkpoints/*")} == {"checkpoint-5"}


def test_train__no_step_waits_for_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What would wait is reading a tensor from Python. A run of five times the steps reads no more of them."""
    reads = 0

    def counted(original: Any) -> Any:
        def read(*args: Any, **kwargs: Any) -> Any:
            nonlocal reads
            reads += 1
            return original(*args, **kwargs)

        return read

    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"):
        monkeypatch.setattr(Tensor, name, counted(getattr(Tensor, name)))
    totals = []
    for epochs in (4, 20):
        reads = 0
        session(tmp_path / str(epochs), epochs=epochs, eval_every=epochs, log_every=100)
        totals.append(reads)
    assert 0 < totals[0] == totals[1]


def test_train__evaluation_keeps_no_outputs(tmp_path: Path):
    class Wide(Copying):
        def forward(self, x: Tensor, **_: Tensor) -> dict[str, Any]:
            outputs = super().forward(x)
            if not self.training:
                held.append(len(alive))
                wide = torch.zeros(10_000)
                alive.add(wide)
                outputs["reconstruction"] = wide
            return outputs

    import weakref

    held: list[int] = []
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    session(tmp_path / "run", Wide(), batch_size=1)
    assert len(held) == 18
    assert max(held) <= 1
