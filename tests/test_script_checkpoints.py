"""What scripts around Hugging Face's AST saved goes on in every verb: pretrain, finetune, predict, convert."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
from torch import nn
from transformers import ASTConfig, ASTModel

import tymbal
from tymbal.models.folder import load_model

TRAINING: dict[str, Any] = {
    "max_steps": 2,
    "batch_size": 4,
    "learning_rate": 1e-30,  # too small to change a float32: what is saved is what it started from
    "device": "cpu",
    "precision": "float32",
    "frames": 128,
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    for split, count in (("train", 6), ("validation", 2)):
        for label in ("aedes", "culex"):
            (folder / split / label).mkdir(parents=True)
            for n in range(count):
                waveform = np.random.default_rng(n).normal(0, 0.1, 16_000)
                soundfile.write(folder / split / label / f"{n}.wav", waveform, 16_000)
    return folder


@pytest.fixture(scope="module")
def ast() -> ASTModel:
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 96}
    model = ASTModel(ASTConfig(**shape, max_length=128)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture
def checkpoint(ast: ASTModel, tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint-500"
    folder.mkdir()
    script = nn.ModuleDict({"encoder": ast, "projector": nn.Linear(64, 24)})
    safetensors.torch.save_file(dict(script.state_dict()), folder / "model.safetensors")
    return folder


def assert_taken(run: Path, ast: ASTModel, *, except_positions: bool = False) -> None:
    """All weights of the encoder are bit by bit those of the script."""
    module = load_model(run).module
    ours = getattr(module, "encoder", module).state_dict()
    theirs = ast.state_dict()
    positions = theirs["embeddings.position_embeddings"]
    assert ours["position_embedding"].equal(positions) is not except_positions
    assert ours["patch_projection.weight"].equal(theirs["embeddings.patch_embeddings.projection.weight"].flatten(1))
    for n in range(2):
        parts = [theirs[f"layers.{n}.attention.{part}_proj.weight"] for part in "qkv"]
        assert ours[f"blocks.{n}.attention.qkv.weight"].equal(torch.cat(parts))
        assert ours[f"blocks.{n}.fc1.weight"].equal(theirs[f"layers.{n}.mlp.fc1.weight"])
        assert ours[f"blocks.{n}.norm2.bias"].equal(theirs[f"layers.{n}.layernorm_after.bias"])
    assert ours["norm.weight"].equal(theirs["layernorm.weight"])


@pytest.mark.parametrize("length", [128, 112])
def test_finetune__from_a_scripts_checkpoint(
    length: int, checkpoint: Path, ast: ASTModel, sound: Path, capsys: pytest.CaptureFixture[str]
):
    run = checkpoint.with_name("run")
    tymbal.finetune(sound, run, from_=str(checkpoint), **{**TRAINING, "frames": length})
    assert_taken(run, ast, except_positions=length == 112)
    told = " ".join(capsys.readouterr().err.split())
    assert "weights taken; " in told
    assert "2 left behind (projector.bias, projector.weight)" in told
    assert "assumed: attention heads: 1, stride: 10x10, 16 kHz" in told


def test_pretrain__from_a_scripts_checkpoint(checkpoint: Path, ast: ASTModel, sound: Path, tmp_path: Path):
    tymbal.pretrain(sound, tmp_path / "run", from_=str(checkpoint), objective="reconstruction", **TRAINING)
    assert_taken(tmp_path / "run", ast)
    described = load_model(tmp_path / "run").description
    assert (described.mean, described.std, described.padding) == (-4.2677393, 4.5689974, 0.0)


def test_predict__with_a_scripts_classifier(
    ast: ASTModel, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    script = nn.ModuleDict({"encoder": ast, "classifier": nn.Linear(64, 2)})
    torch.save(script.state_dict(), tmp_path / "exported.pth")
    tymbal.predict(str(tmp_path / "exported.pth"), [sound / "validation" / "aedes"], tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["label"] for row in rows} == {"LABEL_0", "LABEL_1"}
    told = " ".join(capsys.readouterr().err.split())
    assert "which does not tell: attention heads: 1, stride: 10x10, 16 kHz and AudioSet's mean" in told
    assert "the final norm twice" in told


def test_finetune__goes_on_with_a_scripts_classifier(
    ast: ASTModel, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    script = nn.ModuleDict({"encoder": ast, "classifier": nn.Linear(64, 2)})
    safetensors.torch.save_file(dict(script.state_dict()), tmp_path / "exported.safetensors")
    exported = str(tmp_path / "exported.safetensors")
    tymbal.finetune(sound, tmp_path / "run", from_=exported, **TRAINING)
    assert_taken(tmp_path / "run", ast)
    first = load_model(tmp_path / "run")
    assert first.module.head.weight.equal(script["classifier"].weight)
    assert (first.description.labels, first.description.pooling) == (("aedes", "culex"), "all-normed-twice")
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "| pooling | all-normed-twice |" in card
    assert "| head | that of the source, pooling by all-normed-twice; its labels have no names" in card
    assert "are taken in order for aedes, culex" in " ".join(capsys.readouterr().err.split())
    clip = sound / "validation" / "aedes" / "0.wav"
    for name, model in (("before", exported), ("after", str(tmp_path / "run"))):
        tymbal.predict(model, clip, tmp_path / f"{name}.csv", precision="float32", device="cpu")
    before, after = ((tmp_path / f"{name}.csv").read_text() for name in ("before", "after"))
    assert before.replace("LABEL_0", "aedes").replace("LABEL_1", "culex") == after
    onwards = {**TRAINING, "learning_rate": 1e-2, "eval_start": False}
    tymbal.finetune(sound, tmp_path / "again", from_=tmp_path / "run", **onwards)
    again = load_model(tmp_path / "again")
    assert again.description.pooling == "all-normed-twice"
    assert not again.module.head.weight.equal(first.module.head.weight)
    assert not again.module.encoder.norm.weight.equal(first.module.encoder.norm.weight)
    tymbal.finetune(sound, tmp_path / "mean", from_=exported, pooling="mean", **TRAINING)
    assert load_model(tmp_path / "mean").description.pooling == "mean"
    assert "head: new, since that of the source pools by all-normed-twice" in " ".join(capsys.readouterr().err.split())


def test_convert__a_scripts_checkpoint_to_what_stock_transformers_loads(checkpoint: Path, ast: ASTModel):
    output = checkpoint.with_name("model")
    assert tymbal.convert(checkpoint, output, to="hf", heads=1).to == "a model for transformers and Tymbal"
    theirs = ASTModel.from_pretrained(output)
    assert all(value.equal(theirs.state_dict()[name]) for name, value in ast.state_dict().items())


def test_finetune__pools_as_the_notebooks_do_where_asked_and_says_what_stock_transformers_needs(
    checkpoint: Path, ast: ASTModel, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    settings = {**TRAINING, "from_": str(checkpoint), "recipe": "notebook", "train": "1", "window": None}
    tymbal.finetune(sound, tmp_path / "mean", **settings)
    told = " ".join(capsys.readouterr().err.split())
    assert "pools by mean; that of the notebooks by all-normed-twice, which --pooling all-normed-twice gives" in told
    assert "own extractor, train with --pooling cls. As it is" in told
    tymbal.finetune(sound, tmp_path / "run", **settings, pooling="all-normed-twice", dropout=0.1)
    told = " ".join(capsys.readouterr().err.split())
    assert "that of the notebooks" not in told
    loaded = load_model(tmp_path / "run")
    assert loaded.description.pooling == "all-normed-twice"
    spectrogram = torch.randn(2, 128, 128)
    with torch.no_grad():
        pooled = ast.layernorm(ast(spectrogram).last_hidden_state).mean(1)
        expected = nn.functional.linear(pooled, loaded.module.head.weight, loaded.module.head.bias)
        torch.testing.assert_close(loaded.module(spectrogram), expected, atol=1e-5, rtol=0)
