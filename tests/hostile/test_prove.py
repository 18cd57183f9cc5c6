"""``vtrain prove``: a proof checks without the run, torch or zarr, and no spoilt one does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from run_helpers import KEY

import vtrain.cli
from auditor.evidence import open_run
from auditor.evidence.prove import MAX_PROOF_BYTES, check, prove
from vtrain.commit import heads, keys
from vtrain.errors import (
    MalformedRunError,
    ProofError,
    SignatureError,
    TranscriptError,
    UsageError,
    VersionError,
    VtrainError,
)
from vtrain.store import canonical

PUBLIC = KEY.public_key()


@pytest.mark.parametrize("step", range(7))
def test_every_step(template: Path, step: int) -> None:
    evidence = open_run(template)
    found = check(prove(evidence, step) + b"\n", PUBLIC)
    assert found.leaf == evidence.leaves[step] and found.head == evidence.heads[-1]


@pytest.mark.parametrize("step", [-1, 7])
def test_no_such_step(template: Path, step: int) -> None:
    with pytest.raises(UsageError, match="the run has 0 to 6"):
        prove(open_run(template), step)


def other_path(value: dict[str, Any]) -> None:
    value["path"][0] = "0" * 64


def other_note(value: dict[str, Any]) -> None:
    head = replace(heads.peek_head(value["head"]), root=bytes(range(32)))
    value["head"] = heads.sign_head(head, KEY, heads.KEY_NAME)


SPOILT: dict[str, tuple[Callable[[dict[str, Any]], object], type[VtrainError]]] = {
    "another step": (lambda v: v["leaf"].update(step=4), ProofError),
    "step beyond the head": (lambda v: v["leaf"].update(step=7), ProofError),
    "negative step": (lambda v: v["leaf"].update(step=-1), ProofError),
    "step that is no number": (lambda v: v["leaf"].update(step=True), TranscriptError),
    "another log": (lambda v: v["leaf"].update(log="0" * 64), ProofError),
    "another loss": (lambda v: v["leaf"]["metrics"].update(loss="F32:00000000"), ProofError),
    "no leaf": (lambda v: v.update(leaf=[]), TranscriptError),
    "leaf with more in it": (lambda v: v["leaf"].update(extra=1), TranscriptError),
    "another hash": (other_path, ProofError),
    "shorter path": (lambda v: v["path"].pop(), ProofError),
    "longer path": (lambda v: v["path"].append("0" * 64), ProofError),
    "path in another order": (lambda v: v["path"].reverse(), ProofError),
    "path without end": (lambda v: v.update(path=["0" * 64] * 65), ProofError),
    "path in capitals": (lambda v: v.update(path=[h.upper() for h in v["path"]]), ProofError),
    "path of short hashes": (lambda v: v.update(path=["00"] * 3), ProofError),
    "path of numbers": (lambda v: v.update(path=[0, 1, 2]), ProofError),
    "path that is none": (lambda v: v.update(path={}), ProofError),
    "head of another root": (other_note, ProofError),
    "head changed": (lambda v: v.update(head=v["head"].replace("\n7\n", "\n8\n")), SignatureError),
    "no head": (lambda v: v.update(head=None), TranscriptError),
    "another format": (lambda v: v.update(format="vtrain-step-proof-v1"), VersionError),
    "no format": (lambda v: v.pop("format"), VersionError),
    "unknown field": (lambda v: v.update(extra=1), MalformedRunError),
    "missing field": (lambda v: v.pop("path"), MalformedRunError),
}


@pytest.mark.parametrize("case", SPOILT)
def test_spoilt(template: Path, case: str) -> None:
    change, error = SPOILT[case]
    value = json.loads(prove(open_run(template), 3))
    check(canonical.dumps(value), PUBLIC)
    change(value)
    with pytest.raises(VtrainError) as caught:
        check(canonical.dumps(value), PUBLIC)
    assert type(caught.value) is error and caught.value.exit_code == 3


def test_form(template: Path) -> None:
    data = prove(open_run(template), 3)
    for spoilt in (b"", b"[]", b"{", data + b" ", data.replace(b":", b": ", 1), b"\xff" + data, b"[" * 100_000,
                   data + b"\n\n", b" " * (MAX_PROOF_BYTES + 1)):  # fmt: skip
        with pytest.raises(MalformedRunError):
            check(spoilt, PUBLIC)
    with pytest.raises(SignatureError):
        check(data, keys.generate().public_key())


BLOCK = """
import sys
for name in ("torch", "zarr", "cupy", "numcodecs"):
    sys.modules[name] = None  # importing it fails
sys.argv[0] = "vtrain"
import vtrain.cli
vtrain.cli.main()
"""


def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BLOCK, *map(str, arguments)], capture_output=True, text=True)


def test_command_without_torch_and_zarr(template: Path, tmp_path: Path) -> None:
    made = call("prove", template, "--step", "3")
    assert made.returncode == 0, made.stderr
    (tmp_path / "proof.json").write_text(made.stdout)
    done = call("prove", "--check", tmp_path / "proof.json", "--trainer-key", template / "trainer.pub")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["result"] == "proved" and found["leaf"]["step"] == 3 and found["head"]["size"] == 7
    (tmp_path / "proof.json").write_text(made.stdout.replace('"step":3', '"step":2'))
    spoilt = call("prove", "--check", tmp_path / "proof.json", "--trainer-key", template / "trainer.pub")
    assert (spoilt.returncode, spoilt.stdout) == (3, "") and spoilt.stderr.startswith("error: inclusion")


@pytest.mark.parametrize(
    "arguments",
    [
        "RUN", "--step 3", "RUN --step 9", "--check RUN/job.json", "RUN --check RUN/job.json",
        "--check RUN/nothing --trainer-key RUN/trainer.pub", "--check RUN --trainer-key RUN/trainer.pub",
        "--step 3 --check RUN/job.json --trainer-key RUN/trainer.pub", "RUN --step 3 --trainer-key RUN/job.json",
    ],
)  # fmt: skip
def test_usage(template: Path, arguments: str) -> None:
    words = [a.replace("RUN", str(template)) for a in arguments.split()]
    with pytest.raises(VtrainError) as caught:
        vtrain.cli.group.main(["prove", *words], standalone_mode=False)
    assert isinstance(caught.value, UsageError)
