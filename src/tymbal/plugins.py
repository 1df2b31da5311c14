"""What Tymbal can be extended by: filter banks and table formats, known by name, a line each.

Another package adds one by an entry point in its `pyproject.toml`:

    [project.entry-points."tymbal.filter_banks"]
    gammatone = "their_package.banks:GammatoneBank"

Names and places only: this module imports none of them, and settings are checked against it in no time. A class is
imported on first use; entry points are read only for names that are not Tymbal's own.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tymbal.errors import SettingsError
from tymbal.values import nearest

__all__ = ["FILTER_BANKS", "TABLE_FORMATS", "Registry"]


@dataclass(frozen=True)
class Registry:
    """Classes of one contract, by name.

    Attributes:
        kind: The kind of the classes, for messages: `filter bank`.
        setting: The setting that chooses one, for messages: `filter_bank`.
        group: The group of entry points in which other packages name theirs.
        own: Tymbal's own classes, by name: `module:class`.
    """

    kind: str
    setting: str
    group: str
    own: Mapping[str, str]

    def names(self) -> tuple[str, ...]:
        """All names: Tymbal's own, then those of other packages."""
        return (*self.own, *sorted(self._entry_points()))

    def check(self, name: str) -> None:
        """Refuses a name that nothing is registered under.

        Raises:
            SettingsError: There is no such name; the message has the nearest one.
        """
        if name in self.own or name in self._entry_points():
            return
        guess = nearest(name, self.names())
        raise SettingsError(
            f"{self.setting} is {name!r}, which is not one of {', '.join(self.names())}",
            advice=f"Did you mean {guess}?" if guess else f"Install the package that has this {self.kind}.",
        )

    def load(self, name: str) -> Any:
        """Imports what is registered under a name.

        Raises:
            SettingsError: There is no such name, or the package that has it cannot be imported.
        """
        if name in self.own:
            module, _, attribute = self.own[name].partition(":")
            return getattr(importlib.import_module(module), attribute)
        self.check(name)
        entry = self._entry_points()[name]
        try:
            return entry.load()
        except (ImportError, AttributeError) as error:
            raise SettingsError(
                f"the {self.kind} {name!r} cannot be imported from {entry.value}: {error}",
                advice=f"Repair or remove the package that has it; its group of entry points is {self.group}.",
            ) from error

    def _entry_points(self) -> dict[str, importlib.metadata.EntryPoint]:
        entry_points = importlib.metadata.entry_points(group=self.group)
        return {entry.name: entry for entry in entry_points if entry.name not in self.own}


FILTER_BANKS = Registry(
    kind="filter bank",
    setting="filter_bank",
    group="tymbal.filter_banks",
    own={
        "kaldi": "tymbal.features.bank:KaldiBank",
        "librosa": "tymbal.features.bank:LibrosaBank",
    },
)
"""Filter banks (`tymbal.features.bank.FilterBank`)."""

TABLE_FORMATS = Registry(
    kind="table format",
    setting="format",
    group="tymbal.table_formats",
    own={
        "csv": "tymbal.inference.tables:Csv",
        "parquet": "tymbal.inference.tables:Parquet",
        "json": "tymbal.inference.tables:Json",
        "jsonl": "tymbal.inference.tables:JsonLines",
        "npy": "tymbal.inference.tables:Npy",
        "raven": "tymbal.inference.annotations:Raven",
        "audacity": "tymbal.inference.annotations:Audacity",
        "kaleidoscope": "tymbal.inference.annotations:Kaleidoscope",
        "embedding-atlas": "tymbal.inference.atlas:EmbeddingAtlas",
    },
)
"""Table formats (`tymbal.inference.tables.TableFormat`)."""
