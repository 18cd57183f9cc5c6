"""Disputes between two parties: the first step, the first operation, the elements, and who is wrong."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parties import AUDITOR, Elsewhere, challenger, changed, party, recording_elsewhere, responder, ulps
from run_helpers import HERE, KEY, audited, copied, forging, honest, job, make, silent

sys.path.insert(0, str(Path(__file__).parents[2]))
import vtrain.engine.jobs.task as task_module
from auditor.audit import Request, audit
from auditor.audit.progress import Progress
from auditor.audit.segment import TaskReplay
from auditor.dispute.challenger import Challenger, common_prefix
from auditor.dispute.during_audit import Party
from auditor.dispute.record import parse_record
from auditor.dispute.referee import judge
from auditor.dispute.rerun import Rerun
from auditor.dispute.rules import RESPONDER, Forfeit
from auditor.dispute.tracing import Tracer
from auditor.evidence import open_run
from auditor.report.page import make_report
from auditor.verdict import Verdict
from auditor.verdict.freedom import EXCESS, FAR_REPAIRS
from benchmarks.freedom import moved
from trainer.listener import Recorder
from vtrain.commit.trace import Event
from vtrain.demo.forger import one_ulp
from vtrain.engine.core import Engine
from vtrain.engine.decisions import Decisions
from vtrain.engine.jobs.task import Batch
from vtrain.engine.listener import ScaleFn, Site, Vary
from vtrain.errors import BackendError, ProofError, StorageError
from vtrain.rounding.bounds import tau_certified
from vtrain.store.steplog import StepLog

PRODUCT = 2  # number of a result in the runs' steps: the forward pass's second product


@pytest.mark.parametrize("policy", ["float32", "certified16", "ternary16", "generous32", "adaptive16"])
def test_honest_parties_agree(policy: str) -> None:
    dispute = challenger(honest(policy))
    assert dispute.first_step(0, 6) is None
    assert dispute.dispute(3) is None
    assert len(dispute.talk.lines) < 20


@pytest.mark.parametrize("policy", ["float32", "certified16"])
def test_other_hardware_agrees(policy: str) -> None:
    """What the log does not tell apart is the same; what it does, both take."""
    dispute = challenger(honest(policy), Elsewhere)
    assert dispute.first_step(0, 6) is None


@pytest.mark.parametrize("step", [1, 3, 6])
@pytest.mark.parametrize("count", [1, -1, 1000])
def test_nudged_product(step: int, count: int) -> None:
    """One element off by a place: seen whether or not its effect lasts."""
    found = challenger(honest(), changed(step, PRODUCT, ulps(5, count))).dispute(step)
    assert found is not None
    assert (found.result, found.wrong, found.step) == ("refuted", ("run",), step)
    assert found.operation == "aten.addmm.default float32[8, 10]"
    finding = judge(found.records[0], KEY.public_key())
    assert finding == found.findings[0] and finding.answered
    assert [(e.index, e.run_within, e.other_within) for e in finding.elements] == [(5, False, True)]


def test_the_decisions_are_in_the_record() -> None:
    """Where the run logged some for the disputed result, and no others are taken for them."""
    change = ulps(5, 1 << 17)  # two places of bfloat16
    found = challenger(honest("certified16"), changed(3, PRODUCT, change)).dispute(3)
    assert found is not None
    columns = Decisions(open_run(honest("certified16")).log(3)).columns(PRODUCT)
    assert columns is not None
    row = np.frombuffer(columns["row"], "<u8")
    finding = found.findings[0]
    assert finding.wrong == ("run",) and finding.decisions == row[3] + row[4] > 0
    record = parse_record(found.records[0])
    assert record.log is not None
    forged = {**record.log, "codes": base64.b64encode(b"\0" + columns["codes"][1:] + b"\1").decode()}
    with pytest.raises(ProofError, match="decisions are not those"):
        judge(replace(record, log=forged).encode())


@pytest.mark.parametrize("step", [1, 3, 6])
def test_a_run_by_a_cheat_who_answers(step: int, tmp_path: Path) -> None:
    """From the run to the element, with the trainer doing in the dispute what it did in the training."""
    cheat = changed(step, PRODUCT, ulps(5, 1000))
    run = trained(tmp_path, cheat)
    records = tmp_path / "records"
    verdict = audited(run, party=party(run, cheat, records))
    assert (verdict.exit_code, verdict.first_bad_step, verdict.what) == (1, step, "operation")
    assert verdict.dispute is not None
    assert (verdict.dispute["result"], verdict.dispute["wrong"]) == ("refuted", ["run"])
    assert verdict.dispute["operation"] == "aten.addmm.default"
    assert [(e["index"], e["within"], e["otherWithin"]) for e in verdict.dispute["elements"]] == [(5, False, True)]
    assert len(list(records.glob("record-*"))) == 1


@pytest.mark.parametrize("step", [2, 5])
def test_a_run_by_a_cheat_who_answers_honestly(step: int, tmp_path: Path) -> None:
    """Then its own replay is not what it committed to."""
    run = trained(tmp_path, changed(step, PRODUCT, ulps(5, 1000)))
    verdict = audited(run, party=party(run))
    assert (verdict.exit_code, verdict.what) == (1, "dispute")
    assert verdict.first_bad_step == step + step % 2, "the checkpoint after it"
    assert verdict.dispute is not None and "its leaf commits to" in verdict.dispute["why"]


def trained(out: Path, tracer: type[Tracer]) -> Path:
    """A run whose trainer's results are those of a dishonest party."""
    from trainer.listener import Recorder

    settle, change = Recorder.settle, tracer._repaired
    cheat = object.__new__(tracer)
    cheat._repairs = {}

    def dishonest(self: Recorder, site: Any, y: torch.Tensor, scale: Any, vary: Any = None) -> torch.Tensor:
        return change(cheat, site, settle(self, site, y, scale, vary))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "settle", dishonest)
        return make(out / "run")


def test_the_challenger_can_be_wrong() -> None:
    found = challenger(honest(), Tracer, changed(4, PRODUCT, ulps(7, 1))).dispute(4)
    assert found is not None and (found.result, found.wrong) == ("refuted", ("other",))
    with pytest.raises(BackendError, match="against this machine"):
        audit_with_broken_hardware()


def audit_is_off(patch: pytest.MonkeyPatch) -> None:
    """An audit's replay, but not a dispute's, has another product in step 4."""
    from auditor.audit.listener import Replayer

    settle = Replayer.settle

    def off(self: Replayer, site: Any, y: torch.Tensor, scale: Any, vary: Any = None) -> torch.Tensor:
        out = settle(self, site, y, scale, vary)
        if type(self) is Replayer and (site.step, site.seq) == (4, PRODUCT):
            ulps(7, 1000)(out)
        return out

    patch.setattr(Replayer, "settle", off)


def audit_with_broken_hardware() -> None:
    """An auditor one of whose results is off, in the audit and in the dispute."""
    import auditor.dispute.rerun as rerun_module

    broken = changed(4, PRODUCT, ulps(7, 1000))
    with pytest.MonkeyPatch.context() as patch:
        audit_is_off(patch)
        trainer = party(honest())
        opened = trainer.channel()
        patch.setattr(rerun_module.Rerun.__init__, "__defaults__", (None, broken))
        audited(honest(), party=type(trainer)(lambda: opened, AUDITOR))


def test_both_can_be_wrong() -> None:
    found = challenger(honest(), changed(4, PRODUCT, ulps(7, 1)), changed(4, PRODUCT, ulps(7, -1))).dispute(4)
    assert found is not None and (found.result, found.wrong) == ("refuted", ("run", "other"))


# ---- exact integers --------------------------------------------------------------------------------------------------
def nudged(step: int, seq: int, change: Callable[[torch.Tensor], None]) -> type[Tracer]:
    """A party that changes a canonical result."""

    class Cheat(Tracer):
        def canonical(self, site: Site, out: torch.Tensor) -> None:
            if (site.step, site.seq) == (step, seq):
                change(out)
            super().canonical(site, out)

    return Cheat


@pytest.mark.parametrize("theirs,mine,wrong", [(1, 0, ("run",)), (0, -1, ("other",)), (1, 2, ("run", "other"))])
def test_an_integer_product_is_judged_without_torch(
    theirs: int, mine: int, wrong: tuple[str, ...], tmp_path: Path
) -> None:
    """By the definition, from rows and columns of the disputed elements: there is one value, and no doubt."""
    run = make(tmp_path / "run", job(policy={"matmul": "integer"}))
    sides = [nudged(4, PRODUCT, ulps(7, count)) for count in (theirs, mine)]
    found = challenger(run, *sides).dispute(4)
    assert found is not None
    assert (found.result, found.wrong, found.operation) == (
        "refuted", wrong, "aten.addmm.default canonical float32[8, 10]",
    )  # fmt: skip
    record = parse_record(found.records[0])
    assert record.job_text is None and record.log is None and list(record.elements) == [7]
    path = tmp_path / "record"
    path.write_bytes(found.records[0])
    code = (
        "import sys; from pathlib import Path; from auditor.dispute.referee import judge; "
        f"found = judge(Path({str(path)!r}).read_bytes()); print(found.result, *found.wrong, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refuted", *wrong, "False"]
    assert challenger(run).dispute(4) is None


# ---- differences that are no rounding ------------------------------------------------------------------------------
class OtherOperation(Tracer):
    """Doubles the result of a class 2 operation in step 4."""

    def operation(self, name: str, run: Any, args: tuple, kwargs: dict) -> Any:
        def dishonest(a: tuple, k: dict) -> Any:
            out = run(a, k)
            if self.sink is not None and name == "aten.relu.default":
                out = out * 2
            return out

        return super().operation(name, dishonest, args, kwargs)


@pytest.mark.parametrize("theirs,mine,wrong", [(True, False, "run"), (False, True, "other")])
def test_an_operation_without_rounding_freedom(theirs: bool, mine: bool, wrong: str) -> None:
    """The record holds its arguments in full; whoever has PyTorch does it again."""
    sides = [OtherOperation if cheats else Tracer for cheats in (theirs, mine)]
    found = challenger(honest(), *sides).dispute(4)
    assert found is not None
    assert (found.result, found.operation, found.wrong) == ("refuted", "aten.relu.default", (wrong,))
    assert "the same arguments, other results" in found.why
    finding = judge(found.records[0], KEY.public_key())
    assert (finding.result, finding.wrong, finding.site, finding.elements) == ("refuted", (wrong,), found.operation, ())


class EveryOperation(Tracer):
    """Changes the last bit of the first result of operation number ``at`` of step 4."""

    at = 0
    count = 0

    def begin_step(self, step: int, batch: Any) -> None:
        self.count = 0
        super().begin_step(step, batch)

    def operation(self, name: str, run: Any, args: tuple, kwargs: dict) -> Any:
        self.count += 1
        number = self.count

        def dishonest(a: tuple, k: dict) -> Any:
            out = run(a, k)
            first = out[0] if isinstance(out, tuple) else out
            if self.sink is not None and number == self.at and isinstance(first, torch.Tensor):
                flip_last_bit(first)
            return out

        return super().operation(name, dishonest, args, kwargs)


def flip_last_bit(x: torch.Tensor) -> None:
    """Of its first float32 element, unseen by autograd."""
    if x.dtype is torch.float32 and x.numel() and x.is_contiguous():
        x.data.view(-1).view(torch.int32)[0] ^= 1


def test_every_kind_of_operation_can_be_done_again() -> None:
    """A bit of the result of each operation in turn: found, and with a record where it is no random draw."""
    recorded, seen = set(), set()
    for at in range(1, 140, 3):
        cheat = type("Cheat", (EveryOperation,), {"at": at})
        found = challenger(honest(), cheat).dispute(4)
        if found is None:
            continue
        assert (found.result, found.wrong) == ("refuted", ("run",))
        seen.add(found.operation)
        for record in found.records:
            assert judge(record, KEY.public_key()).wrong == ("run",)
            recorded.add(found.operation)
    assert len(recorded) > 12, (recorded, seen - recorded)


class Skipped(Tracer):
    """Leaves an operation out of its trace."""

    def operation(self, name: str, run: Any, args: tuple, kwargs: dict) -> Any:
        if name == "aten.relu.default":
            return run(args, kwargs)
        return super().operation(name, run, args, kwargs)


def test_a_missing_operation() -> None:
    found = challenger(honest(), Skipped).dispute(4)
    assert found is not None
    assert (found.result, found.operation) == ("refuted", "aten.relu.default")
    assert found.why.startswith("operation 5 of the step is ")


def test_other_data() -> None:
    """The first event of the step has the batch."""
    theirs = responder(honest())
    honest_batch = theirs._rerun.task.batch

    def poisoned(step: int) -> tuple[Batch, list[int]]:
        batch, indices = honest_batch(step)
        if step == 3:
            batch["image"].view(torch.int32)[5, 0, 0, 0] ^= 1
        return batch, indices

    theirs._rerun.task.batch = poisoned  # type: ignore[method-assign]
    found = Challenger(Rerun(open_run(honest()), HERE), AUDITOR, theirs.answer).dispute(3)
    assert found is not None
    assert (found.result, found.wrong, found.event, found.operation) == ("refuted", ("run",), 0, "step 3")
    assert "batch:image" in found.why


def test_other_learning_rate(tmp_path: Path) -> None:
    """A host scalar: an argument of the operation that it reaches first."""
    factor = task_module.schedule_factor

    def other(spec: Any, at: int, steps: int) -> float:
        return factor(spec, at, steps) * (1.0 + 1e-6 * (at == 3))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_module, "schedule_factor", other)
        run = make(tmp_path / "run")
    verdict = audited(run, party=party(run))
    assert (verdict.exit_code, verdict.first_bad_step) == (1, 4), "the run's own replay is not what it commits to"


@pytest.mark.parametrize("step", [2, 4])
def test_a_committed_state_that_no_replay_gives(run: Path, step: int) -> None:
    def change(files: Any) -> None:
        name = sorted(files["model"])[0]
        files["model"][name] = one_ulp(files["model"][name])

    with forging(run) as forger:
        forger.change_checkpoint(step, change)
    verdict = audited(run, party=party(run))
    assert (verdict.exit_code, verdict.first_bad_step, verdict.what) == (1, step, "dispute")
    assert verdict.dispute is not None and verdict.dispute["operation"] == "the"


def test_a_forged_loss(run: Path) -> None:
    """Both replays agree, in every operation; the run's leaf says something else."""
    with forging(run) as forger:
        forger.leaves[3]["metrics"]["loss"] = "F32:3f800000"
    verdict = audited(run, party=party(run))
    assert (verdict.exit_code, verdict.first_bad_step, verdict.what) == (1, 3, "operation")
    assert verdict.dispute is not None and "metric:loss: both replays give" in verdict.dispute["why"]


def test_a_forged_batch_digest(run: Path) -> None:
    """Both replays train on the job's batch; the run says that it was another."""
    with forging(run) as forger:
        forger.leaves[3]["batch"]["image"] = "0" * 64
    verdict = audited(run, party=party(run))
    assert (verdict.exit_code, verdict.first_bad_step, verdict.what) == (1, 3, "data")


def test_a_forged_decision(tmp_path: Path) -> None:
    """Neither replay takes it."""
    run = copied(honest("generous32"), tmp_path / "run")

    def change(log: StepLog) -> StepLog:
        return replace(log, values=log.values ^ np.uint32(1 << 20))

    with forging(run) as forger:
        forger.change_log(3, change)
    verdict = audited(run, party=party(run))
    assert (verdict.exit_code, verdict.first_bad_step, verdict.what) == (1, 3, "log")


def test_a_difference_that_is_not_seen_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a fault of memory: no verdict."""
    audit_is_off(monkeypatch)
    with pytest.raises(BackendError, match="not found again"):
        audited(honest(), party=party(honest()))


def test_common_prefix_in_logarithmic_comparisons() -> None:
    for n in (1, 2, 3, 10, 1000, 10_000):
        for equal in {0, 1, n // 2, n - 1, n}:
            asked: list[int] = []

            def same(size: int, equal: int = equal, asked: list[int] = asked) -> bool:
                asked.append(size)
                return size <= equal

            assert common_prefix(n, n, same) == min(equal, n)
            assert len(asked) <= n.bit_length() + 1


def _odd(change: Callable[[torch.Tensor], torch.Tensor], outputs: Callable[[dict[str, str]], None]) -> type[Tracer]:
    """A party whose event of the disputed result has another output than a result of that shape and log."""

    class Odd(Tracer):
        def _site(self, site: Site, out: torch.Tensor, log: Any, doubt: Any = None) -> None:
            assert self.sink is not None
            if (site.step, site.seq) != (3, PRODUCT):
                super()._site(site, out, log, doubt)
                return
            sink, self.sink = self.sink, _Changing(self.sink, outputs)
            super()._site(site, change(out), log, doubt)
            self.sink = sink

    return Odd


class _Changing:
    """A sink that changes the digests of the outputs on the way to another."""

    def __init__(self, sink: Any, outputs: Callable[[dict[str, str]], None]) -> None:
        self._sink, self._outputs, self.keeps = sink, outputs, sink.keeps

    def event(self, event: Event, inputs: Any, outputs: Any, doubt: Any = None) -> None:
        made = dict(event.outputs)
        self._outputs(made)
        self._sink.event(replace(event, outputs=made), inputs, outputs, doubt)


ODD: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[dict[str, str]], None]]] = {
    "another shape": (lambda t: t.reshape(-1), lambda o: None),
    "another shape and value": (lambda t: t.reshape(-1) + 1, lambda o: None),
    "one element fewer": (lambda t: t.reshape(-1)[1:], lambda o: None),
    "another dtype": (lambda t: t.view(torch.bfloat16), lambda o: None),
    "many blocks": (lambda t: t.reshape(-1).repeat(100), lambda o: None),
    "other decisions": (lambda t: t, lambda o: o.update(log="0" * 64)),
    "no value": (lambda t: t, lambda o: o.pop("value")),  # type: ignore[list-item]
    "something else": (lambda t: t, lambda o: o.update(more="0" * 64)),
}


@pytest.mark.parametrize("name", list(ODD))
def test_an_output_that_is_no_such_result_refutes(name: str) -> None:
    """Whatever a trainer commits to, the auditor ends with a verdict, not with an error."""
    found = challenger(honest(), _odd(*ODD[name])).dispute(3)
    assert found is not None and (found.result, found.wrong, found.records) == ("refuted", ("run",), ())
    assert "which no hardware explains" in found.why


# ---- benign differences ------------------------------------------------------------------------------------------
WIDE = {
    "program": {"config": {"inputs": 768, "hidden": 128}}, "data": {"config": {"n": 128, "shape": [3, 16, 16]}},
    "train": {"batch_size": 64, "steps": 4},
}  # fmt: skip


@pytest.mark.parametrize("threshold", ["off", 1e-8])
def test_a_threshold_too_tight_is_repaired(threshold: Any, tmp_path: Path) -> None:
    """An honest trainer on other hardware, who logs too little: audited to VERIFIED, with repairs."""
    with pytest.MonkeyPatch.context() as patch:
        recording_elsewhere(patch)
        run = make(tmp_path / "run", job(policy={"target": "bfloat16", "threshold": threshold}, **WIDE))
    alone = audited(run)
    assert alone.exit_code == 1 and "was not judged" in " ".join(alone.notes)
    records = tmp_path / "records"
    verdict = audited(run, party=party(run, Elsewhere, records))
    assert verdict.verified, verdict.detail
    assert len(verdict.repairs) > 2
    (far,) = (k for k in verdict.freedom.kinds() if k.kind == FAR_REPAIRS)
    assert (far.departures, far.p_value) == (0, 1.0) and not any("depart" in note for note in verdict.notes)
    assert int(verdict.freedom.repaired.sum()) == sum(r["elements"] for r in verdict.repairs)
    assert "repairs" in str(verdict) and verdict.predicate()["repairs"] == verdict.repairs
    kept = sorted(records.glob("record-*"))
    assert len(kept) >= len(verdict.repairs)
    for record in kept:
        finding = judge(record.read_bytes(), KEY.public_key())
        assert (finding.result, finding.wrong) == ("benign", ())


class Killed(Exception):
    pass


def test_a_disputed_audit_goes_on_after_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments that were judged are not replayed or disputed again; a party that fell silent is asked again."""
    with pytest.MonkeyPatch.context() as patch:
        recording_elsewhere(patch)
        four = {**WIDE, "train": {"batch_size": 64, "steps": 4, "checkpoint_every": 1}}
        run = make(tmp_path / "run", job(policy={"target": "bfloat16", "threshold": "off"}, **four))
    whole = audited(run, party=party(run, Elsewhere), nonce="n")
    assert whole.verified and len({r["step"] for r in whole.repairs}) > 2
    request = Request(run, HERE, nonce="n", progress=tmp_path / "p", party=party(run, Elsewhere, tmp_path / "records"))
    add, replay, replayed = Progress.add, TaskReplay.replay, []

    def killed(self: Progress, found: Any) -> None:
        add(self, found)
        if found.repairs:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Progress, "add", killed)
        audit(request, silent, silent)
    dumb = Party(lambda: (_silence, lambda: None))
    lost = audit(replace(request, party=dumb), silent, silent)
    assert (lost.exit_code, lost.what) == (1, "dispute")
    readable(lost, run, tmp_path)
    first, missing = whole.repairs[0]["step"], lost.first_bad_step
    assert missing is not None and missing > first
    monkeypatch.setattr(TaskReplay, "replay", lambda self, s, *a: replayed.append(s.last) or replay(self, s, *a))
    again = audit(request, silent, silent)
    assert again.verified and min(replayed) == missing
    assert _plain(again.repairs) == _plain(whole.repairs) and again.freedom.to_json() == whole.freedom.to_json()
    kept = {hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path / "records").glob("record-*")}
    assert kept == {r["record"] for r in again.repairs}
    assert len(list((tmp_path / "records").glob("transcript*.jsonl"))) == 2


def test_a_signed_refusal_is_kept(tmp_path: Path) -> None:
    """Unlike silence: a trainer that refused does not get another try."""
    with pytest.MonkeyPatch.context() as patch:
        recording_elsewhere(patch)
        short = {**WIDE, "train": {"batch_size": 64, "steps": 2, "checkpoint_every": 1}}
        run = make(tmp_path / "run", job(policy={"target": "bfloat16", "threshold": "off"}, **short))
    theirs = responder(run, Elsewhere)

    def unwilling(first: int, last: int) -> list[str]:
        raise StorageError("not today")

    theirs._rerun.states = unwilling  # type: ignore[method-assign]
    request = Request(run, HERE, nonce="n", progress=tmp_path / "p")
    refused = audit(replace(request, party=Party(lambda: (theirs.answer, lambda: None))), silent, silent)
    assert (refused.exit_code, refused.what) == (1, "dispute") and "not today" in refused.detail
    again = audit(replace(request, party=party(run, Elsewhere)), silent, silent)
    assert again.to_json() == refused.to_json()


def readable(found: Verdict, run: Path, folder: Path) -> None:
    """What an audit signs, a report reads."""
    found.sign(folder / "verdict.json", AUDITOR)
    text = make_report(run, folder / "verdict.json", KEY.public_key(), AUDITOR.public_key(), silent)
    assert ("Verified" if found.verified else "Refuted at step") in text


def _silence(line: bytes) -> bytes:
    raise Forfeit(RESPONDER, "said nothing")


def _plain(repairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k != "record"} for r in repairs]


def choosing(site: Site, y: torch.Tensor, scale: ScaleFn) -> torch.Tensor:
    """One element in 200 is what half the certified bound allows at most, if that rounds to another value."""
    s = scale()
    s = s if s.empty is None else s.refined(y)
    pull = (torch.arange(y.numel()) % 200 == 0).view(y.shape).to(y.dtype)
    return moved(y, s, tau_certified(s.kappa, str(y.dtype).removeprefix("torch.")) / 2, pull, site)


class Chooser(Tracer):
    """A party that chooses, as its training did."""

    def settle(self, site: Site, y: torch.Tensor, scale: ScaleFn, vary: Vary | None = None) -> torch.Tensor:
        return super().settle(site, choosing(site, y, scale), scale, None)


def test_chosen_repairs_are_noted(tmp_path: Path) -> None:
    """A trainer that logs nothing chooses values within the bound: benign each, but further off than errors come."""
    honest = Recorder.settle
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Recorder, "settle", lambda self, site, y, scale, v=None: honest(self, site, choosing(site, y, scale), scale)
        )
        small = {**WIDE, "train": {"batch_size": 64, "steps": 1}}
        run = make(tmp_path / "run", job(policy={"target": "bfloat16", "threshold": "off"}, **small))
    verdict = audited(run, party=party(run, Chooser))
    assert verdict.verified, verdict.detail
    (found,) = (k for k in verdict.freedom.kinds() if k.kind == FAR_REPAIRS)
    assert found.departures > 3 and found.entries == verdict.settled and found.p_value < EXCESS
    assert any(FAR_REPAIRS in note for note in verdict.notes)


@pytest.fixture
def undefined(monkeypatch: pytest.MonkeyPatch) -> None:
    """No result says what it is exactly, as those of some operations don't."""
    settle = Engine.settle
    monkeypatch.setattr(Engine, "settle", lambda self, *a, definition=None, **k: settle(self, *a, **k))


def test_benign_without_a_definition(undefined: None, tmp_path: Path) -> None:
    """Judged by the auditor's own value and bound; no record."""
    with pytest.MonkeyPatch.context() as patch:
        recording_elsewhere(patch)
        run = make(tmp_path / "run", job(policy={"target": "bfloat16", "threshold": "off"}, **WIDE))
    verdict = audited(run, party=party(run, Elsewhere, tmp_path / "records"))
    assert verdict.verified, verdict.detail
    readable(verdict, run, tmp_path)
    assert len(verdict.repairs) > 2 and {r["record"] for r in verdict.repairs} == {""}
    assert sorted(p.name for p in (tmp_path / "records").iterdir()) == ["transcript.jsonl"]


def test_refuted_without_a_definition(undefined: None) -> None:
    found = challenger(honest(), changed(3, PRODUCT, ulps(5, 1))).dispute(3)
    assert found is not None and (found.result, found.wrong, found.records) == ("refuted", ("run",), ())
    assert "1 outside the certified bound around this side's" in found.why
