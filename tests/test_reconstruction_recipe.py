"""Reconstruction pretraining, whole: from a folder of any sound to a model folder that everything else opens."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import tymbal
from training_setup import make_store
from tymbal.cli import main
from tymbal.config import read_run_yaml
from tymbal.errors import ModelError, SettingsError
from tymbal.models.folder import load_model
from tymbal.pretrain import pretrain

RECIPE: dict[str, Any] = {
    "objective": "reconstruction",
    "width": 16,
    "depth": 2,
    "heads": 1,
    "channels": 4,
    "max_steps": 2,
    "device": "cpu",
    "precision": "float32",
}
STORE_RECIPE: dict[str, Any] = {**RECIPE, "patch": "8x8", "frequency_mask_width": 6, "time_mask_width": 8}


def noise(seconds: float, *, rate: int = 16_000, channels: int = 1, seed: int = 0) -> np.ndarray:
    shape = (round(seconds * rate), channels)
    return np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of all lengths and rates, and of the kinds that break scripts."""
    folder = tmp_path_factory.mktemp("sound")
    clips = {f"one_{n}": (noise(1.0, seed=n), 16_000) for n in range(20)}
    clips |= {"third": (noise(0.3), 16_000), "five": (noise(5.0), 16_000), "minute": (noise(60.0), 16_000)}
    clips |= {"stereo": (noise(1.0, channels=2), 16_000), "slow": (noise(1.0, rate=8000), 8000)}
    clips |= {"fast": (noise(1.0, rate=192_000), 192_000), "silent": (np.zeros((16_000, 1), np.float32), 16_000)}
    clips |= {"nan": (np.where(np.arange(16_000)[:, None] == 700, np.nan, noise(1.0, seed=50)), 16_000)}
    for name, (waveform, rate) in clips.items():
        soundfile.write(folder / f"{name}.wav", waveform, rate, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def run(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "run"
    pretrain(sound, run, **RECIPE)
    return run


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("data") / "store").path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_model(folder).module.state_dict()


def test_recipe__every_second_of_every_file_is_a_clip(run: Path):
    store = tymbal.Store.open(run / "store")
    clips = Counter(Path(file).stem for file in store.index["file"].to_pylist())
    singles = {f"one_{n}": 1 for n in range(20)} | dict.fromkeys(("third", "stereo", "slow", "fast"), 1)
    assert clips == {**singles, "five": 5, "minute": 60}
    assert store.frames == 112  # 98 frames and, for whole patches, 14 more
    frames = dict(zip(store.index["id"].to_pylist(), store.index["frames"].to_pylist(), strict=True))
    assert frames["third.wav"] == 28
    assert frames["fast.wav"] == 98
    assert store.features is not None
    assert store.features.sample_rate == 16_000


def test_recipe__files_without_sound_are_named(run: Path):
    with (run / "failures.csv").open() as file:
        reasons = {Path(row["file"]).stem: row["reason"] for row in csv.DictReader(file)}
    assert set(reasons) == {"silent", "nan"}


def test_recipe__all_clips_of_a_recording_lie_on_one_side(run: Path):
    index = tymbal.Store.open(run / "store").index
    sides: dict[str, set[str]] = {}
    for file, split in zip(index["file"].to_pylist(), index["split"].to_pylist(), strict=True):
        sides.setdefault(file, set()).add(split)
    assert all(len(found) == 1 for found in sides.values())
    assert {split for found in sides.values() for split in found} == {"train", "validation"}


def test_recipe__leaves_a_model_folder_and_its_figures(run: Path):
    settings = read_run_yaml(run).settings
    assert (settings["epochs"], settings["patience"], settings["window"]) == (150, 10, 1.0)
    for name in ("config.json", "model.safetensors", "preprocessor_config.json", "README.md", "objective.safetensors"):
        assert (run / "model" / name).is_file()
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert metrics["eval_mse"] > 0
    assert metrics["eval_masked_mse"] > 0
    described = load_model(run).description
    assert described.objective is not None
    assert described.objective["time_masks"] == 2
    assert "mask_ratio" not in described.objective
    assert described.provenance["metrics"]["eval_mse"] == metrics["eval_mse"]
    evaluations = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if "eval_mse" in line]
    assert metrics["eval_mse"] == min(each["eval_mse"] for each in evaluations)  # the lowest is the best
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"mse", "masked_mse"} <= logged[0].keys()


def test_recipe__loads_in_transformers(run: Path):
    from transformers import AutoModel

    theirs = AutoModel.from_pretrained(run / "model")
    spectrogram = torch.randn(1, 112, 128)
    with torch.no_grad():
        expected = load_model(run).module(spectrogram).tokens
        torch.testing.assert_close(theirs(spectrogram).last_hidden_state, expected, atol=1e-5, rtol=0)


def test_command__prints_the_final_evaluation(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    flags = [text for name, value in STORE_RECIPE.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["pretrain", str(store), "-o", str(tmp_path / "run"), "-q", *flags]) == 0
    assert "mse " in (out := capsys.readouterr().out)
    assert "masked_mse " in out
    settings = read_run_yaml(tmp_path / "run").settings
    assert settings["accumulate"] == 2
    assert settings["window"] is None  # the store has its clips, whatever the recipe says of sound


@pytest.mark.parametrize(("seconds", "clips"), [(0.3, 203), (5.0, 12), (60.0, 1)])
def test_window__windows_of_any_length(seconds: float, clips: int, tmp_path: Path):
    (tmp_path / "sound").mkdir()
    for n in range(2):
        soundfile.write(tmp_path / "sound" / f"{n}.wav", noise(61.0, seed=n), 16_000)
    settings = {**RECIPE, "window": seconds, "mel_bins": 16, "validation": 0.5}
    pretrain(tmp_path / "sound", tmp_path / "run", **settings)
    store = tymbal.Store.open(tmp_path / "run" / "store")
    assert len(store) == 2 * clips
    assert load_model(tmp_path / "run").description.encoder.frames == store.frames


def test_frames__is_the_length_of_windows_too(tmp_path: Path):
    (tmp_path / "sound").mkdir()
    for n in range(4):
        soundfile.write(tmp_path / "sound" / f"{n}.wav", noise(3.0, seed=n), 16_000)
    pretrain(tmp_path / "sound", tmp_path / "run", **RECIPE, frames=64, validation=0.25)
    store = tymbal.Store.open(tmp_path / "run" / "store")
    assert (store.frames, len(store)) == (64, 4 * 5)  # of 0.655 s; the last one is kept, because most of it is sound


def test_patience__needs_something_to_validate_on(tmp_path: Path):
    (tmp_path / "sound").mkdir()
    soundfile.write(tmp_path / "sound" / "one.wav", noise(3.0), 16_000)
    with pytest.raises(SettingsError, match=r"patience needs validation clips(.|\n)*set patience to 0"):
        pretrain(tmp_path / "sound", tmp_path / "run", **RECIPE)
    assert pretrain(tmp_path / "sound", tmp_path / "run", **RECIPE, patience=0).steps == 2


def test_sound__groups_rate_and_frames_are_settings(tmp_path: Path):
    (tmp_path / "sound").mkdir()
    for n in range(8):
        soundfile.write(tmp_path / "sound" / f"site{n // 2}_{n}.wav", noise(1.0, rate=8000, seed=n), 8000)
    options = {"group_pattern": "site([0-9])", "sample_rate": 8000, "frames": 128, "validation": 0.25}
    pretrain(tmp_path / "sound", tmp_path / "run", **RECIPE, **options)
    store = tymbal.Store.open(tmp_path / "run" / "store")
    assert store.features is not None
    assert (store.frames, store.features.sample_rate) == (128, 8000)
    pairs = set(zip(store.index["group"].to_pylist(), store.index["split"].to_pylist(), strict=True))
    assert sorted(group for group, _ in pairs) == ["0", "1", "2", "3"]
    assert sum(split == "validation" for _, split in pairs) == 1


def test_sound__settings_are_refused_where_clips_are_made(store: Path, tmp_path: Path):
    with pytest.raises(SettingsError, match="window is for sound"):
        pretrain(store, tmp_path / "run", **STORE_RECIPE, window=2.0)
    with pytest.raises(SettingsError, match="group_pattern is for sound"):
        pretrain(store, tmp_path / "run", **STORE_RECIPE, group_pattern="(a)")


def test_settings__that_would_learn_nothing_are_refused(store: Path, tmp_path: Path):
    with pytest.raises(SettingsError, match="learn to copy"):
        pretrain(store, tmp_path / "run", **{**STORE_RECIPE, "time_masks": 0, "frequency_mask_width": 0})
    with pytest.raises(SettingsError, match="no visible ones"):
        pretrain(store, tmp_path / "run", **STORE_RECIPE, encode="visible")


def test_train__only_the_last_blocks_learn(store: Path, tmp_path: Path):
    pretrain(store, tmp_path / "start", **{**STORE_RECIPE, "learning_rate": 1e-30})
    before = weights(tmp_path / "start")
    pretrain(store, tmp_path / "last", **STORE_RECIPE, train="1", from_=str(tmp_path / "start"), warmup=0.0)
    changed = {name for name, value in weights(tmp_path / "last").items() if not value.equal(before[name])}
    assert changed == {name for name in before if name.startswith(("blocks.1.", "norm."))}
    with pytest.raises(SettingsError, match="5 blocks are to be trained, but the encoder has 2"):
        pretrain(store, tmp_path / "more", **STORE_RECIPE, train="5")


def test_from__goes_on_with_projector_and_decoder(store: Path, tmp_path: Path):
    pretrain(store, tmp_path / "first", **STORE_RECIPE)
    pretrain(store, tmp_path / "second", **{**STORE_RECIPE, "learning_rate": 1e-30}, from_=str(tmp_path / "first"))
    first, second = load_model(tmp_path / "first"), load_model(tmp_path / "second")
    assert set(first.objective_state) > {"projector.weight", "decoder.0.weight", "decoder.2.bias"}
    assert all(value.equal(second.objective_state[name]) for name, value in first.objective_state.items())


def test_from__an_ast_with_overlapping_patches_stays_as_it_is(tmp_path: Path):
    from transformers import ASTConfig, ASTModel

    theirs = ASTModel(
        ASTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=32,
            max_length=32,
            num_mel_bins=32,
        )
    )
    torch.nn.init.normal_(theirs.embeddings.position_embeddings)
    theirs.save_pretrained(tmp_path / "ast")
    store = make_store(tmp_path / "store").path
    pretrain(store, tmp_path / "run", **{**STORE_RECIPE, "learning_rate": 1e-30}, from_=str(tmp_path / "ast"))
    ours = load_model(tmp_path / "run")
    assert ours.description.encoder.stride == (10, 10)
    assert ours.module.position_embedding.equal(theirs.embeddings.position_embeddings)


def test_resume__a_stopped_run_ends_as_one_that_was_not(store: Path, tmp_path: Path):
    whole = {**STORE_RECIPE, "max_steps": 6, "eval_steps": 3}
    pretrain(store, tmp_path / "whole", **whole)
    pretrain(store, tmp_path / "parts", **whole, max_minutes=1e-9)
    assert json.loads((tmp_path / "parts" / "result.json").read_text())["steps"] < 6
    pretrain(store, tmp_path / "parts", **whole)
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(first[name].equal(second[name]) for name in first)


def test_convert__writes_what_scripts_around_transformers_load(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from transformers import ASTConfig, ASTModel

    file = tmp_path / "model.pth"
    assert main(["convert", str(run), str(file), "--to", "pth"]) == 0
    told = capsys.readouterr().out
    state = torch.load(file, weights_only=True)
    assert {name.partition(".")[0] for name in state} == {"encoder", "projector", "decoder"}
    arguments = told.partition("ASTConfig(")[2].partition(")")[0]
    config = ASTConfig(**{key: json.loads(value) for key, value in _pairs(arguments)})
    encoder = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
    theirs = ASTModel.from_pretrained(None, config=config, state_dict=encoder).eval()
    spectrogram = torch.randn(1, 112, 128)
    with torch.no_grad():
        expected = load_model(run).module(spectrogram).tokens
        torch.testing.assert_close(theirs(spectrogram).last_hidden_state, expected, atol=1e-5, rtol=0)
    assert "decoder.0.weight (16, 32, 3)" in told
    assert "the 8 rows of a column side by side" in told


def _pairs(text: str) -> list[list[str]]:
    return [part.split("=") for part in text.split(", ")]


def test_convert__and_back_goes_on_with_all_of_it(store: Path, tmp_path: Path):
    pretrain(store, tmp_path / "first", **STORE_RECIPE)
    tymbal.convert(tmp_path / "first", tmp_path / "model.pth")
    again = {**STORE_RECIPE, "learning_rate": 1e-30}
    pretrain(store, tmp_path / "second", **again, from_=str(tmp_path / "model.pth"))
    first, second = load_model(tmp_path / "first"), load_model(tmp_path / "second")
    after = second.module.state_dict()
    assert all(after[name].equal(value) for name, value in first.module.state_dict().items() if name != "mask_token")
    assert all(second.objective_state[name].equal(first.objective_state[name]) for name in HEADS)
    with pytest.raises(ModelError, match="pretrained by reconstruction: --to pth writes all of it"):
        tymbal.convert(tmp_path / "first", tmp_path / "ssast.pth", to="ssast")


HEADS = ("projector.weight", "projector.bias", "decoder.0.weight", "decoder.2.weight", "decoder.2.bias")


def test_pretrain__splits_as_the_notebooks_and_says_where_clips_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from sklearn.model_selection import train_test_split

    from tymbal.store.packed.packed_store import open_store

    (tmp_path / "sound").mkdir()
    for n in range(60):
        seconds = 2.0 if n == 7 else 1.0
        soundfile.write(tmp_path / "sound" / f"clip_{n}.wav", noise(seconds, seed=n), 16_000)
    pretrain(tmp_path / "sound", tmp_path / "run", **RECIPE)
    _, expected = train_test_split(sorted(f"clip_{n}.wav" for n in range(60)), test_size=0.1, random_state=42)
    store = open_store(tmp_path / "run" / "store")
    files = [Path(store.index["file"][row].as_py()).name for row in store.rows("validation")]
    assert sorted(set(files)) == sorted(expected)
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("1 files are longer than a clip and become several windows") == 1
    recorded = read_run_yaml(tmp_path / "run").settings
    assert (recorded["weight_decay"], recorded["adam_beta2"], recorded["split"]) == (0.0, 0.999, "sklearn")


def test_pretrain__over_tokens_has_the_notebooks_shapes_and_goes_on_with_their_heads(store: Path, tmp_path: Path):
    settings = {name: value for name, value in STORE_RECIPE.items() if name != "channels"} | {"decode": "tokens"}
    pretrain(store, tmp_path / "run", **settings)
    state = load_model(tmp_path / "run").objective_state
    shapes = {name: tuple(value.shape) for name, value in state.items() if value.ndim > 1}
    assert shapes == {
        "projector.weight": (128, 16),
        "decoder.0.weight": (128, 128, 3),
        "decoder.2.weight": (32, 128, 3),
    }
    tymbal.convert(tmp_path / "run", tmp_path / "model.pth", to="pth", transformers="5")
    pretrain(store, tmp_path / "more", **{**settings, "learning_rate": 1e-30}, from_=str(tmp_path / "model.pth"))
    after = load_model(tmp_path / "more").objective_state
    assert all(after[name].equal(state[name]) for name in HEADS)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("eval_masked_mse" in line for line in lines)
