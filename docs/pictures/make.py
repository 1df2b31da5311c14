"""Draws the pictures of the README from a run of the demo: `make pictures`, or `python docs/pictures/make.py demo`.

The report and the explorer are photographed by Chromium, where there is one; the latter needs the extra `explore`.
"""

from __future__ import annotations

import argparse
import base64
import csv
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image, ImageChops

import tymbal
from tymbal.audio.decode import info, read
from tymbal.demo.wingbeats import BACKGROUND
from tymbal.features.kaldi import KaldiFbank
from tymbal.models.folder import load_model
from tymbal.reporting.run_part import built_objective
from tymbal.settings import FeatureSettings
from tymbal.store.packed.packed_store import Store

if TYPE_CHECKING:
    from live_browser import LiveBrowser

HERE = Path(__file__).parent
SPECIES = "aedes_aegypti_female"
DEVICE = "recorder"
SECONDS = (6.5, 31.0)
COLOURS = "magma"
HIDDEN = "#7a8794"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", nargs="?", default="demo", type=Path, help="folder of a finished `tymbal demo`")
    parser.add_argument("--output", default=HERE / "tymbal.png", type=Path)
    parser.add_argument(
        "--label", type=Path, help="draw the page to label alone, of the run, recordings and events.csv"
    )
    arguments = parser.parse_args()
    if arguments.label:
        label(arguments.label.resolve(), arguments.output.resolve().with_name("label.png"))
        return
    plt.rcParams.update({"font.size": 9, "axes.titlesize": 10, "axes.titlelocation": "left"})
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    figure = plt.figure(figsize=(10, 5.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    draw_clip(top, arguments.demo)
    draw_recording(bottom, arguments.demo)
    figure.savefig(arguments.output, dpi=150)
    # A palette is a fifth of the size, and nobody sees the difference.
    Image.open(arguments.output).convert("RGB").quantize(96).save(arguments.output, optimize=True)
    print(arguments.output)
    photograph(arguments.demo / "report.html", arguments.output.with_name("report.png"))
    explore(arguments.demo, arguments.output.with_name("explore.png"))


def photograph(page: Path, output: Path) -> None:
    """A part of the report: views of one clip, what the encoder is shown of them, and the map before and after."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        print(f"no Chromium is here: {output} stays as it is")
        return
    shown = ", ".join(f"#pretraining-pretrained{name}" for name in ("", "-views", "-map-of-the-clips"))
    hidden = "header, nav, .tiles, main section { display: none }"
    others = ".triptych ~ .soft, .triptych ~ .triptych { display: none }"
    only = f"<style>{hidden} {shown} {{ display: block }} {others}</style></head>"
    part = page.with_name("part.html")
    part.write_text(page.read_text(encoding="utf-8").replace("</head>", only, 1), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1000,2400"]
    look = ["--blink-settings=preferredColorScheme=1", f"--screenshot={output.resolve()}"]
    subprocess.run([chromium, *flags, *look, part.resolve().as_uri()], check=True, capture_output=True)  # noqa: S603
    part.unlink()
    picture = Image.open(output).convert("RGB")
    paper = Image.new("RGB", picture.size, picture.getpixel((0, 0)))
    used = ImageChops.difference(picture, paper).getbbox() or (0, 0, *picture.size)
    cut = picture.crop((0, 0, picture.width, min(used[3] + 24, picture.height)))
    cut.quantize(256, kmeans=2).save(output, optimize=True)
    print(output)


def explore(demo: Path, output: Path) -> None:
    """The page of `tymbal explore`, with the recording dropped on it and a window chosen."""
    sys.path.append(str(HERE.parents[1] / "tests"))
    from browser import CHROMIUM  # noqa: PLC0415

    if CHROMIUM is None or importlib.util.find_spec("gradio") is None:
        print(f"no Chromium or no Gradio is here: {output} stays as it is")
        return
    recording = (demo / "recording.flac").resolve()
    flown = [event for event in read_events(demo / "events.csv") if event[2] != BACKGROUND]
    start, end, _ = flown[len(flown) // 2]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ended = threading.Event()
    settings = {"browser": False, "port": port, "top": 4, "until": ended}
    server = threading.Thread(target=tymbal.explore, args=(demo / "classifier", demo / "store"), kwargs=settings)
    server.start()
    try:
        take_explorer(f"http://127.0.0.1:{port}/", recording, output, at=(start + end) / 2 / info(recording).duration)
    finally:
        ended.set()
        server.join()
    Image.open(output).convert("RGB").quantize(256, kmeans=2).save(output, optimize=True)
    print(output)


def take_explorer(url: str, recording: Path, output: Path, *, at: float) -> None:
    """Drops a recording on the page, chooses a window at a share of its length, and takes a picture."""
    from live_browser import LiveBrowser  # noqa: PLC0415

    wait_for(url)
    with tempfile.TemporaryDirectory() as folder, LiveBrowser(Path(folder)) as browser:
        browser.open(url, width=1100)
        browser.drop("#sound input[type=file]", recording)
        browser.wait("document.querySelectorAll('#recording img').length && document.querySelectorAll('.card').length")
        before = browser.evaluate("document.querySelector('#window h3').innerText")
        browser.click("[data-name=recording]", across=at)
        browser.wait(f"document.querySelector('#window h3').innerText !== {before!r}")
        browser.evaluate("document.activeElement.blur()")
        time.sleep(1)  # until all that fades has faded
        browser.picture(output)


def label(folder: Path, output: Path) -> None:
    """The page of `tymbal label` after 150 right answers and 60 of the blind check, and one of its clips, large."""
    sys.path.append(str(HERE.parents[1] / "tests"))
    with (folder / "events.csv").open(newline="", encoding="utf-8") as file:
        events = [(row["file"], float(row["start"]), float(row["end"]), row["label"]) for row in csv.DictReader(file)]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ended, names = threading.Event(), tuple(dict.fromkeys(event[3] for event in events))
    settings = {"labels": names, "browser": False, "port": port, "until": ended, "device": "cpu"}
    os.chdir(folder)  # the page says its paths
    places = ("run", "recordings", "labels")
    server = threading.Thread(target=tymbal.label, args=places, kwargs=settings)
    server.start()
    try:
        take_labelling(f"http://127.0.0.1:{port}/", events, output)
    finally:
        ended.set()
        server.join()
    for picture in (output, output.with_name("label_box.png")):
        drawn = Image.open(picture).convert("RGB")
        drawn.thumbnail((1000, 1000))
        drawn.quantize(128, kmeans=2).save(picture, optimize=True)
        print(picture)


def take_labelling(url: str, events: list[tuple[str, float, float, str]], output: Path) -> None:
    """Answers as the events are, and takes pictures."""
    from live_browser import LiveBrowser  # noqa: PLC0415

    wait_for(url)
    busy = "document.body.classList.contains('busy')"
    ready = f"typeof clip === 'function' && !!clip() && !clip().answer && !{busy}"
    with tempfile.TemporaryDirectory() as folder, LiveBrowser(Path(folder)) as browser:
        browser.open(url, width=1280, height=800)

        def answer(count: int) -> None:
            for _ in range(count):
                browser.wait(ready)
                name, start, end = browser.evaluate("[clip().name, clip().start, clip().end]")
                heard = {
                    label
                    for file, first, last, label in events
                    if file == name and min(last, end) - max(first, start) > 0.3 * min(last - first, end - start)
                }
                browser.evaluate(f"{sorted(heard)}.length ? answer('labels', {sorted(heard)}) : answer('nothing', [])")

        for count, after in ((150, "c"), (60, "c"), (5, "")):
            answer(count)
            if after:
                browser.press(after)
        time.sleep(5)
        view(browser, output)
        choose_call(browser, [event for event in events if event[3] == "rooster"])
        browser.press("Enter")
        browser.wait("!!document.querySelector('#large .area img')?.complete")
        browser.press("b")
        time.sleep(1)
        frame = browser.evaluate("document.querySelector('#large').getBoundingClientRect().toJSON()")
        view(
            browser,
            output.with_name("label_box.png"),
            tuple(frame[side] for side in ("left", "top", "right", "bottom")),
        )


def choose_call(browser: LiveBrowser, events: list[tuple[str, float, float, str]]) -> None:
    """Goes back to a clip with a whole call, in which the model hears it."""
    browser.evaluate("wish.label = 'rooster'")
    shown = "pages.flatMap((each, p) => each.clips.map((one, n) => [p, n, one.name, one.start, one.end]))"
    for place, number, name, start, end in browser.evaluate(shown):
        for file, first, last, _ in events:
            if file == name and start + 0.2 < first < last < end - 0.2:
                browser.evaluate(f"pages[{place}].check = false; page = {place}; draw()")
                browser.evaluate(f"clips()[{number}].proposal = undefined; choose({number})")
                browser.wait("clip().proposal !== undefined")
                box = browser.evaluate("clip().proposal")
                if box and box["low"] and first < (box["start"] + box["end"]) / 2 < last:
                    return


def view(browser: LiveBrowser, output: Path, box: tuple[float, ...] | None = None) -> None:
    """What is seen of a page, or a part of it."""
    output.write_bytes(base64.b64decode(browser.call("Page.captureScreenshot", format="png")["data"]))
    if box is not None:
        Image.open(output).crop(tuple(map(round, box))).save(output)


def wait_for(url: str) -> None:
    """Waits until a page is served."""
    for _ in range(600):
        try:
            urllib.request.urlopen(url).close()  # noqa: S310 - our own page
            break
        except urllib.error.URLError:
            time.sleep(0.5)


def draw_clip(figure: mpl.figure.SubFigure, demo: Path) -> None:
    """One clip as it is, a view of it, and what the encoder is shown of views."""
    store = Store.open(demo / "store")
    files = store.index["file"].to_pylist()
    rows = np.array([row for row, file in enumerate(files) if f"/{DEVICE}-" in Path(file).as_posix()])
    row = next(row for row in rows if SPECIES in Path(files[row]).parts)
    chosen = np.concatenate([[row], rows[rows != row][:7]])  # the others are laid over it
    loaded = load_model(demo / "pretrained")
    objective = built_objective(loaded, store)
    spectrograms = torch.from_numpy(store.gather(chosen).astype(np.float32))
    frames = torch.from_numpy(store.real_frames[chosen].astype(np.int64))
    clips = loaded.description.normalisation(spectrograms, frames)
    views = objective.shown(clips, frames, torch.from_numpy(chosen))
    first, last = views["global view 1"], views["local view 1"]
    seconds = store.features.frame_shift
    limits = np.percentile(clips[0].numpy(), (5, 99.8))
    shown = {
        "A wingbeat as a spectrogram": (clips[0].numpy(), None, int(frames[0])),
        "A view of it": (first.values[0], None, int(first.frames[0])),
        "What the encoder is shown of it": (first.values[0], first.hidden[0], int(first.frames[0])),
        "… and of a local view": (last.values[0], last.hidden[0], int(last.frames[0])),
    }
    for axes, (title, (values, hidden, length)) in zip(figure.subplots(1, 4, sharey=True), shown.items(), strict=True):
        picture = values[:length].T if hidden is None else np.ma.array(values[:length].T, mask=hidden[:length].T)
        axes.set_facecolor(HIDDEN)
        axes.imshow(
            picture, origin="lower", aspect="auto", cmap=COLOURS, vmin=limits[0], vmax=limits[1],
            extent=(0, length * seconds, 0, store.mels),
        )  # fmt: skip
        axes.set(title=title, xlabel="seconds")
    figure.axes[0].set_ylabel("mel bin")


def draw_recording(figure: mpl.figure.SubFigure, demo: Path) -> None:
    """A part of the recording, what flew past, and what the classifier found."""
    begin, end = SECONDS
    wave, rate = read(demo / "recording.flac", sample_rate=16_000)
    features = FeatureSettings(sample_rate=rate)
    picture = KaldiFbank(features)(torch.from_numpy(wave)).numpy().T
    axes = figure.subplots()
    axes.imshow(
        picture, origin="lower", aspect="auto", cmap=COLOURS, vmin=np.percentile(picture, 5),
        vmax=np.percentile(picture, 99.8), extent=(0, picture.shape[1] * features.frame_shift, 0, 128),
    )  # fmt: skip
    rows = {"flew past": read_events(demo / "events.csv"), "found": read_predictions(demo / "predictions.csv")}
    truth = rows["flew past"]
    for height, (name, events) in zip((-12, -26), rows.items(), strict=True):
        axes.text(begin - 0.15, height, name, ha="right", va="center")
        for start, stop, label in events:
            first, last = max(start, begin), min(stop, end)
            if first >= last or label == BACKGROUND:
                continue
            right = any(s < stop and start < e and known == label for s, e, known in truth)
            axes.plot(
                (first + 0.03, last - 0.03), (height, height), lw=9, solid_capstyle="butt",
                color="#2f6f73" if right else "#b3483d", clip_on=False,
            )  # fmt: skip
            if last - first > 1.4:
                short = label.replace("_", " ").replace("female", "♀").replace("male", "♂").split(" ", 1)[1]
                axes.text((first + last) / 2, height, short, ha="center", va="center", color="white", fontsize=6.5)
    axes.set(xlim=(begin, end), ylim=(-33, 128), yticks=(0, 50, 100), ylabel="mel bin", xlabel="seconds")
    axes.set_title("A recording from a device that was never trained on (green: right, red: wrong)")
    axes.spines["left"].set_bounds(0, 128)


def read_events(path: Path) -> list[tuple[float, float, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [(float(row["start"]), float(row["end"]), row["label"]) for row in csv.DictReader(file)]


def read_predictions(path: Path) -> list[tuple[float, float, str]]:
    """Stretches of time with one best label: the middle half of each window, neighbours joined."""
    windows: dict[tuple[float, float], list[tuple[float, str]]] = defaultdict(list)
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            windows[float(row["start"]), float(row["end"])].append((float(row["score"]), row["label"]))
    found: list[tuple[float, float, str]] = []
    for (start, end), scores in sorted(windows.items()):
        quarter = (end - start) / 4
        label = max(scores)[1]
        if found and found[-1][2] == label and found[-1][1] >= start + quarter - 1e-3:
            found[-1] = (found[-1][0], end - quarter, label)
        else:
            found.append((start + quarter, end - quarter, label))
    return found


if __name__ == "__main__":
    main()
