"""Defaults that a choice brings along: below what is given, the same from Python, a file and the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tymbal
from tymbal import config
from tymbal.cli import main
from tymbal.objectives import registry
from tymbal.objectives.lejepa import LeJEPASettings
from tymbal.objectives.reconstruction import ReconstructionSettings
from tymbal.settings import FinetuneSettings, PrepareSettings

PRETRAINING = {
    "epochs": 150,
    "patience": 10,
    "min_progress": 1e-4,
    "learning_rate": 1e-4,
    "schedule": "linear",
    "warmup": 0.05,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "batch_size": 8,
    "accumulate": 2,
    "precision": "auto",
    "eval_every": 1,
    "save_every": None,
    "keep_checkpoints": 2,
    "seed": 42,
    "clip_norm": 1.0,
    "validation": 0.1,
    "train": "all",
    "window": 1.0,
    "split": "sklearn",
    "report_to": ("tensorboard",),
}
FINE_TUNING = {
    "epochs": 50,
    "patience": 0,
    "learning_rate": 5e-5,
    "schedule": "cosine",
    "warmup": 3,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "batch_size": 1,
    "accumulate": 4,
    "precision": "auto",
    "best_by": "accuracy",
    "keep_checkpoints": 2,
    "seed": 42,
    "clip_norm": 1.0,
    "train": "3",
    "window": 1.0,
}
RECIPES: dict[str, tuple[type[Any], dict[str, str], dict[str, Any]]] = {
    "pretrain": (ReconstructionSettings, {"objective": "reconstruction"}, PRETRAINING),
    "finetune": (FinetuneSettings, {"recipe": "notebook"}, FINE_TUNING),
}
RESOLVE: dict[str, Callable[..., Any]] = {
    "pretrain": registry.resolve,
    "finetune": partial(config.resolve, FinetuneSettings),
}
DEFAULTS: dict[str, Any] = {"pretrain": LeJEPASettings(), "finetune": FinetuneSettings()}


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Puts a recorder in the place of the training verbs; yields the settings that they were called with."""
    calls: list[dict[str, Any]] = []

    def record(*arguments: Any, resume: object = None, **keywords: Any) -> SimpleNamespace:
        calls.append(keywords)
        return SimpleNamespace(summary=lambda: "")

    for verb in RECIPES:
        monkeypatch.setitem(vars(tymbal), verb, record)
    return calls


def resolved(keywords: dict[str, Any]) -> object:
    """What a pretraining makes of the keywords that it is called with, a configuration file among them."""
    return registry.resolve(
        {name: value for name, value in keywords.items() if name != "config"}, config=keywords.get("config")
    )


def chosen(settings: object, names: dict[str, Any]) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in names}


@pytest.mark.parametrize("verb", RECIPES)
def test_recipe__is_the_table_of_the_notebooks(verb: str, called: list[dict[str, Any]]):
    _, choice, table = RECIPES[verb]
    assert chosen(RESOLVE[verb](choice), table) == table
    flags = [text for name, value in choice.items() for text in (f"--{name}", value)]
    assert main([verb, "data", "-o", "run", *flags]) == 0
    assert chosen(RESOLVE[verb](called[0]), table) == table


@pytest.mark.parametrize("verb", RECIPES)
def test_recipe__changes_nothing_where_it_is_not_chosen(verb: str, called: list[dict[str, Any]]):
    assert RESOLVE[verb]({}) == DEFAULTS[verb]
    assert main([verb, "data", "-o", "run", "--seed", "42"]) == 0
    assert RESOLVE[verb](called[0]) == DEFAULTS[verb]


@pytest.mark.parametrize("verb", RECIPES)
def test_recipe__names_settings_that_exist_and_differ(verb: str):
    cls = RECIPES[verb][0]
    defaults = {field.name: field.default for field in fields(cls)}
    for recipe in cls.recipes:
        assert recipe.defaults.items() <= {**defaults, **recipe.defaults}.items()
        assert set(recipe.defaults) <= set(defaults)
        assert set(recipe.unless) <= set(recipe.defaults)
        config.from_mapping(cls, recipe.defaults)


def test_recipe__stands_below_flags_and_files(tmp_path: Path, called: list[dict[str, Any]]):
    file = tmp_path / "a.yaml"
    file.write_text("objective: reconstruction\nepochs: 20\nbatch-size: 16\n")
    settings = registry.resolve({"epochs": 3}, config=file)
    assert (settings.epochs, settings.batch_size, settings.accumulate) == (3, 16, 2)
    assert main(["pretrain", "data", "-o", "run", "--config", str(file), "--epochs", "3"]) == 0
    assert resolved(called[0]) == settings


def test_recipe__gives_way_to_another_word_for_the_same(called: list[dict[str, Any]]):
    choice = {"objective": "reconstruction", "frames": 512, "batch_sizes": (1, 2)}
    settings = registry.resolve(choice)
    assert settings.window is None
    assert settings.batch_size == ReconstructionSettings().batch_size
    flags = ["--objective", "reconstruction", "--frames", "512", "--batch-sizes", "1", "2"]
    assert main(["pretrain", "data", "-o", "run", *flags]) == 0
    assert resolved(called[0]) == settings


def test_recipe__run_yaml_repeats_what_was_chosen(tmp_path: Path, called: list[dict[str, Any]]):
    settings = registry.resolve({"objective": "reconstruction", "window": None, "epochs": 2})
    config.write_run_yaml(tmp_path, "pretrain", {"store": "data", "output": "run"}, settings)
    assert registry.resolve({}, config=tmp_path) == settings
    assert main(["pretrain", "--config", str(tmp_path)]) == 0
    assert resolved(called[0]) == settings


def test_recipe__help_shows_both_defaults(capsys: pytest.CaptureFixture[str]):
    assert main(["pretrain", "--help", "reconstruction"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "[default: 100; 150 with reconstruction]" in shown
    assert "[default: none; 1.0 with reconstruction]" in shown
    assert "[default: 0.001; 0.0003 with continue; 0.0001 with reconstruction]" in shown


WITH_VIEWS = {
    "filter_bank": "librosa",
    "sample_rate": 22_050,
    "low_freq": 0.0,
    "validation": 0.2,
    "longer": "crop-start",
    "window": 3.0,
}


@pytest.mark.parametrize(("views", "brings"), [(5, True), ("5", True), (1, True), (0, False), ("0", False)])
def test_recipe__of_views_is_brought_by_any_number_of_them(views: int | str, brings: bool, tmp_path: Path):
    (tmp_path / "a.yaml").write_text(f"views: {views!r}\n")
    for settings in (
        config.resolve(PrepareSettings, {"views": views}),
        config.resolve(PrepareSettings, {}, config=tmp_path / "a.yaml"),
    ):
        assert chosen(settings, WITH_VIEWS) == (WITH_VIEWS if brings else chosen(PrepareSettings(), WITH_VIEWS))


def test_recipe__of_views_stands_below_what_is_given():
    settings = config.resolve(PrepareSettings, {"views": 2, "sample_rate": 16_000, "frames": 64, "validation": 0.1})
    assert (settings.sample_rate, settings.window, settings.validation) == (16_000, None, 0.1)
    assert config.resolve(PrepareSettings, {"views": 2, "window": None}).window == 3.0


def test_recipe__of_views_is_shown_in_help(capsys: pytest.CaptureFixture[str]):
    assert main(["prepare", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "[default: kaldi; librosa with views]" in shown
    assert "[default: none; 3.0 with views]" in shown


@pytest.mark.parametrize("verb", RECIPES)
def test_recipe__a_run_of_an_earlier_version_keeps_its_decay_betas_and_split(verb: str, tmp_path: Path):
    _, choice, _ = RECIPES[verb]
    before = {"weight_decay": 0.05, "adam_beta2": 0.98}
    recorded = {**config.to_mapping(RESOLVE[verb](choice)), **before}
    del recorded["split"]
    del recorded["positions"]
    kept = {**before, "split": "auto", "positions": "auto"}
    assert chosen(RESOLVE[verb](choice, begun=recorded), kept) == kept
    config.write_yaml(tmp_path / "run.yaml", {"verb": verb, "arguments": {}, "settings": recorded})
    assert chosen(RESOLVE[verb]({}, config=tmp_path), kept) == kept
    begun_now = config.to_mapping(RESOLVE[verb](choice))
    assert RESOLVE[verb](choice, begun=begun_now) == RESOLVE[verb](choice)
