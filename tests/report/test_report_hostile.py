"""Whatever a run or a verdict says, the page has only our own elements, loads nothing, and shows what acts."""

from __future__ import annotations

import base64
import hashlib
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup, escape
from report_helpers import ACTING, MARKUP, Reader, full_page, hostile, hostile_changes, page, verdict
from run_helpers import KEY, audited, honest

from auditor.evidence.decimal import metric_value
from auditor.report import sanitised
from auditor.report.sanitised import flat, plain, visible

# What the template and the charts are made of; forms, scripts, images, links and frames are not.
ELEMENTS = set(
    "html head meta title style body header main section footer h1 h2 h3 p ul ol li dl dt dd div span strong code bdi "
    "br table caption thead tbody tr th td figure figcaption details summary svg desc path line rect text".split()
)
ATTRIBUTES = set(
    "lang charset http-equiv content name class id role aria-label aria-labelledby aria-hidden tabindex scope width "
    "height viewbox preserveaspectratio overflow d x y x1 x2 y1 y2 dy fill-opacity".split()
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A hostile run alone, and with a verdict that is hostile too."""
    folder = tmp_path_factory.mktemp("hostile")
    run = hostile(folder / "run")
    from auditor.evidence import open_run
    from auditor.verdict.verdict import begin

    found = begin(open_run(run, KEY.public_key()), {})
    return {"run": page(run), "both": full_page(folder, run, found, **hostile_changes())}


@pytest.mark.parametrize("name", ["run", "both"])
def test_only_our_own_elements(pages: dict[str, str], name: str) -> None:
    found = Reader(pages[name])
    assert {tag for tag, _ in found.elements} <= ELEMENTS
    assert {key for _, attributes in found.elements for key in attributes} <= ATTRIBUTES
    assert len(found.all("style")) == len(found.all("title")) - len(found.all("desc")) == 1


@pytest.mark.parametrize("name", ["run", "both"])
def test_nothing_is_loaded(pages: dict[str, str], name: str) -> None:
    found = Reader(pages[name])
    assert not re.search(r"url\(|@import|image-set|src\s*\(|expression", found.style)
    values = [v or "" for _, attributes in found.elements for v in attributes.values()]
    assert not [v for v in values if "://" in v or "javascript:" in v or v.startswith(("//", "data:"))]


@pytest.mark.parametrize("name", ["run", "both"])
def test_policy(pages: dict[str, str], name: str) -> None:
    found = Reader(pages[name])
    policies = [m["content"] for m in found.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(found.style.encode()).digest()).decode()
    assert policies == [f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"]
    names = [tag for tag, _ in found.elements]
    assert names.index("meta") < names.index("style"), "a policy holds for what follows it"


@pytest.mark.parametrize("name", ["run", "both"])
def test_what_acts_is_shown(pages: dict[str, str], name: str) -> None:
    acting = [c for c in pages[name] if c != "\n" and not c.isprintable()]
    assert acting == []
    codes = ["U+202E", "U+2066", "U+0000", "U+001B", "U+200B", "U+2028", "U+0301 \N{MULTIPLICATION SIGN}38", "U+00A0"]
    for code in codes:
        assert f'<span class="acts">{code}</span>' in pages["both"]
    assert "U+202E" in pages["run"]


@pytest.mark.parametrize("name", ["run", "both"])
def test_markup_is_text(pages: dict[str, str], name: str) -> None:
    text = Reader(pages[name]).text
    for odd in MARKUP:
        assert text.count(odd) >= 3, "in the job, in the log, among the metrics"
    assert "{{7*7}}" in text and "49" not in re.findall(r"\w+", text)


def test_long_and_many(tmp_path: Path) -> None:
    changes = {
        "detail": "<" * 20_000, "result": "refuted", "firstBadStep": 1,
        "notes": ["\u202e" * 2_000] * 300, "notClaimed": ["x" * 5_000] * 500,
        "auditor": {f"{i}": {"a" * 900: ["b" * 900] * 9} for i in range(200)},
        "dispute": {"step": 1, "event": 1, "operation": "o", "site": "s" * 20_000, "result": "benign", "wrong": [],
                    "record": "0" * 64, "elements": [{"index": i, "run": "1", "other": "2", "exact": "3", "bound": "4",
                                                      "within": True} for i in range(20_000)]},
    }  # fmt: skip
    plain_page = full_page(tmp_path, honest(), verdict())
    made = full_page(tmp_path, honest(), verdict(), **changes)
    assert len(made) < len(plain_page) + 12_000_000
    words = Reader(made).words
    assert "(18,000 characters more)" in words
    assert "200 more notes are not shown." in words
    assert "19,900 more elements are not shown." in words
    assert "more entries are not shown" in words


def test_metrics_without_numbers(tmp_path: Path) -> None:
    from run_helpers import copied, forging

    run = copied(honest(), tmp_path / "run")
    odd = [
        "F32:7fc00000",
        "F32:7f800000",
        "F32:ff800000",
        "F32:fffffffff",
        "F64:7fefffffffffffff",
        "F64:ffefffffffffffff",
    ]
    with forging(run) as forger:
        for leaf, bits in zip(forger.leaves[1:], odd, strict=True):
            leaf["metrics"] = {"loss": bits, "big": odd[4 + leaf["step"] % 2], "never": odd[0]}
    text = page(run)
    words = Reader(text).words
    assert "4 of 6 values are no finite numbers, marked at the top." in words
    assert "1 nan F32:7fc00000" in words and "3 -inf F32:ff800000" in words and "4 nan F32:fffffffff" in words
    assert "No finite values." in words
    for d in re.findall(r' (?:d|x|y|x1|y1|width)="([^"]*)"', text):
        assert not re.search(r"nan|inf", d)
    assert audited(run).what == "loss"


@given(st.text(st.characters(codec=None, exclude_categories=[])))
def test_visible(text: str) -> None:
    made = visible(text, 50)
    bare = re.sub(r'<span class="acts">(U\+[0-9A-F]{4,6}(?: \xd7\d+)?)</span>', r"[\1]", made)
    assert Markup(bare).unescape() == plain(text, 50)
    assert plain(text, 50).isprintable()
    assert "<" not in bare and '"' not in bare and "'" not in bare
    if text.isprintable() and len(text) <= 50 and not any(unicodedata.combining(c) for c in text):
        assert plain(text) == text and made == escape(text)


@pytest.mark.parametrize("text", ACTING)
def test_acting_characters(text: str) -> None:
    assert not text.isprintable() or "\u0301" in text
    assert plain(text) != text and plain(text).isprintable()


def test_marked_characters_cannot_be_imitated() -> None:
    assert visible("[U+202E]") == "[U+202E]"
    assert visible("\u202e") == '<span class="acts">U+202E</span>'


@pytest.mark.parametrize(
    ("bits", "value"),
    [("F32:3f800000", 1.0), ("F64:3ff0000000000000", 1.0), ("BF16:3f80", 1.0), ("F16:3c00", 1.0), ("I64:1", 1.0),
     ("I64:ffffffffffffffff", -1.0), ("F32:0", 0.0), ("F16:1", 2.0**-24)],
)  # fmt: skip
def test_metric(bits: str, value: float) -> None:
    assert metric_value(bits) == value


def test_flat() -> None:
    assert flat({"b": {"c": [1, True, None]}, "a": "", "d": {}, "e": []}) == [
        ("a", "none"), ("b.c", "1, yes, none"), ("d", "none"), ("e", "none"),
    ]  # fmt: skip
    deep: dict[str, object] = {}
    for _ in range(500):
        deep = {"k": deep}
    assert flat(deep) == [("k.k.k.k.k.k", "…")]
    assert len(flat({str(i): i for i in range(10_000)})) == sanitised._MOST_ENTRIES + 1


def test_long_text_is_cut() -> None:
    assert plain("a" * 1050, 50) == "a" * 50 + " … (1,000 characters more)"
    assert visible("<" * 51, 50) == "&lt;" * 50 + " … (1 characters more)"
