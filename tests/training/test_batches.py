from __future__ import annotations

import itertools

import numpy as np
import pytest

from tymbal.errors import TrainingError
from tymbal.training.batches import BatchPlan, PlannedBatchSampler, SequentialBatchSampler


def test_plan__one_size_counts_steps_exactly():
    plan = BatchPlan(length=41, batch_sizes=(4,), epochs=3)
    assert plan.steps == 31  # 123 clips in steps of 4
    assert plan.clips_before(31) == 124
    assert plan.epoch_after(31) == 124 / 41


def test_plan__max_steps_replaces_epochs():
    assert BatchPlan(length=10, batch_sizes=(4,), epochs=3, max_steps=1000).steps == 1000


def test_plan__fraction_of_an_epoch():
    assert BatchPlan(length=100, batch_sizes=(10,), epochs=0.3).steps == 3
    assert BatchPlan(length=3, batch_sizes=(10,), epochs=0.01).steps == 1


def test_plan__sizes_by_epoch_take_effect_at_the_epochs_start():
    plan = BatchPlan(length=40, batch_sizes=(1, 1, 2, 4), epochs=5)
    assert plan.steps == 40 + 40 + 20 + 10 + 10
    assert [plan.batch_size_of(step) for step in (0, 79, 80, 99, 100, 119)] == [1, 1, 2, 2, 4, 4]
    assert plan.epoch_after(80) == 2
    assert plan.epoch_after(100) == 3


def test_plan__step_larger_than_an_epoch():
    plan = BatchPlan(length=5, batch_sizes=(12, 3, 5), epochs=4)
    # The first step takes epochs 0 and 1 and two clips of epoch 2, which then goes on in its own size.
    assert [plan.clips_before(step) for step in range(4)] == [0, 12, 17, 22]
    assert plan.batch_size_of(1) == 5
    assert plan.steps == 3
    small = BatchPlan(length=5, batch_sizes=(12, 1, 5), epochs=4)
    assert [small.clips_before(step) for step in range(4)] == [0, 12, 17, 22]


def test_plan__is_due_at_whole_epochs_and_fractions():
    plan = BatchPlan(length=41, batch_sizes=(4,), epochs=3)
    assert [step for step in range(1, 32) if plan.is_due(step, 1)] == [11, 21, 31]
    tenths = BatchPlan(length=40, batch_sizes=(4,), epochs=3)
    assert [step for step in range(1, 31) if tenths.is_due(step, 0.1)] == list(range(1, 31))


def test_plan__no_clips_is_an_error():
    with pytest.raises(TrainingError, match="no clips"):
        BatchPlan(length=0, batch_sizes=(4,))


def test_sampler__every_clip_once_an_epoch_and_every_batch_full():
    plan = BatchPlan(length=7, batch_sizes=(3,), epochs=6, seed=1)
    batches = list(PlannedBatchSampler(plan))
    assert [len(batch) for batch in batches] == [3] * 14
    stream = list(itertools.chain.from_iterable(batches))
    for epoch in range(6):
        assert sorted(stream[epoch * 7 : epoch * 7 + 7]) == list(range(epoch * 7, epoch * 7 + 7))


def test_sampler__order_changes_by_epoch_and_repeats_by_seed():
    plan = BatchPlan(length=50, batch_sizes=(50,), epochs=2, seed=3)
    first, second = ([index % 50 for index in batch] for batch in PlannedBatchSampler(plan))
    assert first != second
    assert list(PlannedBatchSampler(plan)) == list(PlannedBatchSampler(plan))
    other = BatchPlan(length=50, batch_sizes=(50,), epochs=2, seed=4)
    assert next(iter(PlannedBatchSampler(other))) != first


@pytest.mark.parametrize("accumulate", [1, 3])
def test_sampler__two_processes_share_the_batches_of_one(accumulate):
    shape = {"length": 23, "epochs": 4, "accumulate": accumulate, "seed": 5}
    whole = list(PlannedBatchSampler(BatchPlan(batch_sizes=(8, 4), **shape)))
    halves = BatchPlan(batch_sizes=(4, 2), processes=2, **shape)
    left, right = (list(PlannedBatchSampler(halves, rank=rank)) for rank in (0, 1))
    assert [a + b for a, b in zip(left, right, strict=True)] == whole


def test_sampler__announces_each_next_batch_once():
    plan = BatchPlan(length=6, batch_sizes=(2,), epochs=1)
    log: list[tuple[str, list[int]]] = []
    batches = PlannedBatchSampler(plan, announce=lambda batch: log.append(("announced", list(batch))))
    log.extend(("taken", batch) for batch in batches)
    a, b, c = list(PlannedBatchSampler(plan))
    assert log == [
        ("announced", a),
        ("announced", b),
        ("taken", a),
        ("announced", c),
        ("taken", b),
        ("taken", c),
    ]


def test_sampler__does_not_announce_what_a_resumed_run_skips():
    plan = BatchPlan(length=10, batch_sizes=(2,), epochs=1)
    told: list[list[int]] = []
    batches = list(PlannedBatchSampler(plan, announce=lambda batch: told.append(list(batch)), announce_from=3))
    assert told == batches[3:]


def test_sequential_sampler__covers_all_clips_over_processes():
    parts = [list(SequentialBatchSampler(11, 2, rank=rank, processes=3)) for rank in range(3)]
    assert parts[0] == [[0, 1], [6, 7]]
    assert sorted(itertools.chain.from_iterable(itertools.chain(*parts))) == list(range(11))
    assert [len(SequentialBatchSampler(11, 2, rank=rank, processes=3)) for rank in range(3)] == [2, 2, 2]


def test_sequential_sampler__shuffled_batches_do_not_depend_on_the_processes():
    # Two processes that train on 3 clips each evaluate batches of 6, as one that trains on 6 does.
    one = list(SequentialBatchSampler(20, 6, shuffled=1))
    two = [list(SequentialBatchSampler(20, 6, rank=rank, processes=2, shuffled=1)) for rank in range(2)]
    assert [two[0][0], two[1][0], two[0][1], two[1][1]] == one
    assert sorted(itertools.chain.from_iterable(one)) == list(range(20))
    assert one[0] != sorted(one[0])


def test_plan__order_is_pinned():
    # A run that is continued after an upgrade of numpy must meet the same order.
    assert BatchPlan(length=8, batch_sizes=(1,), seed=42).order(3).tolist() == [3, 1, 2, 7, 0, 5, 4, 6]


def test_order__weights_draw_with_replacement():
    weights = np.array([0.0, 1.0, 3.0, 0.0])
    plan = BatchPlan(length=4, batch_sizes=(2,), epochs=500, weights=weights)
    drawn = np.concatenate([plan.order(epoch) for epoch in range(500)])
    share = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(share, [0, 0.25, 0.75, 0], atol=0.03)
    assert (plan.order(3) == plan.order(3)).all()
    assert plan.fingerprint() != BatchPlan(length=4, batch_sizes=(2,), epochs=500).fingerprint()


def test_plan__is_one_pass_of_one_process_where_nothing_else_is_said():
    plan = BatchPlan(length=10, batch_sizes=(4,))
    assert (plan.steps, plan.batches, plan.epoch_after(3)) == (3, 3, 1.2)
    assert plan.fingerprint() == {
        "clips": 10,
        "batch_sizes": [4],
        "accumulate": 1,
        "processes": 1,
        "seed": 0,
        "steps": 3,
    }
    assert plan.order(1).tolist() == BatchPlan(length=10, batch_sizes=(4,), seed=0).order(1).tolist()


def test_plan__batches_and_clips_of_accumulating_processes():
    plan = BatchPlan(length=100, batch_sizes=(2, 5), epochs=2, accumulate=3, processes=2)
    assert plan.steps == 9 + 4  # 108 clips in steps of 12, then 92 in steps of 30
    assert plan.batches == 39
    assert [plan.clips_before(step) for step in (0, 1, 9, 10, 13)] == [0, 12, 108, 138, 228]
    assert plan.fingerprint() == {
        "clips": 100,
        "batch_sizes": [2, 5],
        "accumulate": 3,
        "processes": 2,
        "seed": 0,
        "steps": 13,
    }


def test_plan__a_single_clip_is_enough():
    plan = BatchPlan(length=1, batch_sizes=(1,), epochs=2)
    assert list(PlannedBatchSampler(plan)) == [[0], [1]]


def test_plan__rounding_errors_of_fractions_make_no_step():
    assert BatchPlan(length=10, batch_sizes=(1,), epochs=0.1 * 3).steps == 3  # 3.0000000000000004 clips
    assert BatchPlan(length=10, batch_sizes=(1,), epochs=0.30000004).steps == 3
    assert BatchPlan(length=10, batch_sizes=(1,), epochs=0.3000001).steps == 4
    thirds = BatchPlan(length=30, batch_sizes=(1,), epochs=2)
    assert [step for step in range(1, 61) if thirds.is_due(step, 1 / 3)] == [10, 20, 30, 40, 50, 60]


@pytest.mark.parametrize("sizes", [(), (0,), (4, 0), (-1,)])
def test_plan__batch_sizes_below_one_are_errors(sizes: tuple[int, ...]):
    with pytest.raises(TrainingError, match="are not numbers of clips from 1 on"):
        BatchPlan(length=8, batch_sizes=sizes)


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0, 1.0], [0.0, 0.0], [np.inf, 1.0], [np.nan, 1.0]])
def test_plan__weights_that_cannot_be_drawn_from_are_errors(weights: list[float]):
    with pytest.raises(TrainingError, match="are not 2 numbers of which some are above 0"):
        BatchPlan(length=2, batch_sizes=(1,), weights=np.array(weights))


def test_plan__draws_by_weights_are_pinned():
    weights = np.array([0.0, 1.0, 3.0, 0.5])
    plan = BatchPlan(length=4, batch_sizes=(2,), seed=42, weights=weights)
    assert plan.order(3).tolist() == [1, 2, 2, 2]
    assert plan.fingerprint()["weights"] == "072ee3ac8b7a64b0"
    assert plan == BatchPlan(length=4, batch_sizes=(2,), seed=42, weights=2 * weights)


def test_sampler__indices_say_epoch_and_clip():
    plan = BatchPlan(length=4, batch_sizes=(3,), epochs=3, seed=42)
    orders = [[epoch * 4 + clip for clip in plan.order(epoch)] for epoch in range(3)]
    stream = list(itertools.chain.from_iterable(orders))
    assert list(PlannedBatchSampler(plan)) == [stream[start : start + 3] for start in range(0, 12, 3)]
    assert len(PlannedBatchSampler(plan)) == 4


def test_sampler__draws_the_order_of_an_epoch_once(monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []
    original = BatchPlan.order

    def order(plan: BatchPlan, epoch: int) -> np.ndarray:
        asked.append(epoch)
        return original(plan, epoch)

    monkeypatch.setattr(BatchPlan, "order", order)
    list(PlannedBatchSampler(BatchPlan(length=5, batch_sizes=(2,), epochs=4)))
    assert asked == [0, 1, 2, 3]


def test_sequential_sampler__announces_each_next_batch_once():
    announced: list[list[int]] = []
    batches = list(SequentialBatchSampler(5, 2, announce=lambda batch: announced.append(list(batch))))
    assert batches == announced == [[0, 1], [2, 3], [4]]
    assert list(SequentialBatchSampler(0, 2, announce=announced.append)) == []


def test_plan__next_to_nothing_is_one_step():
    assert BatchPlan(length=10, batch_sizes=(1, 2), epochs=1e-9).steps == 1


def test_plan__weights_may_be_small():
    assert BatchPlan(length=2, batch_sizes=(1,), weights=np.array([0.25, 0.25])).steps == 2


def test_plan__settles_on_fewer_steps_once():
    plan = BatchPlan(length=10, batch_sizes=(2,), epochs=4, measured=0)
    sampler = PlannedBatchSampler(plan)
    assert (plan.steps, plan.fingerprint()["measured"]) == (20, 0)
    plan.settle(7, at=3)
    assert (plan.steps, plan.batches, plan.fingerprint()["measured"]) == (7, 7, 3)
    assert len(sampler) == len(list(sampler)) == 20
    assert "measured" not in BatchPlan(length=10, batch_sizes=(2,)).fingerprint()


def test_plan__steps_within_clips():
    plan = BatchPlan(length=40, batch_sizes=(1, 2, 4), epochs=5)  # 40 steps of 1 clip, 20 of 2, then 4 each
    assert [plan.steps_within(clips) for clips in (0, 0.9, 1, 39, 40, 41.9, 42, 80, 83, 84)] == [
        *(0, 0, 1, 39, 40, 40, 41, 60, 60, 61),
    ]
    assert all(plan.steps_within(plan.clips_before(step)) == step for step in range(90))


@pytest.mark.parametrize(("processes", "accumulate"), [(1, 1), (2, 1), (1, 3)])
def test_plan__batches_are_of_one_group_as_far_as_its_clips_go(processes: int, accumulate: int):
    groups = np.repeat([0, 1, 2], [41, 30, 19])
    plan = BatchPlan(
        length=90, batch_sizes=(8 // processes,), epochs=6, processes=processes, accumulate=accumulate, groups=groups
    )
    stream = np.concatenate([plan.order(epoch) for epoch in range(6)])
    for epoch in range(6):
        assert sorted(plan.order(epoch)) == list(range(90))
    kinds = [len(set(groups[batch])) for batch in stream[: len(stream) // 8 * 8].reshape(-1, 8)]
    # 5 + 3 + 2 of the 11 batches of an epoch are of one group, less one where the epochs' ends do not fit.
    assert kinds.count(1) >= 6 * 9
    assert len({tuple(plan.order(epoch)) for epoch in range(6)}) == 6


def test_plan__groups_smaller_than_a_batch_come_together():
    groups = np.repeat(np.arange(10), 4)
    order = BatchPlan(length=40, batch_sizes=(8,), groups=groups).order(0)
    assert [len(set(groups[batch])) for batch in order.reshape(-1, 8)] == [2] * 5


def test_plan__groups_are_part_of_the_fingerprint_and_checked():
    groups = np.zeros(4, np.int64)
    plain, grouped = BatchPlan(length=4, batch_sizes=(2,)), BatchPlan(length=4, batch_sizes=(2,), groups=groups)
    assert grouped.fingerprint().keys() - plain.fingerprint().keys() == {"groups"}
    with pytest.raises(TrainingError, match="groups"):
        BatchPlan(length=5, batch_sizes=(2,), groups=groups)
    with pytest.raises(TrainingError, match="groups"):
        BatchPlan(length=4, batch_sizes=(2,), groups=groups, weights=np.ones(4))
