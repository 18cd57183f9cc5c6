"""Charts of any numbers are well-formed, bounded and inside their box."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.report.charts import Mark, bar, coverage, line

NUMBERS = re.compile(r"-?\d+(?:\.\d+)?")
FLOATS = st.floats(allow_nan=True, allow_infinity=True) | st.sampled_from([0.0, -0.0, 5e-324, 1.7976931348623157e308])


def parsed(chart: str) -> ElementTree.Element:
    return ElementTree.fromstring(chart)


def inside(chart: str) -> None:
    """Every coordinate of the drawing lies in it."""
    for element in parsed(chart).iter():
        for name in ("x", "y", "x1", "x2", "y1", "y2", "width", "height"):
            value = element.get(name, "0%")
            if value.endswith("%"):
                assert 0.0 <= float(value[:-1]) <= 100.01, (name, value)
        for number in NUMBERS.findall(element.get("d", "")):
            assert 0.0 <= float(number) <= 1000.0
        assert "nan" not in element.get("d", "") and "inf" not in element.get("d", "")


@settings(deadline=None, max_examples=300)
@given(st.lists(FLOATS, max_size=40), st.integers(0, 10**9))
def test_any_numbers(values: list[float], more: int) -> None:
    chart = line("c", "t", list(enumerate(values)), max(len(values) - 1, 0) + more)
    inside(chart)
    assert len(chart) < 20_000
    finite = [v for v in values if math.isfinite(v)]
    words = parsed(chart).findtext("desc") or ""
    assert ("No values" in words) == (not values)
    assert ("No finite values" in words) == (bool(values) and not finite)
    assert ("no finite numbers" in words) == (len(finite) < len(values))
    labels = [t.text for t in parsed(chart).iter("text") if t.get("class") == "end"]
    assert len(labels) <= 12 and all(len(label or "") <= 12 for label in labels)
    assert bool(labels) == bool(finite)


def path(chart: str, kind: str) -> str:
    return next(e.get("d", "") for e in parsed(chart).iter("path") if e.get("class") == kind)


def test_line() -> None:
    chart = line("c", "t", [(0, 1.0), (5, 3.0), (10, 2.0)], 10)
    assert path(chart, "curve") == "M0.0 960.0L500.0 40.0L1000.0 500.0"
    assert path(chart, "dots") == "M0.0 960.0h0M500.0 40.0h0M1000.0 500.0h0"
    assert path(chart, "lost") == ""
    labels = [t.text for t in parsed(chart).iter("text")]
    assert labels == ["1", "1.5", "2", "2.5", "3", "0", "2", "4", "6", "8", "10"]


def test_one_point_and_flat() -> None:
    assert path(line("c", "t", [(0, 7.0)], 0), "dots") == "M500.0 500.0h0"
    assert path(line("c", "t", [(0, 7.0), (1, 7.0)], 1), "curve") == "M0.0 500.0L1000.0 500.0"
    assert path(line("c", "t", [], 5), "curve") == ""


def test_gaps_break_the_line() -> None:
    points = [(0, 1.0), (1, 2.0), (2, math.nan), (3, 1.0), (4, math.inf), (5, 2.0)]
    chart = line("c", "t", points, 5)
    assert path(chart, "curve").count("M") == 1 and path(chart, "curve").count("L") == 1
    assert path(chart, "dots").count("M") == 4
    assert path(chart, "lost") == "M400.0 0v40M800.0 0v40"


def test_many_points_keep_their_extremes() -> None:
    points = [(i, math.sin(i / 5000.0)) for i in range(100_000)]
    points[70_123] = (70_123, 50.0)
    points[30_000] = (30_000, math.nan)
    chart = line("c", "t", points, 99_999)
    assert len(chart) < 40_000
    inside(chart)
    assert " 40.0L" in path(chart, "curve"), "the outlier is drawn, at the top"
    assert path(chart, "lost").count("M") == 1
    assert path(chart, "dots") == ""
    assert "100,000 values" in (parsed(chart).findtext("desc") or "")


@pytest.mark.parametrize("last", [0, 1, 2, 6, 7, 10, 19, 40, 99, 100, 101, 12345, 10**9])
def test_step_labels(last: int) -> None:
    for chart in (line("c", "t", [], last), coverage("c", [], [], last)):
        labels = [
            int((t.text or "").replace(",", "")) for t in parsed(chart).iter("text") if "step" in t.get("class", "")
        ]
        assert labels == sorted(set(labels)) and labels[0] == 0 and labels[-1] == last
        assert len(labels) <= 8


def test_close_values_have_labels_that_differ() -> None:
    chart = line("c", "t", [(0, 1.0000001), (1, 1.0000002)], 1)
    labels = [t.text for t in parsed(chart).iter("text") if t.get("class") == "end" and t.text]
    assert len(set(labels)) == len(labels) >= 2


@settings(deadline=None)
@given(st.integers(0, 10**6), st.data())
def test_coverage(last: int, data: st.DataObject) -> None:
    ends = sorted(data.draw(st.sets(st.integers(0, last), max_size=60)))
    ranges = list(zip(ends[::2], ends[1::2], strict=False))
    chart = coverage("c", ranges, ends, last, [Mark(last, "end")])
    inside(chart)
    covered = sum(b - a + 1 for a, b in ranges) / (last + 1)
    cells = [e for e in parsed(chart).iter("rect") if e.get("class") == "filled"]
    drawn = sum(float(e.get("width", "")[:-1]) / 100 * float(e.get("fill-opacity", "1")) for e in cells)
    assert abs(drawn - covered) < 0.01


def test_many_ranges_look_no_larger_than_they_are() -> None:
    ranges = [(i, i) for i in range(0, 100_000, 10)]
    chart = coverage("c", ranges, [], 99_999)
    cells = [e for e in parsed(chart).iter("rect") if e.get("class") == "filled"]
    assert len(cells) == 400 and {e.get("fill-opacity") for e in cells} == {"0.10"}
    assert "10,000 of 100,000 steps replayed" in (parsed(chart).findtext("desc") or "")


def test_hostile_names() -> None:
    chart = line("c", '"><script>\u202e', [(0, 1.0)], 0, [Mark(0, "<b>\0" * 100)])
    assert parsed(chart).findtext("title") == '"><script>[U+202E]'
    assert "\u202e" not in chart and "<b>" not in chart and len(chart) < 3000


@pytest.mark.parametrize(("share", "width"), [(0.5, "32.0"), (0.0, "0.0"), (7.0, "64.0"), (math.nan, "0.0")])
def test_bar(share: float, width: str) -> None:
    assert parsed(bar(share))[1].get("width") == width
