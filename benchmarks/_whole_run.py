"""A pretraining in a process of its own, which says what it took in all and over its bare steps; see small_steps.py.

Bare steps are forward, backward, clipping of the gradients and optimizer. Nothing is imported that `tymbal pretrain`
does not import itself.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tymbal.machine import tune_malloc


def main(folder: Path, steps: int, eval_every: float) -> None:
    tune_malloc()
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    import tymbal
    from tymbal.training.trainer import TymbalTrainer

    spent = before = 0.0

    def watched(method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            nonlocal spent
            start = time.process_time()
            result = method(*args, **kwargs)
            spent += time.process_time() - start
            return result

        return timed

    def began(*_: Any) -> None:
        nonlocal before
        before = time.process_time()

    def ended(*_: Any) -> None:
        nonlocal spent
        spent += time.process_time() - before

    TymbalTrainer.training_step = watched(TymbalTrainer.training_step)  # type: ignore[method-assign]
    TymbalTrainer._clip_grad_norm = watched(TymbalTrainer._clip_grad_norm)  # type: ignore[method-assign]
    register_optimizer_step_pre_hook(began)
    register_optimizer_step_post_hook(ended)
    tymbal.pretrain(
        folder / "store", folder / "run", max_steps=steps, eval_every=eval_every, report_to=(), device="cpu"
    )
    whole = time.process_time()
    print(f"{steps:,} steps: {whole:.1f} s of processor time, {whole / spent:.2f} times the bare steps")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
