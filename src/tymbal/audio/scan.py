"""Looks at every file once, in parallel, and lists the usable clips in one manifest.

    tymbal scan recordings -o manifest.csv

Files that cannot be used are named in `manifest.failures.csv` beside it and left out of it; nothing takes their place.
Duplicates and what straddles the split are findings: reported, not changed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tymbal.audio.clip_labels import assign_splits, group_clips, label_clips, renamed, seed_note, split_by_folders
from tymbal.audio.decode import DISAGREEMENT
from tymbal.audio.failures import ADVICE, Failure, failures_beside, write_failures
from tymbal.audio.findings import Finding, find, remarked, summarise
from tymbal.audio.inspect import FileReport, inspect
from tymbal.audio.manifest import Clip, Manifest
from tymbal.audio.sources import read_source
from tymbal.config import resolve
from tymbal.errors import AudioError, ManifestError
from tymbal.files import written_alone
from tymbal.machine import cores
from tymbal.progress import Progress
from tymbal.settings import FeatureSettings, ScanSettings

__all__ = ["ScanResult", "scan"]

_PATIENCE = 1.0  # seconds: about what a pool of processes takes to start
_CHUNK = 16  # files a process takes at once


@dataclass(frozen=True)
class ScanResult:
    """The outcome of a scan.

    Attributes:
        manifest: The clips that can be used.
        failures: The files left out, and why.
        findings: Facts worth knowing although no file is at fault.
        output: The manifest's path, or None.
    """

    manifest: Manifest
    failures: list[Failure]
    findings: list[Finding]
    output: Path | None = None

    def summary(self) -> str:
        """The result as a person reads it."""
        return summarise(self.manifest, self.failures, self.findings, self.output)


@written_alone
def scan(
    source: str | os.PathLike[str] | Manifest,
    output: str | os.PathLike[str] | None = None,
    *,
    config: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> ScanResult:
    """Looks at every sound file of a folder or a list, and makes a manifest of those that can be used.

    Args:
        source: A folder, a list (CSV, TSV, Parquet, JSON, JSON lines, text), one sound file, or a manifest.
        output: Where to write the manifest (.csv or .parquet), with what was left out beside it, in
            `NAME.failures.csv`. None writes nothing.
        config: A YAML file with settings; those given here override it.
        **settings: See `tymbal.settings.ScanSettings`.

    Raises:
        SettingsError: A setting is unknown, wrong, or does not fit the source.
        ManifestError: The source cannot be read or contradicts itself.
        AudioError: Not one file can be used.
    """
    chosen = resolve(ScanSettings, settings, config=config)
    listing = read_source(
        source, label_csv=chosen.label_csv, label_separator=chosen.label_separator, columns=chosen.their_columns
    )
    if output is not None:
        _check_output(Path(output))
    clips, notes = _described(listing.clips, chosen, labelled=listing.labelled)
    assign_splits(clips, chosen)  # report what cannot be split before the work, not after it
    files = list(dict.fromkeys(clip.file for clip in clips))
    reports = {report.file: report for report in _inspect_all(files, chosen)}
    good, failures = _sort(clips, reports, chosen.min_seconds)
    failures = listing.failures + failures
    if not good:
        raise _nothing_left(failures, source)
    manifest = Manifest(tuple(assign_splits(good, chosen)), listing.root)
    rates = FeatureSettings().remark_on([clip.sample_rate for clip in manifest if clip.sample_rate])
    remarks = [*remarked(_remarks(reports.values())), *([rates] if rates else [])]
    findings = find(manifest.clips, [*listing.notes, *notes, *remarks])
    if output is not None:
        manifest.write(output)
        write_failures(failures_beside(Path(output)), failures)
    return ScanResult(manifest, failures, findings, None if output is None else Path(output))


def _described(clips: Sequence[Clip], settings: ScanSettings, *, labelled: bool) -> tuple[list[Clip], list[str]]:
    """Clips with labels, groups and the splits of folders, and what was noticed."""
    clips, label_notes = label_clips(clips, settings, labelled=labelled)
    clips = renamed(clips, settings.new_names)
    clips, group_notes = group_clips(clips, settings)
    clips = split_by_folders(clips)
    return clips, [*label_notes, *group_notes, *seed_note(clips, settings)]


def _check_output(output: Path) -> None:
    """Whether a manifest can be called so: said before the work, too."""
    if output.suffix.lower() not in (".csv", ".parquet"):
        raise ManifestError(
            "a manifest is written as .csv or .parquet", path=output, advice="Give the output one of these suffixes."
        )
    if output.name.endswith("failures.csv"):
        raise ManifestError("this name is for the files that are left out", path=output, advice="Take manifest.csv.")


def _inspect_all(files: Sequence[str], settings: ScanSettings) -> Iterator[FileReport]:
    """Reports in the order of the files: the first second in this process, what is left then by a pool."""
    look = partial(inspect, silence_db=settings.silence_db, min_seconds=settings.min_seconds)
    workers = settings.workers or cores()
    with Progress(len(files), "Scanning", unit="files") as progress:
        begin = time.monotonic()
        done = 0
        for report in map(look, files):
            yield report
            done += 1
            progress.advance(failed=int(report.problem is not None))
            spent = time.monotonic() - begin
            if workers > 1 and spent > _PATIENCE and spent / done * (len(files) - done) > 2 * _PATIENCE:
                break
        for report in _in_parallel(look, files[done:], workers):
            yield report
            progress.advance(failed=int(report.problem is not None))


def _in_parallel(look: partial[FileReport], files: Sequence[str], workers: int) -> Iterator[FileReport]:
    if not files:
        return
    # Spawned, never forked: a fork inherits locks of threads that it does not have.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_leave_interrupts_to_parent)
    try:
        yield from pool.map(look, files, chunksize=_CHUNK)
    except BrokenProcessPool:
        raise AudioError(
            "a process that reads files has died",
            advice="In a script, call scan below `if __name__ == '__main__':`. Else a file crashes its decoder or "
            "memory ran out: workers=1 shows which.",
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _leave_interrupts_to_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _sort(
    clips: Iterable[Clip], reports: dict[str, FileReport], min_seconds: float
) -> tuple[list[Clip], list[Failure]]:
    """Returns the good clips with what was measured of them, and the failures: one per file or part of a file."""
    good: list[Clip] = []
    failures: dict[str, Failure] = {}
    for clip in clips:
        report = reports[clip.file]
        failure = report.failure or _misfit(clip, report, min_seconds)
        if failure is not None:
            failures[clip.file if report.failure else clip.id] = failure
        elif report.info is not None:
            end = report.info.duration if clip.end is None else min(clip.end, report.info.duration)
            good.append(
                replace(
                    clip,
                    duration=round(end - clip.start, 6),
                    sample_rate=report.info.sample_rate,
                    channels=report.info.channels,
                    hash=report.hash,
                )
            )
    return good, list(failures.values())


def _remarks(reports: Iterable[FileReport]) -> dict[str, list[str]]:
    """The good files by what is unusual about them."""
    remarks: dict[str, list[str]] = {}
    for report in reports:
        for remark in report.info.remarks if report.info is not None and report.problem is None else ():
            remarks.setdefault(remark, []).append(report.file)
    return remarks


def _misfit(clip: Clip, report: FileReport, min_seconds: float) -> Failure | None:
    """The failure of a part that does not fit its good file; None if it fits."""
    if report.info is None or (clip.start == 0 and clip.end is None):
        return None
    length = report.info.duration
    if clip.start >= length or (clip.end is not None and clip.end > length + DISAGREEMENT):
        interval = f"{clip.start:g} to {'its end' if clip.end is None else f'{clip.end:g} s'}"
        reason = f"out of range: {interval} is wanted of a file of {length:.2f} s"
        return Failure(clip.file, reason, ADVICE["out of range"])
    if (length if clip.end is None else min(clip.end, length)) - clip.start < min_seconds:
        return Failure(clip.file, f"too short: the part at {clip.start:g} s", ADVICE["too short"])
    return None


def _nothing_left(failures: Sequence[Failure], source: str | os.PathLike[str] | Manifest) -> AudioError:
    if len(failures) == 1:
        return AudioError(failures[0].reason, path=failures[0].file, advice=failures[0].advice)
    path = source.root if isinstance(source, Manifest) else source
    some = "".join(f"\n  {failure.file}: {failure.reason}" for failure in failures[:3])
    return AudioError(f"not one of its {len(failures):,} files can be used{some}", path=path, advice=failures[0].advice)
