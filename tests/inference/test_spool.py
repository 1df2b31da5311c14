from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tymbal.audio.sources import Recording
from tymbal.errors import SettingsError
from tymbal.inference import spool as module
from tymbal.inference.spool import Outcome, Spool

SCHEMA = pa.schema([("value", pa.int64())])


@pytest.fixture
def recordings(tmp_path: Path) -> list[Recording]:
    found = []
    for number in range(6):
        path = tmp_path / f"{number}.wav"
        path.write_bytes(b"x" * number)
        found.append(Recording(path, path.name))
    return found


def outcome(recording: Recording, **facts: object) -> Outcome:
    return replace(Outcome(str(recording.path), recording.place, recording.stamp(), 1.0, 1), **facts)


def spooled(tmp_path: Path, record: dict[str, int] | None = None) -> Spool:
    return Spool(tmp_path / "out.csv", schema=SCHEMA, record=record or {"hop": 1})


def contents(spool: Spool, recordings: list[Recording]) -> dict[str, list[int]]:
    return {
        one.place: [value for batch in batches for value in batch.column("value").to_pylist()]
        for one, batches in spool.read(recordings)
    }


@pytest.mark.parametrize("seconds", [0.0, 20.0])
@pytest.mark.parametrize("piece", [1000, 2**23])
def test_spool__gives_rows_back_by_recording(
    tmp_path: Path, recordings: list[Recording], monkeypatch: pytest.MonkeyPatch, seconds: float, piece: int
):
    monkeypatch.setattr(module, "_SECONDS", seconds)
    monkeypatch.setattr(module, "CHUNK_BYTES", piece)
    counts = [3, 0, 9000, 0, 0, 1]
    expected = {}
    with spooled(tmp_path) as spool:
        for recording, count in zip(recordings, counts, strict=True):
            values = np.arange(count)
            for part in np.array_split(values, 3) if count else []:
                spool.add({"value": part})
            spool.end(outcome(recording))
            expected[recording.place] = values.tolist()
        assert contents(spool, recordings) == expected
        assert contents(spool, recordings[2:4]) == {"2.wav": list(range(9000)), "3.wav": []}
        # Some recordings' rows are not taken at all.
        assert [one.place for one, _ in spool.read(recordings)] == list(expected)
    spool.remove()
    assert not spool.folder.exists()


def test_spool__what_has_ended_is_there_again(
    tmp_path: Path, recordings: list[Recording], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt), spooled(tmp_path) as spool:
        spool.add({"value": np.array([1])})
        spool.end(outcome(recordings[0]))
        spool.end(outcome(recordings[1], reason="empty: nothing in it", advice="Delete it."))
        spool.add({"value": np.array([2, 3])})
        raise KeyboardInterrupt
    (tmp_path / "out.csv.unfinished" / "00002.parquet.partial").write_bytes(b"half")
    with spooled(tmp_path) as spool:
        assert spool.done(recordings) == {recordings[0].key, recordings[1].key}
        assert spool.outcomes(recordings)[1].failure is not None
        spool.add({"value": np.array([4])})
        spool.end(outcome(recordings[2]))
        assert contents(spool, recordings) == {"0.wav": [1], "1.wav": [], "2.wav": [4]}


def test_spool__what_is_stopped_keeps_what_has_ended(
    tmp_path: Path, recordings: list[Recording], monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(KeyboardInterrupt), spooled(tmp_path) as spool:
        spool.add({"value": np.array([1])})
        spool.end(outcome(recordings[0]))
        spool.add({"value": np.array([2, 3])})
        raise KeyboardInterrupt

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    # In the middle of writing it is not known what is there: that part is computed again.
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), spooled(tmp_path) as spool:
        patch.setattr("pyarrow.parquet.ParquetWriter.write_table", stop)
        spool.add({"value": np.array([4])})
        spool.end(outcome(recordings[1]))
        spool.outcomes(recordings)
    with spooled(tmp_path) as spool:
        assert contents(spool, recordings) == {"0.wav": [1]}


def test_spool__a_recording_that_has_changed_counts_no_more(tmp_path: Path, recordings: list[Recording]):
    absent = Recording(tmp_path / "absent.wav", "absent.wav")
    with spooled(tmp_path) as spool:
        for recording in (recordings[0], recordings[1], absent):
            spool.add({"value": np.array([1])})
            spool.end(outcome(recording))
    recordings[0].path.write_bytes(b"longer now")
    absent.path.write_bytes(b"there now")
    with spooled(tmp_path) as spool:
        assert spool.done([*recordings, absent]) == {recordings[1].key}
        spool.add({"value": np.array([2])})
        spool.end(outcome(recordings[0]))
        assert contents(spool, [*recordings, absent]) == {"1.wav": [1], "0.wav": [2]}


def test_spool__another_run_is_not_continued(tmp_path: Path):
    with spooled(tmp_path):
        pass
    with pytest.raises(SettingsError, match=r"begun with something else:\n    hop: 1 -> 2\n  Choose another output"):
        spooled(tmp_path, {"hop": 2}).__enter__()
    with spooled(tmp_path), pytest.raises(SettingsError, match="another process is writing this output"):
        spooled(tmp_path).__enter__()


def test_spool__holds_lists_of_numbers(tmp_path: Path, recordings: list[Recording], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 100)
    schema = pa.schema([("start", pa.int64()), ("embedding", pa.list_(pa.float32(), 5))])
    values = np.arange(50, dtype=np.float32).reshape(10, 5)
    with Spool(tmp_path / "out.npy", schema=schema, record={}) as spool:
        spool.add({"start": np.arange(10), "embedding": values})
        spool.end(outcome(recordings[0]))
        ((_, batches),) = spool.read(recordings)
        assert [row for batch in batches for row in batch.column("embedding").to_pylist()] == values.tolist()


def test_spool__continues_from_parts_of_the_version_before(tmp_path: Path, recordings: list[Recording]):
    with spooled(tmp_path) as spool:
        spool.add({"value": np.array([1, 2])})
        spool.end(outcome(recordings[0]))
    (part,) = spool.folder.glob("*.parquet")
    table = pq.read_table(part)
    (one,) = json.loads(pq.read_metadata(part).metadata[b"tymbal"])
    assert one.pop("left_out") == []  # it did not know of rows that are left out of a block
    assert set(one) == {"file", "place", "stamp", "seconds", "windows", "began", "reason", "advice"}
    assert table.column_names == ["recording", "value"]
    pq.write_table(table.replace_schema_metadata({"tymbal": json.dumps([one])}), part)
    with spooled(tmp_path) as spool:
        assert spool.done(recordings) == {recordings[0].key}
        spool.add({"value": np.array([3])})
        spool.end(outcome(recordings[1], left_out=(4, 5)))
        assert contents(spool, recordings) == {"0.wav": [1, 2], "1.wav": [3]}
        assert [each.left_out for each in spool.outcomes(recordings)] == [(), (4, 5)]


@pytest.mark.parametrize("damage", ["half", "flipped", "garbage", "of another run"])
def test_spool__a_damaged_part_is_set_aside_and_computed_again(
    tmp_path: Path, recordings: list[Recording], monkeypatch: pytest.MonkeyPatch, damage: str, capsys
):
    monkeypatch.setattr(module, "_SECONDS", 0.0)
    with spooled(tmp_path) as spool:
        for number, recording in enumerate(recordings[:2]):
            spool.add({"value": np.arange(5000) + number})
            spool.end(outcome(recording))
    part = spool.folder / "00000.parquet"
    data = part.read_bytes()
    if damage == "of another run":
        (spool.folder / "record.json").write_bytes(b"{")
        with spooled(tmp_path, {"hop": 2}) as other:
            assert other.done(recordings) == set()
        assert (spool.folder / "record.json.damaged").read_bytes() == b"{"
        return
    flipped = data[:300] + bytes([data[300] ^ 1]) + data[301:]
    part.write_bytes({"half": data[: len(data) // 2], "flipped": flipped, "garbage": b"PAR1" * 99}[damage])
    with spooled(tmp_path) as spool:
        assert spool.done(recordings) == {recordings[1].key}
        assert "00000.parquet is damaged and computed again" in " ".join(capsys.readouterr().err.split())
        spool.add({"value": np.arange(5000)})
        spool.end(outcome(recordings[0]))
        assert contents(spool, recordings)["0.wav"] == list(range(5000))
    assert (spool.folder / "00000.parquet.damaged").is_file()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a":' * 100_000, b'{"hop": 1, "checksum": "0"}'])
def test_spool__a_damaged_record_is_written_again(tmp_path: Path, recordings: list[Recording], content: bytes, capsys):
    with spooled(tmp_path) as spool:
        spool.add({"value": np.array([1])})
        spool.end(outcome(recordings[0]))
    (spool.folder / "record.json").write_bytes(content)
    with spooled(tmp_path) as spool:
        assert spool.done(recordings) == {recordings[0].key}
    assert "record.json is damaged" in " ".join(capsys.readouterr().err.split())
    with spooled(tmp_path) as spool:
        assert contents(spool, recordings) == {"0.wav": [1]}
