"""A run folder: begun, continued, or finished already.

    run/
      run.yaml        resolved settings; `tymbal pretrain --config run/run.yaml` repeats the run
      checkpoints/    each complete or absent
      model/          the best model
      average/        a model of averaged weights, with --average-from
      metrics.jsonl   every logged figure, one JSON object a line
      log.txt         the same for a person
      classes.csv     figures of each class from every evaluation of a classifier
      confusion.csv   which classes its best model takes for which, and confusion.png
      rebuilt/        what a pretraining rebuilt of some clips in its course, for the report
      tensorboard/
      result.json     written last: how the run ended, and the figures of the model

The same command on the same folder continues it. Settings that change what is learned are not mixed: they are refused,
with what differs. Those that do not (`resumable` in `tymbal.settings`) may change from session to session.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tymbal import config
from tymbal.errors import CheckpointError, SettingsError
from tymbal.files import read_json, set_aside, verified, with_checksum, write_json, write_text
from tymbal.objectives import registry
from tymbal.progress import tell
from tymbal.settings import PretrainSettings, TrainingSettings
from tymbal.settings.fields import names_that
from tymbal.training.figures import HEADER, is_figure, log_line, read_metrics

__all__ = ["Resume", "RunFolder", "RunResult", "read_result"]

Resume = bool | str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A finished run.

    Attributes:
        run: The run folder.
        model: The model folder in it.
        metrics: Figures of the model: those logged at its step, `eval_…` on the validation clips; those that are
            defined.
        steps: Optimizer steps that were done.
        best_step: The step after which the model was saved.
        ended: Why training ended: all `steps`, no progress for `patience` evaluations, or `minutes` used up.
    """

    run: Path
    model: Path
    metrics: dict[str, float] = field(default_factory=dict)
    steps: int
    best_step: int
    ended: str

    def summary(self) -> str:
        """The run's outcome, for a person."""
        why = {"patience": "no progress for too long", "minutes": "the minutes are used up"}.get(self.ended, "all done")
        lines = [f"Trained for {self.steps:,} steps: {why}."]
        figures = {
            name.removeprefix("eval_"): value
            for name, value in self.metrics.items()
            if name.startswith("eval_") and is_figure(name)
        }
        if figures:
            shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            lines.append(f"On the validation clips, after step {self.best_step:,}: {shown}")
        if "prevalence" in figures:
            lines.append(f"Scores that tell nothing have an mAP of {figures['prevalence']:.4g}, the prevalence.")
            if figures.get("recall") == 0:
                lines.append("No label reaches a score of 0.5 where it is heard: predict needs a lower --threshold.")
        return "\n".join([*lines, f"Model: {self.model}", f"All figures: {self.run / 'metrics.jsonl'}"])


@dataclass(frozen=True)
class RunFolder:
    """The files of a run.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """Folder of the best model."""
        return self.path / "model"

    @property
    def average(self) -> Path:
        """Folder of the model with averaged weights."""
        return self.path / "average"

    @property
    def metrics(self) -> Path:
        """File of the logged figures."""
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """File of the logged figures, for a person."""
        return self.path / "log.txt"

    @property
    def classes(self) -> Path:
        """Table of figures of each class."""
        return self.path / "classes.csv"

    @property
    def rebuilt(self) -> Path:
        """Folder of what was rebuilt in the course of a pretraining."""
        return self.path / "rebuilt"

    @property
    def tensorboard(self) -> Path:
        """Folder of the TensorBoard logs."""
        return self.path / "tensorboard"

    def begin(
        self, verb: str, arguments: Mapping[str, Any], settings: TrainingSettings, *, resume: Resume
    ) -> RunResult | None:
        """Begins the run or takes it up again, and records its settings. For the first process only.

        Args:
            verb: The verb, as on the command line.
            arguments: Its source, output and the like by parameter name.
            settings: Its resolved settings.
            resume: Whether an earlier session may be continued (`auto`), must exist (True) or must not (False); or
                the checkpoint to continue from.

        Returns:
            The result, where the run is finished already.

        Raises:
            SettingsError: The folder holds a run with other settings, of another verb, or any run at all.
            CheckpointError: There is no run to resume.
        """
        if self._holds_a_run():
            self._check(verb, arguments, settings, resume=resume)
            result = self._finished(settings)
            if result is not None:
                return result
        elif resume is True:
            raise CheckpointError("there is no run to resume", path=self.path, advice="Leave resume out to begin one.")
        self.record(verb, arguments, settings)
        return None

    def record(self, verb: str, arguments: Mapping[str, Any], settings: TrainingSettings) -> None:
        """Records the settings of the run, also once more when the data have decided on some of them."""
        config.write_run_yaml(self.path, verb, arguments, settings)

    def _holds_a_run(self) -> bool:
        """Whether the folder holds a run to continue. A mistake in the first command leaves only a run.yaml."""
        return (self.path / "result.json").exists() or any(self.checkpoints.glob("checkpoint-*"))

    def begun(self) -> dict[str, Any] | None:
        """The settings that the run was begun with, by YAML key; None where there is no run to continue."""
        return config.read_run_yaml(self.path).settings if self._holds_a_run() and self._has_record() else None

    def _has_record(self) -> bool:
        return (self.path / config.RUN_FILE).exists()

    def finish(self, result: RunResult) -> None:
        """Records that the run is finished."""
        lines = read_metrics(self.metrics)
        write_text(self.log, HEADER + "".join(map(log_line, lines)) + f"\n{result.summary()}\n")
        write_json(
            self.path / "result.json",
            with_checksum(
                {
                    "ended": result.ended,
                    "steps": result.steps,
                    "best_step": result.best_step,
                    "metrics": result.metrics,
                }
            ),
        )

    def _check(self, verb: str, arguments: Mapping[str, Any], settings: TrainingSettings, *, resume: Resume) -> None:
        if resume is False:
            raise SettingsError("the folder holds a run already", path=self.path, advice=_OTHER_FOLDER)
        if not self._has_record():
            raise SettingsError("the folder holds checkpoints but no run.yaml", path=self.path, advice=_OTHER_FOLDER)
        recorded = config.read_run_yaml(self.path)
        if recorded.verb != verb:
            raise SettingsError(
                f"the folder holds a '{recorded.verb}' run, this is '{verb}'", path=self.path, advice=_OTHER_FOLDER
            )
        moved = (name for name in names_that(settings, "data") if _is_gone(recorded.settings.get(name)))
        free = {*names_that(settings, "resumable"), *moved}
        own = _own(recorded.settings, settings)
        own = {**config.begun_before(type(settings), own), **own}
        before = {name: value for name, value in own.items() if name not in free}
        now = {name: value for name, value in config.to_mapping(settings).items() if name not in free}
        paths = names_that(settings, "path")
        changes = config.diff(_located(before, paths), _located(now, paths)) + _other_data(
            recorded.arguments, arguments
        )
        if changes:
            raise SettingsError(
                "the run was begun with other settings:\n    " + "\n    ".join(changes),
                path=self.path,
                advice="Give the same settings to continue it (--config run.yaml does), or choose another folder.",
            )

    def _finished(self, settings: TrainingSettings) -> RunResult | None:
        file = self.path / "result.json"
        if not (file.exists() and (self.model / "config.json").exists()):
            return None
        try:
            recorded = read_result(file)
        except ValueError as error:
            if not any(self.checkpoints.glob("checkpoint-*")):
                raise CheckpointError(
                    f"is damaged ({error}), and there are no checkpoints to write it again from",
                    path=file,
                    advice="The model is as it was. Delete this file to train anew, or choose another folder.",
                ) from None
            tell(f"{file} is damaged ({error}) and written again; {set_aside(file)} is as it was", warning=True)
            return None
        used = config.read_run_yaml(self.path).settings.get("max_minutes")
        if recorded["ended"] == "minutes" and used != settings.max_minutes:
            return None
        return RunResult(run=self.path, model=self.model, **recorded)


def read_result(path: Path) -> dict[str, Any]:
    """Reads a `result.json`: ended, steps, best_step, metrics.

    Raises:
        ValueError: It is damaged.
    """
    values = verified(read_json(path))
    kinds = {"ended": str, "steps": int, "best_step": int, "metrics": dict}
    for name, kind in kinds.items():
        if not isinstance(values.get(name), kind):
            raise ValueError(f"{name} is {values.get(name)!r}")  # noqa: TRY004 - what is wrong is a file
    return {name: values[name] for name in kinds}


_OTHER_FOLDER = "Choose another output folder, or delete this one."


def _located(settings: dict[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    """Settings in which a path is the same path from wherever the command is given."""
    given = {name: settings[name] for name in paths if settings.get(name)}
    return {**settings, **{name: os.path.realpath(path) for name, path in given.items() if Path(path).exists()}}


def _own(recorded: dict[str, Any], settings: TrainingSettings) -> dict[str, Any]:
    """The recorded settings without those of other objectives, which earlier versions recorded in every run."""
    if not isinstance(settings, PretrainSettings):
        return recorded
    return config.with_todays_names(type(settings), registry.without_foreign(settings.objective, recorded))


def _is_gone(path: str | None) -> bool:
    return path is not None and not Path(path).exists()


def _other_data(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences between the data of two sessions. Missing data may have moved with the folder."""
    name, old = next(((name, before[name]) for name in ("store", "source") if name in before), ("", ""))
    if not old or not Path(old).exists() or Path(old).resolve() == Path(now[name]).resolve():
        return []
    return [f"{name}: {old} -> {now[name]}"]
