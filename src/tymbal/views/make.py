"""Waveforms to augmented views, in either mode, generated before or fresh in each epoch.

The settings are those of generated views, and so are the distributions: an epoch takes the place of a version. What is
drawn is a function of seed, clip and epoch, so that a resumed run sees what an uninterrupted one would have seen. On a
GPU a whole batch is made at once and nothing waits for it; on a CPU by some clips, which its cache holds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tymbal.features.normalisation import ENERGY_FLOOR
from tymbal.settings import FeatureSettings
from tymbal.settings.augmentation import AugmentationSettings
from tymbal.store.base import SpectrogramSource
from tymbal.store.dataset import StoreDataset
from tymbal.store.packed.packed_store import FULL_SCALE
from tymbal.views.draw import VIEWS, Draws, clip_key, draw, view_keys
from tymbal.views.exact import exact_waveforms
from tymbal.views.fast_views import Clips, SpectralViews
from tymbal.views.overlays import load_banks
from tymbal.views.own_views import own_views
from tymbal.views.spectrogram_ops import change_spectrograms, masked_cells, moved_spectrograms

__all__ = ["FreshPairs", "FreshViewDataset", "Mode", "ViewMaker", "fresh_pairs"]

Mode = Literal["spectral", "exact"]


class ViewMaker:
    """Makes views of clips of one length.

    Args:
        settings: The augmentations of a view.
        features: The filter bank.
        samples: Samples of a clip.
        mode: `spectral` changes one transform of a clip, `exact` its waveform.
        device: The device to compute on; `exact` is for the CPU.

    Raises:
        SettingsError: Backgrounds cannot be used.
    """

    def __init__(
        self,
        settings: AugmentationSettings,
        features: FeatureSettings,
        samples: int,
        *,
        mode: Mode = "spectral",
        device: torch.device | str = "cpu",
    ) -> None:
        self.settings = settings
        self.features = features
        self.mode = mode
        self._device = torch.device(device)
        self._banks = load_banks(settings, sample_rate=features.sample_rate, samples=samples)
        self._spectral = SpectralViews(features, self._banks, device=device)
        self._own = own_views(settings.functions)

    @torch.no_grad()
    def clean(self, waveforms: Tensor) -> Tensor:
        """Energies of clips [clips, samples] in mel bins, as partners for mixup: [clips, mels, frames]."""
        return self._spectral.mel(waveforms)

    @torch.no_grad()
    def transform(self, waveforms: Tensor, lengths: Tensor | None = None) -> Clips:
        """Transforms clips [clips, samples] on the device to what `spectral` needs.

        What is laid over a clip is so many dB below its sound: the first of its samples, int64 [clips]; None is all.
        """
        clips = self._spectral.transform(waveforms, lengths)
        return replace(clips, waveforms=waveforms, lengths=lengths) if self._own.of("waveforms") else clips

    @torch.no_grad()
    def views(
        self, clips: Clips | Tensor, clip: Tensor, draws: Draws, partners: Tensor, *, lengths: Tensor | None = None
    ) -> Tensor:
        """Makes views.

        Args:
            clips: Clips that `transform` gave, or for `exact` their waveforms, [clips, samples].
            clip: Which clip each view is of, int64 [views], on the CPU.
            draws: The drawn augmentations of the views.
            partners: Energies in mel bins of the clip that each view may be mixed with, [views, mels, frames].
            lengths: For `exact` the samples of sound in each clip, int64 [clips]; None is all. `transform` takes those
                of `spectral`.

        Returns:
            Log-mel, float32 [views, frames, mels].
        """
        if isinstance(clips, Clips):
            mel = self._spectral(*self._changed(clips, clip, draws), draws)
        else:
            mel = self.clean(self.waveforms(clips, clip, draws, lengths))
        return self._own.spectrograms(change_spectrograms(mel, partners, draws), draws.keys)

    def _changed(self, clips: Clips, clip: Tensor, draws: Draws) -> tuple[Clips, Tensor]:
        """What views are made of: the clips, or each view's own one where functions change their sound before."""
        if clips.waveforms is None:
            return clips, clip
        source = clip.to(self._device)
        sound = self._own.waveforms(clips.waveforms[source], draws.keys, sample_rate=self.features.sample_rate)
        lengths = None if clips.lengths is None else clips.lengths[clip]
        return self._spectral.transform(sound, lengths), torch.arange(len(clip))

    def log_mel(self, mel: Tensor) -> Tensor:
        """Energies in mel bins [clips, mels, frames] as log-mel spectrograms [clips, frames, mels]."""
        return mel.clamp(min=ENERGY_FLOOR).log_().transpose(1, 2)

    @torch.no_grad()
    def waveforms(self, waveforms: Tensor, clip: Tensor, draws: Draws, lengths: Tensor | None = None) -> Tensor:
        """The waveforms of views, in `exact` mode: [views, samples]; arguments as in `views`."""
        if self._own.of("waveforms"):
            waveforms = self._own.waveforms(waveforms[clip], draws.keys, sample_rate=self.features.sample_rate)
            lengths = None if lengths is None else lengths[clip]
            clip = torch.arange(len(clip))
        return exact_waveforms(waveforms, clip, draws, features=self.features, banks=self._banks, lengths=lengths)

    @torch.no_grad()
    def heard(self, real: Tensor, draws: Draws, *, frames: int) -> Tensor:
        """Where the sound of a clip lies in its views, in `spectral` mode: a frame is moved as its energy would be.

        Args:
            real: Frames of sound in the clip of each view, int64 [views], on the CPU.
            draws: What happens to the views.
            frames: Frames of a clip.

        Returns:
            bool [views, frames], on the device.
        """
        sound = (torch.arange(frames) < real[:, None]).float().unsqueeze(1).to(self._device)
        return moved_spectrograms(self._spectral.along_time(sound, draws), draws)[:, 0] > 0.5


_AT_ONCE = 16


class FreshPairs(NamedTuple):
    """Pairs of views, and what is known of them by the length of their clips and by what was drawn.

    Attributes:
        spectrogram: Log-mel, float16 [batch, 2, frames, mels], on the device.
        heard: Which frames hold the clip's sound, bool [batch, 2, frames]; None where lengths are not known.
        masked: Which cells a mask hides, bool [batch, 2, frames, mels]; None where lengths are not known.
    """

    spectrogram: Tensor
    heard: Tensor | None
    masked: Tensor | None


def fresh_pairs(
    maker: ViewMaker,
    waveforms: Tensor,
    keys: Tensor,
    versions: Tensor,
    *,
    seed: int,
    lengths: Tensor | None = None,
) -> FreshPairs:
    """Makes a pair of views of each clip of a batch, each of which may be mixed with another one.

    Args:
        maker: Makes views, in `spectral` mode.
        waveforms: float32 [batch, samples], on the maker's device.
        keys: `clip_key` of each clip, int64 [batch], on the CPU.
        versions: Version, or epoch, of each, int64 [batch], on the CPU.
        seed: Seed of what is drawn.
        lengths: Samples of sound at the start of each waveform, int64 [batch], on the CPU. None takes the silence
            behind the end for sound.
    """
    count = len(waveforms)
    draws = draw(maker.settings, view_keys(seed, keys, versions), versions.repeat_interleave(VIEWS).tolist())
    clips = maker.transform(waveforms, lengths)
    clip = torch.arange(count).repeat_interleave(VIEWS)
    step = 1 + (draws.uniform("mixup", 1) * max(count - 1, 1)).long()
    partner = (clip + step) % count
    heard = masked = None
    if lengths is not None:
        mels, frames = clips.mel.shape[1:]
        real = torch.tensor([min(maker.features.frames_of(length), frames) for length in lengths.tolist()])
        heard = maker.heard(real[clip], draws, frames=frames).view(count, VIEWS, frames)
        masked = masked_cells(draws, mels=mels, frames=frames).transpose(1, 2)
        masked = masked.reshape(count, VIEWS, frames, mels).to(waveforms.device)
    if waveforms.device.type != "cpu":
        views = maker.views(clips, clip, draws, clips.mel[partner.to(waveforms.device)])
        return FreshPairs(views.half().reshape(count, VIEWS, *views.shape[1:]), heard, masked)
    result = torch.empty(count, VIEWS, clips.mel.shape[2], clips.mel.shape[1], dtype=torch.float16)
    for start in range(0, count, _AT_ONCE):
        stop = min(start + _AT_ONCE, count)
        own = slice(start * VIEWS, stop * VIEWS)
        part = draws.part(own.start, own.stop)
        views = maker.views(clips.part(start, stop), clip[own] - start, part, clips.mel[partner[own]])
        result[start:stop] = views.view(stop - start, VIEWS, *views.shape[1:])
    return FreshPairs(result, heard, masked)


class FreshViewDataset(StoreDataset):
    """Rows of a store of waveforms as pairs of views, made on request.

    A batch is as of any store, with `spectrogram` float16 [batch, 2, frames, mels]; where padding is carried, `heard`
    and `masked` as in `FreshPairs`, too.

    Args:
        store: The waveforms.
        rows: Row numbers in the store, [length].
        maker: Makes views.
        seed: Seed of what is drawn.
        device: The device to make views on.
        carries_padding: Whether batches say which frames are sound, known from the length of each clip, and noise is
            laid over its sound rather than over its whole window.

    Attributes:
        on_device: Whether batches lie on a GPU already.
    """

    def __init__(
        self,
        store: SpectrogramSource,
        rows: npt.ArrayLike,
        maker: ViewMaker,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        carries_padding: bool = False,
    ) -> None:
        super().__init__(store, rows)
        self._maker = maker
        self._seed = seed
        self._device = torch.device(device)
        self.on_device = self._device.type != "cpu"
        self._keys = torch.tensor([clip_key(name) for name in store.index["id"].to_pylist()])
        self._lengths: Tensor | None = None
        if carries_padding and store.samples is not None:
            lengths = store.clip_samples()
            self._lengths = torch.from_numpy(np.where(lengths < 0, store.samples, np.minimum(lengths, store.samples)))

    def _spectrograms(self, values: Tensor, row: Tensor, epoch: Tensor) -> dict[str, Tensor]:
        waveforms = values.to(self._device).float().div_(FULL_SCALE)
        lengths = None if self._lengths is None else self._lengths[row]
        pairs = fresh_pairs(self._maker, waveforms, self._keys[row], epoch, seed=self._seed, lengths=lengths)
        batch = {"spectrogram": pairs.spectrogram, "frames": torch.full((len(row),), pairs.spectrogram.shape[2])}
        known = {"heard": pairs.heard, "masked": pairs.masked}
        return {**batch, **{name: value for name, value in known.items() if value is not None}}
