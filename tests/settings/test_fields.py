"""What a setting says of itself, and who reads it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tymbal import config, settings
from tymbal.settings import EmbedSettings, FinetuneSettings, PredictSettings, PrepareSettings, PretrainSettings
from tymbal.settings.fields import Nature, names_that, nature, setting

DRAWN = ("augmentations", "num_waveform_augs", "num_spectrogram_augs")
"""What says how views are drawn, which a preparation records setting by setting."""


@dataclass(frozen=True, kw_only=True)
class Low:
    depth: int = setting(3, resumable=True, aliases=("blocks",))
    from_: str | None = setting(None, path=True)
    plain: float = 0.5


@dataclass(frozen=True, kw_only=True)
class High(Low):
    depth: int = 12
    from_: str | None = setting(None, first=True)


def test_setting__is_a_field_with_a_default():
    assert Low() == Low(depth=3, from_=None, plain=0.5)
    assert Low.depth == 3


def test_nature__is_that_of_the_class_that_said_it_last():
    assert nature(Low, "depth") == Nature(resumable=True, aliases=("blocks",))
    assert nature(High, "depth") == nature(Low, "depth")
    assert nature(High, "from_") == Nature(first=True)
    assert nature(Low(), "plain") == nature(Low, "absent") == Nature()


def test_names_that__are_spelled_as_in_yaml():
    assert names_that(Low, "path") == ("from",)
    assert names_that(Low(), "resumable") == ("depth",)
    assert names_that(High, "path") == ()


@pytest.mark.parametrize(
    ("cls", "names"),
    [
        (PrepareSettings, {"workers", "part", "preview", "force", "executor", "scheduler", *DRAWN}),
        (PredictSettings, {"merge", "gap", "review", "format", "batch_size", "precision", "device"}),
        (EmbedSettings, {"format", "batch_size", "precision", "device"}),
    ],
)
def test_resumable__of_what_is_computed_only_what_changes_no_row(cls: type, names: set[str]):
    assert set(names_that(cls, "resumable")) == names
    assert config.deciding(cls()).keys() == config.to_mapping(cls()).keys() - names


@pytest.mark.parametrize("cls", [PretrainSettings, FinetuneSettings])
def test_resumable__in_training_nothing_that_changes_the_weights(cls: type):
    free = set(names_that(cls, "resumable"))
    assert {"device", "workers", "max_minutes", "report_to", "keep_checkpoints"} <= free
    assert not free & {"seed", "batch_size", "precision", "learning_rate", "epochs", "eval_every", "patience"}


def test_path__every_setting_that_names_a_file_or_folder():
    found = {
        name
        for stage in settings.__all__
        if stage.endswith("Settings")
        for name in names_that(getattr(settings, stage), "path")
    }
    own = {"augmentations", "background", "data_dir", "data_val", "data_val_dir", "from", "label_csv", "probe_data"}
    assert found == {*own, "probes", "review", "teacher"}
