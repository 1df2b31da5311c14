"""How much the demo does: enough to show something in minutes on two processor cores."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

__all__ = ["FULL", "SHORT", "Plan"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is done.

    Steps are counted in patches, so that clips of any length take the same time; the minutes are for computers that
    are slower than expected.

    Attributes:
        each: Synthetic clips of each species and device; twice as many of the one that is held out.
        known: How many of them are labelled.
        recording: Seconds of the recording that is searched.
        window: Longest clip in seconds.
        encoder: Width, depth and heads.
        batch_size: Clips a step.
        pretraining: Patches that are seen in pretraining.
        finetuning: Patches that are seen in each of the two fine-tunings.
        pretraining_minutes: Pretraining stops after this many.
        finetuning_minutes: Each fine-tuning stops after this many.
    """

    each: int
    known: int
    recording: float
    window: float
    encoder: dict[str, Any]
    batch_size: int
    pretraining: int
    finetuning: int
    pretraining_minutes: float
    finetuning_minutes: float

    def steps(self, patches_seen: int, patches: int) -> int:
        """Steps in which batches of clips with so many patches add up to what is to be seen."""
        return max(10, round(patches_seen / (patches * self.batch_size)))


FULL = Plan(
    each=30,
    known=5,
    recording=90,
    window=2.0,
    encoder={"width": 128, "depth": 4, "heads": 4},
    batch_size=32,
    pretraining=1_600_000,
    finetuning=250_000,
    pretraining_minutes=2.75,
    finetuning_minutes=0.75,
)
SHORT = replace(
    FULL,
    each=8,
    known=3,
    recording=30,
    pretraining=100_000,
    finetuning=50_000,
    pretraining_minutes=0.5,
    finetuning_minutes=0.25,
)
