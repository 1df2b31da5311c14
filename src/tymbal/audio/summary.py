"""The result of a scan, as a person reads it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tymbal.audio.failures import Failure
from tymbal.audio.findings import Finding
from tymbal.audio.manifest import Manifest
from tymbal.progress import duration

__all__ = ["summarise"]

_MOST = 12  # labels or rates that are listed


def summarise(
    manifest: Manifest, failures: Sequence[Failure], findings: Sequence[Finding], output: Path | None = None
) -> str:
    """What is there, what is worth knowing, and what was left out: a few lines of plain text."""
    lines = [_headline(manifest), *_facts(manifest)]
    if findings:
        lines += ["", "Worth knowing", *(f"  - {finding.text}" for finding in findings)]
    if failures:
        lines += ["", f"Left out: {_count(len(failures), 'file')}", *_failures(failures)]
    if output is not None:
        where = f" and {output.with_name('failures.csv')}" if failures else ""
        lines += ["", f"Written: {output}{where}"]
    return "\n".join(lines)


def _headline(manifest: Manifest) -> str:
    files = len({clip.file for clip in manifest})
    total = duration(sum(clip.duration or 0 for clip in manifest))
    parts = "" if files == len(manifest) else f"{_count(len(manifest), 'clip')} in "
    return f"{parts}{_count(files, 'sound file')}, {total} ({manifest.root})"


def _facts(manifest: Manifest) -> Iterable[str]:
    lengths = [clip.duration for clip in manifest if clip.duration is not None]
    if lengths:
        low, middle, high = min(lengths), statistics.median(lengths), max(lengths)
        each = f"{low:.2f} s each" if high - low < 0.005 else f"{low:.2f} to {high:.2f} s, median {middle:.2f} s"
        yield f"  duration     {each}"
    rates = Counter(clip.sample_rate for clip in manifest)
    yield f"  sample rate  {_table((f'{rate:,} Hz', count) for rate, count in rates.most_common())}"
    kinds = Counter({1: "mono", 2: "stereo"}.get(clip.channels or 0, f"{clip.channels} channels") for clip in manifest)
    yield f"  channels     {_table(kinds.most_common())}"
    labels = Counter(label for clip in manifest for label in clip.labels)
    if labels:
        yield f"  labels       {len(labels)}: {_table(labels.most_common())}"
    groups = {clip.group for clip in manifest if clip.group is not None}
    if groups:
        yield f"  groups       {len(groups):,}"
    splits = Counter(clip.split for clip in manifest if clip.split is not None)
    if splits:
        sides = [(side, splits[side]) for side in ("train", "validation", "test") if splits[side]]
        yield f"  split        {_table(sides)}"


def _table(counts: Iterable[tuple[str, int]]) -> str:
    counts = list(counts)
    if len(counts) == 1:
        return counts[0][0]
    shown = ", ".join(f"{name} ({count:,})" for name, count in counts[:_MOST])
    return shown if len(counts) <= _MOST else f"{shown} and {len(counts) - _MOST} more"


def _failures(failures: Sequence[Failure]) -> Iterable[str]:
    kinds = Counter(failure.kind for failure in failures)
    for kind, count in kinds.most_common():
        first = next(failure for failure in failures if failure.kind == kind)
        yield f"  {kind:12} {count:>6,}   {first.file}: {first.reason.removeprefix(f'{kind}: ')}"
        yield f"  {'':12} {'':>6}   {first.advice}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
