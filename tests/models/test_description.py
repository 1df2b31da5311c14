"""What a model's description says of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tymbal.features.kaldi import LOG_FLOOR
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import EncoderConfig
from tymbal.settings import FeatureSettings

CONFIG = EncoderConfig(width=16, depth=1, heads=2, mels=16, frames=32, patch=(8, 8), stride=(8, 8))
DESCRIPTION = ModelDescription(
    encoder=CONFIG, features=FeatureSettings(mel_bins=16), mean=-6.0, std=3.0, padding=LOG_FLOOR
)


@pytest.mark.parametrize(
    ("facts", "own"),
    [
        ({}, "rows"),
        ({"objective": {"objective": "joint"}}, "rows"),
        ({"objective": {"objective": "lejepa", "parts": 1}}, "rows"),
        ({"objective": {"objective": "lejepa", "parts": 4}}, "grid4"),
        ({"objective": {"objective": "contrastive", "projection_parts": 2}}, "grid2"),
        ({"objective": {"objective": "lejepa", "parts": 7}}, "grid4"),
        ({"objective": {"objective": "lejepa", "parts": 16}}, "grid8"),
        ({"objective": {"objective": "lejepa", "parts": 4}, "labels": ("a", "b"), "pooling": "grid2"}, "grid2"),
        ({"objective": {"objective": "lejepa", "parts": 4}, "labels": ("a", "b"), "pooling": "mean"}, "grid4"),
    ],
)
def test_own_grid__is_the_classifiers_or_the_objectives(facts: dict[str, Any], own: str) -> None:
    description = replace(DESCRIPTION, **facts)
    assert description.own_grid == own
    assert description.own_parts == (1 if own == "rows" else int(own[-1]))
    assert ModelDescription.from_json(description.to_json()).own_grid == own


def test_to_json__says_of_a_stem_only_where_there_is_one() -> None:
    """Versions that know no stem go on reading models without one."""
    assert "stem" not in DESCRIPTION.to_json()["encoder"]
    stemmed = replace(DESCRIPTION, encoder=replace(CONFIG, stem=4))
    assert stemmed.to_json()["encoder"]["stem"] == 4
    for each in (DESCRIPTION, stemmed):
        assert ModelDescription.from_json(each.to_json()) == each
