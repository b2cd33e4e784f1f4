"""HTML and SVG in which no text can become markup.

Names of classes and files are whatever somebody wrote into a JSON file. Every string that gets into
an element is escaped, unless it is `Markup`, which only the functions here make.
"""

from __future__ import annotations

import html
import json
import re
from typing import Any

# What HTML cannot carry, and the marks that turn the direction of the text that follows
_UNSHOWABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_VOID = {"br", "col", "input", "link", "meta"}  # elements without an end tag
_LONGEST_NAME = 120


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """Text as HTML shows it, in an element or in the quotes of an attribute."""
    if isinstance(text, Markup):
        return text
    encodable = str(text).encode("utf-8", "replace").decode()  # JSON may hold half a surrogate pair
    return Markup(html.escape(_UNSHOWABLE.sub("\ufffd", encodable)))


def element(tag: str, *content: object, **attributes: object) -> Markup:
    """An element; strings in it are escaped unless they are Markup.

    Args:
        tag: its name.
        content: strings, numbers or Markup, one after the other; None is left out.
        attributes: by name, `class_` for class and `data_value` for data-value. None and False
            leave it out, True gives it no value.
    """
    opening = [tag]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        name = name.rstrip("_").replace("_", "-")
        opening.append(name if value is True else f'{name}="{escape(str(value))}"')
    start = f"<{' '.join(opening)}>"
    if tag in _VOID:
        return Markup(start)
    return Markup(f"{start}{join(*content)}</{tag}>")


def join(*content: object) -> Markup:
    """Pieces of a page one after the other; None is left out."""
    return Markup("".join(escape(piece) for piece in content if piece is not None))


def json_block(identifier: str, value: Any) -> Markup:
    """Data for the page's script, which no string in it can end or turn into a script."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)  # ASCII alone
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return element("script", Markup(text), type="application/json", id=identifier)


def shorten(name: str, longest: int = _LONGEST_NAME) -> str:
    """A name that fits its place."""
    return name if len(name) <= longest else f"{name[: longest - 1]}\u2026"
