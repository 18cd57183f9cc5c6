"""What a run's author wrote, made fit for a page: bounded, and without characters that act. Imports no torch."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from markupsafe import Markup, escape

MOST_TEXT = 2000
_MOST_MARKS = 2  # combining characters in a row: more of them paint over the lines above and below
_MOST_ENTRIES, _MOST_DEPTH = 80, 6


def _parts(text: str, most: int) -> Iterator[tuple[str, bool]]:
    """Stretches of a text's first characters, and the name of a character, if it acts, with how often it comes."""
    kept, marks, named = text[:most], 0, []
    for c in kept:
        marks = marks + 1 if unicodedata.category(c) in ("Mn", "Me") else 0
        acts = not c.isprintable() or marks > _MOST_MARKS
        named.append((f"U+{ord(c):04X}" if acts else "", c))
    for name, pairs in groupby(named, lambda pair: pair[0]):
        found = "".join(c for _, c in pairs)
        yield (
            (f"{name} \N{MULTIPLICATION SIGN}{len(found)}" if len(found) > 1 else name, True)
            if name
            else (found, False)
        )
    if len(text) > most:
        yield f" … ({len(text) - most:,} characters more)", False


def plain(text: str, most: int = MOST_TEXT) -> str:
    """Text in which control characters, bidirectional overrides and the like are spelled ``[U+202E]``.

    Args:
        text: hostile.
        most: characters kept.
    """
    return "".join(f"[{part}]" if acts else part for part, acts in _parts(text, most))


def visible(value: Any, most: int = MOST_TEXT) -> Markup:
    """As :func:`plain`, for HTML: escaped, and what was replaced is marked, so that it can't be imitated."""
    mark = Markup('<span class="acts">{}</span>')
    return Markup("").join(mark.format(part) if acts else escape(part) for part, acts in _parts(str(value), most))


def flat(value: Any) -> list[tuple[str, str]]:
    """Nested JSON values as lines of a dotted key and a text, in the order of keys; at most so many."""
    found: list[tuple[str, str]] = []
    for pair in _walk(value, "", 0):
        if len(found) == _MOST_ENTRIES:
            found.append(("…", "more entries are not shown"))
            break
        found.append(pair)
    return found


def _walk(value: Any, path: str, depth: int) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value and depth < _MOST_DEPTH:
        for key in sorted(value):
            yield from _walk(value[key], f"{path}.{key}" if path else str(key), depth + 1)
    elif isinstance(value, dict | list):
        items = value[:100] if isinstance(value, list) else [value]
        yield path, ", ".join(map(_scalar, items)) or "none"
    else:
        yield path, _scalar(value)


def _scalar(value: Any) -> str:
    if isinstance(value, dict | list):
        return "…" if value else "none"
    if value is None or value == "":
        return "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
