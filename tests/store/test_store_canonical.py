"""Values compared as RFC 8785 writes them, in which Python's ``==`` and ``get`` don't believe."""

from __future__ import annotations

from typing import Any

import pytest

from vtrain.commit.trace import Event
from vtrain.store.canonical import differences

UNLIKE: list[tuple[Any, Any]] = [
    (0, False), (1, True), (0.0, False), ("", None), ({}, []), ([0], [False]), ([1, 2], [1]), ({"x": 1}, {"x": True}),
    ({"x": None}, {}), ({"x": {}}, {}), ("1", 1), ({"x": [{"y": 0}]}, {"x": [{"y": False}]}), (2**53 - 1, 2**53 - 2),
]  # fmt: skip


@pytest.mark.parametrize(("a", "b"), UNLIKE)
def test_what_is_unlike(a: Any, b: Any) -> None:
    assert list(differences(a, b)) and list(differences(b, a))
    assert next(differences({"k": a}, {"k": b}))[0][0] == "k"


@pytest.mark.parametrize("value", [0, False, None, "", [], {}, {"a": {"b": [1, 2.5, None]}}])
def test_what_is_alike(value: Any) -> None:
    assert list(differences(value, value)) == []


def test_numbers_have_one_text() -> None:
    assert list(differences({"x": 1, "y": 10.0}, {"y": 10, "x": 1.0})) == []


def test_where_and_what() -> None:
    found = list(differences({"a": {"b": 0, "c": None}, "d": "x"}, {"a": {"b": False}, "d": "y"}))
    assert found == [(("a", "b"), "0", "false"), (("a", "c"), "null", ""), (("d",), '"x"', '"y"')]


@pytest.mark.parametrize(("a", "b"), [(0, False), (1, True), ([0], [False]), ({"x": 1}, {"x": True})])
def test_events_with_other_arguments_are_other_operations(a: Any, b: Any) -> None:
    """Two claims that a dispute compares: an operation with ``keepdim=0`` was not done with ``keepdim=False``."""
    one, two = (Event("op", "aten.sum", {"keepdim": value}) for value in (a, b))
    assert one.unlike(two) == two.unlike(one) == "args" and one.unlike(one) is None
