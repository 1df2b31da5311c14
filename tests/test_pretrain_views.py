"""Contrastive pretraining through the public verb, on pairs in either form."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml

import tymbal
from pairs import pair_store
from training_setup import TINY, make_store
from tymbal.config import read_run_yaml
from tymbal.data import open_data
from tymbal.errors import SettingsError, StoreError
from tymbal.models.folder import load_model
from tymbal.pretrain import pretrain
from tymbal.settings import PtSettings
from tymbal.stopping import Stopped

SHORT: dict[str, Any] = {**TINY, "patch": "2x4", "objective": "contrastive", "batch_size": 4, "max_steps": 3}


BEFORE: dict[str, Any] = {
    "projection_norm": False,
    "projection_parts": 0,
    "view_mask": "none",
    "view_padding": "found",
}
"""The defaults of runs that earlier versions began."""


@pytest.mark.parametrize("view_mask", ["none", "crossed", "random"])
def test_contrastive__learns_from_pairs_and_saves_a_model(view_mask: str, tmp_path: Path) -> None:
    pairs = pair_store(tmp_path / "pairs")
    result = pretrain(pairs.path, tmp_path / "run", view_mask=view_mask, **SHORT)
    assert {"eval_loss", "eval_acc", "eval_alignment", "eval_uniformity", "eval_rank"} <= set(result.metrics)
    loaded = load_model(result.model)
    assert loaded.description.objective is not None
    assert loaded.description.objective["view_mask"] == view_mask
    assert loaded.description.features == pairs.features
    names = {name.removeprefix("projection.") for name in loaded.objective_state}
    assert names >= {"0.weight", "0.bias", "1.running_mean", "1.running_var", "3.weight", "3.bias"}


def test_contrastive__is_the_same_from_files_and_by_parts(tmp_path: Path) -> None:
    pairs = pair_store(tmp_path / "pairs")
    tymbal.convert(pairs.path, tmp_path / "files")
    tymbal.convert(tmp_path / "files", tmp_path / "back")
    states = [
        # With batch norm, what is the same for all tokens has no gradient; Adam makes steps of what rounding leaves.
        load_model(
            pretrain(tmp_path / source, tmp_path / f"run {source} {chunk}", chunk=chunk, **SHORT, **BEFORE).model
        )
        for source, chunk in (("files", None), ("back", None), ("files", 2))
    ]
    first, second, third = (loaded.module.state_dict() for loaded in states)
    assert all(first[name].equal(second[name]) for name in first)
    assert all(first[name].allclose(third[name], atol=1e-4) for name in first)


def test_contrastive__needs_pairs_and_the_others_do_not_take_them(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="prepare SOUND -o STORE --views 5"):
        pretrain(make_store(tmp_path / "store").path, tmp_path / "run", view_source="generated", **SHORT)
    with pytest.raises(StoreError, match="holds pairs of augmented views"):
        pretrain(pair_store(tmp_path / "pairs").path, tmp_path / "other", **{**SHORT, "objective": "joint"})


def test_contrastive__damaged_files_are_left_out_while_training(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tymbal.convert(pair_store(tmp_path / "pairs").path, tmp_path / "files")
    next((tmp_path / "files" / "train").iterdir()).write_bytes(b"broken")
    pretrain(tmp_path / "files", tmp_path / "run", **{**SHORT, "max_steps": 6})
    assert "is left out: unreadable" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize("kind", ["store", "pt", "sound"])
def test_contrastive__draws_views_of_single_spectrograms(kind: str, tmp_path: Path) -> None:
    learn = {**SHORT, "patch": "8x8", "eval_steps": 3}
    if kind == "sound":
        data = tmp_path / "sound"
        data.mkdir()
        for number in range(12):
            noise = np.random.default_rng(number).normal(0, 0.1, 4000 + 300 * number)
            soundfile.write(data / f"{number}.wav", noise, 8000)
        learn |= {"view_source": "spectrogram", "frames": 64, "validation": 0.3, "patch": "16x16"}
    else:
        data = make_store(tmp_path / "store").path
        if kind == "pt":
            tymbal.convert(data, tmp_path / "files")
            data, learn["validation"] = tmp_path / "files", 0.2
    result = pretrain(data, tmp_path / "run", **learn)
    # Watched as every objective on single spectrograms is.
    assert {"eval_acc", "eval_chance", "eval_rank", "eval_cosine"} <= set(result.metrics)
    again = pretrain(data, tmp_path / "again", **learn)
    first, second = (load_model(each.model).module.state_dict() for each in (result, again))
    assert all(first[name].equal(second[name]) for name in first)


def test_contrastive__views_of_spectrograms_need_single_ones(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds pairs of augmented views"):
        pretrain(pair_store(tmp_path / "pairs").path, tmp_path / "run", view_source="spectrogram", **SHORT)


def test_contrastive__negatives_of_the_group_need_groups(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="have no groups"):
        pretrain(make_store(tmp_path / "store").path, tmp_path / "run", negatives="group", **{**SHORT, "patch": "8x8"})


def older(run: Path) -> None:
    """Makes the record of a run that of an earlier version."""
    record = yaml.safe_load((run / "run.yaml").read_text())
    for name in ("projection_norm", "projection_parts", "negatives", "view_padding"):
        del record["settings"][name]
    (run / "run.yaml").write_text(yaml.safe_dump(record))


def test_contrastive__a_run_of_an_earlier_version_goes_on_and_repeats_as_it_was(tmp_path: Path) -> None:
    pairs = pair_store(tmp_path / "pairs").path
    learn = {**SHORT, "max_steps": 8, "eval_steps": 2}
    whole = pretrain(pairs, tmp_path / "whole", **learn, **BEFORE)
    stop: Any = lambda evaluation: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    with pytest.raises(Stopped):
        pretrain(pairs, tmp_path / "stopped", on_evaluation=stop, **learn, **BEFORE)
    older(tmp_path / "stopped")
    resumed = pretrain(pairs, tmp_path / "stopped", **learn)  # the same command as then, without new settings
    older(tmp_path / "whole")
    repeated = pretrain(pairs, tmp_path / "repeated", config=tmp_path / "whole" / "run.yaml")
    states = [load_model(each.model).module.state_dict() for each in (whole, resumed, repeated)]
    for other in states[1:]:
        assert all(states[0][name].equal(other[name]) for name in states[0])
    assert read_run_yaml(tmp_path / "stopped").settings["projection_norm"] is False
    with pytest.raises(SettingsError, match=r"projection_norm: False -> True|projection_norm: false -> true"):
        pretrain(pairs, tmp_path / "stopped", projection_norm=True, **learn)


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
