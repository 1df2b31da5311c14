"""How many files does sound pass on its way from a file on the disk to the loss, and to a score?

    python benchmarks/walk.py FOLDER

FOLDER has a subfolder of sound files a class, of which a few are taken: so few are prepared in this process. Two verbs
are run in their shortest form, and every call into the package is looked at: a file counts where a function of it is
handed sound, an array or a tensor of at least 1,000 numbers or a batch that holds one. Pretraining, without a flag and
by SSAST's joint losses, is followed to its first loss.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

import tymbal

ROOT = Path(tymbal.__file__).parent
LEAST = 1000
SMALL = {"width": 32, "depth": 2, "heads": 2, "max_steps": 3, "batch_size": 4, "device": "cpu", "snapshots": 0}


def holds_sound(value: Any, depth: int = 2) -> bool:
    if isinstance(value, np.ndarray):
        return value.size >= LEAST and value.dtype.kind in "fi"
    if isinstance(value, torch.Tensor):
        return value.numel() >= LEAST and not isinstance(value, torch.nn.Parameter)
    if depth and isinstance(value, list | tuple):
        return any(holds_sound(item, depth - 1) for item in value[:8])
    if depth and isinstance(value, dict):
        return any(holds_sound(item, depth - 1) for item in list(value.values())[:8])
    return False


class Walk:
    """A profiler that remembers which files are handed sound, in order, and all files that are entered."""

    def __init__(self, end: str | None) -> None:
        self.files: dict[str, str] = {}
        self.entered: set[str] = set()
        self.end, self.is_over = end, False

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        """As `sys.setprofile` calls it."""
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(str(ROOT)):
            return
        name = str(Path(code.co_filename).relative_to(ROOT))
        self.entered.add(name)
        if event == "return":
            self.is_over = self.is_over or code.co_qualname == self.end
            return
        if name in self.files or self.is_over or not (self.files or name.startswith("audio")):
            return  # before the first file of sound is opened, large tensors are weights
        names = list(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + bin(code.co_flags & 12).count("1")])
        if any(holds_sound(frame.f_locals.get(each)) for each in names):
            self.files[name] = code.co_qualname


def walk(run: Callable[[], object], *, end: str | None = None) -> Walk:
    seen = Walk(end)
    threading.setprofile(seen)
    sys.setprofile(seen)
    try:
        run()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return seen


def _few(source: Path, folder: Path) -> list[Path]:
    """Links the first four files of three classes into a folder; two of them."""
    for kind in sorted(path for path in source.iterdir() if path.is_dir())[:3]:
        (folder / kind.name).mkdir(parents=True)
        for path in sorted(kind.iterdir())[:4]:
            (folder / kind.name / path.name).symlink_to(path.resolve())
    return sorted(folder.rglob("*.*"))[:2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    source = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as work:
        folder, run, classifier = (Path(work) / name for name in ("sound", "run", "classifier"))
        files = _few(source, folder)
        walks = {
            "pretrain FOLDER, to the first loss": walk(
                lambda: tymbal.pretrain(folder, run, **SMALL), end="LeJEPAObjective.forward"
            ),
            "pretrain FOLDER --objective joint, to the first loss": walk(
                lambda: tymbal.pretrain(folder, Path(work) / "joint", objective="joint", **SMALL),
                end="SSASTObjective.forward",
            ),
        }
        tymbal.finetune(folder, classifier, from_=str(run), max_steps=3, batch_size=4, device="cpu")
        walks["predict"] = walk(lambda: tymbal.predict(classifier, files, Path(work) / "scores.csv", device="cpu"))
    for title, seen in walks.items():
        print(f"\n{title}: sound is handed to {len(seen.files)} files; the run enters {len(seen.entered)}")
        for number, (name, function) in enumerate(seen.files.items(), 1):
            print(f"{number:3}. {name:36} {function}")


if __name__ == "__main__":
    main()
