from __future__ import annotations

from pathlib import Path

import pytest

from training_setup import make_store


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("data") / "store").path
