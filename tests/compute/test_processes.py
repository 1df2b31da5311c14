"""Several processes, and the same numbers from the same run."""

from __future__ import annotations

import pytest
import torch

from tymbal.compute.processes import on_rank_zero, processes, quiet_except_rank_zero, rank, reproducible
from tymbal.errors import StoreError, TrainingError
from tymbal.progress import tell


def test_rank__is_that_of_the_launcher(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert (rank(), processes()) == (0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (rank(), processes()) == (2, 4)


@pytest.mark.parametrize(("number", "said"), [("0", "heard\n"), ("1", "")])
def test_quiet_except_rank_zero__others_say_nothing(
    number: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("RANK", number)
    quiet_except_rank_zero()(tell)("heard")
    assert capsys.readouterr().err == said


def fail() -> int:
    raise StoreError("is damaged")


@pytest.mark.parametrize(("decide", "expected"), [(lambda: 7, "7"), (fail, "is damaged")])
def test_on_rank_zero__its_result_and_its_error_reach_all(decide, expected, monkeypatch: pytest.MonkeyPatch):
    sent: list[object] = []

    def broadcast(outcome: list[object], src: int) -> None:
        assert src == 0
        if rank() == 0:
            sent[:] = outcome
        else:
            outcome[:] = sent

    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert outcome_of(decide) == expected
    monkeypatch.setenv("RANK", "1")
    assert outcome_of(lambda: pytest.fail("others do not decide")) == expected


def outcome_of(decide) -> str:
    try:
        return str(on_rank_zero(decide))
    except StoreError as error:
        return error.what


def test_reproducible__names_what_has_no_deterministic_form_and_puts_all_back():
    with (
        pytest.raises(TrainingError, match="deterministic form on this device: put_ "),
        reproducible(deterministic=True),
    ):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    assert not torch.are_deterministic_algorithms_enabled()
    with reproducible(deterministic=False):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
    with pytest.raises(RuntimeError, match="shapes differ"), reproducible(deterministic=True):
        raise RuntimeError("shapes differ")
