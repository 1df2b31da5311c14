"""Help screens: the settings of a verb under a heading for each stage that they belong to.

Forty flags in one list cannot be read. The headings come from the classes of `tymbal.settings` in which the settings
are defined, so that a new setting finds its place by itself.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any

from cyclopts.help import DefaultFormatter, HelpEntry, HelpPanel

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

__all__ = ["VerbHelp", "shown_default"]

_HEADINGS = {
    "ScanSettings": "Files, labels and the split",
    "FeatureSettings": "Spectrograms",
    "ViewSettings": "Pairs of augmented views",
    "PrepareSettings": "Clips and the store",
    "PretrainSettings": "Encoder and objective",
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
