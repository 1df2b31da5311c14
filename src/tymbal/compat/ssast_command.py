"""`tymbal ssast`: SSAST's `run.py`, its flags and what it leaves behind, on Tymbal's own training.

    tymbal ssast --task pretrain_joint --dataset precomputed --data-train train.json --data_dir spectrograms …

A script that ran `python run.py …` runs after changing these two words. `--exp-dir` is a run folder of ours, in which
the same command continues after a stop; beside it lies what the scripts around `run.py` read. Lists
of sound files work as well: their spectrograms are computed once and kept in `exp_dir/store`.

github.com/YuanGongND/ssast; Gong, Lai, Chung & Glass 2022.

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
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn

from tymbal.audio.file_lists import table_classes
from tymbal.compat.flags import Flags, parse
from tymbal.compat.translate import Call, in_flags, translate
from tymbal.compute.processes import on_rank_zero, quiet_except_rank_zero, rank
from tymbal.data import open_data
from tymbal.errors import SettingsError, StoreError, TymbalError
from tymbal.evaluation.scoring import figures_of
from tymbal.files import write_json, write_text
from tymbal.finetune import finetune
from tymbal.models.classifier import SpectrogramClassifier
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.models.folder import load_model, open_checkpoint
from tymbal.models.formats import ssast_checkpoint as ssast
from tymbal.objectives.classification import ClassificationObjective
from tymbal.objectives.ssast import TASKS, SSASTObjective
from tymbal.pretrain import pretrain
from tymbal.progress import tell, worded
from tymbal.settings import SIZES, PtSettings, SoundSettings
from tymbal.training.callbacks import Evaluation
from tymbal.training.figures import read_metrics
from tymbal.training.run_folder import RunFolder, RunResult

__all__ = [
    "BEST",
    "Outputs",
    "finetune_as_there",
    "finetuning_row",
    "finish",
    "pretraining_row",
    "run",
    "save_pretrained",
    "write_arguments",
    "write_rows",
]


_BEFORE = {
    "fall_in_warmup": True,
    "mask_padding": False,
    "silence": "leave-out",
    "repeats": "merge",
    "head_epsilon": None,
}
"""What earlier versions did otherwise than the reference."""


@quiet_except_rank_zero()
def run(arguments: Sequence[str]) -> RunResult:
    """Does what `python run.py` with these arguments would.

    Args:
        arguments: The words behind `run.py`.

    Raises:
        SettingsError: A flag is unknown, missing, or cannot be obeyed.
        TymbalError: As `tymbal.pretrain` and `tymbal.finetune`.
    """
    flags = parse(arguments)
    call = translate(flags, audio=_is_audio(flags))
    _continue_as_begun(call)
    for remark in call.remarks if rank() == 0 else ():
        tell(remark, warning=True)
    try:
        with worded(in_flags):
            return finetune_as_there(flags, call) if call.verb == "finetune" else _pretrain(flags, call)
    except TymbalError as error:
        error.what = in_flags(error.what)
        error.advice = None if error.advice is None else in_flags(error.advice)
        raise


def _continue_as_begun(call: Call) -> None:
    """Keeps what an earlier version did otherwise in a run that it began."""
    begun = RunFolder(call.output).begun() or {}
    for name, before in _BEFORE.items() if begun else ():
        if name in call.settings:
            call.settings[name] = begun.get(name, before)


def _is_audio(flags: Flags) -> bool:
    """Whether the training list is of sound files; a missing list is reported later."""
    data = open_data(flags.data_train or "", PtSettings(data_dir=flags.data_dir))
    if not (data.exists and data.has_sound):
        return False
    if flags.dataset == "precomputed":
        raise StoreError(
            "--dataset precomputed, but none of the list's .pt files lies beside it",
            path=data.path,
            advice="Give --data_dir, the folder in which they are.",
        )
    return True


def _pretrain(flags: Flags, call: Call) -> RunResult:

    def number(evaluation: Evaluation) -> int:
        return math.ceil(evaluation.step / int(flags.epoch_iter)) + 1

    row = pretraining_row(flags.task.removeprefix("pretrain_"))
    outputs = Outputs(call.output, row=row, number=number, keep=flags.save_model)
    write_arguments(flags, call)
    result = pretrain(call.source, call.output, on_evaluation=outputs.note, **call.settings)
    on_rank_zero(lambda: finish(outputs, result))
    return result


def write_arguments(flags: Flags, call: Call) -> None:
    """Keeps all flags in the run folder, as `run.py` does."""
    if rank() == 0:
        write_json(call.output / "args.json", flags.values())


def finish(outputs: Outputs, result: RunResult) -> None:
    """Writes what a kill may have left unwritten: the best model and the table, from the finished run."""
    loaded = load_model(result.model)
    save_model_as(result.run / BEST, loaded.module, loaded.objective_state)
    outputs.write_table(read_metrics(result.run / "metrics.jsonl"))


def finetune_as_there(flags: Flags, call: Call) -> RunResult:
    """Fine-tunes, averages and tests as the flags say.

    Args:
        flags: The flags.
        call: The translated call.

    Raises:
        SettingsError: The table or the weights are others than the flags say.
        TymbalError: As `tymbal.finetune`.
    """
    _check_classes(flags)
    _check_weights(flags)
    row = finetuning_row(flags.metrics)
    outputs = Outputs(call.output, row=row, number=_epoch, keep=flags.save_model)
    write_arguments(flags, call)
    result = finetune(call.source, call.output, on_evaluation=outputs.note, **call.settings)
    on_rank_zero(lambda: finish(outputs, result))
    if flags.wa:
        on_rank_zero(lambda: _write_average(result, metrics=flags.metrics))
    if flags.data_eval is not None:
        _test(flags, result, keep=call.settings.get("repeats") == "keep")
    return result


def _epoch(evaluation: Evaluation) -> int:
    # A step mostly reaches a little into the next epoch.
    return max(1, math.floor(evaluation.epoch + 1e-9))


def _check_classes(flags: Flags) -> None:
    if not flags.label_csv:
        return
    classes = len(table_classes(flags.label_csv))
    if "n_class" in flags.given and classes != flags.n_class:
        raise SettingsError(
            f"--n_class is {flags.n_class}, but the table has {classes} classes",
            path=flags.label_csv,
            advice=f"Give --n_class {classes}, or the table that belongs to the lists.",
        )


def _check_weights(flags: Flags) -> None:
    """Refuses patches of another shape than those of the weights to start from, as `run.py` does."""
    if flags.pretrained_mdl_path is None:
        return
    config = open_checkpoint(flags.pretrained_mdl_path).description.encoder
    for name, size in zip(("fshape", "tshape"), config.patch, strict=True):
        given = getattr(flags, name)
        if given is not None and given != size:
            raise SettingsError(
                f"--{name} is {given}, but the weights have patches of {config.patch[0]}x{config.patch[1]}",
                path=flags.pretrained_mdl_path,
                advice=f"Give --fshape {config.patch[0]} --tshape {config.patch[1]}; only strides may differ.",
            )
    width = SIZES.get(flags.model_size, (config.width,))[0]
    if width != config.width:
        tell(
            f"--model_size {flags.model_size} is not that of the weights, which are {config.width} wide: theirs is "
            "taken",
            warning=True,
        )


def _write_average(result: RunResult, *, metrics: str) -> None:
    """Writes the averaged model, and `wa_result.csv`: mAP or acc, mAUC, precision, recall, d', a line each."""
    folder = result.run / "average"
    if not folder.is_dir():
        tell("--wa True: no epoch from --wa_start to --wa_end was evaluated, so nothing is averaged", warning=True)
        return
    loaded = load_model(folder)
    save_model_as(result.run / "models" / "audio_model_wa.pth", loaded.module, loaded.objective_state)
    figures = loaded.description.provenance["metrics"]
    names = ("mAP" if metrics == "mAP" else "top1", "auc", "middle_precision", "middle_recall")
    values = [float(figures.get(f"eval_{name}", math.nan)) for name in names]
    write_rows(result.run / "wa_result.csv", [[value] for value in [*values, d_prime(values[1])]])


@dataclass(frozen=True, kw_only=True)
class _TestSettings(SoundSettings, PtSettings):
    """Where test clips come from, `.pt` files or sound."""

    def __post_init__(self) -> None:
        PtSettings.__post_init__(self)
        SoundSettings.__post_init__(self)


def _test(flags: Flags, result: RunResult, *, keep: bool) -> None:
    """Writes `eval_result.csv`: accuracy and area under the curve, of validation and of test clips, a line each.

    Args:
        flags: The flags.
        result: The fine-tuning.
        keep: Whether silent clips and entries that stand there twice count, as in the lists of the training.
    """
    description = load_model(result.model).description
    settings = _TestSettings(
        silence="keep" if keep else "leave-out",
        repeats="keep" if keep else "merge",
        data_dir=flags.data_eval_dir or flags.data_val_dir or flags.data_dir,
        label_csv=flags.label_csv,
        frames=description.encoder.frames,
        mel_bins=description.features.mel_bins,
        validation=0.0,
    )
    folder = result.run / "test"
    folder.mkdir(exist_ok=True)
    store = open_data(flags.data_eval, settings).spectrograms(folder, description.features)
    figures = figures_of(result.model, store, batch_size=flags.batch_size, device=flags.device)
    tell(f"On the {len(store):,} test clips: accuracy {figures['top1']:.4g}, mAP {figures['mAP']:.4g}")
    known = [result.metrics["eval_top1"], result.metrics.get("eval_auc", math.nan), figures["top1"], figures["auc"]]
    on_rank_zero(lambda: write_rows(result.run / "eval_result.csv", [[value] for value in known]))


BEST = Path("models") / "best_audio_model.pth"
Figures = Mapping[str, Any]
Row = Callable[[Figures, Figures], list[float]]


class Outputs:
    """Writes models and table at every evaluation.

    Args:
        folder: The run folder.
        row: Makes a row of the figures of the training since the last evaluation, and of the evaluation.
        number: The number of the model of an evaluation.
        keep: Whether to keep the model of every evaluation, or only the best.
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
    """Rows [train_acc, train_loss, eval_acc, eval_nce, lr]; as in SSAST nce is mse in joint and mpg, acc in mpg."""
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

    Precision and recall are, as in SSAST, those at the middle of all thresholds. `cum` is the mean of the predictions
    of all epochs so far.
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
