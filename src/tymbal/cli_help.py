"""Help: a verb's arguments and the settings that matter first; the others by group, or all of them.

Plain text, in colours on a terminal, so that help needs nothing heavy. What a setting is comes from its class: the
description from the docstring, the group and whether it matters first from the field (`tymbal.settings.fields`).
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
import sys
import textwrap
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

from tymbal import config
from tymbal.cli_words import Argument, Verb, flag_of, is_switch
from tymbal.errors import SettingsError
from tymbal.objectives import registry
from tymbal.plugins import FILTER_BANKS
from tymbal.settings import PretrainSettings
from tymbal.settings.fields import GROUPS, Recipe, nature
from tymbal.values import nearest

__all__ = ["Entry", "overview", "settings_tables", "shown_default", "verb_help"]

_FEW = 15  # so many settings are shown at once
_WIDEST = 110  # columns
_EXAMPLE = """\
tymbal scan     recordings -o manifest.csv
tymbal prepare  manifest.csv -o store --window 5
tymbal pretrain store -o run --size tiny --max-minutes 60
tymbal probe    run labelled
tymbal finetune labelled -o classifier --from run
tymbal predict  classifier night.flac -o night.csv
tymbal report   run classifier night.csv
tymbal embed    run recordings -o recordings.parquet
tymbal similar  run clip.wav recordings.parquet
tymbal explore  classifier recordings
tymbal push     classifier owner/name --license cc-by-4.0"""

_REGISTERED = {"objective": registry.names, "filter_bank": FILTER_BANKS.names}
"""Settings whose choices other packages can add to, and who knows them."""

_BOLD, _CYAN, _DIM, _GREEN = "1", "36", "2", "32"


@dataclass(frozen=True)
class Entry:
    """The help text of an argument or a setting.

    Attributes:
        name: How it is given.
        text: Its description.
        notes: Choices, default, and whether it is required.
        example: How a setting may be given: `--window 5`.
    """

    name: str
    text: str
    notes: tuple[str, ...] = ()
    example: str = ""


def overview(verbs: Sequence[Verb]) -> str:
    """Help on the whole command line."""
    headings = dict.fromkeys(verb.heading for verb in verbs)
    tables = {title: [Entry(verb.name, verb.text) for verb in verbs if verb.heading == title] for title in headings}
    options = [Entry("-h, --help", "Show this."), Entry("--version", "Show the version.")]
    return "\n\n".join(
        [
            f"{_style('Usage:', _BOLD)} tymbal VERB ...",
            _paragraph("From a folder of unlabelled sound to an audio spectrogram transformer that knows it."),
            *_tables({**tables, "Options": options}),
            textwrap.indent(_EXAMPLE, "  "),
            _paragraph("`tymbal VERB --help` explains a verb and the settings that matter first."),
        ]
    )


def verb_help(verb: Verb, *, common: Sequence[Argument], group: str | None = None, whole: bool = False) -> str:
    """Help on a verb.

    Args:
        verb: The verb.
        common: The arguments of every verb.
        group: Show the settings of this group alone.
        whole: Show all settings.

    Raises:
        SettingsError: There is no such group.
    """
    cls = config.settings_of(verb.name)
    if cls is None:
        return "\n\n".join([*_head(verb), *_tables(_argument_tables(verb, common[1:]))])
    objectives = _objectives(verb.name)
    groups = _groups(cls)
    if group is not None and group in objectives:
        return "\n\n".join(_tables(_objective_tables(group)))
    if group is not None:
        _check_group(verb.name, group, [*groups, *objectives])
        return "\n\n".join(_tables({GROUPS[group]: _entries(cls, groups[group])}))
    names = [name for each in groups.values() for name in each]
    tables = _argument_tables(verb, common)
    if whole:
        tables |= settings_tables(verb.name)
    elif len(names) <= _FEW:
        return "\n\n".join([*_head(verb), *_tables({**tables, "Settings": _entries(cls, names)})])
    else:
        names = [name for name in names if nature(cls, name).first]
        tables["Settings that matter first"] = _entries(cls, names)
    listed = ", ".join([*groups, *objectives])
    end = f"More: `tymbal {verb.name} --help GROUP`, where GROUP is one of {listed}; `--help-all` shows all settings."
    return "\n\n".join([*_head(verb), *_tables(tables), _paragraph(end)])


def settings_tables(verb: str) -> dict[str, list[Entry]]:
    """All settings of a verb by the heading of their group, those of each objective of `pretrain` by themselves."""
    cls = config.settings_of(verb)
    if cls is None:
        return {}
    classes = dict.fromkeys(registry.run_settings(name) for name in _objectives(verb))
    recipes = [recipe for each in (classes or [cls]) for recipe in getattr(each, "recipes", ())]
    tables = {GROUPS[key]: _entries(cls, each, recipes) for key, each in _groups(cls).items()}
    for each in classes:
        tables |= _own_table(each)
    return tables


def _objectives(verb: str) -> Sequence[str]:
    return registry.names() if verb == "pretrain" else ()


def shown_default(value: Any) -> str | None:
    """A default as help shows it: none for a switch that is off or an empty list, and no Python punctuation."""
    if value is None or value is False or value == () or value is MISSING:
        return None
    if value is True:
        return "on"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _check_group(verb: str, group: str, groups: Sequence[str]) -> None:
    if group not in groups:
        guess = nearest(group, groups)
        raise SettingsError(
            f"{verb} has no group of settings {group!r}",
            advice=f"Did you mean {guess}?" if guess else f"Groups are: {', '.join(groups)}.",
        )


def _own_table(cls: type[PretrainSettings]) -> dict[str, list[Entry]]:
    """The settings of objectives of one class, beside those that all objectives share."""
    common = {each.name for each in fields(PretrainSettings)}
    names = _choices(config.setting_types(cls)["objective"])
    heading = f"With the objective{'s' if len(names) > 1 else ''} {', '.join(names)}"
    return {heading: _entries(cls, [each.name for each in fields(cls) if each.name not in common])}


def _objective_tables(objective: str) -> dict[str, list[Entry]]:
    cls = registry.run_settings(objective)
    defaults = [name for recipe in cls.recipes if recipe.value == objective for name in recipe.defaults]
    return {**_own_table(cls), "Other defaults that it brings along": _entries(cls, defaults)}


def _groups(cls: type[Any]) -> dict[str, list[str]]:
    """Names of the settings by group, in the order of `GROUPS`."""
    groups: dict[str, list[str]] = {}
    for base in cls.__mro__:
        own = [field.name for field in fields(cls) if _owner(cls, field.name) is base]
        for name in own:
            group: str = nature(cls, name).group or base.group  # type: ignore[attr-defined]
            groups.setdefault(group, []).append(name)
    return {group: groups[group] for group in sorted(groups, key=list(GROUPS).index)}


def _owner(cls: type[Any], name: str) -> type[Any]:
    """The class that introduced a setting, not one that only changed its default."""
    return next(base for base in reversed(cls.__mro__) if name in inspect.get_annotations(base))


def _entries(cls: Any, names: Iterable[str], recipes: Sequence[Recipe] | None = None) -> list[Entry]:
    """Entries of settings; with recipes, the defaults of these are shown instead of those of the class."""
    kinds = config.setting_types(cls)
    texts = _descriptions(cls)
    defaults = {each.name: each.default for each in fields(cls)}
    known = getattr(cls, "recipes", ()) if recipes is None else recipes
    return [
        Entry(
            flag_of(name),
            texts[name],
            tuple(_notes(cls, name, kinds[name], defaults[name], known)),
            _example(cls, name, kinds[name], defaults[name]),
        )
        for name in names
    ]


def _example(cls: Any, name: str, kind: Any, default: Any) -> str:
    """How a setting may be given: by its own example, another choice than the default, or the default."""
    if is_switch(kind):
        return flag_of(f"no_{name}") if default is True else flag_of(name)
    others = [choice for choice in _known_choices(cls, name, kind) if choice != default]
    value = nature(cls, name).example or (str(others[0]) if others else None) or shown_default(default)
    value = value if value is None else value.replace(", ", " ")
    return "" if value is None else f"{flag_of(name)} {_quoted(value)}"


def _quoted(value: str) -> str:
    """As a shell needs it: words of a list stay apart, patterns stay whole."""
    return f"'{value}'" if re.search(r"[()\[\]|^$*?<>;&\\#]", value) else value


def _known_choices(cls: Any, name: str, kind: Any) -> tuple[str, ...]:
    return nature(cls, name).choices or (_REGISTERED[name]() if name in _REGISTERED else _choices(kind))


def _notes(cls: Any, name: str, kind: Any, default: Any, recipes: Sequence[Recipe]) -> Iterator[str]:
    choices = _known_choices(cls, name, kind)
    if choices:
        yield f"choices: {', '.join(choices)}"
    text = shown_default(default)
    by_recipe = [
        f"{shown_default(recipe.defaults[name])} with {recipe.name}" for recipe in recipes if name in recipe.defaults
    ]
    if text is not None or by_recipe:
        yield f"default: {'; '.join([text or 'none', *by_recipe])}"
    if is_switch(kind) and default is True:
        yield f"{flag_of(f'no_{name}')} switches it off"


def _choices(kind: Any) -> tuple[str, ...]:
    if typing.get_origin(kind) is Literal:
        return typing.get_args(kind)
    return next(filter(None, map(_choices, typing.get_args(kind))), ())


def _descriptions(cls: Any) -> dict[str, str]:
    """Description of each setting, from the docstrings of the class and its bases."""
    descriptions: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, section = (inspect.cleandoc(base.__doc__ or "")).partition("\nAttributes:\n")
        for name, text in re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", section, flags=re.MULTILINE):
            descriptions[name] = " ".join(text.split())
    return descriptions


def _argument_tables(verb: Verb, common: Sequence[Argument]) -> dict[str, list[Entry]]:
    arguments = [_argument(each) for each in verb.arguments]
    return {"Arguments": arguments, "Options": [*map(_argument, common), Entry("-h, --help", "Show this.")]}


def _argument(argument: Argument) -> Entry:
    name = argument.shown if argument.short is None else f"{argument.short}, {argument.shown}"
    default = shown_default(argument.default)
    notes = (
        ("required",) if argument.flag and argument.required else () if default is None else (f"default: {default}",)
    )
    return Entry(name, argument.text, notes)


def _head(verb: Verb) -> list[str]:
    places = [f"{each.shown}{'...' if each.many else ''}" for each in verb.arguments if not each.flag]
    words = [
        word if each.required else f"[{word}]"
        for word, each in zip(places, (each for each in verb.arguments if not each.flag), strict=True)
    ]
    needed = [f"{each.short} {each.name.upper()}" for each in verb.arguments if each.flag and each.required]
    line = " ".join(["tymbal", verb.name, *words, *needed, "[SETTINGS]"])
    return [f"{_style('Usage:', _BOLD)} {line}", _paragraph(verb.text)]


def _tables(tables: Mapping[str, Sequence[Entry]]) -> list[str]:
    """Tables under their headings, with one width of names."""
    widest = max(len(entry.name) for entries in tables.values() for entry in entries)
    return [
        "\n".join([_style(title, _BOLD), *(_row(entry, widest) for entry in entries)])
        for title, entries in tables.items()
        if entries
    ]


def _row(entry: Entry, widest: int) -> str:
    indent = " " * (widest + 4)
    width = max(_width() - len(indent), 30)
    lines = _wrapped(entry.text, width)
    notes = [f"[{note}]" for note in entry.notes]
    for note in notes:
        for part in _wrapped(note, width):
            fits = lines and part == note and len(lines[-1]) + 1 + len(part) <= width
            lines = [*lines[:-1], f"{lines[-1]} {part}"] if fits else [*lines, part]
    first, *rest = lines or [""]
    name = _style(entry.name, _CYAN)
    return "\n".join(
        [f"  {name}{' ' * (widest - len(entry.name))}  {_marked(first)}", *(indent + _marked(each) for each in rest)]
    )


def _paragraph(text: str) -> str:
    return _marked("\n".join(_wrapped(text, _width())))


def _wrapped(text: str, width: int) -> list[str]:
    """Wraps a text into lines; text in backticks is not broken."""
    joined = re.sub(r"`[^`]+`", lambda match: match[0].replace(" ", "\0"), text)
    lines = textwrap.wrap(joined, width, break_long_words=False, break_on_hyphens=False)
    return [line.replace("\0", " ") for line in lines]


def _marked(line: str) -> str:
    """Colours text in backticks and notes in brackets on a terminal; elsewhere returns the line unchanged."""
    if not _coloured():
        return line
    line = re.sub(r"`([^`]+)`", lambda match: _style(match[1], _GREEN), line)
    return re.sub(r"\[(choices|default|required)[^\]]*\]?", lambda match: _style(match[0], _DIM), line)


def _style(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if _coloured() else text


def _coloured() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _width() -> int:
    return min(shutil.get_terminal_size().columns, _WIDEST) - 1
