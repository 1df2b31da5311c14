"""From the flags of SSAST's `run.py` to the settings of `tymbal.pretrain` and `tymbal.finetune`.

Nothing is trained differently for it: what a flag asks for is a setting of Tymbal. What cannot be had, or would not do
what its user expects, is refused with the reason; differences from `run.py` are reported once.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tymbal.compat.flags import FLAGS, PRETRAINING, Flags
from tymbal.compute.processes import processes
from tymbal.errors import SettingsError
from tymbal.settings import SIZES

__all__ = ["Call", "in_flags", "translate"]

_WARMUP = 1000
_FINETUNING_ONLY = {
    "freqm": 0,
    "timem": 0,
    "mixup": 0.0,
    "noise": False,
    "wa": False,
    "adaptschedule": False,
    "data_eval": None,
}
_BEST_BY = {"mAP": "mAP", "acc": "top1"}


@dataclass
class Call:
    """A call of a verb that does what the flags say, and remarks to print before.

    Attributes:
        verb: `pretrain` or `finetune`.
        source: The training list, or what stands in its place.
        output: The run folder.
        settings: Settings of the verb.
        remarks: Differences from `run.py` that a user would not expect, a sentence each.
    """

    verb: str
    source: str
    output: Path
    settings: dict[str, Any]
    remarks: list[str] = field(default_factory=list)


def translate(flags: Flags, *, audio: bool) -> Call:
    """Translates a command line.

    Args:
        flags: The flags.
        audio: Whether the lists are of sound files rather than of `.pt` files.

    Raises:
        SettingsError: A flag is missing, or cannot be obeyed.
    """
    _require(flags)
    call = Call("", flags.data_train, Path(flags.exp_dir), {})
    call.settings |= _training(flags, call.remarks) | _data(flags, call.remarks, audio=audio)
    if flags.task in PRETRAINING:
        call.verb = "pretrain"
        call.settings |= _pretraining(flags, call.remarks)
    else:
        call.verb = "finetune"
        call.settings |= _finetuning(flags, call.remarks, audio=audio)
    return call


def in_flags(text: str) -> str:
    """A message in the flags of `run.py`: `--lr` for `--learning-rate`, `--target_length is` for `frames is`."""
    for ours, theirs in _PHRASES.items():
        text = text.replace(ours, theirs)
    return _NAMED.sub(lambda match: f"--{_FLAGS[match[0].removeprefix('--').replace('-', '_')]}", text)


_PHRASES = {
    "; or do without schedule plateau": "",
    "schedule plateau needs": "the learning rate falls by validation (--lr_patience, --adaptschedule), which needs",
    "a store with a validation split": "--data-val with its --data_val_dir",
    "do without average_from": "give --wa False",
    "; --patience ends such a run": "",
    ", an --ema nearer to 1, or --lora 8": "",
    "set balance, or leave it out": "give --bal bal",
}
_FLAGS = {
    **{flag.name: flag.name for flag in FLAGS},
    "accumulate": "accumulate",
    "average_from": "wa_start",
    "average_to": "wa_end",
    "balance": "bal",
    "best_by": "metrics",
    "cluster_max": "cluster_factor",
    "dataset_mean": "dataset_mean",
    "epochs": "n-epochs",
    "eval_steps": "epoch_iter",
    "frames": "target_length",
    "frequency_mask": "freqm",
    "from": "pretrained_mdl_path",
    "head_lr_factor": "head_lr",
    "learning_rate": "lr",
    "log_every": "n-print-steps",
    "mask_count": "mask_patch",
    "mel_bins": "num_mel_bins",
    "objective": "task",
    "output": "exp-dir",
    "patch": "fshape",
    "plateau_patience": "lr_patience",
    "schedule": "adaptschedule",
    "size": "model_size",
    "step_every": "lrscheduler_step",
    "step_factor": "lrscheduler_decay",
    "step_start": "lrscheduler_start",
    "stride": "fstride",
    "time_mask": "timem",
    "validation": "data-val",
    "workers": "num_workers",
}
"""The flag of a setting; `--patch` and `--stride` stand for two of them each."""
_WORDS = "|".join(re.escape(name).replace("_", "[_-]") for name in sorted(_FLAGS, key=len, reverse=True))
_NAMED = re.compile(
    # As a flag; as a name that is no word of English; or where a message names what is wrong, or to be set.
    rf"(?<![\w/.-])(?:--(?:{_WORDS})|(?:(?=[a-z]+_)(?:{_WORDS}))|(?:(?:{_WORDS}))(?==)|(?<=Set )(?:{_WORDS})|"
    rf"^(?:{_WORDS})(?= is ))(?![\w-])"
)


def _require(flags: Flags) -> None:
    for name in ("data_train", "exp_dir"):
        if not getattr(flags, name):
            raise SettingsError(f"--{name} is missing", advice="All flags: tymbal ssast --help")
    needs_size = flags.task in PRETRAINING or flags.pretrained_mdl_path is None
    if needs_size and flags.model_size not in SIZES:
        why = (
            "which is the default of run.py and fails there"
            if flags.model_size == "base384"
            else "which does not exist"
        )
        raise SettingsError(
            f"--model_size is {flags.model_size}, {why}", advice=f"Give --model_size {', '.join(SIZES)}."
        )
    for name in ("fshape", "tshape", "fstride", "tstride"):
        value = getattr(flags, name)
        if value is not None and value < 1:
            raise SettingsError(f"--{name} is {value}, which is no size", advice=f"Give --{name} 1 or more.")


def _training(flags: Flags, remarks: list[str]) -> dict[str, Any]:
    """Settings common to pretraining and fine-tuning: Adam with an L2 penalty, as in `run.py`."""
    adam = {"optimizer": "adam", "adam_beta1": 0.95, "adam_beta2": 0.999}
    if flags.optim == "sgd":
        remarks.append("--optim sgd: with a momentum of 0.9; run.py ignores the flag and uses Adam")
    return {
        **({"optimizer": "sgd", "adam_beta1": 0.9} if flags.optim == "sgd" else adam),
        "weight_decay": 5e-7,
        "clip_norm": 0.0,
        "epochs": flags.n_epochs,
        "batch_size": flags.batch_size,
        "accumulate": flags.accumulate,
        "learning_rate": flags.lr,
        "warmup": _WARMUP if flags.warmup else 0,
        "fall_in_warmup": False,
        "log_every": flags.n_print_steps,
        "workers": flags.num_workers or 0,
        "gradient_checkpointing": flags.gradient_checkpointing,
        "device": flags.device,
        "precision": flags.precision,
        "seed": flags.seed,
    }


def _data(flags: Flags, remarks: list[str], *, audio: bool) -> dict[str, Any]:
    if flags.data_val is None:
        remarks.append("--data-val is not given: a tenth of the training clips is drawn to validate on")
    if flags.dataset_mean is None or flags.dataset_std is None:
        remarks.append("--dataset_mean or --dataset_std is not given, and will be that of the data or of the weights")
    folders = {"data_dir": flags.data_dir, "data_val_dir": flags.data_val_dir}
    return {
        **({"silence": "keep", "repeats": "keep"} if audio else folders),
        "data_val": flags.data_val,
        "frames": flags.target_length,
        "mel_bins": flags.num_mel_bins,
        "dataset_mean": flags.dataset_mean,
        "dataset_std": flags.dataset_std,
        # As in SSAST, louder than silence: weights are exchanged between the two.
        "padding": "zeros",
        "normalize": "dataset",
    }


def _pretraining(flags: Flags, remarks: list[str]) -> dict[str, Any]:
    _refuse_in_pretraining(flags)
    patch = _patch(flags)
    stride = (flags.fstride or patch[0], flags.tstride or patch[1])
    if stride != patch:
        raise SettingsError(
            f"--fstride {stride[0]} --tstride {stride[1]} make patches of {patch[0]}x{patch[1]} overlap",
            advice="In pretraining a masked patch would be seen in its neighbours: give strides equal to the shape. "
            "In fine-tuning they may overlap.",
        )
    if flags.pretrained_mdl_path is not None:
        remarks.append("--pretrained_mdl_path is not used in pretraining, as in run.py: it starts from random weights")
    if not flags.warmup:
        remarks.append("--warmup False: there is no warm-up; run.py pretrains with one in any case")
    if not flags.save_model:
        remarks.append("--save_model False: only models/best_audio_model.pth is written; run.py writes all in any case")
    if flags.cluster_factor < 1:
        raise SettingsError(f"--cluster_factor is {flags.cluster_factor}", advice="Give 1 or more; 3 as in the paper.")
    if "cluster_factor" in flags.given and flags.cluster_factor != 3:
        remarks.append(
            f"--cluster_factor {flags.cluster_factor}: clusters of 3 to {flags.cluster_factor + 2} patches a side; "
            "run.py ignores the flag and draws 3 to 5"
        )
    if flags.encode == "visible":
        remarks.append("--encode visible: the models/*.pth have heads that are not trained; ours have all")
    _check_masks(flags, patch)
    # As many patches as are asked for, padding among them, as there; a ratio is ours, and of the sound.
    exactly = {"mask_count": flags.mask_patch, "mask_padding": True}
    masked = exactly if flags.mask_ratio is None else {"mask_ratio": flags.mask_ratio}
    return {
        "objective": flags.task.removeprefix("pretrain_"),
        "size": flags.model_size,
        "patch": f"{patch[0]}x{patch[1]}",
        "encode": flags.encode,
        "normalize_targets": False,
        **masked,
        "cluster_max": flags.cluster_factor + 2,
        "schedule": "plateau",
        "plateau_patience": flags.lr_patience,
        "eval_steps": flags.epoch_iter,
    }


def _refuse_in_pretraining(flags: Flags) -> None:
    names = [name for name, none in _FINETUNING_ONLY.items() if getattr(flags, name) != none]
    if flags.bal == "bal":
        names.append("bal")
    if names:
        raise SettingsError(
            f"--{names[0]} is for fine-tuning",
            advice="Pretraining takes every clip once an epoch and hides parts of it as its task: leave out "
            + ", ".join(f"--{name}" for name in names)
            + ".",
        )


def _check_masks(flags: Flags, patch: tuple[int, int]) -> None:
    """Refuses more masked patches than a clip has; `run.py` would never end."""
    if flags.target_length is None or flags.mask_ratio is not None:
        return
    patches = (flags.num_mel_bins // patch[0]) * (flags.target_length // patch[1])
    if patches < 2:
        raise SettingsError(
            f"a clip of {flags.target_length} frames x {flags.num_mel_bins} mel bins has {patches} patches of "
            f"{patch[0]}x{patch[1]}",
            advice="Give a longer --target_length or smaller patches.",
        )
    if not 1 <= flags.mask_patch < patches:
        flag = f"--mask_patch {flags.mask_patch}"
        if "mask_patch" not in flags.given:
            flag += ", as run.py has it where it is not given,"
        raise SettingsError(
            f"{flag} does not fit: a clip of {flags.target_length} frames has {patches} patches, "
            "of which one or more must stay visible",
            advice=f"Give --mask_patch {max(1, round(0.75 * patches))} or --mask_ratio 0.75, or fewer.",
        )


def _finetuning(flags: Flags, remarks: list[str], *, audio: bool) -> dict[str, Any]:
    from tymbal.models.formats.ssast_checkpoint import HEAD_EPS

    patch = _patch(flags)
    if flags.pretrained_mdl_path is None:
        remarks.append("--pretrained_mdl_path is not given: it starts from random weights")
    if flags.mixup and not audio:
        remarks.append(
            f"--mixup {flags.mixup:g}: the energies of the spectrograms are mixed, which is what mixing waveforms "
            "comes to but for their interference"
        )
    if processes() > 1:
        remarks.append("With several processes the cum_ columns of result.csv, and precision and recall, stay empty")
    table = {"label_csv": flags.label_csv, "classes": "table"} if flags.label_csv else {}
    if not table:
        remarks.append("--label-csv is not given: the classes are the labels of the training clips, in their order")
    by_plateau = {"schedule": "plateau", "plateau_patience": flags.lr_patience}
    by_epochs = {
        "schedule": "step",
        "step_start": flags.lrscheduler_start,
        "step_every": flags.lrscheduler_step,
        "step_factor": flags.lrscheduler_decay,
    }
    return {
        "recipe": "none",
        "from_": flags.pretrained_mdl_path,
        "size": flags.model_size if flags.model_size in SIZES else "base",
        "patch": f"{patch[0]}x{patch[1]}",
        "stride": f"{flags.fstride or patch[0]}x{flags.tstride or patch[1]}",
        "pooling": {"ft_avgtok": "mean", "ft_cls": "cls"}[flags.task],
        "skip_padding": False,
        "head_epsilon": HEAD_EPS,
        "loss": flags.loss.lower(),
        "best_by": _BEST_BY[flags.metrics],
        "head_lr_factor": flags.head_lr,
        "frequency_mask": flags.freqm,
        "time_mask": flags.timem,
        "mixup": flags.mixup,
        "mixup_of": "waveform" if audio else "energy",
        "noise": 0.1 if flags.noise else 0.0,
        "roll": 10 if flags.noise else 0,
        "balance": flags.bal == "bal",
        "weights_csv": _weights_csv(flags) if flags.bal == "bal" else None,
        "ensemble": processes() == 1,
        **table,
        **(by_plateau if flags.adaptschedule else by_epochs),
        **({"average_from": flags.wa_start, "average_to": flags.wa_end} if flags.wa else {}),
    }


def _weights_csv(flags: Flags) -> str | None:
    """The weights beside the training list, where their file is."""
    path = os.path.splitext(flags.data_train)[0] + "_weight.csv"  # noqa: PTH122 - as in run.py
    return path if Path(path).is_file() else None


def _patch(flags: Flags) -> tuple[int, int]:
    return flags.fshape or 16, flags.tshape or 16
