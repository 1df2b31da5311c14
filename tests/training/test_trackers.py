"""Trackers: what is missing is said at once, and what is logged can be read back."""

from __future__ import annotations

import json
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from training_setup import TINY
from tymbal import finetune, pretrain
from tymbal.errors import SettingsError
from tymbal.training.beginning import check_trackers
from tymbal.training.trainer import TymbalTrainer


@pytest.mark.skipif(getattr(find_spec("wandb"), "origin", None) is not None, reason="wandb is installed")
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
    with pytest.raises(SettingsError, match="wandbb, which is not one of tensorboard, wandb, mlflow, trackio"):
        check_trackers(["wandbb"])


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file store of MLflow's."""
    pytest.importorskip("mlflow", reason="needs MLflow (pip install mlflow-skinny)")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # which new versions of MLflow ask for
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "wingbeats")
    return (tmp_path / "mlruns").as_uri()


def in_two_sessions(store: Path, run: Path, tracker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is interrupted after its first checkpoint, and continued."""
    calls, original = [], TymbalTrainer.compute_loss

    def failing(self: TymbalTrainer, *args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TymbalTrainer, "compute_loss", failing)
        with pytest.raises(KeyboardInterrupt):
            pretrain(store, run, **TINY, report_to=(tracker,))
    if tracker == "wandb":  # as if the process had ended
        sys.modules["wandb"].finish()
    pretrain(store, run, **TINY, report_to=(tracker,))


def test_mlflow__takes_settings_and_figures_of_a_run_in_two_sessions(
    local: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    in_two_sessions(store, tmp_path / "run", "mlflow", monkeypatch)
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


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """W&B without a network."""
    pytest.importorskip("wandb", reason="needs Weights & Biases (pip install wandb)")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_RUN_ID", "WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "wandb"


def test_wandb__goes_on_in_its_run(offline: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    in_two_sessions(store, tmp_path / "run", "wandb", monkeypatch)
    kept = json.loads((tmp_path / "run" / "wandb.json").read_text())["run_id"]
    sessions = sorted(path.name for path in offline.glob("offline-run-*"))
    assert len(sessions) == 2
    assert all(name.endswith(f"-{kept}") for name in sessions)
    assert wandb.run is None
    pretrain(store, tmp_path / "second", **TINY, max_steps=1, report_to=("wandb",))
    assert json.loads((tmp_path / "second" / "wandb.json").read_text())["run_id"] != kept


class FakeWandb(ModuleType):
    """What the callback needs of wandb, writing down what it is told."""

    run: object = None

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None, origin="here")
        self.begun: list[dict[str, object]] = []
        self.logged: list[dict[str, object]] = []
        self.config = FakeConfig()

    def init(self, **options: object) -> object:
        self.begun.append(options)
        self.config = FakeConfig()
        self.run = SimpleNamespace(
            id=options.get("id") or f"made-{len(self.begun)}", _label=lambda **_: None, summary={}
        )
        return self.run

    def log(self, figures: dict[str, object]) -> None:
        self.logged.append(figures)

    def finish(self) -> None:
        self.run = None


class FakeConfig(dict):
    def update(self, *values: dict[str, object], **options: object) -> None:
        super().update(*values)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in ("wandb.sdk", "wandb.sdk.lib", "wandb.sdk.lib.config_util"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["wandb.sdk.lib.config_util"].ConfigError = type("ConfigError", (Exception,), {})
    for name in ("WANDB_RUN_ID", "WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    return module


def test_wandb__the_run_is_kept_in_the_run_folder(
    fake: FakeWandb, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_two_sessions(store, tmp_path / "run", "wandb", monkeypatch)
    first, second = fake.begun
    assert (first["id"], second["id"]) == (None, "made-1")
    assert {(each["resume"], each["project"], each["name"]) for each in fake.begun} == {("allow", "tymbal", "run")}
    assert first["config"]["mask_ratio"] == 0.5
    steps = [each["train/global_step"] for each in fake.logged if "eval/acc" in each]
    assert steps == [5, 10, 14, 19]
    assert fake.run is None


def test_wandb__a_run_of_the_caller_stays_open(fake: FakeWandb, store: Path, tmp_path: Path) -> None:
    fake.init(id="mine")
    pretrain(store, tmp_path / "run", **TINY, max_steps=1, report_to=("wandb",))
    assert len(fake.begun) == 1
    assert fake.run.id == "mine"
    assert not (tmp_path / "run" / "wandb.json").exists()


class FakeTrackio(ModuleType):
    """What the callback needs of Trackio, writing down what it is told."""

    def __init__(self) -> None:
        super().__init__("trackio")
        self.__spec__ = ModuleSpec("trackio", None, origin="here")
        self.begun: list[dict[str, object]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.ended = 0

    def init(self, **options: object) -> object:
        self.begun.append(options)
        return SimpleNamespace(log=lambda figures, step: self.logged.append((step, figures)))

    def finish(self) -> None:
        self.ended += 1


def test_trackio__one_run_of_two_sessions(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", module)
    monkeypatch.delenv("TRACKIO_PROJECT", raising=False)
    in_two_sessions(store, tmp_path / "run", "trackio", monkeypatch)
    first, second = module.begun
    kept = json.loads((tmp_path / "run" / "trackio.json").read_text())["run"]
    assert first["name"] == second["name"] == kept
    assert kept.startswith("run-")
    assert (first["resume"], second["resume"], first["project"]) == ("never", "allow", "tymbal")
    assert first["config"]["mask_ratio"] == 0.5
    assert [step for step, figures in module.logged if "eval_acc" in figures] == [5, 10, 14, 19]
    assert module.ended == 1


def test_trackio__the_real_one_has_what_was_logged(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if getattr(find_spec("trackio"), "origin", None) is None:
        pytest.skip("needs Trackio (pip install trackio)")
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    in_two_sessions(store, tmp_path / "run", "trackio", monkeypatch)
    import trackio

    kept = json.loads((tmp_path / "run" / "trackio.json").read_text())["run"]
    (run,) = trackio.Api().runs("tymbal")
    assert run.name == kept
