"""The file of an audit's progress: of another audit, damaged, of something else (protocol §7)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from run_helpers import KEY, audited, forging, honest, job
from test_fault_auditor import auditing, lines

from auditor.audit.plan import Confidence
from auditor.audit.progress import Progress
from vtrain.errors import BusyError, ProgressError, UsageError

OTHERS: dict[str, Any] = {
    "steps": ({"steps": (0, 2)}, "request.steps"),
    "sample": ({"sampled": 2}, "request.drawn"),
    "confidence": ({"confidence": Confidence(1, 1)}, "request.drawn"),  # type: ignore[arg-type]
    "nonce": ({"nonce": "yours"}, "nonce"),
    "key": ({"key": KEY.public_key()}, "request.key"),
    "job": ({"job": job()}, "request.job"),
    "threads": ({"threads": 3}, "environment.threads"),
}


@pytest.mark.parametrize("name", sorted(OTHERS))
def test_progress_of_another_request(run: Path, tmp_path: Path, name: str) -> None:
    request, text = OTHERS[name]
    audited(run, nonce="mine", progress=tmp_path / "p")
    before = (tmp_path / "p").read_bytes()
    with pytest.raises(ProgressError, match=rf"another audit: {text} was .*, is ") as error:
        audited(run, **{"nonce": "mine", "progress": tmp_path / "p", **request})
    assert error.value.exit_code == 2 and (tmp_path / "p").read_bytes() == before


def test_progress_of_another_run(run: Path, tmp_path: Path) -> None:
    audited(honest("ternary16"), nonce="mine", progress=tmp_path / "p")
    with pytest.raises(ProgressError, match=r"another audit: head was .* job was "):
        audited(run, nonce="mine", progress=tmp_path / "p")
    (tmp_path / "p").unlink()
    audited(run, nonce="mine", progress=tmp_path / "p")
    with forging(run):
        pass  # the same job and leaves, signed again: the note has the same bytes, so this is the same run
    audited(run, nonce="mine", progress=tmp_path / "p")
    with forging(run) as forger:
        forger.leaves[6]["metrics"] = {}
    with pytest.raises(ProgressError, match="another audit: head was "):
        audited(run, nonce="mine", progress=tmp_path / "p")


def test_progress_of_another_machine(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import auditor.audit.auditing as module

    audited(run, nonce="mine", progress=tmp_path / "p")
    environment = module.environment()
    monkeypatch.setattr(module, "environment", lambda: {**environment, "processor": "another"})
    with pytest.raises(ProgressError, match=r'environment.processor was .*, is "another"'):
        audited(run, nonce="mine", progress=tmp_path / "p")


def test_damaged_progress(run: Path, tmp_path: Path) -> None:
    """One bit of anything but a torn last line; nothing of the file is thrown away."""
    audited(run, nonce="mine", progress=tmp_path / "p")
    whole = (tmp_path / "p").read_bytes()
    for place in (5, len(whole) // 3, len(whole) // 2):
        data = bytearray(whole)
        data[place] ^= 1
        (tmp_path / "p").write_bytes(data)
        with pytest.raises(ProgressError, match=r"line [123]: damaged"):
            audited(run, nonce="mine", progress=tmp_path / "p")
        assert (tmp_path / "p").read_bytes() == data


@pytest.mark.parametrize("text", ["my notes", "my notes\n", "{}", '{"sha256":"00","value":{}}\n', "\n"])
def test_file_of_something_else(run: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "p").write_text(text)
    with pytest.raises(ProgressError, match="line 1: damaged, or no progress"):
        audited(run, progress=tmp_path / "p")
    assert (tmp_path / "p").read_text() == text


def test_a_power_cut_leaves_zeros(run: Path, tmp_path: Path) -> None:
    auditing(run, tmp_path)()
    verdict, kept = (tmp_path / "verdict.json").read_bytes(), lines(tmp_path)
    for count in (0, 2):
        (tmp_path / "progress").write_bytes(b"".join(kept[:count]) + b"\0" * 40)
        auditing(run, tmp_path)()
        assert (tmp_path / "verdict.json").read_bytes() == verdict and lines(tmp_path) == kept


def test_one_audit_at_a_time(run: Path, tmp_path: Path) -> None:
    with Progress(tmp_path / "p"), pytest.raises(BusyError, match="another audit is writing"):
        audited(run, progress=tmp_path / "p")


def test_never_inside_the_run(run: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(run)
    for path in (run / "progress", run / "checkpoints" / "p", tmp_path / "link" / "p"):
        with pytest.raises(UsageError, match="inside the run"):
            audited(run, progress=path)
