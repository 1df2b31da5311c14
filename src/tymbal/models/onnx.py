"""A model as one ONNX file, with its spectrograms inside: waveforms in, scores or embeddings out.

Not every runtime knows ONNX's Fourier transform. But all that happens to a frame before its power spectrum is linear:
mean, pre-emphasis, window and transform are one matrix, which laid over the waveform with the frames' shift is a
convolution. It is computed in float64 and rounded once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from tymbal._version import __version__
from tymbal.errors import ModelError, SettingsError
from tymbal.features.kaldi import PREEMPHASIS, KaldiFbank, mel_filters
from tymbal.features.statistics import ENERGY_FLOOR
from tymbal.files import replace_file
from tymbal.models.classifier import SpectrogramClassifier, pool
from tymbal.models.description import ModelDescription
from tymbal.models.folder import LoadedModel
from tymbal.settings import FeatureSettings

__all__ = ["ConvolutionFbank", "WaveformModel", "write_onnx"]

_AGREE = 1e-4
_OPSET = 18


class ConvolutionFbank(nn.Module):
    """Kaldi's filter bank (`tymbal.features.kaldi`) as a convolution, a square, a product and a logarithm.

    Args:
        settings: Sample rate, frames and mel bins.
    """

    def __init__(self, settings: FeatureSettings) -> None:
        super().__init__()
        self._shift = settings.shift_samples
        filters = mel_filters(settings)
        self.register_buffer("kernel", _analysis(settings, bins=len(filters))[:, None])
        self.register_buffer("filters", filters.T.contiguous())

    def forward(self, waveform: Tensor) -> Tensor:
        """Waveforms [batch, samples] to log-mel spectrograms [batch, frames, mels]."""
        waveform = waveform - waveform.mean(-1, keepdim=True)
        spectrum = nn.functional.conv1d(waveform[:, None], cast(Tensor, self.kernel), stride=self._shift)
        real, imaginary = spectrum.chunk(2, dim=1)
        power = real * real + imaginary * imaginary  # [batch, bins, frames]
        mel = (cast(Tensor, self.filters) @ power).transpose(1, 2)
        return mel.clamp(min=ENERGY_FLOOR).log()


class WaveformModel(nn.Module):
    """A model with its spectrograms in front, for clips of the length that it was trained on.

    Args:
        loaded: The model.
        pooling: How an encoder's tokens become an embedding; a classifier has its own.
        fbank: What makes spectrograms; None is one that can be exported.
    """

    def __init__(
        self, loaded: LoadedModel, *, pooling: str = "mean", fbank: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.fbank = fbank or ConvolutionFbank(loaded.description.features)
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
    """Writes an ONNX file, whole or not at all, after it was found to give the same numbers.

    Its input is `waveform`, float32 [batch, samples] with any batch; its output `scores` [batch, labels] or, of an
    encoder, `embedding` [batch, dimensions]. Labels, rate and samples stand in its metadata.

    Args:
        path: The file.
        loaded: The model.
        pooling: How an encoder's tokens become an embedding: `mean` or `cls`.

    Returns:
        What a user should know of it, in sentences.

    Raises:
        ModelError: Its spectrograms are not Kaldi's, or onnxruntime computes something else from it.
        SettingsError: The extra `onnx` is not installed.
    """
    _check_installed()
    if loaded.description.features.filter_bank != "kaldi":
        raise ModelError(
            f"the spectrograms of this model are {loaded.description.features.filter_bank}'s, and only Kaldi's can be "
            "exported so far",
            advice="Prepare with filter_bank kaldi, and train again.",
        )
    model = WaveformModel(loaded, pooling=pooling).eval()
    description = loaded.description
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
        _compare(aside, WaveformModel(loaded, pooling=pooling, fbank=KaldiFbank(description.features)), result)
    return _notes(description, model.samples, result)


def _analysis(settings: FeatureSettings, *, bins: int) -> Tensor:
    """What takes a frame to real and imaginary parts of its spectrum: float32 [2 bins, frame length]."""
    length = settings.window_samples
    eye = torch.eye(length, dtype=torch.float64)
    centred = eye - 1 / length  # [samples, frame length]: a column a sample of the frame
    # Kaldi continues the frame to the left with its first sample; the window is 0 there.
    before = torch.cat([centred[:1], centred[:-1]])
    window = torch.hann_window(length, periodic=False, dtype=torch.float32).double()
    windowed = (centred - PREEMPHASIS * before) * window[:, None]
    spectrum = torch.fft.rfft(windowed, n=2 * (bins - 1), dim=0)
    return torch.cat([spectrum.real, spectrum.imag]).float()


def _metadata(description: ModelDescription, samples: int) -> dict[str, str]:
    return {
        "labels": json.dumps(list(description.labels), ensure_ascii=False),
        "multilabel": json.dumps(description.multilabel),
        "sample_rate": str(description.features.sample_rate),
        "samples": str(samples),
        "tymbal": __version__,
    }


def _compare(path: Path, model: WaveformModel, result: str) -> None:
    """Whether onnxruntime gives what a model gives, for another batch and louder sound than at the export."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    sound = 0.3 * torch.randn(3, model.samples, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = model(sound)
    found = torch.from_numpy(session.run([result], {"waveform": sound.numpy()})[0])
    difference = (found - expected).abs().max().item()
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
