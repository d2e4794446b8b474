"""Text tables, and numbers with their intervals."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from common.metrics.intervals import Interval

WIDTH = 80
NAME_WIDTH = 18  # of a class
TITLE_WIDTH = 28  # of a metric, such as the recall of a class


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


def shorten(name: str, width: int = NAME_WIDTH) -> str:
    """Return the name of a class, or of its metric, for a table: cut off if it is too long.

    >>> shorten("a name of many letters")
    'a name of many le…'
    """
    return name if len(name) <= width else f"{name[: width - 1]}…"


def end_of(path: str, width: int) -> str:
    """Return the path of a file for a table: only its end if it is too long.

    >>> end_of("train/cat/a photograph.png", 16)
    '…photograph.png'
    """
    return path if len(path) <= width else f"…{path[len(path) - width + 1 :].lstrip()}"


def short_names(names: Sequence[str], width: int = NAME_WIDTH) -> list[str]:
    """Return names for the columns of a table: short, and all different.

    >>> short_names(["cat", "a name of many letters", "a name of many legs"])
    ['cat', 'a name of many l…1', 'a name of many l…2']
    """
    short = [shorten(name, width) for name in names]
    return [
        name if short.count(name) == 1 else f"{name[: width - 1 - len(str(k))]}…{k}"
        for k, name in enumerate(short)
    ]


def side_by_side(
    names: Sequence[str], columns: dict[str, Sequence[str]], align: str = "l"
) -> str:
    """Return tables of one row for each name, each with as many columns as 80 characters hold.

    columns: title -> one cell for each name. align: "l" or "r", of the columns.
    """
    tables: list[str] = []
    titles = list(columns)
    while titles:
        for n in range(len(titles), 0, -1):
            chosen = titles[:n]
            rows = [[name, *(columns[t][i] for t in chosen)] for i, name in enumerate(names)]
            table = text_table(["", *chosen], rows, "l" + align * n)
            if n == 1 or max(map(len, table.splitlines())) <= WIDTH:
                break
        tables.append(table)
        titles = titles[len(chosen) :]
    return "\n\n".join(tables)


def _aligned(lines: Sequence[Sequence[str]], align: str) -> list[list[str]]:
    """Return the lines with the cells of each column padded to its widest cell."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    pad = {"l": str.ljust, "r": str.rjust}
    return [
        [pad[side](cell, width) for cell, width, side in zip(line, widths, align, strict=True)]
        for line in lines
    ]


def shell_lines(words: Sequence[str]) -> str:
    """Return a command for a shell, in several lines if it is long.

    >>> print(shell_lines(["python", "train.py", "--data", "my photos"]))
    python train.py --data 'my photos'
    """
    lines: list[str] = []
    for word in map(shlex.quote, words):
        if lines and len(f"{lines[-1]} {word} \\") <= WIDTH:
            lines[-1] += f" {word}"
        else:
            lines.append(f"  {word}" if lines else word)
    return " \\\n".join(lines)


def with_interval(value: float, interval: Interval) -> str:
    """Return a number and its interval.

    >>> with_interval(0.30434, (0.156, 0.5094))
    '0.304 [0.156, 0.509]'
    """
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"
