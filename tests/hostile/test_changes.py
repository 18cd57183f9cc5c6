"""A run that changes while it is read: what was checked is what is used, and nothing ends the process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from calling import refused
from guard import confined
from run_helpers import HERE, KEY, audited, finding, job, make, silent

import vtrain.cli
from auditor.audit import Request, audit
from auditor.evidence import Evidence, open_run
from vtrain.errors import CheckpointError, LogError, MalformedRunError, PathError, TranscriptError, VtrainError
from vtrain.store import logcheck, tensorfile, transcript
from vtrain.store.checkpoint import read_checkpoint, scan_checkpoint
from vtrain.store.layout import Layout
from vtrain.store.layout import safe_open as real_open

Patch = pytest.MonkeyPatch
Act = Callable[[Path], object]
TENSORS, LOG = "vtrain.store.tensorfile", "vtrain.store.logcheck"


def to_link(path: Path) -> None:
    run = next(above for above in path.parents if above.name == "run")
    path.rename(run.parent / f"moved-{path.name}")
    path.symlink_to(run.parent / f"moved-{path.name}")


def to_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


BEFORE: dict[str, tuple[str, str, Act, type[VtrainError]]] = {
    "transcript becomes a link": ("vtrain.store.transcript", "transcript.jsonl", to_link, PathError),
    "transcript becomes a FIFO": ("vtrain.store.transcript", "transcript.jsonl", to_fifo, PathError),
    "job becomes a link": ("auditor.evidence.opening", "job.json", to_link, PathError),
    "job becomes a FIFO": ("auditor.evidence.opening", "job.json", to_fifo, PathError),
    "identity becomes a link": ("auditor.evidence.opening", "run.json", to_link, PathError),
    "attestation vanishes": ("auditor.evidence.opening", "attestation.json", Path.unlink, PathError),
    "checkpoint becomes a link": (TENSORS, "model.safetensors", to_link, PathError),
    "checkpoint becomes a FIFO": (TENSORS, "model.safetensors", to_fifo, PathError),
    "checkpoint is cut short": (TENSORS, "model.safetensors", lambda p: os.truncate(p, 500), CheckpointError),
    "meta becomes a link": ("vtrain.store.checkpoint", "meta.json", to_link, PathError),
    "shard becomes a FIFO": (LOG, "codes/c/0", to_fifo, PathError),
    "shard is cut short": (LOG, "codes/c/0", lambda p: os.truncate(p, 100), LogError),
    "log becomes a link": (LOG, "codes/zarr.json", lambda p: link_above(p, 2), PathError),
    "segment becomes a link": (LOG, "codes/zarr.json", lambda p: link_above(p, 1), PathError),
    "checkpoints become a link": (TENSORS, "model.safetensors", lambda p: link_above(p, 1), PathError),
}  # fmt: skip


def link_above(path: Path, levels: int) -> None:
    folder = path.parents[levels]
    run = next(above for above in path.parents if above.name == "run")
    away = run.parent / f"away-{folder.name}"
    folder.rename(away)
    folder.symlink_to(away)


@pytest.mark.parametrize("command", ["verify", "audit"])
@pytest.mark.parametrize("case", BEFORE)
def test_changed_before_it_is_opened(run: Path, case: str, command: str, monkeypatch: Patch) -> None:
    """After every check of names and kinds, and before the file is opened."""
    module, name, act, error = BEFORE[case]
    done: list[Path] = []

    def hooked(root: Path, relative: str, *, max_bytes: int) -> object:
        if relative.endswith(name) and not done:
            done.append(root / relative)
            act(root / relative)
        return real_open(root, relative, max_bytes=max_bytes)

    monkeypatch.setattr(f"{module}.safe_open", hooked)
    with pytest.raises(VtrainError) as caught:
        vtrain.cli.group.main([command, str(run)], standalone_mode=False)
    assert done and type(caught.value) is error and caught.value.exit_code == 3
    assert str(done[0].relative_to(run)) in str(caught.value), "found only later"


def growing(monkeypatch: Patch, module: object, name: str, data: bytes) -> None:
    """The file grows when it has been opened, its size checked."""

    def hooked(root: Path, relative: str, *, max_bytes: int) -> object:
        handle = real_open(root, relative, max_bytes=max_bytes)
        if relative.endswith(name):
            with (root / relative).open("ab") as more:
                more.write(data)
        return handle

    monkeypatch.setattr(module, "safe_open", hooked)


def test_grown_after_it_was_opened(run: Path, monkeypatch: Patch) -> None:
    growing(monkeypatch, logcheck, "codes/zarr.json", b" " * 20_000)
    refused_once(run, LogError, "grew while it was read")
    monkeypatch.undo()
    growing(monkeypatch, transcript, "transcript.jsonl", b"x" * 2_000_000 + b"\n")
    refused_once(run, TranscriptError, "longer than")


def refused_once(run: Path, error: type[VtrainError], text: str) -> None:
    with pytest.raises(error, match=text), confined(run, 60):
        vtrain.cli.group.main(["verify", str(run)], standalone_mode=False)


@pytest.mark.parametrize("read", [read_checkpoint, scan_checkpoint])
def test_cut_short_between_header_and_data(run: Path, read: Callable[..., object], monkeypatch: Patch) -> None:
    parse = tensorfile._parse_header

    def cut(text: bytes, where: str) -> object:
        os.truncate(where, 5000)
        return parse(text, where)

    monkeypatch.setattr(tensorfile, "_parse_header", cut)
    with pytest.raises(CheckpointError, match="was cut short while it was read"):
        read(Layout(run), 4)


MAPPED = """
import os, sys
from pathlib import Path
from auditor.evidence import open_run
evidence = open_run(Path(sys.argv[1]))
files = evidence.checkpoint(2)
before = bytes(files["optimizer"]["0.exp_avg"].view)
path = Path(sys.argv[1], "checkpoints/000002/optimizer.safetensors")
data = path.read_bytes()
path.write_bytes(bytes(len(data))) if sys.argv[2] == "overwrite" else os.truncate(path, 0)
assert bytes(files["optimizer"]["0.exp_avg"].view) == before, "changed after it was checked"
print("kept")
"""


@pytest.mark.parametrize("how", ["truncate", "overwrite"])
def test_checkpoint_changed_after_it_was_checked(run: Path, how: str) -> None:
    """In a process of its own: reading a mapped file that was cut short would end it by SIGBUS."""
    done = subprocess.run([sys.executable, "-c", MAPPED, str(run), how], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "kept\n"), done.stderr


def test_audit_uses_what_it_checked(run: Path, monkeypatch: Patch) -> None:
    """Each checkpoint is spoilt as soon as its digest was found right."""
    committed, spoilt = Evidence._committed, []

    def after(self: Evidence, step: int, *found: Any) -> Any:
        digest = committed(self, step, *found)
        for path in self.layout.checkpoint(step).glob("*.safetensors"):
            os.truncate(path, 0)
            spoilt.append(path)
        return digest

    monkeypatch.setattr(Evidence, "_committed", after)
    verdict = audit(Request(run, HERE), silent, silent)
    assert finding(verdict) == (None, "") and len(spoilt) >= 7


def test_model_swapped_after_the_attestation_was_read(run: Path) -> None:
    """The verdict's subject is the file whose state was compared, not one that was there before or after."""
    path = run / "checkpoints/000006/model.safetensors"
    evidence = open_run(run)
    subject, data = evidence.subject, path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="the leaf commits to"):
        evidence.require_complete()
    path.write_bytes(data)
    evidence.require_complete()
    path.write_bytes(b"evil")
    assert evidence.subject == subject


def test_run_swapped_before_the_workers_open_it(run: Path) -> None:
    """A worker process opens the run again: it must be the one that was checked."""
    other = make(run.parent / "other", job(train={"seed": "1"}))

    def swap(steps: int) -> None:
        run.rename(run.parent / "before")
        other.rename(run)

    with pytest.raises(MalformedRunError, match="changed while it was audited"):
        audit(Request(run, HERE, jobs=2), silent, swap)


def test_errors_of_workers_are_told(run: Path) -> None:
    """A worker that meets a malformed run says so, and does not break the pool."""
    flipped = run / "checkpoints/000004/optimizer.safetensors"
    data = flipped.read_bytes()
    flipped.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="000004"):
        audited(run, key=KEY.public_key(), jobs=2)
    refused(run, CheckpointError, "000004", commands=("verify",))
