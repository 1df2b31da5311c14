"""The command line: each verb is a thin face on the function of the same name.

The table here names the verbs and their arguments; what a setting is called, means and defaults to stands in
`tymbal.settings` alone. Results go to stdout, everything else to stderr. Exit status: 0 done, 1 a defect of Tymbal
(with its traceback), 2 a mistake that the user can mend, 75 stopped by a signal and the same command continues, 130
stopped with Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tymbal
from tymbal.cli_words import Argument, Flag, UsageError, Verb, flag_of, parse, setting_flags
from tymbal.errors import SettingsError, TymbalError, system_error
from tymbal.machine import check_companions
from tymbal.progress import quietly, say
from tymbal.stopping import RUN_AGAIN, Interrupted, Stopped, stop_at_once
from tymbal.values import nearest

__all__ = ["VERBS", "main"]

_HELP = ("--help", "-h", "--help-all")
_RESUME = {"always": True, "never": False}

_WAY = "The way from sound to predictions"
_FORMATS = "Other people's formats"
_OTHERS = "Other people's command lines"
_DEMO = "All of it, on sound made on the spot"

_MODEL = "A run, a model folder, a Hugging Face or SSAST checkpoint, or a model of the Hub (hf://owner/name)."


def _output(text: str, *, required: bool = False, default: Path | None = None) -> Argument:
    return Argument(name="output", text=text, flag=True, short="-o", required=required, default=default)


_COMMON = (
    Argument(
        name="config",
        text="YAML file with settings, or the run.yaml of an earlier run to repeat it. Flags stand above it.",
        flag=True,
        short="-c",
        required=False,
    ),
    Argument(
        name="quiet",
        text="No progress and no remarks on stderr; warnings and errors remain.",
        kind=bool,
        flag=True,
        short="-q",
        required=False,
    ),
)
"""What every verb takes."""

_RUN_FOLDER = (
    _output("Run folder: checkpoints, model, metrics.", required=True),
    Argument(
        name="resume",
        text="`auto` continues the run in the output folder if there is one, `always` insists on one, `never` on an "
        "empty folder; or the folder of a checkpoint. Weights to start from are given as `--from`.",
        kind=str,
        flag=True,
        required=False,
        default="auto",
        keyword=True,
    ),
)

_DEMO_OPTIONS = {
    "data": ("Your own folder of sound. Without it, wingbeats of mosquitoes are synthesised.", Path, None),
    "short": ("The same in about a minute; too short to learn much.", bool, False),
    "label_pattern": (
        "Regular expression on the path; its first group is the label. Without it, class folders.",
        str,
        None,
    ),
    "group_pattern": (
        "Regular expression on the path; its first group names what stays on one side of the split.",
        str,
        None,
    ),
}

_TABLE = (
    Verb(
        name="scan",
        text="See what is in a folder of sound: durations, rates, labels, duplicates, damaged files.",
        arguments=(
            Argument(name="source", text="Folder of sound files, or a list of them (CSV, Parquet, JSON, text)."),
            _output("Write the manifest here (.csv or .parquet), with NAME.failures.csv beside it."),
        ),
        learns=False,
        heading=_WAY,
    ),
    Verb(
        name="prepare",
        text="Turn sound files into a store of spectrograms, once. Run again after a stop, it continues.",
        arguments=(
            Argument(name="source", text="Folder of sound files, or a manifest (CSV, Parquet, JSON)."),
            _output("Folder of the store; with --views data/augmented_spectrograms where it is left out."),
        ),
        learns=False,
        continues=True,
        heading=_WAY,
    ),
    Verb(
        name="pretrain",
        text="Learn from unlabelled spectrograms. Run again after a stop, it continues.",
        arguments=(
            Argument(
                name="store",
                text="A store that `tymbal prepare` made; a folder or an SSAST list of .pt spectrograms; or sound.",
            ),
            *_RUN_FOLDER,
        ),
        continues=True,
        heading=_WAY,
    ),
    Verb(
        name="probe",
        text="Ask what an encoder knows, beside the same encoder with random weights and a plain baseline.",
        arguments=(
            Argument(name="model", text=_MODEL, kind=str),
            Argument(
                name="data", text="A store, folder or manifest with labels, or an SSAST list of .pt spectrograms."
            ),
            _output("Write the table here (.csv or .json)."),
        ),
        heading=_WAY,
    ),
    Verb(
        name="finetune",
        text="Train a classifier on labelled sound. Run again after a stop, it continues.",
        arguments=(
            Argument(
                name="source",
                text="Folder with a folder a class, a manifest with labels, a folder of `tymbal label`, a store, or an "
                "SSAST list of .pt spectrograms.",
            ),
            *_RUN_FOLDER,
        ),
        continues=True,
        heading=_WAY,
    ),
    Verb(
        name="merge",
        text="Make one classifier of two with one encoder, or teach one further labels from clips of these alone.",
        arguments=(
            Argument(name="first", text="A classifier: a run, a model folder, a model of the Hub.", kind=str),
            Argument(
                name="second",
                text="Another one; or clips of further labels: a folder a label, a folder named as its label, a list "
                "or a store.",
                kind=str,
            ),
            _output("The model folder to write.", required=True),
        ),
        heading=_WAY,
    ),
    Verb(
        name="predict",
        text="Score recordings of any length, window by window. Run again after a stop, it continues.",
        arguments=(
            Argument(
                name="model", text="A run, a model folder or a Hugging Face checkpoint with a classifier.", kind=str
            ),
            Argument(name="files", text="Recordings, or folders of them; or one list.", many=True),
            _output(
                "The table, a row a window and label (.csv, .parquet, .json, .jsonl); a table of detections is "
                "written beside it. With --format raven or audacity a folder, with kaleidoscope one id.csv.",
                required=True,
            ),
        ),
        continues=True,
        heading=_WAY,
    ),
    Verb(
        name="embed",
        text="Write down what an encoder makes of each clip or second. Run again after a stop, it continues.",
        arguments=(
            Argument(name="model", text=_MODEL, kind=str),
            Argument(name="sources", text="Recordings, or folders of them; or one list or store.", many=True),
            _output("The embeddings (.parquet, .npy, .csv).", required=True),
        ),
        continues=True,
        heading=_WAY,
    ),
    Verb(
        name="similar",
        text="Find what sounds like a clip.",
        arguments=(
            Argument(name="model", text="The model that the embeddings are from.", kind=str),
            Argument(name="clip", text="The example, a sound file."),
            Argument(name="index", text="The .parquet file of `tymbal embed`."),
            _output("Write the table here (.csv, .parquet, .json, .jsonl)."),
        ),
        heading=_WAY,
    ),
    Verb(
        name="label",
        text="Label recordings with a model that says which windows come next. Run again, it continues.",
        arguments=(
            Argument(name="model", text=_MODEL, kind=str),
            Argument(
                name="recordings",
                text="Recordings of any length, or folders of them; or one .parquet file of `tymbal embed`.",
                many=True,
            ),
            _output("The folder of the labels, labels.csv among them.", required=True),
        ),
        continues=True,
        heading=_WAY,
    ),
    Verb(
        name="report",
        text="See what came out, on one page with pictures and sound that opens in any browser.",
        arguments=(
            Argument(
                name="sources",
                text="Stores, folders of runs, tables of probe (.json), and what predict wrote: tables of windows or "
                "detections (.csv, .parquet, .json, .jsonl), Raven or Audacity files and folders of them.",
                many=True,
            ),
            _output("The page (.html). Without it, report.html in the folder of the first source."),
        ),
        heading=_WAY,
    ),
    Verb(
        name="explore",
        text="Drop or record sounds on a page and see them as a model does, with their neighbours. Stays on this "
        "machine.",
        arguments=(
            Argument(name="model", text=_MODEL, kind=str),
            Argument(
                name="store",
                text="Where neighbours are looked for: a folder of sound, a store, or a .parquet file of "
                "`tymbal embed`.",
                required=False,
            ),
        ),
        heading=_WAY,
    ),
    Verb(
        name="push",
        text="Share a model on the Hugging Face Hub; only you see it, unless you say otherwise.",
        arguments=(
            Argument(name="model", text=_MODEL, kind=str),
            Argument(name="name", text="OWNER/NAME on the Hub. It is made where there is none.", kind=str),
        ),
        heading=_WAY,
    ),
    Verb(
        name="doctor",
        text="See what this machine can do, what is missing, and how long an epoch would take.",
        arguments=(Argument(name="store", text="A store to check, and to estimate an epoch for.", required=False),),
        heading=_WAY,
    ),
    Verb(
        name="convert",
        text="Turn .pt spectrograms into a store and back, and models into each other's formats.",
        arguments=(
            Argument(
                name="source",
                text="A store, a folder or an SSAST list of .pt spectrograms, a run, a model folder, an SSAST or "
                "Hugging Face checkpoint.",
                kind=str,
            ),
            Argument(name="output", text="Folder, or .pth or .onnx file, that is written."),
        ),
        heading=_FORMATS,
        learns=False,
    ),
    Verb(
        name="ssast",
        text="SSAST's run.py: `tymbal ssast` in the place of `python run.py`, with all its flags. Run again, it "
        "continues.",
        arguments=(),
        heading=_OTHERS,
        continues=True,
    ),
    Verb(
        name="demo",
        text="Walk the whole way in minutes: scan, prepare, pretrain, probe, fine-tune, predict, report.",
        arguments=(
            _output("Folder for all that is written.", default=Path("demo")),
            *(
                Argument(name=name, text=text, kind=kind, flag=True, required=False, default=default, keyword=True)
                for name, (text, kind, default) in _DEMO_OPTIONS.items()
            ),
        ),
        heading=_DEMO,
        continues=True,
    ),
)

VERBS: Mapping[str, Verb] = {verb.name: verb for verb in _TABLE}
"""The verbs by name, in the order of the way from sound to predictions."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: The words behind `tymbal`; None is those of this process.

    Returns:
        The exit status.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    verb = VERBS.get(words[0]) if words else None
    continues = verb is not None and verb.continues
    try:
        with stop_at_once() if continues else contextlib.nullcontext():
            _without_verb(words) if verb is None else _with_verb(verb, words[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # Who reads the output has seen enough (`tymbal … | head`); Python would complain once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UsageError as error:
        say(f"Error: {error}", style="red")
        say(f"  Help: tymbal {'' if verb is None else f'{verb.name} '}--help")
        return 2
    except (TymbalError, OSError, MemoryError) as error:
        say(f"Error: {error if isinstance(error, TymbalError) else system_error(error)}", style="red")
        return 2
    except Stopped:
        return RUN_AGAIN
    except KeyboardInterrupt as error:
        if not isinstance(error, Interrupted):
            say("Stopped. The same command continues." if continues else "Stopped.")
        return 130
    return 0


def _without_verb(words: Sequence[str]) -> None:
    if not words or words[0] in _HELP:
        from tymbal.cli_help import overview

        print(overview(list(VERBS.values())))
    elif words[0] == "--version":
        print(tymbal.__version__)
    else:
        guess = nearest(words[0], VERBS)
        hint = f' Did you mean "{guess}"?' if guess else ""
        raise UsageError(f'Unknown command "{words[0]}".{hint} Available commands: {", ".join(VERBS)}.')


def _with_verb(verb: Verb, words: Sequence[str]) -> None:
    if verb.name == "ssast":
        _ssast(words)
        return
    for_us = words[: words.index("--")] if "--" in words else words
    help_at = next((place for place, word in enumerate(for_us) if word in _HELP), None)
    if help_at is None:
        _run(verb, words)
        return
    from tymbal.cli_help import verb_help

    after_help = for_us[help_at + 1 : help_at + 2] if for_us[help_at] != "--help-all" else []
    group = next((word for word in after_help if not word.startswith("-")), None)
    print(verb_help(verb, common=_COMMON, group=group, whole=for_us[help_at] == "--help-all"))


def _run(verb: Verb, words: Sequence[str]) -> None:
    """Reads the words behind a verb and calls its function."""
    from tymbal import config

    cls = config.settings_of(verb.name)
    own = {} if cls is None else setting_flags(cls)
    all_arguments = (*verb.arguments, *(_COMMON if cls is not None else _COMMON[1:]))
    given = parse(words, all_arguments, own, more=_objectives_flags if verb.name == "pretrain" else dict)
    file, quiet = given.pop("config", None), given.pop("quiet", False)
    arguments = {each.name: given.pop(each.name) for each in verb.arguments if each.name in given}
    if file is not None and cls is not None:
        config.read_settings(cls, file)  # a file of another verb is reported before anything missing
        arguments = {**_recorded(verb, file), **arguments}
    for each in verb.arguments:
        if each.required and each.name not in arguments:
            raise UsageError(f"{each.shown} is missing")
        arguments.setdefault(each.name, each.default)
    with quietly(quiet):
        settings = _settings(verb, given, file)
    if verb.name == "prepare" and arguments["output"] is None and not settings.get("views"):
        raise SettingsError(f"{flag_of('output')} is missing")
    if "resume" in arguments:
        arguments["resume"] = _RESUME.get(arguments["resume"], arguments["resume"])
    positional = [arguments[each.name] for each in verb.arguments if not each.keyword]
    keywords = {each.name: arguments[each.name] for each in verb.arguments if each.keyword}
    if verb.learns or verb.name == "prepare":
        from tymbal.machine import tune_malloc

        tune_malloc()
    if verb.learns:
        check_companions()
    with quietly(quiet):
        result = getattr(tymbal, verb.name)(*positional, **keywords, **settings)
    _show_result(result)


def _recorded(verb: Verb, file: Path) -> dict[str, Any]:
    """Arguments recorded in a run.yaml, converted as those of a command line."""
    from tymbal import config

    arguments = config.read_run_yaml(file).arguments if config.is_run_file(file) else {}
    kinds = {argument.name: argument for argument in verb.arguments if argument.name in arguments}
    return {
        name: [argument.kind(item) for item in arguments[name]] if argument.many else argument.kind(arguments[name])
        for name, argument in kinds.items()
    }


def _settings(verb: Verb, given: Mapping[str, Any], file: Path | None) -> dict[str, Any]:
    """Resolves all settings of a verb: those given override those of a file, these recipes and defaults.

    Verbs that learn do that themselves, since their defaults depend on the run that they continue.
    """
    from tymbal import config

    cls = config.settings_of(verb.name)
    if cls is None or (not given and file is None):
        return {}
    if verb.learns:
        return dict(given) if file is None else {**given, "config": file}
    return config.to_keywords(config.resolve(cls, given, config=file))


def _objectives_flags() -> Mapping[str, Flag]:
    """The flags of all objectives, whose files are imported for that."""
    from tymbal.objectives import registry

    check_companions()
    classes = dict.fromkeys(registry.run_settings(name) for name in registry.names())
    return {name: flag for cls in classes for name, flag in setting_flags(cls).items()}


def _ssast(flags: Sequence[str]) -> None:
    if {"-h", "--help"} & set(flags) or not flags:
        from tymbal.compat.flags import help_text

        print(help_text())
        return
    from tymbal.compat.ssast_command import run
    from tymbal.machine import tune_malloc

    check_companions()
    tune_malloc()
    _show_result(run(tuple(flags)))


def _show_result(result: Any) -> None:
    """Prints what came of a verb, once where several processes ran it."""
    from tymbal.compute.processes import rank

    if rank() == 0:
        print(result.summary())
