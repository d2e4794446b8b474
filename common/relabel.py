"""Labels that are not the source's: wrong ones planted, and fixes that the user accepted."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from common.options import InputError
from common.results import save_table

# Of data/label_suspects.csv. `data` is the fingerprint of the train images and labels that were
# audited, in each row, so that it survives sorting, filtering and a spreadsheet.
COLUMNS = ("index", "file", "given", "suggested", "confidence", "accept", "data")
DECISIONS = ("yes", "drop", "no", "")


class Suspect(NamedTuple):
    """A row of the file: an image whose label may be wrong, and what the user decided."""

    index: int
    file: str
    given: str
    suggested: str
    confidence: float
    accept: str = ""


def plant_noise(
    labels: torch.Tensor, shares: Sequence[tuple[int, float]], classes: int, seed: int
) -> torch.Tensor:
    """Labels (N,) of which a share of each named class is wrong.

    shares: (class, share); of a class's n images round(share * n), drawn at random, get one of
    the other labels, each as likely. A class's draw depends on the seed and the class alone.
    """
    noisy = labels.clone()
    for k, share in shares:
        rng = np.random.default_rng([seed, k])
        of_class = (labels == k).nonzero().flatten().numpy()
        chosen = rng.choice(of_class, round(share * len(of_class)), replace=False)
        wrong = rng.choice([j for j in range(classes) if j != k], len(chosen))
        noisy[torch.from_numpy(chosen)] = torch.from_numpy(wrong)
    return noisy


def write_suspects(path: Path, suspects: Sequence[Suspect], fingerprint: str) -> list[Suspect]:
    """Write the suspects to `path`, with the decisions of an earlier such file; return them.

    A row that was decided stays, with its suggestion, also where it is no suspect any more.
    An earlier file for other images or labels is first moved to NAME-FINGERPRINT.csv, if a
    decision is in it.
    """
    earlier = _rows(path) if path.exists() else []
    decided = [row for row in earlier if row["accept"].strip()]
    if decided and decided[0]["data"] != fingerprint:
        path.rename(path.with_stem(f"{path.stem}-{decided[0]['data']}"))
        decided = []
    kept = {int(row["index"]): _suspect(row) for row in decided}
    suspects = [kept.pop(suspect.index, suspect) for suspect in suspects] + list(kept.values())
    save_table(path, as_rows(suspects, fingerprint), COLUMNS)
    return suspects


def as_rows(suspects: Sequence[Suspect], fingerprint: str) -> list[dict[str, str | int]]:
    """The suspects as rows of the file."""
    return [
        s._asdict() | {"confidence": f"{s.confidence:.4f}", "data": fingerprint}
        for s in suspects
    ]


def read_suspects(path: Path, fingerprint: str) -> list[Suspect]:
    """The suspects in `path`; none where there is no such file or it is for other labels."""
    rows = _rows(path) if path.exists() else []
    return [_suspect(row) for row in rows if row["data"] == fingerprint]


def _suspect(row: dict[str, str]) -> Suspect:
    return Suspect(
        int(row["index"]),
        row["file"],
        row["given"],
        row["suggested"],
        float(row["confidence"]),
        row["accept"],
    )


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of a file with COLUMNS. Raises InputError where it is none."""
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
    return rows


class Fixes(NamedTuple):
    """What the user accepted: positions (n,) and their new labels (n,); positions to drop."""

    relabelled: torch.Tensor
    labels: torch.Tensor
    dropped: torch.Tensor


def read_fixes(
    path: Path,
    fingerprint: str,
    labels: torch.Tensor,
    classes: Sequence[str],
    accept_above: float | None,
) -> Fixes:
    """The accepted rows of a file with COLUMNS, as `inspect_data.py --audit-labels` writes it.

    accept is yes (the image gets the suggested label), drop, or no; a row without a decision is
    accepted where its confidence is at least accept_above. labels (N,) and fingerprint are of
    the train images. Raises InputError for a file that is not of these, a row that makes no
    sense, and one that accepts nothing.
    """
    relabelled, dropped = {}, []
    for line, row in enumerate(_rows(path), 2):

        def wrong(what: str, line: int = line) -> InputError:
            return InputError(f"{path}: line {line}: {what}")

        if row["data"] != fingerprint:
            raise wrong(
                f"made for other images or labels ({row['data']}, these are {fingerprint});"
                " audit these with inspect_data.py --audit-labels"
            )
        index, given, suggested = row["index"], row["given"], row["suggested"]
        if not index.isdecimal() or int(index) >= len(labels):
            raise wrong(f"index {index!r} is not a place in {len(labels)} train images")
        i = int(index)
        if i in relabelled or i in dropped:
            raise wrong(f"image {i} is there twice")
        if given != classes[labels[i]]:
            raise wrong(f"image {i} is given as {classes[labels[i]]}, not as {given!r}")
        if suggested not in classes:
            raise wrong(f"suggested {suggested!r} is none of {', '.join(classes)}")
        decision = row["accept"].strip().lower()
        if decision not in DECISIONS:
            raise wrong(f"accept is {row['accept']!r}; put yes, drop, no or nothing")
        if accept_above is not None and not decision:
            decision = "yes" if _confidence(row, wrong) >= accept_above else ""
        if decision == "drop":
            dropped.append(i)
        elif decision == "yes":
            relabelled[i] = classes.index(suggested)
    if not relabelled and not dropped:
        raise InputError(
            f"{path}: accepts nothing; put yes or drop in its column accept, or"
            " take --accept-above"
        )
    return Fixes(
        torch.tensor(list(relabelled), dtype=torch.int64),
        torch.tensor(list(relabelled.values()), dtype=torch.int64),
        torch.tensor(dropped, dtype=torch.int64),
    )


def _confidence(row: dict[str, str], wrong: Callable[[str], InputError]) -> float:
    try:
        value = float(row["confidence"])
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise wrong(f"confidence {row['confidence']!r} is not a number from 0 to 1")
    return value
