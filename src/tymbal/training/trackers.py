"""Trackers by name: where figures are logged beside the run folder.

    tensorboard    files in the run folder
    wandb          where `WANDB_…` in the environment says
    mlflow         where `MLFLOW_TRACKING_URI` says, in the experiment `MLFLOW_EXPERIMENT_NAME`
    trackio        on this machine, or where `TRACKIO_SPACE_ID` or `TRACKIO_SERVER_URL` says; project `TRACKIO_PROJECT`

What is missing or cannot be reached is an error before anything is computed. A resumed run goes on in the MLflow, W&B
or Trackio run that it began, whose number or name the run folder keeps (`mlflow.json`, `wandb.json`, `trackio.json`).
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import sys
import time
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback, WandbCallback
from typing_extensions import override

from tymbal import config
from tymbal.files import read_json, write_json
from tymbal.progress import tell
from tymbal.settings import TrainingSettings
from tymbal.training.run_folder import RunFolder

__all__ = ["trackers"]

_MLFLOW_RUN = "mlflow.json"
_WANDB_RUN = "wandb.json"
_TRACKIO_RUN = "trackio.json"
_AT_ONCE = 100  # parameters that MLflow takes in a call
_LONGEST = 500  # letters of a parameter's value, in older versions of MLflow


def trackers(settings: TrainingSettings, folder: RunFolder, *, purge: int | None = None) -> list[TrainerCallback]:
    """The trackers of a run, for its first process.

    Args:
        settings: Which ones, and the settings that they show of the run.
        folder: The run folder.
        purge: The first step that a resumed run does again; what an earlier session logged of it is hidden.
    """
    chosen: list[TrainerCallback] = []
    if "tensorboard" in settings.report_to:
        from torch.utils.tensorboard import SummaryWriter

        # Hugging Face would take its folder from an environment variable.
        writer = SummaryWriter(str(folder.tensorboard), purge_step=purge)
        chosen.append(TensorBoardCallback(writer))  # type: ignore[no-untyped-call]
    if "wandb" in settings.report_to:
        chosen.append(_WandB(settings, folder))
    if "mlflow" in settings.report_to:
        chosen.append(_MLflow(settings, folder))
    if "trackio" in settings.report_to:
        chosen.append(_Trackio(settings, folder))
    return chosen


class _MLflow(TrainerCallback):
    """Logs to MLflow: settings as parameters, figures as metrics by step.

    Not that of Hugging Face, which begins another run in every session and knows the arguments of `Trainer` only.
    """

    def __init__(self, settings: TrainingSettings, folder: RunFolder) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient()
        self._settings = config.to_mapping(settings)
        self._name = folder.path.resolve().name
        self._record = folder.path / _MLFLOW_RUN
        self._run = ""

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._run = self._continued() or self._begun()

    @override
    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, state.global_step) for name, value in _finite(kwargs["logs"]).items()]
        try:
            self._client.log_batch(self._run, metrics=metrics)
        except MlflowException as error:
            # A server that is away for a while shall not cost a training: the figures are in the run folder.
            tell(f"MLflow did not take the figures of step {state.global_step}: {error}", warning=True)

    @override
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._client.set_terminated(self._run)

    def _continued(self) -> str | None:
        """The MLflow run of an earlier session, open again, where this server still has it."""
        from mlflow.exceptions import MlflowException

        try:
            run = str(read_json(self._record)["run_id"])
            self._client.update_run(run, status="RUNNING")
        except (OSError, TypeError, ValueError, KeyError, MlflowException):
            return None
        return run

    def _begun(self) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
        experiment = self._client.get_experiment_by_name(name)
        place = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        run = self._client.create_run(place, run_name=self._name).info.run_id
        parameters = [Param(key, str(value)[:_LONGEST]) for key, value in self._settings.items()]
        for start in range(0, len(parameters), _AT_ONCE):
            self._client.log_batch(run, params=parameters[start : start + _AT_ONCE])
        write_json(self._record, {"run_id": run})
        return str(run)


class _Trackio(TrainerCallback):
    """Logs to Trackio: settings as the run's configuration, figures by step, in one run for all sessions.

    Not that of Hugging Face, which begins another run in every session and logs the machine's load, too.
    """

    def __init__(self, settings: TrainingSettings, folder: RunFolder) -> None:
        self._settings = config.to_mapping(settings)
        self._name = folder.path.resolve().name
        self._record = folder.path / _TRACKIO_RUN
        self._run: Any = None

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        import trackio

        known = self._recorded()
        # Runs are known by their names: those of two folders that are called alike must not flow together.
        name = known or f"{self._name}-{secrets.token_hex(3)}"
        with contextlib.redirect_stdout(sys.stderr):  # it greets
            self._run = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", "tymbal"),
                name=name,
                config={key: str(value) if isinstance(value, list) else value for key, value in self._settings.items()},
                resume="never" if known is None else "allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        write_json(self._record, {"run": name})

    @override
    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._run.log(_finite(kwargs["logs"]), step=state.global_step)

    @override
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        import trackio

        with contextlib.redirect_stdout(sys.stderr):
            trackio.finish()

    def _recorded(self) -> str | None:
        """The name of the run that an earlier session began."""
        try:
            return str(read_json(self._record)["run"])
        except (OSError, TypeError, ValueError, KeyError):
            return None


def _finite(logs: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a log that are numbers and finite."""
    values = {name: float(value) for name, value in logs.items() if isinstance(value, int | float)}
    return {name: value for name, value in values.items() if math.isfinite(value)}


class _WandB(WandbCallback):
    """Logs to Weights & Biases as Hugging Face does, but in one run for all sessions, which we begin.

    A run that the caller has begun is taken as it is, and stays open.
    """

    def __init__(self, settings: TrainingSettings, folder: RunFolder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._settings = config.to_mapping(settings)
        self._name = folder.path.resolve().name
        self._record = folder.path / _WANDB_RUN
        self._is_ours = False

    @override
    def setup(self, args: TrainingArguments, state: TrainerState, model: Any, **kwargs: Any) -> None:
        if self._wandb.run is None:
            self._is_ours = True
            known = os.environ.get("WANDB_RUN_ID") or self._recorded()
            run = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", "tymbal"),
                name=os.environ.get("WANDB_NAME", self._name),
                id=known,
                resume="allow",
                config=self._settings,
            )
            write_json(self._record, {"run_id": str(run.id)})
        super().setup(args, state, model, **kwargs)  # type: ignore[no-untyped-call]

    @override
    def on_train_end(
        self,
        args: TrainingArguments,
        state: Any,
        control: Any,
        model: Any = None,
        processing_class: Any = None,
        **kwargs: Any,
    ) -> None:
        super().on_train_end(args, state, control, model, processing_class, **kwargs)
        if self._is_ours:  # the next training of this process is another run
            self._wandb.finish()
            self._initialized = False

    def _recorded(self) -> str | None:
        """The number of the run that an earlier session began."""
        try:
            return str(read_json(self._record)["run_id"])
        except (OSError, TypeError, ValueError, KeyError):
            return None
