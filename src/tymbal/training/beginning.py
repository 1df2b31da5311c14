"""The beginning of a run: its folder, and what would only show after hours, before anything is computed.

Light to import, so that a verb can speak before what trains is loaded.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tymbal.compute.device import choose_device
from tymbal.compute.processes import init_process_group, on_rank_zero, quiet_except_rank_zero
from tymbal.errors import SettingsError
from tymbal.progress import tell
from tymbal.settings import TrainingSettings
from tymbal.training.checkpoints import named_checkpoint
from tymbal.training.run_folder import Resume, RunFolder, RunResult

__all__ = ["begin", "check_trackers"]

_TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


@quiet_except_rank_zero()
def begin(
    verb: str, output: str | os.PathLike[str], arguments: Mapping[str, Any], settings: TrainingSettings, resume: Resume
) -> RunResult | None:
    """Begins a run in its folder or takes it up again, before anything is computed.

    Args:
        verb: The verb, as on the command line.
        output: The run folder.
        arguments: The verb's arguments by parameter name, for `run.yaml`.
        settings: The verb's resolved settings.
        resume: `auto` continues an existing run, True insists on one, False refuses; or the checkpoint to
            continue from.

    Returns:
        The result, where the run is finished already; else None, and `train` is to be called.

    Raises:
        SettingsError: The folder holds a run with other settings, of another verb, or any run at all; or a tracker is
            missing.
        CheckpointError: There is no run to resume.
    """
    init_process_group(choose_device(settings.device)[0])
    folder = RunFolder(Path(output))
    named_checkpoint(resume, folder.path)  # reports a mistake now, not after sound is prepared
    result = on_rank_zero(lambda: folder.begin(verb, arguments, settings, resume=resume))
    if result is not None:
        tell(f"{folder.path} is finished already, after {result.steps:,} steps. Its model: {result.model}")
        planned = folder.begun() or {}
        if settings.max_minutes is not None and settings.max_minutes != planned.get("max_minutes"):
            tell(f"Its learning rate has fallen to its end. To train on: --from {folder.path} -o ANOTHER_FOLDER")
    else:
        on_rank_zero(lambda: check_trackers(settings.report_to))
    return result


def check_trackers(names: Sequence[str]) -> None:
    """Refuses trackers that cannot be logged to.

    Raises:
        SettingsError: One is unknown, not installed or does not answer.
    """
    for name in names:
        if name not in _TRACKERS:
            raise SettingsError(f"report_to names {name}, which is not one of {', '.join(_TRACKERS)}")
        package = importlib.util.find_spec(name)
        # A folder of that name, as wandb leaves one, looks like a package without a file.
        if package is None or package.origin is None:
            to_install = name if name == "tensorboard" else f"'tymbal[{name}]'"
            raise SettingsError(
                f"report_to names {name}, which is not installed", advice=f"Install it: pip install {to_install}"
            )
    if "mlflow" in names:
        _reach_mlflow()


def _reach_mlflow() -> None:
    try:
        import mlflow
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise SettingsError(
            f"report_to names mlflow, which cannot be imported: {error}",
            advice="Install it again: pip install --upgrade mlflow-skinny",
        ) from None
    try:
        mlflow.MlflowClient().search_experiments(max_results=1)
    except (MlflowException, ImportError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SettingsError(
            f"report_to names mlflow, but {mlflow.get_tracking_uri()} does not work: {reason}",
            advice="Set MLFLOW_TRACKING_URI to a server that is there, or to a folder (file:///home/me/mlruns, with "
            "MLFLOW_ALLOW_FILE_STORE=true where MLflow asks for it).",
        ) from None
