"""Label fixes: the file of suspect labels, with the decisions of the user."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from common.dataset.split import Split
from common.errors import InputError
from common.files import save_table

# The columns of data/label_suspects.csv. `data` is the fingerprint of the audited train images
# and labels; every row has it, so that sorting or filtering in a spreadsheet keeps it.
COLUMNS = ("index", "file", "given", "suggested", "confidence", "accept", "data")
DECISIONS = ("yes", "drop", "no", "")


class Suspect(NamedTuple):
    """A row of the file: an image whose label may be wrong, and the decision of the user."""

    index: int
    file: str
    given: str
    suggested: str
    confidence: float
    accept: str = ""


def write_suspects(path: Path, suspects: Sequence[Suspect], fingerprint: str) -> list[Suspect]:
    """Write the suspects to `path`, keep the decisions of an earlier file, return all rows.

    A row with a decision stays unchanged, even if its image is no longer suspect. An earlier
    file for other images or labels is moved to NAME-FINGERPRINT.csv if it has a decision.
    """
    earlier = _read_rows(path) if path.exists() else []
    decided = [(suspect, data) for suspect, data in earlier if suspect.accept]
    if decided and decided[0][1] != fingerprint:
        path.rename(path.with_stem(f"{path.stem}-{decided[0][1]}"))
        decided = []
    by_index = {suspect.index: suspect for suspect, _ in decided}
    rows = [by_index.pop(suspect.index, suspect) for suspect in suspects]
    rows += by_index.values()
    save_table(path, as_rows(rows, fingerprint), COLUMNS)
    return rows


def as_rows(suspects: Sequence[Suspect], fingerprint: str) -> list[dict[str, str | int]]:
    """Return the suspects as rows of the file."""
    return [
        s._asdict() | {"confidence": f"{s.confidence:.4f}", "data": fingerprint}
        for s in suspects
    ]


def read_suspects(path: Path, fingerprint: str) -> list[Suspect]:
    """Return the suspects in `path` for these train images and labels.

    A missing file and a file for other images or labels have none. Raises InputError for a
    file that `read_fixes` could not read.
    """
    rows = _read_rows(path) if path.exists() else []
    return [suspect for suspect, data in rows if data == fingerprint]


def _read_rows(path: Path) -> list[tuple[Suspect, str]]:
    """Return the rows of a file, each with its value in the column `data`."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # a spreadsheet adds a BOM
            reader = csv.DictReader(file, restval="")
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: can't be read ({error})") from None
    missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise InputError(
            f"{path}: has no column {', '.join(missing)};"
            " inspect_data.py --audit-labels writes such a file"
        )
    lines = enumerate(rows, 2)
    return [(_parse_suspect(row, f"{path}: line {n}"), row["data"]) for n, row in lines]


def _parse_suspect(row: dict[str, str], where: str) -> Suspect:
    index, confidence, accept = row["index"], row["confidence"], row["accept"].strip().lower()
    if not index.isdecimal():
        raise InputError(f"{where}: index {index!r} is not a whole number")
    try:
        probability = float(confidence)
    except ValueError:
        probability = math.nan
    if not 0 <= probability <= 1:
        raise InputError(f"{where}: confidence {confidence!r} is not a number from 0 to 1")
    if accept not in DECISIONS:
        raise InputError(f"{where}: accept is {row['accept']!r}; use yes, drop, no or nothing")
    return Suspect(int(index), row["file"], row["given"], row["suggested"], probability, accept)


def read_fixes(
    path: Path, split: Split, accept_above: float | None
) -> tuple[dict[int, int], list[int]]:
    """Return the accepted fixes: position -> new label, and the positions to drop.

    path: a file that `inspect_data.py --audit-labels` wrote. Its column `accept` is yes (the
    image gets the suggested label), drop, or no. A row without a decision is accepted if its
    confidence is at least accept_above.

    Raises InputError for a file that was made for other train images or labels than those of
    the split, an invalid row, and a file that accepts nothing.
    """
    labels, classes, fingerprint = split.train.labels, split.classes, split.train_fingerprint
    relabelled, dropped = {}, []
    for line, (suspect, data) in enumerate(_read_rows(path), 2):
        i, decision, problem = suspect.index, suspect.accept, None
        if data != fingerprint:
            problem = (
                f"made for other images or labels ({data}, these are {fingerprint});"
                " audit these with inspect_data.py --audit-labels"
            )
        elif i >= len(labels):
            problem = f"index {i}, but there are {len(labels)} train images"
        elif i in relabelled or i in dropped:
            problem = f"image {i} has an earlier row; remove one of the two"
        elif suspect.given != classes[labels[i]]:
            problem = f"given {suspect.given!r}, but image {i} is a {classes[labels[i]]}"
        elif suspect.suggested not in classes:
            problem = f"suggested {suspect.suggested!r} is not one of {', '.join(classes)}"
        if problem:
            raise InputError(f"{path}: line {line}: {problem}")
        if not decision and accept_above is not None and suspect.confidence >= accept_above:
            decision = "yes"
        if decision == "drop":
            dropped.append(i)
        elif decision == "yes":
            relabelled[i] = classes.index(suspect.suggested)
    if not relabelled and not dropped:
        raise InputError(
            f"{path}: accepts nothing; write yes or drop in the column accept, or use"
            " --accept-above"
        )
    return relabelled, dropped
