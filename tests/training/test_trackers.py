"""Trackers: what is missing is said at once, and what is logged can be read back."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from training_setup import TINY
from tymbal import finetune, pretrain
from tymbal.errors import SettingsError
from tymbal.training.trackers import check_trackers
from tymbal.training.trainer import TymbalTrainer


def test_check_trackers__names_what_is_missing_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "path" / "wandb").mkdir(parents=True)  # what wandb itself leaves, and Python takes for a package
    monkeypatch.syspath_prepend(tmp_path / "path")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(
        SettingsError, match=r"wandb, which is not installed\n  Install it: pip install 'tymbal\[wandb\]'"
    ):
        finetune(tmp_path / "sound that is not there", tmp_path / "run", report_to=("tensorboard", "wandb"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["run.yaml"]
    with pytest.raises(SettingsError, match="wandbb, which is not one of tensorboard, wandb, mlflow"):
        check_trackers(["wandbb"])


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file store of MLflow's."""
    pytest.importorskip("mlflow", reason="needs MLflow (pip install mlflow-skinny)")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # which new versions of MLflow ask for
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "wingbeats")
    return (tmp_path / "mlruns").as_uri()


def test_mlflow__takes_settings_and_figures_of_a_run_in_two_sessions(
    local: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    calls, original = [], TymbalTrainer.compute_loss

    def failing(self: TymbalTrainer, *args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    settings = {**TINY, "report_to": ("mlflow",)}
    with monkeypatch.context() as patch:
        patch.setattr(TymbalTrainer, "compute_loss", failing)
        with pytest.raises(KeyboardInterrupt):
            pretrain(store, tmp_path / "run", **settings)
    pretrain(store, tmp_path / "run", **settings)
    client = MlflowClient(local)
    experiment = client.get_experiment_by_name("wingbeats")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("run", "FINISHED")
    assert run.data.params["mask_ratio"] == "0.5"
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "eval_acc"):
        found = {each.step: each.value for each in client.get_metric_history(run.info.run_id, name)}
        assert found == pytest.approx({line["step"]: line[name] for line in lines if name in line})
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_mlflow__a_store_that_does_not_work_is_named(local: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://here")
    with pytest.raises(SettingsError, match="report_to names mlflow, but nonsense://here does not work"):
        check_trackers(["mlflow"])
