"""The table of a probe as bars, curves and a matrix."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tymbal.errors import SettingsError
from tymbal.pages.page import NotShownError
from tymbal.reporting.probes_part import Probes


def row(features: str, accuracy: float, **facts: Any) -> dict[str, Any]:
    common = {"pooling": "mean", "reader": "logistic", "layer": None, "shots": None, "repeats": 1, "spread": None}
    return {"features": features, "accuracy": accuracy, **common, **facts}


ROWS = [row("baseline", 0.5), row("random", 0.25), row("model", 0.75)]


def probes(rows: list[dict[str, Any]], **facts: Any) -> Probes:
    common = {"rows": rows, "classes": ["a", "b"], "model": "m", "train": 1200, "validation": 40, "settings": {}}
    return Probes(Path("probe.json"), {**common, **facts})


def test_tiles__have_the_best_of_each_set() -> None:
    assert probes([*ROWS, row("model", 0.9, reader="knn"), row("model", 1.0, shots=1)]).tiles() == {
        "best accuracy, baseline": "50.0 %",
        "best accuracy, random": "25.0 %",
        "best accuracy, model": "90.0 %",
        "classes": "2",
        "learned from": "1,200",
        "asked": "40",
    }


def test_bars__are_as_long_as_the_figure() -> None:
    text = probes(ROWS).bars()
    assert re.findall(r'<span class="(b\d)" style="width:([\d.]+)%', text) == [
        ("b2", "50.00"), ("b1", "25.00"), ("b0", "75.00"),
    ]  # fmt: skip
    assert "model (mean), logistic" in text
    assert "folds" not in text
    folds = probes([row("model", 0.5, repeats=3, spread=0.012)]).bars()
    assert "Means over 3 folds" in folds
    assert "50.0 ± 1.2" in folds


def test_by_layer__has_a_line_of_the_layers_and_the_last_behind_the_norm() -> None:
    rows = [row("model", 0.1 * (layer or 3), layer=layer) for layer in (0, 1, 2, None)]
    text = probes([*rows, row("baseline", 0.9)], settings={"layers": "all"}).by_layer()
    assert "2 the last block, 3 behind the final norm" in text
    assert 'aria-label="logistic: accuracy: model, mean 0.3 to 0.3"' in text
    assert text.count("<polyline") == 1  # the baseline has no layers
    with pytest.raises(NotShownError, match="one layer was read"):
        probes(ROWS).by_layer()


def test_by_shots__goes_from_few_clips_to_many() -> None:
    rows = [row("model", 0.7, shots=10), row("model", 0.4, shots=1), row("model", 0.9)]
    assert "model, mean 0.4 to 0.7" in probes(rows).by_shots()
    with pytest.raises(NotShownError, match="all clips"):
        probes(ROWS).by_shots()


def test_confusion__is_that_of_the_table() -> None:
    text = probes(ROWS, confusion=[[19, 1], [0, 20]]).confusion()
    assert "what 40 validation clips are" in text
    assert "<td>a</td><td>b</td><td class=n>1</td>" in text
    with pytest.raises(NotShownError):
        probes(ROWS).confusion()


def test_read__knows_a_probe_from_other_tables(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"rows": [1], "classes": [], "model": "m"}))
    assert Probes.read(path) is not None
    for other in ({"rows": [], "classes": [], "model": "m"}, {"rows": [1]}, [1]):
        path.write_text(json.dumps(other))
        assert Probes.read(path) is None
    path.write_text("{")
    with pytest.raises(SettingsError, match="cannot be read"):
        Probes.read(path)


def test_bars__show_the_verdict_and_what_was_chosen_from() -> None:
    plain = row("plain", 0.7, pooling="clip:4", chosen_from={"clip:1": 0.5, "clip:4": 0.625})
    beside = row("model+plain", 0.8, pooling="grid:2+clip:4", layer="both")
    text = probes([*ROWS, plain, beside], verdict={"text": "Pretraining pays here: +5 points."}).bars()
    assert "<strong>Pretraining pays here: +5 points.</strong>" in text
    assert "model+plain (grid:2+clip:4, layer both), logistic" in text
    assert "The plain line is the best of several" in text
    assert "<td>clip:4 62.5, clip:1 50.0</td>" in text
    assert "What was chosen from: accuracy in %" in text
    assert probes([*ROWS, plain]).tiles()["best accuracy, plain"] == "70.0 %"
    assert "<details>" not in probes(ROWS).bars()
    with pytest.raises(NotShownError, match="one layer was read"):
        probes([*ROWS, row("model", 0.9, layer=1), beside], settings={"layer": "both"}).by_layer()
