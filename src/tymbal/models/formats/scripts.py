"""The door to weights that a script saved: an AST of Hugging Face in a module of its own, without a configuration.

Scripts for self-supervised pretraining put an `ASTModel` as `encoder` beside a `projector` and a `decoder`, and save
the module's weights: `encoder.* / projector.* / decoder.*`, as `model.safetensors` or a `.pth` file, with the encoder
named as on disk and in transformers 4, or as in the memory of transformers 5. What they export as a classifier is
`encoder.* / classifier.*`. Both are read. What the files do not tell is inferred from shapes where they decide it, else
assumed and said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tymbal.errors import ModelError
from tymbal.files import replace_file
from tymbal.models.classifier import SCRIPT_POOLING, ScriptClassifier
from tymbal.models.encoder import PREFIX_TOKENS, SpectrogramEncoder
from tymbal.models.formats import huggingface
from tymbal.models.weights import Checkpoint, read_json

__all__ = ["OBJECTIVE_PARTS", "from_state", "has_parts", "holds_ast", "write"]

OBJECTIVE_PARTS = ("projector", "decoder")
"""Parts of a script's module beside the encoder in pretraining."""

_CLASS_TOKEN = "embeddings.cls_token"  # noqa: S105 - no password
_PROJECTION = "embeddings.projection.weight"
_MELS = 128
_STRIDE = (10, 10)  # the default of transformers' ASTConfig


def holds_ast(names: Mapping[str, Tensor]) -> bool:
    """Whether an AST in one of Hugging Face's namings is among these weights."""
    return any(name == _CLASS_TOKEN or name.endswith(f".{_CLASS_TOKEN}") for name in names)


def has_parts(names: Iterable[str]) -> bool:
    """Whether the names include a script's other parts: the heads of its objective, or a classifier."""
    return any(part in (*OBJECTIVE_PARTS, "classifier") for name in names for part in name.split("."))


def from_state(
    state: Mapping[str, Tensor], *, path: Path, stride: tuple[int, int] | None = None, heads: int | None = None
) -> Checkpoint:
    """Reads weights by name.

    Args:
        state: The weights.
        path: The file that they are from. A `config.json` and a `preprocessor_config.json` beside it are believed.
        stride: Mel bins and frames from one patch to the next. `None` is 10x10, transformers' default, where the
            number of positions allows it, else patches side by side.
        heads: Attention heads. `None` is the width over 64.

    Raises:
        ModelError: Where the encoder is incomplete, or its stride or heads must be given.
    """
    bare = _unwrapped(state)
    encoder, head, left = huggingface.names_from(bare, path=str(path))
    assumed: list[str] = []
    config, preprocessor = (_beside(path, name) for name in ("config.json", "preprocessor_config.json"))
    if config is None or config.get("model_type") != huggingface.MODEL_TYPE:
        config = _shape(bare, encoder, preprocessor, stride=stride, heads=heads, path=path)
        if heads is None:
            assumed.append(f"attention heads: {config['num_attention_heads']}")
        if stride is None:
            assumed.append(f"stride: {config['frequency_stride']}x{config['time_stride']}")
    if preprocessor is None:
        assumed.append("16 kHz and AudioSet's mean and standard deviation")
    objective = {name: value for name, value in bare.items() if name.partition(".")[0] in OBJECTIVE_PARTS}
    if objective:
        left, head = (*left, *head), {}  # in pretraining a head was not trained
    pooling = "cls" if head else None
    linear = {} if objective or head else _linear(bare)
    if linear:
        head = {f"head.{part}": bare[name] for part, name in linear.items()}
        pooling = SCRIPT_POOLING
        assumed.append("the final norm twice and the mean over all tokens, as such classifiers do")
    labels = len(head["head.bias"]) if head else 0
    description = replace(
        huggingface.describe(config, preprocessor, labels=labels, path=str(path)),
        pooling=pooling,
        objective={"objective": "reconstruction"} if objective else None,
        provenance={"from": f"weights of a script, {path}"} | ({"assumed": ", ".join(assumed)} if assumed else {}),
    )
    left = tuple(name for name in left if name not in objective and name not in linear.values())
    return Checkpoint("script", description, encoder, head, objective, left)


def write(
    path: Path,
    module: SpectrogramEncoder | ScriptClassifier,
    objective_state: Mapping[str, Tensor],
    *,
    transformers: Literal["4", "5"] = "4",
) -> None:
    """Writes `encoder.* / projector.* / decoder.*`, or of a classifier `encoder.* / classifier.*`.

    Args:
        path: The file.
        module: The encoder, or the classifier of a script.
        objective_state: Projector and decoder; empty for a classifier.
        transformers: The version in whose memory the encoder's names are these; those of 4 are those on disk.

    Raises:
        ModelError: Where transformers' AST cannot hold the encoder.
    """
    encoder = module if isinstance(module, SpectrogramEncoder) else module.encoder
    obstacle = huggingface.obstacle(encoder.config, None)
    if obstacle is not None:
        raise ModelError(f"Hugging Face's AST cannot hold this encoder: {obstacle}", path=path)
    named = huggingface.in_memory if transformers == "5" else str
    state = {f"encoder.{named(name)}": value for name, value in huggingface.to_state(encoder).items()}
    if isinstance(module, ScriptClassifier):
        state |= {f"classifier.{name}": value for name, value in module.head.state_dict().items()}
    with replace_file(path) as aside:
        torch.save({name: value.detach().cpu() for name, value in (state | dict(objective_state)).items()}, aside)


def _unwrapped(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix of what the script's module was wrapped in, as `module.` or `_orig_mod.`."""
    class_token = next(name for name in state if name == _CLASS_TOKEN or name.endswith(f".{_CLASS_TOKEN}"))
    wrapper = class_token.removesuffix(_CLASS_TOKEN).removesuffix(huggingface.PREFIX).removesuffix("encoder.")
    return {name.removeprefix(wrapper): value for name, value in state.items()}


def _beside(path: Path, name: str) -> dict[str, Any] | None:
    file = path.with_name(name)
    return read_json(file) if file.is_file() else None


def _linear(bare: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of weight and bias of a classifier that is one linear layer; empty for any other or none."""
    names = [name for name in bare if name.startswith("classifier.")]
    by_part = {name.rpartition(".")[2]: name for name in names}
    if len(names) != 2 or by_part.keys() != {"weight", "bias"} or bare[by_part["weight"]].ndim != 2:
        return {}
    return by_part


def _shape(
    bare: Mapping[str, Tensor],
    encoder: Mapping[str, Tensor],
    preprocessor: Mapping[str, Any] | None,
    *,
    stride: tuple[int, int] | None,
    heads: int | None,
    path: Path,
) -> dict[str, Any]:
    """The `config.json` that transformers would have written for this encoder."""
    needed = ("position_embedding", "patch_projection.weight", "blocks.0.fc1.weight")
    missing = [name for name in needed if name not in encoder]
    if missing:
        raise ModelError(
            f"the encoder is incomplete: {', '.join(missing)} is missing", path=path, advice="Copy the file again."
        )
    patch = next(tuple(value.shape[2:]) for name, value in bare.items() if name.endswith(_PROJECTION))
    positions, width = encoder["position_embedding"].shape[1:]
    extractor = preprocessor or {}
    mels = int(extractor.get("num_mel_bins") or _rebuilt_mels(bare, patch[0]))
    length = int(extractor["max_length"]) if "max_length" in extractor else None
    (down, right), frames = _geometry(positions - PREFIX_TOKENS, patch, mels, length=length, stride=stride, path=path)
    heads = heads or max(width // 64, 1)
    if width % heads:
        raise ModelError(
            f"the weights do not say how many attention heads there are, and {heads} do not fit a width of {width}",
            path=path,
            advice="Give the number of heads, in Python: load_model(path, heads=4).",
        )
    return {
        "hidden_size": width,
        "num_hidden_layers": 1 + max(int(name.split(".")[1]) for name in encoder if name.startswith("blocks.")),
        "num_attention_heads": heads,
        "intermediate_size": encoder["blocks.0.fc1.weight"].shape[0],
        "max_length": frames,
        "num_mel_bins": mels,
        "patch_size": patch,
        "frequency_stride": down,
        "time_stride": right,
        "qkv_bias": "blocks.0.attention.qkv.bias" in encoder,
    }


def _rebuilt_mels(bare: Mapping[str, Tensor], at_least: int) -> int:
    """Mel bins that the decoder's last convolution rebuilds; 128 without a decoder."""
    by_place = {
        tuple(map(int, re.findall(r"\d+", name))): len(value)
        for name, value in bare.items()
        if name.startswith("decoder.") and value.ndim == 3
    }
    mels = by_place[max(by_place)] if by_place else 0
    return mels if mels >= at_least else _MELS


def _geometry(
    patches: int,
    patch: tuple[int, ...],
    mels: int,
    *,
    length: int | None,
    stride: tuple[int, int] | None,
    path: Path,
) -> tuple[tuple[int, int], int]:
    """Stride, and the frames that give this many patches: those of the extractor where they do, else the fewest."""
    fitting: list[tuple[tuple[int, int], int]] = []
    for down, right in [stride] if stride else [_STRIDE, (patch[0], patch[1])]:
        columns, rest = divmod(patches, (mels - patch[0]) // down + 1)
        if rest == 0 and columns > 0:
            fewest = (columns - 1) * right + patch[1]
            if length is not None and fewest <= length < fewest + right:
                return (down, right), length
            fitting.append(((down, right), fewest))
    if fitting:
        return fitting[0]
    tried = f"{stride[0]}x{stride[1]}" if stride else f"10x10 and {patch[0]}x{patch[1]}"
    raise ModelError(
        f"the weights do not say how patches overlap, and {patches} positions of {mels} mel bins fit no stride of "
        f"{tried}",
        path=path,
        advice="Give the stride of the patches, mel bins x frames, in Python: load_model(path, stride=(10, 10)).",
    )
