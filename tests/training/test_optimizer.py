from __future__ import annotations

import torch
from torch import nn

from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.training.optimization import parameter_groups


def test_parameter_groups__only_matrices_decay():
    encoder = SpectrogramEncoder(EncoderConfig(width=8, depth=1, heads=2, mels=16, frames=16, patch=(8, 8)))
    named = dict(encoder.named_parameters())
    decayed, plain = parameter_groups(named.items(), learning_rate=0.1, weight_decay=0.05)
    names = {id(parameter): name for name, parameter in named.items()}
    assert {names[id(parameter)] for parameter in decayed["params"]} == {
        "patch_projection.weight",
        "blocks.0.attention.qkv.weight",
        "blocks.0.attention.projection.weight",
        "blocks.0.fc1.weight",
        "blocks.0.fc2.weight",
    }
    assert {"cls_token", "position_embedding", "norm.weight", "blocks.0.fc1.bias"} <= {
        names[id(parameter)] for parameter in plain["params"]
    }
    assert len(decayed["params"]) + len(plain["params"]) == len(named)
    assert (decayed["weight_decay"], plain["weight_decay"], decayed["lr"]) == (0.05, 0.0, 0.1)


def test_parameter_groups__frozen_parameters_are_in_none():
    layer = nn.Linear(2, 2)
    layer.weight.requires_grad = False
    (group,) = parameter_groups(layer.named_parameters(), learning_rate=0.1, weight_decay=0.05)
    assert group["params"] == [layer.bias]
    torch.optim.AdamW([group])
