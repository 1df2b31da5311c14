"""The command line: each verb is a thin face on the function of the same name.

A verb here names its arguments and hands its settings on; what a setting is called, means and defaults to stands in
`tymbal.settings` alone. Results go to stdout, everything else to stderr. Exit status: 0 done, 1 a defect of Tymbal
(with its traceback), 2 a mistake that the user can mend, 75 stopped by a signal and the same command continues, 130
stopped with Ctrl-C.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.exceptions import MissingArgumentError, UnusedCliTokensError

import tymbal
from tymbal.cli_settings import VerbHelp, fill_from_file, fill_from_recipe, shown_default, split_lists
from tymbal.config import old_names, settings_of, to_keywords, todays_name
from tymbal.errors import SettingsError, TymbalError
from tymbal.machine import check_companions
from tymbal.objectives import registry
from tymbal.progress import quietly, say
from tymbal.settings import (
    ConvertSettings,
    DoctorSettings,
    EmbedSettings,
    ExploreSettings,
    FinetuneSettings,
    PredictSettings,
    PrepareSettings,
    PretrainSettings,
    ProbeSettings,
    ReportSettings,
    ScanSettings,
    SimilarSettings,
)
from tymbal.stopping import RUN_AGAIN, Stopped, stop_at_once

__all__ = ["app", "main"]

_RESUME = {"always": True, "never": False}
_LEARNS = frozenset(
    {"pretrain", "probe", "finetune", "predict", "embed", "similar", "report", "explore", "doctor", "demo"}
)
_CONTINUES = frozenset({"prepare", "pretrain", "finetune", "predict", "embed", "ssast", "demo"})

_WAY = Group("The way from sound to predictions", sort_key=0)
_FORMATS = Group("Other people's formats", sort_key=1)
_OTHERS = Group("Other people's command lines", sort_key=1.5)
_DEMO = Group("All of it, on sound made on the spot", sort_key=2)
_OPTIONS = Group("Options", sort_key=3)
_EXAMPLE = """
```text
tymbal scan     recordings -o manifest.csv
tymbal prepare  manifest.csv -o store --window 5
tymbal pretrain store -o run --size tiny --max-minutes 60
tymbal probe    run labelled
tymbal finetune labelled -o classifier --from run
tymbal predict  classifier night.flac -o night.csv
tymbal report   run classifier night.csv
tymbal embed    run recordings -o recordings.parquet
tymbal similar  run clip.wav recordings.parquet
tymbal explore  classifier recordings
```

`tymbal VERB --help` explains a verb and all its settings.
"""

_FLAT = Parameter(name="*", consume_multiple=True, show_default=shown_default)
_OUTPUT = Parameter(alias="-o")

app = App(
    name="tymbal",
    help="From a folder of unlabelled sound to an audio spectrogram transformer that knows it.",
    help_epilogue=_EXAMPLE,
    version=tymbal.__version__,
    group_parameters=_OPTIONS,
    config=(split_lists, fill_from_file, fill_from_recipe),
    default_parameter=Parameter(negative_iterable=(), show_default=shown_default),
    suppress_keyboard_interrupt=False,
)
app["--help"].group = app["--version"].group = (_OPTIONS,)


def _verb(settings: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a verb behind those before it, its help ordered by the settings that it takes."""
    return app.command(group=_WAY, sort_key=len(list(app)), help_formatter=VerbHelp(settings), help_epilogue="")


@dataclass(frozen=True, kw_only=True)
class Common:
    """What every verb takes.

    Attributes:
        config: YAML file with settings, or the run.yaml of an earlier run to repeat it. Flags stand above it.
        quiet: No progress and no remarks on stderr; warnings and errors remain.
    """

    config: Annotated[Path | None, Parameter(alias="-c")] = None
    quiet: Annotated[bool, Parameter(alias="-q", negative=())] = False


@_verb(ScanSettings)
def scan(
    source: Path,
    /,
    *,
    output: Annotated[Path | None, _OUTPUT] = None,
    common: Annotated[Common | None, _FLAT] = None,
    settings: Annotated[ScanSettings | None, _FLAT] = None,
) -> None:
    """See what is in a folder of sound: durations, rates, labels, duplicates, damaged files.

    Args:
        source: Folder of sound files, or a list of them (CSV, Parquet, JSON, text).
        output: Write the manifest here (.csv or .parquet), with failures.csv beside it.
    """
    _run("scan", source, output, common=common, settings=settings)


@_verb(PrepareSettings)
def prepare(
    source: Path,
    /,
    *,
    output: Annotated[Path | None, _OUTPUT] = None,
    common: Annotated[Common | None, _FLAT] = None,
    settings: Annotated[PrepareSettings | None, _FLAT] = None,
) -> None:
    """Turn sound files into a store of spectrograms, once. Run again after a stop, it continues.

    Args:
        source: Folder of sound files, or a manifest (CSV, Parquet, JSON).
        output: Folder of the store; with --views data/augmented_spectrograms where it is left out.
    """
    if output is None and not (settings is not None and settings.views):
        raise SettingsError("--output is missing")
    _run("prepare", source, output, common=common, settings=settings)


@_verb(PretrainSettings)
def pretrain(
    store: Path,
    /,
    *,
    output: Annotated[Path, _OUTPUT],
    resume: str = "auto",
    common: Annotated[Common | None, _FLAT] = None,
    settings: Annotated[PretrainSettings | None, _FLAT] = None,
) -> None:
    """Learn from unlabelled spectrograms. Run again after a stop, it continues.

    Args:
        store: A store that `tymbal prepare` made; a folder or an SSAST list of .pt spectrograms; or sound.
        output: Run folder: checkpoints, model, metrics.
        resume: `auto` continues the run in the output folder if there is one, `always` insists on one, `never` on
            an empty folder; or the folder of a checkpoint. Weights to start from are given as `--from`.
    """
    quiet = common is not None and common.quiet
    chosen = {} if settings is None else registry.given(settings)
    _show("pretrain", store, output, quiet=quiet, resume=_RESUME.get(resume, resume), **chosen)


def _read_objectives(words: list[str]) -> list[str]:
    """Lets `pretrain` take the settings of every objective, whose files are imported for that; gives what is to parse.

    Help shows what all objectives share, which imports none of them; or that of one, as `--help contrastive`.
    """
    help_wanted = bool({"--help", "-h"} & set(words))
    topic = next((word for word in words if word in registry.names()), None) if help_wanted else None
    if help_wanted and topic is None:
        settings: type[PretrainSettings] = PretrainSettings
    else:
        check_companions()
        settings = registry.flags() if topic is None else registry.run_settings(topic)
    pretrain.__annotations__["settings"] = Annotated[settings | None, _FLAT]
    app["pretrain"].help_formatter = VerbHelp(settings)
    return [word for word in words if topic is None or word != topic]


@_verb(ProbeSettings)
def probe(
    model: str,
    data: Path,
    /,
    *,
    output: Annotated[Path | None, _OUTPUT] = None,
    common: Annotated[Common | None, _FLAT] = None,
    settings: Annotated[ProbeSettings | None, _FLAT] = None,
) -> None:
    """Ask what an encoder knows, beside the same encoder with random weights and a plain baseline.

    Args:
        model: A run, a model folder, a Hugging Face or SSAST checkpoint.
        data: A store, folder or manifest with labels, or an SSAST list of .pt spectrograms.
        output: Write the table here (.csv or .json).
    """
    _run("probe", model, data, output, common=common, settings=settings)


@_verb(FinetuneSettings)
def finetune(
    source: Path,
    /,
    *,
    output: Annotated[Path, _OUTPUT],
    resume: str = "auto",
    common: Annotated[Common | None, _FLAT] = None,
    settings: Annotated[FinetuneSettings | None, _FLAT] = None,
) -> None:
    """Train a classifier on labelled sound. Run again after a stop, it continues.

    Args:
        source: Folder with a folder a class, a manifest with labels, a store, or an SSAST list of .pt spectrograms.
        output: Run folder: checkpoints, model, metrics.
        resume: `auto` continues the run in the output folder if there is one, `always` insists on one, `never` on
            an empty folder; or the folder of a checkpoint. Weights to start from are given as `--from`.
    """
    _run("finetune", source, output, common=common, settings=settings, resume=_RESUME.get(resume, resume))


@_verb(PredictSettings)
def predict(
    model: str,
    /,
    *files: Annotated[Path, Parameter(required=True)],
    output: Annotated[Path, _OUTPUT],
    common: Annotated[Common | None, _FLAT] = None,
    settings: Annotated[PredictSettings | None, _FLAT] = None,
) -> None:
    """Score recordings of any length, window by window. Run again after a stop, it continues.

    Args:
        model: A run, a model folder or a Hugging Face checkpoint with a classifier.
        files: Recordings, or folders of them.
        output: The table, a row a window and label (.csv, .parquet, .json, .jsonl); a table of detections is written
            beside it. With --format raven or audacity a folder.
    """
    _run("predict", model, list(files), output, common=common, settings=settings)


@_verb(EmbedSettings)
def embed(
    model: str,
    /,
    *sources: Annotated[Path, Parameter(required=True)],
    output: Annotated[Path, _OUTPUT],
    common: Annotated[Common | None, _FLAT] = None,
    settings: Annotated[EmbedSettings | None, _FLAT] = None,
) -> None:
    """Write down what an encoder makes of each clip or second. Run again after a stop, it continues.

    Args:
        model: A run, a model folder, a Hugging Face or SSAST checkpoint.
        sources: Recordings, or folders of them; or one store.
        output: The embeddings (.parquet, .npy, .csv).
    """
    _run("embed", model, list(sources), output, common=common, settings=settings)


@_verb(SimilarSettings)
def similar(
    model: str,
    clip: Path,
    index: Path,
    /,
    *,
    output: Annotated[Path | None, _OUTPUT] = None,
    common: Annotated[Common | None, _FLAT] = None,
    settings: Annotated[SimilarSettings | None, _FLAT] = None,
) -> None:
    """Find what sounds like a clip.

    Args:
        model: The model that the embeddings are from.
        clip: The example, a sound file.
        index: The .parquet file of `tymbal embed`.
        output: Write the table here (.csv, .parquet, .json, .jsonl).
    """
    _run("similar", model, clip, index, output, common=common, settings=settings)


@_verb(ReportSettings)
def report(
    *sources: Annotated[Path, Parameter(required=True)],
    output: Annotated[Path | None, _OUTPUT] = None,
    common: Annotated[Common | None, _FLAT] = None,
    settings: Annotated[ReportSettings | None, _FLAT] = None,
) -> None:
    """See what came out, on one page with pictures and sound that opens in any browser.

    Args:
        sources: Stores, folders of runs, tables of probe (.json), and what predict wrote: tables of windows or
            detections (.csv, .parquet, .json, .jsonl), Raven or Audacity files and folders of them.
        output: The page (.html). Without it, report.html in the folder of the first source.
    """
    _run("report", list(sources), output, common=common, settings=settings)


@_verb(ExploreSettings)
def explore(
    model: str,
    store: Path | None = None,
    /,
    *,
    common: Annotated[Common | None, _FLAT] = None,
    settings: Annotated[ExploreSettings | None, _FLAT] = None,
) -> None:
    """Drop or record sounds on a page and see them as a model does, with their neighbours. Stays on this machine.

    Args:
        model: A run, a model folder, a Hugging Face or SSAST checkpoint.
        store: Where neighbours are looked for: a folder of sound, a store, or a .parquet file of `tymbal embed`.
    """
    _run("explore", model, store, common=common, settings=settings)


@_verb(DoctorSettings)
def doctor(
    store: Path | None = None,
    /,
    *,
    common: Annotated[Common | None, _FLAT] = None,
    settings: Annotated[DoctorSettings | None, _FLAT] = None,
) -> None:
    """See what this machine can do, what is missing, and how long an epoch would take.

    Args:
        store: A store to check, and to estimate an epoch for.
    """
    _run("doctor", store, common=common, settings=settings)


@app.command(group=_FORMATS, help_formatter=VerbHelp(ConvertSettings), help_epilogue="")
def convert(
    source: str,
    output: Path,
    /,
    *,
    common: Annotated[Common | None, _FLAT] = None,
    settings: Annotated[ConvertSettings | None, _FLAT] = None,
) -> None:
    """Turn .pt spectrograms into a store and back, and models into each other's formats.

    Args:
        source: A store, a folder or an SSAST list of .pt spectrograms, a run, a model folder, an SSAST or Hugging Face
            checkpoint.
        output: Folder, or .pth or .onnx file, that is written.
    """
    _run("convert", source, output, common=common, settings=settings)


@app.command(group=_OTHERS, help_epilogue="", help_flags=[], version_flags=[])
def ssast(*flags: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
    """SSAST's run.py: `tymbal ssast` in the place of `python run.py`, with all its flags. Run again, it continues.

    Args:
        flags: The flags of run.py; `tymbal ssast --help` lists them.
    """
    if {"-h", "--help"} & set(flags) or not flags:
        from tymbal.compat.flags import help_text

        print(help_text())
        return
    from tymbal.compat.ssast import run
    from tymbal.machine import tune_malloc

    check_companions()
    tune_malloc()
    _show_result(run(flags))


@app.command(group=_DEMO, help_epilogue="")
def demo(
    *,
    output: Annotated[Path, _OUTPUT] = Path("demo"),
    data: Path | None = None,
    short: Annotated[bool, Parameter(negative=())] = False,
    label_pattern: str | None = None,
    group_pattern: str | None = None,
    quiet: Annotated[bool, Parameter(alias="-q", negative=())] = False,
) -> None:
    """Walk the whole way in minutes: scan, prepare, pretrain, probe, fine-tune, predict, report.

    Args:
        output: Folder for all that is written.
        data: Your own folder of sound. Without it, wingbeats of mosquitoes are synthesised.
        short: The same in about a minute; too short to learn much.
        label_pattern: Regular expression on the path; its first group is the label. Without it, class folders.
        group_pattern: Regular expression on the path; its first group names what stays on one side of the split.
        quiet: No progress and no remarks on stderr; warnings and errors remain.
    """
    patterns = {"label_pattern": label_pattern, "group_pattern": group_pattern}
    _show("demo", output, quiet=quiet, data=data, short=short, **patterns)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: What stands behind `tymbal`; None is that of this process.

    Returns:
        The exit status.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    verb = next((word for word in given if not word.startswith("-")), "")
    try:
        if verb == "pretrain":
            given = _read_objectives(given)
        with stop_at_once() if verb in _CONTINUES else contextlib.nullcontext():
            app(_todays_names(verb, given), exit_on_error=False, print_error=False, result_action="return_value")
    except TymbalError as error:
        say(f"Error: {error}", style="red")
        return 2
    except CycloptsError as error:
        say(f"Error: {_usage_message(error)}", style="red")
        say(f"  Help: {' '.join(['tymbal', *(error.command_chain or ())])} --help")
        return 2
    except Stopped:
        return RUN_AGAIN
    except KeyboardInterrupt:
        say("Stopped. The same command continues." if verb in _CONTINUES else "Stopped.")
        return 130
    return 0


def _todays_names(verb: str, words: Sequence[str]) -> list[str]:
    """Words of the command line in which flags of older names have those of today."""
    cls = settings_of(verb)
    old = {} if cls is None else {f"--{key.replace('_', '-')}": key for key in old_names(cls)}
    found = []
    for word in words:
        flag, equals, value = word.partition("=")
        found.append(f"--{todays_name(cls, old[flag])}{equals}{value}" if cls and flag in old else word)
    return found


def _run(verb: str, *arguments: Any, common: Common | None, settings: Any, **more: Any) -> None:
    chosen = {} if settings is None else to_keywords(settings)
    _show(verb, *arguments, quiet=common is not None and common.quiet, **more, **chosen)


def _show(verb: str, *arguments: Any, quiet: bool, **keywords: Any) -> None:
    if verb in _LEARNS or verb == "prepare":
        from tymbal.machine import tune_malloc

        tune_malloc()
    if verb in _LEARNS:
        check_companions()
    with quietly(quiet):
        result = getattr(tymbal, verb)(*arguments, **keywords)
    _show_result(result)


def _show_result(result: Any) -> None:
    """Prints what came of a verb, once where several processes ran it."""
    from tymbal.compute.processes import rank

    if rank() == 0:
        print(result.summary())


def _usage_message(error: CycloptsError) -> str:
    if isinstance(error, MissingArgumentError) and error.argument is not None and not error.argument.tokens:
        argument = error.argument
        name = argument.name if argument.name.startswith("-") else argument.name.upper()
        what = "needs a value" if error.keyword else "is missing"
        return f"{name} {what}"
    if isinstance(error, UnusedCliTokensError):
        return f"{' '.join(error.unused_tokens or ())} is left over: it belongs to no argument"
    return str(error)
