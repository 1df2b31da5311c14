"""The words of a command line: what stands in which place, which flag has which value, and what is wrong with them.

A word behind a flag is taken for what the setting is (`tymbal.settings` has its type), with nothing lost: `3` is also
3.0, `3.5` no whole number, `none` is None where a setting may be None. Lists take words up to the next flag, with or
without commas.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union

from tymbal.config import setting_types
from tymbal.errors import TymbalError
from tymbal.settings.fields import nature
from tymbal.values import nearest

__all__ = ["Argument", "Flag", "UsageError", "Verb", "flag_of", "is_switch", "parse", "setting_flags"]

_NEGATIVE = re.compile(r"-\.?\d")
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class UsageError(TymbalError):
    """The words of a command line cannot be understood."""


@dataclass(frozen=True, kw_only=True)
class Argument:
    """A verb's argument that is no setting.

    Attributes:
        name: As the verb's function calls it.
        text: Its description, for help.
        kind: `Path`, `str` or `bool`, or None besides.
        flag: Whether it is given as `--name`; else by its place.
        short: A letter that stands for the flag.
        required: Whether it must be given.
        many: Whether all words that are left belong to it.
        default: Its value if it is left out.
        keyword: Whether the function takes it by name.
    """

    name: str
    text: str
    kind: Any = Path
    flag: bool = False
    short: str | None = None
    required: bool = True
    many: bool = False
    default: Any = None
    keyword: bool = False

    @property
    def shown(self) -> str:
        """The name in messages and help: `SOURCE`, `--output`."""
        return flag_of(self.name) if self.flag else self.name.upper()


@dataclass(frozen=True, kw_only=True)
class Verb:
    """A command.

    Attributes:
        name: The verb, as on the command line and in Python.
        text: Its description.
        arguments: Its arguments beside settings, in the order of its function.
        heading: Under which heading help has it.
        learns: Whether it needs torch.
        continues: Whether the same command continues what was stopped.
    """

    name: str
    text: str
    arguments: tuple[Argument, ...]
    heading: str
    learns: bool = True
    continues: bool = False


@dataclass(frozen=True)
class Flag:
    """A flag of the command line, and the setting that it sets.

    Attributes:
        shown: The flag in messages, `--output` also where `-o` was given.
        key: Name of the function's argument or of the setting; an older name of a setting stays as it is.
        kind: Its annotation.
        value: For the form that switches something off, False; for all others None.
    """

    shown: str
    key: str
    kind: Any
    value: bool | None = None


def flag_of(name: str) -> str:
    """A setting as a flag: `--mask-ratio` for `mask_ratio`."""
    return f"--{name.removesuffix('_').replace('_', '-')}"


def setting_flags(cls: type[Any]) -> dict[str, Flag]:
    """The flags of a settings class, those of older names among them."""
    by_name: dict[str, Flag] = {}
    for name, kind in setting_types(cls).items():
        for each in (name, *nature(cls, name).aliases):
            flags = [Flag(flag_of(each), each, kind)]
            if is_switch(kind):
                flags.append(Flag(flag_of(f"no_{each}"), each, kind, value=False))
            by_name |= {flag.shown: flag for flag in flags}
    return by_name


def is_switch(kind: Any) -> bool:
    """Whether a setting is on or off, so that its flag has no value."""
    return kind is bool or set(typing.get_args(kind)) == {bool, types.NoneType}


def parse(
    words: Sequence[str],
    arguments: Sequence[Argument],
    flags: Mapping[str, Flag],
    *,
    more: Callable[[], Mapping[str, Flag]] = dict,
) -> dict[str, Any]:
    """Reads words into arguments and settings, by name; what is not given is absent.

    Args:
        words: The words behind the verb.
        arguments: The verb's arguments beside settings.
        flags: Its settings, by flag.
        more: Returns further flags; called if one is not among `flags`.

    Raises:
        UsageError: A flag is unknown, has no value or a wrong one, or a word is left over.
    """
    known = {**flags, **_argument_flags(arguments)}
    places = [each for each in arguments if not each.flag]
    values: dict[str, Any] = {}
    in_place: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            in_place += rest
            break
        if not word.startswith("-") or _NEGATIVE.match(word):
            in_place.append(word)
            continue
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        if name not in known and not name.startswith("--") and name[:2] in known:
            name, equals, value = name[:2], "=", word[2:].removeprefix("=")
        if name not in known:
            known |= more()
        if name not in known:
            guess = nearest(name, known)
            raise UsageError(f"Unknown option: {name}.{f' Did you mean {guess}?' if guess else ''}")
        flag = known[name]
        read: Any
        if is_switch(flag.kind):
            read = _switch(flag, value if equals else None)
        else:
            given = [value] if equals else list(_values(rest, flag))
            if not given and rest and rest[0].partition("=")[0] not in known and _item_kind(flag.kind) is None:
                raise UsageError(
                    f"{flag.shown} needs a value; one that begins with - is written {flag.shown}={rest[0]}"
                )
            read = _read(given, flag)
        if flag.key in values and not isinstance(read, tuple):
            raise UsageError(f"Parameter {flag.shown} specified multiple times.")
        values[flag.key] = (*values.get(flag.key, ()), *read) if isinstance(read, tuple) else read
    return {**values, **_placed(in_place, places)}


def _argument_flags(arguments: Sequence[Argument]) -> dict[str, Flag]:
    flags = [(each.short, Flag(each.shown, each.name, each.kind)) for each in arguments if each.flag]
    return {**{flag.shown: flag for _, flag in flags}, **{short: flag for short, flag in flags if short}}


def _placed(words: Sequence[str], places: Sequence[Argument]) -> dict[str, Any]:
    """Assigns the words without a flag to the positional arguments, by name."""
    values: dict[str, Any] = {}
    remaining = list(words)
    for place in places:
        if place.many and remaining:
            values[place.name], remaining = [place.kind(word) for word in remaining], []
        elif remaining:
            values[place.name] = place.kind(remaining.pop(0))
    if remaining:
        raise UsageError(f"{' '.join(remaining)} is left over: it belongs to no argument")
    return values


def _values(rest: list[str], flag: Flag) -> Iterator[str]:
    """Takes the words that are the value of a flag: one, or for a list all up to the next flag."""
    many = _item_kind(flag.kind) is not None
    while rest and (not rest[0].startswith("-") or _NEGATIVE.match(rest[0])):
        yield rest.pop(0)
        if not many:
            return


def _switch(flag: Flag, value: str | None) -> bool:
    if value is None:
        return flag.value is None
    if flag.value is not None or value.lower() not in _TRUTH:
        raise UsageError(f'Invalid value "{value}" for {flag.shown}. Choose from: "true", "false".')
    return _TRUTH[value.lower()]


def _read(words: Sequence[str], flag: Flag) -> Any:
    item = _item_kind(flag.kind)
    if item is not None:
        return tuple(_convert(part.strip(), item, flag.shown) for word in words for part in word.split(","))
    if not words:
        raise UsageError(f"{flag.shown} needs a value")
    return _convert(words[0], flag.kind, flag.shown)


def _item_kind(kind: Any) -> Any:
    """The kind of the items of a list; None where it is no list."""
    kind = _without_none(kind)
    return typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else None


def _without_none(kind: Any) -> Any:
    if typing.get_origin(kind) in (types.UnionType, Union):
        return next(option for option in typing.get_args(kind) if option is not types.NoneType)
    return kind


def _convert(word: str, kind: Any, name: str) -> Any:
    plain = _without_none(kind)
    if plain is not kind and word.lower() in ("none", "null"):
        return None
    if typing.get_origin(plain) is Literal:
        choices = typing.get_args(plain)
        if word not in choices:
            guess = nearest(word, choices)
            listed = ", ".join(f'"{choice}"' for choice in choices)
            raise UsageError(
                f'Invalid value "{word}" for {name}. Choose from: {listed}.{f" Did you mean {guess}?" if guess else ""}'
            )
        return word
    try:
        return _whole(word) if plain is int else plain(word)
    except (ValueError, OverflowError):
        raise UsageError(f'Invalid value for {name}: unable to convert "{word}" into {plain.__name__}.') from None


def _whole(word: str) -> int:
    """A whole number, which may be written as 3.0."""
    if re.fullmatch(r"[+-]?[\d_]+", word):
        return int(word)
    number = float(word)
    if not number.is_integer():
        raise ValueError(word)
    return int(number)
