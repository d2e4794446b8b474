"""Label fixes: the file of suspect labels, with the decisions of the user."""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from common.dataset.split import Split
from common.errors import InputError
from common.files import read_table, save_table

# The columns of data/label_suspects.csv. `data` is the fingerprint of the audited train images
# and labels; every row has it, so that sorting or filtering in a spreadsheet keeps it. `check`
# notices a change of any column but `accept`.
COLUMNS = ("index", "file", "given", "suggested", "confidence", "accept", "data", "check")
OPTIONAL_COLUMNS = {"check"}  # files of earlier versions lack it
DECISIONS = ("yes", "drop", "no", "")


class Suspect(NamedTuple):
    """A row of the file: an image whose label may be wrong, and the decision of the user."""

    index: int
    file: str
    given: str
    suggested: str
    confidence: float
    accept: str = ""

    def check(self, data: str) -> str:
        """Return the value of the column `check`, for the train images with fingerprint data.

        Eight hexadecimal digits of a SHA-256, after an x: spreadsheets rewrite numbers.
        """
        values = [*self[:4], f"{self.confidence:.4f}", data]
        return f"x{hashlib.sha256(json.dumps(values).encode()).hexdigest()[:8]}"


def write_suspects(path: Path, suspects: Sequence[Suspect], fingerprint: str) -> list[Suspect]:
    """Write the suspects to `path`, keep earlier decisions, return all rows.

    A row with a decision stays unchanged, even if its image is no longer suspect. Decisions on
    other images or labels move to NAME-FINGERPRINT.csv, and come back from there when those
    are audited again.
    """
    decided, elsewhere = _decisions(path, fingerprint)
    # At every moment each decision is in a file: first in that for its data, then removed here.
    for data, by_index in elsewhere.items():
        save_table(_file_for(path, data), as_rows(by_index.values(), data), COLUMNS)
    rows = [decided.pop(suspect.index, suspect) for suspect in suspects]
    rows += decided.values()
    save_table(path, as_rows(rows, fingerprint), COLUMNS)
    # Otherwise a decision that the user takes back later would return from there.
    with suppress(OSError):
        _file_for(path, fingerprint).unlink(missing_ok=True)
    return rows


def as_rows(suspects: Sequence[Suspect], fingerprint: str) -> list[dict[str, str | int]]:
    """Return the suspects as rows of the file."""
    return [
        s._asdict()
        | {"confidence": f"{s.confidence:.4f}", "data": fingerprint}
        | {"check": s.check(fingerprint)}
        for s in suspects
    ]


def read_suspects(path: Path, fingerprint: str) -> list[Suspect]:
    """Return the suspects in `path` for these train images and labels.

    A missing file and a file for other images or labels have none. Raises InputError if
    `write_suspects` could not read this file, or one with earlier decisions.
    """
    _decisions(path, fingerprint)
    return list(_read_file(path).get(fingerprint, {}).values())


def _decisions(
    path: Path, fingerprint: str
) -> tuple[dict[int, Suspect], dict[str, dict[int, Suspect]]]:
    """Return the rows with decisions by index: for this data, and for other data in `path`."""
    found = {fingerprint: {}} | _read_file(path)
    for data, by_index in found.items():
        file = _file_for(path, data)
        aside = _read_file(file)
        if aside.keys() - {data}:
            raise InputError(
                f"{file}: has rows for other images or labels than {data}; remove these rows"
            )
        # A row in `path` is newer, also one without a decision: it was taken back.
        merged = aside.get(data, {}) | by_index
        found[data] = {i: suspect for i, suspect in merged.items() if suspect.accept}
    here = found.pop(fingerprint)
    return here, {data: by_index for data, by_index in found.items() if by_index}


def _file_for(path: Path, data: str) -> Path:
    return path.with_stem(f"{path.stem}-{data}")


def _read_file(path: Path) -> dict[str, dict[int, Suspect]]:
    """Return the rows of a file, by their data and index; a missing file has none."""
    found: dict[str, dict[int, Suspect]] = {}
    for _, suspect, data in _read_rows(path) if path.exists() else ():
        found.setdefault(data, {})[suspect.index] = suspect
    return found


def _read_rows(path: Path) -> list[tuple[str, Suspect, str]]:
    """Return for each row its file and line, the suspect, and its value in the column `data`.

    Raises InputError for a row that is not as written, but for its decision, and for a second
    row of an image.
    """
    (_, names), *lines = read_table(path) or [(1, [])]
    missing = [name for name in COLUMNS if name not in (*names, *OPTIONAL_COLUMNS)]
    if missing:
        raise InputError(
            f"{path}: has no column {', '.join(missing)};"
            " inspect_data.py --audit-labels writes such a file"
        )
    rows, seen = [], set()
    for line, values in lines:
        where = f"{path}: line {line}"
        if len(values) != len(names):
            raise InputError(f"{where}: {len(values)} columns, but there are {len(names)}")
        row = dict(zip(names, values, strict=True))
        suspect, data = _parse_suspect(row, where), row["data"]
        if (data, suspect.index) in seen:
            raise InputError(
                f"{where}: image {suspect.index} has an earlier row; remove one of the two"
            )
        seen.add((data, suspect.index))
        rows.append((where, suspect, data))
    return rows


def _parse_suspect(row: dict[str, str], where: str) -> Suspect:
    index, confidence, accept = row["index"], row["confidence"], row["accept"].strip().lower()
    if not re.fullmatch("[0-9]{1,9}", index):
        raise InputError(f"{where}: index {index[:40]!r} is not a whole number")
    try:
        probability = float(confidence)
    except ValueError:
        probability = math.nan
    if not 0 <= probability <= 1:
        raise InputError(f"{where}: confidence {confidence[:40]!r} is not a number from 0 to 1")
    if not re.fullmatch("[0-9a-f]{12}", row["data"]):
        raise InputError(f"{where}: data {row['data'][:40]!r} is not 12 hexadecimal digits")
    if accept not in DECISIONS:
        raise InputError(
            f"{where}: accept is {row['accept'][:40]!r}; use yes, drop, no or nothing"
        )
    names = row["file"], row["given"], row["suggested"]
    suspect = Suspect(int(index), *names, probability, accept)
    if row.get("check", suspect.check(row["data"])) != suspect.check(row["data"]):
        raise InputError(
            f"{where}: another column than accept was changed; restore or remove the row (the"
            " page figures/inspect_data.html can change the suggested label too)"
        )
    return suspect


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
    for where, suspect, data in _read_rows(path):
        i, decision, problem = suspect.index, suspect.accept, None
        if data != fingerprint:
            problem = (
                f"made for other images or labels ({data}, these are {fingerprint});"
                " audit these with inspect_data.py --audit-labels"
            )
        elif i >= len(labels):
            problem = f"index {i}, but there are {len(labels)} train images"
        elif suspect.given != classes[labels[i]]:
            problem = f"given {suspect.given!r}, but image {i} is a {classes[labels[i]]}"
        elif suspect.suggested not in classes:
            problem = f"suggested {suspect.suggested!r} is not one of {', '.join(classes)}"
        if problem:
            raise InputError(f"{where}: {problem}")
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
