"""`tymbal ssast` from a script of SSAST's users to its end, on spoken digits as they have them."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import tymbal
from digits import digit_files, write_digits, write_label_csv, write_list
from tymbal.cli import main
from tymbal.compat import ssast_command
from tymbal.compat.flags import FLAGS, parse
from tymbal.compat.translate import translate
from tymbal.evaluation.labelled_clips import read_weights
from tymbal.objectives.ssast import SSASTSettings
from tymbal.settings import FinetuneSettings
from tymbal.training.run_folder import RunFolder

# The flags of run_mask_patch.sh, with numbers for a test.
PRETRAIN = """--dataset precomputed --label-csv {data}/no_such_table.csv --lr 1e-3 --n-epochs 5 --batch-size 4
--save_model True --freqm 0 --timem 0 --mixup 0 --bal none --tstride 16 --fstride 16 --fshape 16 --tshape 16
--dataset_mean -4.2677393 --dataset_std 4.5689974 --target_length 64 --num_mel_bins 128 --model_size tiny
--mask_patch 24 --n-print-steps 1 --task pretrain_joint --lr_patience 2 --epoch_iter 5 --device cpu"""
FINETUNE = """--dataset precomputed --label_csv {data}/labels.csv --n_class 10 --lr 1e-3 --n_epochs 3 -b 8 -w 0
--save_model True --freqm 24 --timem 16 --mixup 0.5 --bal bal --tstride 10 --fstride 10 --fshape 16 --tshape 16
--dataset_mean -4.2677393 --dataset_std 4.5689974 --target_length 64 --num_mel_bins 128 --model_size tiny
--warmup False --lrscheduler_start 1 --lrscheduler_step 1 --lrscheduler_decay 0.5 --wa True --wa_start 2 --wa_end 3
--noise True --head_lr 10 --n-print-steps 1 --device cpu --precision float32"""
LISTS = "--data-train {data}/train.json --data-val {data}/val.json --data_dir {data}/pt --data_val_dir {data}/pt"
LEFT_OUT = {"0_george_0": "missing", "1_george_0": "unreadable", "2_george_0": "wrong shape"}


@pytest.fixture(scope="module")
def data(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    files = digit_files(shared, per_digit=2)
    write_digits(folder / "pt", files)
    write_list(folder / "train.json", [file for file in files if file.stem.endswith("0")])
    write_list(folder / "val.json", [file for file in files if file.stem.endswith("1")][:8])
    write_label_csv(folder / "labels.csv")
    (folder / "pt" / "0_george_0.pt").unlink()
    damaged = folder / "pt" / "1_george_0.pt"
    damaged.write_bytes(damaged.read_bytes()[:500])
    torch.save(torch.zeros(30, 77).half(), folder / "pt" / "2_george_0.pt")
    return folder


def command(words: str, data: Path, run: Path, more: str = "") -> list[str]:
    text = f"{LISTS} {words} --exp-dir {run} {more}".replace("{data}", str(data))
    return ["ssast", *text.split()]


@pytest.fixture(scope="module")
def pretrained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed after its first checkpoint, and finished by the same command."""
    run = tmp_path_factory.mktemp("pretrained") / "exp"
    words = command(PRETRAIN, data, run)
    process = subprocess.Popen([sys.executable, "-m", "tymbal", *words], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 200
        while len(list(run.glob("checkpoints/checkpoint-*"))) < 1:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    finally:
        process.kill()
    assert not (run / "model").exists()
    assert main(words) == 0
    return run


def keys_of(path: Path) -> set[str]:
    state = torch.load(path, weights_only=True)
    return {re.sub(r"blocks\.\d+", "blocks.N", name) for name in state}


def logged(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_pretrain__goes_on_after_a_kill_and_writes_what_their_scripts_read(pretrained, shared):
    evaluated = [line["step"] for line in logged(pretrained) if "eval_acc" in line]
    last = logged(pretrained)[-1]["step"]
    assert evaluated == sorted({*range(5, last, 5), last})
    table = np.loadtxt(pretrained / "result.csv", delimiter=",")
    assert table.shape == (len(evaluated), 5)
    accuracy = [line["eval_acc"] for line in logged(pretrained) if "eval_acc" in line]
    np.testing.assert_allclose(table[:, 2], accuracy)
    numbers = {int(path.suffixes[0][1:]) for path in (pretrained / "models").glob("audio_model.*.pth")}
    assert numbers == set(range(2, len(evaluated) + 2))
    best = pretrained / "models" / "best_audio_model.pth"
    assert keys_of(best) == keys_of(shared / "fixtures" / "ssast_patch.pth")
    state = torch.load(best, weights_only=True)
    assert (int(state["module.p_input_fdim"]), int(state["module.p_input_tdim"])) == (128, 64)
    ours, theirs = tymbal.load_model(pretrained), tymbal.load_model(best)
    assert all(value.equal(theirs.module.state_dict()[name]) for name, value in ours.module.state_dict().items())
    assert all(value.equal(theirs.objective_state[name]) for name, value in ours.objective_state.items())
    assert ours.description.padding == theirs.description.padding == 0
    arguments = json.loads((pretrained / "args.json").read_text())
    assert (arguments["task"], arguments["mask_patch"], arguments["wa_end"]) == ("pretrain_joint", 24, 30)


def test_pretrain__names_what_it_left_out(pretrained):
    with (pretrained / "failures.csv").open() as file:
        rows = {Path(row["file"]).stem: row["reason"].split(":")[0] for row in csv.DictReader(file)}
    assert rows == LEFT_OUT


def test_pretrain__a_finished_run_is_told_and_its_files_are_made_whole(pretrained, data, capsys):
    (pretrained / "models" / "best_audio_model.pth").unlink()
    assert main(command(PRETRAIN, data, pretrained)) == 0
    assert "finished already" in capsys.readouterr().err
    assert (pretrained / "models" / "best_audio_model.pth").is_file()


def test_finetune__from_the_pretrained_file(pretrained, data, shared, tmp_path, capsys):
    run = tmp_path / "ft"
    best = pretrained / "models" / "best_audio_model.pth"
    more = f"--task ft_avgtok --pretrained_mdl_path {best} --data-eval {data}/val.json"
    assert main(command(FINETUNE, data, run, more)) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("--mixup 0.5: the energies of the spectrograms are mixed") == 1
    assert "3 of 28 .pt files are left out (1 missing, 1 unreadable, 1 wrong shape)" in said
    table = np.loadtxt(run / "result.csv", delimiter=",")
    assert table.shape == (3, 10)
    # 17 clips are left: each epoch ends within a step, and the rate falls with the next.
    np.testing.assert_allclose(table[:, 9], [1e-3, 5e-4, 2.5e-4])
    assert np.isfinite(table).all()
    first = {line["step"]: line for line in logged(run) if "eval_mAP" in line}
    assert [line["eval_ensemble_mAP"] for line in first.values()] == pytest.approx(table[:, 7].tolist())
    assert {path.name for path in (run / "models").iterdir()} == {
        "best_audio_model.pth", "audio_model_wa.pth", "audio_model.1.pth", "audio_model.2.pth", "audio_model.3.pth"
    }  # fmt: skip
    assert keys_of(run / "models" / "best_audio_model.pth") == keys_of(
        shared / "fixtures" / "ssast_patch_finetune1.pth"
    )
    model = tymbal.load_model(run)
    assert model.description.labels[:3] == ("zero", "one", "two")
    assert model.description.encoder.grid == (12, 5)
    # The folder and the file are one model: the reference's head has another epsilon than its blocks.
    written = tymbal.load_model(str(run / "models" / "best_audio_model.pth"), stride=model.description.encoder.stride)
    assert (model.description.head_eps, written.description.head_eps) == (1e-5, 1e-5)
    assert model.description.encoder.layer_norm_eps == 1e-6
    clips = torch.randn(4, model.description.encoder.frames, 128)
    with torch.no_grad():
        assert model.module(clips).equal(written.module(clips))
    assert len(np.loadtxt(run / "wa_result.csv")) == 5
    validation, test = np.split(np.loadtxt(run / "eval_result.csv"), 2)
    np.testing.assert_allclose(validation, test, atol=1e-6)
    epochs = [torch.load(run / "models" / f"audio_model.{n}.pth", weights_only=True) for n in (2, 3)]
    average = torch.load(run / "models" / "audio_model_wa.pth", weights_only=True)
    name = "module.mlp_head.1.weight"
    torch.testing.assert_close(average[name], (epochs[0][name] + epochs[1][name]) / 2)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--task ft_cls --n_class 35", "--n_class is 35, but the table has 10 classes"),
        ("--task ft_cls --fshape 128 --tshape 2", "--fshape is 128, but the weights have patches of 16x16"),
        ("--task ft_cls --data_dir /nowhere", "no such folder of .pt files"),
    ],
)
def test_finetune__mistakes_are_refused(more, message, *, pretrained, data, tmp_path, capsys):
    path = pretrained / "models" / "best_audio_model.pth"
    words = command(FINETUNE, data, tmp_path / "ft", f"{more} --pretrained_mdl_path {path}")
    assert main(words) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_two_processes__pretrain_and_fine_tune_by_the_same_command(data, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tymbal"]
    best = tmp_path / "exp" / "models" / "best_audio_model.pth"
    last = f"--task ft_avgtok --pretrained_mdl_path {best} --data-eval {data}/val.json --n_epochs 2 --wa_start 1"
    for words in (command(PRETRAIN, data, tmp_path / "exp"), command(FINETUNE, data, tmp_path / "ft", last)):
        done = subprocess.run(
            [*torchrun, *words], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("All figures:") == 1
    table = np.loadtxt(tmp_path / "ft" / "result.csv", delimiter=",")
    assert " ".join(done.stderr.split()).count("the energies of the spectrograms are mixed") == 1
    assert table.shape == (2, 10)
    assert np.isnan(table[:, 7:9]).all()  # the ensemble, which one process alone cannot know
    assert np.isfinite(table[:, :2]).all()
    assert len(np.loadtxt(tmp_path / "ft" / "eval_result.csv")) == 4


def test_pretrain__sound_files_are_prepared_once_and_padded_as_there(shared, tmp_path, capsys):
    files = digit_files(shared, per_digit=1)[:10]
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000, np.float32), 8000)
    files.append(tmp_path / "silent.wav")  # counts in SSAST's scores
    listed = tmp_path / "train.json"
    listed.write_text(json.dumps({"data": [{"wav": str(file)} for file in files]}))
    words = PRETRAIN.replace("--dataset precomputed", "").replace("--n-epochs 5", "--n-epochs 1")
    text = f"--data-train {listed} --exp-dir {tmp_path / 'exp'} {words}".replace("{data}", str(tmp_path))
    assert main(["ssast", *text.split()]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "a tenth of the training clips is drawn" in said
    assert f"it is silent, and is kept; 1 file, as {files[-1]}" in said
    store = tymbal.Store.open(tmp_path / "exp" / "store")
    assert (len(store), store.frames, store.mels) == (11, 64, 128)
    assert tymbal.load_model(tmp_path / "exp").description.padding == 0


def test_finetune__entries_of_sound_that_stand_twice_count_twice(shared, tmp_path, capsys):
    files = digit_files(shared, per_digit=1)[:6]
    entries = [{"wav": str(file), "labels": f"/m/{file.stem[0]}"} for file in files]
    train, validation = [*entries, entries[1], entries[1], entries[4]], [*entries, entries[0]]
    for name, part in (("train", train), ("val", validation)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"data": part}))
    weights = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 2.5, 2.0, 5.0]
    (tmp_path / "train_weight.csv").write_text("".join(f"{weight}\n" for weight in weights))
    words = FINETUNE.replace("--dataset precomputed", "").replace("--n_epochs 3", "--n_epochs 1")
    lists = f"--data-train {tmp_path}/train.json --data-val {tmp_path}/val.json --exp-dir {tmp_path / 'exp'}"
    text = f"{lists} {words} --task ft_avgtok".replace("{data}", str(tmp_path)).replace("--mixup 0.5", "--mixup 0")
    write_label_csv(tmp_path / "labels.csv")
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000, np.float32), 8000)
    tested = [*validation, {"wav": str(tmp_path / "silent.wav"), "labels": "/m/1"}]
    (tmp_path / "test.json").write_text(json.dumps({"data": tested}))
    assert main(["ssast", *text.split(), "--data-eval", f"{tmp_path}/test.json"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "train.json: entries that stand there already count again: 3" in said
    assert "9 clips to learn from, 7 to validate on" in said
    assert "On the 8 test clips" in said
    store = tymbal.Store.open(tmp_path / "exp" / "store")
    rows = store.rows("train")
    listed = [Path(store.index["file"][row].as_py()).name for row in rows]
    assert sorted(listed) == sorted(Path(entry["wav"]).name for entry in train)
    assert len(set(store.index["id"].to_pylist())) == 16
    found = read_weights(tmp_path / "train_weight.csv", tmp_path / "train.json", listed)
    assert found[[n for n, name in enumerate(listed) if name == files[1].name]].tolist() == [2.0, 2.5, 2.0]
    assert sorted(found.tolist()) == sorted(weights)


def test_finetune__sound_files_are_mixed_as_waveforms(shared, tmp_path, capsys):
    files = digit_files(shared, per_digit=1)[:12]
    entries = [{"wav": str(file), "labels": f"/m/{file.stem[0]}"} for file in files]
    for name, part in (("train", entries[:8]), ("val", entries[:8:2])):
        (tmp_path / f"{name}.json").write_text(json.dumps({"data": part}))
    words = FINETUNE.replace("--dataset precomputed", "").replace("--n_epochs 3", "--n_epochs 1")
    lists = f"--data-train {tmp_path}/train.json --data-val {tmp_path}/val.json --exp-dir {tmp_path / 'exp'}"
    text = f"{lists} {words} --task ft_avgtok".replace("{data}", str(tmp_path))
    write_label_csv(tmp_path / "labels.csv")
    assert main(["ssast", *text.split()]) == 0
    assert "energies" not in capsys.readouterr().err
    assert "mixup_of: waveform" in (tmp_path / "exp" / "run.yaml").read_text()


def test_precomputed__without_files_beside_the_list_asks_for_their_folder(data, tmp_path, capsys):
    words = command(PRETRAIN, data, tmp_path / "exp")
    at = words.index("--data_dir")
    del words[at : at + 4]
    assert main(words) == 2
    assert "Give --data_dir, the folder in which they are" in " ".join(capsys.readouterr().err.split())


def test_run__goes_on_with_the_epsilon_that_a_run_of_an_earlier_version_had(data, tmp_path, monkeypatch):
    flags = parse(command(FINETUNE, data, tmp_path / "run", "--task ft_avgtok")[1:])
    call = translate(flags, audio=False)
    assert call.settings["head_epsilon"] == 1e-5
    begun = {name: value for name, value in call.settings.items() if name != "head_epsilon"}
    for recorded, expected in ((None, 1e-5), (begun, None), ({**begun, "head_epsilon": 1e-5}, 1e-5)):
        call = translate(flags, audio=False)
        monkeypatch.setattr(RunFolder, "begun", lambda _, recorded=recorded: recorded)
        ssast_command._continue_as_begun(call)
        assert call.settings["head_epsilon"] == expected


WITHOUT_VALIDATION = "--data-train {data}/one.json --data_dir {data}/pt"
"""A list of one clip, of which none can be drawn to validate on."""


@pytest.mark.parametrize(
    "case",
    [
        (PRETRAIN, WITHOUT_VALIDATION, ""),
        (PRETRAIN, LISTS, "--lr -1"),
        (PRETRAIN, LISTS, "--n-epochs 0"),
        (PRETRAIN, LISTS, "--batch-size 0"),
        (PRETRAIN, LISTS, "--epoch_iter 0"),
        (PRETRAIN, LISTS, "--n-print-steps 0"),
        (PRETRAIN, LISTS, "--lr_patience 0"),
        (PRETRAIN, LISTS, "--num-workers -1"),
        (PRETRAIN, LISTS, "--accumulate 0"),
        (PRETRAIN, LISTS, "--num_mel_bins 2"),
        (PRETRAIN, LISTS, "--num_mel_bins 64"),
        (PRETRAIN, LISTS, "--target_length 0 --mask_ratio 0.5"),
        (PRETRAIN, LISTS, "--target_length 8 --mask_ratio 0.5"),
        (PRETRAIN, LISTS, "--dataset_std 0"),
        (PRETRAIN, LISTS, "--mask_ratio 2"),
        (PRETRAIN, LISTS, "--seed -1"),
        (PRETRAIN, LISTS, "--device tpu"),
        (PRETRAIN, LISTS, "--precision int4"),
        (PRETRAIN, LISTS, "--data-val {data}/nowhere.json"),
        (PRETRAIN, LISTS, "--data_val_dir {data}/nowhere"),
        (PRETRAIN, LISTS, "--data_dir {data}/nowhere"),
        (PRETRAIN, "--data-train {data}/train.json --data_dir {data}/pt --data_val_dir {data}/pt", "--n-epochs 1"),
        (f"{FINETUNE} --task ft_avgtok", WITHOUT_VALIDATION, "--wa False --adaptschedule True"),
        (f"{FINETUNE} --task ft_avgtok", WITHOUT_VALIDATION, ""),
        (f"{FINETUNE} --task ft_avgtok", LISTS, "--freqm -1"),
        (f"{FINETUNE} --task ft_avgtok", LISTS, "--timem -1"),
        (f"{FINETUNE} --task ft_avgtok", LISTS, "--mixup 3"),
        (f"{FINETUNE} --task ft_avgtok", LISTS, "--head_lr 0"),
        (f"{FINETUNE} --task ft_avgtok", LISTS, "--wa_start 9 --wa_end 3"),
        (f"{FINETUNE} --task ft_avgtok", LISTS, "--lrscheduler_step 0"),
        (f"{FINETUNE} --task ft_avgtok", LISTS, "--lrscheduler_decay 0"),
        (f"{FINETUNE} --task ft_avgtok", LISTS, "--fstride 99"),
        (f"{FINETUNE} --task ft_avgtok", LISTS, "--label_csv {data}/nowhere.csv"),
        (f"{FINETUNE} --task ft_avgtok", LISTS, "--pretrained_mdl_path {data}/nowhere.pth"),
        (f"{FINETUNE} --task ft_avgtok", LISTS, "--loss CE --bal none --warmup True --n-epochs 1 --wa False"),
    ],
)
def test_messages__name_the_flags_of_this_command_alone(case, data, tmp_path, capsys):
    words, lists, more = case
    entries = json.loads((data / "train.json").read_text())["data"]
    (data / "one.json").write_text(json.dumps({"data": [entries[5]]}))
    text = f"{lists} {words} --exp-dir {tmp_path / 'run'} {more}".replace("{data}", str(data))
    main(["ssast", *text.split()])
    said = capsys.readouterr().err.replace(str(data), "").replace(str(tmp_path), "")
    known = {flag.name for flag in FLAGS} | {"help"}
    assert {name.replace("-", "_") for name in re.findall(r"(?<!\w)--([a-z][\w-]*)", said)} - known == set()
    settings = {field.name for cls in (SSASTSettings, FinetuneSettings) for field in dataclasses.fields(cls)}
    named = set(re.findall(r"(?<![\w/.-])[a-z]+_[a-z_]+(?![\w.])", said))
    assert (named & settings) - known == set()
    assert "Traceback" not in said
