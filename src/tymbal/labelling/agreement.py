"""Tables of several people in one: what they agree on, what they do not, and how far beyond chance (Cohen 1960).

Answers are of the same window where they share more than half of the shorter one's time. Where people gave other
labels, the joined table says `?`, which nothing learns from, and `NAME.conflicts.csv` says who said what. One who was
sure stands above one who was not; of one person's answers the latest counts.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tymbal.audio.file_lists import LABELS, UNSURE
from tymbal.errors import SettingsError
from tymbal.files import replace_file
from tymbal.labelling.table import BEGIN, Row, answers_of, read_table, table_at, write_table
from tymbal.progress import counted

__all__ = ["Merged", "merge_tables"]

_CONFLICTS = ("file", "start", "end", "who", "label")


@dataclass(frozen=True)
class Merged:
    """Tables that became one.

    Attributes:
        output: The joined table.
        answers: Windows in it.
        shared: Windows that several people answered.
        conflicts: Windows on which they do not agree.
        conflicts_file: Who said what of them; None where all agree.
        kappa: Cohen's kappa by label, and under `all labels` of the labels together, for the windows that the first two
            tables share; 1 is agreement, 0 what chance would give. None where both always said the same.
        annotations: Files of annotations that were written beside the table.
    """

    output: Path
    answers: int
    shared: int
    conflicts: int
    conflicts_file: Path | None = None
    kappa: Mapping[str, float | None] = field(default_factory=dict)
    annotations: tuple[Path, ...] = ()

    def summary(self) -> str:
        """The result as a person reads it."""
        lines = [
            f"{counted(self.answers, 'window')}, {self.shared:,} answered by several people, "
            f"{counted(self.conflicts, 'conflict')}"
        ]
        if self.kappa:
            lines.append("Cohen's kappa: " + ", ".join(f"{name} {_said(kappa)}" for name, kappa in self.kappa.items()))
        if self.conflicts_file is not None:
            lines.append(f"windows with other labels are unsure (?) in the table, and named in {self.conflicts_file}")
        return "\n".join([*lines, f"written: {self.output}"])


def _said(kappa: float | None) -> str:
    return "undefined (both always said the same)" if kappa is None else f"{kappa:.2f}"


@dataclass
class _Unit:
    """A window, and what each table says of it.

    Attributes:
        said: The rows of its answer by the table's number; of several answers in one table the latest.
    """

    said: dict[int, list[Row]]

    @property
    def place(self) -> Row:
        """A row of the window."""
        return next(iter(self.said.values()))[0]


def merge_tables(tables: Sequence[str | Path], output: str | Path) -> Merged:
    """Joins tables of labels.

    Args:
        tables: Tables, or folders of labellings; two or more.
        output: The table to write, or a folder for it.

    Raises:
        SettingsError: A table cannot be read, or the output is one of them.
    """
    paths = [table_at(Path(each)) for each in tables]
    target = Path(output)
    target = target if target.suffix.lower() == ".csv" else target / LABELS
    if len(paths) < 2:
        raise SettingsError("one table is nothing to join", advice="Give two: tymbal label --merge A B -o C")
    if target.absolute() in [path.absolute() for path in paths]:
        raise SettingsError("is one of the tables to join", path=target, advice="Write to another file or folder.")
    read = [read_table(path) for path in paths]
    units = _units(_on_same_files(read))
    rows: list[Row] = list(dict.fromkeys(row for table in read for row in table if row.round == BEGIN))
    conflicts: list[Row] = []
    for unit in units:
        settled = _settled(unit)
        rows += settled if settled is not None else [_unsure(unit)]
        conflicts += [] if settled is not None else [row for said in unit.said.values() for row in said]
    write_table(target, rows)
    named = target.with_name(f"{target.stem}.conflicts.csv")
    if conflicts:
        _write_conflicts(named, conflicts)
    else:
        named.unlink(missing_ok=True)
    return Merged(
        output=target,
        answers=len(units),
        shared=sum(len(unit.said) > 1 for unit in units),
        conflicts=sum(_settled(unit) is None for unit in units),
        conflicts_file=named if conflicts else None,
        kappa=_kappas([unit for unit in units if {0, 1} <= unit.said.keys()]),
    )


def _on_same_files(tables: Sequence[Sequence[Row]]) -> list[list[Row]]:
    """Tables with the paths of the first for recordings of the same name that lie elsewhere in another."""
    known = {row.file for row in tables[0]}
    by_name: dict[str, set[str]] = {}
    for file in known:
        by_name.setdefault(Path(file).name, set()).add(file)
    result = [list(tables[0])]
    for table in tables[1:]:
        same = {file: by_name.get(Path(file).name, set()) for file in {row.file for row in table} - known}
        renamed = {file: next(iter(ours)) for file, ours in same.items() if len(ours) == 1}
        result.append([row._replace(file=renamed.get(row.file, row.file)) for row in table])
    return result


def _units(tables: Sequence[Sequence[Row]]) -> list[_Unit]:
    """Windows with what each table says of them."""
    by_file: dict[str, list[_Unit]] = {}
    for number, table in enumerate(tables):
        for rows in answers_of(table):
            known = by_file.setdefault(rows[0].file, [])
            unit = next((unit for unit in known if _is_same(unit.place, rows[0])), None)
            if unit is None:
                known.append(_Unit({number: rows}))
            else:
                before = unit.said.get(number)
                unit.said[number] = rows if before is None or rows[0].when >= before[0].when else before
    return [unit for known in by_file.values() for unit in known]


def _is_same(one: Row, other: Row) -> bool:
    shared = min(one.end, other.end) - max(one.start, other.start)
    return shared > 0.5 * min(one.end - one.start, other.end - other.start)


def _labels(rows: Sequence[Row]) -> frozenset[str]:
    return frozenset(row.label for row in rows)


def _settled(unit: _Unit) -> list[Row] | None:
    """The rows that count of a window; None where people gave other labels."""
    latest: dict[str, list[Row]] = {}
    for rows in unit.said.values():
        before = latest.get(rows[0].who)
        if before is None or rows[0].when > before[0].when:
            latest[rows[0].who] = rows
    sure = [rows for rows in latest.values() if _labels(rows) != {UNSURE}]
    if not sure:
        return next(iter(latest.values()))
    return sure[0] if len({_labels(rows) for rows in sure}) == 1 else None


def _unsure(unit: _Unit) -> Row:
    who = "+".join(sorted({rows[0].who for rows in unit.said.values()}))
    when = max(rows[0].when for rows in unit.said.values())
    return unit.place._replace(label=UNSURE, who=who, when=when, low=None, high=None)


def _kappas(shared: Sequence[_Unit]) -> dict[str, float | None]:
    """Cohen's kappa of the first two tables, by label, and of the labels together; empty without shared windows."""
    pairs = [(_labels(unit.said[0]), _labels(unit.said[1])) for unit in shared]
    pairs = [(one, other) for one, other in pairs if {UNSURE} not in (one, other)]
    labels = sorted({label for pair in pairs for said in pair for label in said} - {""})
    found = {label: _kappa([(label in one, label in other) for one, other in pairs]) for label in labels}
    together = [(";".join(sorted(one)), ";".join(sorted(other))) for one, other in pairs]
    return {**found, "all labels": _kappa(together)} if pairs else {}


def _kappa(pairs: Sequence[tuple[object, object]]) -> float | None:
    from sklearn.metrics import cohen_kappa_score

    one, other = ([str(pair[side]) for pair in pairs] for side in (0, 1))
    if len({*one, *other}) < 2:
        return None
    value = float(cohen_kappa_score(one, other))
    return None if math.isnan(value) else value


def _write_conflicts(path: Path, rows: Sequence[Row]) -> None:
    with replace_file(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_CONFLICTS)
        writer.writerows((row.file, f"{row.start:.3f}", f"{row.end:.3f}", row.who, row.label) for row in rows)
