"""Tymbal: from a folder of unlabelled sound to an audio spectrogram transformer that knows it.

One function a verb, the same in Python and on the command line:

    import tymbal

    tymbal.scan("recordings", "manifest.csv")
    tymbal.prepare("manifest.csv", "store")
    tymbal.pretrain("store", "run", size="tiny", max_minutes=30)
    tymbal.finetune("labelled", "classifier", from_="run")
    tymbal.predict("classifier", ["night.flac"], "night.csv")

Nothing heavy is imported before the first verb is called.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tymbal._version import __version__

if TYPE_CHECKING:
    from tymbal.audio.manifest import Clip, Manifest
    from tymbal.audio.scan import scan
    from tymbal.convert import convert
    from tymbal.demo.walkthrough import demo
    from tymbal.doctor import doctor
    from tymbal.embed import embed
    from tymbal.errors import (
        AudioError,
        CheckpointError,
        DeviceError,
        ManifestError,
        ModelError,
        SettingsError,
        StoreError,
        TrainingError,
        TymbalError,
    )
    from tymbal.explore import explore
    from tymbal.finetune import finetune
    from tymbal.label import label
    from tymbal.merge import merge
    from tymbal.models.folder import LoadedModel, load_model, save_model
    from tymbal.predict import predict
    from tymbal.prepare import prepare
    from tymbal.pretrain import pretrain
    from tymbal.probe import probe
    from tymbal.push import push
    from tymbal.report import report
    from tymbal.similar import similar
    from tymbal.store.packed.packed_store import Store

__all__ = [
    "AudioError",
    "CheckpointError",
    "Clip",
    "DeviceError",
    "LoadedModel",
    "Manifest",
    "ManifestError",
    "ModelError",
    "SettingsError",
    "Store",
    "StoreError",
    "TrainingError",
    "TymbalError",
    "__version__",
    "convert",
    "demo",
    "doctor",
    "embed",
    "explore",
    "finetune",
    "label",
    "load_model",
    "merge",
    "predict",
    "prepare",
    "pretrain",
    "probe",
    "push",
    "report",
    "save_model",
    "scan",
    "similar",
]

_ORIGIN = {
    "Clip": "tymbal.audio.manifest",
    "LoadedModel": "tymbal.models.folder",
    "Manifest": "tymbal.audio.manifest",
    "Store": "tymbal.store.packed.packed_store",
    "convert": "tymbal.convert",
    "demo": "tymbal.demo.walkthrough",
    "doctor": "tymbal.doctor",
    "embed": "tymbal.embed",
    "explore": "tymbal.explore",
    "finetune": "tymbal.finetune",
    "label": "tymbal.label",
    "load_model": "tymbal.models.folder",
    "merge": "tymbal.merge",
    "predict": "tymbal.predict",
    "prepare": "tymbal.prepare",
    "pretrain": "tymbal.pretrain",
    "probe": "tymbal.probe",
    "push": "tymbal.push",
    "report": "tymbal.report",
    "save_model": "tymbal.models.folder",
    "scan": "tymbal.audio.scan",
    "similar": "tymbal.similar",
    **{name: "tymbal.errors" for name in __all__ if name.endswith("Error")},
}


class _Package(ModuleType):
    """This package, in which `tymbal.prepare` is the function, also after the module `tymbal.prepare` was imported.

    Importing a submodule sets it as an attribute of its package; where a verb has the name of its module, that would
    put the module in the place of the function.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _ORIGIN and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name not in _ORIGIN:
        raise AttributeError(f"module 'tymbal' has no attribute {name!r}")
    value = getattr(importlib.import_module(_ORIGIN[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


sys.modules[__name__].__class__ = _Package
