"""Weights that plain scripts save: an AST of Hugging Face in a module of their own, without a configuration."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from transformers import ASTConfig, ASTFeatureExtractor, ASTModel

from tymbal import convert
from tymbal.config import recipe_under
from tymbal.errors import ModelError
from tymbal.features.normalisation import Normalisation
from tymbal.models.classifier import ScriptClassifier
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.models.folder import load_model, open_checkpoint, save_model
from tymbal.models.warm_start import warm_start
from tymbal.objectives.reconstruction import OBJECTIVE, ReconstructionObjective, ReconstructionSettings
from tymbal.settings import FeatureSettings

SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 160}
NAMINGS = ("transformers 5", "disk", "transformers 4")


class ScriptSSL(nn.Module):
    """What pretraining scripts write: an encoder, a projector, and a decoder over time."""

    def __init__(self, frames: int = 128, mels: int = 128, **shape: object) -> None:
        super().__init__()
        self.encoder = ASTModel(ASTConfig(**{**SHAPE, **shape}, max_length=frames, num_mel_bins=mels))
        self.projector = nn.Linear(self.encoder.config.hidden_size, 24)
        self.decoder = nn.Sequential(nn.Conv1d(24, 32, 3, padding=1), nn.ReLU(), nn.Conv1d(32, mels, 3, padding=1))


class ScriptExport(nn.Module):
    """What they export: the final norm once more, the mean over all tokens, one linear layer."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.encoder = ASTModel(ASTConfig(**SHAPE, max_length=128))
        self.classifier = nn.Linear(64, classes)

    def forward(self, spectrogram: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder.layernorm(self.encoder(spectrogram).last_hidden_state)
        return self.classifier(hidden.mean(dim=1))


def randomised(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.15)
    return module.eval()


def named(module: nn.Module, naming: str) -> dict[str, torch.Tensor]:
    """The weights as Trainer, or torch.save, would have written them under one of the namings."""
    state = {name: value.detach().clone() for name, value in module.state_dict().items()}
    if naming == "transformers 5":
        assert "encoder.layers.0.attention.q_proj.weight" in state
        return state
    disk = {
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    renamed = {}
    for name, value in state.items():
        old = name.replace("encoder.layers.", "encoder.encoder.layer.")
        for memory, other in disk.items():
            old = old.replace(memory, other)
        renamed[old] = value
    assert "encoder.encoder.layer.1.attention.output.dense.bias" in renamed
    # In the memory of transformers 4 names are those on disk; there DataParallel was still common.
    return {f"module.{name}": value for name, value in renamed.items()} if naming == "transformers 4" else renamed


def saved(folder: Path, module: nn.Module, naming: str = "transformers 5", name: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    state = named(module, naming)
    if name.endswith(".pth"):
        torch.save(state, folder / name)
    else:
        safetensors.torch.save_file(state, folder / name)
    return folder / name


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("name", ["model.safetensors", "best_model.pth"])
def test_load_model__computes_what_the_script_computes(naming: str, name: str, tmp_path: Path):
    theirs = randomised(ScriptSSL())
    loaded = load_model(saved(tmp_path, theirs, naming, name))
    spectrogram = torch.randn(2, 128, 128)
    with torch.no_grad():
        expected = theirs.encoder(spectrogram).last_hidden_state
        torch.testing.assert_close(loaded.module(spectrogram).tokens, expected, atol=1e-5, rtol=0)
    encoder = loaded.description.encoder
    assert (encoder.width, encoder.depth, encoder.heads, encoder.mlp_ratio) == (64, 2, 1, 2.5)
    assert (encoder.mels, encoder.grid, encoder.stride, encoder.layer_norm_eps) == (128, (12, 12), (10, 10), 1e-12)
    assert loaded.objective_state["projector.weight"].equal(theirs.projector.weight)
    assert set(loaded.objective_state) == {f"{part}.{kind}" for part in PARTS for kind in ("weight", "bias")}


PARTS = ("projector", "decoder.0", "decoder.2")


@pytest.mark.parametrize("naming", NAMINGS)
def test_warm_start__at_its_own_length_every_weight_is_bit_equal(naming: str, tmp_path: Path):
    theirs = randomised(ScriptSSL())
    wanted = EncoderConfig(width=8, depth=1, heads=1, frames=128)
    encoder, report, _ = warm_start(saved(tmp_path, theirs, naming), config=wanted, keep_stride=True)
    ast = theirs.encoder
    assert encoder.position_embedding.equal(ast.embeddings.position_embeddings)
    assert encoder.patch_projection.weight.equal(ast.embeddings.patch_embeddings.projection.weight.flatten(1))
    for ours, layer in zip(encoder.blocks, ast.layers, strict=True):
        attention = layer.attention
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        assert ours.attention.qkv.weight.equal(torch.cat([part.weight for part in parts]))
        assert ours.attention.qkv.bias.equal(torch.cat([part.bias for part in parts]))
        assert ours.attention.projection.weight.equal(attention.o_proj.weight)
        assert ours.fc1.weight.equal(layer.mlp.fc1.weight)
        assert ours.fc2.bias.equal(layer.mlp.fc2.bias)
    assert encoder.norm.weight.equal(ast.layernorm.weight)
    assert (report.resized, report.new) == ((), ("mask_token",))
    assert set(report.left) == {f"{part}.{kind}" for part in PARTS for kind in ("weight", "bias")}
    assert "left behind (decoder.0.bias, decoder.0.weight" in str(report)
    assert "assumed: attention heads: 1, stride: 10x10, 16 kHz and AudioSet's mean and standard deviation" in str(
        report
    )


def test_warm_start__at_another_length_only_positions_are_resized(tmp_path: Path):
    theirs = randomised(ScriptSSL())
    wanted = EncoderConfig(width=8, depth=1, heads=1, frames=512)
    encoder, report, _ = warm_start(saved(tmp_path, theirs), config=wanted, keep_stride=True)
    assert report.resized == ("position_embedding",)
    assert encoder.config.grid == (12, 50)
    assert encoder.blocks[1].fc1.weight.equal(theirs.encoder.layers[1].mlp.fc1.weight)


@pytest.mark.parametrize(
    ("made", "told", "grid"),
    [
        ({"frames": 1024}, {}, (12, 101)),
        ({"frames": 100, "mels": 64}, {}, (5, 9)),
        ({"frames": 112, "frequency_stride": 16, "time_stride": 16}, {}, (8, 7)),
        # 8 x 18 patches are also 12 x 12 with transformers' stride, unless the file beside or the user tells.
        ({"frames": 288, "frequency_stride": 16, "time_stride": 16}, {"stride": (16, 16)}, (8, 18)),
    ],
)
def test_load_model__infers_the_geometry(made: dict, told: dict, grid: tuple[int, int], tmp_path: Path):
    loaded = load_model(saved(tmp_path, randomised(ScriptSSL(**made))), **told)
    assert loaded.description.encoder.grid == grid
    assert loaded.description.encoder.mels == made.get("mels", 128)


def test_load_model__believes_an_extractor_beside_it(tmp_path: Path):
    file = saved(tmp_path, randomised(ScriptSSL(frames=288, frequency_stride=16, time_stride=16)))
    ASTFeatureExtractor(max_length=288, mean=-3.0, std=2.5).save_pretrained(tmp_path)
    described = load_model(file).description
    assert described.encoder.grid == (8, 18)
    assert described.encoder.frames == 288
    assert (described.mean, described.std, described.padding) == (-3.0, 2.5, 0.0)
    assert "AudioSet" not in described.provenance["assumed"]


def test_load_model__assumes_what_asts_extractor_does(tmp_path: Path):
    described = load_model(saved(tmp_path, randomised(ScriptSSL()))).description
    assert (described.features.sample_rate, described.mean, described.std) == (16_000, -4.2677393, 4.5689974)
    assert described.objective == {"objective": "reconstruction"}


def test_load_model__heads_are_said_where_they_are_others(tmp_path: Path):
    theirs = randomised(ScriptSSL(num_attention_heads=4))
    file = saved(tmp_path / "a", theirs)
    spectrogram = torch.randn(1, 128, 128)
    with torch.no_grad():
        expected = theirs.encoder(spectrogram).last_hidden_state
        found = load_model(file, heads=4).module(spectrogram).tokens
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    odd = saved(tmp_path / "b", randomised(ScriptSSL(hidden_size=200, num_attention_heads=4)))
    with pytest.raises(ModelError, match="3 do not fit a width of 200"):
        load_model(odd)


@pytest.mark.parametrize("naming", NAMINGS)
def test_load_model__an_exported_classifier_keeps_its_quirk(naming: str, tmp_path: Path):
    theirs = randomised(ScriptExport())
    loaded = load_model(saved(tmp_path, theirs, naming, "classifier.pth"))
    spectrogram = torch.randn(2, 128, 128)
    with torch.no_grad():
        expected = theirs(spectrogram)
        torch.testing.assert_close(loaded.module(spectrogram), expected, atol=1e-5, rtol=0)
        once = loaded.module.head(loaded.module.encoder(spectrogram).tokens.mean(1))
    assert (once - expected).abs().max() > 0.1  # the second norm is no formality
    assert isinstance(loaded.module, ScriptClassifier)
    assert loaded.description.pooling == "all-normed-twice"
    assert loaded.description.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert "final norm twice" in loaded.description.provenance["assumed"]
    save_model(tmp_path / "ours", loaded.module, loaded.description)
    again = load_model(tmp_path / "ours")
    assert again.module(spectrogram).equal(loaded.module(spectrogram))
    assert "all-normed-twice" in (tmp_path / "ours" / "README.md").read_text()


def test_warm_start__from_an_exported_classifier_leaves_its_head(tmp_path: Path):
    theirs = randomised(ScriptExport())
    wanted = EncoderConfig(width=8, depth=1, heads=1, frames=128)
    encoder, report, origin = warm_start(saved(tmp_path, theirs), config=wanted, keep_stride=True)
    assert encoder.norm.weight.equal(theirs.encoder.layernorm.weight)
    assert set(report.left) == {"head.weight", "head.bias"}
    assert origin.pooling == "all-normed-twice"


def test_open_checkpoint__a_classifier_of_another_kind_is_left_and_said(tmp_path: Path):
    theirs = randomised(ScriptExport())
    theirs.classifier = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3))
    checkpoint = open_checkpoint(saved(tmp_path, theirs))
    assert checkpoint.head == {}
    assert set(checkpoint.left) == {f"classifier.{n}.{part}" for n in (0, 2) for part in ("weight", "bias")}


def test_open_checkpoint__finds_the_weights_in_a_trainers_folder(tmp_path: Path):
    file = saved(tmp_path / "checkpoint-500", randomised(ScriptSSL()))
    torch.save({"state": {}}, file.with_name("optimizer.pt"))
    assert open_checkpoint(file.parent).door == "script"


def test_open_checkpoint__what_fits_nowhere_is_an_error(tmp_path: Path):
    file = saved(tmp_path, randomised(ScriptSSL()))
    state = safetensors.torch.load_file(file)
    lost = {name: value for name, value in state.items() if "layers.1.mlp.fc2" not in name}
    safetensors.torch.save_file(lost, file)
    with pytest.raises(ModelError, match=r"2 missing \(blocks.1.fc2"):
        load_model(file)
    safetensors.torch.save_file({name: state[name] for name in state if "position" not in name}, file)
    with pytest.raises(ModelError, match="the encoder is incomplete: position_embedding is missing"):
        load_model(file)
    odd = {**state, "encoder.embeddings.position_embeddings": torch.zeros(1, 2 + 97, 64)}
    safetensors.torch.save_file(odd, file)
    with pytest.raises(ModelError, match="97 positions of 128 mel bins fit no stride of 10x10 and 16x16"):
        load_model(file)
    safetensors.torch.save_file({"conv1.weight": torch.zeros(2, 2)}, file)
    with pytest.raises(ModelError, match="neither SSAST's nor those of an AST"):
        load_model(file)


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_open_checkpoint__runs_nothing_that_a_pickle_holds(tmp_path: Path):
    state = named(randomised(ScriptSSL()), "disk")
    torch.save({**state, "extra": Malicious(tmp_path / "ran")}, tmp_path / "model.pth")
    with pytest.raises(ModelError, match="could run a program when opened: it is refused"):
        open_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_open_checkpoint__believes_a_configuration_beside_it(tmp_path: Path):
    theirs = randomised(ScriptSSL(num_attention_heads=4, hidden_act="gelu"))
    file = saved(tmp_path, theirs, name="export.pth")
    theirs.encoder.config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["num_attention_heads"] == 4
    loaded = load_model(file)
    assert loaded.description.encoder.heads == 4
    assert loaded.description.encoder.frames == 128


@pytest.mark.parametrize("script", [ScriptSSL, ScriptExport])
def test_open_checkpoint__the_folder_may_have_the_configuration_of_the_encoder(script: type[nn.Module], tmp_path: Path):
    theirs = randomised(script())
    saved(tmp_path, theirs, "transformers 4")
    theirs.encoder.config.id2label = {0: "aedes", 1: "anopheles", 2: "culex"}
    theirs.encoder.config.save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    if script is ScriptSSL:
        assert loaded.objective_state["decoder.2.bias"].equal(theirs.decoder[2].bias)
    else:
        assert loaded.description.labels == ("aedes", "anopheles", "culex")
        spectrogram = torch.randn(1, 128, 128)
        with torch.no_grad():
            torch.testing.assert_close(loaded.module(spectrogram), theirs(spectrogram), atol=1e-5, rtol=0)


def test_open_checkpoint__finds_the_weights_among_a_trainings_state(tmp_path: Path):
    theirs = randomised(ScriptSSL())
    torch.save({"epoch": 3, "model_state_dict": named(theirs, "disk"), "loss": 0.5}, tmp_path / "last.pth")
    assert load_model(tmp_path / "last.pth").objective_state["projector.bias"].equal(theirs.projector.bias)


class NotebookSSL(nn.Module):
    """The module of the notebooks, whole: what it computes over all tokens."""

    def __init__(self, encoder: ASTModel) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = nn.Linear(encoder.config.hidden_size, 128)
        self.decoder = nn.Sequential(nn.Conv1d(128, 128, 3, padding=1), nn.ReLU(), nn.Conv1d(128, 128, 3, padding=1))

    def forward(self, spectrogram: torch.Tensor) -> torch.Tensor:
        channels = self.projector(self.encoder(spectrogram).last_hidden_state).transpose(1, 2)
        decoded = self.decoder(channels)
        return nn.functional.interpolate(decoded, size=spectrogram.shape[1], mode="linear").transpose(1, 2)


def reconstruction(frames: int, **shape: Any) -> ReconstructionObjective:
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(EncoderConfig(width=64, depth=2, heads=1, frames=frames, stride=(10, 10), **shape))
    normalisation = Normalisation(mean=-4.0, std=4.5, padding=0.0)
    settings = ReconstructionSettings(**recipe_under(ReconstructionSettings, {"decode": "tokens"}), decode="tokens")
    data: Any = None
    made = OBJECTIVE.build(encoder, data, normalisation, settings)
    return randomised(made)


def write_run(folder: Path, objective: ReconstructionObjective, **facts: Any) -> Path:
    described = ModelDescription(
        encoder=objective.encoder.config,
        features=FeatureSettings(),
        mean=-4.0,
        std=4.5,
        padding=0.0,
        objective={"objective": "reconstruction", "decode": "tokens"},
        **facts,
    )
    save_model(folder, objective.encoder, described, objective_state=objective.head_state())
    return folder


@pytest.mark.parametrize("transformers", ["4", "5"])
def test_convert__writes_what_the_notebooks_module_takes_under_either_naming(transformers: str, tmp_path: Path):
    objective = reconstruction(128)
    run = write_run(tmp_path / "run", objective)
    result = convert(run, tmp_path / "model.pth", to="pth", transformers=transformers)
    state = torch.load(tmp_path / "model.pth", weights_only=True)
    shape = {**SHAPE, "intermediate_size": 256, "layer_norm_eps": 1e-6, "max_length": 128}
    theirs = NotebookSSL(ASTModel(ASTConfig(**shape)))
    own_names = set(theirs.state_dict())  # transformers 5 is what is installed here
    assert (set(state) == own_names) == (transformers == "5")
    if transformers == "4":
        state = {name.replace("encoder.encoder.layer.", "encoder.layers."): value for name, value in state.items()}
        for old, new in (
            ("attention.attention.query", "attention.q_proj"),
            ("attention.attention.key", "attention.k_proj"),
            ("attention.attention.value", "attention.v_proj"),
            ("attention.output.dense", "attention.o_proj"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"),
        ):
            state = {name.replace(old, new): value for name, value in state.items()}
    theirs.load_state_dict(state)
    spectrogram = torch.randn(2, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(objective.reconstruct(spectrogram), theirs.eval()(spectrogram), atol=1e-4, rtol=1e-4)
    notes = " ".join(result.notes)
    assert f"--transformers {9 - int(transformers)} writes" in notes
    assert "projector.weight (128, 64)" in notes
    assert "decoder.0.weight (128, 128, 3)" in notes
    assert "over all tokens in their order" in notes


@pytest.mark.parametrize("how", ["cut", "first", "resize"])
def test_convert__positions_of_the_original_length_are_the_originals_with_what_was_trained_in_its_place(
    how: str, tmp_path: Path
):
    original = randomised(reconstruction(512))
    whole = original.encoder.position_embedding.detach()
    write_run(tmp_path / "ast", original)
    wanted = EncoderConfig(width=64, depth=2, heads=1, frames=112, stride=(10, 10))
    encoder, _, _ = warm_start(tmp_path / "ast", config=wanted, positions=how)
    with torch.no_grad():
        encoder.position_embedding += 1
    objective = reconstruction(112)
    objective.encoder = encoder
    run = write_run(tmp_path / "run", objective, provenance={"verb": "pretrain", "from": str(tmp_path / "ast")})
    result = convert(run, tmp_path / "long.pth", to="pth", frames=512)
    state = torch.load(tmp_path / "long.pth", weights_only=True)
    written = state["encoder.embeddings.position_embeddings"]
    assert written.shape == whole.shape == (1, 2 + 12 * 50, 64)
    by_column = (written - whole)[0, 2:].reshape(12, 50, 64)
    start = {"cut": 20, "first": 0}.get(how)
    if start is None:
        assert written[:, 2:].equal(encoder.positions((12, 50))[:, 2:])
        assert "12x10 to 12x50, by resize" in " ".join(result.notes)
    else:
        expected = torch.zeros(50)
        expected[start : start + 10] = 1
        torch.testing.assert_close(by_column.mean((0, 2)), expected, atol=1e-5, rtol=0)
        assert f"its own columns from {start} on, around them those of {tmp_path / 'ast'}" in " ".join(result.notes)
        shutil.rmtree(tmp_path / "ast")
        alone = convert(run, tmp_path / "alone.pth", to="pth", frames=512)
        assert "around them the outermost again" in " ".join(alone.notes)
        other = torch.load(tmp_path / "alone.pth", weights_only=True)["encoder.embeddings.position_embeddings"]
        columns = other[0, 2:].reshape(12, 50, 64)
        assert columns[:, start : start + 10].equal(encoder.position_embedding[0, 2:].reshape(12, 10, 64))
        assert columns[:, 49].equal(encoder.position_embedding[0, 2:].reshape(12, 10, 64)[:, 9])


def test_convert__writes_a_classifier_of_the_notebooks_as_they_export_it(tmp_path: Path):
    theirs = randomised(ScriptExport())
    saved(tmp_path / "theirs", theirs)
    result = convert(tmp_path / "theirs", tmp_path / "again.pth", to="pth", heads=1, transformers="5")
    state = torch.load(tmp_path / "again.pth", weights_only=True)
    assert state.keys() == theirs.state_dict().keys()
    assert all(value.equal(theirs.state_dict()[name]) for name, value in state.items())
    assert "a linear layer, classifier, on the mean over all tokens" in " ".join(result.notes)
