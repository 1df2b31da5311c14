"""Tables of predictions: what is counted, what is drawn when, and which pieces are shown."""

from __future__ import annotations

import base64
import io
import re
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from tymbal.errors import AudioError
from tymbal.pages.page import NotShownError
from tymbal.pages.players import Sounds
from tymbal.reporting.predictions_part import Piece, Predictions


def windows(*pieces: tuple[str, float, dict[str, float]]) -> Predictions:
    return Predictions(
        Path("scores.csv"),
        "windows",
        tuple(
            Piece(file, start, start + 1, tuple(sorted(((s, label) for label, s in scores.items()), reverse=True)))
            for file, start, scores in pieces
        ),
    )


SOME = windows(
    ("/a.wav", 0, {"wren": 0.95, "owl": 0.05}),
    ("/a.wav", 1, {"wren": 0.65, "owl": 0.35}),
    ("/b.wav", 0, {"owl": 0.45, "wren": 0.2}),
)
FOUND = Predictions(
    Path("found.csv"),
    "detections",
    (Piece("/a.wav", 0, 30, ((0.9, "wren"),)), Piece("/a.wav", 60, 90, ((0.5, "owl"),))),
)


def test_read__a_table_of_windows_has_a_piece_a_window(tmp_path: Path) -> None:
    rows = ["file,start,end,label,score", "b.wav,0,1,owl,0.4", "a.wav,1,2,owl,0.3", "a.wav,1,2,wren,0.7"]
    (tmp_path / "scores.csv").write_text("\n".join([*rows, "a.wav,0,1,wren,0.2"]) + "\n")
    found = Predictions.read(tmp_path / "scores.csv")
    assert found.kind == "windows"
    assert [(Path(piece.file).name, piece.start, piece.scored) for piece in found.pieces] == [
        ("a.wav", 0.0, ((0.2, "wren"),)),
        ("a.wav", 1.0, ((0.7, "wren"), (0.3, "owl"))),
        ("b.wav", 0.0, ((0.4, "owl"),)),
    ]


def test_tiles__count_what_is_there() -> None:
    assert SOME.tiles() == {"recordings": "2", "windows": "3", "reach": "0.1 min", "labels": "2"}
    assert FOUND.tiles() == {"recordings": "1", "detections": "2", "length of all": "1.0 min", "labels": "2"}


def test_labels__are_those_that_are_best_of_a_window() -> None:
    text = SOME.labels()
    rows = re.findall(
        r'<th scope="row">(\w+)</th><td class="n">(\d+)</td>.*?width:([\d.]+)%.*?([\d.]+)</td></tr>', text
    )
    assert rows == [("wren", "2", "100.00", "0.80"), ("owl", "1", "50.00", "0.45")]
    assert "30 s" in FOUND.labels()


def test_sureness__says_how_many_are_sure() -> None:
    assert "33% of the windows have a label with a score of 0.9 or more, 33% none that reaches 0.5." in SOME.sureness()
    assert "50% of the detections have a score of 0.9 or more." in FOUND.sureness()


def test_over_time__is_bright_where_the_label_was_found() -> None:
    text = FOUND.over_time()
    strips = {
        label: np.asarray(Image.open(io.BytesIO(base64.b64decode(code))).convert("L"))[0]
        for label, code in re.findall(r'<th scope="row">(\w+)</th><td><img [^>]*base64,([^"]*)"', text)
    }
    assert {len(strip) for strip in strips.values()} == {600}
    bright = {label: np.flatnonzero(strip > 40) for label, strip in strips.items()}
    assert (bright["wren"].min(), bright["wren"].max()) == (0, 199)  # 30 of 90 s
    assert (bright["owl"].min(), bright["owl"].max()) == (400, 599)
    assert "<span>90 s</span>" in text


def test_surest__takes_each_label_in_turn_and_plays_it(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.sin(np.arange(3 * 8000)), 8000)
    file = str(tmp_path / "a.wav")
    found = windows((file, 0, {"wren": 0.9}), (file, 1, {"wren": 0.8}), (file, 2, {"owl": 0.3}))
    sounds = Sounds(most=9, seconds=5.0, beside=tmp_path, numbers=count(1))
    text = found.surest(sounds, most=2)
    assert re.findall(r"<strong>([^<]*)</strong>", text) == ["wren (90%)", "owl (30%)"]
    assert text.count("<audio") == 2
    assert "a.<wbr>wav, 0.0 to 1.0 s" in text


def test_surest__says_why_nothing_can_be_shown(tmp_path: Path) -> None:
    sounds = Sounds(most=9, seconds=5.0, beside=tmp_path, numbers=count(1))
    with pytest.raises(AudioError):
        SOME.surest(sounds, most=2)
    with pytest.raises(NotShownError, match="label tracks"):
        windows(("track", 0, {"wren": 0.9})).surest(sounds, most=2)
    with pytest.raises(NotShownError, match="there are no windows"):
        windows().labels()
    with pytest.raises(NotShownError, match="no score reached the threshold"):
        Predictions(Path("found.csv"), "detections", ()).sureness()
