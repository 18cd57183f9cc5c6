"""A verdict file is hostile: each rule of its reader is broken once."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from report_helpers import AUDITOR, DISPUTE, REPAIR, SHA, signed, verdict
from run_helpers import KEY, copied, forging, honest

from auditor.evidence import open_run
from auditor.verdict.file import Predicate, VerdictFile, VerdictFileError, read_verdict
from vtrain.commit import statement
from vtrain.errors import MalformedRunError, SignatureError, UsageError

PUBLIC = AUDITOR.public_key()


def read(file: Path, key: Any = PUBLIC, run: Path | None = None) -> VerdictFile:
    return read_verdict(file, open_run(run or honest()), key)


@pytest.mark.parametrize("key", [PUBLIC, None])
def test_reads_what_sign_writes(tmp_path: Path, key: Any) -> None:
    verdict().sign(tmp_path / "v", AUDITOR)
    found = read(tmp_path / "v", key)
    assert found.authenticated == (key is not None)
    assert found.unknown == (), "the reader knows every field that the writer writes"
    said = verdict().predicate()
    assert found.found.replayed == [(0, 6)] and said["replayed"] == [[0, 6]]
    for name in ("result", "job", "head", "steps", "settled", "entries", "auditor", "notClaimed"):
        assert getattr(found.found, name) == said[name]


def test_fields_to_come_may_be_absent(tmp_path: Path) -> None:
    found = read(signed(tmp_path / "v", verdict(), freedom=..., repairs=..., dispute=..., detectionExact=..., draw=...))
    assert (found.found.freedom, found.found.repairs, found.found.dispute) == (None, None, None)
    found = read(signed(tmp_path / "v", verdict(), repairs=[REPAIR], dispute=DISPUTE, later={"a": 1}))
    assert found.found.repairs is not None and found.found.repairs[0].site == REPAIR["site"]
    assert found.found.dispute is not None and found.found.dispute.elements[0].within
    assert found.unknown == ("later",)


def test_signature(tmp_path: Path) -> None:
    file = signed(tmp_path / "v", verdict(), KEY)
    with pytest.raises(SignatureError):
        read(file)
    envelope = json.loads(signed(file, verdict()).read_bytes())
    envelope["signatures"][0]["sig"] = base64.b64encode(bytes(64)).decode()
    file.write_text(json.dumps(envelope))
    with pytest.raises(SignatureError):
        read(file)
    assert not read(file, None).authenticated


MALFORMED: dict[str, dict[str, Any]] = {
    "result": {"result": "perfect"},
    "verified with a bad step": {"firstBadStep": 3},
    "refuted without one": {"result": "refuted"},
    "bad step beyond the end": {"result": "refuted", "firstBadStep": 7},
    "nothing replayed": {"replayed": []},
    "missing field": {"settled": ...},
    "text for a number": {"settled": "3"},
    "truth for a number": {"entries": True},
    "negative": {"corrections": -1},
    "descending ranges": {"replayed": [[3, 4], [0, 1]]},
    "overlapping ranges": {"replayed": [[0, 3], [3, 4]]},
    "empty range": {"replayed": [[3, 2]]},
    "range beyond the end": {"replayed": [[0, 7]]},
    "range of three": {"replayed": [[0, 1, 2]]},
    "more drawn than there are": {"segments": {"all": 2, "sampled": 3}},
    "long text": {"detail": "x" * 20_001},
    "notes": {"notes": [1]},
    "environment": {"auditor": []},
    "odds": {"detection": {"0.5": "1.0<b>"}},
    "repair": {"repairs": [{**REPAIR, "record": "x"}]},
    "repair beyond the end": {"repairs": [{**REPAIR, "step": 7}]},
    "dispute": {"dispute": {**DISPUTE, "result": "settled"}},
    "dispute's element": {"dispute": {**DISPUTE, "elements": [{"index": 0}]}},
    "dispute against a verified run": {"dispute": {**DISPUTE, "result": "refuted", "wrong": ["run"]}},
    "dispute beyond the end": {"dispute": {**DISPUTE, "step": 7}},
    "record with a newline": {"dispute": {**DISPUTE, "record": SHA + "\n"}},
    "freedom": {"freedom": {"inDoubt": 1, "departures": 0, "pValue": "small"}},
    "groups of no steps": {"correctionsOverSteps": {"width": 0, "counts": []}},
    "corrections beyond the end": {"corrections": 1, "correctionsOverSteps": {"width": 1, "counts": [[7, 1]]}},
    "corrections of half a group": {"corrections": 1, "correctionsOverSteps": {"width": 2, "counts": [[1, 1]]}},
    "corrections twice": {"corrections": 2, "correctionsOverSteps": {"width": 1, "counts": [[1, 1], [1, 1]]}},
    "corrections that are too few": {"corrections": 2, "correctionsOverSteps": {"width": 1, "counts": [[1, 1]]}},
}


@pytest.mark.parametrize("key", [PUBLIC, None])
@pytest.mark.parametrize("name", list(MALFORMED))
def test_malformed(tmp_path: Path, name: str, key: Any) -> None:
    with pytest.raises(VerdictFileError) as caught:
        read(signed(tmp_path / "v", verdict(), **MALFORMED[name]), key)
    assert caught.value.exit_code == 3
    assert len(str(caught.value)) < 3000


ANOTHER: dict[str, tuple[dict[str, Any], str]] = {
    "job": ({"job": "vtrain-job-v1-sha256:" + SHA}, "job"),
    "key": ({"trainerKey": {"id": SHA, "pinned": True}}, "trainer's key"),
    "steps": ({"steps": 8}, "last step"),
}


@pytest.mark.parametrize("name", list(ANOTHER))
def test_about_another_run(tmp_path: Path, name: str) -> None:
    changes, text = ANOTHER[name]
    with pytest.raises(VerdictFileError, match=f"another run: {text}"):
        read(signed(tmp_path / "v", verdict(), **changes))


def test_another_head_or_model(tmp_path: Path) -> None:
    run = copied(honest(), tmp_path / "run")
    with forging(run) as forger:
        forger.leaves[1]["metrics"]["loss"] = "F32:3f800000"
    file = signed(tmp_path / "v", verdict())
    with pytest.raises(VerdictFileError, match="its head is another one"):
        read(file, run=run)
    with pytest.raises(SignatureError):
        read(signed(tmp_path / "w", verdict(), head=verdict().head.replace("vtrain-trainer", "somebody")))
    made = statement.make_statement(verdict().subject[0], SHA, "https://vtrain.dev/attestation/verdict/v2",
                                    verdict().predicate())  # fmt: skip
    file.write_bytes(statement.sign_statement(made, AUDITOR))
    with pytest.raises(VerdictFileError, match="another run: model"):
        read(file)


def envelope(payload: bytes, /, **changes: Any) -> bytes:
    """An envelope that nobody signed."""
    fields = {"payload": base64.b64encode(payload).decode(), "payloadType": statement.PAYLOAD_TYPE, "signatures": []}
    return json.dumps(fields | changes).encode()


GOOD = rfc8785.dumps({"_type": statement.STATEMENT_TYPE, "subject": [], "predicateType": "x", "predicate": {}})
NO_STATEMENT = {
    "empty": b"",
    "not JSON": b"{",
    "not an object": b"[]",
    "NaN": b'{"payload": NaN}',
    "key twice": b'{"payload": "", "payload": ""}',
    "deep": b"[" * 100_000,
    "deep statement": envelope(b"[" * 100_000),
    "not base64": envelope(b"", payload="*"),
    "another type": envelope(GOOD, payloadType="text/html"),
    "further field": envelope(GOOD, more=1),
    "many signatures": envelope(GOOD, signatures=[{"keyid": "", "sig": ""}] * 17),
    "not canonical": envelope(GOOD.replace(b":", b": ")),
    "infinite": envelope(b'{"a":1e999}'),
    "another predicate": envelope(GOOD),
    "digits": envelope(b'{"a":' + b"1" * 10_000 + b"}"),
    "surrogate": envelope(b'{"a":"\\ud800"}'),
}


@pytest.mark.parametrize("key", [PUBLIC, None])
@pytest.mark.parametrize("name", list(NO_STATEMENT))
def test_no_statement(tmp_path: Path, name: str, key: Any) -> None:
    (tmp_path / "v").write_bytes(NO_STATEMENT[name])
    with pytest.raises(MalformedRunError):
        read(tmp_path / "v", key)


def test_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        read(tmp_path / "missing")
    with pytest.raises(UsageError):
        read(tmp_path)
    with (tmp_path / "large").open("wb") as handle:
        handle.truncate(statement.MAX_ENVELOPE_BYTES + 1)
    with pytest.raises(MalformedRunError, match="larger than"):
        read(tmp_path / "large")


def test_every_field_is_used_or_written() -> None:
    assert Predicate.model_fields.keys() <= {*verdict().predicate(), "repairs", "dispute", "draw", "detectionExact"}


def test_one_spelling_of_a_statement(tmp_path: Path) -> None:
    envelope_ = json.loads(signed(tmp_path / "v", verdict()).read_bytes())
    payload = base64.b64decode(envelope_["payload"])
    for data, canonical in ((payload, True), (payload.replace(b'"result":', b'"result": '), False)):
        (tmp_path / "v").write_bytes(envelope(data))
        if canonical:
            assert read(tmp_path / "v", None).signers == ()
        else:
            with pytest.raises(VerdictFileError, match="not canonical"):
                read(tmp_path / "v", None)
