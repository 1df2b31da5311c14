"""README and docs hold what they promise: links lead somewhere, flags exist, languages are in step, the site builds."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import tymbal
from tymbal.cli import VERBS
from tymbal.cli_help import settings_tables
from tymbal.cli_words import parse, setting_flags
from tymbal.compat.flags import help_text
from tymbal.config import settings_of
from tymbal.objectives import registry

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")])
TRANSLATED = [("README.md", "README.zh-TW.md"), ("docs/getting-started.md", "docs/zh-TW/getting-started.md")]
MADE_BY_SITE = {"index.md", *(f"reference/{name}.md" for name in [*VERBS, "python"])}
OF_OTHER_PROGRAMS = {
    f"--{name}"
    for name in re.findall(
        r"\S+",
        """build-arg gpus rm shm-size partial info check quiet no-deps jobs cores account show interface before time
        signal gres nproc-per-node ntasks-per-node index-url rows data output minutes sets seeds labels repo-type
        local-dir include neighbors project""",
    )
}


def prose(page: Path) -> str:
    return page.read_text("utf-8")


def headings(text: str) -> list[str]:
    outside = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S)
    return re.findall(r"^(#+) ", outside, flags=re.M)


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", prose(page), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES])
def test_links__lead_to_what_is_there(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`]*`", "", prose(page), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        if page.is_relative_to(ROOT / "docs") and str(place.relative_to(ROOT / "docs")) in MADE_BY_SITE:
            continue
        assert place.exists(), target
        assert not anchor or anchor in anchors(place), target


@pytest.mark.parametrize(("original", "translation"), TRANSLATED)
def test_translation__has_the_same_headings_and_blocks(original: str, translation: str) -> None:
    texts = [prose(ROOT / name) for name in (original, translation)]
    assert headings(texts[0]) == headings(texts[1])
    found = [re.findall(r"^```\w*\n.*?^```$", text, flags=re.M | re.S) for text in texts]
    assert found[0] == found[1]
    assert [len(re.findall(r"^\|", text, flags=re.M)) for text in texts].count(0) != 1


def test_readme__is_read_in_minutes() -> None:
    assert len(prose(ROOT / "README.md").splitlines()) <= 120


def test_flags__that_pages_name_exist() -> None:
    known = set(re.findall(r"--[\w-]+", help_text())) | {"--help", "--help-all", "--version", "--config", "--quiet"}
    for verb in VERBS.values():
        known |= {name for each in verb.arguments for name in re.findall(r"--[\w-]+", each.shown)}
        for entries in settings_tables(verb.name).values():
            for entry in entries:
                known |= {entry.name, f"--no-{entry.name[2:]}"}
    guides = [page for page in PAGES if page.name not in {"architecture.md", "benchmarks.md"}]
    named = {(page.name, flag) for page in guides for flag in re.findall(r"(?<![\w-])--[a-z][\w-]+", prose(page))}
    assert {(page, flag) for page, flag in named if flag not in known | OF_OTHER_PROGRAMS} == set()


def test_settings__have_description_default_and_example() -> None:
    for verb in VERBS:
        for entries in settings_tables(verb).values():
            for entry in entries:
                assert entry.text, (verb, entry.name)
                assert entry.example, f"{verb} {entry.name}: setting(..., example=...) says how it may be given"


@pytest.mark.parametrize("verb", VERBS)
def test_examples__can_be_given(verb: str) -> None:
    cls = settings_of(verb)
    classes = [registry.run_settings(name) for name in registry.names()] if verb == "pretrain" else [cls]
    flags = {} if cls is None else {name: flag for each in classes for name, flag in setting_flags(each).items()}
    flags |= {} if cls is None else setting_flags(cls)
    for entries in settings_tables(verb).values():
        for entry in entries:
            assert parse(shlex.split(entry.example), (), flags), entry.example


def test_public_functions__say_arguments_results_and_errors() -> None:
    for name in tymbal.__all__:
        function = getattr(tymbal, name)
        if not inspect.isfunction(function):
            continue
        text = inspect.getdoc(function) or ""
        named = [each for each in inspect.signature(function).parameters if each not in {"settings", "keywords"}]
        assert "Raises:" in text, name
        assert all(re.search(rf"^    \*{{0,2}}{each}\b", text, flags=re.M) for each in named), name


def test_python_blocks__are_python() -> None:
    for page in PAGES:
        for block in re.findall(r"^```python\n(.*?)^```$", prose(page), flags=re.M | re.S):
            ast.parse(block)


@pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="needs mkdocs-material (the dev extra)")
def test_site__is_built_strictly_and_asks_nobody_for_anything(tmp_path: Path) -> None:
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    words = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = {page: page.read_text("utf-8") for page in (tmp_path / "site").rglob("*.html")}
    asked = r'(?:src|<link[^>]+href)="(https?://[^"]+)"'
    assert {found for text in pages.values() for found in re.findall(asked, text)} == set()
    for page, text in pages.items():
        for target in re.findall(r'href="([^"#?]+)', text):
            if not re.match(r"[a-z]+:", target) and target not in {".", "./"}:
                place = (tmp_path / "site" / target[1:]) if target.startswith("/") else (page.parent / target)
                assert place.exists(), f"{page.name}: {target}"
