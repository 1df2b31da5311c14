"""Classification: spectrograms and labels to a loss, with SpecAugment on the device and metrics from sums.

One label a clip is learned by cross entropy, several by binary cross entropy. SpecAugment (Park et al. 2019) hides one
band of mel bins and one stretch of frames. Widths and places are functions of the seed, the epoch and the clip alone,
so that a resumed run draws what an uninterrupted one would have drawn, on any number of devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tymbal.models.classifier import SpectrogramClassifier
from tymbal.objectives import scores
from tymbal.objectives.randomness import fold, uniform

__all__ = ["BestBy", "ClassificationObjective", "spec_augment"]

BestBy = Literal["accuracy", "balanced_accuracy", "f1", "mAP", "loss"]

_STREAM = 20


class ClassificationObjective(nn.Module):
    """A classifier with its loss, as the training loop takes it.

    Args:
        model: The classifier; it is trained in place.
        mean: Mean of the log-mel values that the model is normalised by.
        std: Their standard deviation; the input is `(log-mel - mean) / (2 * std)`.
        padding: Log-mel value that the model has learned to see behind the end of a short clip.
        columns: For each class of the model its number among the labels of the store, [classes].
        multilabel: Binary cross entropy with any number of labels a clip, instead of cross entropy with one.
        label_smoothing: Label smoothing of the cross entropy.
        frequency_mask: Widest frequency mask in mel bins; 0 is none.
        time_mask: Widest time mask in frames; 0 is none.
        seed: Seed of the augmentation.
        best_by: The metric that tells the best model.
    """

    columns: Tensor

    def __init__(
        self,
        model: SpectrogramClassifier,
        *,
        mean: float,
        std: float,
        padding: float,
        columns: Tensor,
        multilabel: bool = False,
        label_smoothing: float = 0.0,
        frequency_mask: int = 0,
        time_mask: int = 0,
        seed: int = 42,
        best_by: BestBy = "accuracy",
    ) -> None:
        super().__init__()
        self.model = model
        self.mean, self.std, self.padding = mean, std, padding
        self.multilabel = multilabel
        self.label_smoothing = label_smoothing
        self.frequency_mask, self.time_mask = frequency_mask, time_mask
        self.seed = seed
        self.monitor: tuple[str, bool] = (best_by, best_by != "loss")
        self.register_buffer("columns", columns.long(), persistent=False)

    def forward(
        self, spectrogram: Tensor, frames: Tensor, labels: Tensor, row: Tensor, epoch: Tensor, **_: Any
    ) -> dict[str, Any]:
        """Loss and summed metrics of a batch.

        Args:
            spectrogram: Log-mel, [batch, frames, mels].
            frames: Frames of real sound, [batch].
            labels: Numbers of the labels, [batch], or ones and zeros over all labels of the store, [batch, labels].
            row: Rows of the store, [batch].
            epoch: Epoch of each clip, [batch].

        Returns:
            `loss`, a scalar, and `sums`, tensors whose sum over all batches `metrics` reads.
        """
        x = normalised(spectrogram, frames, mean=self.mean, std=self.std, padding=self.padding)
        if self.training and (self.frequency_mask or self.time_mask):
            keys = fold(self.seed, epoch, row)
            x = spec_augment(x, keys, frames, frequency_mask=self.frequency_mask, time_mask=self.time_mask)
        logits = self.model(x).float()
        truth = labels[:, None] == self.columns if labels.ndim == 1 else labels.index_select(1, self.columns) > 0
        loss = self._loss(logits, truth)
        with torch.no_grad():
            return {"loss": loss, "sums": self._sums(logits, truth, loss)}

    def _loss(self, logits: Tensor, truth: Tensor) -> Tensor:
        if self.multilabel:
            return functional.binary_cross_entropy_with_logits(logits, truth.float())
        smoothing = self.label_smoothing if self.training else 0.0
        return functional.cross_entropy(logits, truth.int().argmax(dim=1), label_smoothing=smoothing)

    def _sums(self, logits: Tensor, truth: Tensor, loss: Tensor) -> dict[str, Tensor]:
        count = torch.full((), len(logits), dtype=torch.int64, device=logits.device)
        sums = {"count": count, "loss": loss.detach() * count}
        if self.multilabel:
            right = ((logits > 0) == truth).float().mean(dim=1)
        else:
            best, known = logits.argmax(dim=1), truth.int().argmax(dim=1)
            right = (best == known).float()
        sums["right"] = right.sum()
        if self.training:
            return sums
        if self.multilabel:
            sums["decisions"] = scores.multilabel_counts(logits > 0, truth)
            sums["histogram"] = scores.score_histogram(logits, truth)
        else:
            sums["confusion"] = scores.confusion_counts(best, known, logits.shape[1])
            sums["histogram"] = scores.score_histogram(scores.log_odds(logits), truth)
        return sums

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics from sums over batches: loss and accuracy, and after an evaluation all others.

        Accuracy with several labels a clip is the share of right yes-or-no decisions. Average precision comes from a
        histogram of the scores, see `tymbal.objectives.scores`.
        """
        count = max(float(sums["count"]), 1.0)
        found = {"loss": float(sums["loss"]) / count, "accuracy": float(sums["right"]) / count}
        if "confusion" in sums:
            found |= scores.single_label_figures(_array(sums["confusion"]))
        if "decisions" in sums:
            found |= scores.multilabel_figures(_array(sums["decisions"]))
        if "histogram" in sums:
            found["mAP"] = scores.average_precision(_array(sums["histogram"]))
        return found


def normalised(spectrogram: Tensor, frames: Tensor, *, mean: float, std: float, padding: float) -> Tensor:
    """What the encoder takes: `(log-mel - mean) / (2 * std)`, with the model's own value behind the end of the sound.

    Args:
        spectrogram: Log-mel, any floating point, [batch, frames, mels].
        frames: Frames of real sound, [batch].
        mean: Mean of the log-mel values.
        std: Their standard deviation.
        padding: Log-mel value of padding.

    Returns:
        float32 [batch, frames, mels].
    """
    x = spectrogram.float()
    behind = torch.arange(x.shape[1], device=x.device) >= frames[:, None]
    return (x.masked_fill(behind[..., None], padding) - mean) / (2 * std)


def spec_augment(x: Tensor, keys: Tensor, frames: Tensor, *, frequency_mask: int, time_mask: int) -> Tensor:
    """Hides one band of mel bins and one stretch of frames of each clip behind the mean of the data.

    Args:
        x: Normalised spectrograms, [batch, frames, mels].
        keys: Keys of the random numbers, int64 [batch].
        frames: Frames of real sound, [batch]: the stretch lies within them.
        frequency_mask: Widest band in mel bins; widths are uniform from 0 on.
        time_mask: Widest stretch in frames, at most the whole clip.

    Returns:
        [batch, frames, mels]; the mean of normalised data is 0.
    """
    draws = uniform(keys, 4, stream=_STREAM)
    mels = torch.full_like(frames, x.shape[2])
    band = _stretch(draws[:, 0], draws[:, 1], frequency_mask, mels, x.shape[2])
    stretch = _stretch(draws[:, 2], draws[:, 3], time_mask, frames, x.shape[1])
    return x.masked_fill(band[:, None, :] | stretch[:, :, None], 0.0)


def _stretch(width_draw: Tensor, place_draw: Tensor, widest: int, extent: Tensor, size: int) -> Tensor:
    """A random stretch within the first `extent` of `size` places, as bools [batch, size]."""
    width = torch.minimum((width_draw * (widest + 1)).long(), extent)
    first = (place_draw * (extent - width + 1)).long()
    place = torch.arange(size, device=extent.device)
    return (place >= first[:, None]) & (place < (first + width)[:, None])


def _array(values: Tensor) -> np.ndarray[Any, Any]:
    return values.detach().cpu().numpy()
