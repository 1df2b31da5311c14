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
from tymbal.evaluation.run_probes import _finest_grid, run_probes
from tymbal.features.kaldi import LOG_FLOOR
from tymbal.inference.frontend import ready_model
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.models.folder import save_model
from tymbal.settings import ProbeSettings
from tymbal.store.packed.writer import Entry, write_store

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
    together = probe(model, store, layer="all", pooling=("rows",), random=False, **QUICK)
    rows = [row for row in together.rows if row.features == "model" and row.reader == "logistic"]
    assert [row.layer for row in rows] == [0, 1, 2, None]
    for row in rows:
        alone = probe(model, store, layer=row.layer, random=False, cache=False, **QUICK)
        assert alone.figure("model") == row.figures["accuracy"]
    assert [line.split()[2] for line in together.summary().splitlines()[3:9]] == ["-", "-", "0", "1", "2", "last"]
    with pytest.raises(SettingsError, match="layers and layer are one setting"):
        probe(model, store, layer=1, layers="all")


def test_probe__a_learned_mix_of_layers_beside_the_last(tmp_path: Path) -> None:
    """Random weights are mixed, too, with weights of their own; the mix stands for the model in the verdict."""
    model, store = saved(tmp_path / "model"), tone_store(tmp_path / "store").path
    result = probe(model, store, tmp_path / "out.json", layer="mix", pooling=("grid",), folds=2, **QUICK)
    rows = [row for row in result.rows if row.reader == "ridge"]
    assert [(row.features, row.layer) for row in rows] == [
        ("baseline", None),
        ("plain", None),
        ("random", None),
        ("random", "mix"),
        ("random+plain", "mix"),
        ("model", None),
        ("model", "mix"),
        ("model+plain", "mix"),
    ]
    mixes = {row.features: row.layer_weights for row in rows if row.layer == "mix"}
    assert all(len(weights) == 3 and sum(weights) == pytest.approx(1) for weights in mixes.values())
    assert mixes["model"] != mixes["random"]
    written = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["layer_weights"] for row in written if row["layer"] == "mix" and row["features"] == "model"] == [
        list(mixes["model"])
    ] * 3
    assert result.verdict is not None
    assert (
        result.verdict.model
        == next(row for row in rows if row.layer == "mix" and row.features == "model").figures["accuracy"]
    )


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
    assert seen == [(36, 12, 3)] * 16  # four groups of twelve clips; baseline, plain, grid (and rows), both
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
        len(run.rows) == 2 * 5 * 2 + 2
    )  # two plain lines, two of the model and one of both by two readers, tokens by one; with all clips and two a class
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
    original = module.plain_features

    def losing(*given: object):
        found = original(*given)
        delete(store, 16)
        return found

    monkeypatch.setattr(module, "plain_features", losing)
    run = run_probes(ready_model(small_model(tmp_path / "model"), settings), store, labelled_clips(store), settings)
    read = {row.features: len(row.scores) for row in run.rows}
    assert read == {"baseline": 9, "plain": 9, "model": 8, "model+plain": 8}
    assert 16 not in run.clips.validation


def ordered_store(path: Path) -> Path:
    """Two pitches in a row, in one order or the other: of both labels the mean over time is the same."""
    entries = []
    generator = np.random.default_rng(0)
    for number in range(64):
        label = ("up", "down")[number % 2]
        sound = generator.normal(scale=0.3, size=(FRAMES, FEATURES.mel_bins)).astype(np.float32) - 6
        first, second = (3, 12) if label == "up" else (12, 3)
        sound[: FRAMES // 2, first] += 4
        sound[FRAMES // 2 :, second] += 4
        split = "validation" if number >= 48 else "train"
        entry = Entry(
            id=str(number),
            file=f"/ordered/{number}.wav",
            start=0.0,
            end=0.3,
            frames=FRAMES,
            labels=(label,),
            group=f"group {number // 4}",
            split=split,
        )
        entries.append((sound, entry))
    write_store(path / "store", entries, features=FEATURES, frames=FRAMES)
    return path / "store"


def test_probe__grid_reads_order_in_time_which_rows_cannot(tmp_path: Path) -> None:
    model, store = saved(tmp_path / "model"), ordered_store(tmp_path)
    result = probe(model, store, tmp_path / "out.json", readers=("ridge", "knn"), **QUICK)
    rows = {row.features: row for row in result.rows if row.is_grid and row.reader == "ridge"}
    assert set(rows) == {"random", "random+plain", "model", "model+plain"}
    for name in ("random", "model"):
        chosen = rows[name].chosen_from
        assert rows[name].pooling.split(":")[1] in "248"
        assert chosen["grid:1"] < 0.9
        assert chosen[rows[name].pooling] == 1.0
        assert rows[name].figures["accuracy"] == 1.0
        parts = int(rows[name].pooling.split(":")[1])
        assert rows[name].dimensions == 2 * parts * 16
        assert result.figure(name, pooling="rows", reader="ridge") < 0.9
    assert result.figure("plain", reader="ridge") == 1.0
    assert result.figure("model", pooling="grid", reader="ridge") == rows["model"].figures["accuracy"]
    line = next(line for line in result.summary().splitlines() if line.startswith("model ") and "grid" in line)
    assert line.split()[:3] == ["model", rows["model"].pooling, str(rows["model"].dimensions)]


def test_probe__grid_of_fixed_parts_is_the_one_that_is_chosen_from(tmp_path: Path) -> None:
    model, store = saved(tmp_path / "model"), ordered_store(tmp_path)
    settings = {"readers": ("ridge",), "random": False, **QUICK}
    chosen = probe(model, store, pooling=("grid",), **settings).rows[2]
    parts = chosen.pooling.split(":")[1]
    fixed = probe(model, store, pooling=(f"grid{parts}",), **settings).rows[2]
    assert (fixed.pooling, fixed.dimensions) == (f"grid{parts}", chosen.dimensions)
    np.testing.assert_allclose(fixed.scores, chosen.scores, atol=1e-4)


def test_probe__the_choice_never_sees_the_clips_that_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tymbal.evaluation import run_probes as module

    seen: list[tuple[int, int, frozenset[str]]] = []
    original = module.choose

    def watched(candidates, truth, **given):
        sizes = {len(values) for values in candidates.values()}
        seen.append((len(truth), *sizes, frozenset(given["groups"])))
        return original(candidates, truth, **given)

    monkeypatch.setattr(module, "choose", watched)
    model, store = saved(tmp_path / "model"), ordered_store(tmp_path)
    result = probe(model, store, readers=("ridge",), folds=4, random=False, pooling=("grid",), **QUICK)
    assert [(clips, values) for clips, values, _ in seen] == [(48, 48)] * 12  # baseline, plain, grid of four folds
    assert {len(groups) for *_, groups in seen} == {12}
    assert len({groups for *_, groups in seen}) == 4
    row = next(row for row in result.rows if row.features == "model")
    assert row.repeats == 4
    assert sorted(row.asked.tolist()) == list(range(64))
    assert row.marks.mean() == pytest.approx(row.figures["accuracy"])
    assert result.verdict.groups == 16


def test_probe__both_layers_are_the_middle_the_last_and_the_two_side_by_side(tmp_path: Path) -> None:
    model, store = saved(tmp_path / "model"), tone_store(tmp_path / "store").path
    result = probe(model, store, tmp_path / "out.json", layer="both", pooling=("rows",), readers=("knn",), **QUICK)
    rows = [row for row in result.rows if row.features in ("random", "model")]
    assert [(row.features, row.layer, row.dimensions) for row in rows] == [
        (name, layer, width) for name in ("random", "model") for layer, width in ((1, 32), (None, 32), ("both", 64))
    ]
    assert result.rows[-1].dimensions == 64 + 80  # with the plain line
    assert [line.split()[2] for line in result.summary().splitlines()[5:8]] == ["1", "last", "both"]
    written = json.loads((tmp_path / "out.json").read_text())
    assert [row["layer"] for row in written["rows"]][-3:] == [None, "both", "both"]


def test_probe__few_shots_read_what_they_can_choose_from(tmp_path: Path) -> None:
    """With one clip a class there are no folds: the objective's own parts are read, and the preferred plain line."""
    model, store = saved(tmp_path / "model"), ordered_store(tmp_path)
    result = probe(model, store, shots=(1,), draws=3, readers=("ridge",), random=False, pooling=("grid",), **QUICK)
    pooled = {row.features: row.pooling for row in result.rows if row.shots == 1}
    assert pooled == {"baseline": "moments", "plain": "clip:4", "model": "grid:1", "model+plain": "grid:1+clip:4"}


def test_run_probes__fitting_shows_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, store = saved(tmp_path / "model"), tone_store(tmp_path / "store").path
    probe(model, store, readers=("knn",), random=False, pooling=("mean",), shots=(1,), draws=3, **QUICK)
    assert "Fitting: 16/16 fits" in capsys.readouterr().err  # four lines, each of all clips and of three draws


def test_finest_grid__is_what_can_be_held() -> None:
    config = EncoderConfig(width=16, depth=2, heads=2, mels=16, frames=FRAMES, patch=(8, 8), stride=(8, 8))
    found = [_finest_grid(config, clips) for clips in (1000, 2_000_000, 4_000_000, 10_000_000, 10**9)]
    assert found == ["grid8", "grid4", "grid2", "rows", "rows"]
