"""Replaying segments in a worker's process, which opens the run itself (protocol §7)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from auditor.audit.segment import Found, TaskReplay
from auditor.evidence import open_run
from auditor.evidence.segments import Segment
from vtrain.commit import keys
from vtrain.engine.backend import environment
from vtrain.errors import MalformedRunError, UnsupportedError
from vtrain.store import canonical


class Work(NamedTuple):
    """What a worker opens; paths are absolute, as workers may have another working directory.

    Attributes:
        run, directory: as the auditor's own; a worker on another machine must see the same files there.
        key_pem: the trainer's public key, if known.
        note: the last head of the run that was checked.
        nonce: the auditor's.
        environment: of the auditor; results of another one would be reported as its own.
    """

    run: Path
    directory: Path | None
    key_pem: str | None
    note: str
    nonce: str
    environment: dict[str, Any]


_kept: tuple[Work, TaskReplay] | None = None


def replay_in_worker(segment: Segment, work: Work) -> Found:
    """Replay a segment of a run that this process opens itself, once.

    Raises:
        MalformedRunError: it is not the run that the auditor checked, or as ``TaskReplay.replay``.
        UnsupportedError: this process's arithmetic or data are not the auditor's.
    """
    global _kept
    if _kept is None or _kept[0] != work:
        _kept = None
        _kept = (work, _open(work))
    return _kept[1].replay(segment, lambda step: None)


def _open(work: Work) -> TaskReplay:
    torch.set_num_threads(work.environment["threads"])
    mine = environment()
    if differ := list(canonical.differences(mine, work.environment)):
        what = "; ".join(f"{'.'.join(k)} is {a or 'missing'}, the auditor's {b or 'missing'}" for k, a, b in differ)
        raise UnsupportedError(f"a worker is not like the auditor's machine, which the verdict names: {what}"[:2000])
    evidence = open_run(work.run, None if work.key_pem is None else keys.load_public(work.key_pem))
    if evidence.notes[-1] != work.note:  # the head covers the job and every leaf
        raise MalformedRunError(f"{work.run}: changed while it was audited: another last head")
    return TaskReplay(evidence, work.directory, work.nonce)
