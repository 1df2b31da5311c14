"""The model in this folder for transformers, whose own AST classes cannot hold it; Tymbal itself never runs this file.

    model = AutoModelForAudioClassification.from_pretrained(folder, trust_remote_code=True)
    classify = pipeline("audio-classification", model=folder, trust_remote_code=True)

It computes what Tymbal computes: patches of any shape, a stem, attention that leaves padding out, every pooling and
head. The weights lie in `model.safetensors` under Tymbal's names, their shape under `tymbal` in `config.json`. It needs
torch and transformers only. A clip has as many frames as the model was made for; the extractor beside it pads to them.

Written by Tymbal, Apache License 2.0.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

_PREFIX = 2  # class and distillation token
_STEM_STRIDE = 4
_LEAST_VARIANCE = 1e-5
_GRIDS = {"grid2": 2, "grid4": 4, "grid8": 8}
_NORMED_TWICE = "all-normed-twice"


class TymbalConfig(PretrainedConfig):  # type: ignore[misc, unused-ignore]
    """The description of a model: Tymbal's own stands under `tymbal`.

    Args:
        tymbal: Tymbal's description: encoder, pooling, head.
        **kwargs: What transformers keeps of any model.
    """

    model_type = "tymbal"

    def __init__(self, tymbal: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.tymbal = tymbal or {}
        super().__init__(**kwargs)


class _Attention(nn.Module):
    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__()
        self.heads = shape["heads"]
        self.qkv = nn.Linear(shape["width"], 3 * shape["width"], bias=shape["qkv_bias"])
        self.projection = nn.Linear(shape["width"], shape["width"])

    def forward(self, tokens: Tensor, attended: Tensor | None) -> Tensor:
        batch, length, width = tokens.shape
        qkv = self.qkv(tokens).view(batch, length, 3, self.heads, width // self.heads)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=attended)
        result: Tensor = self.projection(mixed.transpose(1, 2).flatten(2))
        return result


class _Block(nn.Module):
    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__()
        width, hidden = shape["width"], round(shape["width"] * shape["mlp_ratio"])
        self.norm1 = nn.LayerNorm(width, eps=shape["layer_norm_eps"])
        self.attention = _Attention(shape)
        self.norm2 = nn.LayerNorm(width, eps=shape["layer_norm_eps"])
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, tokens: Tensor, attended: Tensor | None) -> Tensor:
        tokens = tokens + self.attention(self.norm1(tokens), attended)
        result: Tensor = tokens + self.fc2(F.gelu(self.fc1(self.norm2(tokens))))
        return result


class _Encoder(nn.Module):
    """Spectrograms [batch, frames, mels] to tokens [batch, 2 + rows x columns, width] after the final norm."""

    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__()
        self.shape, width, stem = shape, shape["width"], shape.get("stem", 0)
        (tall, wide), (down, right) = shape["patch"], shape["stride"]
        self.grid = ((shape["mels"] - tall) // down + 1, (shape["frames"] - wide) // right + 1)
        area = tall * wide
        if stem:
            area = area // _STEM_STRIDE**2 * 2 * stem
            self.stem = nn.Sequential(
                nn.Conv2d(1, stem, 3, stride=2, padding=1),
                nn.GELU(),
                nn.Conv2d(stem, 2 * stem, 3, stride=2, padding=1),
                nn.GELU(),
            )
        self.patch_projection = nn.Linear(area, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))  # of pretraining alone
        self.position_embedding = nn.Parameter(torch.zeros(1, _PREFIX + self.grid[0] * self.grid[1], width))
        self.blocks = nn.ModuleList(_Block(shape) for _ in range(shape["depth"]))
        self.norm = nn.LayerNorm(width, eps=shape["layer_norm_eps"])

    def forward(self, spectrogram: Tensor, frames: Tensor) -> Tensor:
        expected = (self.shape["frames"], self.shape["mels"])
        if tuple(spectrogram.shape[1:]) != expected:
            raise ValueError(f"the model takes {expected} frames and mel bins, not {tuple(spectrogram.shape[1:])}")
        tokens = self.patch_projection(self._patches(spectrogram))
        prefix = torch.cat([self.cls_token, self.distillation_token], 1).expand(len(tokens), -1, -1)
        tokens = torch.cat([prefix, tokens], 1) + self.position_embedding
        attended = None
        if not self.shape.get("attend_to_padding", True):
            column = torch.arange(self.grid[0] * self.grid[1], device=tokens.device) % self.grid[1]
            real = column < self.real_columns(frames)[:, None]
            attended = F.pad(real, (_PREFIX, 0), value=True)[:, None, None]
        for block in self.blocks:
            tokens = block(tokens, attended)
        result: Tensor = self.norm(tokens)
        return result

    def real_columns(self, frames: Tensor) -> Tensor:
        """Columns of patches that hold sound, [batch]."""
        right = self.shape["stride"][1]
        columns: Tensor = ((frames + right - 1) // right).clamp(1, self.grid[1])
        return columns

    def _patches(self, spectrogram: Tensor) -> Tensor:
        (tall, wide), (down, right) = self.shape["patch"], self.shape["stride"]
        rows, columns = self.grid
        picture = spectrogram.transpose(1, 2)
        if not self.shape.get("stem", 0):
            return picture.unfold(1, tall, down).unfold(2, wide, right).flatten(3).flatten(1, 2)
        picture = picture[:, : (rows - 1) * down + tall, : (columns - 1) * right + wide]
        tall, wide, down, right = (side // _STEM_STRIDE for side in (tall, wide, down, right))
        patches = self.stem(picture[:, None]).unfold(2, tall, down).unfold(3, wide, right)
        result: Tensor = patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        return result


class _Attentive(nn.Module):
    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(shape["heads"], shape["width"] // shape["heads"]))

    def forward(self, patches: Tensor, weight: Tensor) -> Tensor:
        """Patches [batch, patches, width] and which count, [batch, patches], to [batch, width]."""
        heads, channels = self.query.shape
        by_head = patches.reshape(*patches.shape[:2], heads, channels)
        scores = (by_head * self.query).sum(3) / channels**0.5
        weights = scores.masked_fill(weight[:, :, None] == 0, -torch.inf).softmax(1)
        result: Tensor = (by_head * weights[:, :, :, None]).sum(1).flatten(1)
        return result


class _Standardisation(nn.Module):
    mean: Tensor
    variance: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def forward(self, embeddings: Tensor) -> Tensor:
        return (embeddings - self.mean) / (self.variance + _LEAST_VARIANCE).sqrt()


class _Pretrained(PreTrainedModel):  # type: ignore[misc, unused-ignore]
    config_class = TymbalConfig
    base_model_prefix = "encoder"
    main_input_name = "input_values"

    def _init_weights(self, module: nn.Module) -> None:
        """Leaves weights as their modules make them: all are read from the folder."""

    def _frames(self, input_values: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Frames of sound in each clip, [batch]: all of them without a mask."""
        if attention_mask is not None:
            return attention_mask.long().sum(1)
        return torch.full((len(input_values),), input_values.shape[1], device=input_values.device)


class TymbalModel(_Pretrained):
    """The encoder alone.

    Args:
        config: The description of the model.
    """

    def __init__(self, config: TymbalConfig) -> None:
        super().__init__(config)
        self.encoder = _Encoder(config.tymbal["encoder"])
        self.post_init()

    def forward(self, input_values: Tensor, attention_mask: Tensor | None = None, **_: Any) -> BaseModelOutput:
        """Tokens of normalised spectrograms [batch, frames, mels]; the mask [batch, frames] is 1 where sound is."""
        return BaseModelOutput(last_hidden_state=self.encoder(input_values, self._frames(input_values, attention_mask)))


class TymbalForAudioClassification(_Pretrained):
    """The encoder with its classifier.

    Args:
        config: The description of the model.
    """

    def __init__(self, config: TymbalConfig) -> None:
        super().__init__(config)
        described = config.tymbal
        shape, self.pooling = described["encoder"], described["pooling"]
        self.skip_padding = described["skip_padding"]
        self.encoder = _Encoder(shape)
        rows = self.encoder.grid[0]
        width = shape["width"] * {"rows": rows, **{name: rows * n for name, n in _GRIDS.items()}}.get(self.pooling, 1)
        if self.pooling == "attention":
            self.attentive = _Attentive(shape)
        eps = shape["layer_norm_eps"] if described.get("head_eps") is None else described["head_eps"]
        if self.pooling == _NORMED_TWICE:
            self.head_norm: nn.Module = nn.Identity()
        else:
            self.head_norm = _Standardisation(width) if described.get("standardise") else nn.LayerNorm(width, eps=eps)
        self.head = nn.Linear(width, len(described["labels"]))
        self.groups = tuple(described.get("groups", ()))
        self.post_init()

    def forward(
        self, input_values: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutput:
        """Logits of normalised spectrograms [batch, frames, mels]; the mask [batch, frames] is 1 where sound is."""
        frames = self._frames(input_values, attention_mask)
        logits = self.head(self.head_norm(self._pool(self.encoder(input_values, frames), frames)))
        if self.groups:  # the sigmoid of a label is then the softmax of its group
            logits = torch.cat([_log_odds(part) for part in logits.split_with_sizes(self.groups, 1)], 1)
        loss = None
        if labels is not None:
            if self.config.problem_type == "multi_label_classification":
                loss = F.binary_cross_entropy_with_logits(logits, labels.float())
            else:
                loss = F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)

    def _pool(self, tokens: Tensor, frames: Tensor) -> Tensor:
        rows, columns = self.encoder.grid
        if self.pooling == "cls":
            return tokens[:, :_PREFIX].mean(1)
        if self.pooling == _NORMED_TWICE:
            result: Tensor = self.encoder.norm(tokens).mean(1)
            return result
        real = self.encoder.real_columns(frames) if self.skip_padding else torch.full_like(frames, columns)
        patches = tokens[:, _PREFIX:].reshape(len(tokens), rows, columns, -1)
        column = torch.arange(columns, device=tokens.device)
        parts = _GRIDS.get(self.pooling, 1)
        length = (real / parts)[:, None, None]
        begin = torch.arange(parts, device=tokens.device)[:, None] * length
        share = torch.minimum(begin + length, column + 1) - torch.maximum(begin, column.to(length.dtype))
        share = share.clamp(min=0) / length  # [batch, parts, columns], of each part 1 in all
        if self.pooling == "attention":
            attended: Tensor = self.attentive(patches.flatten(1, 2), share.expand(-1, rows, -1).flatten(1))
            return attended
        cells = torch.einsum("bpc,brcw->brpw", share.to(patches.dtype), patches)
        if self.pooling in ("rows", *_GRIDS):
            return cells.flatten(1)
        mean = cells.flatten(1, 2).mean(1)
        if self.pooling == "mean":
            return mean
        own = (_PREFIX / (_PREFIX + rows * real)).to(mean.dtype)[:, None]
        return torch.lerp(mean, tokens[:, :_PREFIX].mean(1), own)  # all tokens alike


def _log_odds(logits: Tensor) -> Tensor:
    """Log-odds of each label of a softmax against all others; of a single one its own logit."""
    if logits.shape[1] == 1:
        return logits
    own = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
    result: Tensor = logits - logits.unsqueeze(1).masked_fill(own, -torch.inf).logsumexp(2)
    return result
