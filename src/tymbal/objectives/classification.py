"""Classification: spectrograms and labels to a loss, with augmentation on the device and metrics from sums.

One label a clip is learned by cross entropy, several by binary cross entropy. What augmentation draws
(`objectives.augmentation`) is a function of the seed, the epoch and the clip alone, so that a resumed run draws what an
uninterrupted one would have drawn.

It is kept as one number a validation clip and class, in the module's own state. So it lies in every checkpoint, and a
resumed run goes on with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from tymbal.features.bank import filter_bank
from tymbal.features.normalisation import Normalisation
from tymbal.models.classifier import SpectrogramClassifier
from tymbal.objectives import metrics as scores
from tymbal.objectives.batch_augmentation import Augmentation
from tymbal.randomness import fold
from tymbal.settings import FeatureSettings
from tymbal.settings.augmentation import SpectrogramViews
from tymbal.views.spectrogram_views import spectrogram_views

__all__ = ["BestBy", "ClassificationObjective", "Ensemble"]

BestBy = Literal["accuracy", "top1", "balanced_accuracy", "f1", "weighted_f1", "mAP", "auc", "loss"]


_RATIOS = {"loss": "loss", "accuracy": "right", "top1": "top1"}

_FIRST = ("loss", "mAP", "prevalence", "auc", "f1", "precision", "recall")
"""Figures that come first where a clip may have several labels: right decisions are many where labels are rare."""
"""Figures that are a sum over the clips divided by their number."""


class ClassificationObjective(nn.Module):
    """A classifier with its loss, as the training loop takes it.

    Args:
        model: The classifier; it is trained in place.
        normalisation: How spectrograms are normalised for the model.
        columns: For each class of the model its number among the labels of the store, -1 where it is not among them:
            [classes].
        multilabel: Binary cross entropy with any number of labels a clip, instead of cross entropy with one.
        label_smoothing: Label smoothing while training: of the cross entropy towards equal chances of all classes, of
            the binary one towards even odds of each.
        class_weights: Weights of the loss while training: [classes], or of no and yes where a clip may have several
            labels, [2, classes]; None is 1.
        augmentation: Augmentation of the training clips; None is none.
        views: How pitch, tempo, colour and level of the training clips are changed; None is not at all.
        features: How waveforms become spectrograms, where those are mixed.
        ensemble: Averages the predictions of all evaluations; None does not.
        seed: Seed of the augmentation.
        best_by: The metric that tells the best model.
    """

    columns: Tensor
    class_weights: Tensor | None

    def __init__(
        self,
        model: SpectrogramClassifier,
        *,
        normalisation: Normalisation,
        columns: Tensor,
        multilabel: bool = False,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        augmentation: Augmentation | None = None,
        views: SpectrogramViews | None = None,
        features: FeatureSettings | None = None,
        ensemble: Ensemble | None = None,
        seed: int = 42,
        best_by: BestBy = "accuracy",
    ) -> None:
        super().__init__()
        self.model = model
        self.normalisation = normalisation
        self.multilabel = multilabel
        self.label_smoothing = label_smoothing
        self.augmentation = augmentation
        self.views = views
        self._fbank = None if features is None else filter_bank(features)
        self.ensemble = ensemble
        self.seed = seed
        self.monitor: tuple[str, bool] = (best_by, best_by != "loss")
        self.register_buffer("columns", columns.long(), persistent=False)
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(
        self,
        spectrogram: Tensor,
        frames: Tensor,
        labels: Tensor,
        row: Tensor,
        epoch: Tensor,
        *,
        waveform: Tensor | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """Loss and summed metrics of a batch.

        Args:
            spectrogram: Log-mel, [batch, frames, mels].
            frames: Frames of real sound, [batch].
            labels: Numbers of the labels, [batch], or ones and zeros over all labels of the store, [batch, labels].
            row: Rows of the store, [batch].
            epoch: Epoch of each clip, [batch].
            waveform: Samples of training clips, [batch, samples], where waveforms are mixed.

        Returns:
            `loss`, a scalar, and `sums`, tensors whose sum over all batches `metrics` reads.
        """
        truth = self._truth(labels)
        target = truth.float()
        augmentation, views = (self.augmentation, self.views) if self.training else (None, None)
        keys = fold(self.seed, epoch, row)
        if augmentation is not None:
            spectrogram, frames, target = augmentation.mix(
                spectrogram, frames, target, keys, waveform=waveform, fbank=self._fbank
            )
        x = self.normalisation(spectrogram, frames)
        if views is not None:
            padding, scale = self.normalisation.normal_padding, 2 * self.normalisation.std
            x, frames = spectrogram_views(x, frames, keys, views, padding=padding, scale=scale)
        if augmentation is not None:
            x = augmentation.disturb(x, frames, keys)
        logits = self.model(x, frames=frames).float()
        loss = self._loss(logits, target)
        with torch.no_grad():
            sums = self._sums(logits, truth, loss)
            if self.ensemble is not None and not self.training:
                sums |= self.ensemble.sums(logits, truth, row)
            return {"loss": loss, "sums": sums}

    @torch.no_grad()
    def evaluation_sums(self, logits: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """Summed metrics of a batch that was scored elsewhere, as `forward` gives them in evaluation mode.

        Args:
            logits: float32 [batch, classes].
            truth: Which clip is of which class, bool [batch, classes].
        """
        return self._sums(logits, truth, self._loss(logits, truth.float()))

    def _truth(self, labels: Tensor) -> Tensor:
        """The true classes of each clip, bool [batch, classes]."""
        if labels.ndim == 1:
            return (labels[:, None] == self.columns) & (self.columns >= 0)
        return (labels.index_select(1, self.columns.clamp(min=0)) > 0) & (self.columns >= 0)

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        smoothing = self.label_smoothing if self.training else 0.0
        weights = self.class_weights if self.training else None
        # The mean over clips, not over their weights: batches and ranks must add up.
        if not self.multilabel:
            return functional.cross_entropy(logits, target, weights, label_smoothing=smoothing)
        by_label = None if weights is None else torch.lerp(weights[0], weights[1], target)
        smoothed = target * (1 - smoothing) + smoothing / 2
        return functional.binary_cross_entropy_with_logits(logits, smoothed, by_label)

    def _sums(self, logits: Tensor, truth: Tensor, loss: Tensor) -> dict[str, Tensor]:
        count = torch.full((), len(logits), dtype=torch.int64, device=logits.device)
        sums = {"count": count, "loss": loss.detach() * count}
        if self.multilabel:
            right = ((logits > 0) == truth).float().mean(dim=1)
        else:
            best, known = logits.argmax(dim=1), truth.int().argmax(dim=1)
            right = (best == known).float()
        sums["right"] = right.sum()
        sums["top1"] = truth.gather(1, logits.argmax(dim=1, keepdim=True)).sum()
        if self.training:
            return sums
        if self.multilabel:
            sums["labelled"] = truth.any(dim=1).sum()
            sums["decisions"] = scores.multilabel_counts(logits > 0, truth)
            sums["histogram"] = scores.score_histogram(logits, truth)
        else:
            sums["confusion"] = scores.confusion_counts(best, known, logits.shape[1])
            sums["histogram"] = scores.score_histogram(scores.log_odds(logits), truth)
        return sums

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics from sums over batches: loss and accuracy, and after an evaluation all others.

        Accuracy with several labels a clip is the share of right yes-or-no decisions, which a model that never says yes
        can have in plenty; so there the mAP leads, and `prevalence`, the mAP of scores that tell nothing. `t1_accuracy`
        is BirdSet's T1-Acc: of the clips with labels, the share whose highest score is one of theirs. Average
        precision comes from a histogram of the scores, see `tymbal.objectives.metrics`.
        """
        count = max(float(sums["count"]), 1.0)
        figures = {name: float(sums[key]) / count for name, key in _RATIOS.items()}
        if "confusion" in sums:
            figures |= scores.single_label_figures(_array(sums["confusion"]))
        if "decisions" in sums:
            decisions = _array(sums["decisions"])
            figures |= scores.multilabel_figures(decisions) | {"prevalence": scores.prevalence(decisions)}
        if "labelled" in sums:
            figures["t1_accuracy"] = float(sums["top1"]) / max(float(sums["labelled"]), 1.0)
        if "histogram" in sums:
            histogram = _array(sums["histogram"])
            figures["mAP"], figures["auc"] = scores.average_precision(histogram), scores.roc_auc(histogram)
        if self.ensemble is not None and "ensemble_histogram" in sums:
            figures |= self.ensemble.metrics(sums)
            # Figures of SSAST's table, as the ensemble's are, and of little use for anything else.
            figures["middle_precision"], figures["middle_recall"] = scores.middle_precision_recall(histogram)
        if self.multilabel:
            last = [name for name in figures if name not in _FIRST and name != "accuracy"]
            order = [*_FIRST, *last, "accuracy"]
            figures = {name: figures[name] for name in order if name in figures}
        return figures

    def by_class(self, sums: Mapping[str, Tensor]) -> dict[str, np.ndarray[Any, Any]]:
        """Figures of each class from the sums of an evaluation, each [classes].

        `clips` of the class, `predicted`: clips that were taken for it, `precision`, `recall`, `f1`,
        `average_precision` and `auc`; NaN where a figure is undefined.
        """
        if self.multilabel:
            hit, false_alarm, miss, _ = _array(sums["decisions"])
            counts = (hit, hit + miss, hit + false_alarm)
        else:
            counts = scores.single_label_counts(_array(sums["confusion"]))
        histogram = _array(sums["histogram"])
        return {
            "clips": counts[1],
            "predicted": counts[2],
            **scores.by_class(*counts),
            "average_precision": scores.each_average_precision(histogram),
            "auc": scores.each_roc_auc(histogram),
        }


def _array(values: Tensor) -> np.ndarray[Any, Any]:
    return values.detach().cpu().numpy()


class Ensemble(nn.Module):
    """Running means of the scores of validation clips.

    Args:
        rows: Rows of the validation clips in the store, ascending, [clips].
        classes: Number of classes.
        multilabel: Whether scores are sigmoids or a softmax.

    Attributes:
        mean: Mean score of each clip and class, [clips, classes].
        count: Evaluations that it is the mean of, [clips].
    """

    rows: Tensor
    mean: Tensor
    count: Tensor

    def __init__(self, rows: Tensor, classes: int, *, multilabel: bool) -> None:
        super().__init__()
        self.multilabel = multilabel
        self.register_buffer("rows", rows.long(), persistent=False)
        self.register_buffer("mean", torch.zeros(len(rows), classes))
        self.register_buffer("count", torch.zeros(len(rows), dtype=torch.int64))

    @torch.no_grad()
    def sums(self, logits: Tensor, truth: Tensor, row: Tensor) -> dict[str, Tensor]:
        """Adds the predictions of a batch to the means, and returns the sums that `metrics` reads.

        Args:
            logits: [batch, classes].
            truth: bool [batch, classes].
            row: Rows of the store, [batch].
        """
        place = torch.searchsorted(self.rows, row)
        score = logits.sigmoid() if self.multilabel else logits.softmax(dim=1)
        self.count[place] += 1
        self.mean[place] += (score - self.mean[place]) / self.count[place].unsqueeze(1)
        mean = self.mean[place]
        return {
            "ensemble_histogram": scores.score_histogram(mean.double().logit(eps=1e-12).float(), truth),
            "ensemble_top1": truth.gather(1, mean.argmax(dim=1, keepdim=True)).sum(),
            "ensemble_clips": torch.full((), len(row), dtype=torch.int64, device=row.device),
        }

    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """`ensemble_mAP`, `ensemble_auc` and `ensemble_top1` from summed tensors."""
        histogram = sums["ensemble_histogram"].cpu().numpy()
        return {
            "ensemble_mAP": scores.average_precision(histogram),
            "ensemble_auc": scores.roc_auc(histogram),
            "ensemble_top1": float(sums["ensemble_top1"]) / max(float(sums["ensemble_clips"]), 1.0),
        }
