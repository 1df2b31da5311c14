"""Functions of a user's own as augmentation, from a module in the current folder."""

from __future__ import annotations

import math
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import tymbal
from tones import RATE, tone_folder, tone_store
from tymbal.cli import main
from tymbal.config import read_run_yaml
from tymbal.errors import SettingsError, StoreError
from tymbal.randomness import fold
from tymbal.settings import FeatureSettings
from tymbal.settings.augmentation import SpectrogramViews
from tymbal.store.packed.packed_store import open_store
from tymbal.views.augmentation_config import read_augmentation, read_spectrogram_views
from tymbal.views.draw import draw
from tymbal.views.make import Mode, ViewMaker
from tymbal.views.own_views import function_names, own_views
from tymbal.views.spectrogram_views import spectrogram_views

MODULE = """
import random as global_random
import torch

def half(waveforms, random):
    return waveforms / 2

def louder(waveforms, sample_rate, random):
    assert sample_rate in (8000, 16000)
    return waveforms * 10 ** (random(1) * 12 / 20)

def lifted(spectrograms, random):
    return spectrograms + 2 * random(1)[:, :, None]

def careless(waveforms, random):
    return waveforms * global_random.random()

def by_batch(spectrograms, random):
    return spectrograms - spectrograms.mean()

def shorter(waveforms, random):
    return waveforms[:, ::2]

def listed(waveforms, random):
    return waveforms.tolist()

def silent(waveforms, random):
    return waveforms.log()

def fails(waveforms, random):
    raise RuntimeError("no such file: impulse.wav")

def audio(audio, random):
    return audio

def needy(waveforms, random, strength):
    return waveforms

THREE = 3
"""
FEATURES = FeatureSettings(filter_bank="librosa", sample_rate=RATE, low_freq=0.0, mel_bins=16, n_fft=256, hop_length=64)


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module `ownviews.py` in the current folder, as a user has it."""
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    path = tmp_path / "ownviews.py"
    path.write_text(MODULE)
    own_views.cache_clear()
    yield path
    sys.path[:] = before
    sys.modules.pop("ownviews", None)
    own_views.cache_clear()


def made(name: str, mode: Mode, waveforms: torch.Tensor, versions: int = 1) -> torch.Tensor:
    maker = ViewMaker(read_augmentation(name), FEATURES, waveforms.shape[1], mode=mode)
    clip = torch.arange(len(waveforms)).repeat_interleave(versions)
    keys = fold(3, clip, torch.arange(versions).repeat(len(waveforms)))
    draws = draw(maker.settings, keys, [0] * len(clip))
    clips = waveforms if mode == "exact" else maker.transform(waveforms)
    mel = maker.clean(waveforms)[clip]
    return maker.views(clips, clip, draws, mel) - maker.log_mel(mel)


@pytest.mark.parametrize("mode", ["spectral", "exact"])
def test_waveforms__a_gain_is_the_same_in_both_modes(mode: Mode) -> None:
    sound = torch.randn(3, 4000, generator=torch.Generator().manual_seed(0)) / 10
    change = made("ownviews:half", mode, sound)
    torch.testing.assert_close(change, torch.full_like(change, -2 * math.log(2)), atol=1e-4, rtol=0)
    change = made("ownviews:louder", mode, sound, versions=4)
    gains = change.mean(dim=(1, 2)) * 10 / math.log(10)
    assert len({round(float(gain), 3) for gain in gains}) == 12
    assert gains.min() >= 0
    assert gains.max() <= 12
    assert change.std(dim=(1, 2)).max() < 1e-3
    # A view does not depend on what it is made beside.
    alone = made("ownviews:louder", mode, sound[:1], versions=4)
    torch.testing.assert_close(change[:4], alone, atol=1e-3, rtol=0)


def test_functions__are_done_one_after_the_other() -> None:
    sound = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0)) / 10
    one, two, three = (
        made(f"ownviews:{name}", "spectral", sound) for name in ("half", "lifted", "half, ownviews:lifted")
    )
    assert read_augmentation("ownviews:half, ownviews:lifted").functions == ("ownviews:half", "ownviews:lifted")
    # Each has random numbers of its own, by its place.
    assert not torch.allclose(one + two, three, atol=1e-3)
    assert float((three - one).std(dim=(1, 2)).max()) < 1e-3


def test_yaml__has_functions_beside_the_built_in(tmp_path: Path) -> None:
    (tmp_path / "views.yaml").write_text("num_waveform_augs: 1\nfunctions: [ownviews:half, ownviews:lifted]\n")
    settings = read_augmentation(tmp_path / "views.yaml")
    assert (settings.num_waveform_augs, settings.functions) == (1, ("ownviews:half", "ownviews:lifted"))
    assert settings.spectrogram_views == SpectrogramViews(functions=("ownviews:lifted",))
    (tmp_path / "views.yaml").write_text("functions: ownviews:half\n")
    with pytest.raises(SettingsError, match="functions is not a list of names"):
        read_augmentation(tmp_path / "views.yaml")


def test_spectrogram_views__are_changed_and_padding_is_not() -> None:
    clips, frames = torch.zeros(2, 10, 4), torch.tensor([10, 6])
    keys = fold(1, torch.arange(4))
    views, ends = spectrogram_views(
        clips, frames, keys, read_spectrogram_views("ownviews:lifted"), padding=-9.0, scale=None
    )
    assert ends.tolist() == [10, 6, 10, 6]
    assert (views[1, 6:] == -9).all()
    levels = views[:, 0, 0]
    assert len(set(levels.tolist())) == 4
    assert 0 <= float(levels.min()) < float(levels.max()) < 2
    with pytest.raises(SettingsError, match=r"ownviews:half changes waveforms, and these views are drawn from spectro"):
        read_spectrogram_views("ownviews:half")


def test_prepare__writes_what_functions_make_and_knows_when_they_change(
    tmp_path: Path, module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sound = tone_folder(tmp_path / "sound", clips=1)
    shape = {"sample_rate": RATE, "mel_bins": 16, "window": 0.3}
    own = {"views": 2, "augmentations": "ownviews:louder", **shape}
    assert tymbal.prepare(sound, tmp_path / "pairs", workers=2, **own).failures == []
    assert tymbal.prepare(sound, tmp_path / "again", workers=1, **own).failures == []
    one, two = (open_store(tmp_path / name) for name in ("pairs", "again"))
    rows = np.arange(len(one.index))
    np.testing.assert_array_equal(one.gather(rows), two.gather(rows))
    described = (tmp_path / "pairs" / "store.json").read_text()
    assert '"augmentations.functions"' in described
    assert "ownviews:louder" in described
    module.write_text(MODULE.replace("* 12 / 20", "* 6 / 20"))
    own_views.cache_clear()
    sys.modules.pop("ownviews", None)
    with pytest.raises(StoreError, match=r"augmentations\.source"):
        tymbal.prepare(sound, tmp_path / "pairs", workers=1, **own)
    flags = ("--sample-rate", str(RATE), "--mel-bins", "16", "--window", "0.3")
    broken = ("prepare", str(sound), "-o", str(tmp_path / "x"), "--views", "1", "--augmentations", "ownviews:fails")
    assert main([*broken, *flags]) == 2
    assert "the augmentation ownviews:fails fails: RuntimeError: no such file: impulse.wav" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_pretrain__on_a_store_by_functions_of_spectrograms(tmp_path: Path) -> None:
    store = str(tone_store(tmp_path / "store").path)
    flags = ("--device", "cpu", "--precision", "float32", "--width", "16", "--depth", "1", "--heads", "2")
    flags = (*flags, "--batch-size", "8", "--patch", "16x2", "--epochs", "2", "--augmentations", "ownviews:lifted")
    for objective in ("lejepa", "contrastive"):
        run = tmp_path / objective
        assert main(["pretrain", store, "-o", str(run), "--objective", objective, *flags]) == 0
        assert read_run_yaml(run).settings["augmentations"] == "ownviews:lifted"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ownviews:careless", "gives something else each time\n  Draw its random numbers from random"),
        ("ownviews:by_batch", "changes a view by the others of its batch"),
        ("ownviews:shorter", r"gives float32 \[3, 8000\] for float32 \[3, 16000\]"),
        ("ownviews:listed", "gives list, no tensor"),
        ("ownviews:silent", "gives numbers that are not finite"),
        ("ownviews:fails", r"ownviews.py:\d+: the augmentation ownviews:fails fails: RuntimeError: no such file"),
        ("ownviews:audio", "first parameter of the augmentation ownviews:audio is 'audio', not waveforms or spectro"),
        ("ownviews:needy", "cannot be called: missing a required argument: 'strength'"),
        ("ownviews:THREE", "is no function"),
        ("ownviews:nothing", "ownviews has no nothing"),
        ("no_such_module:f", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_functions__mistakes_are_said_before_anything_is_done(name: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        read_augmentation(name)


def test_function_names__are_no_files() -> None:
    assert function_names("a.b:c,d:e") == ("a.b:c", "d:e")
    for path in ("views.yaml", "C:views.yaml", "C:\\views\\mild.yaml", "/a/b:c/d", "configs/x.yaml", "a:b.yml"):
        assert function_names(path) == ()


def test_own_views__are_found_again_in_another_process() -> None:
    own = own_views(("ownviews:half",))
    sound = torch.ones(1, 8)
    again = pickle.loads(pickle.dumps(own))
    assert torch.equal(again.waveforms(sound.clone(), torch.tensor([1]), sample_rate=RATE), sound / 2)
