"""Streams that hold more, or others, than their first bytes promise: joined, tagged, miscounted and cut ones."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
from made_sounds import tone, write_av

from tymbal.audio.decode import info, read
from tymbal.audio.inspect import inspect
from tymbal.audio.spans import JOINED, LONGER
from tymbal.errors import AudioError

RATE = 22_050


def by_av(folder: Path, codec: str, container: str, suffix: str, **more: str) -> bytes:
    """Two seconds of 600 Hz as FFmpeg writes them; `frequency` gives another tone, `rate` another rate."""
    frequency, rate = float(more.pop("frequency", 600)), int(more.pop("rate", RATE))
    path = folder / f"written{suffix}"
    write_av(path, tone(2.0, rate, frequency=frequency), rate, codec, container=container, **more)
    return path.read_bytes()


def by_soundfile(kind: str, subtype: str, *, frequency: float = 600, rate: int = RATE, seconds: float = 2.0) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, tone(seconds, rate, frequency=frequency), rate, format=kind, subtype=subtype)
    return file.getvalue()


def tones(path: Path, count: int) -> list[int]:
    """The loudest frequency of each of so many parts, to 20 Hz."""
    wave, rate = read(path)
    report = inspect(path)
    assert report.problem is None
    assert report.info.frames == info(path).frames == len(wave)
    size = len(wave) // count
    parts = [wave[int((i + 0.2) * size) : int((i + 0.8) * size)] for i in range(count)]
    spectra = [np.abs(np.fft.rfft(part * np.hanning(len(part)))) for part in parts]
    return [round(np.argmax(spectrum) * rate / len(parts[0]) / 20) * 20 for spectrum in spectra]


def ape(length: int) -> bytes:
    """An APEv2 tag with header and footer."""
    head, foot = (b"APETAGEX" + struct.pack("<IIII", 2000, length + 32, 1, flags << 28) + bytes(8) for flags in (10, 8))
    return head + b"x" * length + foot


ID3V1 = b"TAG" + b"a" * 125
LYRICS = b"LYRICSBEGIN" + b"IND0000200" + b"z" * 300 + b"000321LYRICS200"
ID3V2 = b"ID3\4\0\0\0\0\7\x68" + bytes(1000)
TAGGED = {
    "wavpack": ("wv", ".wv", RATE),
    "tta": ("tta", ".tta", RATE),
    "ac3": ("ac3", ".ac3", 44_100),
    "eac3": ("eac3", ".ac3", 44_100),
    "aac": ("adts", ".aac", RATE),
    "libopencore_amrnb": ("amr", ".amr", 8_000),
    "libmp3lame": ("mp3", ".mp3", RATE),
    "mp2": ("mp2", ".mp2", 44_100),
}


@pytest.mark.parametrize("codec", TAGGED)
@pytest.mark.parametrize("place", ["before", "behind"])
def test_read__tags_are_no_damage(tmp_path, codec, place, capfd):
    container, suffix, rate = TAGGED[codec]
    sound = by_av(tmp_path, codec, container, suffix, rate=str(rate))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(sound)
    frames = info(path).frames
    for tags in [ID3V2, ID3V2 * 2] if place == "before" else [ape(900), ape(900) + ID3V1, LYRICS + ID3V1, ape(40) * 2]:
        path.write_bytes(tags + sound if place == "before" else sound + tags)
        assert tones(path, 1) == [600]
        assert abs(info(path).frames - frames) <= 1152
        assert info(path).remarks == ()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("codec", TAGGED)
def test_read__joined_with_tags_between(tmp_path, codec):
    container, suffix, rate = TAGGED[codec]
    parts = [by_av(tmp_path, codec, container, suffix, rate=str(rate), frequency=pitch) for pitch in ("600", "1200")]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"".join(part + ID3V1 for part in parts))
    if codec in ("ac3", "eac3"):  # a tag in the middle of their frames is a gap, as far as anyone can tell
        with pytest.raises(AudioError, match="truncated"):
            read(path)
        path.write_bytes(b"".join(parts))
    assert tones(path, 2) == [600, 1200]
    assert info(path).duration == pytest.approx(4.0, abs=0.2)


def test_read__sound_in_a_file_of_another_name(tmp_path, capfd):
    for name, sound in {
        "aac.mp3": by_av(tmp_path, "aac", "adts", ".aac"),
        "m4a.mp3": by_av(tmp_path, "aac", "ipod", ".m4a"),
        "mp3.wav": by_av(tmp_path, "libmp3lame", "mp3", ".mp3"),
        "flac.wav": by_soundfile("FLAC", "PCM_16"),
        "ogg.mp3": by_soundfile("OGG", "VORBIS"),
    }.items():
        (tmp_path / name).write_bytes(sound)
        assert tones(tmp_path / name, 1) == [600]
        assert info(tmp_path / name).duration == pytest.approx(2.0, abs=0.12)
    assert capfd.readouterr().err == ""  # libmpg123 complains of what is no MPEG audio


@pytest.mark.parametrize("second", ["rate", "channels", "bits"])
def test_read__joined_flac_of_another_kind(tmp_path, second):
    more = {
        "rate": by_soundfile("FLAC", "PCM_16", frequency=1200, rate=44_100),
        "bits": by_soundfile("FLAC", "PCM_24", frequency=1200),
    }
    file = io.BytesIO()
    soundfile.write(file, np.stack([tone(2.0, RATE, frequency=1200)] * 2, axis=1), RATE, format="FLAC")
    more["channels"] = file.getvalue()
    path = tmp_path / "a.flac"
    path.write_bytes(by_soundfile("FLAC", "PCM_16") + more[second])
    assert tones(path, 2) == [600, 1200]
    assert (info(path).duration, info(path).remarks) == (4.0, (JOINED,))


@pytest.mark.parametrize("kind", ["vorbis", "opus", "flac"])
def test_read__chains_of_other_rates_and_codings(tmp_path, kind):
    """The second link has another rate or coding; FLAC in Ogg is FFmpeg's to read."""
    first = by_av(tmp_path, "flac", "ogg", ".ogg") if kind == "flac" else by_soundfile("OGG", kind.upper(), rate=24_000)
    path = tmp_path / "a.ogg"
    path.write_bytes(first + by_soundfile("OGG", "VORBIS", frequency=1200, rate=44_100))
    assert tones(path, 2) == [600, 1200]
    assert info(path).remarks == (JOINED,)
    assert info(path).duration == pytest.approx(4.0, abs=0.02)


def with_total(flac: bytes, total: int) -> bytes:
    """A FLAC whose STREAMINFO tells another number of samples."""
    return flac[:21] + bytes([flac[21] & 0xF0 | total >> 32]) + struct.pack(">I", total & 0xFFFFFFFF) + flac[26:]


@pytest.mark.parametrize("promised", [1, 4096, 44_099, 100_000])
@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
def test_read__flac_that_promises_too_little(tmp_path, promised, subtype):
    path = tmp_path / "a.flac"
    path.write_bytes(by_soundfile("FLAC", subtype, seconds=10.0))
    whole, _ = read(path)
    path.write_bytes(with_total(path.read_bytes(), promised))
    np.testing.assert_array_equal(read(path)[0], whole)
    np.testing.assert_array_equal(read(path, start=6.0, end=7.0)[0], whole[6 * RATE : 7 * RATE])
    assert inspect(path).info.frames == info(path).frames == len(whole)
    assert info(path).remarks == (LONGER,)


def test_read__flac_of_variable_blocks_and_a_right_total(tmp_path):
    """FFmpeg's encoder ends with a short block; what is right stays as it is."""
    path = tmp_path / "a.flac"
    for seconds in (0.05, 0.2, 3.0):
        write_av(path, tone(seconds, 44_100), 44_100, "flac", container="flac")
        assert (info(path).frames, info(path).remarks) == (round(seconds * 44_100), ())
        path.write_bytes(with_total(path.read_bytes(), 7))
        assert (info(path).frames, info(path).remarks) == (round(seconds * 44_100), (LONGER,))


def test_read__flac_that_promises_too_little_and_is_cut(tmp_path):
    content = with_total(by_soundfile("FLAC", "PCM_16", seconds=10.0), 1000)
    path = tmp_path / "a.flac"
    path.write_bytes(content[: int(0.6 * len(content))])
    try:
        frames = info(path).frames
        assert frames == pytest.approx(6 * RATE, abs=2 * 4096)  # to the end of the last whole frame
        assert len(read(path)[0]) == frames
    except AudioError as error:
        assert "truncated" in error.what


def vbri(folder: Path, frames_share: float, bytes_share: float) -> bytes:
    """An MP3 with Fraunhofer's header, which promises so much of its frames and bytes."""
    more = {"rate": "44100", "write_xing": "0", "id3v2_version": "0"}
    sound = by_av(folder, "libmp3lame", "mp3", ".mp3", **more)
    length = 144 * {9: 128, 5: 64}[sound[2] >> 4] * 1000 // 44_100
    count, size = round(2 * 44_100 / 1152) + 1, length + len(sound)
    head = struct.pack(">HHHIIHHHH", 1, 1105, 75, int(size * bytes_share), int(count * frames_share), 1, 1, 2, 1)
    return (sound[:4] + bytes(32) + b"VBRI" + head).ljust(length, b"\0") + sound


@pytest.mark.parametrize("shares", [(1, 1), (0.5, 1), (0.5, 0.5), (0, 0)])
def test_read__mp3_with_a_header_of_fraunhofer(tmp_path, shares, capfd):
    path = tmp_path / "a.mp3"
    path.write_bytes(vbri(tmp_path, *shares))
    assert tones(path, 1) == [600]
    assert info(path).duration == pytest.approx(2.0, abs=0.12)
    assert info(path).remarks == ((LONGER,) if shares[0] == 0.5 else ())
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("junk", ["text", "random", "zeros"])
def test_read__junk_before_an_mp3(tmp_path, junk):
    more = {"write_xing": "0", "id3v2_version": "0"}
    sound = by_av(tmp_path, "libmp3lame", "mp3", ".mp3", **more)
    before = {
        "text": b"HTTP/1.0 200 OK\r\n" + b"icy-name: nightjars\r\n" * 50,
        "random": np.random.default_rng(0).bytes(30_000),
        "zeros": bytes(10_000),
    }
    path = tmp_path / "a.mp3"
    path.write_bytes(before[junk] + sound)
    assert tones(path, 1) == [600]
    assert info(path).duration == pytest.approx(2.0, abs=0.15)


def test_read__joined_mp3_of_other_rates(tmp_path):
    path = tmp_path / "a.mp3"
    parts = [
        by_av(tmp_path, "libmp3lame", "mp3", ".mp3", rate=r, frequency=f)
        for r, f in (("22050", "600"), ("44100", "1200"))
    ]
    path.write_bytes(b"".join(parts))
    assert tones(path, 2) == [600, 1200]
    assert info(path).duration == pytest.approx(4.0, abs=0.15)
