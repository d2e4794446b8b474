"""A page to look through stage 1's figures and decide about the suspects of its audit."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from common.relabel import COLUMNS, Suspect, as_rows
from common.results import replacing
from common.text import CAUTION

if TYPE_CHECKING:
    from torch import Tensor


def write(
    path: Path,
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    figures: Sequence[tuple[str, Path]],
    suspects: Sequence[Suspect],
    images: Tensor,
    classes: Sequence[str],
    fingerprint: str,
    csv_name: str,
) -> Path:
    """Write the page, one HTML file that needs no other, and return its path.

    facts: (label, value). figures: (caption, PNG). images: uint8 (N, 3, 32, 32), the train
    images; a suspect's index is its place there. csv_name: of the file that the page saves,
    which has COLUMNS and a row for each suspect with what was decided.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("review.html").render(
        title=title,
        facts=facts,
        figures=[(caption, _data_uri(png.read_bytes())) for caption, png in figures],
        caution=CAUTION,
        columns=COLUMNS,
        rows=as_rows(suspects, fingerprint),
        pictures=[_picture(images[s.index]) for s in suspects],
        classes=classes,
        csv_name=csv_name,
    )
    with replacing(path) as unfinished:
        unfinished.write_text(page, encoding="utf-8")
    return path


def _picture(image: Tensor) -> str:
    file = BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")
    return _data_uri(file.getvalue())


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + b64encode(png).decode()
