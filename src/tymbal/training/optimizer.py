"""Which parameters decay.

Weight decay pulls weights to zero. For the matrices of linear layers and convolutions that is a prior; the scale of a
norm, a bias, a token or a position embedding has no reason to be small (as in timm and ViT).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

__all__ = ["parameter_groups"]


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], *, learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Groups for a torch optimizer; frozen parameters are in none.

    Several calls with different learning rates can be added up, for instance for a head that learns faster.

    Args:
        named: Parameters with their names, as `module.named_parameters()` gives them.
        learning_rate: Highest learning rate of these parameters.
        weight_decay: Weight decay of the matrices among them.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        # Tokens and position embeddings are bare parameters with names of their own.
        is_matrix = parameter.ndim >= 2 and name.rpartition(".")[2] == "weight"
        (decayed if is_matrix else plain).append(parameter)
    groups = [
        {"params": decayed, "lr": learning_rate, "weight_decay": weight_decay},
        {"params": plain, "lr": learning_rate, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
