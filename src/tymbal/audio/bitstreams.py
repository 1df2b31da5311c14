"""What a sound file's container says (`Container`), and the formats that only a pass over their bytes tells of.

Ogg (RFC 3533), FLAC (RFC 9639) and MPEG audio (ISO 11172-3, with its Xing, Info or VBRI header) are streams: nothing at
their beginning knows what follows, so that joined files, and headers that count too little, show in the bytes alone.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = [
    "FRAME",
    "JOINED",
    "LONGER",
    "PIECE",
    "STREAMS",
    "Container",
    "Span",
    "may_be_mpeg",
    "several",
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
        self._file = path.open("rb", buffering=0)
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


def _is_ogg(head: bytes) -> bool:
    return head[:4] == b"OggS"


def _is_flac(head: bytes) -> bool:
    return head[:4] == b"fLaC" and len(head) >= 26


def may_be_mpeg(head: bytes) -> bool:
    """Whether a file that begins so is MPEG audio, unless its tag stands in front of something else."""
    return head[:3] == b"ID3" or _is_mpeg_frame(head)


def _is_mpeg_frame(head: bytes) -> bool:
    """Whether these bytes begin with an MPEG audio frame (layer bits of 0 would be AAC)."""
    return len(head) >= 4 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x06 != 0


def _is_other(head: bytes) -> bool:
    return any(head.startswith(magic) for magic in _OTHERS)


def tag_length(file: BinaryIO, head: bytes) -> int:
    """Bytes of the ID3v2 tags at the beginning."""
    length = 0
    while head[:3] == b"ID3" and len(head) >= 10:
        body = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        length += 10 + body + (10 if head[5] & 0x10 else 0)
        file.seek(length)
        head = file.read(10)
    return length


def _find(file: BinaryIO, pattern: bytes, start: int = 0) -> Iterator[int]:
    """Yields the places of a pattern from `start` on."""
    file.seek(start)
    kept = b""
    while piece := file.read(PIECE):
        piece = kept + piece
        at = -1
        while (at := piece.find(pattern, at + 1)) >= 0:
            yield start + at
        kept = piece[len(piece) - len(pattern) + 1 :] if len(pattern) > 1 else b""
        start += len(piece) - len(kept)


def several(file: BinaryIO, size: int, magic: bytes, begins: Callable[[bytes], bool]) -> Container:
    """Parts at every place where the format's first bytes are followed by those of a file."""
    starts = [0]
    for at in list(_find(file, magic, len(magic))):
        file.seek(at)
        if begins(file.read(64)):
            starts.append(at)
    if len(starts) == 1:
        return Container()
    spans = tuple(Span(start, stop) for start, stop in pairwise((*starts, size)))
    return Container(spans=spans, remark=JOINED)


_EBML = b"\x1a\x45\xdf\xa3"
_OTHERS = (_EBML, b"#!AMR\n", b"#!AMR-WB\n", b"TTA1", b"MAC ", b".RMF", b"FLV\1")


def _other(file: BinaryIO, size: int, head: bytes) -> Container:
    magic = next(magic for magic in _OTHERS if head.startswith(magic))

    def begins(again: bytes) -> bool:
        # A short magic occurs in sound by chance; what follows it in the file's own head does not.
        return again[:12] == head[:12] if magic is not _EBML else b"matroska" in again or b"webm" in again

    return several(file, size, magic, begins)


def _ogg(file: BinaryIO, size: int, _head: bytes) -> Container:
    """Links of a chain, each of which begins behind the pages of the one before (RFC 3533, section 4).

    The last page has to be complete and to carry the end-of-stream flag (section 6).
    """
    starts = [0]
    last = b""
    sounding = False
    for at in list(_find(file, b"OggS\0")):
        file.seek(at)
        page = file.read(27 + 255)
        if len(page) < 27 or len(page) < 27 + page[26]:
            return Container(truncated="its last Ogg page is cut off")
        begins = bool(page[5] & 2)
        if begins and sounding:
            starts.append(at)
        sounding = not begins
        last, end = page, at + 27 + page[26] + sum(page[27 : 27 + page[26]])
    if not last or end > size:
        return Container(truncated="its last Ogg page is cut off")
    if not last[5] & 4:
        return Container(truncated="it has no end-of-stream page")
    if len(starts) == 1:
        return Container()
    return Container(spans=tuple(Span(*ends) for ends in pairwise((*starts, size))), remark=JOINED)


def _flac(file: BinaryIO, size: int, head: bytes) -> Container:
    """A FLAC made as a stream tells no number of samples: libsndfile opens it and cannot read it."""
    found = several(file, size, b"fLaC", lambda again: again[4] & 0x7F == 0 and again[5:8] == head[5:8])
    return found if found.spans else Container(guessed=(head[21] & 0x0F) == 0 and head[22:26] == bytes(4))


def _mpeg(file: BinaryIO, size: int, head: bytes) -> Container:
    start = tag_length(file, head)
    file.seek(start)
    first = file.read(4096)
    start += len(first) - len(first.lstrip(b"\0"))
    first = first.lstrip(b"\0")
    if not _is_mpeg_frame(first):
        return Container()
    frames, promised = _mpeg_header(first)
    # One frame is at most 1,441 bytes, and encoders do not agree on whether the header frame counts.
    if promised * 0.99 > size - start + 4096:
        return Container(truncated=f"the header promises {promised:,} bytes, the file has {size - start:,}")
    found, seconds, in_step, end = _mpeg_frames(file, start)
    if frames * 0.99 > found + 3:
        return Container(truncated=f"the header promises {frames:,} MPEG frames, the file has {found:,}")
    # libmpg123 complains on stderr of a number of bytes that is off by more than this.
    length = end - start
    counted = 0 < frames >= found - 1 and abs(length - (promised or length)) <= 0.01 * length
    if counted and (start or size - end > 0.005 * length):
        # libmpg123 complains of tags, too, and takes what lies behind for a part of the stream.
        return Container(spans=(Span(start, min(end, size)),))
    return Container(
        guessed=not counted,
        counted=counted,
        seconds=seconds if in_step else None,
        remark=LONGER if 0 < frames < found - 3 else None,
    )


def _mpeg_header(first: bytes) -> tuple[int, int]:
    """Frames and bytes that a Xing, Info or VBRI header promises; 0 where it does not tell."""
    for name in (b"Xing", b"Info"):
        at = first.find(name, 0, 200)
        if at >= 0 and len(first) >= at + 16:
            flags, one, two = struct.unpack(">III", first[at + 4 : at + 16])
            return one if flags & 1 else 0, (two if flags & 1 else one) if flags & 2 else 0
    if first[36:40] == b"VBRI" and len(first) >= 54:
        promised, frames = struct.unpack(">II", first[46:54])
        return frames, promised
    return 0, 0


def _mpeg_frames(file: BinaryIO, start: int) -> tuple[int, float, bool, int]:
    """Counts MPEG frames from a place on, header frames among them.

    Returns:
        Their number, their seconds, whether nothing but tags and zeros lies between and behind them, and where the
        last one ends.
    """
    frames = _mpeg_kinds()
    count, seconds, whole = 0, 0.0, True
    begin, end = start, start  # where the piece begins, and where the last frame ends
    in_step = True
    file.seek(start)
    piece, at = file.read(PIECE), 0
    marked = _has_mpeg_header(piece)
    while len(piece) - at >= 4:
        length, lasts = frames.get(piece[at + 1] << 8 | piece[at + 2], (0, 0.0)) if piece[at] == 0xFF else (0, 0.0)
        # Out of step, a frame is one that another follows.
        if length and (in_step or piece[at + length : at + length + 1] in (b"\xff", b"")):
            count, in_step = count + 1, True
            # The header of a file is a frame without sound; its word's place depends on version and channels.
            seconds += 0.0 if marked and _has_mpeg_header(piece[at + 13 : at + 40]) else lasts
            at += length
            end = begin + at
        elif tag := _mpeg_tag(piece[at : at + 32]):
            at += tag
        else:
            in_step = False
            after = piece.find(b"\xff", at + 1)
            after = len(piece) if after < 0 else after
            whole = whole and not piece[at:after].strip(b"\0")
            at = after
        if len(piece) - at < 2 * FRAME:
            kept = piece[at:]
            begin += at
            file.seek(max(0, at - len(piece)), os.SEEK_CUR)
            piece, at = kept + file.read(PIECE), 0
            marked = _has_mpeg_header(piece)
    return count, seconds, whole, end


def _has_mpeg_header(piece: bytes) -> bool:
    return any(word in piece for word in (b"Xing", b"Info", b"VBRI"))


def _mpeg_tag(head: bytes) -> int:
    """Bytes of a tag that begins so, in front of or behind MPEG frames; 0 where none does."""
    if head[:3] == b"ID3" and len(head) >= 10:
        return 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]) + (10 if head[5] & 0x10 else 0)
    if head[:8] == b"APETAGEX" and len(head) == 32:
        size, _, flags = struct.unpack("<III", head[12:24])
        return 32 if not flags & 0x20000000 else 32 + int(size)  # the footer, which its size counts, or the header
    return 128 if head[:3] == b"TAG" else 0


@cache
def _mpeg_kinds() -> dict[int, tuple[int, float]]:
    """Bytes and seconds of an MPEG frame by the second and third byte of its header (ISO 11172-3, section 2.4.2.3)."""
    by_layer = {
        (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
        (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
        (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
        (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
        (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
        (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    }
    kinds = {}
    for version, layer, rate_place in product((3, 2, 0), (1, 2, 3), range(3)):
        rate = (44_100, 48_000, 32_000)[rate_place] // {3: 1, 2: 2, 0: 4}[version]
        samples = 384 if layer == 1 else 576 if layer == 3 and version != 3 else 1152
        slot = 4 if layer == 1 else 1
        for place, kilobits in enumerate(by_layer[1 if version == 3 else 2, layer], 1):
            for padding, private, unprotected in product((0, 1), (0, 1), (0, 1)):
                second = 0xE0 | version << 3 | (4 - layer) << 1 | unprotected
                third = place << 4 | rate_place << 2 | padding << 1 | private
                length = (samples // 8 // slot * kilobits * 1000 // rate + padding) * slot
                kinds[second << 8 | third] = length, samples / rate
    return kinds


STREAMS: tuple[tuple[Callable[[bytes], bool], Callable[[BinaryIO, int, bytes], Container]], ...] = (
    (_is_ogg, _ogg),
    (_is_flac, _flac),
    (_is_other, _other),
    (may_be_mpeg, _mpeg),
)
"""Whether a file's first 64 bytes are of a format, and what looks at such a file."""
