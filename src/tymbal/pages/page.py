"""A page that holds all it needs: style, script, pictures and sound are in the file, and nothing is fetched.

Parts have sections; both have a place in the table of contents. What cannot be shown is not left out silently: a
section that raises a `TymbalError` shows its title and the reason. The colours of all pages are defined here;
`parts.css` styles what reports, previews and the explorer share, `page.css` what pages of one file add.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources

from tymbal.errors import TymbalError

__all__ = [
    "NotShownError",
    "Part",
    "Section",
    "bullets",
    "card",
    "cards",
    "details",
    "document",
    "embedded_style",
    "note",
    "page",
    "section",
    "style",
    "table",
    "tiles",
    "words",
]


class NotShownError(TymbalError):
    """Something that belongs on the page cannot be shown; the reason is for the reader."""


@dataclass(frozen=True)
class Section:
    """A piece of a part.

    Attributes:
        title: Its heading, as plain text.
        body: Its content, as HTML.
    """

    title: str
    body: str


@dataclass(frozen=True)
class Part:
    """The part of a page about one source.

    Attributes:
        title: Its heading, as plain text.
        lead: The HTML below the title.
        sections: Its sections.
    """

    title: str
    lead: str
    sections: tuple[Section, ...]


def section(title: str, make: Callable[[], str]) -> Section:
    """A section, or in its place the reason why it cannot be shown."""
    try:
        return Section(title, make())
    except TymbalError as error:
        where = "" if error.path is None else f" ({error.path})"
        advice = f" {error.advice}" if error.advice else ""
        return Section(title, note(f"Not shown: {error.what}{where}.{advice}"))


def page(title: str, lead: str, parts: Sequence[Part], *, footer: str, contents: bool = True) -> str:
    """The whole page.

    Args:
        title: Its title, as plain text.
        lead: The plain text below the title.
        parts: Its parts.
        footer: Its last line, as plain text.
        contents: Whether it has a table of contents.
    """
    names = _Names()
    entries: list[str] = []
    bodies: list[str] = []
    for part in parts:
        name = names.of(part.title)
        inner_entries: list[str] = []
        body = [f'<section id="{name}" aria-labelledby="{name}-title">']
        body.append(f'<h2 id="{name}-title">{escape(part.title)}</h2>{part.lead}')
        for each in part.sections:
            inner = names.of(f"{part.title} {each.title}")
            body.append(f'<section id="{inner}"><h3>{escape(each.title)}</h3>{each.body}</section>')
            inner_entries.append(f'<li><a href="#{inner}">{escape(each.title)}</a></li>')
        bodies.append("".join([*body, "</section>"]))
        entries.append(f'<li><a href="#{name}">{escape(part.title)}</a><ul>{"".join(inner_entries)}</ul></li>')
    main = f"<main>{''.join(bodies)}</main>"
    if contents:
        navigation = f'<nav aria-label="Contents"><ul>{"".join(entries)}</ul></nav>'
        main = f'<div class="frame">{navigation}\n{main}</div>'
    content = "".join(
        [
            f'<header><h1>{escape(title)}</h1><p class="soft">{escape(lead)}</p></header>\n',
            f"{main}\n<footer>{escape(footer)}</footer>\n",
            f"<script>\n{_file('page.js')}</script>",
        ]
    )
    return document(title, head=f"<style>\n{style(_file('page.css'))}</style>", body=content)


def document(title: str, *, head: str, body: str) -> str:
    """The frame of a page: what all of them say in their head, and a body of class `tymbal`.

    Args:
        title: Its title, as plain text.
        head: Where its style and scripts are, as HTML.
        body: Its content, as HTML.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n{head}\n</head>\n'
        f'<body class="tymbal">\n{body}\n</body>\n</html>\n'
    )


def tiles(values: Mapping[str, str]) -> str:
    """Figures that stand out, by name, as plain text."""
    inner = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in values.items())
    return f'<dl class="tiles">{inner}</dl>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[int] = ()) -> str:
    """A table of plain text.

    Args:
        head: Titles of the columns.
        rows: Its cells.
        numbers: Columns that hold numbers.
    """
    right = set(numbers)

    def line(cells: Sequence[str], tag: str) -> str:
        inside = [
            f"<{tag}{' class=n' if place in right else ''}>{words(cell)}</{tag}>" for place, cell in enumerate(cells)
        ]
        return f"<tr>{''.join(inside)}</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table><thead>{line(head, "th")}</thead><tbody>{body}</tbody></table></div>'


def note(text: str, *, warning: bool = False) -> str:
    """A remark in plain text; the lines of a longer one below each other."""
    lines = "<br>".join(escape(line.strip()) for line in text.splitlines())
    return f'<p class="warn" role="alert">{lines}</p>' if warning else f'<p class="note">{lines}</p>'


def bullets(texts: Iterable[str]) -> str:
    """A list of plain texts."""
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def details(title: str, body: str) -> str:
    """HTML that the reader can unfold."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def cards(inner: Iterable[str]) -> str:
    """Cards side by side, as many as fit."""
    return f'<div class="cards">{"".join(inner)}</div>'


def card(picture: str, player: str, title: str, *, text: str = "", path: str = "") -> str:
    """A picture with its sound above its name.

    Args:
        picture: The picture, as HTML.
        player: The player, as HTML; empty for none.
        title: Its name, as plain text.
        text: Facts on it, as plain text, a line each.
        path: Its origin, as plain text.
    """
    lines = "".join(f"<div>{words(line)}</div>" for line in text.splitlines())
    origin = f'<span class="path">{words(path)}</span>' if path else ""
    caption = f"<figcaption><strong>{words(title)}</strong>{lines}{origin}</figcaption>"
    return f'<figure class="card">{picture}{player}{caption}</figure>'


def words(text: str) -> str:
    """Plain text as HTML whose long names may break behind an underscore, a stroke or a dot."""
    return re.sub(r"([_/]|\.(?=[a-z]))(?=\w)", r"\1<wbr>", escape(text))


class _Names:
    """Names for places of the page, each used once."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def of(self, title: str) -> str:
        plain = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "part"
        name, number = plain, 1
        while name in self._used:
            number += 1
            name = f"{plain}-{number}"
        self._used.add(name)
        return name


_LIGHT = {
    "paper": "#fdfcfa", "ink": "#1d2327", "soft": "#566069", "line": "#d9d6cf", "panel": "#f4f2ec",
    "accent": "#1f6a73", "bad": "#a83a2c", "cell": "31, 106, 115", "wrong": "168, 58, 44",
    "c0": "#1f6a73", "c1": "#c2571a", "c2": "#5b57a6", "c3": "#a3357c", "c4": "#4a7d1f", "c5": "#9c7400",
    "c6": "#2f74c0", "c7": "#b03a3a", "c8": "#6d5a49", "c9": "#37806a", "none": "#9aa2a8",
}  # fmt: skip
_DARK = {
    "paper": "#14181b", "ink": "#e8e6e1", "soft": "#a3adb5", "line": "#343b41", "panel": "#1c2226",
    "accent": "#6cc0ca", "bad": "#ef8b7c", "cell": "70, 160, 172", "wrong": "214, 98, 82",
    "c0": "#5fbac5", "c1": "#f0934f", "c2": "#a09cf0", "c3": "#e27fc0", "c4": "#97c96a", "c5": "#dcb547",
    "c6": "#79b2f2", "c7": "#ee7f7f", "c8": "#bda48c", "c9": "#7ccfb2", "none": "#6d757b",
}  # fmt: skip
_PRINTED = _LIGHT | {
    "paper": "#fff", "ink": "#000", "soft": "#444", "line": "#bbb", "panel": "#f3f3f3", "accent": "#0d4d55",
    "bad": "#8f2418",
}  # fmt: skip


def embedded_style(light: str, dark: str) -> str:
    """The style of what stands in an element of class `tymbal` on a page that has its own frame.

    Args:
        light: Selector of the element that holds the page.
        dark: The same where the page is dark.
    """
    return f"{_colours(light, _LIGHT)}{_colours(dark, _DARK)}{_file('parts.css')}"


def style(more: str) -> str:
    """The style of a page in a frame of its own, in the light, in the dark and on paper, and what the page adds."""
    dark, printed = _colours(":root", _DARK), _colours(":root", _PRINTED, scheme="light")
    media = f"@media (prefers-color-scheme: dark) {{ {dark} }}\n@media print {{ {printed} }}\n"
    return f"{_colours(':root', _LIGHT, scheme='light dark')}{media}{_file('parts.css')}{more}"


def _colours(selector: str, colours: Mapping[str, str], *, scheme: str = "") -> str:
    known = f"color-scheme: {scheme}; " if scheme else ""
    return f"{selector} {{ {known}{' '.join(f'--{name}: {value};' for name, value in colours.items())} }}\n"


def _file(name: str) -> str:
    return resources.files("tymbal.pages").joinpath(name).read_text(encoding="utf-8")
