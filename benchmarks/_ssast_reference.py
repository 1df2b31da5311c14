"""SSAST's pretraining step the way its reference implementation goes about it, written anew from a description.

The peer of `ssast_step.py` and `mask_statistics.py`: masks drawn in Python, loops over the clips of a batch, attention
by explicit products and softmax, a pass of the encoder for each of the two losses. Its weights carry SSAST's names, so
that Tymbal's door to SSAST's files reads them; against the recorded losses of the real thing it is right to 1e-4
(`tests/objectives/test_ssast_reference.py`). Nothing here is used by Tymbal itself.
"""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

__all__ = ["ReferenceSSAST", "adam", "draw_cluster", "draw_frames", "finetune_step", "joint_step"]

PREFIX = 2


class ReferenceSSAST(nn.Module):
    """The encoder (as in timm 0.4.5), the mask embedding and the two heads.

    Args:
        width: Width of the encoder.
        depth: Its blocks.
        heads: Its attention heads.
        mels: Mel bins of a spectrogram.
        frames: Its frames.
        patch: Mel bins and frames of a patch.
    """

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        mels: int = 128,
        frames: int = 1024,
        patch: tuple[int, int] = (16, 16),
    ) -> None:
        super().__init__()
        self.patch, self.grid = patch, (mels // patch[0], frames // patch[1])
        area, patches = patch[0] * patch[1], self.grid[0] * self.grid[1]
        self.v = nn.Module()
        self.v.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.v.dist_token = nn.Parameter(torch.zeros(1, 1, width))
        self.v.pos_embed = nn.Parameter(torch.zeros(1, PREFIX + patches, width))
        self.v.patch_embed = nn.Module()
        self.v.patch_embed.proj = nn.Conv2d(1, width, kernel_size=patch, stride=patch)
        self.v.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(depth)))
        self.v.norm = nn.LayerNorm(width, eps=1e-6)
        self.mask_embed = nn.Parameter(nn.init.xavier_normal_(torch.zeros(1, 1, width)))
        self.cpredlayer = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, area))
        self.gpredlayer = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, area))
        self.p_input_fdim = nn.Parameter(torch.tensor(mels), requires_grad=False)
        self.p_input_tdim = nn.Parameter(torch.tensor(frames), requires_grad=False)
        for token in (self.v.cls_token, self.v.dist_token, self.v.pos_embed):
            nn.init.trunc_normal_(token, std=0.02)
        for module in self.v.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def mpc(self, spectrogram: Tensor, count: int, given: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Telling the masked patches apart: accuracy and loss.

        Args:
            spectrogram: Normalised, [batch, frames, mels].
            count: Number of masked patches.
            given: The masked patches, int64 [batch, count], instead of drawn ones.
        """
        chosen, true, tokens = self._encode(spectrogram, count, given)
        batch = len(spectrogram)
        predicted = torch.empty((batch, count, true.shape[2]), device=tokens.device)
        for clip in range(batch):
            predicted[clip] = self.cpredlayer(tokens[clip, chosen[clip] + PREFIX])
        loss = torch.zeros((), device=tokens.device)
        right = torch.zeros((), device=tokens.device)
        for clip in range(batch):
            scores = true[clip] @ predicted[clip].transpose(0, 1)
            best = scores.softmax(dim=-1).argmax(dim=0)
            right += (best == torch.arange(count, device=tokens.device)).sum()
            loss = loss - scores.log_softmax(dim=-1).diag().sum()
        return right / (batch * count), loss / (batch * count)

    def mpg(self, spectrogram: Tensor, count: int, given: Tensor | None = None) -> Tensor:
        """Rebuilding the masked patches: the mean squared error. The arguments are as in `mpc`."""
        chosen, true, tokens = self._encode(spectrogram, count, given)
        predicted = torch.empty_like(true)
        for clip in range(len(spectrogram)):
            predicted[clip] = self.gpredlayer(tokens[clip, chosen[clip] + PREFIX])
        return ((predicted - true) ** 2).mean()

    def _encode(self, spectrogram: Tensor, count: int, given: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Masks and encodes: numbers of the masked patches, their content, and all tokens."""
        image = spectrogram.unsqueeze(1).transpose(2, 3)  # [batch, 1, mels, frames]
        patches = F.unfold(image, self.patch, stride=self.patch).transpose(1, 2)
        tokens = self.v.patch_embed.proj(image).flatten(2).transpose(1, 2)
        batch, number, width = tokens.shape
        chosen = torch.empty((batch, count), dtype=torch.int64, device=tokens.device)
        true = torch.empty((batch, count, patches.shape[2]), device=tokens.device)
        keep = torch.ones((batch, number, width), device=tokens.device)
        for clip in range(batch):
            chosen[clip] = self._draw(number, count) if given is None else given[clip]
            true[clip] = patches[clip, chosen[clip]].clone().detach()
            keep[clip, chosen[clip]] = 0
        tokens = tokens * keep + (1 - keep) * self.mask_embed.expand(batch, number, -1)
        return chosen, true, self._through_blocks(tokens)

    def embed(self, spectrogram: Tensor) -> Tensor:
        """The mean over all patches, as fine-tuning reads it (`ft_avgtok`), [batch, width]."""
        image = spectrogram.unsqueeze(1).transpose(2, 3)
        tokens = self._through_blocks(self.v.patch_embed.proj(image).flatten(2).transpose(1, 2))
        return tokens[:, PREFIX:].mean(dim=1)

    def _through_blocks(self, tokens: Tensor) -> Tensor:
        prefix = [token.expand(len(tokens), -1, -1) for token in (self.v.cls_token, self.v.dist_token)]
        return self.v.norm(self.v.blocks(torch.cat([*prefix, tokens], dim=1) + self.v.pos_embed))

    def _draw(self, number: int, count: int) -> Tensor:
        if self.grid[0] == 1:
            return torch.tensor(draw_frames(number, count, random))
        return torch.tensor(draw_cluster(number, self.grid[1], count, random))


class _Block(nn.Module):
    """timm's block, with the attention written out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length, width = tokens.shape
        qkv = self.attn["qkv"](self.norm1(tokens)).reshape(batch, length, 3, self.heads, width // self.heads)
        queries, keys, values = qkv.permute(2, 0, 3, 1, 4)
        weights = (queries @ keys.transpose(-2, -1) * (width // self.heads) ** -0.5).softmax(dim=-1)
        tokens = tokens + self.attn["proj"]((weights @ values).transpose(1, 2).reshape(batch, length, width))
        return tokens + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(tokens))))


def draw_cluster(number: int, columns: int, count: int, source: random.Random) -> list[int]:
    """Draws masked patches in clusters.

    A cluster starts anywhere and runs over the end of a row into the next one; patch 0 is never masked, and what is too
    much is cut off at the high end, because a set of small whole numbers comes out of CPython in ascending order. These
    are faults; they are kept here. So is a third one: with `count` above number - 2 this never ends.

    Args:
        number: Patches of a clip.
        columns: Patches in a row.
        count: Patches to mask.
        source: Where the random numbers are from.
    """
    side = source.randrange(3) + 3
    masked: list[int] = []
    while len(set(masked)) <= count:
        start = source.randrange(number)
        for up in range(side):
            for on in range(side):
                place = start + columns * up + on
                if 0 < place < number:
                    masked.append(place)
    return list(set(masked))[:count]


def draw_frames(number: int, count: int, source: random.Random) -> list[int]:
    """Draws masked patches singly, as for frame patches; the arguments are as in `draw_cluster`."""
    return source.sample(range(number), count)


def adam(model: nn.Module, learning_rate: float) -> torch.optim.Adam:
    """The reference's optimizer."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.Adam(trained, learning_rate, weight_decay=5e-7, betas=(0.95, 0.999))


def finetune_step(
    model: ReferenceSSAST, head: nn.Module, optimizer: torch.optim.Optimizer, spectrogram: Tensor, labels: Tensor
) -> float:
    """One step of fine-tuning with one label a clip; gives the loss, as it waits for it."""
    loss = F.cross_entropy(head(model.embed(spectrogram)), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def joint_step(model: ReferenceSSAST, optimizer: torch.optim.Optimizer, spectrogram: Tensor, count: int) -> float:
    """One step of joint pretraining, with its three waits for the device; gives the loss."""
    accuracy, contrastive = model.mpc(spectrogram, count)
    loss = contrastive + 10 * model.mpg(spectrogram, count)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    accuracy.detach().cpu().item()
    loss.detach().cpu().item()
    return loss.item()
