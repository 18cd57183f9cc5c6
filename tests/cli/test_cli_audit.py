"""``vtrain audit``: how segments are chosen and progress is kept; ``vtrain verify --verdict``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from run_helpers import KEY, copied, forging, honest, job, make, tree_bytes
from test_cli_commands import Call, vtrain_  # noqa: F401

from auditor.verdict.verdict import VERDICT_PREDICATE
from vtrain.commit import keys, statement


def found(vtrain_: Call, *options: str) -> dict[str, Any]:  # noqa: F811
    done = vtrain_("audit", honest(), "--json", "--nonce", "mine", *options)
    assert (done.code, done.err) == (0, "")
    return json.loads(done.out)


@pytest.mark.parametrize(
    ("options", "sampled"),
    [(["--budget", "5%"], 1), (["--budget", "0.6"], 2), (["--budget", "100%"], 4),
     (["--confidence", "0.5", "--cheated", "0.25"], 2), (["--confidence", "100%", "--cheated", "1"], 1)],
)  # fmt: skip
def test_sizes_of_samples(vtrain_: Call, options: list[str], sampled: int) -> None:  # noqa: F811
    made = found(vtrain_, *options)
    assert made["segments"] == {"all": 4, "sampled": sampled}
    assert made["draw"]["nonce"] == "mine" and len(made["draw"]["segments"]) == sampled
    assert made == found(vtrain_, "--sample", str(sampled))


@pytest.mark.parametrize(
    "options",
    [["--budget", "0"], ["--budget", "x"], ["--budget", "5%", "--sample", "1"], ["--budget", "5%", "--steps", "1"],
     ["--confidence", "0.9"], ["--cheated", "0.5"], ["--confidence", "2", "--cheated", "0.5"],
     ["--confidence", "0.9", "--cheated", "0"], ["--confidence", "0.9", "--cheated", "0.5", "--sample", "1"],
     ["--confidence", "0.9", "--cheated", "0.5", "--budget", "1"], ["--nonce", "a\nb"], ["--threads", "0"]],
)  # fmt: skip
def test_options_that_make_no_sense(vtrain_: Call, options: list[str], tmp_path: Path) -> None:  # noqa: F811
    done = vtrain_("audit", honest(), "--progress", tmp_path / "p", *options)
    assert (done.code, done.out) == (2, "") and done.err
    assert not (tmp_path / "p").exists()


def test_progress_goes_on(vtrain_: Call, tmp_path: Path) -> None:  # noqa: F811
    keys.save_private(tmp_path / "me.key", KEY)
    options = ("--progress", "p", "--sample", "2", "--verdict", "v.json", "--key", "me.key")
    assert vtrain_("audit", honest(), *options).code == 0
    first = (tmp_path / "v.json").read_bytes()
    kept = (tmp_path / "p").read_bytes().splitlines(keepends=True)
    (tmp_path / "p").write_bytes(b"".join(kept[:2]) + kept[2][:9])
    assert vtrain_("audit", honest(), *options).code == 0
    assert (tmp_path / "v.json").read_bytes() == first  # with the nonce that was made the first time
    done = vtrain_("audit", honest(), "--progress", "p", "--sample", "3")
    assert (done.code, done.out) == (2, "") and "p: was begun for another audit: request.drawn was " in done.err


@pytest.mark.parametrize("inside", ["progress", "checkpoints/progress"])
def test_progress_inside_the_run(vtrain_: Call, run: Path, inside: str) -> None:  # noqa: F811
    before = tree_bytes(run)
    done = vtrain_("audit", run, "--progress", run / inside)
    assert (done.code, done.out) == (2, "") and "inside the run" in done.err
    assert tree_bytes(run) == before


def verdict_of(vtrain_: Call, run: Path, folder: Path, *options: str) -> Path:  # noqa: F811
    auditor = folder / "auditor.key"
    if not auditor.exists():
        made = keys.generate()
        keys.save_private(auditor, made)
        (folder / "auditor.pub").write_text(keys.public_text(made.public_key()))
    vtrain_("audit", run, "--verdict", folder / "v.json", "--key", auditor, *options)
    return folder / "v.json"


def test_verify_a_verdict(vtrain_: Call, run: Path, tmp_path: Path) -> None:  # noqa: F811
    verdict = verdict_of(vtrain_, run, tmp_path, "--sample", "2", "--nonce", "mine")
    check = ("verify", run, "--verdict", verdict, "--auditor-key", tmp_path / "auditor.pub")
    for more in ((), ("--nonce", "mine")):
        done = vtrain_(*check, *more)
        assert (done.code, done.err) == (0, "")
        assert "ok  verdict      verified; 2 of 4 segments, drawn as its nonce and the head say" in done.out
    assert vtrain_(*check, "--nonce", "yours").code == 2
    verdict_of(vtrain_, run, tmp_path, "--steps", "1:2")
    assert "verified; its steps were chosen, not drawn" in vtrain_(*check).out
    assert vtrain_(*check, "--nonce", "mine").code == 2


def test_verify_a_verdict_with_another_draw(vtrain_: Call, run: Path, tmp_path: Path) -> None:  # noqa: F811
    """Signed by the auditor itself, who replayed what it liked."""
    verdict = verdict_of(vtrain_, run, tmp_path, "--sample", "2", "--nonce", "mine")
    key = keys.load_private(tmp_path / "auditor.key")
    made = statement.open_statement(verdict.read_bytes(), key.public_key(), VERDICT_PREDICATE)
    drawn = made["predicate"]["draw"]["segments"]
    made["predicate"]["draw"]["segments"] = [n for n in range(4) if n not in drawn]
    verdict.write_bytes(statement.sign_statement(made, key))
    check = ("verify", run, "--verdict", verdict, "--auditor-key", tmp_path / "auditor.pub")
    done = vtrain_(*check)
    assert (done.code, done.out) == (3, "") and "nonce and head give" in done.err
    (tmp_path / "auditor.pub").write_text(keys.public_text(KEY.public_key()))
    done = vtrain_(*check)
    assert done.code == 3 and "signature" in done.err


def test_verify_a_verdict_of_another_run(vtrain_: Call, run: Path, tmp_path: Path) -> None:  # noqa: F811
    verdict = verdict_of(vtrain_, run, tmp_path, "--sample", "2")
    other = make(tmp_path / "other", job(train={"seed": "9"}))
    assert vtrain_("verify", other, "--verdict", verdict, "--auditor-key", tmp_path / "auditor.pub").code == 3
    changed = copied(run, tmp_path / "changed")
    with forging(changed) as forger:
        forger.leaves[3]["metrics"] = {}
    assert vtrain_("verify", changed, "--verdict", verdict, "--auditor-key", tmp_path / "auditor.pub").code == 3


@pytest.mark.parametrize("options", [["--verdict", "v"], ["--auditor-key", "k"], ["--nonce", "n"]])
def test_verify_options_that_go_together(vtrain_: Call, options: list[str], tmp_path: Path) -> None:  # noqa: F811
    done = vtrain_("verify", honest(), *options)
    assert (done.code, done.out) == (2, "") and "go together" in done.err
    assert os.listdir(tmp_path) == []
