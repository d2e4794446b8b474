"""The values of options, as types for argparse: numbers within limits, texts, paths, shares."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any


def number(
    kind: type,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> Callable[[str], Any]:
    """Return an argparse type: a finite number of the kind int or float, within the limits."""
    limits = {"of at least": least, "above": above, "at most": most, "below": below}
    words = " and ".join(f"{word} {n:.10g}" for word, n in limits.items() if n is not None)

    def parse(text: str) -> Any:
        try:
            value = kind(text)
            finite = math.isfinite(value)
        except (ValueError, OverflowError):  # no number, or a whole number beyond any float
            finite = False
        if not (
            finite
            and (least is None or value >= least)
            and (above is None or value > above)
            and (most is None or value <= most)
            and (below is None or value < below)
        ):
            noun = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {noun} {words}")
        return value

    return parse


MOST_SEED = 2**32 - 1  # of NumPy's older generators, which scikit-learn uses
SEED = number(int, least=0, most=MOST_SEED)
POSITIVE = number(int, least=1, most=10**6)
PROCESSES = number(int, least=1, most=1024)  # a machine starts no more, and no more threads
# A float32 ends at 3.4e38, and a step multiplies the rate with other numbers.
RATE = number(float, above=0, most=1e30)
SHARE = number(float, least=0, below=1)


def image_count(text: str) -> int | str:
    """Parse a number of images per class, or "full": all images of the source."""
    return text if text == "full" else POSITIVE(text)


def text(given: str) -> str:
    """Parse a text that is not empty: an empty one comes from a variable without a value."""
    if not given:
        raise argparse.ArgumentTypeError(
            "the value is empty; give one, or leave the option out"
        )
    return given


def path(given: str) -> Path:
    """Parse a path, in which a first ~ or ~USER stands for a home folder."""
    try:
        return Path(text(given)).expanduser()
    except RuntimeError:
        raise argparse.ArgumentTypeError(
            f"{given!r}: there is no such user; write ./{given} for a file of that name"
        ) from None


def class_share(text: str) -> tuple[str, float]:
    """Parse "cat:0.2" as ("cat", 0.2)."""
    name, colon, value = text.rpartition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"{text!r} is not CLASS:SHARE, such as cat:0.2")
    return name, SHARE(value)
