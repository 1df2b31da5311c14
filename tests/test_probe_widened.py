from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tones import FEATURES, FRAMES, tone_store
from tymbal import probe
from tymbal.errors import SettingsError
from tymbal.evaluation import embedding_cache as cache
from tymbal.evaluation.probe_tasks import draw_shots
from tymbal.features.kaldi import LOG_FLOOR
from tymbal.inference.encoding import FrozenEncoder
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.models.folder import save_model

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


def test_draw_shots__takes_so_many_of_each_class() -> None:
    truth = np.eye(3, dtype=bool)[np.array([0] * 7 + [1] * 2 + [2] * 5)]
    assert truth[draw_shots(truth, 3, seed=0)].sum(axis=0).tolist() == [3, 2, 3]
    assert draw_shots(truth, 3, seed=0).tolist() != draw_shots(truth, 3, seed=1).tolist()


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


def test_probe__embeddings_are_kept_for_the_same_and_for_nothing_else(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, store = saved(tmp_path / "model"), tone_store(tmp_path / "store").path
    made: list[int] = []
    embed = FrozenEncoder.embed
    monkeypatch.setattr(FrozenEncoder, "embed", lambda *a, **k: made.append(1) or embed(*a, **k))
    first = probe(model, store, **QUICK)
    assert len(made) == len(list(kept.glob("*.npy"))) == 2
    assert probe(model, store, **QUICK).rows == first.rows
    assert len(made) == 2
    probe(saved(tmp_path / "other", seed=2), store, random=False, **QUICK)
    probe(model, store, random=False, skip_padding=False, **QUICK)
    tone_store(tmp_path / "second", clips=8)
    probe(model, tmp_path / "second", random=False, **QUICK)
    assert len(made) == 5
    for file in kept.glob("*.npy"):
        file.write_bytes(file.read_bytes()[:100])
    assert probe(model, store, random=False, **QUICK).figure("model") == first.figure("model")
    assert len(made) == 6
    probe(model, store, random=False, cache=False, **QUICK)
    assert len(made) == 7


def test_keep__lets_go_of_what_was_not_used_for_longest(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setattr(cache, "_ROOM", 1500)
    for number, name in enumerate(("old", "new")):
        cache.save(name, np.zeros(150, np.float32))
        os.utime(kept / f"{name}.npy", (number, number))
    assert cache.load("old") is not None  # and so it is the one used last
    cache.save("newest", np.zeros(150, np.float32))
    assert sorted(path.stem for path in kept.iterdir()) == ["newest", "old"]
    assert cache.load("new") is None
