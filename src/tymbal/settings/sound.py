"""Settings of finding sound, of spectrograms, of stores, of folders of `.pt` files and of sound to train on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from tymbal.plugins import FILTER_BANKS
from tymbal.settings.augmentation import ViewSettings
from tymbal.settings.fields import VIEWS, Recipe, check, check_pattern, setting

__all__ = ["FeatureSettings", "PrepareSettings", "PtSettings", "ScanSettings", "SoundSettings"]


HIGHEST_RATE = 10_000_000
"""Highest sample rate in Hz: ten times that of recorders for ultrasound. More is a slip of the pen."""


@dataclass(frozen=True, kw_only=True)
class ScanSettings:
    r"""Finding sound files and what they are.

    Attributes:
        labels: Where labels come from. `auto` takes the manifest's column, else class folders (all one deep, at least
            two), else none. `folder` takes the outermost folder. A folder `A,B` stands for two labels.
        label_pattern: Regular expression on the path relative to the folder; its first group is the label of clips
            whose column is empty.
        label_separator: What stands between several labels in one cell of a list. `None` is `;`, or `|` or `,` where
            the labels show that it stands between them, which is said; lists in Parquet and JSON need none.
        label_csv: SSAST's `index,mid,display_name` table, for JSON lists whose labels are mids.
        columns: What columns of a list or data set are called, where that is not understood: `label=ebird_code
            group=filepath`. On the left stand file, start, end, label, group and split.
        rename: Labels under other names: `amecro=crow noise=`; those without a new name are dropped.
        group_pattern: Regular expression on the path; its first group names what must stay on one side of a split
            (a recording, a site, a speaker), for clips whose column is empty.
        split: How clips are split into train and validation. `auto` keeps a validation split that the manifest or
            train/validation folders give; else it splits whole groups or, without groups, whole files; parts and exact
            copies of a file stay together. `groups` and `clips` split anew, `clips` singly. `sklearn` is `auto`, but
            where there are neither a split nor groups it takes the files that `train_test_split` of scikit-learn takes
            of the sorted paths. Clips that are given as test stay test.
        validation_pattern: Regular expression on the path; what it finds is validation, the rest train.
        validation: Fraction of clips (or groups) for validation.
        stratify: Keep the proportions of the labels on both sides.
        seed: Seed of the split.
        silence_db: A file whose peak is below this level, in dB of full scale, counts as silent.
        min_seconds: A file shorter than this, in seconds, counts as too short.
        workers: Processes that read files. `None` is one a core.
    """

    group = "files"

    labels: Literal["auto", "folder", "column", "none"] = setting("auto", first=True)
    label_pattern: str | None = setting(None, first=True, example="^([0-9])_")
    label_separator: str | None = setting(None, example="|")
    label_csv: str | None = setting(None, path=True, example="class_labels_indices.csv")
    columns: tuple[str, ...] = setting((), example="label=ebird_code")
    rename: tuple[str, ...] = setting((), example="amecro=crow")
    group_pattern: str | None = setting(None, first=True, example="site_([a-z]+)")
    split: Literal["auto", "clips", "groups", "keep", "none", "sklearn"] = setting("auto", first=True)
    validation_pattern: str | None = setting(None, example="/site_b/")
    validation: float = setting(0.1, first=True)
    stratify: bool = False
    seed: int = 42
    silence_db: float = -100.0
    min_seconds: float = 0.025
    workers: int | None = setting(None, resumable=True, first=True, example="8")

    def __post_init__(self) -> None:
        check(0 <= self.validation < 1, "validation", self.validation, "a fraction from 0 to below 1")
        check(self.workers is None or self.workers >= 1, "workers", self.workers, "1 or more")
        for item in self.columns:
            ours, _, theirs = item.partition("=")
            known = ("file", "start", "end", "label", "group", "split")
            check(ours in known and bool(theirs), "columns", item, f"one of {', '.join(known)} and a name, label=code")
        for item in self.rename:
            check("=" in item[1:], "rename", item, "a label and its new name, as in amecro=crow")
        for name in ("label_pattern", "group_pattern", "validation_pattern"):
            if getattr(self, name) is not None:
                check_pattern(name, getattr(self, name), groups=name != "validation_pattern")

    @property
    def their_columns(self) -> dict[str, str]:
        """What columns of a list are called, by Tymbal's names."""
        return {ours: theirs for ours, _, theirs in (item.partition("=") for item in self.columns)}

    @property
    def new_names(self) -> dict[str, str]:
        """New names of labels by their old ones; empty for those that are dropped."""
        return {old: new for old, _, new in (item.partition("=") for item in self.rename)}


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """How a waveform becomes a spectrogram.

    Attributes:
        filter_bank: Whose spectrogram: `kaldi`, as AST and SSAST compute it, or `librosa`, a centred power spectrum
            through librosa's mel filters; or one that another package brings along (`tymbal.plugins`). All are natural
            logarithms of energies.
        sample_rate: Rate in Hz to which every file is resampled.
        mel_bins: Number of mel bins.
        frame_length: Length of a frame in seconds, with `kaldi`.
        frame_shift: Time between two frames in seconds, with `kaldi`.
        n_fft: Length of a frame in samples, with `librosa`.
        hop_length: Samples between two frames, with `librosa`.
        low_freq: Lower edge of the lowest mel bin in Hz.
        high_freq: Upper edge of the highest mel bin in Hz; 0 is half the sample rate.
    """

    group = "spectrograms"

    filter_bank: str = setting("kaldi", first=True)
    sample_rate: int = setting(16_000, first=True)
    mel_bins: int = setting(128, first=True)
    frame_length: float = setting(0.025, needs=("filter_bank!=librosa",))
    frame_shift: float = setting(0.010, needs=("filter_bank!=librosa",))
    n_fft: int = setting(2048, needs=("filter_bank!=kaldi",))
    hop_length: int = setting(512, needs=("filter_bank!=kaldi",))
    low_freq: float = 20.0
    high_freq: float = 0.0

    def __post_init__(self) -> None:
        FILTER_BANKS.check(self.filter_bank)
        rate = self.sample_rate
        check(1000 <= rate <= HIGHEST_RATE, "sample_rate", rate, f"1,000 to {HIGHEST_RATE:,} Hz")
        check(self.mel_bins >= 4, "mel_bins", self.mel_bins, "4 or more")
        check(self.frame_shift > 0, "frame_shift", self.frame_shift, "a time in seconds above 0")
        check(self.frame_length > 0, "frame_length", self.frame_length, "a time in seconds above 0")
        check(self.n_fft >= 16, "n_fft", self.n_fft, "16 samples or more")
        check(1 <= self.hop_length <= self.n_fft, "hop_length", self.hop_length, f"1 to {self.n_fft} samples")
        high = self.high_freq or self.sample_rate / 2
        check(0 <= self.low_freq < high, "low_freq", self.low_freq, f"at least 0 and below {high:g} Hz")
        check(high <= self.sample_rate / 2, "high_freq", self.high_freq, f"at most {self.sample_rate / 2:g} Hz")

    def features(self) -> FeatureSettings:
        """The part of these settings, or of those of a later stage, that says what a spectrogram is."""
        if type(self) is FeatureSettings:
            return self
        return FeatureSettings(**{name: getattr(self, name) for name in FeatureSettings.__dataclass_fields__})

    @property
    def _bank(self) -> Any:
        # A `tymbal.features.bank.FilterBank`, by its name: settings are a lower layer than filter banks.
        return FILTER_BANKS.load(self.filter_bank)(self)

    @property
    def window_samples(self) -> int:
        """Samples in a frame."""
        return int(self._bank.window_samples)

    @property
    def shift_samples(self) -> int:
        """Samples between two frames."""
        return int(self._bank.shift_samples)

    def frames_of(self, samples: int) -> int:
        """Frames in `samples` samples; 0 where they are too short for one."""
        return int(self._bank.frames_of(samples))

    def samples_of(self, frames: int) -> int:
        """Fewest samples that give `frames` frames."""
        return int(self._bank.samples_of(frames))

    def constant_bins(self, rate: int) -> int:
        """Mel bins that are constant in sound of a rate in Hz and would not be in sound of these settings' own."""
        bank = self._bank
        return int(bank.constant_bins(rate / 2) - bank.constant_bins(self.sample_rate / 2))

    def remark_on(self, rates: Iterable[int]) -> str | None:
        """A remark, with settings that fit, where much of a spectrogram would be constant.

        Args:
            rates: The sample rate of each sound file in Hz.
        """
        counts = Counter(rates)
        if not counts:
            return None
        rate, _ = counts.most_common(1)[0]
        constant = self.constant_bins(rate) if rate < self.sample_rate else 0
        if constant * 10 < self.mel_bins:
            return None
        fits = self._fitting(rate)
        flags = f"--sample-rate {rate} --mel-bins {fits.mel_bins}"
        if fits.frame_length != self.frame_length:
            flags += f" --frame-length {fits.frame_length:g}"
        return (
            f"{constant} of {self.mel_bins} mel bins are constant in sound of {rate:,} Hz at a sample rate of "
            f"{self.sample_rate:,} Hz: {flags} would fill all"
        )

    def _fitting(self, rate: int) -> FeatureSettings:
        """As many mel bins as sound of a rate can fill, in frames as short as these if that leaves half of them."""
        best = None
        for frames in (1, 2, 4, 8):
            for mels in range(self.mel_bins, 0, -16):
                made = replace(
                    self.features(),
                    sample_rate=rate,
                    mel_bins=max(mels, 4),
                    frame_length=self.frame_length * frames,
                    high_freq=0.0,
                    low_freq=min(self.low_freq, rate / 8),
                )
                if not made._bank.constant_bins(rate / 2):
                    break
            if best is None or made.mel_bins > best.mel_bins:
                best = made
            if best.mel_bins * 2 >= self.mel_bins or self.filter_bank != "kaldi":
                break
        return best or self.features()


@dataclass(frozen=True, kw_only=True)
class PrepareSettings(ViewSettings, ScanSettings, FeatureSettings):
    """Sound files to a store of spectrograms.

    Attributes:
        seed: Seed of the split and of views.
        window: Length of a clip in seconds. `None` is the length of `frames` where that is set, else the longest
            clip's length, at most 10.24 s, with views 3 s.
        hop: Seconds from one window to the next in a longer file. `None` is the window: no overlap.
        longer: What happens to a file longer than the window: cut into `windows`, or cropped to one.
        frames: Frames of a spectrogram. `None` is the window's frames rounded up to a multiple of 16, so that patches
            fit; real sound fills the difference if the recording has more, else silence. Views are not rounded up.
        annotations: What rows of a list with times are: `clips`; or `events` in recordings, which are cut into windows
            from beginning to end, each with the labels of the events that it overlaps, or none.
        min_fill: A last window is kept if at least this fraction of it is sound (a file's only window always is).
        every: Prepare one clip in so many of every split (with labels, of every class), to try something out.
        shard_mib: Size of a shard file in MiB.
        executor: Where shards are built: in `processes` of this machine, or on a `dask` cluster whose workers see the
            same paths.
        scheduler: Address of the cluster's scheduler, or the file that it writes.
    """

    group = "clips"
    recipes: ClassVar[tuple[Recipe, ...]] = (VIEWS,)

    window: float | None = setting(None, first=True, example="5")
    hop: float | None = setting(None, first=True, example="2.5", needs=("longer=windows",))
    longer: Literal["windows", "crop-start", "crop-centre"] = setting("windows", first=True)
    frames: int | None = setting(None, example="512")
    annotations: Literal["clips", "events"] = "clips"
    min_fill: float = setting(0.5, needs=("longer=windows",))
    every: int = setting(1, first=True)
    shard_mib: int = 64
    executor: Literal["processes", "dask"] = setting("processes", resumable=True)
    scheduler: str | None = setting(None, resumable=True, example="tcp://node1:8786", needs=("executor=dask",))

    def __post_init__(self) -> None:
        if self.views and self.window is None and not self.frames:
            object.__setattr__(self, "window", VIEWS.defaults["window"])  # None is that, too
        ViewSettings.__post_init__(self)
        ScanSettings.__post_init__(self)
        FeatureSettings.__post_init__(self)
        check(self.window is None or self.window > 0, "window", self.window, "a time in seconds above 0")
        check(self.hop is None or self.hop > 0, "hop", self.hop, "a time in seconds above 0")
        check(self.frames is None or self.frames >= 1, "frames", self.frames, "1 or more")
        check(0 < self.min_fill <= 1, "min_fill", self.min_fill, "a fraction above 0, at most 1")
        check(self.every >= 1, "every", self.every, "1 or more")
        check(self.shard_mib >= 1, "shard_mib", self.shard_mib, "1 or more")


@dataclass(frozen=True, kw_only=True)
class PtSettings:
    """Spectrograms that exist already, each in a `.pt` file, as SSAST's users have them.

    Attributes:
        data_dir: Folder of a list's `.pt` files. `None` looks beside the list: in the folder of its name, in
            `precomputed`, in its own.
        data_val: List of the clips to validate on.
        data_val_dir: Folder of their `.pt` files. `None` looks in `data_dir`, then beside the list.
        validation: Fraction of the clips for validation, where no list or folder says.
        label_csv: SSAST's `index,mid,display_name` table, for lists whose labels are mids.
        label_separator: What stands between several labels in one cell of a list, as in scanning.
        frames: Frames of a spectrogram: shorter files are padded, longer ones cut. `None` is the longest file's,
            at most 1024, rounded up to a multiple of 16.
        mel_bins: Mel bins of the files. `None` is 128.
        layout: Whether a file holds frames x mel bins or mel bins x frames. `auto` tells by the number of mel bins, and
            leaves square files out.
        dataset_mean: Mean of the log-mel values. `None` computes it.
        dataset_std: Standard deviation of the log-mel values. `None` computes it.
        padding: What short clips are padded with: `silence`, or `zeros` as SSAST does, which is louder than silence.
            `None` is silence, in fine-tuning what the weights to start from know.
    """

    group = "pt"

    data_dir: str | None = setting(None, path=True, data=True, only_for=("pt",), example="spectrograms")
    data_val: str | None = setting(None, path=True, data=True, only_for=("pt", "sound"), example="validation.json")
    data_val_dir: str | None = setting(
        None, path=True, data=True, only_for=("pt",), needs=("data_val",), example="spectrograms/validation"
    )
    validation: float = setting(0.1, aliases=("validation_fraction",), only_for=("pt", "sound"), first=True)
    label_csv: str | None = setting(None, path=True, only_for=("pt", "sound"), example="class_labels_indices.csv")
    label_separator: str | None = setting(None, only_for=("pt", "sound"), before=";", example="|")
    frames: int | None = setting(None, aliases=("target_length",), only_for=("pt", "sound"), example="512")
    mel_bins: int | None = setting(None, only_for=("pt", "sound"), example="64")
    layout: Literal["auto", "frames-mels", "mels-frames"] = setting("auto", only_for=("pt",))
    dataset_mean: float | None = setting(None, example="-4.27")
    dataset_std: float | None = setting(None, example="4.57")
    padding: Literal["silence", "zeros"] | None = None

    def __post_init__(self) -> None:
        check(0 <= self.validation < 1, "validation", self.validation, "a fraction from 0 to below 1")
        check(self.frames is None or self.frames >= 1, "frames", self.frames, "1 or more")
        check(self.mel_bins is None or self.mel_bins >= 4, "mel_bins", self.mel_bins, "4 or more")
        check(self.dataset_std is None or self.dataset_std > 0, "dataset_std", self.dataset_std, "a number above 0")


@dataclass(frozen=True, kw_only=True)
class SoundSettings:
    """Sound files that are trained on as they are, and prepared on the way.

    Attributes:
        window: Length of a clip in seconds: longer files are cut into such windows, shorter ones padded. `None`
            is the length of `frames` where that is set, else the longest file's, at most 10.24 s.
        sample_rate: Rate in Hz to which every file is resampled. `None` is that of the weights to start from, else
            16000.
        group_pattern: Regular expression on the path; its first group names what must stay on one side of the split (a
            recording, a site, a speaker).
        split: How files are split where neither a list nor folders nor groups say: `auto` as `tymbal prepare` does, or
            `sklearn`, the files that `train_test_split` of scikit-learn takes of the sorted paths with seed 42.
        repeats: Whether entries of a list that stand there several times are one clip with the labels of all (`merge`),
            or count again (`keep`), as in SSAST.
        silence: Whether silent clips are left out and named, or kept, as SSAST does.
    """

    group = "sound"

    window: float | None = setting(None, aliases=("clip_seconds",), only_for=("sound",), first=True, example="5")
    sample_rate: int | None = setting(None, only_for=("sound",), example="32000")
    group_pattern: str | None = setting(None, only_for=("sound",), example="site_([a-z]+)")
    split: Literal["auto", "sklearn"] = setting("auto", only_for=("sound",), before="auto")
    repeats: Literal["merge", "keep"] = setting("merge", only_for=("sound",), before="merge")
    silence: Literal["leave-out", "keep"] = setting("leave-out", only_for=("sound",), before="leave-out")

    def __post_init__(self) -> None:
        seconds, rate = self.window, self.sample_rate
        check(seconds is None or seconds > 0, "window", seconds, "a time in seconds above 0")
        check(rate is None or rate >= 1000, "sample_rate", rate, "1000 Hz or more")
        if self.group_pattern is not None:
            check_pattern("group_pattern", self.group_pattern)
