from __future__ import annotations

import pytest

from tymbal.compat.flags import FLAGS, help_text, parse
from tymbal.errors import SettingsError

RUN_PY = """data-train data-val data-eval label-csv n_class dataset dataset_mean dataset_std target_length num_mel_bins
exp-dir lr warmup optim batch-size num-workers n-epochs lr_patience adaptschedule n-print-steps save_model freqm timem
mixup bal fstride tstride fshape tshape model_size task mask_patch cluster_factor epoch_iter pretrained_mdl_path head_lr
noise metrics lrscheduler_start lrscheduler_step lrscheduler_decay wa wa_start wa_end loss data_dir data_val_dir"""


def value_for(name: str) -> str:
    flag = next(flag for flag in FLAGS if flag.name == name)
    return flag.choices[0] if flag.choices else "1"


@pytest.mark.parametrize("mark", ["-", "_"])
@pytest.mark.parametrize("equals", [True, False])
def test_parse__every_flag_of_run_py_with_dashes_and_underscores(mark, equals):
    names = [name.replace("-", "_") for name in RUN_PY.split()]
    words = []
    for name in names:
        flag, value = "--" + name.replace("_", mark), value_for(name)
        words += [f"{flag}={value}"] if equals else [flag, value]
    flags = parse(words)
    assert flags.given == set(names)
    assert flags.data_train == "1"
    assert flags.warmup is True
    assert flags.n_class == 1


def test_parse__short_names_and_words_for_nothing():
    words = "-b 24 -w 8 --bal None --warmup False --noise false --pretrained_mdl_path None --loss CE"
    flags = parse(words.split(" "))
    assert (flags.batch_size, flags.num_workers, flags.bal, flags.warmup, flags.noise) == (24, 8, None, False, False)
    assert (flags.pretrained_mdl_path, flags.loss) == (None, "CE")


def test_parse__defaults_are_those_of_run_py():
    flags = parse([])
    assert flags.given == frozenset()
    found = [
        flags.lr,
        flags.mask_patch,
        flags.model_size,
        flags.task,
        flags.lrscheduler_start,
        flags.wa_end,
        flags.loss,
    ]
    assert found == [1e-3, 400, "base384", "ft_cls", 10, 30, "BCE"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--bogus 1", "--bogus"),
        ("--lr fast", "lr"),
        ("--warmup maybe", "neither True nor False"),
        ("--task pretrain", "invalid choice: 'pretrain'"),
        ("--optim", "expected one argument"),
    ],
)
def test_parse__mistakes_are_said(words, message):
    with pytest.raises(SettingsError, match=message):
        parse(words.split())


def test_help__names_every_flag():
    shown = help_text()
    assert all(f"--{flag.name} " in shown for flag in FLAGS)


@pytest.mark.parametrize("flag", ["--lr", "--learning-rate", "--learning_rate"])
def test_parse__the_learning_rate_has_two_names(flag: str):
    flags = parse(["--task", "ft_cls", flag, "3e-4"])
    assert flags.lr == 3e-4
    assert "lr" in flags.given
