"""The part on a store: labels, lengths, examples, copies, and the files left out."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tymbal.audio.failures import read_failures
from tymbal.pages.charts import bar, histogram
from tymbal.pages.page import NotShownError, cards, details, note, table, words
from tymbal.reporting.drawn_clips import Clips
from tymbal.store.base import SpectrogramSource
from tymbal.store.dataset import readable_batches

__all__ = ["balance", "copies", "examples", "left_out", "lengths", "store_tiles"]

_MOST_LABELS = 40
_MOST_COMPARED = 20_000
_MOST_LISTED = 20
_MOST_FAILURES = 100
_SIDES = ("train", "validation")
_BARS = {"train": "b0", "validation": "b1", "other": "b2"}


def store_tiles(source: SpectrogramSource) -> dict[str, str]:
    """The figures that stand out; of pairs and waveforms what they are besides."""
    store = source.singles()
    shift = 0.01 if store.features is None else store.features.frame_shift
    labelled = sum(map(bool, store.index["labels"].to_pylist()))
    seconds = float(store.real_frames.sum()) * shift
    shown = {
        "clips": f"{len(store):,}",
        "of sound": f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:,.1f} min",
        "with a label": f"{labelled:,}",
        "labels": f"{len(store.labels):,}",
        "spectrogram": f"{store.frames} x {store.mels}",
    }
    if source.views > 1:
        shown["pairs of views"] = f"{len(source):,}"
        shown["versions a clip"] = f"{len(source) / len(store):g}"
    if source.samples is not None:
        shown["samples a clip"] = f"{source.samples:,}"
    if store.features is not None:
        shown["sample rate"] = f"{store.features.sample_rate / 1000:g} kHz"
    return shown


def balance(store: SpectrogramSource) -> str:
    """Clips of each label, by split.

    Raises:
        NotShownError: No clip has a label.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    splits = store.index["split"].to_pylist()
    for labels, split in zip(store.index["labels"].to_pylist(), splits, strict=True):
        for label in labels or ():
            counts[label][split if split in _SIDES else "other"] += 1
    sides = ", ".join(f"{count:,} {split or 'without a split'}" for split, count in Counter(splits).most_common())
    if not counts:
        raise NotShownError(f"no clip has a label ({sides})")
    order = sorted(counts, key=lambda label: (-counts[label].total(), label))
    rarest, commonest = counts[order[-1]].total(), counts[order[0]].total()
    text = f"Clips: {sides}. "
    if commonest == rarest:
        text += f"Every label has {commonest:,} of them."
    else:
        text += f"The commonest label has {commonest / rarest:.1f} times as many as the rarest."
    absent = [label for label in order if not counts[label]["train"] and counts[label]["validation"]]
    warning = ""
    if absent:
        warning = note(f"Labels that no training clip has: {', '.join(absent[:_MOST_LISTED])}.", warning=True)
    used = [side for side in (*_SIDES, "other") if any(counts[label][side] for label in order)]
    rest = f"{len(order) - _MOST_LABELS:,} rarer labels are not listed." if len(order) > _MOST_LABELS else ""
    bars = "".join(_bar(label, counts[label], used, commonest) for label in order[:_MOST_LABELS])
    looks = {"train": ("f0", "training"), "validation": ("f1", "validation"), "other": ("fn", "neither")}
    signs = "".join(
        '<li><svg viewBox="0 0 16 16" aria-hidden="true">'
        f'<rect class="{look}" x="2" y="2" width="12" height="12"/></svg>{name}</li>'
        for look, name in (looks[side] for side in used)
    )
    legend = f'<ul class="legend">{signs}</ul>'
    return f'<p>{escape(text)}</p>{warning}{legend}<table class="bars"><tbody>{bars}</tbody></table>' + (
        note(rest) if rest else ""
    )


def _bar(label: str, counts: Counter[str], sides: Iterable[str], most: int) -> str:
    counts_text = ", ".join(f"{side} {counts[side]:,}" for side in sides)
    drawn = bar([(_BARS[side], counts[side] / most) for side in sides if counts[side]], said=counts_text)
    return f'<tr><th scope="row">{words(label)}</th><td class="n">{counts.total():,}</td><td>{drawn}</td></tr>'


def lengths(store: SpectrogramSource) -> str:
    """How long the clips are, padding left out, and where they come from."""
    shift = 0.01 if store.features is None else store.features.frame_shift
    seconds = store.real_frames * shift
    shortest, longest = float(seconds.min()), float(seconds.max())
    chart = ""
    text = f"Spectrograms are {store.frames * shift:.2f} s long, all clips {longest:.2f} s."
    if shortest < longest:
        drawn = histogram(seconds, title="length of the clips", x_label="seconds")
        chart = f'<div class="grid">{drawn}</div>'
        padded = float(np.mean(store.real_frames < store.frames))
        text = f"Spectrograms are {store.frames * shift:.2f} s long; {padded:.0%} of the clips are shorter and padded."
    files = len(set(store.index["file"].to_pylist()))
    groups = Counter(group for group in store.index["group"].to_pylist() if group)
    origin = f"They come from {files:,} files"
    origin += f" in {len(groups):,} groups." if groups else "; none belongs to a group."
    listed = ""
    if groups:
        rows = [(name, f"{count:,}") for name, count in groups.most_common(_MOST_LISTED)]
        listed = details("The groups", table(("group", "clips"), rows, numbers=[1]))
    return f"<p>{escape(text)} {escape(origin)}</p>{chart}{listed}"


def examples(clips: Clips, *, most: int, seed: int) -> str:
    """Some clips, one of each label first."""
    order = np.random.default_rng(seed).permutation(len(clips.store)).tolist()
    turn: Counter[str] = Counter()
    ranked: list[tuple[int, int, str]] = []
    for row in order:
        label = (clips.labels(row) or ["no label"])[0]
        ranked.append((turn[label], row, label))
        turn[label] += 1
    chosen = sorted(ranked, key=lambda each: each[0])[:most]
    return cards(clips.card(row, title=label) for _, row, label in sorted(chosen, key=lambda each: each[2]))


def copies(clips: Clips) -> str:
    """Clips whose spectrograms are the same, byte for byte, and what follows from it."""
    store = clips.store
    rows = np.arange(min(len(store), _MOST_COMPARED))
    same = [group for group in _by_content(store, rows).values() if len(group) > 1]
    partly = "" if len(rows) == len(store) else f" Only the first {len(rows):,} clips were compared."
    if not same:
        return f"<p>No two clips have the same spectrogram.{partly}</p>"
    splits = store.index["split"].to_pylist()
    astride = sum(len({splits[row] for row in group}) > 1 for group in same)
    quarrel = sum(len({tuple(clips.labels(row)) for row in group}) > 1 for group in same)
    text = f"{sum(map(len, same)):,} clips have the same spectrogram as another one, in {len(same):,} groups.{partly}"
    warnings = ""
    if astride:
        text_astride = f"{astride:,} of these groups lie on both sides of the split: figures of validation flatter."
        warnings += note(f"{text_astride} Delete the copies, or give them one group.", warning=True)
    if quarrel:
        warnings += note(f"{quarrel:,} of these groups have different labels: one of them is wrong.", warning=True)
    listed = [
        (" = ".join(clips.name(row) for row in group[:4]), ", ".join(clips.labels(group[0])))
        for group in same[:_MOST_LISTED]
    ]
    return f"<p>{escape(text)}</p>{warnings}{details('Which ones', table(('clips', 'label of the first'), listed))}"


def _by_content(store: SpectrogramSource, rows: NDArray[np.int64]) -> dict[bytes, list[int]]:
    groups: dict[bytes, list[int]] = defaultdict(list)
    for part, spectrograms in readable_batches(store, rows, batch_size=256):
        for row, values in zip(part.tolist(), spectrograms, strict=True):
            content = np.ascontiguousarray(values[: int(store.real_frames[row])])
            groups[hashlib.blake2b(content.tobytes(), digest_size=16).digest()].append(row)
    return groups


def left_out(path: Path) -> str:
    """Counts the failures in `failures.csv` by kind.

    Raises:
        NotShownError: There is no such file.
        ManifestError: It cannot be read.
    """
    if not path.is_file():
        raise NotShownError("there is no failures.csv", path=path.parent)
    failures = read_failures(path)
    if not failures:
        return "<p>Nothing was left out.</p>"
    kinds = Counter(failure.kind for failure in failures)
    counted = table(("what is wrong", "files"), [(kind, f"{n:,}") for kind, n in kinds.most_common()], numbers=[1])
    rows = [(failure.file, failure.reason, failure.advice) for failure in failures[:_MOST_FAILURES]]
    some = f"The first {_MOST_FAILURES} of {len(failures):,}" if len(failures) > _MOST_FAILURES else "Which ones"
    return f"{counted}{details(some, table(('file', 'what is wrong', 'what to do'), rows))}"
