"""What happens to flags before they are converted: lists with commas are taken apart, and files and recipes fill in.

Cyclopts calls `fill_from_file` and `fill_from_recipe` after it has read the flags and before it converts them. What
they find becomes a token of the argument that it is for, so that what is required, what is converted and what is shown
stays one mechanism.
"""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

from cyclopts import App, Token
from cyclopts.argument import Argument, ArgumentCollection

from tymbal import settings as stages
from tymbal.config import from_mapping, is_run_file, read_run_yaml, read_settings, recipe_under, to_keywords

__all__ = ["fill_from_file", "fill_from_recipe", "split_lists"]


def split_lists(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Takes `--batch-sizes 1,1,2,4` apart, as YAML and Python do; `1 1 2 4` is the same.

    Args:
        app: The command line.
        commands: The verb.
        arguments: What was found on the command line, by parameter; changed in place.
    """
    del app, commands
    for argument in arguments:
        if argument.keys and typing.get_origin(argument.hint) is tuple:
            found = [(token, part) for token in argument.tokens for part in token.value.split(",")]
            argument.tokens = [token.evolve(value=part.strip(), index=i) for i, (token, part) in enumerate(found)]


def fill_from_file(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Gives every argument without a token that of the configuration file, if `--config` names one.

    Settings are checked here, so that a mistake is reported with the file's name.

    Args:
        app: The command line.
        commands: The verb.
        arguments: What was found on the command line, by parameter; changed in place.

    Raises:
        SettingsError: The file cannot be read, is not for this verb, or has an unknown or wrong setting.
    """
    del app
    path = _config_file(arguments)
    if path is None or not commands:
        return
    cls = getattr(stages, f"{commands[-1].capitalize()}Settings")
    given = read_settings(cls, path)
    settings = to_keywords(from_mapping(cls, given, source=path))
    named = {key.replace("-", "_").removesuffix("_") for key in given}
    recorded = read_run_yaml(path).arguments if is_run_file(path) else {}
    for argument in arguments:
        if argument.tokens:
            continue
        name = argument.keys[-1] if argument.keys else argument.field_info.name
        if argument.keys and name.removesuffix("_") in named:
            _append(argument, settings[name], path)
        elif not argument.keys and name in recorded:
            _append(argument, recorded[name], path)


def fill_from_recipe(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Gives every argument without a token the default of the recipe that another one chooses, if any.

    Args:
        app: The command line.
        commands: The verb.
        arguments: What was found on the command line and in a file, by parameter; changed in place.
    """
    del app
    cls = getattr(stages, f"{commands[-1].capitalize()}Settings", None) if commands else None
    if cls is None:
        return
    by_name = {argument.keys[-1]: argument for argument in arguments if argument.keys}
    given = {name: argument.tokens[-1].value for name, argument in by_name.items() if argument.tokens}
    path = _config_file(arguments)
    # What a file sets to nothing has no token, and is given all the same.
    said = {} if path is None else {key.replace("-", "_"): value for key, value in read_settings(cls, path).items()}
    for name, value in recipe_under(cls, {**said, **given}).items():
        _append(by_name[name], value, "recipe")


def _config_file(arguments: ArgumentCollection) -> Path | None:
    chosen = next((a for a in arguments if "--config" in a.names and a.tokens), None)
    return None if chosen is None else Path(chosen.tokens[-1].value)


def _append(argument: Argument, value: Any, source: str | Path) -> None:
    if value is None:
        return
    values = value if isinstance(value, list | tuple) else [value]
    for index, item in enumerate(values):
        if isinstance(item, bool):
            argument.append(Token(keyword=argument.name, implicit_value=item, source=str(source), index=index))
        else:
            argument.append(Token(keyword=argument.name, value=str(item), source=str(source), index=index))
