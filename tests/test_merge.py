"""Two classifiers as one, and further labels from their clips alone: what was there stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import tymbal
from small_model import small_model
from tones import FEATURES, FRAMES, RATE, tone, tone_store
from tymbal.cli import main
from tymbal.errors import ModelError, SettingsError, StoreError
from tymbal.inference.frontend import probabilities
from tymbal.merge import merge
from tymbal.models.classifier import SpectrogramClassifier
from tymbal.models.folder import load_model, save_model

BIRDS, FROGS = ("robin", "wren", "tit"), ("toad", "newt")


def on_one_encoder(
    tmp_path: Path, *, labels: tuple[tuple[str, ...], tuple[str, ...]] = (BIRDS, FROGS), **facts: Any
) -> tuple[Path, Path]:
    """Two classifiers with the same encoder and heads of random weights."""
    facts = {"pooling": "rows", "standardise": True, "skip_padding": True, **facts}
    paths = tmp_path / "first", tmp_path / "second"
    encoder = load_model(small_model(tmp_path / "encoder")).module.state_dict()
    for seed, (path, own) in enumerate(zip(paths, labels, strict=True)):
        loaded = load_model(small_model(path, labels=own, **facts))
        module = loaded.module
        module.encoder.load_state_dict(encoder)
        torch.manual_seed(seed + 10)
        with torch.no_grad():
            for value in [*module.head.parameters(), *module.head_norm.parameters()]:
                value.normal_(std=0.5)
            for value in module.head_norm.buffers():
                value.copy_(torch.rand(len(value)) + 0.5)
        save_model(path, module, loaded.description)
    return paths


def scores(model: Path) -> np.ndarray:
    """Scores of the same clips, some of them short, [clips, labels]."""
    loaded = load_model(model)
    generator = torch.Generator().manual_seed(3)
    spectrograms, frames = torch.randn(6, FRAMES, 16, generator=generator), torch.tensor([32, 32, 20, 9, 32, 31])
    with torch.inference_mode():
        logits = loaded.module(spectrograms, frames=frames)
    return probabilities(logits, multilabel=loaded.description.multilabel)


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"standardise": False},
        {"standardise": False, "pooling": "cls", "skip_padding": False},
        {"standardise": False, "pooling": "mean"},
        {"multilabel": True},
    ],
)
def test_merge__gives_the_scores_that_each_gave_alone(facts: dict[str, Any], tmp_path: Path) -> None:
    first, second = on_one_encoder(tmp_path, **facts)
    result = merge(first, second, tmp_path / "both")
    assert result.labels == (*BIRDS, *FROGS)
    found = load_model(tmp_path / "both").description
    assert (found.labels, found.multilabel) == ((*BIRDS, *FROGS), True)
    assert found.groups == (() if facts.get("multilabel") else (3, 2))
    expected = np.concatenate([scores(first), scores(second)], axis=1)
    np.testing.assert_allclose(scores(tmp_path / "both"), expected, atol=2e-6)
    assert expected.std(0).min() > 1e-3


def test_merge__of_a_merged_one_goes_on(tmp_path: Path) -> None:
    first, second = on_one_encoder(tmp_path)
    third, _ = on_one_encoder(tmp_path / "more", labels=(("bat", "shrew"), FROGS), multilabel=True)
    merge(first, second, tmp_path / "both")
    merge(tmp_path / "both", third, tmp_path / "all")
    assert load_model(tmp_path / "all").description.groups == (3, 2, 1, 1)
    expected = np.concatenate([scores(each) for each in (first, second, third)], axis=1)
    np.testing.assert_allclose(scores(tmp_path / "all"), expected, atol=2e-6)


def test_merge__a_softmax_keeps_scores_that_are_next_to_certain(tmp_path: Path) -> None:
    first, second = on_one_encoder(tmp_path)
    loaded = load_model(first)
    with torch.no_grad():
        loaded.module.head.bias[0] = 60.0
    save_model(first, loaded.module, loaded.description)
    merge(first, second, tmp_path / "both")
    found = scores(tmp_path / "both")
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[:, 0], 1.0, atol=1e-6)


@pytest.mark.parametrize(("shared", "share"), [("mean", 0.5), ("first", 0.0), ("second", 1.0)])
def test_merge__of_a_shared_label_takes_what_is_asked_for(shared: str, share: float, tmp_path: Path) -> None:
    first, second = on_one_encoder(tmp_path, labels=(BIRDS, ("toad", "wren")), multilabel=True)
    merge(first, second, tmp_path / "both", shared=shared)
    assert load_model(tmp_path / "both").description.labels == (*BIRDS, "toad")

    def logit(values: np.ndarray) -> np.ndarray:
        return np.log(values / (1 - values))

    found, one, other = (logit(scores(each).astype(np.float64)) for each in (tmp_path / "both", first, second))
    np.testing.assert_allclose(found[:, 1], (1 - share) * one[:, 1] + share * other[:, 1], atol=1e-4)
    np.testing.assert_allclose(found[:, [0, 2]], one[:, [0, 2]], atol=1e-4)
    np.testing.assert_allclose(found[:, 3], other[:, 0], atol=1e-4)


def test_merge__keeps_odds_against_a_shared_background(tmp_path: Path) -> None:
    labels = (("background", "robin", "wren"), ("toad", "background"))
    first, second = on_one_encoder(tmp_path, labels=labels)
    result = merge(first, second, tmp_path / "both")
    found, one, other = (scores(each).astype(np.float64) for each in (tmp_path / "both", first, second))
    assert result.labels == ("background", "robin", "wren", "toad")
    assert "Odds stay against background" in result.summary()
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)
    np.testing.assert_allclose(found[:, 1:3] / found[:, :1], one[:, 1:] / one[:, :1], rtol=1e-4)
    np.testing.assert_allclose(found[:, 3] / found[:, 0], other[:, 0] / other[:, 1], rtol=1e-4)


def test_merge__what_does_not_go_together_is_said(tmp_path: Path) -> None:
    first, second = on_one_encoder(tmp_path)
    other = small_model(tmp_path / "other", labels=FROGS, pooling="rows", standardise=True, skip_padding=True, seed=5)
    with pytest.raises(ModelError, match=r"not two heads on one encoder[\s\S]*other weights[\s\S]*--train head"):
        merge(first, other, tmp_path / "both")
    other = small_model(tmp_path / "other", labels=FROGS, pooling="mean", standardise=True, skip_padding=True)
    with pytest.raises(ModelError, match=r"not two heads on one encoder:\n    pooling: 'rows' -> 'mean'"):
        merge(first, other, tmp_path / "both")
    with pytest.raises(ModelError, match="this is an encoder, and no classifier"):
        merge(small_model(tmp_path / "alone"), second, tmp_path / "both")
    mixed, _ = on_one_encoder(tmp_path / "mixed", labels=(("toad", "bat"), FROGS), multilabel=True)
    with pytest.raises(SettingsError, match="both have the label toad, among labels that exclude each other"):
        merge(second, mixed, tmp_path / "both")
    with pytest.raises(SettingsError, match="the output exists already"):
        merge(first, second, first)
    assert not (tmp_path / "both").exists()


@pytest.mark.usefixtures("own_modules")
def test_merge__a_merged_classifier_is_one_everywhere(tmp_path: Path) -> None:
    from transformers import AutoModelForAudioClassification

    both = merge(*on_one_encoder(tmp_path), tmp_path / "both").output
    theirs = AutoModelForAudioClassification.from_pretrained(both, trust_remote_code=True)
    assert theirs.config.problem_type == "multi_label_classification"
    x = torch.randn(2, FRAMES, 16)
    with torch.inference_mode():
        expected = load_model(both).module(x, frames=torch.tensor([32, 32]))
        torch.testing.assert_close(theirs(x).logits, expected, atol=1e-5, rtol=1e-5)
    for to, message in (("hf", "Hugging Face's AST cannot hold"), ("ssast", "can hold labels that fall into groups")):
        with pytest.raises(ModelError, match=message):
            tymbal.convert(both, tmp_path / f"other{'.pth' if to == 'ssast' else ''}", to=to)
    soundfile.write(tmp_path / "a.wav", tone("low"), RATE)
    rows = tymbal.predict(both, [tmp_path / "a.wav"], tmp_path / "scores.csv").output.read_text().splitlines()
    assert len(rows) == 6
    # A head for other data is new: training knows no groups.
    store = tone_store(tmp_path / "store", clips=8).path
    quick = {"max_steps": 1, "device": "cpu", "precision": "float32", "report_to": (), "train": "head"}
    tymbal.finetune(store, tmp_path / "run", from_=str(both), **quick)
    assert load_model(tmp_path / "run").description.groups == ()


@pytest.fixture(scope="module")
def two_tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of high and low tones, on an encoder of random weights."""
    folder = tmp_path_factory.mktemp("tones")
    for label in ("high", "low"):
        for number in range(24):
            place = folder / "sound" / ("validation" if number < 6 else "train") / label
            place.mkdir(parents=True, exist_ok=True)
            soundfile.write(place / f"{number}.wav", tone(label, seed=number), RATE, subtype="PCM_16")
    encoder = small_model(folder / "encoder")
    quick = {"device": "cpu", "precision": "float32", "report_to": (), "min_steps": 40}
    quick |= {"recipe": "lp-ft", "train": "head", "window": 0.335}
    result = tymbal.finetune(folder / "sound", folder / "run", from_=str(encoder), **quick)
    assert result.metrics["eval_accuracy"] == 1
    return result.run


def middle_tones(folder: Path, clips: int = 20) -> Path:
    folder.mkdir(parents=True)
    for number in range(clips):
        soundfile.write(folder / f"{number}.wav", tone("middle", seed=500 + number), RATE, subtype="PCM_16")
    return folder


def named(model: Path, tmp_path: Path, label: str) -> list[str]:
    """The likeliest label of ten tones that nothing has learned from."""
    loaded, names = load_model(model), []
    for number in range(10):
        sound = tmp_path / f"{label}{number}.wav"
        soundfile.write(sound, tone(label, seed=900 + number), RATE, subtype="PCM_16")
        output = tmp_path / "scores.csv"
        output.unlink(missing_ok=True)
        tymbal.predict(model, [sound], output, top=1)
        names.append(output.read_text().splitlines()[1].split(",")[3])
    assert set(names) <= set(loaded.description.labels)
    return names


def test_merge__learns_a_label_from_a_folder_of_its_clips(two_tones: Path, tmp_path: Path) -> None:
    result = merge(two_tones, middle_tones(tmp_path / "middle"), tmp_path / "three")
    assert result.labels == ("high", "low", "middle")
    assert "middle: 20 clips, " in result.summary() and "recognised when held out" in result.summary()
    before, after = (load_model(each).module for each in (two_tones, tmp_path / "three"))
    old, new = before.state_dict(), after.state_dict()
    kept = [name for name in old if not name.startswith("head.")]
    assert all(old[name].equal(new[name]) for name in kept)
    assert isinstance(after, SpectrogramClassifier)
    assert new["head.weight"][:2].equal(old["head.weight"]) and new["head.bias"][:2].equal(old["head.bias"])
    assert sum(name == "middle" for name in named(tmp_path / "three", tmp_path, "middle")) >= 8
    for label in ("high", "low"):
        assert sum(name == label for name in named(tmp_path / "three", tmp_path, label)) >= 8


def test_merge__a_higher_recall_takes_more(two_tones: Path, tmp_path: Path) -> None:
    clips = middle_tones(tmp_path / "middle")
    biases = [
        float(
            load_model(merge(two_tones, clips, tmp_path / f"{recall}", recall=recall).output)
            .module.head.bias[2]
            .detach()
        )
        for recall in (0.5, 0.9, 1.0)
    ]
    assert biases == sorted(biases) and biases[0] < biases[1]


def test_merge__folders_name_labels_and_known_ones_only_say_what_is_not(
    two_tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    middle_tones(tmp_path / "clips" / "middle", 6)
    (tmp_path / "clips" / "low").mkdir()
    for number in range(4):
        soundfile.write(tmp_path / "clips" / "low" / f"{number}.wav", tone("low", seed=700 + number), RATE)
    result = merge(two_tones, tmp_path / "clips", tmp_path / "three")
    assert result.labels == ("high", "low", "middle")
    assert "low is known already: its 4 clips only say what others are not" in capsys.readouterr().err
    named_so = merge(two_tones, tmp_path / "clips" / "middle", tmp_path / "four", label="hum")
    assert named_so.labels == ("high", "low", "hum")


def test_merge__clips_that_teach_nothing_are_refused(two_tones: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"its labels are all known to the classifier: low"):
        merge(two_tones, middle_tones(tmp_path / "low"), tmp_path / "three")
    layered = small_model(tmp_path / "layered", labels=BIRDS, pooling="mean", features=FEATURES)
    with pytest.raises(ModelError, match="its head has a layer norm"):
        merge(layered, tmp_path / "low", tmp_path / "three")
    assert not (tmp_path / "three").exists()


def test_command__merges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = on_one_encoder(tmp_path)
    assert main(["merge", str(first), str(second), "-o", str(tmp_path / "both")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'both'}: a classifier of 5 labels\n"
    assert main(["merge", str(first), str(second), "-o", str(tmp_path / "both")]) == 2
    assert "the output exists already" in capsys.readouterr().err
    assert main(["merge", str(first), "nobody/no-such-model-7521", "-o", str(tmp_path / "other")]) == 2
