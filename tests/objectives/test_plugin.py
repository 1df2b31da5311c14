"""An objective of another package, found by its entry point, goes the whole way."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training_setup import make_store
from tymbal.cli import main
from tymbal.config import read_run_yaml
from tymbal.errors import SettingsError
from tymbal.models.folder import load_model
from tymbal.objectives import registry
from tymbal.pretrain import pretrain

FLAGS = (
    *("--objective", "level", "--level-weight", "0.5", "--device", "cpu", "--precision", "float32"),
    *("--width", "16", "--depth", "1", "--heads", "2", "--patch", "8x8"),
    *("--batch-size", "8", "--epochs", "2", "--eval-steps", "4"),
)


def forget() -> None:
    importlib.invalidate_caches()
    registry._plugins.cache_clear()
    registry.spec.cache_clear()
    sys.modules.pop("level_objective", None)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Installs a package with one module and one entry point."""
    place = tmp_path / "site"
    info = place / "level-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("level_objective.py"), place)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: level\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tymbal.objectives]\nlevel = level_objective\n")
    monkeypatch.syspath_prepend(place)
    forget()
    yield place
    monkeypatch.undo()
    forget()


def test_plugin__pretrains_resumes_and_reports(package: Path, tmp_path: Path):
    store = str(make_store(tmp_path / "store").path)
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert main(["pretrain", store, "-o", str(whole), *FLAGS]) == 0
    assert main(["pretrain", store, "-o", str(run), *FLAGS, "--max-minutes", "1e-9"]) == 0
    assert json.loads((run / "result.json").read_text())["ended"] == "minutes"
    assert main(["pretrain", store, "-o", str(run), *FLAGS]) == 0
    found, expected = (load_file(each / "checkpoints/checkpoint-10/model.safetensors") for each in (run, whole))
    assert found.keys() == expected.keys() >= {"level.weight"}
    assert all(torch.equal(found[name], expected[name]) for name in expected)

    recorded = read_run_yaml(run).settings
    assert (recorded["objective"], recorded["level_weight"]) == ("level", 0.5)
    assert (recorded["learning_rate"], recorded["schedule"]) == (2e-3, "constant")  # its recipe
    assert not {"mask_ratio", "temperature", "channels"} & recorded.keys()
    loaded = load_model(run)
    assert loaded.description.objective == {"objective": "level", "level_weight": 0.5}
    assert loaded.objective_state.keys() == {"level.weight", "level.bias"}

    page = tmp_path / "report.html"
    assert main(["report", str(run), "-o", str(page)]) == 0
    text = page.read_text()
    assert "squared error" in text
    assert "there is nothing hidden and rebuilt with the objective level" in " ".join(text.split())
    again = pretrain(store, tmp_path / "again", config=run, max_steps=1)
    assert again.steps == 1


def test_plugin__its_help_and_its_mistakes(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["pretrain", "--help", "level"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "With the objective level" in out
    assert "--level-weight Weight of the error in the loss. [default: 1.0]" in out
    assert main(["pretrain", "store", "-o", "run", "--objective", "level", "--level-weight", "0"]) == 2
    assert "level_weight is 0.0, which is not a number above 0" in capsys.readouterr().err
    with pytest.raises(SettingsError, match=r"unknown setting 'level_wait'.*\n  Did you mean level_weight\?"):
        registry.resolve({"level_wait": 1})
    (package / "level_objective.py").write_text("import nowhere_to_be_found\n")
    forget()
    with pytest.raises(SettingsError, match="the objective level cannot be imported: No module named 'nowhere"):
        registry.spec("level")
    (package / "level_objective.py").write_text("OBJECTIVE = 3  # another\n")
    forget()
    with pytest.raises(SettingsError, match="level_objective of the objective level has no OBJECTIVE"):
        registry.spec("level")
