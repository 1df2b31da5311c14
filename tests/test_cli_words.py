"""Words of a command line: what they are taken for, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from tymbal.cli_words import Argument, Flag, UsageError, is_switch, parse, setting_flags
from tymbal.settings import FinetuneSettings, ScanSettings

ARGUMENTS = (
    Argument(name="source", text="What is read."),
    Argument(name="output", text="What is written.", flag=True, short="-o"),
    Argument(name="quiet", text="Say nothing.", kind=bool, flag=True, short="-q"),
)
KINDS: dict[str, Any] = {
    "count": int,
    "rate": float | None,
    "name": str | None,
    "kind": Literal["near", "far"] | None,
    "sizes": tuple[int, ...],
    "fast": bool,
    "skip_padding": bool | None,
}


def read(*words: str) -> dict[str, Any]:
    flags = {}
    for name, kind in KINDS.items():
        shown = f"--{name.replace('_', '-')}"
        flags[shown] = Flag(shown, name, kind)
        if is_switch(kind):
            flags[f"--no-{shown[2:]}"] = Flag(shown, name, kind, value=False)
    return parse(words, ARGUMENTS, flags)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], {}),
        (["a"], {"source": Path("a")}),
        (["--", "-a"], {"source": Path("-a")}),
        (["-o", "b", "a"], {"output": Path("b"), "source": Path("a")}),
        (["-o=b"], {"output": Path("b")}),
        (["-ob"], {"output": Path("b")}),
        (["--output=b"], {"output": Path("b")}),
        (["-q", "a"], {"quiet": True, "source": Path("a")}),
        (["--count", "3.0"], {"count": 3}),
        (["--count", "1_000"], {"count": 1000}),
        (["--count", "-3"], {"count": -3}),
        (["--rate", "-.5"], {"rate": -0.5}),
        (["--rate=1e-4"], {"rate": 1e-4}),
        (["--rate", "None"], {"rate": None}),
        (["--name", "none"], {"name": None}),
        (["--name=-x(a)"], {"name": "-x(a)"}),
        (["--kind", "far"], {"kind": "far"}),
        (["--sizes", "1,2", "4", "-q"], {"sizes": (1, 2, 4), "quiet": True}),
        (["--sizes", "1", "--sizes", "2"], {"sizes": (1, 2)}),
        (["--sizes"], {"sizes": ()}),
        (["--fast"], {"fast": True}),
        (["--no-fast"], {"fast": False}),
        (["--fast=false"], {"fast": False}),
        (["--skip_padding"], {"skip_padding": True}),
        (["--no-skip-padding"], {"skip_padding": False}),
    ],
)
def test_parse__takes_words_for_what_settings_are(words: list[str], found: dict[str, Any]):
    assert read(*words) == found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "b", "c"], "b c is left over: it belongs to no argument"),
        (["--count"], "--count needs a value"),
        (["--count", "--fast"], "--count needs a value"),
        (["-o"], "--output needs a value"),
        (["--count", "3.5"], 'Invalid value for --count: unable to convert "3.5" into int.'),
        (["--count", "inf"], 'Invalid value for --count: unable to convert "inf" into int.'),
        (["--count="], 'Invalid value for --count: unable to convert "" into int.'),
        (["--rate", "slow"], 'Invalid value for --rate: unable to convert "slow" into float.'),
        (["--kind", "fra"], 'Invalid value "fra" for --kind. Choose from: "near", "far". Did you mean far?'),
        (["--sizes", "1,x"], 'Invalid value for --sizes: unable to convert "x" into int.'),
        (["--count", "1", "--count", "2"], "Parameter --count specified multiple times."),
        (["--fast=perhaps"], 'Invalid value "perhaps" for --fast. Choose from: "true", "false".'),
        (["--cuont", "1"], "Unknown option: --cuont. Did you mean --count?"),
        (["-x"], "Unknown option: -x."),
        (["--no-count"], "Unknown option: --no-count. Did you mean --count?"),
    ],
)
def test_parse__refuses_what_it_cannot_take(words: list[str], message: str):
    with pytest.raises(UsageError) as caught:
        read(*words)
    assert str(caught.value) == message


def test_parse__asks_for_more_flags_only_where_one_is_unknown():
    asked: list[int] = []
    more = {"--other": Flag("--other", "other", int)}
    flags = {"--count": Flag("--count", "count", int)}
    assert parse(["--count", "1"], (), flags, more=lambda: asked.append(1) or more) == {"count": 1}
    assert not asked
    assert parse(["--count", "1", "--other", "2"], (), flags, more=lambda: more) == {"count": 1, "other": 2}


def test_setting_flags__are_settings_older_names_and_switches():
    assert {"--from", "--window", "--clip-seconds", "--no-compile", "--skip-padding"} <= setting_flags(
        FinetuneSettings
    ).keys()
    assert setting_flags(ScanSettings)["--no-stratify"] == Flag("--no-stratify", "stratify", bool, value=False)
    assert "--no-seed" not in setting_flags(ScanSettings)


def test_parse__a_value_that_begins_with_a_hyphen() -> None:
    assert read("--name=-_(a)") == {"name": "-_(a)"}
    with pytest.raises(UsageError, match=r"--name needs a value; one that begins with - is written --name=-_\(a\)"):
        read("--name", "-_(a)")
