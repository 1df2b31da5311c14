"""Stores and models between formats: what comes back is the same, what cannot be held is refused."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ASTForAudioClassification, ASTModel

import tymbal
from digits import digit_files, write_digits, write_label_csv, write_list
from small_model import small_model
from training_setup import make_store
from tymbal.convert import convert
from tymbal.errors import ModelError, SettingsError, StoreError
from tymbal.features.kaldi import LOG_FLOOR
from tymbal.models.classifier import SpectrogramClassifier
from tymbal.models.description import ModelDescription
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.models.folder import load_model, save_model
from tymbal.settings import FeatureSettings
from tymbal.store.packed.packed_store import Store
from tymbal.store.pt.pt_folder import open_pt


@pytest.fixture
def digits(shared: Path, tmp_path: Path):
    files = digit_files(shared)
    values = write_digits(tmp_path / "train", files)
    return write_list(tmp_path / "train.json", files), values


def test_convert__pt_files_to_a_store_and_back_bit_by_bit(digits, tmp_path, capsys):
    source, values = digits
    (tmp_path / "train" / "0_george_0.pt").unlink()
    result = convert(source, tmp_path / "store", label_csv=str(write_label_csv(tmp_path / "labels.csv")))
    assert "39 packed spectrograms" in result.summary()
    store = Store.open(tmp_path / "store")
    original = open_pt(source, padding=None)
    np.testing.assert_array_equal(store.gather(store.rows()), original.gather(original.rows()))
    assert (store.mean, store.std, store.padding) == (original.mean, original.std, LOG_FLOOR)
    assert store.features is None
    assert set(store.index["split"].to_pylist()) == {None}
    assert store.labels[0] == "eight"
    with (tmp_path / "store" / "failures.csv").open(newline="") as file:
        assert [Path(row["file"]).stem for row in csv.DictReader(file)] == ["0_george_0"]
    assert convert(tmp_path / "store", tmp_path / "back").to.startswith("39 files")
    back = {path.stem: torch.load(path, weights_only=True) for path in (tmp_path / "back").rglob("*.pt")}
    assert back.keys() == values.keys() - {"0_george_0"}
    for stem, value in back.items():
        assert value.dtype == torch.float16
        assert value.equal(values[stem])
    # And forth again: the same store, byte by byte.
    convert(tmp_path / "back", tmp_path / "again")
    again = Store.open(tmp_path / "again")
    for shard in store.description.shards:
        assert (tmp_path / "again" / shard.file).read_bytes() == (store.path / shard.file).read_bytes()
    assert again.index.equals(store.index)
    assert (again.mean, again.std) == (store.mean, store.std)


def test_convert__settings_of_pt_files_hold(digits, tmp_path):
    source, _ = digits
    convert(source, tmp_path / "store", frames=48, padding="zeros", dataset_mean=-5.0, dataset_std=3.0)
    store = Store.open(tmp_path / "store")
    assert (store.frames, store.padding, store.mean, store.std) == (48, 0.0, -5.0, 3.0)
    short = int(np.argmin(store.real_frames))
    assert (store.gather([short])[0, store.real_frames[short] :] == 0).all()
    convert(source, tmp_path / "small", shard_mib=1, frames=1024)
    assert len(Store.open(tmp_path / "small").description.shards) > 1


def test_convert__rounding_is_said(tmp_path):
    torch.save(torch.randn(20, 128), tmp_path / "a.pt")
    result = convert(tmp_path, tmp_path.parent / f"{tmp_path.name}-store")
    assert "rounded to float16" in result.summary()


def test_convert__mistakes(digits, shared, tmp_path):
    source, _ = digits
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    with pytest.raises(SettingsError, match="the output exists already"):
        convert(source, tmp_path / "there")
    with pytest.raises(SettingsError, match="spectrograms cannot become a model"):
        convert(source, tmp_path / "x", to="hf")
    model = shared / "fixtures" / "ssast_patch.pth"
    with pytest.raises(SettingsError, match="a model cannot become spectrograms"):
        convert(model, tmp_path / "x", to="pt")
    with pytest.raises(SettingsError, match=r"ssast writes is one file, OUTPUT.pth"):
        convert(model, tmp_path / "x", to="ssast")
    with pytest.raises(SettingsError, match="hf writes is a folder"):
        convert(model, tmp_path / "x.pth", to="hf")
    with pytest.raises(SettingsError, match=r"(?s)no store, holds no .pt spectrograms.*tymbal prepare"):
        convert(shared / "data" / "fsdd", tmp_path / "x")
    with pytest.raises(ModelError, match="there is no such model"):
        convert(tmp_path / "no" / "where" / "at" / "all", tmp_path / "x")
    (tmp_path / "train" / "0_george_0.pt").write_bytes(b"x")
    with pytest.raises(StoreError, match="not one of its 40"):
        convert(source, tmp_path / "x", mel_bins=64)
    assert not (tmp_path / "x").exists()
    assert not list(tmp_path.glob("*.partial"))


UNUSED = ("module.v.head.", "module.v.head_dist.")


def equal_files(one: Path, other: Path) -> None:
    first, second = (torch.load(path, weights_only=True) for path in (one, other))
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype
        if not name.startswith(UNUSED):  # timm's heads for ImageNet, which SSAST does not use
            assert value.equal(second[name]), name


def test_convert__ssast_to_tymbal_to_hugging_face_and_back_bit_by_bit(shared, tmp_path):
    source = shared / "fixtures" / "ssast_patch.pth"
    convert(source, tmp_path / "tymbal")
    result = convert(tmp_path / "tymbal", tmp_path / "hf", to="hf")
    assert "objective.safetensors, which transformers does not read" in result.summary()
    convert(tmp_path / "hf", tmp_path / "tymbal2", to="tymbal")
    result = convert(tmp_path / "tymbal2", tmp_path / "back.pth")
    equal_files(source, tmp_path / "back.pth")
    assert "--dataset_mean -4.267739 --dataset_std 4.568997 --num_mel_bins 128 --target_length 256" in result.summary()
    stock = ASTModel.from_pretrained(tmp_path / "hf").eval()
    x = torch.randn(2, 256, 128)
    with torch.no_grad():
        own = load_model(source).module(x).tokens
        torch.testing.assert_close(stock(x).last_hidden_state, own, atol=1e-5, rtol=1e-5)


def test_convert__a_fine_tuned_model_with_what_its_file_does_not_say(shared, tmp_path):
    source = shared / "fixtures" / "ssast_patch_finetune1.pth"
    expected = np.load(shared / "fixtures" / "ssast_patch_expected.npz")
    table = tmp_path / "labels.csv"
    table.write_text("index,mid,display_name\n" + "".join(f"{i},/m/{i},bird {i}\n" for i in range(7)))
    given = {"pooling": "cls", "label_csv": str(table), "dataset_mean": -6.5, "dataset_std": 5.25, "multilabel": True}
    result = convert(source, tmp_path / "hf", to="hf", **given)
    assert "one epsilon for all layer norms, 1e-06; the head's was 1e-05" in result.summary()
    description = load_model(tmp_path / "hf").description
    assert description.labels == tuple(f"bird {i}" for i in range(7))
    assert (description.mean, description.std, description.multilabel) == (-6.5, 5.25, True)
    stock = ASTForAudioClassification.from_pretrained(tmp_path / "hf").eval()
    assert stock.config.id2label[3] == "bird 3"
    with torch.no_grad():
        logits = stock(torch.from_numpy(expected["ft1_input"])).logits
    np.testing.assert_allclose(logits.numpy(), expected["ft1_cls"], atol=1e-4)
    result = convert(tmp_path / "hf", tmp_path / "back.pth")
    equal_files(source, tmp_path / "back.pth")
    assert "--task ft_cls --fshape 16 --tshape 16 --fstride 10 --tstride 10 --n_class 7" in result.summary()
    table.write_text("index,mid,display_name\n0,/m/0,bird\n")
    with pytest.raises(SettingsError, match="the label table has 1 classes, the model 7"):
        convert(source, tmp_path / "other", **given)


def test_convert__what_stock_classes_cannot_hold_is_refused(shared, tmp_path):
    fixtures = shared / "fixtures"
    with pytest.raises(ModelError, match="cannot hold this model: its classifier pools by mean"):
        convert(fixtures / "ssast_patch_finetune1.pth", tmp_path / "hf", to="hf")
    with pytest.raises(ModelError, match="cannot hold this model: its patches are 128x2"):
        convert(fixtures / "ssast_frame.pth", tmp_path / "hf", to="hf")
    assert not (tmp_path / "hf").exists()
    # Tymbal's own folder can, and gives them back.
    convert(fixtures / "ssast_frame.pth", tmp_path / "frame")
    convert(tmp_path / "frame", tmp_path / "frame.pth")
    equal_files(fixtures / "ssast_frame.pth", tmp_path / "frame.pth")
    convert(fixtures / "ssast_frame_finetune1.pth", tmp_path / "tuned", stride="128x1")
    convert(tmp_path / "tuned", tmp_path / "tuned.pth", to="pth")
    equal_files(fixtures / "ssast_frame_finetune1.pth", tmp_path / "tuned.pth")


def own_model(folder: Path, *, pooling: str | None, heads: dict[str, torch.Tensor] | None = None) -> Path:
    config = EncoderConfig(width=64, depth=1, heads=1, mels=32, frames=32)
    module: torch.nn.Module = SpectrogramEncoder(config)
    labels: tuple[str, ...] = ()
    if pooling is not None:
        module, labels = SpectrogramClassifier(module, 2, pooling=pooling), ("ant", "frog")
    description = ModelDescription(
        encoder=config,
        features=FeatureSettings(sample_rate=8000, mel_bins=32),
        mean=-7.0,
        std=3.0,
        padding=LOG_FLOOR,
        labels=labels,
        pooling=pooling,
    )
    save_model(folder, module, description, objective_state=heads)
    return folder


def test_convert__what_ssast_cannot_hold_is_refused_or_said(tmp_path):
    with pytest.raises(ModelError, match="no pooling by rows"):
        convert(own_model(tmp_path / "rows", pooling="rows"), tmp_path / "a.pth")
    heads = {"decoder.norm.weight": torch.ones(4), "cpred.0.weight": torch.ones(4)}
    with pytest.raises(ModelError, match="cannot hold the decoder of this model"):
        convert(own_model(tmp_path / "visible", pooling=None, heads=heads), tmp_path / "a.pth")
    assert not (tmp_path / "a.pth").exists()
    notes = convert(own_model(tmp_path / "cls", pooling="cls"), tmp_path / "a.pth").summary()
    assert "SSAST itself builds tiny, small and base models only" in notes
    assert "epsilons of 1e-06 and, in the head, 1e-05" in notes
    assert "made with other settings than SSAST makes them" in notes
    assert "It knows padding as -15.94 (silence), SSAST pads with 0" in notes
    encoder = convert(own_model(tmp_path / "encoder", pooling=None), tmp_path / "b.pth").summary()
    assert "It has no cpred and gpred head" in encoder


def test_convert__is_a_verb(digits, tmp_path, capsys):
    from tymbal.cli import main

    assert tymbal.convert is convert
    assert main(["convert", str(digits[0]), str(tmp_path / "store"), "--to", "store", "--target-length", "32"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'store'}: 40 packed spectrograms\n"
    assert main(["convert", str(digits[0]), str(tmp_path / "store")]) == 2
    assert "the output exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("of_model", "settings", "name"),
    [
        (True, {"layout": "frames-mels"}, "layout"),
        (True, {"validation": 0.1}, "validation"),
        (False, {"stride": "8x8"}, "stride"),
        (False, {"transformers": "5"}, "transformers"),
    ],
)
def test_convert__settings_for_what_the_source_is_not_are_refused(
    of_model: bool, settings: dict[str, object], name: str, tmp_path: Path
) -> None:
    source = small_model(tmp_path / "model") if of_model else make_store(tmp_path / "store").path
    with pytest.raises(SettingsError, match=f"{name} has no effect: .* is {'a' if of_model else 'no'} model"):
        convert(source, tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()
