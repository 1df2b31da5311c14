"""Settings of what is done with models."""

from __future__ import annotations

import pytest

from tymbal import config
from tymbal.errors import SettingsError
from tymbal.settings import ProbeSettings


@pytest.mark.parametrize(
    ("layer", "read"),
    [(None, [None]), ("last", [None]), (0, [0]), ("2", [2]), ("all", [0, 1, 2, 3, None]), ("both", [1, None])],
)
def test_probe__layers_that_are_read(layer: str | int | None, read: list[int | None]):
    assert config.from_mapping(ProbeSettings, {"layer": layer}).layers(3) == read


@pytest.mark.parametrize("layer", ["first", "-1", -1, "1.5", ""])
def test_probe__no_such_layer(layer: str | int):
    with pytest.raises(SettingsError, match="which is not last, both, mix, all, or a number of 0 or more"):
        config.from_mapping(ProbeSettings, {"layer": layer})
