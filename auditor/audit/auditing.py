"""Auditing the run of a job: choose segments, replay each from the checkpoint before it, judge (protocol §7)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from typing import Any

import torch

from auditor.audit.executors import Crew, Processes, Replays
from auditor.audit.plan import chosen, size_for_budget, size_for_confidence
from auditor.audit.programs import check_program
from auditor.audit.progress import Progress, from_json
from auditor.audit.request import Request
from auditor.audit.segment import Found, TaskReplay
from auditor.audit.worker import Work
from auditor.evidence import Evidence, open_run
from auditor.evidence.segments import Segment, segments
from auditor.verdict import Verdict
from auditor.verdict.counts import Counts
from auditor.verdict.draw import drawn, extend
from auditor.verdict.verdict import begin
from vtrain.commit import heads, keys
from vtrain.engine.backend import environment
from vtrain.errors import JobError, Refuted
from vtrain.job import Job, job_digest
from vtrain.store import canonical
from vtrain.store.atomic import storage_errors

__all__ = ["Found", "Request", "audit"]

OnStep = Callable[[int], None]


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
            _Audit(request, evidence, verdict, progress).run(on_step, on_plan)
    return verdict


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Audit:
    """One audit: its run, plan and task, opened once.

    Args:
        request: what and how, checked.
        evidence: the run.
        verdict: just begun.
        progress: what was found before; None keeps nothing.

    Raises:
        UsageError: the run has no such segments, or was recorded around a loop.
    """

    def __init__(self, request: Request, evidence: Evidence, verdict: Verdict, progress: Progress | None) -> None:
        self.request, self.evidence, self.verdict, self.progress = request, evidence, verdict, progress
        self.nonce = self._nonce()
        self.plan = self._plan()
        self.replay = TaskReplay(evidence, request.directory, self.nonce)
        verdict.program = self.replay.task.code.to_json()

    def run(self, on_step: OnStep, on_plan: Callable[[int], None]) -> None:
        """Replay what is not known yet, in the plan's order, and fill in the verdict."""
        known = self._known()
        missing = _missing(self.plan, known)
        on_plan(sum(s.last - s.start for s in missing))
        done: list[Found] = []
        with ExitStack() as stack:
            party = self.request.party
            judge = stack.enter_context(nullcontext(_as_found) if party is None else party.judging(self.replay))
            crew = self._crew(stack) if missing else None
            replays = stack.enter_context(closing(self._replays(crew, missing, on_step)))
            for segment in self.plan:
                if segment in known:
                    done.append(known[segment])
                else:
                    done.append(judge(next(replays)))
                    self._keep(done[-1])
                if done[-1].difference is not None:
                    break
        _judge(self.verdict, done)
        self._note()

    def _nonce(self) -> str:
        """The auditor's; one that was made is kept in the progress, so that the draw stays what it was."""
        header = None if self.progress is None else self.progress.header
        begun = None if header is None else header.get("nonce")
        return self.request.nonce or (begun if isinstance(begun, str) else "") or os.urandom(16).hex()

    def _plan(self) -> list[Segment]:
        everything, request, verdict = segments(self.evidence), self.request, self.verdict
        if request.steps is not None:
            return chosen(everything, *request.steps)
        count = request.sampled
        if request.budget is not None:
            count = size_for_budget(everything, request.budget)
        elif request.confidence is not None:
            count = size_for_confidence(len(everything), request.confidence)
        if not count:
            return everything
        verdict.drawn = drawn(len(everything), count, self.evidence.head_digest, self.nonce)
        verdict.sampled, verdict.nonce = count, self.nonce
        verdict.notes.append(f"segments drawn with nonce {self.nonce}")
        return [everything[number] for number in verdict.drawn]

    def _known(self) -> dict[Segment, Found]:
        """What was found before, if it was found for this very audit."""
        if self.progress is None:
            return {}
        self.progress.begin(self._header())
        return {segment: from_json(value) for segment, value in self.progress.found.items()}

    def _header(self) -> dict[str, Any]:
        """What a progress file is bound to: whatever the verdict depends on."""
        evidence, request = self.evidence, self.request
        mine = b"" if request.job is None else job_digest(request.job.canonical())
        return {
            "job": heads.job_text(evidence.digest),
            "run": heads.run_text(evidence.run),
            "head": evidence.notes[-1],
            "nonce": self.nonce,
            "environment": self.verdict.environment,
            "request": {
                "steps": None if request.steps is None else list(request.steps),
                "drawn": self.verdict.drawn,
                "job": mine.hex(),
                "key": "" if request.key is None else keys.key_id(request.key),
                "disputed": request.party is not None,
            },
        }

    def _keep(self, found: Found) -> None:
        """Keep what was found in a segment, once; but not that a trainer did not answer, who may be asked again."""
        if self.progress is not None and found.segment not in self.progress.found and not found.unanswered:
            self.progress.add(found)

    def _crew(self, stack: ExitStack) -> Crew | None:
        request = self.request
        if request.ray:
            from auditor.audit.cluster import ray_crew

            return stack.enter_context(ray_crew(request.ray, request.jobs, torch.get_num_threads()))
        return None if request.jobs == 1 else Processes(request.jobs)

    def _replays(self, crew: Crew | None, missing: Sequence[Segment], on_step: OnStep) -> Generator[Found, None, None]:
        """What is found in each segment, in their order, by whoever replays."""
        if crew is None:
            for segment in missing:
                yield self.replay.replay(segment, on_step)
            return
        with closing(Replays(crew, missing, self._work(), self._keep).results()) as results:
            for found in results:
                for step in range(found.segment.first, found.segment.last + 1):
                    on_step(step)
                yield found

    def _work(self) -> Work:
        """What workers open."""
        evidence, key = self.evidence, self.request.key
        pem = None if key is None else keys.public_text(key)
        root, directory = evidence.layout.root.absolute(), self.replay.directory.absolute()
        return Work(root, directory, pem, evidence.notes[-1], self.nonce, environment())

    def _note(self) -> None:
        """What a reader of the verdict should know besides."""
        if self.replay.job.data.name == "program":
            self.verdict.doubt()
        kind = self.evidence.promise
        if not self.verdict.verified and self.request.party is None and kind != "certified":
            self.verdict.notes.append(_NOT_JUDGED.format(kind=kind))


_NOT_JUDGED = (
    "thresholds are {kind}, so that honest hardware may stray: the difference was not judged; dispute it with the "
    "trainer (--dispute)"
)


def _as_found(found: Found) -> Found:
    """A difference is a refutation where nobody is asked about it."""
    return found


def _missing(plan: Sequence[Segment], known: dict[Segment, Found]) -> list[Segment]:
    """Segments still to be replayed: none after a difference that is known already."""
    missing = []
    for segment in plan:
        if segment not in known:
            missing.append(segment)
        elif known[segment].difference is not None:
            break
    return missing


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
