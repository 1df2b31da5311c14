"""Objectives by name, and the settings of a run with one of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tymbal import config
from tymbal.errors import SettingsError
from tymbal.objectives import registry
from tymbal.objectives.contrastive import ContrastiveSettings
from tymbal.objectives.distill import DistillSettings
from tymbal.objectives.lejepa import LeJEPASettings
from tymbal.objectives.reconstruction import ReconstructionSettings
from tymbal.objectives.ssast import SSASTSettings

SETTINGS = {
    "lejepa": LeJEPASettings,
    "joint": SSASTSettings,
    "mpc": SSASTSettings,
    "mpg": SSASTSettings,
    "reconstruction": ReconstructionSettings,
    "contrastive": ContrastiveSettings,
    "distill": DistillSettings,
}


def test_names__are_known_without_torch():
    code = "import sys\nfrom tymbal.objectives.registry import names\nprint(*names(), 'torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert sorted(shown.split()[:-1]) == sorted(SETTINGS)
    assert shown.split()[0] == "lejepa"
    assert shown.split()[-1] == "False"


@pytest.mark.parametrize("name", SETTINGS)
def test_run_settings__are_those_of_the_file_and_take_its_names(name: str):
    assert registry.run_settings(name) is SETTINGS[name]
    assert registry.resolve({"objective": name}).objective == name


def test_spec__of_no_objective_names_the_nearest():
    with pytest.raises(
        SettingsError, match=r"objective is 'contrastiv', which is not one of lejepa.*\n  Did you mean c"
    ):
        registry.spec("contrastiv")


def test_describe_objective__is_what_model_folders_say():
    described = {name: registry.resolve({"objective": name}).describe_objective() for name in SETTINGS}
    assert described["mpc"] == {
        "objective": "mpc",
        "encode": "all",
        "decoder_depth": 2,
        "decoder_width": None,
        "mask": "auto",
        "cluster_min": 3,
        "cluster_max": 5,
        "mask_ratio": 0.75,
        "mask_count": None,
        "mask_padding": False,
        "mse_weight": 10.0,
        "normalize_targets": True,
        "target_floor": 0.1,
    }
    assert list(described["reconstruction"]) == [
        "objective",
        "channels",
        "decoder_width",
        "decode",
        "time_masks",
        "time_mask",
        "frequency_masks",
        "frequency_mask",
    ]
    assert list(described["contrastive"]) == [
        "objective",
        "temperature",
        "projection",
        "projection_norm",
        "projection_parts",
        "negatives",
        "view_mask",
        "view_mask_ratio",
    ]


def test_resolve__says_what_has_no_effect(capsys: pytest.CaptureFixture[str]):
    settings = registry.resolve({"objective": "contrastive", "temperature": 0.2, "mask-ratio": 0.5})
    assert isinstance(settings, ContrastiveSettings)
    assert settings.temperature == 0.2
    assert capsys.readouterr().err == "mask-ratio has no effect with the objective contrastive\n"


def test_resolve__knows_the_nearest_of_all_objectives():
    with pytest.raises(SettingsError, match=r"unknown setting 'temprature' for pretrain\n  Did you mean temperature\?"):
        registry.resolve({"temprature": 0.2})


def test_resolve__a_file_may_be_for_several_objectives(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "a.yaml"
    file.write_text("pretrain:\n  objective: joint\n  mask_ratio: 0.5\n  temperature: 0.3\n  epochs: 3\n")
    joint = registry.resolve({}, config=file)
    assert joint == SSASTSettings(mask_ratio=0.5, epochs=3)
    contrastive = registry.resolve({"objective": "contrastive"}, config=file)
    assert contrastive == ContrastiveSettings(temperature=0.3, epochs=3)
    assert capsys.readouterr().err == ""


def test_resolve__names_the_file_of_a_mistake(tmp_path: Path):
    file = tmp_path / "a.yaml"
    for text, message in (
        ("objective: jont\n", "a.yaml: objective is 'jont'.*\n  Did you mean joint?"),
        ("temprature: 1\n", "a.yaml: unknown setting 'temprature' for pretrain\n  Did you mean temperature?"),
        ("objective: reconstruction\nencode: visible\n", "a.yaml: .*no visible ones"),
    ):
        file.write_text(text)
        with pytest.raises(SettingsError, match=message):
            registry.resolve({}, config=file)


def test_resolve__a_run_yaml_that_records_the_settings_of_all_objectives(tmp_path: Path):
    settings = registry.resolve({"objective": "reconstruction", "channels": 8})
    path = config.write_run_yaml(tmp_path, "pretrain", {"store": "data"}, settings)
    others = "  mask_ratio: 0.75\n  temperature: 0.1\n  encode: all\n  augmentations: null\n"
    path.write_text(path.read_text().replace("settings:\n", f"settings:\n{others}"))
    assert registry.resolve({}, config=tmp_path) == settings
    recorded = config.read_run_yaml(tmp_path).settings
    assert recorded["temperature"] == 0.1
    assert registry.without_foreign("reconstruction", recorded) == config.to_mapping(settings)


def test_resolve__going_on_from_weights_has_defaults_of_its_own():
    anew, going_on = registry.resolve({}), registry.resolve({"from_": "run"})
    assert (anew.recipe, anew.learning_rate, anew.layer_decay, anew.ema, anew.eval_start) == ("auto", 1e-3, 1, 0, False)
    assert (going_on.recipe, going_on.eval_start) == ("continue", True)
    assert going_on.learning_rate < anew.learning_rate
    assert going_on.layer_decay < 1 and going_on.ema > 0 and going_on.head_warmup > 0
    assert registry.resolve({"from_": "run", "recipe": "none"}) == registry.resolve(
        {"recipe": "none", "from_": "run", "ema": 0.0}
    )
    assert registry.resolve({"from_": "run", "learning_rate": 2e-3}).learning_rate == 2e-3
    assert registry.resolve({"from_": "run", "average_from": 1}).ema == 0  # one average of the weights


def test_resolve__reconstruction_starts_from_weights_as_before():
    settings = registry.resolve({"from_": "run", "objective": "reconstruction"})
    assert (settings.recipe, settings.learning_rate, settings.layer_decay, settings.ema) == ("none", 1e-4, 1, 0)
    gently = registry.resolve({"from_": "run", "objective": "reconstruction", "recipe": "continue"})
    assert (gently.learning_rate, gently.eval_start) == (1e-4, True)


def test_resolve__a_run_of_an_earlier_version_goes_on_without_the_recipe():
    began = {"objective": "lejepa", "from": "run", "learning_rate": 1e-3}
    for given in ({"from_": "run"}, {"from_": "run", "recipe": "auto"}):
        settings = registry.resolve(given, begun=began)
        assert (settings.recipe, settings.learning_rate, settings.layer_decay) == ("none", 1e-3, 1)
        assert (settings.ema, settings.head_warmup, settings.eval_start, settings.lora) == (0, 0, False, 0)
    today = {**began, "recipe": "continue", "learning_rate": 3e-4, "layer_decay": 0.75}
    assert registry.resolve({"from_": "run"}, begun=today).recipe == "continue"


def test_resolve__two_averages_are_refused():
    with pytest.raises(SettingsError, match="average_from and ema both average"):
        registry.resolve({"average_from": 1, "ema": 0.9})
