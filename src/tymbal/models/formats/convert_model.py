"""A model from one layout to another: ours, Hugging Face's, SSAST's, that of scripts around Hugging Face's, ONNX.

What the target cannot hold is refused or said.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from tymbal.audio.file_lists import read_label_names
from tymbal.errors import ModelError, SettingsError
from tymbal.models.classifier import ScriptClassifier, SpectrogramClassifier
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import PREFIX_TOKENS, EncoderConfig, SpectrogramEncoder
from tymbal.models.folder import LoadedModel, load_model, open_checkpoint, save_model
from tymbal.models.formats import huggingface, scripts
from tymbal.models.formats import huggingface as extractor
from tymbal.models.formats import ssast_checkpoint as ssast
from tymbal.settings import SIZES, ConvertSettings, FeatureSettings, parse_patch
from tymbal.settings.fields import changed

__all__ = ["ModelLayout", "convert_model"]

ModelLayout = Literal["tymbal", "hf", "ssast", "script", "onnx"]

_SSAST_HEADS = ("cpred", "gpred")
_SSAST_EPS = 1e-6
_AST_SHAPE = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_length",
    "num_mel_bins",
    "patch_size",
    "frequency_stride",
    "time_stride",
    "layer_norm_eps",
)


def convert_model(
    source: str | os.PathLike[str], output: Path, *, to: ModelLayout | None, settings: ConvertSettings
) -> tuple[ModelLayout, list[str]]:
    """Writes a model in another layout, without loss where that can hold it.

    Args:
        source: A run, a model folder, a name on the Hugging Face hub, an SSAST file, or one of a script.
        output: The folder, or the file for `ssast`, `script` and `onnx`; it must not exist yet.
        to: The layout. `None` is one file, of a script where it was pretrained by reconstruction, else SSAST's.
        settings: Facts that the source lacks: stride, heads, pooling, names of labels, statistics.

    Returns:
        The layout, and what a user should know of the result, in sentences.

    Raises:
        ModelError: The source cannot be read, or the target cannot hold it.
        SettingsError: The settings do not fit the model.
    """
    stride = None if settings.stride is None else parse_patch(settings.stride, setting="stride")
    loaded = load_model(str(source), stride=stride, pooling=settings.pooling, heads=settings.heads)
    _refuse_useless(Path(source), loaded, settings, to=to)
    description = _described(loaded.description, settings)
    longer: list[str] = []
    if settings.frames not in (None, description.encoder.frames):
        module, words = _at_length(loaded, settings.frames or 0)
        encoder = module if isinstance(module, SpectrogramEncoder) else module.encoder
        description = replace(description, encoder=encoder.config)
        loaded = replace(loaded, module=module, description=description)
        longer = [words]
    layout, notes = _written(source, output, loaded, description, to=to, settings=settings)
    if layout != "script" and "transformers" in changed(settings):
        notes = [*notes, "transformers has no effect: it is for the names in a file of a script (--to pth)."]
    return layout, notes + longer


def _refuse_useless(source: Path, loaded: LoadedModel, settings: ConvertSettings, *, to: ModelLayout | None) -> None:
    """Refuses what is for files that do not tell it, where a model's own configuration does."""
    told = not source.exists() or any((folder / "config.json").is_file() for folder in (source, source / "model"))
    pools = to == "onnx" and not loaded.description.labels  # the embedding of an encoder
    names = [name for name in ("stride", "heads", *(() if pools else ("pooling",))) if name in changed(settings)]
    if told and names:
        raise SettingsError(
            f"{names[0]} has no effect: the model tells its own",
            path=source,
            advice=f"Leave out {' and '.join(names)}.",
        )


def _written(
    source: str | os.PathLike[str],
    output: Path,
    loaded: LoadedModel,
    description: ModelDescription,
    *,
    to: ModelLayout | None,
    settings: ConvertSettings,
) -> tuple[ModelLayout, list[str]]:
    """As `convert_model`, of a model as it is to be written."""
    module, heads = loaded.module, loaded.objective_state
    if to == "onnx":
        from tymbal.models.onnx import write_onnx

        known = replace(loaded, description=description)
        return "onnx", write_onnx(output, known, pooling=settings.pooling or "mean")
    rebuilds = "projector.weight" in heads
    if to is None and rebuilds and isinstance(module, SpectrogramEncoder):
        scripts.write(output, module, heads, transformers=settings.transformers)
        return "script", _what_a_script_needs(description, heads, transformers=settings.transformers)
    if to in (None, "ssast") and description.groups:
        raise ModelError(
            "neither an SSAST file nor one of a script can hold labels that fall into groups",
            path=source,
            advice="Use --to tymbal or onnx.",
        )
    if to is None and isinstance(module, ScriptClassifier):
        scripts.write(output, module, {}, transformers=settings.transformers)
        return "script", _what_a_script_needs(description, {}, transformers=settings.transformers)
    if to in (None, "ssast"):
        others = sorted({name.partition(".")[0] for name in heads} - set(_SSAST_HEADS))
        if others:
            how = "by reconstruction: --to pth writes all of it" if rebuilds else "on visible patches only"
            raise ModelError(
                f"an SSAST file cannot hold the {' and '.join(others)} of this model",
                path=source,
                advice=f"It was pretrained {how}. A classifier fine-tuned from it can be converted.",
            )
        ssast.write(output, module, objective_state=heads)
        return "ssast", _what_ssast_lacks(loaded, description)
    if to == "hf":
        obstacle = huggingface.obstacle(
            description.encoder, description.pooling, standardise=description.standardise, groups=description.groups
        )
        if obstacle is not None:
            raise ModelError(
                f"Hugging Face's AST cannot hold this model: {obstacle}",
                path=source,
                advice="Use --to tymbal, whose folder transformers loads with trust_remote_code=True, or fine-tune "
                "with square patches, --pooling cls and --head-norm layer.",
            )
    save_model(output, module, description, objective_state=heads)
    return ("hf", _what_transformers_does_otherwise(description, heads)) if to == "hf" else ("tymbal", [])


def _at_length(loaded: LoadedModel, frames: int) -> tuple[SpectrogramEncoder | SpectrogramClassifier, str]:
    """The model with position embeddings for clips of another length, and in words how they were made.

    What was cut out of a longer model goes back to its place; the columns around it are those of that model, where it
    can still be read, else the outermost again.
    """
    module, own = loaded.module, loaded.description.encoder
    encoder = module if isinstance(module, SpectrogramEncoder) else module.encoder
    target = replace(own, frames=frames)
    how = f"{own.grid[0]}x{own.grid[1]} to {target.grid[0]}x{target.grid[1]}"
    if own.positions == "resize" or target.grid[1] <= own.grid[1]:
        positions, how = encoder.positions(target.grid), f"{how}, by {own.positions}"
    else:
        around, whose = _original(loaded, target)
        columns, wanted = own.grid[1], target.grid[1]
        start = wanted // 2 - columns // 2 if own.positions == "cut" else 0
        mine = encoder.position_embedding[:, PREFIX_TOKENS:].reshape(1, *own.grid, -1)
        if around is None:
            place = (torch.arange(wanted) - start).clamp(0, columns - 1)
            whole = mine[:, :, place]
        else:
            whole = around[:, PREFIX_TOKENS:].reshape(1, *target.grid, -1).clone()
            whole[:, :, start : start + columns] = mine
        positions = torch.cat([encoder.position_embedding[:, :PREFIX_TOKENS], whole.flatten(1, 2)], dim=1)
        how = f"{how}, its own columns from {start} on, around them {whose}"
    made = SpectrogramEncoder(target)
    made.load_state_dict({**encoder.state_dict(), "position_embedding": positions.detach()})
    if isinstance(module, SpectrogramEncoder):
        return made.eval(), f"Position embeddings: {how}."
    module.encoder = made
    return module.eval(), f"Position embeddings: {how}."


def _original(loaded: LoadedModel, target: EncoderConfig) -> tuple[Tensor | None, str]:
    """Position embeddings of the model that this one started from, if it lies on this machine and has this grid."""
    source = loaded.description.provenance.get("from")
    if isinstance(source, str) and Path(source).exists():
        try:
            first = open_checkpoint(source, heads=loaded.description.encoder.heads)
        except ModelError:
            return None, f"the outermost again, since {source} cannot be read"
        if first.description.encoder.grid == target.grid and first.description.encoder.width == target.width:
            return first.encoder["position_embedding"], f"those of {source}"
    return None, "the outermost again"


def _described(description: ModelDescription, settings: ConvertSettings) -> ModelDescription:
    """The description with what the user adds to it."""
    if settings.label_csv is not None:
        labels = tuple(read_label_names(settings.label_csv).values())
        if len(labels) != len(description.labels):
            raise SettingsError(
                f"the label table has {len(labels)} classes, the model {len(description.labels)}",
                path=settings.label_csv,
                advice="Give the label_csv with which the model was fine-tuned.",
            )
        description = replace(description, labels=labels)
    if settings.multilabel:
        description = replace(description, multilabel=True)
    if settings.dataset_mean is not None:
        description = replace(description, mean=settings.dataset_mean)
    if settings.dataset_std is not None:
        description = replace(description, std=settings.dataset_std)
    return description


def _what_transformers_does_otherwise(description: ModelDescription, heads: Mapping[str, Tensor]) -> list[str]:
    notes = []
    preprocessor = extractor.to_preprocessor(description)
    if preprocessor is None:
        bank = description.features.filter_bank
        notes.append(f"transformers has no extractor for {bank}'s spectrograms: make them with Tymbal.")
    elif not extractor.is_stock(preprocessor):
        notes.append(
            "Its spectrograms are not those of transformers' own extractor: load the one in the folder, "
            f"{extractor.REMOTE_CODE}, with trust_remote_code=True."
        )
    if heads:
        notes.append(
            "The mask token and the heads of its pretraining lie in objective.safetensors, which transformers does "
            "not read."
        )
    if description.head_eps not in (None, description.encoder.layer_norm_eps):
        notes.append(
            f"transformers has one epsilon for all layer norms, {description.encoder.layer_norm_eps:g}; the head's was "
            f"{description.head_eps:g}: its logits differ by about 1e-5."
        )
    return notes


def _what_a_script_needs(description: ModelDescription, heads: Mapping[str, Tensor], *, transformers: str) -> list[str]:
    """Notes what a file of weights does not say, and how a script builds the modules."""
    config, rows = huggingface.to_config(description), description.encoder.grid[0]
    shape = ", ".join(f"{name}={config[name]}" for name in _AST_SHAPE)
    shapes = [f"{name} {tuple(value.shape)}" for name, value in sorted(heads.items()) if value.ndim > 1]
    names = "of transformers 5" if transformers == "5" else "on disk and of transformers 4"
    other = "4" if transformers == "5" else "5"
    notes = [
        f"Its encoder is ASTModel(ASTConfig({shape})), with the names {names} (--transformers {other} writes those of "
        f"{other})."
    ]
    if description.labels:
        notes.append(
            "Beside it stands a linear layer, classifier, on the mean over all tokens after encoder.layernorm once "
            f"more: {', '.join(description.labels)}."
        )
    else:
        notes.append(f"Beside it stand {', '.join(shapes)}.")
    steps = description.encoder.stride[1]
    first = heads.get("decoder.0.weight")
    decode = (description.objective or {}).get("decode")  # which models of earlier versions and scripts do not say
    by_frame = first is not None and first.shape[1] * steps == rows * len(heads["projector.weight"])
    if decode == "frames" or (decode is None and by_frame):
        notes.append(
            f"The projector gives channels for each of the {steps} frames of a column of patches. The decoder runs "
            f"over frames, the {rows} rows of a column side by side as channels. A module whose projector and decoder "
            "run over tokens fits a run with --decode tokens only."
        )
    elif first is not None:
        notes.append("The decoder runs over all tokens in their order, and is interpolated to the frames.")
    how = f"(x - {description.mean:.7g}) / (2 * {description.std:.7g})"
    notes.append(
        "The file does not say how spectrograms are normalised: "
        + ("each clip by its own statistics." if description.normalize == "clip" else f"{how}.")
    )
    return notes


def _what_ssast_lacks(loaded: LoadedModel, description: ModelDescription) -> list[str]:
    """Notes what an SSAST file does not say, and the flags to give SSAST for it."""
    encoder = description.encoder
    own = description.normalize == "clip"
    mean, std = (0.0, 0.5) if own else (description.mean, description.std)
    notes = [
        f"An SSAST file does not say how spectrograms are normalised. Give: --dataset_mean {mean:.7g} "
        f"--dataset_std {std:.7g} --num_mel_bins {encoder.mels} --target_length {encoder.frames}"
    ]
    if own:
        notes.append(
            "It normalises each clip by its own mean and standard deviation, which SSAST does not: give it "
            "spectrograms that are (x - mean) / (2 std) already."
        )
    if description.labels:
        task = "ft_cls" if description.pooling == "cls" else "ft_avgtok"
        notes.append(
            f"Nor what it is: --task {task} --fshape {encoder.patch[0]} --tshape {encoder.patch[1]} "
            f"--fstride {encoder.stride[0]} --tstride {encoder.stride[1]} --n_class {len(description.labels)}. Its "
            "labels are numbers there, in the order of the model's."
        )
    else:
        missing = [name for name in _SSAST_HEADS if f"{name}.0.weight" not in loaded.objective_state]
        if missing:
            notes.append(f"It has no {' and '.join(missing)} head, with which SSAST goes on pretraining.")
    if (encoder.width, encoder.depth, encoder.heads) not in SIZES.values():
        notes.append("SSAST itself builds tiny, small and base models only; this one has another size.")
    head_eps = ssast.HEAD_EPS if not description.labels else description.head_eps or encoder.layer_norm_eps
    if (encoder.layer_norm_eps, head_eps) != (_SSAST_EPS, ssast.HEAD_EPS):
        notes.append(f"SSAST's layer norms have epsilons of {_SSAST_EPS:g} and, in the head, {ssast.HEAD_EPS:g}.")
    if description.features != FeatureSettings(mel_bins=encoder.mels):
        notes.append("Its spectrograms are made with other settings than SSAST makes them: give it those.")
    if description.skip_padding:
        notes.append("It pools over the patches that hold sound, SSAST over all: short clips score otherwise there.")
    if description.padding != 0:
        notes.append(f"It knows padding as {description.padding:.4g} (silence), SSAST pads with 0.")
    return notes
