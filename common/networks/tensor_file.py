"""Files of tensors and plain values, as PyTorch writes them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from common.errors import InputError
from common.files import atomic_write


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values to `path`, atomically."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def read_tensors(path: Path) -> Any:
    """Return the content of `path`; raise InputError if it can't be read."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path}: can't be read ({error})") from None
