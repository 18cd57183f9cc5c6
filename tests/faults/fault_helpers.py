"""Child processes that train and are killed: forked from this one, which has everything imported."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from run_helpers import HERE, KEY, evidence_bytes, make, silent

from auditor.evidence.verify import verify
from trainer.train import resume
from vtrain.commit.statement import open_statement
from vtrain.job import Job
from vtrain.store.writer import RUN_PREDICATE


def child(
    work: Callable[[], object], kill_after: float | None = None, *, once: Callable[[], bool] = lambda: True
) -> int:
    """Do some work in a forked process, and perhaps SIGKILL it.

    Args:
        work: what to do.
        kill_after: seconds until the kill; None waits for the end.
        once: what must have come about before those seconds begin, unless the process ends first.

    Returns:
        Its exit status: 0, 1 after an exception, 9 if it was killed before it ended.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked process has none of torch's threads
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    torch.set_num_threads(threads)
    if kill_after is not None:
        while not once() and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(0.001)
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    return signal.SIGKILL if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def train_or_resume(run: Path, made: Job) -> None:
    """Go on with the run, or begin it where a kill left nothing to go on with."""
    if (run / "job.json").exists():
        resume(run, HERE, KEY, silent)
    else:
        make(run, made)


def same(run: Path, reference: Path) -> None:
    """Equal files, byte by byte: transcript, log, checkpoints, programs; statements that differ in hardware at most."""
    mine, wanted = evidence_bytes(run), evidence_bytes(reference)
    assert sorted(mine) == sorted(wanted)
    said = [open_statement(files.pop("attestation.json"), KEY.public_key(), RUN_PREDICATE) for files in (mine, wanted)]
    for statement in said:
        del statement["predicate"]["environment"]
    assert said[0] == said[1]
    assert [name for name in wanted if mine[name] != wanted[name]] == []
    verify(run, KEY.public_key(), silent)
