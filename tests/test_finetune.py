from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from sklearn import metrics

from tones import FEATURES, FRAMES, WINDOW, evening, heard_at, tone_folder, tone_store
from tymbal import config, finetune, predict, prepare
from tymbal.errors import ModelError, SettingsError, StoreError
from tymbal.features.kaldi import LOG_FLOOR, KaldiFbank
from tymbal.labelling.table import Row, write_table
from tymbal.models.classifier import SpectrogramClassifier
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.models.folder import load_model, save_model
from tymbal.store.dataset import SoundDataset
from tymbal.store.packed.packed_store import Store

TINY = {
    "width": 16,
    "depth": 2,
    "heads": 2,
    "patch": "8x8",
    "batch_size": 12,
    "learning_rate": 3e-3,
    "warmup": 0,
    "device": "cpu",
    "precision": "float32",
    "report_to": (),
}


def pretrained(path: Path, *, frames: int = FRAMES) -> Path:
    config = EncoderConfig(width=16, depth=2, heads=2, mels=16, frames=frames, patch=(8, 8), stride=(8, 8))
    torch.manual_seed(5)
    description = ModelDescription(encoder=config, features=FEATURES, mean=-7.0, std=4.0, padding=LOG_FLOOR)
    save_model(path, SpectrogramEncoder(config), description)
    return path


def test_finetune__learns_three_tones(tmp_path: Path) -> None:
    tone_store(tmp_path / "store")
    result = finetune(tmp_path / "store", tmp_path / "run", epochs=12, eval_every=4, **TINY)
    assert result.metrics["eval_accuracy"] >= 0.9
    assert {"eval_balanced_accuracy", "eval_f1", "eval_mAP", "eval_loss"} <= result.metrics.keys()
    loaded = load_model(tmp_path / "run")
    assert isinstance(loaded.module, SpectrogramClassifier)
    assert loaded.description.labels == ("high", "low", "middle")
    assert loaded.description.provenance["metrics"]["eval_accuracy"] == result.metrics["eval_accuracy"]


@pytest.mark.parametrize(("train", "trained"), [("head", set()), ("1", {1}), ("all", {0, 1})])
def test_finetune__trains_what_is_asked_for(train: str, trained: set[int], tmp_path: Path) -> None:
    source = pretrained(tmp_path / "model")
    tone_store(tmp_path / "store", clips=6, validation=2)
    finetune(tmp_path / "store", tmp_path / "run", from_=source, train=train, max_steps=2, **TINY)
    before, after = load_model(source).module.state_dict(), load_model(tmp_path / "run").module.encoder.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {int(name.split(".")[1]) for name in changed if name.startswith("blocks")} == trained
    assert ("patch_projection.weight" in changed) == (train == "all")
    assert ("norm.weight" in changed) == (train != "head")
    assert "mask_token" not in changed


def test_finetune__warm_start_keeps_normalisation_and_resizes_positions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = pretrained(tmp_path / "model", frames=64)
    tone_store(tmp_path / "store", clips=6, validation=2)
    finetune(tmp_path / "store", tmp_path / "run", from_=source, max_steps=1, **TINY)
    description = load_model(tmp_path / "run").description
    assert (description.mean, description.std, description.encoder.frames) == (-7.0, 4.0, FRAMES)
    assert "1 resized (position_embedding)" in " ".join(capsys.readouterr().err.split())


def test_finetune__normalises_by_clip_where_it_is_told_and_where_its_start_does(tmp_path: Path) -> None:
    tone_store(tmp_path / "store", clips=6, validation=2)
    finetune(tmp_path / "store", tmp_path / "first", max_steps=1, **TINY)
    finetune(tmp_path / "store", tmp_path / "second", from_=tmp_path / "first", max_steps=1, **TINY)
    finetune(tmp_path / "store", tmp_path / "third", normalize="dataset", skip_padding=False, max_steps=1, **TINY)
    first, second, third = (load_model(tmp_path / name).description for name in ("first", "second", "third"))
    assert (first.normalize, second.normalize, third.normalize) == ("clip", "clip", "dataset")
    assert (first.skip_padding, third.skip_padding) == (True, False)


def test_finetune__mixes_waveforms_of_the_files_that_the_store_is_from(tmp_path: Path) -> None:
    folder = tone_folder(tmp_path / "sound")
    store = prepare(folder, tmp_path / "store", frames=FRAMES, **config.to_keywords(FEATURES)).store
    with_sound = SoundDataset(store, store.rows("train"))
    batch = with_sound.__getitems__(range(12))
    fbank = KaldiFbank(FEATURES)(batch["waveform"])
    torch.testing.assert_close(fbank[:, :FRAMES], batch["spectrogram"].float(), atol=0.02, rtol=0)
    for name, of in (("waveform", "waveform"), ("energy", "energy")):
        finetune(store.path, tmp_path / name, mixup=1.0, mixup_of=of, max_steps=2, **TINY)
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("waveform", "energy"))
    assert any(not value.equal(second[key]) for key, value in first.items())


def test_finetune__mixing_waveforms_needs_the_files(tmp_path: Path) -> None:
    store = tone_store(tmp_path / "store", clips=6, validation=2)  # from files that never were
    with pytest.raises(StoreError, match="is not there any more"):
        finetune(store.path, tmp_path / "run", mixup=0.5, mixup_of="waveform", max_steps=1, **TINY)


def test_finetune__a_head_that_begins_as_a_probe_fits_before_training(tmp_path: Path) -> None:
    tone_store(tmp_path / "store", clips=30, validation=4)
    still = {**TINY, "from_": pretrained(tmp_path / "model"), "pooling": "rows", "max_steps": 1, "learning_rate": 1e-9}
    random = finetune(tmp_path / "store", tmp_path / "random", **still)
    fitted = finetune(tmp_path / "store", tmp_path / "probe", head_start="probe", **still)
    assert fitted.metrics["eval_accuracy"] >= 0.9 > random.metrics["eval_accuracy"] + 0.2


def test_finetune__overlapping_patches(tmp_path: Path) -> None:
    source = pretrained(tmp_path / "model")
    tone_store(tmp_path / "store", clips=6, validation=2)
    finetune(tmp_path / "store", tmp_path / "run", from_=source, stride="4x4", max_steps=1, **TINY)
    assert load_model(tmp_path / "run").description.encoder.grid == (3, 7)


def test_finetune__head_has_its_own_learning_rate(tmp_path: Path) -> None:
    source = pretrained(tmp_path / "model")
    tone_store(tmp_path / "store", clips=6, validation=2)
    moved = {}
    for factor in (1.0, 10.0):
        run = tmp_path / f"run{factor}"
        finetune(tmp_path / "store", run, from_=source, head_lr_factor=factor, max_steps=1, **TINY)
        moved[factor] = load_model(run).module
    bias = {factor: module.head.bias.abs().max().item() for factor, module in moved.items()}
    # AdamW's first step is the learning rate itself, and the head's bias starts at zero.
    assert bias[1.0] == pytest.approx(3e-3, rel=1e-3)
    assert bias[10.0] == pytest.approx(3e-2, rel=1e-3)
    first, second = (module.encoder.state_dict() for module in moved.values())
    torch.testing.assert_close(first, second)


def test_finetune__cls_pooling_opens_in_transformers(tmp_path: Path) -> None:
    from transformers import ASTForAudioClassification

    store = tone_store(tmp_path / "store", clips=6, validation=2)
    square = {**TINY, "pooling": "cls"}
    finetune(tmp_path / "store", tmp_path / "run", max_steps=2, **square)
    stock = ASTForAudioClassification.from_pretrained(tmp_path / "run" / "model").eval()
    assert stock.config.id2label == {0: "high", 1: "low", 2: "middle"}
    loaded = load_model(tmp_path / "run")
    x = (torch.from_numpy(store.gather([0, 5, 9])).float() - loaded.description.mean) / (2 * loaded.description.std)
    with torch.no_grad():
        torch.testing.assert_close(stock(x).logits, loaded.module(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("multilabel", [False, True])
def test_finetune__tells_of_each_class_and_which_are_confused(multilabel: bool, tmp_path: Path) -> None:
    store = tone_store(tmp_path / "store", multilabel=multilabel)
    result = finetune(tmp_path / "store", tmp_path / "run", epochs=5, **TINY)
    loaded = load_model(result.run)
    rows = store.rows("validation")
    frames = torch.from_numpy(store.real_frames[rows].astype(np.int64))
    with torch.no_grad():
        x = loaded.description.normalisation(torch.from_numpy(store.gather(rows)), frames)
        logits = loaded.module(x, frames=frames).numpy()
    truth = store.label_matrix(rows) > 0
    classes = {name: place for place, name in enumerate(loaded.description.labels)}
    with (result.run / "classes.csv").open(newline="") as file:
        table = [row for row in csv.DictReader(file) if int(row["step"]) == result.best_step]
    assert [row["class"] for row in table] == list(classes)
    guessed = logits > 0 if multilabel else logits == logits.max(axis=1, keepdims=True)
    expected = metrics.precision_recall_fscore_support(truth, guessed, zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "clips"), expected, strict=True):
        assert [float(row[name]) for row in table] == pytest.approx(values.tolist(), rel=1e-5)
    assert result.metrics["eval_weighted_f1"] == pytest.approx((expected[2] * expected[3]).sum() / expected[3].sum())
    with (result.run / "confusion.csv").open(newline="") as file:
        header, *counted = csv.reader(file)
    numbers = np.array([row[1:] for row in counted], dtype=int)
    if multilabel:
        assert header == ["class", "hits", "misses", "false_alarms", "rejections"]
        found = metrics.multilabel_confusion_matrix(truth, guessed)
        assert numbers.tolist() == [[tp, fn, fp, tn] for (tn, fp), (fn, tp) in found.tolist()]
    else:
        assert header == ["truth", *classes]
        assert numbers.tolist() == metrics.confusion_matrix(truth.argmax(1), logits.argmax(1)).tolist()
        assert result.metrics["eval_accuracy"] == pytest.approx(numbers.trace() / numbers.sum())
    assert (result.run / "confusion.png").exists() != multilabel
    shown = result.summary()
    if multilabel:
        chance = truth.mean(axis=0).mean()
        assert f", mAP {result.metrics['eval_mAP']:.4g}, prevalence {chance:.4g}, " in shown
        assert f"Scores that tell nothing have an mAP of {chance:.4g}" in shown
        assert ("No label reaches a score of 0.5" in shown) == (not (truth & guessed).any())
    else:
        assert "prevalence" not in shown


@pytest.mark.parametrize("multilabel", [False, True])
def test_finetune__one_clip_in_so_many_of_every_class(
    multilabel: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tone_store(tmp_path / "store", clips=16, validation=5, multilabel=multilabel)  # 11 and 5 of each first label
    result = finetune(tmp_path / "store", tmp_path / "run", every=10, epochs=1, deterministic=True, **TINY)
    said = " ".join(capsys.readouterr().err.split())
    assert "Of every class and split one clip in 10 is taken" in said
    # 11 clips of each class give 2. Of the clips with two labels, those of middle and high count as high: 17, 11 and 5.
    learned, asked = (5, 3) if multilabel else (6, 3)
    assert f"{learned} clips to learn from, {asked} to validate on" in said
    assert load_model(result.run).description.labels == ("high", "low", "middle")


def test_finetune__names_a_class_only_in_validation_before_it_prepares(tmp_path: Path) -> None:
    folder = tone_folder(tmp_path / "sound", clips=1)
    (folder / "train" / "low" / "0.wav").rename(folder / "train" / "high" / "1.wav")
    with pytest.raises(StoreError, match=r"no clip to learn from has the label that validation clips have: low\n"):
        finetune(folder, tmp_path / "run", **TINY)
    assert not (tmp_path / "run" / "store").exists()


def test_finetune__of_sound_prepares_one_clip_in_so_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tone_folder(tmp_path / "sound", clips=11)
    given = {**TINY, "every": 10, "max_steps": 1, "sample_rate": 8000, "mel_bins": 16, "frames": FRAMES}
    result = finetune(folder, tmp_path / "run", **given)
    said = " ".join(capsys.readouterr().err.split())
    assert "Of every class and split one clip in 10 is prepared" in said
    assert "6 clips to learn from, 6 to validate on" in said
    kept = Store.open(result.run / "store").index["id"].to_pylist()
    assert len(kept) == 12  # of 66: the first and the eleventh of each class and split


def test_finetune__log_is_for_people(tmp_path: Path) -> None:
    tone_store(tmp_path / "store", clips=6, validation=2)
    result = finetune(tmp_path / "store", tmp_path / "run", epochs=2, batch_sizes=(12, 4), **TINY)
    header, *lines = (result.run / "log.txt").read_text().splitlines()
    assert header.split() == ["elapsed", "epoch", "step"]
    assert [line.split()[1:3] for line in lines[:4]] == [["1.00", "1"], ["1.00", "1"], ["2.00", "4"], ["2.00", "4"]]
    assert ("batch size 12" in lines[0], "batch size 4" in lines[2]) == (True, True)
    assert lines[0].split("  ")[-1].startswith("loss ")
    assert "validation: loss" in lines[1]
    assert f"accuracy {result.metrics['eval_accuracy']:.4g}" in "".join(lines)
    assert lines[5] == "Trained for 4 steps: all done."


@pytest.mark.parametrize("pooling", ["all", "attention"])
def test_finetune__heads_that_only_tymbal_has(pooling: str, tmp_path: Path) -> None:
    source = pretrained(tmp_path / "model")
    tone_store(tmp_path / "store")
    settings = {**TINY, "from_": source, "pooling": pooling, "train": "head", "learning_rate": 0.1}
    result = finetune(tmp_path / "store", tmp_path / "run", epochs=8, eval_every=4, **settings)
    assert result.metrics["eval_accuracy"] >= 0.8
    loaded = load_model(tmp_path / "run")
    assert (loaded.description.pooling, loaded.description.skip_padding) == (pooling, True)
    if pooling == "attention":
        assert loaded.module.attentive.query.abs().min() > 0.01
    recording = tmp_path / "sound" / "train" / "low" / "0.wav"
    tone_folder(tmp_path / "sound", clips=1)
    predict(tmp_path / "run", recording, tmp_path / "scores.csv", device="cpu", precision="float32")
    assert (tmp_path / "scores.csv").read_text().splitlines()[1].split(",")[3] == "low"


def test_finetune__several_labels(tmp_path: Path) -> None:
    tone_store(tmp_path / "store", multilabel=True)
    result = finetune(tmp_path / "store", tmp_path / "run", epochs=20, eval_every=10, **TINY)
    assert result.metrics["eval_mAP"] >= 0.85
    assert load_model(tmp_path / "run").description.multilabel


def test_finetune__folder_is_prepared_into_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = pretrained(tmp_path / "model")
    folder = tone_folder(tmp_path / "sound", clips=3)
    (folder / "train" / "silence").mkdir()
    result = finetune(folder, tmp_path / "run", from_=source, max_steps=2, **TINY)
    assert (tmp_path / "run" / "store" / "store.json").is_file()
    assert load_model(result.run).description.features == FEATURES
    said = " ".join(capsys.readouterr().err.split())
    assert "train/silence holds no sound: the class is not learned from it" in said
    assert "3 classes, one label a clip: 9 clips to learn from, 9 to validate on" in said


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, CUDA])])
def test_finetune__same_seed_same_weights_whatever_was_drawn_before(device: str, tmp_path: Path) -> None:
    settings = {**TINY, "device": device, "deterministic": device == "cuda", "frequency_mask": 4, "time_mask": 8}
    tone_store(tmp_path / "store", clips=6, validation=2)
    weights = []
    for number in range(2):
        torch.manual_seed(number)
        np.random.seed(number)  # noqa: NPY002 - what a caller may have done
        run = tmp_path / f"run{number}"
        finetune(tmp_path / "store", run, max_steps=3, **settings)
        weights.append(load_file(run / "model" / "model.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_finetune__finished_run_is_not_trained_again(tmp_path: Path) -> None:
    tone_store(tmp_path / "store", clips=6, validation=2)
    first = finetune(tmp_path / "store", tmp_path / "run", max_steps=2, **TINY)
    stamp = (tmp_path / "run" / "model" / "model.safetensors").stat().st_mtime_ns
    again = finetune(tmp_path / "store", tmp_path / "run", max_steps=2, **TINY)
    assert again.metrics == first.metrics
    assert (tmp_path / "run" / "model" / "model.safetensors").stat().st_mtime_ns == stamp
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 2


def test_finetune__refuses_what_cannot_be_learned(tmp_path: Path) -> None:
    tone_store(tmp_path / "odd", clips=6, only_validation="low")
    with pytest.raises(StoreError, match="no clip to learn from has the label that validation clips have: low"):
        finetune(tmp_path / "odd", tmp_path / "run1", **TINY)
    tone_store(tmp_path / "several", clips=6, multilabel=True)
    with pytest.raises(StoreError, match="several labels, which cross entropy cannot learn"):
        finetune(tmp_path / "several", tmp_path / "run2", loss="ce", **TINY)
    tone_store(tmp_path / "store", clips=6)
    with pytest.raises(SettingsError, match="3 blocks are to be trained, but the encoder has 2"):
        finetune(tmp_path / "store", tmp_path / "run3", train="3", **TINY)
    with pytest.raises(ModelError, match="there is no such model"):
        finetune(tmp_path / "store", tmp_path / "run4", from_=str(tmp_path / "no where"), **TINY)


def test_finetune__a_class_folder_only_in_validation_is_named(tmp_path: Path) -> None:
    source = pretrained(tmp_path / "model")
    folder = tone_folder(tmp_path / "sound", clips=2)
    (folder / "validation" / "low").rename(folder / "validation" / "lwo")
    with pytest.raises(StoreError, match="no clip to learn from has the label that validation clips have: lwo"):
        finetune(folder, tmp_path / "run", from_=source, **TINY)
    # The other way round it is no mistake: the map of labels is that of training.
    shutil.rmtree(folder / "validation" / "lwo")
    result = finetune(folder, tmp_path / "other", from_=source, max_steps=1, **TINY)
    assert load_model(result.run).description.labels == ("high", "low", "middle")
    assert json.loads((result.model / "labels.json").read_text()) == ["high", "low", "middle"]


def test_finetune__of_labels_looked_at_without_one_are_negatives(tmp_path: Path) -> None:
    nights = evening(tmp_path / "nights", recordings=6, windows=20)
    rows = []
    for number in range(6):
        file = str(nights / f"evening-{number}.wav")
        for place in range(18):  # the last two windows of each are not looked at
            start = place * WINDOW
            label = "?" if place == 0 else heard_at(start) or ""
            # What was drawn around a low tone is its second half.
            begin = start + WINDOW / 2 if label == "low" else start
            rows.append(Row(file, begin, start + WINDOW, None, None, label, "ann", "", "1"))
    (tmp_path / "labels").mkdir()
    write_table(tmp_path / "labels" / "labels.csv", rows)
    result = finetune(
        tmp_path / "labels", tmp_path / "run", from_=pretrained(tmp_path / "start"), epochs=30, eval_every=10, **TINY
    )
    store = Store.open(tmp_path / "run" / "store")
    index = store.index
    assert len(store) == 6 * 17
    said = list(zip(index["labels"].to_pylist(), index["start"].to_pylist(), index["end"].to_pylist(), strict=True))
    assert sum(labels == [] for labels, _, _ in said) == 6 * 13
    low = sorted({(round(start, 3), round(end, 3)) for labels, start, end in said if labels == ["low"]})
    assert low == [pytest.approx(((p + 0.5) * WINDOW, (p + 1) * WINDOW), abs=1e-3) for p in (3, 13)]
    sides = {}
    for group, split in zip(index["group"].to_pylist(), index["split"].to_pylist(), strict=True):
        sides.setdefault(group, set()).add(split)
    assert len(sides) == 6 and all(len(splits) == 1 for splits in sides.values())
    description = load_model(result.model).description
    assert description.multilabel and description.labels == ("high", "low")
    assert result.metrics["eval_mAP"] > 0.9


def test_finetune__its_model_is_never_mixed_with_an_older_one(tmp_path: Path) -> None:
    tone_store(tmp_path / "store", clips=6, validation=2)
    fresh = finetune(tmp_path / "store", tmp_path / "fresh", max_steps=1, **TINY)
    run = tmp_path / "run"
    finetune(tmp_path / "store", run, max_steps=1, **{**TINY, "pooling": "cls"})
    (run / "model" / "objective.safetensors").write_bytes(b"of an older run")
    (run / "confusion.png").write_bytes(b"of an older run")
    shutil.rmtree(run / "checkpoints")
    (run / "result.json").unlink()
    result = finetune(tmp_path / "store", run, max_steps=1, **TINY)
    assert (run / "confusion.png").read_bytes() == (fresh.run / "confusion.png").read_bytes()
    ours, theirs = ({path.name: path.read_bytes() for path in each.model.iterdir()} for each in (result, fresh))
    assert ours.keys() == theirs.keys()
    assert ours["model.safetensors"] == theirs["model.safetensors"]


def test_finetune__best_by_another_metric(tmp_path: Path) -> None:
    tone_store(tmp_path / "store", clips=6, validation=2)
    result = finetune(tmp_path / "store", tmp_path / "run", epochs=4, best_by="loss", **TINY)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    assert len(losses) == 4
    assert losses[result.best_step] == min(losses.values())


EVERYTHING = {
    **TINY,
    "epochs": 4,
    "batch_sizes": (12, 6, 8),
    "accumulate": 2,
    "pooling": "attention",
    "head_start": "probe",
    "dropout": 0.1,
    "layer_decay": 0.7,
    "unfreeze_every": 1,
    "class_weights": "balanced",
    "label_smoothing": 0.1,
    "time_mask": 8,
    "optimizer": "adam",
    "schedule": "step",
    "step_start": 1,
    "step_every": 1,
    "frequency_mask": 4,
    "mixup": 0.5,
    "mixup_of": "energy",
    "noise": 0.1,
    "roll": 3,
    "balance": True,
    "best_by": "top1",
    "ensemble": True,
    "average_from": 2,
    "average_to": 3,
}


@pytest.mark.parametrize(("multilabel", "loss"), [(False, "ce"), (False, "bce"), (True, "auto")])
def test_finetune__all_that_is_drawn_and_averaged_survives_a_kill(
    multilabel: bool, loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tymbal.training.trainer import TymbalTrainer

    tone_store(tmp_path / "store", clips=10, validation=2, multilabel=multilabel)
    everything = {**EVERYTHING, "loss": loss}
    whole = finetune(tmp_path / "store", tmp_path / "whole", **everything)
    assert "balance and class_weights do the same thing" in " ".join(capsys.readouterr().err.split())
    calls, original = [], TymbalTrainer.compute_loss

    def failing(self: TymbalTrainer, *args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 10:  # in the third of four epochs
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TymbalTrainer, "compute_loss", failing)
        with pytest.raises(KeyboardInterrupt):
            finetune(tmp_path / "store", tmp_path / "killed", **everything)
    killed = finetune(tmp_path / "store", tmp_path / "killed", **everything)

    def figures(run: Path) -> list[dict[str, float]]:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if "second" not in k and "runtime" not in k} for line in lines]

    assert figures(killed.run) == figures(whole.run)
    assert {"eval_ensemble_mAP", "eval_top1", "eval_auc"} <= figures(whole.run)[-1].keys()
    for name in ("classes.csv", "confusion.csv", "confusion.png")[: 3 if loss == "ce" else 2]:
        assert (killed.run / name).read_bytes() == (whole.run / name).read_bytes()
    logs = [(run / "log.txt").read_text().replace(run.name, "RUN") for run in (killed.run, whole.run)]
    said = [[line[8:] for line in log.splitlines()] for log in logs]
    assert said[0] == said[1]
    for model in ("model", "average"):
        ours, theirs = (load_file(run / model / "model.safetensors") for run in (killed.run, whole.run))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_finetune__classes_of_a_table(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("index,mid,display_name\n0,/m/3,middle\n1,/m/9,absent\n2,/m/1,low\n3,/m/2,high\n")
    folder = tone_folder(tmp_path / "sound", clips=3)
    settings = {**TINY, "label_csv": table, "classes": "table", "max_steps": 1}
    result = finetune(folder, tmp_path / "run", **settings)
    assert load_model(result.run).description.labels == ("middle", "absent", "low", "high")
    table.write_text("index,mid,display_name\n0,/m/3,middle\n1,/m/1,low\n")
    with pytest.raises(StoreError, match=r"not in the table of classes: high"):
        finetune(folder, tmp_path / "other", **settings)


def lejepa_model(path: Path, **facts: object) -> Path:
    """An encoder that says how many parts of the time its pretraining compared."""
    config = EncoderConfig(width=16, depth=2, heads=2, mels=16, frames=FRAMES, patch=(8, 8), stride=(8, 8))
    torch.manual_seed(5)
    known = {"objective": {"objective": "lejepa", "parts": 2}, "provenance": {"verb": "pretrain"}, **facts}
    description = ModelDescription(
        encoder=config, features=FEATURES, mean=-7.0, std=4.0, padding=LOG_FLOOR, normalize="clip", **known
    )
    save_model(path, SpectrogramEncoder(config), description)
    return path


def small(**changes: object) -> dict[str, object]:
    """Settings that leave the recipe's alone."""
    return {"batch_size": 12, "device": "cpu", "precision": "float32", "report_to": (), **changes}


def figures_of(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "second" not in k and "runtime" not in k} for line in lines]


@pytest.mark.parametrize("multilabel", [False, True])
def test_finetune__from_what_was_pretrained_begins_as_a_probe_and_never_ends_below_it(
    multilabel: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = lejepa_model(tmp_path / "model")
    store = tone_store(tmp_path / "store", clips=12, validation=4, multilabel=multilabel)
    result = finetune(
        tmp_path / "store", tmp_path / "run", from_=source, learning_rate=3.0, max_steps=4, eval_steps=4, **small()
    )
    assert "The head begins as a logistic regression on 24 clips" in " ".join(capsys.readouterr().err.split())
    loaded = load_model(result.run)
    description = loaded.description
    assert (description.pooling, description.standardise, description.skip_padding) == ("grid2", True, True)
    # At this rate all that is trained is lost: the probe is the model, as it was before the first step.
    figure = "eval_mAP" if multilabel else "eval_accuracy"
    evaluated = [line for line in figures_of(result.run) if figure in line]
    assert [line["step"] for line in evaluated] == [0, 4]
    assert evaluated[0][figure] > evaluated[1][figure]
    assert result.best_step == 0 and result.metrics[figure] == evaluated[0][figure]
    before, after = load_model(source).module.state_dict(), loaded.module.encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    rows = store.rows("validation")
    frames = torch.from_numpy(store.real_frames[rows].astype(np.int64))
    with torch.no_grad():
        x = description.normalisation(torch.from_numpy(store.gather(rows)), frames)
        logits = loaded.module(x, frames=frames).numpy()
    truth = store.label_matrix(rows) > 0
    if multilabel:
        expected = metrics.average_precision_score(truth, logits, average="macro")
    else:
        expected = (logits.argmax(1) == truth.argmax(1)).mean()
    assert evaluated[0][figure] == pytest.approx(expected, abs=0.01)
    with (result.run / "classes.csv").open(newline="") as file:
        assert {int(row["step"]) for row in csv.DictReader(file)} == {0, 4}
    assert (result.run / "confusion.csv").exists()
    predict(result.run, tone_folder(tmp_path / "sound", clips=1), tmp_path / "scores.csv", device="cpu")
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 1 + 6 * 3


def test_finetune__goes_on_from_the_probe_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tymbal.training.trainer import TymbalTrainer

    settings = small(
        from_=lejepa_model(tmp_path / "model"), epochs=3, learning_rate=3e-3, schedule="plateau", patience=5
    )
    tone_store(tmp_path / "store", clips=12, validation=4)
    whole = finetune(tmp_path / "store", tmp_path / "whole", **settings)
    original = TymbalTrainer.compute_loss
    for killed_at in (1, 4):  # with the checkpoint of step 0, and with that of the first epoch
        calls = iter(range(1, 100))

        def failing(self: TymbalTrainer, *args: Any, calls: Any = calls, at: int = killed_at, **kwargs: Any) -> Any:
            if next(calls) == at:
                raise KeyboardInterrupt
            return original(self, *args, **kwargs)

        run = tmp_path / f"killed{killed_at}"
        with monkeypatch.context() as patch:
            patch.setattr(TymbalTrainer, "compute_loss", failing)
            with pytest.raises(KeyboardInterrupt):
                finetune(tmp_path / "store", run, **settings)
        killed = finetune(tmp_path / "store", run, **settings)
        assert figures_of(run) == figures_of(whole.run)
        ours, theirs = (load_file(each.model / "model.safetensors") for each in (killed, whole))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("facts", "given", "expected"),
    [
        ({}, {}, ("lp-ft", "grid2", 1e-3)),
        ({"objective": {"objective": "joint"}}, {}, ("lp-ft", "chosen", 1e-3)),
        ({"provenance": {}}, {}, ("none", "mean", 1e-4)),
        ({}, {"pooling": "rows", "learning_rate": 1e-2}, ("lp-ft", "rows", 1e-2)),
        ({}, {"recipe": "none"}, ("none", "mean", 1e-4)),
        (None, {}, ("scratch", "chosen", 1e-3)),
        (None, {"width": 256, "depth": 1, "heads": 4}, ("scratch", "chosen", 5e-4)),
    ],
)
def test_finetune__takes_the_recipe_that_suits_its_start(
    facts: dict[str, object] | None,
    given: dict[str, object],
    expected: tuple[str, str, float],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe, pooling, rate = expected
    source = None if facts is None else lejepa_model(tmp_path / "model", **facts)
    tone_store(tmp_path / "store", clips=8, validation=2)
    settings = small(from_=source, max_steps=1, **given)
    result = finetune(tmp_path / "store", tmp_path / "run", **settings)
    recorded = config.read_run_yaml(tmp_path / "run").settings
    assert (recorded["recipe"], recorded["learning_rate"]) == (recipe, rate)
    said = " ".join(capsys.readouterr().err.split())
    assert ("which reads the training clips best" in said) == (pooling == "chosen")
    used = load_model(result.run).description
    assert used.standardise == (recipe != "none")
    if pooling == "chosen":
        assert recorded["pooling"] == used.pooling in ("rows", "grid2", "grid4", "grid8")
        if source is None:
            assert recorded["patch"] in ("16x4", "16x16")
    else:
        assert used.pooling == pooling
    # The same command finds it finished, also where what it started from is gone.
    if source is not None:
        shutil.rmtree(source)
    (tmp_path / "store" / "store.json").unlink()
    again = finetune(tmp_path / "store", tmp_path / "run", **settings)
    assert again.metrics == result.metrics


def test_finetune__few_clips_make_steps_enough_unless_epochs_are_given(tmp_path: Path) -> None:
    source = lejepa_model(tmp_path / "model")
    tone_store(tmp_path / "store", clips=3, validation=1)  # 6 to learn from
    long = finetune(tmp_path / "store", tmp_path / "long", from_=source, min_steps=30, **small())
    assert long.steps == 30
    evaluated = [line["step"] for line in figures_of(long.run) if "eval_loss" in line]
    assert evaluated == [0, *range(3, 31, 3)]
    short = finetune(tmp_path / "store", tmp_path / "short", from_=source, epochs=4, **small())
    assert short.steps == 2
    assert config.read_run_yaml(tmp_path / "short").settings["min_steps"] == 0


def test_finetune__a_head_that_standardises_is_taken_over_and_not_for_cls(tmp_path: Path) -> None:
    source = lejepa_model(tmp_path / "model")
    tone_store(tmp_path / "store", clips=8, validation=2)
    first = finetune(tmp_path / "store", tmp_path / "first", from_=source, max_steps=2, **small())
    second = finetune(
        tmp_path / "store", tmp_path / "second", from_=first.run, max_steps=1, **small(learning_rate=1e-9)
    )
    ours, theirs = (load_file(each.model / "model.safetensors") for each in (second, first))
    assert torch.equal(ours["head.weight"], theirs["head.weight"])
    assert load_model(second.run).description.standardise
    third = finetune(tmp_path / "store", tmp_path / "third", from_=source, pooling="cls", max_steps=1, **small())
    assert not load_model(third.run).description.standardise
    assert json.loads((third.model / "config.json").read_text())["model_type"] == "audio-spectrogram-transformer"


def test_finetune__one_class_is_refused_before_anything_is_prepared(tmp_path: Path) -> None:
    folder = tone_folder(tmp_path / "sound")
    one = folder / "train" / "low"
    (tmp_path / "list.csv").write_text("file,label\n" + "".join(f"{file},a\n" for file in sorted(one.iterdir())))
    for source, message in ((one, "no clip to learn from has a label"), (tmp_path / "list.csv", "the same label, a:")):
        with pytest.raises(StoreError, match=message):
            finetune(source, tmp_path / "run", **TINY)
        assert not (tmp_path / "run" / "store").exists()


def test_finetune__one_validation_clip_leaves_figures_undefined(tmp_path: Path) -> None:
    folder = tone_folder(tmp_path / "sound", splits=("train",))
    result = finetune(folder / "train", tmp_path / "run", max_steps=2, **TINY)
    assert "eval_auc" in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "eval_auc" not in result.metrics
    assert "accuracy" in result.summary()


def test_finetune__background_is_a_class_of_windows_as_long_as_the_clips(tmp_path: Path) -> None:
    folder = tone_folder(tmp_path / "sound", clips=6)
    noise = 0.01 * np.random.default_rng(0).normal(size=8 * 8000)
    (tmp_path / "noise").mkdir()
    soundfile.write(tmp_path / "noise" / "long.wav", noise, 8000)
    given = {**TINY, "sample_rate": 8000, "mel_bins": 16, "max_steps": 30}
    result = finetune(folder, tmp_path / "run", background=str(tmp_path / "noise"), **given)
    model = load_model(result.run)
    assert model.description.labels == ("background", "high", "low", "middle")
    assert model.description.background == "background"
    assert model.description.level is not None
    store = Store.open(result.run / "store")
    names = [store.labels[place] for place in store.label_matrix(np.arange(len(store))).argmax(axis=1)]
    assert names.count("background") == 24  # of 8 s in windows of 0.335 s
    without = finetune(folder, tmp_path / "without", **given)
    assert Store.open(without.run / "store").frames == store.frames
    assert load_model(without.run).description.background is None
    finetune(folder, tmp_path / "run", background=str(tmp_path / "noise"), **given)  # again: it is finished
    predict(result.run, tmp_path / "noise" / "long.wav", tmp_path / "out.csv", reject=None, device="cpu")
    assert (tmp_path / "out.detections.csv").read_text().count("background") == 0


def test_finetune__background_beside_a_class_of_that_name_is_refused(tmp_path: Path) -> None:
    folder = tone_folder(tmp_path / "sound")
    for split in ("train", "validation"):
        (folder / split / "low").rename(folder / split / "background")
    with pytest.raises(SettingsError, match="have the label background already"):
        finetune(folder, tmp_path / "run", background=str(folder), **TINY)
    tone_store(tmp_path / "store")
    with pytest.raises(SettingsError, match="background"):
        finetune(tmp_path / "store", tmp_path / "other", background=str(folder), **TINY)


def test_finetune__several_labels_have_no_level(tmp_path: Path) -> None:
    tone_store(tmp_path / "store", multilabel=True)
    assert load_model(finetune(tmp_path / "store", tmp_path / "run", epochs=1, **TINY).run).description.level is None
