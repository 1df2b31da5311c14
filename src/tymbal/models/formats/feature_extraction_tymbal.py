"""How sound becomes what the model in this folder takes, for transformers; Tymbal itself never runs this file.

    extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
    classify = pipeline("audio-classification", model=folder, trust_remote_code=True)

transformers' own `ASTFeatureExtractor` normalises by two fixed numbers, pads with zeros and has one frame length. This
one does what the model was trained with, which stands in `preprocessor_config.json`. It needs torch and NumPy only.

The filter bank is Kaldi's as `torchaudio.compliance.kaldi.fbank` computes it with a Hann window and without dither, or
that of `librosa.feature.melspectrogram` with natural logarithms.

Written by Tymbal, Apache License 2.0.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.utils import logging

_log = logging.get_logger(__name__)

_ENERGY_FLOOR = 1.1920928955078125e-07
_PREEMPHASIS = 0.97
_FLATTEST = 0.1  # least standard deviation that a clip is divided by: silence stays silence


class TymbalFeatureExtractor(SequenceFeatureExtractor):  # type: ignore[misc, unused-ignore]
    """Waveforms to normalised log-mel spectrograms, `input_values` [clips, frames, mels].

    Args:
        feature_size: Channels of a waveform: one.
        sampling_rate: In Hz.
        padding_value: Not used; transformers wants to know one.
        num_mel_bins: Mel bins.
        max_length: Frames that the model takes. Shorter clips are padded, of longer ones the beginning is taken.
        frame_length: Samples of a frame.
        frame_shift: Samples from one frame to the next.
        low_frequency: Lower edge of the lowest mel bin in Hz.
        high_frequency: Upper edge of the highest mel bin in Hz.
        normalize_by: Whose mean and standard deviation are taken, those of each `clip` or of the `dataset`.
        dataset_mean: Mean of the log-mel values of the data set; padding is always normalised by the data set's.
        dataset_std: Their standard deviation.
        padding_log_mel: Log-mel value of the frames behind the end of a short clip.
        filter_bank: Whose filter bank, `kaldi` or `librosa`.
        return_attention_mask: Whether `attention_mask` [clips, frames], 1 where sound is, is given, too.
        **kwargs: What else transformers keeps there.
    """

    model_input_names = ["input_values"]  # noqa: RUF012 - a list, as in all of transformers

    def __init__(
        self,
        *,
        feature_size: int = 1,
        sampling_rate: int = 16_000,
        padding_value: float = 0.0,
        num_mel_bins: int = 128,
        max_length: int = 1024,
        frame_length: int = 400,
        frame_shift: int = 160,
        low_frequency: float = 20.0,
        high_frequency: float = 8000.0,
        normalize_by: str = "clip",
        dataset_mean: float = 0.0,
        dataset_std: float = 0.5,
        padding_log_mel: float = 0.0,
        filter_bank: str = "kaldi",
        return_attention_mask: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.num_mel_bins, self.max_length = num_mel_bins, max_length
        self.frame_length, self.frame_shift = frame_length, frame_shift
        self.low_frequency, self.high_frequency = low_frequency, high_frequency
        self.normalize_by, self.dataset_mean, self.dataset_std = normalize_by, dataset_mean, dataset_std
        self.padding_log_mel = padding_log_mel
        self.filter_bank, self.return_attention_mask = filter_bank, return_attention_mask

    def __call__(
        self, raw_speech: Any, sampling_rate: int | None = None, return_tensors: str | None = None, **_: Any
    ) -> BatchFeature:
        """Computes the spectrograms of one clip [samples] or of several ([clips, samples], or a list of clips).

        Args:
            raw_speech: Samples from -1 to 1, mono.
            sampling_rate: Their rate in Hz; another than the model's is refused.
            return_tensors: `pt` or `np`.

        Raises:
            ValueError: The rate is another, the sound has several channels, or a clip is shorter than a frame.
        """
        if sampling_rate is None:
            _log.warning_once(f"Give sampling_rate: the sound is taken to have {self.sampling_rate} Hz.")
        elif sampling_rate != self.sampling_rate:
            raise ValueError(f"the model knows sound of {self.sampling_rate} Hz, not of {sampling_rate}: resample it")
        made = [self._spectrogram(torch.from_numpy(clip)) for clip in _clips(raw_speech)]
        values = {"input_values": [spectrogram.numpy() for spectrogram, _ in made]}
        if self.return_attention_mask:
            values["attention_mask"] = [(np.arange(self.max_length) < frames).astype(np.int64) for _, frames in made]
        return BatchFeature(values, tensor_type=return_tensors)

    def _spectrogram(self, waveform: Tensor) -> tuple[Tensor, int]:
        """One clip, [samples], to what the model takes, [frames, mels], and how many of the frames are sound."""
        shortest = self.frame_length if self.filter_bank == "kaldi" else 1
        most = (self.max_length - 1) * self.frame_shift + shortest
        if len(waveform) < shortest:
            raise ValueError(f"{len(waveform)} samples are shorter than one frame of {shortest}")
        if len(waveform) >= most + self.frame_shift:
            _log.warning_once(
                f"A clip of {len(waveform) / self.sampling_rate:.2f} s is cut: the model takes "
                f"{most / self.sampling_rate:.2f} s. Cut longer sound into such windows, or use tymbal predict."
            )
        log_mel = self._kaldi if self.filter_bank == "kaldi" else self._librosa
        known = self._normalize(log_mel(waveform[:most]))
        padding = (self.padding_log_mel - self.dataset_mean) / (2 * self.dataset_std)
        result = torch.full((self.max_length, self.num_mel_bins), padding)
        result[: len(known)] = known
        return result, len(known)

    def _normalize(self, log_mel: Tensor) -> Tensor:
        if self.normalize_by == "dataset":
            return (log_mel - self.dataset_mean) / (2 * self.dataset_std)
        centred = log_mel - log_mel.mean()
        return centred / (2 * centred.square().mean().sqrt().clamp(min=_FLATTEST))

    def _librosa(self, waveform: Tensor) -> Tensor:
        spectrum = torch.stft(
            waveform,
            self.frame_length,
            self.frame_shift,
            window=torch.hann_window(self.frame_length),
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        band = (self.low_frequency, self.high_frequency)
        triangles = _slaney(self.frame_length, self.sampling_rate, self.num_mel_bins, *band)
        return (spectrum.abs().square().T @ triangles).clamp(min=_ENERGY_FLOOR).log()

    def _kaldi(self, waveform: Tensor) -> Tensor:
        frames = (waveform - waveform.mean()).unfold(0, self.frame_length, self.frame_shift)
        frames = frames - frames.mean(1, keepdim=True)
        emphasised = frames.clone()
        emphasised[:, 1:] -= _PREEMPHASIS * frames[:, :-1]  # the first sample is weighted by 0
        window = torch.hann_window(self.frame_length, periodic=False)
        fft = 1 << (self.frame_length - 1).bit_length()
        spectrum = torch.view_as_real(torch.fft.rfft(emphasised * window, n=fft))
        triangles = _triangles(fft, self.sampling_rate, self.num_mel_bins, self.low_frequency, self.high_frequency)
        return (spectrum.square().sum(-1) @ triangles).clamp(min=_ENERGY_FLOOR).log()


def _clips(raw: Any) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """Clips, [samples] each, whether one is given or several."""
    several = len(raw) > 0 and np.ndim(raw[0]) > 0
    clips = [np.array(clip, np.float32) for clip in (raw if several else [raw])]
    if any(clip.ndim != 1 for clip in clips):
        raise ValueError("a clip is one row of samples: mix channels down to mono first")
    return clips


@lru_cache(maxsize=8)
def _triangles(fft: int, rate: int, mels: int, low: float, high: float) -> Tensor:
    """Kaldi's triangles, straight in mel: [fft // 2 + 1, mels]. The bin at half the rate has no weight."""
    lowest, highest = (1127.0 * math.log(1.0 + frequency / 700.0) for frequency in (low, high))
    step = (highest - lowest) / (mels + 1)
    left, centre, right = (lowest + (torch.arange(mels, dtype=torch.float32) + i) * step for i in range(3))
    mel = 1127.0 * (1.0 + rate / fft * torch.arange(fft // 2, dtype=torch.float32) / 700.0).log()[:, None]
    triangles = torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp(min=0)
    return torch.nn.functional.pad(triangles, (0, 0, 0, 1))


@lru_cache(maxsize=8)
def _slaney(fft: int, rate: int, mels: int, low: float, high: float) -> Tensor:
    """Librosa's triangles of equal area, straight in Slaney's mel: [fft // 2 + 1, mels]."""
    step = math.log(6.4) / 27  # the scale is a line up to 1 kHz, 15 mel, and logarithmic above
    lowest, highest = (3 * hz / 200 if hz < 1000 else 15 + math.log(hz / 1000) / step for hz in (low, high))
    mel = np.linspace(lowest, highest, mels + 2)
    edges = np.where(mel < 15, mel * 200 / 3, 1000 * np.exp(step * (mel - 15)))
    frequency = np.linspace(0, rate / 2, fft // 2 + 1)[:, None]
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.minimum((frequency - left) / (centre - left), (right - frequency) / (right - centre))
    return torch.from_numpy((np.maximum(triangles, 0) * 2 / (right - left)).astype(np.float32))
