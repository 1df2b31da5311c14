"""Sessions of training that end badly, each in a process of its own.

    python killed_sessions.py STORE FOLDER SCENARIO…

Importing torch and transformers takes longer than these runs, so they are forked from one process that has done it.
Each scenario runs in FOLDER/SCENARIO and has to end by SIGKILL.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import Trainer

import tymbal.files
from training_setup import TINY
from tymbal.pretrain import pretrain
from tymbal.training import checkpoints
from tymbal.training.trainer import TymbalTrainer


@dataclass(frozen=True)
class Scenario:
    """Kill the process at the nth call of a function, of those whose arguments show `about`.

    `left` is what then lies in the folder of checkpoints. They are written after steps 5, 10, 14 and 19.
    """

    owner: Any
    function: str
    call: int
    left: set[str]
    about: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    def arm(self) -> None:
        original = getattr(self.owner, self.function)
        calls = 0

        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += self.about in str(args)
            if calls == self.call:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(self.owner, self.function, counted)


SCENARIOS = {
    "before-any-checkpoint": Scenario(TymbalTrainer, "compute_loss", 4, set()),
    "mid-epoch": Scenario(TymbalTrainer, "compute_loss", 9, {"checkpoint-5"}),
    "mid-epoch-two-workers": Scenario(
        TymbalTrainer, "compute_loss", 13, {"checkpoint-5", "checkpoint-10"}, settings={"workers": 2}
    ),
    # Weights and optimizer are written, the state of the random numbers is not.
    "mid-save": Scenario(Trainer, "_save_rng_state", 2, {"checkpoint-5", "writing.partial"}),
    # All is written but the manifest.
    "before-manifest": Scenario(
        checkpoints, "write_json", 2, {"checkpoint-5", "checkpoint-10.partial", "writing.partial"}
    ),
    # All is written, but the folder has not got its name.
    "before-rename": Scenario(
        tymbal.files, "sync_folder", 2, {"checkpoint-5.partial", "writing.partial"}, about="checkpoint-5.partial"
    ),
    # The first one is that of making the folder.
    "mid-rotation": Scenario(
        shutil, "rmtree", 2, {"checkpoint-5.partial", "checkpoint-10", "checkpoint-14"}, about="checkpoint-5.partial"
    ),
    # All is trained, but the model is not saved.
    "before-model": Scenario(checkpoints.Checkpoints, "rotate", 4, {"checkpoint-10", "checkpoint-14", "checkpoint-19"}),
}


def main() -> None:
    store, folder, *names = sys.argv[1:]
    for name in names:
        child = os.fork()
        if child == 0:
            SCENARIOS[name].arm()
            pretrain(store, Path(folder) / name, **{**TINY, **SCENARIOS[name].settings})
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            sys.exit(f"{name} was not killed: status {status}")


if __name__ == "__main__":
    main()
