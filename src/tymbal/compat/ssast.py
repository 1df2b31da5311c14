"""`tymbal ssast`: SSAST's `run.py`, its flags and what it leaves behind, on Tymbal's own pretraining and fine-tuning.

    tymbal ssast --task pretrain_joint --dataset precomputed --data-train train.json --data_dir spectrograms …

A script that ran `python run.py …` runs after changing these two words. `--exp-dir` is a run folder of ours, in which
the same command continues after a stop; beside it lies what the scripts around `run.py` read (`compat.outputs`). Lists
of sound files work as well: their spectrograms are computed once and kept in `exp_dir/store`.

github.com/YuanGongND/ssast; Gong, Lai, Chung & Glass 2022.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tymbal.audio.tables import table_classes
from tymbal.compat.flags import Flags, parse
from tymbal.compat.outputs import Outputs, d_prime, finetuning_row, save_model_as, write_rows
from tymbal.compat.translate import Call, translate
from tymbal.compute.processes import on_rank_zero, quiet_except_rank_zero, rank
from tymbal.data import open_data
from tymbal.errors import SettingsError, StoreError
from tymbal.evaluation.scoring import figures_of
from tymbal.files import write_json
from tymbal.finetune import finetune
from tymbal.models.folder import load_model, open_checkpoint
from tymbal.pretrain import pretrain
from tymbal.progress import tell
from tymbal.settings import SIZES, PtSettings
from tymbal.training.callbacks import Evaluation
from tymbal.training.records import read_metrics
from tymbal.training.run_folder import RunResult

if TYPE_CHECKING:
    from tymbal.compat.outputs import Outputs

__all__ = ["finetune_as_there", "finish", "run", "write_arguments"]


@quiet_except_rank_zero()
def run(arguments: Sequence[str]) -> RunResult:
    """Does what `python run.py` with these arguments would.

    Args:
        arguments: What stands behind `run.py`.

    Raises:
        SettingsError: A flag is unknown, missing, or cannot be obeyed.
        TymbalError: As `tymbal.pretrain` and `tymbal.finetune`.
    """
    flags = parse(arguments)
    call = translate(flags, audio=_is_audio(flags))
    for remark in call.remarks if rank() == 0 else ():
        tell(remark, warning=True)
    if call.verb == "finetune":
        return finetune_as_there(flags, call)
    return _pretrain(flags, call)


def _is_audio(flags: Flags) -> bool:
    """Whether the training list is of sound files; where it is missing, that is said later."""
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
    from tymbal.compat.outputs import Outputs, pretraining_row

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
    from tymbal.compat.outputs import BEST, save_model_as

    loaded = load_model(result.model)
    save_model_as(result.run / BEST, loaded.module, loaded.objective_state)
    outputs.write_table(read_metrics(result.run / "metrics.jsonl"))


def finetune_as_there(flags: Flags, call: Call) -> RunResult:
    """Fine-tunes, averages and tests as the flags say.

    Args:
        flags: The flags.
        call: What they mean.

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
        _test(flags, result)
    return result


def _epoch(evaluation: Evaluation) -> int:
    # A step mostly reaches a little into the next epoch.
    return max(1, math.floor(evaluation.epoch + 1e-9))


def _check_classes(flags: Flags) -> None:
    if not flags.label_csv:
        return
    found = len(table_classes(flags.label_csv))
    if "n_class" in flags.given and found != flags.n_class:
        raise SettingsError(
            f"--n_class is {flags.n_class}, but the table has {found} classes",
            path=flags.label_csv,
            advice=f"Give --n_class {found}, or the table that belongs to the lists.",
        )


def _check_weights(flags: Flags) -> None:
    """Refuses patches of another shape than those of the weights to start from, as `run.py` does."""
    if flags.pretrained_mdl_path is None:
        return
    config = open_checkpoint(flags.pretrained_mdl_path).description.encoder
    for name, found in zip(("fshape", "tshape"), config.patch, strict=True):
        given = getattr(flags, name)
        if given is not None and given != found:
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


def _test(flags: Flags, result: RunResult) -> None:
    """Writes `eval_result.csv`: accuracy and area under the curve, of validation and of test clips, a line each."""
    description = load_model(result.model).description
    settings = PtSettings(
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
    known = [result.metrics["eval_top1"], result.metrics["eval_auc"], figures["top1"], figures["auc"]]
    on_rank_zero(lambda: write_rows(result.run / "eval_result.csv", [[value] for value in known]))
