"""Some clips beside their views, to see and hear what settings do before hours are spent on them.

OUTPUT-preview/
index.html        each clip with its versions, both views of each, what was drawn for them, and their sound
pairs.png         the spectrograms alone

In both modes the sound of a view is made sample by sample from what was drawn; what happens to the spectrogram is seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from tymbal.files import replace_folder
from tymbal.views.draw import VIEWS, clip_key, draw, view_keys
from tymbal.views.make import ViewMaker
from tymbal.views.picture import coloured, sheet
from tymbal.views.preview_page import Example, Shown, page
from tymbal.views.told import told

__all__ = ["write_preview"]

_RANGE = 14.0  # nepers of energy below the loudest: 60 dB
_LOUDEST = 0.9


def write_preview(
    folder: Path,
    maker: ViewMaker,
    waveforms: npt.NDArray[np.float32],
    names: Sequence[str],
    *,
    versions: int,
    seed: int,
) -> None:
    """Writes the page and the picture, both or neither.

    Args:
        folder: Where to; what stands there is replaced.
        maker: Makes views.
        waveforms: Clips, float32 [clips, samples].
        names: Their ids.
        versions: Versions of each clip to show.
        seed: Seed of what is drawn: the views are those that a preparation makes, but for the clips that they may be
            mixed with.
    """
    examples = list(_examples(maker, waveforms, names, versions, seed))
    columns = ["clip", *(f"version {n // VIEWS}, view {n % VIEWS + 1}" for n in range(versions * VIEWS))]
    with replace_folder(folder) as aside:
        pictures = [[one.picture for one in (example.clip, *example.views)] for example in examples]
        (aside / "pairs.png").write_bytes(sheet(pictures, columns=columns, rows=names))
        text = page(examples, maker.settings, mode=maker.mode, seed=seed, rate=maker.features.sample_rate)
        (aside / "index.html").write_text(text, encoding="utf-8")


def _examples(
    maker: ViewMaker, waveforms: npt.NDArray[np.float32], names: Sequence[str], versions: int, seed: int
) -> Iterator[Example]:
    sound = torch.from_numpy(waveforms)
    transformed = maker.transform(sound)
    numbers = torch.arange(versions)
    for place, name in enumerate(names):
        keys = view_keys(seed, torch.full((versions,), clip_key(name)), numbers)
        draws = draw(maker.settings, keys, numbers.repeat_interleave(VIEWS).tolist())
        clip = torch.full((versions * VIEWS,), place)
        partners = transformed.mel[(clip + 1) % len(names)]
        views = maker.views(sound if maker.mode == "exact" else transformed, clip, draws, partners)
        plain = maker.log_mel(transformed.mel[place : place + 1])
        values = torch.cat([plain, views]).numpy()
        heard = torch.cat([sound[place : place + 1], maker.waveforms(sound, clip, draws)]).numpy()
        # One brightness and one loudness for a clip and its views, so that what is louder looks and sounds louder.
        high = float(values.max())
        heard = heard * (_LOUDEST / max(float(np.abs(heard).max()), 1e-6))
        words = [(), *(told(draws, view) for view in range(len(draws)))]
        shown = [
            Shown(coloured(one, high - _RANGE, high), wave, said)
            for one, wave, said in zip(values, heard, words, strict=True)
        ]
        yield Example(name, shown[0], tuple(shown[1:]))
