from __future__ import annotations

from pathlib import Path

import pytest
from small_store import small_store

from tymbal.store.packed.packed_store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return small_store(tmp_path / "store")
