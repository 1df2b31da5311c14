"""Help: what matters first, the rest by group, and how it looks."""

from __future__ import annotations

import re
import sys

import pytest

from tymbal import cli_help, config, settings
from tymbal.cli import VERBS, main
from tymbal.objectives import registry
from tymbal.settings.fields import GROUPS, nature

WITH_GROUPS = ("prepare", "pretrain", "probe", "finetune", "convert")


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")


def shown(capsys, *words):
    assert main(list(words)) == 0
    return capsys.readouterr().out


def headings(text):
    return re.findall(r"^([A-Z].*)\n  \S", text, flags=re.MULTILINE)


def flags(text):
    return re.findall(r"^  (?:-\w, )?--([a-z0-9-]+)", text, flags=re.MULTILINE)


def test_help__settings_stand_under_the_heading_of_their_group(capsys):
    text = shown(capsys, "finetune", "--help-all")
    assert headings(text) == [
        "Arguments",
        "Options",
        "Encoder",
        "Classifier",
        "Which layers are trained, and how fast",
        "Augmentation",
        "Rare and common classes",
        "Training",
        "Optimizer and learning rate",
        "Evaluations, checkpoints and figures",
        "Device and arithmetic",
        "Sound that is not a store yet",
        "Spectrograms in .pt files",
    ]
    training = text[text.index("\nTraining\n") :]
    # FinetuneSettings changes only the default of epochs: it stays a matter of training.
    assert "--epochs" in training
    assert "--from " not in training
    assert "--no-compile" not in text


@pytest.mark.parametrize("verb", [verb for verb in VERBS if config.settings_of(verb)])
def test_help_all__shows_every_setting_once_with_its_description(capsys, verb):
    cls = config.settings_of(verb)
    text = shown(capsys, verb, "--help-all")
    names = [name.removesuffix("_").replace("_", "-") for name in config.setting_types(cls)]
    found = flags(text)
    assert sorted(name for name in found if name in names) == sorted(names)
    assert all(cli_help._descriptions(cls).get(name) for name in config.setting_types(cls))


@pytest.mark.parametrize("verb", WITH_GROUPS)
def test_help__shows_about_fifteen_settings_and_names_the_groups(capsys, verb):
    cls = config.settings_of(verb)
    text = shown(capsys, verb, "--help")
    names = flags(text[text.index("Settings that matter first") :])
    assert 7 <= len(names) <= 18
    last = " ".join(text[text.index("More: ") :].split())
    groups = (
        last.removeprefix(f"More: `tymbal {verb} --help GROUP`, where GROUP is one of ").partition(";")[0].split(", ")
    )
    if verb == "pretrain":
        groups, objectives = groups[: -len(registry.names())], groups[-len(registry.names()) :]
        assert objectives == list(registry.names())
    assert set(groups) <= set(GROUPS)
    together = [name for group in groups for name in flags(shown(capsys, verb, "--help", group))]
    assert sorted(together) == sorted(name.removesuffix("_").replace("_", "-") for name in config.setting_types(cls))


@pytest.mark.parametrize("objective", registry.names())
def test_help__of_an_objective_shows_its_settings_and_the_defaults_that_it_brings(capsys, objective):
    cls = registry.run_settings(objective)
    text = shown(capsys, "pretrain", "--help", objective)
    own = set(config.setting_types(cls)) - set(config.setting_types(settings.PretrainSettings))
    brought = {name for recipe in cls.recipes if recipe.value == objective for name in recipe.defaults}
    assert set(flags(text)) == {name.removesuffix("_").replace("_", "-") for name in own | brought}
    assert objective in headings(text)[0]
    assert text.count(f" with {objective}]") == len(brought)


def test_help_all__shows_the_settings_of_every_objective(capsys):
    text = shown(capsys, "pretrain", "--help-all")
    assert headings(text)[-5:] == [
        "With the objective lejepa",
        "With the objective contrastive",
        "With the objective distill",
        "With the objectives joint, mpc, mpg",
        "With the objective reconstruction",
    ]
    assert {"temperature", "mask-ratio", "channels", "epochs"} <= set(flags(text))
    assert "[default: 100; 150 with reconstruction]" in text


@pytest.mark.parametrize("verb", ["scan", "predict", "embed", "similar", "report", "explore", "push", "doctor"])
def test_help__of_few_settings_shows_all(capsys, verb):
    assert shown(capsys, verb, "--help").count("--") > len(config.setting_types(config.settings_of(verb)))
    assert "More:" not in shown(capsys, verb, "-h")


def test_help__every_setting_has_a_group_with_a_heading():
    for name in settings.__all__:
        cls = getattr(settings, name)
        if name.endswith("Settings") and name != "AugmentationSettings":
            assert set(cli_help._groups(cls)) <= set(GROUPS)


def test_help__of_a_group_that_there_is_not(capsys):
    assert main(["finetune", "--help", "augment"]) == 2
    assert capsys.readouterr().err == (
        "Error: finetune has no group of settings 'augment'\n  Did you mean augmentation?\n"
    )


def test_help__verbs_come_in_the_order_of_the_way(capsys):
    text = shown(capsys, "--help")
    verbs = [
        "scan",
        "prepare",
        "pretrain",
        "probe",
        "finetune",
        "merge",
        "predict",
        "embed",
        "similar",
        "push",
        "convert",
    ]
    places = [text.index(f"\n  {verb} ") for verb in verbs]
    assert places == sorted(places)


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("words", [["--help"], ["finetune", "--help-all"], ["prepare", "-h"], ["demo", "-h"]])
def test_help__fits_the_terminal(capsys, monkeypatch, words, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = shown(capsys, *words).splitlines()
    assert max(map(len, lines)) <= max(columns, 62)
    assert "\x1b" not in "".join(lines)


def test_help__is_coloured_on_a_terminal_only(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = shown(capsys, "scan", "--help")
    assert "\x1b[36m--labels\x1b[0m" in text
    assert "`" not in text
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in shown(capsys, "scan", "--help")


def test_help__says_what_must_be_given_and_what_is_by_default(capsys):
    text = " ".join(shown(capsys, "predict", "--help").split())
    assert "Usage: tymbal predict MODEL FILES... -o OUTPUT [SETTINGS]" in text
    assert "--format raven or audacity a folder, with kaleidoscope one id.csv. [required]" in text
    assert "[default: on] [--no-merge switches it off]" in text
    assert "[choices: csv, parquet, json, jsonl, raven, audacity, kaleidoscope]" in text
    assert "--threshold Lower scores are left out. `None` is 0 in the table of windows; for detections" in text


def test_natures__matter_first_where_help_is_long():
    assert nature(settings.FinetuneSettings, "epochs").first
    assert not nature(settings.FinetuneSettings, "adam_beta2").first
