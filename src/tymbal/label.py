"""Labels of recordings, window by window, with a model that says which comes next: `tymbal label`.

    tymbal label run nights -o labels --labels robin,wren
    tymbal label run nights -o labels --begin raven_tables
    tymbal label classifier nights -o labels --review night.review.csv --least-precision 0.9
    tymbal label --merge anns_labels bens_labels -o both.csv

The same without a page, for scripts and notebooks:

    session = tymbal.label.open_labels("run", "nights", "labels")
    for suggestion in tymbal.label.next_clips(session, 10):
        tymbal.label.answer(session, suggestion.window, "robin")
"""

from __future__ import annotations

import contextlib
import threading
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tymbal import config as configuration
from tymbal.files import sole_writer, written_alone
from tymbal.pages.serving import LOOPBACK, address, free_port, own_folder
from tymbal.progress import counted, say
from tymbal.settings import LabelSettings
from tymbal.stopping import stop_at_once

if TYPE_CHECKING:
    from tymbal.labelling.agreement import Merged
    from tymbal.labelling.choosing import Suggestion
    from tymbal.labelling.knowledge import Knowledge
    from tymbal.labelling.session import Session
    from tymbal.labelling.table import Window

__all__ = ["LabelResult", "answer", "label", "next_clips", "open_labels"]


@dataclass(frozen=True)
class LabelResult:
    """The outcome of a labelling.

    Attributes:
        output: The folder of the labelling.
        table: The table of labels.
        knowledge: What is known by now.
        annotations: Files of annotations that were written beside the table.
        review: Remarks on what was reviewed.
    """

    output: Path
    table: Path
    knowledge: Knowledge
    annotations: tuple[Path, ...] = ()
    review: tuple[str, ...] = ()

    def summary(self) -> str:
        """Windows by label, and where the table is."""
        known = self.knowledge
        lines = [f"{count:,} {name}" for name, count in known.counts.items()]
        rest = [f"{known.nothing:,} with nothing", f"{known.unsure:,} unsure", f"{known.checked:,} checked blindly"]
        folder = [f"annotations: {self.annotations[0].parent}"] if self.annotations else []
        return "\n".join(
            [", ".join([*lines, *rest]), *filter(None, [known.advice]), *self.review, f"labels: {self.table}", *folder]
        )


@written_alone
def label(
    model: str | Path,
    recordings: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    config: str | Path | None = None,
    until: threading.Event | None = None,
    **settings: Any,
) -> LabelResult | Merged:
    """Labels recordings on a page that stays on this machine, until Ctrl-C.

    Args:
        model: A run, a model folder, a Hugging Face or SSAST checkpoint; with `merge` a table of labels.
        recordings: Recordings of any length, folders of them, or a `.parquet` file of `tymbal embed`; with `merge`
            other tables of labels.
        output: The folder of the labelling. What is there goes on. With `merge` the table to write.
        config: YAML file with settings.
        until: Ends the page when it is set, for programs.
        **settings: See `tymbal.settings.LabelSettings`.

    Raises:
        AudioError: No recording can be read.
        ModelError: The model cannot be read, or the embeddings are another model's.
        SettingsError: Settings do not fit, the address cannot be had, or the table or annotations cannot be read.
    """
    from tymbal.labelling.agreement import merge_tables
    from tymbal.labelling.session import Session

    chosen = configuration.resolve(LabelSettings, settings, config=config)
    if chosen.merge:
        others = [recordings] if isinstance(recordings, str | Path) else recordings
        merged = merge_tables([model, *others], output)
        return replace(merged, annotations=_annotations(merged.output, chosen))
    port = free_port(chosen.host, chosen.port)
    say(f"Starting: the page will be at {address(chosen.host, port)}")
    with stop_at_once():
        session = Session.open(model, recordings, output, chosen)
        _serve(session, port, f"{model} on {_named(recordings)}, answers in {session.path}", until or threading.Event())
    written = _annotations(session.path, chosen)
    return LabelResult(Path(output), session.path, session.knowledge(), written, _reviewed(model, session))


def _reviewed(model: str | Path, session: Session) -> tuple[str, ...]:
    """Remarks on a review: precision by score, and the thresholds that were written into the model."""
    from tymbal.labelling.review import described, thresholds_for, write_thresholds

    chosen = session.settings
    if chosen.review is None:
        return ()
    bands = session.bands(chosen.review)
    lines = [f"precision by score: {line}" for line in described(bands)]
    if chosen.least_precision is None:
        return tuple(lines)
    found = thresholds_for(bands, chosen.least_precision)
    if found:
        file = write_thresholds(model, found)
        named = ", ".join(f"{name} {score:.1f}" for name, score in found.items())
        lines.append(f"thresholds for a precision of {chosen.least_precision:.0%}, written into {file}: {named}")
    missing = [name for name in bands if name not in found]
    if missing:
        lines.append(f"no threshold is known to give it: {', '.join(missing)} (answer more, or learn from the answers)")
    return tuple(lines)


def _annotations(table: Path, chosen: LabelSettings) -> tuple[Path, ...]:
    """Writes a table as another program takes it, where settings say so; the files."""
    from tymbal.inference.tables import RowFormat, table_format
    from tymbal.labelling.table import read_table, write_annotations

    if chosen.format is None or not table.is_file():
        return ()
    folder = table.with_name(f"{table.stem}.{chosen.format}")
    return write_annotations(read_table(table), folder, table_format(chosen.format, RowFormat))


def _named(recordings: str | Path | Sequence[str | Path]) -> str:
    given = [recordings] if isinstance(recordings, str | Path) else list(recordings)
    return str(given[0]) + (f" and {len(given) - 1} more" if len(given) > 1 else "")


def _serve(session: Session, port: int, facts: str, until: threading.Event) -> None:
    """Serves the page until Ctrl-C, or until the event is set."""
    from tymbal.labelling.page import LabelPage
    from tymbal.labelling.server import serving

    chosen = session.settings
    url = address(chosen.host, port)
    count = counted(session.windows.total, "window")
    with own_folder("label") as folder:
        most = round(1e9 * chosen.upload_gb)
        page = LabelPage(session, folder, count=chosen.clips, most=most, facts=f"{count}: {facts}")
        with serving(page, host=chosen.host, port=port):
            say(f"The page is at {url}  (Ctrl-C ends it)")
            if chosen.host not in LOOPBACK:
                say("Whoever reaches this address can use the page: there is no password.", style="yellow")
            if chosen.browser:
                webbrowser.open(url)
            with contextlib.suppress(KeyboardInterrupt):
                while not until.wait(1.0):
                    pass


def open_labels(
    model: str | Path, recordings: str | Path | Sequence[str | Path], output: str | Path, **settings: Any
) -> Session:
    """Opens a labelling for scripts and notebooks; the arguments are those of `label`.

    Raises:
        AudioError: No recording can be read.
        ModelError: The model cannot be read, or the embeddings are another model's.
        SettingsError: Settings do not fit, or the table or annotations cannot be read.
    """
    from tymbal.labelling.session import Session

    return Session.open(model, recordings, output, configuration.resolve(LabelSettings, settings))


def next_clips(session: Session, count: int = 1, **how: Any) -> list[Suggestion]:
    """The windows that come next.

    Args:
        session: What `open_labels` gave.
        count: How many.
        **how: `by`, `like`, `vector`, `label`, `skip`; see `tymbal.labelling.session.Session.next`.
    """
    return session.next(count, **how)


def answer(
    session: Session, window: Window, *labels: str, unsure: bool = False, check: bool = False, **box: float
) -> None:
    """Says what is heard in a window; it is on the disk when this returns.

    Args:
        session: What `open_labels` gave.
        window: The window.
        *labels: What is heard; none is that nothing is.
        unsure: Whether that is not known.
        check: Whether the window is one of the blind sample, `session.check`.
        **box: Where it is heard: `start` and `end` in seconds, `low` and `high` in Hz.

    Raises:
        SettingsError: The answer contradicts itself, or another process labels the same.
    """
    from tymbal.labelling.table import Answer

    kind: Literal["labels", "nothing", "unsure"] = "unsure" if unsure else "labels" if labels else "nothing"
    with sole_writer(session.path):
        session.answer([Answer(window, labels, kind, check=check, **box)])


for _function in (open_labels, next_clips, answer):  # `tymbal.label` is the function, and has them beside it
    setattr(label, _function.__name__, _function)
