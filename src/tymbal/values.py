"""Converts one value of a YAML file or a caller to the annotated type of its setting.

What is converted loses nothing: 3 is also 3.0, `1e-4` is a number although YAML takes it for text, a path is also text.
Everything else of the wrong type is an error that says which setting, in which file, and what was expected.
"""

from __future__ import annotations

import difflib
import math
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Union

from tymbal.errors import SettingsError

__all__ = ["convert", "nearest", "plain", "shown"]


def convert(value: Any, kind: Any, *, key: str, source: str | os.PathLike[str] | None = None) -> Any:
    """Checks a value against an annotation.

    Args:
        value: The value to convert.
        kind: `bool`, `int`, `float`, `str`, a `Literal` of strings, a `tuple[kind, ...]`, or one of these or None.
        key: The setting, for messages.
        source: The file that it was given in, for messages.

    Raises:
        SettingsError: It is something else.
    """
    if typing.get_origin(kind) in (types.UnionType, Union):
        if value is None:
            return None
        kind = next(option for option in typing.get_args(kind) if option is not types.NoneType)
    if typing.get_origin(kind) is Literal:
        return _choose(value, typing.get_args(kind), key=key, source=source)
    if typing.get_origin(kind) is tuple:
        # One item may stand without brackets, several as text: `report_to: tensorboard, wandb`.
        items = value.split(",") if isinstance(value, str) else value if isinstance(value, Sequence) else [value]
        item_kind = typing.get_args(kind)[0]
        items = [item.strip() if isinstance(item, str) else item for item in items]
        return tuple(convert(item, item_kind, key=key, source=source) for item in items)
    read, kind_in_words, example = _SCALARS[kind]
    try:
        return read(value)
    except (TypeError, ValueError):
        raise SettingsError(
            f"{key} is {shown(value)}, which is not {kind_in_words}", path=source, advice=f"Example: {key}: {example}"
        ) from None


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` was most likely meant to be, or None where nothing is close."""
    candidates = list(known)
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    part_of = [candidate for candidate in candidates if name in candidate.split("_")]
    return next(iter([*close, *part_of]), None)


def plain(value: Any) -> Any:
    """The same as YAML and JSON know it: lists for tuples, text for paths."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def shown(value: Any) -> str:
    """A value as a message shows it: text in quotes, so that `'3'` and `3` differ."""
    return repr(value) if isinstance(value, str) else str(plain(value))


def _choose(value: Any, choices: Sequence[str], *, key: str, source: str | os.PathLike[str] | None) -> str:
    if isinstance(value, str) and value in choices:
        return value
    guess = nearest(str(value), choices)
    raise SettingsError(
        f"{key} is {shown(value)}, which is not one of {', '.join(choices)}",
        path=source,
        advice=f"Did you mean {guess}?" if guess else None,
    )


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _float(value: Any) -> float:
    # YAML 1.1 reads 1e-4 as text, because it has no dot.
    if isinstance(value, bool) or not isinstance(value, numbers.Real | str):
        raise TypeError
    try:
        number = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        raise ValueError from None
    if not math.isfinite(number):  # no setting means anything by infinity, and whole numbers have none
        raise ValueError
    return number


def _int(value: Any) -> int:
    number = _float(value)
    if not number.is_integer():
        raise ValueError
    return int(number)


def _str(value: Any) -> str:
    # `train: 3` is a number to YAML and the number of blocks, as text, to us.
    if isinstance(value, bool) or not isinstance(value, str | os.PathLike | int):
        raise TypeError
    return str(value)


_SCALARS: dict[Any, tuple[Callable[[Any], Any], str, str]] = {
    bool: (_bool, "true or false", "true"),
    int: (_int, "a whole number", "32"),
    float: (_float, "a number", "0.5"),
    str: (_str, "text", "auto"),
}
