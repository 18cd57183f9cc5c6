"""The referee: judges one disputed operation from its record alone (protocol §8.3). Imports no torch.

It needs no run, no data, no model code and no trust in either side:

1. The record is bounded and of a known version (``record.parse_record``).
2. The run: the head is signed by the trainer's key and of the record's job; the leaf of the disputed step is in its
   tree.
3. Both sides signed a trace root of that step of that run in one dispute, each in its own part.
4. Both events are number ``event`` of their traces, and all events before are the same in both: what led to this
   operation is agreed.
5. Both events are of one result: the same operation, definition and operands; only the outputs differ.
6. The blocks shown are those of the operands and outputs that the events commit to, the decisions those of the run's.
7. A rounding: each disputed element is evaluated exactly from its operands (``dispute.exact``), and each side's value
   compared with the certified bound. A side is wrong if any of its values lies outside; if neither is, the difference
   is benign. Another operation has the same bits on every machine: it is done again (``dispute.recompute``; this alone
   needs PyTorch), and a side is wrong if its results are not these.

What is not checked: that a key is whose it is said to be (pass the trainer's), that the step's other operations are
right, and that no further element differs (``disputed`` is what the challenger says).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from auditor.dispute.commitment import CHALLENGER, RESPONDER, columns_digest, decode_columns, open_commitment
from auditor.dispute.exact import Exact, evaluate, within
from auditor.dispute.record import SIDES, Record, parse_record
from auditor.dispute.terms import Index, terms
from vtrain.commit import heads, keys, merkle
from vtrain.commit.blocks import Shown
from vtrain.commit.leaf import leaf_from_json
from vtrain.commit.statement import strict_json
from vtrain.commit.trace import Event, parse_event
from vtrain.errors import JobError, KeyFileError, ProofError, SignatureError
from vtrain.rounding.formats import Format, format_by_name

BENIGN, REFUTED = "benign", "refuted"
_PARTS = {"run": RESPONDER, "other": CHALLENGER}
_CONTAINERS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True)
class Element:
    """One disputed element.

    Attributes:
        index: flat, into the result.
        run, other: both sides' values.
        exact: what the operation gives exactly, rounded to float64 for people.
        bound: the certified bound around it, likewise.
        run_within, other_within: whether each is the rounding of a number within the bound.
    """

    index: int
    run: float
    other: float
    exact: float
    bound: float
    run_within: bool
    other_within: bool


@dataclass(frozen=True)
class Finding:
    """What the referee found.

    Attributes:
        result: ``benign`` or ``refuted``.
        wrong: the sides with a value outside the bound: ``run``, ``other`` or both.
        job: the job's digest, hex.
        run: the digest of the run's identity, hex.
        step, event: where.
        site: the result's operation, format and shape.
        elements: the disputed elements that were judged.
        disputed: how many there are, as the challenger says.
        keys: key id of the trainer and of each side.
        decisions: how many decisions the run logged for this result; None where the record does not hold them.
        answered: whether the trainer itself signed the run's side; otherwise somebody else replayed it from its log.
    """

    result: str
    wrong: tuple[str, ...]
    job: str
    run: str
    step: int
    event: int
    site: str
    elements: tuple[Element, ...]
    disputed: int
    keys: Mapping[str, str]
    answered: bool
    decisions: int | None = None

    def to_json(self) -> dict[str, Any]:
        """For machines; numbers as text, hexadecimal where bits matter."""
        return {
            "result": self.result, "wrong": list(self.wrong), "job": self.job, "run": self.run, "step": self.step,
            "event": self.event, "site": self.site, "disputed": self.disputed, "keys": dict(self.keys),
            "answered": self.answered, "decisions": self.decisions,
            "elements": [
                {
                    "index": e.index, "run": e.run.hex(), "other": e.other.hex(), "exact": repr(e.exact),
                    "bound": f"{e.bound:.3g}", "runWithin": e.run_within, "otherWithin": e.other_within,
                }
                for e in self.elements
            ],
        }  # fmt: skip


def judge(data: bytes, trainer_key: Ed25519PublicKey | None = None) -> Finding:
    """Judge a record.

    Args:
        data: the record; hostile input.
        trainer_key: the run's key, if known.

    Raises:
        MalformedRunError: a rule of the module's text is broken (ProofError, SignatureError, VersionError, ...).
    """
    record = parse_record(data)
    public = _keys(record, trainer_key)
    _check_run(record, public["trainer"])
    events = _events(record, public)
    _agreed(events)
    if record.job_text is not None:
        return _done_again(record, events, public)
    site = _agreed_site(events)
    _check_blocks(record, events)
    elements = tuple(_judged(record, site))
    wrong = tuple(
        name for name in SIDES if not all(e.run_within if name == "run" else e.other_within for e in elements)
    )
    return _finding(record, public, site.text, wrong, elements)


def _finding(
    record: Record, public: Mapping[str, Ed25519PublicKey], what: str, wrong: tuple[str, ...],
    elements: tuple[Element, ...] = (),
) -> Finding:  # fmt: skip
    ids = {name: keys.key_id(key) for name, key in public.items()}
    return Finding(
        REFUTED if wrong else BENIGN, wrong, record.job, heads.peek_head(record.note).run.hex(), record.step,
        record.event, what, elements, record.disputed, ids, ids["run"] == ids["trainer"], _decisions(record),
    )  # fmt: skip


def _keys(record: Record, expected: Ed25519PublicKey | None) -> dict[str, Ed25519PublicKey]:
    found = {}
    for name in ("trainer", *SIDES):
        text = record.keys[name]
        try:
            found[name] = keys.parse_public(text)
        except KeyFileError as error:
            raise ProofError(f"record: key of side {name!r}: {error}") from error
    if expected is not None and keys.raw_public(expected) != keys.raw_public(found["trainer"]):
        raise SignatureError(f"record: the head's key is {keys.key_id(found['trainer'])}; want {keys.key_id(expected)}")
    return found


def _check_run(record: Record, key: Ed25519PublicKey) -> None:
    head = heads.open_head(record.note, key, heads.KEY_NAME)
    if head.job_digest.hex() != record.job:
        raise ProofError(f"record: the head is of job {head.job_digest.hex()}; want {record.job}")
    merkle.verify_inclusion(record.step, head.size, merkle.leaf_hash(record.leaf), record.leaf_proof, head.root)
    value = strict_json(record.leaf, "leaf")
    if not isinstance(value, dict):
        raise ProofError("record: the leaf is no object")
    leaf_from_json(value, record.step)


def _events(record: Record, public: Mapping[str, Ed25519PublicKey]) -> dict[str, Event]:
    """Both sides' events, proved to be number ``event`` of traces that agree before it."""
    found = {}
    head = heads.head_digest(record.note)
    sessions = set()
    for name in SIDES:
        side = record.sides[name]
        commitment = open_commitment(side.commitment, public[name])
        if (commitment.job, commitment.step, commitment.head) != (record.job, record.step, head):
            raise ProofError(f"record: side {name!r} committed to another job, step or run")
        if commitment.side != _PARTS[name]:
            raise ProofError(f"record: side {name!r} committed as {commitment.side}")
        sessions.add(commitment.session)
        root = bytes.fromhex(commitment.root)
        leaf = merkle.leaf_hash(side.event)
        merkle.verify_inclusion(record.event, commitment.size, leaf, side.inclusion, root)
        merkle.verify_consistency(record.event, commitment.size, record.prefix, root, side.consistency)
        found[name] = parse_event(side.event)
    if len(sessions) != 1:
        raise ProofError("record: the two sides committed in two disputes")
    return found


@dataclass(frozen=True)
class _Site:
    text: str
    fmt: Format
    shape: tuple[int, ...]
    kind: str
    params: Mapping[str, Any]
    signed: bool


def parse_site(text: str) -> tuple[str, Format, tuple[int, ...]]:
    """Operation, format and shape of a site's text such as ``aten.mm.default float32[4, 4]``.

    Raises:
        ProofError: it has none.
    """
    name, _, rest = text.partition(" ")
    form, bracket, dims = rest.removeprefix("canonical ").partition("[")
    try:
        shape = tuple(int(n) for n in dims.removesuffix("]").split(",") if n.strip())
        found = format_by_name(form)
    except (ValueError, JobError) as error:
        raise ProofError(f"site {text[:100]!r}: {error}") from error
    if not bracket or not dims.endswith("]") or len(shape) > 16 or any(n < 0 for n in shape):
        raise ProofError(f"site {text[:100]!r}: no operation, format and shape")
    return name, found, shape


def _agreed(events: Mapping[str, Event]) -> None:
    if part := events["run"].unlike(events["other"]):
        raise ProofError(f"record: the two events differ in {part}: not two results of one operation")


def _done_again(record: Record, events: Mapping[str, Event], public: Mapping[str, Ed25519PublicKey]) -> Finding:
    """Judge an operation without rounding freedom by doing it."""
    from vtrain.job import Job, job_digest, parse_canonical
    from vtrain.store import canonical

    text = (record.job_text or "").encode()
    if job_digest(text).hex() != record.job:
        raise ProofError("record: its job is not the one that the head is of")
    job = parse_canonical(text, canonical.loads(text, where="job", floats=True), "job")
    run = events["run"]
    if run.kind != "op" or run.outputs == events["other"].outputs:
        raise ProofError(f"record: event {run.name[:100]!r} is no operation with two results")
    _check_operands(record, run)
    from auditor.dispute.recompute import outputs

    seed = job.train.seed if isinstance(job, Job) else job.seed
    mine = outputs(run, record.operands, job.policy, seed, record.step)
    wrong = tuple(name for name in SIDES if dict(events[name].outputs) != mine)
    return _finding(record, public, run.name, wrong)


def _agreed_site(events: Mapping[str, Event]) -> _Site:
    run = events["run"]
    definition = run.args.get("definition")
    if run.kind != "site" or not isinstance(definition, dict) or definition.keys() != {"kind", "params"}:
        raise ProofError(f"record: event {run.name[:100]!r} has no exact definition; it is judged by doing it again")
    if not isinstance(definition["params"], dict) or type(run.args.get("signed")) is not bool:
        raise ProofError("record: a definition without parameters")
    _, fmt, shape = parse_site(run.name)
    return _Site(run.name, fmt, shape, definition["kind"], definition["params"], run.args["signed"])


def _check_operands(record: Record, event: Event) -> None:
    if record.operands.keys() != event.inputs.keys():
        raise ProofError(
            f"record: shows operands {sorted(record.operands)}; the event has {sorted(event.inputs)}"[:300]
        )
    for name, shown in record.operands.items():
        shown.check(event.inputs[name], f"operand {name!r}")


def _check_blocks(record: Record, events: Mapping[str, Event]) -> None:
    _check_operands(record, events["run"])
    for side, shown in record.outputs.items():
        shown.check(events[side].outputs.get("value", ""), f"output of side {side!r}")
    if record.log is not None and columns_digest(_columns(record.log)) != events["run"].outputs.get("log"):
        raise ProofError("record: the decisions are not those of the run's event")


def _columns(log: Mapping[str, str]) -> dict[str, bytes]:
    columns = decode_columns(log)
    if len(columns["row"]) != 48:
        raise ProofError("record: decisions without their row")
    return columns


def _decisions(record: Record) -> int | None:
    """Short codes and whole values that the run logged for the result (protocol §3)."""
    if record.log is None:
        return None
    row = np.frombuffer(_columns(record.log)["row"], "<u8")
    return int(row[3] + row[4])


def _judged(record: Record, site: _Site) -> list[Element]:
    shapes = {name: shown.header.shape for name, shown in record.operands.items()}
    container = _CONTAINERS[site.fmt.container]
    for side in SIDES:
        head = record.outputs[side].header
        if head.dtype != container or head.shape != site.shape:
            raise ProofError(f"record: output of side {side!r} is {head.dtype}{list(head.shape)}; not of {site.text}")

    def read(name: str, index: Index) -> np.ndarray:
        return values_at(record.operands[name], index)

    made = []
    for element in record.elements:
        depends = terms(site.kind, site.params, shapes, site.shape, element)
        exact = evaluate(site.kind, site.params, depends, read)
        run, other = (float(values_at(record.outputs[s], np.array([element]))[0]) for s in SIDES)
        if run.hex() == other.hex():
            raise ProofError(f"record: both sides have {run!r} at element {element}: nothing is disputed")
        made.append(_element(element, run, other, exact, site))
    return made


def _element(index: int, run: float, other: float, exact: Exact, site: _Site) -> Element:
    value, bound = exact.value, exact.bound
    inside = [within(v, exact, site.fmt, site.signed) for v in (run, other)]
    return Element(index, run, other, _double(value), _double(bound), *inside)


def _double(x: Any) -> float:
    try:
        return float(x)
    except OverflowError:
        return float("inf") if x > 0 else float("-inf")


def values_at(shown: Shown, index: Index) -> np.ndarray:
    """Elements of a shown tensor as float64, exactly.

    Raises:
        ProofError: not shown, or not of a type that float64 holds with room for products.
    """
    width, dtype = shown.header.width, shown.header.dtype
    if dtype not in ("F32", "BF16", "F16"):
        raise ProofError(f"an operand of dtype {dtype}; want F32, BF16 or F16")
    if not index.size:
        return np.zeros(0)
    runs = np.split(index, np.flatnonzero(np.diff(index) != 1) + 1) if index.size > 1 else [index]
    size = int(np.prod(shown.header.shape, dtype=object))
    if int(index.min()) < 0 or int(index.max()) >= size:
        raise ProofError(f"element {int(index.max())} of a tensor of {size}")
    raw = b"".join(shown.bytes_at(int(r[0]) * width, len(r) * width) for r in runs)
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4").astype(np.float64)
    return np.frombuffer(raw, "<f4" if dtype == "F32" else "<f2").astype(np.float64)
