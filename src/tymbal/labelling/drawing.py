"""What the page shows of windows and of what is known: pictures, sounds, places in a clip, tables."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from html import escape
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tymbal.audio.clip_labels import recorded_at
from tymbal.audio.decode import read
from tymbal.errors import TymbalError
from tymbal.features.bank import filter_bank
from tymbal.inference.embeddings import read_record
from tymbal.inference.streaming import Window as Piece
from tymbal.inference.streaming import cut_for
from tymbal.labelling.boxes import Box, BoxFinder
from tymbal.labelling.knowledge import Knowledge, Measured, Share
from tymbal.labelling.review import Band
from tymbal.labelling.session import Session, Window
from tymbal.pages.axes import hertz_marks, plot, time_marks
from tymbal.pages.charts import Line, bar, lines
from tymbal.pages.page import note, words
from tymbal.pages.pictures import limits, png
from tymbal.pages.players import heard

__all__ = ["Clips", "bands", "knowledge", "name_of", "time_of"]

_LONGEST = 60.0  # seconds of a window that are played
_REFERENCES = 16
_PRECISION = "of the clips that the model gives this label to, the share that has it"
_RECALL = "of the clips with this label, the share that the model finds"


class Clips:
    """Windows as a person sees and hears them, and where the model hears what it scores.

    Args:
        session: The labelling. Only what never changes of it is used, so that no lock is needed.
    """

    def __init__(self, session: Session) -> None:
        self._ready, self._table = session.ready, session.table
        self.features = session.ready.description.features
        self._bank = filter_bank(self.features)
        self._windows = session.windows
        self._seed = session.settings.seed
        self._lock = threading.Lock()

    @property
    def hertz(self) -> list[float]:
        """Frequencies at the edges of the mel bins, from the lowest on, [mels + 1]."""
        return [self._bank.hertz_at(place - 0.5) for place in range(self.features.mel_bins + 1)]

    def picture(self, window: Window) -> bytes:
        """The spectrogram of a window as a PNG file.

        Raises:
            AudioError: It cannot be read.
        """
        values = self._spectrogram(window)
        return png(values.T[::-1], between=limits(values))

    def sound(self, window: Window) -> bytes:
        """A window as a FLAC file, at one loudness, ultrasound ten times slower.

        Raises:
            AudioError: It cannot be read.
        """
        return heard(Path(window.file), window.start, window.end, seconds=_LONGEST)[0]

    def large(self, window: Window, picture: str) -> str:
        """A window with its axes, as HTML; `picture` is the address of its spectrogram."""
        alt = f"Spectrogram of {name_of(window)}, {window.start:.2f} to {window.end:.2f} s"
        return plot(
            "large",
            f"{words(name_of(window))} <small>{time_of(window)}</small>",
            f'<img alt="{escape(alt)}" src="{escape(picture)}" draggable="false">',
            y=hertz_marks(self.features, self.features.mel_bins),
            x=time_marks(window.start, window.end),
            said=f"{alt}. Drag to say where in it the sound is",
        )

    def box(self, window: Window, direction: NDArray[np.float32]) -> Box | None:
        """Where in a window the model hears what a direction of the embedding stands for; None where it is all over.

        Raises:
            AudioError: It cannot be read.
        """
        with self._lock:
            found = self._finder.find(self._samples(window), direction)
        return None if found is None else found.after(window.start, window.end)

    @cached_property
    def _finder(self) -> BoxFinder:
        """The encoder, which compares with some windows that were drawn at random."""
        record = read_record(self._table)
        embedder = self._ready.embedder_like(record, index=self._table)
        cut = cut_for(embedder.description, window=record["window"], hop=record["hop"])
        return BoxFinder(embedder, length=cut.length, references=list(self._references(cut.shortest)))

    def _references(self, shortest: int) -> Iterator[Piece]:
        places = np.random.default_rng(self._seed).permutation(len(self._windows))
        given = 0
        for place in places[: 4 * _REFERENCES].tolist():
            try:
                piece = self._samples(self._windows.window(place))
            except TymbalError:
                continue
            if len(piece.samples) >= shortest:
                given += 1
                yield piece
            if given == _REFERENCES:
                return

    def _samples(self, window: Window) -> Piece:
        wave, _ = read(Path(window.file), sample_rate=self.features.sample_rate, start=window.start, end=window.end)
        return Piece(0, wave)

    def _spectrogram(self, window: Window) -> NDArray[np.float32]:
        values: NDArray[np.float32] = self._bank(torch.from_numpy(self._samples(window).samples)).numpy()
        return values


def name_of(window: Window) -> str:
    """The name of a window's recording, short enough for a caption."""
    return Path(window.file).name


def time_of(window: Window) -> str:
    """When a window was recorded, where the recording's name or header tells; else where in the recording it is."""
    began = recorded_at(Path(window.file))
    if began is not None:
        return f"{began + timedelta(seconds=window.start):%d %b %H:%M:%S}"
    minutes, seconds = divmod(int(window.start), 60)
    hours, minutes = divmod(minutes, 60)
    return f"at {f'{hours}:{minutes:02d}' if hours else minutes}:{seconds:02d}"


def bands(known: Mapping[str, Sequence[Band]]) -> str:
    """Precision by label and tenth of the score, as far as it was reviewed, as HTML; empty without a review."""
    parts = []
    for label, own in known.items():
        rows = "".join(
            f'<tr><th scope="row">{band.low:.1f} to {band.low + 0.1:.1f}</th>'
            f'<td class="n">{band.checked:,} of {band.windows:,}</td>{_share(band.precision)}</tr>'
            for band in own
        )
        head = '<tr><th scope="col">score</th><th scope="col" class="n">checked</th><th scope="col">precision</th></tr>'
        parts.append(f'<h3>{words(label)}</h3><table class="known"><thead>{head}</thead><tbody>{rows}</tbody></table>')
    return f"<h2>What was reviewed</h2>{''.join(parts)}" if parts else ""


def knowledge(known: Knowledge) -> str:
    """The state of knowledge as HTML."""
    return "".join(
        [
            "<h2>What is known</h2>",
            _advice(known),
            _labels(known),
            _facts(known),
            _curve(known),
        ]
    )


def _advice(known: Knowledge) -> str:
    if not known.advice:
        return ""
    look = "good" if known.enough else "note"
    return f'<p class="{look}">{escape(known.advice)}</p>'


def _labels(known: Knowledge) -> str:
    """Labels with how many windows have them, and how good the head is at them."""
    if not known.counts:
        return note("No label yet. Press + to name one.")
    most = max([1, *known.counts.values()])
    rows = "".join(
        f'<tr><th scope="row">{words(label)}{bar([(f"k{place % 10}", count / most)] if count else [])}</th>'
        f'<td class="n">{count:,}</td>{_measured(known.measured.get(label))}</tr>'
        for place, (label, count) in enumerate(known.counts.items())
    )
    head = '<tr><th scope="col">label</th><th scope="col" class="n">clips</th>'
    head += f'<th scope="col" title="{_PRECISION}">precision</th><th scope="col" title="{_RECALL}">recall</th></tr>'
    if not known.measured:
        head = '<tr><th scope="col">label</th><th scope="col" class="n">clips</th></tr>'
    return f'<table class="known"><thead>{head}</thead><tbody>{rows}</tbody></table>'


def _measured(measured: Measured | None) -> str:
    return "" if measured is None else f"{_share(measured.precision)}{_share(measured.recall)}"


def _share(share: Share | None) -> str:
    """A cell with a share and its margin."""
    if share is None:
        return '<td class="soft">-</td>'
    value, low, high = share
    said = f"{value:.0%}, most likely {low:.0%} to {high:.0%}"
    left, wide = 100 * low, 100 * max(high - low, 0.02)
    return (
        f'<td title="{said}">{value:.0%}<span class="margin" role="img" aria-label="{said}">'
        f'<i style="left:{left:.1f}%;width:{wide:.1f}%"></i><b style="left:{100 * value:.1f}%"></b></span></td>'
    )


def _facts(known: Knowledge) -> str:
    """Figures without a label of their own."""
    facts: Mapping[str, str] = {
        "nothing there": f"{known.nothing:,}",
        "unsure": f"{known.unsure:,}",
        "checked blindly": f"{known.checked:,}",
        "changed something": "" if known.changed is None else f"{known.changed} of the last 100",
        "not discovered yet": "" if known.undiscovered is None else f"about {known.undiscovered:.0%}",
    }
    inner = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items() if value)
    hint = ""
    if known.counts and not known.checked:
        hint = note("How good is it? A blind check tells: clips at random, without the model's opinion (c).")
    return f'<dl class="facts">{inner}</dl>{hint}'


def _curve(known: Knowledge) -> str:
    if len(known.curve) < 2:
        return ""
    xs, ys = zip(*known.curve, strict=True)
    line = Line(known.curve_name, [float(x) for x in xs], [float(y) for y in ys], dots=True)
    return lines([line], title=known.curve_name, x_label="answers")
