"""Going on with a classifier: its head comes along where it knows the same labels, in whatever order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from small_model import small_model
from tymbal.models.classifier import SCRIPT_POOLING, ScriptClassifier
from tymbal.models.encoder import EncoderConfig
from tymbal.models.folder import load_model
from tymbal.models.warm_start import HeadChoice, WarmClassifier, warm_start_classifier

LABELS = ("frog", "cicada", "wind")
TURNED = ("cicada", "frog", "wind")
WANTED = EncoderConfig(width=8, depth=1, heads=1, mels=16, frames=32, patch=(8, 8), stride=(8, 8))


def spectrogram(frames: int = 32, mels: int = 16) -> torch.Tensor:
    return torch.randn(3, frames, mels, generator=torch.Generator().manual_seed(0))


def warm(source: Path, labels: tuple[str, ...], *, config: EncoderConfig = WANTED, **choice: Any) -> WarmClassifier:
    torch.manual_seed(1)
    return warm_start_classifier(source, config=config, head=HeadChoice(labels=labels, **choice), keep_stride=True)


def logits(module: nn.Module) -> torch.Tensor:
    frames = torch.tensor([32, 20, 9])
    with torch.no_grad():
        return module.eval()(spectrogram(), frames=frames)


@pytest.mark.parametrize("skip_padding", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "rows", "cls", "all", "attention"])
def test_warm_start_classifier__gives_the_same_scores_in_the_wanted_order(
    tmp_path: Path, pooling: str, skip_padding: bool
) -> None:
    skip_padding = skip_padding and pooling != "cls"
    folder = small_model(
        tmp_path / "model", labels=LABELS, pooling=pooling, frames=32, skip_padding=skip_padding, head_eps=None
    )
    found = warm(folder, TURNED)
    assert found.module.training
    torch.testing.assert_close(logits(found.module), logits(load_model(folder).module)[:, [1, 0, 2]])
    assert (found.module.pooling, found.module.skip_padding) == (pooling, skip_padding)
    assert {"head.weight", "head.bias", "head_norm.weight"} <= set(found.report.taken)
    assert (found.report.left, found.report.head) == ((), f"that of the source, pooling by {pooling}")


@pytest.mark.parametrize(
    ("labels", "choice", "reason"),
    [
        (("cicada", "wind", "rain"), {}, "the labels of the source are others: only there frog; only here rain"),
        (("cicada", "wind"), {}, "the labels of the source are others: only there frog"),
        (TURNED, {"pooling": "mean"}, "that of the source pools by rows, not by mean"),
        (TURNED, {"new": True}, "as asked for"),
    ],
)
def test_warm_start_classifier__says_why_a_head_is_new(
    tmp_path: Path, labels: tuple[str, ...], choice: dict[str, Any], reason: str
) -> None:
    folder = small_model(tmp_path / "model", labels=LABELS, pooling="rows", frames=32)
    found = warm(folder, labels, **choice)
    assert found.module.head.bias.tolist() == [0.0] * len(labels)
    assert found.module.pooling == "mean"
    assert found.module.skip_padding
    assert found.report.head is not None
    assert found.report.head.startswith("new, ")
    assert reason in found.report.head
    assert "head.weight" in found.report.new
    assert "head.weight" in found.report.left
    assert str(found.report).endswith(f"head: {found.report.head}")


def test_warm_start_classifier__a_head_for_other_rows_of_patches_is_new(tmp_path: Path) -> None:
    folder = small_model(tmp_path / "model", labels=LABELS, pooling="rows", frames=32)
    config = EncoderConfig(width=8, depth=1, heads=1, mels=24, frames=32, patch=(8, 8), stride=(8, 8))
    found = warm(folder, LABELS, config=config)
    assert found.report.head == "new, since that of the source is for another number of mel bins"
    with torch.no_grad():
        assert found.module.eval()(spectrogram(mels=24)).shape == (3, 3)


def test_warm_start_classifier__an_encoder_has_no_head_to_speak_of(tmp_path: Path) -> None:
    found = warm(small_model(tmp_path / "model", frames=32), LABELS)
    assert found.report.head is None
    assert "head.weight" in found.report.new


def stock(folder: Path, labels: dict[int, str] | None) -> Path:
    """A classifier of Hugging Face's, with names of labels or the LABEL_0 that it has without."""
    from transformers import ASTConfig, ASTForAudioClassification

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    spectrograms = {"num_mel_bins": 16, "max_length": 32, "patch_size": 8, "frequency_stride": 8, "time_stride": 8}
    names = {"num_labels": 3} if labels is None else {"id2label": labels}
    model = ASTForAudioClassification(ASTConfig(**shape, **spectrograms, **names)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


def test_warm_start_classifier__stock_checkpoints_by_name_and_by_order(tmp_path: Path) -> None:
    from transformers import ASTForAudioClassification

    named = stock(tmp_path / "named", dict(enumerate(LABELS)))
    with torch.no_grad():
        expected = ASTForAudioClassification.from_pretrained(named)(spectrogram()).logits
    torch.testing.assert_close(logits(warm(named, TURNED).module), expected[:, [1, 0, 2]], atol=1e-5, rtol=1e-5)
    nameless = stock(tmp_path / "nameless", None)
    found = warm(nameless, TURNED)
    with torch.no_grad():
        expected = ASTForAudioClassification.from_pretrained(nameless)(spectrogram()).logits
    torch.testing.assert_close(logits(found.module), expected, atol=1e-5, rtol=1e-5)
    assert "have no names, and are taken in order for cicada, frog, wind" in str(found.report)
    assert warm(nameless, LABELS[:2]).report.head == "new, since that of the source has 3 labels, not 2"


def test_warm_start_classifier__keeps_the_quirk_of_a_scripts_classifier(tmp_path: Path) -> None:
    from transformers import ASTConfig, ASTModel

    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    ast = ASTModel(ASTConfig(**shape, max_length=32)).eval()
    script = nn.ModuleDict({"encoder": ast, "classifier": nn.Linear(64, 3)})
    for parameter in script.parameters():
        nn.init.normal_(parameter, std=0.3)
    torch.save(script.state_dict(), tmp_path / "exported.pth")
    config = EncoderConfig(width=8, depth=1, heads=1, mels=128, frames=32)
    found = warm(tmp_path / "exported.pth", LABELS, config=config, skip_padding=True, dropout=0.5)
    assert isinstance(found.module, ScriptClassifier)
    assert (found.module.pooling, found.module.skip_padding) == (SCRIPT_POOLING, False)
    assert found.module.head_dropout.p == 0.5
    sound = spectrogram(mels=128)
    with torch.no_grad():
        tokens = ast(sound).last_hidden_state  # normed once
        expected = script["classifier"](ast.layernorm(tokens).mean(1))
        torch.testing.assert_close(found.module.eval()(sound), expected, atol=1e-4, rtol=1e-4)
