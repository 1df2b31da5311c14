"""A labelling at work: recordings, what was answered, a head that learns from it, and what comes next.

    session = Session.open("run", ["nights"], Path("labels"), LabelSettings(labels=("robin", "wren")))
    for suggestion in session.next(12):
        session.answer([Answer(suggestion.window, ("robin",))])

The folder holds `labels.csv`, the table (`tymbal.labelling.table`), and `windows.parquet`, the embeddings of all
windows, which are computed once and go on after a stop; where these are more than are looked through at once,
`windows.safetensors` keeps those that were drawn.
"""

from __future__ import annotations

import getpass
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tymbal.audio.failures import failures_beside, read_failures
from tymbal.audio.file_lists import LABELS, UNSURE
from tymbal.audio.sources import find_recordings
from tymbal.embed import embed
from tymbal.errors import AudioError, SettingsError
from tymbal.inference.embeddings import read_record
from tymbal.inference.frontend import ReadyModel, ready_model
from tymbal.inference.streaming import cut_for
from tymbal.inference.streaming import windows as cut_windows
from tymbal.labelling.choosing import CHOICES, Suggestion, next_places
from tymbal.labelling.head import Examples, Head
from tymbal.labelling.knowledge import History, Knowledge, history_of, what_is_known
from tymbal.labelling.review import Band, Detected, bands_of, read_review
from tymbal.labelling.table import (
    BEGIN,
    CHECK,
    Answer,
    Row,
    Window,
    answers_of,
    read_annotations,
    read_table,
    rows_of_answer,
    write_table,
)
from tymbal.labelling.windows import Windows
from tymbal.progress import counted, tell
from tymbal.settings import LabelSettings

__all__ = ["Answer", "Session", "Suggestion", "Window"]

_EMBEDDINGS = "windows.parquet"
_DRAWN = "windows.safetensors"
_HALF = 0.5
_EVERY = 10


@dataclass(frozen=True)
class _Given:
    """An answer with its rows in the table.

    Attributes:
        answer: The answer.
        rows: Its rows.
        before: The answer that it replaced.
    """

    answer: Answer
    rows: tuple[Row, ...]
    before: _Given | None = None


class Session:
    """A labelling at work; one thread at a time uses it.

    Args:
        ready: The model.
        windows: The windows.
        output: The folder.
        settings: The settings.

    Attributes:
        ready: The model.
        windows: The windows that are looked through.
        labels: Names of the labels, in the order in which they came.
        settings: The settings.
    """

    def __init__(self, ready: ReadyModel, windows: Windows, output: Path, settings: LabelSettings) -> None:
        self.ready, self.windows, self.settings = ready, windows, settings
        self.labels: tuple[str, ...] = settings.labels
        self._output = output
        self._who = settings.who or getpass.getuser()
        self._begun: list[Row] = []
        self._given: dict[int, _Given] = {}
        self._round = 0
        self._head: Head | None = None
        self._fitted: int | None = None
        self._changes = 0
        self._history: tuple[tuple[int, int], History] = ((0, 0), History())
        self._last: list[int] = []
        self._read()

    @classmethod
    def open(
        cls,
        model: str | Path,
        recordings: str | Path | Sequence[str | Path],
        output: str | Path,
        settings: LabelSettings,
    ) -> Session:
        """Opens a labelling; what is not embedded yet is.

        Args:
            model: A run, a model folder, a Hugging Face or SSAST checkpoint.
            recordings: Recordings, folders of them, or a `.parquet` file of `tymbal embed`.
            output: The folder of the labelling.
            settings: The settings.

        Raises:
            AudioError: No recording can be read.
            ModelError: The model cannot be read, or the embeddings are another model's.
            SettingsError: Settings do not fit, or the table or annotations cannot be read.
            StoreError: The embeddings cannot be read.
        """
        output = Path(output)
        if output.exists() and not output.is_dir():
            raise SettingsError("is a file", path=output, advice="Give a folder for the labels: -o labels")
        output.mkdir(parents=True, exist_ok=True)
        ready = ready_model(model, settings)
        table = _embedded(model, recordings, output, settings)
        ready.embedder_like(read_record(table), index=table)
        windows = Windows(table, most=settings.most, seed=settings.seed, kept=output / _DRAWN)
        windows.make_searchable()  # now, and not while a person waits for what is like an example
        return cls(ready, windows, output, settings)

    @property
    def table(self) -> Path:
        """The table of embeddings."""
        return self.windows.table

    @property
    def path(self) -> Path:
        """The table of labels."""
        return self._output / LABELS

    # What was answered

    @property
    def answers(self) -> Mapping[int, Answer]:
        """What was answered, by row."""
        return {row: given.answer for row, given in self._given.items()}

    @property
    def last(self) -> Answer | None:
        """The answer that `undo` would take back."""
        return next(reversed(self._given.values())).answer if self._given else None

    def add_label(self, name: str) -> None:
        """Adds a label that nothing has yet."""
        if name.strip() in ("", UNSURE):
            raise SettingsError(f"a label is {name!r}", advice="Give it a name, with at least one letter.")
        self._add_labels([name.strip()])

    def _add_labels(self, names: Iterable[str]) -> None:
        self.labels = tuple(dict.fromkeys([*self.labels, *names]))

    def answer(self, answers: Sequence[Answer]) -> None:
        """Takes answers; they are on the disk when this returns.

        An answer replaces the one that its window had; the same answer again is no change.

        Raises:
            SettingsError: An answer contradicts itself, or several labels are given where a window has one.
        """
        given = dict(self._given)
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        changed = False
        for one in answers:
            if not self.settings.several and len(set(one.labels)) > 1:
                raise SettingsError(
                    f"a window has several labels: {', '.join(one.labels)}", advice="Set several, or give one label."
                )
            row, before = one.window.row, given.get(one.window.row)
            if before is not None and before.answer == one:
                continue
            rows = rows_of_answer(one, who=self._who, when=now, round=CHECK if one.check else str(self._round))
            given.pop(row, None)  # the last answer stands last
            given[row] = _Given(one, tuple(rows), before)
            changed = True
        if changed:
            self._write(given)
            self._add_labels(label for one in answers for label in one.labels)

    def undo(self) -> Answer | None:
        """Takes back the last answer, and brings back what it replaced; None where there is none."""
        if not self._given:
            return None
        given = dict(self._given)
        row, last = given.popitem()
        if last.before is not None:
            given = {row: last.before, **given}
        self._write(given)
        return last.answer

    def _write(self, given: dict[int, _Given]) -> None:
        write_table(self.path, [*self._begun, *(row for each in given.values() for row in each.rows)])
        self._given = given
        self._changes += 1

    def _read(self) -> None:
        """Reads the table, and annotations to begin with where there is none yet."""
        rows = read_table(self.path) if self.path.is_file() else []
        if not rows:
            for source in self.settings.begin:
                rows += map(self._ended, read_annotations(Path(source), self.windows.files))
        elif self.settings.begin:
            tell(f"{self.path} is there already: nothing is read to begin with", warning=True)
        for together in answers_of(rows):
            window = self._window_of(together[0])
            if window is None:
                self._begun += together
                continue
            answer = _answer(together, window)
            self._given.pop(window.row, None)
            self._given[window.row] = _Given(answer, tuple(together))
        self._begun += [row for row in rows if row.round == BEGIN]
        self._add_labels(row.label for row in rows if row.label not in ("", UNSURE))
        rounds = [int(row.round) for row in rows if row.round.isdecimal()]
        self._round = max(rounds, default=0)
        if rows:
            tell(f"{self.path}: {counted(len(self._given), 'answer')}, {counted(len(self._begun), 'other row')}")

    def _ended(self, row: Row) -> Row:
        """A row that ends with its recording where it says no end."""
        if math.isfinite(row.end):
            return row
        places = self.windows.inside(row.file, row.start, row.end)
        return row._replace(end=float(self.windows.end[places].max(initial=row.start + 1.0)))

    def _window_of(self, row: Row) -> Window | None:
        """The window that an answer is of: the one that shares most time with it, of these the nearest."""
        windows = self.windows
        places = windows.inside(row.file, row.start, row.end)
        if not len(places):
            return None
        shared = np.minimum(windows.end[places], row.end) - np.maximum(windows.start[places], row.start)
        middle = (windows.start[places] + windows.end[places] - row.start - row.end) / 2
        best = np.lexsort((np.abs(middle), -np.round(shared, 3)))[0]
        return windows.window(int(places[best]))

    # What is learned from it

    def _examples(self) -> Examples:
        """The windows to learn from.

        The blind sample is left out, so that it can tell how good the head is; so is what a person was unsure of.
        """
        numbers = {label: place for place, label in enumerate(self.labels)}
        labels: dict[int, set[str]] = {}
        for row in self._begun:
            if row.round == BEGIN and row.label in numbers:
                for place in self._covered(row):
                    labels.setdefault(place, set()).add(row.label)
        for number, given in self._given.items():
            place = int(self.windows.places([number])[0])
            if place < 0 or given.answer.check or given.answer.kind == "unsure":
                labels.pop(place, None)
            else:
                labels[place] = set(given.answer.labels)
        truth = np.zeros((len(labels), len(self.labels)), bool)
        for line, names in enumerate(labels.values()):
            truth[line, [numbers[name] for name in names]] = True
        return Examples(np.fromiter(labels, np.int64, len(labels)), truth, self.labels, self.settings.several)

    def _covered(self, row: Row) -> list[int]:
        """Places of the windows that hold half of an annotated stretch, or are half filled by it."""
        windows = self.windows
        places = windows.inside(row.file, row.start, row.end)
        shared = np.minimum(windows.end[places], row.end) - np.maximum(windows.start[places], row.start)
        least = _HALF * np.minimum(row.end - row.start, windows.end[places] - windows.start[places])
        return [int(place) for place in places[shared >= least - 1e-3]]

    def head(self) -> Head | None:
        """The head, fitted to all answers; None as long as there is nothing to tell apart."""
        if self._fitted != self._changes:
            self._head = self._examples().head(self.windows)
            self._fitted = self._changes
            self._round += 1
        return self._head

    def direction(self, label: str) -> NDArray[np.float32] | None:
        """The gradient of a label's logit with respect to the embedding as it comes, [dimensions]; None without one."""
        head = self.head()
        if head is None or label not in head.labels:
            return None
        return np.asarray(self.windows.projection.weight @ head.weight[:, head.labels.index(label)], np.float32)

    # What comes next

    def next(
        self,
        count: int,
        *,
        by: str = "mixed",
        like: Window | None = None,
        vector: NDArray[np.float32] | None = None,
        label: str | None = None,
        skip: Collection[int] = (),
    ) -> list[Suggestion]:
        """Chooses windows to ask about.

        Args:
            count: How many.
            by: One of `tymbal.labelling.choosing.CHOICES`.
            like: Windows that are like this one.
            vector: Windows that are like this embedding, as of `embed_sound`.
            label: Windows that are like those with this label.
            skip: Rows that are not asked about.

        Raises:
            SettingsError: There is no such way to choose.
        """
        if by not in CHOICES:
            raise SettingsError(f"by is {by!r}", advice=f"Set by to one of {', '.join(CHOICES)}.")
        example = self.windows.embedding(like.row) if like is not None else vector
        if example is not None:  # before anything is ranked: what is found may be new among the windows
            self.windows.nearest(example, count * 10 + len(self._given))
        examples = self._examples()
        asked = np.zeros(len(self.windows), bool)
        known = self.windows.places([*self._given, *skip])
        asked[known[known >= 0]] = True
        asked[examples.places] = True
        head = self.head()
        chosen = next_places(
            self.windows,
            count,
            by=by,
            head=head,
            examples=examples,
            asked=asked,
            like=None if example is None else self.windows.projection(example[None])[0],
            label=label if head is not None and label in head.labels else None,
            last=self._last,
            seed=(self.settings.seed, self._changes, len(self._given)),
        )
        self._last = [place for place, _ in chosen][-1:]
        return self._suggestions(chosen)

    def _suggestions(self, chosen: Sequence[tuple[int, str]]) -> list[Suggestion]:
        head = self.head()
        places = [place for place, _ in chosen]
        scores = None if head is None or not places else head.probabilities(self.windows.vectors[places])
        return [
            Suggestion(
                self.windows.window(place),
                {} if head is None or scores is None else dict(zip(head.labels, scores[line].tolist(), strict=True)),
                reason,
            )
            for line, (place, reason) in enumerate(chosen)
        ]

    def check(self, count: int) -> list[Window]:
        """Windows of the blind sample that come next: drawn at random, to be answered without the model's opinion."""
        rng = np.random.default_rng(self.settings.seed + 1)
        order = rng.permutation(len(self.windows))
        free = [place for place in order.tolist() if int(self.windows.rows[place]) not in self._given]
        return [self.windows.window(place) for place in free[:count]]

    def review(self, table: str | Path, count: int) -> list[Suggestion]:
        """The windows of a table of `tymbal predict --review` that have no answer yet, in its order.

        Args:
            table: The table.
            count: How many.

        Raises:
            SettingsError: It is no such table.
        """
        result: list[Suggestion] = []
        for one in read_review(Path(table)):
            window = self._window_of(Row(one.file, one.start, one.end))
            if window is None or window.row in self._given or any(each.window == window for each in result):
                continue
            reason = f"band {one.tenth / 10:.1f}-{one.tenth / 10 + 0.1:.1f}"
            result.append(Suggestion(window, {one.label: one.score}, reason))
        return result[:count]

    def bands(self, table: str | Path) -> dict[str, tuple[Band, ...]]:
        """How right a classifier is by label and score, as the answers to a review say.

        Args:
            table: A table of `tymbal predict --review`.

        Raises:
            SettingsError: It is no such table.
        """

        def answer_of(one: Detected) -> Answer | None:
            window = self._window_of(Row(one.file, one.start, one.end))
            given = None if window is None else self._given.get(window.row)
            return None if given is None else given.answer

        return bands_of(read_review(Path(table)), answer_of)

    def embed_sound(self, waveform: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
        """The embedding of a sound, as those of the windows; a longer one is the mean of its windows.

        Args:
            waveform: Mono, [samples].
            sample_rate: Its rate in Hz.

        Raises:
            AudioError: It is shorter than a frame.
        """
        import soxr

        record = read_record(self.table)
        embedder = self.ready.embedder_like(record, index=self.table)
        cut = cut_for(embedder.description, window=record["window"], hop=record["hop"])
        sound = np.asarray(waveform, np.float32)
        if sample_rate != cut.rate:
            sound = soxr.resample(sound, sample_rate, cut.rate).astype(np.float32)
        if len(sound) < cut.shortest:
            raise AudioError(f"the sound has {len(sound) / cut.rate:.3g} s, less than one frame")
        pieces = list(cut_windows([sound], length=cut.length, hop=cut.hop, shortest=cut.shortest))
        size = self.settings.batch_size
        parts = [embedder.windows(pieces[at : at + size], length=cut.length) for at in range(0, len(pieces), size)]
        weights = [len(piece.samples) for piece in pieces]
        return np.asarray(np.average(np.concatenate(parts), axis=0, weights=weights), np.float32)

    # What is known

    def knowledge(self) -> Knowledge:
        """What is known by now."""
        examples = self._examples()
        checks = [one for one in self.answers.values() if one.check]
        key = (len(examples) // _EVERY, len(checks) // _EVERY)
        if key != self._history[0]:
            self._history = key, history_of(self.windows, examples, checks)
        return what_is_known(self.windows, self.answers, examples, self.head(), self._history[1])


def _answer(rows: Sequence[Row], window: Window) -> Answer:
    """The answer that rows of the table are."""
    first = rows[0]
    labels = tuple(row.label for row in rows if row.label not in ("", UNSURE))
    kind = "labels" if labels else "unsure" if first.label == UNSURE else "nothing"
    narrowed = abs(first.start - window.start) > 1e-3 or abs(first.end - window.end) > 1e-3
    answer = Answer(window, labels, "labels", low=first.low, high=first.high, check=first.round == CHECK)
    if kind == "nothing":
        answer = replace(answer, kind="nothing")
    elif kind == "unsure":
        answer = replace(answer, kind="unsure")
    return replace(answer, start=first.start, end=first.end) if narrowed else answer


def _embedded(
    model: str | Path, recordings: str | Path | Sequence[str | Path], output: Path, settings: LabelSettings
) -> Path:
    """The table of embeddings: the one that is given, or that of the folder, which is made where it is not there."""
    given = [recordings] if isinstance(recordings, str | Path) else list(recordings)
    if len(given) == 1 and Path(given[0]).suffix.lower() == ".parquet":
        return Path(given[0])
    table = output / _EMBEDDINGS
    if not table.is_file():
        sources = [Path(each).expanduser().absolute() for each in given]
        chosen = {name: getattr(settings, name) for name in ("window", "hop", "pooling", "batch_size")}
        result = embed(model, sources, table, precision=settings.precision, device=settings.device, **chosen)
        if result.failures:
            tell(f"{counted(len(result.failures), 'file')} cannot be read: {result.failures_file}", warning=True)
    else:
        _tell_of_new(table, given)
    return table


def _tell_of_new(table: Path, given: Sequence[str | Path]) -> None:
    """Says which recordings have no windows because they came after these were embedded."""
    known = set(pq.read_table(table, columns=["file"]).column("file").unique().to_pylist())
    failures = failures_beside(table)
    known |= {failure.file for failure in read_failures(failures)} if failures.is_file() else set()
    found, _ = find_recordings([Path(each).expanduser().absolute() for each in given])
    new = [str(one.path) for one in found if str(one.path) not in known]
    if new:
        tell(
            f"{counted(len(new), 'recording')} came after the windows were embedded, as {new[0]}: delete {table} to "
            "have all embedded again; the labels stay",
            warning=True,
        )
