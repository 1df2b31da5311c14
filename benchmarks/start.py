"""How much processor time does the command line take before it does anything?

    python benchmarks/start.py
    python benchmarks/start.py --against ../before/src      # the same of another checkout, in turns

Each command runs in a process of its own, in turns with the others, so that what disturbs one disturbs all; beside them
an interpreter that does nothing. Figures are user and system time together, in milliseconds: the median over the
rounds, and the least.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

from _report import machine, table

COMMANDS = ("--help", "scan --help", "prepare --help", "pretrain --help", "finetune --help", "predict --help")


def processor_time(words: list[str], source: Path) -> float:
    """Milliseconds of processor time of one process, user and system."""
    environment = {**os.environ, "PYTHONPATH": str(source)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], env=environment, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--against", type=Path, help="src folder of another checkout")
    arguments = parser.parse_args()
    here = Path(__file__).resolve().parents[1] / "src"
    sources = {"this": here} | ({"other": arguments.against.resolve()} if arguments.against else {})
    runs = {("an empty interpreter", ""): ["-c", "pass"]}
    runs |= {
        (f"tymbal {command}", name): ["-m", "tymbal", *command.split()] for command in COMMANDS for name in sources
    }
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for _ in range(arguments.rounds):
        for (command, name), words in runs.items():
            times[command, name].append(processor_time(words, sources.get(name, here)))
    rows = [
        [command, name, f"{statistics.median(found):.0f}", f"{min(found):.0f}"]
        for (command, name), found in times.items()
    ]
    print(machine())
    print(table(["command", "checkout", "median ms", "least ms"], rows))


if __name__ == "__main__":
    main()
