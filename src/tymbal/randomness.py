"""Random numbers without a generator: a number is a function of a key and its place, and of nothing else.

A mask must be the same whichever process, device, batch or resumed run draws it, and different for every clip and
epoch. A generator cannot give that without being saved, seeded by rank and asked in the right order; a hash of (seed,
epoch, clip) can (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"). The work is plain integer
arithmetic on tensors: no loop over the batch, no wait for the device, and the same bits on CPU, GPU and under
`torch.compile`.
"""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

__all__ = ["BITS", "EVALUATION", "bits", "fold", "uniform"]

BITS = 24
"""Random bits of a number: as many as float32 holds exactly."""

EVALUATION = -1
"""Stands for the epoch in the keys of what is drawn in evaluation, which is the same in every epoch."""

_LOW = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9  # 2^32 over the golden ratio: keeps zeros from hashing to zero, and neighbours far apart


def fold(first: int | Tensor, *rest: int | Tensor) -> Tensor:
    """Mixes whole numbers into one key: (seed, epoch, row) to key.

    Args:
        first: An int or an integer tensor; negative numbers are fine.
        rest: More of them; tensors are broadcast against each other.

    Returns:
        Keys as int64 below 2^32, of the shape of the tensors (without one, a tensor of no dimensions on the CPU).
    """
    key: int | Tensor = 0
    for value in (first, *rest):
        number = value.long() if isinstance(value, Tensor) else value
        # Both halves count, so that numbers beyond 32 bits do not fall together.
        for half in (number & _LOW, (number >> 32) & _LOW):
            key = _mix(key + half + _GOLDEN)
    return key if isinstance(key, Tensor) else torch.tensor(key)


def bits(keys: Tensor, count: int, *, stream: int) -> Tensor:
    """Random whole numbers below 2^24 for each key.

    Args:
        keys: Keys from `fold`, int64 [batch].
        count: Numbers a key.
        stream: Tells draws of one key apart that must not depend on each other.

    Returns:
        int64 [batch, count], on the device of the keys.
    """
    place = torch.arange(count, device=keys.device) + _mix(stream * _GOLDEN)
    place = _mix(place)
    return torch.bitwise_right_shift(_mix(_mix(keys.unsqueeze(1) ^ place)), 32 - BITS)


def uniform(keys: Tensor, count: int, *, stream: int) -> Tensor:
    """Random numbers, uniform in [0, 1), for each key.

    Args:
        keys: Keys from `fold`, int64 [batch].
        count: Numbers a key.
        stream: Tells draws of one key apart that must not depend on each other.

    Returns:
        float32 [batch, count], on the device of the keys.
    """
    return bits(keys, count, stream=stream).float() * 2.0**-BITS


@overload
def _mix(number: int) -> int: ...
@overload
def _mix(number: Tensor) -> Tensor: ...
@overload
def _mix(number: int | Tensor) -> int | Tensor: ...
def _mix(number: int | Tensor) -> int | Tensor:
    """Hashes the low 32 bits of whole numbers into [0, 2^32), each bit changing about half of the result's.

    Seeds are Python's, epochs and rows are tensors: one hash for both. It is two rounds of multiply and xor-shift (the
    constants are from C. Wellons' hash-prospector). Both factors are below 2^31, so that a product with 32 bits fits
    into a signed int64: nothing overflows, on no device.
    """
    number = number & _LOW
    number = ((number ^ (number >> 16)) * 0x21F0AAAD) & _LOW
    number = ((number ^ (number >> 15)) * 0x735A2D97) & _LOW
    return number ^ (number >> 15)
