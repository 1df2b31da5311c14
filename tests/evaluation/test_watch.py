from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from damaged import delete, pt_store
from small_model import small_model
from tones import tone_store
from training_setup import TINY, make_store
from tymbal import load_model, pretrain, probe, report
from tymbal.errors import ModelError, SettingsError
from tymbal.evaluation.labelled_clips import labelled_clips
from tymbal.evaluation.watch import LabelProbe, Watch, alarms, mean_cosine, rank_me, undisturbed
from tymbal.inference.encoding import FrozenEncoder
from tymbal.objectives import registry
from tymbal.training.figures import read_metrics

ACC = ("acc", True)
QUICK = {"device": "cpu", "precision": "float32"}


def test_rank_me__counts_directions_that_are_used() -> None:
    assert rank_me(np.eye(8)) == pytest.approx(8, rel=1e-3)
    assert rank_me(np.ones((8, 5))) == pytest.approx(1, rel=1e-3)
    assert rank_me(np.diag([1.0, 1.0, 0.0, 0.0])) == pytest.approx(2, rel=1e-3)


def test_mean_cosine__is_that_of_all_pairs() -> None:
    vectors = np.random.default_rng(0).normal(size=(6, 3)) + 1
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [unit[i] @ unit[j] for i in range(6) for j in range(6) if i != j]
    assert mean_cosine(vectors) == pytest.approx(np.mean(pairs))
    assert mean_cosine(np.ones((4, 3))) == pytest.approx(1)


def evaluation(acc: float = 0.5, *, rank: float = 9.0, cosine: float = 0.5, **more: float) -> dict[str, float]:
    return {"eval_acc": acc, "eval_rank": rank, "eval_cosine": cosine, **more}


def test_alarms__each_cause_once() -> None:
    assert alarms([evaluation()], monitor=ACC) == []
    assert alarms([evaluation(), evaluation(cosine=0.99995)], monitor=ACC) == ["collapse"]
    assert alarms([evaluation(rank=9), evaluation(rank=4, cosine=0.995)], monitor=ACC) == ["collapse"]
    assert alarms([evaluation(rank=9), evaluation(rank=4)], monitor=ACC) == []
    low = evaluation(rank=1.2, cosine=0.9995)  # from the first evaluation on, as with a learning rate of 3
    assert alarms([low], monitor=ACC) == []
    assert alarms([low, low], monitor=ACC) == ["collapse"]
    assert alarms([evaluation(rank=1.2, cosine=0.9)] * 2, monitor=ACC) == []
    assert alarms([evaluation(cosine=1.0, alarm_collapse=1.0), evaluation(cosine=1.0)], monitor=ACC) == []
    assert alarms([{"eval_acc": 0.5}], monitor=ACC) == ["not_finite"]


def test_alarms__what_the_weights_knew_is_forgotten() -> None:
    def fall(figure: float) -> float:
        return 0.05

    start = evaluation(epoch=0.0, eval_probe_accuracy=0.8)
    kept, lost = (evaluation(epoch=5.0, eval_probe_accuracy=value) for value in (0.751, 0.749))
    assert alarms([start], monitor=ACC, fall=fall) == []
    assert alarms([start, kept], monitor=ACC, fall=fall) == []
    assert alarms([start, kept, evaluation(epoch=6.0)], monitor=ACC, fall=fall) == []  # nothing was probed
    assert alarms([start, kept, lost], monitor=ACC, fall=fall) == ["forgetting"]
    assert alarms([start, {**lost, "alarm_forgetting": 1.0}, lost], monitor=ACC, fall=fall) == []
    later = evaluation(epoch=5.0, eval_probe_accuracy=0.8)  # without a probe before the first step
    assert alarms([later, evaluation(epoch=10.0, eval_probe_accuracy=0.1)], monitor=ACC, fall=fall) == []
    several = [evaluation(epoch=0.0, eval_probe_mAP=0.8), evaluation(epoch=1.0, eval_probe_mAP=0.6)]
    assert alarms(several, monitor=ACC, fall=fall) == ["forgetting"]
    assert alarms(several, monitor=ACC) == []


def test_alarms__plateau_is_eight_evaluations_without_progress() -> None:
    rising = [evaluation(0.1 * number) for number in range(1, 5)]
    still = [evaluation(0.39)] * 8
    assert alarms(rising + still[:7], monitor=ACC) == []
    assert alarms(rising + still, monitor=ACC) == ["plateau"]
    assert alarms(rising + still, monitor=("acc", False)) == ["plateau"]
    assert alarms(rising + [evaluation(0.05)] * 8, monitor=("acc", False)) == []


def test_undisturbed__all_generators_are_put_back() -> None:
    def state() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))  # noqa: NPY002

    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    wanted = state()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    with undisturbed():
        state()
    assert state() == wanted


def test_pretrain__probe_is_logged_every_so_many_epochs_and_changes_no_weight(tmp_path: Path) -> None:
    store = tone_store(tmp_path / "store")
    settings = TINY | {"batch_size": 12}
    plain = pretrain(store.path, tmp_path / "plain", **settings)
    probed = pretrain(store.path, tmp_path / "probed", **settings, probe_data=str(store.path), probe_every=2)
    weights = [(run.model / "model.safetensors").read_bytes() for run in (plain, probed)]
    assert weights[0] == weights[1]
    lines = [line for line in read_metrics(tmp_path / "probed" / "metrics.jsonl") if "eval_acc" in line]
    assert [round(line["epoch"]) for line in lines] == [1, 2, 3, 4]
    assert ["eval_probe_accuracy" in line for line in lines] == [False, True, False, True]
    assert all(0 <= lines[1][f"eval_{name}_accuracy"] <= 1 for name in ("probe", "knn"))
    assert all(1 <= line["eval_rank"] <= 12 and -1 <= line["eval_cosine"] <= 1 for line in lines)
    # What needs no training stays where it is.
    for name in ("probe_random", "knn_random", "probe_plain", "knn_plain"):
        assert lines[1][f"eval_{name}_accuracy"] == lines[3][f"eval_{name}_accuracy"]
    page = report(tmp_path / "probed", map="pca", device="cpu", data=str(store.path)).output.read_text()
    assert "linear probe: accuracy" in page
    assert "random weights" in page and "the best plain line" in page


def test_label_probe__reads_as_the_objective_compares_and_random_weights_alike(tmp_path: Path) -> None:
    """The figures are those of `tymbal probe` with the objective's own parts, and middle and last layer."""
    store, loaded = tone_store(tmp_path / "store", clips=16), load_model(small_model(tmp_path / "model"))
    description = replace(loaded.description, objective={"objective": "lejepa", "parts": 2})
    settings = registry.resolve({"probe_data": str(store.path), "seed": 3})
    opened = LabelProbe.open(settings, description)
    assert opened is not None
    assert (opened._pooling, opened._both) == ("grid2", True)
    figures = opened.read(FrozenEncoder(loaded.module, description.normalisation))
    probed = probe(tmp_path / "model", store.path, layer="both", pooling=("grid2",), seed=3, cache=False, **QUICK)
    for features, name in (("model", ""), ("random", "random_"), ("plain", "plain_")):
        for reader, figure in (("logistic", "probe"), ("knn", "knn")):
            (row,) = (
                row
                for row in probed.rows
                if (row.features, row.reader, row.layer) == (features, reader, None if features == "plain" else "both")
            )
            assert figures[f"{figure}_{name}accuracy"] == row.figures["accuracy"]


def test_label_probe__of_an_older_run_reads_as_it_did(tmp_path: Path) -> None:
    begun = {"objective": "lejepa", "probe_every": 5.0}  # as recorded before there was a choice
    assert registry.resolve({"objective": "lejepa"}, begun=begun).probe_pooling == "mean"
    assert registry.resolve({"objective": "lejepa"}).probe_pooling == "grid"
    store, loaded = tone_store(tmp_path / "store", clips=8), load_model(small_model(tmp_path / "model"))
    settings = registry.resolve({"probe_data": str(store.path), "probe_pooling": "mean"})
    opened = LabelProbe.open(settings, loaded.description)
    assert opened is not None
    assert (opened._pooling, opened._both) == ("mean", False)


def test_pretrain__probe_goes_on_where_it_was_after_a_stop(tmp_path: Path) -> None:
    store = tone_store(tmp_path / "store")
    settings = TINY | {"batch_size": 12, "probe_data": str(store.path), "probe_every": 3}
    pretrain(store.path, tmp_path / "whole", **settings)
    pretrain(store.path, tmp_path / "cut", **settings, max_minutes=1e-6)
    pretrain(store.path, tmp_path / "cut", **settings)
    whole, cut = (
        [
            {
                key: value
                for key, value in line.items()
                if key in {"step", "eval_rank", "eval_cosine"} or "accuracy" in key
            }
            for line in read_metrics(tmp_path / name / "metrics.jsonl")
            if "eval_acc" in line and line["step"] > 1
        ]
        for name in ("whole", "cut")
    )
    assert whole == cut
    assert ["eval_probe_accuracy" in line for line in whole] == [False, False, True, False]


def test_pretrain__collapse_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from tymbal.evaluation import watch

    monkeypatch.setattr(watch, "mean_cosine", lambda _: 1.0)
    make_store(tmp_path / "store")
    pretrain(tmp_path / "store", tmp_path / "run", **TINY)
    assert capsys.readouterr().err.count("All clips look alike to the encoder.") == 1
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert sum("alarm_collapse" in line for line in lines) == 1


def test_pretrain__probe_data_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    make_store(tmp_path / "store")
    make_store(tmp_path / "whole", validation=0)
    tone_store(tmp_path / "tones", clips=6, validation=2)
    with pytest.raises(ModelError, match="other spectrograms"):
        pretrain(tmp_path / "store", tmp_path / "run", **TINY, probe_data=str(tmp_path / "tones"))
    with pytest.raises(SettingsError, match="no validation clips"):
        store = tone_store(tmp_path / "untold", clips=6, validation=0)
        pretrain(store.path, tmp_path / "other", **TINY, probe_data=str(tmp_path / "tones"))


def test_watch__looks_at_the_clips_that_can_be_read(tmp_path: Path) -> None:
    store, loaded = pt_store(tmp_path), load_model(small_model(tmp_path / "model"))
    probe = LabelProbe(store, labelled_clips(store), every=1, seed=0)
    rows = store.rows("validation")

    def look(rows: np.ndarray) -> dict[str, float]:
        watch = Watch(loaded.module, loaded.description, store, rows, history=list, monitor=("acc", True), probe=probe)
        return watch({"eval_acc": 0.5}, 1.0)

    delete(store, 2, 16)
    assert look(rows) == look(np.setdiff1d(rows, [16]))
    assert {"eval_rank", "eval_cosine", "eval_probe_accuracy", "eval_knn_accuracy"} <= look(rows).keys()
    delete(store, *np.setdiff1d(rows, [16]).tolist())
    assert look(rows) == {}


def test_watch__a_single_clip_is_no_collapse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load_model(small_model(tmp_path / "model"))
    store = tone_store(tmp_path / "tones")
    for count, alarmed in ((1, False), (8, True)):
        rows = np.zeros(count, np.int64)
        watch = Watch(loaded.module, loaded.description, store, np.arange(count), history=list, monitor=("acc", True))
        watch._rows = rows  # the same clip, over and over
        figures = watch({"eval_acc": 0.5}, 1.0)
        assert figures["eval_cosine"] == pytest.approx(1.0)
        assert ("alarm_collapse" in figures) == alarmed
    assert capsys.readouterr().err.count("Collapse") == 1
