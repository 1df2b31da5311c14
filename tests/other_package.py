"""A package beside Tymbal's, as a user would install it, with a module and an entry point."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest


def install(folder: Path, patch: pytest.MonkeyPatch, group: str, points: dict[str, str], source: str = "") -> None:
    """Puts a package where Python and its child processes find it.

    Args:
        folder: Where to put it.
        patch: Takes it away again.
        group: The group of its entry points.
        points: Its entry points, `module:class` by name.
        source: Its module `other_package_module`.
    """
    (folder / "other-1.0.dist-info").mkdir(parents=True)
    (folder / "other-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    lines = [f"[{group}]", *(f"{name} = {place}" for name, place in points.items())]
    (folder / "other-1.0.dist-info" / "entry_points.txt").write_text("\n".join(lines) + "\n")
    (folder / "other_package_module.py").write_text(textwrap.dedent(source))
    patch.syspath_prepend(str(folder))
    patch.delitem(__import__("sys").modules, "other_package_module", raising=False)
