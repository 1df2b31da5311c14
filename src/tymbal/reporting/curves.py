"""What a run logged: learning curves, speed, and how it ended."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from tymbal.progress import duration
from tymbal.reporting.charts import Line, lines
from tymbal.reporting.page import NotShownError, note, table

__all__ = ["learning_curves", "run_tiles", "speed"]

_TITLES = {
    "loss": "loss",
    "nce": "telling patches apart: cross entropy",
    "acc": "telling patches apart: share that is right",
    "mse": "rebuilding patches: squared error",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1": "macro F1",
    "mAP": "mean average precision",
    "auc": "area under the ROC curve",
    "rank": "effective rank of embeddings",
    "cosine": "mean cosine of pairs of clips",
    "probe_accuracy": "linear probe: accuracy",
    "probe_mAP": "linear probe: mean average precision",
    "knn_accuracy": "nearest neighbours: accuracy",
    "knn_mAP": "nearest neighbours: mean average precision",
    "learning_rate": "learning rate",
    "grad_norm": "norm of the gradient",
}
_SHORT = {"acc": "patches told apart", "nce": "cross entropy", "mse": "squared error", "mAP": "mAP"}
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
            name = key.removeprefix("eval_")
            if not isinstance(value, int | float) or not math.isfinite(value):
                bad.add(name)
                continue
            known[name]["validation" if key.startswith("eval_") else "training"].append((entry["epoch"], value))
    if not known:
        raise NotShownError("the run has logged nothing yet")
    if known.get("top1") == known.get("accuracy"):  # where a clip has one label
        known.pop("top1", None)
    order = sorted(known, key=lambda name: ([*_TITLES, name].index(name), name))
    order.sort(key=lambda name: name in _LAST)
    once = [name for name in order if max(map(len, known[name].values())) == 1]
    charts = [_chart(name, known[name]) for name in order if name not in once]
    remark = f"Values that are not finite are left out of {', '.join(sorted(bad))}." if bad else ""
    single = [
        (_TITLES.get(name, name.replace("_", " ")), side, f"{points[0][1]:.4g}", f"{points[0][0]:.1f}")
        for name in once
        for side, points in known[name].items()
    ]
    listed = table(("logged once", "clips", "value", "epoch"), single, numbers=(2, 3)) if single else ""
    warnings = note(f"Alarms of the training: {', '.join(alarms)}.", warning=True) if alarms else ""
    drawn = f'<div class="grid">{"".join(charts)}</div>' if charts else ""
    return warnings + drawn + listed + (note(remark, warning=True) if remark else "")


def _chart(name: str, sides: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    drawn = [
        Line(side, [x for x, _ in sides[side]], [y for _, y in sides[side]], dots=side == "validation")
        for side in ("training", "validation")
        if sides.get(side)
    ]
    title = _TITLES.get(name, name.replace("_", " "))
    if len(drawn) == 1 and drawn[0].name == "validation":
        title += " (validation)"
    return lines(drawn, title=title, x_label="epoch")


def speed(logged: Sequence[Mapping[str, Any]]) -> str:
    """How many clips a second were learned from, evaluations and saves included.

    Raises:
        NotShownError: Too little was logged to tell.
    """
    steps = [entry for entry in logged if entry.get("batch_size")]
    found = [
        (
            later["epoch"],
            (later["step"] - before["step"]) * later["batch_size"] / (later["seconds"] - before["seconds"]),
        )
        for before, later in itertools.pairwise(steps)
        if later["seconds"] > before["seconds"]
    ]
    if not found:
        raise NotShownError("fewer than two logged steps do not tell a speed")
    rates = sorted(rate for _, rate in found)
    line = Line("clips a second", [x for x, _ in found], [rate for _, rate in found])
    chart = lines([line], title="clips a second", x_label="epoch", bounds=(0.0, rates[-1]))
    text = f"Half of the time at least {rates[len(rates) // 2]:,.0f} clips a second; dips are evaluations and saves."
    return f'<div class="grid">{chart}</div><p>{escape(text)}</p>'


def run_tiles(logged: Sequence[Mapping[str, Any]], result: Mapping[str, Any] | None) -> dict[str, str]:
    """The figures that stand out: those of the model where the run has ended, else the last ones."""
    found: dict[str, str] = {}
    evaluated = [entry for entry in logged if any(key.startswith("eval_") for key in entry)]
    figures: Mapping[str, Any] = (
        result["metrics"] if result else evaluated[-1] if evaluated else logged[-1] if logged else {}
    )
    wanted = ("accuracy", "balanced_accuracy", "mAP", "f1", "acc", "nce", "mse", "loss")
    for name in [name for name in wanted if figures.get(f"eval_{name}") is not None][:4]:
        value = figures[f"eval_{name}"]
        share = name in ("accuracy", "balanced_accuracy", "mAP", "f1", "acc")
        title = _SHORT.get(name, _TITLES.get(name, name))
        found[f"{title}, validation"] = f"{100 * value:.1f} %" if share else f"{value:.4g}"
    if logged:
        found["steps"] = f"{logged[-1]['step']:,}"
        found["epochs"] = f"{logged[-1]['epoch']:.1f}"
        found["time of training"] = duration(logged[-1]["seconds"])
    if result:
        ended = {"steps": "all done", "patience": "no progress", "minutes": "time was up"}
        found["ended"] = ended.get(result["ended"], result["ended"])
    else:
        found["ended"] = "not yet"
    return found
