"""Some clips beside their views, to see and hear what settings do before hours are spent on them.

OUTPUT-preview/
index.html        each clip with its versions, both views of each, what was drawn for them, and their sound; and some
                  views as pretraining draws them from the clip's spectrogram alone (`spectrogram_views`)
pairs.png         the spectrograms of the versions, or of those views where there are no versions

In both modes the sound of a view is made sample by sample from what was drawn; what happens to the spectrogram is seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from tymbal._version import __version__
from tymbal.features.normalisation import Normalisation
from tymbal.files import replace_folder
from tymbal.pages.page import Part, Section, bullets, details, page
from tymbal.pages.pictures import limits, sheet, spectrogram
from tymbal.pages.players import flac, player
from tymbal.randomness import fold
from tymbal.settings.augmentation import AugmentationSettings, SpectrogramViews
from tymbal.views.draw import VIEWS, clip_key, describe_changes, describe_strategies, draw, view_keys
from tymbal.views.make import ViewMaker
from tymbal.views.own_views import own_views
from tymbal.views.spectrogram_views import spectrogram_views

__all__ = ["Drawn", "Example", "Shown", "preview_page", "write_preview"]

_RANGE = 14.0  # nepers of energy below the loudest: 60 dB
_LOUDEST = 0.9
_DRAWN = 4
"""Views drawn from a spectrogram that are shown of each clip."""

_DRAWN_TEXT = (
    "As lejepa and contrastive pretraining draw them from any store, under spectrogram_views in the same file: pitch, "
    "tempo and colour change, and some of another clip is laid over. They are normalised, so that loudness is gone, "
    "and cannot be heard."
)


def write_preview(
    folder: Path,
    maker: ViewMaker,
    waveforms: npt.NDArray[np.float32],
    names: Sequence[str],
    *,
    versions: int,
    seed: int,
    lengths: Sequence[int] | None = None,
) -> None:
    """Writes the page and the picture, both or neither.

    Args:
        folder: The folder to write; an existing one is replaced.
        maker: Makes views.
        waveforms: Clips, float32 [clips, samples].
        names: Their ids.
        versions: Versions of each clip to show; 0 shows only what is drawn from spectrograms.
        seed: Seed of what is drawn: the views are those that a preparation makes, but for the clips that they may be
            mixed with.
        lengths: Samples of sound in each clip; what follows is padding. None is all.
    """
    examples = list(_examples(maker, waveforms, names, versions, seed)) if versions else []
    drawn = list(_drawn(maker, waveforms, names, seed, lengths))
    titles = [f"version {n // VIEWS}, view {n % VIEWS + 1}" for n in range(versions * VIEWS)]
    columns = ["clip", *(titles or (f"view {n + 1}" for n in range(_DRAWN)))]
    with replace_folder(folder) as aside:
        pictures = [[one.values for one in (example.clip, *example.views)] for example in examples]
        pictures = pictures or [[each.clip, *each.views] for each in drawn]
        between = [each.between for each in examples or drawn]
        (aside / "pairs.png").write_bytes(sheet(pictures, between=between, columns=columns, rows=names))
        text = preview_page(
            examples, maker.settings, mode=maker.mode, seed=seed, rate=maker.features.sample_rate, drawn=drawn
        )
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
        sounds = torch.cat([sound[place : place + 1], maker.waveforms(sound, clip, draws)]).numpy()
        # One brightness and one loudness for a clip and its views, so that louder ones look and sound louder.
        high = float(values.max())
        sounds = sounds * (_LOUDEST / max(float(np.abs(sounds).max()), 1e-6))
        changes = [(), *(describe_changes(draws, view) for view in range(len(draws)))]
        shown = [Shown(*each) for each in zip(values, sounds, changes, strict=True)]
        yield Example(name, shown[0], tuple(shown[1:]), (high - _RANGE, high))


def _drawn(
    maker: ViewMaker,
    waveforms: npt.NDArray[np.float32],
    names: Sequence[str],
    seed: int,
    lengths: Sequence[int] | None,
) -> Iterator[Drawn]:
    """Views as an objective draws them from normalised spectrograms, in the first epoch; clips are mixed with these."""
    plain = maker.log_mel(maker.transform(torch.from_numpy(waveforms)).mel)
    samples = [waveforms.shape[1]] * len(names) if lengths is None else lengths
    frames = torch.tensor([min(max(maker.features.frames_of(each), 1), plain.shape[1]) for each in samples])
    heard = torch.arange(plain.shape[1]) < frames[:, None]
    mean, std = float(plain[heard].mean()), float(plain[heard].std())
    normalisation = Normalisation(mean=mean, std=max(std, 1e-3), padding=float(plain.min()), by="clip")
    clips = normalisation(plain, frames)
    keys = fold(seed, torch.zeros(len(names), dtype=torch.int64), torch.tensor([clip_key(name) for name in names]))
    views, ends = spectrogram_views(
        clips,
        frames,
        torch.cat([fold(keys, view) for view in range(_DRAWN)]),
        maker.settings.spectrogram_views,
        padding=normalisation.normal_padding,
        scale=2 * normalisation.std,
    )
    for place, name in enumerate(names):
        own = [
            views[view * len(names) + place, : int(ends[view * len(names) + place])].numpy() for view in range(_DRAWN)
        ]
        clip = clips[place, : int(frames[place])].numpy()
        yield Drawn(name, clip, tuple(own), limits(clip))


@dataclass(frozen=True)
class Drawn:
    """A clip and views that are drawn from its spectrogram.

    Attributes:
        name: The clip's id.
        clip: Its normalised spectrogram, without padding, float32 [frames, mels].
        views: Those of the views, each of a length of its own.
        between: Values of the darkest and the brightest colour of all of them.
    """

    name: str
    clip: npt.NDArray[np.float32]
    views: tuple[npt.NDArray[np.float32], ...]
    between: tuple[float, float]


@dataclass(frozen=True)
class Shown:
    """A clip or a view.

    Attributes:
        values: Its log-mel spectrogram, float32 [frames, mels].
        waveform: Its sound, float32 [samples].
        changes: Augmentations applied to it, in words.
    """

    values: npt.NDArray[np.float32]
    waveform: npt.NDArray[np.float32]
    changes: tuple[str, ...]


@dataclass(frozen=True)
class Example:
    """A clip and the views of its versions, one version after the other.

    Attributes:
        name: The clip's id.
        clip: The clip.
        views: The views.
        between: Values of the darkest and the brightest colour of all of them.
    """

    name: str
    clip: Shown
    views: tuple[Shown, ...]
    between: tuple[float, float]


def preview_page(
    examples: Sequence[Example],
    settings: AugmentationSettings,
    *,
    mode: str,
    seed: int,
    rate: int,
    drawn: Sequence[Drawn] = (),
) -> str:
    """The page as HTML.

    Args:
        examples: The clips to show beside their versions.
        settings: The augmentations.
        mode: How the views were made, `spectral` or `exact`.
        seed: Seed of what is drawn.
        rate: Sample rate in Hz.
        drawn: The clips to show beside views of their spectrograms.
    """
    lead = (
        f"Views are made in {mode} mode, from seed {seed}: {settings.num_waveform_augs} changes of the sound and "
        f"{settings.num_spectrogram_augs} of the spectrogram are drawn for each{_differing(settings)}. A clip and its "
        "views have one brightness, from the loudest to 60 dB below, and one loudness."
    )
    sound_text = (
        "What you hear has the changes of the sound; those of the spectrogram (mixup, crop, roll, masks) can only be "
        "seen."
    )
    if mode == "spectral":
        sound_text += " This mode has no sound: what you hear was drawn alike and made sample by sample."
    parts = []
    if examples:
        about = f'<p class="soft">{sound_text}</p>{_settings(settings)}'
        sections = tuple(Section(example.name, _pair(example, rate)) for example in examples)
        parts.append(Part("To see and to hear", about, sections))
    if drawn:
        about = f'<p class="soft">{_DRAWN_TEXT}</p>{_strengths(settings.spectrogram_views)}'
        parts.append(Part("Drawn from spectrograms", about, tuple(Section(each.name, _views(each)) for each in drawn)))
    return page(
        "Clips and their views",
        lead if examples else f"Views are drawn from seed {seed}.",
        parts,
        footer=f"Tymbal {__version__}. All of it is in this one file.",
        contents=False,
    )


def _views(drawn: Drawn) -> str:
    shown = {"the clip": drawn.clip, **{f"view {n + 1}": view for n, view in enumerate(drawn.views)}}
    figures = [
        f"<figure>{spectrogram(values, alt=f'{title} of {drawn.name}', between=drawn.between)}"
        f"<figcaption>{escape(title)}</figcaption></figure>"
        for title, values in shown.items()
    ]
    return f'<div class="triptych views" style="--columns:{len(figures)}">{"".join(figures)}</div>'


def _strengths(views: SpectrogramViews) -> str:
    numbers = {name: value for name, value in asdict(views).items() if name != "functions"}
    listed = [f"{name.replace('_', ' ')}: {value:g}" for name, value in numbers.items()]
    listed += [f"{name}, of your own" for name in views.functions]
    return f'<div class="soft">{details("How strongly", bullets(listed))}</div>'


def _settings(settings: AugmentationSettings) -> str:
    lists = []
    for kind, title in (("waveform", "The sound"), ("spectrogram", "The spectrogram")):
        own = [f"{name}, of your own" for name in own_views(settings.functions).of(f"{kind}s")]
        lists.append(f"<h4>{title}</h4>{bullets([*own, *describe_strategies(settings, kind)] or ['nothing'])}")
    return f'<div class="soft">{details("What may be drawn", "".join(lists))}</div>'


def _differing(settings: AugmentationSettings) -> str:
    count = len(settings.strategies)
    return f", where the strategy of its version ({count} in turns) says nothing else" if count else ""


def _pair(example: Example, rate: int) -> str:
    def figure(shown: Shown, title: str, alt: str) -> str:
        picture = spectrogram(shown.values, alt=alt, between=example.between)
        changes = f"<figcaption>{bullets(shown.changes)}</figcaption>" if shown.changes else ""
        return f"<figure><h4>{escape(title)}</h4>{picture}{player(flac(shown.waveform, rate))}{changes}</figure>"

    titles = [f"version {number // VIEWS}, view {number % VIEWS + 1}" for number in range(len(example.views))]
    views = [
        figure(view, title, f"{title} of {example.name}") for view, title in zip(example.views, titles, strict=True)
    ]
    clip = figure(example.clip, "the clip", example.name)
    return f'<div class="pair">{clip}<div class="views">{"".join(views)}</div></div>'
