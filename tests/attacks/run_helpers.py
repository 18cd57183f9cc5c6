"""Small runs, trained once a session: honest ones, and ones by a trainer who departs from the job."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from auditor.audit import Request, audit
from auditor.verdict import Verdict
from trainer.rehearsal import Rehearsals
from trainer.train import train
from vtrain.demo.forger import Forger
from vtrain.job import Job, parse
from vtrain.store import writer

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
STEPS = 6
HERE = Path(__file__).parent
# Every run of these tests has one nonce: runs of one job can be compared byte by byte, and draws stay what they are.
NONCE = "00112233445566778899aabbccddeeff"
random_nonce = writer.new_nonce
writer.new_nonce = lambda: NONCE
VALUES: dict[str, Any] = {
    "program": {"entry": "vtrain.programs.mlp:perceptron", "config": {"inputs": 192, "hidden": 16}},
    "data": {"name": "random-images", "config": {"n": 64, "shape": [3, 8, 8]}},
    "train": {"steps": STEPS, "batch_size": 8, "checkpoint_every": 2},
    "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.01},
    "schedule": {"name": "cosine", "warmup": 2},
}
# Everything is logged: these runs are there for their logs to be forged.
CERTIFIED16 = {"target": "bfloat16", "threshold": "certified", "encoding": "sparse", "other": "logged"}
TERNARY16 = {"target": "bfloat16", "threshold": "certified", "encoding": "ternary", "other": "logged"}
# Much wider than certified: many whole values in the log, and entries that are beyond doubt for an auditor.
GENEROUS32 = {"threshold": 3e-8, "encoding": "sparse", "other": "logged"}
POLICIES: dict[str, dict[str, Any]] = {
    "float32": {}, "certified16": CERTIFIED16, "ternary16": TERNARY16, "generous32": GENEROUS32,
    "adaptive16": {"target": "bfloat16"},
}  # fmt: skip


def silent(*_: Any) -> None:
    """Nobody listens."""


def values(**changes: Any) -> dict[str, Any]:
    """The job's values, with tables updated: ``values(train={"seed": 1})``."""
    made = copy.deepcopy(VALUES)
    for table, update in changes.items():
        made.setdefault(table, {}).update(update)
    return made


def job(**changes: Any) -> Job:
    """The job, with tables updated."""
    return parse(values(**changes), "job")


def toml(made: dict[str, Any]) -> str:
    """Job values of two levels as TOML; JSON's scalars and lists are TOML's."""
    lines = []
    for table, content in made.items():
        lines.append(f"[{table}]")
        lines += [f"{k} = {json.dumps(v)}" for k, v in content.items() if not isinstance(v, dict)]
        for name, inner in content.items():
            if isinstance(inner, dict):
                lines.append(f"[{table}.{name}]")
                lines += [f"{k} = {json.dumps(v)}" for k, v in inner.items()]
    return "\n".join(lines) + "\n"


def make(out: Path, made: Job | None = None) -> Path:
    """Train a job into ``out``, without rehearsals: a cheat would not let itself be stopped by its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rehearsals, "after", silent)
        train(made or job(), HERE, out, KEY, silent)
    return out


def _folder() -> Path:
    """Of the runs made with as many threads as this process has now: an attestation says how many."""
    return _folder_for(torch.get_num_threads())


@cache
def _folder_for(threads: int) -> Path:
    folder = tempfile.TemporaryDirectory(prefix="vtrain-runs-")
    _KEPT.append(folder)
    return Path(folder.name)


_KEPT: list[Any] = []  # removed when the process ends


def honest(policy: str = "float32") -> Path:
    """An honest run under a policy, by name; never change it."""
    run = _folder() / policy
    return run if run.exists() else make(run, job(policy=POLICIES[policy]))


def nudged(y: torch.Tensor, scale: Callable[[], Any]) -> torch.Tensor:
    """What other hardware might compute: higher by nine tenths of what the certified bound allows a computation."""
    s = scale()
    if s.empty is not None:
        s = s.refined(y)  # sums of zeros are zero on any hardware
    unit = 2.0**-24 if y.dtype is torch.float32 else 2.0**-53
    return (y.double() + 0.9 * s.kappa * unit * s.dense(y).view_as(y)).to(y.dtype)


@cache
def other_hardware(policy: str = "certified16") -> Path:
    """An honest run on hardware whose results are as high as the certified bound allows."""
    from trainer.listener import Recorder

    run = _folder() / f"{policy}-elsewhere"
    if run.exists():  # asked for with and without naming the default: two calls for a cache
        return run
    settle = Recorder.settle

    def elsewhere(self: Recorder, site: Any, y: torch.Tensor, scale: Any, vary: Any = None) -> torch.Tensor:
        return settle(self, site, nudged(y, scale), scale, vary)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recorder, "settle", elsewhere)
        return make(run, job(policy=POLICIES[policy]))


def copied(run: Path, to: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(run, to))


def tree_bytes(root: Path) -> dict[str, bytes]:
    """Content of every file below ``root`` by relative name; directories and special files too, as empty."""
    return {
        str(p.relative_to(root)) + ("/" if p.is_dir() else ""): p.read_bytes() if p.is_file() else b""
        for p in sorted(root.rglob("*"))
    }


def evidence_bytes(root: Path) -> dict[str, bytes]:
    """``tree_bytes`` without what is no evidence: timings and the lock."""
    return {name: data for name, data in tree_bytes(root).items() if name not in ("metrics.jsonl", ".lock")}


def audited(run: Path, **request: Any) -> Verdict:
    """Audit, and check that the run is as it was."""
    before = tree_bytes(run)
    try:
        return audit(Request(run, request.pop("directory", HERE), **request), silent, silent)
    finally:
        assert tree_bytes(run) == before


def finding(verdict: Verdict) -> tuple[int | None, str]:
    """First bad step and what differs there."""
    assert verdict.exit_code == (0 if verdict.first_bad_step is None else 1)
    assert verdict.verified == (verdict.first_bad_step is None)
    assert verdict.verified or verdict.detail
    return verdict.first_bad_step, verdict.what


@contextlib.contextmanager
def forging(run: Path) -> Iterator[Forger]:
    """Change a run and sign it again."""
    forger = Forger(run, KEY)
    yield forger
    forger.sign()
