"""Every command and every block of Python in README and docs is run, on a few seconds of sound, with small encoders.

Commands that serve, send or need another machine are not run: those of Tymbal are read with all their settings, of
others it is checked that what they name is there.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

import tymbal
from embedded_sounds import NAMES, encoded, sound_table
from tones import PITCHES, RATE, tone
from tymbal.cli import VERBS, main
from tymbal.cli_words import parse, setting_flags
from tymbal.config import settings_of
from tymbal.labelling.table import Row, write_table
from tymbal.objectives import registry

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent.name != "zh-TW")]
SERVES_OR_SENDS = {"demo", "explore", "label", "push", "ssast"}
ELSEWHERE = re.compile(
    r"^([A-Z][A-Z_]{2,}|MIT/.*|hf://.*|s3://.*|https?://.*|/project/.*|/content/.*|teacher/.*|trackio)$"
)
OTHERS = re.compile(r"pip|uvx|python|\.|cp|cd|hf|trackio|unzip|rsync|make|sbatch|torchrun|docker|cat|export")
LEFT_OUT = {"max_minutes", "epochs", "size", "every"}
LIST = ("spectrograms", "train.json", "labels.csv")
MADE = ("store", "run", "classifier", "night.csv", "nights.parquet", "embeddings.parquet", *LIST)
SMALL = {"max_steps": 2, "batch_size": 4, "device": "cpu"}
SHAPE = {"width": 64, "depth": 3, "heads": 1}  # heads of 64 numbers, as SSAST needs


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each block of code, also of those inside lists."""
    found = re.findall(r"^( *)```(sh|python)\n(.*?)^\1```$", page.read_text("utf-8"), flags=re.M | re.S)
    return [(language, re.sub(rf"^{indent}", "", text, flags=re.M)) for indent, language, text in found]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a block."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while "&&" in words:
            yield words[: words.index("&&")]
            words = words[words.index("&&") + 1 :]
        if words:
            yield words


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pages take to be there: recordings, nights, clips with labels, and what the verbs make of them."""
    folder = tmp_path_factory.mktemp("sound")
    labels = list(PITCHES)
    minute = [label for label in labels for _ in range(15)]  # 15 seconds, five of each
    for number in range(4):
        write(folder / "recordings" / f"site_{'abcd'[number]}{number}.wav", minute, seed=number)
        write(folder / "nights" / f"2026060{number + 1}_220000.wav", minute, seed=number)
        write(folder / "cicada" / f"{number}.wav", ["high", "low"], seed=number)
        for label in labels:
            write(folder / "labelled" / label / f"site_{'abcd'[number]}{number}.wav", [label] * 15, seed=number)
    data_sets(folder)
    write(folder / "night.flac", minute, seed=9)
    write(folder / "clip.wav", ["low"] * 15, seed=9, rate=16_000)
    shutil.copytree(folder / "recordings", folder / "sound")
    shutil.copytree(folder / "recordings", folder / "new")
    answers = [
        Row(str(file), 0.335 * place, 0.335 * (place + 1), label=label, who="anna", when=str(place), round="1")
        for file in sorted((folder / "recordings").iterdir())
        for place, label in enumerate(minute)
    ]
    (folder / "labels").mkdir()
    write_table(folder / "labels" / "labels.csv", answers)
    tymbal.prepare(folder / "labelled", folder / "store")
    tymbal.pretrain(folder / "store", folder / "run", snapshots=0, **SMALL, **SHAPE)
    tymbal.finetune(folder / "labelled", folder / "classifier", from_=folder / "run", **SMALL)
    tymbal.embed(folder / "run", folder / "nights", folder / "nights.parquet", device="cpu")
    tymbal.predict(folder / "classifier", [folder / "night.flac"], folder / "night.csv", device="cpu")
    tymbal.embed(folder / "run", folder / "sound", folder / "embeddings.parquet", device="cpu")
    tymbal.convert(folder / "store", folder / "list", to="pt")
    (folder / "list" / "train").rename(folder / "spectrograms")
    for name in ("train.json", "labels.csv"):
        shutil.copy(folder / "list" / name, folder / name)
    return folder


def data_sets(folder: Path) -> None:
    """Sounds in Parquet tables, BirdSet's columns among them, and lists with columns and events of their own."""
    sounds = [encoded(NAMES[number % 3], seed=number, seconds=5) for number in range(12)]
    for place, column in (("birds/data", "label"), ("birdset/HSN", "ebird_code_multilabel")):
        for split, part in (("train", slice(0, 9)), ("test_5s", slice(9, 12))):
            labels = [number % 3 if column == "label" else [number % 3] for number in range(12)][part]
            name = f"{split.removesuffix('_5s') if column == 'label' else split}-00000-of-00001.parquet"
            sound_table(folder / place / name, sounds[part], labels=labels, label_column=column)
    rows = [f"labelled/{label}/site_{site}.wav,{label},{site[0]}" for label in PITCHES for site in ("a0", "b1", "c2")]
    (folder / "list.csv").write_text("\n".join(["path,ebird_code,site", *rows]) + "\n")
    events = [{"st": 1.0, "ed": 2.5, "label": "low"}]
    lines = [{"path": f"recordings/site_{site}.wav", "annotations": events} for site in ("a0", "b1")]
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def write(path: Path, labels: list[str], seed: int, rate: int = RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.concatenate([tone(label, seed=seed) for label in labels]).repeat(rate // RATE)
    soundfile.write(path, samples, rate, subtype="PCM_16")


@pytest.fixture
def place(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the sound alone, in which a page is followed; trainings are of two steps."""
    for each in sound.iterdir():
        if each.name not in MADE:
            (shutil.copytree if each.is_dir() else shutil.copy)(each, tmp_path / each.name)
    for name in ("configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for verb in ("pretrain", "finetune"):
        monkeypatch.setitem(vars(tymbal), verb, shortened(verb, getattr(tymbal, verb)))
    for verb in SERVES_OR_SENDS:
        monkeypatch.setitem(vars(tymbal), verb, lambda *_, **__: SimpleNamespace(summary=str))
    return tmp_path


def shortened(verb: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A verb that learns, for two steps of a small encoder."""

    def run(*arguments: Any, **settings: Any) -> Any:
        kept = {name: value for name, value in settings.items() if name not in LEFT_OUT}
        begun = "from_" in kept or verb == "finetune" or kept.get("recipe") == "notebook"
        shape = {} if begun or "config" in kept else SHAPE
        quick = {} if "config" in kept else SMALL | ({"snapshots": 0} if verb == "pretrain" else {})
        return function(*arguments, **{**kept, **shape, **quick})

    return run


def follow(words: list[str], place: Path, sound: Path) -> None:
    """Runs a command of Tymbal, or reads it where it serves, sends or names what is elsewhere."""
    name = words[1]
    if name in SERVES_OR_SENDS or any(ELSEWHERE.match(word) for word in words):
        read(words)
        return
    output = words[words.index("-o") + 1] if "-o" in words else None
    for word in words[2:]:
        for each in LIST if word in LIST else (word,):
            if each in MADE and each != output and not (place / each).exists():
                (shutil.copytree if (sound / each).is_dir() else shutil.copy)(sound / each, place / each)
    assert main(words[1:]) == 0, shlex.join(words)


def read(words: list[str]) -> None:
    """Reads the words of a command with the settings of its verb."""
    verb = VERBS[words[1]]
    if verb.name == "ssast" or "…" in words:
        return
    cls = settings_of(verb.name)
    flags = {} if cls is None else setting_flags(cls)
    if verb.name == "pretrain":
        for objective in registry.names():
            flags = setting_flags(registry.run_settings(objective)) | flags
    parse(words[2:], verb.arguments, flags)


def look(words: list[str]) -> None:
    """What a command of another program names is there."""
    assert OTHERS.fullmatch(words[0]), f"{shlex.join(words)}: say in this test what it is for"
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.M)
    if words[0] == "sbatch":
        assert any((ROOT / word).is_file() for word in words if word.endswith(".sbatch"))
    if words[0] == "python" and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file()
    if words[0] == "torchrun":
        read(["tymbal", *words[words.index("tymbal") + 1 :]])


def followed(page: Path) -> bool:
    return bool(blocks(page))


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES if followed(page)]
)
def test_page__does_what_it_says(page: Path, place: Path, sound: Path) -> None:
    for language, text in blocks(page):
        if language == "python":
            exec(compile(text, str(page), "exec"), {"__name__": "page"})
            if named := re.match(r"# (\w+\.py)\n", text):  # a module that commands name
                (place / named[1]).write_text(text, encoding="utf-8")
            continue
        for words in commands(text):
            if words == ["pip", "install", "./examples/plugin"]:
                break  # tests/examples/test_plugin_template.py installs it, and goes through every verb
            follow(words, place, sound) if words[0] == "tymbal" else look(words)
