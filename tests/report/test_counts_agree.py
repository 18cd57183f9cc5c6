"""One word, one number: what verify, inspect, audit and the report count of one run; and the glossary."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
from run_helpers import HERE, honest, silent

from auditor.audit import Request, audit
from auditor.evidence import open_run
from auditor.evidence.logged import table
from auditor.evidence.verify import verify
from auditor.report.page import make_report
from auditor.verdict.glossary import GLOSSARY

ROOT = Path(__file__).parents[2]


def words(page: str) -> str:
    return html.unescape(" ".join(re.sub(r"<[^>]+>", " ", page).split()))


@pytest.mark.parametrize("policy", ["float32", "certified16"])
def test_counts_agree(policy: str) -> None:
    run = honest(policy)
    evidence = open_run(run, None)
    found = audit(Request(run, HERE), silent, silent)
    rows = {row.operation: row for row in table(evidence, list(range(evidence.last_step + 1)))}
    logged, canonical = rows["total logged"], rows["total canonical"]
    checks = {check.name: check.found for check in verify(run, None, lambda step, last: None)}
    page = words(make_report(run, None, None, None, lambda step, last: None))
    assert (found.settled, found.entries, found.canonical) == (logged.values, logged.entries, canonical.values)
    assert checks["log"] == f"{found.entries:,} decisions"
    assert f"{found.entries:,} decisions were logged for {found.settled:,} settled values" in page
    assert f"{found.canonical:,} more values are of canonical operations" in page
    last = evidence.last_step
    assert checks["attestation"] == f"of steps 0-{last}" and f"steps replayed  0-{last} of 0-{last}" in str(found)
    assert f"Steps 0\N{EN DASH}{last} (0 is the initialisation)" in page
    assert found.freedom.to_json()["inDoubt"] <= found.entries and found.corrections <= found.entries


def test_the_glossary_is_on_the_page_and_in_the_documents() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (.*?) \| (.*) \|$", text, re.MULTILINE)[2:] == [*GLOSSARY]
    page = words(make_report(honest(), None, None, None, lambda step, last: None))
    for word, meaning in GLOSSARY:
        assert f"{word} {meaning}".replace("`", "") in page.replace("`", "")
