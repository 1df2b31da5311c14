"""Whether what stands beside Tymbal in this Python works, said plainly before it fails obscurely.

torchaudio and torchvision are no dependencies, but where they are installed, `transformers` imports them; a build that
does not belong to the installed torch makes that fail with a bare `OSError` or `RuntimeError` about a shared library.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util

from tymbal.errors import TymbalError

__all__ = ["check_companions"]


def check_companions() -> None:
    """Imports torchaudio and torchvision where they are installed.

    Raises:
        TymbalError: One of them is broken.
    """
    for name in ("torchaudio", "torchvision"):
        if importlib.util.find_spec(name) is None:
            continue
        try:
            importlib.import_module(name)
        except (OSError, ImportError, RuntimeError, AttributeError) as error:
            torch = importlib.metadata.version("torch")
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise TymbalError(
                f"the installed {name} does not work with torch {torch}, and transformers insists on importing it "
                f"({reason})",
                advice=f"Tymbal does not need it: `pip uninstall {name}`. Or install the build that belongs to torch "
                f"{torch}.",
            ) from error
