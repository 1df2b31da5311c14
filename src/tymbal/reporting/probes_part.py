"""The results of a probe: its table as bars, by layer and by number of clips as curves, and what is confused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from tymbal.errors import SettingsError
from tymbal.evaluation.probe_tasks import READERS
from tymbal.files import read_json
from tymbal.pages.charts import Line, bar, lines
from tymbal.pages.page import NotShownError, details, words
from tymbal.reporting.classifier_part import confusion_matrix

__all__ = ["Probes"]

_SETS = ("baseline", "plain", "random", "random+plain", "teacher", "model", "model+plain")
_COLOURS = {
    "baseline": "b2",
    "plain": "b2",
    "random": "b1",
    "random+plain": "b1",
    "teacher": "b3",
    "model": "b0",
    "model+plain": "b0",
}
_NO_LAYERS = ("baseline", "plain", "teacher")


@dataclass(frozen=True)
class Probes:
    """The table of a probe.

    Attributes:
        path: The `.json` file that `tymbal probe` wrote.
        facts: Contents of the table's record.
    """

    path: Path
    facts: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Probes | None:
        """Reads the table; None where the file is something else.

        Raises:
            SettingsError: It is no JSON.
        """
        try:
            facts = read_json(path)
        except (OSError, ValueError) as error:
            raise SettingsError(f"cannot be read: {error}", path=path) from None
        is_probe = isinstance(facts, dict) and {"rows", "classes", "model"} <= set(facts)
        return cls(path, facts) if is_probe and facts["rows"] else None

    @property
    def figure(self) -> str:
        """The leading figure."""
        return "mAP" if "mAP" in self.facts["rows"][0] else "accuracy"

    def tiles(self) -> dict[str, str]:
        """The figures that stand out."""
        best: dict[str, float] = {}
        for row in self._rows(shots=None):
            best[row["features"]] = max(best.get(row["features"], 0.0), row[self.figure] or 0.0)
        shown = {f"best {self.figure}, {name}": f"{100 * best[name]:.1f} %" for name in _SETS if name in best}
        counts = {"classes": len(self.facts["classes"]), "learned from": self.facts["train"]}
        return {**shown, **{name: f"{count:,}" for name, count in counts.items()}, "asked": f"{self._asked:,}"}

    def bars(self) -> str:
        """Every line that was learned from all clips."""
        rows = self._rows(shots=None)
        text = "The baseline is what mean and spread of the spectrogram alone tell, random the same encoder before it "
        text += "learned anything: the model should be above both."
        if any(row["features"] == "plain" for row in rows):
            text += " The plain line is the best of several such descriptions, some of which keep order in time; "
            text += "+plain is read side by side with it."
        if any(row["features"] == "teacher" for row in rows):
            text += f" The teacher is what the model may have learned from: {self._sides()}."
        if any(row["repeats"] > 1 for row in rows):
            text += f" Means over {max(row['repeats'] for row in rows)} folds, with their standard deviation."
        body = "".join(self._bar(row) for row in rows)
        head = f'<thead><tr><th>features, reader</th><th class="n">{self.figure}, %</th><td></td></tr></thead>'
        verdict = (self.facts.get("verdict") or {}).get("text")
        said = "" if verdict is None else f"<p><strong>{escape(verdict)}</strong></p>"
        return f'{said}<p>{escape(text)}</p><table class="bars">{head}<tbody>{body}</tbody></table>{self._chosen(rows)}'

    def by_layer(self) -> str:
        """The figure from layer to layer.

        Raises:
            NotShownError: One layer was read.
        """
        depth = max((row["layer"] for row in self.facts["rows"] if isinstance(row["layer"], int)), default=None)
        if depth is None or "all" not in (self.facts["settings"].get(name) for name in ("layer", "layers")):
            raise NotShownError("one layer was read", advice="tymbal probe --layer all reads them all.")
        text = f"0 is the embedded patches, {depth} the last block, {depth + 1} behind the final norm."
        return f"<p>{text}</p>{self._charts(self._rows(shots=None), lambda row: row['layer'], 'layer', none=depth + 1)}"

    def by_shots(self) -> str:
        """The figure by number of clips of each class.

        Raises:
            NotShownError: All clips were learned from.
        """
        rows = [row for row in self.facts["rows"] if row["shots"] is not None and row["layer"] is None]
        if not rows:
            raise NotShownError("it learned from all clips", advice="tymbal probe --shots 1 5 10 50 takes few.")
        return self._charts(rows, lambda row: row["shots"], "clips of each class")

    def confusion(self) -> str:
        """The confusion matrix of the model's probe.

        Raises:
            NotShownError: Clips have several labels, or the figures are means over folds.
        """
        if not self.facts.get("confusion"):
            raise NotShownError("clips have several labels, or were asked in folds")
        return confusion_matrix(np.array(self.facts["confusion"], np.int64), tuple(self.facts["classes"]))

    def _sides(self) -> str:
        """Sizes and speeds of the teacher and the model."""
        said = []
        for name, side in (self.facts.get("sides") or {}).items():
            known = [("megabytes", "MB of weights"), ("clips_per_second", "clips a second")]
            numbers = [f"{side[key]:,.3g} {unit}" for key, unit in known if side.get(key) is not None]
            if numbers:
                said.append(f"the {'model' if name == 'student' else name} has {' and '.join(numbers)}")
        return "; ".join(said) or "sizes and speeds are not known"

    @property
    def _asked(self) -> int:
        return int(self.facts["validation"])

    def _rows(self, *, shots: int | None) -> list[dict[str, Any]]:
        return [row for row in self.facts["rows"] if row["shots"] == shots]

    def _bar(self, row: Mapping[str, Any]) -> str:
        value = row[self.figure] or 0.0
        layer = "" if row["layer"] is None else f", layer {row['layer']}"
        spread = "" if row["spread"] is None else f" ± {100 * row['spread']:.1f}"
        drawn = bar([(_COLOURS[row["features"]], value)])
        name = words(f"{row['features']} ({row['pooling']}{layer}), {row['reader']}")
        return f'<tr><th scope="row">{name}</th><td class="n">{100 * value:.1f}{spread}</td><td>{drawn}</td></tr>'

    def _chosen(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """What was chosen from inside the clips to learn from, folded away."""
        lines: dict[str, str] = {}
        for row in rows:
            figures = sorted((row.get("chosen_from") or {}).items(), key=lambda item: -item[1])
            layer = "" if row["layer"] is None else f", layer {row['layer']}"
            listed = ", ".join(f"{name} {100 * value:.1f}" for name, value in figures)
            if listed:
                lines.setdefault(f"{row['features']} ({row['pooling']}{layer})", listed)
        if not lines:
            return ""
        title = f"What was chosen from: {self.figure} in % inside the clips to learn from, by ridge regression"
        cells = [f'<th scope="row">{words(name)}</th><td>{words(listed)}</td>' for name, listed in lines.items()]
        return details(title, f"<table><tbody>{''.join(f'<tr>{cell}</tr>' for cell in cells)}</tbody></table>")

    def _charts(
        self,
        rows: Sequence[Mapping[str, Any]],
        at: Callable[[Mapping[str, Any]], float | None],
        label: str,
        *,
        none: float | None = None,
    ) -> str:
        """A chart a reader, a line for each set of features."""
        charts: list[str] = []
        for reader in READERS:
            drawn: dict[str, list[tuple[float, float]]] = {}
            for row in rows:
                place = at(row) if at(row) is not None else none
                if row["reader"] == reader and place is not None and row["features"] not in _NO_LAYERS:
                    drawn.setdefault(f"{row['features']}, {row['pooling']}", []).append((place, row[self.figure] or 0))
            if not drawn:
                continue
            curves = [
                Line(name, [x for x, _ in sorted(points)], [y for _, y in sorted(points)], dots=True)
                for name, points in drawn.items()
            ]
            charts.append(lines(curves, title=f"{reader}: {self.figure}", x_label=label))
        return f'<div class="grid">{"".join(charts)}</div>'
