from __future__ import annotations

from typing import Any

import pytest

from tymbal.compat.flags import parse
from tymbal.compat.translate import in_flags, translate
from tymbal.config import from_mapping
from tymbal.errors import SettingsError
from tymbal.objectives.ssast import SSASTSettings
from tymbal.settings import FinetuneSettings

MASK_PATCH = """--dataset asli --data-train train.json --data-val val.json --exp-dir exp --label-csv labels.csv
--lr 1e-4 --n-epochs 10 --batch-size 24 --save_model False --freqm 0 --timem 0 --mixup 0 --bal none
--tstride 16 --fstride 16 --fshape 16 --tshape 16 --dataset_mean -4.2677393 --dataset_std 4.5689974
--target_length 1024 --num_mel_bins 128 --model_size base --mask_patch 400 --n-print-steps 100
--task pretrain_joint --lr_patience 2 --epoch_iter 4000"""
AUDIOSET = """--dataset audioset --data-train train.json --data-val val.json --exp-dir exp --label-csv labels.csv
--n_class 527 --lr 5e-5 --n-epochs 25 --batch-size 12 --save_model False --freqm 48 --timem 192 --mixup 0.5
--bal bal --tstride 10 --fstride 10 --fshape 16 --tshape 16 --warmup False --task ft_avgtok --model_size base
--adaptschedule False --pretrained_mdl_path best.pth --dataset_mean -4.2677393 --dataset_std 4.5689974
--target_length 1024 --num_mel_bins 128 --noise False --head_lr 1 --metrics mAP --wa True --wa_start 6
--wa_end 25 --loss BCE"""


def call(words: str, more: str = "", *, audio: bool = False):
    return translate(parse([*words.split(), *more.split()]), audio=audio)


def settings(cls: type[Any], words: str, more: str = "") -> dict[str, Any]:
    found = call(words, more).settings
    from_mapping(cls, found)  # every name is a setting, every value possible
    return found


def test_translate__run_mask_patch():
    found = settings(SSASTSettings, MASK_PATCH)
    wanted = {
        "objective": "joint",
        "size": "base",
        "patch": "16x16",
        "mask_count": 400,
        "mask_padding": True,
        "fall_in_warmup": False,
        "cluster_max": 5,
        "normalize_targets": False,
        "optimizer": "adam",
        "adam_beta1": 0.95,
        "adam_beta2": 0.999,
        "weight_decay": 5e-7,
        "clip_norm": 0.0,
        "learning_rate": 1e-4,
        "warmup": 1000,
        "schedule": "plateau",
        "plateau_patience": 2,
        "eval_steps": 4000,
        "epochs": 10,
        "batch_size": 24,
        "padding": "zeros",
        "data_val": "val.json",
        "frames": 1024,
    }
    assert {name: found[name] for name in wanted} == wanted
    assert "label_csv" not in found  # labels tell pretraining nothing
    assert [remark.split(":")[0] for remark in call(MASK_PATCH).remarks] == ["--save_model False"]


def test_translate__run_as20k():
    found = settings(FinetuneSettings, AUDIOSET)
    wanted = {
        "from_": "best.pth",
        "stride": "10x10",
        "pooling": "mean",
        "loss": "bce",
        "best_by": "mAP",
        "frequency_mask": 48,
        "time_mask": 192,
        "mixup": 0.5,
        "balance": True,
        "warmup": 0,
        "schedule": "step",
        "step_start": 10,
        "step_every": 5,
        "step_factor": 0.5,
        "average_from": 6,
        "average_to": 25,
        "classes": "table",
        "ensemble": True,
    }
    assert {name: found[name] for name in wanted} == wanted


def test_translate__flags_that_run_py_ignores_work_and_are_said():
    more = "--optim sgd --warmup False --cluster_factor 6 --pretrained_mdl_path x.pth --save_model True"
    found = call(MASK_PATCH, more)
    chosen = [found.settings[name] for name in ("optimizer", "adam_beta1", "warmup", "cluster_max")]
    assert chosen == ["sgd", 0.9, 0, 8]
    assert "from_" not in found.settings
    said = [remark.split(":")[0].split(" is ")[0] for remark in found.remarks]
    assert said == ["--optim sgd", "--pretrained_mdl_path", "--warmup False", "--cluster_factor 6"]


def test_translate__frame_patches_noise_and_plateau_in_finetuning():
    more = "--fshape 128 --tshape 2 --fstride 128 --tstride 1 --task ft_cls --noise True --adaptschedule True --loss CE"
    found = settings(FinetuneSettings, AUDIOSET, more + " --metrics acc --wa False --bal none")
    names = ("patch", "stride", "pooling", "noise", "roll", "schedule", "loss", "best_by", "balance")
    assert [found[name] for name in names] == ["128x2", "128x1", "cls", 0.1, 10, "plateau", "ce", "top1", False]
    assert "average_from" not in found


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            "--target_length 256",
            r"--mask_patch 400 does not fit: a clip of 256 frames has 128.*--mask_patch 96 or --mask",
        ),
        ("--model_size base384", "base384, which is the default of run.py and fails there"),
        ("--model_size huge", "huge, which does not exist"),
        ("--fstride 10", "overlap"),
        ("--mixup 0.5 --bal bal", "--mixup is for fine-tuning.*--mixup, --bal"),
        ("--freqm 48", "--freqm is for fine-tuning"),
        ("--exp-dir None", "--exp_dir is missing"),
        ("--cluster_factor 0", "--cluster_factor is 0"),
    ],
)
def test_translate__what_cannot_be_is_refused(more, message):
    with pytest.raises(SettingsError, match=f"(?s){message}"):
        call(MASK_PATCH, more)


def test_translate__a_mask_that_was_not_given_is_named_as_the_default():
    words = MASK_PATCH.replace("--mask_patch 400", "") + " --target_length 256"
    with pytest.raises(SettingsError, match=r"as run\.py has it where it is not given, does not fit"):
        call(words)
    by_ratio = call(words, "--mask_ratio 0.6").settings
    assert by_ratio["mask_ratio"] == 0.6
    assert "mask_padding" not in by_ratio


def test_translate__sound_files_have_no_folders_of_pt_files():
    assert "data_dir" not in call(MASK_PATCH, audio=True).settings
    assert call(MASK_PATCH, "--data_dir here").settings["data_dir"] == "here"


def test_translate__several_processes_have_no_ensemble(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = call(AUDIOSET)
    assert found.settings["ensemble"] is False
    assert "cum_" in found.remarks[-1]


def test_translate__visible_says_what_their_files_cannot_hold():
    found = call(MASK_PATCH, "--encode visible")
    assert found.settings["encode"] == "visible"
    assert found.remarks[-1].startswith("--encode visible: ")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            "Begin again with a lower --learning-rate or a longer --warmup.",
            "Begin again with a lower --lr or a longer --warmup.",
        ),
        ("frames is 0, which is not 1 or more", "--target_length is 0, which is not 1 or more"),
        ("Set frames to 1 or more.", "Set --target_length to 1 or more."),
        ("a clip has 64 frames, and the weights have 128", "a clip has 64 frames, and the weights have 128"),
        ("mel_bins says how many bins", "--num_mel_bins says how many bins"),
        ("validation=0.1 has no effect: other files are", "--data-val=0.1 has no effect: other files are"),
        ("data_val_dir has no effect with data_val=None", "--data_val_dir has no effect with --data_val=None"),
        ("exp/train/learning_rate.csv: there is no such file", "exp/train/learning_rate.csv: there is no such file"),
        ("eval_steps is 3", "--epoch_iter is 3"),
    ],
)
def test_in_flags__settings_have_the_names_of_flags_and_words_stay(ours, theirs):
    assert in_flags(ours) == theirs
