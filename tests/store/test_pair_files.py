"""Pairs of views in `.pt` files: the layout that people have."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import tymbal
from pairs import FRAMES, pair_store
from tymbal.compat import PreGeneratedSpectrogramDataset
from tymbal.errors import StoreError
from tymbal.store.packed.packed_store import PairStore
from tymbal.store.pairs.pair_store import PairFileStore


@pytest.fixture
def store(tmp_path: Path) -> PairStore:
    return pair_store(tmp_path / "store")


@pytest.fixture
def folder(store: PairStore, tmp_path: Path) -> Path:
    assert "12 files" in tymbal.convert(store.path, tmp_path / "files").summary()
    return tmp_path / "files"


def metadata(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metadata.json").read_text())


def test_files__have_the_layout(folder: Path) -> None:
    told = metadata(folder)
    assert (len(told["train"]), len(told["val"])) == (10, 2)
    assert told["config"] == {
        "sample_rate": 8000,
        "n_mels": 4,
        "duration": 0.5,
        "num_versions": 2,
        "num_waveform_augs": 3,
        "num_spectrogram_augs": 2,
    }
    names = [Path(entry["file"]).name for entry in told["train"] + told["val"]]
    assert len(set(names)) == 12
    assert "a_0_v1.pt" in names


def test_files__are_found_after_their_folder_has_moved(folder: Path, tmp_path: Path) -> None:
    moved = shutil.move(folder, tmp_path / "elsewhere")
    assert len(PreGeneratedSpectrogramDataset(moved)) == 12
    assert len(PreGeneratedSpectrogramDataset(metadata(Path(moved))["train"], root=moved)) == 10
    with pytest.raises(StoreError, match="not one file"):
        PreGeneratedSpectrogramDataset(metadata(Path(moved))["train"])


def test_files__that_others_wrote_are_read(tmp_path: Path) -> None:
    """Only the layout's own keys, a path of another machine, and no statistics."""
    entries = []
    for number in range(3):
        view = torch.full((1, 4, FRAMES), float(number))
        content = {"view1": view, "view2": -view, "audio_name": f"x{number}", "version": 0, "original_path": "x.wav"}
        (tmp_path / "train").mkdir(exist_ok=True)
        torch.save(content, tmp_path / "train" / f"x{number}_v0.pt")
        file = f"data\\augmented_spectrograms\\train\\x{number}_v0.pt"
        entries.append({"file": file, "audio_name": f"x{number}", "version": 0, "shape": [1, 4, FRAMES]})
    (tmp_path / "metadata_train.json").write_text(json.dumps({"train": entries, "config": {"sample_rate": 22050}}))
    source = PairFileStore(tmp_path)
    assert source.index["id"].to_pylist() == ["x0@v0", "x1@v0", "x2@v0"]
    assert (source.mean, source.features) == (0.0, None)
    assert source.gather([2])[0, :, 0, 0].tolist() == [2.0, -2.0]
    again = pickle.loads(pickle.dumps(source))
    assert again.gather([1])[0, 0, 0, 0] == 1
