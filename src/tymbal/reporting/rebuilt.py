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

from tymbal.errors import CheckpointError
from tymbal.models.folder import LoadedModel, load_model
from tymbal.reporting.clips import Clips
from tymbal.reporting.hiding import Hiding, hiding_of
from tymbal.reporting.page import note
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
    hiding = hiding_of(loaded)
    store = clips.store
    raw = torch.from_numpy(np.array(store.gather(rows)))
    frames = torch.from_numpy(store.real_frames[rows].astype(np.int64))
    epochs = {entry["step"]: entry["epoch"] for entry in logged}
    drawn: dict[str, list[tuple[NDArray[np.float32], float]]] = {}
    with torch.inference_mode():
        true, hidden = hiding.take(raw, frames, torch.from_numpy(rows))
        for step in _states(run, hiding, loaded):
            title = "the model" if step is None else f"epoch {epochs[step]:.1f}" if step in epochs else f"step {step:,}"
            drawn[title] = hiding.rebuilt()
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
    few = "" if len(drawn) > 1 else note("One state is shown: no other checkpoint is there (keep_checkpoints).")
    return f"<p>{escape(hiding.lead)}</p>{''.join(figures)}{few}"


def _states(run: Path, hiding: Hiding, loaded: LoadedModel) -> Iterator[int | None]:
    """Puts one state after the other into the objective: those of checkpoints, else (None) that of the model."""
    checkpoints = Checkpoints(run / "checkpoints")
    found = False
    for step in checkpoints.steps()[-_MOST:]:
        try:
            verify(checkpoints.path(step))
        except CheckpointError:
            continue
        hiding.objective.load_state_dict(load_file(checkpoints.path(step) / "model.safetensors"))
        found = True
        yield step
    if not found:
        hiding.objective.load_head_state(loaded.objective_state)
        yield None


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
