"""Describes a model: everything beside its weights that its use needs, and its origin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from tymbal.errors import ModelError, TymbalError
from tymbal.features.normalisation import LOG_FLOOR, Normalisation, NormalizeBy
from tymbal.models.classifier import GRIDS
from tymbal.models.encoder import EncoderConfig
from tymbal.settings import FeatureSettings, FinetuneSettings, PretrainSettings

if TYPE_CHECKING:
    from tymbal.store.base import SpectrogramSource

__all__ = ["AUDIOSET_MEAN", "AUDIOSET_STD", "SCHEMA", "ModelDescription", "features_of", "normalisation_of"]

SCHEMA = 1
"""Version of the description in a model folder. It goes up when older readers would misunderstand it."""

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
        head_eps: Epsilon of the classifier's layer norm; `None` is the encoder's.
        objective: How it was pretrained, as settings.
        embedding: How its tokens are pooled into an embedding where nothing else is asked for; `None` is the mean, as
            of all models before this was recorded.
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
    head_eps: float | None = None
    objective: dict[str, Any] | None = None
    embedding: str | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def normalisation(self) -> Normalisation:
        """How spectrograms are normalised for the model."""
        return Normalisation(mean=self.mean, std=self.std, padding=self.padding, by=self.normalize)

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
        values = {"schema": SCHEMA, **asdict(self)}
        if self.encoder.attend_to_padding:  # as all models before this was a choice
            del values["encoder"]["attend_to_padding"]
        if self.embedding is None:
            del values["embedding"]
        if not self.encoder.stem:
            del values["encoder"]["stem"]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any], *, path: str | None = None) -> ModelDescription:
        """Reads what `to_json` returned.

        Raises:
            ModelError: Where it is of a newer schema or incomplete.
        """
        given = dict(values)
        schema = given.pop("schema", None)
        if not isinstance(schema, int):
            raise ModelError(
                "the model's description is missing or damaged", path=path, advice="Copy the folder again."
            )
        if schema != SCHEMA:
            raise ModelError(
                f"the model's description has schema {schema}, this Tymbal reads {SCHEMA}",
                path=path,
                advice="Upgrade Tymbal: pip install -U tymbal",
            )
        known = {item.name for item in fields(cls)}
        try:
            given["encoder"] = EncoderConfig(**given["encoder"])
            given["features"] = FeatureSettings(**given["features"])
            given["labels"] = tuple(given.get("labels", ()))
            return cls(**{name: value for name, value in given.items() if name in known})
        except (KeyError, TypeError, TymbalError) as error:
            raise ModelError(f"the model's description is damaged: {error!r}", path=path) from error


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
