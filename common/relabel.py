"""Labels that are not the source's: wrong ones planted, and fixes that the user accepted."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
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
    earlier = _read(path) if path.exists() else []
    decided = [(suspect, data) for suspect, data in earlier if suspect.accept]
    if decided and decided[0][1] != fingerprint:
        path.rename(path.with_stem(f"{path.stem}-{decided[0][1]}"))
        decided = []
    kept = {suspect.index: suspect for suspect, _ in decided}
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
    """The suspects in `path`; none where there is no such file or it is for other labels.

    Raises InputError as `read_fixes` does for a row that can't be read.
    """
    rows = _read(path) if path.exists() else []
    return [suspect for suspect, data in rows if data == fingerprint]


def _read(path: Path) -> list[tuple[Suspect, str]]:
    """The rows of a file with COLUMNS, each with what it has as `data`."""
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
    return [(_suspect(row, f"{path}: line {n}"), row["data"]) for n, row in enumerate(rows, 2)]


def _suspect(row: dict[str, str], where: str) -> Suspect:
    index, confidence, accept = row["index"], row["confidence"], row["accept"].strip().lower()
    if not index.isdecimal():
        raise InputError(f"{where}: index {index!r} is not a whole number")
    try:
        sure = float(confidence)
    except ValueError:
        sure = math.nan
    if not 0 <= sure <= 1:
        raise InputError(f"{where}: confidence {confidence!r} is not a number from 0 to 1")
    if accept not in DECISIONS:
        raise InputError(f"{where}: accept is {row['accept']!r}; put yes, drop, no or nothing")
    return Suspect(int(index), row["file"], row["given"], row["suggested"], sure, accept)


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
    for line, (suspect, data) in enumerate(_read(path), 2):
        i, decision, where = suspect.index, suspect.accept, f"{path}: line {line}"
        if data != fingerprint:
            raise InputError(
                f"{where}: made for other images or labels ({data}, these are {fingerprint});"
                " audit these with inspect_data.py --audit-labels"
            )
        if i >= len(labels):
            raise InputError(f"{where}: there are {len(labels)} train images, none is {i}")
        if i in relabelled or i in dropped:
            raise InputError(f"{where}: image {i} is there twice")
        if suspect.given != classes[labels[i]]:
            raise InputError(
                f"{where}: image {i} is given as {classes[labels[i]]}, not {suspect.given!r}"
            )
        if suspect.suggested not in classes:
            raise InputError(
                f"{where}: suggested {suspect.suggested!r} is none of {', '.join(classes)}"
            )
        if not decision and accept_above is not None and suspect.confidence >= accept_above:
            decision = "yes"
        if decision == "drop":
            dropped.append(i)
        elif decision == "yes":
            relabelled[i] = classes.index(suspect.suggested)
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
