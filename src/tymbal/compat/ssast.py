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
from pathlib import Path
from typing import TYPE_CHECKING

import tymbal
from tymbal.compat.flags import Flags, parse
from tymbal.compat.translate import Call, translate
from tymbal.errors import StoreError
from tymbal.files import write_json
from tymbal.progress import tell
from tymbal.training.callbacks import Evaluation, MetricsFile
from tymbal.training.folder import RunResult
from tymbal.training.processes import first_speaks, on_first, rank

if TYPE_CHECKING:
    from tymbal.compat.outputs import Outputs

__all__ = ["finish", "run", "write_arguments"]


@first_speaks()
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
        from tymbal.compat.finetuning import finetune_as_there

        return finetune_as_there(flags, call)
    return _pretrain(flags, call)


def _is_audio(flags: Flags) -> bool:
    """Whether the training list is of sound files; where it is missing, that is said later."""
    from tymbal.store.pt_list import holds_pt

    source = Path(flags.data_train or "")
    if flags.data_dir is not None or not source.exists() or (source / "store.json").is_file():
        return False
    if holds_pt(source):
        return False
    if flags.dataset == "precomputed":
        raise StoreError(
            "--dataset precomputed, but none of the list's .pt files lies beside it",
            path=source,
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
    result = tymbal.pretrain(call.source, call.output, on_evaluation=outputs.note, **call.settings)
    on_first(lambda: finish(outputs, result))
    return result


def write_arguments(flags: Flags, call: Call) -> None:
    """Keeps all flags in the run folder, as `run.py` does."""
    if rank() == 0:
        write_json(call.output / "args.json", flags.values())


def finish(outputs: Outputs, result: RunResult) -> None:
    """Writes what a kill may have left unwritten: the best model and the table, from the finished run."""
    from tymbal.compat.outputs import BEST, save_model_as

    loaded = tymbal.load_model(result.model)
    save_model_as(result.run / BEST, loaded.module, loaded.objective_state)
    outputs.write_table(MetricsFile.read(result.run / "metrics.jsonl"))
