"""One classifier of two, or of one and clips of further labels: `tymbal merge`.

    tymbal merge birds frogs -o both
    tymbal merge birds wren_clips -o birds_and_wren

Two classifiers must have one encoder, as those that were fine-tuned from it with `--train head` have. Their heads stand
side by side and give the scores that they gave alone, so that thresholds hold: labels that exclude each other in one of
them do so among themselves (a softmax each), and a clip may have a label of each. Where both name the same label of
several that exclude each other (`background`), there is one softmax over all, in which the odds of every label against
that one stay.

Further labels need no sound of the old ones: the encoder and the rows of the old labels stay bit for bit, and so does
how they score among themselves; a row for each new label is learned beside them (`tymbal.evaluation.head_start`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tymbal import config as configuration
from tymbal._version import __version__
from tymbal.errors import ModelError, SettingsError, StoreError
from tymbal.files import written_alone
from tymbal.progress import tell
from tymbal.settings import MergeSettings
from tymbal.settings.fields import changed, foreign

if TYPE_CHECKING:
    from torch import Tensor

    from tymbal.models.classifier import SpectrogramClassifier
    from tymbal.models.description import ModelDescription
    from tymbal.models.folder import LoadedModel

__all__ = ["MergeResult", "merge"]


@dataclass(frozen=True)
class MergeResult:
    """The outcome of `merge`.

    Attributes:
        output: The model folder.
        labels: All labels, in the order of the scores.
        notes: Remarks on it.
    """

    output: Path
    labels: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """The result as a person reads it."""
        return "\n".join([f"{self.output}: a classifier of {len(self.labels)} labels", *self.notes])


@written_alone
def merge(
    first: str | Path,
    second: str | Path,
    output: str | Path,
    *,
    config: str | Path | None = None,
    **settings: Any,
) -> MergeResult:
    """Makes one classifier of two, or of one and clips of further labels.

    Args:
        first: A classifier: a run, a model folder, a model of the Hub.
        second: Another one with the same encoder; or a folder of sound, with a folder a label or named as the label, a
            manifest or a store.
        output: The model folder to write. It must not exist yet.
        config: YAML file with settings.
        **settings: See `tymbal.settings.MergeSettings`.

    Raises:
        SettingsError: The output exists, or labels do not go together.
        ModelError: A model is no classifier, cannot be read, or the two have not the same encoder.
        StoreError: The clips cannot be read, or have no label that is new.
    """
    from tymbal.models.folder import load_model, save_model

    chosen = configuration.resolve(MergeSettings, settings, config=config)
    configuration.say_useless(chosen)
    target = Path(output)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise SettingsError("the output exists already", path=target, advice="Choose another place, or delete it.")
    base = _classifier(load_model(first), first)
    others: list[ModelDescription] = []
    _refuse_useless(chosen, second)
    if _is_model(second):
        other = _classifier(load_model(second), second)
        others.append(other.description)
        head = _side_by_side(base, other, (first, second), chosen)
    else:
        head = _grown(base, second, chosen)
    description = replace(
        base.description,
        labels=head.labels,
        multilabel=head.multilabel,
        groups=head.groups,
        thresholds=_thresholds([base.description, *others], head.labels),
        provenance={
            "verb": "merge",
            "version": __version__,
            "from": [str(first), str(second)],
            "settings": configuration.to_mapping(chosen),
        },
    )
    save_model(target, _with_head(base, head, description), description)
    return MergeResult(target, head.labels, head.notes)


def _thresholds(descriptions: Sequence[ModelDescription], labels: Sequence[str]) -> tuple[float, ...]:
    """Thresholds of all labels, those of the first classifier that has one; empty where none has any."""
    known: dict[str, float] = {}
    for description in reversed(descriptions):
        known |= dict(zip(description.labels, description.thresholds, strict=False))
    return tuple(known.get(label, 0.5) for label in labels) if known else ()


def _refuse_useless(settings: MergeSettings, second: str | Path) -> None:
    """Refuses settings for the other kind of what is merged."""
    if _is_model(second):
        names, what = foreign(settings, ["model"]), "a model"
        names += [name for name in ("dataset_mean", "dataset_std", "padding") if name in changed(settings)]
    else:
        names, what = foreign(settings, ["clips", "pt", "sound"]), "no model"
    if names:
        raise SettingsError(f"{names[0]} has no effect: {second} is {what}", advice=f"Leave out {' and '.join(names)}.")


@dataclass(frozen=True, kw_only=True)
class _Head:
    """A linear layer, and the norm in front of it.

    Attributes:
        labels: Names of its rows.
        weight: [labels, pooled width].
        bias: [labels].
        norm: Weights of the norm.
        multilabel: As in a model's description.
        groups: As there.
        notes: Remarks for the user.
    """

    labels: tuple[str, ...]
    weight: Tensor
    bias: Tensor
    norm: dict[str, Tensor]
    multilabel: bool
    groups: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def _classifier(loaded: LoadedModel, source: str | Path) -> LoadedModel:
    if not loaded.description.labels:
        raise ModelError(
            "this is an encoder, and no classifier", path=source, advice="tymbal finetune makes one of it."
        )
    return loaded


def _is_model(source: str | Path) -> bool:
    """Whether a source is a model rather than sound: one of the Hub, weights, or the folder of a model or a run."""
    from tymbal.models.weights import PICKLES, weights_in

    path = Path(source)
    if not path.exists():
        return True  # a name on the Hub; the loader reports what is missing
    is_file = path.is_file() and path.suffix in (".safetensors", *PICKLES)
    return is_file or any((each / "config.json").is_file() or weights_in(each) for each in (path, path / "model"))


def _module(loaded: LoadedModel) -> SpectrogramClassifier:
    from tymbal.models.classifier import SpectrogramClassifier

    if not isinstance(loaded.module, SpectrogramClassifier):
        raise ModelError("this is no classifier")
    return loaded.module


def _with_head(base: LoadedModel, head: _Head, description: ModelDescription) -> SpectrogramClassifier:
    """The classifier of the first model's encoder and pooling with a head."""
    from tymbal.models.folder import classifier_of
    from tymbal.models.weights import fill

    old = _module(base)
    module = classifier_of(old.encoder, description)
    kept = {name: value for name, value in old.state_dict().items() if not name.startswith(("head.", "head_norm."))}
    norm = {f"head_norm.{name}": value for name, value in head.norm.items()}
    fill(module, {**kept, **norm, "head.weight": head.weight, "head.bias": head.bias}, path="the merged head")
    return module.eval()


# Two classifiers


def _side_by_side(
    first: LoadedModel, second: LoadedModel, sources: tuple[str | Path, str | Path], settings: MergeSettings
) -> _Head:
    import torch

    _check_alike(first, second, sources)
    one, other = (each.description for each in (first, second))
    weight, bias, norm = _on_one_norm(_module(first), _module(second))
    shared = [label for label in one.labels if label in other.labels]
    labels = (*one.labels, *(label for label in other.labels if label not in shared))
    new = [place for place, label in enumerate(other.labels) if label not in shared]
    if settings.shared != MergeSettings.shared and not (shared and one.multilabel and other.multilabel):
        why = "their labels exclude each other" if shared else "no label is in both"
        raise SettingsError(f"shared has no effect: {why}", path=sources[1], advice="Leave it out.")
    if not shared:
        multilabel = one.multilabel and other.multilabel
        groups = () if multilabel and not one.groups + other.groups else (*_groups(one), *_groups(other))
        return _Head(
            labels=labels, weight=torch.cat(weight), bias=torch.cat(bias), norm=norm, multilabel=True, groups=groups
        )
    if one.groups or other.groups or one.multilabel != other.multilabel:
        raise SettingsError(
            f"both have the label {shared[0]}, among labels that exclude each other in one of them only",
            advice="Fine-tune one classifier on the sound of both, or rename the label in one of them.",
        )
    mine, theirs = ([each.labels.index(label) for label in shared] for each in (one, other))
    if not one.multilabel:
        # A softmax stays the same when all its scores move alike: in both heads the shared labels are moved to 0.
        weight = [weight[0] - weight[0][mine].mean(0), weight[1] - weight[1][theirs].mean(0)]
        bias = [bias[0] - bias[0][mine].mean(), bias[1] - bias[1][theirs].mean()]
    share = {"mean": 0.5, "first": 0.0, "second": 1.0}[settings.shared if one.multilabel else "mean"]
    for values in (weight, bias):
        values[0][mine] = torch.lerp(values[0][mine], values[1][theirs], share)
    named = ", ".join(shared)
    note = f"{named}: the {settings.shared} of both" if one.multilabel else f"Odds stay against {named}: one softmax"
    return _Head(
        labels=labels,
        weight=torch.cat([weight[0], weight[1][new]]),
        bias=torch.cat([bias[0], bias[1][new]]),
        norm=norm,
        multilabel=one.multilabel,
        notes=(note,),
    )


def _groups(description: ModelDescription) -> tuple[int, ...]:
    """Sizes of the groups of labels that exclude each other; a label that stands by itself is a group."""
    count = len(description.labels)
    return description.groups or ((1,) * count if description.multilabel else (count,))


def _check_alike(first: LoadedModel, second: LoadedModel, sources: tuple[str | Path, str | Path]) -> None:
    """Raises unless two classifiers compute the same up to their heads, and heads of one kind.

    Raises:
        ModelError: They do not; it says in what they differ.
    """
    from tymbal.config import diff
    from tymbal.models.classifier import Standardisation

    named = ("mean", "std", "padding", "normalize", "pooling", "skip_padding", "standardise")
    described = [
        {
            **asdict(each.description.encoder),
            **asdict(each.description.features),
            **{name: getattr(each.description, name) for name in named},
        }
        for each in (first, second)
    ]
    modules = [_module(each) for each in (first, second)]
    differing = diff(*described)
    if not differing:
        states = [module.state_dict() for module in modules]
        # The mask token is of pretraining alone.
        common = [n for n in states[0] if n.startswith(("encoder.", "attentive.")) and n != "encoder.mask_token"]
        differing = [f"{name}: other weights" for name in common if not states[0][name].equal(states[1][name])][:3]
    norms = [module.head_norm for module in modules]
    if not differing and not isinstance(norms[0], Standardisation):
        eps = [getattr(norm, "eps", None) for norm in norms]
        differing = [] if eps[0] == eps[1] else [f"epsilon of the head's norm: {eps[0]} -> {eps[1]}"]
    if differing:
        raise ModelError(
            f"it and {sources[0]} are not two heads on one encoder:\n    " + "\n    ".join(differing),
            path=sources[1],
            advice=f"Fine-tune it again on what the other one has: tymbal finetune … --from {sources[0]} --train head. "
            "Or give the sound of its labels instead.",
        )


def _on_one_norm(
    first: SpectrogramClassifier, second: SpectrogramClassifier
) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
    """Weights and biases of two heads behind one norm, with which each gives what it gave behind its own.

    A layer norm's scale and shift go into the linear layer; of two standardisations the second one's does.
    """
    import torch
    from torch import nn

    from tymbal.models.classifier import Standardisation

    heads = first.head, second.head
    weights = [head.weight.detach().double() for head in heads]
    biases = [head.bias.detach().double() for head in heads]
    norms = first.head_norm, second.head_norm
    if isinstance(norms[0], Standardisation) and isinstance(norms[1], Standardisation):
        deviations = [norm.deviation.double() for norm in norms if isinstance(norm, Standardisation)]
        moved = (norms[0].mean.double() - norms[1].mean.double()) / deviations[1]
        biases[1] = biases[1] + weights[1] @ moved
        weights[1] = weights[1] * (deviations[0] / deviations[1])
    state = dict(norms[0].state_dict())
    if isinstance(norms[0], nn.LayerNorm) and isinstance(norms[1], nn.LayerNorm):
        for place, norm in enumerate(norm for norm in norms if isinstance(norm, nn.LayerNorm)):
            biases[place] = biases[place] + weights[place] @ norm.bias.detach().double()
            weights[place] = weights[place] * norm.weight.detach().double()
        state = {"weight": torch.ones_like(state["weight"]), "bias": torch.zeros_like(state["bias"])}
    return [value.float() for value in weights], [value.float() for value in biases], state


# A classifier and clips


def _grown(base: LoadedModel, source: str | Path, settings: MergeSettings) -> _Head:
    import numpy as np
    import torch

    from tymbal.compute.device import choose_device
    from tymbal.data import open_data
    from tymbal.evaluation.head_start import fit_rows
    from tymbal.inference.encoding import check_features
    from tymbal.models.classifier import Standardisation

    module, known = _module(base), base.description
    if not isinstance(module.head_norm, Standardisation):
        raise ModelError(
            "its head has a layer norm, and does not know how the sound was spread that it learned from",
            advice="Only a classifier with --head-norm batch, as tymbal finetune makes from models of Tymbal, takes "
            "further labels without that sound. Otherwise fine-tune with all of it.",
        )
    with tempfile.TemporaryDirectory(prefix="tymbal-merge-") as folder:
        store = open_data(source, settings).spectrograms(Path(folder), known.features)
        check_features(store, known, path=source)
        rows = store.rows()
        truth, names = store.label_matrix(rows) > 0, tuple(store.labels)
        if not truth.any():
            names, truth = (settings.label or Path(source).resolve().name,), np.ones((len(rows), 1), bool)
        elif not truth.all(axis=0).any() and settings.label is not None:
            unnamed = ~truth.any(axis=1)
            names, truth = (*names, settings.label), np.column_stack([truth, unnamed])
        new = [place for place, name in enumerate(names) if name not in known.labels and truth[:, place].any()]
        if not new:
            raise StoreError(
                f"its labels are all known to the classifier: {', '.join(names)}",
                path=source,
                advice="Give a folder of clips that is named as the new label, a folder a label, or --label.",
            )
        for place in set(range(len(names))) - set(new):
            tell(f"{names[place]} is known already: its {truth[:, place].sum():,} clips only say what others are not")
        groups = store.index["group"].take(rows).to_pylist()
        device, _ = choose_device(settings.device)
        found = fit_rows(
            module,
            store,
            rows,
            truth[:, new],
            normalisation=known.normalisation,
            competes=not known.multilabel,
            groups=groups if all(groups) else None,
            settings=settings,
            device=device,
        )
    module.cpu()
    old = module.head
    notes = []
    for place, row in zip(new, found, strict=True):
        said = "too few to hold any out" if row.recognised is None else f"{row.recognised:,} recognised when held out"
        notes.append(f"{names[place]}: {row.clips:,} clips, {said}")
    return _Head(
        labels=(*known.labels, *(names[place] for place in new)),
        weight=torch.cat([old.weight.detach(), torch.from_numpy(np.stack([row.weight for row in found])).float()]),
        bias=torch.cat([old.bias.detach(), torch.tensor([row.bias for row in found])]),
        norm=dict(module.head_norm.state_dict()),
        multilabel=known.multilabel,
        groups=(*known.groups, *(1 for _ in new)) if known.groups else (),
        notes=tuple(notes),
    )
