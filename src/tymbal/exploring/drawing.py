"""The parts of the page as HTML: the window, its map, the whole recording, scores, and neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import count
from pathlib import PurePath

import numpy as np
import torch
from numpy.typing import NDArray

from tymbal.audio.decode import read
from tymbal.errors import TymbalError
from tymbal.exploring.library import Library, Neighbour
from tymbal.exploring.model_view import Look, ModelView, Survey, likeness
from tymbal.features.bank import filter_bank
from tymbal.pages.axes import Choice, Mark, hertz_marks, plot, time_marks
from tymbal.pages.charts import bar, legend
from tymbal.pages.page import note, words
from tymbal.pages.pictures import image, limits, overlay, spectrogram
from tymbal.pages.players import Sounds

__all__ = ["MAPS", "cards", "recording", "scores", "token_map", "views", "window"]

MAPS = {
    "like": "Like the chosen patch",
    "last": "Attention, last block",
    "rollout": "Attention, all blocks",
}
"""What a map can show, and what that is called."""

_LINES = 5
_BARS = 5
_HEARD = 12.0  # seconds of a neighbour
_ROOM = 12_000_000  # bytes of all neighbours' sounds


def window(look: Look, view: ModelView, *, patch: tuple[int, int]) -> str:
    """The spectrogram of a window, in which a patch can be chosen."""
    alt = f"Spectrogram from {look.start:.2f} to {look.end:.2f} s"
    picture = spectrogram(_under_patches(look), alt=alt, between=limits(look.values))
    rows, columns, _ = look.tokens.shape
    return plot(
        "window",
        f"Spectrogram <small>{look.start:.2f} to {look.end:.2f} s</small>",
        picture,
        y=hertz_marks(view.features, look.reach[0]),
        x=_times(look, view),
        said="Spectrogram of the window: click, or use the arrow keys, to choose a patch",
        choice=Choice(rows, columns, *patch),
    )


def token_map(look: Look, view: ModelView, *, kind: str, patch: tuple[int, int]) -> str:
    """Likeness of the tokens or attention of the model, laid over the window's spectrogram in grey.

    Args:
        look: The window.
        view: The model.
        kind: One of `MAPS`.
        patch: Row and column of the chosen patch.
    """
    if kind != "like" and kind not in look.attention:
        return note("Attention is not computed for windows with so many patches: choose a shorter --window.")
    values = likeness(look.tokens, *patch) if kind == "like" else look.attention[kind]
    low, high = float(values.min()), 1.0 if kind == "like" else float(values.max())
    stacked = spectrogram(_under_patches(look), alt="", between=limits(look.values), grey=True)
    over = overlay(values[::-1], between=(low, max(high, low + 1e-6)))
    rows, columns = values.shape
    alt = f"{MAPS[kind]}: from {low:.3g} to {high:.3g} in {rows} x {columns} patches"
    stacked += image(over, alt=alt, width=columns, height=rows, kind="over")
    if kind == "like":
        ends = f"{low:.2f}", f"{high:.2f}"
        meaning = "Cosine between the token of the chosen patch and every other."
    else:
        ends = f"{low:.3%}", f"{high:.3%}"
        meaning = (
            f"Shares of the attention, read from {'the class tokens' if view.pooling == 'cls' else 'all patches'}; "
        )
        meaning += (
            f"an even one is {1 / values.size:.3%}. {max(0.0, 1 - values.sum()):.0%} is for class tokens and padding."
        )
    scale = f'<p class="scale"><span>{ends[0]}</span><i></i><span>{ends[1]}</span></p>'
    return plot(
        "map",
        escape(MAPS[kind]),
        stacked,
        y=hertz_marks(view.features, look.reach[0]),
        x=_times(look, view),
        said=f"{alt}. Click, or use the arrow keys, to choose a patch",
        choice=Choice(rows, columns, *patch),
        below=f'<div class="below">{scale}<p>{escape(meaning)}</p></div>',
    )


def _under_patches(look: Look) -> NDArray[np.float32]:
    """The spectrogram as far as patches cover it, [frames, mels]; behind the end of the sound at its quietest."""
    mels, frames = look.reach
    values = look.values[:frames, :mels]
    return np.pad(values, ((0, frames - len(values)), (0, 0)), constant_values=float(values.min()))


def _times(look: Look, view: ModelView) -> list[Mark]:
    return time_marks(look.start, look.start + look.reach[1] * view.features.shift_samples / view.cut.rate)


def scores(look: Look, view: ModelView) -> str:
    """The best labels of a window; empty of an encoder."""
    if look.scores is None:
        return ""
    best = np.argsort(-look.scores, kind="stable")[:_BARS]
    rows = "".join(
        f"<li><span>{words(view.labels[label])}</span><b>{look.scores[label]:.0%}</b>"
        f"{bar([('b0', float(look.scores[label]))])}</li>"
        for label in best
    )
    return f'<h3>Scores <small>of this window</small></h3><ol class="bars">{rows}</ol>'


def recording(survey: Survey, look: Look, view: ModelView) -> str:
    """The whole recording, in which a window can be chosen, and the scores along it; empty where it is one window.

    Args:
        survey: The recording.
        look: The chosen window.
        view: The model.
    """
    if survey.windows < 2:
        return ""
    left, right = (min(1.0, at / survey.until) for at in (look.start, look.end))
    number = min(round(look.start / view.hop), survey.windows - 1)
    choice = Choice(1, survey.windows, 0, number, left, right - left)
    picture = spectrogram(survey.spectrum, alt=f"Spectrogram of {survey.until:.1f} s", widest=len(survey.spectrum))
    times = time_marks(0, survey.until)
    label = "The whole recording: click, or use the arrow keys, to choose a window"
    title = f"Recording <small>{survey.until:,.1f} s, {survey.windows:,} windows</small>"
    cut_off = survey.seconds > survey.until + view.window
    partly = f"The first {survey.until / 60:.3g} of {survey.seconds / 60:.3g} minutes are shown (--minutes)."
    drawn = plot(
        "recording",
        title,
        picture,
        y=hertz_marks(view.features, view.features.mel_bins),
        x=times,
        said=label,
        choice=choice,
        tall=False,
        below=f'<div class="below">{note(partly, warning=True)}</div>' if cut_off else "",
    )
    if survey.scores is not None:
        drawn += _lines(survey, survey.scores, view.labels, choice)
    return drawn


def _lines(survey: Survey, values: NDArray[np.float32], labels: Sequence[str], choice: Choice) -> str:
    """Scores along a recording, of the labels that reach highest."""
    strongest = np.argsort(-values.max(axis=0), kind="stable")[:_LINES]
    lines = []
    for number, label in enumerate(strongest):
        places = zip(1000 * survey.times / survey.until, 100 * (1 - values[:, label]), strict=True)
        path = " ".join(f"{x:.1f},{y:.2f}" for x, y in places)
        lines.append(f'<polyline class="line s{number}" points="{path}"/>')
    grid = "".join(f'<path class="axis" d="M0,{height}H1000"/>' for height in (0, 50, 100))
    drawing = (
        '<svg viewBox="0 0 1000 100" preserveAspectRatio="none" aria-hidden="true">'
        f"{grid}{''.join(reversed(lines))}</svg>"
    )
    strongest_said = ", ".join(f"{labels[label]} at most {values[:, label].max():.0%}" for label in strongest)
    more = len(labels) - len(strongest)
    rest = f'<span class="soft">Not drawn, as they stay lower: {more:,} more</span>' if more else ""
    return plot(
        "scores",
        "Scores over time",
        drawing,
        y=[(0.0, "0"), (0.5, "0.5"), (1.0, "1")],
        x=time_marks(0, survey.until),
        said=f"Scores over time: {strongest_said}. Click, or use the arrow keys, to choose a window",
        choice=choice,
        below=f'<div class="below">{legend([labels[label] for label in strongest])}{rest}</div>',
        tall=False,
    )


def views(look: Look) -> str:
    """Views of the window as the model's pretraining draws them, and what it is shown of each; empty without any."""
    if not look.views:
        return ""
    between = limits(np.concatenate([view.values[0, : int(view.frames[0])] for view in look.views.values()]))
    figures = []
    for name, view in look.views.items():
        length = int(view.frames[0])
        values, hidden = view.values[0, :length], view.hidden[0, :length]
        for cover, caption in ((None, name), (hidden, f"{1 - hidden.mean():.0%} of it are shown")):
            picture = spectrogram(values, alt=f"{name}: {caption}", between=between, hidden=cover)
            figures.append(f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>")
    meaning = "Whole, and what the encoder is shown of them: what it makes of all of them shall be alike. In training "
    meaning += "another clip is laid over them, too."
    title = "<h2>Views <small>of this window, as the pretraining draws them</small></h2>"
    return f'{title}<p class="soft">{escape(meaning)}</p><div class="drawn">{"".join(figures)}</div>'


def cards(neighbours: Sequence[Neighbour], library: Library, view: ModelView) -> str:
    """Neighbours with their spectrogram, their sound where it can be read, and how alike they are."""
    sounds = Sounds(most=len(neighbours), seconds=_HEARD, beside=library.name, numbers=count(1), room=_ROOM)
    drawn = "".join(_card(each, library, view, sounds) for each in neighbours)
    return f'<div class="cards">{drawn}</div><p class="soft">{escape(sounds.remark())}</p>'


def _card(neighbour: Neighbour, library: Library, view: ModelView, sounds: Sounds) -> str:
    name = "/".join(PurePath(neighbour.file.replace("\\", "/")).parts[-2:])
    where = f"{name}, {neighbour.start:.2f} to {neighbour.end:.2f} s"
    player = sounds.of(neighbour.file, neighbour.start, neighbour.end)
    exists = sounds.locate(neighbour.file).is_file()
    reason = "the sound cannot be read" if exists else "the file is not there any more"
    picture = _picture(neighbour, library, view, sounds, alt=f"Spectrogram of {where}")
    silent = "" if player else f'<p class="note">No sound: {reason}.</p>'
    empty = "" if picture else '<p class="note">No spectrogram either.</p>'
    path = f'<span class="path">{words(where)}</span>'
    named = '<span class="soft">no label</span>'
    if neighbour.label:
        named = f"<strong>{words(neighbour.label.replace(';', ', '))}</strong>"
    alike = f'<b title="cosine similarity">{neighbour.similarity:.3f}</b>'
    known = neighbour.label is not None
    caption = (
        f'<figcaption><div class="head">{named if known else path}{alike}</div>{path if known else ""}</figcaption>'
    )
    return f'<figure class="card">{picture}{player}{silent}{empty}{caption}</figure>'


def _picture(neighbour: Neighbour, library: Library, view: ModelView, sounds: Sounds, *, alt: str) -> str:
    """Its spectrogram, from the store or from its sound; empty where neither can be read."""
    store = library.store
    try:
        if store is not None:
            values = store.gather(np.array([neighbour.row]))[0][: max(int(store.real_frames[neighbour.row]), 1)]
            return spectrogram(values, alt=alt)
        wave, _ = read(
            sounds.locate(neighbour.file), sample_rate=view.cut.rate, start=neighbour.start, end=neighbour.end
        )
        return spectrogram(filter_bank(view.features)(torch.from_numpy(wave)).numpy(), alt=alt)
    except TymbalError:
        return ""
