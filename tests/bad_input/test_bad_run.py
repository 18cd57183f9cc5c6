"""Runs that are damaged, incomplete, or of another version: exit code 3 from verify and audit, never a stack trace."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from log_helpers import SiteLog, entries_of, log_of
from run_helpers import CERTIFIED16, KEY, STEPS, audited, copied, finding, forging, honest, job, make, tree_bytes

from auditor.evidence.verify import verify
from vtrain.commit import keys
from vtrain.errors import (
    CheckpointError,
    IncompleteRunError,
    LogError,
    MalformedRunError,
    PathError,
    SignatureError,
    TranscriptError,
    VersionError,
    VtrainError,
)
from vtrain.store import canonical
from vtrain.store.checkpoint import read_checkpoint, write_checkpoint
from vtrain.store.layout import Layout
from vtrain.store.steplog import StepLog


@pytest.fixture(params=["verify", "audit"])
def check(request: pytest.FixtureRequest) -> Callable[[Path], object]:
    """Both commands' functions, pinned to the key; neither changes the run."""
    if request.param == "audit":
        return lambda run: audited(run, key=KEY.public_key())

    def verified(run: Path) -> object:
        before = tree_bytes(run)
        try:
            return verify(run, KEY.public_key(), lambda step, last: None)
        finally:
            assert tree_bytes(run) == before

    return verified


Check = Callable[[Path], Any]


def refuses(check: Check, run: Path, error: type[VtrainError], text: str | None = None) -> None:
    with pytest.raises(error, match=text) as caught:
        check(run)
    assert caught.value.exit_code == 3


def test_checks_pass(run: Path, check: Check) -> None:
    check(run)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("job.json", PathError),
        ("run.json", VersionError),
        ("trainer.pub", PathError),
        ("transcript.jsonl", PathError),
        ("attestation.json", IncompleteRunError),
        ("checkpoints/000004/model.safetensors", CheckpointError),
        ("checkpoints/000004/optimizer.safetensors", CheckpointError),
        ("checkpoints/000004/meta.json", CheckpointError),
        ("checkpoints/000004", CheckpointError),
        ("checkpoints/000006/model.safetensors", MalformedRunError),
        ("checkpoints", MalformedRunError),
        ("log.zarr/000004/scalars/c/0", LogError),
        ("log.zarr/000004/offsets/zarr.json", MalformedRunError),
        ("log.zarr/000004/zarr.json", LogError),
        ("log.zarr/000004", LogError),
        ("log.zarr", LogError),
        ("programs", MalformedRunError),
    ],
)
def test_missing(run: Path, check: Check, name: str, error: type[VtrainError]) -> None:
    path = run / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    refuses(check, run, error)


FILES = [
    "job.json",
    "run.json",
    "trainer.pub",
    "attestation.json",
    "checkpoints/000002/model.safetensors",
    "checkpoints/000002/optimizer.safetensors",
    "checkpoints/000002/meta.json",
    "checkpoints/000006/model.safetensors",
    "log.zarr/000002/scalars/c/0",
    "log.zarr/000002/offsets/c/0/0",
    "log.zarr/000002/offsets/zarr.json",
    "log.zarr/000002/zarr.json",
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0.0, 0.5, -1])
def test_truncated(run: Path, check: Check, name: str, keep: float) -> None:
    """To nothing, to half, and by one byte."""
    data = (run / name).read_bytes()
    (run / name).write_bytes(data[:-1] if keep < 0 else data[: int(keep * len(data))])
    refuses(check, run, MalformedRunError)


@pytest.mark.parametrize("lines", range(12))
def test_transcript_cut_between_lines(run: Path, check: Check, lines: int) -> None:
    """Also where the cut leaves a shorter run with valid heads."""
    text = (run / "transcript.jsonl").read_bytes().splitlines(keepends=True)
    assert len(text) == STEPS + 1 + 4
    (run / "transcript.jsonl").write_bytes(b"".join(text[:lines]))
    if lines == len(text):
        check(run)
    else:
        refuses(check, run, MalformedRunError)


@pytest.mark.parametrize("line", range(11))
def test_transcript_line_missing(run: Path, check: Check, line: int) -> None:
    text = (run / "transcript.jsonl").read_bytes().splitlines(keepends=True)
    del text[line]
    (run / "transcript.jsonl").write_bytes(b"".join(text))
    if line in (1, 4, 7):  # a head that a later one covers
        check(run)
    else:
        refuses(check, run, MalformedRunError)


@pytest.mark.parametrize("line", range(11))
def test_transcript_line_torn(run: Path, check: Check, line: int) -> None:
    text = (run / "transcript.jsonl").read_bytes().splitlines(keepends=True)
    text[line] = text[line][:50]
    (run / "transcript.jsonl").write_bytes(b"".join(text))
    refuses(check, run, MalformedRunError)


@pytest.mark.parametrize("other", [0, 3, 8])
def test_transcript_lines_swapped(run: Path, check: Check, other: int) -> None:
    text = (run / "transcript.jsonl").read_bytes().splitlines(keepends=True)
    text[5], text[other] = text[other], text[5]
    (run / "transcript.jsonl").write_bytes(b"".join(text))
    refuses(check, run, TranscriptError)


@pytest.mark.parametrize("earlier", [1, 4, 7])
def test_head_said_again(run: Path, check: Check, earlier: int) -> None:
    """An earlier head after later leaves: genuine, consistent, and not what the trainer wrote there."""
    text = (run / "transcript.jsonl").read_bytes().splitlines(keepends=True)
    (run / "transcript.jsonl").write_bytes(b"".join([*text, text[earlier]]))
    refuses(check, run, TranscriptError, "after 7 leaves")


def bits_of(path: Path, count: int) -> list[int]:
    """The first and last bits of a file, and some between; the same at every call."""
    total = 8 * path.stat().st_size
    drawn = random.Random(path.name).sample(range(total), min(count, total))
    return sorted({0, 7, total - 8, total - 1, *drawn})


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def flippable(run: Path) -> list[str]:
    """One of each kind of file that is evidence."""
    program = sorted((run / "programs").iterdir())[0].name
    return [*FILES, "transcript.jsonl", f"programs/{program}"]


def test_flipped_bits(run: Path, check: Check, request: pytest.FixtureRequest) -> None:
    """Every flipped bit is found, but for one in a checkpoint's notes for resuming."""
    count = 4 if "audit" in request.node.name else 12
    for name in flippable(run):
        for bit in bits_of(run / name, count):
            flip(run / name, bit)
            try:
                check(run)
            except MalformedRunError as error:
                assert error.exit_code == 3
            else:
                assert name.endswith("meta.json"), f"{name}: bit {bit}"
            flip(run / name, bit)
    check(run)


def test_flipped_bit_that_is_not_replayed(run: Path) -> None:
    """An audit of some steps reads only what it needs; verify reads everything."""
    flip(run / "checkpoints" / "000004" / "optimizer.safetensors", 5000)
    assert finding(audited(run, steps=(0, 2))) == (None, "")
    with pytest.raises(CheckpointError):
        audited(run, steps=(5, 5))
    with pytest.raises(CheckpointError):
        verify(run, None, lambda step, last: None)


@pytest.mark.parametrize("name", ["notes.txt", "checkpoints/000004/extra.safetensors", "log.zarr/000004/extra",
                                  "checkpoints/000007/x", "log.zarr/000008/x", "checkpoints/extra/x"])  # fmt: skip
def test_unexpected_names(run: Path, name: str) -> None:
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text("?")
    with suppress(MalformedRunError):  # a part that no step needs may be overlooked by an audit
        assert finding(audited(run)) == (None, "")
    if name.endswith("/x") and "extra" not in name:
        (run / name).rename(run / Path(name).parent / ("meta.json" if "checkpoints" in name else "zarr.json"))
    with pytest.raises(MalformedRunError) as caught:
        verify(run, None, lambda step, last: None)
    assert caught.value.exit_code == 3


def test_links_and_special_files(run: Path, check: Check, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    path = run / "checkpoints" / "000004" / "model.safetensors"
    path.rename(target)
    path.symlink_to(target)
    refuses(check, run, PathError, "symbolic link")
    path.unlink()
    os.mkfifo(path)
    refuses(check, run, PathError, "FIFO")
    path.unlink()
    os.link(target, path)
    refuses(check, run, PathError, "hard links")


def test_no_run(tmp_path: Path, check: Check) -> None:
    refuses(check, tmp_path, PathError)
    refuses(check, tmp_path / "nothing", PathError)
    (tmp_path / "file").write_text("{}")
    refuses(check, tmp_path / "file", PathError)


def test_truncated_run_signed_correctly(run: Path, check: Check) -> None:
    """Fewer steps than the job promises, everything else flawless."""
    with forging(run) as forger:
        del forger.leaves[5:]
        for step in (6,):
            shutil.rmtree(run / "checkpoints" / f"{step:06d}")
            shutil.rmtree(run / "log.zarr" / f"{step:06d}")
    refuses(check, run, IncompleteRunError, "4 steps; the job promises 6")


def test_unfinished_run(tmp_path: Path, check: Check) -> None:
    """Interrupted: it can be resumed, and until then gives no verdict."""
    run = tmp_path / "run"

    def stop(done: Any) -> None:
        if done.step == 5:
            raise KeyboardInterrupt

    from trainer.train import train

    with pytest.raises(KeyboardInterrupt):
        train(job(), tmp_path, run, KEY, stop)
    refuses(check, run, IncompleteRunError)


def test_longer_than_promised(run: Path, check: Check) -> None:
    with forging(run) as forger:
        forger.change_job(lambda j: j["train"].update(steps=4))
    refuses(check, run, IncompleteRunError, "6 steps; the job promises 4")


NEWER: dict[str, Callable[[dict[str, Any]], object]] = {
    "newer": lambda j: j.update(format=2),
    "much newer": lambda j: j.update(format=10**9),
}


@pytest.mark.parametrize("case", NEWER)
def test_newer_job(run: Path, check: Check, case: str) -> None:
    with forging(run) as forger:
        forger.change_job(NEWER[case])
    refuses(check, run, VersionError, "this release reads 1")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda j: j.update(format=True), "format: want 1"),
        (lambda j: j.update(format="1"), "format: want 1"),
        (lambda j: j.pop("format"), "format: want 1"),
        (lambda j: j.update(kind="picture"), "kind is 'picture'"),
        (lambda j: j.update(note="x"), "note: unknown key"),
        (lambda j: j["train"].update(steps="6"), "train.steps: "),
        (lambda j: j.pop("data"), "data: required key is missing"),
        (lambda j: j["policy"].update(threshold="0x1p5000"), "threshold"),
        (lambda j: j["policy"].update(scalar_ulps=-1), "scalar_ulps"),
    ],
)
def test_impossible_job_signed_correctly(run: Path, check: Check, change: Any, text: str) -> None:
    with forging(run) as forger:
        forger.change_job(change)
    refuses(check, run, MalformedRunError, text)


def test_job_with_its_defaults_left_out(run: Path, check: Check) -> None:
    """Canonical JSON, and not the one text of this job."""
    with forging(run) as forger:
        forger.change_job(lambda j: j["train"].pop("accumulate"))
    refuses(check, run, MalformedRunError, "not the canonical bytes of a job")


def test_job_that_is_not_canonical(run: Path, check: Check) -> None:
    with forging(run):
        (run / "job.json").write_bytes((run / "job.json").read_bytes().replace(b":", b": ", 1))
    refuses(check, run, MalformedRunError, "canonical")


@pytest.mark.parametrize(("step", "version"), [(2, 2), (4, "1"), (0, True)])
def test_checkpoint_of_another_version(run: Path, check: Check, step: int, version: Any) -> None:
    path = run / "checkpoints" / f"{step:06d}" / "meta.json"
    value = json.loads(path.read_bytes())
    value["version"] = version
    path.write_bytes(canonical.dumps(value))
    if step == STEPS or "audit" not in repr(check):
        refuses(check, run, VersionError, "this release reads 1")


@pytest.mark.parametrize("key", ["vtrain_log", "encoding_version"])
def test_log_of_another_version(run: Path, check: Check, key: str) -> None:
    path = run / "log.zarr" / "000004" / "zarr.json"
    value = json.loads(path.read_bytes())
    value["attributes"][key] = 2
    path.write_text(json.dumps(value))
    refuses(check, run, VersionError, "this release reads 1")


def test_attestation_of_another_kind(run: Path, check: Check) -> None:
    from vtrain.commit import statement
    from vtrain.commit.digest import file_digest
    from vtrain.store.writer import RUN_PREDICATE

    digest = file_digest(run / "checkpoints/000006/model.safetensors")
    for kind, name in (("https://vtrain.dev/attestation/run/v2", "checkpoints/000006/model.safetensors"),
                       (RUN_PREDICATE, "checkpoints/000004/model.safetensors")):  # fmt: skip
        made = statement.make_statement(name, digest, kind, {"steps": 6})
        (run / "attestation.json").write_bytes(statement.sign_statement(made, KEY))
        refuses(check, run, MalformedRunError)


def test_checkpoint_of_another_model(run: Path, check: Check) -> None:
    """Its digest is not the leaf's."""
    files, meta = read_checkpoint(Layout(run), 4)
    files["model"].pop("1.bias")
    write_checkpoint(Layout(run), 4, files, meta)
    refuses(check, run, CheckpointError, "the leaf commits to") if "audit" not in repr(check) else None
    with pytest.raises(CheckpointError):
        audited(run, steps=(5, 6))


@pytest.fixture
def run16(tmp_path: Path) -> Path:
    """bfloat16, certified, sparse."""
    return copied(honest("certified16"), tmp_path / "run16")


def rewrite(run: Path, change: Callable[[list[SiteLog], StepLog], StepLog], monkeypatch: pytest.MonkeyPatch) -> None:
    """Sign a log of step 3 that the writer would refuse."""
    monkeypatch.setattr("vtrain.store.log.check_step", lambda log, where: None)
    with forging(run) as forger:
        forger.change_log(3, lambda log: change(entries_of(log), log))
    monkeypatch.undo()


def sites_changed(log: StepLog, change: Callable[[np.ndarray], object]) -> StepLog:
    sites = log.sites.copy()
    change(sites)
    return StepLog(sites, log.gaps, log.codes, log.values, log.scalars)


def swap(sites: np.ndarray) -> None:
    sites[[0, 1]] = sites[[1, 0]]


def repeat(sites: np.ndarray) -> None:
    sites[1, 0] = sites[0, 0]


def assign(column: int, value: int) -> Callable[[np.ndarray], None]:
    def change(sites: np.ndarray) -> None:
        sites[0, column] = value

    return change


BROKEN: dict[str, Callable[[np.ndarray], None]] = {
    "sites out of order": swap,
    "site twice": repeat,
    "unknown encoding": assign(2, 7),
    "more entries than elements": assign(3, 10**6),
    "more whole values than there are": assign(4, 3),
    "huge result": assign(1, 2**60),
    "more entries than can be counted": assign(3, 2**64 - 1),
    "gaps of other entries": assign(5, 1),
}


@pytest.mark.parametrize("case", BROKEN)
def test_log_that_contradicts_itself(run16: Path, check: Check, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(run16, lambda sites, log: sites_changed(log, BROKEN[case]), monkeypatch)
    refuses(check, run16, LogError)


def entry(change: Callable[[SiteLog], object]) -> Callable[[list[SiteLog]], None]:
    return lambda sites: change(next(s for s in sites if s.seq == 14)) and None


def reordered(site: SiteLog) -> None:
    """Indices descending: the distance between two would be negative; written as the largest number of its width."""
    site.narrow[0], site.narrow[1] = site.narrow[1], site.narrow[0]


WELL_SIZED: dict[str, tuple[Callable[[SiteLog], object], str]] = {
    "entry twice": (lambda s: s.narrow.insert(0, s.narrow[0]), "repeated"),
    "beyond the result": (lambda s: s.narrow.append((s.numel, 1)), "beyond"),
    "far beyond the result": (lambda s: s.narrow.append((2**45, 1)), "beyond"),
    "both short and whole": (lambda s: s.wide.append((s.narrow[0][0], 0)), ""),
    "of another size": (lambda s: setattr(s, "numel", s.numel + 1), ""),
    "of the next operation": (lambda s: setattr(s, "seq", 15), ""),
}


@pytest.mark.parametrize("case", WELL_SIZED)
def test_log_that_no_trainer_writes(run16: Path, case: str) -> None:
    """Well-sized columns with nonsense in them, found when the step is replayed: the log is refuted."""
    change, text = WELL_SIZED[case]

    def forged(log: StepLog) -> StepLog:
        sites = entries_of(log)
        change(next(s for s in sites if s.seq == 14))
        return log_of(sites, log.scalars)

    with forging(run16) as forger:
        forger.change_log(3, forged)
    verdict = audited(run16)
    assert finding(verdict) == (3, "log")
    assert text in verdict.detail


def test_gaps_that_are_no_numbers(run16: Path) -> None:
    def forged(log: StepLog) -> StepLog:
        return StepLog(log.sites, log.gaps | np.uint8(0x80), log.codes, log.values, log.scalars)

    with forging(run16) as forger:
        forger.change_log(3, forged)
    verdict = audited(run16)
    assert finding(verdict) == (3, "log") and verdict.violations == 1


def test_program_that_names_no_shapes(run: Path, check: Check) -> None:
    import hashlib

    text = b'{"format":"vtrain-sites-v1","sites":["aten.mm.default float32[1e3]"]}'
    name = hashlib.sha256(text).hexdigest()
    (run / "programs" / f"{name}.json").write_bytes(text)
    with forging(run) as forger:
        forger.leaves[3]["sites"] = name
    refuses(check, run, MalformedRunError, "has no shape")


@pytest.mark.parametrize(
    "text", [b"[]", b'{"sites": 3}', b'{"sites": [3]}', b"{", b'{"sites": [], "sites": []}', b"\xff"]
)
def test_program_that_is_none(run: Path, check: Check, text: bytes) -> None:
    import hashlib

    name = hashlib.sha256(text).hexdigest()
    (run / "programs" / f"{name}.json").write_bytes(text)
    with forging(run) as forger:
        forger.leaves[3]["sites"] = name
    refuses(check, run, MalformedRunError)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("step", 4), ("step", "3"), ("step", True), ("log", "00"), ("log", 3), ("sites", "x" * 64), ("state", 3),
        ("state", "x" * 300), ("metrics", []), ("metrics", {"loss": "F32:xyz"}), ("metrics", {"loss": 2}),
        ("batch", {"image": "0"}), ("calibration", {"mm": "fast"}), ("extra", "x"),
    ],
)  # fmt: skip
def test_leaf_that_is_none(run: Path, check: Check, field: str, value: Any) -> None:
    with forging(run) as forger:
        forger.leaves[3][field] = value
    refuses(check, run, MalformedRunError)


def test_head_by_another_key(run: Path, check: Check) -> None:
    from vtrain.demo.forger import Forger

    Forger(run, keys.generate()).sign()
    refuses(check, run, SignatureError)


def test_runs_mixed(run: Path, check: Check) -> None:
    """Parts of another run by the same trainer."""
    other = make(run.parent / "other", job(train={"seed": "1"}))
    for name in ("checkpoints", "log.zarr", "programs"):
        shutil.rmtree(run / name)
        shutil.copytree(other / name, run / name)
    refuses(check, run, MalformedRunError)


def test_policy_fixture_is_certified() -> None:
    assert job(policy=CERTIFIED16).policy.threshold == "certified"


def test_log_of_another_step(run16: Path, check: Check) -> None:
    """Well-formed, and not what the leaf commits to."""
    with forging(run16) as forger:
        committed = forger.leaves[3]["log"]
        forger.change_log(3, lambda log: log_of(entries_of(log)[1:], log.scalars))
        assert forger.leaves[3]["log"] != committed
        forger.leaves[3]["log"] = committed
    refuses(check, run16, LogError, "step 3: the rounding log is not what the leaf commits to")
