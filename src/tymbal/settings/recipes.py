"""Recipes: other defaults, which a choice brings along.

A field of a settings class has one default. What is usual may depend on what is done, all the same: SSAST's pretraining
and the reconstruction of short clips want other learning rates. A recipe is a table of such defaults. It holds where
one setting has a certain value, stands below everything that the user gives (flag, keyword, file), and is laid under it
by `tymbal.config.resolve` and by the command line. The settings that result are written to `run.yaml` one by one, so
that a run repeats itself even where a recipe has changed since; the help screens show both defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["NOTEBOOK", "RECONSTRUCTION", "Recipe"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Defaults that hold where a setting has a certain value.

    Attributes:
        setting: The setting.
        value: The value that brings the defaults along.
        defaults: They, by field name.
        unless: Defaults that do not hold where another setting, which says the same in another way, is given.
    """

    setting: str
    value: str
    defaults: Mapping[str, Any]
    unless: Mapping[str, str] = field(default_factory=dict)

    def under(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The defaults that hold beside what is given, by field name; none where the recipe is not chosen."""
        if given.get(self.setting) != self.value:
            return {}
        said = {name for name, other in self.unless.items() if given.get(other) is not None}
        return {name: value for name, value in self.defaults.items() if name not in given and name not in said}


RECONSTRUCTION = Recipe(
    setting="objective",
    value="reconstruction",
    defaults={
        "epochs": 150,
        "patience": 10,
        "min_progress": 1e-4,
        "learning_rate": 1e-4,
        "schedule": "linear",
        "warmup": 0.05,
        "batch_size": 8,
        "accumulate": 2,
        "clip_seconds": 1.0,
    },
    unless={"clip_seconds": "target_length", "batch_size": "batch_sizes"},
)
"""How one-second clips of insects are usually pretrained on with Hugging Face's AST."""

NOTEBOOK = Recipe(
    setting="recipe",
    value="notebook",
    defaults={
        "epochs": 50,
        "learning_rate": 5e-5,
        "schedule": "cosine",
        "warmup": 3,
        "batch_size": 1,
        "accumulate": 4,
        "best_by": "accuracy",
        "train": "3",
        "clip_seconds": 1.0,
    },
    unless={"clip_seconds": "target_length", "batch_size": "batch_sizes"},
)
"""How such clips are usually fine-tuned on from there."""
