"""What an audit is asked for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from auditor.audit.plan import Confidence
from auditor.verdict.draw import check_nonce
from vtrain.errors import UsageError
from vtrain.job import Job
from vtrain.store.objects import inside

if TYPE_CHECKING:
    from auditor.audit.segment import Found, TaskReplay


class DisputeHandler(Protocol):
    """The other side of a run, whom an audit can ask about a difference."""

    def judging(self, replay: TaskReplay) -> AbstractContextManager[Callable[[Found], Found]]:
        """What turns a segment's difference into a judged one, while the audit lasts.

        Args:
            replay: the audit's own.
        """


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
        party: the trainer, to dispute differences with (``auditor.dispute.during_audit.Party``); None takes a
            difference for a refutation.
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
    party: DisputeHandler | None = None
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
