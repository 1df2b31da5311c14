"""What the scripts around SSAST's `run.py` read, written beside our own run folder.

    exp_dir/
      args.json                      all flags (run.py writes a pickle)
      result.csv                     a row an evaluation, without a header, see `pretraining_row`, `finetuning_row`
      models/best_audio_model.pth    the best model by validation, as SSAST saves it
      models/audio_model.N.pth       the model of every evaluation; in fine-tuning N is the epoch, in pretraining the
                                     first evaluation is 2, as there, where 1 has random weights (it is not written)
      models/audio_model_wa.pth      the average of weights, with wa_result.csv
      eval_result.csv                the best model on validation and test clips

All of it can be written again from the run: the table comes from `metrics.jsonl`, the models from checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from tymbal.files import write_text
from tymbal.models.classifier import SpectrogramClassifier
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.models.formats import ssast_checkpoint as ssast
from tymbal.objectives.classification import ClassificationObjective
from tymbal.objectives.ssast import TASKS, SSASTObjective
from tymbal.training.callbacks import Evaluation

__all__ = ["BEST", "Outputs", "finetuning_row", "pretraining_row", "save_pretrained", "write_rows"]

BEST = Path("models") / "best_audio_model.pth"
Figures = Mapping[str, Any]
Row = Callable[[Figures, Figures], list[float]]


class Outputs:
    """Writes models and table at every evaluation.

    Args:
        folder: The run folder.
        row: Makes a row of the figures of the training since the last evaluation, and of the evaluation.
        number: The number of the model of an evaluation.
        keep: Whether the model of every evaluation is kept, or only the best.
    """

    def __init__(self, folder: Path, *, row: Row, number: Callable[[Evaluation], int], keep: bool) -> None:
        self._folder = folder
        self._row = row
        self._number = number
        self._keep = keep
        (folder / "models").mkdir(parents=True, exist_ok=True)

    def note(self, evaluation: Evaluation) -> None:
        """Writes what belongs to an evaluation."""
        if self._keep:
            _save(self._folder / "models" / f"audio_model.{self._number(evaluation)}.pth", evaluation.module)
        if evaluation.best:
            _save(self._folder / BEST, evaluation.module)
        self.write_table(evaluation.figures)

    def write_table(self, figures: Sequence[Figures]) -> None:
        """Writes `result.csv` from the lines of `metrics.jsonl`."""
        rows, window = [], list[Figures]()
        for line in figures:
            if any(name.startswith("eval_") for name in line):
                rows.append(self._row(_mean(window), line))
                window = []
            else:
                window.append(line)
        write_rows(self._folder / "result.csv", rows)


def pretraining_row(task: str) -> Row:
    """Rows [train_acc, train_loss, eval_acc, eval_nce, lr]; as there, nce is mse in joint and mpg, and acc in mpg."""
    acc, error = ("mse" if task == "mpg" else "acc"), ("nce" if task == "mpc" else "mse")

    def row(train: Figures, evaluation: Figures) -> list[float]:
        return [
            _number(train.get(acc)),
            _number(train.get("loss")),
            _number(evaluation.get(f"eval_{acc}")),
            _number(evaluation.get(f"eval_{error}")),
            _number(train.get("learning_rate")),
        ]

    return row


def finetuning_row(metrics: str) -> Row:
    """Rows [mAP or acc, mAUC, precision, recall, d', train_loss, valid_loss, cum_mAP or cum_acc, cum_mAUC, lr].

    Precision and recall are, as there, those at the middle of all thresholds. `cum` is the mean of the predictions of
    all epochs so far.
    """
    best = "mAP" if metrics == "mAP" else "top1"

    def row(train: Figures, evaluation: Figures) -> list[float]:
        names = (best, "auc", "middle_precision", "middle_recall")
        ensemble = (f"ensemble_{best}", "ensemble_auc")
        return [
            *(_number(evaluation.get(f"eval_{name}")) for name in names),
            d_prime(_number(evaluation.get("eval_auc"))),
            _number(train.get("loss")),
            _number(evaluation.get("eval_loss")),
            *(_number(evaluation.get(f"eval_{name}")) for name in ensemble),
            _number(train.get("learning_rate")),
        ]

    return row


def d_prime(auc: float) -> float:
    """Sensitivity index of an area under the ROC curve: sqrt(2) z(AUC)."""
    if not 0 < auc < 1:
        return math.nan if math.isnan(auc) else math.copysign(math.inf, auc - 0.5)
    return math.sqrt(2) * NormalDist().inv_cdf(auc)


def write_rows(path: Path, rows: Sequence[Sequence[float]]) -> None:
    """Writes numbers as `numpy.savetxt` does with commas, as `numpy.loadtxt` reads them."""
    write_text(path, "".join(",".join(f"{value:.18e}" for value in row) + "\n" for row in rows))


def save_pretrained(path: Path, encoder: SpectrogramEncoder, objective_state: Mapping[str, Tensor]) -> None:
    """Writes a pretrained encoder with both heads, which SSAST always has.

    A head that was not trained, or was trained on a decoder that SSAST lacks, gets the weights that SSAST begins with.
    """
    heads = _fresh_heads(encoder.config)
    if not any(name.startswith("decoder.") for name in objective_state):
        heads |= {name: value for name, value in objective_state.items() if name in heads}
    ssast.write(path, encoder, objective_state=heads)


def _save(path: Path, module: nn.Module) -> None:
    if isinstance(module, ClassificationObjective):
        ssast.write(path, module.model)
    elif isinstance(module, SSASTObjective):
        save_pretrained(path, module.encoder, module.head_state())
    else:
        raise TypeError(f"a {type(module).__name__} is no objective of SSAST")


def save_model_as(path: Path, module: SpectrogramEncoder | SpectrogramClassifier, heads: Mapping[str, Tensor]) -> None:
    """Writes a loaded model as SSAST saves it."""
    if isinstance(module, SpectrogramClassifier):
        ssast.write(path, module)
    else:
        save_pretrained(path, module, heads)


def _fresh_heads(config: EncoderConfig) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        heads = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Linear(config.width, config.width), nn.ReLU(), nn.Linear(config.width, config.patch_area)
                )
                for name in TASKS["joint"]
            }
        )
    return dict(heads.state_dict())


def _mean(lines: Sequence[Figures]) -> dict[str, float]:
    """Mean figures of the logged windows of a stretch of training, each by its steps; the rate is the last."""
    if not lines:
        return {}
    starts = [lines[0]["step"] - 1, *(line["step"] for line in lines[:-1])]
    spans = [max(1, line["step"] - start) for line, start in zip(lines, starts, strict=True)]
    names = [name for name in ("loss", "acc", "nce", "mse") if name in lines[-1]]
    mean = {
        name: sum(_number(line[name]) * span for line, span in zip(lines, spans, strict=True)) / sum(spans)
        for name in names
    }
    return {**mean, "learning_rate": lines[-1].get("learning_rate", math.nan)}


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
