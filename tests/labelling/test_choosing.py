"""Which windows come next, and what of the windows is kept for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tymbal.labelling.choosing import next_places
from tymbal.labelling.head import Examples, together
from tymbal.labelling.windows import Windows

GROUPS, EACH = 12, 40


def grouped(folder: Path, *, width: int = 24) -> tuple[Path, np.ndarray]:
    """A table of windows in groups that lie far apart, in random order, and the group of each."""
    rng = np.random.default_rng(0)
    group = rng.permutation(np.repeat(np.arange(GROUPS), EACH))
    middles = 6 * rng.normal(size=(GROUPS, width))
    values = (middles[group] + rng.normal(size=(len(group), width))).astype(np.float32)
    rows = np.arange(len(group))
    columns = {
        "file": [f"/nights/{row // 8}.wav" for row in rows],
        "start": rows % 8 * 5.0,
        "end": rows % 8 * 5.0 + 1.0,
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), width),
    }
    record = {b"tymbal": b'{"pooling": "mean"}'}
    pq.write_table(pa.table(columns).replace_schema_metadata(record), folder / "windows.parquet")
    return folder / "windows.parquet", group


def asked_for(held: Windows, group: np.ndarray, places: list[int], count: int, by: str) -> list[int]:
    """Places that come next, where a person answers whether it is one of the first three groups."""
    truth = group[places, None] == np.arange(3)
    examples = Examples(np.array(places, np.int64), truth.reshape(-1, 3), ("a", "b", "c"), several=True)
    asked = np.zeros(len(held), bool)
    asked[places] = True
    head = examples.head(held)
    return [place for place, _ in next_places(held, count, by=by, head=head, examples=examples, asked=asked)]


def test_clusters__ask_once_of_each_group_and_then_of_those_that_nothing_is_known_of(tmp_path: Path) -> None:
    table, group = grouped(tmp_path)
    held = Windows(table, most=1000, seed=0)
    first = asked_for(held, group, [], GROUPS, "clusters")
    assert len(set(group[first])) >= GROUPS - 2
    known = [int(np.flatnonzero(group == number)[0]) for number in range(6)]
    then = asked_for(held, group, known, 4, "clusters")
    assert not set(group[then]) & set(group[known])


def test_clusters__are_found_once_and_serve_several_questions(tmp_path: Path) -> None:
    table, group = grouped(tmp_path)
    held = Windows(table, most=1000, seed=0)
    places = asked_for(held, group, [], 12, "clusters")
    kept = held.clusters(14)
    places += asked_for(held, group, places, 1, "clusters")
    assert held.clusters(14) is kept
    asked_for(held, group, places, 12, "clusters")
    assert held.clusters(28) is not kept


def test_clusters__where_all_of_them_are_answered_others_are_asked_about(tmp_path: Path) -> None:
    table, group = grouped(tmp_path)
    held = Windows(table, most=1000, seed=0)
    places = list(range(0, len(held), 2))
    left = asked_for(held, group, places, 500, "clusters")
    assert len(left) == len(set(left)) and not set(left) & set(places)


def test_together__says_what_each_head_says(tmp_path: Path) -> None:
    table, group = grouped(tmp_path)
    held = Windows(table, most=1000, seed=0)
    places = np.arange(90)
    for several in (True, False):
        truth = group[places, None] == np.arange(GROUPS)
        examples = Examples(places, truth, tuple(map(str, range(GROUPS))), several)
        heads = examples.committee(held, seed=1)
        assert len(heads) == 5
        for head, said in zip(heads, together(heads, held.vectors), strict=True):
            np.testing.assert_allclose(said, head.probabilities(held.vectors), atol=1e-6)
    assert together([], held.vectors) == []


@pytest.mark.parametrize("width", [24, 600])
def test_windows__drawn_of_a_larger_table_are_kept(width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, _ = grouped(tmp_path, width=width)
    kept = tmp_path / "labels" / "windows.safetensors"
    first = Windows(table, most=100, seed=3, kept=kept)
    assert len(first) == 100 and kept.is_file()
    monkeypatch.setattr("tymbal.labelling.windows.read_rows", None)  # the table is not read again
    again = Windows(table, most=100, seed=3, kept=kept)
    for name in ("rows", "file", "start", "end", "vectors"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    assert [again.window(place) for place in range(100)] == [first.window(place) for place in range(100)]
    one = np.random.default_rng(5).normal(size=(1, width)).astype(np.float32)
    np.testing.assert_array_equal(again.projection(one), first.projection(one))


def test_windows__kept_of_another_draw_table_or_damaged_are_drawn_anew(tmp_path: Path) -> None:
    table, _ = grouped(tmp_path)
    kept = tmp_path / "windows.safetensors"
    rows = Windows(table, most=100, seed=3, kept=kept).rows
    assert not np.array_equal(Windows(table, most=100, seed=4, kept=kept).rows, rows)
    assert len(Windows(table, most=90, seed=3, kept=kept)) == 90
    kept.write_bytes(kept.read_bytes()[:1000])
    np.testing.assert_array_equal(Windows(table, most=100, seed=3, kept=kept).rows, rows)
    other, _ = grouped(tmp_path, width=30)
    assert Windows(other, most=100, seed=3, kept=kept).vectors.shape == (100, 30)


def test_windows__all_of_a_table_are_not_kept_twice(tmp_path: Path) -> None:
    table, _ = grouped(tmp_path)
    kept = tmp_path / "windows.safetensors"
    assert len(Windows(table, most=1000, seed=0, kept=kept)) == GROUPS * EACH
    assert not kept.exists()


def test_windows__those_that_an_example_finds_come_beside_what_was_kept(tmp_path: Path) -> None:
    table, _ = grouped(tmp_path)
    kept = tmp_path / "windows.safetensors"
    Windows(table, most=100, seed=3, kept=kept)
    again = Windows(table, most=100, seed=3, kept=kept)
    outside = int(np.setdiff1d(np.arange(again.total), again.rows)[0])
    found = again.nearest(again.embedding(outside), 1)
    assert again.rows[found].tolist() == [outside]
    assert len(again) == 101


def test_windows__of_a_larger_table_are_searched_by_an_index_that_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("usearch")
    table, _ = grouped(tmp_path)
    Windows(table, most=100, seed=3).make_searchable()
    assert not table.with_name("windows.parquet.usearch").exists()  # so few are compared one by one
    monkeypatch.setattr("tymbal.labelling.windows._LONG", 1000)
    all_, some = (Windows(table, most=most, seed=3) for most in (1000, 100))
    all_.make_searchable()
    assert not table.with_name("windows.parquet.usearch").exists()
    some.make_searchable()
    assert table.with_name("windows.parquet.usearch").is_file()
    monkeypatch.setattr("tymbal.inference.embeddings._build", None)
    outside = int(np.setdiff1d(np.arange(some.total), some.rows)[0])
    found = some.nearest(some.embedding(outside), 1)  # which adds rows
    assert some.rows[found].tolist() == [outside]
