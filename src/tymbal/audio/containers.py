"""Compares what a sound file's header promises with the bytes in the file, in both directions.

libsndfile clamps the length of a WAV that was cut off, decodes an Ogg up to where it breaks, and reads nothing behind
the size that a header tells: all look whole. A few bytes at the right places tell; `tymbal.audio.bitstreams` passes
over files whose headers cannot know. Nothing here decodes; what a decoder notices by itself is left to it.

Formats: RIFF/RF64 (EBU Tech 3306), W64 (Sony), AIFF, AU, CAF (Apple), MP4 (ISO 14496-12).
"""

from __future__ import annotations

import codecs
import struct
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import BinaryIO

from tymbal.audio.bitstreams import STREAMS, may_be_mpeg, several
from tymbal.audio.spans import FRAME, JOINED, LONGER, PIECE, Chunks, Container, Span, begins_chunk, tag_length

__all__ = ["Container", "Span", "examine", "what_it_is"]

_SLACK = 64  # bytes: some writers count their header as data
_MUCH = 1024  # bytes behind the promised end from which on they are looked at
_STREAMED = 0x7FFF0000  # sizes from here on are what programs write that do not know the size yet
_WRAP = 1 << 32
_UNKNOWN_32 = 0xFFFFFFFF
_UNKNOWN = 1 << 62  # sizes of 64 bits from here on are what programs write that do not know the size
_PLAIN = (1, 3, 6, 7)  # PCM, floating point, A-law and mu-law by their number in WAV and W64
_EXTENSIBLE = 0xFFFE
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def examine(file: BinaryIO, size: int) -> Container:
    """Compares what the header promises with the size of the file.

    Args:
        file: An open file; its position is lost.
        size: Its size in bytes.
    """
    file.seek(0)
    head = file.read(64)
    tag = tag_length(file, head)
    if tag:
        file.seek(tag)
        behind = file.read(64)
        if any(begins(behind) for begins, _ in _LOOKS if begins is not may_be_mpeg):
            return Container(spans=(Span(tag, size),))
    for begins, look in _LOOKS:
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
    return head[:4] in (b".snd", b"dns.") and len(head) >= 24


def _is_caf(head: bytes) -> bool:
    return head[:8] == b"caff\0\1\0\0"


def _is_asf(head: bytes) -> bool:
    return head[:16] == _ASF


def _is_mp4(head: bytes) -> bool:
    return head[4:8] == b"ftyp"


# --- what lies behind the chunk with the sound

_RIFF = Chunks(_is_wave, "<4sI")
_RIFX = Chunks(_is_wave, ">4sI")
_AIFF = Chunks(_is_aiff, ">4sI")
_W64 = Chunks(_is_w64, "<16sQ", 8, inclusive=True)
_CAF = Chunks(_is_caf, ">4sq", 1)
_AU = Chunks(_is_au, "")
_IN_ASF = Chunks(_is_asf, "")
_NOTES = (b"LIST", b"bext", b"iXML", b"id3 ", b"ID3 ", b"guan", b"cue ", b"fact", b"JUNK", b"junk", b"PAD ", b"smpl")
_TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN")


def _promised(promised: int, size: int, slack: int = _SLACK) -> Container:
    if promised <= size + slack:
        return Container()
    return Container(truncated=f"the header promises {promised:,} bytes, the file has {size:,}")


def _behind(file: BinaryIO, size: int, end: int, mended: Callable[[int], Span | None], chunks: Chunks) -> Container:
    """Looks at what lies behind the sound.

    Args:
        file: The file.
        size: Its size in bytes.
        end: Where its sound ends, as the header says.
        mended: The file with the header of a sound that ends elsewhere; None where its coding tells no length.
        chunks: How chunks are written that may follow.
    """
    at = _behind_chunks(file, end, size, chunks)
    if size - at <= _MUCH:
        # libsndfile takes for sound what lies behind it in these.
        return Container(spans=(Span(0, at),) if at < size and chunks in (_W64, _AU) else ())
    for place in (at, end):
        file.seek(place)
        head = file.read(64)
        if chunks.begins(head):
            return Container(spans=(Span(0, place), Span(place, size)), remark=JOINED)
    file.seek(at)
    if file.read(64).startswith(_TAGS) or _is_zero(file, at):
        return Container(spans=(Span(0, at),))
    # A size of 32 bits that has wrapped is right but for multiples of 4 GiB; chunks may follow there.
    wrapped = end + (size - end) // _WRAP * _WRAP
    ends_there = wrapped > end and size - _behind_chunks(file, wrapped, size, chunks) <= _MUCH
    span = mended(wrapped if ends_there else size)
    if span is None:
        return Container(truncated="its header promises less than the file holds, in a coding that tells no length")
    return Container(spans=(span,), remark=LONGER)


def _behind_chunks(file: BinaryIO, at: int, size: int, chunks: Chunks) -> int:
    """The place from `at` on where no chunk begins, or another file does."""
    if not chunks.form:
        return at
    head = struct.calcsize(chunks.form)
    for name, body, length in chunks.walk(file, at):
        file.seek(body - head)
        if chunks.begins(file.read(64)):
            return body - head
        if length < 0 or not begins_chunk(name):
            break
        if body + length > size + _SLACK:
            return size if name[:4] in _NOTES else chunks.aligned(at)
        at = body + length
    return chunks.aligned(at)


def _is_zero(file: BinaryIO, at: int) -> bool:
    file.seek(at)
    while piece := file.read(PIECE):
        if piece.strip(b"\0"):
            return False
    return True


def _riff(file: BinaryIO, size: int, head: bytes) -> Container:
    chunks = _RIFX if head[:4] == b"RIFX" else _RIFF
    long_data = None
    form = b""
    sounds: list[tuple[int, int]] = []
    rewritten = False
    behind = 12
    for name, body, length in chunks.walk(file, behind):
        if sounds and not (begins_chunk(name) and body + length <= size):
            break
        rewritten = rewritten or body - 8 != chunks.aligned(behind)
        behind = body + length
        file.seek(body)
        if name == b"ds64":
            sizes = file.read(16)
            long_data = struct.unpack("<Q", sizes[8:16])[0] if len(sizes) == 16 else None
        if name == b"fmt " and not sounds:
            form = file.read(min(length, FRAME))
        if name == b"data":
            if length == _UNKNOWN_32 and long_data is not None:
                rewritten = rewritten or long_data >= _UNKNOWN
                behind = body + long_data if long_data < _UNKNOWN else size
            elif length >= _STREAMED and behind > size:
                return Container()
            elif long_data is not None:
                rewritten = rewritten or long_data != length  # decoders believe the long one
            sounds.append((body, behind))
    if not sounds:
        return Container(truncated="it ends before any sound begins")
    if len(form) < 14:
        return _promised(sounds[0][1], size)
    filled = [(start, end) for start, end in sounds if end > start] or sounds[:1]
    if len(filled) > 1:
        spans = (Span(*each, _riff_header(form, each[1] - each[0], chunks.form[0])) for each in filled)
        return Container(spans=tuple(spans), remark=JOINED)
    return _riff_data(file, size, filled[0], form, chunks, rewritten=rewritten or len(sounds) > 1)


def _riff_data(
    file: BinaryIO, size: int, data: tuple[int, int], form: bytes, chunks: Chunks, *, rewritten: bool
) -> Container:
    """Compares a chunk of sound with what lies behind it; `rewritten` gives the sound a header of its own."""
    order = chunks.form[0]
    block = struct.unpack(order + "H", form[12:14])[0]
    coding = _coding(form, order)
    plain = coding in _PLAIN
    start, end = data
    slack = _SLACK if plain else max(FRAME, block)  # a last block that was not finished
    if end > size + slack:
        return _promised(end, size)

    def mended(stop: int) -> Span:
        stop -= (stop - start) % block if plain and block else 0
        return Span(start, stop, _riff_header(form, stop - start, order))

    # libsndfile believes the header's count of samples, which encoders of MPEG audio round up.
    found = replace(_behind(file, size, end, mended, chunks), guessed=coding in (0x50, 0x55))
    if rewritten and found.truncated is None and found.remark is None:
        return replace(found, spans=(mended(min(end, size)),))
    return found


def _coding(form: bytes, order: str) -> int:
    """The number of a coding in a chunk `fmt `; in an extensible one it begins the GUID of the subformat."""
    if len(form) < 2:
        return 0
    coding: int = struct.unpack(order + "H", form[:2])[0]
    return int(struct.unpack(order + "H", form[24:26])[0]) if coding == _EXTENSIBLE and len(form) >= 26 else coding


def _riff_header(form: bytes, length: int, order: str) -> bytes:
    chunk = b"fmt " + struct.pack(order + "I", len(form)) + form + bytes(len(form) % 2)
    whole = 4 + len(chunk) + 8 + length
    if whole < _WRAP:
        name = b"RIFX" if order == ">" else b"RIFF"
        return name + struct.pack(order + "I", whole) + b"WAVE" + chunk + b"data" + struct.pack(order + "I", length)
    sizes = b"ds64" + struct.pack("<IQQQI", 28, whole + 36, length, 0, 0)
    return b"RF64\xff\xff\xff\xffWAVE" + sizes + chunk + b"data\xff\xff\xff\xff"


_AIFF_STREAMED = 0x7F000000  # what SoX writes into a pipe
_AIFF_PLAIN = (b"none", b"sowt", b"twos", b"raw ", b"fl32", b"fl64", b"in24", b"in32", b"ulaw", b"alaw")


def _aiff(file: BinaryIO, size: int, head: bytes) -> Container:
    common = b""
    for name, body, length in _AIFF.walk(file, 12):
        file.seek(body)
        if name == b"COMM":
            common = file.read(min(length, FRAME))
        if name == b"SSND":
            mended = partial(_aiff_mended, head[8:12], common, body)
            if body + length > size + _SLACK:
                span = mended(size) if length >= _AIFF_STREAMED else None
                return _promised(body + length, size) if span is None else Container(spans=(span,))
            # Eight bytes of the chunk come before the sound.
            return _behind(file, size, body + max(length, 8), mended, _AIFF)
    return Container(truncated="it ends before any sound begins")


def _aiff_mended(kind: bytes, common: bytes, start: int, stop: int) -> Span | None:
    coding = common[18:22].lower() if kind == b"AIFC" else b"none"
    if len(common) < 18 or coding not in _AIFF_PLAIN:
        return None
    channels, _, bits = struct.unpack(">hIh", common[:8])
    block = channels * (1 if coding in (b"ulaw", b"alaw") else -(-bits // 8))
    if block <= 0:
        return None
    frames = (stop - start - 8) // block
    length = 8 + frames * block
    common = common[:2] + struct.pack(">I", frames) + common[6:]
    header = kind + b"COMM" + struct.pack(">I", len(common)) + common + bytes(len(common) % 2)
    header += b"SSND" + struct.pack(">I", length)
    return Span(start, start + length, b"FORM" + struct.pack(">I", len(header) + length) + header)


def _w64(file: BinaryIO, size: int, head: bytes) -> Container:
    whole = struct.unpack("<Q", head[16:24])[0]
    if size + _SLACK < whole < _UNKNOWN:
        return _promised(whole, size)
    plain = True
    for name, body, length in _W64.walk(file, 40):
        if name[:4] == b"fmt ":
            file.seek(body)
            form = file.read(40)
            # libsndfile takes what is extensible there for PCM.
            plain = _coding(form, "<") in (_PLAIN if form[:2] != b"\xfe\xff" else (1,))
        if name[:4] == b"data":
            file.seek(0)
            header = file.read(body)
            if length >= _UNKNOWN:
                return Container(spans=(_w64_mended(header, size),), guessed=not plain)
            if body + length > size + _SLACK:
                return _promised(body + length, size)
            found = _behind(file, size, body + max(length, 0), partial(_w64_mended, header), _W64)
            # libsndfile takes some codings in W64 for PCM.
            return replace(found, guessed=not plain)
    return Container(truncated="it ends before any sound begins")


def _w64_mended(header: bytes, stop: int) -> Span:
    body = len(header)
    whole, data = struct.pack("<Q", stop), struct.pack("<Q", stop - body + 24)
    return Span(body, stop, header[:16] + whole + header[24:-8] + data)


def _au(file: BinaryIO, size: int, head: bytes) -> Container:
    offset, data = struct.unpack((">" if head[:4] == b".snd" else "<") + "II", head[4:12])
    if data == 0xFFFFFFFF:
        return several(file, size, head[:4], _is_au)
    if offset + data > size + _SLACK:
        return _promised(offset + data, size)
    # 0xFFFFFFFF is AU's own word for a size that is not known.
    unknown = head[:8] + b"\xff" * 4 + head[12:24]
    return _behind(file, size, offset + data, lambda stop: Span(24, stop, unknown), _AU)


def _caf(file: BinaryIO, size: int, head: bytes) -> Container:
    for name, body, length in _CAF.walk(file, 8):
        if name == b"data":
            if length == -1:
                return several(file, size, head[:8], _is_caf)
            if body + length > size + _SLACK:
                return _promised(body + length, size)
            file.seek(0)
            # Four bytes of the chunk come before the sound.
            return _behind(file, size, body + max(length, 4), partial(_caf_mended, file.read(body)), _CAF)
    return Container(truncated="it ends before any sound begins")


def _caf_mended(header: bytes, stop: int) -> Span:
    return Span(len(header), stop, header[:-8] + struct.pack(">q", stop - len(header)))


def _asf(file: BinaryIO, size: int, _head: bytes) -> Container:
    """The header object tells the file's size in its file properties object."""
    file.seek(0)
    header = file.read(FRAME)
    at = header.find(_ASF_PROPERTIES)
    if at < 0 or len(header) < at + 48:
        return Container()
    promised = struct.unpack("<Q", header[at + 40 : at + 48])[0]
    if promised == 0:  # a broadcast
        return several(file, size, _ASF, _is_asf)
    if promised > size + _SLACK:
        return _promised(promised, size)
    return _behind(file, size, promised, lambda _: None, _IN_ASF)


def _mp4(file: BinaryIO, size: int, _head: bytes) -> Container:
    """Atoms; a second `ftyp` begins another file. In fragments nothing else tells that the last one is cut off."""
    at, fragments = 0, False
    while at + 8 <= size:
        file.seek(at)
        raw = file.read(16)
        length = struct.unpack(">I", raw[:4])[0]
        if length == 1 and len(raw) == 16:
            length = struct.unpack(">Q", raw[8:])[0]
        if at and raw[4:8] == b"ftyp":
            return Container(spans=(Span(0, at), Span(at, size)), remark=JOINED)
        if length < 8:
            break
        fragments = fragments or raw[4:8] == b"moof"
        at += length
        if fragments and raw[4:8] in (b"moof", b"mdat") and at > size:
            return _promised(at, size, slack=0)
    return Container(guessed=True)


_LOOKS: tuple[tuple[Callable[[bytes], bool], Callable[[BinaryIO, int, bytes], Container]], ...] = (
    (_is_wave, _riff),
    (_is_aiff, _aiff),
    (_is_w64, _w64),
    (_is_au, _au),
    (_is_caf, _caf),
    (_is_asf, _asf),
    (_is_mp4, _mp4),
    *STREAMS,
)
