"""The verb, from sound to a model folder that everything else opens."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file

import tymbal
from tones import tone_store
from training_setup import TINY, make_store
from tymbal.config import read_run_yaml
from tymbal.errors import ModelError, SettingsError, StoreError, TrainingError
from tymbal.models.folder import load_model
from tymbal.objectives import registry
from tymbal.pretrain import pretrain
from tymbal.settings import DataChoice
from tymbal.settings.fields import nature
from tymbal.training.callbacks import Evaluation
from tymbal.training.figures import read_metrics

SHORT: dict[str, Any] = {**TINY, "max_steps": 3}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("data") / "store").path


@pytest.fixture(scope="module")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "run"
    pretrain(store, run, **SHORT)
    return run


def test_pretrain__writes_a_run_folder(run: Path, store: Path):
    assert {path.name for path in run.iterdir()} == {
        "run.yaml",
        "checkpoints",
        "model",
        "metrics.jsonl",
        "log.txt",
        "rebuilt",
        "tensorboard",
        "result.json",
    }
    recorded = read_run_yaml(run)
    assert recorded.verb == "pretrain"
    assert recorded.arguments == {"store": str(store), "output": str(run)}
    assert recorded.settings["mask_ratio"] == 0.5
    loaded = load_model(run)
    assert loaded.description.encoder.width == 16
    assert loaded.description.features.mel_bins == 32
    assert loaded.description.objective is not None
    assert loaded.description.objective["objective"] == "joint"
    assert loaded.description.provenance["metrics"]["eval_acc"] >= 0
    assert {name.split(".")[0] for name in loaded.objective_state} == {"cpred", "gpred"}
    opened = tymbal.Store.open(store)
    assert (loaded.description.mean, loaded.description.std) == (opened.mean, opened.std)


def test_pretrain__run_yaml_repeats_the_run(run: Path, store: Path, tmp_path: Path):
    pretrain(store, tmp_path / "again", config=run / "run.yaml")
    first, second = (load_model(folder).module.state_dict() for folder in (run, tmp_path / "again"))
    assert all(first[name].equal(second[name]) for name in first)
    pretrain(store, tmp_path / "other", config=run / "run.yaml", seed=1)
    third = load_model(tmp_path / "other").module.state_dict()
    assert not first["cls_token"].equal(third["cls_token"])


@pytest.mark.parametrize("objective", ["lejepa", "joint", "reconstruction"])
def test_pretrain__run_yaml_of_a_version_without_todays_settings_repeats(objective: str, store: Path, tmp_path: Path):
    pretrain(store, tmp_path / "run", **{**SHORT, "objective": objective, "max_steps": 2})
    file = tmp_path / "run" / "run.yaml"
    recorded = yaml.safe_load(file.read_text())
    cls = registry.run_settings(objective)
    newer = {each.name for each in fields(cls) if nature(cls, each.name).before is not None}
    recorded["settings"] = {name: value for name, value in recorded["settings"].items() if name not in newer}
    old = tmp_path / "old.yaml"
    old.write_text(yaml.safe_dump(recorded))
    assert pretrain(store, tmp_path / "again", config=old).steps == 2


def test_pretrain__does_not_depend_on_what_was_drawn_before(run: Path, store: Path, tmp_path: Path):
    torch.manual_seed(7)
    torch.rand(3)
    pretrain(store, tmp_path / "again", **SHORT)
    first, second = (load_model(folder).module.state_dict() for folder in (run, tmp_path / "again"))
    assert all(first[name].equal(second[name]) for name in first)


def test_pretrain__starts_from_an_earlier_run_with_its_heads(run: Path, store: Path, tmp_path: Path):
    # With a learning rate too small to change a float32, what is saved is what it started from.
    result = pretrain(store, tmp_path / "more", from_=str(run), **{**SHORT, "learning_rate": 1e-30})
    before, after = load_model(run), load_model(result.model)
    state = before.module.state_dict()
    assert all(value.equal(state[name]) for name, value in after.module.state_dict().items())
    assert all(value.equal(before.objective_state[name]) for name, value in after.objective_state.items())
    with pytest.raises(ModelError, match="made with other spectrograms"):
        other = make_store(tmp_path / "other", sample_rate=8000).path
        pretrain(other, tmp_path / "misfit", from_=str(run), **SHORT)


@pytest.mark.parametrize("objective", ["mpc", "mpg"])
def test_pretrain__objectives_choose_the_best_by_their_own_metric(objective: str, store: Path, tmp_path: Path):
    result = pretrain(store, tmp_path / "run", **{**SHORT, "objective": objective})
    assert ("eval_acc" in result.metrics) == (objective == "mpc")
    assert ("eval_mse" in result.metrics) == (objective == "mpg")


@pytest.mark.parametrize("changes", [{"gradient_checkpointing": True}, {"precision": "bf16"}])
def test_pretrain__in_less_memory_learns_the_same(changes: dict[str, Any], run: Path, store: Path, tmp_path: Path):
    pretrain(store, tmp_path / "run", **{**SHORT, **changes})
    first, second = (load_model(folder).module.state_dict() for folder in (run, tmp_path / "run"))
    tolerance = 2e-2 if "precision" in changes else 1e-5
    assert all(torch.allclose(first[name], second[name], atol=tolerance) for name in first)
    assert all(value.dtype == torch.float32 for value in second.values())


def test_pretrain__without_a_split_learns_from_all(tmp_path: Path):
    whole = make_store(tmp_path / "store", train=5, validation=0, split=None)
    result = pretrain(whole.path, tmp_path / "run", **SHORT)
    assert result.best_step == 3
    assert "eval_acc" not in result.metrics


def test_pretrain__a_folder_of_sound_is_prepared_first(tmp_path: Path):
    random = np.random.default_rng(0)
    for number in range(12):
        (tmp_path / "sound").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "sound" / f"{number}.wav", random.normal(0, 0.1, 8000), 16_000)
    (tmp_path / "sound" / "damaged.wav").write_bytes(b"RIFF")
    result = pretrain(tmp_path / "sound", tmp_path / "run", **{**SHORT, "patch": "16x16"})
    assert tymbal.Store.open(tmp_path / "run" / "store").mels == 128
    assert "damaged.wav" in (tmp_path / "run" / "failures.csv").read_text()
    assert load_model(result.run).description.encoder.mels == 128


def test_pretrain__mistakes_are_named(store: Path, tmp_path: Path):
    with pytest.raises(StoreError, match="no such store"):
        pretrain(tmp_path / "nowhere", tmp_path / "a", **SHORT)
    with pytest.raises(SettingsError, match="mask_ratoi"):
        pretrain(store, tmp_path / "b", mask_ratoi=0.5)
    with pytest.raises(SettingsError):
        pretrain(store, tmp_path / "c", **{**SHORT, "mask_count": 400})
    assert not (tmp_path / "c" / "model").exists()


def test_pretrain__a_learning_rate_far_too_high_stops_with_advice(store: Path, tmp_path: Path):
    with pytest.raises(TrainingError, match="not a finite number"):
        pretrain(store, tmp_path / "run", **{**TINY, "learning_rate": 1e30, "clip_norm": 0.0, "warmup": 0.0})
    assert not (tmp_path / "run" / "model").exists()
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_pretrain__one_clip_in_so_many(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    result = pretrain(store, tmp_path / "run", **{**TINY, "every": 10, "epochs": 1, "batch_size": 2})
    said = " ".join(capsys.readouterr().err.split())
    assert "Of every split one clip in 10 is taken 4 clips to learn from, 1 to validate on" in said
    assert result.steps == 2


VISIBLE = {**TINY, "encode": "visible", "decoder_width": 8, "mask": "cluster", "cluster_min": 1, "cluster_max": 2}


def test_pretrain__keeps_the_decoder_and_goes_on_with_it(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    pretrain(store, tmp_path / "first", **VISIBLE, max_steps=2)
    model = load_model(tmp_path / "first")
    chosen = {name: model.description.objective[name] for name in ("encode", "decoder_width", "cluster_max")}
    assert chosen == {"encode": "visible", "decoder_width": 8, "cluster_max": 2}
    assert model.objective_state["decoder.embed.weight"].shape == (8, 16)
    assert "heads of its pretraining" not in capsys.readouterr().err
    still = {**VISIBLE, "from_": str(tmp_path / "first"), "learning_rate": 1e-12, "max_steps": 1}
    pretrain(store, tmp_path / "second", **still)
    assert "heads of its pretraining" in capsys.readouterr().err
    for name, value in load_model(tmp_path / "second").objective_state.items():
        torch.testing.assert_close(value, model.objective_state[name])


DEFAULT: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2, "device": "cpu", "precision": "float32", "max_steps": 3}


def test_pretrain__leaves_patch_and_parts_to_the_sound(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    result = pretrain(store, tmp_path / "run", **DEFAULT)
    assert "Patches of 32x4 mel bins x frames: clips unfold in time" in capsys.readouterr().err
    recorded = read_run_yaml(tmp_path / "run").settings
    own = {
        "objective": "lejepa",
        "size": "auto",
        "patch": "32x4",
        "parts": 4,
        "kept": 0.5,
        "mixing": "levels",
        "batches": "mixed",
    }
    assert {name: recorded[name] for name in own} == own
    description = load_model(result.model).description
    assert description.objective["parts"] == 4
    assert description.encoder.patch == (32, 4)


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ({"patch": "32x4"}, 30),
        ({"patch": "32x4", "max_minutes": 9}, 30),
        ({"patch": "32x4", "epochs": 40}, 40),
        ({"patch": "8x8"}, 100),
        ({"patch": "8x8", "max_minutes": 9, "max_steps": None}, 100_000),
    ],
)
def test_settings__passes_depend_on_the_patch(settings: dict[str, Any], epochs: float):
    chosen = registry.resolve({**DEFAULT, **settings})
    assert chosen.fitted(DataChoice(full_height=settings["patch"] == "32x4")).epochs == epochs


def test_pretrain__goes_on_with_what_its_data_had_chosen(store: Path, tmp_path: Path):
    whole = pretrain(store, tmp_path / "whole", **{**DEFAULT, "patch": "8x8"})
    pretrain(store, tmp_path / "run", **{**DEFAULT, "patch": "8x8", "max_minutes": 1e-6})
    cut = pretrain(store, tmp_path / "run", **{**DEFAULT, "patch": "auto"})
    ours, theirs = (load_file(each.model / "model.safetensors") for each in (cut, whole))
    assert [name for name in theirs if not ours[name].equal(theirs[name])] == []
    with pytest.raises(SettingsError, match="patch: '8x8' -> '16x16'"):
        pretrain(store, tmp_path / "run", **{**DEFAULT, "patch": "16x16"})


def test_pretrain__a_run_without_an_objective_goes_on_with_its_own(store: Path, tmp_path: Path):
    pretrain(store, tmp_path / "run", **{**SHORT, "max_minutes": 1e-6})
    without = {name: value for name, value in SHORT.items() if name != "objective"}
    assert pretrain(store, tmp_path / "run", **without).steps == 3


def test_pretrain__takes_the_patch_of_the_weights_to_start_from(store: Path, tmp_path: Path):
    first = pretrain(store, tmp_path / "first", **{**DEFAULT, "patch": "32x4"})
    second = pretrain(store, tmp_path / "second", **{**DEFAULT, "max_steps": 1}, from_=str(first.run))
    description = load_model(second.model).description
    assert (description.encoder.patch, description.encoder.stride) == ((32, 4), (32, 4))
    assert description.objective["parts"] == 4


def test_pretrain__batches_of_one_group_need_groups(store: Path, tmp_path: Path):
    with pytest.raises(SettingsError, match="have no groups"):
        pretrain(store, tmp_path / "run", **DEFAULT, batches="group")


@pytest.mark.parametrize(
    ("objective", "embedding"),
    [("joint", None), ("lejepa", "grid2"), ("contrastive", "grid2")],
)
def test_pretrain__the_model_knows_how_it_is_read(tmp_path: Path, objective: str, embedding: str | None) -> None:
    own = {"lejepa": {"parts": 2}, "contrastive": {"projection_parts": 2}, "joint": {}}[objective]
    common = ("width", "depth", "heads", "patch", "batch_size", "learning_rate", "device", "precision")
    settings = {name: TINY[name] for name in common} | {"objective": objective, "max_steps": 2, "snapshots": 0, **own}
    store = make_store(tmp_path / "store")
    run = pretrain(store.path, tmp_path / "run", **settings)
    assert load_model(run.model).description.embedding == embedding


GOING_ON: dict[str, Any] = {**{name: value for name, value in TINY.items() if name != "learning_rate"}, "epochs": 3}


def test_pretrain__goes_on_gently_and_says_what_was_known(run: Path, store: Path, tmp_path: Path):
    labelled = tone_store(tmp_path / "labelled", clips=8).path
    earlier = pretrain(labelled, tmp_path / "earlier", **SHORT)
    last: dict[str, torch.Tensor] = {}

    def note(name: str) -> Callable[[Evaluation], None]:
        return lambda evaluation: last.update({name: evaluation.module.encoder.norm.weight.detach().clone()})

    probed = {**GOING_ON, "probe_data": str(labelled)}
    pretrain(labelled, tmp_path / "run", from_=earlier.run, on_evaluation=note("gently"), **probed)
    settings = read_run_yaml(tmp_path / "run").settings
    assert {name: settings[name] for name in ("recipe", "learning_rate", "layer_decay", "ema", "eval_start")} == {
        "recipe": "continue",
        "learning_rate": 3e-4,
        "layer_decay": 0.75,
        "ema": 0.99,
        "eval_start": True,
    }
    first = read_metrics(tmp_path / "run" / "metrics.jsonl")[0]
    assert (first["step"], first["epoch"]) == (0, 0.0)
    assert 0 <= first["eval_probe_accuracy"] <= 1
    # A share of 0.99^n of what it began with is left, so that n steps change less than by themselves.
    freely = {**GOING_ON, "ema": 0.0, "eval_start": False}
    pretrain(labelled, tmp_path / "plain", from_=earlier.run, on_evaluation=note("freely"), **freely)
    began = load_model(earlier.run).module.norm.weight
    moved = {name: float((weight - began).abs().mean()) for name, weight in last.items()}
    assert 0 < moved["gently"] < moved["freely"] / 2


def test_pretrain__new_heads_are_first_trained_alone(run: Path, store: Path, tmp_path: Path):
    seen: list[bool] = []

    def note(evaluation: Evaluation) -> None:
        state = evaluation.module.encoder.state_dict()
        seen.append(all(state[name].equal(value) for name, value in began.items()))

    began = load_model(run).module.state_dict()
    other = {**GOING_ON, "objective": "lejepa", "eval_every": 1, "ema": 0.0}
    pretrain(store, tmp_path / "run", from_=run, on_evaluation=note, **other)
    assert seen == [True, True, False, False]  # before the first step, then after each epoch


def test_pretrain__goes_on_to_the_same_weights_after_a_stop(run: Path, store: Path, tmp_path: Path):
    class Stopped(Exception):
        pass

    def stop(evaluation: Evaluation) -> None:
        if evaluation.step == 10:
            raise Stopped

    whole = pretrain(store, tmp_path / "whole", from_=run, **GOING_ON)
    with pytest.raises(Stopped):
        pretrain(store, tmp_path / "stopped", from_=run, on_evaluation=stop, **GOING_ON)
    again = pretrain(store, tmp_path / "stopped", from_=run, **GOING_ON)
    first, second = (load_model(each.model).module.state_dict() for each in (whole, again))
    assert (whole.steps, whole.best_step) == (again.steps, again.best_step)
    assert all(first[name].equal(second[name]) for name in first)


def test_pretrain__a_run_from_weights_that_an_earlier_version_began_goes_on(run: Path, store: Path, tmp_path: Path):
    as_before = {**GOING_ON, "recipe": "none", "learning_rate": 5e-4}
    whole = pretrain(store, tmp_path / "whole", from_=run, **as_before)
    shutil.copytree(tmp_path / "whole", tmp_path / "begun")
    (tmp_path / "begun" / "result.json").unlink()
    shutil.rmtree(tmp_path / "begun" / "checkpoints" / f"checkpoint-{whole.steps}")
    file = tmp_path / "begun" / "run.yaml"
    new = ("recipe", "layer_decay", "head_warmup", "eval_start", "ema", "lora")
    recorded = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in recorded if line.strip().split(":")[0] not in new))
    begun = pretrain(store, tmp_path / "begun", from_=run, **GOING_ON)
    first, second = (load_model(each.model).module.state_dict() for each in (whole, begun))
    assert all(first[name].equal(second[name]) for name in first)


def test_pretrain__adapters_become_weights_of_the_model(run: Path, store: Path, tmp_path: Path):
    pytest.importorskip("peft", reason="needs the extra peft")
    result = pretrain(store, tmp_path / "run", from_=run, lora=2, **{**GOING_ON, "learning_rate": 1e-2, "ema": 0.0})
    before, after = load_model(run).module.state_dict(), load_model(result.model).module.state_dict()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed and all(name.startswith("blocks.") and name.endswith(".weight") for name in changed)
    assert tymbal.report([result.run], tmp_path / "report.html").output.is_file()
