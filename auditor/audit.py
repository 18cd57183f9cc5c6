"""Auditing the run of a job: choose segments, replay each from the checkpoint before it, judge (protocol §7)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from auditor.dispute.disputing import Party, judging
from auditor.evidence import Evidence, open_run
from auditor.programs import check_program
from auditor.replayer import Counts, Repairs, Replayer
from auditor.replaying import check_table
from auditor.verdict import Verdict, begin
from vtrain.engine import state
from vtrain.engine.backend import environment
from vtrain.engine.loop import Loop
from vtrain.engine.task import Task, check_data
from vtrain.errors import CheckpointError, JobError, MalformedRunError, Refuted, UsageError
from vtrain.job import Job
from vtrain.random import StreamKey, permutation


@dataclass(frozen=True)
class Segment:
    """Steps to replay from a checkpoint.

    Attributes:
        start: step of the checkpoint to begin from; -1 begins with the initialisation.
        first: first step to compare.
        last: last step to compare.
    """

    start: int
    first: int
    last: int


@dataclass
class Found:
    """What replaying a segment found.

    Attributes:
        segment: which one.
        counts: what was counted.
        difference: step, what and detail of the first difference, if there was one.
        repairs: differences that disputes found to be benign, as the verdict lists them.
        dispute: how the difference was judged, as the verdict has it; None where nobody was asked.
    """

    segment: Segment
    counts: Counts = field(default_factory=Counts)
    difference: tuple[int, str, str] | None = None
    repairs: list[dict[str, Any]] = field(default_factory=list)
    dispute: dict[str, Any] | None = None


def segments(evidence: Evidence) -> list[Segment]:
    """All segments of a run: the initialisation, then one between each two checkpoints."""
    ends = evidence.checkpoints
    return [Segment(-1, 0, 0)] + [Segment(a, a + 1, b) for a, b in zip(ends, ends[1:], strict=False)]


def chosen(all_segments: Sequence[Segment], first: int, last: int) -> list[Segment]:
    """The segments that cover steps ``first`` to ``last``, cut to them.

    Raises:
        UsageError: the run has no such steps.
    """
    end = all_segments[-1].last
    if not 0 <= first <= last <= end:
        raise UsageError(f"steps {first}:{last}; want 0 <= A <= B <= {end}")
    return [
        Segment(s.start, max(s.first, first), min(s.last, last))
        for s in all_segments
        if s.first <= last and s.last >= first
    ]


def sample(all_segments: Sequence[Segment], count: int, note: str, nonce: str) -> list[Segment]:
    """``count`` segments at random, from the signed head and the auditor's nonce: nobody could foresee the draw.

    The order is a Philox permutation under the seed SHA-256("vtrain-sample-v1\\n" + nonce + "\\n" + note), its first 16
    bytes as a little-endian integer; so anyone who knows both can repeat it.

    Raises:
        UsageError: fewer than one, or more than there are.
    """
    if not 1 <= count <= len(all_segments):
        raise UsageError(f"sample of {count} segments; want 1 to {len(all_segments)}")
    digest = hashlib.sha256(f"vtrain-sample-v1\n{nonce}\n{note}".encode()).digest()
    order = permutation(StreamKey(int.from_bytes(digest[:16], "little"), "audit-sample"), 0, 0, len(all_segments))
    return [all_segments[i] for i in sorted(order[:count].tolist())]


class _Bench:
    """One process's task and evidence, kept between segments."""

    def __init__(self, evidence: Evidence, directory: Path | None) -> None:
        self.evidence = evidence
        job = evidence.job
        if not isinstance(job, Job):
            raise UsageError(
                f"{evidence.layout.root}: was recorded around a loop; replay it there, with auditor.replay(...)"
            )
        check_table(job.optable)
        self.job = job
        self.task = Task(job, directory or Path())

    def replay(self, segment: Segment, on_step: Callable[[int], None], repairs: Repairs | None = None) -> Found:
        """Replay one segment, taking the run's values in ``repairs``.

        Raises:
            MalformedRunError: what the run holds there is not what it commits to.
        """
        found = Found(segment)
        replayer = Replayer(self.evidence, self.job.policy.scalar_ulps, repairs)
        found.counts = replayer.counts
        loop = Loop(replayer, self.job.policy, self.job.train.seed)
        try:
            self._steps(loop, segment, on_step)
        except Refuted as difference:
            found.difference = (difference.step, difference.what, difference.detail)
        return found

    def _steps(self, loop: Loop, segment: Segment, on_step: Callable[[int], None]) -> None:
        loop.initialise(self.task.model, self.task.optimizer, count=segment.start < 0)
        if segment.start < 0:
            on_step(0)
        else:
            files = self.evidence.checkpoint(segment.start, _state_bound(loop.model))
            try:
                state.restore(files, loop.model, loop.optimizer)
            except CheckpointError as error:  # it is what the trainer committed to, and not of the job's model
                raise Refuted(segment.start, "state", str(error)) from error
            loop.resume_at(segment.start)
        for step in range(max(1, segment.start + 1), segment.last + 1):
            self.task.run_step(loop, step)
            on_step(step)


def _state_bound(model: torch.nn.Module) -> int:
    """Bytes that no file of a checkpoint of this model has: room for an optimizer of many tensors, and a header."""
    tensors = [*model.parameters(), *model.buffers()]
    return 16 * sum(t.numel() * t.element_size() for t in tensors) + (64 << 20)


class _Work(NamedTuple):
    """What a worker process opens; ``note`` is the last head of the run that was checked."""

    run: Path
    directory: Path | None
    key_pem: str | None
    threads: int
    note: str


_bench: _Bench | None = None


def _work(segment: Segment, work: _Work) -> Found:
    global _bench
    if _bench is None:
        from vtrain.commit import keys

        torch.set_num_threads(work.threads)
        evidence = open_run(work.run, None if work.key_pem is None else keys.load_public(work.key_pem))
        if evidence.notes[-1] != work.note:  # the head covers the job and every leaf
            raise MalformedRunError(f"{work.run}: changed while it was audited: another last head")
        _bench = _Bench(evidence, work.directory)
    return _bench.replay(segment, lambda step: None)


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
        jobs: worker processes; 1 replays in this process.
        party: the trainer, to dispute differences with; None takes a difference for a refutation.
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


def audit(request: Request, on_step: Callable[[int], None], on_plan: Callable[[int], None]) -> Verdict:
    """Audit a run; it is never modified.

    Args:
        request: what and how.
        on_step: hears of every step replayed.
        on_plan: hears how many steps there will be.

    Raises:
        MalformedRunError: the run is incomplete or malformed; no verdict.
        UnsupportedError: this machine can't replay it.
        UsageError: the request makes no sense.
    """
    if request.jobs < 1:
        raise UsageError(f"jobs is {request.jobs}; want 1 or more")
    evidence = open_run(request.run, request.key)
    evidence.require_complete()
    verdict = begin(evidence, environment())
    if request.job is not None and not _same_job(request.job, evidence, verdict):
        return verdict
    if request.job is None and isinstance(evidence.job, Job):
        check_program(evidence.job.program, request.directory, request.run)
    plan = _plan(request, evidence, verdict)
    on_plan(sum(s.last - s.start for s in plan))
    done: list[Found] = []
    bench = _Bench(evidence, request.directory)
    check_data(bench.task)
    again = lambda segment, repairs: bench.replay(segment, lambda step: None, repairs)  # noqa: E731
    with judging(evidence, request.directory, request.party, again) as judge:
        if request.jobs == 1:
            for segment in plan:
                done.append(judge(bench.replay(segment, on_step)))
                if done[-1].difference:
                    break
        else:
            done = [judge(found) for found in _in_parallel(request, evidence, plan, on_step)]
    _judge(verdict, done)
    kind = bench.job.policy.parsed_threshold.kind
    if not verdict.verified and request.party is None and kind != "certified":
        verdict.notes.append(_NOT_JUDGED.format(kind=kind))
    return verdict


_NOT_JUDGED = (
    "thresholds are {kind}, so that honest hardware may stray: the difference was not judged; dispute it with the "
    "trainer (--dispute)"
)


def _plan(request: Request, evidence: Evidence, verdict: Verdict) -> list[Segment]:
    everything = segments(evidence)
    if request.sampled:
        nonce = request.nonce or os.urandom(16).hex()
        verdict.sampled = request.sampled
        verdict.notes.append(f"segments drawn with nonce {nonce}")
        return sample(everything, request.sampled, evidence.notes[-1], nonce)
    if request.steps is not None:
        return chosen(everything, *request.steps)
    return everything


def _in_parallel(
    request: Request, evidence: Evidence, plan: Sequence[Segment], on_step: Callable[[int], None]
) -> Iterator[Found]:
    from vtrain.commit import keys

    threads = max(1, (os.cpu_count() or 1) // request.jobs)
    pem = None if request.key is None else keys.public_text(request.key)
    work = _Work(request.run, request.directory, pem, threads, evidence.notes[-1])
    pool: Executor
    with ProcessPoolExecutor(request.jobs, get_context("spawn")) as pool:
        for found in pool.map(_work, plan, repeat(work)):
            for step in range(found.segment.first, found.segment.last + 1):
                on_step(step)
            yield found


def _judge(verdict: Verdict, done: Sequence[Found]) -> None:
    total = Counts()
    for found in done:
        total.add(found.counts)
        if found.difference is not None:
            verdict.refute(Refuted(*found.difference))
        verdict.repairs += found.repairs
        verdict.dispute = verdict.dispute or found.dispute
        end = found.segment.last if found.difference is None else found.difference[0]
        _extend(verdict.replayed, (min(found.segment.first, end), end))  # it may differ on the way there
    verdict.count(total)


def _extend(ranges: list[tuple[int, int]], new: tuple[int, int]) -> None:
    if ranges and ranges[-1][1] + 1 == new[0]:
        ranges[-1] = (ranges[-1][0], new[1])
    else:
        ranges.append(new)


def _same_job(mine: Job, evidence: Evidence, verdict: Verdict) -> bool:
    """Compare the client's job with the run's; digests that the client left open are not compared."""
    theirs = evidence.job
    if not isinstance(theirs, Job):
        raise JobError(f"{evidence.layout.root}: was recorded around a loop, not trained from a job file")
    for key, wanted, found in _differences(json.loads(mine.canonical()), json.loads(theirs.canonical()), ""):
        open_digest = wanted == "" and key in ("program.sha256", "data.digest", "optable")
        if not open_digest:
            verdict.refute(Refuted(0, "job", f"{key} is {found!r} in the run, {wanted!r} in the client's job"))
            return False
    return True


def _differences(mine: Any, theirs: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for key in sorted({*mine, *theirs}):
            yield from _differences(mine.get(key), theirs.get(key), f"{path}.{key}" if path else key)
    elif mine != theirs:
        yield path, mine, theirs
