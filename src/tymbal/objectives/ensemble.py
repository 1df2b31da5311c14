"""The mean of the predictions of all evaluations of a run: SSAST's "checkpoint ensemble".

It is kept as one number a validation clip and class, in the module's own state. So it lies in every checkpoint, and a
resumed run goes on with it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tymbal.objectives import scores

__all__ = ["Ensemble"]


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
        """Takes predictions of a batch into the means; gives what `metrics` reads of the means.

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
