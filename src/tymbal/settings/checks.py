"""What all settings are checked with."""

from __future__ import annotations

import re

from tymbal.errors import SettingsError

__all__ = ["SIZES", "check", "check_pattern", "parse_patch"]

SIZES: dict[str, tuple[int, int, int]] = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}
"""Width, depth and attention heads of the named encoders (those of DeiT, AST and SSAST)."""


def parse_patch(text: str, *, setting: str = "patch") -> tuple[int, int]:
    """Reads `16x16` or `128x2`: mel bins x frames."""
    match = re.fullmatch(r"\s*(\d+)\s*x\s*(\d+)\s*", text)
    if match is None or "0" in (match[1], match[2]):
        raise SettingsError(
            f"{setting} is {text!r}, which is not mel bins x frames", advice=f"Example: {setting} 16x16."
        )
    return int(match[1]), int(match[2])


def check(condition: bool, setting: str, value: object, wanted: str) -> None:
    """Refuses a value with what is wanted instead.

    Raises:
        SettingsError: The condition does not hold.
    """
    if not condition:
        raise SettingsError(f"{setting} is {value!r}, which is not {wanted}", advice=f"Set {setting} to {wanted}.")


def check_pattern(setting: str, pattern: str, *, groups: bool = True) -> None:
    """Refuses what is no regular expression, or has no group where one is wanted.

    Raises:
        SettingsError: The pattern cannot be used.
    """
    try:
        found = re.compile(pattern).groups
    except re.error as error:
        raise SettingsError(f"{setting} {pattern!r} is not a regular expression: {error}") from None
    if groups and found < 1:
        raise SettingsError(
            f"{setting} {pattern!r} has no group",
            advice="Put round brackets around the part of the path that is wanted, as in 'site_([a-z]+)'.",
        )
