"""Settings from callers and YAML, and back."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tymbal import config
from tymbal.errors import SettingsError
from tymbal.objectives import registry
from tymbal.objectives.ssast import SSASTSettings
from tymbal.settings import (
    ConvertSettings,
    FeatureSettings,
    FinetuneSettings,
    PredictSettings,
    PrepareSettings,
    PretrainSettings,
    ProbeSettings,
    ScanSettings,
)

ALL_SETTINGS = (ScanSettings, PrepareSettings, PretrainSettings, ProbeSettings, FinetuneSettings, PredictSettings)


def test_from_mapping__spellings_of_the_command_line():
    settings = config.from_mapping(SSASTSettings, {"mask-ratio": 0.5, "from": "run", "report_to": ["wandb"]})
    assert (settings.mask_ratio, settings.from_, settings.report_to) == (0.5, "run", ("wandb",))


@pytest.mark.parametrize("value", [[1, 1, 2], (1, 1, 2), "1, 1, 2"])
def test_from_mapping__lists(value):
    assert config.from_mapping(PretrainSettings, {"batch_sizes": value}).batch_sizes == (1, 1, 2)


def test_from_mapping__a_list_of_one_needs_no_brackets():
    settings = config.from_mapping(PretrainSettings, {"batch_sizes": 4, "report_to": "wandb"})
    assert (settings.batch_sizes, settings.report_to) == ((4,), ("wandb",))


def test_from_mapping__python_spelling_and_numpy_numbers():
    settings = config.from_mapping(PretrainSettings, {"from_": Path("run"), "batch_size": np.int64(8), "warmup": 1})
    assert settings.from_ == "run"
    assert type(settings.batch_size) is int
    assert type(settings.warmup) is float


def test_from_mapping__yaml_takes_1e_4_for_text(tmp_path):
    (tmp_path / "a.yaml").write_text("learning_rate: 1e-4\nepochs: 3\n")
    assert config.resolve(PretrainSettings, {}, config=tmp_path / "a.yaml").learning_rate == 1e-4


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"mask_ration": 0.5}, "a.yaml: unknown setting 'mask_ration' for pretrain\n  Did you mean mask_ratio?"),
        ({"ratio": 0.5}, "Did you mean mask_ratio?"),
        ({"xyzzy": 1}, "Settings are: epochs, max_steps,"),
        ({"epochs": "many"}, "a.yaml: epochs is 'many', which is not a number"),
        ({"epochs": float("inf")}, "a.yaml: epochs is inf, which is not a number"),
        ({"epochs": "nan"}, "a.yaml: epochs is 'nan', which is not a number"),
        ({"batch_size": float("inf")}, "a.yaml: batch_size is inf, which is not a whole number"),
        ({"batch_size": 8.5}, "a.yaml: batch_size is 8.5, which is not a whole number"),
        ({"batch_size": True}, "a.yaml: batch_size is True, which is not a whole number"),
        ({"compile": 1}, "a.yaml: compile is 1, which is not true or false"),
        (
            {"size": "bas"},
            "size is 'bas', which is not one of auto, mini, tiny, small, base\n  Did you mean base?",
        ),
        ({"report_to": [True]}, "a.yaml: report_to is True, which is not text"),
        ({"batch_sizes": [1, 2.5]}, "a.yaml: batch_sizes is 2.5, which is not a whole number"),
        ({"mask_ratio": 2}, "a.yaml: mask_ratio is 2.0, which is not a fraction between 0 and 1"),
        ({"patch": None}, "a.yaml: patch is None, which is not text"),
    ],
)
def test_from_mapping__names_file_key_and_what_was_expected(mapping, message):
    with pytest.raises(SettingsError) as caught:
        config.from_mapping(SSASTSettings, mapping, source="a.yaml")
    assert message in str(caught.value)


def test_to_mapping__round_trip():
    settings = PrepareSettings(window=2.5, group_pattern="(a)", mel_bins=64)
    mapping = config.to_mapping(settings)
    assert mapping["window"] == 2.5
    assert config.from_mapping(PrepareSettings, mapping) == settings
    assert "from" in config.to_mapping(FinetuneSettings())


def test_diff__one_line_a_key():
    assert config.diff(FeatureSettings(), FeatureSettings(mel_bins=64)) == ["mel_bins: 128 -> 64"]
    assert config.diff({"a": 1, "c": (1, 2)}, {"b": "x", "c": [1, 2]}) == ["a: 1 -> (not set)", "b: (not set) -> 'x'"]
    # A setting that came later, and is not used.
    assert config.diff({"a": 1}, {"a": 1, "b": None}) == []
    assert config.diff({"a": 1, "b": None}, {"a": 1}) == ["b: None -> (not set)"]


def test_resolve__keywords_stand_above_the_file(tmp_path):
    (tmp_path / "a.yaml").write_text("mask-ratio: 0.5\nsize: tiny\n")
    settings = config.resolve(SSASTSettings, {"mask_ratio": 0.6}, config=tmp_path / "a.yaml")
    assert (settings.mask_ratio, settings.size) == (0.6, "tiny")


def test_resolve__a_section_for_each_verb(tmp_path):
    (tmp_path / "a.yaml").write_text("pretrain:\n  size: tiny\nfinetune:\n  epochs: 3\n")
    assert config.resolve(PretrainSettings, {}, config=tmp_path / "a.yaml").size == "tiny"
    assert config.resolve(FinetuneSettings, {}, config=tmp_path / "a.yaml").epochs == 3
    assert config.resolve(PrepareSettings, {}, config=tmp_path / "a.yaml") == PrepareSettings()


def test_resolve__sections_beside_single_settings(tmp_path):
    (tmp_path / "a.yaml").write_text("pretrain:\n  size: tiny\nepochs: 3\n")
    with pytest.raises(SettingsError, match="side by side"):
        config.resolve(PretrainSettings, {}, config=tmp_path / "a.yaml")


def test_run_yaml__repeats_the_run(tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    settings = PretrainSettings(size="tiny", from_="MIT/ast", max_minutes=2)
    config.write_run_yaml(tmp_path, "pretrain", {"store": store, "output": str(tmp_path), "config": None}, settings)
    record = config.read_run_yaml(tmp_path)
    assert (record.verb, record.arguments) == ("pretrain", {"store": str(store), "output": str(tmp_path)})
    assert record.versions["tymbal"] == config.versions()["tymbal"]
    assert config.resolve(PretrainSettings, {}, config=tmp_path) == settings
    assert config.resolve(PretrainSettings, {}, config=tmp_path / "run.yaml") == settings


def test_run_yaml__paths_are_written_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").mkdir()
    config.write_run_yaml("new", "finetune", {"source": "old"}, FinetuneSettings(from_="old"))
    record = config.read_run_yaml("new")
    assert record.arguments["source"] == record.settings["from"] == str(tmp_path / "old")


def test_run_yaml__of_another_verb(tmp_path):
    config.write_run_yaml(tmp_path, "pretrain", {}, PretrainSettings())
    with pytest.raises(SettingsError, match="record of a 'pretrain' run, not of 'finetune'"):
        config.resolve(FinetuneSettings, {}, config=tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2", "not YAML at line 2"),
        ("- 1\n- 2", "not a mapping"),
        ("1: 2", "not a mapping"),
    ],
)
def test_read_yaml__names_the_place(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(SettingsError, match=message) as caught:
        config.read_yaml(tmp_path / "a.yaml")
    assert caught.value.path == str(tmp_path / "a.yaml")


def test_read_yaml__absent_and_empty(tmp_path):
    with pytest.raises(SettingsError, match="no such configuration file"):
        config.read_yaml(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("# nothing\n")
    assert config.read_yaml(tmp_path / "a.yaml") == {}


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[1] / "examples").glob("*.yaml")), ids=lambda f: f.name)
def test_examples__every_section_is_valid(file):
    content = config.read_yaml(file)
    classes = {cls.__name__.removesuffix("Settings").lower(): cls for cls in ALL_SETTINGS}
    assert content
    for verb in content:
        resolve = registry.resolve if verb == "pretrain" else partial(config.resolve, classes[verb])
        assert resolve({}, config=file) != resolve({})


OLD = [
    (PretrainSettings, "clip_seconds", "window", 2.0),
    (PretrainSettings, "validation_fraction", "validation", 0.3),
    (FinetuneSettings, "target_length", "frames", 64),
    (FinetuneSettings, "clip-seconds", "window", 2.0),
    (ConvertSettings, "target_length", "frames", 48),
    (ProbeSettings, "layers", "layer", "all"),
]


@pytest.mark.parametrize("name", OLD, ids=lambda name: name[1])
def test_old_name__means_the_same_and_says_so_once(name, tmp_path, capsys):
    cls, old, new, value = name
    config._say_old.cache_clear()
    settings = cls(**{new: value})
    assert config.resolve(cls, {old: value}) == settings
    (tmp_path / "a.yaml").write_text(f"{old}: {value}\n")
    assert config.resolve(cls, {}, config=tmp_path / "a.yaml") == settings
    plain = old.replace("-", "_")
    assert capsys.readouterr().err == f"{plain} is now called {new}; the old name still works\n"
    with pytest.raises(SettingsError, match=f"{old} and {new} are one setting\n  Leave out {old}, its old name."):
        config.resolve(cls, {old: value, new: value})


def test_old_name__in_the_run_yaml_of_an_older_run(tmp_path, capsys):
    settings = FinetuneSettings(window=2.0, frames=64, validation=0.3)
    path = config.write_run_yaml(tmp_path, "finetune", {"source": "sounds"}, settings)
    text = path.read_text()
    for old, new in (("clip_seconds", "window"), ("target_length", "frames"), ("validation_fraction", "validation")):
        text = text.replace(f"\n  {new}:", f"\n  {old}:")
    assert "clip_seconds: 2.0" in text
    path.write_text(text)
    assert config.read_run_yaml(path).settings == config.to_mapping(settings)
    assert config.resolve(FinetuneSettings, {}, config=tmp_path) == settings
    assert capsys.readouterr().err == ""


OBJECTIVES = [
    ("reconstruction", "time_mask", "time_mask_width", 12),
    ("reconstruction", "frequency-mask", "frequency_mask_width", 8),
    ("contrastive", "views", "view_source", "fresh"),
]


@pytest.mark.parametrize("name", OBJECTIVES, ids=lambda name: name[1])
def test_old_name__of_a_setting_of_an_objective(name, tmp_path, capsys):
    objective, old, new, value = name
    config._say_old.cache_clear()
    settings = registry.resolve({"objective": objective, new: value})
    assert getattr(settings, new) == value
    assert registry.resolve({"objective": objective, old: value}) == settings
    (tmp_path / "a.yaml").write_text(f"objective: {objective}\n{old}: {value}\n")
    assert registry.resolve({}, config=tmp_path / "a.yaml") == settings
    plain = old.replace("-", "_")
    assert capsys.readouterr().err == f"{plain} is now called {new}; the old name still works\n"
    path = config.write_run_yaml(tmp_path, "pretrain", {"store": "sounds"}, settings)
    path.write_text(path.read_text().replace(f"\n  {new}:", f"\n  {plain}:"))
    assert registry.resolve({}, config=path) == settings
    assert capsys.readouterr().err == ""


def test_begun_before__is_what_a_run_of_an_earlier_version_did():
    cls = registry.run_settings("contrastive")
    old = {"projection_norm": False, "projection_parts": 0, "negatives": "all", "view_padding": "found"}
    old |= {"probe_pooling": "mean", "stem": 0, "fall_in_warmup": True, "label_separator": ";", "silence": "leave-out"}
    old |= {"weight_decay": 0.05, "adam_beta2": 0.98, "split": "auto", "positions": "auto", "repeats": "merge"}
    old |= {"recipe": "none", "ema": 0.0, "lora": 0, "layer_decay": 1.0, "head_warmup": 0.0, "eval_start": False}
    assert config.begun_before(cls, {"temperature": 0.1}) == old
    today = config.to_mapping(cls())
    # What has not changed, and what the data decide.
    same = {
        "negatives": "all",
        "size": "auto",
        "patch": "auto",
        "stem": 0,
        "fall_in_warmup": True,
        "silence": "leave-out",
        "weight_decay": 0.05,
        "adam_beta2": 0.98,
        "split": "auto",
        "repeats": "merge",
        "ema": 0.0,
        "lora": 0,
        "layer_decay": 1.0,
        "head_warmup": 0.0,
        "eval_start": False,
    }
    assert config.begun_before(cls, today) == same


def test_resolve__a_run_goes_on_as_it_was_begun():
    begun = {"objective": "contrastive", "temperature": 0.1}
    settings = registry.resolve({"objective": "contrastive"}, begun=begun)
    assert (settings.projection_norm, settings.projection_parts) == (False, 0)
    given = registry.resolve({"objective": "contrastive", "projection_norm": True}, begun=begun)
    assert (given.projection_norm, given.projection_parts) == (True, 0)
    assert registry.resolve({"objective": "contrastive"}).projection_norm is True
    begun_by_views = {"objective": "lejepa", "view_strength": 1.0}
    assert registry.resolve({"objective": "lejepa"}, begun=begun_by_views).mixing == "energies"
    assert registry.resolve({"objective": "lejepa"}).mixing == "auto"  # the data say how
    assert registry.resolve({"objective": "joint"}, begun=begun) == registry.resolve({"objective": "joint"})


def test_resolve__minutes_alone_end_a_pretraining(tmp_path: Path):
    assert registry.resolve({"objective": "joint"}).epochs == 100
    assert registry.resolve({"objective": "joint", "max_minutes": 5}).epochs == 100_000
    assert registry.resolve({}).epochs == 100_000  # until the data say how many
    assert registry.resolve({"max_minutes": 5, "objective": "reconstruction"}).epochs == 100_000
    assert registry.resolve({"max_minutes": 5, "epochs": 3}).epochs == 3
    assert registry.resolve({"max_minutes": 5, "max_steps": 3, "objective": "joint"}).epochs == 100
    (tmp_path / "a.yaml").write_text("epochs: 7\n")
    assert registry.resolve({"max_minutes": 5}, config=tmp_path / "a.yaml").epochs == 7
    begun = config.to_mapping(registry.resolve({"epochs": 9}))
    assert registry.resolve({"max_minutes": 5}, begun=begun).epochs == 9


def test_old_name__stays_in_the_description_of_a_model():
    settings = registry.resolve({"objective": "reconstruction", "time_mask_width": 12})
    assert settings.describe_objective() == {
        "objective": "reconstruction",
        "channels": 16,
        "decoder_width": None,
        "decode": "frames",
        "time_masks": 2,
        "time_mask": 12,
        "frequency_masks": 2,
        "frequency_mask": 24,
    }
