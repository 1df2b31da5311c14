"""What the benchmarks share: the machine, medians of rounds in turns, and a table."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

__all__ = ["machine", "ratios", "table"]


def machine() -> str:
    """The processor, cores, system and day, in one line."""
    import os

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{_processor()}, {cores} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}, "
        f"{date.today()}"
    )


def ratios(rounds: Mapping[str, Sequence[float]], name: str, against: str) -> float:
    """Median over the rounds of one figure against another of the same round: neighbours in time."""
    return statistics.median(own / other for own, other in zip(rounds[name], rounds[against], strict=True))


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (headers, *rows)) for i in range(len(headers))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (headers, *rows)
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
