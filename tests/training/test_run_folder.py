"""A run folder: begun, continued, refused, or finished."""

from __future__ import annotations

from pathlib import Path

import pytest

from small_run import session, settings
from tymbal.errors import SettingsError
from tymbal.training.run import begin


def test_begin__a_first_command_that_failed_does_not_bind(tmp_path: Path):
    begin("pretrain", tmp_path / "run", {"store": "rows"}, settings(seed=1), resume="auto")
    assert session(tmp_path / "run", seed=2).steps == 15


def test_begin__run_of_another_verb_is_refused(tmp_path: Path):
    session(tmp_path / "run")
    with pytest.raises(SettingsError, match="holds a 'pretrain' run, this is 'finetune'"):
        begin("finetune", tmp_path / "run", {"source": "rows"}, settings(), resume="auto")
