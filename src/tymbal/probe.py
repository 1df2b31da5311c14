"""What did an encoder learn? `tymbal probe` reads its frozen embeddings beside two things that they must beat.

    tymbal probe run labelled

The `baseline` is what mean and spread of the spectrogram alone tell; `random` is the same encoder before it learned
anything. Where the model's line is not above both, the pretraining has not paid yet.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tymbal import config as configuration
from tymbal.errors import SettingsError
from tymbal.evaluation.probe import ProbeRow, Question, table
from tymbal.files import replace_file, write_json
from tymbal.progress import Progress, tell
from tymbal.settings import ProbeSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tymbal.evaluation.clips import LabelledClips
    from tymbal.models.description import ModelDescription
    from tymbal.models.folder import LoadedModel
    from tymbal.store.base import SpectrogramSource

__all__ = ["ProbeResult", "probe"]


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What a probe found.

    Attributes:
        rows: The lines of the table: baseline, random encoder, model; for each logistic regression and knn.
        train: Clips learned from.
        validation: Clips asked.
        classes: Names of the labels.
        multilabel: Whether clips have several labels.
        written: Files that were written.
    """

    rows: tuple[ProbeRow, ...]
    train: int
    validation: int
    classes: tuple[str, ...]
    multilabel: bool
    written: tuple[Path, ...] = ()

    def figure(self, features: str, *, pooling: str | None = None, reader: str = "logistic") -> float:
        """The leading figure, accuracy or mAP, of one line; `pooling` None is the first."""
        name = "mAP" if self.multilabel else "accuracy"
        for row in self.rows:
            if row.features == features and row.reader == reader and pooling in (None, row.pooling):
                return row.figures[name]
        raise KeyError((features, pooling, reader))

    def summary(self) -> str:
        """The table, and what it was measured on."""
        head = f"{len(self.classes)} classes, learned from {self.train:,} clips, asked about {self.validation:,}"
        lines = [head, "", table(self.rows, multilabel=self.multilabel)]
        return "\n".join([*lines, *(f"\nwritten: {path}" for path in self.written)])


def probe(
    model: str | Path,
    data: str | Path,
    output: str | Path | None = None,
    *,
    config: str | Path | None = None,
    **settings: Any,
) -> ProbeResult:
    """Reads the frozen embeddings of a model with logistic regression and nearest neighbours.

    The regularisation of the regression is chosen by cross-validation inside the training clips, whole groups on one
    side. The random encoder has the model's shape, normalisation and padding.

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
    from tymbal.evaluation.clips import labelled_clips
    from tymbal.inference.embed import check_features
    from tymbal.models.folder import load_model

    chosen = configuration.resolve(ProbeSettings, settings, config=config)
    _check_output(output)
    loaded = load_model(model)
    with opened_store(data, loaded.description, chosen) as store:
        check_features(store, loaded.description, path=model)
        clips = labelled_clips(store)
        if clips.left_out:
            tell(f"{clips.left_out:,} clips without a label are left out", warning=True)
        rows = _all_rows(loaded, store, clips, chosen)
    result = ProbeResult(
        rows=tuple(rows),
        train=len(clips.train),
        validation=len(clips.validation),
        classes=clips.classes,
        multilabel=clips.multilabel,
        written=() if output is None else (Path(output),),
    )
    if output is not None:
        _write(result, Path(output), chosen, model=str(model), data=str(data))
    return result


@contextmanager
def opened_store(
    source: str | Path, description: ModelDescription, settings: ProbeSettings
) -> Iterator[SpectrogramSource]:
    """Opens spectrograms, or prepares sound as the model needs it into a store that is gone afterwards."""
    from tymbal.training.source import open_source

    with tempfile.TemporaryDirectory(prefix="tymbal-probe-") as folder:
        yield open_source(source, Path(folder), description.features, settings)


def _all_rows(
    loaded: LoadedModel, store: SpectrogramSource, clips: LabelledClips, settings: ProbeSettings
) -> list[ProbeRow]:
    import numpy as np

    from tymbal.evaluation.baseline import baseline_features

    question = Question(
        train=clips.truth(store, clips.train),
        validation=clips.truth(store, clips.validation),
        groups=clips.groups(store, clips.train),
        multilabel=clips.multilabel,
        neighbours=settings.neighbours,
        seed=settings.seed,
    )
    rows = np.concatenate([clips.train, clips.validation])
    found = question.ask(baseline_features(store, rows), name="baseline", pooling="moments")
    for name, by_pooling in _embeddings(loaded, store, rows, settings).items():
        for pooling, features in by_pooling.items():
            found += question.ask(features, name=name, pooling=pooling)
    return found


def _embeddings(
    loaded: LoadedModel, store: SpectrogramSource, rows: NDArray[np.int64], settings: ProbeSettings
) -> dict[str, dict[str, NDArray[np.float32]]]:
    """Embeddings of the rows by encoder (`random`, `model`) and pooling."""
    import torch

    from tymbal.inference.embed import embed_store
    from tymbal.models.encoder import SpectrogramEncoder
    from tymbal.training.device import choose_device, choose_precision

    device, _ = choose_device(settings.device)
    dtype, _ = choose_precision(settings.precision, device)
    module = loaded.module
    encoder = module if isinstance(module, SpectrogramEncoder) else module.encoder
    encoders = {"model": encoder}
    if settings.random:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            encoders = {"random": SpectrogramEncoder(encoder.config), "model": encoder}
    with Progress(len(encoders) * len(rows), "Embedding", unit="clips") as progress:
        return {
            name: embed_store(
                each,
                store,
                rows,
                description=loaded.description,
                poolings=settings.pooling,
                layer=settings.layer,
                skip_padding=settings.skip_padding,
                batch_size=settings.batch_size,
                device=device,
                dtype=dtype,
                progress=progress,
            )
            for name, each in encoders.items()
        }


def _check_output(output: str | Path | None) -> None:
    if output is not None and Path(output).suffix not in (".json", ".csv"):
        raise SettingsError(
            "the table of a probe is a .json or .csv file", path=output, advice=f"Write to {output}.csv, for example."
        )


def _write(result: ProbeResult, output: Path, settings: ProbeSettings, *, model: str, data: str) -> None:
    flat = [row.flat() for row in result.rows]
    if output.suffix == ".csv":
        with replace_file(output) as aside, aside.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(flat[0]))
            writer.writeheader()
            writer.writerows(flat)
        return
    known = json.loads(json.dumps(flat), parse_constant=lambda _: None)
    facts = {"train": result.train, "validation": result.validation, "classes": list(result.classes)}
    chosen = configuration.to_mapping(settings)
    write_json(output, {"model": model, "data": data, "settings": chosen, **facts, "rows": known})
