"""Formats of which only a pass over their bytes tells how much sound they hold.

Ogg (RFC 3533), FLAC (RFC 9639), MPEG audio (ISO 11172-3, with its Xing, Info or VBRI header) and WavPack are streams:
nothing at their beginning knows what follows, so that joined files, and headers that count too little, show in the
bytes alone.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise, product
from typing import BinaryIO

from tymbal.audio.spans import FRAME, JOINED, LONGER, PIECE, Container, Span, end_before_tags, tag_length

__all__ = ["STREAMS", "may_be_mpeg", "several"]


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
    """What FFmpeg alone reads, where a whole file may follow another."""
    magic = next(magic for magic in _OTHERS if head.startswith(magic))

    def begins(again: bytes) -> bool:
        # A short magic occurs in sound by chance; what follows it in the file's own head does not.
        same = max(len(magic), 6 if magic.startswith(b"#") else 12)
        return again[:same] == head[:same] if magic is not _EBML else b"matroska" in again or b"webm" in again

    return _without_tags(file, size, several(file, size, magic, begins))


def _is_frames(head: bytes) -> bool:
    """Whether bytes begin with a frame of AC-3 (ETSI TS 102 366) or of AAC (ADTS, ISO 13818-7)."""
    return head[:2] == b"\x0b\x77" or (len(head) >= 7 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0)


def _frames(file: BinaryIO, size: int, _head: bytes) -> Container:
    return _without_tags(file, size, Container())


def _without_tags(file: BinaryIO, size: int, found: Container) -> Container:
    """Leaves out the tags behind a sound, which FFmpeg would take for a part of it that is damaged."""
    end = end_before_tags(file, size)
    if not found.spans:
        return Container(spans=(Span(0, end),)) if end < size else Container(guessed=True)
    *before, last = found.spans
    return replace(found, spans=(*before, Span(last.start, end)) if last.start < end else tuple(before))


def _is_wavpack(head: bytes) -> bool:
    return head[:4] == b"wvpk" and len(head) >= 32


def _wavpack(file: BinaryIO, size: int, _head: bytes) -> Container:
    """Blocks of WavPack 4 and 5, each with the place of its first sample: where that is 0 again, a file begins."""
    starts, at, sounding = [0], 0, False
    while at < size:
        file.seek(at)
        block = file.read(32)
        if _is_wavpack(block):
            length, (index, samples, flags) = struct.unpack("<I", block[4:8])[0], struct.unpack("<III", block[16:28])
            if sounding and samples and index == 0 and flags & _WAVPACK_FIRST:
                starts.append(at)
            sounding = sounding or samples > 0
            at += 8 + length
        elif tag := _tag(block):
            at += tag
        else:
            break
    spans = tuple(Span(*ends) for ends in pairwise((*starts, size))) if len(starts) > 1 else ()
    return _without_tags(file, size, Container(spans=spans, remark=JOINED if spans else None))


_WAVPACK_FIRST = 0x800  # the first block of those for the channels of the same samples


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
    promised = (head[21] & 0x0F) << 32 | int.from_bytes(head[22:26])
    if found.spans or promised == 0:
        return replace(found, guessed=not found.spans)
    held = _flac_samples(file, size, head)
    if held <= promised:
        return found
    mended = head[:21] + bytes([head[21] & 0xF0 | held >> 32]) + (held & 0xFFFFFFFF).to_bytes(4)
    return Container(spans=(Span(len(mended), size, mended),), remark=LONGER)


def _flac_samples(file: BinaryIO, size: int, head: bytes) -> int:
    """Samples up to the end of the last frame, as its header tells (RFC 9639, section 9.1); 0 where none is found.

    A frame's first bytes occur in sound by chance; a frame counts where another one ends at its first sample.
    """
    last, at = False, 4
    while not last:
        file.seek(at)
        block = file.read(4)
        if len(block) < 4:
            return 0
        last, at = bool(block[0] & 0x80), at + 4 + int.from_bytes(block[1:])
    file.seek(at)
    like = file.read(4)
    longest = int.from_bytes(head[15:18]) or PIECE
    file.seek(max(at, size - 4 * longest - FRAME))
    tail = file.read()
    ends: dict[int, int] = {}
    found = 0
    for place in _places(tail, like[:2]):
        frame = _flac_frame(tail[place : place + 16], like, int.from_bytes(head[8:10]))
        if frame is not None:
            first, samples = frame
            ends[first + samples] = first
            found = first + samples if first == 0 or first in ends else found
    return found


def _places(data: bytes, pattern: bytes) -> Iterator[int]:
    at = data.find(pattern)
    while at >= 0:
        yield at
        at = data.find(pattern, at + 1)


def _flac_frame(data: bytes, like: bytes, usual: int) -> tuple[int, int] | None:
    """First sample and samples of the frame that begins so; None where none does.

    Args:
        data: Its first bytes.
        like: The first bytes of the file's first frame, whose rate and resolution all have.
        usual: Samples of a frame, where all have as many.
    """
    if len(data) < 16 or (data[2] ^ like[2]) & 0x0F or (data[3] ^ like[3]) & 0x0E or data[3] & 1:
        return None
    longer = 8 - (data[4] ^ 0xFF).bit_length()  # bytes of the number, coded as in UTF-8
    longer = 1 if longer == 0 else longer
    number = data[4] & (0x7F if longer == 1 else 0x7F >> longer)
    for byte in data[5 : 4 + longer]:
        number = number << 6 | byte & 0x3F
    at, code = 4 + longer, data[2] >> 4
    extra = {6: 1, 7: 2}.get(code, 0)
    samples = int.from_bytes(data[at : at + extra]) + 1 if extra else 192 if code == 1 else 0
    samples = samples or (576 << code - 2 if 2 <= code <= 5 else 256 << code - 8 if code >= 8 else 0)
    at += extra + {12: 1, 13: 2, 14: 2}.get(data[2] & 0x0F, 0)
    if samples == 0 or at >= len(data) or _crc8(data[:at]) != data[at]:
        return None
    return (number if data[1] & 1 else number * usual), samples


def _crc8(data: bytes) -> int:
    """CRC-8 with the polynomial x^8 + x^2 + x + 1."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x07 if crc & 0x80 else crc << 1) & 0xFF
    return crc


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
    if not in_step and (stop := end_before_tags(file, size)) < size:  # tags that do not show from their beginning
        return Container(spans=(Span(0, stop),))
    if frames * 0.99 > found + 3:
        return Container(truncated=f"the header promises {frames:,} MPEG frames, the file has {found:,}")
    # libmpg123 complains on stderr of a number of bytes that is off by more than this.
    length = end - start
    counted = 0 < frames >= found - 1 and abs(length - (promised or length)) <= 0.01 * length
    counted = counted and first[36:40] != b"VBRI"  # which says nothing of the encoder's delay
    if (counted and (start or size - end > 0.005 * length)) or (in_step and end < size):
        # Decoders complain of tags, too, and libmpg123 takes what lies behind for a part of the stream.
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
        elif tag := _tag(piece[at : at + 32]):
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


def _tag(head: bytes) -> int:
    """Bytes of a tag that begins so, in front of or behind frames; 0 where none does."""
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
    (_is_wavpack, _wavpack),
    (_is_frames, _frames),
    (may_be_mpeg, _mpeg),
)
"""Whether a file's first 64 bytes are of a format, and what looks at such a file."""
