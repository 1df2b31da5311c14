"""A model folder: written whole or not at all, and opened from wherever a model may come.

    model/
      config.json               what transformers wants to know, and under `tymbal` our own description
      model.safetensors         the weights
      objective.safetensors     the mask token and the heads of the pretraining objective, if any
      preprocessor_config.json  how transformers makes the spectrograms, where it can; where its own extractor cannot,
      feature_extraction_tymbal.py  is the one that does, for those who trust it
      labels.json               names of the labels in the order of the scores, if any
      README.md                 the model card

Where transformers' AST can hold the model, its weights have transformers' names and stock `from_pretrained` loads the
folder. Otherwise (frame patches, mean pooling) the names are ours and `model_type` is `tymbal`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tymbal.errors import ModelError
from tymbal.files import checksum_of, replace_folder, verified, with_checksum, write_json, write_text
from tymbal.models import hub
from tymbal.models.card import CardFacts, model_card
from tymbal.models.classifier import SCRIPT_POOLING, ScriptClassifier, SpectrogramClassifier, Standardisation
from tymbal.models.description import GROUPED, SCHEMA, ModelDescription
from tymbal.models.encoder import SpectrogramEncoder
from tymbal.models.formats import huggingface, scripts
from tymbal.models.formats import huggingface as extractor
from tymbal.models.formats import ssast_checkpoint as ssast
from tymbal.models.weights import (
    LOOSE_WEIGHTS,
    PICKLES,
    Checkpoint,
    check_fit,
    fill,
    read_json,
    read_weights,
    weights_in,
    write_weights,
)
from tymbal.progress import tell

__all__ = [
    "CHECKPOINT_MANIFEST",
    "LoadedModel",
    "ModelDescription",
    "build",
    "classifier_of",
    "describe_anew",
    "load_model",
    "open_checkpoint",
    "save_model",
]

CHECKPOINT_MANIFEST = "manifest.json"
"""The file that makes a folder a checkpoint of a run, see `tymbal.training.checkpoints`."""

_CONFIG = "config_checksum"
_MASK_TOKEN = "encoder.mask_token"  # noqa: S105 - no password


@dataclass(frozen=True)
class LoadedModel:
    """A model and what it is.

    Attributes:
        module: `SpectrogramEncoder` or `SpectrogramClassifier`, in evaluation mode, on the CPU.
        description: Its description.
        objective_state: Weights of the heads of the pretraining objective; empty if it has none.
    """

    module: SpectrogramEncoder | SpectrogramClassifier
    description: ModelDescription
    objective_state: dict[str, Tensor]


def save_model(
    folder: str | Path,
    module: SpectrogramEncoder | SpectrogramClassifier,
    description: ModelDescription,
    *,
    objective_state: Mapping[str, Tensor] | None = None,
    facts: CardFacts | None = None,
) -> None:
    """Writes a model folder; an existing one is replaced as a whole.

    Args:
        folder: The folder to write.
        module: The model, on any device.
        description: Its description; labels and pooling must be those of the module.
        objective_state: Weights of the objective's heads, to go on pretraining from.
        facts: What the card says besides, where the model is shared.

    Raises:
        ModelError: Where the description is not that of the module.
    """
    encoder = _check(module, description)
    obstacle = huggingface.obstacle(
        description.encoder, description.pooling, standardise=description.standardise, groups=description.groups
    )
    preprocessor = extractor.to_preprocessor(description, own_class=obstacle is not None)
    if obstacle is None:
        config, state = huggingface.to_config(description), huggingface.to_state(module)
    else:
        config, state = huggingface.own_config(description), _own_state(module)
    objective = dict(objective_state or {})
    if obstacle is None and encoder is module:
        objective[_MASK_TOKEN] = encoder.mask_token  # AST has no place for it
    with replace_folder(folder) as aside:
        ours = with_checksum({**description.to_json(), _CONFIG: checksum_of(config)})
        write_json(aside / "config.json", {**config, "tymbal": ours})
        write_weights(aside / "model.safetensors", state)
        if objective:
            write_weights(aside / "objective.safetensors", objective)
        if obstacle is not None:
            write_text(aside / extractor.REMOTE_MODEL, extractor.remote_code(extractor.REMOTE_MODEL))
        if preprocessor is not None:
            write_json(aside / extractor.PREPROCESSOR, preprocessor)
            if not extractor.is_stock(preprocessor):
                write_text(aside / extractor.REMOTE_CODE, extractor.remote_code())
        if description.labels:
            write_json(aside / "labels.json", list(description.labels))
        card = model_card(description, obstacle=obstacle, preprocessor=preprocessor, facts=facts)
        write_text(aside / "README.md", card)


def describe_anew(model: str | Path, description: ModelDescription) -> Path:
    """Writes another description into a model folder, whose weights stay; gives the file.

    Raises:
        ModelError: It is no model folder of Tymbal on this machine.
    """
    folder = _locate(model) if Path(model).exists() else Path(model)
    file = folder / "config.json"
    config = read_json(file) if file.is_file() else {}
    ours = config.get("tymbal")
    if not isinstance(ours, dict):
        raise ModelError(
            "this is no model folder of Tymbal, and cannot be described anew",
            path=model,
            advice="Make it one first: tymbal convert MODEL FOLDER --to tymbal",
        )
    kept = {_CONFIG: ours[_CONFIG]} if _CONFIG in ours else {}
    write_json(file, {**config, "tymbal": with_checksum({**description.to_json(), **kept})})
    return file


def load_model(
    source: str | Path,
    *,
    stride: tuple[int, int] | None = None,
    pooling: str | None = None,
    heads: int | None = None,
) -> LoadedModel:
    """Opens a model.

    Args:
        source: A run folder, a model folder of ours or of Hugging Face, a model of the Hub (`hf://owner/name@revision`,
            or its plain name), an SSAST `.pth` file, or the weights that a script has saved of an AST of Hugging Face:
            a file, or its folder.
        stride: Stride of the patches, mel bins and frames, for a file that does not tell: a fine-tuned one of SSAST, or
            one of a script.
        pooling: Pooling of a fine-tuned SSAST file, `mean` or `cls`, which never tells; `None` is `mean`.
        heads: Attention heads in a file of a script, which never tells; `None` is the width over 64.

    Raises:
        ModelError: The source is no model, is damaged or unsafe, or is of a kind that Tymbal does not know.
    """
    checkpoint = open_checkpoint(source, stride=stride, pooling=pooling, heads=heads)
    assumed = checkpoint.description.provenance.get("assumed")
    if assumed:
        tell(f"Assumed of {source}, which does not tell: {assumed}")
    return LoadedModel(build(checkpoint, path=str(source)), checkpoint.description, checkpoint.objective)


def build(checkpoint: Checkpoint, *, path: str) -> SpectrogramEncoder | SpectrogramClassifier:
    """Makes the module of a checkpoint, in evaluation mode.

    Raises:
        ModelError: Where a weight is missing, unknown or of another shape.
    """
    description, tensors = checkpoint.description, dict(checkpoint.encoder)
    _check_depth(description, tensors, path=path)
    with torch.device("meta"):  # sizes are compared before memory is taken for them
        shape = SpectrogramEncoder(description.encoder)
    mask = {"mask_token": torch.empty(1, 1, description.encoder.width, device="meta"), **tensors}
    check_fit(shape, mask, path=path)
    # A model that never masked has no mask token; zero is as good a start as any, and the same each time.
    tensors.setdefault("mask_token", torch.zeros(1, 1, description.encoder.width))
    encoder = SpectrogramEncoder(description.encoder)
    fill(encoder, tensors, path=path)
    if not checkpoint.head:
        return encoder.eval()
    rows = len(checkpoint.head.get("head.bias", ()))
    if rows != len(description.labels):
        raise ModelError(
            f"the head has {rows} rows of weights, its description {len(description.labels)} labels",
            path=path,
            advice="The file is damaged, or its configuration belongs to other weights.",
        )
    classifier = classifier_of(encoder, description)
    head = {name: value for name, value in classifier.state_dict().items() if name.startswith("encoder.")}
    fill(classifier, {**head, **checkpoint.head}, path=path)
    return classifier.eval()


def _check_depth(description: ModelDescription, tensors: Mapping[str, Tensor], *, path: str) -> None:
    """Raises unless there are weights for as many blocks as are described."""
    numbers = [int(match[1]) for match in map(re.compile(r"blocks\.(\d{1,9})\.").match, tensors) if match]
    blocks = max(numbers, default=-1) + 1
    if blocks != description.encoder.depth:
        raise ModelError(
            f"the weights have {blocks} blocks, their description {description.encoder.depth}",
            path=path,
            advice="The file is damaged, or its configuration belongs to other weights.",
        )


def classifier_of(encoder: SpectrogramEncoder, description: ModelDescription) -> SpectrogramClassifier:
    """The classifier that is described, around an encoder, with a head that has no weights of its own yet."""
    if description.pooling == SCRIPT_POOLING:
        script = ScriptClassifier(encoder, len(description.labels))
        script.groups = description.groups
        return script
    return SpectrogramClassifier(
        encoder,
        len(description.labels),
        pooling=description.pooling or "cls",
        skip_padding=description.skip_padding,
        head_eps=description.head_eps,
        standardise=description.standardise,
        groups=description.groups,
    )


def open_checkpoint(
    source: str | Path,
    *,
    stride: tuple[int, int] | None = None,
    pooling: str | None = None,
    heads: int | None = None,
) -> Checkpoint:
    """Reads the weights and the description of a model, in our names; the arguments are those of `load_model`."""
    path = _locate(source)
    if path.is_dir():
        return _read_folder(path, name=str(source))
    if path.suffix != ".safetensors" and path.suffix not in PICKLES:
        raise ModelError(
            "this is no model", path=path, advice=f"Give a model folder, or a file of weights ({', '.join(PICKLES)})."
        )
    state = read_weights(path)
    if ssast.is_ssast(state):
        return ssast.from_state(state, path=str(path), stride=stride, pooling=pooling)
    if (path.parent / "config.json").is_file() and path.name in huggingface.WEIGHTS:
        return _read_folder(path.parent, name=str(source))
    if scripts.holds_ast(state):
        return scripts.from_state(state, path=path, stride=stride, heads=heads)
    raise ModelError(
        f"nothing is known about these {len(state)} weights ({next(iter(state))}, …): they are neither SSAST's nor "
        "those of an AST of Hugging Face, and no config.json lies beside them",
        path=path,
        advice="Give the folder of the model, with its config.json.",
    )


def _locate(source: str | Path) -> Path:
    """Resolves a source to a folder or file: a run's model, a folder, a file, or a model of the hub."""
    path = Path(source)
    if path.is_dir():
        return _locate_in(path)
    if path.is_file():
        return path
    model = hub.HubModel.parse(source)
    if model is not None:
        return hub.fetch(model)
    raise ModelError("there is no such model", path=path, advice="Check the path.")


def _locate_in(folder: Path) -> Path:
    """Resolves a folder to the folder of its config.json, or to its file of weights if it has none."""
    for place in (folder, folder / "model"):
        if (place / "config.json").is_file():
            return place
    if (folder / CHECKPOINT_MANIFEST).is_file():
        raise ModelError(
            "this is a checkpoint of a run, from which a run is continued; it is no model",
            path=folder,
            advice="Continue the run with --resume. To start from what it has learned, give the run: its best model.",
        )
    file = weights_in(folder)
    if file is None:
        others = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", *PICKLES))
        or_file = f", or a file of a model's weights, as {others[0]} may be" if others else ""
        raise ModelError(
            "the folder holds no model: there is no config.json in it, nor in a folder model/, and no file of weights "
            f"({', '.join(LOOSE_WEIGHTS)})",
            path=folder,
            advice=f"Give the folder of a model, or of a run that got as far as saving one{or_file}.",
        )
    return file


def _read_folder(folder: Path, *, name: str) -> Checkpoint:
    config = read_json(folder / "config.json")
    _check_config(config, folder / "config.json")
    kind = config.get("model_type")
    if kind == huggingface.MODEL_TYPE:
        checkpoint = huggingface.read(folder, name=name)
        if scripts.has_parts(checkpoint.left):  # a script's module, with its encoder's configuration beside it
            file = next(folder / each for each in huggingface.WEIGHTS if (folder / each).is_file())
            checkpoint = scripts.from_state(read_weights(file), path=file)
    elif kind == huggingface.OWN_TYPE:
        description = ModelDescription.from_json(config.get("tymbal", {}), path=str(folder))
        encoder, head = _split(read_weights(folder / "model.safetensors"))
        checkpoint = Checkpoint(huggingface.OWN_TYPE, description, encoder, head)
    else:
        raise ModelError(
            f"the model is of the type {kind!r}, which Tymbal does not know",
            path=folder,
            advice="Give an audio spectrogram transformer: a model of Tymbal, of Hugging Face's AST, or of SSAST.",
        )
    if (folder / "objective.safetensors").is_file():
        objective = read_weights(folder / "objective.safetensors")
        if _MASK_TOKEN in objective:
            checkpoint.encoder["mask_token"] = objective.pop(_MASK_TOKEN)
        checkpoint.objective.update(objective)
    return checkpoint


def _check_config(config: Mapping[str, Any], path: Path) -> None:
    """Compares a configuration with its checksums; what transformers or a user changed outside of ours is remarked on.

    Raises:
        ModelError: Our description is not what was written.
    """
    ours = config.get("tymbal")
    if not isinstance(ours, Mapping) or ours.get("schema") not in (SCHEMA, GROUPED):  # which is reported in its place
        return
    try:
        verified(dict(ours))
    except ValueError:
        raise ModelError(
            "the model's description is damaged: its checksum differs",
            path=path,
            advice="Copy the file again. If you have changed it yourself, take the entry checksum out of it.",
        ) from None
    others = {name: value for name, value in config.items() if name != "tymbal"}
    if _CONFIG in ours and "transformers_version" not in config and ours[_CONFIG] != checksum_of(others):
        tell(
            f"{path} was changed since it was written, beside what Tymbal describes: it is taken as it is", warning=True
        )


def _check(module: SpectrogramEncoder | SpectrogramClassifier, description: ModelDescription) -> SpectrogramEncoder:
    """Raises if the description is of another model, which would otherwise only show when the folder is opened."""
    encoder = module if isinstance(module, SpectrogramEncoder) else module.encoder
    pairs: dict[str, tuple[object, object]] = {
        "encoder": (encoder.config, description.encoder),
        "number of mel bins": (encoder.config.mels, description.features.mel_bins),
    }
    if isinstance(module, SpectrogramEncoder):
        pairs["number of labels"] = (0, len(description.labels))
    else:
        eps = encoder.config.layer_norm_eps if description.head_eps is None else description.head_eps
        pairs["number of labels"] = (module.head.out_features, len(description.labels))
        pairs["pooling"] = (module.pooling, description.pooling)
        pairs["groups"] = (module.groups, description.groups)
        pairs["skip_padding"] = (module.skip_padding, description.skip_padding)
        pairs["standardise"] = (isinstance(module.head_norm, Standardisation), description.standardise)
        pairs["head_eps"] = (getattr(module.head_norm, "eps", eps), eps)
    for what, (actual, described) in pairs.items():
        if actual != described:
            raise ModelError(f"the model's {what} is {actual}, but its description says {described}")
    return encoder


def _own_state(module: SpectrogramEncoder | SpectrogramClassifier) -> dict[str, Tensor]:
    """Weights with our names, those of the encoder behind `encoder.`, whether alone or in a classifier."""
    state = module.state_dict()
    if isinstance(module, SpectrogramEncoder):
        return {f"encoder.{name}": value for name, value in state.items()}
    return dict(state)


def _split(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    encoder = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
    return encoder, {name: value for name, value in state.items() if not name.startswith("encoder.")}
