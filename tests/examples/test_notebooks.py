"""The notebooks run from their first cell to their last, on a short setting."""

from __future__ import annotations

from pathlib import Path

import pytest

WRITTEN = {
    "wingbeats": {"classifier/model/config.json": "{", "scores.csv": "file,start,end,label,score,"},
    "views": {"pairs-preview/index.html": "<!doctype html>", "run fresh/model/config.json": "{"},
    "few_labels": {"classifier/model/config.json": "{"},
    "label_next": {"chosen/labels.csv": "file,start,end,"},
    "ssast": {"packed/store.json": "{"},
}
"""What a notebook leaves behind, and how it begins."""

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "examples" / "notebooks").glob("*.ipynb"))


def few_sounds(shared: Path, folder: Path) -> Path:
    """The first clip of each fold of three classes of ESC-10."""
    for kind in ("dog_bark", "rain", "rooster"):
        (folder / kind).mkdir(parents=True)
        for fold in range(1, 6):
            clip = sorted((shared / "data" / "esc10" / kind).glob(f"{fold}-*"))[0]
            (folder / kind / clip.name).symlink_to(clip)
    return folder


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook__runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient and ipykernel (pip install -e '.[dev]')")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel (pip install -e '.[dev]')")
    monkeypatch.setenv("TYMBAL_SHORT", "1")
    monkeypatch.setenv("TYMBAL_OUT", str(tmp_path / "out"))
    if path.stem == "few_labels":
        monkeypatch.setenv("TYMBAL_SOUND", str(few_sounds(request.getfixturevalue("shared"), tmp_path / "ESC-10")))
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # figures of the short setting would mislead
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    for name, start in WRITTEN[path.stem].items():
        assert (tmp_path / "out" / name).read_text(encoding="utf-8").startswith(start)
