"""Synthetic wingbeats of mosquitoes: data to learn from without recordings or a network.

A mosquito in flight is a harmonic tone at its wing-beat frequency. Here it flies past a microphone: pitch that warbles,
jitters and glides, loudness and Doppler shift from the geometry of the fly-by, partials at whole multiples, and behind
it wind, hum, insects' and birds' noise; all of that through the microphone, noise floor, sample rate and codec of one
of several recording devices. One device is never trained on: an honest test is sound from another one.

Frequencies are published ones; everything else is chosen to look like recordings, not measured from any. Sources:

- Cator et al. 2009, Science 323:1077, doi 10.1126/science.1166541: *Aedes aegypti*, females 400 Hz, males 600 Hz.
- Balestrino et al. 2016, Acta Tropica 164, PMID 27609638: *Ae. albopictus*, females 500-650 Hz.
- Scientific Reports 2025, doi 10.1038/s41598-025-89608-7: in *Ae. albopictus* and *Culex quinquefasciatus* the second
  partial of males and the third of females meet at 1,400-1,500 Hz, which makes 725 Hz and 483 Hz.
- Mankin 1994, J. Am. Mosq. Control Assoc. 10:302, PMID 8965083: *Ae. taeniorhynchus*, females 400-500 Hz.
- Maweu et al., Rom. J. Biophys. ("Transmission parameters of the sound of a female mosquito"): *Anopheles gambiae*,
  females 293 Hz.
- Byrne et al. 1988, J. Exp. Biol. 135:9 (table of wing-beat frequencies): *Culiseta annulata*, 262 Hz.
- Villarreal et al. 2017, J. Med. Entomol. 54, doi 10.1093/jme/tjx079: 8-13 Hz more for each degree Celsius.
- Arthur et al. 2014, J. Acoust. Soc. Am. 135:933, doi 10.1121/1.4861233: partials are whole multiples, also while the
  pitch moves; loudness falls with the distance to the power 2.3.
- Offenhauser & Kahn 1949, J. Acoust. Soc. Am. 21:259: tones warble at about 5 Hz and drift.
- Moore et al. 2007 (Entomological Society of America): the strengths of the partials tell species apart that share a
  frequency. Mukundarajan et al. 2017, eLife 6:e27854: that ordinary telephones record enough of it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile as sf

from tymbal.files import replace_file, replace_folder

__all__ = [
    "BACKGROUND",
    "CLIP_SECONDS",
    "DEVICES",
    "HELD_OUT",
    "SPECIES",
    "Device",
    "Event",
    "Species",
    "synthesise",
    "write_clips",
    "write_events",
    "write_recording",
]

Array = npt.NDArray[np.float32]

BACKGROUND = "background"
CLIP_SECONDS = 1.2
_PARTIALS = 10
_SPREAD = 0.05  # of the frequency between individuals: age, size and warmth shift it by more than 10 %
_SPEED_OF_SOUND = 343.0


@dataclass(frozen=True)
class Species:
    """One species and sex.

    Attributes:
        name: Label, as a folder name.
        frequency: Mean wing-beat frequency in Hz.
        tilt: How fast the partials get weaker, in dB an octave.
        even: Level of the even partials against the odd ones, in dB.
    """

    name: str
    frequency: float
    tilt: float
    even: float


SPECIES = (
    Species("aedes_aegypti_female", 400.0, tilt=-6.0, even=-3.0),
    Species("aedes_aegypti_male", 600.0, tilt=-9.0, even=2.0),
    Species("aedes_albopictus_female", 575.0, tilt=-5.0, even=-4.0),
    Species("aedes_albopictus_male", 725.0, tilt=-7.0, even=0.0),
    Species("aedes_taeniorhynchus_female", 450.0, tilt=-8.0, even=3.0),
    Species("anopheles_gambiae_female", 293.0, tilt=-4.0, even=-6.0),
    Species("culex_quinquefasciatus_female", 483.0, tilt=-5.0, even=-7.0),
    Species("culiseta_annulata_female", 262.0, tilt=-6.0, even=0.0),
)


@dataclass(frozen=True)
class Device:
    """A recording device and its surroundings.

    Attributes:
        name: As in the file names.
        sample_rate: In Hz.
        low: Lower edge of the microphone's band in Hz.
        high: Upper edge of the microphone's band in Hz.
        noise: Its noise floor, in dB of full scale.
        hum: Level of mains hum or a fan, in dB of full scale.
        drive: Gain before the converter; above 1 loud passages clip.
        degrees: Temperature around it, in degrees Celsius above average.
        suffix: File type.
        subtype: Sample format, as libsndfile names it.
    """

    name: str
    sample_rate: int
    low: float
    high: float
    noise: float
    hum: float
    drive: float
    degrees: float
    suffix: str
    subtype: str


DEVICES = (
    Device("phone", 8_000, 250, 3_400, -50, -90, 1.0, 0.5, ".wav", "PCM_16"),
    Device("smartphone", 44_100, 100, 15_000, -62, -80, 0.8, -1.0, ".ogg", "VORBIS"),
    Device("recorder", 32_000, 40, 14_000, -72, -85, 0.6, 1.0, ".flac", "PCM_24"),
    Device("logger", 16_000, 80, 7_500, -58, -52, 0.7, -0.5, ".flac", "PCM_16"),
    Device("trap", 22_050, 120, 9_000, -54, -46, 1.6, 0.0, ".wav", "PCM_16"),
)
HELD_OUT = DEVICES[-1]


@dataclass(frozen=True)
class Event:
    """A mosquito in a recording: from `start` to `end`, in seconds."""

    start: float
    end: float
    label: str


def synthesise(
    species: Species | None, device: Device, *, count: int, seconds: float, rng: np.random.Generator
) -> Array:
    """Makes clips of one species (or of background alone) as one device records them.

    Args:
        species: The species that flies past; None is none.
        device: The recording device.
        count: Number of clips.
        seconds: Length of each.
        rng: Source of all randomness.

    Returns:
        Waveforms in [-1, 1], float32 `[count, samples]` at the device's sample rate.
    """
    samples = round(seconds * device.sample_rate)
    sound = _background(count, samples, device.sample_rate, rng)
    if species is not None:
        sound += _decibels(rng.uniform(-40, -14, (count, 1))) * _fly_by(
            species, device, count=count, samples=samples, rng=rng
        )
    return _record(sound, device, rng)


def write_clips(folder: Path, *, each: int, known: int, seed: int) -> None:
    """Writes clips as people have them: a few are labelled, most are not.

    Writes all or nothing, and leaves an existing folder as it is.

    `folder/known/LABEL/DEVICE-NUMBER.suffix` are those with a label: some of each species and device, and all of the
    device that is never trained on. `folder/unknown/DEVICE-NUMBER.suffix` are the others.

    Args:
        folder: Folder to make.
        each: Clips of each species and device; of the one that is never trained on twice as many, to ask about.
        known: How many of them are labelled.
        seed: Seed of all randomness.
    """
    pairs = [(species, device) for species in (*SPECIES, None) for device in DEVICES]
    if folder.is_dir():
        return
    with replace_folder(folder) as aside:
        # One stream of random numbers a pair: more clips of one do not change those of another.
        streams = np.random.default_rng(seed).spawn(len(pairs))
        numbers = dict.fromkeys(DEVICES, 0)
        for (species, device), rng in zip(pairs, streams, strict=True):
            label = BACKGROUND if species is None else species.name
            count = each * (1 + (device is HELD_OUT))
            clips = synthesise(species, device, count=count, seconds=CLIP_SECONDS, rng=rng)
            for index, clip in enumerate(clips):
                named = device is HELD_OUT or index < known
                place = aside / "known" / label if named else aside / "unknown"
                place.mkdir(parents=True, exist_ok=True)
                file = place / f"{device.name}-{numbers[device]:05d}{device.suffix}"
                sf.write(file, clip, device.sample_rate, subtype=device.subtype)
                numbers[device] += 1


def write_recording(path: Path, *, seconds: float, seed: int, device: Device = HELD_OUT) -> list[Event]:
    """Writes one long recording with a mosquito now and then, and `events.csv` (start, end, label) beside it.

    Args:
        path: The sound file.
        seconds: Its length.
        seed: Seed of all randomness.
        device: The recording device.

    Returns:
        The events: species and times.
    """
    rng = np.random.default_rng(seed)
    rate = device.sample_rate
    sound = _background(1, round(seconds * rate), rate, rng)[0]
    events = []
    for start, length, species in _schedule(seconds, rng):
        first, samples = round(start * rate), round(length * rate)
        tone = _fly_by(species, device, count=1, samples=samples, rng=rng)[0]
        fade = np.minimum(1, np.minimum(np.arange(samples), np.arange(samples)[::-1]) / (0.05 * rate)).astype(
            np.float32
        )
        sound[first : first + samples] += _decibels(rng.uniform(-30, -14)) * fade * tone
        events.append(Event(round(start, 3), round(start + length, 3), species.name))
    with replace_file(path) as aside:
        sf.write(
            aside, _record(sound[None], device, rng)[0], rate, subtype=device.subtype, format=path.suffix[1:].upper()
        )
    write_events(path.parent / "events.csv", events)
    return events


def write_events(path: Path, events: Sequence[Event]) -> None:
    """Writes what is to be heard when: columns start, end, label."""
    with replace_file(path) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["start", "end", "label"])
        writer.writerows([event.start, event.end, event.label] for event in events)


def _schedule(seconds: float, rng: np.random.Generator) -> Iterator[tuple[float, float, Species]]:
    """Start, length and species of each fly-by: 1.5 to 3 s long with 1.5 to 4 s between two; all species in turn."""
    order: Sequence[int] = []
    start = rng.uniform(1.5, 4)
    while True:
        length = rng.uniform(1.5, 3)
        if start + length > seconds:
            return
        order = order or rng.permutation(len(SPECIES)).tolist()
        yield start, length, SPECIES[order[0]]
        order = order[1:]
        start += length + rng.uniform(1.5, 4)


def _fly_by(species: Species, device: Device, *, count: int, samples: int, rng: np.random.Generator) -> Array:
    """Harmonic tones of mosquitoes that pass a microphone, `[count, samples]`, the loudest moment at about 1."""
    rate = device.sample_rate
    length = samples / rate

    def each(low: float, high: float) -> Array:
        return rng.uniform(low, high, (count, 1)).astype(np.float32)

    time = np.arange(samples, dtype=np.float32)[None] / np.float32(rate)
    pitch = species.frequency * (1 + _SPREAD * rng.standard_normal((count, 1))) + 10 * device.degrees
    warble = each(0.002, 0.02) * np.sin(2 * np.pi * (each(3, 7) * time + each(0, 1)))
    glide = each(-0.04, 0.04) * (time / length - 0.5)
    # Some cycles are longer than others: noise below about 30 Hz, made slowly and interpolated.
    jitter = 0.004 * _interpolate(_normal(rng, count, max(4, round(60 * length))), samples)

    nearest, speed, when = each(0.06, 0.3), each(0.05, 0.5), each(0.2, 0.8) * length
    along = speed * (time - when)
    distance = np.sqrt(nearest**2 + along**2)
    doppler = -speed * along / distance / _SPEED_OF_SOUND
    step = (pitch / rate).astype(np.float32) * (1 + warble + glide + jitter + doppler)
    cycles = np.cumsum(step, axis=1, dtype=np.float64) % 1
    turn = np.exp(np.complex64(2j * np.pi) * cycles.astype(np.float32))

    tone = np.zeros((count, samples), np.float32)
    partial = np.ones_like(turn)
    for number in range(1, _PARTIALS + 1):
        partial *= turn
        level = species.tilt * np.log2(number) + (species.even if number % 2 == 0 else 0.0) + each(-3, 3)
        # Partials that would fold back from half the sample rate are left out: a converter filters them out.
        gain = 10 ** (level / 20) * (number * pitch < 0.45 * rate)
        tone += (partial * (gain * np.exp(2j * np.pi * each(0, 1))).astype(np.complex64)).imag
    return np.asarray(tone * (nearest / distance) ** 2.3, np.float32)


def _background(count: int, samples: int, rate: int, rng: np.random.Generator) -> Array:
    """Background sound: coloured noise from white to brown, gusts of wind, a bird now and then."""

    def each(low: float, high: float) -> Array:
        return rng.uniform(low, high, (count, 1)).astype(np.float32)

    frequencies = np.maximum(np.fft.rfftfreq(samples, 1 / rate), 20.0).astype(np.float32)[None]
    sound = _decibels(each(-58, -40)) * _shaped(rng, (frequencies / 1000) ** -each(0.2, 1.0), samples)
    gusts = np.maximum(0, _interpolate(_normal(rng, count, max(4, samples * 2 // rate)), samples))
    wind = _shaped(rng, np.where(frequencies < 400, (frequencies / 20) ** -1.5, 0) * each(1, 1), samples)
    sound += _decibels(each(-60, -30)) * gusts * wind

    time = np.arange(samples, dtype=np.float32)[None] / np.float32(rate)
    for _ in range(max(1, round(samples / rate / 4))):
        pitch, sweep, width = each(1800, 3800), each(-4000, 4000), each(0.02, 0.1)
        loud = _decibels(each(-50, -30)) * (each(0, 1) < 0.3)
        elapsed = time - each(0, samples / rate)
        sound += loud * np.exp(-((elapsed / width) ** 2)) * np.sin(2 * np.pi * elapsed * (pitch + sweep * elapsed))
    return sound


def _record(sound: Array, device: Device, rng: np.random.Generator) -> Array:
    """Sound as a device stores it: hum, the microphone's band, its noise floor, the converter's limit."""
    count, samples = sound.shape
    time = np.arange(samples, dtype=np.float32)[None] / np.float32(device.sample_rate)
    for number in range(1, 7):
        phase = rng.random((count, 1)).astype(np.float32)
        sound = sound + _decibels(device.hum) / number * np.sin(2 * np.pi * (50 * number * time + phase))

    frequencies = np.maximum(np.fft.rfftfreq(samples, 1 / device.sample_rate), 1.0)
    band = 1 / np.sqrt((1 + (device.low / frequencies) ** 4) * (1 + (frequencies / device.high) ** 8))
    recorded = np.fft.irfft(np.fft.rfft(sound) * band.astype(np.float32), samples)
    recorded = np.float32(device.drive) * (recorded + _decibels(device.noise) * _normal(rng, count, samples))
    return np.asarray(np.clip(recorded, -1, 1 - 2**-15), np.float32)


def _decibels(level: npt.ArrayLike) -> Array:
    """Amplitude of a level in dB of full scale."""
    return np.asarray(10 ** (np.asarray(level) / 20), np.float32)


def _normal(rng: np.random.Generator, count: int, samples: int) -> Array:
    return rng.standard_normal((count, samples), np.float32)


def _shaped(rng: np.random.Generator, shape: Array, samples: int) -> Array:
    """Noise with the given magnitude at each frequency `[count, samples // 2 + 1]`, root mean square 1."""
    noise = np.fft.irfft(np.fft.rfft(_normal(rng, len(shape), samples)) * shape, samples)
    return np.asarray(noise / np.sqrt(np.mean(noise**2, axis=1, keepdims=True)), np.float32)


def _interpolate(knots: Array, samples: int) -> Array:
    """Straight lines through `[count, knots]` values, `[count, samples]`."""
    place = np.linspace(0, knots.shape[1] - 1, samples)
    index = np.minimum(place.astype(int), knots.shape[1] - 2)
    share = (place - index).astype(np.float32)
    return np.asarray(knots[:, index] * (1 - share) + knots[:, index + 1] * share, np.float32)
