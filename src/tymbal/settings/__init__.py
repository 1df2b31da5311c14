"""The settings of every stage: one frozen dataclass a stage, and nothing else defines a setting.

Python keyword arguments, command-line flags, YAML files, `run.yaml` and the help text are all made from these classes
(`tymbal.config` does that); a default or a description stands here once. This module imports nothing heavy, so that
`tymbal --help` answers at once.

Units are seconds, Hz, and fractions between 0 and 1. `None` means "chosen for you", and the description says how.
"""

from __future__ import annotations

from tymbal.settings.augmentation import AugmentationSettings, ViewSettings
from tymbal.settings.fields import SIZES, parse_patch
from tymbal.settings.inference import (
    ConvertSettings,
    EmbedSettings,
    LabelSettings,
    MergeSettings,
    PredictSettings,
    ProbeSettings,
    PushSettings,
    SimilarSettings,
)
from tymbal.settings.inspection import DoctorSettings, ExploreSettings, ReportSettings
from tymbal.settings.sound import FeatureSettings, PrepareSettings, PtSettings, ScanSettings, SoundSettings
from tymbal.settings.training import DataChoice, FinetuneSettings, PretrainSettings, TrainingSettings, ViewPairSettings

__all__ = [
    "SIZES",
    "AugmentationSettings",
    "ConvertSettings",
    "DataChoice",
    "DoctorSettings",
    "EmbedSettings",
    "ExploreSettings",
    "FeatureSettings",
    "FinetuneSettings",
    "LabelSettings",
    "MergeSettings",
    "PredictSettings",
    "PrepareSettings",
    "PretrainSettings",
    "ProbeSettings",
    "PtSettings",
    "PushSettings",
    "ReportSettings",
    "ScanSettings",
    "SimilarSettings",
    "SoundSettings",
    "TrainingSettings",
    "ViewPairSettings",
    "ViewSettings",
    "parse_patch",
]
