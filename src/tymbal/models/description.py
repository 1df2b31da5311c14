"""Describes a model: everything beside its weights that its use needs, and its origin."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from tymbal.errors import ModelError, SettingsError, TymbalError
from tymbal.features.normalisation import LOG_FLOOR, Normalisation, NormalizeBy
from tymbal.models.classifier import GRIDS
from tymbal.models.encoder import EncoderConfig
from tymbal.settings import FeatureSettings, FinetuneSettings, PretrainSettings
from tymbal.values import convert

if TYPE_CHECKING:
    from tymbal.store.base import SpectrogramSource

Shape = TypeVar("Shape", EncoderConfig, FeatureSettings)

__all__ = [
    "AUDIOSET_MEAN",
    "AUDIOSET_STD",
    "GROUPED",
    "SCHEMA",
    "ModelDescription",
    "features_of",
    "normalisation_of",
]

SCHEMA = 1
"""Version of the description in a model folder. It goes up when older readers would misunderstand it."""

GROUPED = 2
"""Version of the description of a classifier with groups of labels, which older readers would take for one softmax."""

_LONGEST_FRAME, _MOST_MELS = 1 << 22, 1 << 14
_ANY_LENGTH: dict[Any, Any] = {tuple[int, int]: tuple[int, ...]}

AUDIOSET_MEAN, AUDIOSET_STD = -4.2677393, 4.5689974
"""Statistics of AudioSet's log-mel values, with which AST and SSAST were pretrained."""


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """The description of a model.

    Attributes:
        encoder: Shape of the encoder.
        features: How the spectrograms are made.
        mean: Mean of the log-mel values of its data; the encoder sees (x - mean) / (2 std).
        std: Standard deviation of the log-mel values.
        padding: Log-mel value of padding frames: the floor of the scale, silence, in our own models; 0 in those of
            SSAST and Hugging Face.
        normalize: Whether mean and std are the data set's, `dataset`, or each `clip`'s own.
        labels: Names of the classifier's labels in the order of its scores; empty for an encoder.
        pooling: How the classifier pools tokens; `None` for an encoder.
        skip_padding: Whether the classifier pools over the patches that hold sound only; never with `cls`.
        multilabel: Whether a clip can have several labels (a sigmoid each) or has one (softmax).
        groups: Sizes of the groups of labels that exclude each other, of classifiers side by side; `multilabel` then
            holds, with the softmax of its group as the score of a label. Empty for all others.
        head_eps: Epsilon of the classifier's layer norm; `None` is the encoder's.
        standardise: Whether the classifier standardises what it pools, instead of a layer norm.
        objective: How it was pretrained, as settings.
        embedding: How its tokens are pooled into an embedding where nothing else is asked for; `None` is the mean, as
            of all models before this was recorded.
        level: Level of the quietest clips that a classifier of one label a clip has learned from: the first percentile
            of their largest log-mel values. `None` is not known, as of all models before this was recorded.
        background: The label of clips in which nothing is to be found; `None` where there is none.
        thresholds: Score of each label from which a detection counts, as a review has set them; empty is 0.5 for all.
        provenance: Where it comes from, for the model card: `verb`, `version`, `created`, `from`, `data`, `settings`,
            `metrics`, whichever are known.
    """

    encoder: EncoderConfig
    features: FeatureSettings
    mean: float
    std: float
    padding: float
    normalize: NormalizeBy = "dataset"
    labels: tuple[str, ...] = ()
    pooling: str | None = None
    skip_padding: bool = False
    multilabel: bool = False
    groups: tuple[int, ...] = ()
    head_eps: float | None = None
    standardise: bool = False
    objective: dict[str, Any] | None = None
    embedding: str | None = None
    level: float | None = None
    background: str | None = None
    thresholds: tuple[float, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("mean", "std", "padding"):
            if not math.isfinite(getattr(self, name)):
                raise SettingsError(f"{name} of the model is {getattr(self, name)}, and not a finite number")
        if self.std <= 0:
            raise SettingsError(f"std of the model is {self.std:g}, and not above 0")
        if self.thresholds and len(self.thresholds) != len(self.labels):
            raise SettingsError(
                f"{len(self.thresholds)} thresholds are not one for each of the {len(self.labels)} labels of the model"
            )
        fitting = self.multilabel and min(self.groups, default=1) >= 1 and sum(self.groups) == len(self.labels)
        if self.groups and not fitting:
            raise SettingsError(f"groups of {self.groups} labels are not the {len(self.labels)} labels of the model")
        if self.features.window_samples > _LONGEST_FRAME or self.features.mel_bins > _MOST_MELS:
            raise SettingsError(
                f"its frames of {self.features.window_samples:,} samples and {self.features.mel_bins:,} mel bins are "
                "beyond all measure"
            )

    @property
    def normalisation(self) -> Normalisation:
        """How spectrograms are normalised for the model."""
        return Normalisation(mean=self.mean, std=self.std, padding=self.padding, by=self.normalize)

    @property
    def knows_parts(self) -> bool:
        """Whether its classifier or its pretraining says how many parts of the time are to be kept apart."""
        return self.pooling in GRIDS or self.compared_parts > 0

    @property
    def own_parts(self) -> int:
        """How many equal parts of the time the model keeps apart: 1, 2, 4 or 8.

        Those of its classifier, else the most that its pretraining compared each by itself, else 1.
        """
        if self.pooling in GRIDS:
            return GRIDS[self.pooling]
        return max((parts for parts in GRIDS.values() if parts <= self.compared_parts), default=1)

    @property
    def compared_parts(self) -> int:
        """How many parts of a clip's time its pretraining compared each by itself; 0 if it knew none."""
        objective = self.objective or {}
        compared = objective.get("parts", objective.get("projection_parts", 0))
        return compared if isinstance(compared, int) else 0

    @property
    def own_grid(self) -> str:
        """The pooling with `own_parts`: `rows` where time is one part, else `grid2`, `grid4` or `grid8`."""
        return f"grid{self.own_parts}" if self.own_parts > 1 else "rows"

    def to_json(self) -> dict[str, Any]:
        """The description as plain JSON values."""
        values = {"schema": GROUPED if self.groups else SCHEMA, **asdict(self)}
        if not self.groups:
            del values["groups"]
        if self.encoder.attend_to_padding:  # as all models before this was a choice
            del values["encoder"]["attend_to_padding"]
        if self.encoder.positions == "resize":
            del values["encoder"]["positions"]
        for name in ("embedding", "level", "background"):
            if values[name] is None:
                del values[name]
        if not self.thresholds:
            del values["thresholds"]
        if not self.encoder.stem:
            del values["encoder"]["stem"]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, path: str | None = None) -> ModelDescription:
        """Reads what `to_json` returned.

        Raises:
            ModelError: Where it is of a newer schema or incomplete.
        """
        given = dict(values) if isinstance(values, Mapping) else {}
        schema = given.pop("schema", None)
        if not isinstance(schema, int):
            raise ModelError(
                "the model's description is missing or damaged", path=path, advice="Copy the folder again."
            )
        if schema not in (SCHEMA, GROUPED):
            raise ModelError(
                f"the model's description has schema {schema}, this Tymbal reads {SCHEMA} and {GROUPED}",
                path=path,
                advice="Upgrade Tymbal: pip install -U tymbal",
            )
        known = get_type_hints(cls)
        try:
            nested = {"encoder": EncoderConfig, "features": FeatureSettings}
            parts: dict[str, Any] = {name: _typed(kind, given.pop(name)) for name, kind in nested.items()}
            given["labels"] = _listed(given.get("labels", ()))
            parts |= {
                "objective": given.pop("objective", None),
                "provenance": dict(given.pop("provenance", None) or {}),
            }
            rest = {name: convert(value, known[name], key=name) for name, value in given.items() if name in known}
            return cls(**parts, **rest)
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError, TymbalError) as error:
            what = error.what if isinstance(error, TymbalError) else repr(error)
            raise ModelError(f"the model's description is damaged: {what}", path=path) from error


def _listed(labels: Any) -> tuple[Any, ...]:
    """Labels as a tuple, which a text is not."""
    if not isinstance(labels, list | tuple):
        raise TypeError("labels is no list")
    return tuple(labels)


def _typed(kind: type[Shape], values: Mapping[str, Any]) -> Shape:
    """A dataclass of values, each of which is of its annotation.

    Raises:
        SettingsError: One is not.
        TypeError: A name is not known.
    """
    hints = get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise TypeError(f"unknown entry {unknown[0]}")
    kinds = {name: _ANY_LENGTH.get(hint, hint) for name, hint in hints.items()}
    return kind(**{name: convert(value, kinds[name], key=name) for name, value in values.items()})


def features_of(store: SpectrogramSource, origin: ModelDescription | None = None) -> FeatureSettings:
    """How the spectrograms of a store are made, for the description of a model that learns from them.

    If that is not recorded, they are taken to be made as for the model that it starts from, or as AST and SSAST do.
    """
    if store.features is not None:
        return store.features
    return FeatureSettings(mel_bins=store.mels) if origin is None else origin.features


def normalisation_of(
    settings: PretrainSettings | FinetuneSettings, store: SpectrogramSource, origin: ModelDescription | None = None
) -> Normalisation:
    """How spectrograms are normalised: as the settings say, else as the first model knows it, else by the data's."""
    known = store if origin is None else origin
    by: NormalizeBy = "clip" if origin is None else origin.normalize
    padding = known.padding if settings.padding is None else {"silence": LOG_FLOOR, "zeros": 0.0}[settings.padding]
    return Normalisation(
        mean=known.mean if settings.dataset_mean is None else settings.dataset_mean,
        std=known.std if settings.dataset_std is None else settings.dataset_std,
        padding=padding,
        by=by if settings.normalize == "auto" else settings.normalize,
    )
