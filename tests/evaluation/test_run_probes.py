from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from damaged import delete, pt_store
from small_model import small_model
from tones import FEATURES, FRAMES, tone_store
from tymbal import probe
from tymbal.errors import SettingsError, StoreError
from tymbal.evaluation.labelled_clips import labelled_clips
from tymbal.evaluation.run_probes import run_probes
from tymbal.features.kaldi import LOG_FLOOR
from tymbal.inference.frontend import ready_model
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.models.folder import save_model
from tymbal.settings import ProbeSettings

QUICK = {"device": "cpu", "precision": "float32"}


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TYMBAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def saved(path: Path, *, seed: int = 1) -> Path:
    config = EncoderConfig(width=16, depth=2, heads=2, mels=16, frames=FRAMES, patch=(8, 8), stride=(8, 8))
    torch.manual_seed(seed)
    description = ModelDescription(encoder=config, features=FEATURES, mean=-6.0, std=3.0, padding=LOG_FLOOR)
    save_model(path, SpectrogramEncoder(config), description)
    return path


def test_probe__all_layers_are_those_that_are_read_one_by_one(tmp_path: Path) -> None:
    model, store = saved(tmp_path / "model"), tone_store(tmp_path / "store").path
    together = probe(model, store, layer="all", random=False, **QUICK)
    rows = [row for row in together.rows if row.features == "model" and row.reader == "logistic"]
    assert [row.layer for row in rows] == [0, 1, 2, None]
    for row in rows:
        alone = probe(model, store, layer=row.layer, random=False, cache=False, **QUICK)
        assert alone.figure("model") == row.figures["accuracy"]
    assert [line.split()[2] for line in together.summary().splitlines()[3:8]] == ["-", "0", "1", "2", "last"]
    with pytest.raises(SettingsError, match="layers and layer are one setting"):
        probe(model, store, layer=1, layers="all")


def test_probe__few_shots_have_a_mean_and_a_spread_over_draws(tmp_path: Path) -> None:
    model, store = saved(tmp_path / "model"), tone_store(tmp_path / "store").path
    result = probe(model, store, shots=(1, 5), draws=4, random=False, **QUICK)
    rows = [row for row in result.rows if row.features == "baseline" and row.reader == "logistic"]
    assert [(row.shots, row.repeats) for row in rows] == [(None, 1), (1, 4), (5, 4)]
    assert rows[0].spread is None
    assert all(row.spread is not None and 0 <= row.spread < 0.5 for row in rows[1:])
    assert rows[1].figures["accuracy"] <= rows[2].figures["accuracy"] <= 1.0
    assert " ± " in result.summary()


def test_probe__folds_keep_groups_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = __import__("tymbal.evaluation.probe_tasks", fromlist=["ProbeTask"])
    seen: list[tuple[int, int, int]] = []
    run = module.ProbeTask.run

    def watched(self, features, **names):
        seen.append((len(self.train), len(self.validation), len(set(self.groups))))
        return run(self, features, **names)

    monkeypatch.setattr(module.ProbeTask, "run", watched)
    model, store = saved(tmp_path / "model"), tone_store(tmp_path / "store").path
    result = probe(model, store, folds=4, random=False, **QUICK)
    assert seen == [(36, 12, 3)] * 8  # four groups of twelve clips, for baseline and model
    assert {row.repeats for row in result.rows} == {4}
    assert result.figure("baseline") == 1.0
    assert result.confusion == ()
    assert result.summary().splitlines()[0] == "3 classes, 48 clips in 4 folds"


def test_probe__confusion_adds_up_to_the_accuracy(tmp_path: Path) -> None:
    model, store = saved(tmp_path / "model"), tone_store(tmp_path / "store").path
    result = probe(model, store, tmp_path / "out.json", random=False, layer=0, pooling=("mean",), **QUICK)
    counts = np.array(json.loads((tmp_path / "out.json").read_text())["confusion"])
    assert counts.sum(axis=1).tolist() == [4, 4, 4]
    assert np.trace(counts) / 12 == pytest.approx(result.figure("model"))


@pytest.mark.parametrize("folds", [None, 2])
def test_run_probes__are_of_the_clips_that_can_be_read(tmp_path: Path, folds: int | None) -> None:
    store = pt_store(tmp_path)
    readers = ("logistic", "knn", "attentive")
    settings = ProbeSettings(readers=readers, shots=(2,), draws=2, folds=folds, random=False, **QUICK)
    ready = ready_model(small_model(tmp_path / "model"), settings)
    clips = labelled_clips(store)
    delete(store, 1, 15, 23)
    run = run_probes(ready, store, clips, settings)
    assert (
        len(run.rows) == 2 * 2 + 2 * 2 + 2
    )  # baseline and model by two readers, tokens by one, each with all clips and two a class
    assert [len(run.clips.train), len(run.clips.validation)] == [14, 7]
    assert {row.reader for row in run.rows} == set(readers)
    if folds is None:
        first = run.rows[0]
        assert first.truth is not None
        np.testing.assert_array_equal(first.truth, clips.truth(store, run.clips.validation))
        # As if only the others had been given.
        again = run_probes(ready, store, run.clips, settings)
        assert again.rows == run.rows
    delete(store, *run.clips.train.tolist())
    with pytest.raises(StoreError, match="not one of the clips to learn from can be read any more"):
        run_probes(ready, store, clips, ProbeSettings(random=False, **QUICK))


def test_run_probes__a_clip_lost_between_two_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tymbal.evaluation import run_probes as module

    store, settings = pt_store(tmp_path), ProbeSettings(random=False, **QUICK)
    original = module.baseline_features

    def losing(*given: object):
        found = original(*given)
        delete(store, 16)
        return found

    monkeypatch.setattr(module, "baseline_features", losing)
    run = run_probes(ready_model(small_model(tmp_path / "model"), settings), store, labelled_clips(store), settings)
    assert {row.features: len(row.scores) for row in run.rows} == {"baseline": 9, "model": 8}
    assert 16 not in run.clips.validation
