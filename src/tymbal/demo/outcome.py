"""The demo's outcome: the share of known events that predictions detect, and all figures in words."""

from __future__ import annotations

import math
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tymbal.demo.wingbeats import Event, write_events
from tymbal.files import replace_file
from tymbal.inference.predictions import read_predictions
from tymbal.progress import duration

if TYPE_CHECKING:
    from tymbal.audio.manifest import Manifest
    from tymbal.evaluation.selection import Verdict

__all__ = ["Report", "Scores", "Search", "count_events", "join_clips"]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How well held-out clips are classified, as fractions.

    Attributes:
        figure: `accuracy`, or `mAP` where clips have several labels.
        clips: Number of clips that were classified.
        classes: Number of labels.
        plain_line: Which plain line was chosen.
        plain: The best plain line, read by a linear classifier and by nearest neighbours.
        random: Embeddings of an encoder with random weights, likewise.
        pretrained: Embeddings of the pretrained encoder, likewise.
        beside: These and the plain line side by side, likewise.
        tuned_random: Fine-tuned from random weights.
        tuned_pretrained: Fine-tuned from the pretrained ones.
        verdict: The pretrained encoder beside the better of plain line and random weights; None where nothing tells.
    """

    figure: str
    clips: int
    classes: int
    plain_line: str
    plain: tuple[float, float]
    random: tuple[float, float]
    pretrained: tuple[float, float]
    beside: tuple[float, float]
    tuned_random: float
    tuned_pretrained: float
    verdict: Verdict | None

    @property
    def tuned_difference(self) -> tuple[float, float]:
        """By how many points fine-tuning from the pretrained weights is ahead, and the margin (95 %) of so many clips.

        The clips are taken as drawn for each of both anew, which makes the margin wider than it is.
        """
        one, other = self.tuned_pretrained, self.tuned_random
        margin = 196 * math.sqrt((one * (1 - one) + other * (1 - other)) / self.clips)
        return 100 * (one - other), margin


@dataclass(frozen=True, kw_only=True)
class Report:
    """All figures of the demo.

    Attributes:
        held_out: Description of the held-out clips.
        steps: Steps of pretraining.
        clips_seen: Clips seen in them, each time it was seen.
        task: Of how many held-out clips the objective found the other view among those of a batch.
        seconds: Seconds of each step of the demo.
        scores: How well clips are classified; None without labels.
        found: Figures of the search for the recording's events; None without labels.
    """

    held_out: str
    steps: int
    clips_seen: int
    task: float | None
    seconds: dict[str, float] = field(default_factory=dict)
    scores: Scores | None = None
    found: Search | None = None

    def text(self, folder: Path) -> str:
        """The report, for a folder in which everything was written."""
        parts = [self._scores(), self._meaning(), self._searched(), self._places(folder), self._further(folder)]
        return "\n\n".join(part for part in parts if part)

    def _scores(self) -> str:
        if self.scores is None:
            return "There are no labels, so nothing could be classified: see below how to give some."
        scores = self.scores
        rows: list[tuple[str, float, float | None]] = [
            (f"best plain line ({scores.plain_line})", *scores.plain),
            ("encoder, random weights", *scores.random),
            (f"encoder, pretrained for {self._minutes()}", *scores.pretrained),
            ("  and plain line side by side", *scores.beside),
            ("fine-tuned from random weights", scores.tuned_random, None),
            ("fine-tuned from the pretrained", scores.tuned_pretrained, None),
        ]
        head = f"Told apart: {scores.clips:,} {self.held_out}, {scores.classes} classes. {scores.figure} in %:"
        lines = [head, "", f"  {'':38}{'linear':>8}{'neighbours':>12}"]
        for name, linear, neighbours in rows:
            lines.append(
                f"  {name:38}{100 * linear:8.1f}" + ("" if neighbours is None else f"{100 * neighbours:12.1f}")
            )
        return "\n".join(lines)

    def _meaning(self) -> str:
        spent = f"{self.steps:,} steps in {self._minutes()}, {self.clips_seen:,} clips seen"
        task = ""
        if self.task is not None:
            task = f" Of {100 * self.task:.0f} % of the held-out clips it finds the other view among a batch of them."
        if self.scores is None:
            return f"Pretraining: {spent}.{task}"
        verdict = self.scores.verdict
        lines = ["No comparison could be made." if verdict is None else verdict.text()]
        lines.append(f"Fine-tuned, it is {_points(*self.scores.tuned_difference)} what begins with random weights.")
        lines.append("The better of the probe that it begins as and of its end is kept, by these very clips.")
        lines.append(f"It had {spent}.{task}")
        if verdict is None or not verdict.pays:
            lines.append("That is little time: the first command below goes on.")
        return "\n".join(lines)

    def _searched(self) -> str:
        if self.found is None:
            return ""
        text = f"In the recording {self.found.found} of {self.found.events} events got the right label."
        if self.found.empty:
            text += f" Of {self.found.empty} windows without any, {self.found.false_alarms} were false alarms."
        return text

    def _places(self, folder: Path) -> str:
        places = {
            "report.html": "all of it as pictures and sound: open it with a browser",
            "manifest.csv": "every clip: duration, label, group, split",
            "store": "the spectrograms",
            "pretrained/model": "the pretrained encoder",
            "probe.csv": "the figures above, and more",
            "classifier/model": "the classifier",
            "recording.flac": "what was searched, with events.csv",
            "predictions.csv": "what was found: file, start, end, label, score",
            "summary.txt": "this text",
        }
        written = {name: what for name, what in places.items() if (folder / name).exists() or name == "summary.txt"}
        width = max(len(str(folder / name)) for name in written)
        return "\n".join(["Written", *(f"  {folder / name!s:{width}}  {what}" for name, what in written.items())])

    def _further(self, folder: Path) -> str:
        def command(*words: str | Path) -> str:
            return "  " + shlex.join(["tymbal", *map(str, words)])

        lines = [f"To go on (all of this took {duration(sum(self.seconds.values()))})"]
        lines.append(command("pretrain", folder / "store", "-o", folder / "longer", "--max-minutes", "60"))
        if self.scores is None:
            lines.append("  tymbal demo --data FOLDER --label-pattern '([a-z]+)_'    where file names hold the label")
        else:
            lines.append(command("probe", folder / "longer", folder / "store"))
            lines.append(command("predict", folder / "classifier", "YOUR_RECORDINGS", "-o", "scores.csv"))
        return "\n".join(lines)

    def _minutes(self) -> str:
        return duration(self.seconds.get("pretrain", 0.0))


def _points(points: float, margin: float) -> str:
    side = "level with" if abs(points) < 0.05 else "ahead of" if points > 0 else "behind"
    sure = "" if abs(points) > margin else ", may be chance"
    return f"{abs(points):.1f} points (± {margin:.1f}{sure}) {side}"


@dataclass(frozen=True)
class Search:
    """How many of the known events predictions find.

    Attributes:
        events: Events in the recording.
        found: Events whose label had the best score while they lasted.
        empty: Windows without an event.
        false_alarms: Of these, windows with another label than background.
    """

    events: int
    found: int
    empty: int
    false_alarms: int


def count_events(predictions: Path, events: Sequence[Event], *, background: str | None = None) -> Search:
    """Compares a table of predictions with the events of its recording.

    The scores of the windows that overlap an event are averaged, each with the seconds of its overlap as weight.

    Args:
        predictions: Table of `tymbal predict`, with all labels of each window.
        events: The events.
        background: Label of windows without an event; None if no label stands for these.
    """
    windows: dict[tuple[float, float], dict[str, float]] = defaultdict(dict)
    for row in read_predictions(predictions).rows:
        windows[row.start, row.end][row.label] = row.score
    hits = 0
    for event in events:
        scores: dict[str, float] = defaultdict(float)
        for (start, end), labels in windows.items():
            overlap = min(end, event.end) - max(start, event.start)
            for label, score in labels.items():
                scores[label] += max(0.0, overlap) * score
        hits += max(scores, key=lambda label: scores[label]) == event.label
    empty = [
        labels
        for (start, end), labels in windows.items()
        if background is not None and not any(start < event.end and event.start < end for event in events)
    ]
    alarms = sum(max(labels, key=lambda label: labels[label]) != background for labels in empty)
    return Search(len(events), hits, len(empty), alarms)


def join_clips(manifest: Manifest, path: Path, *, seconds: float, sample_rate: int, seed: int) -> list[Event]:
    """Joins validation clips with one label into one recording, and writes `events.csv` (start, end, label) beside it.

    Args:
        manifest: The clips.
        path: The sound file to write, 16-bit FLAC.
        seconds: How long it becomes at most; one clip at least is taken, and cut.
        sample_rate: In Hz.
        seed: Seed of the choice.

    Returns:
        The events: label, start and end.
    """
    import soundfile as sf

    from tymbal.audio.decode import read

    clips = [clip for clip in manifest if clip.split == "validation" and len(clip.labels) == 1]
    pieces: list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]] = []
    events: list[Event] = []
    length = 0
    for place in np.random.default_rng(seed).permutation(len(clips)):
        clip = clips[place]
        sound, _ = read(clip.file, sample_rate=sample_rate, start=clip.start, end=clip.end)
        if events and length + len(sound) > seconds * sample_rate:
            break
        sound = sound[: round(seconds * sample_rate)]
        events.append(
            Event(round(length / sample_rate, 3), round((length + len(sound)) / sample_rate, 3), clip.labels[0])
        )
        pieces.append(sound)
        length += len(sound)
    with replace_file(path) as aside:
        sf.write(aside, np.clip(np.concatenate(pieces), -1, 1), sample_rate, format="FLAC", subtype="PCM_16")
    write_events(path.parent / "events.csv", events)
    return events
