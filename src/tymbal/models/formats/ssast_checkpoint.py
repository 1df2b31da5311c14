"""The door to SSAST's `.pth` files (github.com/YuanGongND/ssast), in both directions.

A pretraining file holds the encoder as timm 0.4.5 names it, the mask embedding, two heads and the length of its
clips. A fine-tuned one holds an encoder and a classifier, but not how it was cut: neither the stride of its patches nor
its pooling. Where the stride does not follow from the number of patches it must be given.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tymbal.errors import ModelError
from tymbal.files import replace_file
from tymbal.models.classifier import SpectrogramClassifier, Standardisation
from tymbal.models.description import AUDIOSET_MEAN, AUDIOSET_STD, ModelDescription
from tymbal.models.encoder import PREFIX_TOKENS, EncoderConfig, SpectrogramEncoder
from tymbal.models.formats.huggingface import expand, rename
from tymbal.models.weights import Checkpoint, read_weights
from tymbal.settings import FeatureSettings

__all__ = ["HEAD_EPS", "from_state", "is_ssast", "read", "write"]

HEAD_EPS = 1e-5
"""Epsilon of the layer norm in SSAST's classifier (PyTorch's default); its blocks have 1e-6."""

_ENCODER = (
    ("cls_token", "v.cls_token"),
    ("distillation_token", "v.dist_token"),
    ("mask_token", "mask_embed"),
    ("position_embedding", "v.pos_embed"),
    ("patch_projection.*", "v.patch_embed.proj.*"),
    ("blocks.{n}.norm1.*", "v.blocks.{n}.norm1.*"),
    ("blocks.{n}.attention.qkv.*", "v.blocks.{n}.attn.qkv.*"),
    ("blocks.{n}.attention.projection.*", "v.blocks.{n}.attn.proj.*"),
    ("blocks.{n}.norm2.*", "v.blocks.{n}.norm2.*"),
    ("blocks.{n}.fc1.*", "v.blocks.{n}.mlp.fc1.*"),
    ("blocks.{n}.fc2.*", "v.blocks.{n}.mlp.fc2.*"),
    ("norm.*", "v.norm.*"),
)
_HEAD = (("head_norm.*", "mlp_head.0.*"), ("head.*", "mlp_head.1.*"))
_OBJECTIVE = tuple((f"{name}.{i}.*", f"{name}layer.{i}.*") for name in ("cpred", "gpred") for i in (0, 2))
_SHAPE = ("p_input_fdim", "p_input_tdim")
_UNUSED = ("v.head.weight", "v.head.bias", "v.head_dist.weight", "v.head_dist.bias")  # timm's, for ImageNet
_UNUSED_CLASSES = 1000


def is_ssast(names: Mapping[str, Tensor]) -> bool:
    """Whether these are the names of an SSAST file, with or without DataParallel's `module.`."""
    return any(name in names for name in ("module.v.patch_embed.proj.weight", "v.patch_embed.proj.weight"))


def read(
    path: Path, *, stride: tuple[int, int] | None = None, pooling: str | None = None, mels: int | None = None
) -> Checkpoint:
    """Reads a pretraining or fine-tuned file.

    Args:
        path: The `.pth` file.
        stride: Mel bins and frames from one patch to the next in a fine-tuned file, where they do not follow from it.
        pooling: `mean` (ft_avgtok) or `cls` (ft_cls) for a fine-tuned file, which does not say. `None` is `mean`.
        mels: Mel bins of a fine-tuned file. `None` is 128, or the patch's for frame patches.

    Raises:
        ModelError: Where it is no SSAST file, or its stride must be given.
    """
    return from_state(read_weights(path), path=str(path), stride=stride, pooling=pooling, mels=mels)


def from_state(
    state: Mapping[str, Tensor],
    *,
    path: str,
    stride: tuple[int, int] | None = None,
    pooling: str | None = None,
    mels: int | None = None,
) -> Checkpoint:
    """As `read`, from tensors by name."""
    if not is_ssast(state):
        raise ModelError("this is no SSAST file: it has no v.patch_embed.proj.weight", path=path)
    bare = {name.removeprefix("module."): value for name, value in state.items()}
    depth = 1 + max((int(name.split(".")[2]) for name in bare if name.startswith("v.blocks.")), default=-1)
    theirs = {old: new for new, old in expand(_ENCODER, depth).items()}
    missing = sorted(name for name in theirs if name not in bare and name != "mask_embed")
    if missing or depth == 0:
        raise ModelError(
            f"the file is incomplete: {len(missing)} weights are missing ({', '.join(missing[:3])})",
            path=path,
            advice="Copy the file again.",
        )
    encoder, rest = rename({n: v for n, v in bare.items() if n not in (*_SHAPE, *_UNUSED)}, theirs)
    head, rest = rename({name: bare[name] for name in rest}, {old: new for new, old in expand(_HEAD, 0).items()})
    objective, rest = rename({n: bare[n] for n in rest}, {old: new for new, old in expand(_OBJECTIVE, 0).items()})
    config = _config(bare, encoder, depth, stride=stride, mels=mels, path=path)
    encoder["patch_projection.weight"] = encoder["patch_projection.weight"].flatten(1)
    labels = tuple(str(i) for i in range(len(head["head.bias"]))) if head else ()
    assumed = "AudioSet's mean and standard deviation" + (", names of labels and one label a clip" if head else "")
    description = ModelDescription(
        encoder=config,
        features=FeatureSettings(mel_bins=config.mels),
        mean=AUDIOSET_MEAN,
        std=AUDIOSET_STD,
        padding=0.0,
        labels=labels,
        pooling=(pooling or "mean") if head else None,
        head_eps=HEAD_EPS if head else None,
        objective={"name": "ssast"} if objective else None,
        provenance={"from": f"SSAST file {path}", "assumed": assumed},
    )
    return Checkpoint("ssast", description, encoder, head, objective, rest)


def write(
    path: Path,
    module: SpectrogramEncoder | SpectrogramClassifier,
    *,
    objective_state: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes an encoder, with the heads of its objective, or a classifier as SSAST saves them.

    SSAST's epsilons (1e-6, in the head 1e-5) are not in the file: with others the exported model differs by about 1e-5.

    Raises:
        ModelError: Where SSAST cannot hold the model: other pooling than mean and cls, a head without a layer norm,
            overlap in a pretraining file, other heads than of 64.
    """
    encoder = module if isinstance(module, SpectrogramEncoder) else module.encoder
    config = encoder.config
    if config.heads != _heads(config.width) or not config.qkv_bias:
        raise ModelError("SSAST's attention has heads of 64 numbers and a bias, this model's has not", path=path)
    if config.stem or not config.attend_to_padding:
        what = "has a convolutional stem" if config.stem else "does not attend to padding"
        raise ModelError(f"SSAST cannot hold this model: it {what}", path=path, advice="Convert it to tymbal or ONNX.")
    state = dict(encoder.state_dict())
    state["patch_projection.weight"] = state["patch_projection.weight"].reshape(-1, 1, *config.patch)
    names = expand(_ENCODER, config.depth)
    extra = {name: torch.zeros(_UNUSED_CLASSES, config.width) for name in _UNUSED if name.endswith("weight")}
    extra |= {name: torch.zeros(_UNUSED_CLASSES) for name in _UNUSED if name.endswith("bias")}
    if isinstance(module, SpectrogramClassifier):
        if module.pooling not in ("mean", "cls"):
            raise ModelError(
                f"SSAST knows no pooling by {module.pooling}",
                path=path,
                advice="Fine-tune with pooling mean or cls.",
            )
        if isinstance(module.head_norm, Standardisation):
            raise ModelError(
                "SSAST's head has a layer norm where this model standardises what it pools",
                path=path,
                advice="Fine-tune with --head-norm layer.",
            )
        del names["mask_token"]
        names |= expand(_HEAD, 0)
        state |= {name: value for name, value in module.state_dict().items() if name.startswith("head")}
    else:
        if config.stride != config.patch:
            raise ModelError(
                "SSAST's pretraining files hold no overlapping patches",
                path=path,
                advice=f"Warm-start an encoder of stride {config.patch[0]}x{config.patch[1]} from it first.",
            )
        names |= expand(_OBJECTIVE, 0)
        state |= dict(objective_state or {})
        extra |= {"p_input_fdim": torch.tensor(config.mels), "p_input_tdim": torch.tensor(config.frames)}
    renamed, _ = rename(state, names)
    with replace_file(path) as aside:
        torch.save({f"module.{name}": value.detach().cpu() for name, value in (renamed | extra).items()}, aside)


def _config(
    bare: Mapping[str, Tensor],
    encoder: Mapping[str, Tensor],
    depth: int,
    *,
    stride: tuple[int, int] | None,
    mels: int | None,
    path: str,
) -> EncoderConfig:
    """The shape of the encoder, which SSAST writes down only in part."""
    width, _, tall, wide = encoder["patch_projection.weight"].shape
    patches = encoder["position_embedding"].shape[1] - PREFIX_TOKENS
    if "p_input_fdim" in bare:
        mels, frames = int(bare["p_input_fdim"]), int(bare["p_input_tdim"])
        stride = (tall, wide)
    else:
        mels = mels or max(tall, 128)
        stride, frames = _fine_tuned_geometry(patches, (tall, wide), mels, stride=stride, path=path)
    return EncoderConfig(
        width=width,
        depth=depth,
        heads=_heads(width),
        mels=mels,
        frames=frames,
        patch=(tall, wide),
        stride=stride,
        mlp_ratio=encoder["blocks.0.fc1.weight"].shape[0] / width,
    )


def _heads(width: int) -> int:
    """Attention heads of an SSAST encoder, which its files do not tell: those of DeiT's sizes are of 64 numbers."""
    return max(width // 64, 1)


def _fine_tuned_geometry(
    patches: int, patch: tuple[int, int], mels: int, *, stride: tuple[int, int] | None, path: str
) -> tuple[tuple[int, int], int]:
    """Stride and fewest frames that give this many patches; an error where several strides of SSAST's recipes do."""
    usual = [patch, (10, 10)] if patch[0] < mels else [patch, (patch[0], 1)]
    fitting = []
    for down, right in [stride] if stride else usual:
        rows = (mels - patch[0]) // down + 1
        if patches % rows == 0:
            fitting.append(((down, right), (patches // rows - 1) * right + patch[1]))
    if len(fitting) == 1:
        return fitting[0]
    tried = " and ".join(f"{down}x{right}" for down, right in usual)
    reason = f"stride {stride[0]}x{stride[1]} does not fit" if stride else f"of the usual strides {tried}"
    raise ModelError(
        f"a fine-tuned SSAST file does not say how its patches overlap, and {patches} patches of {patch[0]}x{patch[1]} "
        f"do not tell: {reason}" + ("" if stride else f" {len(fitting)} fit" + ("" if fitting else ": none")),
        path=path,
        advice="Give the stride with which it was fine-tuned, mel bins x frames (--fstride and --tstride of SSAST), "
        "in Python: load_model(path, stride=(10, 10)).",
    )
