"""How much processor time does the command line take before it does anything?

    python benchmarks/start.py
    python benchmarks/start.py --against ../before/src      # the same of another checkout, in turns
    python benchmarks/start.py --verbs                      # every verb at work, up to its first word; Linux

Each command runs in a process of its own, in turns with the others, so that what disturbs one disturbs all; beside them
an interpreter that does nothing. Figures are user and system time together, in milliseconds: the median over the
rounds, and the least. With `--verbs` each verb does real work on a few clips of noise, and the processor time of its
process is read when it first says something; of `explore` and `label` when their page has answered, too.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import soundfile

import tymbal
from _report import machine, table

COMMANDS = ("--help", "scan --help", "prepare --help", "pretrain --help", "finetune --help", "predict --help")


def processor_time(words: list[str], source: Path) -> float:
    """Milliseconds of processor time of one process, user and system."""
    environment = {**os.environ, "PYTHONPATH": str(source)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], env=environment, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1000 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


SMALL = {"width": 32, "depth": 2, "heads": 2, "patch": "16x16", "max_steps": 2, "report_to": (), "device": "cpu"}


def example(folder: Path) -> None:
    """Sound, a store, a run, a classifier and embeddings, small."""
    generator = np.random.default_rng(0)
    for number in range(24):
        place = folder / "sound" / "ab"[number % 2] / f"{number}.wav"
        place.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(place, generator.normal(0, 0.1, 16_000), 16_000)
    tymbal.prepare(folder / "sound", folder / "store")
    tymbal.pretrain(folder / "store", folder / "run", **SMALL)
    tymbal.finetune(folder / "store", folder / "classifier", from_=folder / "run", max_steps=2, report_to=())
    tymbal.embed(folder / "run", folder / "sound", folder / "e.parquet")


VERBS = (
    "scan sound -o out.csv",
    "prepare sound -o out",
    "doctor store",
    "pretrain store -o out --max-steps 2 --device cpu",
    "finetune store -o out --from run --max-steps 2 --device cpu",
    "probe run store",
    "predict classifier sound -o out.csv",
    "embed run sound -o out.parquet",
    "similar run sound/a/0.wav e.parquet",
    "report classifier",
    "convert run out --to hf",
    "explore run --no-browser",
    "label run sound -o out --no-browser",
)
"""Every verb that computes, in a folder of `example`."""


def first_words(verb: str, folder: Path) -> tuple[float, float | None]:
    """Milliseconds of processor time of a verb until it first says something, and until its page answers, if any."""
    for left in folder.glob("out*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    command = [sys.executable, "-m", "tymbal", *verb.split()]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    try:
        said = os.read(process.stdout.fileno(), 4096).decode()
        first = spent(process.pid)
        if verb.split(maxsplit=1)[0] not in ("explore", "label"):
            return first, None
        while not (address := re.search(r"http://[^\s]+", said)):
            said += os.read(process.stdout.fileno(), 4096).decode()
        while not answers(address.group().rstrip(".")):  # it is told at once, and served as soon as the model is there
            time.sleep(0.02)
        return first, spent(process.pid)
    finally:
        process.kill()
        process.wait()


def answers(address: str) -> bool:
    """Whether a page is there."""
    try:
        return bool(urllib.request.urlopen(address, timeout=60).read())
    except OSError:
        return False


def spent(process: int) -> float:
    """Milliseconds of processor time of a process so far, on Linux."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return 1000 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def verbs(rounds: int) -> str:
    """A line a verb."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        example(Path(name))
        for verb in VERBS:
            found = [first_words(verb, Path(name)) for _ in range(rounds)]
            first = [each for each, _ in found]
            pages = [page for _, page in found if page is not None]
            answer = f"{statistics.median(pages):.0f}" if pages else ""
            rows.append([f"tymbal {verb}", f"{statistics.median(first):.0f}", f"{min(first):.0f}", answer])
    return table(["up to the first word", "median ms", "least ms", "page has answered, ms"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--against", type=Path, help="src folder of another checkout")
    parser.add_argument("--verbs", action="store_true", help="every verb up to its first word")
    arguments = parser.parse_args()
    if arguments.verbs:
        print(machine(), verbs(arguments.rounds), sep="\n")
        return
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
