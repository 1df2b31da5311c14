"""Weights from files, without running what is in them, and into modules, without a name unseen.

A `.pth` or `.bin` file is a pickle, a program that can do anything when it is opened. Only tensors and plain values are
read from it (`weights_only=True`); a file that wants more is refused. safetensors files hold nothing but numbers.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from tymbal.errors import ModelError
from tymbal.files import parse_json
from tymbal.models.description import ModelDescription
from tymbal.store.pt.pt_file import DAMAGE

__all__ = [
    "LOOSE_WEIGHTS",
    "PICKLES",
    "Checkpoint",
    "check_fit",
    "fill",
    "fingerprint",
    "read_json",
    "read_weights",
    "weights_in",
    "write_weights",
]

LOOSE_WEIGHTS = ("model.safetensors", "pytorch_model.bin", "model.pth")
"""Names under which scripts save weights into a folder, without a configuration."""

_CHECKSUM = "tymbal_crc32"

PICKLES = (".bin", ".ckpt", ".pt", ".pth")
"""Endings of files that torch.save wrote."""


@dataclass(frozen=True)
class Checkpoint:
    """A model's weights under Tymbal's own names, read from any format.

    Attributes:
        door: `tymbal`, `huggingface`, `ssast` or `script`: whose layout it has.
        description: Its description.
        encoder: Weights of a `SpectrogramEncoder`; the mask token may be missing.
        head: Weights `head_norm.*`, `head.*` and `attentive.*` of a `SpectrogramClassifier`; empty for an encoder.
        objective: Weights of the heads of the pretraining objective (`cpred.*`, `projector.*` and so on), if any.
        left: Names in the file that have no place here.
    """

    door: str
    description: ModelDescription
    encoder: dict[str, Tensor]
    head: dict[str, Tensor]
    objective: dict[str, Tensor] = field(default_factory=dict)
    left: tuple[str, ...] = ()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a safetensors file, a pickle of torch.save or an index of several safetensors files.

    Returns:
        Tensors by name on the CPU, floating ones as float32. A state dict may lie inside `state_dict`,
        `model_state_dict` or `model`.

    Raises:
        ModelError: The file does not exist, is damaged, contains code, or holds no tensors by name.
    """
    if not path.is_file():
        raise ModelError("there is no such file of weights", path=path)
    if path.name.endswith(".safetensors.index.json"):
        names = sorted({str(name) for name in read_json(path).get("weight_map", {}).values()})
        # Only the bare name: an index must not lead out of its folder.
        return {key: value for name in names for key, value in read_weights(path.with_name(Path(name).name)).items()}
    values = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    for inner in ("state_dict", "model_state_dict", "model"):
        if isinstance(values.get(inner), Mapping):
            values = cast(dict[str, Any], values[inner])
    tensors = {str(name): value for name, value in values.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ModelError("the file holds no weights by name", path=path, advice="Give the file of a model's weights.")
    return {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}


def weights_in(folder: Path) -> Path | None:
    """The file of weights in a folder, under one of the usual names."""
    return next((folder / name for name in LOOSE_WEIGHTS if (folder / name).is_file()), None)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file of a model folder.

    Raises:
        ModelError: Where it cannot be read or holds something else than values by name.
    """
    try:
        values = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"it cannot be read: {error}", path=path, advice="Copy the model folder again.") from error
    if not isinstance(values, dict):
        raise ModelError("it holds no values by name", path=path, advice="Copy the model folder again.")
    return values


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file as `transformers` does, with a checksum, from tensors on any device."""
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    # Through memory: safetensors makes its files readable for their owner alone, and does not say why it fails.
    content = safetensors.torch.save(plain, metadata={"format": "pt", _CHECKSUM: _checksum_of(plain)})
    path.write_bytes(_in_order(content))


def _in_order(content: bytes) -> bytes:
    """A safetensors file with its metadata sorted: safetensors writes them in another order each time.

    The same weights are the same bytes then, as a continued run's and an uninterrupted one's are to be.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # as safetensors aligns what follows
    return len(text).to_bytes(8, "little") + text + content[start:]


def _checksum_of(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 of names, types, shapes and values of tensors on the CPU, as 8 hexadecimal digits."""
    value = 0
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def fill(module: nn.Module, tensors: Mapping[str, Tensor], *, path: str) -> None:
    """Puts weights into a module, every one in its place.

    Raises:
        ModelError: Where names are missing, unknown or of another shape; it names the first of each.
    """
    check_fit(module, tensors, path=path)
    module.load_state_dict(dict(tensors))


def check_fit(module: nn.Module, tensors: Mapping[str, Tensor], *, path: str) -> None:
    """Compares names and shapes of weights with those of a module, which may be on the device `meta`.

    Raises:
        ModelError: As `fill`.
    """
    own = module.state_dict()
    shapes = [
        f"{name} is {tuple(tensors[name].shape)}, expected is {tuple(own[name].shape)}"
        for name in own.keys() & tensors.keys()
        if own[name].shape != tensors[name].shape
    ]
    faults = {
        "missing": sorted(own.keys() - tensors.keys()),
        "unknown": sorted(tensors.keys() - own.keys()),
        "of another shape": sorted(shapes),
    }
    problems = [f"{len(names)} {what} ({names[0]})" for what, names in faults.items() if names]
    if problems:
        raise ModelError(
            f"the weights do not fit the model that is described beside them: {', '.join(problems)}",
            path=path,
            advice="The file is damaged, or its configuration belongs to other weights.",
        )


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        # Through memory, not mapped: a mapped file cannot be replaced on Windows while the model lives.
        # Sorted, because safetensors gives them in another order each time.
        content = path.read_bytes()
        tensors = dict(sorted(safetensors.torch.load(content).items()))
        facts = parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
    except OSError as error:
        raise ModelError(f"the weights cannot be read: {error.strerror or error}", path=path) from error
    except (SafetensorError, ValueError, KeyError, RuntimeError, OverflowError, MemoryError) as error:
        raise ModelError(f"the weights are damaged: {error}", path=path, advice="Copy the file again.") from error
    if facts.get(_CHECKSUM, "") not in ("", _checksum_of(tensors)):
        raise ModelError(
            "the weights are damaged: they are not what was written, their checksum differs",
            path=path,
            advice="Copy the file again.",
        )
    return tensors


def _read_pickle(path: Path) -> dict[str, Any]:
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            "the file is damaged, or holds more than weights and could run a program when opened: it is refused",
            path=path,
            advice="Where you trust its origin, open it in a script of your own and save only its state dict, "
            "best as safetensors.",
        ) from error
    except DAMAGE as error:
        raise ModelError(f"the weights cannot be read: {error}", path=path, advice="Copy the file again.") from error
    return dict(values) if isinstance(values, Mapping) else {}


def fingerprint(module: nn.Module) -> str:
    """A few letters by which the weights of a module are known again, wherever they were loaded from."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
