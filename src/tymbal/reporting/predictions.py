"""What was found in recordings: how often which label, when, how sure, and the surest pieces to see and hear."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
import torch
from numpy.typing import NDArray

from tymbal.audio.decode import info, read
from tymbal.errors import SettingsError, TymbalError
from tymbal.features.kaldi import KaldiFbank
from tymbal.reporting.charts import histogram
from tymbal.reporting.page import NotShownError, cards, words
from tymbal.reporting.pictures import image, png, spectrogram
from tymbal.reporting.sounds import Sounds
from tymbal.settings import FeatureSettings

__all__ = ["Predictions"]

_COLUMNS = ("file", "start", "end", "label", "score")
_MOST_LABELS = 40
_MOST_RECORDINGS = 8
_MOST_STRIPS = 6
_MOST_COLUMNS = 600
_HIGHEST_RATE = 48_000

Window = tuple[str, float, float]


@dataclass(frozen=True)
class Predictions:
    """A table of predictions, by window.

    Attributes:
        path: The table.
        windows: Labels with their scores of each window (file, start, end), best first.
    """

    path: Path
    windows: dict[Window, list[tuple[float, str]]]

    @classmethod
    def read(cls, path: Path) -> Predictions:
        """Reads a table that `tymbal predict` wrote.

        Raises:
            SettingsError: It is no such table.
        """
        windows: dict[Window, list[tuple[float, str]]] = defaultdict(list)
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if not set(_COLUMNS) <= set(reader.fieldnames or ()):
                raise SettingsError(
                    f"is no table of predictions: it lacks {', '.join(set(_COLUMNS) - set(reader.fieldnames or ()))}",
                    path=path,
                    advice="Give a store, a run, or what `tymbal predict` wrote.",
                )
            for row in reader:
                try:
                    window = row["file"], float(row["start"]), float(row["end"])
                    windows[window].append((float(row["score"]), row["label"]))
                except (TypeError, ValueError):
                    raise SettingsError(f"line {reader.line_num} cannot be read", path=path) from None
        for found in windows.values():
            found.sort(reverse=True)
        return cls(path, dict(sorted(windows.items())))

    def tiles(self) -> dict[str, str]:
        """The figures that stand out."""
        files = {window[0] for window in self.windows}
        ends: dict[str, float] = defaultdict(float)
        for file, _, end in self.windows:
            ends[file] = max(ends[file], end)
        labels = {label for found in self.windows.values() for _, label in found}
        return {
            "recordings": f"{len(files):,}",
            "windows": f"{len(self.windows):,}",
            "reach": f"{sum(ends.values()) / 60:,.1f} min",
            "labels": f"{len(labels):,}",
        }

    def labels(self) -> str:
        """How often each label is the best of a window.

        Raises:
            NotShownError: There are no predictions.
        """
        best: dict[str, list[float]] = defaultdict(list)
        for found in self.windows.values():
            best[found[0][1]].append(found[0][0])
        if not best:
            raise NotShownError("the table has no rows")
        order = sorted(best, key=lambda label: (-len(best[label]), label))[:_MOST_LABELS]
        most = len(best[order[0]])
        bars = "".join(
            f'<tr><th scope="row">{words(label)}</th><td class="n">{len(best[label]):,}</td>'
            '<td><div class="bar">'
            f'<span class="b0" style="width:{100 * len(best[label]) / most:.2f}%"></span></div></td>'
            f'<td class="n">{np.median(best[label]):.2f}</td></tr>'
            for label in order
        )
        head = '<thead><tr><th>label</th><th class="n">windows</th><td></td><th class="n">score</th></tr></thead>'
        text = "Windows in which a label is the best one, and the median of its score there."
        return f'<p>{text}</p><table class="bars">{head}<tbody>{bars}</tbody></table>'

    def sureness(self) -> str:
        """How sure the best labels are.

        Raises:
            NotShownError: There are no predictions.
        """
        if not self.windows:
            raise NotShownError("the table has no rows")
        scores = np.array([found[0][0] for found in self.windows.values()])
        text = f"{np.mean(scores >= 0.9):.0%} of the windows have a label with a score of 0.9 or more, "
        text += f"{np.mean(scores < 0.5):.0%} none that reaches 0.5."
        chart = histogram(scores, title="score of the best label", x_label="score")
        return f'<div class="grid">{chart}</div><p>{text}</p>'

    def over_time(self) -> str:
        """Scores along each recording, of the labels that are strongest in it.

        Raises:
            NotShownError: There are no predictions.
        """
        inside: dict[str, dict[Window, list[tuple[float, str]]]] = defaultdict(dict)
        for window, found in self.windows.items():
            inside[window[0]][window] = found
        if not inside:
            raise NotShownError("the table has no rows")
        drawn = [_along(file, inside[file]) for file in list(inside)[:_MOST_RECORDINGS]]
        rest = len(inside) - len(drawn)
        more = f"<p>{rest:,} more recordings are not drawn.</p>" if rest else ""
        text = "The brighter, the higher the score of the label at that time; the strongest labels of each recording."
        return f"<p>{text}</p>{''.join(drawn)}{more}"

    def surest(self, sounds: Sounds, *, most: int) -> str:
        """The windows with the highest scores, each label in its turn.

        Raises:
            NotShownError: There are no predictions, or the recordings are not there any more.
        """
        turn: Counter[str] = Counter()
        ranked: list[tuple[int, float, str, Window]] = []
        for window, found in sorted(self.windows.items(), key=lambda item: -item[1][0][0]):
            score, label = found[0]
            ranked.append((turn[label], -score, label, window))
            turn[label] += 1
        drawn: list[str] = []
        trouble: TymbalError | None = None
        for _, negative, label, (file, start, end) in sorted(ranked)[:most]:
            try:
                drawn.append(self._piece(sounds, file, start, end, title=f"{label} ({-negative:.0%})"))
            except TymbalError as error:
                trouble = error
        if not drawn:
            raise trouble or NotShownError("the table has no rows")
        return cards(drawn)

    def _piece(self, sounds: Sounds, file: str, start: float, end: float, *, title: str) -> str:
        path = sounds.found(file)
        rate = min(info(path).sample_rate, _HIGHEST_RATE)
        wave, rate = read(path, sample_rate=rate, start=start, end=end)
        values = KaldiFbank(FeatureSettings(sample_rate=rate))(torch.from_numpy(wave)).numpy()
        where = f"{PurePath(file).name}, {start:.1f} to {end:.1f} s"
        picture = spectrogram(values, alt=f"Spectrogram of {where}")
        caption = f'<strong>{words(title)}</strong><span class="path">{words(where)}</span>'
        player = sounds.of(file, start, end)
        return f'<figure class="card">{picture}{player}<figcaption>{caption}</figcaption></figure>'


def _along(file: str, inside: dict[Window, list[tuple[float, str]]]) -> str:
    """A strip of brightness for each of the strongest labels, all over the same time."""
    end = max(window[2] for window in inside)
    columns = min(_MOST_COLUMNS, len(inside))
    strips: dict[str, NDArray[np.float32]] = defaultdict(lambda: np.zeros(columns, np.float32))
    for (_, start, stop), found in inside.items():
        column = min(int((start + stop) / 2 / end * columns), columns - 1)
        for score, label in found:
            strips[label][column] = max(strips[label][column], score)
    strongest = sorted(strips, key=lambda label: -float(np.square(strips[label]).sum()))[:_MOST_STRIPS]
    name = PurePath(file).name
    rows = "".join(
        f'<tr><th scope="row">{words(label)}</th><td>'
        + image(
            png(strips[label][None], between=(0.0, 1.0)),
            alt=f"Scores of {label} along {name}, at most {strips[label].max():.2f}",
            width=columns,
            height=1,
        )
        + "</td></tr>"
        for label in strongest
    )
    foot = f'<tr><td></td><td class="soft ends"><span>0 s</span><span>{end:,.0f} s</span></td></tr>'
    return f'<h4>{words(name)}</h4><table class="strips"><tbody>{rows}{foot}</tbody></table>'
