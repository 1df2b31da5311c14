"""Some clips beside their views, to see and hear what settings do before hours are spent on them."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import torch

from tymbal.files import replace_folder
from tymbal.pages.sheets import Picture, coloured, png, sheet
from tymbal.settings.augmentation import AugmentationSettings
from tymbal.views.draw import VIEWS, clip_key, describe_strategies, draw, told, view_keys
from tymbal.views.make import ViewMaker

__all__ = ["Example", "Shown", "page", "write_preview"]

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


_STYLE = """
:root{color-scheme:light dark;--paper:#fdfcfa;--ink:#1d2327;--soft:#566069;--line:#d9d6cf}
@media(prefers-color-scheme:dark){:root{--paper:#14181b;--ink:#e8e6e1;--soft:#a3adb5;--line:#343b41}}
*{box-sizing:border-box}
body{font:1rem/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:70rem;margin:0 auto;
padding:1.5rem}
h1{font-size:1.7rem;margin:0}h2{font-size:1.05rem;overflow-wrap:anywhere;margin:0 0 .8rem}
details{margin-bottom:1rem}
p{max-width:46rem}.soft,figcaption,h3{color:var(--soft);font-size:.88rem}h3{font-weight:400;margin:0 0 .3rem}
section{display:grid;grid-template-columns:minmax(0,1fr) minmax(0,2fr);gap:0 1.5rem;padding:1.5rem 0;
border-top:1px solid var(--line)}
h2{grid-column:1/-1}.clip{position:sticky;top:1rem;align-self:start}
.views{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:1.3rem 1.5rem}
figure{margin:0;min-width:0}img{display:block;width:100%;aspect-ratio:4/3;image-rendering:pixelated;border-radius:.3rem}
audio{display:block;width:100%;height:2.3rem;margin-top:.4rem}
figcaption ul{margin:.3rem 0 0;padding-left:1.1rem}
@media(max-width:44rem){section{grid-template-columns:1fr;gap:1rem}.clip{position:static}}
@media print{audio{display:none}figure,h2{break-inside:avoid}.clip{position:static}}
"""
_SCRIPT = """
document.addEventListener("play",(event)=>{
for(const other of document.querySelectorAll("audio"))if(other!==event.target)other.pause()},true)
"""


@dataclass(frozen=True)
class Shown:
    """A clip or a view.

    Attributes:
        picture: Its spectrogram, [mels, frames, 3].
        waveform: Its sound, float32 [samples].
        words: What was done to it.
    """

    picture: Picture
    waveform: npt.NDArray[np.float32]
    words: tuple[str, ...]


@dataclass(frozen=True)
class Example:
    """A clip and the views of its versions, one version after the other."""

    name: str
    clip: Shown
    views: tuple[Shown, ...]


def page(examples: Sequence[Example], settings: AugmentationSettings, *, mode: str, seed: int, rate: int) -> str:
    """The page as HTML.

    Args:
        examples: What it shows.
        settings: What may be drawn.
        mode: How the views were made, `spectral` or `exact`.
        seed: Seed of what is drawn.
        rate: Sample rate in Hz.
    """
    lead = (
        f"Views are made in {mode} mode, from seed {seed}: {settings.num_waveform_augs} changes of the sound and "
        f"{settings.num_spectrogram_augs} of the spectrogram are drawn for each{_differing(settings)}. A clip and its "
        "views have one brightness, from the loudest to 60 dB below, and one loudness."
    )
    heard = (
        "What you hear has the changes of the sound; those of the spectrogram (mixup, crop, roll, masks) can only be "
        "seen."
    )
    if mode == "spectral":
        heard += " This mode has no sound: what you hear was drawn alike and made sample by sample."
    return "".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n',
            f"<title>Views</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>Clips and their views</h1>\n",
            f'<p>{lead}</p>\n<p class="soft">{heard}</p>\n{_settings(settings)}',
            *(_section(example, rate) for example in examples),
            f"<script>{_SCRIPT}</script>\n</body>\n</html>\n",
        ]
    )


def _settings(settings: AugmentationSettings) -> str:
    lists = []
    for kind, title in (("waveform", "The sound"), ("spectrogram", "The spectrogram")):
        lines = "".join(f"<li>{escape(line)}</li>" for line in describe_strategies(settings, kind))
        lists.append(f"<h3>{title}</h3><ul>{lines or '<li>nothing</li>'}</ul>")
    return f'<details class="soft"><summary>What may be drawn</summary>{"".join(lists)}</details>\n'


def _differing(settings: AugmentationSettings) -> str:
    count = len(settings.strategies)
    return f", where the strategy of its version ({count} in turns) says nothing else" if count else ""


def _section(example: Example, rate: int) -> str:
    name = re.sub(r"([_/#])(?=\w)", r"\1<wbr>", escape(example.name))
    views = []
    for number, view in enumerate(example.views):
        title = f"version {number // VIEWS}, view {number % VIEWS + 1}"
        views.append(_figure(view, title, f"{title} of {example.name}", rate))
    clip = _figure(example.clip, "the clip", example.name, rate)
    return (
        f'<section><h2>{name}</h2><div class="clip">{clip}</div><div class="views">{"".join(views)}</div></section>\n'
    )


def _figure(shown: Shown, title: str, alt: str, rate: int) -> str:
    file = io.BytesIO()
    soundfile.write(file, shown.waveform, rate, format="FLAC", subtype="PCM_16")
    picture, sound = (base64.b64encode(content).decode() for content in (png(shown.picture), file.getvalue()))
    words = "".join(f"<li>{escape(one)}</li>" for one in shown.words)
    return (
        f'<figure><h3>{title}</h3><img alt="{escape(alt)}" src="data:image/png;base64,{picture}">'
        f'<audio controls preload="metadata" src="data:audio/flac;base64,{sound}"></audio>'
        f"<figcaption>{f'<ul>{words}</ul>' if words else ''}</figcaption></figure>"
    )
