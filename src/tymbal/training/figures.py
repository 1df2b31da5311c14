"""The figures of a run as its files have them: the lines of `metrics.jsonl`, and the same in words, for `log.txt`.

Light to import, so that a run folder can be read without what trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tymbal.files import parse_json

__all__ = ["HEADER", "is_figure", "log_line", "metrics_at_step", "read_metrics"]

HEADER = f"{'elapsed':>8}{'epoch':>8}{'step':>8}\n"
"""The first line of `log.txt`."""

_PLACE = ("step", "epoch", "seconds")
_VALIDATION = "eval_"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; an absent file has none, and a torn line is left out."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return [line for line in map(_parsed, lines) if line is not None]


def metrics_at_step(path: Path, step: int) -> dict[str, float]:
    """All figures of one step in a metrics file that are defined."""
    figures: dict[str, float] = {}
    for line in read_metrics(path):
        if line["step"] == step:
            figures |= {name: value for name, value in line.items() if value is not None}
    return figures


def is_figure(name: str) -> bool:
    """Whether a logged value says something of the model, not of the speed of its evaluation."""
    return name not in _PLACE and not name.endswith(("_runtime", "_per_second"))


def log_line(line: Mapping[str, Any]) -> str:
    """One line of `metrics.jsonl` in words, with its newline."""
    figures = {name: value for name, value in line.items() if is_figure(name)}
    of_validation = any(name.startswith(_VALIDATION) for name in figures)
    order = sorted(figures, key=lambda name: (not name.endswith("loss"), name == "batch_size"))
    words = [f"{name.removeprefix(_VALIDATION).replace('_', ' ')} {_in_words(figures[name])}" for name in order]
    minutes, seconds = divmod(int(line.get("seconds", 0)), 60)
    elapsed = f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
    what = "validation: " if of_validation else ""
    return f"{elapsed:>8}{line.get('epoch', 0):>8.2f}{line['step']:>8}  {what}{', '.join(words)}\n"


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        value = parse_json(line)
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    whole = isinstance(value.get("step"), int) and all(
        isinstance(each, int | float) or (each is None and name not in _PLACE) for name, each in value.items()
    )
    return value if whole else None


def _in_words(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "not a number" if value is None else f"{value:,}"
