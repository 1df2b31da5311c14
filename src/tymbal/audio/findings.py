"""Findings of a scan for a person to read: counts, and what is worth knowing although no file is at fault.

Nothing is changed or dropped because of a finding; it says what the user may want to change.
"""

from __future__ import annotations

import statistics
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tymbal.audio.failures import Failure, failures_beside
from tymbal.audio.manifest import Clip, Manifest, place
from tymbal.progress import duration

__all__ = ["Finding", "find", "remarked", "summarise"]


@dataclass(frozen=True)
class Finding:
    """Something worth knowing.

    Attributes:
        kind: `note`, `duplicates`, `label conflict`, `duplicate straddles`, `group straddles`, `file straddles`,
            `no validation`, `label spelling` or `no label`.
        text: The finding in words, with an example and advice.
        files: The files that it is about, as paths from the root.
    """

    kind: str
    text: str
    files: tuple[str, ...] = ()


def find(clips: Sequence[Clip], notes: Iterable[str] = ()) -> list[Finding]:
    """Runs every check on the clips.

    Args:
        clips: Scanned clips with labels, groups and splits.
        notes: Remarks of earlier steps, to report with the rest.
    """
    findings = [Finding("note", note) for note in notes]
    copies = {key: group for key, group in _by(clips, lambda clip: clip.hash).items() if len(_places(group)) > 1}
    findings += _duplicates(list(copies.values()))
    straddling = [group for group in copies.values() if _straddles(group)]
    if straddling:
        text = "copies of one file lie on both sides of the split: give them one group, or delete one"
        findings.append(_finding("duplicate straddles", text, straddling))
    groups = [group for group in _by(clips, lambda clip: clip.group).values() if _straddles(group)]
    if groups:
        names = _some(sorted(group[0].group or "" for group in groups))
        text = f"groups lie on both sides of the split ({names}): --split groups keeps them together"
        findings.append(_finding("group straddles", text, groups))
    parts = [group for group in _by(clips, lambda clip: clip.file).values() if _straddles(group)]
    if parts:
        text = "parts of one file lie on both sides of the split: --split auto keeps them together"
        findings.append(_finding("file straddles", text, parts))
    return findings + _gaps(clips)


def remarked(remarks: Mapping[str, Sequence[str]]) -> list[str]:
    """Notes on what readers found unusual in files, although nothing of them is lost.

    Args:
        remarks: The files that each remark is about.
    """
    return [f"{remark}; {_count(len(files), 'file')}, as {files[0]}" for remark, files in sorted(remarks.items())]


def _by(clips: Iterable[Clip], key: Callable[[Clip], str | None]) -> dict[str, list[Clip]]:
    groups: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        name = key(clip)
        if name is not None:
            groups[name].append(clip)
    return groups


def _places(clips: Iterable[Clip]) -> list[str]:
    return sorted({place(clip) for clip in clips})


def _straddles(clips: Iterable[Clip]) -> bool:
    return len({clip.split for clip in clips} - {None}) > 1


def _finding(kind: str, text: str, groups: list[list[Clip]]) -> Finding:
    places = _places(clip for group in groups for clip in group)
    one = [min(_places(clip for clip in groups[0] if clip.split == split)) for split in sorted(_splits(groups[0]))]
    return Finding(kind, f"{text}; {len(groups):,} such, as {' and '.join(one)}", tuple(places))


def _splits(clips: Iterable[Clip]) -> set[str]:
    return {clip.split for clip in clips if clip.split is not None}


def _duplicates(copies: list[list[Clip]]) -> list[Finding]:
    if not copies:
        return []
    places = [_places(group) for group in copies]
    extra = sum(map(len, places)) - len(places)
    text = f"exact copies of another file: {extra:,}, as {' = '.join(places[0][:3])}"
    findings = [Finding("duplicates", text, tuple(sorted(place for group in places for place in group)))]
    differing = [
        group for group in copies if len({clip.labels for clip in group if clip.start == 0 and clip.end is None}) > 1
    ]
    if differing:
        one = " and ".join(f"{place(clip)} ({';'.join(clip.labels) or 'none'})" for clip in differing[0][:2])
        text = f"copies of one file have different labels; {len(differing):,} such, as {one}"
        findings.append(Finding("label conflict", text, tuple(_places(clip for group in differing for clip in group))))
    return findings


def _gaps(clips: Sequence[Clip]) -> list[Finding]:
    findings = []
    if len(clips) > 1 and _splits(clips) and not any(clip.split == "validation" for clip in clips):
        text = "no clip is for validation: nothing will tell when to stop, or which model is best"
        findings.append(Finding("no validation", text))
    spellings = _by_spelling({label for clip in clips for label in clip.labels})
    if spellings:
        findings.append(Finding("label spelling", f"labels differ only in case: {_some(spellings)}"))
    bare = [place(clip) for clip in clips if not clip.labels]
    if bare and len(bare) < len(clips):
        findings.append(Finding("no label", f"clips without a label: {len(bare):,}, as {bare[0]}", tuple(bare)))
    return findings


def _by_spelling(labels: Iterable[str]) -> list[str]:
    """Labels that are the same but for upper and lower case, as `Wren/wren`."""
    spellings: dict[str, list[str]] = defaultdict(list)
    for label in sorted(labels):
        spellings[label.casefold()].append(label)
    return ["/".join(names) for names in spellings.values() if len(names) > 1]


def _some(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")


_MOST = 12  # rates and the like that are listed
_MOST_LABELS = 200
_WIDTH = 110


def summarise(
    manifest: Manifest, failures: Sequence[Failure], findings: Sequence[Finding], output: Path | None = None
) -> str:
    """Summarises the clips, the findings and the files left out in a few lines of plain text."""
    lines = [_headline(manifest), *_facts(manifest)]
    if findings:
        lines += ["", "Worth knowing", *(f"  - {finding.text}" for finding in findings)]
    if failures:
        lines += ["", f"Left out: {_count(len(failures), 'file')}", *_failures(failures)]
    if output is not None:
        where = f" and {failures_beside(output)}" if failures else ""
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
        yield from _wrapped(f"  labels       {len(labels)}: {_table(labels.most_common(), most=_MOST_LABELS)}")
    groups = {clip.group for clip in manifest if clip.group is not None}
    if groups:
        yield f"  groups       {len(groups):,}"
    splits = Counter(clip.split for clip in manifest if clip.split is not None)
    if splits:
        sides = [(side, splits[side]) for side in ("train", "validation", "test") if splits[side]]
        yield f"  split        {_table(sides)}"


def _table(counts: Iterable[tuple[str, int]], most: int = _MOST) -> str:
    counts = list(counts)
    if len(counts) == 1:
        return counts[0][0]
    most += len(counts) == most + 1  # one more takes no more room than saying so
    shown = ", ".join(f"{name} ({count:,})" for name, count in counts[:most])
    return shown if len(counts) <= most else f"{shown} and {len(counts) - most} more"


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, _WIDTH, subsequent_indent=" " * 15, break_long_words=False, break_on_hyphens=False)


def _failures(failures: Sequence[Failure]) -> Iterable[str]:
    kinds = Counter(failure.kind for failure in failures)
    for kind, count in kinds.most_common():
        first = next(failure for failure in failures if failure.kind == kind)
        yield f"  {kind:12} {count:>6,}   {first.file}: {first.reason.removeprefix(f'{kind}: ')}"
        yield f"  {'':12} {'':>6}   {first.advice}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
