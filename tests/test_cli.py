"""The command line: what reaches the verbs, and what a person reads when something is wrong."""

from __future__ import annotations

import ast
import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import tymbal
from tones import tone_store
from tymbal import config
from tymbal.cli import main
from tymbal.errors import AudioError, SettingsError
from tymbal.settings import FinetuneSettings, PrepareSettings


@pytest.fixture
def called(monkeypatch):
    """Puts a recorder in the place of two verbs that need nothing heavy; yields what they were called with."""
    calls = []

    def record(*arguments, **keywords):
        calls.append((arguments, keywords))
        return SimpleNamespace(summary=lambda: "12 clips")

    monkeypatch.setitem(vars(tymbal), "prepare", record)
    monkeypatch.setitem(vars(tymbal), "scan", record)
    return calls


def test_verb__settings_and_arguments_reach_the_function(called, capsys):
    assert main(["prepare", "sounds", "-o", "store", "--window", "2.5", "--label-pattern", "(a)"]) == 0
    (source, output), keywords = called[0]
    assert (source, output) == (Path("sounds"), Path("store"))
    settings = config.from_mapping(PrepareSettings, keywords)
    assert settings == PrepareSettings(window=2.5, label_pattern="(a)")
    assert capsys.readouterr().out == "12 clips\n"


def test_verb__without_settings_all_are_defaults(called):
    assert main(["scan", "sounds"]) == 0
    (source, output), keywords = called[0]
    assert (source, output, keywords) == (Path("sounds"), None, {})


@pytest.mark.parametrize("sizes", [["1,1,2,4"], ["1", "1", "2", "4"], ["1, 1", "2,4"]])
def test_verb__lists_may_have_commas(monkeypatch, tmp_path, sizes):
    calls = []
    monkeypatch.setitem(vars(tymbal), "finetune", lambda *a, **k: calls.append(k) or SimpleNamespace(summary=str))
    (tmp_path / "a.yaml").write_text("report-to: [tensorboard, wandb]\n")
    assert main(["finetune", "sounds", "-o", "run", "--batch-sizes", *sizes, "-c", str(tmp_path / "a.yaml")]) == 0
    given = {k: v for k, v in calls[0].items() if k not in ("resume", "config")}
    settings = config.resolve(FinetuneSettings, given, config=calls[0]["config"])
    assert (settings.batch_sizes, settings.report_to) == ((1, 1, 2, 4), ("tensorboard", "wandb"))


def test_verb__is_the_same_where_pydantic_was_imported_before(called, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydantic", pytest.importorskip("pydantic"))
    assert main(["prepare", "sounds", "-o", "store", "--window", "2.5"]) == 0
    assert config.from_mapping(PrepareSettings, called[0][1]) == PrepareSettings(window=2.5)


def test_verb__takes_older_names_of_settings(monkeypatch, capsys):
    calls = []
    monkeypatch.setitem(vars(tymbal), "finetune", lambda *a, **k: calls.append(k) or SimpleNamespace(summary=str))
    config._say_old.cache_clear()
    assert main(["finetune", "sounds", "-o", "run", "--clip-seconds", "2", "--validation_fraction=0.3"]) == 0
    settings = config.from_mapping(FinetuneSettings, {k: v for k, v in calls[0].items() if k != "resume"})
    assert settings == FinetuneSettings(window=2.0, validation=0.3)
    assert capsys.readouterr().err == (
        "clip_seconds is now called window; the old name still works\n"
        "validation_fraction is now called validation; the old name still works\n"
    )
    assert main(["finetune", "sounds", "-o", "run", "--clip-seconds", "2", "--window", "3"]) == 0
    with pytest.raises(SettingsError, match="clip_seconds and window are one setting"):
        config.resolve(FinetuneSettings, {k: v for k, v in calls[1].items() if k != "resume"})


def test_verb__optimizer_flags_reach_the_settings(monkeypatch):
    calls = []
    monkeypatch.setitem(vars(tymbal), "finetune", lambda *a, **k: calls.append(k) or SimpleNamespace(summary=str))
    flags = ["--clip-norm", "0.5", "--adam-beta2", "0.9", "--weight-decay", "0.2", "--adam-beta1", "0.8"]
    assert main(["finetune", "sounds", "-o", "run", *flags]) == 0
    found = {name: calls[0][name] for name in ("clip_norm", "adam_beta2", "weight_decay", "adam_beta1")}
    assert found == {"clip_norm": 0.5, "adam_beta2": 0.9, "weight_decay": 0.2, "adam_beta1": 0.8}


def test_config__flags_stand_above_the_file(called, tmp_path):
    (tmp_path / "a.yaml").write_text("window: 5\nmel-bins: 64\nstratify: true\nlabels: none\n")
    file = str(tmp_path / "a.yaml")
    assert main(["prepare", "sounds", "-o", "store", "--config", file, "--window", "1", "--no-stratify"]) == 0
    settings = config.from_mapping(PrepareSettings, called[0][1])
    assert settings == PrepareSettings(window=1, mel_bins=64, stratify=False, labels="none")


def test_config__run_yaml_repeats_the_run(called, tmp_path):
    (tmp_path / "sounds").mkdir()
    settings = PrepareSettings(window=2.0, stratify=True)
    arguments = {"source": tmp_path / "sounds", "output": tmp_path}
    path = config.write_run_yaml(tmp_path, "prepare", arguments, settings)
    assert main(["prepare", "-c", str(path)]) == 0
    assert main(["prepare", "-c", str(tmp_path), "-o", "other", "--hop", "1"]) == 0
    assert called[0][0] == (tmp_path / "sounds", tmp_path)
    assert config.from_mapping(PrepareSettings, called[0][1]) == settings
    assert called[1][0] == (tmp_path / "sounds", Path("other"))
    assert config.from_mapping(PrepareSettings, called[1][1]) == PrepareSettings(window=2.0, stratify=True, hop=1.0)


def test_config__a_mistake_in_the_file_names_the_file(called, tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("windwo: 5\n")
    assert main(["prepare", "sounds", "-o", "store", "-c", str(tmp_path / "a.yaml")]) == 2
    assert capsys.readouterr().err == (
        f"Error: {tmp_path / 'a.yaml'}: unknown setting 'windwo' for prepare\n  Did you mean window?\n"
    )
    assert not called


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare"], "Error: SOURCE is missing"),
        (["prepare", "sounds"], "Error: --output is missing"),
        (["prepare", "sounds", "-o"], "Error: --output needs a value"),
        (["prepare", "sounds", "-o", "x", "--windwo", "3"], "Did you mean --window?"),
        (["prepare", "sounds", "-o", "x", "--window", "long"], 'unable to convert "long" into float'),
        (["prepare", "sounds", "-o", "x", "--window", "-3"], "window is -3.0, which is not a time in seconds above 0"),
        (["perpare", "sounds"], 'Did you mean "prepare"?'),
        (["prepare", "a", "b", "-o", "x"], "Error: b is left over"),
    ],
)
def test_mistake__is_answered_plainly(called, capsys, arguments, message):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""
    assert "Traceback" not in err
    assert not called


def test_error__of_the_data_has_no_traceback(monkeypatch, capsys):
    def fail(*arguments, **keywords):
        raise AudioError("is empty", path="a.wav", advice="Remove it.")

    monkeypatch.setitem(vars(tymbal), "scan", fail)
    assert main(["scan", "sounds"]) == 2
    assert capsys.readouterr().err == "Error: a.wav: is empty\n  Remove it.\n"


def test_error__of_ours_keeps_its_traceback(monkeypatch):
    def fail(*arguments, **keywords):
        raise ZeroDivisionError

    monkeypatch.setitem(vars(tymbal), "scan", fail)
    with pytest.raises(ZeroDivisionError):
        main(["scan", "sounds"])


def test_ctrl_c__says_how_to_go_on(monkeypatch, capsys):
    def stop(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setitem(vars(tymbal), "prepare", stop)
    assert main(["prepare", "sounds", "-o", "store"]) == 130
    assert capsys.readouterr().err == "Stopped. The same command continues.\n"


def test_module__runs_and_knows_its_version():
    run = subprocess.run([sys.executable, "-m", "tymbal", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == tymbal.__version__


def test_companions__a_broken_torchaudio_is_named(tmp_path, monkeypatch, capsys):
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text("raise OSError('libcudart.so.13: cannot open')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchaudio", raising=False)
    assert main(["pretrain", "store", "-o", "run"]) == 2
    err = capsys.readouterr().err
    assert "the installed torchaudio does not work with torch" in err
    assert "libcudart.so.13" in err
    assert "pip uninstall torchaudio" in err


HEARS_THE_FIRST_WORD = """
import os, sys
class Ear:
    def write(self, text):
        if text.strip():
            heavy = [name for name in ("transformers", "accelerate", "peft") if name in sys.modules]
            os.write(1, repr((text.strip(), heavy)).encode())
            os._exit(0)
    def flush(self): pass
    def isatty(self): return False
sys.stdout = sys.stderr = Ear()
from tymbal.cli import main
main()
"""


@pytest.mark.parametrize("verb", ["pretrain store -o run", "finetune store -o run", "report store", "doctor store"])
def test_verb__its_first_word_comes_before_what_trains_is_imported(tmp_path: Path, verb: str) -> None:
    tone_store(tmp_path / "store", clips=4, validation=1)
    command = [sys.executable, "-c", HEARS_THE_FIRST_WORD, *verb.split(), "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    said, heavy = ast.literal_eval(done.stdout)
    assert said == "store: a store of spectrograms" and heavy == []


@pytest.mark.skipif(os.name == "nt", reason="pipes end otherwise there")
def test_output__that_nobody_reads_to_its_end_is_no_mistake() -> None:
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-m", "tymbal", "pretrain", "--help"]
    done = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, check=False, timeout=60)
    os.close(writes)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), ["Error: a/b: no space left on device", "Make room"]),
        (PermissionError(errno.EACCES, "Permission denied", "a"), ["Error: a: permission denied", "rights"]),
        (OSError(errno.ENAMETOOLONG, "File name too long", "a" * 5000), ["…: file name too long", "a shorter path"]),
        (OSError(errno.EIO, "Input/output error", "a", None, "b"), ["Error: b: input/output error", "run the same"]),
        (MemoryError("Unable to allocate 9 GiB"), ["Error: there is not enough memory (Unable to allocate", "smaller"]),
    ],
)
def test_main__what_the_system_refuses_is_told(
    error: Exception, told: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setitem(vars(tymbal), "scan", refused)
    assert main(["scan", "folder", "-o", "a.csv"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert all(each in said for each in told)
    assert len(said) < 700


def test_main__a_path_that_is_too_long_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "a" * 5000, "-o", "store"]) == 2
    assert "there is no such folder or list" in capsys.readouterr().err
