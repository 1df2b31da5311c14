"""Settings of augmentation and of view pairs: what may be done to a sound, how often and how strongly.

A range is two numbers, from which one is drawn uniformly. An augmentation that is absent (None) is never drawn.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from tymbal.errors import SettingsError
from tymbal.settings.fields import check, setting

__all__ = [
    "SPECTROGRAM",
    "WAVEFORM",
    "AugmentationSettings",
    "Background",
    "BandPass",
    "FrequencyMask",
    "Gain",
    "HighPass",
    "LowPass",
    "Mixup",
    "Noise",
    "PitchShift",
    "Polarity",
    "RandomResizedCrop",
    "Reverberation",
    "Roll",
    "Shift",
    "SpectrogramAugmentations",
    "SpectrogramViews",
    "Speed",
    "Strategy",
    "TimeMask",
    "TimeStretch",
    "ViewSettings",
    "WaveformAugmentations",
]

Range = tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class _Augmentation:
    probability: float = 1.0

    def __post_init__(self) -> None:
        check(0 <= self.probability <= 1, "probability", self.probability, "a fraction from 0 to 1")
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, tuple):
                lowest, highest = _LIMITS.get(item.name, (-1e9, 1e9))
                good = len(value) == 2 and lowest <= value[0] <= value[1] <= highest
                check(good, item.name, value, f"two numbers in ascending order, from {lowest:g} to {highest:g}")


_LIMITS = {
    "rate": (0.25, 4.0),
    "semitones": (-24.0, 24.0),
    "fraction": (-1.0, 1.0),
    "width": (0.0, 1.0),
    "scale": (0.05, 1.0),
    "share": (0.0, 0.9),
    "cutoff": (1.0, 1e6),
    "octaves": (0.1, 10.0),
    "seconds": (0.01, 10.0),
}


@dataclass(frozen=True, kw_only=True)
class Gain(_Augmentation):
    """Louder or softer, by dB."""

    db: Range = (-12.0, 12.0)


@dataclass(frozen=True, kw_only=True)
class Noise(_Augmentation):
    """White noise at a signal-to-noise ratio in dB."""

    snr: Range = (5.0, 40.0)


@dataclass(frozen=True, kw_only=True)
class Background(_Augmentation):
    """Sound from the files of a folder, at a signal-to-background ratio in dB."""

    folder: str = ""
    snr: Range = (3.0, 30.0)


@dataclass(frozen=True, kw_only=True)
class PitchShift(_Augmentation):
    """Higher or lower at the same speed, by semitones."""

    semitones: Range = (-4.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class TimeStretch(_Augmentation):
    """Faster (a rate above 1) or slower at the same pitch; what is missing at the end is silence."""

    rate: Range = (0.8, 1.25)


@dataclass(frozen=True, kw_only=True)
class Speed(_Augmentation):
    """Played faster or slower, pitch and all: resampling."""

    rate: Range = (0.9, 1.1)


@dataclass(frozen=True, kw_only=True)
class Shift(_Augmentation):
    """Later or earlier, by a fraction of the clip: what leaves at one end comes in at the other."""

    fraction: Range = (-0.3, 0.3)


@dataclass(frozen=True, kw_only=True)
class HighPass(_Augmentation):
    """Without what lies below a cut-off in Hz (a Butterworth response of second order)."""

    cutoff: Range = (20.0, 1000.0)


@dataclass(frozen=True, kw_only=True)
class LowPass(_Augmentation):
    """Without what lies above a cut-off in Hz (a Butterworth response of second order)."""

    cutoff: Range = (1500.0, 8000.0)


@dataclass(frozen=True, kw_only=True)
class BandPass(_Augmentation):
    """Only what lies around a centre in Hz, so many octaves wide (second order on both sides)."""

    cutoff: Range = (300.0, 4000.0)
    octaves: Range = (1.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class Polarity(_Augmentation):
    """Inverts the waveform's sign. A spectrogram does not show it; it exists for lists that name it."""


@dataclass(frozen=True, kw_only=True)
class Reverberation(_Augmentation):
    """A simple room: an exponential tail of so many seconds (to -60 dB), whose energy is so many dB of the sound's."""

    seconds: Range = (0.1, 0.8)
    db: Range = (-12.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class TimeMask(_Augmentation):
    """Silence in a stretch, up to so great a fraction of the frames."""

    width: Range = (0.02, 0.2)


@dataclass(frozen=True, kw_only=True)
class FrequencyMask(_Augmentation):
    """Silence in a band, up to so great a fraction of the mel bins."""

    width: Range = (0.02, 0.2)


@dataclass(frozen=True, kw_only=True)
class RandomResizedCrop(_Augmentation):
    """A rectangle of so great a fraction of frames and of mel bins, resized to the whole (BYOL-A, Niizumi et al.)."""

    scale: Range = (0.6, 1.0)


@dataclass(frozen=True, kw_only=True)
class Mixup(_Augmentation):
    """Energies of another clip, by so great a share."""

    share: Range = (0.05, 0.4)


@dataclass(frozen=True, kw_only=True)
class Roll(_Augmentation):
    """Turned around in time by a fraction of the clip: what leaves at one end comes in at the other."""

    fraction: Range = (-0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class WaveformAugmentations:
    """What may be done to a sound, in the order in which it is done."""

    background: Background | None = None
    noise: Noise | None = None
    speed: Speed | None = None
    pitch_shift: PitchShift | None = None
    time_stretch: TimeStretch | None = None
    shift: Shift | None = None
    high_pass: HighPass | None = None
    low_pass: LowPass | None = None
    band_pass: BandPass | None = None
    reverberation: Reverberation | None = None
    gain: Gain | None = None
    polarity: Polarity | None = None


@dataclass(frozen=True, kw_only=True)
class SpectrogramAugmentations:
    """What may be done to a log-mel spectrogram, in the order in which it is done."""

    mixup: Mixup | None = None
    random_resized_crop: RandomResizedCrop | None = None
    roll: Roll | None = None
    frequency_mask: FrequencyMask | None = None
    time_mask: TimeMask | None = None


WAVEFORM = tuple(item.name for item in fields(WaveformAugmentations))
SPECTROGRAM = tuple(item.name for item in fields(SpectrogramAugmentations))


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """What distinguishes a version of a clip from the others; what is None is as in all of them.

    Attributes:
        num_waveform_augs: Augmentations of the sound drawn for a view.
        num_spectrogram_augs: Augmentations of the spectrogram drawn for a view.
        waveform: Names of those that are drawn from.
        spectrogram: Names of those that are drawn from.
    """

    num_waveform_augs: int | None = None
    num_spectrogram_augs: int | None = None
    waveform: tuple[str, ...] | None = None
    spectrogram: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for kind, known in (("waveform", WAVEFORM), ("spectrogram", SPECTROGRAM)):
            for name in getattr(self, kind) or ():
                check(name in known, kind, name, f"one of {', '.join(known)}")


@dataclass(frozen=True, kw_only=True)
class SpectrogramViews:
    """How views are drawn from spectrograms alone (`tymbal.views.spectrogram_views`); 0 is never.

    Attributes:
        pitch: Largest change of the frequency scale, as a fraction.
        frequency_shift: Largest shift along frequency, as a fraction of the mel bins.
        tempo: Largest change of the time scale, as a fraction.
        time_shift: Latest that the sound begins, as a fraction of its length.
        equaliser: Largest gain of a knot of the random equaliser, in units of the normalised spectrogram.
        knots: Knots of the equaliser over the mel bins, between which it is linear.
        gain: Largest gain of the whole clip, in units of the normalised spectrogram.
        mix: Largest share of another clip of the batch, of energies or of levels as the objective adds them.
        functions: Functions of the user's own that change the views behind all of this.
    """

    pitch: float = 0.1
    frequency_shift: float = 0.1
    tempo: float = 0.15
    time_shift: float = 0.0
    equaliser: float = 0.25
    knots: int = 5
    gain: float = 0.1
    mix: float = 0.3
    functions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("pitch", "frequency_shift", "tempo", "time_shift", "mix"):
            value = getattr(self, name)
            check(0 <= value < 1, name, value, "a fraction from 0 to below 1")
        for name in ("equaliser", "gain"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        check(self.knots >= 2, "knots", self.knots, "2 or more")

    def times(self, strength: float) -> SpectrogramViews:
        """The same, so many times as strong; fractions stay below 1."""
        changed = {
            item.name: min(getattr(self, item.name) * strength, 10.0 if item.name in ("equaliser", "gain") else 0.95)
            for item in fields(self)
            if item.name not in ("knots", "functions")
        }
        return replace(self, **changed)


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """How views are drawn: a configuration file of augmentations, `configs/audio_augmentation_config.yaml`.

    Attributes:
        num_waveform_augs: Augmentations of the sound drawn for a view, without repetition.
        num_spectrogram_augs: Augmentations of the spectrogram drawn for a view, without repetition.
        waveform: Augmentations of the sound.
        spectrogram: Augmentations of the spectrogram.
        strategies: How versions differ: version v takes strategy v, beginning anew behind the last. None is no
            difference.
        spectrogram_views: How views are drawn where an objective draws them from spectrograms alone.
        functions: Functions of the user's own, `module:function`, that change each view (`tymbal.views.own_views`):
            those of waveforms before the augmentations above, those of spectrograms behind them.
    """

    num_waveform_augs: int = 3
    num_spectrogram_augs: int = 2
    waveform: WaveformAugmentations = field(
        default_factory=lambda: WaveformAugmentations(
            noise=Noise(),
            speed=Speed(),
            pitch_shift=PitchShift(),
            time_stretch=TimeStretch(),
            shift=Shift(),
            high_pass=HighPass(),
            low_pass=LowPass(),
            band_pass=BandPass(),
            reverberation=Reverberation(),
            gain=Gain(),
            polarity=Polarity(),
        )
    )
    spectrogram: SpectrogramAugmentations = field(
        default_factory=lambda: SpectrogramAugmentations(
            mixup=Mixup(),
            random_resized_crop=RandomResizedCrop(),
            roll=Roll(),
            frequency_mask=FrequencyMask(),
            time_mask=TimeMask(),
        )
    )
    strategies: tuple[Strategy, ...] = ()
    spectrogram_views: SpectrogramViews = SpectrogramViews()
    functions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for strategy in (Strategy(), *self.strategies):
            for kind in ("waveform", "spectrogram"):
                available = self.names(kind, strategy)
                count = self.count(kind, strategy)
                name = f"num_{kind}_augs"
                check(0 <= count <= len(available), name, count, f"0 to {len(available)}, as many as may be drawn")
                missing = [each for each in available if getattr(getattr(self, kind), each) is None]
                if missing:
                    raise SettingsError(f"a strategy names {missing[0]}, which is not set under {kind}")
        background = self.waveform.background
        if background is not None and not background.folder:
            raise SettingsError("background has no folder", advice="Set folder to one of sound files.")

    def of_version(self, version: int) -> Strategy:
        """The strategy of a version."""
        return self.strategies[version % len(self.strategies)] if self.strategies else Strategy()

    def names(self, kind: str, strategy: Strategy) -> tuple[str, ...]:
        """Names of the augmentations of a kind, `waveform` or `spectrogram`, that may be drawn, as applied in order."""
        known = WAVEFORM if kind == "waveform" else SPECTROGRAM
        chosen = getattr(strategy, kind)
        available = [name for name in known if getattr(getattr(self, kind), name) is not None]
        return tuple(available if chosen is None else [name for name in known if name in chosen])

    def count(self, kind: str, strategy: Strategy) -> int:
        """How many of a kind are drawn for a view."""
        own = getattr(strategy, f"num_{kind}_augs")
        return int(getattr(self, f"num_{kind}_augs") if own is None else own)


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """Pairs of augmented views of each clip, for contrastive learning.

    With views, clips are 3 s at 22,050 Hz by default, one a file, as librosa's log-mel spectrograms, split 80 to 20.

    Attributes:
        views: Versions of each clip, each a pair of views; 0 keeps the clips as they are.
        augmentations: YAML file that says how views are drawn, or a function of one's own, as `mypackage:louder`,
            which then makes the views alone. `None` is configs/audio_augmentation_config.yaml if that exists, else the
            defaults.
        num_waveform_augs: Augmentations of the sound drawn for a view. `None` is as the file says.
        num_spectrogram_augs: Augmentations of the spectrogram drawn for a view. `None` is as the file says.
        view_mode: `spectral` makes all views from one transform of the clip; `exact` changes its samples, slower.
        write: A packed `store` of pairs; `pt`, a file a version, with metadata.json; or packed `waveforms`, of which
            training makes fresh views each epoch.
        part: Only a part of the work: `train`, `val`, or `3/8` for the third of eight parts. The same command without
            it does what is missing, checks and completes.
        preview: Only show some clips beside their views, to see and hear, as a page in the folder OUTPUT-preview; and
            beside those that pretraining draws from spectrograms, which need no `views`.
        force: Go on although the disk seems too small, or many files cannot be reached.
    """

    group = "views"

    views: int = setting(0, first=True)
    # These three are recorded as resolved values, so that a change in the file is noticed.
    augmentations: str | None = setting(None, path=True, resumable=True, example="configs/short_clips.yaml")
    num_waveform_augs: int | None = setting(None, resumable=True, example="2")
    num_spectrogram_augs: int | None = setting(None, resumable=True, example="1")
    view_mode: Literal["spectral", "exact"] = setting("spectral", needs=("views",))
    write: Literal["store", "pt", "waveforms"] = setting("store", first=True)
    part: str | None = setting(None, resumable=True, example="3/8")
    preview: bool = setting(False, resumable=True, first=True)
    force: bool = setting(False, resumable=True)

    def __post_init__(self) -> None:
        check(self.views >= 0, "views", self.views, "0 or more")
        for name in ("num_waveform_augs", "num_spectrogram_augs"):
            value = getattr(self, name)
            check(value is None or value >= 0, name, value, "0 or more")
        if self.part is not None:
            numbers = re.fullmatch(r"(\d+)/(\d+)", self.part)
            good = self.part in ("train", "val") or (numbers and 1 <= int(numbers[1]) <= int(numbers[2]))
            check(bool(good), "part", self.part, "train, val, or K/N with K from 1 to N")
        if not self.views:
            refused = ("num_waveform_augs", "num_spectrogram_augs", "part")
            for name in refused if self.preview else ("augmentations", *refused):
                check(getattr(self, name) is None, name, getattr(self, name), "left out where there are no views")
            check(self.write == "store", "write", self.write, "store where there are no views")
