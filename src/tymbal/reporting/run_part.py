"""The part on a run: learning curves, speed, its end, and rebuilt spectrograms in the course of training."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from html import escape
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from tymbal.config import from_mapping, with_todays_names
from tymbal.errors import CheckpointError, SettingsError
from tymbal.evaluation.snapshots import can_rebuild, read_snapshots, rebuilt_by
from tymbal.files import read_json
from tymbal.models.encoder import SpectrogramEncoder
from tymbal.models.folder import LoadedModel, load_model
from tymbal.objectives import registry
from tymbal.objectives.contract import Objective, RebuildingObjective, Rebuilt, View, ViewingObjective
from tymbal.pages.charts import Line, lines
from tymbal.pages.page import NotShownError, note, table
from tymbal.pages.pictures import limits, spectrogram
from tymbal.progress import duration
from tymbal.reporting.drawn_clips import Clips, clip_name
from tymbal.store.base import SpectrogramSource
from tymbal.store.dataset import normalised_batches
from tymbal.training.checkpoints import Checkpoints, best_weights, verify

__all__ = [
    "built_objective",
    "learning_curves",
    "rebuilt_from_checkpoints",
    "rebuilt_in_course",
    "run_tiles",
    "shown_views",
    "speed",
    "teacher_and_student",
]

_TITLES = {
    "loss": "loss",
    "nce": "telling patches apart: cross entropy",
    "acc": "telling patches apart: share that is right",
    "mse": "rebuilding patches: squared error",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1": "macro F1",
    "mAP": "mean average precision",
    "prevalence": "prevalence, the mAP of scores that tell nothing",
    "auc": "area under the ROC curve",
    "t1_accuracy": "clips with labels whose highest score is one of theirs",
    "fit": "share of the teacher's variance that is met",
    "teacher_cosine": "cosine of the student's vectors and the teacher's",
    "rank": "effective rank of embeddings",
    "cosine": "mean cosine of pairs of clips",
    "probe_accuracy": "linear probe: accuracy",
    "probe_mAP": "linear probe: mean average precision",
    "knn_accuracy": "nearest neighbours: accuracy",
    "knn_mAP": "nearest neighbours: mean average precision",
    "learning_rate": "learning rate",
    "grad_norm": "norm of the gradient",
}
_OF_VIEWS = {
    "acc": "finding the other view of a clip: share that is right",
    "icc": "intraclass correlation of views",
    "agreement": "distance of the views of a clip",
    "sigreg": "distance from a standard normal (SIGReg)",
}
"""Figures of objectives that compare views."""
_SHORT = {
    "acc": "patches identified",
    "nce": "cross entropy",
    "mse": "squared error",
    "mAP": "mAP",
    "prevalence": "prevalence",
    "fit": "teacher met",
}
_LEVELS = {"random_": "random weights", "plain_": "the best plain line"}
"""What a probe during the training is compared with: what stands in its figure's name, and what it is called."""
_NOT_CURVES = ("step", "epoch", "seconds", "batch_size")
_NOT_CURVES_END = ("_runtime", "_per_second")
_LAST = ("grad_norm", "learning_rate")


def learning_curves(logged: Sequence[Mapping[str, Any]]) -> str:
    """A chart for every figure, training and validation together.

    Raises:
        NotShownError: Nothing was logged.
    """
    known: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    bad: set[str] = set()
    alarms: list[str] = []
    for entry in logged:
        for key, value in entry.items():
            if key.startswith("alarm_"):
                alarms.append(f"{key.removeprefix('alarm_').replace('_', ' ')} at epoch {entry['epoch']:.1f}")
                continue
            if key in _NOT_CURVES or key.endswith(_NOT_CURVES_END):
                continue
            name, side = key.removeprefix("eval_"), "validation" if key.startswith("eval_") else "training"
            for level, title in _LEVELS.items():
                if name.startswith((f"probe_{level}", f"knn_{level}")):
                    name, side = name.replace(level, "", 1), title
            if not isinstance(value, int | float) or not math.isfinite(value):
                bad.add(name)
                continue
            known[name][side].append((entry["epoch"], value))
    if not known:
        raise NotShownError("the run has logged nothing yet")
    if known.get("top1") == known.get("accuracy"):  # where a clip has one label
        known.pop("top1", None)
    order = sorted(known, key=lambda name: ([*_TITLES, name].index(name), name))
    order.sort(key=lambda name: name in _LAST)
    once = [name for name in order if max(map(len, known[name].values())) == 1]
    titles = _titles(known)
    charts = [_chart(titles.get(name, name.replace("_", " ")), known[name]) for name in order if name not in once]
    remark = f"Values that are not finite are left out of {', '.join(sorted(bad))}." if bad else ""
    single = [
        (titles.get(name, name.replace("_", " ")), side, f"{points[0][1]:.4g}", f"{points[0][0]:.1f}")
        for name in once
        for side, points in known[name].items()
    ]
    listed = table(("logged once", "clips", "value", "epoch"), single, numbers=(2, 3)) if single else ""
    warnings = note(f"Alarms of the training: {', '.join(alarms)}.", warning=True) if alarms else ""
    drawn = f'<div class="grid">{"".join(charts)}</div>' if charts else ""
    return warnings + drawn + listed + (note(remark, warning=True) if remark else "")


def _titles(figures: Collection[str]) -> dict[str, str]:
    """What figures are called, by their names; that of `acc` depends on what is told from what."""
    return _TITLES | (_OF_VIEWS if {"agreement", "alignment"} & set(figures) else {})


def _chart(title: str, sides: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    names = {"validation": "the model"} if set(sides) & set(_LEVELS.values()) else {}
    drawn = [
        Line(names.get(side, side), [x for x, _ in sides[side]], [y for _, y in sides[side]], dots=side == "validation")
        for side in ("training", "validation", *_LEVELS.values())
        if sides.get(side)
    ]
    if len(drawn) == 1 and drawn[0].name == "validation":
        title += " (validation)"
    return lines(drawn, title=title, x_label="epoch")


def speed(logged: Sequence[Mapping[str, Any]]) -> str:
    """How many clips a second were learned from, evaluations and saves included.

    Raises:
        NotShownError: Too little was logged to tell.
    """
    steps = [entry for entry in logged if entry.get("batch_size")]
    rates_at = [
        (
            later["epoch"],
            (later["step"] - before["step"]) * later["batch_size"] / (later["seconds"] - before["seconds"]),
        )
        for before, later in itertools.pairwise(steps)
        if later["seconds"] > before["seconds"]
    ]
    if not rates_at:
        raise NotShownError("fewer than two logged steps do not tell a speed")
    rates = sorted(rate for _, rate in rates_at)
    line = Line("clips a second", [x for x, _ in rates_at], [rate for _, rate in rates_at])
    chart = lines([line], title="clips a second", x_label="epoch", bounds=(0.0, rates[-1]))
    text = f"Half of the time at least {rates[len(rates) // 2]:,.0f} clips a second; dips are evaluations and saves."
    return f'<div class="grid">{chart}</div><p>{escape(text)}</p>'


def run_tiles(logged: Sequence[Mapping[str, Any]], result: Mapping[str, Any] | None) -> dict[str, str]:
    """The figures that stand out: those of the model where the run has ended, else the last ones."""
    shown: dict[str, str] = {}
    evaluated = [entry for entry in logged if any(key.startswith("eval_") for key in entry)]
    figures: Mapping[str, Any] = (
        result["metrics"] if result else evaluated[-1] if evaluated else logged[-1] if logged else {}
    )
    of_views = bool({"eval_agreement", "eval_alignment"} & set(figures))
    leading: tuple[str, ...] = ("accuracy", "balanced_accuracy", "mAP", "f1", "acc", "fit", "nce", "mse", "loss")
    if "eval_prevalence" in figures:  # clips with several labels
        leading = ("mAP", "prevalence", "auc", "f1")
    for name in [name for name in leading if figures.get(f"eval_{name}") is not None][:4]:
        value = figures[f"eval_{name}"]
        share = name in ("accuracy", "balanced_accuracy", "mAP", "prevalence", "f1", "acc", "fit")
        title = "other view found" if name == "acc" and of_views else _SHORT.get(name, _TITLES.get(name, name))
        shown[f"{title}, validation"] = f"{100 * value:.1f} %" if share else f"{value:.4g}"
    if logged:
        shown["steps"] = f"{logged[-1]['step']:,}"
        shown["epochs"] = f"{logged[-1]['epoch']:.1f}"
        shown["time of training"] = duration(logged[-1]["seconds"])
    if result:
        ended = {"steps": "all done", "patience": "no progress", "minutes": "time was up"}
        shown["ended"] = ended.get(result["ended"], result["ended"])
    else:
        shown["ended"] = "not yet"
    return shown


def teacher_and_student(file: Path) -> str:
    """How large and fast a student and its teacher are, and how well it meets the teacher, label by label.

    Args:
        file: What the run has written down at its end.

    Raises:
        NotShownError: It has written down nothing yet.
        SettingsError: The file is damaged.
    """
    try:
        found = read_json(file) if file.is_file() else {}
        if "student" not in found:
            raise NotShownError("the run has not ended yet")
        sides = [("teacher", found["teacher"]), ("student", found["student"])]
        sized = [(name, _number(side["megabytes"]), _number(side["clips_per_second"])) for name, side in sides]
        labels = [
            (name, f"{each['clips']:,}", f"{each['fit']:.2f}", f"{each['cosine']:.2f}")
            for name, each in sorted(found["labels"].items(), key=lambda item: float(item[1]["fit"]))
        ]
        whole = [("all", f"{found['clips']:,}", f"{found['fit']:.2f}", f"{found['cosine']:.2f}")]
        of = "spectrogram and encoder" if found["hears"] else "encoder alone"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(f"is damaged ({error!r})", path=file, advice="Run the training's command again.") from None
    lead = (
        "What the teacher gives of clean clips, as the student gives it. Met is the share of its variance: 1 is all, "
    )
    lead += "0 what the mean of all clips gives. Labels that it meets worst come first."
    speeds = table(("", "MB of weights", "clips a second"), sized, numbers=(1, 2))
    by_label = table(("label", "clips", "met", "cosine"), [*whole, *labels], numbers=(1, 2, 3))
    remark = f"Clips a second of this machine when the run ended; the student's: {of}."
    return f"{speeds}{note(remark)}<p>{escape(lead)}</p>{by_label}"


def _number(value: Any) -> str:
    return "not known" if value is None else f"{float(value):,.3g}" if float(value) < 10 else f"{float(value):,.0f}"


_MOST = 3  # checkpoints
_ACROSS = 5  # pictures side by side


@dataclass(frozen=True)
class _Drawn:
    """A clip at several moments of a training.

    Attributes:
        name: Which clip, in words.
        length: Its real frames.
        place: Its place in the pictures.
        moments: The pictures, by title.
    """

    name: str
    length: int
    place: int
    moments: Mapping[str, Rebuilt]


def rebuilt_in_course(folder: Path, *, most: int) -> str:
    """Spectrograms rebuilt and saved while the run trained; the clips themselves need not exist any more.

    Args:
        folder: The folder of the snapshots.
        most: Clips to show.

    Raises:
        NotShownError: The run saved no snapshots.
    """
    snapshots = read_snapshots(folder)
    if not snapshots:
        raise NotShownError("nothing was written down while it trained (snapshots)")
    last = snapshots[-1]
    snapshots = [each for each in snapshots if each.rows == last.rows]  # another session may have chosen others
    moments = {f"epoch {each.epoch:.3g}": each.rebuilt for each in snapshots}
    drawn = [
        _Drawn(clip_name(*name), int(length), place, moments)
        for place, (name, length) in enumerate(zip(last.names, last.frames, strict=True))
    ][:most]
    return _lead(last.rebuilt) + "".join(map(_clip, drawn))


def rebuilt_from_checkpoints(
    run: Path, clips: Clips, rows: NDArray[np.int64], logged: Sequence[Mapping[str, Any]]
) -> str:
    """Rebuilds spectrograms with the remaining checkpoints; for runs that saved no snapshots.

    Args:
        run: The run folder.
        clips: The run's clips.
        rows: Which of them to show.
        logged: The run's figures, for the epoch of a step.

    Raises:
        NotShownError: The objective rebuilds nothing that could be drawn.
        ModelError: There is no model yet, or it cannot be read.
    """
    loaded = load_model(run)
    objective = _objective(loaded, clips.store)
    batch = next(
        normalised_batches(clips.store, rows, normalisation=objective.normalisation, batch_size=max(len(rows), 1)), None
    )
    if batch is None:
        raise NotShownError("not one of the clips can be read any more")
    epochs = {entry["step"]: entry["epoch"] for entry in logged}
    moments: dict[str, Rebuilt] = {}
    for step in _states(run, objective, loaded):
        title = "the model" if step is None else f"epoch {epochs[step]:.3g}" if step in epochs else f"step {step:,}"
        moments[title] = rebuilt_by(objective, batch)
    drawn = []
    for place, row in enumerate(batch.rows.tolist()):
        label = ", ".join(clips.labels(row))
        name = clips.name(row) + (f" ({label})" if label else "")
        drawn.append(_Drawn(name, int(batch.frames[place]), place, moments))
    few = "" if len(moments) > 1 else note("One state is shown: no other checkpoint is there (keep_checkpoints).")
    return _lead(next(iter(moments.values()))) + "".join(map(_clip, drawn)) + few


def _lead(rebuilt: Rebuilt) -> str:
    text = f"What is grey ({rebuilt.hidden.mean():.0%}) was hidden from the encoder, in every epoch the same. "
    if rebuilt.puzzle:
        text += "This objective rebuilds nothing; it tells the hidden patches of a clip apart. In the other pictures "
        text += "they lie where it would put them, each place with the patch that it takes for its own; the number is "
        text += "the share of places with a wrong one."
    else:
        visible = ~rebuilt.hidden
        if np.array_equal(rebuilt.made[visible], rebuilt.true[visible]):
            text += "In the other pictures it is what the model made of the rest; "
        else:
            text += "The other pictures are whole as the model rebuilt them; "
        text += "the number is the mean squared error of what was hidden, in normalised units."
    return f"<p>{escape(text)}</p>"


def _clip(drawn: _Drawn) -> str:
    last = list(drawn.moments.values())[-1]
    true, hidden = last.true[drawn.place, : drawn.length], last.hidden[drawn.place, : drawn.length]
    between = limits(true)

    def figure(values: NDArray[np.float32], caption: str, cover: NDArray[np.bool_] | None = None) -> str:
        picture = spectrogram(values, alt=f"{caption}: {drawn.name}", between=between, hidden=cover)
        return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"

    figures = [figure(true, "the clip"), figure(true, "what the encoder saw", hidden)]
    for title, each in drawn.moments.items():
        error = each.error[drawn.place]
        error_text = f"{error:.0%} wrong" if each.puzzle else f"{error:.3f}"
        figures.append(figure(each.made[drawn.place, : drawn.length], f"{title}: {error_text}"))
    rows = -(-len(figures) // _ACROSS)
    columns = -(-len(figures) // rows)
    head = f'<p class="soft"><span class="path">{escape(drawn.name)}</span></p>'
    kind = "triptych" if rows == 1 else "triptych course"
    return f'{head}<div class="{kind}" style="--columns:{columns}">{"".join(figures)}</div>'


def shown_views(loaded: LoadedModel, clips: Clips, rows: NDArray[np.int64]) -> str:
    """Clips, the views that were drawn of them in the first epoch, and what the encoder was shown of these.

    Args:
        loaded: The model of the run.
        clips: The run's clips.
        rows: Which of them to show; they are laid over each other.

    Raises:
        NotShownError: The objective draws no views that could be drawn here.
        SettingsError: Its views are made from the waveform.
    """
    objective = built_objective(loaded, clips.store)
    if not hasattr(objective, "shown"):
        raise NotShownError("the objective of this run draws no views")
    viewing = cast(ViewingObjective, objective)
    batch = next(
        normalised_batches(clips.store, rows, normalisation=viewing.normalisation, batch_size=max(len(rows), 1)), None
    )
    if batch is None:
        raise NotShownError("not one of the clips can be read any more")
    views = viewing.shown(batch.x, batch.frames, torch.from_numpy(batch.rows))
    lead = "Views of a clip differ in pitch, tempo and colour, and have some of another clip laid over them, but for a "
    lead += "student's. These are of the first epoch: above whole, below what the encoder is shown; what is grey it "
    lead += "never sees. What it makes of all views of a clip shall be alike, and of other clips different; of a "
    lead += "student's view it shall give what the teacher gives of the clip."
    drawn = []
    for place, row in enumerate(batch.rows.tolist()):
        label = ", ".join(clips.labels(row))
        name = clips.name(row) + (f" ({label})" if label else "")
        drawn.append(_viewed(name, batch.x[place, : int(batch.frames[place])].numpy(), views, place))
    return f"<p>{escape(lead)}</p>{''.join(drawn)}"


def _viewed(name: str, clip: NDArray[np.float32], views: Mapping[str, View], place: int) -> str:
    between = limits(clip)

    def figure(values: NDArray[np.float32], caption: str, cover: NDArray[np.bool_] | None = None) -> str:
        picture = spectrogram(values, alt=f"{caption}: {name}", between=between, hidden=cover)
        return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"

    whole, seen = [figure(clip, "the clip")], ["<figure></figure>"]
    for title, view in views.items():
        length = int(view.frames[place])
        values, hidden = view.values[place, :length], view.hidden[place, :length]
        whole.append(figure(values, title))
        seen.append(figure(values, f"{1 - hidden.mean():.0%} of it are shown", hidden))
    head = f'<p class="soft"><span class="path">{escape(name)}</span></p>'
    return f'{head}<div class="triptych views" style="--columns:{len(whole)}">{"".join([*whole, *seen])}</div>'


def built_objective(loaded: LoadedModel, data: SpectrogramSource) -> Objective:
    """The objective that the model was pretrained by, without the weights beside the encoder, in evaluation mode."""
    how = loaded.description.objective
    if not isinstance(loaded.module, SpectrogramEncoder) or how is None:
        raise NotShownError("the model was not pretrained by this run")
    name = str(how.get("objective"))
    if name not in registry.names():
        raise NotShownError(f"the objective {name} is not installed")
    spec = registry.spec(name)
    recorded = loaded.description.provenance.get("settings", {})
    own = {field.name: recorded[field.name] for field in fields(spec.settings) if field.name in recorded}
    settings = from_mapping(spec.settings, {**own, **with_todays_names(spec.settings, how)})
    return spec.build(loaded.module, data, loaded.description.normalisation, settings).eval()


def _objective(loaded: LoadedModel, data: SpectrogramSource) -> RebuildingObjective:
    """As `built_objective`, an objective that rebuilds."""
    objective = built_objective(loaded, data)
    if not can_rebuild(objective):
        name = (loaded.description.objective or {}).get("objective")
        raise NotShownError(f"there is nothing hidden and rebuilt with the objective {name}")
    return objective


def _states(run: Path, objective: RebuildingObjective, loaded: LoadedModel) -> Iterator[int | None]:
    """Puts one state after the other into the objective: those of checkpoints, else (None) that of the model."""
    checkpoints = Checkpoints(run / "checkpoints")
    any_read = False
    for step in checkpoints.steps()[-_MOST:]:
        try:
            verify(checkpoints.path(step))
        except CheckpointError:
            continue
        state = load_file(best_weights(checkpoints.path(step)))
        if any(".base_layer." in name for name in state):  # adapters, which the model has merged into its weights
            continue
        objective.load_state_dict(state)
        any_read = True
        yield step
    if not any_read:
        objective.load_head_state(loaded.objective_state)
        yield None
