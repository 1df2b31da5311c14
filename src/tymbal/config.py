"""Settings in and out: keyword arguments and YAML become the frozen dataclasses of `tymbal.settings`, and back.

A configuration file is one of three things, which its keys distinguish:

- settings of one verb, flat: `mask_ratio: 0.6`;
- one section a verb, for a whole study in a file: `pretrain: {mask_ratio: 0.6}`, `finetune: {epochs: 20}`;
- the `run.yaml` that every run writes: verb, arguments, all resolved settings, versions. Given back with `--config`, it
  repeats the run.

An explicit value (a flag, a keyword argument) overrides the file, the file a recipe that one of them chooses
(`tymbal.settings.fields`), the recipe the defaults.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import platform
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from tymbal import settings as stages
from tymbal._version import __version__
from tymbal.errors import SettingsError
from tymbal.files import address, write_text
from tymbal.machine import machine
from tymbal.progress import tell
from tymbal.settings.fields import names_that, nature, without_effect
from tymbal.values import convert, nearest, plain, shown

__all__ = [
    "RunFile",
    "begun_before",
    "deciding",
    "diff",
    "from_mapping",
    "is_run_file",
    "layered",
    "old_names",
    "read_run_yaml",
    "read_settings",
    "read_yaml",
    "recipe_under",
    "resolve",
    "say_useless",
    "settings_of",
    "to_keywords",
    "to_mapping",
    "todays_name",
    "unknown_setting",
    "versions",
    "with_todays_names",
    "write_run_yaml",
    "write_yaml",
]

Settings = TypeVar("Settings")
PathLike = str | os.PathLike[str]

RUN_FILE = "run.yaml"

_RUN_KEYS = frozenset({"verb", "arguments", "settings"})


@dataclass(frozen=True, kw_only=True)
class RunFile:
    """The contents of a `run.yaml`.

    Attributes:
        verb: The verb that was run.
        arguments: Its source, output and the like, by parameter name.
        settings: Its resolved settings, by YAML key; older names are replaced by those of today.
        versions: Versions of Tymbal and of what it stands on, when it ran.
        machine: The machine that it ran on.
    """

    verb: str
    arguments: dict[str, Any]
    settings: dict[str, Any]
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    machine: dict[str, str] = dataclasses.field(default_factory=dict)


def resolve(
    cls: type[Settings],
    keywords: Mapping[str, Any],
    *,
    config: PathLike | None = None,
    begun: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Settings:
    """Builds the settings of a verb from its keyword arguments and, under them, a configuration file and a recipe.

    Args:
        cls: One of the dataclasses of `tymbal.settings`.
        keywords: The values that the caller gave explicitly.
        config: A YAML file in one of the three forms above, or a run folder.
        begun: What the run that is to be continued has recorded; None where there is none. Where an earlier version
            began it, the defaults of that version hold.
        defaults: Values of settings that none of these gives, in the place of their defaults.

    Raises:
        SettingsError: A key is unknown, or a value has the wrong type or is out of range.
    """
    below = {} if config is None else read_settings(cls, config)
    if config is not None and is_run_file(config):
        below = {**begun_before(cls, below), **below}
    if begun is not None:
        below = {**begun_before(cls, begun), **below}
    below = {**(defaults or {}), **below}
    return layered(cls, keywords, below, source=config)


def layered(
    cls: type[Settings], keywords: Mapping[str, Any], below: Mapping[str, Any], *, source: PathLike | None
) -> Settings:
    """Builds settings from keyword arguments, under them the settings of a file, and under these a recipe.

    Args:
        cls: A settings dataclass.
        keywords: The values that the caller gave explicitly.
        below: The values of the file.
        source: The file, for messages.

    Raises:
        SettingsError: A key is unknown, or a value has the wrong type or is out of range.
    """
    # Checked by itself first, so that a mistake in the file is reported with the file's name.
    from_mapping(cls, below, source=source)
    given = {**_known(cls, below, source), **_known(cls, keywords, None)}
    return from_mapping(cls, {**recipe_under(cls, given), **given})


def say_useless(settings: Any, given: Iterable[str] | None = None) -> None:
    """Says which settings have no effect beside others, of those that are `given`, or of all that were changed."""
    for remark in without_effect(settings, given):
        tell(remark, warning=True)


def recipe_under(cls: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults that recipes among the given values bring along (`tymbal.settings.fields`), by field name.

    Args:
        cls: A settings dataclass.
        given: The values that the user gave, by field name.
    """
    defaults: dict[str, Any] = {}
    for recipe in getattr(cls, "recipes", ()):
        defaults |= recipe.under(given)
    return defaults


def from_mapping(cls: type[Settings], mapping: Mapping[str, Any], *, source: PathLike | None = None) -> Settings:
    """Builds settings from a mapping, checking every key and type.

    A key may be spelled as in Python (`from_`, `mask_ratio`) or as on the command line (`from`, `mask-ratio`).

    Args:
        cls: A settings dataclass.
        mapping: Values by key; what is absent keeps its default.
        source: The file that the mapping comes from, for messages.

    Raises:
        SettingsError: A key is unknown, or a value has the wrong type or is out of range.
    """
    hints = setting_types(cls)
    values = {
        name: convert(value, hints[name], key=_key(name), source=source)
        for name, value in _known(cls, mapping, source).items()
    }
    try:
        return cls(**values)
    except SettingsError as error:
        if source is None or error.path is not None:
            raise
        raise SettingsError(error.what, path=source, advice=error.advice) from None


def old_names(cls: type[Any]) -> dict[str, str]:
    """Older names of settings that are still understood, each with the name of today, as YAML spells them."""
    names = (each.name for each in dataclasses.fields(cls))
    return {alias: _key(name) for name in names for alias in nature(cls, name).aliases}


def with_todays_names(cls: type[Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Renames the recorded settings of a run to the names that they have today, without a remark."""
    old = old_names(cls)
    return {old.get(name, name): value for name, value in recorded.items()}


def begun_before(cls: type[Any], recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The values with which a run was begun of settings that had another default or were left to the data, by YAML key.

    Args:
        cls: The settings of the run.
        recorded: What the run has recorded; a setting that it lacks did not exist then.
    """
    by_data = {name: recorded[name] for name in names_that(cls, "by_data") if name in recorded}
    defaults = {_key(each.name): nature(cls, each.name).before for each in dataclasses.fields(cls)}
    unchanged = {
        name: before
        for name, before in defaults.items()
        if before is not None and plain(recorded.get(name, before)) == plain(before)
    }
    return {**unchanged, **by_data}


def todays_name(cls: type[Any], old: str) -> str:
    """The name of today of a setting whose older name was used; says so, once."""
    new = old_names(cls)[old]
    _say_old(old, new)
    return new


@functools.cache
def _say_old(old: str, new: str) -> None:
    tell(f"{old} is now called {new}; the old name still works")


def to_mapping(settings: Any) -> dict[str, Any]:
    """Settings as plain YAML and JSON values, by YAML key (`from_` becomes `from`), in the order of the class."""
    return {_key(name): plain(value) for name, value in to_keywords(settings).items()}


def to_keywords(settings: Any) -> dict[str, Any]:
    """Settings as keyword arguments of the verb that takes them."""
    return {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}


def deciding(settings: Any) -> dict[str, Any]:
    """The part of settings that decides what comes out, as `to_mapping` has it: all that may not change on resume."""
    free = names_that(settings, "resumable")
    return {name: value for name, value in to_mapping(settings).items() if name not in free}


def diff(old: Any, new: Any) -> list[str]:
    """What differs between two settings or mappings: one line a key, `window: 5.0 -> 2.5`; empty where nothing does.

    What only the new ones have, as None, is no difference: a setting that the version of the old ones did not have.
    """
    before, after = (dict(side) if isinstance(side, Mapping) else to_mapping(side) for side in (old, new))
    absent = object()
    lines = []
    for key in dict.fromkeys([*before, *after]):
        left, right = plain(before.get(key, absent)), plain(after.get(key, absent))
        if left != right and not (left is absent and right is None):
            sides = ["(not set)" if side is absent else shown(side) for side in (left, right)]
            lines.append(f"{key}: {sides[0]} -> {sides[1]}")
    return lines


def read_yaml(path: PathLike) -> dict[str, Any]:
    """Reads a YAML file that holds a mapping with text keys.

    Raises:
        SettingsError: The file does not exist, is not YAML, or holds something else.
    """
    import yaml

    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SettingsError("there is no such configuration file", path=path, advice="Check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the configuration file cannot be read ({error})", path=path) from error
    try:
        value = yaml.safe_load(text)
        json.dumps(value, default=str)  # not possible where it holds itself
    except RecursionError:
        raise SettingsError("the configuration is nested too deeply", path=path) from None
    except (TypeError, ValueError) as error:
        raise SettingsError(f"the configuration cannot be read ({error})", path=path) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f" at line {mark.line + 1}, column {mark.column + 1}"
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise SettingsError(f"this is not YAML{where}: {problem}", path=path) from error
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise SettingsError(
            "the configuration is not a mapping of names to values",
            path=path,
            advice="Write one setting a line, as in 'mask_ratio: 0.75'.",
        )
    return value


def write_yaml(path: PathLike, mapping: Mapping[str, Any], *, comment: str | None = None) -> None:
    """Writes a mapping as YAML in its own order, whole or not at all, under an optional comment."""
    import yaml

    head = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines()) if comment else ""
    body = yaml.safe_dump(plain(mapping), sort_keys=False, allow_unicode=True, default_flow_style=False)
    write_text(path, head + body)


def read_settings(cls: type[Any], path: PathLike) -> dict[str, Any]:
    """The part of a configuration file, in any of its three forms, that is for the verb of `cls`.

    Raises:
        SettingsError: The file is not a configuration, or is the `run.yaml` of another verb.
    """
    verb = _verb(cls)
    file = _run_file(path)
    content = read_yaml(file)
    if content.keys() >= _RUN_KEYS:
        recorded = _parse_run(content, file)
        if recorded.verb != verb:
            raise SettingsError(
                f"this is the record of a '{recorded.verb}' run, not of '{verb}'",
                path=file,
                advice=f"Use it as 'tymbal {recorded.verb} --config {file}'.",
            )
        return recorded.settings
    sections = [key for key in content if key in _verbs()]
    if not sections:
        return content
    flat = [key for key in content if key not in sections]
    if flat:
        raise SettingsError(
            f"sections ({', '.join(sections)}) and single settings ({', '.join(flat)}) stand side by side",
            path=file,
            advice="Put every setting under the section of its verb.",
        )
    section = content.get(verb) or {}
    if not isinstance(section, dict):
        raise SettingsError(f"section '{verb}' is not a mapping of settings", path=file)
    return section


def write_run_yaml(run: PathLike, verb: str, arguments: Mapping[str, Any], settings: Any) -> Path:
    """Writes `run.yaml` into a run folder, from which `--config` repeats the run.

    Paths that exist are written in full, so that the run can be repeated from anywhere on this machine.

    Args:
        run: The run folder.
        verb: The verb, as on the command line.
        arguments: Source, output and the like by parameter name; None values are left out.
        settings: The resolved settings dataclass.

    Returns:
        The path of the file.
    """
    given = {key: _located(value) for key, value in arguments.items() if value is not None}
    chosen = to_mapping(settings)
    for name in names_that(settings, "path"):
        if chosen.get(name) is not None:
            chosen[name] = _located(chosen[name])
    path = Path(run) / RUN_FILE
    content = {
        "verb": verb,
        "arguments": given,
        "settings": chosen,
        "versions": versions(),
        "machine": machine(),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_yaml(path, content, comment=f"Repeat with: tymbal {verb} --config {RUN_FILE} -o ANOTHER_FOLDER")
    return path


def is_run_file(path: PathLike) -> bool:
    """Whether a configuration file is the `run.yaml` of a run."""
    return read_yaml(_run_file(path)).keys() >= _RUN_KEYS


def read_run_yaml(path: PathLike) -> RunFile:
    """Reads a `run.yaml`, or that of a run folder.

    Raises:
        SettingsError: The file does not exist or does not say what was run.
    """
    file = _run_file(path)
    return _parse_run(read_yaml(file), file)


def versions() -> dict[str, str]:
    """Versions of Tymbal, Python and the packages that decide a result, without importing them."""
    import importlib.metadata

    packages = ("torch", "transformers", "accelerate", "numpy", "soundfile", "soxr")
    return {
        "tymbal": __version__,
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
    }


def _parse_run(content: Mapping[str, Any], path: Path) -> RunFile:
    missing = sorted(_RUN_KEYS - content.keys())
    if missing:
        raise SettingsError(f"this is not the record of a run: it lacks {', '.join(missing)}", path=path)
    parts = {key: content.get(key) or {} for key in ("arguments", "settings", "versions", "machine")}
    for key, value in parts.items():
        if not isinstance(value, dict):
            raise SettingsError(f"'{key}' is not a mapping", path=path)
    verb = str(content["verb"])
    cls = settings_of(verb)
    if cls is not None:
        parts["settings"] = with_todays_names(cls, parts["settings"])
    return RunFile(verb=verb, **parts)


def _run_file(path: PathLike) -> Path:
    return Path(path) / RUN_FILE if Path(path).is_dir() else Path(path)


def _verb(cls: type[Any]) -> str:
    # Several classes may be for one verb, and say so.
    own: str | None = getattr(cls, "verb", None)
    return own or cls.__name__.removesuffix("Settings").lower()


@functools.cache
def _verbs() -> dict[str, type[Any]]:
    """Settings classes by verb; of several for one verb, the one that they are derived from."""
    classes = (getattr(stages, name) for name in stages.__all__ if name.endswith("Settings"))
    return {_verb(cls): cls for cls in classes if "verb" in vars(cls) or not hasattr(cls, "verb")}


def settings_of(verb: str) -> type[Any] | None:
    """The settings class of a verb; None where it has none."""
    return _verbs().get(verb)


def setting_types(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _key(name: str) -> str:
    # `from` is a word of Python's own, so the attribute is `from_`; people write `from`.
    return name.removesuffix("_")


def _known(cls: type[Any], mapping: Mapping[str, Any], source: PathLike | None) -> dict[str, Any]:
    names = {_key(name): name for name in setting_types(cls)}
    old = old_names(cls)
    known: dict[str, Any] = {}
    for key, value in mapping.items():
        plain = _key(key.replace("-", "_"))
        if plain in old:
            plain = todays_name(cls, plain)
            if {plain, names[plain]} & mapping.keys():
                raise SettingsError(
                    f"{key} and {plain} are one setting", path=source, advice=f"Leave out {key}, its old name."
                )
        if plain not in names:
            raise unknown_setting(cls, key, names, source=source)
        known[names[plain]] = value
    return known


def unknown_setting(cls: type[Any], key: str, known: Iterable[str], *, source: PathLike | None = None) -> SettingsError:
    """The error for a key that is no setting, with the nearest of those that are `known`, or all of them."""
    names = list(known)
    guess = nearest(_key(key.replace("-", "_")), names)
    advice = f"Did you mean {guess}?" if guess else f"Settings are: {', '.join(names)}."
    return SettingsError(f"unknown setting '{key}' for {_verb(cls)}", path=source, advice=advice)


def _located(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_located(item) for item in value]
    if isinstance(value, os.PathLike) or (isinstance(value, str) and Path(value).exists()):
        return address(value) or str(Path(value).absolute())
    return value
