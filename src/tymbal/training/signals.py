"""Stopping a training when a signal asks for it: the step is finished, a checkpoint written, and nothing is lost."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from tymbal.stopping import StopRequest

__all__ = ["StopOnSignal"]

_SECONDS = 1.0


class StopOnSignal(TrainerCallback):
    """Ends the session after the present step, with a checkpoint, once a signal asked for it.

    A signal may reach one of several processes, while all of them have to stop at the same step. They agree on that
    about once a second: to agree in every step would have every step wait for the device and the slowest process.

    Args:
        request: Whether a signal came.

    Attributes:
        stopped: Whether a signal ended the session, in whichever process it came.
    """

    def __init__(self, request: StopRequest) -> None:
        self.stopped = False
        self._request = request
        self._last = self._next = 0
        self._since = 0.0

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._last, self._next, self._since = state.global_step, state.global_step + 1, time.monotonic()

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Where this step ends the run anyway, what is left is quick, and better done now than in another session.
        if control.should_training_stop:
            return
        asked = self._request.name is not None
        self.stopped = asked if args.world_size == 1 else self._agreed(asked, args.device, state.global_step)
        if self.stopped:
            control.should_training_stop = control.should_log = control.should_save = True

    def _agreed(self, asked: bool, device: torch.device, step: int) -> bool:
        if step < self._next:
            return False
        now = time.monotonic()
        own = torch.tensor([float(asked), (now - self._since) / (step - self._last)], device=device)
        torch.distributed.all_reduce(own, op=torch.distributed.ReduceOp.MAX)
        anyone, seconds_a_step = own.tolist()
        # Of the same number in every process, so that all meet again at the same step.
        self._last, self._next, self._since = step, step + max(1, round(_SECONDS / max(seconds_a_step, 1e-3))), now
        return bool(anyone)
