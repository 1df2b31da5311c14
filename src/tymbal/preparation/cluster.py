"""Shards built on a Dask cluster, whose workers see the same paths."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from tymbal.errors import SettingsError, StoreError

__all__ = ["dask_executor"]

_SECONDS = 30
_RETRIES = 3


@contextlib.contextmanager
def dask_executor(scheduler: str | None) -> Iterator[Executor]:
    """Yields an executor whose tasks run on a cluster; those of a worker that dies are given to another one.

    Args:
        scheduler: Address of its scheduler, as in `tcp://node7:8786`, or the file that it writes.

    Raises:
        SettingsError: Dask is not installed, or there is no scheduler at this address.
        StoreError: Workers died again and again.
    """
    if scheduler is None:
        raise SettingsError(
            "executor is dask, but there is no scheduler", advice="Give its address: --scheduler tcp://HOST:8786"
        )
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise SettingsError(
            "executor is dask, which is not installed", advice="Install it: pip install 'tymbal[dask]'"
        ) from None
    where: dict[str, Any] = {"scheduler_file": scheduler} if Path(scheduler).is_file() else {"address": scheduler}
    try:
        client: Any = Client(timeout=_SECONDS, set_as_default=False, **where)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"there is no Dask scheduler at {scheduler}: {error}", advice="Start one: dask scheduler; dask worker …"
        ) from error
    try:
        with client:
            yield client.get_executor(pure=False, retries=_RETRIES)
    except KilledWorker as error:
        raise StoreError(
            "workers of the cluster have died, one after the other; what they had finished stays",
            advice="Run the same command again: it continues. If they die again, give them more memory, or a file "
            "crashes its decoder.",
        ) from error
