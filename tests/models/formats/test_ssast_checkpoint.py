"""SSAST's files through the door: recorded outputs, position embeddings, and back without loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tymbal.errors import ModelError
from tymbal.models.classifier import SpectrogramClassifier
from tymbal.models.encoder import EncoderConfig, SpectrogramEncoder
from tymbal.models.folder import load_model, save_model
from tymbal.models.formats import ssast_checkpoint as ssast
from tymbal.models.warm_start import warm_start

CLASSIFIERS = [(name, i) for name in ("patch", "frame") for i in range(3)]


def recorded(shared: Path, name: str, i: int):
    expected = np.load(shared / "fixtures" / f"ssast_{name}_expected.npz")
    stride = (int(expected[f"ft{i}_fstride"]), int(expected[f"ft{i}_tstride"]))
    return torch.from_numpy(expected[f"ft{i}_input"]), stride, expected


@pytest.mark.parametrize(("name", "i"), CLASSIFIERS)
@pytest.mark.parametrize(("pooling", "task"), [("mean", "avgtok"), ("cls", "cls")])
def test_load_model__fine_tuned_files_give_the_recorded_logits(shared, name, i, pooling, task):
    spectrogram, stride, expected = recorded(shared, name, i)
    path = shared / "fixtures" / f"ssast_{name}_finetune{i}.pth"
    loaded = load_model(path, stride=stride, pooling=pooling)
    assert loaded.description.pooling == pooling
    with torch.no_grad():
        logits = loaded.module(spectrogram)
    np.testing.assert_allclose(logits.numpy(), expected[f"ft{i}_{task}"], atol=1e-5)


@pytest.mark.parametrize(("name", "i"), CLASSIFIERS)
def test_warm_start__position_embeddings_become_those_of_the_reference(shared, name, i):
    spectrogram, stride, expected = recorded(shared, name, i)
    path = shared / "fixtures" / f"ssast_{name}.pth"
    wanted = EncoderConfig(
        width=64,
        depth=1,
        heads=1,
        frames=spectrogram.shape[1],
        patch=(128, 2) if name == "frame" else (16, 16),
        stride=stride,
    )
    encoder, report, _ = warm_start(path, config=wanted)
    assert report.new == ()
    assert len(report.left) == 8  # the two heads of pretraining
    classifier = SpectrogramClassifier(encoder, 7, pooling="mean", head_eps=ssast.HEAD_EPS).eval()
    tuned = load_model(path.with_name(f"ssast_{name}_finetune{i}.pth"), stride=stride).module
    classifier.load_state_dict({k: v for k, v in tuned.state_dict().items() if k.startswith("head")}, strict=False)
    with torch.no_grad():
        logits = classifier(spectrogram)
    np.testing.assert_allclose(logits.numpy(), expected[f"ft{i}_avgtok"], atol=1e-5)


def test_load_model__a_pretraining_file_says_what_it_is(shared):
    loaded = load_model(shared / "fixtures" / "ssast_frame.pth")
    config = loaded.description.encoder
    assert isinstance(loaded.module, SpectrogramEncoder)
    assert (config.mels, config.frames, config.patch, config.stride) == (128, 128, (128, 2), (128, 2))
    assert (config.width, config.depth, config.heads) == (128, 2, 2)
    assert loaded.objective_state.keys() == {
        f"{head}.{i}.{part}" for head in ("cpred", "gpred") for i in (0, 2) for part in ("weight", "bias")
    }
    assert loaded.description.padding == 0.0
    assert "AudioSet" in loaded.description.provenance["assumed"]


def test_load_model__the_stride_is_inferred_where_only_one_fits(shared):
    for i, stride in enumerate([(16, 16), (10, 10), (10, 10)]):
        loaded = load_model(shared / "fixtures" / f"ssast_patch_finetune{i}.pth")
        assert loaded.description.encoder.stride == stride
    with pytest.raises(ModelError, match=r"(?s)128x2 and 128x1 2 fit.*load_model\(path, stride="):
        load_model(shared / "fixtures" / "ssast_frame_finetune1.pth")
    with pytest.raises(ModelError, match="stride 9x9 does not fit"):
        load_model(shared / "fixtures" / "ssast_patch_finetune1.pth", stride=(9, 9))


@pytest.mark.parametrize("name", ["ssast_patch", "ssast_frame", "ssast_patch_finetune2"])
def test_write__comes_back_as_the_same_file(shared, name, tmp_path):
    source = shared / "fixtures" / f"{name}.pth"
    loaded = load_model(source)
    folder = tmp_path / "model"
    save_model(folder, loaded.module, loaded.description, objective_state=loaded.objective_state)
    through = load_model(folder)
    ssast.write(tmp_path / "back.pth", through.module, objective_state=through.objective_state)
    expected, written = (torch.load(path, weights_only=True) for path in (source, tmp_path / "back.pth"))
    assert written.keys() == expected.keys()
    for key, value in expected.items():
        assert written[key].shape == value.shape
        assert written[key].dtype == value.dtype
        if "v.head" not in key:  # timm's ImageNet head: unused, zeros
            assert written[key].equal(value), key


def test_write__what_ssast_cannot_hold_is_refused(tmp_path):
    config = EncoderConfig(width=64, depth=1, heads=1, mels=32, frames=32)
    rows = SpectrogramClassifier(SpectrogramEncoder(config), 2, pooling="rows")
    with pytest.raises(ModelError, match="no pooling by rows"):
        ssast.write(tmp_path / "a.pth", rows)
    overlapping = SpectrogramEncoder(EncoderConfig(width=64, depth=1, heads=1, mels=32, frames=32, stride=(10, 10)))
    with pytest.raises(ModelError, match="overlapping"):
        ssast.write(tmp_path / "a.pth", overlapping)
    heads = SpectrogramEncoder(EncoderConfig(width=96, depth=1, heads=3, mels=32, frames=32))
    with pytest.raises(ModelError, match="heads of 64"):
        ssast.write(tmp_path / "a.pth", heads)
    for changes, reason in (({"stem": 2}, "convolutional stem"), ({"attend_to_padding": False}, "attend to padding")):
        config = EncoderConfig(width=64, depth=1, heads=1, mels=32, frames=32, **changes)
        with pytest.raises(ModelError, match=f"SSAST cannot hold this model: .* {reason}"):
            ssast.write(tmp_path / "a.pth", SpectrogramEncoder(config))
    assert list(tmp_path.iterdir()) == []


def test_read__an_incomplete_file_is_an_error(shared, tmp_path):
    state = torch.load(shared / "fixtures" / "ssast_patch.pth", weights_only=True)
    del state["module.v.pos_embed"]
    torch.save(state, tmp_path / "damaged.pth")
    with pytest.raises(ModelError, match=r"1 weights are missing \(v.pos_embed\)"):
        load_model(tmp_path / "damaged.pth")
    torch.save({"a.weight": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match=r"nothing is known about these 1 weights \(a.weight"):
        load_model(tmp_path / "other.pth")
    with pytest.raises(ModelError, match="no SSAST file"):
        ssast.read(tmp_path / "other.pth")
