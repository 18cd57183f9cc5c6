"""The referee: what it says of honest records, and that no other record makes it say more."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.dispute.commitment import Commitment
from auditor.dispute.record import MAGIC, parse_record
from auditor.dispute.referee import judge
from benchmarks.disputes import AUDITOR, JOB, RUN, TRAINER, dispute
from vtrain.commit import heads
from vtrain.commit.statement import strict_json
from vtrain.errors import MalformedRunError, ProofError, SignatureError, VersionError

SIDE = 64


@cache
def record(elements: tuple[int, ...] = (5, 70, 200)) -> bytes:
    """A record of a product of which some elements are off by one place."""
    return dispute(20, SIDE, elements).found.records[0]


def test_what_it_finds() -> None:
    found = judge(record(), TRAINER.public_key())
    assert (found.result, found.wrong, found.answered) == ("refuted", ("run",), True)
    assert (found.job, found.run) == (JOB.hex(), RUN.hex()) == tuple(found.to_json()[n] for n in ("job", "run"))
    assert (found.step, found.event, found.site) == (13, 1, f"aten.mm.default float32[{SIDE}, {SIDE}]")
    assert [(e.index, e.run_within, e.other_within) for e in found.elements] == [(i, False, True) for i in (5, 70, 200)]
    for e in found.elements:
        assert abs(e.other - e.exact) < abs(e.run - e.exact) < 2.0**-22 * abs(e.exact) and e.bound < 1e-10


def test_another_trainer_s_key() -> None:
    with pytest.raises(SignatureError, match="the head's key"):
        judge(record(), AUDITOR.public_key())


def test_without_torch(tmp_path: Path) -> None:
    path = tmp_path / "record"
    path.write_bytes(record())
    code = (
        "import sys; from pathlib import Path; from auditor.dispute.referee import judge; "
        f"found = judge(Path({str(path)!r}).read_bytes()); "
        "print(found.result, *found.wrong, *[m for m in ('torch', 'zarr', 'cupy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refuted", "run"]


def block(side: int) -> tuple[int, ...]:
    return tuple(i * side + j for i in range(10) for j in range(10))


def scattered(side: int) -> tuple[int, ...]:
    return tuple(int(i) for i in np.sort(np.arange(100) * (side // 100) * (side + 1)))


def test_a_large_product_in_a_second_and_a_mebibyte() -> None:
    """4096 x 4096, 100 disputed elements in ten rows and ten columns."""
    found = dispute(20, 4096, block(4096)).found
    assert len(found.records) == 1 and len(found.records[0]) <= 1 << 20
    began = time.process_time()
    assert len(judge(found.records[0]).elements) == 100
    assert time.process_time() - began < 1.0


def test_scattered_elements_are_split_into_such_records() -> None:
    """A hundred rows and a hundred columns are 3.1 MiB however they are written: several records, each for itself."""
    found = dispute(20, 4096, scattered(4096)).found
    assert max(map(len, found.records)) <= 1 << 20
    assert len(found.records) == 1, "one element outside is enough to refute"
    for data in found.records:
        began = time.process_time()
        assert judge(data).wrong == ("run",)
        assert time.process_time() - began < 1.0


# ---- hostile records ------------------------------------------------------------------------------------------------
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_no_changed_byte_is_believed(data: st.DataObject) -> None:
    """Every byte is under a signature, in a proof, or what is judged; those that are not change nothing."""
    honest = record()
    at = data.draw(st.integers(0, len(honest) - 1))
    changed = bytearray(honest)
    changed[at] ^= data.draw(st.integers(1, 255))
    try:
        found = judge(bytes(changed), TRAINER.public_key())
    except MalformedRunError:
        return
    wanted = judge(honest, TRAINER.public_key())
    # the number of disputed elements is what the challenger says, and the other side's key is its own
    assert (found.result, found.wrong, found.elements, found.site) == (
        wanted.result, wanted.wrong, wanted.elements, wanted.site,
    )  # fmt: skip


@given(st.integers(0, 100), st.binary(max_size=40))
@settings(max_examples=100, deadline=None)
def test_truncated_and_extended(share: int, more: bytes) -> None:
    honest = record()
    cut = honest[: len(honest) * share // 100]
    if cut != honest:
        with pytest.raises(MalformedRunError):
            judge(cut + more)


def edited(change: Any) -> bytes:
    """The record with its header changed."""
    honest = record()
    end = honest.index(b"\n", len(MAGIC))
    value = strict_json(honest[len(MAGIC) : end], "header")
    change(value)
    return MAGIC + rfc8785.dumps(value) + honest[end:]


def outputs_swapped(v: Any) -> None:
    outputs = v["shown"]["outputs"]
    outputs["run"], outputs["other"] = outputs["other"], outputs["run"]


def operands_swapped(v: Any) -> None:
    operands = v["shown"]["operands"]
    operands["a"], operands["bt"] = operands["bt"], operands["a"]


def sides_swapped(v: Any) -> None:
    v["sides"]["run"], v["sides"]["other"] = v["sides"]["other"], v["sides"]["run"]


def committed(name: str, key: Any, **changes: str) -> Any:
    """A side's commitment with something else in it, and its own signature under that."""

    def change(v: Any) -> None:
        said = {k: x for k, x in v["sides"][name]["commitment"].items() if k != "signature"}
        v["sides"][name]["commitment"] = Commitment(**{**said, **changes}).sign(key)

    return change


def without_a_run(v: Any) -> None:
    """A head as an earlier release signed it."""
    head = heads.peek_head(v["run"]["note"])
    v["run"]["note"] = heads.sign_head(replace(head, run=head.job_digest), TRAINER, heads.KEY_NAME)


EDITS: list[tuple[str, Any, type[Exception], str]] = [
    ("event", lambda v: v.update(event=2), ProofError, "inclusion"),
    ("event-0", lambda v: v.update(event=0), ProofError, "inclusion"),
    ("step", lambda v: v.update(step=12), ProofError, "inclusion"),
    ("job", lambda v: v.update(job="1" * 64), ProofError, "of job"),
    ("element", lambda v: v.update(elements=[6]), ProofError, "nothing is disputed"),
    ("element-not-shown", lambda v: v.update(elements=[SIDE * 40]), ProofError, "needed and not shown"),
    ("element-beyond", lambda v: v.update(elements=[SIDE * SIDE]), ProofError, "reads beyond"),
    ("elements", lambda v: v.update(elements=[]), ProofError, "1 to"),
    ("elements-order", lambda v: v.update(elements=[70, 5]), ProofError, "ascending"),
    ("sides-swapped", sides_swapped, SignatureError, "not by key"),
    ("outputs-swapped", outputs_swapped, ProofError, "lead to digest"),
    ("operand-missing", lambda v: v["shown"]["operands"].pop("a"), ProofError, "shows operands"),
    ("operand-shape", lambda v: v["shown"]["operands"]["a"].update(shape=[SIDE] * 2), ProofError, "lead to digest"),
    ("operands-swapped", operands_swapped, ProofError, "lead to digest"),
    ("huge", lambda v: v["shown"]["operands"]["a"].update(shape=[1 << 36] * 2), ProofError, "blocks"),
    ("field", lambda v: v.update(more=1), ProofError, "fields"),
    ("key", lambda v: v["keys"].update(other=v["keys"]["trainer"]), SignatureError, "not by key"),
    ("no-key", lambda v: v["keys"].update(other="/etc/passwd"), ProofError, "key of side"),
    ("prefix", lambda v: v.update(prefix="1" * 64), ProofError, "consistency"),
    # A trainer who once challenged somebody elsewhere, by its own key, did not answer for its run by that.
    ("commitment-of-a-challenger", committed("run", TRAINER, side="challenger"), ProofError, "committed as challenger"),
    ("commitment-of-a-responder", committed("other", AUDITOR, side="responder"), ProofError, "committed as responder"),
    ("another-dispute", committed("run", TRAINER, session="1" * 64), ProofError, "in two disputes"),
    ("another-dispute's", committed("other", AUDITOR, session="1" * 64), ProofError, "in two disputes"),
    ("another-head", committed("run", TRAINER, head="1" * 64), ProofError, "another job, step or run"),
    ("no-run", without_a_run, VersionError, "earlier release"),
    ("commitment", lambda v: v["sides"]["run"]["commitment"].update(size=4), SignatureError, "not by key"),
    ("leaf", lambda v: v["run"].update(leaf=v["run"]["leaf"].replace("13", "14")), ProofError, "inclusion"),
]


@pytest.mark.parametrize("change,error,why", [e[1:] for e in EDITS], ids=[e[0] for e in EDITS])
def test_one_wrong_thing(change: Any, error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        judge(edited(change))


def test_versions_and_sizes() -> None:
    with pytest.raises(VersionError):
        judge(record().replace(b"vtrain-record-v2", b"vtrain-record-v1"))
    with pytest.raises(ProofError, match="bytes"):
        judge(MAGIC + b"x" * (64 << 20))
    with pytest.raises(MalformedRunError):
        judge(MAGIC + b"[" * 100_000 + b"\n")
    assert parse_record(record()).encode() == record()
