"""What the page of `tymbal label` is answered, whatever carries it (`tymbal.labelling.server` does).

An answer is on the disk before the page hears so; the page keeps what it has not heard of, and sends it again, also to
a server that was started anew. Steps are such that twice is as once.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tymbal.audio.decode import info, read
from tymbal.config import from_mapping
from tymbal.errors import SettingsError
from tymbal.labelling import drawing
from tymbal.labelling.choosing import CHOICES
from tymbal.labelling.session import Answer, Session, Suggestion, Window
from tymbal.pages.page import document, style

__all__ = ["LabelPage"]

_SHOWN = 3  # scores of a clip
_REVIEW = "review"
_LONGEST = 60.0  # seconds of a dropped sound that are looked at


@dataclass(frozen=True)
class _Step:
    """What a person did: gave an answer, or took it back.

    Attributes:
        row: The row of the window.
        labels: As in `Answer`.
        kind: As in `Answer`.
        start: As in `Answer`.
        end: As in `Answer`.
        low: As in `Answer`.
        high: As in `Answer`.
        check: As in `Answer`.
        undo: Whether the answer is taken back.
    """

    row: int
    labels: tuple[str, ...] = ()
    kind: Literal["labels", "nothing", "unsure"] = "labels"
    start: float | None = None
    end: float | None = None
    low: float | None = None
    high: float | None = None
    check: bool = False
    undo: bool = False

    def answer(self, window: Window) -> Answer:
        """The answer that it gives, or takes back."""
        values = asdict(self)
        del values["row"], values["undo"]
        return Answer(window, **values)


@dataclass(frozen=True)
class _Wish:
    """What the page wants to show next.

    Attributes:
        count: How many clips.
        by: A key of `CHOICES`, or `review`.
        like: The row of an example; None is none.
        label: A label; None is all.
        skip: Rows that were passed over.
        check: Clips of the blind sample instead.
        example: Clips that are like the dropped sound.
    """

    count: int = 12
    by: str = "mixed"
    like: int | None = None
    label: str | None = None
    skip: tuple[int, ...] = field(default=())
    check: bool = False
    example: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 100:
            raise SettingsError(f"count is {self.count}", advice="Ask for 1 to 100 clips.")


class LabelPage:
    """What the page is answered, whatever carries it. Threads may use it at the same time.

    Args:
        session: The labelling.
        folder: Where a dropped sound lies while it is read.
        count: Clips a page.
        most: Bytes that a dropped sound may have.
        facts: What is labelled, in a line.

    Attributes:
        folder: Where a dropped sound lies while it is read.
        most: Bytes that it may have.
    """

    def __init__(self, session: Session, folder: Path, *, count: int, most: int, facts: str) -> None:
        self.folder, self.most = folder, most
        self._session, self._count, self._facts = session, count, facts
        self._clips = drawing.Clips(session)
        self._example: NDArray[np.float32] | None = None
        self._lock = threading.Lock()
        known = f"{session.table.resolve()}\0{session.path.resolve()}\0{session.windows.total}"
        self._identity = hashlib.blake2b(known.encode(), digest_size=8).hexdigest()

    def page(self) -> str:
        """The page itself."""
        head = '<link rel="stylesheet" href="/label.css">\n<script src="/label.js" defer></script>'
        return document("Tymbal label", head=head, body=_file("label.html"))

    def style(self) -> str:
        """Its style."""
        return style(_file("label.css"))

    def script(self) -> str:
        """Its script."""
        return _file("label.js")

    def state(self) -> dict[str, Any]:
        """What the page needs to begin."""
        return {
            "identity": self._identity,
            "facts": self._facts,
            "ways": ({} if self._session.settings.review is None else {_REVIEW: "To review"}) | dict(CHOICES),
            "count": self._count,
            "most": self.most,
            "several": self._session.settings.several,
            "hertz": [round(value, 1) for value in self._clips.hertz],
            **self._labels(),
        }

    def clips(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """The clips that come next; `wanted` are the attributes of a wish.

        Raises:
            SettingsError: It is no wish, or there is no such window, label or way to choose.
        """
        wish = from_mapping(_Wish, wanted)
        with self._lock:
            if wish.check:
                given = [Suggestion(window) for window in self._session.check(wish.count)]
            elif wish.by == _REVIEW:
                given = self._review(wish)
            else:
                given = self._next(wish)
            answers = self._session.answers
            return {"clips": [_clip(each, answers.get(each.window.row)) for each in given], **self._labels()}

    def _next(self, wish: _Wish) -> list[Suggestion]:
        if wish.example and self._example is None:
            raise SettingsError("no sound was dropped since the server was started", advice="Drop it again.")
        return self._session.next(
            wish.count,
            by=wish.by,
            like=None if wish.like is None else self._window(wish.like),
            vector=self._example if wish.example else None,
            label=wish.label,
            skip=set(wish.skip),
        )

    def _review(self, wish: _Wish) -> list[Suggestion]:
        """What a classifier detected and nobody has checked yet."""
        if self._session.settings.review is None:
            raise SettingsError("there is nothing to review", advice="Give a table: --review NAME.review.csv")
        left = self._session.review(self._session.settings.review, wish.count + len(wish.skip))
        return [one for one in left if one.window.row not in wish.skip][: wish.count]

    def steps(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Takes steps, one after the other, until one cannot be taken.

        Args:
            wanted: The `identity` of the labelling that they belong to, and `steps`.

        Returns:
            How many were `done`, each on the disk; of the next one, if there is one, why it was `refused`.

        Raises:
            SettingsError: They belong to another labelling.
        """
        if wanted.get("identity") != self._identity:
            raise SettingsError("these answers belong to another labelling", advice="Load the page again.")
        done, refused = 0, ""
        given = wanted.get("steps")
        with self._lock:
            for each in given if isinstance(given, list) else []:
                try:
                    self._take(from_mapping(_Step, each if isinstance(each, dict) else {"step": each}))
                except (SettingsError, KeyError) as error:
                    refused = str(error)
                    break
                done += 1
            return {"done": done, "refused": refused, **self._labels()}

    def _take(self, step: _Step) -> None:
        answer = step.answer(self._window(step.row))
        if not step.undo:
            self._session.answer([answer])
        elif self._session.last == answer:  # else it was taken back already, and the reply was lost
            self._session.undo()

    def add_label(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Adds a label by its `name`.

        Raises:
            SettingsError: It is none.
        """
        with self._lock:
            self._session.add_label(str(wanted.get("name", "")))
            return self._labels()

    def knowledge(self) -> dict[str, Any]:
        """What is known by now, as HTML."""
        with self._lock:
            known, review = self._session.knowledge(), self._session.settings.review
            bands = {} if review is None else self._session.bands(review)
        return {"html": drawing.bands(bands) + drawing.knowledge(known)}

    def picture(self, row: int) -> bytes:
        """The spectrogram of a window as a PNG file."""
        return self._clips.picture(self._locked_window(row))

    def sound(self, row: int) -> bytes:
        """A window as a FLAC file."""
        return self._clips.sound(self._locked_window(row))

    def large(self, row: int) -> str:
        """A window with its axes, as HTML."""
        return self._clips.large(self._locked_window(row), f"/picture?row={row}")

    def box(self, row: int, label: str) -> dict[str, Any]:
        """Where in a window the model hears a label; `box` is None where it cannot tell."""
        with self._lock:
            window, direction = self._window(row), self._session.direction(label)
        found = None if direction is None else self._clips.box(window, direction)
        return {"box": None if found is None else asdict(found)}

    def example(self, path: Path, name: str) -> dict[str, Any]:
        """Takes a dropped sound as the example; it is read up to a minute.

        Raises:
            AudioError: It cannot be read, or is too short.
        """
        known = info(path)
        sound, rate = read(path, sample_rate=self._clips.features.sample_rate, end=min(known.duration, _LONGEST))
        with self._lock:
            self._example = self._session.embed_sound(sound, rate)
        cut = f", its first {_LONGEST:.0f} s" if known.duration > _LONGEST else ""
        return {"name": f"{name}{cut}"}

    def _labels(self) -> dict[str, Any]:
        return {"labels": list(self._session.labels), "answered": len(self._session.answers)}

    def _locked_window(self, row: int) -> Window:
        with self._lock:
            return self._window(row)

    def _window(self, row: int) -> Window:
        """The window of a row, also of one that is not held any more, such as after a restart."""
        windows = self._session.windows
        if not 0 <= row < windows.total:
            raise SettingsError(f"there is no window {row}", advice="Load the page again.")
        if windows.places([row])[0] < 0:
            windows.add(np.array([row]))
        return windows.window(int(windows.places([row])[0]))


def _clip(suggestion: Suggestion, answer: Answer | None) -> dict[str, Any]:
    """A clip as the page takes it."""
    window = suggestion.window
    best = sorted(suggestion.scores.items(), key=lambda each: -each[1])[:_SHOWN]
    given = None
    if answer is not None:
        given = {name: value for name, value in asdict(answer).items() if name != "window"}
    return {
        "row": window.row,
        "start": window.start,
        "end": window.end,
        "name": drawing.name_of(window),
        "when": drawing.time_of(window),
        "reason": suggestion.reason,
        "scores": [[label, round(score, 4)] for label, score in best],
        "answer": given,
    }


def _file(name: str) -> str:
    return resources.files("tymbal.labelling").joinpath(name).read_text(encoding="utf-8")
