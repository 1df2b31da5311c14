"""Plans which clips make up which batch, from the first step of a run to its last.

A run is a stream of clips: every clip once in a random order (epoch 0), every clip once in another order (epoch 1), and
so on. Steps are cut from that stream one behind the other. A batch at the end of an epoch is therefore filled up with
the first clips of the next one: no clip is ever dropped, and every batch has its full size, so that a compiled step is
compiled once. Only the last step of the run may reach a little beyond the requested epochs.

The plan knows all steps from the start, also where the batch size changes by epoch. The learning-rate schedule gets the
exact number of steps, and a resumed run finds its place by counting steps (`Trainer` computes both from one constant
size and one constant number of batches an epoch; it is shown the whole run as a single epoch). A run that is given
minutes learns its number of steps from how long the first ones take (`optimization.Pace`), once: which clips a step
takes does not depend on it.

Where clips have weights, an epoch is drawn from them with replacement, and all else stays the same. Where they are to
be compared with clips of their own group (speaker, recorder) alone, an epoch is ordered so that batches are of one
group.

With several processes, each takes its own slice of the same global batch: two processes with batches of `b` see what
one process with batches of `2 b` sees. So a run can go on with another number of processes, which share out the same
batches.
"""

from __future__ import annotations

import bisect
import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from tymbal.errors import TrainingError

__all__ = ["BatchPlan", "PlannedBatchSampler", "SequentialBatchSampler"]

Announce = Callable[[Sequence[int]], None]


class _Stretch(NamedTuple):
    """Steps of one size: where they begin, in steps and in clips, and the clips a batch and process."""

    step: int
    clip: int
    batch_size: int


@dataclass(kw_only=True)
class BatchPlan:
    """All steps of a run. Only `settle` changes it.

    Attributes:
        length: Clips in an epoch.
        batch_sizes: Clips a batch and process, by epoch; the last one holds for all later epochs. A size takes effect
            with the first batch that begins in its epoch.
        epochs: Passes over the clips.
        max_steps: Optimizer steps, instead of `epochs`.
        accumulate: Batches a step.
        processes: Processes that train together.
        seed: Seed of the order of the clips.
        weights: Chances of each clip, [length]: an epoch is then as many draws with replacement. None takes every clip
            once.
        groups: Number of each clip's group, [length]: the clips of a batch, of all processes, are then of one group as
            far as its clips go, and what is left of groups makes up batches together. None is one group. Not with
            weights.
        measured: Where the minutes decide on the number of steps, the step after which they did; 0 as long as they have
            not. None where they do not.
        begun: The batch sizes and the number of processes that the run was begun with, where it goes on with others.
    """

    length: int
    batch_sizes: tuple[int, ...]
    epochs: float = 1.0
    max_steps: int | None = None
    accumulate: int = 1
    processes: int = 1
    seed: int = 0
    weights: np.ndarray | None = field(default=None, compare=False)
    groups: np.ndarray | None = field(default=None, compare=False)
    measured: int | None = None
    begun: tuple[tuple[int, ...], int] | None = None

    def __post_init__(self) -> None:
        if self.length < 1:
            raise TrainingError("there are no clips to train on", advice="Check the split: it needs training clips.")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise TrainingError(f"the batch sizes {self.batch_sizes} are not numbers of clips from 1 on")
        if self.weights is not None and (len(self.weights) != self.length or not 0 < self.weights.sum() < math.inf):
            raise TrainingError(f"the weights of the clips are not {self.length} numbers of which some are above 0")
        if self.groups is not None and (len(self.groups) != self.length or self.weights is not None):
            raise TrainingError(f"the groups of the clips are not {self.length} numbers, or clips have weights, too")

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run, exactly; those of `epochs` until `settle` has decided on fewer."""
        return self._steps_of_epochs if self.max_steps is None else self.max_steps

    @cached_property
    def _steps_of_epochs(self) -> int:
        return max(1, self._steps_for(math.ceil(round(self.epochs * self.length, 6))))

    def settle(self, steps: int, *, at: int) -> None:
        """Decides how many steps the run has, after the first `at` of them."""
        self.max_steps, self.measured = steps, at

    @property
    def batches(self) -> int:
        """Batches that each process takes in the whole run."""
        return self.steps * self.accumulate

    def clips_before(self, step: int) -> int:
        """Clips, of all processes, that the first `step` steps take."""
        stretch = self._stretch_at(step)
        return stretch.clip + (step - stretch.step) * self._clips_a_step(stretch.batch_size)

    def epoch_after(self, step: int) -> float:
        """Passes over the clips that are done after `step` steps."""
        return self.clips_before(step) / self.length

    def batch_size_of(self, step: int) -> int:
        """Clips a batch and process in the step with the number `step`, counted from 0."""
        return self._stretch_at(step).batch_size

    def steps_within(self, clips: float) -> int:
        """Most steps that together take at most so many clips, of all processes."""
        stretch = self._stretches[bisect.bisect_right(self._stretches, clips, key=lambda stretch: stretch.clip) - 1]
        return stretch.step + math.floor((clips - stretch.clip) / self._clips_a_step(stretch.batch_size))

    def is_due(self, step: int, every: float) -> bool:
        """Whether the last of `step` steps completed another `every` epochs."""
        period = every * self.length
        # A rounding error in a fraction of an epoch must not move an evaluation by a step.
        done, before = (math.floor(self.clips_before(at) / period + 1e-9) for at in (step, step - 1))
        return done > before

    def order(self, epoch: int) -> np.ndarray:
        """The order of the clips in an epoch, or what is drawn for it: int64 [length]."""
        random = np.random.default_rng((self.seed, epoch))
        if self.groups is not None:
            return self._grouped_order(epoch, random)
        if self.weights is None:
            return random.permutation(self.length)
        return random.choice(self.length, self.length, p=self.weights / self.weights.sum())

    def _grouped_order(self, epoch: int, random: np.random.Generator) -> np.ndarray:
        """An order in which batches, as they are cut from the stream, are of one group each: int64 [length]."""
        sizes = self.batch_sizes
        size = sizes[min(epoch, len(sizes) - 1)] * self.processes
        # The last batch of the epoch before takes some clips of this one. Where sizes change, it is not told exactly.
        head = min(-epoch * self.length % size, self.length)
        tail = (self.length - head) % size
        numbers = np.unique(self.groups)  # type: ignore[arg-type]
        members = [random.permutation(np.flatnonzero(self.groups == group)) for group in random.permutation(numbers)]
        batches = [batch for each in members for batch in each[: len(each) // size * size].reshape(-1, size)]
        rest = np.concatenate([each[len(each) // size * size :] for each in members])
        if len(rest) < head + tail:  # at least one batch is whole then
            rest = np.concatenate([rest, batches.pop(int(random.integers(len(batches))))])
        batches.extend(rest[head : len(rest) - tail].reshape(-1, size))
        mixed = [batches[number] for number in random.permutation(len(batches))]
        return np.concatenate([rest[:head], *mixed, rest[len(rest) - tail :]])

    def as_begun(self, recorded: Mapping[str, Any]) -> BatchPlan:
        """This plan, with batches of which these processes take together what those of a recorded one took in a step.

        Args:
            recorded: The fingerprint of a plan.

        Returns:
            The plan; itself where it is the same number of processes, where batches cannot be shared out equally, or
            where the run was begun with other batches.
        """
        begun = recorded.get("begun") or [recorded["batch_sizes"], recorded["processes"]]
        together = [size * recorded["processes"] for size in recorded["batch_sizes"]]
        if list(self.batch_sizes) != begun[0] or any(size % self.processes for size in together):
            return self
        sizes = tuple(size // self.processes for size in together)
        if (list(sizes), self.processes) == (begun[0], begun[1]):
            return self
        return replace(self, batch_sizes=sizes, max_steps=recorded["steps"], begun=(tuple(begun[0]), begun[1]))

    def fingerprint(self) -> dict[str, object]:
        """A hash of the plan: with the same one, step N means the same clips."""
        return {
            "clips": self.length,
            "batch_sizes": list(self.batch_sizes),
            "accumulate": self.accumulate,
            "processes": self.processes,
            "seed": self.seed,
            "steps": self.steps,
            **({} if self.weights is None else {"weights": hashlib.blake2b(self.weights.tobytes()).hexdigest()[:16]}),
            **({} if self.groups is None else {"groups": hashlib.blake2b(self.groups.tobytes()).hexdigest()[:16]}),
            **({} if self.measured is None else {"measured": self.measured}),
            **({} if self.begun is None else {"begun": [list(self.begun[0]), self.begun[1]]}),
        }

    def _clips_a_step(self, batch_size: int) -> int:
        return batch_size * self.accumulate * self.processes

    @cached_property
    def _stretches(self) -> list[_Stretch]:
        stretches = []
        step = clip = 0
        for epoch, size in enumerate(self.batch_sizes):
            stretches.append(_Stretch(step, clip, size))
            # A step larger than an epoch can run past the next one, which then has no step of its own.
            steps = max(0, math.ceil(((epoch + 1) * self.length - clip) / self._clips_a_step(size)))
            step += steps
            clip += steps * self._clips_a_step(size)
        return stretches

    def _stretch_at(self, step: int) -> _Stretch:
        return self._stretches[bisect.bisect_right(self._stretches, step, key=lambda stretch: stretch.step) - 1]

    def _steps_for(self, clips: int) -> int:
        """Fewest steps that take at least `clips` clips."""
        index = bisect.bisect_left(self._stretches, clips, key=lambda stretch: stretch.clip) - 1
        stretch = self._stretches[max(0, index)]
        return stretch.step + math.ceil((clips - stretch.clip) / self._clips_a_step(stretch.batch_size))


class PlannedBatchSampler(Sampler[list[int]]):
    """The batches of one process, in order, for a `DataLoader`.

    An index is `epoch * length + position`, from which a `StoreDataset` knows the clip and its epoch.

    Args:
        plan: All steps of the run.
        rank: Number of this process.
        announce: Told the next batch before this one is handed out, so that the disk can be read while the current one
            is worked on.
        announce_from: Batches before this one are skipped by a resumed run, and are not announced.
        ahead: Batches that are announced before they are handed out.
    """

    def __init__(
        self,
        plan: BatchPlan,
        *,
        rank: int = 0,
        announce: Announce | None = None,
        announce_from: int = 0,
        ahead: int = 1,
    ) -> None:
        self.plan = plan
        self.rank = rank
        self._announce = announce
        self._announce_from = announce_from
        self._ahead = ahead
        self._steps = plan.steps  # a loader must not shrink while it is read: who reads stops earlier

    def __len__(self) -> int:
        return self._steps * self.plan.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        return _announced(self._batches(), self._announce, self._announce_from, self._ahead)

    def _batches(self) -> Iterator[list[int]]:
        plan = self.plan
        orders: dict[int, np.ndarray] = {}
        for step in range(self._steps):
            size = plan.batch_size_of(step)
            first = plan.clips_before(step)
            for number in range(plan.accumulate):
                start = first + (number * plan.processes + self.rank) * size
                yield self._indices(start, start + size, orders)

    def _indices(self, start: int, stop: int, orders: dict[int, np.ndarray]) -> list[int]:
        """Clips `start` to `stop` of the stream; `orders` remembers the orders of the epochs that they lie in."""
        length = self.plan.length
        epochs = range(start // length, (stop - 1) // length + 1)
        for epoch in [past for past in orders if past < epochs[0]]:
            del orders[epoch]
        indices: list[int] = []
        for epoch in epochs:
            if epoch not in orders:
                orders[epoch] = self.plan.order(epoch)
            part = orders[epoch][max(0, start - epoch * length) : stop - epoch * length]
            indices.extend((part + epoch * length).tolist())
        return indices


class SequentialBatchSampler(Sampler[list[int]]):
    """Every clip once, every `processes`-th batch for this process; nothing is dropped or repeated.

    Args:
        length: Number of clips.
        batch_size: Clips a batch; the last one may be smaller.
        rank: Number of this process.
        processes: Processes that evaluate together.
        announce: Told the next batch before this one is handed out.
        ahead: Batches that are announced before they are handed out.
        shuffled: Seed of a random order, the same every time: clips that follow each other, of one recording or one
            label, are then in different batches. None takes them in order.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        rank: int = 0,
        processes: int = 1,
        announce: Announce | None = None,
        ahead: int = 1,
        shuffled: int | None = None,
    ) -> None:
        self._order = np.arange(length) if shuffled is None else np.random.default_rng(shuffled).permutation(length)
        self._starts = range(rank * batch_size, length, processes * batch_size)
        self._batch_size = batch_size
        self._announce = announce
        self._ahead = ahead

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[list[int]]:
        batches = (self._order[start : start + self._batch_size].tolist() for start in self._starts)
        return _announced(batches, self._announce, 0, self._ahead)


def _announced(batches: Iterator[list[int]], announce: Announce | None, start: int, ahead: int) -> Iterator[list[int]]:
    """Hands out batches, each after those that follow it were announced."""
    if announce is None:
        yield from batches
        return
    waiting: deque[list[int]] = deque()
    for number, batch in enumerate(batches):
        if number >= start:
            announce(batch)
        waiting.append(batch)
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting
