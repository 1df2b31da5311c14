"""How a setting is declared and checked, and recipes: other defaults, which a choice brings along.

A field of a settings dataclass has a type, a default and, in its class's docstring, a description. Its further
properties are metadata of the field, so that no list elsewhere has to name it:

    workers: int = setting(0, resumable=True, group="machine")
    window: float | None = setting(None, aliases=("clip_seconds",), only_for=("sound",), example="5")

A field of a settings class has one default. What is usual may depend on what is done, all the same: SSAST's pretraining
and the reconstruction of short clips want other learning rates. A recipe is a table of such defaults. It holds where
one setting has a certain value, stands below everything that the user gives (flag, keyword, file), and is laid under it
by `tymbal.config.resolve` and by the command line. The settings that result are written to `run.yaml` one by one, so
that a run repeats itself even where a recipe has changed since; the help screens show both defaults.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from tymbal.errors import SettingsError

__all__ = [
    "CONTINUE",
    "GROUPS",
    "LP_FT",
    "NOTEBOOK",
    "SCRATCH",
    "SIZES",
    "VIEWS",
    "Nature",
    "Recipe",
    "changed",
    "check",
    "check_pattern",
    "check_seed",
    "foreign",
    "names_that",
    "nature",
    "parse_patch",
    "recipe_defaults",
    "setting",
    "without_effect",
]

Value = TypeVar("Value")

_KEY = "tymbal"


@dataclass(frozen=True, kw_only=True)
class Nature:
    """Properties of a setting beside its type, its default and its description.

    Attributes:
        path: Whether it is a path, which `run.yaml` has in full.
        data: Whether it names data that are read again when a run is continued, and may lie elsewhere by then.
        resumable: Whether it may change when what was begun is continued: it does not change what comes out, or is
            recorded as what it comes to.
        first: Whether it is one of the few that short help shows.
        group: The group that help shows it in. `None` is that of the class which introduces it.
        aliases: Its older names, still understood.
        only_for: Kinds of source that it is for (of data `pt` and `sound`; of reports others); it has no effect on
            others. Empty is all.
        needs: Conditions on other settings, without each of which it has no effect: `shots` (is given),
            `!eval_steps` (is not), `schedule=step|plateau` (is, or has, one of these), `optimizer!=sgd`.
        choices: Names to choose from, for help, of a setting whose choices other packages can add to.
        describes_model: Whether, where it belongs to an objective, the description of a model keeps it.
        by_data: Whether its default leaves it to the data: what was chosen is recorded when a run begins, and holds on.
        before: Its default in earlier versions, or what they did before there was such a setting: a run
            that was begun so goes on so. `None` is that all versions have the setting, and its default.
        example: A value that could be given, of a setting whose default and choices show none.
    """

    path: bool = False
    data: bool = False
    resumable: bool = False
    first: bool = False
    group: str | None = None
    aliases: tuple[str, ...] = ()
    only_for: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    describes_model: bool = True
    by_data: bool = False
    before: Any = None
    example: str | None = None


def setting(
    default: Value,
    *,
    path: bool = False,
    data: bool = False,
    resumable: bool = False,
    first: bool = False,
    group: str | None = None,
    aliases: tuple[str, ...] = (),
    only_for: tuple[str, ...] = (),
    needs: tuple[str, ...] = (),
    choices: tuple[str, ...] = (),
    describes_model: bool = True,
    by_data: bool = False,
    before: Value | None = None,
    example: str | None = None,
) -> Value:
    """A field of a settings dataclass that says its own nature; the arguments are the attributes of `Nature`."""
    own = Nature(
        path=path,
        data=data,
        resumable=resumable,
        first=first,
        group=group,
        aliases=aliases,
        only_for=only_for,
        needs=needs,
        choices=choices,
        describes_model=describes_model,
        by_data=by_data,
        before=before,
        example=example,
    )
    return field(default=default, metadata={_KEY: own})


def nature(cls: Any, name: str) -> Nature:
    """The properties of a setting.

    Args:
        cls: A settings dataclass, or an instance of one.
        name: The field. Where the class only changes the default of a field that it inherits, its nature is inherited.
    """
    kind = cls if isinstance(cls, type) else type(cls)
    for base in kind.__mro__:
        known = getattr(base, "__dataclass_fields__", {}).get(name)
        if known is not None and _KEY in known.metadata:
            return cast(Nature, known.metadata[_KEY])
    return Nature()


def names_that(cls: Any, what: str) -> tuple[str, ...]:
    """Names of the settings of a class whose nature says `what` (an attribute of `Nature`), as YAML spells them."""
    names = (each.name for each in dataclasses.fields(cls))
    return tuple(name.removesuffix("_") for name in names if getattr(nature(cls, name), what))


def changed(settings: Any) -> list[str]:
    """Names of settings that have neither their defaults, nor those of a recipe, nor what earlier versions did."""
    usual = recipe_defaults(settings)
    names = (each for each in dataclasses.fields(settings))
    return [
        each.name
        for each in names
        if getattr(settings, each.name) not in (each.default, usual.get(each.name), nature(settings, each.name).before)
    ]


def foreign(settings: Any, kinds: Iterable[str]) -> list[str]:
    """Names of settings that were changed and are for none of the kinds of source that are there."""
    there = set(kinds)
    only = ((name, nature(settings, name).only_for) for name in changed(settings))
    return [name for name, kinds in only if kinds and not there & set(kinds)]


def without_effect(settings: Any, given: Iterable[str] | None = None) -> list[str]:
    """Settings that have no effect beside others, each with the reason, in words.

    Args:
        settings: All settings.
        given: Names of those that the user gave; of others nothing is said. None is all that were changed.
    """
    names = changed(settings)
    if given is not None:
        asked = {name.replace("-", "_") for name in given}
        names = [name for name in names if name in asked]
    return [
        f"{name.removesuffix('_')} has no effect with {why}"
        for name in names
        for condition in _needs(settings, name)
        if (why := _broken(settings, condition)) is not None
    ]


def _needs(settings: Any, name: str) -> tuple[str, ...]:
    """Conditions of a setting, also where a class that changes its default does not repeat them."""
    natures = (nature(base, name) for base in type(settings).__mro__ if dataclasses.is_dataclass(base))
    return next((each.needs for each in natures if each.needs), ())


def _broken(settings: Any, condition: str) -> str | None:
    """What a condition of `Nature.needs` is broken by, in words; None where it holds."""
    match = cast(re.Match[str], re.fullmatch(r"(!?)(\w+?)(_?)(?:(!?)=(.+))?", condition))
    absent, name, score, other, wanted = match.groups()
    value = getattr(settings, name + score, None)
    values = value if isinstance(value, tuple) else (value,)
    has = any(each in wanted.split("|") for each in values) if wanted else bool(value)
    if not hasattr(settings, name + score) or has != bool(absent or other):
        return None
    if absent:
        return name
    shown = (" ".join(map(str, value)) or None) if isinstance(value, tuple) else value
    return f"{name}={shown}"


GROUPS = {
    "files": "Files, labels and the split",
    "spectrograms": "Spectrograms",
    "clips": "Clips and the store",
    "views": "Pairs of augmented views",
    "encoder": "Encoder",
    "classifier": "Classifier",
    "layers": "Which layers are trained, and how fast",
    "augmentation": "Augmentation",
    "balance": "Rare and common classes",
    "training": "Training",
    "optimizer": "Optimizer and learning rate",
    "evaluation": "Evaluations, checkpoints and figures",
    "machine": "Device and arithmetic",
    "sound": "Sound that is not a store yet",
    "pt": "Spectrograms in .pt files",
    "probe": "Probe",
    "windows": "Windows",
    "search": "Search",
    "labelling": "Labels and who gives them",
    "formats": "What becomes what",
    "page": "Page",
    "sharing": "What others see",
    "merging": "Labels and heads",
    "trial": "Trial",
}
"""Headings of the groups that help shows settings in."""

SIZES: dict[str, tuple[int, int, int]] = {
    "mini": (128, 4, 4),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
}
"""Width, depth and heads of the named encoders: `mini` for minutes on a laptop, others as in DeiT, AST and SSAST."""


def parse_patch(text: str, *, setting: str = "patch") -> tuple[int, int]:
    """Reads `16x16` or `128x2`: mel bins x frames."""
    match = re.fullmatch(r"\s*(\d+)\s*x\s*(\d+)\s*", text)
    if match is None or "0" in (match[1], match[2]):
        raise SettingsError(
            f"{setting} is {text!r}, which is not mel bins x frames", advice=f"Example: {setting} 16x16."
        )
    return int(match[1]), int(match[2])


def check(condition: bool, setting: str, value: object, expected: str) -> None:
    """Raises unless a condition on a setting's value holds; the error says which values are valid.

    Raises:
        SettingsError: The condition does not hold.
    """
    if not condition:
        raise SettingsError(f"{setting} is {value!r}, which is not {expected}", advice=f"Set {setting} to {expected}.")


def check_seed(seed: int) -> None:
    """Checks that the random generators of torch and numpy can begin with a seed.

    Raises:
        SettingsError: They cannot.
    """
    check(0 <= seed < 1 << 32, "seed", seed, f"0 to {(1 << 32) - 1:,}")


def check_pattern(setting: str, pattern: str, *, groups: bool = True) -> None:
    """Checks that a pattern is a regular expression and, with `groups`, that it has a group.

    Raises:
        SettingsError: The pattern cannot be used.
    """
    try:
        num_groups = re.compile(pattern).groups
    except re.error as error:
        raise SettingsError(f"{setting} {pattern!r} is not a regular expression: {error}") from None
    if groups and num_groups < 1:
        raise SettingsError(
            f"{setting} {pattern!r} has no group",
            advice="Put round brackets around the part of the path that is wanted, as in 'site_([a-z]+)'.",
        )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Defaults that hold where a setting has a certain value.

    Attributes:
        setting: The setting.
        value: The value that brings the defaults along. `None` is any number but 0.
        defaults: They, by field name.
        unless: Defaults that do not hold where another setting, which says the same in another way, is given.
    """

    setting: str
    value: str | None
    defaults: Mapping[str, Any]
    unless: Mapping[str, str] = field(default_factory=dict)

    def is_chosen(self, value: Any) -> bool:
        """Whether this value of the setting brings the defaults along."""
        return str(value or 0) != "0" if self.value is None else bool(value == self.value)

    @property
    def name(self) -> str:
        """The choice that brings the defaults along, for help."""
        return self.value or self.setting

    def under(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The defaults that hold beside what is given, by field name; none where the recipe is not chosen."""
        if not self.is_chosen(given.get(self.setting)):
            return {}
        blocking = {name for name, other in self.unless.items() if given.get(other) is not None}
        return {name: value for name, value in self.defaults.items() if name not in given and name not in blocking}


def recipe_defaults(settings: Any) -> dict[str, Any]:
    """Defaults of the recipes that settings have chosen, by field name; none where they have chosen none."""
    recipes = getattr(type(settings), "recipes", ())
    chosen = (each for each in recipes if each.is_chosen(getattr(settings, each.setting)))
    return {name: value for recipe in chosen for name, value in recipe.defaults.items()}


VIEWS = Recipe(
    setting="views",
    value=None,
    defaults={
        "filter_bank": "librosa",
        "sample_rate": 22_050,
        "low_freq": 0.0,
        "validation": 0.2,
        "longer": "crop-start",
        "window": 3.0,
    },
    unless={"window": "frames"},
)
"""How views of short clips are usually prepared."""

_STANDARDISED = {
    "pooling": "grid",
    "head_norm": "auto",
    "view_strength": 0.5,
    "min_steps": 100,
}

LP_FT = Recipe(
    setting="recipe",
    value="lp-ft",
    defaults={**_STANDARDISED, "head_start": "probe", "eval_start": True},
    unless={"min_steps": "epochs"},
)
"""How a classifier keeps what its encoder was pretrained for."""

SCRATCH = Recipe(
    setting="recipe",
    value="scratch",
    defaults={**_STANDARDISED, "size": "mini", "patch": "auto"},
    unless={"min_steps": "epochs"},
)
"""How a classifier without pretraining is trained: with the same head, so that the two compare."""

CONTINUE = Recipe(
    setting="recipe",
    value="continue",
    defaults={
        "learning_rate": 3e-4,
        "layer_decay": 0.75,
        "head_warmup": 1.0,
        "ema": 0.99,
        "eval_start": True,
    },
    unless={"ema": "average_from"},
)
"""How a pretraining goes on from weights and keeps what they know."""

NOTEBOOK = Recipe(
    setting="recipe",
    value="notebook",
    defaults={
        "epochs": 50,
        "learning_rate": 5e-5,
        "schedule": "cosine",
        "warmup": 3,
        "weight_decay": 0.0,
        "adam_beta2": 0.999,
        "batch_size": 1,
        "accumulate": 4,
        "best_by": "accuracy",
        "train": "3",
        "window": 1.0,
    },
    unless={"window": "frames", "batch_size": "batch_sizes"},
)
"""How one-second clips of insects are usually fine-tuned on, after `reconstruction`, with Hugging Face's AST."""
