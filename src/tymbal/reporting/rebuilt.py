"""What the mask hid and what the model rebuilt, at every checkpoint that is still there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from tymbal.errors import CheckpointError
from tymbal.models.encoder import SpectrogramEncoder
from tymbal.models.folder import LoadedModel, load_model
from tymbal.objectives.masks import Masks
from tymbal.objectives.ssast import TASKS, SSASTObjective
from tymbal.reporting.clips import Clips
from tymbal.reporting.page import NotShownError, note
from tymbal.reporting.pictures import limits, spectrogram
from tymbal.training.checkpoints import Checkpoints, verify

__all__ = ["rebuilt_clips"]

_MOST = 3  # checkpoints


def rebuilt_clips(run: Path, clips: Clips, rows: NDArray[np.int64], logged: Sequence[Mapping[str, Any]]) -> str:
    """Clips as they are, as the encoder saw them, and as it rebuilt them.

    The masks are those of the evaluation: fixed, so that the pictures of all epochs compare.

    Args:
        run: The run folder.
        clips: The run's clips.
        rows: Which of them to show.
        logged: The run's figures, for the epoch of a step.

    Raises:
        NotShownError: The objective rebuilds nothing that could be drawn.
        ModelError: There is no model yet, or it cannot be read.
    """
    loaded = load_model(run)
    objective = _objective(loaded)
    store = clips.store
    raw = torch.from_numpy(np.array(store.gather(rows)))
    frames = torch.from_numpy(store.real_frames[rows].astype(np.int64))
    epochs = {entry["step"]: entry["epoch"] for entry in logged}
    drawn: dict[str, list[tuple[NDArray[np.float32], float]]] = {}
    number = torch.from_numpy(rows)
    with torch.inference_mode():
        x = objective.normalisation(raw, frames)
        masks = objective.make_masks(x.shape[1], frames, number, torch.zeros_like(number))
        for step in _states(run, objective, loaded):
            title = "the model" if step is None else f"epoch {epochs[step]:.1f}" if step in epochs else f"step {step:,}"
            drawn[title] = _pictures(objective, x, masks)
        true = _picture(objective.encoder, objective.encoder.patchify(x))
        hidden = _picture(
            objective.encoder, masks.mask.unsqueeze(2).expand(-1, -1, objective.encoder.config.patch_area)
        )
    figures = [
        _triptych(
            clips,
            row,
            true=true[place],
            hidden=hidden[place],
            drawn={title: pictures[place] for title, pictures in drawn.items()},
            length=int(frames[place]),
        )
        for place, row in enumerate(rows.tolist())
    ]
    share = objective.mask_count or f"{objective.mask_ratio:.0%}"
    lead = (
        f"Grey patches ({share} of them) were hidden from the encoder. In the pictures on the right they are what it "
    )
    lead += "made of the rest; the number is the mean squared error of them, in normalised units."
    if objective.normalize_targets:
        lead += " It learned patches without their own mean and spread, which are given back here."
    few = "" if len(drawn) > 1 else note("One state is shown: no other checkpoint is there (keep_checkpoints).")
    return f"<p>{escape(lead)}</p>{''.join(figures)}{few}"


def _objective(loaded: LoadedModel) -> SSASTObjective:
    how = loaded.description.objective
    if not isinstance(loaded.module, SpectrogramEncoder) or how is None:
        raise NotShownError("the model was not pretrained by this run")
    if how.get("objective") not in TASKS:
        raise NotShownError(f"there is no picture for the objective {how.get('objective')}")
    if "gpred" not in TASKS[how["objective"]]:
        raise NotShownError(
            f"the objective {how['objective']} tells patches apart and rebuilds none",
            advice="The objectives joint and mpg rebuild.",
        )
    return SSASTObjective(
        loaded.module,
        task=how["objective"],
        normalisation=loaded.description.normalisation,
        encode=how["encode"],
        decoder_depth=how["decoder_depth"],
        decoder_width=how["decoder_width"],
        mask=how["mask"],
        mask_ratio=how["mask_ratio"],
        mask_count=how["mask_count"],
        cluster=(how["cluster_min"], how["cluster_max"]),
        mask_padding=how["mask_padding"],
        normalize_targets=how["normalize_targets"],
        seed=loaded.description.provenance.get("settings", {}).get("seed", 42),
    ).eval()


def _states(run: Path, objective: SSASTObjective, loaded: LoadedModel) -> Iterator[int | None]:
    """Puts one state after the other into the objective: those of checkpoints, else (None) that of the model."""
    checkpoints = Checkpoints(run / "checkpoints")
    found = False
    for step in checkpoints.steps()[-_MOST:]:
        try:
            verify(checkpoints.path(step))
        except CheckpointError:
            continue
        objective.load_state_dict(load_file(checkpoints.path(step) / "model.safetensors"))
        found = True
        yield step
    if not found:
        objective.load_head_state(loaded.objective_state)
        yield None


def _pictures(objective: SSASTObjective, x: Tensor, masks: Masks) -> list[tuple[NDArray[np.float32], float]]:
    """Each clip with its masked patches rebuilt, and the mean squared error of these."""
    prefix = objective.encoder.config.prefix_tokens
    predicted = objective.heads["gpred"](objective.predict(x, masks)[:, prefix:]).float()
    true = objective.encoder.patchify(x)
    if objective.normalize_targets:
        spread = true.var(-1, keepdim=True, unbiased=False).add(1e-6).sqrt()
        predicted = predicted * spread + true.mean(-1, keepdim=True)
    together = torch.where(masks.mask.unsqueeze(2), predicted, true)
    errors = (predicted - true).square().mean(-1)
    means = [float(each[mask].mean()) for each, mask in zip(errors, masks.mask, strict=True)]
    return list(zip(_picture(objective.encoder, together), means, strict=True))


def _picture(encoder: SpectrogramEncoder, patches: Tensor) -> NDArray[Any]:
    """Patches [batch, patches, area] as pictures [batch, frames, mels]."""
    config = encoder.config
    (rows, columns), (tall, wide) = config.grid, config.patch
    shaped = patches.reshape(len(patches), rows, columns, tall, wide).permute(0, 2, 4, 1, 3)
    pictures: NDArray[Any] = shaped.reshape(len(patches), columns * wide, rows * tall).numpy()
    return pictures


def _triptych(
    clips: Clips,
    row: int,
    *,
    true: NDArray[np.float32],
    hidden: NDArray[np.bool_],
    drawn: Mapping[str, tuple[NDArray[np.float32], float]],
    length: int,
) -> str:
    between = limits(true[:length])
    name = clips.name(row)

    def figure(values: NDArray[np.float32], caption: str, cover: NDArray[np.bool_] | None = None) -> str:
        picture = spectrogram(
            values[:length],
            alt=f"{caption}: {name}",
            between=between,
            hidden=None if cover is None else cover[:length],
        )
        return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"

    figures = [figure(true, "the clip"), figure(true, "what the encoder saw", hidden)]
    figures += [figure(values, f"{title}: {error:.3f}") for title, (values, error) in drawn.items()]
    label = ", ".join(clips.labels(row))
    head = f'<p class="soft"><span class="path">{escape(name)}</span>{escape(f" ({label})" if label else "")}</p>'
    return f'{head}<div class="triptych" style="--columns:{len(figures)}">{"".join(figures)}</div>'
