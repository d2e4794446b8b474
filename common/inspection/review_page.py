"""The review page: the figures of stage 1, and a form to decide about the suspect labels."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image

from common.dataset.label_fixes import COLUMNS, Suspect, as_rows
from common.files import write_text
from common.inspection.label_audit import CAUTION
from common.inspection.pages import png_uri, render

PICTURE = 128  # pixels at which the page shows a suspect; larger ones would only fill it


def write(
    path: Path, *, title: str, facts: Sequence[tuple[str, str]],
    figures: Sequence[tuple[str, Path]], suspects: Sequence[Suspect], images: torch.Tensor,
    classes: Sequence[str], fingerprint: str, csv_name: str,
) -> Path:  # fmt: skip
    """Write the page to `path` as one self-contained HTML file, and return `path`.

    facts: (label, value) pairs. figures: (caption, PNG file) pairs. images: uint8
    (N, 3, S, S), the train images, which the index of a suspect refers to. csv_name: the name
    of the file that the page saves; the file has COLUMNS, and a row with the decision for each
    suspect.
    """
    page = render(
        Path(__file__).with_suffix(".html"),
        title=title,
        facts=facts,
        figures=[(caption, png_uri(png.read_bytes())) for caption, png in figures],
        caution=CAUTION,
        columns=COLUMNS,
        rows=as_rows(suspects, fingerprint),
        # The column `check` of each row, for each label that may be chosen.
        checks=[
            {name: s._replace(suggested=name).check(fingerprint) for name in classes}
            for s in suspects
        ],
        pictures=[_picture(images[s.index]) for s in suspects],
        classes=classes,
        csv_name=csv_name,
    )
    return write_text(path, page)


def _picture(image: torch.Tensor) -> str:
    file = BytesIO()
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    picture.thumbnail((PICTURE, PICTURE))
    picture.save(file, "PNG")
    return png_uri(file.getvalue())
