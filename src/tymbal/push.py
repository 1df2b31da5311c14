"""A model on the Hugging Face Hub, for others or for oneself elsewhere: `tymbal push`.

    tymbal push classifier someone/robins --license cc-by-4.0
    tymbal predict hf://someone/robins night.flac -o night.csv

It is private unless `--no-private` says otherwise. The card says what it learned from, and what a probe read beside
random weights and the best plain line; paths of this machine become names. What the repository held of an earlier
model is replaced; its history keeps it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from tymbal import config as configuration
from tymbal._version import __version__
from tymbal.errors import SettingsError
from tymbal.progress import tell
from tymbal.settings import PushSettings

__all__ = ["PushResult", "push"]

_NO_LICENSE = (
    "Give --license with an identifier of the Hub: cc-by-4.0, cc-by-nc-4.0, apache-2.0, mit, … or other. If the sound "
    "that the model learned from has a licence, look there first."
)


@dataclass(frozen=True)
class PushResult:
    """The outcome of `push`.

    Attributes:
        name: `owner/name`.
        commit: The commit that the model is.
        url: Where it is shown.
        private: Whether only its owner sees it.
    """

    name: str
    commit: str
    url: str
    private: bool

    def summary(self) -> str:
        """The result as a person reads it."""
        seen = "for its owner alone" if self.private else "for everybody"
        return f"Uploaded, {seen}: {self.url}\nThis version of it: hf://{self.name}@{self.commit}"


def push(
    model: str | Path,
    name: str,
    *,
    config: str | Path | None = None,
    **settings: Any,
) -> PushResult:
    """Uploads a model to the Hugging Face Hub.

    Args:
        model: A run, a model folder, a Hugging Face or SSAST checkpoint.
        name: `owner/name`; the repository is made where there is none.
        config: YAML file with settings.
        **settings: See `tymbal.settings.PushSettings`.

    Raises:
        SettingsError: There is no licence, a table is none of a probe, or the name is taken by a public model.
        ModelError: The model cannot be read, or the Hub does not take it.
    """
    from tymbal.models.card import CardFacts
    from tymbal.models.folder import load_model, save_model
    from tymbal.models.hub import upload

    chosen = configuration.resolve(PushSettings, settings, config=config)
    if chosen.license is None:
        raise SettingsError(f"{name} needs a licence, or nobody may use it", advice=_NO_LICENSE)
    probes = list(_probes(model, chosen))
    loaded = load_model(model)
    description = replace(loaded.description, provenance=_without_paths(loaded.description.provenance))
    if not probes:
        tell("The card has no probe: tymbal probe MODEL LABELLED -o TABLE.json, then push with --probes TABLE.json")
    with tempfile.TemporaryDirectory(prefix="tymbal-push-") as folder:
        place = Path(folder) / "model"
        facts = CardFacts(name=name, license=chosen.license, probes=probes)
        save_model(place, loaded.module, description, objective_state=loaded.objective_state, facts=facts)
        message = chosen.message or f"Model of Tymbal {__version__}"
        pushed = upload(place, name, private=chosen.private, message=message)
    return PushResult(pushed.name, pushed.commit, pushed.url, pushed.private)


def _probes(model: str | Path, settings: PushSettings) -> Iterator[Mapping[str, Any]]:
    """Tables of probes: those that are given, and those in the run folder.

    Raises:
        SettingsError: A given one is something else.
    """
    from tymbal.reporting.probes_part import Probes

    given = [Path(path) for path in settings.probes]
    for path in given:
        table = Probes.read(path)
        if table is None:
            raise SettingsError(
                "this is no table of a probe", path=path, advice="tymbal probe -o TABLE.json writes one."
            )
        yield table.facts
    found = sorted(Path(model).glob("*.json")) if Path(model).is_dir() else []
    for path in found:
        if path.resolve() not in {each.resolve() for each in given}:
            table = Probes.read(path)
            if table is not None:
                yield table.facts


def _without_paths(facts: Any) -> Any:
    """Recorded facts in which each path of this machine is its last name alone."""
    if isinstance(facts, Mapping):
        return {name: _without_paths(value) for name, value in facts.items()}
    if isinstance(facts, list | tuple):
        return [_without_paths(value) for value in facts]
    if not isinstance(facts, str):
        return facts
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(facts).is_absolute():
            return kind(facts).name
    return facts
