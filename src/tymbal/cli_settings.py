"""What stands between the command line and settings: lists, files and recipes fill arguments; help by stage."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import App, Token
from cyclopts.argument import Argument, ArgumentCollection
from cyclopts.help import DefaultFormatter, HelpEntry, HelpPanel

from tymbal import settings as stages
from tymbal.config import from_mapping, is_run_file, read_run_yaml, read_settings, recipe_under, to_keywords
from tymbal.objectives import registry

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

__all__ = ["VerbHelp", "fill_from_file", "fill_from_recipe", "shown_default", "split_lists"]


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
    cls, given = _with_file(commands[-1], arguments, path)
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
    if not commands or not hasattr(stages, _class_name(commands[-1])):
        return
    by_name = {argument.keys[-1]: argument for argument in arguments if argument.keys}
    given = {name: argument.tokens[-1].value for name, argument in by_name.items() if argument.tokens}
    cls, below = _with_file(commands[-1], arguments, _config_file(arguments))
    # What a file sets to nothing has no token, and is given all the same.
    said = {key.replace("-", "_"): value for key, value in below.items()}
    for name, value in recipe_under(cls, {**said, **given}).items():
        _append(by_name[name], value, "recipe")


def _class_name(verb: str) -> str:
    return f"{verb.capitalize()}Settings"


def _with_file(verb: str, arguments: ArgumentCollection, path: Path | None) -> tuple[type[Any], dict[str, Any]]:
    """The settings class of a verb, for pretraining that of the objective; and what of a file is for it."""
    cls = getattr(stages, _class_name(verb))
    below = {} if path is None else read_settings(cls, path)
    if cls is not stages.PretrainSettings:
        return cls, below
    flags = {
        argument.keys[-1]: argument.tokens[-1].value for argument in arguments if argument.keys and argument.tokens
    }
    objective = registry.chosen_name(flags, below, source=path)
    return registry.run_settings(objective), registry.own(objective, below, source=path)


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


_HEADINGS = {
    "ScanSettings": "Files, labels and the split",
    "FeatureSettings": "Spectrograms",
    "ViewSettings": "Pairs of augmented views",
    "PrepareSettings": "Clips and the store",
    "PretrainSettings": "Encoder and objective",
    "SSASTSettings": "With the objectives joint, mpc and mpg",
    "ReconstructionSettings": "With the objective reconstruction",
    "ViewPairSettings": "With pairs of views",
    "ContrastiveSettings": "With the objective contrastive",
    "FinetuneSettings": "Classifier",
    "ProbeSettings": "Probe",
    "PredictSettings": "Windows and scores",
    "EmbedSettings": "Windows and embeddings",
    "SimilarSettings": "Search",
    "ExploreSettings": "Page, windows and neighbours",
    "TrainingSettings": "Training",
    "PtSettings": "Spectrograms in .pt files",
    "SoundSettings": "Sound that is not a store yet",
    "ConvertSettings": "What becomes what",
}


def shown_default(value: Any) -> str | None:
    """A default as the help shows it: none for a switch that is off or an empty list, and no Python punctuation."""
    if value is None or value is False or value == ():
        return None
    if value is True:
        return "on"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


class VerbHelp(DefaultFormatter):
    """Cyclopts' help with the settings of a verb under several headings.

    Args:
        settings: The settings class of the verb.
    """

    def __init__(self, settings: type[Any]) -> None:
        super().__init__()
        # A setting belongs to the class that introduced it, not to one that only changed its default.
        self._owner = {
            field.name.removesuffix("_"): next(
                cls for cls in reversed(settings.__mro__) if field.name in inspect.get_annotations(cls)
            )
            for field in dataclasses.fields(settings)
        }
        # What a recipe has in the place of a default, by flag.
        self._recipes: dict[str, list[str]] = {}
        for recipe in getattr(settings, "recipes", ()):
            for name, value in recipe.defaults.items():
                text = f"{shown_default(value)} with {recipe.value}"
                self._recipes.setdefault(name.removesuffix("_"), []).append(text)
        self._order = [_HEADINGS.get(cls.__name__, cls.__name__) for cls in settings.__mro__]

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Prints one panel of Cyclopts, or several in its place."""
        parts: dict[str, list[HelpEntry]] = {}
        for entry in panel.entries:
            name = entry.positive_names[0][2:].replace("-", "_") if entry.positive_names else ""
            owner = self._owner.get(name)
            heading = str(panel.title) if owner is None else _HEADINGS.get(owner.__name__, owner.__name__)
            told = _without_off_switch(entry)
            if owner is not None and name in self._recipes:
                told = told.copy(default="; ".join([entry.default or "none", *self._recipes[name]]))
            parts.setdefault(heading, []).append(told)
        for heading in sorted(parts, key=lambda h: self._order.index(h) if h in self._order else -1):
            super().__call__(console, options, panel.copy(title=heading, entries=parts[heading]))


def _without_off_switch(entry: HelpEntry) -> HelpEntry:
    """`--compile`, not `--compile --no-compile`, where it is off anyway (the other one works, against a file's)."""
    return entry if entry.default else entry.copy(negative_names=(), negative_shorts=())
