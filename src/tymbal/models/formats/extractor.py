"""How transformers makes a model's spectrograms: with its own extractor where that does it, else with one beside.

Stock `ASTFeatureExtractor` knows 16 kHz, frames of 25 ms every 10 ms, and two fixed numbers to normalise by. For other
models the folder holds `feature_extraction_tymbal.py`, which transformers runs where a user trusts it
(`trust_remote_code=True`). Without that trust the stock extractor must not step in with other numbers: mean and
standard deviation are null in the file, with which it fails. Tymbal writes that code, and never reads or runs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tymbal.features.bank import filter_bank
from tymbal.models.description import ModelDescription
from tymbal.settings import FeatureSettings

__all__ = ["PREPROCESSOR", "REMOTE_CODE", "is_stock", "remote_code", "to_preprocessor"]

PREPROCESSOR = "preprocessor_config.json"

REMOTE_CODE = "feature_extraction_tymbal.py"
"""What the extractor's file is called here and in model folders."""

_REMOTE_CLASS = "TymbalFeatureExtractor"


def to_preprocessor(description: ModelDescription) -> dict[str, Any] | None:
    """The `preprocessor_config.json` of a model; `None` where no extractor computes its features.

    The filter bank of the stock extractor has fixed windows; without torchaudio they are fixed in samples, so that only
    16 kHz is safe. It normalises by fixed numbers.
    """
    features = description.features
    entries = filter_bank(features).extractor()
    if entries is None:
        return None
    common = {
        "do_normalize": True,
        "feature_size": 1,
        "max_length": description.encoder.frames,
        "num_mel_bins": features.mel_bins,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
        "sampling_rate": features.sample_rate,
    }
    if features == FeatureSettings(mel_bins=features.mel_bins) and description.normalize == "dataset":
        stock = {"feature_extractor_type": "ASTFeatureExtractor", "mean": description.mean, "std": description.std}
        return dict(sorted({**common, **stock}.items()))
    own = {
        "auto_map": {"AutoFeatureExtractor": f"{REMOTE_CODE.removesuffix('.py')}.{_REMOTE_CLASS}"},
        "feature_extractor_type": _REMOTE_CLASS,
        "mean": None,
        "std": None,
        **entries,
        "normalize_by": description.normalize,
        "dataset_mean": description.mean,
        "dataset_std": description.std,
        "padding_log_mel": description.padding,
    }
    return dict(sorted({**common, **own}.items()))


def is_stock(preprocessor: Mapping[str, Any]) -> bool:
    """Whether transformers' own extractor is meant."""
    return "auto_map" not in preprocessor


def remote_code() -> str:
    """The extractor for transformers, as it is put into a model folder."""
    return Path(__file__).with_name(REMOTE_CODE).read_text(encoding="utf-8")
