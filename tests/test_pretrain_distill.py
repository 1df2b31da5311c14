"""Pretraining that learns from a teacher, from the verb to the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import tymbal
from small_model import small_model
from small_run import lines
from tones import FEATURES, tone_store
from tymbal.config import read_run_yaml
from tymbal.errors import SettingsError, StoreError
from tymbal.models.folder import load_model
from tymbal.objectives.distill import DistillObjective
from tymbal.pretrain import pretrain

SHORT: dict[str, Any] = {
    "objective": "distill",
    "width": 16,
    "depth": 2,
    "heads": 2,
    "patch": "16x2",
    "batch_size": 8,
    "max_steps": 12,
    "eval_steps": 6,
    "device": "cpu",
    "precision": "float32",
    "report_to": (),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tone_store(tmp_path_factory.mktemp("data") / "store").path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("teacher") / "model", seed=3)


@pytest.fixture(scope="module")
def run(store: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run") / "run"
    pretrain(store, run, teacher=str(teacher), **SHORT)
    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    loaded = load_model(run)
    return {**loaded.module.state_dict(), **loaded.objective_state}


def test_distill__writes_a_run_that_says_how_the_teacher_is_met(run: Path, store: Path, teacher: Path):
    recorded = read_run_yaml(run).settings
    assert (recorded["teacher"], recorded["parts"], recorded["with"]) == (str(teacher), 4, [])
    assert Path(json.loads((run / "teacher.json").read_text())["kept"]).parent == store.with_name("store.teachers")
    evaluated = [line for line in lines(run) if "eval_fit" in line]
    assert [line["step"] for line in evaluated] == [6, 12]
    assert {"eval_fit", "eval_teacher_cosine", "eval_loss", "eval_rank"} <= evaluated[0].keys()
    found = json.loads((run / "teacher.json").read_text())
    assert list(found["labels"]) == ["high", "low", "middle"]
    assert [found["labels"][name]["clips"] for name in found["labels"]] == [4, 4, 4]
    best = max(line["eval_fit"] for line in evaluated)
    assert found["fit"] == pytest.approx(best, abs=1e-4)
    assert found["student"]["clips_per_second"] > 0
    assert found["teacher"]["clips_per_second"] > 0
    assert found["teacher"]["megabytes"] == pytest.approx(
        4e-6 * sum(value.numel() for value in load_model(teacher).module.parameters())
    )
    described = load_model(run).description
    assert described.embedding == "grid4"
    assert described.objective is not None
    assert described.objective["objective"] == "distill"


def test_distill__learns_what_the_teacher_says(store: Path, teacher: Path, tmp_path: Path):
    result = pretrain(store, tmp_path / "run", teacher=str(teacher), **{**SHORT, "max_steps": 150, "eval_steps": 50})
    assert result.metrics["eval_fit"] > 0.5


def test_distill__run_yaml_repeats_the_run(run: Path, store: Path, tmp_path: Path):
    pretrain(store, tmp_path / "again", config=run / "run.yaml")
    first, second = weights(run), weights(tmp_path / "again")
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.parametrize("changes", [{}, {"teacher_views": True}, {"with_": ("lejepa", "0.5")}])
def test_distill__continues_to_the_same_weights(changes: dict[str, Any], store: Path, teacher: Path, tmp_path: Path):
    given = {**SHORT, **changes, "teacher": str(teacher)}
    pretrain(store, tmp_path / "whole", **given)

    def stop(evaluation: Any) -> None:
        if evaluation.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(store, tmp_path / "halves", on_evaluation=stop, **{**given, "save_every": 0.01})
    pretrain(store, tmp_path / "halves", **{**given, "save_every": 0.01})
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "halves")
    assert all(first[name].equal(second[name]) for name in first)


def test_distill__goes_on_without_the_teacher_by_what_is_kept(store: Path, teacher: Path, tmp_path: Path):
    moved = shutil.copytree(teacher, tmp_path / "teacher")
    given = {**SHORT, "teacher": str(moved)}

    def stop(evaluation: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(store, tmp_path / "run", on_evaluation=stop, **given)
    shutil.rmtree(moved)
    result = pretrain(store, tmp_path / "run", **given)
    assert result.steps == 12
    found = json.loads((tmp_path / "run" / "teacher.json").read_text())
    assert found["teacher"]["clips_per_second"] is None
    with pytest.raises(tymbal.TymbalError):
        pretrain(store, tmp_path / "other", **given)


def test_distill__a_table_teaches_what_it_has_and_names_the_rest(store: Path, tmp_path: Path):
    opened = tymbal.Store.open(store)
    files = [name for name in opened.index["file"].to_pylist() if not name.endswith(("/0.wav", "/9.wav"))]
    values = np.random.default_rng(0).normal(size=(len(files), 6)).astype(np.float32)
    table = tmp_path / "others.parquet"
    pq.write_table(pa.table({"file": files, "embedding": values.tolist()}), table)
    pretrain(store, tmp_path / "run", teacher=str(table), **SHORT)
    left_out = (tmp_path / "run" / "teacher.failures.csv").read_text()
    assert left_out.count("the table has no row of it") == 6
    assert "/tones/low/9.wav" in left_out
    assert json.loads((tmp_path / "run" / "teacher.json").read_text())["clips"] == 9  # of 12 to validate on
    with pytest.raises(SettingsError, match="does not read the store's spectrograms"):
        pretrain(store, tmp_path / "views", teacher=str(table), teacher_views=True, **SHORT)


def test_distill__without_evaluation_clips_is_compared_on_what_it_learned(teacher: Path, tmp_path: Path):
    whole = tone_store(tmp_path / "store", clips=6, validation=0)
    pretrain(whole.path, tmp_path / "run", teacher=str(teacher), **SHORT)
    assert json.loads((tmp_path / "run" / "teacher.json").read_text())["clips"] == 18


def test_distill__mistakes_are_named(store: Path, tmp_path: Path):
    with pytest.raises(SettingsError, match="none is given"):
        pretrain(store, tmp_path / "a", **SHORT)
    same = pa.table({"file": tymbal.Store.open(store).index["file"], "embedding": [[1.0, 2.0]] * 48})
    pq.write_table(same, tmp_path / "same.parquet")
    with pytest.raises(SettingsError, match="says the same of all clips"):
        pretrain(store, tmp_path / "b", teacher=str(tmp_path / "same.parquet"), **SHORT)
    other = pa.table({"file": ["nothing.wav"], "embedding": [[1.0, 2.0]]})
    pq.write_table(other, tmp_path / "other.parquet")
    with pytest.raises(StoreError, match="says nothing of any clip"):
        pretrain(store, tmp_path / "c", teacher=str(tmp_path / "other.parquet"), **SHORT)


def test_distill__its_encoder_is_fine_tuned_and_its_views_are_drawn(run: Path, store: Path, tmp_path: Path):
    result = tymbal.finetune(store, tmp_path / "c", from_=str(run), max_steps=2, device="cpu", report_to=())
    assert load_model(result.model).description.labels == ("high", "low", "middle")
    page = tmp_path / "page.html"
    tymbal.report(run, page, device="cpu", sounds=0)
    text = page.read_text()
    assert "the student&#x27;s view" in text
    assert "Teacher and student" in text
    assert "clips a second" in text
    assert "middle" in text


def test_target__of_the_model_folder_is_that_of_the_run(run: Path, store: Path):
    from tymbal.reporting.run_part import built_objective

    loaded = load_model(run)
    objective = built_objective(loaded, tymbal.Store.open(store))
    assert isinstance(objective, DistillObjective)
    assert set(loaded.objective_state) == set(objective.head_state())
    assert loaded.description.features == FEATURES


def test_probe__reads_teacher_and_student_side_by_side(run: Path, store: Path, teacher: Path, tmp_path: Path):
    table = tmp_path / "probe.json"
    result = tymbal.probe(run, store, table, teacher=str(teacher), pooling=("grid",), device="cpu")
    vectors = load_model(teacher)
    assert result.figure("teacher", reader="ridge") > 0.6  # it hears which tone is which
    (row,) = [row for row in result.rows if row.features == "teacher" and row.reader == "ridge"]
    assert row.pooling in ("parts", "mean")
    assert row.dimensions == {"parts": 4 * 32, "mean": 32}[row.pooling]
    megabytes = 4e-6 * sum(value.numel() for value in vectors.module.parameters())
    assert result.sides["teacher"]["megabytes"] == pytest.approx(megabytes)
    assert "teacher: " in result.summary()
    assert "clips a second" in result.summary()
    tymbal.report(table, tmp_path / "page.html")
    assert (
        "The teacher is what the model may have learned from: the teacher has" in (tmp_path / "page.html").read_text()
    )
    alone = tymbal.probe(run, store, pooling=("grid",), device="cpu")
    assert alone.sides == {}
    assert [row for row in result.rows if row.features != "teacher"] == list(alone.rows)
