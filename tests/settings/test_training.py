"""What training settings say of each other."""

from __future__ import annotations

from typing import Any

import pytest

from tymbal.errors import SettingsError
from tymbal.objectives.lejepa import LeJEPASettings
from tymbal.settings import FinetuneSettings, PretrainSettings, ProbeSettings, ReportSettings
from tymbal.settings.fields import without_effect


@pytest.mark.parametrize(
    ("cls", "given", "expected"),
    [
        (LeJEPASettings, {"step_every": 3}, ["step_every has no effect with schedule=cosine"]),
        (LeJEPASettings, {"step_every": 3, "schedule": "step"}, []),
        (
            LeJEPASettings,
            {"plateau_factor": 0.1, "schedule": "step"},
            ["plateau_factor has no effect with schedule=step"],
        ),
        (LeJEPASettings, {"epochs": 3, "max_steps": 5}, ["epochs has no effect with max_steps"]),
        (LeJEPASettings, {"eval_every": 2.0, "eval_steps": 5}, ["eval_every has no effect with eval_steps"]),
        (LeJEPASettings, {"positions": "first"}, ["positions has no effect with from=None"]),
        (LeJEPASettings, {"positions": "first", "from_": "a"}, []),
        (LeJEPASettings, {"width": 64, "heads": 4, "from_": "a"}, ["width has no effect with from"]),
        (LeJEPASettings, {"probe_every": 2.0}, ["probe_every has no effect with probe_data=None"]),
        (FinetuneSettings, {"new_head": True}, ["new_head has no effect with from=None"]),
        (FinetuneSettings, {"head_scale": 2.0}, ["head_scale has no effect with head_start=random"]),
        (FinetuneSettings, {"average_to": 3.0}, ["average_to has no effect with average_from=None"]),
        (FinetuneSettings, {"batch_size": 4, "batch_sizes": (1, 2)}, ["batch_size has no effect with batch_sizes"]),
        (FinetuneSettings, {"adam_beta2": 0.9, "optimizer": "sgd"}, ["adam_beta2 has no effect with optimizer=sgd"]),
        (FinetuneSettings, {"min_progress": 0.1, "patience": 3}, []),
    ],
)
def test_without_effect__are_named_with_the_reason(
    cls: type[PretrainSettings | FinetuneSettings], given: dict[str, Any], expected: list[str]
) -> None:
    settings = cls(**given)
    assert without_effect(settings, given) == expected
    assert without_effect(settings, ()) == []  # what nobody gave is nobody's mistake


@pytest.mark.parametrize(("name", "value"), [("seed", -1), ("seed", 1 << 32), ("log_every", 0)])
def test_settings__that_end_in_a_library_are_refused(name: str, value: int) -> None:
    for cls in (LeJEPASettings, FinetuneSettings, *((ProbeSettings, ReportSettings) if name == "seed" else ())):
        with pytest.raises(SettingsError, match=f"{name} is {value}, which is not"):
            cls(**{name: value})
