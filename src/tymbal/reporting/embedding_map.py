"""Clips on a plane, near to each other where the encoder finds them alike, coloured by label, with sound to click."""

from __future__ import annotations

import importlib.util
from collections import Counter
from html import escape

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from tymbal.errors import SettingsError
from tymbal.pages.charts import COLOURS, Point, scatter
from tymbal.pages.page import NotShownError, card, cards, details
from tymbal.reporting.clip_cards import Clips
from tymbal.settings import ReportSettings

__all__ = ["choose_rows", "embedding_map"]

_FEWEST = 8
_PRINCIPAL = 50
_OTHER = "other labels"
_NAMES = {"tsne": "t-SNE", "umap": "UMAP", "pca": "the two principal components"}


def choose_rows(clips: Clips, *, most: int, seed: int) -> NDArray[np.int64]:
    """Rows for a map: those with a label first, at random, in ascending order."""
    order = np.random.default_rng(seed).permutation(len(clips.store))
    labelled = np.array([bool(labels) for labels in clips.store.index["labels"].to_pylist()])[order]
    return np.sort(np.concatenate([order[labelled], order[~labelled]])[:most]).astype(np.int64)


def embedding_map(
    vectors: NDArray[np.floating], clips: Clips, rows: NDArray[np.int64], settings: ReportSettings, *, what: str
) -> str:
    """A map of clips.

    Args:
        vectors: An embedding of each, [rows, dimensions].
        clips: The clips.
        rows: Their rows in the store.
        settings: How to lay out, and how many get a sound.
        what: What the embeddings are, in words.

    Raises:
        NotShownError: There are too few clips.
    """
    if len(rows) < _FEWEST:
        raise NotShownError(f"{len(rows)} clips are too few for a map")
    with threadpool_limits(1):  # more threads wait for each other, on a busy machine for a minute
        plane = _plane(vectors, method=settings.map, seed=settings.seed)
    labels = [(clips.labels(row) or [""])[0] for row in rows.tolist()]
    counted = Counter(label for label in labels if label)
    # In the order of the alphabet, so that maps of the same clips have the same colours.
    names = sorted(name for name, _ in counted.most_common(COLOURS if len(counted) <= COLOURS else COLOURS - 1))
    groups = {name: place for place, name in enumerate(names)}
    shown = names + ([_OTHER] if len(counted) > len(names) else [])
    players = _players(clips, rows, labels, most=settings.sounds)
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
    drawing = scatter(points, groups=shown, title=f"Map of {len(rows)} clips")
    lead = f"{what}, laid out by {_NAMES[settings.map]}: {len(rows):,} of {len(clips.store):,} clips. What lies near "
    lead += "sounds alike to it; distances between far groups mean little. A label of the legend shows its clips alone."
    if not players:
        return f"<p>{escape(lead)}</p>{drawing}"
    lead += " Points with a rim play their sound."
    texts = {row: label or "no label" for row, label in zip(rows.tolist(), labels, strict=True)}
    listed = (card("", player, texts[row], path=clips.name(row)) for row, (_, player) in players.items())
    below = details(f"The {len(players)} sounds of the map", cards(listed))
    return f'<p>{escape(lead)}</p>{drawing}<div class="screen">{below}</div>'


def _plane(vectors: NDArray[np.floating], *, method: str, seed: int) -> NDArray[np.float64]:
    """Places [rows, 2]; neighbours of the first principal components stay neighbours."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    centred = np.asarray(vectors, np.float64)
    centred = (centred - centred.mean(axis=0)) / np.maximum(centred.std(axis=0), 1e-9)
    count = min(_PRINCIPAL, *centred.shape)
    if not centred.any():
        return np.zeros((len(centred), 2))
    principal = PCA(count, random_state=seed).fit_transform(centred)
    if method == "pca" or count < 3:
        flat: NDArray[np.float64] = np.pad(principal, ((0, 0), (0, 1)))[:, :2]
        return flat
    if method == "umap":
        if importlib.util.find_spec("umap") is None:
            raise SettingsError("umap is not installed", advice="pip install 'tymbal[umap]', or --map tsne.")
        import umap

        laid: NDArray[np.float64] = umap.UMAP(random_state=seed, n_jobs=1).fit_transform(principal)
        return laid
    perplexity = min(30.0, (len(principal) - 1) / 3)
    places: NDArray[np.float64] = TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(principal)
    return places


def _players(clips: Clips, rows: NDArray[np.int64], labels: list[str], *, most: int) -> dict[int, tuple[str, str]]:
    """Players of some rows, the same number of each label as far as there are so many."""
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
