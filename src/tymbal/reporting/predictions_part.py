"""The part on predictions: how often which label, when, how sure, and the surest to see and hear."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from tymbal.audio.decode import info, read
from tymbal.errors import TymbalError
from tymbal.features.bank import filter_bank
from tymbal.inference.predictions import read_predictions
from tymbal.pages.charts import bar, histogram
from tymbal.pages.page import NotShownError, card, cards, words
from tymbal.pages.pictures import image, png, spectrogram
from tymbal.pages.players import Sounds
from tymbal.progress import duration
from tymbal.settings import FeatureSettings

__all__ = ["Piece", "Predictions"]

_MOST_LABELS = 40
_MOST_RECORDINGS = 8
_MOST_STRIPS = 6
_MOST_COLUMNS = 600
_HIGHEST_RATE = 48_000


@dataclass(frozen=True)
class Piece:
    """A stretch of a recording: a window with scores of its labels, or a detection.

    Attributes:
        file: The recording.
        start: Seconds from its beginning.
        end: Where it ends, in seconds.
        scored: Scores and labels, best first; of a detection one.
    """

    file: str
    start: float
    end: float
    scored: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Predictions:
    """The predictions of `tymbal predict`.

    Attributes:
        path: The file or folder.
        kind: `windows` or `detections`.
        pieces: The windows or detections, by recording and time.
    """

    path: Path
    kind: Literal["windows", "detections"]
    pieces: tuple[Piece, ...]

    @classmethod
    def read(cls, path: Path) -> Predictions:
        """Reads what `tymbal predict` wrote, in any of its forms.

        Raises:
            SettingsError: It is no such file.
        """
        table = read_predictions(path)
        if table.kind == "detections":
            pieces = [Piece(one.file, one.start, one.end, ((one.score, one.label),)) for one in table.rows]
        else:
            windows: dict[tuple[str, float, float], list[tuple[float, str]]] = defaultdict(list)
            for one in table.rows:
                windows[one.file, one.start, one.end].append((one.score, one.label))
            pieces = [Piece(*window, tuple(sorted(scored, reverse=True))) for window, scored in windows.items()]
        return cls(path, table.kind, tuple(sorted(pieces, key=lambda piece: (piece.file, piece.start, piece.end))))

    @property
    def of_windows(self) -> bool:
        """Whether the pieces are windows."""
        return self.kind == "windows"

    def tiles(self) -> dict[str, str]:
        """The figures that stand out."""
        ends: dict[str, float] = defaultdict(float)
        for piece in self.pieces:
            ends[piece.file] = max(ends[piece.file], piece.end)
        labels = {label for piece in self.pieces for _, label in piece.scored}
        seconds = sum(ends.values()) if self.of_windows else sum(piece.end - piece.start for piece in self.pieces)
        return {
            "recordings": f"{len(ends):,}",
            self.kind: f"{len(self.pieces):,}",
            "reach" if self.of_windows else "length of all": f"{seconds / 60:,.1f} min",
            "labels": f"{len(labels):,}",
        }

    def labels(self) -> str:
        """How often each label is the best of a window, or how often and how long it was detected.

        Raises:
            NotShownError: There are no predictions.
        """
        best: dict[str, list[Piece]] = defaultdict(list)
        for piece in self._pieces():
            best[piece.scored[0][1]].append(piece)
        order = sorted(best, key=lambda label: (-len(best[label]), label))[:_MOST_LABELS]
        most = len(best[order[0]])
        bars = "".join(_bar(label, best[label], most, lengths=not self.of_windows) for label in order)
        length = "" if self.of_windows else '<th class="n">length</th>'
        columns = f'<th>label</th><th class="n">{self.kind}</th><td></td>{length}<th class="n">score</th>'
        text = "Windows in which a label is the best one, and the median of its score there."
        if not self.of_windows:
            text = "Detections of each label, how long they are together, and the median of their scores."
        more = f"<p>{len(best) - len(order):,} rarer labels are not listed.</p>" if len(best) > len(order) else ""
        return f'<p>{text}</p><table class="bars"><thead><tr>{columns}</tr></thead><tbody>{bars}</tbody></table>{more}'

    def sureness(self) -> str:
        """How sure the best labels are.

        Raises:
            NotShownError: There are no predictions.
        """
        scores = np.array([piece.scored[0][0] for piece in self._pieces()])
        if self.of_windows:
            title = "score of the best label"
            text = f"{np.mean(scores >= 0.9):.0%} of the windows have a label with a score of 0.9 or more, "
            text += f"{np.mean(scores < 0.5):.0%} none that reaches 0.5."
        else:
            title = "score of the detections"
            text = f"{np.mean(scores >= 0.9):.0%} of the detections have a score of 0.9 or more."
        chart = histogram(scores, title=title, x_label="score")
        return f'<div class="grid">{chart}</div><p>{text}</p>'

    def over_time(self) -> str:
        """Scores along each recording, of the labels that are strongest in it.

        Raises:
            NotShownError: There are no predictions.
        """
        inside: dict[str, list[Piece]] = defaultdict(list)
        for piece in self._pieces():
            inside[piece.file].append(piece)
        drawn = [_along(file, inside[file], whole=not self.of_windows) for file in list(inside)[:_MOST_RECORDINGS]]
        rest = len(inside) - len(drawn)
        more = f"<p>{rest:,} more recordings are not drawn.</p>" if rest else ""
        text = "The brighter, the higher the score of the label at that time; the strongest labels of each recording."
        return f"<p>{text}</p>{''.join(drawn)}{more}"

    def surest(self, sounds: Sounds, *, most: int) -> str:
        """The windows or detections with the highest scores, each label in its turn.

        Raises:
            NotShownError: The table is empty, or its recordings no longer exist.
        """
        turn: Counter[str] = Counter()
        ranked: list[tuple[int, float, str, int]] = []
        pieces = sorted(self._pieces(), key=lambda piece: -piece.scored[0][0])
        for place, piece in enumerate(pieces):
            score, label = piece.scored[0]
            ranked.append((turn[label], -score, label, place))
            turn[label] += 1
        drawn: list[str] = []
        trouble: TymbalError | None = None
        for _, negative, label, place in sorted(ranked)[:most]:
            piece = pieces[place]
            try:
                drawn.append(
                    self._piece(sounds, piece.file, piece.start, piece.end, title=f"{label} ({-negative:.0%})")
                )
            except TymbalError as error:
                trouble = error
        if not drawn and not any(PurePath(piece.file).suffix for piece in pieces):
            raise NotShownError("label tracks do not say where their recordings are")
        if not drawn:
            raise trouble or NotShownError("the table has no rows")
        return cards(drawn)

    def _pieces(self) -> tuple[Piece, ...]:
        if not self.pieces:
            threshold = "" if self.of_windows else "; no score reached the threshold"
            raise NotShownError(f"there are no {self.kind}{threshold}")
        return self.pieces

    def _piece(self, sounds: Sounds, file: str, start: float, end: float, *, title: str) -> str:
        path = sounds.locate(file)
        rate = min(info(path).sample_rate, _HIGHEST_RATE)
        wave, rate = read(path, sample_rate=rate, start=start, end=end)
        values = filter_bank(FeatureSettings(sample_rate=rate))(torch.from_numpy(wave)).numpy()
        where = f"{PurePath(file).name}, {start:.1f} to {end:.1f} s"
        picture = spectrogram(values, alt=f"Spectrogram of {where}")
        return card(picture, sounds.of(file, start, end), title, path=where)


def _bar(label: str, pieces: Sequence[Piece], most: int, *, lengths: bool) -> str:
    seconds = sum(piece.end - piece.start for piece in pieces)
    length = f'<td class="n">{duration(seconds)}</td>' if lengths else ""
    return (
        f'<tr><th scope="row">{words(label)}</th><td class="n">{len(pieces):,}</td>'
        f"<td>{bar([('b0', len(pieces) / most)])}</td>{length}"
        f'<td class="n">{np.median([piece.scored[0][0] for piece in pieces]):.2f}</td></tr>'
    )


def _along(file: str, inside: Sequence[Piece], *, whole: bool) -> str:
    """A strip of brightness for each of the strongest labels, all over the same time.

    Args:
        file: The recording.
        inside: Its windows or detections.
        whole: Draw them as long as they are, not as a point in their middle.
    """
    end = max(piece.end for piece in inside)
    columns = _MOST_COLUMNS if whole else min(_MOST_COLUMNS, len({piece.start for piece in inside}))
    strips: dict[str, NDArray[np.float32]] = defaultdict(lambda: np.zeros(columns, np.float32))
    for piece in inside:
        first = last = (piece.start + piece.end) / 2
        if whole:
            first, last = piece.start, piece.end
        begin = min(int(first / end * columns), columns - 1)
        reach = slice(begin, max(begin + 1, round(last / end * columns) if whole else 0))
        for score, label in piece.scored:
            strips[label][reach] = np.maximum(strips[label][reach], score)
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
