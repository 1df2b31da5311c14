"""The inside of a file of torch.save: a zip archive, not compressed, whose records can be read where they lie.

    NAME/data.pkl     a pickle that says what the tensors are: types, shapes, which storage
    NAME/byteorder    little or big
    NAME/data/0       the bytes of the first storage

Nothing is unpickled here. Reference: APPNOTE.TXT of PKWARE for the archive, torch/serialization.py for the records.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

__all__ = ["Archive", "read_archive"]

_END, _ENTRY, _LOCAL = b"PK\x05\x06", b"PK\x01\x02", b"PK\x03\x04"
_END_BYTES, _ENTRY_BYTES, _LOCAL_BYTES = 22, 46, 30


@dataclass(frozen=True)
class Archive:
    """A file with exactly one storage.

    Attributes:
        pickle: What says how the storage is to be understood. Equal pickles say the same.
        start: Bytes before the storage.
        size: Bytes of the storage.
    """

    pickle: bytes
    start: int
    size: int


def read_archive(data: bytes) -> Archive | None:
    """Finds the records of a file; None where it is of another kind, damaged, or has several storages."""
    try:
        records = _records(data)
    except (struct.error, ValueError):
        return None
    storages = [record for name, record in records.items() if "/data/" in name]
    pickles = [record for name, record in records.items() if name.endswith("/data.pkl")]
    orders = [data[start : start + size] for name, (start, size) in records.items() if name.endswith("/byteorder")]
    if len(storages) != 1 or len(pickles) != 1 or orders != [b"little"]:
        return None
    (start, size), (at, length) = storages[0], pickles[0]
    return Archive(data[at : at + length], start, size)


def _records(data: bytes) -> dict[str, tuple[int, int]]:
    """Place and size of each record, by name.

    Raises:
        ValueError: It is no archive, or a record is compressed or not where it should be.
        struct.error: It breaks off.
    """
    end = len(data) - _END_BYTES
    if end < 0 or data[end : end + 4] != _END:
        raise ValueError
    count, _, place = struct.unpack_from("<HII", data, end + 10)
    records = {}
    for _ in range(count):
        if data[place : place + 4] != _ENTRY:
            raise ValueError
        method = struct.unpack_from("<H", data, place + 10)[0]
        size, full, name, extra, comment = struct.unpack_from("<IIHHH", data, place + 20)
        header = struct.unpack_from("<I", data, place + 42)[0]
        text = data[place + _ENTRY_BYTES : place + _ENTRY_BYTES + name].decode("utf-8")
        place += _ENTRY_BYTES + name + extra + comment
        if method != 0 or size != full or data[header : header + 4] != _LOCAL:
            raise ValueError
        start = header + _LOCAL_BYTES + sum(struct.unpack_from("<HH", data, header + 26))
        if start + size > end:
            raise ValueError
        records[text] = (start, size)
    return records
