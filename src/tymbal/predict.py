"""Scores for recordings of any length: `tymbal predict` walks over them window by window.

    tymbal predict classifier night.flac more_nights -o night.csv
    tymbal predict classifier nights -o tables --format raven

Memory grows neither with a recording nor with their number: sound is decoded, cut, scored and spooled as a stream, and
windows of different files share batches. A table has a row a window and label; beside it, in `night.detections.csv`,
windows in a row with the same label are joined. Where a file name or header tells when a recording began, times are
absolute too. A recording that cannot be read is named in `failures.csv`; one that breaks off keeps the rows before.
What is stopped continues where it was (`tymbal.inference.spool`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tymbal import config as configuration
from tymbal.audio.failures import Failure
from tymbal.progress import Progress, counted, duration, tell
from tymbal.settings import PredictSettings

if TYPE_CHECKING:
    from tymbal.inference.spool import Spool
    from tymbal.inference.streaming import Rows, Window

__all__ = ["PredictResult", "predict"]


@dataclass(frozen=True, kw_only=True)
class PredictResult:
    """The outcome of `predict`.

    Attributes:
        output: The table of windows, or the file or folder of annotations.
        written: The tables, or the file or folder.
        files: Recordings that were scored to their end.
        windows: Windows scored.
        detections: Detections in the tables.
        seconds: Seconds of sound in them, overlaps counted once.
        failures: Recordings that could not be read, or not to their end.
        failures_file: The list of these failures; None without any.
    """

    output: Path
    written: tuple[Path, ...]
    files: int
    windows: int
    detections: int
    seconds: float
    failures: tuple[Failure, ...] = ()
    failures_file: Path | None = None

    def summary(self) -> str:
        """What was done and where the output is, in a few lines."""
        from tymbal.inference.streaming import closing_lines

        scored = f"{counted(self.files, 'file')}, {duration(self.seconds)} of sound, {counted(self.windows, 'window')}"
        first = f"{scored}, {counted(self.detections, 'detection')}"
        return "\n".join([first, *closing_lines(self.failures, self.failures_file, self.written)])


def predict(
    model: str | Path,
    files: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    config: str | Path | None = None,
    **settings: Any,
) -> PredictResult:
    """Scores recordings of any length, window by window.

    A recording that does not end with a window has a last one that reaches to its end; it is padded as the model has
    learned it, and its `end` is the end of the recording. Scores are probabilities: they sum to 1 over the labels of a
    window where a clip has one label, and stand for themselves where it may have several.

    Run again after a stop, it continues; recordings that are new or have changed since are scored anew.

    Args:
        model: A run, a model folder or a Hugging Face checkpoint with a classifier.
        files: A recording, a folder of them (with all folders below it), or several of these.
        output: The table (.csv, .parquet, .json, .jsonl), or with `format` Raven or Audacity a folder; for a single
            recording also a .txt file.
        config: YAML file with settings.
        **settings: See `tymbal.settings.PredictSettings`.

    Raises:
        ModelError: The model has no classifier or cannot be read.
        AudioError: No recording could be read, or none exists.
        SettingsError: The settings do not fit the model or the output, or an unfinished run was begun with others.
    """
    from tymbal.audio.sources import find_recordings
    from tymbal.inference.frontend import ready_model
    from tymbal.inference.predictions import SCHEMA, Predictions, failures_path, output_format
    from tymbal.inference.streaming import Job, cut_for, failures_of, run_job, walk

    chosen = configuration.resolve(PredictSettings, settings, config=config)
    configuration.say_useless(chosen)
    output = Path(output)
    recordings, closed = find_recordings(files)
    kind = output_format(output, chosen, recordings)
    ready = ready_model(model, chosen)
    scorer = ready.scorer(reject=chosen.reject)
    if scorer.floor is None and chosen.reject not in (None, PredictSettings.reject):
        tell(
            "reject has no effect: the model does not know how loud the clips were that it learned from, or its labels "
            "do not exclude each other",
            warning=True,
        )
    cut = cut_for(scorer.description, window=chosen.window, hop=chosen.hop, batch_size=chosen.batch_size)
    predictions = Predictions(scorer, chosen, kind)

    def score(windows: Sequence[Window]) -> Rows:
        return predictions.rows(scorer(windows, length=cut.length), windows)

    def compute(done: set[str], spool: Spool, progress: Progress) -> None:
        remaining = [recording for recording in recordings if recording.key not in done]
        walk(remaining, spool, cut, score, batch_size=chosen.batch_size, progress=progress)

    decided = configuration.deciding(chosen)
    if scorer.floor is None:
        del decided["reject"]  # as before there was such a setting
    job = Job(
        title="Predicting",
        items=recordings,
        plural="recordings",
        unit="files",
        schema=SCHEMA,
        record={
            "verb": "predict",
            "model": scorer.fingerprint,
            "precision": ready.arithmetic,
            "scores": predictions.what,
            **decided,
        },
        compute=compute,
        failures=lambda outcomes: [*closed, *failures_of(outcomes)],
        write=lambda spool: predictions.write(spool, recordings, output),
    )
    finished = run_job(job, output, failures_file=failures_path(output, kind))
    detections, written = finished.written
    if predictions.rejected:
        tell(
            f"{counted(predictions.rejected, 'window')} of {predictions.scored:,} are more than {chosen.reject:g} dB "
            "quieter than what the model has learned from, and have no label (--reject)"
        )
    return PredictResult(
        output=output,
        written=written,
        files=sum(outcome.failure is None for outcome in finished.outcomes),
        windows=sum(outcome.windows for outcome in finished.outcomes),
        detections=detections,
        seconds=sum(outcome.seconds for outcome in finished.outcomes),
        failures=finished.failures,
        failures_file=finished.failures_file,
    )
