"""Which part a source has, and what the parts of a page share."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tones import tone_store
from tymbal.errors import SettingsError
from tymbal.reporting.parts import PageContext, part_of
from tymbal.settings import ReportSettings

SMALL = ReportSettings(map_clips=40, examples=2, sounds=1, map="pca", device="cpu")


def test_part_of__a_store_is_shown_by_its_sections(tmp_path: Path) -> None:
    context = PageContext()
    tone_store(tmp_path / "tones", clips=4)
    part = part_of(tmp_path / "tones", SMALL, context)
    assert part.title == "Store: tones"
    titles = ["Labels", "Lengths and origin", "Some clips", "Map of the clips", "Copies", "Left out", "Settings"]
    assert [section.title for section in part.sections] == titles
    shown = {section.title: section.body for section in part.sections}
    assert [title for title, body in shown.items() if "Not shown" in body] == ["Left out"]
    assert shown["Some clips"].count('class="card"') == 2
    assert "sounds could not be had" in shown["Some clips"]  # these tones were never on the disk
    assert context.stores == {(tmp_path / "tones").resolve()}
    assert f'<p class="path">{tmp_path / "tones"}</p>' in part.lead


def test_part_of__a_table_of_a_probe(tmp_path: Path) -> None:
    row = {"features": "model", "pooling": "mean", "reader": "knn", "layer": None, "shots": None, "repeats": 1}
    facts = {"rows": [{**row, "spread": None, "accuracy": 0.5}], "classes": ["a"], "model": "run", "data": "store"}
    path = tmp_path / "probe.json"
    path.write_text(json.dumps({**facts, "train": 3, "validation": 2, "settings": {"seed": 42, "shots": [1, 5]}}))
    part = part_of(path, SMALL, PageContext())
    assert part.title == "Probe: probe.json"
    assert "<td>shots</td><td>1, 5</td>" in part.sections[-1].body
    reasons = [re.findall("Not shown: ([^<]*)", section.body) for section in part.sections]
    assert [bool(reason) for reason in reasons] == [False, True, True, True, False]


def test_part_of__players_of_a_page_have_numbers_of_their_own(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(8000)), 8000)
    (tmp_path / "scores.csv").write_text(f"file,start,end,label,score\n{tmp_path / 'a.wav'},0,1,wren,0.9\n")
    context = PageContext()
    parts = [part_of(tmp_path / "scores.csv", SMALL, context) for _ in range(2)]
    names = [re.findall(r'<audio id="([^"]*)"', "".join(section.body for section in part.sections)) for part in parts]
    assert names == [["sound-1"], ["sound-2"]]
    assert parts[0].sections[-1].body == "<p>No recording was left out.</p>"


def test_part_of__what_is_no_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such file or folder"):
        part_of(tmp_path / "absent", SMALL, PageContext())
    with pytest.raises(SettingsError, match="nothing to report on"):
        part_of(tmp_path, SMALL, PageContext())
