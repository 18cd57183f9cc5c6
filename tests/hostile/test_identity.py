"""``run.json``: whatever it says that is not so, or not of its form, is refused before anything is believed (§5)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from calling import refused
from run_helpers import KEY, copied, honest
from simulator import Enemy
from torch import nn

import vtrain.cli
from trainer import record
from vtrain.commit import heads
from vtrain.errors import MalformedRunError, PathError, TranscriptError, UsageError, VersionError, VtrainError
from vtrain.store import canonical
from vtrain.store.identity import MAX_BYTES, MAX_ENTRIES, Identity, LoopFacts, parse_identity

JOB = heads.job_text(bytes(32))
FACTS = LoopFacts({"": "Sequential", "0": "Linear"}, "SGD", "state", {"main.py": "0" * 64})


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded loop of two steps."""
    path = tmp_path_factory.mktemp("loop") / "run"
    with record(path, model=lambda: nn.Linear(3, 2), key=KEY) as run:
        for step in (1, 2):
            with run.step(torch.full((2, 3), float(step))):
                run.model(torch.ones(2, 3)).sum().backward()
    return path


def rewritten(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Another ``run.json``, whose digest every head then names: flawless but for what it says."""
    enemy = Enemy(run)
    value = json.loads(enemy.layout.identity.read_bytes())
    change(value)
    enemy._identify = lambda: written(enemy, canonical.dumps(value))  # type: ignore[method-assign]
    enemy.sign()


def written(enemy: Enemy, data: bytes) -> tuple[bytes, bytes]:
    enemy.layout.identity.write_bytes(data)
    return hashlib.sha256(enemy.layout.job.read_bytes()).digest(), hashlib.sha256(data).digest()


CASES: dict[str, tuple[Callable[[dict[str, Any]], object], type[VtrainError], str]] = {
    "a newer version": (lambda v: v.update(format="vtrain-run-v2"), VersionError, "this release reads vtrain-run-v1"),
    "no version": (lambda v: v.pop("format"), VersionError, "this release reads"),
    "of another job": (lambda v: v.update(job=JOB), MalformedRunError, "the run's is"),
    "no nonce": (lambda v: v.pop("nonce"), MalformedRunError, "fields"),
    "an empty nonce": (lambda v: v.update(nonce=""), MalformedRunError, "16 bytes in hex"),
    "a long nonce": (lambda v: v.update(nonce="0" * 34), MalformedRunError, "16 bytes in hex"),
    "a nonce in capitals": (lambda v: v.update(nonce="A" * 32), MalformedRunError, "16 bytes in hex"),
    "a nonce that is a number": (lambda v: v.update(nonce=1), MalformedRunError, "16 bytes in hex"),
    "more": (lambda v: v.update(name="mine"), MalformedRunError, "fields"),
    "a loop": (lambda v: v.update(loop=vars(FACTS)), MalformedRunError, "where its job is none"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_it_says(tmp_path: Path, case: str) -> None:
    run = copied(honest(), tmp_path / "run")
    change, error, text = CASES[case]
    rewritten(run, change)
    refused(run, error, text)


LOOPS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no loop": (lambda v: v.update(loop=None), "none where it is one"),
    "another initial state": (lambda v: v["loop"].update(state="x"), "not the one that the leaf of step 0"),
    "a state that is none": (lambda v: v["loop"].update(state=1), "no text of one line"),
    "a class that is no text": (lambda v: v["loop"]["modules"].update(x=1), "modules: bad entry"),
    "a class on two lines": (lambda v: v["loop"]["modules"].update(x="a\nb"), "modules: bad entry"),
    "modules in a list": (lambda v: v["loop"].update(modules=[]), "modules is no map"),
    "a source that is no digest": (lambda v: v["loop"]["sources"].update(x="0" * 63), "sources: bad entry"),
    "a path for a terminal": (lambda v: v["loop"]["sources"].update({"\x1b[2J": "0" * 64}), "sources: bad entry"),
    "an optimizer that is none": (lambda v: v["loop"].update(optimizer=None), "no text of one line"),
    "more": (lambda v: v["loop"].update(batch=""), "fields"),
    "less": (lambda v: v["loop"].pop("sources"), "fields"),
}


@pytest.mark.parametrize("case", LOOPS)
def test_what_it_says_of_a_loop(loop: Path, tmp_path: Path, case: str) -> None:
    run = copied(loop, tmp_path / "run")
    change, text = LOOPS[case]
    rewritten(run, change)
    refused(run, MalformedRunError, text, commands=("verify",))


def test_exchanged_without_signing(tmp_path: Path) -> None:
    """Every head names it."""
    run = copied(honest(), tmp_path / "run")
    value = json.loads((run / "run.json").read_bytes())
    (run / "run.json").write_bytes(canonical.dumps({**value, "nonce": "f" * 32}))
    refused(run, TranscriptError, "is of another run")


def test_heads_of_another_run_of_the_job(tmp_path: Path) -> None:
    """By the same key, of the same leaves: put in from a run with another nonce."""
    run, other = (copied(honest(), tmp_path / name) for name in ("run", "other"))
    rewritten(other, lambda v: v.update(nonce="f" * 32))
    (run / "transcript.jsonl").write_bytes((other / "transcript.jsonl").read_bytes())
    refused(run, TranscriptError, "is of another run")


def test_statement_of_another_run_of_the_job(tmp_path: Path) -> None:
    run, other = (copied(honest(), tmp_path / name) for name in ("run", "other"))
    rewritten(other, lambda v: v.update(nonce="f" * 32))
    (run / "attestation.json").write_bytes((other / "attestation.json").read_bytes())
    refused(run, MalformedRunError, "is about another run: run")


@pytest.mark.parametrize("steps", [True, 6.5, "6", None, 7])
def test_statement_of_other_steps(tmp_path: Path, steps: Any) -> None:
    """``true`` is no 1."""
    run = copied(honest(), tmp_path / "run")
    with Enemy(run) as enemy:
        enemy._predicate["environment"] = {}
    Enemy(run).attest(lambda made: made["predicate"].update(steps=steps))
    refused(run, MalformedRunError, "is about another run: steps")


def test_a_run_of_an_earlier_release(tmp_path: Path) -> None:
    run = copied(honest(), tmp_path / "run")
    (run / "run.json").unlink()
    refused(run, VersionError, "earlier release")
    with pytest.raises(VersionError, match="earlier release began it"):
        from trainer.train import resume

        (run / "attestation.json").unlink()
        resume(run, Path(), KEY, lambda done: None)


def test_size_and_number_are_bounded(tmp_path: Path) -> None:
    run = copied(honest(), tmp_path / "run")
    with (run / "run.json").open("r+b") as handle:
        handle.truncate(MAX_BYTES + 1)
    refused(run, PathError, "expected at most")
    with pytest.raises(UsageError, match="at most 100000 entries"):
        Identity(JOB, "0" * 32, LoopFacts({f"{n}": "Linear" for n in range(MAX_ENTRIES + 1)}, "", "s")).encode()


def test_it_reads_what_it_writes() -> None:
    for facts in (None, FACTS, LoopFacts({}, "", "s")):
        made = Identity(JOB, "0" * 32, facts)
        assert parse_identity(made.encode(), JOB) == made
        assert made.digest == hashlib.sha256(made.encode()).digest()
    data = Identity(JOB, "0" * 32, FACTS).encode()
    for spoilt in (
        data + b"\n",
        data.replace(b":", b": ", 1),
        data.replace(b'"nonce"', b'"Nonce"'),
        b"",
        b"[]",
        b"\xff",
    ):
        with pytest.raises(MalformedRunError):
            parse_identity(spoilt, JOB)


def test_proof_says_which_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from auditor.evidence import open_run

    run = copied(honest(), tmp_path / "run")
    vtrain.cli.group.main(["prove", str(run), "--step", "3"], standalone_mode=False)
    (tmp_path / "proof").write_text(capsys.readouterr().out)
    key = str(run / "trainer.pub")
    vtrain.cli.group.main(["prove", "--check", str(tmp_path / "proof"), "--trainer-key", key], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["head"]["run"] == heads.run_text(open_run(run).run)
