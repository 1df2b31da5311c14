"""The model card: a README in the model folder that says what the model is, where it comes from and how to use it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tymbal._version import __version__
from tymbal.models.description import ModelDescription
from tymbal.models.formats.huggingface import REMOTE_CODE, REMOTE_MODEL, is_stock
from tymbal.models.hub import SCHEME

__all__ = ["CardFacts", "model_card"]

_MANY_LABELS = 20
_FEATURES = {"model": "this model", "random": "the same with random weights", "plain": "the best plain line"}
"""Lines of a probe that a card shows, and what they are called there."""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says of a model that is shared.

    Attributes:
        name: `owner/name` on the Hub.
        license: Identifier of its licence there.
        probes: Tables that `tymbal probe` wrote as JSON.
    """

    name: str | None = None
    license: str | None = None
    probes: Sequence[Mapping[str, Any]] = ()


def model_card(
    description: ModelDescription,
    *,
    obstacle: str | None,
    preprocessor: Mapping[str, Any] | None,
    facts: CardFacts | None = None,
) -> str:
    """Writes the card.

    Args:
        description: The model.
        obstacle: Why transformers cannot load it; `None` where it can.
        preprocessor: How transformers computes its spectrograms; `None` where it cannot.
        facts: What else is known where it is shared.

    Returns:
        Markdown, with the head that the Hugging Face hub reads.
    """
    facts = facts or CardFacts()
    use = _use(description, obstacle, preprocessor=preprocessor)
    if facts.name is not None:
        use = use.replace(", where MODEL is this folder", "").replace("MODEL", facts.name)
    parts = [
        _front_matter(description, obstacle, facts),
        _summary(description),
        _shape(description),
        *map(_probe, facts.probes),
        use,
        _facts("How it was pretrained", description.objective),
    ]
    known = {"data": "Data", "settings": "Settings", "metrics": "Metrics", "int8": "In 8 bits, by `--precision int8`"}
    parts += [_facts(title, description.provenance.get(key)) for key, title in known.items()]
    parts.append(_facts("Origin", {k: v for k, v in description.provenance.items() if k not in known}))
    return "\n".join(part for part in parts if part)


def _front_matter(description: ModelDescription, obstacle: str | None, facts: CardFacts) -> str:
    lines = ["---", f"library_name: {'tymbal' if obstacle else 'transformers'}"]
    if facts.license is not None:
        lines.append(f"license: {facts.license}")
    start = str(description.provenance.get("from"))
    if start.startswith(SCHEME):
        lines.append(f"base_model: {start.removeprefix(SCHEME).partition('@')[0]}")
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
    ms = 1000 / features.sample_rate
    rows = {
        "sound": f"{features.sample_rate:,} Hz, mono",
        "clip": f"{encoder.frames} frames ({_seconds(description):.2f} s); other lengths work in Tymbal",
        "spectrogram": f"log-mel, {features.mel_bins} bins, a frame of {ms * features.window_samples:.4g} ms every "
        f"{ms * features.shift_samples:.4g} ms",
        "normalisation": _normalisation(description),
        "padding": f"{description.padding:g} before normalisation",
        "encoder": f"width {encoder.width}, {encoder.depth} blocks, {encoder.heads} heads, patches of "
        f"{encoder.patch[0]}x{encoder.patch[1]} (mel bins x frames) every {encoder.stride[0]}x{encoder.stride[1]}",
    }
    if description.pooling is not None:
        rows["pooling"] = description.pooling + (", without padding" if description.skip_padding else "")
        rows["pooling"] += ", each number standardised" if description.standardise else ""
    return _table("What it takes and is", rows)


def _seconds(description: ModelDescription) -> float:
    return description.features.samples_of(description.encoder.frames) / description.features.sample_rate


def _normalisation(description: ModelDescription) -> str:
    if description.normalize == "clip":
        return "(x - mean) / (2 * standard deviation), those of each clip's own sound"
    return f"(x - {description.mean:g}) / (2 * {description.std:g})"


def _probe(table: Mapping[str, Any]) -> str:
    """A section of what a probe read, beside random weights and the best plain line read in their best way."""
    rows = [row for row in table["rows"] if row.get("shots") is None and row["features"] in _FEATURES]
    figure = next((name for name in ("mAP", "accuracy") if rows and name in rows[0]), "accuracy")

    def lines() -> Iterator[str]:
        for reader in dict.fromkeys(row["reader"] for row in rows):
            best = {
                features: max(row[figure] for row in rows if (row["features"], row["reader"]) == (features, reader))
                for features in dict.fromkeys(row["features"] for row in rows if row["reader"] == reader)
            }
            cells = (f"{100 * best[features]:.1f}" if features in best else "" for features in _FEATURES)
            yield f"| {reader} | " + " | ".join(cells) + " |"

    counts = f"{table['train']:,} clips, asked about {table['validation']:,}"
    asked = f"{len(table['classes'])} classes, learned from {counts}"
    head = f"| {figure}, % | " + " | ".join(_FEATURES.values()) + " |"
    verdict = (table.get("verdict") or {}).get("text")
    text = [f"## What its frozen embeddings tell: {asked}", "", head, "|---|" + "---:|" * len(_FEATURES), *lines()]
    return "\n".join([*text, *(["", verdict] if verdict else []), ""])


def _use(description: ModelDescription, obstacle: str | None, *, preprocessor: Mapping[str, Any] | None) -> str:
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
    return text + _use_with_transformers(description, preprocessor, obstacle=obstacle)


def _use_with_transformers(
    description: ModelDescription, preprocessor: Mapping[str, Any] | None, *, obstacle: str | None
) -> str:
    auto = "AutoModelForAudioClassification" if description.labels else "AutoModel"
    own = preprocessor is not None and not is_stock(preprocessor)
    trusted = ", trust_remote_code=True"
    trust = trusted if own else ""
    text = f"""
With transformers:

```python
from transformers import {"AutoFeatureExtractor, " if preprocessor else ""}{auto}

model = {auto}.from_pretrained("MODEL"{trusted if obstacle else ""})
"""
    why = ""
    if obstacle is not None:
        why = (
            f"transformers' own classes cannot hold it: {obstacle}. `{REMOTE_MODEL}` here holds it, a page of Python: "
            "read it first. "
        )
    if preprocessor is None:
        return (
            f"{text}```\n\n{why}Its spectrograms come from Tymbal: transformers knows no extractor for "
            f"{description.features.filter_bank}'s, so that there is no `preprocessor_config.json`.\n"
        )
    text += f"""extractor = AutoFeatureExtractor.from_pretrained("MODEL"{trust})
outputs = model(**extractor(waveform, sampling_rate={description.features.sample_rate}, return_tensors="pt"))
```
"""
    if not own:
        return (
            f"{text}\nGive whole clips there: its extractor pads shorter ones with zeros, which are louder than "
            "silence, and the model does not take other lengths.\n"
        )
    return (
        f"{text}\n{why}Its spectrograms are made and normalised as transformers' own extractor cannot do it. That "
        f"is why `{REMOTE_CODE}` lies here, a page of Python, and why `trust_remote_code` is needed: read it first. "
        f"Shorter clips are padded as in Tymbal. Of longer ones it takes the first "
        f"{_seconds(description):.2f} s; `tymbal predict` takes all of them, window by window.\n"
    )


def _facts(title: str, facts: object) -> str:
    """A section of the recorded facts; empty without any."""
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
