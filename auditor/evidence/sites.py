"""Sites: the results of a step, one text each, of which a run's program files are lists. Imports no torch."""

from __future__ import annotations

import math
import re

from vtrain.errors import MalformedRunError

_FORM = re.compile(r"[ -~]{1,1000}")
_NARROW = re.compile(r" (bfloat16|float16)\[", re.ASCII)  # a result in a 16-bit tensor
_SHAPE = re.compile(r"[ -~]*\[((?:\d{1,15}(?:, \d{1,15}){0,63})?)\]", re.ASCII)
_MAX_ELEMENTS = 2**48


def is_site(text: object) -> bool:
    """Whether a JSON value can be a site: printable, of bounded length."""
    return isinstance(text, str) and _FORM.fullmatch(text) is not None


def is_narrow(site: str) -> bool:
    """Whether a site's result is a 16-bit tensor."""
    return _NARROW.search(site) is not None


def is_canonical(site: str) -> bool:
    """Whether a site's result has one defined order of arithmetic, and so no log."""
    return site.split(" ")[1:2] == ["canonical"]


def numel(site: str) -> int:
    """Elements of the result that a site names.

    Raises:
        MalformedRunError: the text names no shape.
    """
    found = _SHAPE.fullmatch(site)
    if found is None:
        raise MalformedRunError(f"site {site[:100]!r} has no shape")
    extents = [int(part) for part in found[1].split(", ") if part]
    count = math.prod(extents)
    if count >= _MAX_ELEMENTS:
        raise MalformedRunError(f"site {site[:100]!r}: {count} elements; expected fewer than {_MAX_ELEMENTS}")
    return count
