"""Parts of files that are sound files by themselves (`Span`), and what a container says of them (`Container`).

RIFF, AIFF, W64 and CAF consist of chunks (`Chunks`).
Tags stand in front of sound and behind it, whatever its format: ID3v2 (id3.org), APEv2, Lyrics3 and ID3v1.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from tymbal.audio.embedded import open_bytes

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = [
    "FRAME",
    "JOINED",
    "LONGER",
    "PIECE",
    "Chunks",
    "Container",
    "Span",
    "begins_chunk",
    "end_before_tags",
    "tag_length",
]

FRAME = 2048
"""Bytes: more than any MPEG frame, and than most blocks of other codecs."""

PIECE = 1 << 20
"""Bytes read at once."""

LONGER = "its header promises less than the file holds: read to its end"
JOINED = "several sounds lie one behind the other in it: read one after the other"


@dataclass(frozen=True)
class Span:
    """A part of a file that is a sound file by itself, perhaps with a mended header.

    Attributes:
        start: First byte.
        stop: Byte before which it ends.
        prefix: Bytes that stand in front of it: the mended header.
    """

    start: int
    stop: int
    prefix: bytes = b""

    @property
    def size(self) -> int:
        """Bytes that a decoder sees."""
        return len(self.prefix) + self.stop - self.start

    def open(self, path: Path) -> BinaryIO:
        """Opens the file at `path` so that it begins and ends with this span."""
        return io.BufferedReader(_SpanFile(path, self), PIECE >> 2)

    def within(self, outer: Span | None) -> Span:
        """This span of another one (which has no prefix), as a span of the file itself."""
        shift = 0 if outer is None else outer.start
        return Span(self.start + shift, self.stop + shift, self.prefix)


class _SpanFile(io.RawIOBase):
    def __init__(self, path: Path, span: Span) -> None:
        self._file = open_bytes(path)
        self._span = span
        self._position = 0
        self.name = str(path)  # FFmpeg guesses by the suffix, too

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._span.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        prefix = self._span.prefix
        wanted = min(len(view), max(0, self._span.size - self._position))
        if self._position < len(prefix):
            part = prefix[self._position : self._position + wanted]
        else:
            self._file.seek(self._span.start + self._position - len(prefix))
            part = self._file.read(wanted) or b""
        view[: len(part)] = part
        self._position += len(part)
        return len(part)

    def close(self) -> None:
        self._file.close()
        super().close()


@dataclass(frozen=True)
class Container:
    """What a file's container says, read without decoding it.

    Attributes:
        truncated: How much is missing, in words, or None.
        guessed: libsndfile can only guess the length of this file, and would stop where its guess says: not its
            file to read.
        counted: It is an MP3 whose header tells its length, and rightly. Any other MP3 is one that libsndfile guesses
            about; that it was cut off at a frame cannot be known.
        seconds: The sound of an MP3 in which frame follows frame to the end, else None: what a decoder complains about
            then is no gap, but the seam of two files.
        spans: What is to be read in place of the whole file, where its header is wrong, or others lie behind it.
        remark: What is unusual about it although nothing is lost, in words, or None.
    """

    truncated: str | None = None
    guessed: bool = False
    counted: bool = False
    seconds: float | None = None
    spans: tuple[Span, ...] = ()
    remark: str | None = None


def tag_length(file: BinaryIO, head: bytes) -> int:
    """Bytes of the ID3v2 tags at the beginning."""
    length = 0
    while head[:3] == b"ID3" and len(head) >= 10:
        body = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        length += 10 + body + (10 if head[5] & 0x10 else 0)
        file.seek(length)
        head = file.read(10)
    return length


def end_before_tags(file: BinaryIO, size: int) -> int:
    """The place from which on a file holds only tags: ID3v1, Lyrics3 and APEv2, in any order; its size without any."""
    end = size
    while end >= _APE_FOOTER:
        file.seek(max(0, end - _ID3V1))
        tail = file.read(min(end, _ID3V1))
        if len(tail) == _ID3V1 and tail[:3] == b"TAG":
            length = _ID3V1
        elif tail[-9:] == b"LYRICS200" and tail[-15:-9].isdigit():
            length = int(tail[-15:-9]) + 15
        elif tail[-_APE_FOOTER:][:8] == b"APETAGEX":
            body, _, flags = struct.unpack("<III", tail[-20:-8])
            length = body + (_APE_FOOTER if flags & 1 << 31 else 0)  # the size counts the footer, not the header
        else:
            break
        if not 0 < length < end:
            break
        end -= length
    return end


_ID3V1 = 128
_APE_FOOTER = 32
_MAX_CHUNKS = 10_000
_LONGEST = 1 << 62  # bytes of a chunk: more is a size that is not known


@dataclass(frozen=True)
class Chunks:
    """How a format of chunks writes them.

    Attributes:
        begins: Whether bytes are the beginning of a file of this format.
        form: The head of a chunk for `struct`: its name and its length. Empty: no chunks.
        align: A chunk begins at a multiple of so many bytes.
        inclusive: Whether its length counts its head.
    """

    begins: Callable[[bytes], bool]
    form: str
    align: int = 2
    inclusive: bool = False

    def walk(self, file: BinaryIO, at: int) -> Iterator[tuple[bytes, int, int]]:
        """Yields name, first byte and length of each chunk from position `at` on."""
        head = struct.calcsize(self.form)
        for _ in range(_MAX_CHUNKS):
            raw, at = self._head(file, at, head)
            if len(raw) < head:
                return
            name, length = struct.unpack(self.form, raw)
            length -= head if self.inclusive else 0
            yield name, at + head, length
            if not 0 <= length < _LONGEST:
                return
            at += head + length

    def _head(self, file: BinaryIO, at: int, size: int) -> tuple[bytes, int]:
        """The head of the next chunk and its place; some writers forget the byte behind a chunk of odd length."""
        aligned = self.aligned(at)
        file.seek(at)
        unaligned, raw = file.read(size), b""
        if aligned != at:
            file.seek(aligned)
            raw = file.read(size)
        return (
            (raw, aligned) if aligned != at and (begins_chunk(raw) or not begins_chunk(unaligned)) else (unaligned, at)
        )

    def aligned(self, at: int) -> int:
        """The first place from `at` on where a chunk may begin."""
        return -(-at // self.align) * self.align


def begins_chunk(head: bytes) -> bool:
    """Whether a chunk may begin so: with a name of four printable characters."""
    return len(head) >= 4 and head[:4].isascii() and head[:4].decode().isprintable()
