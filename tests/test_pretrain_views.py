"""Contrastive pretraining through the public verb, on pairs in either form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import tymbal
from pairs import pair_store
from training_setup import TINY, make_store
from tymbal.data import open_data
from tymbal.errors import StoreError
from tymbal.models.folder import load_model
from tymbal.pretrain import pretrain
from tymbal.settings import PtSettings

SHORT: dict[str, Any] = {**TINY, "patch": "2x4", "objective": "contrastive", "batch_size": 4, "max_steps": 3}


@pytest.mark.parametrize("view_mask", ["none", "crossed"])
def test_contrastive__learns_from_pairs_and_saves_a_model(view_mask: str, tmp_path: Path) -> None:
    pairs = pair_store(tmp_path / "pairs")
    result = pretrain(pairs.path, tmp_path / "run", view_mask=view_mask, **SHORT)
    assert {"eval_loss", "eval_acc", "eval_alignment", "eval_uniformity", "eval_rank"} <= set(result.metrics)
    loaded = load_model(result.model)
    assert loaded.description.objective is not None
    assert loaded.description.objective["view_mask"] == view_mask
    assert loaded.description.features == pairs.features
    assert set(loaded.objective_state) == {
        f"projection.{part}" for part in ("0.weight", "0.bias", "2.weight", "2.bias")
    }


def test_contrastive__is_the_same_from_files_and_by_parts(tmp_path: Path) -> None:
    pairs = pair_store(tmp_path / "pairs")
    tymbal.convert(pairs.path, tmp_path / "files")
    tymbal.convert(tmp_path / "files", tmp_path / "back")
    states = [
        load_model(pretrain(tmp_path / source, tmp_path / f"run {source} {chunk}", chunk=chunk, **SHORT).model)
        for source, chunk in (("files", None), ("back", None), ("files", 2))
    ]
    first, second, third = (loaded.module.state_dict() for loaded in states)
    assert all(first[name].equal(second[name]) for name in first)
    assert all(first[name].allclose(third[name], atol=1e-4) for name in first)


def test_contrastive__needs_pairs_and_the_others_do_not_take_them(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="prepare SOUND -o STORE --views 5"):
        pretrain(make_store(tmp_path / "store").path, tmp_path / "run", **SHORT)
    with pytest.raises(StoreError, match="holds pairs of augmented views"):
        pretrain(pair_store(tmp_path / "pairs").path, tmp_path / "other", **{**SHORT, "objective": "joint"})


def test_contrastive__damaged_files_are_left_out_while_training(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tymbal.convert(pair_store(tmp_path / "pairs").path, tmp_path / "files")
    next((tmp_path / "files" / "train").iterdir()).write_bytes(b"broken")
    pretrain(tmp_path / "files", tmp_path / "run", **{**SHORT, "max_steps": 6})
    assert "is left out: unreadable" in capsys.readouterr().err.replace("\n", " ")


def test_padded_clips__are_the_short_ones_in_every_form(tmp_path: Path) -> None:
    (tmp_path / "sound").mkdir()
    noise = np.random.default_rng(0).normal(0, 0.1, 4000)
    for number, samples in enumerate((4000, 1500, 3999, 3872)):
        soundfile.write(tmp_path / "sound" / f"{number}.wav", noise[:samples], 8000)
    features: dict[str, Any] = {"sample_rate": 8000, "mel_bins": 16, "n_fft": 256, "hop_length": 128}
    common = {**features, "window": 0.5, "workers": 1, "split": "none"}
    found = {}
    for write in ("store", "pt", "waveforms"):
        tymbal.prepare(tmp_path / "sound", tmp_path / write, views=1, write=write, **common)
        store = open_data(tmp_path / write, PtSettings()).store()
        short = dict(zip(store.index["id"].to_pylist(), store.padded_clips().tolist(), strict=True))
        found[write] = [short[name] for name in sorted(short)]
    # 3,872 samples still have a frame around sample 3,840; the window's last one lies at 3,968.
    assert all(short == [False, True, False, True] for short in found.values())
    assert len(found) == 3


def test_padded_clips__are_none_where_nobody_wrote_it_down(tmp_path: Path) -> None:
    pairs = pair_store(tmp_path / "pairs")
    assert not pairs.padded_clips().any()
