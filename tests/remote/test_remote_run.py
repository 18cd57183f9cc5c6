"""Runs on stores, by the commands: trained, resumed, verified, inspected and audited there (protocol §3, §7)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from remote_helpers import left, names, objects, put, url_of
from run_helpers import KEY, evidence_bytes, honest, job, make, toml, values

from auditor.evidence import open_run
from auditor.verdict.verdict import VERDICT_PREDICATE
from vtrain.cli import group
from vtrain.commit import keys
from vtrain.commit.statement import open_statement
from vtrain.errors import PathError, RunExistsError, UsageError
from vtrain.store.address import Url
from vtrain.store.objects import open_store, write
from vtrain.store.remote import local_copy


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a job and a key."""
    keys.save_private(tmp_path / "k.key", KEY)
    (tmp_path / "k.pub").write_text(keys.public_text(KEY))
    (tmp_path / "job.toml").write_text(toml(values()))
    return tmp_path


def call(*arguments: object, code: int = 0) -> Result:
    done = CliRunner().invoke(group, [str(a) for a in arguments], catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done


def test_trained_on_a_store_as_on_a_disk(url: Url, files: Path, surroundings: Path) -> None:
    done = call("train", files / "job.toml", "--out", url.secret, "--key", files / "k.key")
    assert f"trained 6 steps: {url}" in done.output
    mine = objects(url)
    wanted = {n: d for n, d in evidence_bytes(honest()).items() if not n.endswith("/")}
    assert mine.keys() == wanted.keys()
    assert [n for n in wanted if mine[n] != wanted[n]] == []
    steps = [json.loads(line)["step"] for line in (open_store(url).read("metrics.jsonl", 1 << 20) or b"").splitlines()]
    assert steps == list(range(7))
    assert ".lock" not in names(url)
    assert left(surroundings) == []


def test_verified_inspected_and_audited_on_a_store(url: Url, files: Path, surroundings: Path) -> None:
    before = objects(put(honest(), url))
    done = call("verify", url.secret, "--trainer-key", files / "k.pub")
    assert "well-formed" in done.output
    assert json.loads(call("inspect", url.secret, "--json").output)["steps"] == [0, 6]
    verdict = url_of(f"{url.secret}-verdicts/first.json")
    signed = ("--verdict", verdict.secret, "--key", files / "k.key")
    done = call("audit", url.secret, "--job", files / "job.toml", *signed)
    assert "VERIFIED" in done.output
    envelope = open_store(verdict).read("", 1 << 20)
    assert envelope is not None
    assert open_statement(envelope, KEY.public_key(), VERDICT_PREDICATE)["predicate"]["result"] == "verified"
    assert objects(url) == before
    assert left(surroundings) == []


def test_verdicts_heads_and_proofs_on_a_store(url: Url, files: Path, surroundings: Path) -> None:
    """Whatever a command reads of a run, of a verdict on it and of a proof can lie on a store."""
    put(honest(), url)
    aside = f"{url.secret}-aside"
    verdict, head, proof = (url_of(f"{aside}/{name}") for name in ("verdict.json", "head", "proof.json"))
    call("audit", url.secret, "--job", files / "job.toml", "--verdict", verdict.secret, "--key", files / "k.key")
    write(head, open_run(honest()).notes[0].encode())
    signed = ("--verdict", verdict.secret, "--auditor-key", files / "k.pub")
    done = call("verify", url.secret, *signed, "--head", head.secret)
    assert "verified; its steps were chosen" in done.output and "head seen" in done.output
    call("report", url.secret, *signed, "--out", files / "page.html")
    assert "Verified" in (files / "page.html").read_text()
    assert call("dispute", url.secret, "--replay").output == "no step differs\n"
    write(proof, call("prove", url.secret, "--step", 3).output.encode().strip())
    assert '"step": 3' in call("prove", "--check", proof.secret, "--trainer-key", files / "k.pub").output
    with pytest.raises(UsageError, match="no such object"):
        call("verify", url.secret, "--verdict", f"{aside}/nothing", "--auditor-key", files / "k.pub")
    assert left(surroundings) == []


def test_a_refuted_run_has_its_exit_code_and_leaves_nothing(url: Url, files: Path, surroundings: Path) -> None:
    put(honest(), url)
    (files / "job.toml").write_text(toml(values(train={"seed": 1})))
    call("audit", url.secret, "--job", files / "job.toml", code=1)
    assert left(surroundings) == []


def test_no_verdict_inside_the_run(url: Url, files: Path) -> None:
    put(honest(), url)
    before = names(url)
    for verdict in (url.secret, f"{url.secret}/verdict.json", f"{url.secret}/checkpoints/v"):
        with pytest.raises(UsageError, match="inside the run"):
            call("audit", url.secret, "--verdict", verdict, "--key", files / "k.key")
    assert names(url) == before


def test_a_run_is_not_overwritten(url: Url, files: Path, surroundings: Path) -> None:
    before = objects(put(honest(), url))
    with pytest.raises(RunExistsError, match="exists"):
        call("train", files / "job.toml", "--out", url.secret, "--key", files / "k.key")
    assert objects(url) == before
    assert ".lock" not in names(url)


def test_nothing_to_resume(url: Url, files: Path) -> None:
    with pytest.raises(UsageError, match="no run to resume"):
        call("resume", url.secret, "--key", files / "k.key")
    assert names(url) == []


def test_a_job_that_fails_at_once_leaves_nothing(url: Url, files: Path, surroundings: Path) -> None:
    (files / "bad.py").write_text("def model():\n    raise ValueError('mine')\n")
    text = toml(values(program={"entry": "bad.py:model", "config": {}}))
    (files / "job.toml").write_text(text)
    with pytest.raises(Exception, match="mine"):
        call("train", files / "job.toml", "--out", url.secret, "--key", files / "k.key")
    assert names(url) == []
    assert left(surroundings) == []


def test_the_bound_on_a_download(url: Url, tmp_path: Path, surroundings: Path) -> None:
    put(honest(), url)
    size = sum(len(data) for data in objects(url).values()) + len(open_store(url).read("metrics.jsonl", 1 << 20) or b"")
    with local_copy(url, size) as path:
        assert evidence_bytes(path).keys() == evidence_bytes(honest()).keys()
    with pytest.raises(PathError, match=f"more than {size - 1} bytes; --max-download"), local_copy(url, size - 1):
        pass
    assert left(surroundings) == []


def test_a_local_path_and_a_file_url_are_read_where_they_are(tmp_path: Path, surroundings: Path) -> None:
    run = make(tmp_path / "run", job())
    with local_copy(run) as path:
        assert path == run
    assert "well-formed" in call("verify", f"file://{run}").output
    (run / "link").symlink_to(run / "job.json")
    with pytest.raises(PathError, match="unexpected name"):
        call("verify", f"file://{run}")


def test_the_copy_is_removed_on_an_interrupt(url: Url, surroundings: Path) -> None:
    put(honest(), url)
    with pytest.raises(KeyboardInterrupt), local_copy(url) as path:
        assert (path / "job.json").is_file()
        assert (path.parent.stat().st_mode & 0o777) == 0o700
        raise KeyboardInterrupt
    assert left(surroundings) == []
