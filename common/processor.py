"""Settings of the processor and the C library that make training on a CPU faster."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_denormals() -> Iterator[None]:
    """Numbers below 1e-38 count as 0. The momentum of a dead unit's weights would stay there
    for good, and slow the processor down."""
    least = torch.ones(1, dtype=torch.int32).view(torch.float32)
    before = (least * 1).item() == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


@functools.cache
def reuse_memory() -> None:
    """Have glibc keep freed memory: a ResNet9's steps else spend an eighth in page faults."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(ctypes.c_int(-3), ctypes.c_int(1 << 30))  # M_MMAP_THRESHOLD
        mallopt(ctypes.c_int(-1), ctypes.c_int((1 << 31) - 1))  # M_TRIM_THRESHOLD
