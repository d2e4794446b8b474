"""HTML pages: templates, and pictures inside them. A page needs no other file."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup


def render(
    template: Path, *, finalize: Callable[[Any], Any] | None = None, **values: Any
) -> str:
    """Return the page that a Jinja2 template makes of the values, which it escapes.

    finalize: changes each value before it is escaped.
    """
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(values)


def png_uri(png: bytes) -> Markup:
    """Return the content of a PNG file as a data URI, which needs no escaping."""
    return Markup("data:image/png;base64," + b64encode(png).decode())
