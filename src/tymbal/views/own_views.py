"""A user's own functions as augmentation: `--augmentations mypackage:louder`, batched, with random numbers by key.

    def louder(waveforms, sample_rate, random):        # float32 [views, samples]
        return waveforms * 10 ** (random(1) * 12 / 20)

    def tilted(spectrograms, random):                  # float32 [views, frames, mels]
        slope = torch.linspace(-1, 1, spectrograms.shape[2], device=spectrograms.device)
        return spectrograms + (random(1) - 0.5)[:, :, None] * slope

What its first parameter is called says what a function changes. It gives a tensor of the same shape, on the same
device, and draws random numbers from `random` alone, so that a view is the same in every process, on every device and
in a resumed run. That is tried out before anything is read or trained.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tymbal.errors import SettingsError

if TYPE_CHECKING:  # whoever prepares no views is spared torch
    from torch import Tensor

__all__ = ["OwnViews", "Random", "function_names", "own_views"]

Kind = Literal["waveforms", "spectrograms"]

_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_STREAM = 1 << 12  # behind the streams of what is built in
_STREAMS = 1 << 8  # of one function
_TRIAL_RATE = 16_000
_TRIAL: dict[Kind, tuple[int, ...]] = {"waveforms": (3, _TRIAL_RATE), "spectrograms": (3, 98, 64)}
_HOW = (
    "Write it as def NAME(waveforms, sample_rate, random) or def NAME(spectrograms, random), which gives a tensor of "
    "the same shape."
)


class Random:
    """Random numbers for some views: functions of each view's key, and of nothing else.

    Attributes:
        keys: A key a view, int64 [views].
    """

    def __init__(self, keys: Tensor, *, place: int = 0) -> None:
        self.keys = keys
        self._first = _STREAM + place * _STREAMS

    def __call__(self, count: int = 1, *, stream: int = 0) -> Tensor:
        """Numbers uniform in [0, 1): float32 [views, count], on the device of the views.

        Args:
            count: Numbers a view.
            stream: 0 to 255: another one for numbers that must not depend on those drawn before.
        """
        if not 0 <= stream < _STREAMS:
            raise ValueError(f"stream is {stream}, which is not 0 to {_STREAMS - 1}")
        from tymbal.randomness import uniform

        return uniform(self.keys, count, stream=self._first + stream)


@dataclass(frozen=True)
class _Function:
    """A function by its name `module:function`, and what it changes."""

    name: str
    function: Callable[..., Any]
    kind: Kind
    knows_rate: bool


class OwnViews:
    """Functions that change views, one after the other.

    Args:
        names: Each as `module:function`. Modules are looked for in the current folder, too.

    Raises:
        SettingsError: One cannot be imported, or is not what it has to be.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._functions = tuple(_loaded(name) for name in self.names)
        self._try_out()

    def __reduce__(self) -> tuple[Any, ...]:
        return (own_views, (self.names,))  # a process that is spawned may not find the module by itself

    def of(self, kind: str) -> tuple[str, ...]:
        """Names of the functions that change `waveforms`, or `spectrograms`."""
        return tuple(each.name for each in self._functions if each.kind == kind)

    def source(self) -> str:
        """A hash of the functions' own source, by which a change of theirs is noticed; not of what they call."""
        texts = []
        for each in self._functions:
            try:
                texts.append(inspect.getsource(each.function))
            except (OSError, TypeError):  # of an object that is called, or typed in
                texts.append(each.name)
        return hashlib.blake2b("\n".join(texts).encode(), digest_size=8).hexdigest()

    def waveforms(self, waveforms: Tensor, keys: Tensor, *, sample_rate: int) -> Tensor:
        """Changes sounds.

        Args:
            waveforms: float32 [views, samples]; changed in place where a function does so.
            keys: A key a view, int64 [views], on any device.
            sample_rate: In Hz.

        Raises:
            SettingsError: A function fails, or gives something else.
        """
        return self._changed("waveforms", waveforms, keys, sample_rate)

    def spectrograms(self, spectrograms: Tensor, keys: Tensor) -> Tensor:
        """Changes log-mel spectrograms, float32 [views, frames, mels], as `waveforms` does sounds."""
        return self._changed("spectrograms", spectrograms, keys, None)

    def _changed(self, kind: Kind, values: Tensor, keys: Tensor, rate: int | None) -> Tensor:
        for place, each in enumerate(self._functions):
            if each.kind == kind:
                random = Random(keys.to(values.device), place=place)
                values = _checked(each, _called(each, values, random, rate), values)
        return values

    def _try_out(self) -> None:
        """Calls each function on noise: twice alike, and on one view alone.

        Raises:
            SettingsError: It fails, or does not depend on its arguments alone.
        """
        if not self._functions:
            return
        import torch

        from tymbal.randomness import fold, uniform

        for each in self._functions:
            shape = _TRIAL[each.kind]
            keys = fold(torch.arange(shape[0]), 1)
            noise = 0.1 * (uniform(keys, _TRIAL_RATE, stream=0) - 0.5)
            if each.kind == "spectrograms":
                noise = noise[:, : shape[1] * shape[2]].reshape(shape) * 40 - 6
            one, two, alone = (
                _checked(each, _called(each, part.clone(), Random(some), _TRIAL_RATE), part)
                for part, some in ((noise, keys), (noise, keys), (noise[1:2], keys[1:2]))
            )
            if not torch.equal(one, two):
                raise SettingsError(
                    f"the augmentation {each.name} gives something else each time",
                    advice="Draw its random numbers from random(count), so that a resumed run sees the same views.",
                )
            if not torch.allclose(one[1], alone[0], rtol=1e-3, atol=1e-4):
                raise SettingsError(
                    f"the augmentation {each.name} changes a view by the others of its batch",
                    advice="Change each view by itself: batches differ between devices, processes and runs.",
                )


@functools.cache
def own_views(names: tuple[str, ...]) -> OwnViews:
    """The functions of these names, loaded and tried out once a process.

    Raises:
        SettingsError: As `OwnViews`.
    """
    return OwnViews(names)


def function_names(text: str) -> tuple[str, ...]:
    """The functions that a setting names, `module:function` each with commas between; none where it is a file."""
    parts = tuple(part.strip() for part in text.split(","))
    if text.lower().endswith((".yaml", ".yml")) or not all(_NAME.fullmatch(part) for part in parts):
        return ()
    return parts


def _loaded(name: str) -> _Function:
    if not _NAME.fullmatch(name):
        raise SettingsError(f"{name!r} names no function for augmentation", advice="Example: mypackage:louder")
    module, _, attribute = name.partition(":")
    here = os.getcwd()  # noqa: PTH109 - as sys.path has it
    if here not in sys.path:
        sys.path.append(here)
    try:
        function = getattr(importlib.import_module(module), attribute)
    except AttributeError:
        raise SettingsError(f"{module} has no {attribute}", advice=f"Correct the name {name}.") from None
    except Exception as error:  # whatever a module does when it is imported
        raise SettingsError(
            f"the augmentation {name} cannot be imported: {type(error).__name__}: {error}",
            advice="Install its package, or run in the folder that its module lies in.",
        ) from error
    if not callable(function):
        raise SettingsError(f"the augmentation {name} is no function", advice=_HOW)
    return _described(name, function)


def _described(name: str, function: Callable[..., Any]) -> _Function:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # compiled
        signature = inspect.Signature()
    first = next(iter(signature.parameters), "")
    kind: Kind | None = next((each for each in _TRIAL if each == first), None)
    if kind is None:
        raise SettingsError(
            f"the first parameter of the augmentation {name} is {first!r}, not waveforms or spectrograms", advice=_HOW
        )
    knows_rate = kind == "waveforms" and "sample_rate" in signature.parameters
    try:
        signature.bind(None, random=None, **({"sample_rate": 1} if knows_rate else {}))
    except TypeError as error:
        raise SettingsError(f"the augmentation {name} cannot be called: {error}", advice=_HOW) from None
    return _Function(name, function, kind, knows_rate)


def _called(each: _Function, values: Tensor, random: Random, rate: int | None) -> Any:
    import torch

    known = {"sample_rate": rate, "random": random} if each.knows_rate else {"random": random}
    try:
        with torch.no_grad():
            return each.function(values, **known)
    except Exception as error:  # whatever a user's function does
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise SettingsError(
            f"the augmentation {each.name} fails: {type(error).__name__}: {error}",
            path=f"{frame.filename}:{frame.lineno}",
            advice="Correct the function there.",
        ) from error


def _checked(each: _Function, given_back: Any, given: Tensor) -> Tensor:
    import torch

    if not isinstance(given_back, torch.Tensor):
        raise SettingsError(f"the augmentation {each.name} gives {type(given_back).__name__}, no tensor", advice=_HOW)
    if given_back.shape != given.shape or not given_back.is_floating_point():
        shape, dtype = list(given_back.shape), str(given_back.dtype).removeprefix("torch.")
        raise SettingsError(
            f"the augmentation {each.name} gives {dtype} {shape} for float32 {list(given.shape)}", advice=_HOW
        )
    result = given_back.to(given)
    # A GPU would have to be waited for; there the loss says it.
    if result.device.type == "cpu" and not bool(result.isfinite().all()):
        raise SettingsError(f"the augmentation {each.name} gives numbers that are not finite", advice="Correct it.")
    return result
