"""Clips of a store on the page: as cards with spectrogram and sound, and on a map where those alike are near."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from tymbal.inference.atlas import laid_out
from tymbal.pages.charts import COLOURS, Point, scatter
from tymbal.pages.page import NotShownError, card, cards, details
from tymbal.pages.pictures import limits, spectrogram
from tymbal.pages.players import Sounds
from tymbal.settings import ReportSettings
from tymbal.store.base import SpectrogramSource

__all__ = ["Clips", "choose_rows", "clip_name", "embedding_map"]

_FEWEST = 8
_OTHER = "other labels"
_NAMES = {"tsne": "t-SNE", "umap": "UMAP", "pca": "the two principal components"}


def clip_name(file: str, start: float) -> str:
    """A clip in words: its file, the last folder with it, and from when on."""
    last = "/".join(PurePath(file.replace("\\", "/")).parts[-2:])
    return f"{last}, from {start:.1f} s" if start else last


class Clips:
    """Draws clips of a store, all with one scale of brightness.

    Args:
        store: The store.
        sounds: Gives their sound.
    """

    def __init__(self, store: SpectrogramSource, sounds: Sounds) -> None:
        self.store = store
        self.sounds = sounds
        self._between: tuple[float, float] | None = None

    def labels(self, row: int) -> list[str]:
        """Its labels; none where it has none."""
        labels: list[str] = self.store.index["labels"][row].as_py() or []
        return labels

    def name(self, row: int) -> str:
        """Its file, the last folders with it, and from when on."""
        index = self.store.index
        return clip_name(index["file"][row].as_py() or "", index["start"][row].as_py() or 0.0)

    def sound(self, row: int) -> tuple[str, str]:
        """The name of its player and the player, both empty where its sound cannot be read."""
        index = self.store.index
        file = index["file"][row].as_py()
        if not file:
            return "", ""
        return self.sounds.named(file, index["start"][row].as_py() or 0.0, index["end"][row].as_py())

    def picture(self, row: int, *, alt: str) -> str:
        """Its spectrogram, without the padding."""
        values = self.store.gather(np.array([row]))[0]
        return spectrogram(values[: max(int(self.store.real_frames[row]), 1)], alt=alt, between=self.between)

    def card(self, row: int, *, title: str, text: str = "", sound: bool = True) -> str:
        """Its spectrogram, title and text, with its sound unless `sound` is false."""
        player = self.sound(row)[1] if sound else ""
        picture = self.picture(row, alt=f"Spectrogram of {title}: {self.name(row)}")
        return card(picture, player, title, text=text, path=self.name(row))

    @property
    def between(self) -> tuple[float, float]:
        """Values of the darkest and the brightest colour, of some clips of the whole store."""
        if self._between is None:
            rows = np.unique(np.linspace(0, len(self.store) - 1, 32).astype(np.int64))
            values: list[NDArray[np.float32]] = [
                clip[: max(int(real), 1)].astype(np.float32).ravel()
                for clip, real in zip(self.store.gather(rows), self.store.real_frames[rows], strict=True)
            ]
            self._between = limits(np.concatenate(values))
        return self._between


def choose_rows(clips: Clips, *, most: int, seed: int) -> NDArray[np.int64]:
    """Rows for a map: those with a label first, at random, in ascending order."""
    order = np.random.default_rng(seed).permutation(len(clips.store))
    labelled = np.array([bool(labels) for labels in clips.store.index["labels"].to_pylist()])[order]
    return np.sort(np.concatenate([order[labelled], order[~labelled]])[:most]).astype(np.int64)


def embedding_map(
    vectors: Mapping[str, NDArray[np.floating]], clips: Clips, rows: NDArray[np.int64], settings: ReportSettings
) -> str:
    """A map of clips, or several of the same ones.

    Args:
        vectors: An embedding of each clip, [rows, dimensions], by its description in words; a map each.
        clips: The clips.
        rows: Their rows in the store.
        settings: How to lay out, and how many get a sound.

    Raises:
        NotShownError: There are too few clips.
    """
    if len(rows) < _FEWEST:
        raise NotShownError(f"{len(rows)} clips are too few for a map")
    with threadpool_limits(1):  # more threads wait for each other, on a busy machine for a minute
        planes = {what: laid_out(values, method=settings.map, seed=settings.seed) for what, values in vectors.items()}
    labels = [(clips.labels(row) or [""])[0] for row in rows.tolist()]
    counted = Counter(label for label in labels if label)
    # In the order of the alphabet, so that maps of the same clips have the same colours.
    names = sorted(name for name, _ in counted.most_common(COLOURS if len(counted) <= COLOURS else COLOURS - 1))
    groups = {name: place for place, name in enumerate(names)}
    shown = names + ([_OTHER] if len(counted) > len(names) else [])
    players = _players(clips, rows, labels, most=settings.sounds)
    drawn = []
    for what, plane in planes.items():
        points = [
            Point(
                float(x),
                float(y),
                groups.get(label, len(names)) if label else -1,
                f"{label or 'no label'}, {clips.name(row)}",
                players[row][0] if row in players else "",
            )
            for (x, y), label, row in zip(plane, labels, rows.tolist(), strict=True)
        ]
        near = _same_label(vectors[what], labels)
        text = what + ("." if near is None else f". {near:.0%} of the clips have a nearest neighbour of their label.")
        drawing = scatter(points, groups=shown, title=f"{what}: map of {len(rows)} clips")
        drawn.append(f"<div><p>{escape(text)}</p>{drawing}</div>")
    drawing = drawn[0] if len(drawn) == 1 else f'<div class="maps">{"".join(drawn)}</div>'
    lead = f"{len(rows):,} of {len(clips.store):,} clips, laid out by {_NAMES[settings.map]}. What lies near sounds "
    lead += "alike to it; distances between far groups mean little. A label of the legend shows its clips alone."
    if not players:
        return f"<p>{escape(lead)}</p>{drawing}"
    lead += " Points with a rim play their sound."
    texts = {row: label or "no label" for row, label in zip(rows.tolist(), labels, strict=True)}
    listed = (card("", player, texts[row], path=clips.name(row)) for row, (_, player) in players.items())
    below = details(f"The {len(players)} sounds of the map", cards(listed))
    return f'<p>{escape(lead)}</p>{drawing}<div class="screen">{below}</div>'


def _same_label(vectors: NDArray[np.floating], labels: Sequence[str]) -> float | None:
    """The share of labelled clips whose nearest labelled neighbour, by cosine, has the same label; None without."""
    known = np.flatnonzero([bool(label) for label in labels])
    if len(known) < _FEWEST or len({labels[place] for place in known.tolist()}) < 2:
        return None
    values = np.asarray(vectors, np.float64)[known]
    values = (values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-9)
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-9)
    likeness = values @ values.T
    np.fill_diagonal(likeness, -np.inf)
    names = np.array(labels)[known]
    return float(np.mean(names == names[likeness.argmax(axis=1)]))


def _players(clips: Clips, rows: NDArray[np.int64], labels: list[str], *, most: int) -> dict[int, tuple[str, str]]:
    """Players of some rows, as evenly over the labels as their numbers allow."""
    turn: Counter[str] = Counter()
    ranked: list[tuple[int, int]] = []
    for row, label in zip(rows.tolist(), labels, strict=True):
        ranked.append((turn[label], row))
        turn[label] += 1
    players: dict[int, tuple[str, str]] = {}
    for _, row in sorted(ranked)[:most]:
        name, player = clips.sound(row)
        if name:
            players[row] = (name, player)
    return players
