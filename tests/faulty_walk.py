"""Runs one command over and over; each time another call of it on the disk fails, and then it is run again.

python faulty_walk.py SHIM CASE, in the folder of the data and with a JSON list of [call, error] on stdin, gives a JSON
line for each of these, and one before for none of them, which says how many calls there are. SHIM is `faulty_calls.c`
as a library, which has to be preloaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import json
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

from tymbal.cli import main

_CPU = "--device cpu --precision float32"
_TINY = f"{_CPU} --width 16 --depth 1 --heads 2 --patch 8x8 --batch-size 6 --report-to tensorboard"
_SHORT = "--sample-rate 8000 --mel-bins 16 --window 0.335 --validation 0.25 --workers 1"

CASES: dict[str, tuple[str, str]] = {
    "scan": ("scan sound -o out/list.csv", "list.csv"),
    "prepare": (f"prepare sound -o out/store {_SHORT}", "store/**/*.[np]*"),
    "prepare-pt": (f"prepare sound -o out/pairs {_SHORT} --views 2 --write pt", "pairs/**/*.pt"),
    "pretrain": (f"pretrain store -o out/run --max-steps 4 --eval-steps 2 {_TINY}", "run/model/*.safetensors"),
    "finetune": (f"finetune store -o out/run --epochs 2 {_TINY}", "run/model/model.safetensors"),
    "probe": (f"probe model store -o out/table.csv --pooling mean {_CPU}", "table.csv"),
    "predict": (f"predict model sound -o out/scores.csv {_CPU}", "scores.*csv"),
    "predict-raven": (f"predict model sound -o out/tables --format raven {_CPU}", "tables/**/*.txt"),
    "embed": (f"embed model sound -o out/a.npy {_CPU}", "a.npy"),
    "similar": (f"similar model sound/low/0.wav index.parquet -o out/near.csv {_CPU}", "near.csv"),
    "report": ("report run -o out/page.html --device cpu", "none"),
    "doctor": ("doctor store --seconds 0", "none"),
    "convert": ("convert run out/copy --to tymbal", "copy/model.safetensors"),
    "convert-pt": ("convert store out/pt --to pt", "pt/**/*.pt"),
    "ssast": (
        "ssast --data-train pt/train.json --data-val pt/validation.json --data_dir pt/train "
        "--data_val_dir pt/validation --exp-dir out/exp --task pretrain_joint --model_size tiny --num_mel_bins 16 "
        "--target_length 32 --fshape 8 --tshape 8 --fstride 8 --tstride 8 --mask_patch 3 --batch-size 6 --epoch_iter 2 "
        "--n-epochs 2 --lr 1e-3 --device cpu --precision float32",
        "exp/models/best_audio_model.pth",
    ),
}
"""Commands, and what they write, which is the same each time, below `out`."""


def _run(words: list[str]) -> tuple[int | None, str]:
    """The exit status of a command, None with a traceback, and what it wrote to stderr."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            status: int | None = main(words)
        except Exception:  # noqa: BLE001 - what escapes is what is looked for
            return None, said.getvalue() + traceback.format_exc()
    return status, said.getvalue()


def _contents(pattern: str) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path("out").glob(pattern)) if path.is_file()}


def walk(shim: str, case: str, points: list[tuple[int, str]]) -> None:
    """Prints the outcome of a case for each point: a call that fails, and how."""
    faults = ctypes.CDLL(shim)
    faults.fault_path.restype = faults.fault_kind.restype = ctypes.c_char_p
    faults.fault_arm.argtypes = (ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int)
    faults.fault_calls.restype = ctypes.c_long
    command, pattern = CASES[case]
    words, root = command.split(), str(Path.cwd()).encode()
    whole: dict[str, bytes] | None = None
    for call, error in [(-1, "EIO"), *points]:
        shutil.rmtree("out", ignore_errors=True)
        shutil.rmtree("cache", ignore_errors=True)
        Path("out").mkdir()
        # A disk stays full; anything else may happen once.
        faults.fault_arm(root, call, getattr(errno, error), int(error == "ENOSPC"))
        status, said = _run(words)
        found: dict[str, Any] = {"call": call, "error": error, "calls": faults.fault_calls(), "status": status}
        found |= {"kind": faults.fault_kind().decode(), "path": faults.fault_path().decode(), "said": said}
        faults.fault_arm(root, -1, 0, 0)
        left_out = "".join(path.read_text() for path in Path("out").rglob("*failures.csv"))
        whole = _contents(pattern) if whole is None else whole
        found |= {"same": _contents(pattern) == whole, "left_out": left_out}
        found["again"], found["said_again"] = _run(words)
        found["same_again"] = _contents(pattern) == whole
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    walk(sys.argv[1], sys.argv[2], json.load(sys.stdin))
