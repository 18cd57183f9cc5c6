"""The report in headless Chromium, narrow and wide, light and dark: nothing runs, is loaded, or overflows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from devtools import CHROMIUM, Browser
from report_helpers import DISPUTE, REPAIR, elsewhere, forged, full_page, hostile, hostile_changes, page, verdict
from run_helpers import KEY, audited, honest, other_hardware

from auditor.evidence import open_run
from auditor.verdict.verdict import begin

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no `chromium` on the PATH (Debian: apt-get install chromium)")

NAMES = ("verified", "refuted", "open", "disputed", "hostile", "corrected")
WIDTHS = (360, 390, 768, 1400, 1600)
# Boxes that stick out of the page to the right, or lie left of it; what scrolls inside its own box does not.
STICKS_OUT = """
[...document.querySelectorAll('body, body *')].filter(e => !e.closest('.scroll *') && !e.closest('svg *')).filter(e => {
  const r = e.getBoundingClientRect(); return r.width && (r.right > innerWidth + 1 || r.left < -1);
}).map(e => e.outerHTML.slice(0, 80))
"""
# Least contrast (WCAG 2) of any text with what is behind it, and that text.
CONTRAST = """
(() => {
  const rgb = c => c.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = c => { const [r, g, b] = rgb(c).map(v => linear(v / 255));
                       return .2126 * r + .7152 * g + .0722 * b; };
  const back = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
                      if (rgb(c)[3] !== 0) return c; } return 'rgb(255, 255, 255)'; };
  let least = [99, ''];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let n = walk.nextNode(); n; n = walk.nextNode()) {
    const e = n.parentElement;
    if (!n.data.trim() || ['TITLE', 'DESC'].includes(e.tagName.toUpperCase())) continue;
    const style = getComputedStyle(e), front = e.closest('svg') ? style.fill : style.color;
    const [a, b] = [light(front), light(back(e))].sort((x, y) => y - x), found = (a + .05) / (b + .05);
    if (found < least[0]) least = [found, n.data.trim().slice(0, 40)];
  }
  return least;
})()
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    bad, odd = forged(folder / "bad"), hostile(folder / "odd")
    judged = {"dispute": DISPUTE, "repairs": [REPAIR]}
    texts = {
        "verified": full_page(folder, honest(), verdict()),
        "refuted": full_page(folder, bad, audited(bad, key=KEY.public_key())),
        "open": page(honest()),
        "disputed": full_page(folder, honest(), verdict(), **judged),
        "hostile": full_page(folder, odd, begin(open_run(odd, KEY.public_key()), {}), **hostile_changes()),
        "corrected": full_page(folder, other_hardware(), elsewhere()),
    }
    assert tuple(texts) == NAMES
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as made:
        yield made


def background(browser: Browser) -> Any:
    return browser.value("getComputedStyle(document.body).backgroundColor")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_page(browser: Browser, pages: dict[str, Path], name: str, scheme: str) -> None:
    for width in WIDTHS:
        browser.open(pages[name], width, scheme)
        assert browser.value("innerWidth") == width
        assert browser.value("document.documentElement.scrollWidth") <= width
        assert browser.value(STICKS_OUT) == []
        assert browser.value("window.ran") is None
        requests = [event["request"]["url"] for event in browser.happened("Network.requestWillBeSent")]
        assert requests == [pages[name].resolve().as_uri()]
        assert browser.happened("Log.entryAdded") == [], "no breach of the page's policy either"
        assert browser.happened("Page.javascriptDialogOpening") == []
        assert browser.happened("Runtime.executionContextCreated")[1:] == [], "no frame"
    assert background(browser) == ("rgb(251, 251, 249)" if scheme == "light" else "rgb(20, 23, 26)")
    least, text = browser.value(CONTRAST)
    assert least >= 4.5, text


@pytest.mark.parametrize("name", NAMES)
def test_verdict_is_seen_without_scrolling(browser: Browser, pages: dict[str, Path], name: str) -> None:
    browser.open(pages[name], 390, "light")
    assert browser.value("document.querySelector('h1').getBoundingClientRect().bottom") < 844


def test_charts_are_drawn(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["corrected"], 390, "light")
    sizes = browser.value(
        "[...document.querySelectorAll('.curve')].map(e => e.getBoundingClientRect()).map(r => [r.width, r.height])"
    )
    assert len(sizes) == 4 and all(width > 150 and height > 60 for width, height in sizes)
    drawn = "[...document.querySelectorAll('.chart text')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    assert set(browser.value(drawn)) == {12}, "labels do not shrink with the page"
    lefts = "[...document.querySelectorAll('.chart text')].map(e => e.getBoundingClientRect().left)"
    assert min(browser.value(lefts)) >= 0


def test_prints(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["disputed"], 794, "dark")
    browser.call("Emulation.setEmulatedMedia", media="print", features=[])
    assert background(browser) == "rgb(255, 255, 255)"
    assert browser.value("document.documentElement.scrollWidth") <= 794
    made = browser.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, preferCSSPageSize=False)
    browser.call("Emulation.setEmulatedMedia", media="")
    assert made["data"].startswith("JVBER"), "a PDF"


def test_browser_would_have_seen_it(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    """The checks above see a page that breaks each of their rules."""
    text = pages["verified"].read_text(encoding="utf-8")
    odd = "<script>window.ran = 1</script><img src='missing.png'><div style='width: 3000px'>wide</div>"
    (tmp_path / "policy.html").write_text(text.replace("</main>", f"{odd}</main>"), encoding="utf-8")
    browser.open(tmp_path / "policy.html", 1400, "light")
    assert browser.value("window.ran") is None, "the policy stops it all the same"
    breaches = {event["entry"]["source"] for event in browser.happened("Log.entryAdded")}
    assert breaches == {"security"}
    bare = text.replace("Content-Security-Policy", "X-Nothing").replace("</main>", f"{odd}</main>")
    (tmp_path / "bare.html").write_text(bare, encoding="utf-8")
    browser.open(tmp_path / "bare.html", 1400, "light")
    assert browser.value("window.ran") == 1
    assert browser.value("document.documentElement.scrollWidth") > 1400
    assert browser.value(STICKS_OUT) != []
    assert len(browser.happened("Network.requestWillBeSent")) > 1
    (tmp_path / "grey.html").write_text(text.replace("<style>", "<style>.quiet{color:#999 !important}"), "utf-8")
    (tmp_path / "grey.html").write_text(
        (tmp_path / "grey.html").read_text("utf-8").replace("Content-Security-Policy", "X-Nothing"), "utf-8"
    )
    browser.open(tmp_path / "grey.html", 1400, "light")
    assert browser.value(CONTRAST)[0] < 4.5
