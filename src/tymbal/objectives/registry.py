"""The objectives by name: those of Tymbal, a line each, and those of other packages.

Another package adds one by an entry point in the group `tymbal.objectives`, which names a module that has an
`OBJECTIVE` (`tymbal.objectives.contract`):

    [project.entry-points."tymbal.objectives"]
    wobble = "my_package.wobble"

Names are known without importing anything heavy; a file is imported when its objective is chosen, or when something is
asked about all of them.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

from tymbal import config as configuration
from tymbal.errors import SettingsError
from tymbal.objectives.contract import ObjectiveSpec
from tymbal.progress import tell
from tymbal.settings import PretrainSettings
from tymbal.settings.fields import nature
from tymbal.settings.training import ENDLESS
from tymbal.values import convert

__all__ = ["names", "resolve", "run_settings", "spec", "without_foreign"]

_MODULES = {
    "lejepa": "tymbal.objectives.lejepa",
    "contrastive": "tymbal.objectives.contrastive",
    "distill": "tymbal.objectives.distill",
    "joint": "tymbal.objectives.ssast",
    "mpc": "tymbal.objectives.ssast",
    "mpg": "tymbal.objectives.ssast",
    "reconstruction": "tymbal.objectives.reconstruction",
}
_GROUP = "tymbal.objectives"

PathLike = str | os.PathLike[str]


def names() -> tuple[str, ...]:
    """Names of all objectives, those of other packages last."""
    return (*_MODULES, *(name for name in _plugins() if name not in _MODULES))


@functools.cache
def spec(name: str) -> ObjectiveSpec:
    """How an objective is configured and built; imports its file.

    Raises:
        SettingsError: There is none of this name, or another package's cannot be used.
    """
    _check_name(name)
    place = _MODULES[name] if name in _MODULES else _plugins()[name].module
    advice = "Update the package that it comes from, or uninstall it."
    try:
        module = importlib.import_module(place)
    except ImportError as error:
        raise SettingsError(f"the objective {name} cannot be imported: {error}", advice=advice) from error
    objective = getattr(module, "OBJECTIVE", None)
    if not isinstance(objective, ObjectiveSpec):
        raise SettingsError(f"{place} of the objective {name} has no OBJECTIVE that is an ObjectiveSpec", advice=advice)
    return objective


def run_settings(name: str) -> type[PretrainSettings]:
    """The settings of a run with this objective: the common ones and its own.

    Raises:
        SettingsError: There is no such objective.
    """
    return spec(name).settings


def without_foreign(name: str, mapping: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping without the settings that only other objectives than this one have; keys in any spelling."""
    mine = _keys(run_settings(name))
    unknown = {_key(key) for key in mapping}.difference(mine)
    others = _all_keys() if unknown else {}
    return {key: value for key, value in mapping.items() if _key(key) in mine or _key(key) not in others}


def resolve(
    keywords: Mapping[str, Any], *, config: PathLike | None = None, begun: Mapping[str, Any] | None = None
) -> PretrainSettings:
    """Builds the settings of a pretraining, as `tymbal.config.resolve`, those of its objective among them.

    Settings of other objectives are left out: with a remark those of a caller; silently those of a file, which may be
    for several objectives, or the `run.yaml` of a version that recorded all of them in every run.

    Args:
        keywords: The values that the caller gave explicitly.
        config: A YAML file with settings, or the `run.yaml` of an earlier run.
        begun: What the run that is to be continued has recorded; None where there is none. Where an earlier version
            began it, the defaults of that version hold.

    Raises:
        SettingsError: A key is unknown, or a value has the wrong type, is out of range or contradicts the objective.
    """
    below = {} if config is None else configuration.read_settings(PretrainSettings, config)
    if begun is not None and "objective" in begun and "objective" not in {**keywords, **below}:
        keywords = {"objective": begun["objective"], **keywords}
    name = _chosen_name(keywords, below, source=config)
    if config is not None and configuration.is_run_file(config):
        below = configuration.with_todays_names(run_settings(name), below)
        below = {**configuration.begun_before(run_settings(name), below), **below}
    given = _own(name, keywords)
    for key in keywords:
        if key not in given:
            tell(f"{key} has no effect with the objective {name}")
    below = _own(name, below, source=config)
    if begun is not None and begun.get("objective") == name:
        recorded = configuration.with_todays_names(run_settings(name), begun)
        given = _without_auto(run_settings(name), given)
        below = {_key(key): value for key, value in below.items()}
        below = {**configuration.begun_before(run_settings(name), recorded), **below}
    below = {**_epochs_of_minutes({**below, **given}, begun), **below}
    of_this = begun if begun is not None and begun.get("objective") == name else None
    given = {**given, **_recipe(run_settings(name), {**below, **given}, of_this)}
    return configuration.layered(run_settings(name), given, below, source=config)


def _recipe(cls: type[PretrainSettings], given: Mapping[str, Any], begun: Mapping[str, Any] | None) -> dict[str, str]:
    """The recipe, where none is chosen: that of the run that is continued, else what suits what it starts from."""
    chosen = {_key(key): value for key, value in given.items()}
    if chosen.get("recipe", "auto") != "auto":
        return {}
    if begun is not None:
        return {"recipe": begun.get("recipe", "none")}
    if chosen.get("from") is None:
        return {}
    return {"recipe": "continue" if cls.continues else "none"}


def _epochs_of_minutes(given: Mapping[str, Any], begun: Mapping[str, Any] | None) -> dict[str, Any]:
    """The epochs of a run of which only its minutes are given: as many as fit; those that it was begun with."""
    keys = {_key(key) for key, value in given.items() if value is not None}
    if "max_minutes" not in keys or keys & {"epochs", "max_steps"}:
        return {}
    return {"epochs": ENDLESS if begun is None else begun.get("epochs", ENDLESS)}


def _without_auto(cls: type[PretrainSettings], given: dict[str, Any]) -> dict[str, Any]:
    """Given settings without those that leave to the data what a run has chosen already."""
    left = {each.name: each.default for each in fields(cls) if nature(cls, each.name).by_data}
    return {key: value for key, value in given.items() if _key(key) not in left or value != left[_key(key)]}


def _chosen_name(keywords: Mapping[str, Any], below: Mapping[str, Any], *, source: PathLike | None = None) -> str:
    """The objective that is chosen: in `keywords`, else in `below`, from the file `source`, else by default.

    Raises:
        SettingsError: There is no such objective.
    """
    if "objective" in keywords:
        return _check_name(keywords["objective"])
    return _check_name(below.get("objective", PretrainSettings.objective), source=source)


def _own(name: str, mapping: Mapping[str, Any], *, source: PathLike | None = None) -> dict[str, Any]:
    """The part of a mapping that belongs to an objective: without the settings of the others, and with its name.

    Args:
        name: The objective.
        mapping: Values by key.
        source: The file that the mapping comes from, for messages.

    Raises:
        SettingsError: A key is no setting of any objective, or contradicts this one.
    """
    cls = run_settings(name)
    own = without_foreign(name, mapping)
    mine = _keys(cls)
    for key in own:
        if _key(key) not in mine:
            raise configuration.unknown_setting(PretrainSettings, key, [*mine, *_all_keys()], source=source)
    try:
        cls.refuse({_key(key): value for key, value in mapping.items() if key not in own})
    except SettingsError as error:
        raise SettingsError(error.what, path=source, advice=error.advice) from None
    return {**own, "objective": name}


def _check_name(value: Any, *, source: PathLike | None = None) -> str:
    """Returns the name of an objective after checking it.

    Raises:
        SettingsError: The name is unknown; the message suggests the nearest.
    """
    return str(convert(value, Literal[names()], key="objective", source=source))


@functools.cache
def _plugins() -> dict[str, importlib.metadata.EntryPoint]:
    """The entry points of other packages, by name."""
    return {point.name: point for point in importlib.metadata.entry_points(group=_GROUP)}


def _keys(cls: type[PretrainSettings]) -> dict[str, None]:
    """The settings of a class, as YAML spells them, and their older names."""
    return dict.fromkeys([*(_key(each.name) for each in fields(cls)), *configuration.old_names(cls)])


def _all_keys() -> dict[str, None]:
    """The settings of all objectives; imports their files."""
    return {key: None for name in names() for key in _keys(run_settings(name))}


def _key(name: str) -> str:
    return name.replace("-", "_").removesuffix("_")
