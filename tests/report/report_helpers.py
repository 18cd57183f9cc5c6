"""Pages of honest and hostile runs, verdicts on them with any field changed, and a reader of pages."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from run_helpers import KEY, audited, copied, forging, honest, other_hardware, silent

from auditor.report.page import make_report
from auditor.verdict import Verdict
from auditor.verdict.verdict import VERDICT_PREDICATE
from vtrain.commit import statement
from vtrain.demo.forger import Forger, one_ulp

AUDITOR = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
SHA = "5e" * 32
# No spaces: each also serves as the name of an operation.
MARKUP = (
    "<script>window.ran=1</script>",
    '"><img/src=x/onerror=window.ran=2>',
    "'><svg/onload=window.ran=3>",
    "]]><iframe/srcdoc=<script>parent.ran=4</script>>",
    "</style><script>window.ran=5</script>",
    "</title><script>window.ran=6</script>",
    "{{7*7}}{%raw%}",
    "javascript:window.ran=7",
    "--><script>window.ran=8</script><!--",
    "&lt;script&gt;window.ran=9&lt;/script&gt;",
)
ACTING = (
    "VERIFIED\u202edeifirev\u202c",
    "\u2066isolate\u2069",
    "nul\0bell\a\x1b[31mred",
    "zero\u200bwidth\ufeff",
    "line\u2028separator\x85",
    "mark" + "\u0301" * 40,
    "\ud800",
    "wide\u3000space\u00a0no-break",
)
DISPUTE: dict[str, Any] = {
    "step": 3, "event": 41, "operation": "aten.mm.default", "site": "aten.mm.default float32[16, 192]",
    "result": "benign", "wrong": [], "record": SHA,
    "elements": [{"index": 1234, "run": "0x1.8p+1", "other": "0x1.800002p+1", "exact": "3.0000001", "bound": "3.2e-06",
                  "within": True}],
}  # fmt: skip
REPAIR = {"step": 3, "seq": 17, "site": "aten.mm.default float32[16, 192]", "elements": 2, "record": SHA}


@functools.cache
def verdict(policy: str = "float32") -> Verdict:
    """An audit of an honest run, the trainer's key known."""
    return audited(honest(policy), key=KEY.public_key())


@functools.cache
def elsewhere() -> Verdict:
    """An audit with corrections."""
    return audited(other_hardware(), key=KEY.public_key())


def forged(to: Path) -> Path:
    """A run that an audit refutes at step 4."""
    run = copied(honest(), to)
    with forging(run) as forger:
        forger.change_checkpoint(4, lambda files: files["model"].update({"1.bias": one_ulp(files["model"]["1.bias"])}))
    return run


def signed(to: Path, found: Verdict, key: Ed25519PrivateKey = AUDITOR, **changes: Any) -> Path:
    """A verdict file, well signed, with fields of its predicate changed; ``...`` leaves one out."""
    predicate = {k: v for k, v in {**found.predicate(), **changes}.items() if v is not ...}
    made = statement.make_statement(*found.subject, VERDICT_PREDICATE, predicate)
    to.write_bytes(statement.sign_statement(made, key))
    return to


def page(run: Path, verdict: Path | None = None, trainer_key: Any = None, auditor_key: Any = None) -> str:
    """The report."""
    return make_report(run, verdict, trainer_key, auditor_key, silent)


def full_page(to: Path, run: Path, found: Verdict, **changes: Any) -> str:
    """The report of a run with a verdict, both keys known."""
    file = signed(to / "verdict.json", found, **changes)
    return page(run, file, KEY.public_key(), AUDITOR.public_key())


def rename_operations(forger: Forger, name: Callable[[int, int], str]) -> None:
    """Give the operations of every program other names, by their number and the step."""
    for leaf in forger.leaves:
        sites = json.loads((forger.layout.root / "programs" / f"{leaf['sites']}.json").read_bytes())["sites"]
        renamed = [" ".join([name(i, leaf["step"]), *rest]) for i, (_, *rest) in enumerate(s.split(" ") for s in sites)]
        data = rfc8785.dumps({"sites": renamed})
        leaf["sites"] = hashlib.sha256(data).hexdigest()
        (forger.layout.root / "programs" / f"{leaf['sites']}.json").write_bytes(data)


def hostile(to: Path) -> Path:
    """A run, flawlessly signed, all of whose texts try to be something else."""
    run = copied(honest(), to)
    odd = [*MARKUP, *(t for t in ACTING if t != "\ud800")]  # that one is no canonical JSON

    def job(values: dict[str, Any]) -> None:
        values["program"]["entry"] = f"{MARKUP[0]}{ACTING[0]}.py:f"
        values["program"]["config"] = {text: text for text in odd}
        values["data"]["name"] = MARKUP[1]
        values["data"]["digest"] = MARKUP[2]

    with forging(run) as forger:
        forger.change_job(job)
        rename_operations(forger, lambda i, step: MARKUP[i % len(MARKUP)])
        forger._predicate["environment"] = {**dict.fromkeys(odd, odd), "torch": {"a": {MARKUP[0]: ACTING[0]}}}
        for leaf in forger.leaves[1:]:
            leaf["metrics"] = {text: "F32:7f800000" for text in MARKUP} | {"loss": leaf["metrics"]["loss"]}
    for program in (run / "programs").glob("*.json"):
        if program.stem not in {leaf["sites"] for leaf in forger.leaves}:
            program.unlink()
    return run


def hostile_changes() -> dict[str, Any]:
    """Texts of a verdict, all hostile."""
    odd = [*MARKUP, *(t for t in ACTING if t != "\ud800")]
    text = " ".join(odd)
    return {
        "result": "refuted", "firstBadStep": 3, "what": text, "detail": text, "notes": odd, "notClaimed": odd,
        "auditor": {t: {t: t} for t in odd}, "repairs": [{**REPAIR, "site": text}],
        "freedom": {"inDoubt": 2, "departures": 1, "expected": 1e300, "pValue": 1e-300,
                    "by": [{"kind": t, "inDoubt": 1, "departures": 0, "expected": 0.5, "pValue": 1} for t in odd]},
        "dispute": {**DISPUTE, "operation": text, "site": text, "wrong": odd[:4], "result": "refuted",
                    "elements": [{"index": 0, "within": False, **dict.fromkeys(("run", "other", "exact", "bound"), t)}
                                 for t in odd]},
        **{t: t for t in odd},
    }  # fmt: skip


class Reader(HTMLParser):
    """A page as a list of elements and its text.

    Attributes:
        elements: (tag, attributes).
        text: what is between the tags, style excepted.
        style: the style's text.
    """

    VOID = ("meta", "br", "path", "line", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = self.style = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        self.text += " " * (tag == "br")
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        self.text += " " * (tag not in ("bdi", "span", "code", "strong"))

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            self.style += data
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of every element of this name."""
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        """The text, spaces made one."""
        return re.sub(r"\s+", " ", self.text)
