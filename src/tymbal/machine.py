"""Processor, cores and memory of this process, and the folder for what can be made again.

torchaudio and torchvision are no dependencies, but where they are installed, `transformers` imports them; a build that
does not belong to the installed torch makes that fail with a bare `OSError` or `RuntimeError` about a shared library.
"""

from __future__ import annotations

import errno
import importlib
import importlib.util
import os
import platform
import sys
from pathlib import Path

from tymbal.errors import TymbalError

__all__ = ["cache_folder", "check_companions", "cores", "machine", "memory", "processor", "tune_malloc"]


def cores() -> int:
    """Processor cores that this process may use: a cluster's share, not all that are built in."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tune_malloc() -> bool:
    """Makes glibc keep freed memory for the next step. For the command line, before the first tensor.

    The same as starting with `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=…`, which has precedence. It holds for the
    whole process, which is why a library call never does it.

    Returns:
        Whether it took effect; on another C library nothing is done.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return False
    if "MALLOC_MMAP_MAX_" in os.environ or "MALLOC_TRIM_THRESHOLD_" in os.environ:
        return True
    import ctypes

    # From malloc.h. -1 is the largest threshold: memory is never given back while the process runs.
    trim_threshold, mmap_max = -1, -4
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(mmap_max, 0)) and bool(mallopt(trim_threshold, -1))


def memory() -> int | None:
    """Bytes of main memory that are built in; None where the system does not say."""
    if not hasattr(os, "sysconf") or not {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(os.sysconf_names):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def processor() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def machine() -> dict[str, str]:
    """Facts of the machine to give beside a figure of speed; of GPUs only what is known without importing torch."""
    facts = {"system": f"{platform.system()} {platform.machine()}", "processor": processor(), "cores": str(cores())}
    size = memory()
    if size is not None:
        facts["memory"] = f"{size / 2**30:.0f} GiB"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        facts["gpu"] = str(torch.cuda.get_device_name())
    return facts


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
            from importlib.metadata import version

            torch = version("torch")
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise TymbalError(
                f"the installed {name} does not work with torch {torch}, and transformers insists on importing it "
                f"({reason})",
                advice=f"Tymbal does not need it: `pip uninstall {name}`. Or install the build that belongs to torch "
                f"{torch}.",
            ) from error


def cache_folder() -> Path:
    """The folder of what can be made again, as saved embeddings: `$TYMBAL_CACHE`, else a folder of the user's cache.

    Raises:
        OSError: Neither is known: the user has no home folder.
    """
    given = os.environ.get("TYMBAL_CACHE")
    if given:
        return Path(given)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or _home() / "AppData" / "Local") / "tymbal"
    if sys.platform == "darwin":
        return _home() / "Library" / "Caches" / "tymbal"
    return Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache") / "tymbal"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        raise FileNotFoundError(errno.ENOENT, "There is no home folder for a cache; $TYMBAL_CACHE names one") from None
