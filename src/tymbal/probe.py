"""What did an encoder learn? `tymbal probe` reads its frozen embeddings beside what they must beat.

    tymbal probe run labelled

The `baseline` is what mean and spread of the spectrogram alone tell; `plain` the best of several such descriptions,
some of which keep order in time; `random` the same encoder before it learned anything, read in every way that the model
is. A last line says whether the model is above the best of these beyond chance: where it is not, the pretraining has
not paid yet.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tymbal import config as configuration
from tymbal.errors import SettingsError
from tymbal.evaluation.probe_tasks import READERS, ProbeRow, table
from tymbal.files import replace_file, write_json, written_alone
from tymbal.progress import tell
from tymbal.settings import ProbeSettings

if TYPE_CHECKING:
    from tymbal.evaluation.labelled_clips import LabelledClips
    from tymbal.evaluation.selection import Verdict

__all__ = ["ProbeResult", "probe"]

_MOST_PAIRS = 3


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """The table of a probe.

    Attributes:
        rows: The lines of the table: baseline, plain line, random encoder, model, and the encoders side by side with
            the plain line; for each the readers.
        train: Clips learned from.
        validation: Clips validated on.
        classes: Names of the labels.
        multilabel: Whether clips have several labels.
        confusion: How often the model's last layer, read by the first reader, takes which class (row) for which
            (column); empty with several labels a clip, or folds.
        folds: Into how many folds all these clips were split anew; None for the split of the store.
        verdict: The model beside the best of plain line and random weights; None where neither was read.
        sides: Of a teacher and the model `megabytes` and `clips_per_second`; empty without a teacher.
        written: Files that were written.
    """

    rows: tuple[ProbeRow, ...]
    train: int
    validation: int
    classes: tuple[str, ...]
    multilabel: bool
    confusion: tuple[tuple[int, ...], ...] = ()
    folds: int | None = None
    verdict: Verdict | None = None
    sides: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    written: tuple[Path, ...] = ()

    def figure(self, features: str, *, pooling: str | None = None, reader: str = "logistic") -> float:
        """The leading figure, accuracy or mAP, of one line.

        Args:
            features: As in the table: `baseline`, `plain`, `random`, `model`, …
            pooling: Its pooling, with or without what was chosen (`grid` or `grid:4`); None is the first.
            reader: What reads.

        Raises:
            KeyError: There is no such line.
        """
        name = "mAP" if self.multilabel else "accuracy"
        for row in self.rows:
            pooled = pooling in (None, row.pooling, row.pooling.split(":")[0])
            if row.features == features and row.reader == reader and pooled:
                return row.figures[name]
        raise KeyError((features, pooling, reader))

    def summary(self) -> str:
        """The table, and what it was measured on."""
        head = f"{len(self.classes)} classes, learned from {self.train:,} clips, asked about {self.validation:,}"
        if self.folds is not None:
            head = f"{len(self.classes)} classes, {self.train + self.validation:,} clips in {self.folds} folds"
        lines = [head, "", table(self.rows, multilabel=self.multilabel), *self._confused()]
        lines += [] if self.verdict is None else ["", self.verdict.text()]
        lines += [""] if self.sides else []
        lines += [f"{'model' if name == 'student' else name}: {_side(side)}" for name, side in self.sides.items()]
        return "\n".join([*lines, *(f"\nwritten: {path}" for path in self.written)])

    def _confused(self) -> list[str]:
        pairs = [
            (count, self.classes[true], self.classes[predicted])
            for true, row in enumerate(self.confusion)
            for predicted, count in enumerate(row)
            if true != predicted and count
        ]
        if not pairs:
            return []
        worst = sorted(pairs, key=lambda pair: -pair[0])[:_MOST_PAIRS]
        listed = "; ".join(f"{true} for {predicted} ({count})" for count, true, predicted in worst)
        return ["", f"The model's probe takes most often {listed}."]


def _side(side: Mapping[str, float | None]) -> str:
    size, rate = side["megabytes"], side["clips_per_second"]
    parts = ["size not known" if size is None else f"{size:,.1f} MB of weights"]
    return ", ".join([*parts, "speed not known" if rate is None else f"{rate:,.0f} clips a second"])


@written_alone
def probe(
    model: str | Path,
    data: str | Path,
    output: str | Path | None = None,
    *,
    config: str | Path | None = None,
    **settings: Any,
) -> ProbeResult:
    """Reads the frozen embeddings of a model with linear regression, nearest neighbours, or attentively.

    The regularisation is chosen by cross-validation inside the training clips, whole groups on one side. The random
    encoder has the model's shape, normalisation and padding.

    Args:
        model: A run, a model folder, a Hugging Face or SSAST checkpoint.
        data: A store with labels and a split; a list of `.pt` spectrograms; or a folder or manifest of sound, which is
            prepared into a temporary store with the spectrogram settings of the model.
        output: Write the figures here: a `.json` or `.csv` file.
        config: YAML file with settings.
        **settings: See `tymbal.settings.ProbeSettings`.

    Raises:
        TymbalError: The model or the data cannot be used for a probe; the message says why.
    """
    from tymbal.data import open_data
    from tymbal.evaluation.labelled_clips import labelled_clips
    from tymbal.evaluation.run_probes import run_probes
    from tymbal.inference.encoding import check_features
    from tymbal.inference.frontend import ready_model

    chosen = configuration.resolve(ProbeSettings, settings, config=config)
    configuration.say_useless(chosen)
    _check_output(output)
    ready = ready_model(model, chosen)
    source = open_data(data, chosen)
    with tempfile.TemporaryDirectory(prefix="tymbal-probe-") as folder:
        store = source.spectrograms(Path(folder), ready.description.features)
        check_features(store, ready.description, path=model)
        clips = labelled_clips(store, multilabel=chosen.multilabel, asked=chosen.asked)
        if clips.left_out:
            tell(f"{clips.left_out:,} clips without a label are left out", warning=True)
        # Only a packed store keeps its cache for the next probe.
        run = run_probes(ready, store, clips, replace(chosen, cache=chosen.cache and source.is_packed))
    result = ProbeResult(
        rows=run.rows,
        train=len(run.clips.train),
        validation=len(run.clips.validation),
        classes=clips.classes,
        multilabel=clips.multilabel,
        confusion=_confusion(run.rows, clips),
        folds=None if chosen.folds is None else run.rows[0].repeats,
        verdict=run.verdict,
        sides=run.sides,
        written=() if output is None else (Path(output),),
    )
    if output is not None:
        _write(result, Path(output), chosen, model=str(model), data=str(data))
    return result


def _confusion(rows: Sequence[ProbeRow], clips: LabelledClips) -> tuple[tuple[int, ...], ...]:
    import numpy as np

    reader = next(reader for reader in READERS if any(row.reader == reader for row in rows))
    last = [row for row in rows if row.features == "model" and row.reader == reader and row.shots is None][-1]
    if clips.multilabel or last.scores is None or last.truth is None:
        return ()
    counts = np.zeros((len(clips.classes),) * 2, np.int64)
    np.add.at(counts, (last.truth.argmax(1), last.scores.argmax(1)), 1)
    return tuple(tuple(row) for row in counts.tolist())


def _check_output(output: str | Path | None) -> None:
    if output is not None and Path(output).suffix not in (".json", ".csv"):
        raise SettingsError(
            "the table of a probe is a .json or .csv file", path=output, advice=f"Write to {output}.csv, for example."
        )


def _write(result: ProbeResult, output: Path, settings: ProbeSettings, *, model: str, data: str) -> None:
    if output.suffix == ".csv":
        flat = [row.flat() for row in result.rows]
        with replace_file(output) as aside, aside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(flat[0]))
            writer.writeheader()
            writer.writerows(flat)
        return
    rows = json.loads(json.dumps([row.nested() for row in result.rows]), parse_constant=lambda _: None)
    verdict = None if result.verdict is None else result.verdict.to_json()
    facts: dict[str, Any] = {"train": result.train, "validation": result.validation, "classes": list(result.classes)}
    facts |= {"confusion": result.confusion, "verdict": verdict}
    facts |= {"sides": result.sides} if result.sides else {}
    chosen = configuration.to_mapping(settings)
    write_json(output, {"model": model, "data": data, "settings": chosen, **facts, "rows": rows})
