"""The results page: figures and tables of all stages in one self-contained HTML file.

The page is made of what lies in the folder of the figures, whichever scripts have run.
"""

from __future__ import annotations

from base64 import b64encode
from collections import defaultdict
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from common.errors import InputError
from common.files import load_result, require_regular, write_text
from common.inspection.pages import png_uri, render
from common.reporting.page_stages import STAGES, Stage
from common.reporting.page_tables import Record, Table
from common.terminal import printable

NAME = "index.html"
SPRITE = "_examples"  # the end of the name of `attack_examples.save_examples`
PNG = b"\x89PNG\r\n\x1a\n"
# What reading the record of another version, or of another program, can end in.
UNLIKE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class Figure(NamedTuple):
    """A PNG in the page. width, height: in pixels."""

    uri: Markup
    width: int
    height: int
    alt: str = ""
    caption: str = ""


class Examples(NamedTuple):
    """Images under attack, see `save_examples`.

    images: for each its name, its label, and the predicted class and probability by epsilon.
    """

    sprite: Figure
    size: int
    epsilons: list[str]
    images: list[tuple[str, str, list[tuple[str, str]]]]


class Section(NamedTuple):
    """What one command has left.

    about, facts: how it was made, in short and in full. tables: each with its `numeric`.
    """

    title: str
    about: str
    facts: list[tuple[str, str]]
    tables: list[tuple[Table, list[bool]]]
    examples: Examples | None
    figures: list[Figure]


def write_results_page(folder: Path) -> Path:
    """Write index.html, made of the result files and figures in a folder; return its path.

    A file that is damaged, or not of this project, is left out. Raises OutputError if the page
    can't be written.
    """
    here = Path(__file__)
    style, script = (here.with_suffix(end).read_text("utf-8") for end in (".css", ".js"))
    page = render(
        here.with_suffix(".html"),
        finalize=_printable,
        stages=[(stage, _sections(stage, folder)) for stage in STAGES],
        style=Markup(style),
        script=Markup(script),
        hashes={"style": _hash(style), "script": _hash(script)},
    )
    return write_text(folder / NAME, page)


def _printable(value: Any) -> Any:
    """Return a text with control characters escaped, and those that turn its direction."""
    is_plain = isinstance(value, str) and not isinstance(value, Markup)
    return printable(value) if is_plain else value


def _hash(text: str) -> str:
    """Return what the Content-Security-Policy names an inline script or style by."""
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


def _sections(stage: Stage, folder: Path) -> list[Section]:
    """Return the sections of a stage, one for each name among its files."""
    records: dict[tuple[int, str], Record] = {}
    figures: dict[tuple[int, str], list[tuple[int, Figure]]] = defaultdict(list)
    kinds = list(stage.figures)
    for path in sorted(folder.iterdir()):
        beginnings = [b for b in stage.sections if f"{path.stem}_".startswith(f"{b}_")]
        if not beginnings:
            continue
        beginning = max(beginnings, key=len)
        order, name = list(stage.sections).index(beginning), path.stem[len(beginning) :]
        if path.suffix == ".json" and (record := _read_record(path)):
            records[order, name] = record
        elif path.suffix == ".png" and not name.endswith(SPRITE):
            kind = max((k for k in kinds if k and name.endswith(f"_{k}")), key=len, default="")
            if kind in kinds and (figure := _read_png(path)):
                picture, shows = stage.figures[kind]
                alt = f"{picture}: {path.stem.replace('_', ' ')}"
                name = name.removesuffix(f"_{kind}") if kind else name
                drawn = figure._replace(alt=alt, caption=shows)
                figures[order, name].append((kinds.index(kind), drawn))
    sections = []
    for order, name in sorted(records.keys() | figures.keys()):
        named, unnamed = list(stage.sections.values())[order]
        title = named.format(name[1:]) if name else unnamed
        drawn = [figure for _, figure in sorted(figures[order, name])]
        sections.append(_section(stage, title, records.get((order, name)), drawn, folder))
    return [section for section in sections if section.facts or section.figures]


def _section(
    stage: Stage, title: str, record: Record | None, figures: list[Figure], folder: Path
) -> Section:
    if record is None:
        return Section(title, "", [], [], None, figures)
    about, facts, tables, examples = "", [], [], None
    try:
        facts = _facts(record)
        about = _about(record)
        tables = [(table, table.numeric()) for table in stage.tables(record)]
        examples = _examples(record, folder)
    except UNLIKE:  # of another version: what could be read is shown
        pass
    return Section(title, about, facts, tables, examples, figures)


def _read_record(path: Path) -> Record | None:
    """Return the result record at `path`, None if it is damaged or of something else."""
    record = load_result(path)
    return record if record and {"command", "data"} <= record.keys() else None


def _read_png(path: Path) -> Figure | None:
    """Return a PNG, or None if the file is none."""
    try:
        require_regular(path)
        content = path.read_bytes()
    except (InputError, OSError):
        return None
    width, height = (int.from_bytes(content[at : at + 4]) for at in (16, 20))
    if not content.startswith(PNG) or not width or not height:
        return None
    return Figure(png_uri(content), width, height)


def _counts(record: Record) -> str:
    parts = ("train", "validation", "test")
    counts = [(sum(record["data"][f"{part}_counts"]), part) for part in parts]
    return ", ".join(f"{n:,} {part}" for n, part in counts if n) + " images"


def _seeds(record: Record) -> str:
    comparison = record.get("comparison") or {}
    first, runs = record["seed"], comparison.get("seeds", 1)
    return ", ".join(map(str, range(first, first + runs)))


def _about(record: Record) -> str:
    seeds = _seeds(record)
    seed = f"seeds {seeds}" if "," in seeds else f"seed {seeds}"
    return f"{record['data']['source']}: {_counts(record)}; {seed}; {record['processor']}."


def _facts(record: Record) -> list[tuple[str, str]]:
    """Return how a result was made, as (label, value) pairs."""
    facts = {
        "Images": f"{record['data']['source']}, fingerprint {record['data']['fingerprint']}",
        "Numbers": _counts(record),
        "Seeds": _seeds(record),
        "Device": record["device"],
        "Processor": record["processor"],
        "Date": record.get("date"),  # an earlier version saved none
        "Versions": ", ".join(f"{name} {v}" for name, v in record["versions"].items()),
        "Command": f"python {record['command']}",
    }
    return [(label, value) for label, value in facts.items() if value]


def _examples(record: Record, folder: Path) -> Examples | None:
    """Return the examples of a record of adversarial.py, or None if it has none."""
    saved = record.get("examples")
    sprite = saved and _read_png(folder / Path(saved["sprite"]).name)
    if not sprite or not saved["images"]:
        return None
    epsilons = [f"{epsilon:g}/255" for epsilon in saved["epsilons"]]
    numbers: dict[str, int] = defaultdict(int)
    images = []
    for image in saved["images"]:
        label = image["label"]
        numbers[label] += 1
        predictions = [(name, f"{p:.0%}") for name, p in image["predictions"]]
        images.append((f"{label} {numbers[label]}", label, predictions))
    size, shape = saved["size"], (len(images), len(epsilons))
    if any(len(image[2]) != shape[1] for image in images) or (sprite.height, sprite.width) != (
        size * shape[0],
        size * shape[1],
    ):
        return None
    return Examples(sprite, size, epsilons, images)
