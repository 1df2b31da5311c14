"""Both ways through the door to Hugging Face, against transformers itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from tymbal.errors import ModelError
from tymbal.models.classifier import SpectrogramClassifier
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.models.folder import load_model, save_model
from tymbal.models.warm_start import warm_start
from tymbal.settings import FeatureSettings

CONFIG = EncoderConfig(width=32, depth=2, heads=2, mels=32, frames=48, stride=(16, 10))


def randomise(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.15)
    return module.eval()


def describe(**changes: object) -> ModelDescription:
    values = {
        "encoder": CONFIG,
        "features": FeatureSettings(mel_bins=32),
        "mean": -6.0,
        "std": 4.5,
        "padding": -15.9,
        "provenance": {"data": {"clips": 12}, "metrics": {"accuracy": 0.75}},
    }
    return ModelDescription(**{**values, **changes})


def classifier(**options: object) -> SpectrogramClassifier:
    encoder = SpectrogramEncoder(CONFIG)
    return randomise(SpectrogramClassifier(encoder, 3, **{"pooling": "cls", **options}))


LABELS = {"labels": ("aedes", "anopheles", "culex"), "pooling": "cls"}


def stock_folder(folder: Path, *, head: bool = True, **changes: object) -> nn.Module:
    """A folder as MIT/ast-finetuned-audioset-10-10-0.4593 has it, only small."""
    from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, ASTModel

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 80}
    label_names = dict(enumerate(("Speech", "Music", "Insect", "Silence")))
    config = ASTConfig(
        **{**shape, "max_length": 56, "num_mel_bins": 36, **changes},
        id2label=label_names,
        label2id={name: i for i, name in label_names.items()},
    )
    model = randomise((ASTForAudioClassification if head else ASTModel)(config))
    model.save_pretrained(folder)
    ASTFeatureExtractor(max_length=56, num_mel_bins=36, mean=-3.0, std=2.5).save_pretrained(folder)
    return model


def test_save_model__a_classifier_gives_the_same_logits_in_transformers(tmp_path):
    from transformers import AutoModelForAudioClassification

    ours = classifier()
    save_model(tmp_path / "model", ours, describe(**LABELS, multilabel=True))
    theirs, report = AutoModelForAudioClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert {name: list(found) for name, found in report.items() if found} == {}
    assert theirs.config.id2label == {0: "aedes", 1: "anopheles", 2: "culex"}
    assert theirs.config.problem_type == "multi_label_classification"
    spectrogram = torch.randn(2, 48, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(spectrogram).logits, ours(spectrogram), atol=1e-5, rtol=0)


def test_save_model__an_encoder_gives_the_same_hidden_states_in_transformers(tmp_path):
    from transformers import ASTForAudioClassification, AutoModel

    ours = randomise(SpectrogramEncoder(CONFIG))
    save_model(tmp_path / "model", ours, describe())
    theirs, report = AutoModel.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert {name: list(found) for name, found in report.items() if found} == {}
    spectrogram = torch.randn(2, 48, 32)
    with torch.no_grad():
        expected, output = theirs(spectrogram, output_hidden_states=True), ours(spectrogram, hidden_states=True)
    torch.testing.assert_close(output.tokens, expected.last_hidden_state, atol=1e-5, rtol=0)
    for mine, their in zip(output.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine, their, atol=1e-5, rtol=0)
    # A classifier is built on it as on any AST.
    on_top = ASTForAudioClassification.from_pretrained(tmp_path / "model", num_labels=5)
    assert on_top.audio_spectrogram_transformer.layers[0].mlp.fc1.weight.equal(ours.blocks[0].fc1.weight)


def test_save_model__the_second_epsilon_of_ssast_costs_little(tmp_path):
    from transformers import AutoModelForAudioClassification

    ours = classifier(head_eps=1e-5)
    save_model(tmp_path / "model", ours, describe(**LABELS, head_eps=1e-5))
    theirs = AutoModelForAudioClassification.from_pretrained(tmp_path / "model")
    spectrogram = torch.randn(2, 48, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(spectrogram).logits, ours(spectrogram), atol=1e-4, rtol=0)
    assert load_model(tmp_path / "model").module.head_norm.eps == 1e-5


def test_save_model__the_feature_extractor_loads_and_normalises_as_told(tmp_path):
    from transformers import AutoFeatureExtractor

    save_model(tmp_path / "model", classifier(), describe(**LABELS))
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "model")
    waveform = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    values = extractor(waveform, sampling_rate=16_000, return_tensors="np")["input_values"]
    assert values.shape == (1, 48, 32)
    extractor.do_normalize = False
    raw = extractor(waveform, sampling_rate=16_000, return_tensors="np")["input_values"]
    np.testing.assert_allclose(values, (raw + 6.0) / 9.0, atol=1e-6)


@pytest.mark.parametrize(
    "features",
    [FeatureSettings(mel_bins=32, sample_rate=22_050), FeatureSettings(mel_bins=32, frame_shift=0.005)],
)
def test_save_model__gives_the_stock_feature_extractor_nothing_to_compute_something_else_by(tmp_path, features):
    description = describe(**LABELS, features=features)
    save_model(tmp_path / "model", classifier(), description)
    written = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())
    assert (written["mean"], written["std"], written["dataset_mean"]) == (None, None, description.mean)
    assert load_model(tmp_path / "model").description == description


@pytest.mark.parametrize("head", [True, False])
def test_load_model__a_stock_checkpoint_gives_what_transformers_gives(tmp_path, head):
    theirs = stock_folder(tmp_path, head=head)
    loaded = load_model(tmp_path)
    spectrogram = torch.randn(2, 56, 36)
    with torch.no_grad():
        if head:
            torch.testing.assert_close(loaded.module(spectrogram), theirs(spectrogram).logits, atol=1e-5, rtol=0)
        else:
            expected = theirs(spectrogram).last_hidden_state
            torch.testing.assert_close(loaded.module(spectrogram).tokens, expected, atol=1e-5, rtol=0)
    description = loaded.description
    assert description.labels == (("Speech", "Music", "Insect", "Silence") if head else ())
    assert description.pooling == ("cls" if head else None)
    assert (description.mean, description.std, description.padding) == (-3.0, 2.5, 0.0)
    assert description.encoder.stride == (10, 10)
    assert description.encoder.grid == (3, 5)
    assert description.encoder.layer_norm_eps == 1e-12


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_load_model__reads_names_as_they_are_in_the_memory_of_transformers_5(tmp_path, wrapper):
    theirs = stock_folder(tmp_path / "model")
    on_disk = load_model(tmp_path / "model").module.state_dict()
    state = {wrapper + name: value.contiguous() for name, value in theirs.state_dict().items()}
    assert any("layers.0.attention.q_proj" in name for name in state)
    safetensors.torch.save_file(state, tmp_path / "model" / "model.safetensors")
    in_memory = load_model(tmp_path / "model").module.state_dict()
    assert on_disk.keys() == in_memory.keys()
    assert all(in_memory[name].equal(value) for name, value in on_disk.items())


def test_load_model__reads_shards_and_pickled_weights(tmp_path):
    theirs = stock_folder(tmp_path)
    expected = load_model(tmp_path).module.state_dict()
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert all(load_model(tmp_path).module.state_dict()[name].equal(value) for name, value in expected.items())
    (tmp_path / "pytorch_model.bin").unlink()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert all(load_model(tmp_path).module.state_dict()[name].equal(value) for name, value in expected.items())


def test_load_model__a_model_changed_in_transformers_is_read_as_it_is_now(tmp_path):
    from transformers import ASTForAudioClassification

    save_model(tmp_path / "ours", randomise(SpectrogramEncoder(CONFIG)), describe())
    theirs = ASTForAudioClassification.from_pretrained(
        tmp_path / "ours", id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1}
    ).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = load_model(tmp_path / "theirs")
    assert loaded.description.labels == ("a", "b")
    assert loaded.description.padding == -15.9  # kept by transformers under `tymbal`
    spectrogram = torch.randn(2, 48, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(spectrogram), theirs(spectrogram).logits, atol=1e-5, rtol=0)


def test_load_model__weights_that_are_missing_or_too_many_are_named(tmp_path):
    stock_folder(tmp_path)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    projection = "audio_spectrogram_transformer.embeddings.patch_embeddings.projection.weight"
    safetensors.torch.save_file(
        {name: value for name, value in state.items() if name != projection}, tmp_path / "model.safetensors"
    )
    with pytest.raises(ModelError, match=r"1 missing \(patch_projection.weight\)"):
        load_model(tmp_path)
    del state["audio_spectrogram_transformer.embeddings.cls_token"]
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="no audio spectrogram transformer is among"):
        load_model(tmp_path)


def test_warm_start__from_a_stock_checkpoint_at_its_own_length_is_bit_equal(tmp_path):
    theirs = stock_folder(tmp_path).state_dict()
    wanted = EncoderConfig(width=8, depth=1, heads=1, mels=36, frames=56, stride=(10, 10))
    encoder, report, description = warm_start(tmp_path, config=wanted)
    ast = "audio_spectrogram_transformer"
    assert encoder.position_embedding.equal(theirs[f"{ast}.embeddings.position_embeddings"])
    query = theirs[f"{ast}.layers.1.attention.q_proj.weight"]
    assert encoder.blocks[1].attention.qkv.weight[:32].equal(query)
    assert encoder.blocks[1].fc2.weight.equal(theirs[f"{ast}.layers.1.mlp.fc2.weight"])
    assert report.new == ("mask_token",)
    assert report.resized == ()
    assert set(report.left) == {"head_norm.weight", "head_norm.bias", "head.weight", "head.bias"}
    assert description.mean == -3.0
    assert "left behind" in str(report)


def test_warm_start__resizes_positions_to_another_length_and_stride(tmp_path):
    stock_folder(tmp_path)
    wanted = EncoderConfig(width=8, depth=1, heads=1, mels=36, frames=112, stride=(16, 16), dropout=0.1)
    encoder, report, _ = warm_start(tmp_path, config=wanted)
    assert report.resized == ("position_embedding",)
    assert encoder.config == replace(
        encoder.config, width=32, depth=2, mlp_ratio=2.5, frames=112, stride=(16, 16), dropout=0.1
    )
    assert encoder(torch.randn(1, 112, 36)).grid == (2, 7)
    kept, _, _ = warm_start(tmp_path, config=wanted, keep_stride=True)
    assert kept.config.stride == (10, 10)


def test_warm_start__patches_that_do_not_fit_are_refused(tmp_path):
    stock_folder(tmp_path)
    with pytest.raises(ModelError, match="16x16 do not fit spectrograms of 8 mel bins"):
        warm_start(tmp_path, config=EncoderConfig(width=8, depth=1, heads=1, mels=8, frames=32, patch=(8, 4)))


def test_load_model__other_activations_and_types_are_refused(tmp_path):
    stock_folder(tmp_path, hidden_act="relu")
    with pytest.raises(ModelError, match="'relu'"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "wav2vec2"}))
    with pytest.raises(ModelError, match="'wav2vec2', which Tymbal does not know"):
        load_model(tmp_path)


def test_load_model__a_name_that_the_hub_does_not_give_is_an_error_that_says_so(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=r"neither a file nor a folder here, nor in the cache.*HF_HUB_OFFLINE forbids"):
        load_model("nobody/no-such-model-7521")


def test_load_model__a_name_of_the_hub_fetches_no_pickles(tmp_path, monkeypatch):
    stock_folder(tmp_path)
    asked = {}

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.update(name=name, patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    loaded = load_model("MIT/ast-finetuned-audioset-10-10-0.4593")
    assert loaded.description.provenance["from"].endswith("MIT/ast-finetuned-audioset-10-10-0.4593")
    assert asked["name"] == "MIT/ast-finetuned-audioset-10-10-0.4593"
    assert not any(Path("pytorch_model.bin").match(pattern) for pattern in asked["patterns"])


@pytest.mark.parametrize(("rate", "samples"), [(32_000, (800, 320)), (8000, (200, 80)), (16_000, (400, 160))])
def test_load_model__extractors_of_other_rates_are_read_as_with_torchaudio_and_that_is_said(
    rate: int, samples: tuple[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from transformers import ASTFeatureExtractor

    stock_folder(tmp_path)
    ASTFeatureExtractor(max_length=56, num_mel_bins=36, mean=-3.0, std=2.5, sampling_rate=rate).save_pretrained(
        tmp_path
    )
    features = load_model(tmp_path).description.features
    assert features == FeatureSettings(sample_rate=rate, mel_bins=36)
    assert (features.window_samples, features.shift_samples) == samples
    told = " ".join(capsys.readouterr().err.split())
    said = f"({samples[0]} and {samples[1]} samples at {rate:,} Hz), as transformers makes them with torchaudio"
    assert (said in told) == (rate != 16_000)
    _, report, _ = warm_start(tmp_path, config=EncoderConfig(width=8, depth=1, heads=1, mels=36, frames=56))
    assert (said in str(report)) == (rate != 16_000)
