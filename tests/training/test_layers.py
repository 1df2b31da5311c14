"""Rates by layer, and parameters that thaw as epochs pass: exact, also after a kill, untouched before."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from small_model import small_model
from tones import FEATURES, FRAMES, tone_store
from tymbal import finetune, load_model
from tymbal.errors import SettingsError
from tymbal.features.kaldi import LOG_FLOOR
from tymbal.models.classifier import SpectrogramClassifier
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.models.folder import save_model
from tymbal.settings import FinetuneSettings, PretrainSettings
from tymbal.training.batches import BatchPlan
from tymbal.training.callbacks import Evaluation
from tymbal.training.checkpoints import best_weights
from tymbal.training.layers import (
    MovingAverage,
    Unfreezing,
    add_adapters,
    freeze,
    heads_first,
    layered_groups,
    merged,
    stages,
)
from tymbal.training.trainer import TymbalTrainer

CONFIG = EncoderConfig(width=16, depth=2, heads=2, mels=16, frames=FRAMES, patch=(8, 8), stride=(8, 8))
THAWING = {
    "batch_size": 12,
    "epochs": 4,
    "learning_rate": 3e-3,
    "unfreeze_every": 1,
    "layer_decay": 0.5,
    "weight_decay": 0.5,
    "warmup": 0,
    "device": "cpu",
    "precision": "float32",
    "report_to": (),
}
LAYERS = {"patch_projection", "cls_token", "distillation_token", "position_embedding", "blocks.0", "blocks.1", "norm"}


class Whole(torch.nn.Module):
    """Stands for an objective."""

    def __init__(self) -> None:
        super().__init__()
        self.model = SpectrogramClassifier(SpectrogramEncoder(CONFIG), 3)


def rates(**settings: object) -> dict[str, float]:
    whole = Whole()
    freeze(whole.model, str(settings.get("train", "all")))
    chosen = FinetuneSettings(learning_rate=0.1, weight_decay=0.05, **settings)
    names = {id(parameter): name.removeprefix("model.") for name, parameter in whole.named_parameters()}
    groups = layered_groups(whole, whole.model.encoder, chosen)
    found = {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}
    assert len(found) == sum(len(group["params"]) for group in groups)
    assert {group["weight_decay"] for group in groups} == {0.05, 0.0}
    assert groups[0]["lr"] == max(group["lr"] for group in groups[:-2])
    return found


def test_layered_groups__rates_fall_from_layer_to_layer() -> None:
    found = rates(layer_decay=0.5, head_lr_factor=10)
    assert found["head.weight"] == found["head_norm.bias"] == pytest.approx(1.0)
    assert found["encoder.norm.weight"] == pytest.approx(0.1)
    assert found["encoder.blocks.1.fc1.weight"] == found["encoder.blocks.1.norm1.bias"] == pytest.approx(0.05)
    assert found["encoder.blocks.0.attention.qkv.weight"] == pytest.approx(0.025)
    lowest = {"patch_projection.weight", "cls_token", "distillation_token", "position_embedding"}
    assert [found[f"encoder.{name}"] for name in lowest] == pytest.approx(4 * [0.0125])
    assert "encoder.mask_token" not in found


def test_layered_groups__without_decay_all_of_the_encoder_is_equally_fast() -> None:
    assert {rate for name, rate in rates().items()} == {0.1}
    assert rates(layer_decay=0.5, train="1").keys() < rates().keys()


def test_unfreezing__follows_from_the_step_alone() -> None:
    encoder = SpectrogramClassifier(SpectrogramEncoder(CONFIG), 3).encoder
    found = stages(encoder, 0.5)
    names = {id(parameter): name for name, parameter in encoder.named_parameters()}
    first = {names[id(parameter)].rpartition(".")[0].split(".")[0] for parameter in found.parameters[0]}
    assert (len(found.parameters), first) == (3, {"norm", "blocks"})
    plan = BatchPlan(length=40, batch_sizes=(5, 10), epochs=2)  # 8 steps, then 4
    unfreezing = Unfreezing(found, plan)
    assert [unfreezing.thawed(step) for step in range(12)] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 3, 3]


def test_unfreezing__warns_where_the_run_is_too_short(capsys: pytest.CaptureFixture[str]) -> None:
    encoder = SpectrogramClassifier(SpectrogramEncoder(CONFIG), 3).encoder
    Unfreezing(stages(encoder, 1.0), BatchPlan(length=10, batch_sizes=(5,), epochs=2))
    assert "2 of 3 layers are never trained" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(SettingsError, match="unfreeze_every has no effect where only the head is trained"):
        FinetuneSettings(train="head", unfreeze_every=1)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained encoder, and clips."""
    folder = tmp_path_factory.mktemp("thawing")
    torch.manual_seed(5)
    description = ModelDescription(encoder=CONFIG, features=FEATURES, mean=-7.0, std=4.0, padding=LOG_FLOOR)
    save_model(folder / "model", SpectrogramEncoder(CONFIG), description)
    tone_store(folder / "store", clips=10, validation=2)  # 24 to learn from: 2 steps an epoch
    return folder


def changed(now: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> set[str]:
    names = {name for name in before if not torch.equal(before[name], now[name])}
    return {".".join(name.split(".")[:2]) if "blocks" in name else name.split(".")[0] for name in names}


@pytest.mark.parametrize(("train", "limit"), [("all", LAYERS), ("1", {"blocks.1", "norm"})])
def test_finetune__what_is_frozen_for_now_stays_bit_equal(
    train: str, limit: set[str], source: Path, tmp_path: Path
) -> None:
    states: list[dict[str, torch.Tensor]] = []

    def note(evaluation: Evaluation) -> None:
        encoder = evaluation.module.model.encoder
        states.append({name: value.clone() for name, value in encoder.state_dict().items()})

    settings = {**THAWING, "from_": source / "model", "train": train}
    finetune(source / "store", tmp_path / "run", on_evaluation=note, **settings)
    start = load_file(source / "model" / "model.safetensors")
    assert torch.equal(states[0]["norm.weight"], start["layernorm.weight"])
    # The head alone; then the last block with the final norm; then the first block; then the embedded patches.
    assert changed(states[1], states[0]) == {"blocks.1", "norm"}
    assert changed(states[2], states[1]) == {"blocks.1", "blocks.0", "norm"} & limit
    assert changed(states[3], states[2]) == limit


def test_finetune__thawing_survives_a_kill(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**THAWING, "from_": source / "model", "accumulate": 2, "batch_size": 6}
    whole = finetune(source / "store", tmp_path / "whole", **settings)
    calls, original = [], TymbalTrainer.compute_loss

    def failing(self: TymbalTrainer, *args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 11:  # in the third of four epochs, of four batches each
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TymbalTrainer, "compute_loss", failing)
        with pytest.raises(KeyboardInterrupt):
            finetune(source / "store", tmp_path / "killed", **settings)
    killed = finetune(source / "store", tmp_path / "killed", **settings)
    ours, theirs = (
        load_file(run / "checkpoints" / "checkpoint-8" / "model.safetensors") for run in (killed.run, whole.run)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    losses = [
        [json.loads(line).get("loss") for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (killed.run, whole.run)
    ]
    assert losses[0] == losses[1]


class Objective(torch.nn.Module):
    """Stands for an objective of pretraining."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = SpectrogramEncoder(CONFIG)
        self.projection = torch.nn.Linear(16, 4)


def test_layered_groups__of_a_pretraining_have_its_heads_at_the_full_rate() -> None:
    objective = Objective()
    groups = layered_groups(objective, objective.encoder, PretrainSettings(learning_rate=0.1, layer_decay=0.5))
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    found = {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}
    assert found["projection.weight"] == found["encoder.norm.weight"] == pytest.approx(0.1)
    assert found["encoder.blocks.1.fc1.weight"] == pytest.approx(0.05)
    assert found["encoder.patch_projection.weight"] == pytest.approx(0.0125)


def test_heads_first__the_encoder_waits_for_the_heads() -> None:
    objective = Objective()
    objective.encoder.freeze_below(1)
    stage = heads_first(objective.encoder, 0.5)
    assert stage is not None
    plan = BatchPlan(length=40, batch_sizes=(4,), epochs=2, seed=1)
    waiting = Unfreezing(stage, plan)
    assert [waiting.thawed(step) for step in (0, 4, 5, 19)] == [0, 0, 1, 1]
    trained = {name for name, value in objective.encoder.named_parameters() if value.requires_grad}
    assert len(stage.parameters[0]) == len(trained) == 14  # 12 of the last block, and the final norm
    assert heads_first(objective.encoder, 0) is None


def test_moving_average__is_evaluated_in_the_place_of_the_weights(tmp_path: Path) -> None:
    module = torch.nn.Linear(2, 1, bias=False)
    module.register_buffer("count", torch.tensor(0))
    with torch.no_grad():
        module.weight.fill_(8.0)
    average = MovingAverage(module, 0.75)
    average.on_train_begin(None, None, None)
    for value in (4.0, 0.0):
        with torch.no_grad():
            module.weight.fill_(value)
        module.count += 1
        average.on_step_end(None, None, None)
    expected = 0.75 * (0.75 * 8 + 0.25 * 4)
    with average.in_place():
        assert module.weight.tolist() == [[expected, expected]]
        assert int(module.count) == 2
    assert module.weight.tolist() == [[0.0, 0.0]]
    (tmp_path / "model.safetensors").touch()
    assert best_weights(tmp_path).name == "model.safetensors"
    average.save(tmp_path)
    assert load_file(best_weights(tmp_path))["weight"].tolist() == [[expected, expected]]
    again = MovingAverage(module, 0.75)
    again.load(tmp_path)
    again.on_train_begin(None, None, None)  # which must not begin anew
    with again.in_place():
        assert module.weight.tolist() == [[expected, expected]]


def test_add_adapters__without_peft_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SettingsError, match=r"needs the package peft[\s\S]*tymbal\[peft\]"):
        add_adapters(SpectrogramEncoder(CONFIG), 2, seed=1)


def test_add_adapters__merge_into_the_same_outputs() -> None:
    pytest.importorskip("peft", reason="needs the extra peft")
    torch.manual_seed(0)
    encoder = SpectrogramEncoder(CONFIG).eval()
    spectrogram = torch.randn(3, FRAMES, 16)
    before, names = encoder(spectrogram).tokens, set(encoder.state_dict())
    encoder.freeze_below(1)
    add_adapters(encoder, 2, seed=1)
    assert encoder(spectrogram).tokens.equal(before)
    trained = {name for name, value in encoder.named_parameters() if value.requires_grad}
    assert trained and all(name.startswith("blocks.1.") and ".lora_" in name for name in trained)
    with torch.no_grad():
        for name, value in encoder.named_parameters():
            if name in trained:
                value.normal_(std=0.2)
    adapted = encoder(spectrogram).tokens
    assert (adapted - before).abs().max() > 0.05
    plain = merged(encoder)
    assert set(plain.state_dict()) == names
    torch.testing.assert_close(plain(spectrogram).tokens, adapted, atol=1e-5, rtol=1e-5)
    assert merged(plain) is plain
    assert encoder(spectrogram).tokens.equal(adapted)  # it goes on with its adapters


def test_add_adapters__need_a_block() -> None:
    pytest.importorskip("peft", reason="needs the extra peft")
    encoder = SpectrogramEncoder(CONFIG)
    encoder.freeze_below(0)
    with pytest.raises(SettingsError, match="no block to train"):
        add_adapters(encoder, 2, seed=1)


@pytest.mark.parametrize("from_", [True, False])
def test_finetune__adapters_become_weights_of_the_model(from_: bool, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="needs the extra peft")
    tone_store(tmp_path / "store", clips=12)
    start = {"from_": small_model(tmp_path / "start")} if from_ else {"width": 16, "depth": 2, "heads": 2}
    quick = {"device": "cpu", "precision": "float32", "report_to": (), "max_steps": 4, "patch": "8x8"}
    result = finetune(tmp_path / "store", tmp_path / "run", **start, **quick, lora=2, learning_rate=1e-2)
    module = load_model(result.model).module
    assert not [name for name in module.state_dict() if "lora" in name or "base_layer" in name]
    if from_:
        old, new = load_model(tmp_path / "start").module.state_dict(), module.encoder.state_dict()
        changed = {name for name in old if not old[name].equal(new[name])}
        assert changed and all(name.startswith("blocks.") and name.endswith(".weight") for name in changed)
