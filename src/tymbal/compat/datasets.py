"""Datasets of `.pt` spectrograms and of generated view pairs, as training scripts expect them.

    from tymbal.compat import PrecomputedDataset

    dataset = PrecomputedDataset("train.json", audio_conf, label_csv="class_labels_indices.csv")
    fbank, label = dataset[0]

It does what SSAST's `AudioDataset` does from its spectrogram on (Gong et al. 2022, github.com/YuanGongND/ssast):
padding with zeros, SpecAugment, normalisation, noise. Where there is no waveform any more, mixup adds energies. What
cannot be read is left out and named, instead of stopping an epoch.

`tymbal ssast` and `tymbal pretrain` do not need it: they read whole batches and augment them on the device.

    from tymbal.compat import PreGeneratedSpectrogramDataset

    metadata = json.load(open("data/augmented_spectrograms/metadata.json"))
    dataset = PreGeneratedSpectrogramDataset(metadata["train"])
    view1, view2 = dataset[0]                  # float32 [1, mels, frames] each

It also takes a folder, packed or of `.pt` files, and finds out which it is. A file that is damaged is left out of its
batch and named; no other clip takes its place.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from tymbal.audio.failures import Failure
from tymbal.audio.file_lists import read_label_names
from tymbal.data import open_data
from tymbal.errors import StoreError
from tymbal.features.kaldi import LOG_FLOOR
from tymbal.progress import tell
from tymbal.settings import PtSettings
from tymbal.store.base import DamagedRowsError, SpectrogramSource
from tymbal.store.pairs.pair_store import PairFileStore
from tymbal.store.pt.pt_folder import open_pt

__all__ = ["PreGeneratedSpectrogramDataset", "PrecomputedDataset"]

# fmt: off
_KNOWN = frozenset((
    "num_mel_bins", "target_length", "freqm", "timem", "mixup", "dataset", "mode", "mean", "std", "noise", "skip_norm",
    "data_dir",
))
# fmt: on
_ROLL = 10
_BETA = 10.0


class PrecomputedDataset(Dataset[tuple[Tensor, Tensor]]):
    """Spectrograms and labels of an SSAST list, one at a time.

    Random numbers come from torch's generator, which a DataLoader seeds anew in each worker process. (SSAST draws
    from numpy's, which is the same in all of them.)

    Args:
        dataset_json_file: SSAST's JSON list.
        audio_conf: SSAST's settings, all of them optional: `num_mel_bins` (128), `target_length`, `freqm`, `timem`,
            `mixup`, `mode` (`train` augments, everything else does not), `mean`, `std`, `noise`, `skip_norm`, and
            `data_dir`. `target_length`, `mean` and `std` default to those of the files.
        label_csv: SSAST's `index,mid,display_name` table. Without it, classes are the labels of the list, sorted.
        data_dir: Folder of the `.pt` files. None is that of `audio_conf`, or one beside the list.
        failures_to: Where to write `failures.csv`, the list of files left out.

    Attributes:
        label_num: Number of classes.
        index_dict: Number of each label of the list, as text, as in SSAST.
        norm_mean: Mean of the log-mel values.
        norm_std: Their standard deviation.
        failures: The files left out.

    Raises:
        ManifestError: The list cannot be read, or has two entries with one stem.
        StoreError: Not one of its files can be used.
    """

    def __init__(
        self,
        dataset_json_file: str | os.PathLike[str],
        audio_conf: Mapping[str, Any] | None = None,
        label_csv: str | os.PathLike[str] | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        *,
        failures_to: str | os.PathLike[str] | None = None,
    ) -> None:
        conf = dict(audio_conf or {})
        unknown = sorted(conf.keys() - _KNOWN)
        if unknown:
            tell(f"audio_conf: not used here: {', '.join(unknown)}", warning=True)
        self.audio_conf = conf
        self.store = open_pt(
            dataset_json_file,
            data_dir=data_dir or conf.get("data_dir"),
            label_csv=label_csv or None,
            target_length=conf.get("target_length"),
            mel_bins=conf.get("num_mel_bins"),
            mean=conf.get("mean"),
            std=conf.get("std"),
            failures_to=failures_to,
        )
        self.failures: tuple[Failure, ...] = self.store.failures
        self.norm_mean, self.norm_std = self.store.mean, self.store.std
        self.skip_norm = bool(conf.get("skip_norm", False))
        self.label_num = len(self.store.labels)
        names = read_label_names(label_csv) if label_csv else self.store.labels
        self.index_dict = {name: str(number) for number, name in enumerate(names)}
        train = conf.get("mode", "train") == "train"
        self.freqm, self.timem = (int(conf.get(key) or 0) if train else 0 for key in ("freqm", "timem"))
        self.mixup = float(conf.get("mixup") or 0.0) if train else 0.0
        self.noise = bool(conf.get("noise")) and train
        if self.mixup:
            tell("Mixup adds the energies of two spectrograms: there are no waveforms to add")

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Returns one clip.

        Args:
            index: Its place among the clips that can be used, from 0 on.

        Returns:
            The spectrogram, normalised by (x - mean) / (2 std), float32 [target_length, mel bins]; and its labels,
            ones and zeros (shares of both clips with mixup), float32 [classes].

        Raises:
            IndexError: There is no such clip.
            StoreError: Its file cannot be read any more.
        """
        values, label = self._clip(index)
        if self.mixup and float(torch.rand(())) < self.mixup:
            share = float(torch.distributions.Beta(_BETA, _BETA).sample())
            other, other_label = self._clip(int(torch.randint(len(self), ())))
            values = _added(values, other, share)
            label = share * label + (1 - share) * other_label
        fbank = torch.zeros(self.store.frames, self.store.mels)
        fbank[: len(values)] = values
        fbank = _masked(_masked(fbank, self.freqm, axis=1), self.timem, axis=0)
        if not self.skip_norm:
            fbank = (fbank - self.norm_mean) / (2 * self.norm_std)
        if self.noise:
            fbank = fbank + torch.rand_like(fbank) * float(torch.rand(())) / 10
            fbank = fbank.roll(int(torch.randint(-_ROLL, _ROLL, ())), dims=0)
        return fbank, label

    def _clip(self, index: int) -> tuple[Tensor, Tensor]:
        """Real frames of a clip, float32 [frames, mel bins], and its labels, [classes]."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        return self.store.spectrogram(index).float(), torch.from_numpy(self.store.label_matrix([index])[0])


def _added(values: Tensor, other: Tensor, share: float) -> Tensor:
    """The expected energies of the sum of two waveforms: theirs, weighted by the squares of their shares.

    As in SSAST the first clip says how long the result is.
    """
    mixed = values + 2 * math.log(share)
    both = min(len(values), len(other))
    mixed[:both] = torch.logaddexp(mixed[:both], other[:both] + 2 * math.log(1 - share))
    return mixed.clamp(min=LOG_FLOOR)


def _masked(fbank: Tensor, widest: int, *, axis: int) -> Tensor:
    """Zeros in one band or stretch, up to `widest` wide: torchaudio's `mask_along_axis`, draw by draw."""
    if widest < 1:
        return fbank
    width = torch.rand(1) * widest
    start = (torch.rand(1) * (fbank.shape[axis] - width)).long()
    place = torch.arange(fbank.shape[axis])
    inside = (place >= start) & (place < start + width.long())
    return fbank.masked_fill(inside if axis == 1 else inside[:, None], 0.0)


_SPLITS = {"val": "validation"}


class PreGeneratedSpectrogramDataset(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of views, one pair a clip and version.

    Args:
        metadata_list: A list of metadata.json, `train` or `val`; or the folder, packed or of `.pt` files.
        split: Of a folder, the split to use: `train` or `val`. None is all.
        root: The folder of a list's files, if they are not where their entries say.

    Attributes:
        source: The store of the pairs.

    Raises:
        StoreError: There are no pairs, or none of this split.
    """

    def __init__(
        self,
        metadata_list: str | os.PathLike[str] | Sequence[Mapping[str, Any]],
        *,
        split: str | None = None,
        root: str | os.PathLike[str] | None = None,
    ) -> None:
        self.source: SpectrogramSource
        if isinstance(metadata_list, str | os.PathLike):
            data = open_data(metadata_list, PtSettings())
            if not data.has_views:
                advice = "Make them with `tymbal prepare --views N`."
                raise StoreError("holds no pairs of views", path=data.path, advice=advice)
            self.source = data.store()
        else:
            self.source = PairFileStore(metadata_list, root=root)
        self._rows = self.source.rows(None if split is None else _SPLITS.get(split, split)).tolist()

    @property
    def failures(self) -> list[Failure]:
        """The files left out up to now, and why."""
        return list(self.source.failures)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Both views of a clip, float32 [1, mels, frames] each.

        Raises:
            IndexError: There is no such pair.
            StoreError: Its file is damaged.
        """
        pairs = self.__getitems__([index])
        if not pairs:
            row = self._rows[index]
            failure = next((one for one in self.failures if one.file == str(self._file(row))), None)
            what = "this pair cannot be read any more" if failure is None else failure.reason
            raise StoreError(what, path=self._file(row), advice=None if failure is None else failure.advice)
        return pairs[0]

    def _file(self, row: int) -> Path:
        """The file of a row; of a packed store its folder."""
        return self.source.files[row] if isinstance(self.source, PairFileStore) else self.source.path

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Pairs of a batch, without those whose file is damaged: DataLoader asks for whole batches so.

        Raises:
            StoreError: Not one of them can be read.
        """
        rows = [self._rows[index] for index in indices]
        if isinstance(self.source, PairFileStore):  # as they are in their files, in float32
            found = [pair for row in rows if (pair := self.source.pair(row)) is not None]
            if not found and len(indices) > 1:
                raise StoreError("not one pair of a batch can be read any more", path=self._file(rows[0]))
            return [(first[None], second[None]) for first, second in found]
        try:
            pairs = torch.from_numpy(self.source.gather(rows))
        except DamagedRowsError as error:
            rows = [row for row in rows if row not in error.rows]
            if not rows:
                if len(indices) == 1:
                    return []
                raise StoreError("not one pair of a batch can be read any more", path=self.source.path) from error
            pairs = torch.from_numpy(self.source.gather(rows))
        # A copy: the memory of the batch is used again.
        both = pairs.float().transpose(2, 3).unsqueeze(2).contiguous()
        return [(one[0], one[1]) for one in both]
