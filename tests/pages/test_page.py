"""Pages and their pieces: text is text, places have names of their own, and what fails says so in its place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tymbal.errors import StoreError
from tymbal.pages.page import (
    NotShownError,
    Part,
    Section,
    bullets,
    card,
    embedded_style,
    note,
    page,
    section,
    table,
    tiles,
    words,
)


def test_note__is_text() -> None:
    assert note("<a>\n  b") == '<p class="note">&lt;a&gt;<br>b</p>'
    assert 'role="alert"' in note("a", warning=True)


def test_page__contents_lead_to_places_that_are_there_once() -> None:
    same = Part("A & b", "<p>lead</p>", (Section("One", "x"), Section("One", "y")))
    text = page("<title>", "<lead>", [same, same], footer="<foot>")
    names = re.findall(r'<section id="([^"]*)"', text)
    assert names == ["a-b", "a-b-one", "a-b-one-2", "a-b-2", "a-b-one-3", "a-b-one-4"]
    assert re.findall(r'href="#([^"]*)"', text) == names
    assert "<h1>&lt;title&gt;</h1>" in text
    assert "&lt;lead&gt;" in text
    assert "&lt;foot&gt;" in text
    assert text.count("<p>lead</p>") == 2
    bare = page("t", "l", [same], footer="f", contents=False)
    assert "<nav" not in bare
    assert re.findall(r'<section id="([^"]*)"', bare) == names[:3]


def test_page__every_colour_that_the_style_uses_is_there_in_light_dark_and_print() -> None:
    text = page("t", "l", [], footer="f")
    used = set(re.findall(r"var\(--([a-z0-9]+)", text)) - {"columns"}
    blocks = re.findall(r":root \{([^}]*)\}", text)
    assert len(blocks) == 3
    for block in blocks:
        assert used <= set(re.findall(r"--([a-z0-9]+):", block))
    light, dark, printed = (re.search("--paper: ([^;]*);", block)[1] for block in blocks)
    assert (light, dark, printed) == ("#fdfcfa", "#14181b", "#fff")


def test_embedded_style__touches_only_what_is_tymbals() -> None:
    text = embedded_style(".host", ".dark .host")
    rules = re.findall(r"(?m)^\s*([^{}@]+)\{", re.sub(r"\} *\.", "}\n.", text))
    assert {rule.split()[0] for rule in rules} == {".host", ".dark", ".tymbal"}
    assert "--c0: #1f6a73" in text.split("}")[0]
    assert "--c0: #5fbac5" in text.split("}")[1]


def test_section__has_the_reason_where_there_is_nothing_to_show() -> None:
    def fail() -> str:
        raise StoreError("it is <torn>", path=Path("/a/b"), advice="Prepare it again.")

    assert section("One", lambda: "<p>x</p>") == Section("One", "<p>x</p>")
    found = section("Two", fail)
    assert found.body == '<p class="note">Not shown: it is &lt;torn&gt; (/a/b). Prepare it again.</p>'
    with pytest.raises(ZeroDivisionError):
        section("Three", lambda: str(1 // 0))
    assert issubclass(NotShownError, Exception)


def test_table__marks_columns_of_numbers() -> None:
    text = table(("a", "b"), [("<x>", "1"), ("y_z", "2")], numbers=[1])
    assert "<thead><tr><th>a</th><th class=n>b</th></tr></thead>" in text
    assert "<td>&lt;x&gt;</td><td class=n>1</td>" in text
    assert "<td>y_<wbr>z</td>" in text


def test_pieces__are_text() -> None:
    assert tiles({"<a>": "<b>"}) == '<dl class="tiles"><div><dt>&lt;a&gt;</dt><dd>&lt;b&gt;</dd></div></dl>'
    assert bullets(["<a>", "b"]) == "<ul><li>&lt;a&gt;</li><li>b</li></ul>"
    assert words("a/b_c.wav 1.5") == "a/<wbr>b_<wbr>c.<wbr>wav 1.5"
    text = card("<img>", "", "<t>", text="one\n<two>", path="a/b")
    assert text == (
        '<figure class="card"><img><figcaption><strong>&lt;t&gt;</strong><div>one</div><div>&lt;two&gt;</div>'
        '<span class="path">a/<wbr>b</span></figcaption></figure>'
    )
    assert "path" not in card("", "", "t")
