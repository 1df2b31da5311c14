"""The synthetic wingbeats: what they are said to be is in the samples."""

from __future__ import annotations

import csv
import dataclasses
import itertools

import numpy as np
import pytest
import soundfile as sf

from tymbal.demo import wingbeats
from tymbal.demo.wingbeats import BACKGROUND, DEVICES, HELD_OUT, SPECIES, synthesise

CLEAN = dataclasses.replace(DEVICES[2], noise=-120.0, hum=-120.0, degrees=0.0)


def _spectrum(clip, rate):
    """Power a frequency, with frequencies; 4 x zero padded, so that a peak is found to a fraction of a bin."""
    power = np.abs(np.fft.rfft(clip * np.hanning(len(clip)), 4 * len(clip))) ** 2
    return np.fft.rfftfreq(4 * len(clip), 1 / rate), power


@pytest.mark.parametrize("species", SPECIES, ids=lambda s: s.name)
def test_synthesise__mean_pitch_is_the_published_one(species):
    clips = synthesise(species, CLEAN, count=24, seconds=0.5, rng=np.random.default_rng(0))
    peaks = []
    for clip in clips:
        frequency, power = _spectrum(clip, CLEAN.sample_rate)
        band = (frequency > 0.8 * species.frequency) & (frequency < 1.2 * species.frequency)
        peaks.append(frequency[band][power[band].argmax()])
    # The spread of single insects is 5 %, so that of the mean of 24 is 1 %.
    assert np.mean(peaks) == pytest.approx(species.frequency, rel=0.03)
    assert 0.025 < np.std(peaks) / species.frequency < 0.08


def test_synthesise__power_lies_at_whole_multiples():
    species = SPECIES[0]
    clip = synthesise(species, CLEAN, count=8, seconds=0.5, rng=np.random.default_rng(1))
    frequency, power = _spectrum(clip[np.abs(clip).max(1).argmax()], CLEAN.sample_rate)
    first = frequency[np.argmax(power * (frequency < 1.3 * species.frequency))]
    near = sum(power[np.abs(frequency - n * first) < 0.1 * first].sum() for n in range(1, 8))
    assert near > 0.9 * power[(frequency > 200) & (frequency < 7.5 * first)].sum()


def test_synthesise__background_is_much_quieter_than_a_mosquito():
    rng = np.random.default_rng(2)
    loud, quiet = (synthesise(s, DEVICES[0], count=32, seconds=0.3, rng=rng) for s in (SPECIES[0], None))
    assert np.median(loud.std(1)) > 3 * np.median(quiet.std(1))


def test_synthesise__a_warm_device_raises_the_pitch_by_10_hz_a_degree():
    def pitch(device):
        clip = synthesise(SPECIES[0], device, count=1, seconds=1.0, rng=np.random.default_rng(3))[0]
        frequency, power = _spectrum(clip, device.sample_rate)
        return frequency[np.argmax(power * ((frequency > 300) & (frequency < 550)))]

    warm = dataclasses.replace(CLEAN, degrees=4.0)
    assert pitch(warm) - pitch(CLEAN) == pytest.approx(40, abs=8)


def test_write_clips__a_few_are_labelled_and_all_of_the_held_out_device(tmp_path):
    folder = tmp_path / "clips"
    wingbeats.write_clips(folder, each=3, known=1, seed=0)
    known, unknown = sorted((folder / "known").rglob("*.*")), sorted((folder / "unknown").iterdir())
    assert {path.parent.name for path in known} == {BACKGROUND, *(s.name for s in SPECIES)}
    assert (len(known), len(unknown)) == (9 * 4 + 9 * 6, 9 * 4 * 2)
    assert not any(path.name.startswith(HELD_OUT.name) for path in unknown)


def test_write_clips__each_device_has_its_rate_and_format(tmp_path):
    wingbeats.write_clips(tmp_path / "clips", each=1, known=1, seed=0)
    for device in DEVICES:
        path = next((tmp_path / "clips" / "known" / BACKGROUND).glob(f"{device.name}-*"))
        info = sf.info(path)
        assert path.suffix == device.suffix
        assert (info.samplerate, info.subtype, info.channels) == (device.sample_rate, device.subtype, 1)
        assert info.duration == pytest.approx(1.2, abs=1e-3)
    assert {8_000, 16_000, 44_100} < {device.sample_rate for device in DEVICES}


def test_write_clips__same_seed_same_sound_and_what_is_there_is_kept(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        wingbeats.write_clips(tmp_path / name, each=1, known=1, seed=seed)
    file = f"known/{SPECIES[3].name}/phone-00003.wav"
    a, b, c = ((tmp_path / name / file).read_bytes() for name in "abc")
    assert a == b != c
    wingbeats.write_clips(tmp_path / "c", each=1, known=1, seed=0)
    assert (tmp_path / "c" / file).read_bytes() == c


def test_write_recording__events_are_where_it_says(tmp_path):
    events = wingbeats.write_recording(tmp_path / "night.flac", seconds=20, seed=4)
    with (tmp_path / "events.csv").open() as file:
        assert [row["label"] for row in csv.DictReader(file)] == [event.label for event in events]
    sound, rate = sf.read(tmp_path / "night.flac")
    assert (len(sound), rate) == (20 * HELD_OUT.sample_rate, HELD_OUT.sample_rate)
    assert len(events) >= 3
    assert all(before.end < after.start for before, after in itertools.pairwise(events))
    frequency_of = {species.name: species.frequency for species in SPECIES}
    for event in events:
        middle = sound[int((event.start + 0.2) * rate) : int((event.end - 0.2) * rate)]
        before = sound[int((event.start - 1) * rate) : int(event.start * rate)]
        frequency, power = _spectrum(middle, rate)
        band = np.abs(frequency / frequency_of[event.label] - 1) < 0.2
        other_frequency, other = _spectrum(before, rate)
        other_band = np.abs(other_frequency / frequency_of[event.label] - 1) < 0.2
        assert power[band].max() / len(middle) ** 2 > 10 * other[other_band].max() / len(before) ** 2
