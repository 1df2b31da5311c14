"""What changes the weights, and which parameters decay.

Weight decay pulls weights to zero. For the matrices of linear layers and convolutions that is a prior; the scale of a
norm, a bias, a token or a position embedding has no reason to be small (as in timm and ViT).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from tymbal.settings import TrainingSettings

__all__ = ["make_optimizer", "parameter_groups"]


def make_optimizer(settings: TrainingSettings, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer of a run.

    Args:
        settings: Which one, and its numbers.
        groups: What `parameter_groups` gave.
    """
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=settings.adam_beta1, fused=True)
    kind = torch.optim.Adam if settings.optimizer == "adam" else torch.optim.AdamW
    betas = (settings.adam_beta1, settings.adam_beta2)
    return kind(groups, lr=settings.learning_rate, betas=betas, fused=True)


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
