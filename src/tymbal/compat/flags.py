"""The flags of SSAST's `run.py`, as people have them in their scripts.

Only this command line of Tymbal is read with argparse: SSAST's parser was argparse, and a script written for it has to
work here, with abbreviated flags, `-b 12`, dashes or underscores, and `True`, `False` and `None` as words.
`tymbal.compat.translate` gives the flags their meaning.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from tymbal.errors import SettingsError

__all__ = ["FINETUNING", "FLAGS", "PRETRAINING", "Flag", "Flags", "help_text", "parse"]

PRETRAINING = ("pretrain_joint", "pretrain_mpc", "pretrain_mpg")
FINETUNING = ("ft_avgtok", "ft_cls")


def _switch(text: str) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False, "none": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return known[text.lower()]


def _optional(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        return None if text.lower() in ("none", "") else kind(text)

    read.__name__ = kind.__name__  # argparse names it where a value is wrong
    return read


_TEXT, _INT, _FLOAT = _optional(str), _optional(int), _optional(float)


@dataclass(frozen=True)
class Flag:
    """A flag of `run.py`.

    Attributes:
        name: Its name, with underscores.
        help: Its effect in Tymbal.
        kind: Reads its value.
        default: Its value if it is not given, as in `run.py`.
        short: Its short name.
        also: Another long name of it.
        choices: Values that it may have.
    """

    name: str
    help: str
    kind: Callable[[str], Any] = _TEXT
    default: Any = None
    short: str | None = None
    also: str | None = None
    choices: tuple[str, ...] | None = None


_THEIRS = (
    Flag("data_train", "list of the clips to learn from (JSON), or a store, or a folder"),
    Flag("data_val", "list of the clips to validate on; without it a tenth of the training clips is drawn"),
    Flag("data_eval", "list of clips for a last test, in fine-tuning"),
    Flag("label_csv", "table of the labels (index,mid,display_name), for fine-tuning"),
    Flag("n_class", "number of classes; has to be that of the table", _INT, 527),
    Flag("dataset", "name of the data set; 'precomputed' insists on .pt files"),
    Flag("dataset_mean", "mean of the log-mel values; computed where it is not given", _FLOAT),
    Flag("dataset_std", "their standard deviation; computed where it is not given", _FLOAT),
    Flag("target_length", "frames of a spectrogram: shorter ones are padded, longer ones cut", _INT),
    Flag("num_mel_bins", "mel bins of a spectrogram", _INT, 128),
    Flag("exp_dir", "folder of the run"),
    Flag("lr", "learning rate", _FLOAT, 1e-3, also="learning_rate"),
    Flag("warmup", "warm up the learning rate in 1,000 steps; True or False", _switch, default=True),
    Flag("optim", "optimizer", _TEXT, "adam", choices=("sgd", "adam")),
    Flag("batch_size", "clips a batch and device", _INT, 12, "b"),
    Flag("num_workers", "processes that load batches; without it none, which is the fastest for most", _INT, None, "w"),
    Flag("n_epochs", "passes over the training clips", _INT, 1),
    Flag("lr_patience", "evaluations without progress after which the learning rate is halved", _INT, 1),
    Flag(
        "adaptschedule",
        "in fine-tuning, halve the rate by --lr_patience, not by epochs; True or False",
        _switch,
        default=False,
    ),
    Flag("n_print_steps", "steps between logged figures", _INT, 100),
    Flag(
        "save_model",
        "keep the model of every evaluation as models/audio_model.N.pth; True or False",
        _switch,
        default=True,
    ),
    Flag("freqm", "widest frequency mask, in fine-tuning", _INT, 0),
    Flag("timem", "widest time mask, in fine-tuning", _INT, 0),
    Flag("mixup", "fraction of the clips that are mixed with another, in fine-tuning", _FLOAT, 0.0),
    Flag("bal", "draw clips of rare classes more often, in fine-tuning; bal or none", choices=("bal", "none")),
    Flag("fstride", "mel bins from one patch to the next", _INT),
    Flag("tstride", "frames from one patch to the next", _INT),
    Flag("fshape", "mel bins of a patch", _INT),
    Flag("tshape", "frames of a patch", _INT),
    Flag("model_size", "size of the encoder: tiny, small or base", _TEXT, "base384"),
    Flag("task", "what is done", _TEXT, "ft_cls", choices=(*PRETRAINING, *FINETUNING)),
    Flag("mask_patch", "masked patches of a clip, in pretraining", _INT, 400),
    Flag("cluster_factor", "N draws clusters of 3 to N + 2 patches a side", _INT, 3),
    Flag("epoch_iter", "steps between evaluations, in pretraining", _INT, 2000),
    Flag("pretrained_mdl_path", "weights to fine-tune: a .pth file, or a run or model of ours"),
    Flag("head_lr", "learning rate of the head as a multiple, in fine-tuning", _FLOAT, 1.0),
    Flag("noise", "add noise and shift in time, in fine-tuning; True or False", _switch, default=False),
    Flag("metrics", "what tells the best classifier: mAP or acc", _TEXT, "mAP", choices=("mAP", "acc")),
    Flag("lrscheduler_start", "epochs after which the learning rate falls first, in fine-tuning", _INT, 10),
    Flag("lrscheduler_step", "epochs between its falls", _INT, 5),
    Flag("lrscheduler_decay", "what it is multiplied by", _FLOAT, 0.5),
    Flag("wa", "average the weights of several epochs, in fine-tuning; True or False", _switch, default=False),
    Flag("wa_start", "first of them", _INT, 16),
    Flag("wa_end", "last of them", _INT, 30),
    Flag("loss", "loss of fine-tuning", _TEXT, "BCE", choices=("BCE", "CE")),
    Flag("data_dir", "folder of the training list's .pt files; looked for beside the list where it is not given"),
    Flag("data_val_dir", "folder of the validation list's .pt files"),
)
_OURS = (
    Flag("data_eval_dir", "folder of the test list's .pt files"),
    Flag("mask_ratio", "masked fraction of the patches, instead of --mask_patch", _FLOAT),
    Flag(
        "encode",
        "visible: only visible patches are encoded, several times faster, another model",
        _TEXT,
        "all",
        choices=("all", "visible"),
    ),
    Flag("accumulate", "batches whose gradients are added up before a step", _INT, 1),
    Flag("gradient_checkpointing", "less memory, more time; True or False", _switch, default=False),
    Flag("device", "cuda-or-cpu, cuda, cpu, mps or auto", _TEXT, "cuda-or-cpu"),
    Flag("precision", "auto, float32, bf16 or fp16", _TEXT, "auto"),
    Flag("seed", "seed of weights, order, masks and augmentation", _INT, 42),
)
FLAGS = (*_THEIRS, *_OURS)


class Flags(argparse.Namespace):
    """Values by name; `given` are the names of those that stand on the command line."""

    given: frozenset[str]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"there is no flag {name}")

    def values(self) -> dict[str, Any]:
        """All values by name, defaults included."""
        return {flag.name: getattr(self, flag.name) for flag in FLAGS}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(message, advice="All flags: tymbal ssast --help")


def _parser() -> _Parser:
    parser = _Parser(
        prog="tymbal ssast",
        usage="tymbal ssast --task TASK --data-train LIST --exp-dir FOLDER [flags of run.py]",
        description="SSAST's run.py, by Tymbal. Every flag may be written with dashes or with underscores.",
        add_help=False,
    )
    for title, flags in (("flags of run.py", _THEIRS), ("flags that it lacks", _OURS)):
        group = parser.add_argument_group(title)
        for flag in flags:
            names = [f"--{flag.name}", *([f"--{flag.also}"] if flag.also else [])]
            names += [f"-{flag.short}"] if flag.short else []
            default = "" if flag.default in (None, "") else f" (default: {flag.default})"
            choices = None if flag.choices is None else [*flag.choices, *([None] if flag.default is None else [])]
            metavar = "{" + ",".join(flag.choices) + "}" if flag.choices else flag.name.rpartition("_")[2].upper()
            group.add_argument(
                *names,
                type=flag.kind,
                choices=choices,
                metavar=metavar,
                default=argparse.SUPPRESS,
                help=(flag.help + default).replace("%", "%%"),
            )
    return parser


def parse(arguments: Sequence[str]) -> Flags:
    """Reads a command line of `run.py`.

    Args:
        arguments: The words behind `python run.py`.

    Raises:
        SettingsError: A flag is unknown or lacks its value, or a value is not possible.
    """
    written = [_with_underscores(word) for word in arguments]
    values_given = vars(_parser().parse_args(written))
    values = {flag.name: values_given.get(flag.name, flag.default) for flag in FLAGS}
    return Flags(**values, given=frozenset(values_given))


def help_text() -> str:
    """The text of `tymbal ssast --help`."""
    return _parser().format_help()


def _with_underscores(word: str) -> str:
    """`--data-train=x-y` as `--data_train=x-y`; what is no flag stays as it is."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"
