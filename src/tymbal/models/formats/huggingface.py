"""Tables of names: which of ours is which of theirs.

We depend on what lies on disk, not on the inside of transformers' classes: `config.json`, `model.safetensors` and
`preprocessor_config.json`. Weights have two namings there: that of the format (`encoder.layer.0.attention.attention.
query`), and that which modules have in the memory of transformers 5 (`layers.0.attention.q_proj`), found in files that
a wrapper around such a model saved. Both are read; the first is written.

A model in this layout also carries our own description, under `tymbal` in its `config.json`. transformers keeps it and
does not look at it.

What transformers' AST classes cannot hold (patches that are not square, other poolings and heads) has our own names and
layout, and `modeling_tymbal.py` beside it, which transformers runs under the same condition as the extractor below.

Stock `ASTFeatureExtractor` knows 16 kHz, frames of 25 ms every 10 ms, and two fixed numbers to normalise by. For other
models the folder holds `feature_extraction_tymbal.py`, which transformers runs where a user trusts it
(`trust_remote_code=True`). Without that trust the stock extractor must not step in with other numbers: mean and
standard deviation are null in the file, with which it fails. Tymbal writes that code, and never reads or runs it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tymbal.errors import ModelError, SettingsError
from tymbal.features.bank import filter_bank
from tymbal.models.classifier import SpectrogramClassifier
from tymbal.models.description import AUDIOSET_MEAN, AUDIOSET_STD, ModelDescription
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.models.weights import Checkpoint, read_json, read_weights
from tymbal.progress import tell
from tymbal.settings import FeatureSettings
from tymbal.values import convert

__all__ = [
    "MODEL_TYPE",
    "OWN_TYPE",
    "PREFIX",
    "PREPROCESSOR",
    "REMOTE_CODE",
    "REMOTE_MODEL",
    "WEIGHTS",
    "describe",
    "expand",
    "in_memory",
    "is_stock",
    "names_from",
    "obstacle",
    "own_config",
    "read",
    "remote_code",
    "rename",
    "to_config",
    "to_preprocessor",
    "to_state",
]


def expand(table: Iterable[tuple[str, str]], depth: int) -> dict[str, str]:
    """Writes a table out: `{n}` stands for the number of a block, `.*` for `.weight` and `.bias`.

    Args:
        table: Pairs of a name of ours and one of theirs.
        depth: Number of blocks.

    Returns:
        Ours to theirs, each a name of a tensor.
    """
    names = {}
    for ours, theirs in table:
        for ending in ("weight", "bias") if ours.endswith(".*") else ("*",):
            for n in range(depth) if "{n}" in ours else (0,):
                pair = [text.replace("{n}", str(n)).replace("*", ending) for text in (ours, theirs)]
                names[pair[0]] = pair[1]
    return names


def rename(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Renames tensors by a table of old to new names; also gives the old names that it lacks."""
    renamed = {names[name]: value for name, value in tensors.items() if name in names}
    return renamed, tuple(name for name in tensors if name not in names)


_STOCK_RATE = 16_000
"""The rate in Hz at which both ways of transformers' extractor are one."""

_COPY = "Copy the folder again, or correct it."
_LARGEST = 1 << 24

MODEL_TYPE = "audio-spectrogram-transformer"

_AUTO = "AutoModelForAudioClassification"

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
"""Files of a folder that hold its weights, the best first."""

PREFIX = "audio_spectrogram_transformer."
"""What stands before the encoder's names in a model with a head."""

_ENCODER = (
    ("cls_token", "embeddings.cls_token"),
    ("distillation_token", "embeddings.distillation_token"),
    ("position_embedding", "embeddings.position_embeddings"),
    ("patch_projection.*", "embeddings.patch_embeddings.projection.*"),
    ("blocks.{n}.norm1.*", "encoder.layer.{n}.layernorm_before.*"),
    ("blocks.{n}.attention.query.*", "encoder.layer.{n}.attention.attention.query.*"),
    ("blocks.{n}.attention.key.*", "encoder.layer.{n}.attention.attention.key.*"),
    ("blocks.{n}.attention.value.*", "encoder.layer.{n}.attention.attention.value.*"),
    ("blocks.{n}.attention.projection.*", "encoder.layer.{n}.attention.output.dense.*"),
    ("blocks.{n}.norm2.*", "encoder.layer.{n}.layernorm_after.*"),
    ("blocks.{n}.fc1.*", "encoder.layer.{n}.intermediate.dense.*"),
    ("blocks.{n}.fc2.*", "encoder.layer.{n}.output.dense.*"),
    ("norm.*", "layernorm.*"),
)
_HEAD = (("head_norm.*", "classifier.layernorm.*"), ("head.*", "classifier.dense.*"))
_PARTS = ("query", "key", "value")
_IN_MEMORY = (
    ("attention.q_proj.", "attention.attention.query."),
    ("attention.k_proj.", "attention.attention.key."),
    ("attention.v_proj.", "attention.attention.value."),
    ("attention.o_proj.", "attention.output.dense."),
    ("mlp.fc1.", "intermediate.dense."),
    ("mlp.fc2.", "output.dense."),
    ("layernorm_", "layernorm_"),
)


def obstacle(
    config: EncoderConfig, pooling: str | None, *, standardise: bool = False, groups: tuple[int, ...] = ()
) -> str | None:
    """Why transformers' AST classes cannot hold such a model, in words; `None` where they can."""
    if config.patch[0] != config.patch[1]:
        return f"its patches are {config.patch[0]}x{config.patch[1]}, and transformers' AST has square ones only"
    if config.stem:
        return "it has a convolutional stem, and transformers' AST has none"
    if not config.attend_to_padding:
        return "it does not attend to padding, and transformers' AST attends to all patches alike"
    if pooling not in (None, "cls"):
        return f"its classifier pools by {pooling}, and transformers' AST by cls only"
    if standardise or groups:
        own, theirs = "standardises what it pools", "a layer norm there"
        if groups:
            own, theirs = "has labels that fall into groups", "one softmax"
        return f"its classifier {own}, and transformers' AST has {theirs}"
    return None


def read(folder: Path, *, name: str | None = None) -> Checkpoint:
    """Reads a folder that transformers, or Tymbal, saved.

    Args:
        folder: The model's folder.
        name: The user's name of it; `None` is the folder.

    Raises:
        ModelError: Where files are missing or damaged, or the model has parts that ours has not.
    """
    config = read_json(folder / "config.json")
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise ModelError(
            f"the folder holds no weights ({', '.join(WEIGHTS)})",
            path=folder,
            advice="Save the model with save_pretrained, or download its files again.",
        )
    encoder, head, left = names_from(read_weights(weights), path=str(folder))
    preprocessor = folder / "preprocessor_config.json"
    description = describe(
        config,
        read_json(preprocessor) if preprocessor.is_file() else None,
        labels=len(head["head.bias"]) if head else 0,
        path=name or str(folder),
    )
    return Checkpoint("huggingface", description, encoder, head, left=left)


def names_from(
    state: Mapping[str, Tensor], *, path: str
) -> tuple[dict[str, Tensor], dict[str, Tensor], tuple[str, ...]]:
    """Finds an AST among tensors by name, in either naming and behind any prefix.

    Returns:
        Weights of our encoder, of our classifier's head, and the names that have no place in either.

    Raises:
        ModelError: The tensors hold no AST.
    """
    anchor = "embeddings.cls_token"
    anchor_name = next((name for name in state if name == anchor or name.endswith(f".{anchor}")), None)
    if anchor_name is None:
        raise ModelError(
            f"no audio spectrogram transformer is among its {len(state)} weights ({next(iter(state))}, …)",
            path=path,
            advice="Give a model folder, an AST checkpoint of Hugging Face, or an SSAST file.",
        )
    prefix = anchor_name.removesuffix(anchor)
    root = prefix.removesuffix(PREFIX)
    plain = {_on_disk(name.removeprefix(prefix)): value for name, value in state.items() if name.startswith(prefix)}
    others = {name.removeprefix(root): value for name, value in state.items() if not name.startswith(prefix)}
    depth = 1 + max((int(m[1]) for m in map(re.compile(r"encoder\.layer\.(\d+)\.").match, plain) if m), default=-1)
    encoder, left = rename(plain, {theirs: ours for ours, theirs in expand(_ENCODER, depth).items()})
    head, left_head = rename(others, {theirs: ours for ours, theirs in expand(_HEAD, 0).items()})
    if "patch_projection.weight" in encoder:
        encoder["patch_projection.weight"] = encoder["patch_projection.weight"].flatten(1)
    return _fuse(encoder, depth), head, left + left_head


def to_state(module: SpectrogramEncoder | SpectrogramClassifier) -> dict[str, Tensor]:
    """The weights of a model as transformers names them on disk. The mask token, which AST has not, is left out."""
    encoder = module if isinstance(module, SpectrogramEncoder) else module.encoder
    state = dict(encoder.state_dict())
    state["patch_projection.weight"] = state["patch_projection.weight"].reshape(-1, 1, *encoder.config.patch)
    for n in range(encoder.config.depth):
        for ending in ("weight", "bias") if encoder.config.qkv_bias else ("weight",):
            fused = state.pop(f"blocks.{n}.attention.qkv.{ending}")
            for part, value in zip(_PARTS, fused.chunk(3), strict=True):
                state[f"blocks.{n}.attention.{part}.{ending}"] = value
    renamed, _ = rename(state, expand(_ENCODER, encoder.config.depth))
    if isinstance(module, SpectrogramEncoder):
        return renamed
    head, _ = rename(module.state_dict(), expand(_HEAD, 0))
    return {**{PREFIX + name: value for name, value in renamed.items()}, **head}


def to_config(description: ModelDescription) -> dict[str, Any]:
    """The `config.json` of a model, without our own description."""
    encoder = description.encoder
    config: dict[str, Any] = {
        "architectures": ["ASTForAudioClassification" if description.labels else "ASTModel"],
        "attention_probs_dropout_prob": encoder.attention_dropout,
        "dtype": "float32",
        "frequency_stride": encoder.stride[0],
        "hidden_act": "gelu",
        "hidden_dropout_prob": encoder.dropout,
        "hidden_size": encoder.width,
        "initializer_range": 0.02,
        "intermediate_size": encoder.hidden_width,
        "layer_norm_eps": encoder.layer_norm_eps,
        "max_length": encoder.frames,
        "model_type": MODEL_TYPE,
        "num_attention_heads": encoder.heads,
        "num_hidden_layers": encoder.depth,
        "num_mel_bins": encoder.mels,
        "patch_size": encoder.patch[0],
        "qkv_bias": encoder.qkv_bias,
        "time_stride": encoder.stride[1],
    }
    return config | _labels(description)


def _labels(description: ModelDescription) -> dict[str, Any]:
    """The entries of a configuration that are about labels; none of an encoder."""
    if not description.labels:
        return {}
    return {
        "id2label": {str(i): label for i, label in enumerate(description.labels)},
        "label2id": {label: i for i, label in enumerate(description.labels)},
        "problem_type": f"{'multi' if description.multilabel else 'single'}_label_classification",
    }


def describe(
    config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None, *, labels: int, path: str
) -> ModelDescription:
    """Describes a model from Hugging Face's own entries and, for the rest, from our description.

    So a model that was changed and saved in transformers, with other labels say, is read as it is now.

    Args:
        config: The content of its `config.json`.
        preprocessor: That of its `preprocessor_config.json`, if it has one.
        labels: Number of its labels; 0 for an encoder.
        path: Its origin, for messages and provenance.

    Raises:
        ModelError: Where the model has parts that ours has not.
    """
    names = config.get("id2label") or {}
    if not isinstance(names, Mapping):
        raise ModelError("its configuration is damaged: id2label names no labels", path=path, advice=_COPY)
    known: dict[str, Any] = {
        "encoder": _encoder_config(config, path=path),
        "labels": tuple(str(names.get(str(i), f"LABEL_{i}")) for i in range(labels)),
        "pooling": "cls" if labels else None,
        "multilabel": config.get("problem_type") == "multi_label_classification",
    }
    if preprocessor is not None and preprocessor.get("mean", AUDIOSET_MEAN) is not None:  # null in our own extractor's
        normalised = preprocessor.get("do_normalize", True)
        known["mean"] = _number(preprocessor, "mean", AUDIOSET_MEAN, path=path) if normalised else 0.0
        known["std"] = _number(preprocessor, "std", AUDIOSET_STD, path=path) if normalised else 0.5
    try:
        if "tymbal" in config:
            ours = ModelDescription.from_json(config["tymbal"], path=path)
            _remark(ours, known, path)
            known["encoder"] = replace(known["encoder"], positions=ours.encoder.positions)
            return replace(ours, **known)
        extractor = preprocessor or {}
        features = FeatureSettings(
            sample_rate=_whole(extractor, "sampling_rate", 16_000, path=path),
            mel_bins=_whole(extractor, "num_mel_bins", known["encoder"].mels, path=path),
        )
        assumed = _assumed(config, extractor, features)
        return ModelDescription(
            **{"mean": AUDIOSET_MEAN, "std": AUDIOSET_STD, **known},
            features=features,
            padding=0.0,
            provenance={"from": f"Hugging Face checkpoint {path}"} | ({"assumed": assumed} if assumed else {}),
        )
    except SettingsError as error:
        raise ModelError(f"its configuration is damaged: {error.what}", path=path, advice=_COPY) from error


def _assumed(config: Mapping[str, Any], preprocessor: Mapping[str, Any], features: FeatureSettings) -> str:
    """What numbers depend on and neither file says, in words.

    The extractor has two ways. Meant is torchaudio's, of which NumPy's is the substitute: frames of 25 ms every 10 ms.
    NumPy's takes 400 samples every 160 at any rate, so that both agree at 16 kHz only.
    """
    assumed = [] if "num_attention_heads" in config else ["attention heads: 12"]
    if "sampling_rate" not in preprocessor:
        assumed.append("16 kHz")
    if preprocessor.get("do_normalize", True) and not {"mean", "std"} <= set(preprocessor):
        assumed.append("AudioSet's mean and standard deviation")
    if features.sample_rate != _STOCK_RATE:
        assumed.append(
            f"frames of 25 ms every 10 ms ({features.window_samples} and {features.shift_samples} samples at "
            f"{features.sample_rate:,} Hz), as transformers makes them with torchaudio; without it, it takes 400 and "
            "160 samples at any rate"
        )
    return ", ".join(assumed)


def _remark(ours: ModelDescription, known: Mapping[str, Any], path: str) -> None:
    """Remarks on numbers of transformers' own files that are others than those that were saved with them."""
    for name in ("mean", "std"):
        value = known.get(name, getattr(ours, name))
        if value != getattr(ours, name):
            tell(f"{path}: {PREPROCESSOR} says {name} {value:g}, the model {getattr(ours, name):g}: the first holds")


def _number(values: Mapping[str, Any], name: str, default: float, *, path: str) -> float:
    try:
        return float(convert(values.get(name, default), float, key=name))
    except SettingsError as error:
        raise ModelError(f"its configuration is damaged: {error.what}", path=path, advice=_COPY) from None


def _whole(values: Mapping[str, Any], name: str, default: int, *, path: str) -> int:
    number = _number(values, name, default, path=path)
    if not (number.is_integer() and 1 <= number <= _LARGEST):
        raise ModelError(f"its configuration is damaged: {name} is {number:g}", path=path, advice=_COPY)
    return int(number)


def _encoder_config(config: Mapping[str, Any], *, path: str) -> EncoderConfig:
    """The shape of the encoder; what is missing has the default of transformers' ASTConfig."""
    activation = config.get("hidden_act", "gelu")
    if activation != "gelu":
        raise ModelError(f"its activation is {activation!r}, which is not supported: gelu only", path=path)

    def whole(name: str, default: int) -> int:
        return _whole(config, name, default, path=path)

    patch = config.get("patch_size", 16)
    if isinstance(patch, list | tuple):
        sides = [_whole({"patch_size": side}, "patch_size", 16, path=path) for side in patch]
    else:
        sides = [whole("patch_size", 16)] * 2
    width = whole("hidden_size", 768)
    try:
        return EncoderConfig(
            width=width,
            depth=whole("num_hidden_layers", 12),
            heads=whole("num_attention_heads", 12),
            mels=whole("num_mel_bins", 128),
            frames=whole("max_length", 1024),
            patch=(sides[0], sides[-1]),
            stride=(whole("frequency_stride", 10), whole("time_stride", 10)),
            mlp_ratio=whole("intermediate_size", 3072) / width,
            layer_norm_eps=_number(config, "layer_norm_eps", 1e-12, path=path),
            qkv_bias=bool(config.get("qkv_bias", True)),
            dropout=_number(config, "hidden_dropout_prob", 0.0, path=path),
            attention_dropout=_number(config, "attention_probs_dropout_prob", 0.0, path=path),
        )
    except (SettingsError, IndexError) as error:
        what = error.what if isinstance(error, SettingsError) else "patch_size is empty"
        raise ModelError(f"its configuration is damaged: {what}", path=path, advice=_COPY) from error


def _on_disk(name: str) -> str:
    """Turns the naming in the memory of transformers 5 into that of the format; the latter stays as it is."""
    match = re.match(r"layers\.(\d+)\.(.*)", name)
    if match is None:
        return name
    for memory, disk in _IN_MEMORY:
        if match[2].startswith(memory):
            return f"encoder.layer.{match[1]}.{disk}{match[2].removeprefix(memory)}"
    return name


def in_memory(name: str) -> str:
    """Turns an encoder's name on disk into that which it has in the memory of transformers 5."""
    match = re.match(r"encoder\.layer\.(\d+)\.(.*)", name)
    if match is None:
        return name
    for memory, disk in _IN_MEMORY:
        if match[2].startswith(disk):
            return f"layers.{match[1]}.{memory}{match[2].removeprefix(disk)}"
    return name


def _fuse(encoder: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Joins queries, keys and values into our one matrix."""
    for n in range(depth):
        for ending in ("weight", "bias"):
            names = [f"blocks.{n}.attention.{part}.{ending}" for part in _PARTS]
            if all(name in encoder for name in names):
                encoder[f"blocks.{n}.attention.qkv.{ending}"] = torch.cat([encoder.pop(name) for name in names])
    return encoder


PREPROCESSOR = "preprocessor_config.json"

REMOTE_CODE = "feature_extraction_tymbal.py"
"""What the extractor's file is called here and in model folders."""

_REMOTE_CLASS = "TymbalFeatureExtractor"

REMOTE_MODEL = "modeling_tymbal.py"
"""What the file of the model's class is called here and in model folders."""

OWN_TYPE = "tymbal"
"""What `config.json` calls models that transformers' AST classes cannot hold."""


def own_config(description: ModelDescription) -> dict[str, Any]:
    """The `config.json` of a model that `modeling_tymbal.py` holds, without our own description."""
    module = REMOTE_MODEL.removesuffix(".py")
    classes = {"AutoConfig": "TymbalConfig", "AutoModel": "TymbalModel"}
    if description.labels:
        classes = {"AutoConfig": "TymbalConfig", _AUTO: "TymbalForAudioClassification"}
    config: dict[str, Any] = {
        "model_type": OWN_TYPE,
        "architectures": [classes.get(_AUTO, "TymbalModel")],
        "auto_map": {auto: f"{module}.{name}" for auto, name in classes.items()},
        "dtype": "float32",
    }
    return config | _labels(description)


def to_preprocessor(description: ModelDescription, *, own_class: bool = False) -> dict[str, Any] | None:
    """The `preprocessor_config.json` of a model; `None` where no extractor computes its features.

    Args:
        description: The model.
        own_class: Whether the model's class is ours, too, which is told how long clips are.

    The filter bank of the stock extractor has fixed windows; without torchaudio they are fixed in samples, so that only
    16 kHz is safe. It normalises by fixed numbers.
    """
    features = description.features
    entries = filter_bank(features).extractor()
    if entries is None:
        return None
    common = {
        "do_normalize": True,
        "feature_size": 1,
        "max_length": description.encoder.frames,
        "num_mel_bins": features.mel_bins,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": own_class,
        "sampling_rate": features.sample_rate,
    }
    if features == FeatureSettings(mel_bins=features.mel_bins) and description.normalize == "dataset" and not own_class:
        stock = {"feature_extractor_type": "ASTFeatureExtractor", "mean": description.mean, "std": description.std}
        return dict(sorted({**common, **stock}.items()))
    own = {
        "auto_map": {"AutoFeatureExtractor": f"{REMOTE_CODE.removesuffix('.py')}.{_REMOTE_CLASS}"},
        "feature_extractor_type": _REMOTE_CLASS,
        "mean": None,
        "std": None,
        **entries,
        "normalize_by": description.normalize,
        "dataset_mean": description.mean,
        "dataset_std": description.std,
        "padding_log_mel": description.padding,
    }
    return dict(sorted({**common, **own}.items()))


def is_stock(preprocessor: Mapping[str, Any]) -> bool:
    """Whether the configuration names transformers' own extractor."""
    return "auto_map" not in preprocessor


def remote_code(name: str = REMOTE_CODE) -> str:
    """The extractor, or the model's class, for transformers, as it is put into a model folder."""
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
