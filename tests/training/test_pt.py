"""Training from `.pt` files as they are: what is left out, and a run that goes on although files are gone."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from digits import digit_files, spectrogram, write_digits, write_label_csv, write_list
from tones import tone_folder
from tymbal import config
from tymbal.errors import SettingsError, StoreError
from tymbal.features.kaldi import LOG_FLOOR
from tymbal.finetune import finetune
from tymbal.models.folder import load_model
from tymbal.pretrain import pretrain
from tymbal.probe import probe

TINY = {
    "width": 16,
    "depth": 1,
    "heads": 2,
    "patch": "16x16",
    "batch_size": 8,
    "max_steps": 6,
    "eval_every": 0.5,
    "learning_rate": 3e-3,
    "device": "cpu",
    "precision": "float32",
    "report_to": (),
}


@pytest.fixture
def lists(shared: Path, tmp_path: Path) -> Path:
    """train.json and val.json with folders of their own, three files spoiled."""
    files = digit_files(shared)
    train, validation = files[:32], files[32:]
    write_digits(tmp_path / "pt" / "train", train)
    write_digits(tmp_path / "pt" / "val", validation)
    write_list(tmp_path / "train.json", train)
    write_list(tmp_path / "val.json", validation)
    (tmp_path / "pt" / "train" / "0_george_1.pt").unlink()
    (tmp_path / "pt" / "train" / "1_george_1.pt").write_bytes(b"damaged")
    torch.save(torch.zeros(30, 64), tmp_path / "pt" / "val" / "9_george_1.pt")
    return tmp_path


def data(lists: Path, **more: object) -> dict[str, object]:
    folders = {"data_dir": str(lists / "pt" / "train"), "data_val_dir": str(lists / "pt" / "val")}
    return {**folders, "data_val": str(lists / "val.json"), "frames": 64, **more}


def left_out(run: Path) -> dict[str, str]:
    with (run / "failures.csv").open(newline="") as file:
        return {Path(row["file"]).stem: row["reason"].partition(":")[0] for row in csv.DictReader(file)}


def test_pretrain__from_a_list_names_what_it_left_out(lists, capsys):
    run = lists / "run"
    result = pretrain(
        lists / "train.json", run, **TINY, **data(lists, padding="zeros", dataset_mean=-7.0, dataset_std=4.0)
    )
    err = capsys.readouterr().err
    assert "3 of 40 .pt files are left out" in err
    assert "30 clips to learn from, 7 to validate on" in err
    assert left_out(run) == {"0_george_1": "missing", "1_george_1": "unreadable", "9_george_1": "wrong shape"}
    assert (result.steps, result.ended) == (6, "steps")
    description = load_model(run).description
    assert (description.mean, description.std, description.padding) == (-7.0, 4.0, 0.0)
    assert (description.encoder.frames, description.features.mel_bins) == (64, 128)
    recorded = config.read_run_yaml(run)
    assert recorded.settings["data_val_dir"] == str(lists / "pt" / "val")


def test_pretrain__goes_on_with_its_clips_although_files_are_gone(lists, shared, capsys):
    run, settings = lists / "run", {**TINY, **data(lists)}
    stopped = pretrain(lists / "train.json", run, **settings, max_minutes=1e-9)
    assert stopped.steps < 6
    for stem in ("2_george_0", "3_george_0"):
        (lists / "pt" / "train" / f"{stem}.pt").unlink()
    (lists / "pt" / "val" / "8_george_0.pt").write_bytes(b"")
    # What was left out when the run was begun stays left out, although it is there now.
    torch.save(spectrogram(shared / "data" / "fsdd" / "0_george_1.wav"), lists / "pt" / "train" / "0_george_1.pt")
    capsys.readouterr()
    result = pretrain(lists / "train.json", run, **settings)
    assert result.steps == 6
    err = capsys.readouterr().err
    assert err.count("Left out from now on") == 3
    assert "30 clips to learn from, 7 to validate on" in err
    assert left_out(run).keys() == {
        *("0_george_1", "1_george_1", "9_george_1"),
        *("2_george_0", "3_george_0", "8_george_0"),
    }


def test_pretrain__may_find_its_folders_elsewhere_later(lists):
    run = lists / "run"
    pretrain(lists / "train.json", run, **TINY, **data(lists), max_minutes=1e-9)
    (lists / "pt").rename(lists / "scratch")
    moved = {"data_dir": str(lists / "scratch" / "train"), "data_val_dir": str(lists / "scratch" / "val")}
    assert pretrain(lists / "train.json", run, **{**TINY, **data(lists), **moved}).steps == 6
    with pytest.raises(SettingsError, match="frames: 64 -> 48"):
        pretrain(lists / "train.json", run, **{**TINY, **data(lists), **moved, "frames": 48})


def test_finetune_and_probe__labels_of_the_list(lists):
    run, labels = lists / "run", write_label_csv(lists / "labels.csv")
    (lists / "train.json").write_text((lists / "train.json").read_text().replace("/m/7", "/m/8"))
    settings = {**TINY, **data(lists, label_csv=str(labels))}
    settings["data_val"], settings["data_val_dir"] = str(lists / "train.json"), str(lists / "pt" / "train")
    result = finetune(lists / "train.json", run, **settings)
    description = load_model(run).description
    assert description.labels == ("zero", "one", "two", "three", "four", "five", "six", "eight")
    assert description.padding == LOG_FLOOR
    assert 0 <= result.metrics["eval_accuracy"] <= 1
    given = {name: settings[name] for name in ("data_dir", "data_val", "data_val_dir", "label_csv", "frames")}
    probed = probe(run, lists / "train.json", random=False, neighbours=1, batch_size=16, device="cpu", **given)
    assert probed.train == 30
    assert probed.classes == description.labels


def test_pretrain__a_plain_folder_is_enough(shared, tmp_path, capsys):
    write_digits(tmp_path / "pt", digit_files(shared))
    pretrain(tmp_path / "pt", tmp_path / "run", **{**TINY, "max_steps": 1})
    assert "36 clips to learn from, 4 to validate on" in capsys.readouterr().err


def test_pretrain__settings_without_effect_are_refused(shared, tmp_path, store):
    with pytest.raises(SettingsError, match=r"frames is for other data: .* is a store, which has all"):
        pretrain(store, tmp_path / "run", **{**TINY, "frames": 64})
    with pytest.raises(SettingsError, match=r"layout is for other data: .* is not of .pt files"):
        pretrain(tone_folder(tmp_path / "sound"), tmp_path / "other", **{**TINY, "layout": "frames-mels"})


def test_pretrain__all_files_of_a_batch_gone_is_an_error(lists):
    run, settings = lists / "run", {**TINY, **data(lists)}
    pretrain(lists / "train.json", run, **settings, max_minutes=1e-9)
    (lists / "pt").rename(lists / "unmounted")
    with pytest.raises(StoreError, match="no such folder"):
        pretrain(lists / "train.json", run, **settings)
