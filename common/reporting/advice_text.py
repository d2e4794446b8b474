"""The advice of stage 1 in words, for an 80-column screen."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

from common.inspection.advice import RECALL, WIDEST, Advice
from common.reporting.tables import WIDTH, shell_lines, short_names, shorten, text_table

MOST_ROWS = 10  # classes below each other; more stand in two columns


def advice_text(
    advice: Advice, device: str, image_options: Sequence[str], other_options: Sequence[str]
) -> str:
    """Return the advice. The options are the user's own, which the next command repeats."""
    facts, best = advice.facts, advice.best
    threads = f"{best['threads']} thread{'s' * (best['threads'] != 1)}"
    where = threads if device == "cpu" else device
    sentence = (
        f"Imbalance ratio: {facts.ratio:.1f} ({shorten(facts.largest, 40)} to"
        f" {shorten(facts.smallest, 40)}, {facts.classes} classes, {facts.images:,} train"
        " images)"
    )
    time = (
        f"Training `best` takes about {duration(best['seconds'])} on this machine"
        f" ({best['processor']}, {where}): {best['epochs']} epochs of"
        f" {best['steps_per_epoch']:,} steps."
    )
    blocks = [
        f"== Advice ==\n{fill(sentence, WIDTH)}",
        _recipes("Recipes that suit:", advice.suited),
        _recipes("Not suited:", advice.unsuited) if advice.unsuited else "",
        _too_few(advice),
        fill(time, WIDTH),
        f"Next:\n{next_command(advice, image_options, other_options)}",
    ]
    return "\n\n".join(block for block in blocks if block)


def next_command(
    advice: Advice, image_options: Sequence[str], other_options: Sequence[str]
) -> str:
    """Return the command to type, in several lines for a shell if it is long.

    For images of the user's own it names the first recipe that suits; for those of the course
    it is the course's next step, which compares report A's recipes.
    """
    recipe = [advice.suited[0][0]] if image_options else []
    return shell_lines(["python", "train.py", *recipe, *image_options, *other_options])


def duration(seconds: float) -> str:
    """Return a time as people say it.

    >>> duration(7.2), duration(100), duration(7200)
    ('7 s', '1.7 min', '2 h')
    """
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{max(seconds, 1):.0f} s"


def _recipes(title: str, found: Sequence[tuple[str, str]]) -> str:
    lines = [
        fill(f"- {name}: {reason}", WIDTH, subsequent_indent="  ", break_on_hyphens=False)
        for name, reason in found
    ]
    return "\n".join([title, *lines])


def _too_few(advice: Advice) -> str:
    """Return the classes with too few test images, in two columns if there are many."""
    about = f"the 95% interval of a recall of {RECALL:g}"
    if not advice.too_few:
        return fill(f"Every class has test images enough: {about} is at most {WIDEST:g}.", 80)
    n = len(advice.too_few)
    sentence = (
        f"Too few test images to evaluate {n} of {advice.facts.classes} classes: {about} is"
        f" wider than {WIDEST:g}. {advice.enough} images would be enough."
    )
    names = short_names([name for name, *_ in advice.too_few])
    cells = [
        [name, f"{images:,}", f"{width:.3f}"]
        for name, (_, images, width) in zip(names, advice.too_few, strict=True)
    ]
    headers, align = ["class", "images", "width"], "lrr"
    if n > MOST_ROWS:
        half = -(-n // 2)
        right = cells[half:] + [["", "", ""]] * (2 * half - n)
        cells = [[*a, "", *b] for a, b in zip(cells[:half], right, strict=True)]
        headers, align = [*headers, "", *headers], "lrrllrr"
    return f"{fill(sentence, WIDTH)}\n{text_table(headers, cells, align)}"
