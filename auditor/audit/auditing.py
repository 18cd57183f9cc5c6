"""Auditing the run of a job: choose segments, replay each from the checkpoint before it, judge (protocol §7)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from auditor.audit.executors import Crew, Processes, Replays
from auditor.audit.listener import Counts
from auditor.audit.programs import check_program
from auditor.audit.progress import Progress, from_json
from auditor.audit.segment import Bench, Found, Work
from auditor.dispute.judging import Party, judging
from auditor.evidence import Evidence, open_run
from auditor.verdict import Verdict
from auditor.verdict.draw import (
    Confidence,
    Segment,
    check_nonce,
    chosen,
    drawn,
    extend,
    sample,
    segments,
    size_for_budget,
    size_for_confidence,
)
from auditor.verdict.verdict import begin
from vtrain.commit import heads, keys
from vtrain.engine.backend import environment
from vtrain.engine.task import check_data
from vtrain.errors import JobError, Refuted, UsageError
from vtrain.job import Job, job_digest
from vtrain.store import canonical
from vtrain.store.atomic import storage_errors
from vtrain.store.objects import inside

__all__ = ["Found", "Request", "Segment", "audit", "chosen", "sample", "segments"]

OnStep = Callable[[int], None]


@dataclass
class Request:
    """What to audit and how.

    Attributes:
        run: the run directory.
        directory: what the program's path is relative to. Without a ``job`` only files below it are run; None for
            none.
        job: the client's own job, to compare; None trusts the run's.
        key: the trainer's public key, if known.
        steps: first and last step to replay; None for all.
        sampled: segments to draw at random; 0 for none.
        nonce: the auditor's, for the draw; made where it is empty.
        jobs: segments to replay at a time, by as many worker processes; 1 replays in this process. With ``ray``, 0 is
            as many as the cluster has room for.
        party: the trainer, to dispute differences with; None takes a difference for a refutation.
        budget: draw as many segments as have at most this share of all steps, whichever are drawn; at least one.
        confidence: draw as many segments as it takes to be so sure.
        threads: of each replay; 0 leaves this process's number. Results can depend on it, so it is in the verdict, and
            the same for all executors.
        ray: address of a Ray cluster whose workers replay, or ``local``; empty for none.
        progress: a file outside the run that keeps what was found, and from which a killed audit goes on.
    """

    run: Path
    directory: Path | None
    job: Job | None = None
    key: Ed25519PublicKey | None = None
    steps: tuple[int, int] | None = None
    sampled: int = 0
    nonce: str = ""
    jobs: int = 1
    party: Party | None = None
    budget: Fraction | None = None
    confidence: Confidence | None = None
    threads: int = 0
    ray: str = ""
    progress: Path | None = None

    def check(self) -> None:
        """Check what needs no run.

        Raises:
            UsageError: options exclude each other, or are out of range.
        """
        if self.jobs < (0 if self.ray else 1):
            raise UsageError(f"jobs is {self.jobs}; want 1 or more")
        if self.threads < 0:
            raise UsageError(f"threads is {self.threads}; want 1 or more, or 0 for this process's")
        check_nonce(self.nonce)
        ways = {"steps": self.steps, "sample": self.sampled or None, "budget": self.budget}
        given = [name for name, value in {**ways, "confidence": self.confidence}.items() if value is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} exclude each other: each says which segments to replay")
        if self.progress is not None and inside(self.progress, self.run):
            raise UsageError(f"{self.progress}: is inside the run, which an audit never modifies")


def audit(request: Request, on_step: OnStep, on_plan: Callable[[int], None]) -> Verdict:
    """Audit a run; it is never modified.

    The verdict depends on the run, the nonce, the request and this machine; not on who replays, in which order, how
    often it was killed, or when. Segments after the first one refuted, in the run's order, don't count.

    Args:
        request: what and how.
        on_step: hears of every step replayed.
        on_plan: hears how many steps there will be.

    Raises:
        MalformedRunError: the run is incomplete or malformed; no verdict.
        UnsupportedError: this machine can't replay it; a WorkerError where its workers die.
        UsageError: the request makes no sense; a ProgressError where the progress is another audit's.
        StorageError: a file can't be read, or the progress not written.
    """
    request.check()
    with _threads(request.threads):
        with storage_errors(request.run):
            evidence = open_run(request.run, request.key)
            evidence.require_complete()
        verdict = begin(evidence, environment())
        verdict.job_pinned = request.job is not None
        if request.job is not None and not _same_job(request.job, evidence, verdict):
            return verdict
        if request.job is None and isinstance(evidence.job, Job):
            check_program(evidence.job.program, request.directory, request.run)
        with ExitStack() as stack:
            progress = None if request.progress is None else stack.enter_context(Progress(request.progress))
            _replay(request, evidence, verdict, progress, on_step, on_plan)
    return verdict


def _replay(
    request: Request, evidence: Evidence, verdict: Verdict, progress: Progress | None, on_step: OnStep,
    on_plan: Callable[[int], None],
) -> None:  # fmt: skip
    nonce = _nonce(request, progress)
    plan = _plan(request, evidence, verdict, nonce)
    bench = Bench(evidence, request.directory, nonce)
    check_data(bench.task)
    verdict.program = bench.task.code.to_json()
    known: dict[Segment, Found] = {}
    if progress is not None:
        progress.begin(_header(request, evidence, verdict, nonce))
        known = {segment: from_json(value) for segment, value in progress.found.items()}
    missing = _missing(plan, known)
    on_plan(sum(s.last - s.start for s in missing))
    again = lambda segment, repairs: bench.replay(segment, lambda step: None, repairs)  # noqa: E731
    done: list[Found] = []
    with ExitStack() as stack:
        judge = stack.enter_context(judging(evidence, request.directory, request.party, again))
        keep = _Keeper(progress)
        crew = _crew(request, stack) if missing else None
        replays = stack.enter_context(closing(_replays(request, bench, crew, missing, keep, on_step, nonce)))
        for segment in plan:
            if segment in known:
                done.append(known[segment])
            else:
                done.append(judge(next(replays)))
                keep(done[-1])
            if done[-1].difference is not None:
                break
    _judge(verdict, done)
    if bench.job.data.name == "program":
        verdict.doubt_data()
    kind = evidence.promise
    if not verdict.verified and request.party is None and kind != "certified":
        verdict.notes.append(_NOT_JUDGED.format(kind=kind))


_NOT_JUDGED = (
    "thresholds are {kind}, so that honest hardware may stray: the difference was not judged; dispute it with the "
    "trainer (--dispute)"
)


class _Keeper:
    """Keeps what was found in each segment, once; but not that a trainer did not answer, who may be asked again."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def __call__(self, found: Found) -> None:
        if self._progress is not None and found.segment not in self._progress.found and not found.unanswered:
            self._progress.add(found)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _nonce(request: Request, progress: Progress | None) -> str:
    """The auditor's; one that was made is kept in the progress, so that the draw stays what it was."""
    begun = None if progress is None or progress.header is None else progress.header.get("nonce")
    return request.nonce or (begun if isinstance(begun, str) else "") or os.urandom(16).hex()


def _plan(request: Request, evidence: Evidence, verdict: Verdict, nonce: str) -> list[Segment]:
    everything = segments(evidence)
    if request.steps is not None:
        return chosen(everything, *request.steps)
    count = request.sampled
    if request.budget is not None:
        count = size_for_budget(everything, request.budget)
    elif request.confidence is not None:
        count = size_for_confidence(len(everything), request.confidence)
    if not count:
        return everything
    verdict.drawn = drawn(len(everything), count, evidence.head_digest, nonce)
    verdict.sampled, verdict.nonce = count, nonce
    verdict.notes.append(f"segments drawn with nonce {nonce}")
    return [everything[number] for number in verdict.drawn]


def _header(request: Request, evidence: Evidence, verdict: Verdict, nonce: str) -> dict[str, Any]:
    """What a progress file is bound to: whatever the verdict depends on."""
    mine = b"" if request.job is None else job_digest(request.job.canonical())
    return {
        "job": heads.job_text(evidence.digest),
        "run": heads.run_text(evidence.run),
        "head": evidence.notes[-1],
        "nonce": nonce,
        "environment": verdict.environment,
        "request": {
            "steps": None if request.steps is None else list(request.steps),
            "drawn": verdict.drawn,
            "job": mine.hex(),
            "key": "" if request.key is None else keys.key_id(request.key),
            "disputed": request.party is not None,
        },
    }


def _missing(plan: Sequence[Segment], known: dict[Segment, Found]) -> list[Segment]:
    """Segments still to be replayed: none after a difference that is known already."""
    missing = []
    for segment in plan:
        if segment not in known:
            missing.append(segment)
        elif known[segment].difference is not None:
            break
    return missing


def _replays(
    request: Request, bench: Bench, crew: Crew | None, plan: Sequence[Segment], keep: Callable[[Found], None],
    on_step: OnStep, nonce: str,
) -> Generator[Found, None, None]:  # fmt: skip
    """What is found in each segment, in their order, by whoever replays."""
    if crew is None:
        for segment in plan:
            yield bench.replay(segment, on_step)
        return
    evidence = bench.evidence
    pem = None if request.key is None else keys.public_text(request.key)
    directory = (request.directory or Path()).absolute()
    work = Work(evidence.layout.root.absolute(), directory, pem, evidence.notes[-1], nonce, environment())
    with closing(Replays(crew, plan, work, keep).results()) as results:
        for found in results:
            for step in range(found.segment.first, found.segment.last + 1):
                on_step(step)
            yield found


def _crew(request: Request, stack: ExitStack) -> Crew | None:
    if request.ray:
        from auditor.audit.cluster import ray_crew

        return stack.enter_context(ray_crew(request.ray, request.jobs, torch.get_num_threads()))
    return None if request.jobs == 1 else Processes(request.jobs)


def _judge(verdict: Verdict, done: Sequence[Found]) -> None:
    total = Counts()
    for found in done:
        total.add(found.counts)
        if found.difference is not None:
            verdict.refute(Refuted(*found.difference))
        verdict.repairs += found.repairs
        verdict.dispute = verdict.dispute or found.dispute
        end = found.segment.last if found.difference is None else found.difference[0]
        extend(verdict.replayed, (min(found.segment.first, end), end))  # it may differ on the way there
    verdict.count(total)


def _same_job(mine: Job, evidence: Evidence, verdict: Verdict) -> bool:
    """Compare the client's job with the run's, as canonical bytes, but for digests that the client left open."""
    theirs = evidence.job
    if not isinstance(theirs, Job):
        raise JobError(f"{evidence.layout.root}: was recorded around a loop, not trained from a job file")
    for path, wanted, found in canonical.differences(json.loads(mine.canonical()), json.loads(theirs.canonical())):
        if _is_open(path, wanted):
            continue
        what = f"{'.'.join(path)} is {found or 'missing'} in the run, {wanted or 'missing'} in the client's job"
        verdict.refute(Refuted(0, "job", what))
        return False
    return True


# What a client may leave for the trainer to fill in, by writing nothing there.
_OPEN_DIGESTS = (("program", "sha256"), ("program", "distribution"), ("data", "digest"), ("optable",))
_OPEN_FILES = (("program", "files"), ("program", "weights"))


def _is_open(path: tuple[str, ...], wanted: str) -> bool:
    """Whether the client left this open; what the run says of the program, the auditor's own copy is held to.

    Canonical bytes leave an empty list of files and an empty distribution out, and a client who lists one file leaves
    the others to the trainer; so a missing key is open as well.
    """
    return wanted in ("", '""') and (path in _OPEN_DIGESTS or path[:2] in _OPEN_FILES)
