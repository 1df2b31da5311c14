"""Pages of the site that are made from the code: the first page, a page a verb, and the Python API.

MkDocs calls this as a hook (`hooks` in mkdocs.yml). README is the first page, so that it is written once; settings come
from their dataclasses, as in `tymbal VERB --help-all`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import tymbal
from tymbal.cli import VERBS
from tymbal.cli_help import Entry, settings_tables

ROOT = Path(__file__).parents[1]
LANGUAGES = {"README.md": "index.md", "README.zh-TW.md": "zh-TW/index.md"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fills the navigation's place for the reference."""
    verbs = [{f"tymbal {name}": f"reference/{name}.md"} for name in VERBS]
    pages: list[Any] = [{"Verbs and settings": verbs}, {"Python": "reference/python.md"}]
    pages.append({"Files and exit statuses": "reference/formats.md"})
    for section in config.nav or []:
        if "Reference" in section:
            section["Reference"] = pages
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made."""
    made = {place: first_page((ROOT / name).read_text("utf-8"), place) for name, place in LANGUAGES.items()}
    made |= {f"reference/{name}.md": verb_page(name) for name in VERBS}
    made["reference/python.md"] = python_page()
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:  # noqa: ARG001
    """Takes the search's helper for pages that are opened as files from the site instead of the network."""
    return _offline(output, "../" * page.url.count("/"))


def on_post_template(output: str, template_name: str, config: MkDocsConfig) -> str:  # noqa: ARG001
    """The same on the page for addresses that are not there."""
    return _offline(output, "") if template_name.endswith(".html") else output


def _offline(page: str, up: str) -> str:
    return page.replace("https://unpkg.com/iframe-worker/shim", f"{up}assets/iframe-worker.js")


def first_page(text: str, place: str) -> str:
    """README with links that fit its place in the site; what lies outside of docs is named without a link."""
    up = "../" * place.count("/")

    def moved(match: re.Match[str]) -> str:
        label, target = match[1], match[2]
        if target.startswith(("https:", "#")):
            return match[0]
        if target in LANGUAGES:
            return f"[{label}]({up}{LANGUAGES[target]})"
        return f"[{label}]({up}{target.removeprefix('docs/')})" if target.startswith("docs/") else label

    return re.sub(r"\[([^\]]*)\]\(([^)]+)\)", moved, text)


def verb_page(name: str) -> str:
    """What a verb does, its arguments, and all of its settings with defaults and examples."""
    verb = VERBS[name]
    lines = [f"# tymbal {name}", "", verb.text, ""]
    if verb.arguments:
        lines += ["## Arguments", "", "| argument | |", "|---|---|"]
        for each in verb.arguments:
            shown = each.shown if each.short is None else f"{each.short}, {each.shown}"
            default = "" if each.default is None else f" Default: `{each.default}`."
            lines.append(f"| `{shown}` | {_cell(each.text)}{default}{' Required.' if each.required else ''} |")
    for title, entries in settings_tables(name).items():
        lines += ["", f"## {title}", "", "| setting | | default | example |", "|---|---|---|---|", *map(_row, entries)]
    return "\n".join([*lines, ""])


def python_page() -> str:
    """The public names, by what they are."""
    kinds: dict[str, list[str]] = {"Verbs": [], "Data and models": [], "Errors": []}
    for name in sorted(tymbal.__all__):
        if name.endswith("Error"):
            kinds["Errors"].append(name)
        elif name != "__version__":
            kinds["Verbs" if name in VERBS else "Data and models"].append(name)
    intro = "Every verb is a function of the same name: settings are keyword arguments, with the names of the flags."
    return "\n\n".join(["# Python", intro, *_sections(kinds)])


def _sections(kinds: dict[str, list[str]]) -> Iterator[str]:
    for title, names in kinds.items():
        yield f"## {title}"
        yield from (f"::: {_origin(name)}" for name in names)


def _origin(name: str) -> str:
    found = getattr(tymbal, name)
    return f"{found.__module__}.{found.__name__}"


def _row(entry: Entry) -> str:
    notes: Sequence[str] = [note for note in entry.notes if not note.startswith("default: ")]
    default = next((note.removeprefix("default: ") for note in entry.notes if note.startswith("default: ")), "")
    text = " ".join([_cell(entry.text), *(f"<br>*{_cell(note)}*" for note in notes)])
    example = f"`{_cell(entry.example)}`" if entry.example else ""
    return f"| `{entry.name}` | {text} | {_cell(default)} | {example} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;") if "`" not in text else text.replace("|", "\\|")
