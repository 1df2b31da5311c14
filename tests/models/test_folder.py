"""Model folders: whole, lossless, and never a mixture."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from tymbal.errors import ModelError
from tymbal.files import with_checksum
from tymbal.models import folder as module_folder
from tymbal.models.classifier import SpectrogramClassifier
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.models.folder import load_model, save_model
from tymbal.models.warm_start import warm_start
from tymbal.settings import FeatureSettings

CONFIG = EncoderConfig(width=32, depth=1, heads=2, mels=32, frames=48)


def describe(encoder: EncoderConfig = CONFIG, **changes: object) -> ModelDescription:
    values = {
        "encoder": encoder,
        "features": FeatureSettings(mel_bins=32),
        "mean": -6.25,
        "std": 4.5,
        "padding": -15.9,
        "objective": {"name": "joint", "mask_ratio": 0.75},
        "provenance": {"verb": "pretrain", "data": {"clips": 120}, "metrics": {"mse": 0.125}},
    }
    return ModelDescription(**{**values, **changes})


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    mine, theirs = first.state_dict(), second.state_dict()
    return mine.keys() == theirs.keys() and all(mine[name].equal(theirs[name]) for name in mine)


@pytest.mark.parametrize("patch", [(16, 16), (32, 2)])
def test_save_model__an_encoder_comes_back_with_its_mask_token_and_heads(tmp_path, patch):
    config = replace(CONFIG, patch=patch, stride=patch)
    encoder, description = SpectrogramEncoder(config), describe(config)
    heads = {"cpred.0.weight": torch.randn(3, 4), "gpred.2.bias": torch.randn(5)}
    save_model(tmp_path / "model", encoder, description, objective_state=heads)
    loaded = load_model(tmp_path / "model")
    assert same(loaded.module, encoder)
    assert not loaded.module.training
    assert loaded.description == description
    assert loaded.objective_state.keys() == heads.keys()
    assert all(loaded.objective_state[name].equal(value) for name, value in heads.items())


@pytest.mark.parametrize("pooling", ["mean", "rows", "cls", "all", "attention"])
def test_save_model__a_classifier_comes_back(tmp_path, pooling):
    classifier = SpectrogramClassifier(SpectrogramEncoder(CONFIG), 2, pooling=pooling, head_eps=1e-5).eval()
    if classifier.attentive is not None:
        torch.nn.init.normal_(classifier.attentive.query)
    description = describe(labels=("a", "b"), pooling=pooling, head_eps=1e-5, multilabel=True)
    save_model(tmp_path / "model", classifier, description)
    loaded = load_model(tmp_path / "model")
    assert loaded.description == description
    spectrogram = torch.randn(2, 48, 32)
    assert loaded.module(spectrogram).equal(classifier(spectrogram))
    kind = "audio-spectrogram-transformer" if pooling == "cls" else "tymbal"
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == kind
    assert json.loads((tmp_path / "model" / "labels.json").read_text()) == ["a", "b"]


def test_save_model__an_old_folder_is_replaced_whole(tmp_path):
    classifier = SpectrogramClassifier(SpectrogramEncoder(CONFIG), 2, pooling="cls")
    save_model(tmp_path / "model", classifier, describe(labels=("a", "b"), pooling="cls"))
    save_model(tmp_path / "model", SpectrogramEncoder(CONFIG), describe())
    assert not (tmp_path / "model" / "labels.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_save_model__a_failure_leaves_the_old_model(tmp_path, monkeypatch):
    encoder = SpectrogramEncoder(CONFIG).eval()
    save_model(tmp_path / "model", encoder, describe())

    def fail(*_: object, **__: object) -> str:
        raise OSError("disk full")

    monkeypatch.setattr(module_folder, "model_card", fail)
    with pytest.raises(OSError, match="disk full"):
        save_model(tmp_path / "model", SpectrogramEncoder(CONFIG), describe())
    assert same(load_model(tmp_path / "model").module, encoder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_save_model__a_description_of_another_model_is_refused(tmp_path):
    classifier = SpectrogramClassifier(SpectrogramEncoder(CONFIG), 2, pooling="cls")
    for wrong, message in [
        (describe(labels=("a",), pooling="cls"), "number of labels is 2, but its description says 1"),
        (describe(labels=("a", "b"), pooling="mean"), "pooling is cls"),
        (describe(replace(CONFIG, frames=64), labels=("a", "b"), pooling="cls"), "encoder"),
        (describe(labels=("a", "b"), pooling="cls", head_eps=1e-5), "head_eps is 1e-06"),
        (describe(labels=("a", "b"), pooling="cls", features=FeatureSettings()), "mel bins is 32"),
    ]:
        with pytest.raises(ModelError, match=message):
            save_model(tmp_path / "model", classifier, wrong)
    assert not (tmp_path / "model").exists()


def test_save_model__the_card_says_what_it_is_and_how_to_load_it(tmp_path):
    save_model(tmp_path / "encoder", SpectrogramEncoder(CONFIG), describe())
    card = (tmp_path / "encoder" / "README.md").read_text()
    for fact in (
        "library_name: transformers",
        "AutoModel.from_pretrained",
        "AutoFeatureExtractor",
        "| clips | 120 |",
        "| mse | 0.125 |",
        "| mask_ratio | 0.75 |",
        "48 frames (0.49 s)",
        "-6.25",
        "tymbal finetune",
    ):
        assert fact in card, fact
    classifier = SpectrogramClassifier(SpectrogramEncoder(CONFIG), 2, pooling="rows")
    save_model(tmp_path / "rows", classifier, describe(labels=("a|b", "c"), pooling="rows"))
    card = (tmp_path / "rows" / "README.md").read_text()
    for fact in (
        "transformers' own classes cannot hold it: its classifier pools by rows",
        'AutoModelForAudioClassification.from_pretrained("MODEL", trust_remote_code=True)',
        "one of 2 labels: a|b, c",
        "tymbal predict",
    ):
        assert fact in card, fact


def test_load_model__opens_a_run_and_a_file_inside_a_model(tmp_path):
    encoder = SpectrogramEncoder(CONFIG)
    save_model(tmp_path / "run" / "model", encoder, describe())
    for source in (tmp_path / "run", str(tmp_path / "run" / "model"), tmp_path / "run" / "model" / "model.safetensors"):
        assert same(load_model(source).module, encoder)


def test_load_model__draws_no_random_numbers_that_others_would_miss(tmp_path):
    save_model(
        tmp_path / "model",
        SpectrogramClassifier(SpectrogramEncoder(CONFIG), 2, pooling="cls"),
        describe(labels=("a", "b"), pooling="cls"),
    )
    assert same(load_model(tmp_path / "model").module, load_model(tmp_path / "model").module)


def test_load_model__says_what_is_wrong_with_a_path(tmp_path):
    with pytest.raises(ModelError, match="holds no model") as alone:
        load_model(tmp_path)
    assert "or a file" not in str(alone.value)
    (tmp_path / "checkpoint.pt").touch()
    with pytest.raises(ModelError, match=r"holds no model(?s:.)*as \S+checkpoint\.pt may be"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match="there is no such model"):
        load_model(tmp_path / "absent" / "model")
    with pytest.raises(ModelError, match="there is no such model"):
        load_model("absent.pth")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ModelError, match="this is no model"):
        load_model(tmp_path / "notes.txt")


def test_load_model__a_damaged_or_newer_folder_is_an_error(tmp_path):
    folder = tmp_path / "model"
    save_model(
        folder,
        SpectrogramEncoder(replace(CONFIG, patch=(32, 2), stride=(32, 2))),
        describe(replace(CONFIG, patch=(32, 2), stride=(32, 2))),
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tymbal": {**config["tymbal"], "schema": 3}}))
    with pytest.raises(ModelError, match=r"(?s)schema 3, this Tymbal reads 1 and 2.*Upgrade"):
        load_model(folder)
    changed = {**config["tymbal"], "encoder": {**config["tymbal"]["encoder"], "depth": 2}}
    (folder / "config.json").write_text(json.dumps({**config, "tymbal": changed}))
    with pytest.raises(ModelError, match=r"config.json: the model's description is damaged: its checksum differs"):
        load_model(folder)
    (folder / "config.json").write_text(json.dumps({**config, "tymbal": with_checksum(changed)}))
    with pytest.raises(ModelError, match=r"the weights have 1 blocks, their description 2"):
        load_model(folder)
    (folder / "config.json").write_text('{"model_type": "tymbal"}')
    with pytest.raises(ModelError, match="missing or damaged"):
        load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config.json: it cannot be read"):
        load_model(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no such file of weights"):
        load_model(folder)


def test_warm_start__from_our_own_model_takes_everything(tmp_path):
    encoder = SpectrogramEncoder(CONFIG)
    save_model(tmp_path / "run" / "model", encoder, describe(), objective_state={"gpred.0.bias": torch.ones(2)})
    warm, report, description = warm_start(tmp_path / "run", config=replace(CONFIG, width=64, dropout=0.1))
    assert same(warm, encoder)
    assert (report.resized, report.new, report.left) == ((), (), ("gpred.0.bias",))
    assert len(report.taken) == len(encoder.state_dict())
    assert str(report).startswith(f"{len(report.taken)} weights taken; 1 left behind (gpred.0.bias)")
    assert description.mean == -6.25
    assert warm.training
    assert warm.config.dropout == 0.1


def test_warm_start__squeezes_or_cuts_positions_of_longer_clips(tmp_path):
    long = replace(CONFIG, frames=96)
    encoder = SpectrogramEncoder(long)
    save_model(tmp_path / "model", encoder, describe(long))
    wanted = replace(CONFIG, frames=32)
    positions = encoder.position_embedding[0, 2:].reshape(2, 6, 32)
    cut, report, _ = warm_start(tmp_path / "model", config=wanted, positions="cut")
    assert cut.position_embedding[0, 2:].reshape(2, 2, 32).equal(positions[:, 2:4])
    assert "position embeddings: the middle 2 of 6 columns" in str(report)
    first, report, _ = warm_start(tmp_path / "model", config=wanted, positions="first")
    assert first.position_embedding[0, 2:].reshape(2, 2, 32).equal(positions[:, :2])
    assert "position embeddings: the first 2 of 6 columns" in str(report)
    with torch.no_grad():
        whole = torch.randn(1, 96, 32)
        whole[:, 32:] = 0  # a padded clip has had the first columns: its patches carry the same embeddings
        patches = (long.grid[1] * torch.arange(2)[:, None] + torch.arange(2)).flatten()[None]
        tokens = encoder.eval()(whole, visible=patches).tokens
        torch.testing.assert_close(first.eval()(whole[:, :32]).tokens, tokens)
    squeezed, _, _ = warm_start(tmp_path / "model", config=wanted)
    # Column 0 of 2 lies at (0 + .5) * 3 - .5 = 1 of 6.
    torch.testing.assert_close(squeezed.position_embedding[0, 2:].reshape(2, 2, 32)[:, 0], positions[:, 1])
    with torch.no_grad():
        short = torch.randn(1, 32, 32)
        torch.testing.assert_close(squeezed.eval()(short).tokens, encoder.eval()(short).tokens)


def test_save_model__normalisation_by_clip_and_pooling_without_padding_come_back(tmp_path):
    classifier = SpectrogramClassifier(SpectrogramEncoder(CONFIG), 2, pooling="rows", skip_padding=True)
    description = describe(labels=("a", "b"), pooling="rows", skip_padding=True, normalize="clip")
    save_model(tmp_path / "model", classifier, description)
    loaded = load_model(tmp_path / "model")
    assert loaded.description == description
    assert loaded.module.skip_padding
    assert "those of each clip's own sound" in (tmp_path / "model" / "README.md").read_text()
    preprocessor = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())
    assert (preprocessor["mean"], preprocessor["normalize_by"]) == (None, "clip")  # not by fixed numbers, as stock ones


@pytest.mark.parametrize("name", ["model.safetensors", "objective.safetensors"])
@pytest.mark.parametrize("place", [0.1, 0.5, 0.999])
def test_load_model__a_byte_that_has_changed_is_noticed(tmp_path, name, place):
    folder = tmp_path / "model"
    save_model(folder, SpectrogramEncoder(CONFIG), describe(), objective_state={"gpred.0.bias": torch.ones(900)})
    data = bytearray((folder / name).read_bytes())
    data[int(place * (len(data) - 1))] ^= 2
    (folder / name).write_bytes(data)
    with pytest.raises(ModelError, match=rf"{name}: (the weights are damaged|it holds)|do not fit|unknown|nothing"):
        load_model(folder)


def test_save_model__files_are_readable_as_the_umask_says(tmp_path):
    save_model(tmp_path / "model", SpectrogramEncoder(CONFIG), describe())
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()}
    assert modes == {(tmp_path / "model" / "config.json").stat().st_mode & 0o777}


def test_load_model__weights_of_earlier_versions_have_no_checksum(tmp_path):
    encoder = SpectrogramEncoder(CONFIG)
    save_model(tmp_path / "model", encoder, describe())
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    del config["tymbal"]["checksum"], config["tymbal"]["config_checksum"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    weights = tmp_path / "model" / "model.safetensors"
    safetensors.torch.save_file(safetensors.torch.load(weights.read_bytes()), weights, metadata={"format": "pt"})
    assert same(load_model(tmp_path / "model").module, encoder)


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("encoder", {"width": 0}, "must be 1 or more"),
        ("encoder", {"width": "wide"}, "width is 'wide'"),
        ("encoder", {"depth": 10**9}, "the weights have 1 blocks, their description 1000000000"),
        ("encoder", {"width": 1 << 20, "heads": 1}, "do not fit"),
        ("encoder", {"frames": 10**12}, "do not fit"),
        ("encoder", {"patch": [16]}, "two numbers each"),
        ("encoder", {"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
        ("encoder", {"dropout": -1}, "dropout of an encoder"),
        ("encoder", {"unheard": 1}, "unknown entry unheard"),
        ("features", {"sample_rate": -3}, "sample_rate"),
        ("features", {"mel_bins": None}, "mel_bins is None"),
        ("features", {"frame_length": 1e9}, "beyond all measure"),
        ("", {"mean": float("nan")}, "mean is nan"),
        ("", {"mean": float("inf")}, "mean is inf"),
        ("", {"std": 0.0}, "std of the model is 0"),
        ("", {"std": -1.0}, "std of the model is -1"),
        ("", {"padding": []}, "padding is"),
        ("", {"labels": "frog"}, "labels is no list"),
        ("", {"labels": [["frog"]]}, "labels is"),
        ("", {"encoder": 3}, "damaged"),
        ("", {"provenance": 7}, "damaged"),
    ],
)
def test_load_model__a_description_from_a_stranger_is_checked_before_memory_is_taken(tmp_path, part, change, said):
    folder = tmp_path / "model"
    save_model(folder, SpectrogramEncoder(CONFIG), describe())
    config = json.loads((folder / "config.json").read_text())
    ours = {name: value for name, value in config["tymbal"].items() if "checksum" not in name}
    ours = {**ours, part: {**ours[part], **change}} if part else {**ours, **change}
    (folder / "config.json").write_text(json.dumps({"model_type": "tymbal", "tymbal": ours}))
    weights = safetensors.torch.load((folder / "model.safetensors").read_bytes())
    own = {f"encoder.{name}": value for name, value in SpectrogramEncoder(CONFIG).state_dict().items()}
    assert weights
    safetensors.torch.save_file(own, folder / "model.safetensors")
    with pytest.raises(ModelError, match=said):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": 1.5}, "hidden_size is 1.5"),
        ({"hidden_size": 10**10}, "hidden_size is 1e"),
        ({"hidden_size": 10**400}, "hidden_size is"),
        ({"num_hidden_layers": 10**7}, "the weights have 1 blocks"),
        ({"num_attention_heads": "many"}, "num_attention_heads is 'many'"),
        ({"num_attention_heads": 5}, "not a multiple of its 5 heads"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
        ({"layer_norm_eps": 0}, "must be above 0"),
        ({"patch_size": []}, "patch_size is empty"),
        ({"patch_size": None}, "patch_size is None"),
        ({"id2label": 3}, "id2label"),
        ({"hidden_dropout_prob": 2}, "dropout"),
        ({"max_length": 1 << 23}, "do not fit"),
    ],
)
def test_load_model__a_configuration_of_transformers_from_a_stranger(tmp_path, change, said):
    folder = tmp_path / "model"
    save_model(folder, SpectrogramEncoder(CONFIG), describe())
    config = json.loads((folder / "config.json").read_text())
    del config["tymbal"]
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ModelError, match=said):
        load_model(folder)


@pytest.mark.parametrize("content", [None, "{}"])
def test_load_model__what_numbers_depend_on_and_no_file_says_is_told(tmp_path, content, capsys):
    folder = tmp_path / "model"
    save_model(folder, SpectrogramEncoder(CONFIG), describe())
    config = json.loads((folder / "config.json").read_text())
    del config["tymbal"], config["num_attention_heads"], config["hidden_size"]
    config |= {"hidden_size": 32, "num_attention_heads": 2}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").unlink(missing_ok=True)
    if content is not None:
        (folder / "preprocessor_config.json").write_text(content)
    assert load_model(folder).description.mean == pytest.approx(-4.2677393)
    said = " ".join(capsys.readouterr().err.split())
    assert "which does not tell: 16 kHz, AudioSet's mean and standard deviation" in said


def test_load_model__numbers_that_were_changed_in_the_extractor_are_told(tmp_path, capsys):
    folder = tmp_path / "model"
    save_model(folder, SpectrogramEncoder(CONFIG), describe())
    preprocessor = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**preprocessor, "mean": -6.75}))
    assert load_model(folder).description.mean == -6.75
    assert "says mean -6.75, the model -6.25" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("how", ["cut", "first", "resize"])
def test_warm_start__longer_clips_stretch_positions_and_the_choice_stays_with_the_model(tmp_path, how):
    save_model(tmp_path / "model", SpectrogramEncoder(CONFIG), describe())
    squeezed, _, _ = warm_start(tmp_path / "model", config=replace(CONFIG, frames=96))
    longer, report, _ = warm_start(tmp_path / "model", config=replace(CONFIG, frames=96), positions=how)
    assert longer.position_embedding.equal(squeezed.position_embedding)
    assert "2x3 resized to 2x6" in str(report)
    save_model(tmp_path / "next", longer, describe(longer.config))
    described = json.loads((tmp_path / "next" / "config.json").read_text())["tymbal"]["encoder"]
    assert described.get("positions", "resize") == how
    assert ("positions" in described) == (how != "resize")
    again = load_model(tmp_path / "next").module
    assert again.config.positions == how
    half = (2, 3)
    assert again.positions(half).equal(longer.positions(half))
    kept, _, _ = warm_start(tmp_path / "next", config=replace(CONFIG, frames=96), positions="auto")
    assert kept.config.positions == how


def test_warm_start__cuts_by_time_where_the_stride_changes_too(tmp_path):
    dense = replace(CONFIG, frames=96, stride=(16, 8))
    encoder = SpectrogramEncoder(dense)
    save_model(tmp_path / "model", encoder, describe(dense))
    assert dense.grid == (2, 11)
    cut, report, _ = warm_start(tmp_path / "model", config=replace(CONFIG, frames=48), positions="cut")
    middle = encoder.position_embedding[0, 2:].reshape(2, 11, 32)[:, 3:8]  # 5 columns span 48 frames
    expected = torch.nn.functional.interpolate(middle.permute(2, 0, 1)[None], size=(2, 3), mode="bilinear")
    torch.testing.assert_close(cut.position_embedding[0, 2:].T.reshape(1, 32, 2, 3), expected)
    assert "the middle 5 of 11 columns, 2x5 resized to 2x3" in str(report)
