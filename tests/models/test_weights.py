"""Weights from files: nothing runs, nothing is missed."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from tymbal.errors import ModelError
from tymbal.models.folder import load_model
from tymbal.models.weights import fill, read_weights, write_weights


class Malicious:
    """A pickle that would create a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("ending", [".pth", ".bin", ".pt", ".ckpt"])
@pytest.mark.parametrize("torch_format", [True, False])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_read_weights__a_malicious_pickle_is_refused_and_does_not_run(tmp_path, ending, torch_format, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # must not open what we keep shut
    victim, path = tmp_path / "victim", tmp_path / f"model{ending}"
    content = {"module.v.patch_embed.proj.weight": Malicious(victim)}
    if torch_format:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(ModelError, match="could run a program when opened: it is refused"):
        load_model(path)
    assert not victim.exists()
    if not torch_format:  # the attack itself works
        pickle.loads(path.read_bytes())
        assert victim.exists()


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
def test_read_weights__finds_the_state_dict_and_gives_float32(tmp_path, wrap):
    state = {"a": torch.ones(2, dtype=torch.float16), "n": torch.tensor(7)}
    torch.save(wrap(state), tmp_path / "model.pth")
    read = read_weights(tmp_path / "model.pth")
    assert read["a"].dtype == torch.float32
    assert read["n"] == 7


def test_read_weights__says_what_is_wrong_with_a_file(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        read_weights(tmp_path / "absent.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(safetensors.torch.save({"a": torch.ones(100)})[:-40])
    with pytest.raises(ModelError, match="damaged"):
        read_weights(tmp_path / "cut.safetensors")
    torch.save({"a": torch.ones(1000)}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:-700])
    with pytest.raises(ModelError, match="cannot be read"):
        read_weights(tmp_path / "cut.pth")
    (tmp_path / "empty.pth").touch()
    with pytest.raises(ModelError, match="cannot be read"):
        read_weights(tmp_path / "empty.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ModelError, match="no weights by name"):
        read_weights(tmp_path / "list.pth")


def test_read_weights__an_index_does_not_lead_out_of_its_folder(tmp_path):
    write_weights(tmp_path / "secret.safetensors", {"a": torch.ones(1)})
    folder = tmp_path / "model"
    folder.mkdir()
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    with pytest.raises(ModelError, match="no such file"):
        read_weights(index)


def test_fill__names_every_fault(tmp_path):
    linear = nn.Linear(2, 3)
    with pytest.raises(
        ModelError, match=r"1 missing \(bias\), 1 unknown \(gain\), 1 of another shape \(weight is \(4, 2\)"
    ):
        fill(linear, {"weight": torch.ones(4, 2), "gain": torch.ones(3)}, path="x")
    fill(linear, {"weight": torch.ones(3, 2), "bias": torch.zeros(3)}, path="x")
    assert linear(torch.ones(2)).tolist() == [2, 2, 2]


def test_write_weights__the_same_weights_are_the_same_bytes(tmp_path):
    tensors = {"b": torch.randn(3, 4), "a": torch.arange(5), "ü": torch.ones(2).half()}
    written = set()
    for number in range(20):  # the order of two entries would be the same in all of them once in half a million times
        write_weights(tmp_path / f"{number}.safetensors", tensors)
        written.add((tmp_path / f"{number}.safetensors").read_bytes())
    assert len(written) == 1
    read = safetensors.torch.load_file(tmp_path / "0.safetensors")
    assert all(read[name].equal(tensors[name]) for name in tensors)
    with safetensors.safe_open(tmp_path / "0.safetensors", "pt") as file:
        assert file.metadata().keys() == {"format", "tymbal_crc32"}
