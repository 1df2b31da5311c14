from __future__ import annotations

import importlib.util
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import tymbal
from browser import look, needs_browser
from tones import FEATURES, tone_folder
from training_setup import TINY
from tymbal.config import to_keywords
from tymbal.errors import SettingsError
from tymbal.probe import ProbeResult

SMALL = {"map_clips": 40, "examples": 4, "sounds": 3, "rebuilt": 2, "mistakes": 3, "device": "cpu"}


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole way, with a damaged file, a copy and a pair of mistaken labels on it."""
    folder = tmp_path_factory.mktemp("way")
    sound = tone_folder(folder / "sound", clips=5)
    (sound / "train" / "high" / "torn.wav").write_bytes(b"RIFF")
    (sound / "validation" / "low" / "copy.wav").write_bytes((sound / "train" / "high" / "0.wav").read_bytes())
    tymbal.prepare(sound, folder / "store", frames=32, **to_keywords(FEATURES))
    shared = {**TINY, "epochs": 2, "batch_size": 8}
    tymbal.pretrain(folder / "store", folder / "run", **shared)
    tuning = {key: shared[key] for key in ("epochs", "batch_size", "log_every", "device", "precision")}
    tymbal.finetune(folder / "store", folder / "classifier", from_=str(folder / "run"), **tuning)
    tymbal.predict(folder / "classifier", sound / "validation", folder / "found.csv", device="cpu")
    return folder


def test_report__store_says_what_is_in_it(way: Path, tmp_path: Path) -> None:
    result = tymbal.report(way / "store", tmp_path / "page.html", **SMALL)
    text = result.output.read_text()
    assert list(result.sections) == ["Store: store"]
    assert "31" in Figures.of(text)["clips"]
    assert Figures.of(text)["with a label"] == "31"
    assert "1 of these groups lie on both sides of the split" in text
    assert "1 of these groups have different labels" in text
    assert "torn.wav" in text.replace("<wbr>", "")
    assert text.count("<audio") == 6  # three among the examples, three on the map
    assert "Not shown" not in text


@pytest.mark.parametrize("form", ["pairs", "files", "waveforms"])
def test_report__pairs_and_waveforms_are_shown_clip_by_clip(form: str, tmp_path: Path) -> None:
    sound = tone_folder(tmp_path / "sound", clips=3)
    write = {"pairs": "store", "files": "pt", "waveforms": "waveforms"}[form]
    how = {"views": 1 if form == "waveforms" else 2, "write": write, "window": 0.5, "workers": 1}
    tymbal.prepare(sound, tmp_path / form, **how, **to_keywords(FEATURES))
    result = tymbal.report(tmp_path / form, tmp_path / "page.html", **SMALL)
    text = result.output.read_text()
    figures = Figures.of(text)
    assert list(result.sections) == [f"Store: {form}"]
    clips = int(figures["clips"])
    assert clips == len(sorted(sound.rglob("*.wav")))
    if form == "waveforms":
        assert figures["samples a clip"] == "4,000"
    else:
        assert (figures["pairs of views"], figures["versions a clip"]) == (str(2 * clips), "2")
    assert "No two clips have the same spectrogram" in text
    assert text.count("<audio") == 6
    assert "Not shown" not in text


def test_report__a_contrastive_run_shows_its_clips(tmp_path: Path) -> None:
    sound = tone_folder(tmp_path / "sound", clips=3)
    keywords = to_keywords(FEATURES)
    tymbal.prepare(sound, tmp_path / "pairs", views=2, write="store", window=0.5, workers=1, **keywords)
    tymbal.pretrain(tmp_path / "pairs", tmp_path / "run", **{**TINY, "objective": "contrastive", "epochs": 2})
    result = tymbal.report(tmp_path / "run", tmp_path / "page.html", **SMALL)
    text = result.output.read_text()
    assert text.index("Before the pretraining: embeddings by random weights") < text.index("After it: embeddings of")
    assert "Not shown: the views of this run are made from waveforms" in text
    assert text.count("Not shown") == 1


@pytest.mark.parametrize("objective", ["lejepa", "contrastive"])
def test_report__shows_views_and_what_the_encoder_is_shown(way: Path, tmp_path: Path, objective: str) -> None:
    own = {"kept": 0.5, "kept_local": 0.2} if objective == "lejepa" else {"view_mask": "random"}
    names = ("width", "depth", "heads", "patch", "device", "precision", "batch_size")
    settings = {name: TINY[name] for name in names} | own
    tymbal.pretrain(way / "store", tmp_path / "run", objective=objective, max_steps=4, **settings)
    text = tymbal.report(tmp_path / "run", tmp_path / "page.html", **{**SMALL, "rebuilt": 2}).output.read_text()
    assert text.count('class="triptych views"') == 2
    views = ("global view 1", "global view 2", "local view 1") if objective == "lejepa" else ("view 1", "view 2")
    assert all(text.count(f"<figcaption>{name}</figcaption>") == 2 for name in views)
    shares = [int(share) for share in re.findall(r"(\d+)% of it are shown", text)]
    assert len(shares) == 2 * 2 * len(views)  # captions and alternative texts
    assert all(10 <= share <= 80 for share in shares)
    assert "finding the other view of a clip" in text


def test_report__pretraining_shows_what_was_rebuilt_at_each_checkpoint(way: Path, tmp_path: Path) -> None:
    text = tymbal.report(way / "run", tmp_path / "page.html", **SMALL).output.read_text()
    steps = sorted(path.name for path in (way / "run" / "checkpoints").iterdir())
    assert len(steps) == 2
    assert text.count("what the encoder saw") == 2 * 2  # its caption and its alternative text, of two clips
    errors = [float(error) for error in re.findall(r"epoch [\d.]+: ([\d.]+)</figcaption>", text)]
    assert len(errors) == 2 * 2
    assert all(0 < error < 10 for error in errors)
    assert "Not shown" not in text


def test_report__reconstruction_shows_masks_and_the_whole_rebuilt(way: Path, tmp_path: Path) -> None:
    plan = {"batch_size": 5, "accumulate": 1, "epochs": 2, "device": "cpu", "precision": "float32", "report_to": ()}
    shape = {"width": 16, "depth": 1, "heads": 2, "patch": "8x8", "frequency_mask_width": 8, "time_mask_width": 12}
    plan["snapshots"] = 99
    run = tymbal.pretrain(way / "store", tmp_path / "run", objective="reconstruction", **plan, **shape)
    text = tymbal.report(tmp_path / "run", tmp_path / "page.html", **{**SMALL, "rebuilt": 99}).output.read_text()
    assert "The other pictures are whole as the model rebuilt them" in text
    assert "Not shown" not in text
    validation = len(tymbal.Store.open(way / "store").rows("validation"))
    errors = re.findall(r"epoch 2: ([\d.]+)</figcaption>", text)
    # All validation clips with the masks of the evaluation: their mean is the figure that was logged.
    assert len(errors) == validation
    assert sum(map(float, errors)) / validation == pytest.approx(run.metrics["eval_masked_mse"], abs=2e-3)


def test_report__fine_tuning_counts_what_is_confused(way: Path, tmp_path: Path) -> None:
    text = tymbal.report(way / "classifier", tmp_path / "page.html", **SMALL).output.read_text()
    matrix = text.split('class="confusion"')[1].split("</table>")[0]
    assert sum(map(int, re.findall(r'<td style="[^"]*">(\d+)</td>', matrix))) == 16
    shares = [float(share) for share in re.findall(r"<strong>“[^(]*\((\d+)%\)”", text)]
    assert shares == sorted(shares, reverse=True)
    assert shares
    assert len(re.findall(r"<div>is (?:high|middle|low) \(", text)) == len(shares)


def test_report__predictions_are_seen_along_their_recordings(way: Path) -> None:
    result = tymbal.report(way / "found.csv", **SMALL)
    assert result.output == way / "found.html"
    text = result.output.read_text()
    assert Figures.of(text)["recordings"] == "16"
    assert text.count('class="card"') == 3
    assert text.count('<table class="strips"') == 8
    assert "8 more recordings are not drawn" in text


@pytest.mark.parametrize(
    "source", ["found.parquet", "found.detections.json", "found.detections.csv", "raven", "audacity"]
)
def test_report__predictions_in_each_of_their_forms(way: Path, tmp_path: Path, source: str) -> None:
    output = tmp_path / source.replace(".detections", "")
    options = {"format": source} if not output.suffix else {}
    tymbal.predict(way / "classifier", way / "sound" / "validation", output, device="cpu", threshold=0.0, **options)
    with (way / "found.detections.csv").open() as file:
        detections = len(file.readlines()) - 1
    result = tymbal.report(tmp_path / source, tmp_path / "page.html", **SMALL)
    text = result.output.read_text()
    (title,) = result.sections
    figures = Figures.of(text)
    of_windows = source == "found.parquet"
    assert title.startswith("Predictions: " if of_windows else "Detections: ")
    assert figures["recordings"] == "16"
    assert "No recording was left out." in text
    assert figures["windows" if of_windows else "detections"] == ("16" if of_windows else "48")
    assert detections <= 16
    assert text.count('<table class="strips"') == 8
    assert ("Detections" in result.sections[title]) == of_windows
    # An Audacity track does not say where its recording is.
    assert text.count('class="card"') == (0 if source == "audacity" else 3)
    assert ("Not shown" in text) == (source == "audacity")


def test_report__missing_things_are_named_and_the_rest_is_there(way: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.yaml").write_text((way / "run" / "run.yaml").read_text().replace(str(way / "store"), "/gone/store"))
    lines = [
        {"step": 1, "epoch": 0.5, "seconds": 1.0, "loss": 2.0},
        {"step": 2, "epoch": 1.0, "seconds": 2.0, "loss": None},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = tymbal.report(run, **SMALL).output.read_text()
    assert Figures.of(text)["ended"] == "not yet"
    assert "Values that are not finite are left out of loss" in text
    reasons = re.findall(r"Not shown: ([^<]*)", text)
    assert len(reasons) == 5
    assert sum("the clips of the run are not there any more (/gone/store)" in reason for reason in reasons) == 2
    assert (run / "report.html").stat().st_size < 60_000


def test_report__a_probe_by_layer_and_from_few_clips(way: Path, tmp_path: Path) -> None:
    options = {"layers": "all", "shots": (1, 2), "draws": 2, "device": "cpu", "cache": False}
    found = tymbal.probe(way / "run", way / "store", tmp_path / "probe.json", **options)
    result = tymbal.report(tmp_path / "probe.json", **SMALL)
    text = result.output.read_text()
    assert Figures.of(text)["best accuracy, baseline"] == f"{100 * max(rows_of(found, 'baseline')):.1f} %"
    assert text.count('<th scope="row">model (rows, layer ') == 3 * 3
    charts = re.findall(r'aria-label="(ridge|logistic|knn): accuracy: ([^"]*)"', text)
    assert [reader for reader, _ in charts] == ["ridge", "logistic", "knn"] * 2
    charts = charts[1:]
    last = found.figure("model", pooling="rows")
    assert f"random, rows {charts[0][1].split('random, rows ')[1].split(',')[0]}" in charts[0][1]
    rows = [row for row in found.rows if row.features == "model" and row.reader == "logistic" and row.shots is None]
    assert rows[-1].layer is None
    assert charts[0][1].endswith(f"to {rows[-1].figures['accuracy']:.4g}")
    assert last == rows[0].figures["accuracy"]
    assert sum(map(int, re.findall(r'<td style="[^"]*">(\d+)</td>', text))) == 16
    plain = tymbal.probe(way / "run", way / "store", tmp_path / "plain.json", device="cpu", folds=2, random=False)
    assert plain.folds == 2
    shown = tymbal.report(tmp_path / "plain.json", **SMALL).output.read_text()
    assert shown.count("Not shown: ") == 3
    assert "Means over 2 folds" in shown


def rows_of(found: ProbeResult, features: str) -> list[float]:
    return [row.figures["accuracy"] for row in found.rows if row.features == features and row.shots is None]


@pytest.mark.skipif(importlib.util.find_spec("umap") is None, reason="needs UMAP (pip install umap-learn)")
def test_report__a_map_by_umap(way: Path, tmp_path: Path) -> None:
    pages = [
        tymbal.report(way / "store", tmp_path / f"{number}.html", **SMALL, map="umap").output.read_text()
        for number in range(2)
    ]
    for text in pages:
        assert "laid out by UMAP: 31 of 31 clips" in text
        assert "Not shown" not in text
    drawings = [re.findall(r'<(?:circle|polygon) class="f\d"[^>]*>', text.split('class="map"')[1]) for text in pages]
    assert len(drawings[0]) >= 31
    assert drawings[0] == drawings[1]  # by seed


@pytest.mark.skipif(importlib.util.find_spec("umap") is not None, reason="umap is installed")
def test_report__a_map_that_needs_an_extra_says_which(way: Path, tmp_path: Path) -> None:
    text = tymbal.report(way / "store", tmp_path / "page.html", **SMALL, map="umap").output.read_text()
    assert "Not shown: umap is not installed. pip install" in text


def test_report__what_is_no_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no such file or folder"):
        tymbal.report(tmp_path / "nothing")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SettingsError, match="no table of predictions"):
        tymbal.report(tmp_path / "table.csv")
    with pytest.raises(SettingsError, match=r"\.html"):
        tymbal.report(tmp_path, tmp_path / "page.pdf")


def test_report__names_from_files_and_labels_are_text_not_markup(tmp_path: Path) -> None:
    from tymbal.settings import FeatureSettings
    from tymbal.store.packed.writer import Entry, write_store

    evil = '<script>alert("x")</script>'
    values = np.random.default_rng(0).normal(size=(9, 16, 16)).astype(np.float32)
    clips = [
        (value, Entry(id=str(n), file=f"{evil}{n}.wav", start=0.0, end=0.2, frames=16, labels=(evil,), group=evil))
        for n, value in enumerate(values)
    ]
    write_store(tmp_path / "store", clips, features=FeatureSettings(mel_bins=16), frames=16)
    text = tymbal.report(tmp_path / "store", **SMALL).output.read_text()
    assert text.count("<script") == 1
    assert "alert" in text


def test_report__fetches_nothing(way: Path, tmp_path: Path) -> None:
    text = tymbal.report([way / "store", way / "run"], tmp_path / "page.html", **SMALL).output.read_text()
    links = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\')\s>]+)', text)
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert all(f'id="{link[1:]}"' in text for link in links if link.startswith("#"))
    pictures = re.findall(r"<img[^>]*>", text)
    assert all(re.search(r'alt="[^"]{10,}"', picture) for picture in pictures)
    names = re.findall(r'\bid="([^"]*)"', text)
    assert len(names) == len(set(names))


@needs_browser
@pytest.mark.parametrize("width", [1280, 500])
def test_report__browser_shows_all_pictures_and_plays_sound(way: Path, tmp_path: Path, width: int) -> None:
    page = tymbal.report(
        [way / "store", way / "run", way / "classifier", way / "found.csv"], tmp_path / "page.html", **SMALL
    ).output
    seen = look(page, width=width, picture=tmp_path / "page.png", script=_PLAY)
    assert seen["troubles"] == []
    assert seen["broken"] == 0
    assert seen["pictures"] == page.read_text().count("<img")
    assert seen["asked"] == []
    assert seen["wide"] == []
    assert seen["found"]["seconds"] == pytest.approx([0.335] * len(seen["found"]["seconds"]), abs=0.15)
    assert len(seen["found"]["seconds"]) == page.read_text().count("<audio")
    assert seen["found"]["said"].startswith("Playing: ")
    assert seen["found"]["dim"] > 0
    assert (tmp_path / "page.png").stat().st_size > 10_000


_PLAY = """
const sounds = [...document.querySelectorAll("audio")];
await Promise.all(sounds.map((each) => each.readyState ? 0 : new Promise((done) => each.onloadedmetadata = done)));
const map = document.querySelector(".map");
map.querySelector("[data-sound]").dispatchEvent(new Event("click"));
map.querySelector(".legend button").click();
return {
  seconds: sounds.map((each) => each.duration),
  said: map.querySelector("[aria-live]").textContent,
  dim: map.querySelectorAll(".dim").length,
};
"""


class Figures(HTMLParser):
    """The figures that stand out on a page, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self._tag = self._name = ""

    @classmethod
    def of(cls, text: str) -> dict[str, str]:
        parser = cls()
        parser.feed(text)
        return parser.found

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._tag = tag

    def handle_data(self, data: str) -> None:
        if self._tag == "dt":
            self._name = data
        elif self._tag == "dd" and self._name:
            self.found.setdefault(self._name, data)
        self._tag = ""
