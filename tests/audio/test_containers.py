"""Files whose header promises another length than they hold, in every encoding that FFmpeg can write here."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from made_sounds import ENCODINGS, tone, write_av

from tymbal.audio.decode import info, read
from tymbal.audio.inspect import inspect
from tymbal.audio.readers import CANCELLED
from tymbal.audio.sources import AUDIO_SUFFIXES
from tymbal.audio.spans import JOINED, LONGER
from tymbal.errors import AudioError

Wave = npt.NDArray[np.float32]


def by_ffmpeg(path: Path) -> Wave:
    """FFmpeg's decode to mono float32."""
    parts = []
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="flt", layout="mono")
        for packet in container.demux(audio=0):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:  # the header of a joined MP3
                continue
            parts += [part.to_ndarray()[0] for frame in frames for part in resampler.resample(frame)]
    return np.concatenate(parts)


def lengths(path: Path) -> set[int]:
    """What `info`, `read` and a scan say of a file; one number, where they agree."""
    report = inspect(path)
    assert report.info is not None, report.problem
    return {info(path).frames, len(read(path)[0]), report.info.frames}


def outcome(path: Path) -> int | str:
    """The length on which `info`, `read` and a scan agree, or the kind of failure that `read` and a scan name."""
    try:
        (frames,) = {len(read(path)[0]), info(path).frames}
    except AudioError as error:
        assert inspect(path).problem == error.what
        return error.what.partition(":")[0]
    assert inspect(path).info.frames == frames
    return frames


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A second of a tone in every encoding."""
    folder = tmp_path_factory.mktemp("encodings")
    paths = {}
    for name, codec, container in ENCODINGS:
        rate = {"libopencore_amrnb": 8_000, "libopus": 48_000}.get(codec, 44_100)
        paths[name] = write_av(folder / name, tone(1.0, rate), rate, codec, container=container)
    assert {path.suffix for path in paths.values()} <= AUDIO_SUFFIXES
    return paths


NAMES = [name for name, _, _ in ENCODINGS]


@pytest.mark.parametrize("name", NAMES)
def test_read__every_encoding_as_ffmpeg_and_scan_read_it(written, name):
    path = written[name]
    (frames,) = lengths(path)
    wave = by_ffmpeg(path)
    assert abs(frames - len(wave)) <= 2048  # a frame of the codec
    got = read(path)[0]
    common = min(len(got), len(wave))
    # Decoders differ in how much of the beginning they leave out: an AAC frame, at most.
    spectra = [np.abs(np.fft.rfft(sound[2048 : common - 2048])) for sound in (got, wave)]
    assert np.linalg.norm(spectra[0] - spectra[1]) < 0.05 * np.linalg.norm(spectra[1])


@pytest.mark.parametrize("name", NAMES)
def test_read__two_joined_files_are_read_or_named(written, tmp_path, name):
    path = written[name]
    joined = tmp_path / name
    joined.write_bytes(path.read_bytes() * 2)
    result = outcome(joined)
    assert isinstance(result, str) or abs(result - 2 * info(path).frames) <= 3 * 1152
    if not isinstance(result, str) and path.suffix not in {".mp3", ".mp2", ".aac", ".ac3"}:
        assert info(joined).remarks == (JOINED,)


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith((".ac3", ".wv", ".amr"))])
@pytest.mark.parametrize("behind", [bytes(5000), b"TAG" + bytes(125)], ids=["zeros", "tag"])
def test_read__zeros_and_tags_behind_are_no_sound(written, tmp_path, name, behind):
    path = tmp_path / name
    path.write_bytes(written[name].read_bytes() + behind)
    assert outcome(path) == info(written[name]).frames
    assert info(path).remarks == ()


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith((".ac3", ".wv"))])
def test_read__a_tag_before_is_no_sound(written, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"ID3\4\0\0" + bytes((0, 1, 28, 32)) + bytes(128 * (128 + 28) + 32) + written[name].read_bytes())
    assert outcome(path) == info(written[name]).frames


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith((".ac3", ".mp2"))])
def test_read__a_cut_file_is_named(written, tmp_path, name):
    content = written[name].read_bytes()
    path = tmp_path / name
    path.write_bytes(content[: int(0.6 * len(content))])
    with pytest.raises(AudioError, match=r"truncated|unreadable|no sound could be decoded"):
        read(path)


def patched(path: Path, at: int, form: str, value: int) -> Path:
    content = bytearray(path.read_bytes())
    struct.pack_into(form, content, at, value)
    path.write_bytes(content)
    return path


def data_at(path: Path, name: bytes) -> int:
    """Where the length of a chunk stands."""
    return path.read_bytes().index(name) + len(name)


W64_DATA = b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"


@pytest.mark.parametrize(
    ("name", "keywords", "size"),
    [
        ("a.wav", {}, (b"data", "<I", 0)),
        ("a.wav", {"subtype": "FLOAT"}, (b"data", "<I", 0)),
        ("a.wav", {"subtype": "MS_ADPCM"}, (b"data", "<I", 0)),
        ("a.wav", {"endian": "BIG"}, (b"data", ">I", 0)),
        ("a.aiff", {}, (b"SSND", ">I", 8)),
        ("a.aiff", {"subtype": "PCM_24"}, (b"SSND", ">I", 8)),
        ("a.aiff", {"subtype": "FLOAT"}, (b"SSND", ">I", 8)),
        ("a.w64", {}, (W64_DATA, "<Q", 24)),
        ("a.caf", {}, (b"data", ">q", 4)),
        ("a.au", {}, (8, ">I", 0)),
    ],
)
@pytest.mark.parametrize("share", [0.0, 0.25, 0.9])
def test_read__a_size_that_promises_too_little(write, name, keywords, size, share):
    path = write(name, tone(2.0, 16_000), **keywords)
    whole, _ = read(path)
    at, form, added = size
    place = at if isinstance(at, int) else data_at(path, at)
    (count,) = struct.unpack_from(form, path.read_bytes(), place)
    patched(path, place, form, added + int(share * (count - added)) // 8 * 8)
    assert lengths(path) == {len(whole)}
    np.testing.assert_array_equal(read(path)[0], whole)
    part, _ = read(path, start=1.25, end=1.75)
    np.testing.assert_array_equal(part, whole[20_000:28_000])
    assert info(path).remarks == (LONGER,)


@pytest.mark.parametrize("name", ["a.wav", "a.aiff", "a.w64", "a.caf", "a.au"])
def test_read__no_sound_and_nothing_behind_is_empty(write, name):
    with pytest.raises(AudioError, match="empty"):
        read(write(name, np.empty(0, np.float32)))


def test_read__chunks_behind_the_sound_are_no_sound(write):
    path = write("a.wav")
    content = path.read_bytes()
    for behind in (
        b"LIST" + struct.pack("<I", 9000) + bytes(range(250)) * 36,
        b"guan" + struct.pack("<I", 4000) + b"a" * 4000,
    ):
        path.write_bytes(content + behind)
        assert lengths(path) == {16_000}
        assert info(path).remarks == ()


@pytest.mark.parametrize("wraps", [1, 2])
@pytest.mark.parametrize("behind", [b"", b"LIST" + struct.pack("<I", 2000) + b"a" * 2000])
def test_read__a_wav_beyond_4_gib_whose_size_wrapped(tmp_path, wraps, behind):
    """Written with holes, so that it takes no room on the disk."""
    rate, bytes_a_sample = 192_000, 4
    seconds = wraps * (1 << 32) // (rate * bytes_a_sample) + 100
    length = seconds * rate * bytes_a_sample
    path = tmp_path / "a.wav"
    end = tone(1.0, rate)
    with path.open("wb") as file:
        form = struct.pack("<HHIIHH", 3, 1, rate, rate * bytes_a_sample, bytes_a_sample, 32)
        sizes = struct.pack("<I", (length + 36) % (1 << 32)), struct.pack("<I", length % (1 << 32))
        file.write(b"RIFF" + sizes[0] + b"WAVEfmt \x10\0\0\0" + form + b"data" + sizes[1])
        # Sound in all gigabytes, so that what follows the promised end is no silence.
        for second in range(0, seconds, 200):
            file.seek(44 + second * rate * bytes_a_sample)
            file.write(end.tobytes())
        file.seek(44 + length - end.nbytes)
        file.write(end.tobytes() + behind)
    assert info(path).frames == seconds * rate
    np.testing.assert_array_equal(read(path, start=seconds - 1.0)[0], end)
    os.truncate(path, 0)


@pytest.mark.parametrize("codec", ["VORBIS", "OPUS"])
def test_read__chained_ogg(tmp_path, codec):
    """Links of other rates and channels among them."""
    parts = []
    waves = [tone(1.0, 48_000, frequency=300), np.stack([tone(2.0, 24_000, frequency=900)] * 2, axis=1)]
    for index, (wave, rate) in enumerate(zip([*waves, waves[0]], (48_000, 24_000, 48_000), strict=True)):
        soundfile.write(tmp_path / f"{index}.ogg", wave, rate, format="OGG", subtype=codec)
        parts.append((tmp_path / f"{index}.ogg").read_bytes())
    path = tmp_path / "chained.ogg"
    path.write_bytes(b"".join(parts))
    assert lengths(path) == {4 * 48_000}
    wave, rate = read(path)
    for start, end, frequency in ((0.2, 0.8, 300), (1.2, 2.8, 900), (3.2, 3.8, 300)):
        part, _ = read(path, start=start, end=end)
        spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part))))
        assert np.argmax(spectrum) * rate / len(part) == pytest.approx(frequency, abs=3)
        np.testing.assert_allclose(part, wave[round(start * rate) : round(end * rate)], atol=1e-5)


def test_read__joined_flac_of_equal_and_other_lengths(write):
    path = write("a.flac", tone(1.0, 16_000))
    other = write("b.flac", tone(3.0, 16_000))
    waves = [read(path)[0], read(other)[0]]
    path.write_bytes(path.read_bytes() * 2 + other.read_bytes())
    np.testing.assert_array_equal(read(path)[0], np.concatenate([waves[0], waves[0], waves[1]]))
    np.testing.assert_array_equal(
        read(path, start=1.5, end=3.0)[0], np.concatenate([waves[0], waves[0], waves[1]])[24_000:48_000]
    )


def test_read__a_joined_file_whose_last_part_is_cut(write):
    path = write("a.wav")
    path.write_bytes(path.read_bytes() + path.read_bytes()[:20_000])
    with pytest.raises(AudioError, match="truncated"):
        read(path)


@pytest.fixture
def vbr(tmp_path) -> Path:
    """An MP3 of variable bit rate, of 4 seconds, with a Xing header of its frames and bytes."""
    return write_av(tmp_path / "a.mp3", tone(4.0, 44_100), 44_100, "libmp3lame", container="mp3")


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("fields", ["frames", "bytes", "both"])
def test_read__mp3_whose_header_counts_too_little(vbr, share, fields, capfd):
    content = vbr.read_bytes()
    at = max(content.find(b"Xing"), content.find(b"Info"))
    frames, size = struct.unpack_from(">II", content, at + 8)
    if fields != "bytes":
        patched(vbr, at + 8, ">I", int(share * frames))
    if fields != "frames":
        patched(vbr, at + 12, ">I", int(share * size))
    (got,) = lengths(vbr)
    assert got == pytest.approx(4 * 44_100, abs=2 * 1152)
    assert capfd.readouterr().err == ""  # libmpg123 would complain there


def test_read__joined_mp3_without_headers(vbr):
    content = vbr.read_bytes()
    first = content.index(b"\xff\xfb")
    second = content.index(b"\xff\xfb", max(content.find(b"Xing"), content.find(b"Info")))
    vbr.write_bytes((content[:first] + content[second:]) * 3)
    (got,) = lengths(vbr)
    assert got == pytest.approx(12 * 44_100, abs=4 * 1152)


def test_read__mp3_of_frames_that_are_missing(vbr):
    content = vbr.read_bytes()
    at = max(content.find(b"Xing"), content.find(b"Info"))
    patched(vbr, at + 12, ">I", 0)
    vbr.write_bytes(vbr.read_bytes()[: int(0.8 * len(content))])
    with pytest.raises(AudioError, match="MPEG frames"):
        read(vbr)


def test_read__hole_in_an_mp3_is_named(vbr):
    content = bytearray(vbr.read_bytes())
    at = max(content.find(b"Xing"), content.find(b"Info"))
    content[at : at + 4] = b"none"
    content[len(content) // 2 : len(content) // 2 + 3000] = np.random.default_rng(0).bytes(3000)
    vbr.write_bytes(content)
    with pytest.raises(AudioError, match="truncated"):
        read(vbr)


def test_read__channels_that_cancel(write):
    wave = tone(1.0, 16_000)
    for factor in (-1.0, -1.0001):
        path = write("a.wav", np.stack([wave, factor * wave], axis=1), subtype="FLOAT")
        got, _ = read(path)
        np.testing.assert_allclose(np.abs(got), np.abs(wave), rtol=1e-3)
        report = inspect(path)
        assert (report.problem, report.info.remarks) == (None, (CANCELLED,))
    # What cancels only in part is still the mean.
    path = write("a.wav", np.stack([wave, -0.9 * wave], axis=1), subtype="FLOAT")
    np.testing.assert_allclose(read(path)[0], 0.05 * wave, atol=1e-6)
    assert inspect(path).info.remarks == ()


def test_read__name_with_a_colon(tmp_path, monkeypatch):
    """FFmpeg takes what stands before a colon for a protocol."""
    write_av(tmp_path / "12:30 a.m4a", tone(1.0, 44_100), 44_100, "aac", container="ipod")
    monkeypatch.chdir(tmp_path)
    assert len(read("12:30 a.m4a")[0]) > 40_000


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_read__mp4_whose_header_promises_too_little(tmp_path, share):
    path = write_av(tmp_path / "a.m4a", tone(4.0, 44_100), 44_100, "aac", container="ipod")
    whole, _ = read(path)
    at = path.read_bytes().index(b"mdhd") + 20
    (duration,) = struct.unpack_from(">I", path.read_bytes(), at)
    patched(path, at, ">I", int(share * duration))
    (frames,) = lengths(path)
    assert frames == pytest.approx(len(whole), abs=2048)
    assert info(path).remarks == (LONGER,)


@pytest.mark.parametrize("codec", ["pcm_s16le", "pcm_s24le", "pcm_f32le", "pcm_alaw", "pcm_mulaw", "adpcm_ms"])
def test_read__extensible_w64(tmp_path, codec):
    """FFmpeg writes an extensible header from 48 kHz on, which libsndfile takes for PCM."""
    path = write_av(tmp_path / "a.w64", tone(1.0, 96_000), 96_000, codec, container="w64")
    (frames,) = lengths(path)
    np.testing.assert_allclose(read(path)[0], by_ffmpeg(path)[:frames], atol=1e-4)


def chunk(name: bytes, body: bytes, *, padded: bool = True) -> bytes:
    return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2 if padded else 0)


def riff(*chunks: bytes, magic: bytes = b"RIFF") -> bytes:
    return magic + struct.pack("<I", 4 + sum(map(len, chunks))) + b"WAVE" + b"".join(chunks)


@pytest.fixture
def pcm(write) -> tuple[bytes, bytes]:
    """A chunk `fmt ` and two seconds of 16-bit sound that it belongs to."""
    content = write("pcm.wav", tone(2.0, 16_000)).read_bytes()
    assert content[36:40] == b"data"
    return content[12:36], content[44:]


@pytest.mark.parametrize("where", ["first", "between", "both"])
def test_read__chunks_of_odd_length_without_the_byte_behind(tmp_path, pcm, where):
    form, data = pcm
    odd = chunk(b"LIST", b"INFOICMT" + struct.pack("<I", 3) + b"abc", padded=False)
    before = [odd] if where != "between" else []
    between = [odd] if where != "first" else []
    path = tmp_path / "a.wav"
    path.write_bytes(riff(*before, form, *between, chunk(b"data", data), chunk(b"bext", b"x" * 2001)))
    assert lengths(path) == {32_000}
    np.testing.assert_array_equal(read(path)[0], np.frombuffer(data, "<i2") / np.float32(32_768))


def test_read__sound_in_two_chunks(tmp_path, pcm):
    """No standard allows it; decoders take the first alone, or the last alone."""
    form, data = pcm
    path = tmp_path / "a.wav"
    path.write_bytes(riff(form, chunk(b"data", data), chunk(b"LIST", b"INFO"), chunk(b"data", data[:20_000])))
    assert lengths(path) == {42_000}
    samples = np.frombuffer(data + data[:20_000], "<i2") / np.float32(32_768)
    np.testing.assert_array_equal(read(path)[0], samples)
    assert info(path).remarks == (JOINED,)
    path.write_bytes(riff(form, chunk(b"data", b""), chunk(b"data", data)))
    assert lengths(path) == {32_000}


@pytest.mark.parametrize("magic", [b"RF64", b"BW64"])
@pytest.mark.parametrize("long", ["right", 0, "half", (1 << 64) - 1, (1 << 63) - 1])
@pytest.mark.parametrize("short", ["unknown", "right"])
def test_read__rf64_whose_sizes_are_not_known(tmp_path, pcm, magic, long, short):
    form, data = pcm
    size = {"right": len(data), "half": len(data) // 2}.get(long, long)
    sizes = chunk(b"ds64", struct.pack("<QQQI", len(data) + 72, size, 0, 0))
    told = 0xFFFFFFFF if short == "unknown" else len(data)
    path = tmp_path / "a.wav"
    content = riff(sizes, form, magic=magic) + b"data" + struct.pack("<I", told) + data
    path.write_bytes(content[:4] + b"\xff" * 4 + content[8:])
    assert lengths(path) == {32_000}
    np.testing.assert_array_equal(read(path)[0], np.frombuffer(data, "<i2") / np.float32(32_768))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("a.w64", [(16, "<Q", (1 << 64) - 1), (W64_DATA, "<Q", (1 << 63) - 1)]),  # as FFmpeg writes into a pipe
        ("a.w64", [(W64_DATA, "<Q", (1 << 64) - 1)]),
        ("a.aiff", [(b"SSND", ">I", 0x7F000000)]),  # as SoX does
        ("a.aiff", [(4, ">I", 0xFFFFFFFF), (b"SSND", ">I", 0xFFFFFFFF)]),
        ("a.aiff", [(4, ">I", 0), (b"SSND", ">I", 0)]),
        ("a.caf", [(b"data", ">q", -1)]),
        ("a.au", [(8, ">I", 0xFFFFFFFF)]),
        ("a.wav", [(4, "<I", 0xFFFFFFFF), (b"data", "<I", 0x7FFFF000)]),
    ],
)
def test_read__sizes_that_are_not_known_to_their_writer(write, name, sizes):
    path = write(name, tone(2.0, 16_000))
    whole, _ = read(path)
    for at, form, value in sizes:
        patched(path, at if isinstance(at, int) else data_at(path, at), form, value)
    assert lengths(path) == {32_000}
    np.testing.assert_array_equal(read(path)[0], whole)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9, 0.99])
def test_read__cut_fragments_of_mp4_are_named(tmp_path, share):
    more = {"movflags": "frag_keyframe+empty_moov", "frag_duration": "500000"}
    path = write_av(tmp_path / "a.m4a", tone(6.0, 44_100), 44_100, "aac", container="ipod", **more)
    assert info(path).duration == pytest.approx(6.0, abs=0.05)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(AudioError, match="truncated"):
        read(path)
    assert inspect(path).problem.startswith("truncated")
