"""A model as one ONNX file, with its spectrograms inside: waveforms in, scores or embeddings out."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tymbal._version import __version__
from tymbal.errors import ModelError, SettingsError
from tymbal.features.bank import filter_bank
from tymbal.files import replace_file
from tymbal.models.classifier import SpectrogramClassifier, pool
from tymbal.models.description import ModelDescription
from tymbal.models.folder import LoadedModel

__all__ = ["WaveformModel", "write_onnx"]

_AGREE = 1e-4
_OPSET = 18


class WaveformModel(nn.Module):
    """A model with its spectrograms in front, for clips of the length that it was trained on.

    Args:
        loaded: The model.
        fbank: Its filter bank: waveforms [batch, samples] to log-mel spectrograms [batch, frames, mels].
        pooling: How an encoder's tokens become an embedding; a classifier has its own.
    """

    def __init__(self, loaded: LoadedModel, fbank: Callable[[Tensor], Tensor], *, pooling: str = "mean") -> None:
        super().__init__()
        self.fbank = fbank
        self.model = loaded.module
        self._description, self._pooling = loaded.description, pooling

    @property
    def samples(self) -> int:
        """Samples of a clip."""
        return self._description.features.samples_of(self._description.encoder.frames)

    def forward(self, waveform: Tensor) -> Tensor:
        """Waveforms [batch, samples] to scores [batch, labels], or embeddings [batch, dimensions]."""
        spectrogram = self.fbank(waveform)
        # From the shapes at hand, so that the batch stays a variable of the graph.
        frames = torch.full_like(spectrogram[:, 0, 0], self._description.encoder.frames, dtype=torch.int64)
        x = self._description.normalisation(spectrogram, frames)
        if isinstance(self.model, SpectrogramClassifier):
            logits: Tensor = self.model(x, frames=frames)
            return logits.sigmoid() if self._description.multilabel else logits.softmax(1)
        output = self.model(x)
        return pool(output.tokens, how=self._pooling, grid=output.grid)


def write_onnx(path: Path, loaded: LoadedModel, *, pooling: str = "mean") -> list[str]:
    """Writes an ONNX file, whole or not at all, after checking that it gives the same numbers.

    Its input is `waveform`, float32 [batch, samples] with any batch; its output `scores` [batch, labels] or, of an
    encoder, `embedding` [batch, dimensions]. Labels, rate and samples stand in its metadata.

    Args:
        path: The file.
        loaded: The model.
        pooling: How an encoder's tokens become an embedding: `mean` or `cls`.

    Returns:
        Remarks for the user, in sentences.

    Raises:
        ModelError: Its filter bank is none that can be exported, or onnxruntime computes something else from it.
        SettingsError: The extra `onnx` is not installed.
    """
    _check_installed()
    description = loaded.description
    bank = filter_bank(description.features)
    convolution = bank.convolution()
    if convolution is None:
        raise ModelError(
            f"the spectrograms of this model are those of the filter bank {description.features.filter_bank}, which "
            "has no form that ONNX knows",
            advice="Prepare with filter_bank kaldi, and train again.",
        )
    model = WaveformModel(loaded, convolution, pooling=pooling).eval()
    result = "scores" if description.labels else "embedding"
    example = 0.1 * torch.randn(2, model.samples, generator=torch.Generator().manual_seed(0))
    with _silently():
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            opset_version=_OPSET,
            input_names=["waveform"],
            output_names=[result],
            dynamic_shapes={"waveform": {0: torch.export.Dim("batch", min=1)}},
            verbose=False,
        )
    if program is None:
        raise ModelError("torch exported nothing", path=path)
    program.model.metadata_props.update(_metadata(description, model.samples))
    with replace_file(path) as aside:
        program.save(aside, external_data=False)
        # With the spectrograms of prediction: the file has to agree with that, not with itself.
        _compare(aside, WaveformModel(loaded, bank, pooling=pooling), result)
    return _notes(description, model.samples, result)


def _metadata(description: ModelDescription, samples: int) -> dict[str, str]:
    return {
        "labels": json.dumps(list(description.labels), ensure_ascii=False),
        "multilabel": json.dumps(description.multilabel),
        "sample_rate": str(description.features.sample_rate),
        "samples": str(samples),
        "tymbal": __version__,
    }


def _compare(path: Path, model: WaveformModel, result: str) -> None:
    """Checks that onnxruntime agrees with torch, on another batch and louder sound than at the export."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    sound = 0.3 * torch.randn(3, model.samples, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = model(sound)
    actual = torch.from_numpy(session.run([result], {"waveform": sound.numpy()})[0])
    difference = (actual - expected).abs().max().item()
    if not difference <= _AGREE * max(1.0, expected.abs().max().item()):
        raise ModelError(
            f"onnxruntime gives {result} that are {difference:.1e} away from torch's",
            advice="Try other versions of torch, onnxscript and onnxruntime.",
        )


def _notes(description: ModelDescription, samples: int, result: str) -> list[str]:
    rate = description.features.sample_rate
    notes = [
        f"waveform, float32 [batch, {samples}] ({samples / rate:.3f} s at {rate:,} Hz), becomes {result}; labels and "
        "rate stand in the file's metadata."
    ]
    if description.skip_padding or abs(description.padding) < 1:
        notes.append(
            "A clip that is filled up with zeros is one that ends in silence: its scores differ from those of predict, "
            "which knows where a short clip ends."
        )
    return notes


def _check_installed() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(name)
        except ImportError:
            raise SettingsError(
                f"an ONNX file needs {name}, which is not installed", advice="Install it: pip install 'tymbal[onnx]'"
            ) from None


@contextlib.contextmanager
def _silently() -> Iterator[None]:
    """Without torch's remarks on its own inside, and on torchvision."""
    logger: Any = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
