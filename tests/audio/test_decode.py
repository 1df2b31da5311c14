import pickle
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from made_sounds import cut, tone, write_av

from tymbal.audio.decode import info, read, sample_rate_of, stream
from tymbal.errors import AudioError


def esc10(shared: Path, name: str = "rooster") -> Path:
    return sorted((shared / "data" / "esc10" / name).glob("*.ogg"))[0]


def failure(path: Path, **keywords) -> AudioError:
    with pytest.raises(AudioError) as caught:
        read(path, **keywords)
    assert str(path) in str(caught.value)
    assert caught.value.advice
    return caught.value


# --- what is read


@pytest.mark.parametrize("rate", [8_000, 44_100, 192_000])
def test_read__native_rate_is_exact(write, rate):
    wave = tone(0.5, rate)
    got, got_rate = read(write("a.wav", wave, rate, subtype="FLOAT"))
    assert got_rate == rate
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, wave)


@pytest.mark.parametrize("name", ["a.wav", "a.aiff", "a.au", "a.caf", "a.w64", "a.rf64", "a.flac"])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32"])
def test_read__integers_are_the_bits_that_libsndfile_makes_of_them(tmp_path, name, subtype):
    if name == "a.flac" and subtype == "PCM_32":
        pytest.skip("libsndfile writes no FLAC of 32 bits")
    if subtype == "PCM_16":
        samples = np.arange(-(1 << 15), 1 << 15, dtype=np.int16)
    else:
        extremes = [-(1 << 31), (1 << 31) - 1, (1 << 31) - 65, -1, 0, 1, (1 << 24) + 1, (1 << 25) + 3]
        drawn = np.random.default_rng(0).integers(-(1 << 31), 1 << 31, 50_000, dtype=np.int64)
        samples = np.concatenate([np.array(extremes), drawn]).astype(np.int32)
    soundfile.write(tmp_path / name, samples, 44_100, subtype=subtype)
    expected, _ = soundfile.read(tmp_path / name, dtype="float32")
    got, _ = read(tmp_path / name)
    assert got.min() == -1.0
    np.testing.assert_array_equal(got.view(np.int32), expected.view(np.int32))


def test_read__stereo_is_the_mean_of_the_channels(write):
    wave = np.stack([tone(0.3, 16_000, seed=seed) for seed in range(3)], axis=1)
    for channels in (2, 3):
        got, _ = read(write("a.wav", wave[:, :channels], subtype="FLOAT"))
        np.testing.assert_allclose(got, wave[:, :channels].mean(axis=1), atol=1e-7)


@pytest.mark.parametrize("rate", [8_000, 44_100, 192_000])
def test_read__resamples_a_tone_to_a_tone(write, rate):
    clean = (0.5 * np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)).astype(np.float32)
    got, got_rate = read(write("a.wav", clean, rate, subtype="FLOAT"), sample_rate=16_000)
    assert (got_rate, len(got)) == (16_000, 16_000)
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000)
    assert np.abs(got - expected)[500:-500].max() < 1e-4


def test_read__no_aliases(write):
    high = (0.5 * np.sin(2 * np.pi * 15_000 * np.arange(44_100) / 44_100)).astype(np.float32)
    got, _ = read(write("a.wav", high, 44_100, subtype="FLOAT"), sample_rate=16_000)
    assert np.abs(got[500:-500]).max() < 1e-5  # 15 kHz would fold to 1 kHz


def test_read__real_ogg(shared):
    got, rate = read(esc10(shared), sample_rate=16_000)
    whole, native = soundfile.read(esc10(shared), dtype="float32")
    assert rate == 16_000
    np.testing.assert_allclose(got, soxr.resample(whole, native, 16_000, quality="HQ"), atol=1e-6)


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.25, 2.5), (3.0, None), (0.001, 0.2)])
@pytest.mark.parametrize("target", [None, 16_000, 48_000])
def test_read__part_is_the_same_part_of_the_whole(write, start, end, target):
    path = write("a.flac", tone(4.0, 44_100), 44_100)
    whole, rate = read(path, sample_rate=target)
    part, _ = read(path, sample_rate=target, start=start, end=end)
    first = round(start * rate)
    stop = len(whole) if end is None else first + round((end - start) * rate)
    assert len(part) == stop - first
    # A start that is not on the grid of the resampled file lies up to half a sample beside it.
    if start != 0.001:
        np.testing.assert_allclose(part, whole[first:stop], atol=1e-4)


def test_read__end_a_little_behind_the_file_is_forgiven(write):
    path = write("a.wav")
    assert len(read(path, start=0.5, end=1.05)[0]) == 8_000
    assert "1.00 s long" in failure(path, start=0.5, end=1.2).what
    assert "ends before 1.50 s" in failure(path, start=1.5).what


@pytest.mark.parametrize(
    ("start", "end"), [(-1.0, None), (0.5, 0.5), (0.7, 0.2), (float("nan"), None), (0.0, float("inf"))]
)
def test_read__impossible_ranges(write, start, end):
    assert failure(write("a.wav"), start=start, end=end).what.startswith("out of range")


# --- what libsndfile cannot read


@pytest.mark.parametrize(
    ("name", "codec", "container", "rate"),
    [
        ("a.m4a", "aac", "mp4", 44_100),
        ("a.mp4", "aac", "mp4", 16_000),
        ("lossless.m4a", "alac", "mp4", 44_100),
        ("a.amr", "libopencore_amrnb", "amr", 8_000),
        ("a.aac", "aac", "adts", 44_100),
        ("a.webm", "libopus", "webm", 48_000),
    ],
)
def test_read__by_ffmpeg(tmp_path, name, codec, container, rate):
    path = write_av(tmp_path / name, tone(2.0, rate), rate, codec, container=container)
    got, got_rate = read(path)
    assert got_rate == rate
    assert len(got) / rate == pytest.approx(2.0, abs=0.08)
    spectrum = np.abs(np.fft.rfft(got * np.hanning(len(got))))
    assert np.argmax(spectrum) * rate / len(got) == pytest.approx(440, abs=2)
    assert np.abs(got).max() == pytest.approx(0.33, abs=0.08)
    assert info(path).frames == len(got)


def test_read__alac_is_lossless(tmp_path):
    wave = np.round(tone(1.0, 44_100) * 32768) / 32768
    path = write_av(tmp_path / "a.m4a", wave.astype(np.float32), 44_100, "alac", container="mp4")
    np.testing.assert_allclose(read(path)[0], wave, atol=2 / 32768)


@pytest.mark.parametrize("codec", ["aac", "alac"])
def test_read__part_by_ffmpeg_seeks_to_the_sample(tmp_path, codec):
    sweep = 0.5 * np.sin(2 * np.pi * 300 * np.arange(6 * 44_100) ** 2 / 44_100**2)  # 0 to 3.6 kHz: a sample shows
    path = write_av(tmp_path / "a.m4a", sweep.astype(np.float32), 44_100, codec, container="mp4")
    whole, rate = read(path)
    part, _ = read(path, start=3.5, end=4.25)
    # AAC decoders draw noise for what the encoder took for noise.
    np.testing.assert_allclose(
        part, whole[round(3.5 * rate) : round(4.25 * rate)], atol=1e-4 if codec == "alac" else 0.01
    )


def test_read__flac_that_does_not_know_its_length(write):
    path = write("a.flac", tone(2.0, 44_100), 44_100)
    whole, _ = read(path)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    got, _ = read(path)
    np.testing.assert_array_equal(got, whole)


def test_read__recorder_that_lost_its_power(write):
    """Sizes of zero in the header over good sound: libsndfile alone reads nothing."""
    path = write("a.wav", tone(2.0, 16_000))
    whole, _ = read(path)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = bytes(4)
    path.write_bytes(content)
    assert soundfile.info(path).frames == 0
    np.testing.assert_allclose(read(path)[0], whole, atol=1e-6)


def test_read__wav_from_a_pipe(write):
    path = write("a.wav")
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff" * 4
    path.write_bytes(content)
    assert len(read(path)[0]) == 16_000


@pytest.mark.parametrize(
    ("before", "after"), [(b"", b""), (bytes(3000), b""), (b"", b"TAG" + b"tymbal" * 20 + bytes(5))]
)
def test_read__mp3_without_a_length_is_read_to_its_end(write, before, after):
    """libsndfile guesses the length of such a file from its first frame, and stops there."""
    path = write("a.mp3", tone(4.0, 44_100), 44_100)
    content = path.read_bytes()
    path.write_bytes(before + content[content.find(content[:2], 4) :] + after)
    assert soundfile.info(path).frames < 100_000
    assert len(read(path)[0]) == pytest.approx(4 * 44_100, abs=4 * 1152)


# --- what is refused


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.aiff", "a.au", "a.w64", "a.rf64", "a.opus"])
@pytest.mark.parametrize("fraction", [0.5, 0.9])
def test_read__truncated(write, name, fraction):
    special = {"a.rf64": {"format": "RF64"}, "a.opus": {"format": "OGG", "subtype": "OPUS"}}.get(name, {})
    path = write(name, tone(4.0, 48_000), 48_000, **special)
    assert len(read(path)[0]) == 4 * 48_000
    assert failure(cut(path, fraction)).what.startswith("truncated")


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 0.99])
def test_read__truncated_real_ogg(shared, tmp_path, fraction):
    path = tmp_path / "cut.ogg"
    path.write_bytes(esc10(shared).read_bytes())
    error = failure(cut(path, fraction))
    assert error.what.startswith("truncated")
    with pytest.raises(AudioError, match="truncated"):
        info(path)


@pytest.mark.parametrize(
    ("name", "codec", "container", "options"),
    [
        ("a.m4a", "aac", "mp4", {"movflags": "faststart"}),
        ("a.webm", "libopus", "webm", {}),
        ("a.amr", "libopencore_amrnb", "amr", {}),
    ],
)
def test_read__truncated_by_ffmpeg(tmp_path, name, codec, container, options):
    rate = 8_000 if name == "a.amr" else 48_000
    path = write_av(tmp_path / name, tone(4.0, rate), rate, codec, container=container, **options)
    assert failure(cut(path, 0.4999)).what.startswith("truncated")


def test_read__truncated_m4a_without_its_index(tmp_path):
    path = cut(write_av(tmp_path / "a.m4a", tone(2.0, 44_100), 44_100, "aac", container="mp4"))
    assert failure(path).what.startswith("unreadable: neither libsndfile nor FFmpeg")


def test_read__flac_with_a_hole(write):
    path = write("a.flac", tone(4.0, 44_100), 44_100)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 5000] = bytes(5000)
    path.write_bytes(content)
    assert failure(path).what.startswith("truncated: it promises 4.00 s")


def test_read__flac_with_a_nonsensical_length(write):
    path = write("a.flac", tone(1.0, 44_100), 44_100)
    content = bytearray(path.read_bytes())
    content[21] |= 0x0F
    content[22:26] = b"\xff" * 4
    path.write_bytes(content)
    assert "68,719,476,735 samples" in failure(path).what


def test_read__no_such_file(tmp_path):
    assert failure(tmp_path / "none.wav").what == "missing: there is no such file"


def test_read__folder(tmp_path):
    assert "it is a folder" in failure(tmp_path).what


def test_read__zero_bytes_file(tmp_path):
    path = tmp_path / "a.wav"
    path.touch()
    assert failure(path).what == "empty: the file has no bytes"


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.aiff"])
def test_read__header_without_sound(write, name):
    assert failure(write(name, np.empty(0, np.float32))).what.startswith("empty")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"hello, I am no sound\n" * 40, "it is text"),
        ("naïve résumé ☃ " * 100, "it is text"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "git lfs pull"),
        (bytes(5000), "only zero bytes"),
        (np.random.default_rng(0).bytes(5000), "neither libsndfile nor FFmpeg can read it"),
    ],
)
def test_read__no_sound_at_all(tmp_path, content, says):
    path = tmp_path / "a.wav"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    error = failure(path)
    assert error.what.startswith("unreadable")
    assert says in error.what


@pytest.mark.parametrize(("rate", "channels"), [(0, 1), (2**31 + 5, 1), (16_000, 0), (1, 1)])
def test_read__nonsensical_header(write, rate, channels):
    path = write("a.wav")
    content = bytearray(path.read_bytes())
    content[22:28] = struct.pack("<HI", channels, rate)
    path.write_bytes(content)
    assert failure(path).what.startswith("unreadable")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_read__not_finite(write, bad):
    wave = tone(1.0, 16_000)
    wave[[100, 5000]] = bad
    path = write("a.wav", wave, subtype="FLOAT")
    assert failure(path).what == "not finite: samples that are NaN or infinite: 2"
    with pytest.raises(AudioError, match="not finite"):
        list(stream(path, sample_rate=8_000))
    assert read(path, start=0.5)[0].size == 8_000


def test_read__too_short_for_a_sample(write):
    assert "too short" in failure(write("a.wav", np.ones(1, np.float32), 192_000), sample_rate=16_000).what


def test_read__error_travels_between_processes(tmp_path):
    error = failure(tmp_path / "none.wav")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), type(again)) == (str(error), AudioError)


# --- info


@pytest.mark.parametrize(
    ("name", "kind"), [("a.wav", "WAV/PCM_16"), ("a.flac", "FLAC/PCM_16"), ("a.ogg", "OGG/VORBIS")]
)
def test_info__stereo(write, name, kind):
    facts = info(write(name, np.stack([tone(1.5, 22_050)] * 2, axis=1), 22_050))
    assert (facts.frames, facts.sample_rate, facts.channels, facts.format) == (33_075, 22_050, 2, kind)
    assert facts.duration == 1.5


# --- stream


@pytest.mark.parametrize("target", [None, 16_000, 22_050])
@pytest.mark.parametrize(("start", "end"), [(0.0, None), (1.3, None), (0.7, 3.1)])
def test_stream__is_what_read_reads(write, target, start, end):
    path = write("a.wav", tone(13.7, 44_100), 44_100, subtype="FLOAT")
    whole, rate = read(path, sample_rate=target, start=start, end=end)
    blocks = list(stream(path, sample_rate=target, block=0.5, start=start, end=end))
    assert [len(block) for block in blocks[:-1]] == [round(0.5 * rate)] * (len(blocks) - 1)
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-4)


def test_stream__real_ogg(shared):
    whole, _ = read(esc10(shared), sample_rate=16_000)
    np.testing.assert_allclose(
        np.concatenate(list(stream(esc10(shared), sample_rate=16_000, block=0.96))), whole, atol=1e-4
    )


def test_stream__by_ffmpeg(tmp_path):
    path = write_av(tmp_path / "a.m4a", tone(3.0, 44_100), 44_100, "aac", container="mp4")
    whole, _ = read(path, sample_rate=16_000)
    np.testing.assert_allclose(np.concatenate(list(stream(path, sample_rate=16_000, block=1.0))), whole, atol=1e-4)


def test_stream__memory_does_not_grow(tmp_path):
    def peak(seconds: int) -> int:
        path = tmp_path / "long.wav"
        soundfile.write(path, np.zeros((seconds * 48_000, 2), np.int16), 48_000)
        tracemalloc.start()
        for _ in stream(path, sample_rate=16_000, block=5.0):
            pass
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(160) < 1.2 * peak(40) < 20e6


def test_stream__truncated_file(write):
    with pytest.raises(AudioError, match="truncated"):
        list(stream(cut(write("a.wav")), sample_rate=16_000))


def test_stream__start_behind_the_end(write):
    with pytest.raises(AudioError, match="ends before 3"):
        list(stream(write("a.wav"), sample_rate=8_000, start=3.0))


def test_sample_rate_of__is_the_files_own(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(100, np.float32), 44_100)
    assert sample_rate_of(tmp_path / "a.wav") == 44_100
    with pytest.raises(AudioError, match="missing"):
        sample_rate_of(tmp_path / "absent.wav")
