"""Augmentations from a YAML file, and back: `configs/audio_augmentation_config.yaml`.

    num_waveform_augs: 3
    num_spectrogram_augs: 2
    waveform:
      gain: {db: [-12, 12]}
      background: {folder: ../noises, snr: [3, 30], probability: 0.5}
    spectrogram:
      time_mask: {width: [0.02, 0.2]}
    strategies:                       # version 0 as above, version 1 without a change of the spectrogram, 2 as 0, …
      - {}
      - {num_spectrogram_augs: 0}
    spectrogram_views: {pitch: 0.1, tempo: 0.15}   # where an objective draws views from spectrograms alone
    functions: [mypackage:louder]                  # of one's own, beside all of these (`tymbal.views.own_views`)

Only entries of `waveform` and `spectrogram` are ever drawn. A folder is relative to the file.
"""

from __future__ import annotations

import os
import typing
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from tymbal.config import from_mapping, read_yaml, to_mapping
from tymbal.errors import SettingsError
from tymbal.settings.augmentation import (
    AugmentationSettings,
    SpectrogramAugmentations,
    SpectrogramViews,
    Strategy,
    ViewSettings,
    WaveformAugmentations,
)
from tymbal.values import nearest
from tymbal.views.own_views import function_names, own_views

__all__ = [
    "DEFAULT_PATH",
    "augmentation_from",
    "augmentation_mapping",
    "chosen_augmentation",
    "read_augmentation",
    "read_spectrogram_views",
]

DEFAULT_PATH = Path("configs/audio_augmentation_config.yaml")
"""Read if it exists and no other file is named."""

Group = TypeVar("Group", WaveformAugmentations, SpectrogramAugmentations)

PathLike = str | os.PathLike[str]

_PLAIN = ("num_waveform_augs", "num_spectrogram_augs")


def read_augmentation(path: str | os.PathLike[str] | None = None) -> AugmentationSettings:
    """Reads augmentations from a file, or loads the user's own functions, which then make the views alone.

    Args:
        path: The file, or functions: `module:function`, with commas between. None is `DEFAULT_PATH` if that exists,
            else the defaults.

    Raises:
        SettingsError: The file does not exist, something in it is unknown or wrong, or a function cannot be used.
    """
    functions = function_names(os.fspath(path)) if path is not None else ()
    if functions:
        nothing = dict.fromkeys(("pitch", "frequency_shift", "tempo", "equaliser", "gain", "mix"), 0.0)
        mapping = {**dict.fromkeys(_PLAIN, 0), "functions": list(functions), "spectrogram_views": nothing}
        return augmentation_from(mapping)
    if path is None:
        if not DEFAULT_PATH.is_file():
            return AugmentationSettings()
        path = DEFAULT_PATH
    return augmentation_from(read_yaml(path), source=path)


def read_spectrogram_views(path: str | os.PathLike[str] | None = None) -> SpectrogramViews:
    """How views are drawn where an objective draws them from spectrograms alone; arguments as `read_augmentation`.

    Raises:
        SettingsError: As `read_augmentation`, or a function changes waveforms, of which there are none.
    """
    settings = read_augmentation(path)
    sounds = own_views(settings.functions).of("waveforms")
    if sounds:
        raise SettingsError(
            f"the augmentation {sounds[0]} changes waveforms, and these views are drawn from spectrograms",
            advice="Name one of spectrograms, or prepare waveforms: tymbal prepare SOUND -o STORE --views 1 --write "
            "waveforms. Then train with the objective contrastive.",
        )
    return settings.spectrogram_views


def chosen_augmentation(settings: ViewSettings) -> AugmentationSettings:
    """The augmentations of a file, overridden by the numbers that the settings give themselves.

    Raises:
        SettingsError: As `read_augmentation`.
    """
    settings_of_file = read_augmentation(settings.augmentations)
    above = {name: value for name in _PLAIN if (value := getattr(settings, name)) is not None}
    return replace(settings_of_file, **above)


def augmentation_from(mapping: Mapping[str, Any], *, source: PathLike | None = None) -> AugmentationSettings:
    """Builds augmentations from a mapping, checking every key and type.

    Args:
        mapping: As in the file.
        source: The file, for messages and relative folders.

    Raises:
        SettingsError: Something is unknown or wrong.
    """
    _check_known(
        mapping,
        (*_PLAIN, "waveform", "spectrogram", "strategies", "spectrogram_views", "functions"),
        "the augmentations",
        source,
    )
    given: dict[str, Any] = {name: int(mapping[name]) for name in _PLAIN if _is_count(mapping, name, source)}
    if "waveform" in mapping:
        given["waveform"] = _group(WaveformAugmentations, mapping["waveform"], source)
    if "spectrogram" in mapping:
        given["spectrogram"] = _group(SpectrogramAugmentations, mapping["spectrogram"], source)
    strategies = mapping.get("strategies") or []
    if not isinstance(strategies, list) or not all(isinstance(one, Mapping) for one in strategies):
        raise SettingsError(
            "strategies is not a list of mappings", path=source, advice="Example: - {num_waveform_augs: 2}"
        )
    given["strategies"] = tuple(from_mapping(Strategy, one, source=source) for one in strategies)
    views = mapping.get("spectrogram_views") or {}
    if not isinstance(views, Mapping):
        raise SettingsError("spectrogram_views is not a mapping", path=source, advice="Example: {pitch: 0.1}")
    if "functions" in views:
        raise SettingsError("functions stand beside spectrogram_views, not in it", path=source)
    given["functions"] = _functions(mapping.get("functions") or [], source)
    own = own_views(given["functions"]).of("spectrograms")
    given["spectrogram_views"] = replace(from_mapping(SpectrogramViews, views, source=source), functions=own)
    try:
        return AugmentationSettings(**given)
    except SettingsError as error:
        raise SettingsError(error.what, path=source, advice=error.advice) from None


def augmentation_mapping(settings: AugmentationSettings) -> dict[str, Any]:
    """Augmentations as plain values, which `augmentation_from` makes the same of."""
    groups = {
        kind: {
            item.name: to_mapping(value)
            for item in fields(getattr(settings, kind))
            if (value := getattr(getattr(settings, kind), item.name)) is not None
        }
        for kind in ("waveform", "spectrogram")
    }
    strategies = [
        {name: value for name, value in to_mapping(one).items() if value is not None} for one in settings.strategies
    ]
    # Stores of before know no functions.
    own = {"functions": list(settings.functions)} if settings.functions else {}
    return {**{name: getattr(settings, name) for name in _PLAIN}, **groups, "strategies": strategies, **own}


def _functions(value: Any, source: PathLike | None) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise SettingsError("functions is not a list of names", path=source, advice="Example: [mypackage:louder]")
    return tuple(value)


def _group(cls: type[Group], value: Any, source: PathLike | None) -> Group:
    names = [item.name for item in fields(cls)]
    if not isinstance(value, Mapping):
        raise SettingsError(f"{cls.__name__} are not a mapping of names to settings", path=source)
    _check_known(value, names, "the augmentations", source)
    hints = typing.get_type_hints(cls)
    groups = {}
    for name, entry in value.items():
        kind = next(option for option in typing.get_args(hints[name]) if option is not type(None))
        if entry is not None and not isinstance(entry, Mapping):
            raise SettingsError(f"{name} is not a mapping of settings", path=source, advice=f"Example: {name}: {{}}")
        settings = dict(entry or {})
        folder = settings.get("folder")
        if isinstance(folder, str) and source is not None:
            settings["folder"] = str((Path(source).parent / folder).absolute())
        groups[name] = from_mapping(kind, settings, source=source)
    return cls(**groups)


def _check_known(mapping: Mapping[str, Any], known: typing.Sequence[str], what: str, source: PathLike | None) -> None:
    for key in mapping:
        if key not in known:
            guess = nearest(str(key), known)
            advice = f"Did you mean {guess}?" if guess else f"Known are: {', '.join(known)}."
            raise SettingsError(f"unknown name '{key}' in {what}", path=source, advice=advice)


def _is_count(mapping: Mapping[str, Any], name: str, source: PathLike | None) -> bool:
    value = mapping.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int):
        raise SettingsError(
            f"{name} is {value!r}, which is not a whole number", path=source, advice=f"Example: {name}: 3"
        )
    return name in mapping
