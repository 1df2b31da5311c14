"""A page that holds all it needs: style, script, pictures and sound are in the file, and nothing is fetched.

Parts have sections; both have a place in the table of contents. What cannot be shown is not left out silently: a
section that raises a `TymbalError` stands there with its title and the reason.
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
    "cards",
    "details",
    "note",
    "page",
    "section",
    "table",
    "tiles",
    "words",
]


class NotShownError(TymbalError):
    """Something belongs on the page and cannot be there; the reason is for the reader."""


@dataclass(frozen=True)
class Section:
    """A piece of a part.

    Attributes:
        title: Its heading, as plain text.
        body: What it shows, as HTML.
    """

    title: str
    body: str


@dataclass(frozen=True)
class Part:
    """What one source has to show.

    Attributes:
        title: Its heading, as plain text.
        lead: What stands below it, as HTML.
        sections: Its sections.
    """

    title: str
    lead: str
    sections: tuple[Section, ...]


def section(title: str, make: Callable[[], str]) -> Section:
    """A section, or in its place the reason why there is none."""
    try:
        return Section(title, make())
    except TymbalError as error:
        where = "" if error.path is None else f" ({error.path})"
        advice = f" {error.advice}" if error.advice else ""
        return Section(title, note(f"Not shown: {error.what}{where}.{advice}"))


def page(title: str, lead: str, parts: Sequence[Part], *, footer: str) -> str:
    """The whole page.

    Args:
        title: Its title, as plain text.
        lead: What stands below the title, as plain text.
        parts: Its parts.
        footer: Its last line, as plain text.
    """
    names = _Names()
    contents: list[str] = []
    bodies: list[str] = []
    for part in parts:
        name = names.of(part.title)
        entries: list[str] = []
        body = [f'<section id="{name}" aria-labelledby="{name}-title">']
        body.append(f'<h2 id="{name}-title">{escape(part.title)}</h2>{part.lead}')
        for each in part.sections:
            inner = names.of(f"{part.title} {each.title}")
            body.append(f'<section id="{inner}"><h3>{escape(each.title)}</h3>{each.body}</section>')
            entries.append(f'<li><a href="#{inner}">{escape(each.title)}</a></li>')
        bodies.append("".join([*body, "</section>"]))
        contents.append(f'<li><a href="#{name}">{escape(part.title)}</a><ul>{"".join(entries)}</ul></li>')
    return "".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
            '<link rel="icon" href="data:,">\n',
            f"<title>{escape(title)}</title>\n<style>\n{_file('page.css')}</style>\n</head>\n<body>\n",
            f'<header><h1>{escape(title)}</h1><p class="soft">{escape(lead)}</p></header>\n',
            f'<div class="frame"><nav aria-label="Contents"><ul>{"".join(contents)}</ul></nav>\n',
            f"<main>{''.join(bodies)}</main></div>\n<footer>{escape(footer)}</footer>\n",
            f"<script>\n{_file('page.js')}</script>\n</body>\n</html>\n",
        ]
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
    """A remark in plain text."""
    return f'<p class="{"warn" if warning else "note"}">{escape(text)}</p>'


def bullets(texts: Iterable[str]) -> str:
    """A list of plain texts."""
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def details(title: str, body: str) -> str:
    """HTML that is unfolded where it is wanted."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def cards(inner: Iterable[str]) -> str:
    """Cards side by side, as many as there is room for."""
    return f'<div class="cards">{"".join(inner)}</div>'


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


def _file(name: str) -> str:
    return resources.files("tymbal.pages").joinpath(name).read_text(encoding="utf-8")
