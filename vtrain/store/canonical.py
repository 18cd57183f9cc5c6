"""RFC 8785 JSON as evidence uses it: objects of strings, integers, booleans, nulls and lists; one text for one value.

Floats are not allowed: their bits travel as strings.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, NoReturn

import rfc8785

from vtrain.errors import MalformedRunError, UsageError

# RFC 8785 numbers are IEEE doubles: beyond this, integers are no longer distinct.
MAX_INTEGER = 2**53 - 1
# Deeper than anything that vtrain writes, and shallow enough for every parser.
MAX_DEPTH = 32
_MISSING = object()


def dumps(value: dict[str, Any]) -> bytes:
    """The canonical bytes (UTF-8, no newline) of a JSON object.

    Raises:
        UsageError: `value` holds a float, an integer beyond 53 bits, or something that is not JSON.
    """
    if not isinstance(value, dict):
        raise UsageError(f"canonical JSON: expected an object, found {type(value).__name__}")
    try:
        _check(value, 0)
        return rfc8785.dumps(value)
    except ValueError as error:
        raise UsageError(f"canonical JSON: {error}") from error


def loads(
    data: bytes, *, where: str, error: type[MalformedRunError] = MalformedRunError, floats: bool = False
) -> dict[str, Any]:
    """Parse hostile bytes that must be the canonical text of one object.

    Args:
        data: UTF-8, without a newline; the caller bounds its size.
        where: names the place in the error's message.
        error: the class to raise.
        floats: whether finite floating-point numbers are allowed, as in a job; evidence has none.

    Raises:
        MalformedRunError: (or `error`) invalid UTF-8 or JSON, a repeated key, a float, a large integer, nesting too
            deep, not an object, or another text than RFC 8785 gives for this value.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=unique_keys,
            parse_float=_finite if floats else _no_float,
            parse_constant=_no_float,
            parse_int=_integer,
        )
        _check(value, 0, floats)
        canonical = rfc8785.dumps(value)
    except (ValueError, RecursionError) as problem:
        raise error(f"{where}: {problem}") from problem
    if not isinstance(value, dict):
        raise error(f"{where}: expected a JSON object, found {type(value).__name__}")
    if canonical != data:
        raise error(f"{where}: not canonical JSON (RFC 8785)")
    return value


def differences(mine: Any, theirs: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Where two JSON values differ: the path of keys, and both canonical texts; ``""`` for a key that one lacks.

    Values are alike where RFC 8785 gives one text: 1 and 1.0 are, 0 and false and a missing key and null are not,
    although Python's ``==`` and ``get`` say so.

    Raises:
        ValueError: a value that RFC 8785 can't write.
    """
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for key in sorted({*mine, *theirs}):
            yield from differences(mine.get(key, _MISSING), theirs.get(key, _MISSING), (*path, key))
        return
    texts = ["" if value is _MISSING else rfc8785.dumps(value).decode() for value in (mine, theirs)]
    if texts[0] != texts[1]:
        yield path, texts[0], texts[1]


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object from its parsed members; for ``json.loads(object_pairs_hook=...)``.

    Raises:
        ValueError: a key occurs twice.
    """
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {key!r:.200} occurs twice")
            seen.add(key)
    return result


def _integer(text: str) -> int:
    if len(text) > len(str(-MAX_INTEGER)):
        raise ValueError("an integer has more than 53 bits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:32]}: out of range")
    return value


def _no_float(text: str) -> NoReturn:
    raise ValueError(f"{text[:32]}: floating-point numbers are not allowed")


def _check(value: object, depth: int, floats: bool = False) -> None:
    """Refuse what RFC 8785 cannot carry, or not unambiguously (it writes the float 1.0 as the integer 1)."""
    if depth > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"key {key!r} is not a string")
            _check(item, depth + 1, floats)
    elif isinstance(value, list):
        for item in value:
            _check(item, depth + 1, floats)
    elif isinstance(value, bool) or value is None or isinstance(value, str) or (floats and isinstance(value, float)):
        return
    elif not isinstance(value, int) or abs(value) > MAX_INTEGER:
        raise ValueError(
            f"{str(value)[:32]} ({type(value).__name__}) is not allowed; integers up to 53 bits, strings, booleans, "
            "null, lists and objects are"
        )
