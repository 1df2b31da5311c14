"""A page of some clips beside their views, to see and, in exact mode, hear what settings do before hours are spent.

OUTPUT-preview/
index.html        a row a version: the clip, view 1, view 2, each with what was drawn for it
pairs.png         the same without words
sound/*.wav       the clips, and in exact mode the views
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import torch

from tymbal.files import replace_folder
from tymbal.settings.augmentation import SPECTROGRAM, WAVEFORM
from tymbal.views.draw import VIEWS, Draws, clip_key, draw, view_keys
from tymbal.views.make import ViewMaker
from tymbal.views.picture import Picture, coloured, write_png

__all__ = ["write_preview"]

_DARKEST = 14.0  # nepers of energy below the loudest: 60 dB
_GAP = 6
_SCALE = 2
_HEAD = """<!doctype html><meta charset="utf-8"><title>Views</title><style>
body{font:14px system-ui,sans-serif;margin:2em;color:#222;background:#fff}td,th{padding:.4em 1em .8em 0;text-align:left;
vertical-align:top}img{image-rendering:pixelated;display:block}small{color:#555;display:block;max-width:24em}
audio{width:16em;height:2em}</style>
"""


def write_preview(
    folder: Path,
    maker: ViewMaker,
    waveforms: npt.NDArray[np.float32],
    names: Sequence[str],
    *,
    versions: int,
    seed: int,
) -> None:
    """Writes the page, whole or not at all.

    Args:
        folder: Where to; what stands there is replaced.
        maker: Makes views.
        waveforms: Clips, float32 [clips, samples].
        names: Their ids.
        versions: Versions of each clip to show.
        seed: Seed of what is drawn: the views are those that a preparation makes.
    """
    rate = maker.features.sample_rate
    rows, lines = [], []
    with replace_folder(folder) as aside:
        (aside / "sound").mkdir()
        for number, version, spectrograms, draws, sounds in _examples(maker, waveforms, names, versions, seed):
            loudest = spectrograms[0].max()
            pictures = [_enlarged(coloured(one, loudest - _DARKEST, loudest)) for one in spectrograms]
            cells = []
            for place, picture in enumerate(pictures):
                title = html.escape(names[number]) if place == 0 else _told(draws, place - 1)
                cells.append(f"<td>{_image(aside, picture)}<small>{title}</small>")
                if place < len(sounds):
                    name = f"sound/{number:02d}_v{version}_{('clip', 'view1', 'view2')[place]}.wav"
                    soundfile.write(aside / name, np.clip(sounds[place], -1, 1), rate, subtype="PCM_16")
                    cells.append(f'<audio controls preload="none" src="{name}"></audio>')
                cells.append("</td>")
            lines.append(f"<tr><td>{version}</td>{''.join(cells)}</tr>")
            gap = np.full((pictures[0].shape[0], _GAP, 3), 255, np.uint8)
            rows.append(np.concatenate([pictures[0], gap, pictures[1], gap, pictures[2]], axis=1))
        between = np.full((_GAP, rows[0].shape[1], 3), 255, np.uint8)
        write_png(aside / "pairs.png", np.concatenate([part for row in rows for part in (row, between)][:-1]))
        table = f"<table><tr><th>version<th>clip<th>view 1<th>view 2</tr>{''.join(lines)}</table>"
        (aside / "index.html").write_text(f"{_HEAD}{table}\n", encoding="utf-8")


def _examples(
    maker: ViewMaker, waveforms: npt.NDArray[np.float32], names: Sequence[str], versions: int, seed: int
) -> Iterator[tuple[int, int, npt.NDArray[np.float32], Draws, list[npt.NDArray[np.float32]]]]:
    """Clip, version, log-mel [clip and views, frames, mels], what was drawn, and what can be listened to."""
    sound = torch.from_numpy(waveforms)
    transformed = maker.transform(sound)
    for number, name in enumerate(names):
        for version in range(versions):
            keys = view_keys(seed, torch.tensor([clip_key(name)]), torch.tensor([version]))
            draws = draw(maker.settings, keys, [version] * VIEWS)
            clip = torch.full((VIEWS,), number)
            partners = transformed.mel[(clip + 1) % len(names)]
            views = maker.views(sound if maker.mode == "exact" else transformed, clip, draws, partners)
            plain = maker.log_mel(transformed.mel[number : number + 1])
            sounds = [waveforms[number]]
            if maker.mode == "exact":
                sounds += list(maker.waveforms(sound, clip, draws).numpy())
            yield number, version, torch.cat([plain, views]).numpy(), draws, sounds


def _told(draws: Draws, view: int) -> str:
    """What was drawn for a view, with its numbers."""
    active = [name for name, is_on in zip(WAVEFORM + SPECTROGRAM, draws.active[view].tolist(), strict=True) if is_on]
    return ", ".join(f"{name.replace('_', ' ')} {_numbers(draws, view, name)}".strip() for name in active) or "nothing"


def _numbers(draws: Draws, view: int, name: str) -> str:
    return " ".join(f"{value:.3g}" for value in draws.values_of(name, view))


def _enlarged(picture: Picture) -> Picture:
    return picture.repeat(_SCALE, axis=0).repeat(_SCALE, axis=1)


def _image(folder: Path, picture: Picture) -> str:
    path = folder / "picture.png"
    write_png(path, picture)
    data = base64.b64encode(path.read_bytes()).decode()
    path.unlink()
    return f'<img src="data:image/png;base64,{data}" width="{picture.shape[1]}" height="{picture.shape[0]}">'
