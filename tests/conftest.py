"""What all tests share: the real sound and the recorded references beside the project, and few threads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Tests run side by side on few cores: more threads than cores only cost. Set before torch is imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SHARED = Path(os.environ.get("TYMBAL_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test finds or leaves anything in the user's cache folder."""
    os.environ["TYMBAL_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def own_modules(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where transformers puts the code of models that it runs: the same for all tests, since Python keeps it loaded."""
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.getbasetemp() / "modules")
    )


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with `data/` (ESC-10, spoken digits) and `fixtures/` (recorded outputs of the references)."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"needs real sound and recorded references in {SHARED} (set TYMBAL_SHARED to point elsewhere)")
    return SHARED
