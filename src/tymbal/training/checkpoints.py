"""Checkpoints that are complete or absent.

`Trainer` writes a checkpoint file by file into its final folder. Killed in between, it leaves a folder that it later
resumes from silently, to other weights: it tolerates a missing `optimizer.pt` or `rng_state.pth`. Here a
checkpoint is written aside, every file is listed with its size and hash in `manifest.json`, synced to the disk, and the
folder is renamed into place. A checkpoint that is resumed from is first checked against its manifest.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tymbal.errors import CheckpointError
from tymbal.files import PARTIAL, read_json, replace_folder, verified, with_checksum, write_json
from tymbal.models.folder import CHECKPOINT_MANIFEST as MANIFEST
from tymbal.models.weights import PICKLES, weights_in
from tymbal.progress import tell

__all__ = ["EMA_FILE", "MANIFEST", "Checkpoints", "best_weights", "named_checkpoint", "resolve_checkpoint", "verify"]

EMA_FILE = "ema.safetensors"
"""The moving average of the weights, in a checkpoint."""

_SCHEMA = 1
_NAME = re.compile(r"checkpoint-(\d+)")
_STATE = "trainer_state.json"
_NEEDED = ("model.safetensors", "optimizer.pt", "scheduler.pt", _STATE)


class Checkpoints:
    """The checkpoints of a run.

    Args:
        folder: The folder of the folders `checkpoint-STEP`.
        keep: Number of the newest checkpoints to keep, beside the best.
    """

    def __init__(self, folder: Path, *, keep: int = 2) -> None:
        self.folder = folder
        self.aside = folder / f"writing{PARTIAL}"
        self._keep = keep

    def path(self, step: int) -> Path:
        """The folder of the checkpoint of a step."""
        return self.folder / f"checkpoint-{step}"

    def steps(self) -> list[int]:
        """Steps of the existing checkpoints, complete or damaged, oldest first."""
        if not self.folder.is_dir():
            return []
        matches = [_NAME.fullmatch(entry.name) for entry in self.folder.iterdir()]
        return sorted(int(match[1]) for match in matches if match)

    def clean(self) -> None:
        """Removes what a killed process left half written or half deleted."""
        for leftover in self.folder.glob(f"*{PARTIAL}"):
            shutil.rmtree(leftover)

    def commit(self, step: int, facts: Mapping[str, Any]) -> None:
        """Makes what `Trainer` wrote into `aside` the checkpoint of `step`.

        Args:
            step: Optimizer steps that were done.
            facts: Facts that a run that resumes from it must share; saved in the manifest.
        """
        written = self.aside / self.path(step).name
        with replace_folder(self.path(step)) as partial:
            partial.rmdir()
            written.rename(partial)
            files = {
                file.relative_to(partial).as_posix(): {"size": file.stat().st_size, "hash": _hash(file)}
                for file in sorted(partial.rglob("*"))
                if file.is_file()
            }
            facts = with_checksum({"schema": _SCHEMA, "step": step, **facts, "files": files})
            write_json(partial / MANIFEST, facts)
        self.aside.rmdir()

    def rotate(self, best: int | None) -> None:
        """Deletes all but the newest ones and the best."""
        for step in self.steps()[: -self._keep]:
            if step != best:
                # Renamed first: a kill in the middle of deleting must not leave a folder that looks like a checkpoint.
                doomed = self.path(step).rename(self.path(step).with_suffix(PARTIAL))
                shutil.rmtree(doomed)

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest complete checkpoint with its manifest, or None; damaged ones are passed over with a warning."""
        for step in reversed(self.steps()):
            try:
                return self.path(step), verify(self.path(step))
            except CheckpointError as error:
                tell(f"Passing over a damaged checkpoint: {error.what} ({error.path})", warning=True)
        return None


def resolve_checkpoint(path: Path, run: Path) -> Path | None:
    """Resolves the path to resume from to a checkpoint; weights to start from are an error.

    Args:
        path: The user's path.
        run: The run folder.

    Returns:
        The folder of the checkpoint, not verified; or None where the run itself was given: its newest.

    Raises:
        CheckpointError: It is no checkpoint of this run; the message says what it is and how to use it.
    """
    if not path.exists():
        raise CheckpointError("there is no such checkpoint to resume from", path=path)
    if path.resolve() in (run.resolve(), (run / "checkpoints").resolve()):
        return None
    if (path / MANIFEST).is_file() or path.resolve().parent == (run / "checkpoints").resolve():
        return path
    if (path / "checkpoints").is_dir():
        raise CheckpointError(
            "this is another run, and not a checkpoint to resume from",
            path=path,
            advice="Continue that run in its own folder; or begin a new one from its best model, with --from.",
        )
    if (path / _STATE).is_file():
        raise CheckpointError(
            "this checkpoint was not written by Tymbal, or is damaged: its training cannot be continued",
            path=path,
            advice="What it has learned is a start for a new run: give it as --from.",
        )
    is_file = path.suffix in (".safetensors", *PICKLES)
    if is_file or (path / "config.json").is_file() or weights_in(path) is not None:
        raise CheckpointError(
            "these are weights, and not a checkpoint: they do not say where a training stood",
            path=path,
            advice="To start a new run from them, give them as --from.",
        )
    raise CheckpointError("this is no checkpoint of a run", path=path, advice=f"Give a folder {run}/checkpoints/….")


def named_checkpoint(resume: bool | str | os.PathLike[str], run: Path) -> Path | None:
    """The checkpoint that is named to resume from; None for the newest of the run, or for none at all.

    Raises:
        CheckpointError: What is named is no checkpoint of this run.
    """
    return None if isinstance(resume, bool) or resume == "auto" else resolve_checkpoint(Path(resume), run)


def best_weights(checkpoint: Path) -> Path:
    """The file of the weights that were evaluated at a checkpoint: of the moving average, if there was one."""
    averaged = checkpoint / EMA_FILE
    return averaged if averaged.is_file() else checkpoint / "model.safetensors"


def verify(path: Path) -> dict[str, Any]:
    """Checks every file of a checkpoint against its manifest.

    Returns:
        The manifest.

    Raises:
        CheckpointError: A file is missing, or has another size or content than when it was written.
        OSError: It cannot be read now, which says nothing of what it is: a drive may be back in a moment.
    """
    try:
        manifest = verified(read_json(path / MANIFEST))
        files = {str(name): (int(entry["size"]), str(entry["hash"])) for name, entry in manifest["files"].items()}
        complete = all(name in files for name in _NEEDED) and any(name.startswith("rng_state") for name in files)
        complete = complete and isinstance(manifest["step"], int) and isinstance(manifest["plan"], dict)
    except FileNotFoundError:
        raise CheckpointError("the checkpoint has no manifest: it was not written to its end", path=path) from None
    except (AttributeError, ValueError, KeyError, TypeError):
        raise CheckpointError("the checkpoint's manifest is damaged", path=path / MANIFEST) from None
    if not complete:
        raise CheckpointError("the checkpoint lacks a part of the training state", path=path)
    for name, (size, digest) in files.items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"the checkpoint lacks {name}", path=path)
        if file.stat().st_size != size or _hash(file) != digest:
            raise CheckpointError(f"the checkpoint's {name} is not what was written", path=path)
    return manifest


def _hash(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
