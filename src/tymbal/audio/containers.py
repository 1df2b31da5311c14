"""Compares what a sound file's header promises with the bytes in the file.

libsndfile clamps the length of a WAV that was cut off and decodes an Ogg up to where it breaks: both look whole. A few
bytes at the right places tell. Nothing here decodes, and formats whose decoder notices by itself (MP4) are left to it.

Formats: RIFF/RF64 (EBU Tech 3306), W64 (Sony), AIFF, AU, Ogg (RFC 3533), FLAC (RFC 9639), MPEG audio with its Xing,
Info or VBRI header.
"""

from __future__ import annotations

import codecs
import struct
from dataclasses import dataclass
from typing import BinaryIO

__all__ = ["Container", "examine", "what_it_is"]

_SLACK = 64  # bytes: some writers count their header as data
_STREAMED = 0x7FFF0000  # sizes from here on are what programs write that do not know the size yet
_TAIL = 1 << 17  # an Ogg page is at most 65,307 bytes
_MAX_CHUNKS = 10_000


@dataclass(frozen=True)
class Container:
    """What a file's container says, read without decoding it.

    Attributes:
        truncated: How much is missing, in words, or None.
        guessed: libsndfile can only guess the length of this file, and would stop where its guess says: not its
            file to read.
        counted: It is an MP3 whose header tells its length. Any other MP3 is one that libsndfile guesses about; that
            it was cut off at a frame cannot be known.
    """

    truncated: str | None = None
    guessed: bool = False
    counted: bool = False


def examine(file: BinaryIO, size: int) -> Container:
    """Compares what the header promises with the size of the file.

    Args:
        file: An open file; its position is lost.
        size: Its size in bytes.
    """
    file.seek(0)
    head = file.read(64)
    for begins, look in (
        (_is_wave, _riff),
        (_is_aiff, _aiff),
        (_is_w64, _w64),
        (_is_au, _au),
        (_is_ogg, _ogg),
        (_is_flac, _flac),
        (_may_be_mpeg, _mpeg),
    ):
        if begins(head):
            return look(file, size, head)
    return Container()


def what_it_is(head: bytes) -> str | None:
    """Guesses from its first bytes what a file that is no sound is; None if unclear."""
    if not head.strip(b"\0"):
        return "it holds only zero bytes"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the sound itself (git lfs pull)"
    if head.lstrip()[:1] == b"<":
        return "it is a web page or XML, not sound (a failed download?)"
    try:
        # Incrementally, because the last character may be cut at the end of the head.
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return None
    return "it is text, not sound" if all(char.isprintable() or char in "\r\n\t" for char in text) else None


def _is_wave(head: bytes) -> bool:
    return head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE"


def _is_aiff(head: bytes) -> bool:
    return head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC")


def _is_w64(head: bytes) -> bool:
    return head[:16] == b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00" and len(head) >= 24


def _is_au(head: bytes) -> bool:
    return head[:4] in (b".snd", b"dns.") and len(head) >= 12


def _is_ogg(head: bytes) -> bool:
    return head[:4] == b"OggS"


def _is_flac(head: bytes) -> bool:
    return head[:4] == b"fLaC" and len(head) >= 26


def _may_be_mpeg(head: bytes) -> bool:
    return head[:3] == b"ID3" or _is_mpeg_frame(head)


def _is_mpeg_frame(head: bytes) -> bool:
    """Whether these bytes begin with an MPEG audio frame (layer bits of 0 would be AAC)."""
    return len(head) >= 4 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x06 != 0


def _promised(promised: int, size: int) -> Container:
    if promised <= size + _SLACK:
        return Container()
    return Container(truncated=f"the header promises {promised:,} bytes, the file has {size:,}")


def _riff(file: BinaryIO, size: int, head: bytes) -> Container:
    order = ">" if head[:4] == b"RIFX" else "<"
    long_data = None
    position = 12
    for _ in range(_MAX_CHUNKS):
        file.seek(position)
        chunk = file.read(8)
        if len(chunk) < 8:
            break
        name, length = chunk[:4], struct.unpack(order + "I", chunk[4:])[0]
        if name == b"ds64":
            sizes = file.read(16)
            long_data = struct.unpack("<Q", sizes[8:16])[0] if len(sizes) == 16 else None
        if name == b"data":
            if head[:4] in (b"RF64", b"BW64") and length == 0xFFFFFFFF and long_data is not None:
                length = long_data
            elif length >= _STREAMED and position + 8 + length > size:
                return Container()
            if length == 0:
                # A recorder that lost its power leaves sizes of zero over good sound; libsndfile then reads nothing.
                whole = struct.unpack(order + "I", head[4:8])[0] + 8
                return Container(guessed=size > max(whole, position + 8) + _SLACK)
            return _promised(position + 8 + length, size)
        position += 8 + length + length % 2
    return Container(truncated="it ends before any sound begins")


def _aiff(file: BinaryIO, size: int, _head: bytes) -> Container:
    position = 12
    for _ in range(_MAX_CHUNKS):
        file.seek(position)
        chunk = file.read(8)
        if len(chunk) < 8:
            break
        length = struct.unpack(">I", chunk[4:])[0]
        if chunk[:4] == b"SSND":
            return _promised(position + 8 + length, size)
        position += 8 + length + length % 2
    return Container(truncated="it ends before any sound begins")


def _w64(_file: BinaryIO, size: int, head: bytes) -> Container:
    return _promised(struct.unpack("<Q", head[16:24])[0], size)


def _au(_file: BinaryIO, size: int, head: bytes) -> Container:
    offset, data = struct.unpack(">II" if head[:4] == b".snd" else "<II", head[4:12])
    return Container() if data == 0xFFFFFFFF else _promised(offset + data, size)


def _ogg(file: BinaryIO, size: int, _head: bytes) -> Container:
    """The last page has to be complete and to carry the end-of-stream flag (RFC 3533, section 6)."""
    start = max(0, size - _TAIL)
    file.seek(start)
    tail = file.read(_TAIL)
    at = len(tail)
    while (at := tail.rfind(b"OggS\0", 0, at)) >= 0:
        page = tail[at:]
        if len(page) < 27 or len(page) < 27 + page[26]:
            return Container(truncated="its last Ogg page is cut off")
        if len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]]):
            return Container(truncated="its last Ogg page is cut off")
        if page[5] & 4:
            return Container()
        return Container(truncated="it has no end-of-stream page")
    return Container(truncated="its last Ogg page is cut off")


def _flac(_file: BinaryIO, _size: int, head: bytes) -> Container:
    """A FLAC made as a stream tells no number of samples: libsndfile opens it and cannot read it."""
    return Container(guessed=(head[21] & 0x0F) == 0 and head[22:26] == bytes(4))


def _mpeg(file: BinaryIO, size: int, head: bytes) -> Container:
    start = 0
    if head[:3] == b"ID3" and len(head) >= 10:
        length = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        start = 10 + length + (10 if head[5] & 0x10 else 0)
    file.seek(start)
    first = file.read(4096).lstrip(b"\0")
    if not _is_mpeg_frame(first):
        return Container()  # an ID3 tag in front of something else, FLAC for instance
    for name in (b"Xing", b"Info"):
        at = first.find(name, 0, 200)
        if at >= 0 and len(first) >= at + 16:
            flags = struct.unpack(">I", first[at + 4 : at + 8])[0]
            if not flags & 1:
                return Container()
            promised = struct.unpack(">I", first[at + 12 : at + 16])[0] if flags & 2 else 0
            return _mpeg_promised(promised, size - start)
    if first[36:40] == b"VBRI" and len(first) >= 54:
        return _mpeg_promised(struct.unpack(">I", first[46:50])[0], size - start)
    return Container()


def _mpeg_promised(promised: int, size: int) -> Container:
    # One frame is at most 1,441 bytes, and encoders do not agree on whether the header frame counts.
    if promised * 0.99 <= size + 4096:
        return Container(counted=True)
    return Container(truncated=f"the header promises {promised:,} bytes, the file has {size:,}")
