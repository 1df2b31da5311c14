"""Linear layers that multiply integers of 8 bits, for CPUs that compute no bf16: up to three times as fast there.

Weights are rounded once, each output by its own largest weight. Inputs are rounded as they come, each token by its own
largest number, so that the scores of a clip do not depend on which others share its batch. Attention, norms and all
else stay in float32, and so do the patches, whose numbers are spectrograms. The products are those of PyTorch's
quantised operators (FBGEMM, QNNPACK, oneDNN). Where x86 has no VNNI, two products are added in 16 bits: there weights
have seven of the eight bits, so that no sum overflows.
"""

from __future__ import annotations

import contextlib
import copy
import platform
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tymbal.errors import DeviceError

__all__ = ["LARGEST_DIFFERENCE", "Rounding", "as_int8", "exactly", "rounding"]

LARGEST_DIFFERENCE = 1e-2
"""By how much a score may differ from that in float32."""

_LARGEST_LOSS = 0.005
_SMALLEST = 64
"""Layers with fewer inputs or outputs (a head, a gate) stay as they are: they cost little, and decide much."""

_EXACT = ("patch_projection",)
"""Layers that stay as they are by name."""


class Int8Linear(nn.Module):
    """A linear layer in integers of 8 bits.

    Args:
        linear: The layer in float32, whose weights it goes on to hold: a fingerprint of the model stays what it is.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.is_exact = False
        weight = linear.weight.detach().float()
        scale = (weight.abs().amax(dim=1) / _steps()).clamp_min(torch.finfo(torch.float32).tiny).double()
        zeros = torch.zeros(len(weight), dtype=torch.long)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*quantize", category=UserWarning)
            rounded = torch.quantize_per_channel(weight, scale, zeros, 0, torch.qint8)
            self._packed = torch.ops.quantized.linear_prepack(rounded, None)

    def forward(self, x: Tensor) -> Tensor:
        """As `torch.nn.Linear`: float32 [..., inputs] to [..., outputs]."""
        if self.is_exact:
            return F.linear(x, self.weight, self.bias)
        flat = x.reshape(-1, x.shape[-1])
        # aminmax and a norm take twenty times as long along the last dimension.
        low, high = flat.amin(dim=1, keepdim=True), flat.amax(dim=1, keepdim=True)
        peak = torch.maximum(low.neg_(), high).clamp_min_(torch.finfo(torch.float32).tiny)
        # One row more holds both ends of the scale, by which the operator rounds: it is the same for every batch.
        tokens = flat.new_empty(len(flat) + 1, flat.shape[1])
        torch.div(flat, peak, out=tokens[:-1])
        tokens[-1] = 1.0
        tokens[-1, 0] = -1.0
        y = cast(Tensor, torch.ops.quantized.linear_dynamic(tokens, self._packed, reduce_range=False))[:-1].mul_(peak)
        y = y if self.bias is None else y.add_(self.bias)
        return y.view(*x.shape[:-1], -1)


def _steps() -> int:
    """Largest integer of a weight."""
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    is_x86 = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")
    has_vnni = any(known.get(name, False) for name in ("avx512_vnni", "avx_vnni", "avx10"))
    return 63 if is_x86 and not has_vnni else 127


def as_int8(module: nn.Module, device: torch.device) -> None:
    """Lets the large linear layers of a module compute in 8 bits, in place; it is for inference alone.

    Raises:
        DeviceError: It is not a CPU, or this PyTorch has no such products.
    """
    if device.type != "cpu":
        raise DeviceError(
            f"int8 is for CPUs, not for {device.type}", advice="Leave --precision out, or give --device cpu."
        )
    try:
        for parent in list(module.modules()):
            for name, child in list(parent.named_children()):
                if not isinstance(child, nn.Linear) or name in _EXACT:
                    continue
                if min(child.in_features, child.out_features) >= _SMALLEST:
                    setattr(parent, name, Int8Linear(child))
    except (AttributeError, RuntimeError) as error:
        raise DeviceError(
            f"this PyTorch ({torch.__version__}) has no products of int8 for this CPU: {error}",
            advice="Leave --precision out.",
        ) from error


@contextlib.contextmanager
def exactly(module: nn.Module) -> Iterator[None]:
    """In the block, the module computes in float32 again."""
    layers = [layer for layer in module.modules() if isinstance(layer, Int8Linear)]
    for layer in layers:
        layer.is_exact = True
    try:
        yield
    finally:
        for layer in layers:
            layer.is_exact = False


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """What 8 bits cost a classifier, on some of its validation clips.

    Attributes:
        clips: How many.
        agree: Share of them whose first label stays.
        loss: Accuracy (with several labels: of all single decisions at 0.5) in float32 less that in 8 bits.
        difference: Largest difference of a score.
    """

    clips: int
    agree: float
    loss: float
    difference: float

    @property
    def is_fine(self) -> bool:
        """Whether `--precision int8` gives what float32 does, for all that matters."""
        return self.loss <= _LARGEST_LOSS and self.difference <= LARGEST_DIFFERENCE

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, as the card shows them."""
        verdict = "as good as float32" if self.is_fine else "not as good as float32: leave --precision int8"
        return {
            "verdict": f"{verdict} (at most {_LARGEST_LOSS:.1%} and {LARGEST_DIFFERENCE:g} are allowed)",
            "validation clips": self.clips,
            "accuracy lost": round(self.loss, 6),
            "same first label": round(self.agree, 6),
            "largest difference of a score": round(self.difference, 6),
        }


@torch.inference_mode()
def rounding(
    model: nn.Module, batches: Iterator[tuple[Tensor, Tensor, Tensor]], *, multilabel: bool
) -> Rounding | None:
    """Measures what 8 bits cost.

    Args:
        model: A classifier; it is left as it is.
        batches: Normalised spectrograms [batch, frames, mels], frames of sound [batch], and labels, bool [batch,
            classes].
        multilabel: Whether a clip may have several labels.

    Returns:
        The figures; None without a clip, or where this PyTorch computes no int8.
    """
    exact = copy.deepcopy(model).cpu().float().eval()
    try:
        as_int8(rounded := copy.deepcopy(exact), torch.device("cpu"))
    except DeviceError:
        return None
    scores: dict[str, list[Tensor]] = {"exact": [], "rounded": [], "truth": []}
    for x, frames, truth in batches:
        for name, module in (("exact", exact), ("rounded", rounded)):
            logits = module(x, frames=frames)
            scores[name].append(logits.sigmoid() if multilabel else logits.softmax(dim=1))
        scores["truth"].append(truth)
    if not scores["truth"]:
        return None
    here, there, right = (torch.cat(scores[name]) for name in ("exact", "rounded", "truth"))

    def accuracy(values: Tensor) -> float:
        if multilabel:
            return float(((values > 0.5) == right).float().mean())
        return float(right.gather(1, values.argmax(1, keepdim=True)).float().mean())

    return Rounding(
        clips=len(right),
        agree=float((here.argmax(1) == there.argmax(1)).float().mean()),
        loss=accuracy(here) - accuracy(there),
        difference=float((here - there).abs().max()),
    )
