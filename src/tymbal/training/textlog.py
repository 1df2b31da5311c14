"""What a run logged, for a person: `log.txt`, the figures of `metrics.jsonl` line for line.

elapsed   epoch    step
0:00:31    1.00      19  loss 1.023, accuracy 0.41, learning rate 9.3e-05, batch size 8
0:00:32    1.00      19  validation: loss 0.9813, accuracy 0.5
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["HEADER", "is_figure", "log_line"]

HEADER = f"{'elapsed':>8}{'epoch':>8}{'step':>8}\n"

_PLACE = ("step", "epoch", "seconds")
_VALIDATION = "eval_"


def is_figure(name: str) -> bool:
    """Whether a logged value says something of the model, not of the speed of its evaluation."""
    return name not in _PLACE and not name.endswith(("_runtime", "_per_second"))


def log_line(line: Mapping[str, Any]) -> str:
    """One line of `metrics.jsonl` in words, with its newline."""
    figures = {name: value for name, value in line.items() if is_figure(name)}
    of_validation = any(name.startswith(_VALIDATION) for name in figures)
    order = sorted(figures, key=lambda name: (not name.endswith("loss"), name == "batch_size"))
    told = [f"{name.removeprefix(_VALIDATION).replace('_', ' ')} {_shown(figures[name])}" for name in order]
    minutes, seconds = divmod(int(line["seconds"]), 60)
    elapsed = f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
    what = "validation: " if of_validation else ""
    return f"{elapsed:>8}{line['epoch']:>8.2f}{line['step']:>8}  {what}{', '.join(told)}\n"


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "not a number" if value is None else f"{value:,}"
