"""The model card: a README in the model folder that says what the model is, where it comes from and how to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tymbal._version import __version__
from tymbal.models.description import ModelDescription

__all__ = ["model_card"]

_MANY_LABELS = 20


def model_card(description: ModelDescription, *, obstacle: str | None, preprocessor: bool) -> str:
    """Writes the card.

    Args:
        description: The model.
        obstacle: Why transformers cannot load it; `None` where it can.
        preprocessor: Whether transformers' feature extractor computes its spectrograms.

    Returns:
        Markdown, with the head that the Hugging Face hub reads.
    """
    parts = [
        _front_matter(description, obstacle),
        _summary(description),
        _shape(description),
        _use(description, obstacle, preprocessor=preprocessor),
        _facts("How it was pretrained", description.objective),
    ]
    known = {"data": "Data", "settings": "Settings", "metrics": "Metrics"}
    parts += [_facts(title, description.provenance.get(key)) for key, title in known.items()]
    parts.append(_facts("Origin", {k: v for k, v in description.provenance.items() if k not in known}))
    return "\n".join(part for part in parts if part)


def _front_matter(description: ModelDescription, obstacle: str | None) -> str:
    lines = ["---", f"library_name: {'tymbal' if obstacle else 'transformers'}"]
    if description.labels:
        lines.append("pipeline_tag: audio-classification")
    lines += ["tags:", "- tymbal", "- audio", "- audio-spectrogram-transformer", "---", ""]
    return "\n".join(lines)


def _summary(description: ModelDescription) -> str:
    labels = description.labels
    if not labels:
        what = "An audio spectrogram transformer that turns sound into embeddings. It knows no labels yet."
    else:
        shown = ", ".join(labels[:_MANY_LABELS]) + (", …" if len(labels) > _MANY_LABELS else "")
        kind = "any number of" if description.multilabel else "one of"
        what = f"An audio spectrogram transformer that gives a clip {kind} {len(labels)} labels: {shown}."
    title = "Classifier of sound" if labels else "Encoder of sound"
    return f"# {title}\n\n{what}\n\nMade with [Tymbal](https://pypi.org/project/tymbal/) {__version__}.\n"


def _shape(description: ModelDescription) -> str:
    encoder, features = description.encoder, description.features
    seconds = features.samples_of(encoder.frames) / features.sample_rate
    ms = 1000 / features.sample_rate
    rows = {
        "sound": f"{features.sample_rate:,} Hz, mono",
        "clip": f"{encoder.frames} frames ({seconds:.2f} s); other lengths work in Tymbal",
        "spectrogram": f"log-mel, {features.mel_bins} bins, a frame of {ms * features.window_samples:.4g} ms every "
        f"{ms * features.shift_samples:.4g} ms",
        "normalisation": _normalisation(description),
        "padding": f"{description.padding:g} before normalisation",
        "encoder": f"width {encoder.width}, {encoder.depth} blocks, {encoder.heads} heads, patches of "
        f"{encoder.patch[0]}x{encoder.patch[1]} (mel bins x frames) every {encoder.stride[0]}x{encoder.stride[1]}",
    }
    if description.pooling is not None:
        rows["pooling"] = description.pooling + (", without padding" if description.skip_padding else "")
    return _table("What it takes and is", rows)


def _normalisation(description: ModelDescription) -> str:
    if description.normalize == "clip":
        return "(x - mean) / (2 * standard deviation), those of each clip's own sound"
    return f"(x - {description.mean:g}) / (2 * {description.std:g})"


def _use(description: ModelDescription, obstacle: str | None, *, preprocessor: bool) -> str:
    command = (
        "tymbal predict MODEL recordings/ -o scores.csv"
        if description.labels
        else "tymbal finetune LABELLED_FOLDER -o classifier --from MODEL"
    )
    text = f"""## How to use it

With Tymbal, where MODEL is this folder:

```sh
{command}
```

```python
import tymbal

model = tymbal.load_model("MODEL")  # .module, a torch module; .description, all of the above
```
"""
    if obstacle is not None:
        return f"{text}\ntransformers cannot load it: {obstacle}.\n"
    auto = "AutoModelForAudioClassification" if description.labels else "AutoModel"
    text += f"""
With transformers:

```python
from transformers import {"AutoFeatureExtractor, " if preprocessor else ""}{auto}

model = {auto}.from_pretrained("MODEL")
"""
    if preprocessor:
        text += """extractor = AutoFeatureExtractor.from_pretrained("MODEL")
outputs = model(**extractor(waveform, sampling_rate=16000, return_tensors="pt"))
"""
    text += "```\n"
    if preprocessor:
        return (
            f"{text}\nGive whole clips there: its extractor pads shorter ones with zeros, which are louder than "
            "silence, and the model does not take other lengths.\n"
        )
    return (
        f"{text}\nIts spectrograms come from Tymbal: the extractor of transformers knows no other frames, rates and "
        "frequency limits than its own, and normalises by fixed numbers.\n"
    )


def _facts(title: str, facts: object) -> str:
    """A section from whatever was recorded; nothing recorded, no section."""
    if not facts:
        return ""
    return _table(title, facts) if isinstance(facts, Mapping) else f"## {title}\n\n{facts}\n"


def _table(title: str, rows: Mapping[str, Any]) -> str:
    lines = [f"## {title}", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in rows.items()]
    return "\n".join([*lines, ""])


def _cell(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
