"""What all objectives share: heads that go on from run to run, and what was rebuilt."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tymbal.errors import ModelError
from tymbal.features.normalisation import Normalisation
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.objectives.contract import Rebuilt, continue_heads, load_heads
from tymbal.objectives.ssast import SSASTObjective

NORMALISATION = Normalisation(mean=-5.0, std=4.0, padding=-15.0)


def objective(task: str, seed: int) -> SSASTObjective:
    torch.manual_seed(seed)
    config = EncoderConfig(width=16, depth=1, heads=2, mels=32, frames=48)
    return SSASTObjective(SpectrogramEncoder(config), task=task, normalisation=NORMALISATION)


def test_load_heads__copies_all_or_nothing():
    own, other = nn.Linear(2, 3), nn.Linear(2, 3)
    state = {**other.state_dict(), "more": torch.zeros(1)}
    before = own.weight.detach().clone()
    with pytest.raises(ModelError, match=r"bias of .* has shape .4,., expected is .3,.\n  Why it is so"):
        load_heads(own.state_dict(), {**state, "bias": torch.zeros(4)}, advice="Why it is so.")
    with pytest.raises(ModelError, match="bias of the objective's heads is missing"):
        load_heads(own.state_dict(), {"weight": state["weight"]}, advice="Why it is so.")
    assert own.weight.equal(before)
    load_heads(own.state_dict(), state, advice="Why it is so.")
    assert own.weight.equal(other.weight)
    assert own.bias.equal(other.bias)


def test_continue_heads__where_they_are_those_of_the_objective(capsys: pytest.CaptureFixture[str]):
    both, rebuilding = objective("joint", 0), objective("mpg", 1)
    continue_heads(both, rebuilding.head_state())  # one of its two heads is missing
    assert not both.heads["gpred"][0].weight.equal(rebuilding.heads["gpred"][0].weight)
    assert capsys.readouterr().err == ""
    continue_heads(rebuilding, both.head_state())
    assert both.heads["gpred"][0].weight.equal(rebuilding.heads["gpred"][0].weight)
    assert capsys.readouterr().err == "Going on with the heads of its pretraining\n"


def test_rebuilt__error_is_that_of_what_was_hidden():
    true = torch.zeros(2, 2, 2)
    hidden = torch.tensor([[[True, True], [False, False]], [[False, False], [False, False]]])
    made = torch.tensor([[[1.0, 3.0], [9.0, 9.0]], [[9.0, 9.0], [9.0, 9.0]]])
    rebuilt = Rebuilt.from_tensors(true, hidden, made)
    np.testing.assert_array_equal(rebuilt.error, [5.0, 0.0])
    assert not rebuilt.puzzle
    puzzle = Rebuilt.from_tensors(true, hidden, made, wrong=torch.tensor([0.5, 1.0]))
    np.testing.assert_array_equal(puzzle.error, [0.5, 1.0])
    assert puzzle.puzzle
