"""Text tables, and numbers with their intervals."""

from __future__ import annotations

from collections.abc import Sequence

from common.metrics.intervals import Interval


def text_table(headers: Sequence[str], rows: Sequence[Sequence[str]], align: str = "") -> str:
    """Return a table for the screen.

    align: "l" or "r" for each column; by default the first is aligned left, the others right.

    >>> print(text_table(["class", "images"], [["car", "551"], ["cat", "23"]]))
    class  images
    car       551
    cat        23
    """
    lines = [headers, *rows] if any(headers) else rows
    align = align or "l" + "r" * (len(lines[0]) - 1)
    return "\n".join("  ".join(cells).rstrip() for cells in _aligned(lines, align))


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown, all of its columns aligned left."""
    lines = _aligned([headers, *rows], "l" * len(headers))
    lines.insert(1, ["-" * len(cell) for cell in lines[0]])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _aligned(lines: Sequence[Sequence[str]], align: str) -> list[list[str]]:
    """Return the lines with the cells of each column padded to its widest cell."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    pad = {"l": str.ljust, "r": str.rjust}
    return [
        [pad[side](cell, width) for cell, width, side in zip(line, widths, align, strict=True)]
        for line in lines
    ]


def with_interval(value: float, interval: Interval) -> str:
    """Return a number and its interval.

    >>> with_interval(0.30434, (0.156, 0.5094))
    '0.304 [0.156, 0.509]'
    """
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"
