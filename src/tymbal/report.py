"""One page that shows what came out: `tymbal report`.

    tymbal report run                                       learning curves, what was rebuilt, a map of the clips
    tymbal report store run classifier night.csv -o all.html

A source is a store, a run of pretraining or fine-tuning, the table of a probe, or what predict wrote; each has its part
of the page. The page is one file with pictures and sounds in it: it opens from the disk, fetches nothing, and can be
sent as it is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tymbal import config as configuration
from tymbal._version import __version__
from tymbal.errors import SettingsError
from tymbal.files import sole_writer, write_text
from tymbal.progress import Progress, tell
from tymbal.settings import ReportSettings
from tymbal.settings.fields import foreign

__all__ = ["ReportResult", "report"]


@dataclass(frozen=True, kw_only=True)
class ReportResult:
    """The outcome of `report`.

    Attributes:
        output: The page.
        sections: Titles of the sections, part by part.
        bytes: Its size.
    """

    output: Path
    sections: dict[str, tuple[str, ...]]
    bytes: int

    def summary(self) -> str:
        """Where the page is."""
        size = f"{self.bytes / 1e6:.1f} MB" if self.bytes >= 1e6 else f"{self.bytes / 1e3:.0f} kB"
        return f"written: {self.output} ({size}; open it with a browser)"


def report(
    sources: str | Path | Sequence[str | Path],
    output: str | Path | None = None,
    *,
    config: str | Path | None = None,
    **settings: Any,
) -> ReportResult:
    """Writes one page about stores, runs and predictions.

    The page names what it cannot show, since files are gone or labels missing, with the reason.

    Args:
        sources: A store, the folder of a run, the `.json` table of a probe, what `tymbal predict` wrote (a table of
            windows or detections, a folder of Raven or Audacity files); or several of these.
        output: The page, an `.html` file. None is `report.html` in the folder of the first source, and the name of the
            table with `.html` beside a table.
        config: YAML file with settings.
        **settings: See `tymbal.settings.ReportSettings`.

    Raises:
        SettingsError: A source is nothing that can be reported on.
        StoreError: A store cannot be read.
    """
    from tymbal.pages.page import page
    from tymbal.reporting.parts import PageContext, part_of

    chosen = configuration.resolve(ReportSettings, settings, config=config)
    configuration.say_useless(chosen)
    given = [Path(sources)] if isinstance(sources, str | os.PathLike) else [Path(source) for source in sources]
    if not given:
        raise SettingsError("there is nothing to report on", advice="Give a store, a run, or a table of predictions.")
    place = _place(given[0], output)
    with sole_writer(place):
        context = PageContext()
        with Progress(len(given), "Reporting", unit="parts") as progress:
            parts = []
            for source in given:
                parts.append(part_of(source, chosen, context))
                progress.advance()
        for name in foreign(chosen, context.kinds):
            tell(f"{name} has no effect: nothing on the page is drawn by it", warning=True)
        written = datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC").lstrip("0")
        title = parts[0].title if len(parts) == 1 else f"Report: {', '.join(source.resolve().name for source in given)}"
        text = page(
            title, f"Written on {written}", parts, footer=f"Tymbal {__version__}. All of it is in this one file."
        )
        write_text(place, text)
    return ReportResult(
        output=place,
        sections={part.title: tuple(each.title for each in part.sections) for part in parts},
        bytes=place.stat().st_size,
    )


def _place(first: Path, output: str | Path | None) -> Path:
    if output is None:
        return first / "report.html" if first.is_dir() else first.with_suffix(".html")
    if Path(output).suffix not in (".html", ".htm"):
        raise SettingsError("a report is an .html file", path=output, advice=f"Write to {output}.html.")
    return Path(output)
