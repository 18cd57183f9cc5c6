"""Histories that contradict themselves or each other, contents that contradict the commitment; all well signed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from calling import refused
from guard import confined
from run_helpers import KEY, audited, copied, finding, honest
from simulator import Enemy

import vtrain.cli
from auditor.evidence.verify import verify
from vtrain.commit import heads, keys, statement
from vtrain.demo.forger import Files, one_ulp
from vtrain.errors import (
    CheckpointError,
    EquivocationError,
    LogError,
    MalformedRunError,
    SignatureError,
    TranscriptError,
    UsageError,
    VersionError,
    VtrainError,
)
from vtrain.job import job_digest
from vtrain.store import canonical
from vtrain.store.steplog import StepLog

PUBLIC = KEY.public_key()


def put(enemy: Enemy, at: int, *values: dict[str, object]) -> None:
    """Insert lines into the transcript as it was signed."""
    enemy.sign()
    lines = enemy.lines()
    lines[at:at] = [canonical.dumps(value) for value in values]
    enemy.layout.transcript.write_bytes(b"".join(line + b"\n" for line in lines))


# ---- heads in the run ------------------------------------------------------------------------------------------------
def test_fork(run: Path) -> None:
    """Two heads of one size, each well signed."""
    enemy = Enemy(run)
    other = [*enemy.leaves[:4], {**enemy.leaves[4], "log": "0" * 64}]
    put(enemy, 8, {"type": "head", "note": enemy.note(5, other)})
    refused(run, EquivocationError, "two heads of size 5")


def test_head_of_other_leaves(run: Path) -> None:
    enemy = Enemy(run)
    other = [*enemy.leaves[:3], {**enemy.leaves[3], "log": "0" * 64}]
    put(enemy, 6, {"type": "head", "note": enemy.note(4, other)})
    refused(run, EquivocationError, "the head of size 4 has root")


def test_same_head_twice(run: Path) -> None:
    enemy = Enemy(run)
    put(enemy, 8, {"type": "head", "note": enemy.note(5)})
    refused(run, TranscriptError, "head of size 5: is there twice")


def test_head_of_more_leaves_than_before_it(run: Path) -> None:
    enemy = Enemy(run)
    put(enemy, 6, {"type": "head", "note": enemy.note(7)})
    refused(run, TranscriptError, "head of size 7 after 4 leaves")


def test_leaves_reordered(run: Path) -> None:
    with Enemy(run) as enemy:
        enemy.leaves[3], enemy.leaves[4] = enemy.leaves[4], enemy.leaves[3]
    refused(run, TranscriptError, "leaf of step 3: is of step 4")


def test_leaves_reordered_and_numbered_again(run: Path) -> None:
    with Enemy(run) as enemy:
        enemy.leaves[1], enemy.leaves[2] = enemy.leaves[2], enemy.leaves[1]
        enemy.leaves[1]["step"], enemy.leaves[2]["step"] = 1, 2
        enemy.leaves[2]["state"], enemy.leaves[1]["state"] = enemy.leaves[1]["state"], ""
    refused(run, LogError, "not what the leaf commits to", commands=("verify",))
    assert finding(audited(run)) == (1, "data")


def test_leaf_that_is_a_head(run: Path) -> None:
    with Enemy(run) as enemy:
        enemy.leaves[3]["type"] = "head"
    refused(run, TranscriptError, "expected a note")


# ---- heads seen elsewhere -------------------------------------------------------------------------------------------
def seen(run: Path, note: str | bytes, key: bool = True) -> None:
    path = run.parent / "head.txt"
    path.write_bytes(note.encode() if isinstance(note, str) else note)
    with confined(run.parent / "nothing", 60):
        verify(run, PUBLIC if key else None, lambda step, last: None, path)


def other_leaves(enemy: Enemy) -> list[dict[str, object]]:
    return [*enemy.leaves[:2], {**enemy.leaves[2], "log": "0" * 64}, *enemy.leaves[3:]]


def job_of(enemy: Enemy) -> bytes:
    return job_digest(enemy.layout.job.read_bytes())


def of_another_run(note: str) -> str:
    return heads.sign_head(replace(heads.peek_head(note), run=bytes([1] * 32)), KEY, heads.KEY_NAME)


HEADS: dict[str, tuple[Callable[[Enemy], str | bytes], type[VtrainError], str]] = {
    "equivocation at the end": (lambda e: e.note(7, other_leaves(e)), EquivocationError, "two heads of size 7"),
    "equivocation between heads": (lambda e: e.note(4, other_leaves(e)), EquivocationError, "size 4 has root"),
    "beyond the run": (
        lambda e: e.note(8, [*e.leaves, {**e.leaves[6], "step": 7}]), TranscriptError,
        "only a consistency proof can tell",
    ),
    "of another run of this job": (
        lambda e: of_another_run(e.note(7, other_leaves(e))), TranscriptError, "another run.* two runs of one job",
    ),
    "of another job": (
        lambda e: heads.sign_head(heads.Head(1, bytes(32), bytes(32), bytes([1] * 32)), KEY, heads.KEY_NAME),
        TranscriptError, "another run.* two runs of two jobs",
    ),
    "of an earlier release": (
        lambda e: heads.sign_head(replace(heads.peek_head(e.note(7)), run=job_of(e)), KEY, heads.KEY_NAME),
        VersionError, "earlier release",
    ),
    "by another key": (
        lambda e: heads.sign_head(heads.peek_head(e.note(7)), keys.generate(), heads.KEY_NAME), SignatureError,
        "no signature",
    ),
    "of another name": (lambda e: e.note(7).replace("vtrain-trainer", "somebody"), SignatureError, "no signature"),
    "changed": (lambda e: e.note(7).replace("\n7\n", "\n6\n"), SignatureError, "not by key"),
    "not UTF-8": (lambda e: b"\xff" + e.note(7).encode(), TranscriptError, "not UTF-8"),
    "nothing": (lambda e: "", TranscriptError, "head"),
    "too large": (lambda e: "x" * 1_000_000, MalformedRunError, "larger than"),
}  # fmt: skip


@pytest.mark.parametrize("case", HEADS)
def test_head_seen_elsewhere(run: Path, case: str) -> None:
    make, error, text = HEADS[case]
    with pytest.raises(VtrainError, match=text) as caught:
        seen(run, make(Enemy(run)))
    assert type(caught.value) is error and caught.value.exit_code == 3


@pytest.mark.parametrize("size", range(1, 8))
def test_head_seen_elsewhere_and_right(run: Path, size: int) -> None:
    """Any prefix of the leaves, whether or not the run has a head there."""
    seen(run, Enemy(run).note(size))


def test_head_option(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run.parent / "head.txt").write_text(Enemy(run).note(5))
    arguments = ["verify", str(run), "--head", str(run.parent / "head.txt")]
    vtrain.cli.group.main(arguments, standalone_mode=False)
    assert "ok  head seen    of 5 leaves" in capsys.readouterr().out
    (run.parent / "head.txt").write_text(Enemy(run).note(4, other_leaves(Enemy(run))))
    with pytest.raises(EquivocationError):
        vtrain.cli.group.main(arguments, standalone_mode=False)
    for missing in (run.parent / "nothing", run.parent):
        with pytest.raises(UsageError):
            vtrain.cli.group.main([*arguments[:3], str(missing)], standalone_mode=False)


# ---- contents -------------------------------------------------------------------------------------------------------
def renamed(files: Files) -> None:
    files["optimizer"]["9.exp_avg"] = files["optimizer"].pop("0.exp_avg")


TENSORS: dict[str, Callable[[Files], object]] = {
    "extra": lambda files: files["model"].update({"backdoor": files["model"]["1.bias"]}),
    "missing": lambda files: files["model"].pop("1.bias"),
    "renamed": renamed,
    "of another shape": lambda files: files["model"].update(
        {"1.bias": replace(files["model"]["1.bias"], shape=(4, 4))}
    ),
    "in another file": lambda files: files.update(extra={"x": files["model"].pop("1.bias")}),
    "missing file": lambda files: files.pop("optimizer"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_of_a_checkpoint(run: Path, case: str) -> None:
    """Committed to and signed: only who repeats the steps knows that the state is another."""
    with Enemy(run) as enemy:
        enemy.change_checkpoint(4, TENSORS[case])
        for path in enemy.layout.checkpoint(4).glob("*.safetensors"):
            assert path.stem in ("model", "optimizer", "extra")
    verify(run, PUBLIC, lambda step, last: None)
    assert finding(audited(run)) == (4, "state")
    step, what = finding(audited(run, steps=(5, 6)))
    assert what in ("state", "log", "sites", "scalars") and step in (4, 5)


def test_final_model_that_is_not_the_committed_state(run: Path) -> None:
    """Attested by its SHA-256, with the leaf's state digest of the honest model: once, an audit verified it."""
    with Enemy(run) as enemy:
        committed = enemy.leaves[6]["state"]
        enemy.change_checkpoint(6, lambda f: f["model"].update({"1.bias": one_ulp(f["model"]["1.bias"])}))
        enemy.leaves[6]["state"] = committed
    refused(run, CheckpointError, "checkpoints/000006: state")


def test_attestation_for_another_model_file(run: Path) -> None:
    enemy = Enemy(run)
    enemy.sign()
    enemy.attest(lambda made: made["subject"][0]["digest"].update(sha256="0" * 64))
    refused(run, MalformedRunError, "its subject is not the file checkpoints/000006/model.safetensors")


ATTESTED: dict[str, tuple[Callable[[Enemy], object], type[VtrainError], str]] = {
    "of an earlier head": (
        lambda e: e.attest(lambda m: m["predicate"].update(head=e.note(5))), EquivocationError,
        "not the transcript's last",
    ),
    "of another head": (
        lambda e: e.attest(lambda m: m["predicate"].update(head=e.note(7, other_leaves(e)))), EquivocationError,
        "not the transcript's last",
    ),
    "of fewer steps": (lambda e: e.attest(lambda m: m["predicate"].update(steps=5)), MalformedRunError, "run: steps"),
    "of another job": (lambda e: e.attest(lambda m: m["predicate"].update(job="x")), MalformedRunError, "run: job"),
    "without a head": (lambda e: e.attest(lambda m: m["predicate"].pop("head")), TranscriptError, "head"),
    "by another key": (lambda e: attested_by(e, keys.generate()), SignatureError, "0 of 1 signatures by key"),
    "by a key that borrows the id": (lambda e: borrowed(e), SignatureError, "not by key"),
}  # fmt: skip


def attested_by(enemy: Enemy, key: keys.Ed25519PrivateKey) -> None:
    path = enemy.layout.attestation
    made = statement.open_statement(path.read_bytes(), PUBLIC, statement.RUN_PREDICATE)
    path.write_bytes(statement.sign_statement(made, key))


def borrowed(enemy: Enemy) -> None:
    other = keys.generate()
    attested_by(enemy, other)
    path = enemy.layout.attestation
    ids = [keys.key_id(k).encode() for k in (other.public_key(), PUBLIC)]
    path.write_bytes(path.read_bytes().replace(*ids))


@pytest.mark.parametrize("case", ATTESTED)
def test_attestation(run: Path, case: str) -> None:
    act, error, text = ATTESTED[case]
    enemy = Enemy(run)
    enemy.sign()
    act(enemy)
    refused(run, error, text)


def more_sites(log: StepLog) -> StepLog:
    """A row for a result beyond the step's last one, for each that it has and one more."""
    sites = np.array([(100 + i, 4, 0, 1, 0, 1) for i in range(25)], "<u8")
    return StepLog(sites, np.ones(25, np.uint8), np.ones(25, np.uint8), np.empty(0, "<u4"), log.scalars)


def test_log_of_more_results_than_were_settled(run: Path) -> None:
    with Enemy(run) as enemy:
        enemy.change_log(4, more_sites)
    refused(run, LogError, "step 4: sites has 150 elements; its sites allow 144")


def test_log_of_more_entries_than_values_were_settled(run: Path) -> None:
    """One result, as large as the log needs it; the step's results together have fewer elements."""
    count = 100_000

    def change(log: StepLog) -> StepLog:
        sites = np.array([(0, count, 0, count, 0, count)], "<u8")
        return StepLog(sites, np.ones(count, np.uint8), np.zeros(count // 4, np.uint8), np.empty(0, "<u4"), log.scalars)

    with Enemy(run) as enemy:
        enemy.change_log(4, change)
    refused(run, LogError, "step 4: gaps has 100000 elements; its sites allow|bytes before compression")


def test_log_of_more_scalars_than_were_used(run: Path) -> None:
    with Enemy(run) as enemy:
        enemy.change_log(4, lambda log: replace(log, scalars=np.append(log.scalars, np.uint64(0))))
    assert finding(audited(run)) == (4, "scalars")


def test_runs_of_one_key_are_not_mixed(run: Path, tmp_path: Path) -> None:
    """A whole history of another job, under this run's name for it."""
    other = copied(honest("ternary16"), tmp_path / "other")
    (run / "transcript.jsonl").write_bytes((other / "transcript.jsonl").read_bytes())
    refused(run, TranscriptError, "is of another run")
