"""The whole way in minutes: `tymbal demo` walks it verb by verb, and says at the end what came out.

    tymbal demo                         on wingbeats that are synthesised on the spot
    tymbal demo --data recordings       on your own sound

It does nothing that the verbs do not do: every step is shown as the command that repeats it. Run again after a stop, it
continues. The figures at the end are those of minutes on an ordinary computer and of the verbs' defaults, beside what
any encoder must beat; where pretraining loses, it says so.
"""

from __future__ import annotations

import random
import shlex
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import tymbal
from tymbal.demo.outcome import Report, Scores, Search, count_events, join_clips
from tymbal.demo.wingbeats import BACKGROUND, DEVICES, HELD_OUT, write_clips, write_recording
from tymbal.errors import SettingsError
from tymbal.files import read_json, write_json, write_text, written_alone
from tymbal.progress import tell
from tymbal.settings import FeatureSettings

if TYPE_CHECKING:
    from tymbal.audio.manifest import Manifest
    from tymbal.probe import ProbeResult
    from tymbal.store.packed.packed_store import Store
    from tymbal.training.run_folder import RunResult

__all__ = ["EVAL_EVERY", "FULL", "SHORT", "DemoResult", "Plan", "demo"]

_MOST_CLIPS = 2000
_MOST_SECONDS = 7200
_SEED = 42
_BATCH = 32
EVAL_EVERY = 10
"""Epochs between evaluations of the pretraining: its validation clips are half as many as it learns from."""
_NEVER = 1000  # epochs: more than any run has


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """The outcome of the demo.

    Attributes:
        folder: The folder of all output.
        report: All figures.
    """

    folder: Path
    report: Report

    def summary(self) -> str:
        """The figures, what they mean, and where the files are."""
        return self.report.text(self.folder)


@written_alone
def demo(
    output: str | Path = "demo",
    *,
    data: str | Path | None = None,
    short: bool = False,
    label_pattern: str | None = None,
    group_pattern: str | None = None,
) -> DemoResult:
    """Walks the whole way: scan, prepare, pretrain, probe, fine-tune, predict, report.

    Without labels the way ends after pretraining. Of a large folder a random part is taken.

    Args:
        output: Folder for all that is written.
        data: A folder of sound. None synthesises wingbeats.
        short: In about a minute; too short to learn much.
        label_pattern: Regular expression on the path; its first group is the label. None takes class folders.
        group_pattern: Regular expression on the path; its first group names what stays on one side of the split.

    Raises:
        TymbalError: A step cannot be done; the message says why.
    """
    if data is None and (label_pattern or group_pattern):
        raise SettingsError("the patterns are for sound of your own", advice="Give its folder: --data FOLDER.")
    plan = SHORT if short else FULL
    walk = _Walk(Path(output))
    if data is None:
        manifest = _scan_wingbeats(walk, plan)
        held_out = f"clips of a device that was never trained on ({HELD_OUT.name})"
    else:
        manifest = _scan_folder(walk, Path(data), label_pattern=label_pattern, group_pattern=group_pattern)
        held_out = "clips of groups that were never trained on" if group_pattern else "clips that were not trained on"
    store = _prepare(walk, plan, manifest)
    run = _pretrain(walk, plan, store)
    scores = search = None
    if _can_classify(store):
        scores = _classify(walk, plan, store)
        search = _search(walk, plan, store, manifest, synthetic=data is None)
    report = Report(
        held_out=held_out,
        steps=run.steps,
        clips_seen=run.steps * _BATCH,
        task=run.metrics.get("eval_acc"),
        seconds=walk.seconds,
        scores=scores,
        found=search,
    )
    _show(walk)
    write_text(walk.folder / "summary.txt", report.text(walk.folder) + "\n")
    return DemoResult(folder=walk.folder, report=report)


def _seconds_before(path: Path) -> dict[str, float]:
    """Seconds of earlier sessions by step; none where there were none, or nothing can be read."""
    try:
        return {str(name): float(value) for name, value in read_json(path).items()}
    except (AttributeError, OSError, TypeError, ValueError):
        return {}


class _Walk:
    """Runs one step after the other: prints its command, runs it, and records its time.

    Args:
        folder: Where everything is written. Seconds of earlier sessions are added to those of this one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "seconds.json"
        self.seconds: dict[str, float] = _seconds_before(self._file)

    def step(self, verb: str, *arguments: Any, output: str, name: str | None = None, **settings: Any) -> Any:
        """Runs a verb.

        Args:
            verb: The verb.
            *arguments: Its arguments before the output.
            output: Its output, inside the folder.
            name: Under which its seconds are counted; None is the verb.
            **settings: Its settings.

        Returns:
            Its result.
        """
        place = self.folder / output
        flags = [word for key, value in settings.items() for word in _flag(key, value)]
        # A manifest that is not written yet is shown as the folder that it was made of.
        given = [each for argument in arguments for each in (argument if isinstance(argument, list) else [argument])]
        words = [str(each if isinstance(each, str | Path) else each.root) for each in given]
        command = shlex.join(["tymbal", verb, *words, "-o", str(place), *flags])
        tell(f"\n$ {command}")
        start = time.monotonic()
        result = getattr(tymbal, verb)(*arguments, place, **settings)
        name = name or verb
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - start, 1)
        write_json(self._file, self.seconds)
        tell(result.summary())
        return result


def _flag(key: str, value: Any) -> list[str]:
    flag = "--" + key.removesuffix("_").replace("_", "-")
    return [flag] if value is True else [flag, str(value)]


def _scan_wingbeats(walk: _Walk, plan: Plan) -> Manifest:
    tell(f"Synthesising wingbeats as {len(DEVICES)} devices record them, for lack of a folder of your own (--data)")
    clips = walk.folder / "wingbeats"
    write_clips(clips, each=plan.each, known=plan.known, seed=_SEED)
    patterns = {
        "label_pattern": "known/([a-z_]+)/",
        "group_pattern": "/([a-z]+)-",
        "validation_pattern": f"/{HELD_OUT.name}-",
    }
    return cast("Manifest", walk.step("scan", clips, output="manifest.csv", **patterns).manifest)


def _scan_folder(walk: _Walk, data: Path, *, label_pattern: str | None, group_pattern: str | None) -> Manifest:
    from tymbal.audio.manifest import Manifest
    from tymbal.audio.sources import read_source

    listing = read_source(data)
    clips = listing.clips
    if len(clips) > _MOST_CLIPS:
        tell(f"{data} has {len(clips):,} clips; the demo takes {_MOST_CLIPS:,} of them, at random")
        # The same ones each time, for a run that is continued.
        clips = random.Random(_SEED).sample(clips, _MOST_CLIPS)  # noqa: S311 - a choice, not a secret
    patterns = {"label_pattern": label_pattern, "group_pattern": group_pattern}
    chosen = {key: value for key, value in patterns.items() if value is not None}
    some = Manifest(tuple(clips), listing.root)
    result = walk.step("scan", some, output="manifest.csv", stratify=True, validation=0.2, **chosen)
    return cast("Manifest", result.manifest)


def _prepare(walk: _Walk, plan: Plan, manifest: Manifest) -> Store:
    """Windows as long as nearly all clips are, and not longer than the plan has time for."""
    lengths = sorted(clip.duration or 0.0 for clip in manifest)
    settings: dict[str, Any] = {"window": round(min(plan.window, lengths[int(0.9 * (len(lengths) - 1))]), 2)}
    if sum(lengths) > _MOST_SECONDS:
        settings["longer"] = "crop-centre"
    return cast("Store", walk.step("prepare", walk.folder / "manifest.csv", output="store", **settings).store)


def _pretrain(walk: _Walk, plan: Plan, store: Store) -> RunResult:
    # A number of steps, so that the same comes out on every computer.
    run = walk.step(
        "pretrain",
        store.path,
        output="pretrained",
        max_steps=plan.pretraining,
        max_minutes=plan.pretraining_minutes,
        eval_every=EVAL_EVERY,
        **plan.encoder,
    )
    return cast("RunResult", run)


def _classify(walk: _Walk, plan: Plan, store: Store) -> Scores:
    """Probe, and fine-tuning from the pretrained and from random weights, with equal settings."""
    from tymbal.models.folder import load_model

    probed: ProbeResult = walk.step("probe", walk.folder / "pretrained", store.path, output="probe.csv")
    steps = plan.steps(plan.finetuning, _patches(store))
    # One evaluation behind the first, at the end: the best of many on the very clips that are reported would flatter.
    settings: dict[str, Any] = {
        "batch_size": _BATCH,
        "max_steps": steps,
        "max_minutes": plan.finetuning_minutes,
        "eval_every": _NEVER,
    }
    tuned: RunResult = walk.step(
        "finetune", store.path, output="classifier", from_=str(walk.folder / "pretrained"), **settings
    )
    shape = load_model(walk.folder / "pretrained").description.encoder
    alike = {"width": shape.width, "depth": shape.depth, "heads": shape.heads, "patch": "{}x{}".format(*shape.patch)}
    untaught: RunResult = walk.step(
        "finetune", store.path, output="from-random", name="from-random", **alike, **settings
    )
    figure = "mAP" if probed.multilabel else "accuracy"

    def read(features: str, pooling: str | None = "grid") -> tuple[float, float]:
        linear, neighbours = (probed.figure(features, pooling=pooling, reader=each) for each in ("ridge", "knn"))
        return linear, neighbours

    return Scores(
        figure=figure,
        clips=probed.validation,
        classes=len(probed.classes),
        plain_line=next(row.pooling for row in probed.rows if row.features == "plain"),
        plain=read("plain", None),
        random=read("random"),
        pretrained=read("model"),
        beside=read("model+plain"),
        tuned_random=untaught.metrics[f"eval_{figure}"],
        tuned_pretrained=tuned.metrics[f"eval_{figure}"],
        verdict=probed.verdict,
    )


def _search(walk: _Walk, plan: Plan, store: Store, manifest: Manifest, *, synthetic: bool) -> Search:
    """Predictions for a recording in which it is known what is to be heard when."""
    recording = walk.folder / "recording.flac"
    features = store.features or FeatureSettings()
    if synthetic:
        tell(f"\nSynthesising a recording of {plan.recording:g} s in which mosquitoes fly past now and then")
        events = write_recording(recording, seconds=plan.recording, seed=_SEED)
    else:
        tell(f"\nJoining held-out clips into a recording of {plan.recording:g} s, to be searched as a whole")
        rate = features.sample_rate
        events = join_clips(manifest, recording, seconds=plan.recording, sample_rate=rate, seed=_SEED)
    hop = round(store.frames * features.shift_samples / features.sample_rate / 2, 2)
    walk.step("predict", walk.folder / "classifier", recording, output="predictions.csv", hop=hop)
    return count_events(walk.folder / "predictions.csv", events, background=BACKGROUND if synthetic else None)


def _show(walk: _Walk) -> None:
    """Writes one page with pictures of all that the demo made."""
    parts = [walk.folder / name for name in ("store", "pretrained", "classifier", "predictions.csv")]
    walk.step("report", [part for part in parts if part.exists()], output="report.html", map_clips=400, sounds=9)


def _can_classify(store: Store) -> bool:
    """Whether two labels at least are learned from, and held-out clips have some."""
    labels, splits = store.index["labels"].to_pylist(), store.index["split"].to_pylist()
    known = {
        side: {label for each, split in zip(labels, splits, strict=True) if split == side for label in each}
        for side in ("train", "validation")
    }
    return len(known["train"]) >= 2 and bool(known["validation"]) and known["validation"] <= known["train"]


def _patches(store: Store) -> int:
    return (store.mels // 16) * (store.frames // 16)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much is done.

    Steps of fine-tuning are counted in patches, so that clips of any length take the same time; its minutes are for
    computers that are slower than expected.

    Attributes:
        each: Synthetic clips of each species and device; twice as many of the one that is held out.
        known: How many of them are labelled.
        recording: Seconds of the recording that is searched.
        window: Longest clip in seconds.
        encoder: Settings of the encoder; without any, all is as by default.
        pretraining: Steps of pretraining.
        finetuning: Patches that are seen in each of the two fine-tunings.
        pretraining_minutes: Pretraining stops after this many, on computers that are slower than expected.
        finetuning_minutes: Each fine-tuning stops after this many.
    """

    each: int
    known: int
    recording: float
    window: float
    encoder: dict[str, Any]
    pretraining: int
    finetuning: int
    pretraining_minutes: float
    finetuning_minutes: float

    def steps(self, patches_seen: int, patches: int) -> int:
        """Steps in which batches of clips with so many patches add up to what is to be seen."""
        return max(10, round(patches_seen / (patches * _BATCH)))


FULL = Plan(
    each=30,
    known=5,
    recording=90,
    window=2.0,
    encoder={},
    finetuning=250_000,
    pretraining=4_000,
    pretraining_minutes=4.0,
    finetuning_minutes=0.75,
)
SHORT = replace(
    FULL,
    each=8,
    known=3,
    recording=30,
    finetuning=50_000,
    pretraining=30,
    pretraining_minutes=0.5,
    finetuning_minutes=0.25,
)
