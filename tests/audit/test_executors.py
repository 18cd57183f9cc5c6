"""Whoever replays, the verdict is the same in every byte: processes, ones that die, a cluster (protocol §7)."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import fragile
import pytest
from run_helpers import HERE, KEY, audited, copied, finding, forging, honest, job, make, tree_bytes

import auditor.audit.executors as executors
import auditor.audit.worker as worker_module
from auditor.audit import Request, audit
from auditor.audit.executors import TRIES, Processes, Replays
from auditor.audit.segment import Found
from auditor.audit.worker import Work
from auditor.evidence.segments import Segment
from vtrain.commit import keys
from vtrain.demo.forger import one_ulp
from vtrain.engine.backend import environment
from vtrain.errors import LogError, MalformedRunError, UnsupportedError, WorkerError


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight steps with a checkpoint each, of a program that can be made to kill its process."""
    program = {"entry": "fragile.py:fragile"}
    made = job(program=program, train={"steps": 8, "checkpoint_every": 1})
    return make(tmp_path_factory.mktemp("fragile") / "run", made)


def signed(run: Path, tmp_path: Path, **request: Any) -> bytes:
    """The verdict's file."""
    path = tmp_path / "verdict.json"
    audited(run, nonce="mine", **request).sign(path, KEY)
    return path.read_bytes()


@pytest.fixture(scope="module")
def expected(long_run: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The verdict of this process alone."""
    return signed(long_run, tmp_path_factory.mktemp("expected"))


def forged(long_run: Path, tmp_path: Path) -> Path:
    """Refuted at step 3, and again at step 6."""
    run = copied(long_run, tmp_path / "run")
    with forging(run) as forger:
        forger.leaves[3]["metrics"] = {}
        forger.change_checkpoint(6, lambda files: files["model"].update({"1.bias": one_ulp(files["model"]["1.bias"])}))
    return run


def damage_log(run: Path, step: int) -> None:
    """The log of a segment is not readable."""
    (run / "log.zarr" / f"{step:06d}" / "zarr.json").write_bytes(b"{}")


# ---- processes ------------------------------------------------------------------------------------------------------
def test_refuted_runs_have_the_same_verdict(long_run: Path, tmp_path: Path) -> None:
    """Segments after the first refuted one don't count, even if somebody replayed them and could not read them."""
    run = forged(long_run, tmp_path)
    alone = signed(run, tmp_path)
    damage_log(run, 4)
    assert finding(audited(run)) == (3, "loss")
    assert signed(run, tmp_path, jobs=2) == alone


def test_workers_that_are_killed(
    long_run: Path, expected: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL in the middle of a segment breaks the whole pool of processes; another one goes on."""
    wish = tmp_path / "once"
    wish.touch()
    monkeypatch.setenv(fragile.VARIABLE, str(wish))
    assert signed(long_run, tmp_path, jobs=2, progress=tmp_path / "p") == expected
    assert not wish.exists()
    assert len((tmp_path / "p").read_bytes().splitlines()) == 1 + 9


@pytest.mark.slow
def test_workers_that_always_die(long_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wish = tmp_path / "always"
    wish.touch()
    monkeypatch.setenv(fragile.VARIABLE, str(wish))
    with pytest.raises(WorkerError, match=f"steps 1-1: {TRIES} workers died") as error:
        audited(long_run, steps=(1, 1), jobs=2)
    assert error.value.exit_code == 4


def test_workers_end_with_a_killed_auditor(long_run: Path, tmp_path: Path) -> None:
    """They hold both ends of their queue, so they would wait forever."""
    code = (
        "import sys; from pathlib import Path; from auditor.audit import *\n"
        "if __name__ == '__main__':\n"
        f"    request = Request(Path({str(long_run)!r}), Path({str(HERE)!r}), jobs=2)\n"
        f"    request.progress = Path({str(tmp_path / 'p')!r})\n"
        "    audit(request, lambda s: None, lambda n: None)\n"
    )
    (tmp_path / "main.py").write_text(code)
    child = subprocess.Popen([sys.executable, str(tmp_path / "main.py")], start_new_session=True)
    try:
        await_(lambda: (tmp_path / "p").exists() and (tmp_path / "p").read_bytes().count(b"\n") >= 2)
        members = group_of(child.pid)
        assert len(members) >= 3
    finally:
        child.kill()
        child.wait()
    await_(lambda: not group_of(child.pid))


def await_(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def group_of(pid: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == pid and fields[0] != "Z":
                found.append(int(entry.name))
    return found


# ---- what a worker checks -------------------------------------------------------------------------------------------
def work(run: Path, **changes: Any) -> Work:
    note = json.loads((run / "transcript.jsonl").read_text().splitlines()[-1])["note"]
    return Work(run, HERE, keys.public_text(KEY), note, "mine", environment())._replace(**changes)


def test_worker_of_another_kind(long_run: Path) -> None:
    """Its results would be reported as those of the auditor's machine."""
    mine = environment()
    with pytest.raises(UnsupportedError, match=r"cpu_capability is .*, the auditor's .ALTIVEC."):
        worker_module._open(work(long_run, environment={**mine, "cpu_capability": "ALTIVEC"}))
    with pytest.raises(UnsupportedError, match="more is missing, the auditor's 1"):
        worker_module._open(work(long_run, environment={**mine, "more": 1}))
    assert worker_module._open(work(long_run)).replay(Segment(0, 1, 1), print).difference is None


def test_worker_that_sees_another_run(long_run: Path, tmp_path: Path) -> None:
    with pytest.raises(MalformedRunError, match="changed while it was audited"):
        worker_module._open(work(forged(long_run, tmp_path), note=work(long_run).note))


def test_worker_opens_each_work_once(long_run: Path) -> None:
    found = [worker_module.replay_in_worker(Segment(s, s + 1, s + 1), work(long_run)) for s in (0, 1)]
    kept = worker_module._kept
    assert kept is not None and [f.difference for f in found] == [None, None]
    worker_module.replay_in_worker(Segment(0, 1, 1), work(long_run))
    assert worker_module._kept is kept
    worker_module.replay_in_worker(Segment(0, 1, 1), work(long_run, nonce="another"))
    assert worker_module._kept is not kept


# ---- what a verdict must not depend on ------------------------------------------------------------------------------
def test_where_not_everything_is_looked_at_the_nonce_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """A draw of another kind each time would make another verdict of the same audit."""
    import auditor.audit.statistics as examiner

    monkeypatch.setattr(examiner, "_MOST", 8)
    run = honest("adaptive16")
    one, again, other = (audited(run, nonce=nonce).to_json()["freedom"] for nonce in ("a", "a", "b"))
    assert one == again != other
    assert audited(run, nonce="a", steps=(3, 4)).to_json()["freedom"] != audited(run, nonce="a").to_json()["freedom"]


def test_verdict_does_not_say_where_the_run_lies(long_run: Path, tmp_path: Path) -> None:
    details = []
    for name in ("here", "there"):
        run = copied(long_run, tmp_path / name)
        with forging(run) as forger:
            forger.change_checkpoint(
                3, lambda files: files["model"].update({"1.bias": one_ulp(files["model"]["1.bias"])})
            )
        (run / "checkpoints" / "000003" / "model.safetensors").unlink()
        verdict = audited(run, nonce="mine")
        assert finding(verdict) == (3, "state")
        details.append(verdict.detail)
    assert details[0] == details[1] and "can't be said: checkpoints/000003" in details[0]


# ---- any executor ---------------------------------------------------------------------------------------------------
@dataclass
class Odd(Executor):
    """Finishes what it was given last first, whenever it is waited for, and what ``fails`` names not at all."""

    fails: dict[int, list[BaseException]]
    started: list[int]
    waiting: list[tuple[Future[Any], int]]
    size: int = 3
    broken: bool = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self.broken:
            raise BrokenExecutor("it is broken")
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        number = args[0].first
        self.started.append(number)
        self.waiting.append((future, number))
        return future

    def finish_one(self) -> None:
        future, number = self.waiting.pop()
        if self.fails.get(number):
            error = self.fails[number].pop()
            self.broken |= isinstance(error, BrokenExecutor)
            future.set_exception(error)
        else:
            difference = (number, "loss", "forged") if number in REFUTED else None
            future.set_result(Found(Segment(number - 1, number, number), difference=difference))


REFUTED: set[int] = set()


@dataclass
class Crew:
    """Counts the executors that it makes."""

    fails: dict[int, list[BaseException]] = field(default_factory=dict)
    size: int = 3
    made: int = 0
    started: list[int] = field(default_factory=list)
    waiting: list[tuple[Future[Any], int]] = field(default_factory=list)

    def start(self) -> Executor:
        self.made += 1
        self.current = Odd(self.fails, self.started, self.waiting)
        return self.current

    def wait(self, futures: Any, **how: Any) -> Any:
        """Instead of ``wait``: finishes something, always in the same order."""
        if self.waiting:
            self.current.finish_one()
        return wait(futures, **how)


def run_all(crew: Crew, count: int = 9, stop: bool = True) -> tuple[list[int], list[int]]:
    """First steps of what came back until a difference, and of what was heard of at once."""
    heard: list[int] = []
    plan = [Segment(n - 1, n, n) for n in range(1, count + 1)]
    nothing = Work(Path(), None, None, "", "", {})
    out = []
    with mock.patch.object(executors, "wait", crew.wait):
        for found in Replays(crew, plan, nothing, lambda f: heard.append(f.segment.first)).results():
            out.append(found.segment.first)
            if found.difference and stop:
                break
    return out, heard


def test_results_come_in_order() -> None:
    crew = Crew()
    out, heard = run_all(crew)
    assert out == list(range(1, 10)) and sorted(heard) == out != heard
    assert crew.made == 1 and crew.started == out


def test_nothing_is_begun_after_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "REFUTED", {3})
    crew = Crew()
    out, heard = run_all(crew, count=30)  # the third is finished first, and the others are waited for
    assert out == crew.started == [1, 2, 3] and sorted(heard) == [1, 2]
    # ... unless it turns out to be benign, and the audit goes on
    assert run_all(Crew(), count=12, stop=False)[0] == list(range(1, 13))


def test_broken_executors_are_replaced() -> None:
    crew = Crew({2: [BrokenExecutor("dead")], 5: [BrokenExecutor("dead")] * (TRIES - 1)})
    out, heard = run_all(crew)
    assert out == list(range(1, 10)) and sorted(heard) == out
    assert 2 <= crew.made <= 1 + TRIES and crew.started.count(5) == TRIES and crew.started.count(2) == 2


def test_tries_are_bounded() -> None:
    crew = Crew({5: [BrokenExecutor("dead")] * 100})
    with pytest.raises(WorkerError, match=f"steps 5-5: {TRIES} workers died"):
        run_all(crew)
    assert crew.started.count(5) == TRIES


def test_errors_come_at_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    crew = Crew({3: [LogError("torn")]})
    replays = Replays(crew, [Segment(n - 1, n, n) for n in range(1, 7)], work_of_nobody(), heard.append)  # type: ignore[arg-type]
    monkeypatch.setattr(executors, "wait", crew.wait)
    results = replays.results()
    assert [next(results).segment.first for _ in range(2)] == [1, 2]
    with pytest.raises(LogError, match="torn"):
        next(results)
    monkeypatch.setattr(sys.modules[__name__], "REFUTED", {2})
    assert run_all(Crew({3: [LogError("torn")]}))[0] == [1, 2]


def work_of_nobody() -> Work:
    return Work(Path(), None, None, "", "", {})


def test_processes_are_spawned() -> None:
    with Processes(1).start() as pool:
        assert pool.submit(os.getppid).result() == os.getpid()
    assert executors.TRIES >= 2


# ---- a cluster ------------------------------------------------------------------------------------------------------
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'vtrain[ray]'"
)


def on_ray(run: Path, tmp_path: Path, *more: str, **variables: str) -> tuple[int, bytes, str]:
    """``vtrain audit --ray local`` with two workers; in a process of its own, which Ray fills with threads."""
    keys.save_private(tmp_path / "auditor.key", KEY)
    (tmp_path / "verdict.json").unlink(missing_ok=True)
    before = tree_bytes(run)
    done = subprocess.run(
        [sys.executable, "-m", "vtrain", "audit", str(run), "--program-dir", str(HERE), "--nonce", "mine",
         "--verdict", "verdict.json", "--key", "auditor.key", "--json", "--jobs", "2", "--ray", "local", *more],
        cwd=tmp_path, env={**os.environ, **variables}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    (tmp_path / "auditor.key").unlink()
    assert tree_bytes(run) == before
    verdict = tmp_path / "verdict.json"
    return done.returncode, verdict.read_bytes() if verdict.exists() else b"", done.stdout + done.stderr


def threads_of(verdict: bytes) -> int:
    from vtrain.commit.statement import strict_json

    return int(strict_json(keys.decode_base64(json.loads(verdict)["payload"]), "v")["predicate"]["auditor"]["threads"])


@needs_ray
def test_a_cluster_writes_the_same_verdict(long_run: Path, expected: bytes, tmp_path: Path) -> None:
    threads = str(threads_of(expected))
    wish = tmp_path / "once"
    wish.touch()
    code, verdict, said = on_ray(long_run, tmp_path, "--threads", threads, **{fragile.VARIABLE: str(wish)})
    assert (code, verdict) == (0, expected), said
    assert not wish.exists()  # a worker was killed in the middle


@needs_ray
@pytest.mark.slow
def test_refuted_on_a_cluster(long_run: Path, tmp_path: Path) -> None:
    run = forged(long_run, tmp_path)
    alone = signed(run, tmp_path)
    code, verdict, said = on_ray(run, tmp_path, "--threads", str(threads_of(alone)))
    assert (code, verdict) == (1, alone), said


@needs_ray
@pytest.mark.slow
def test_a_cluster_whose_workers_always_die(long_run: Path, tmp_path: Path) -> None:
    wish = tmp_path / "always"
    wish.touch()
    code, verdict, said = on_ray(long_run, tmp_path, "--steps", "1", **{fragile.VARIABLE: str(wish)})
    assert (code, verdict) == (4, b"") and f"{TRIES} workers died" in said


def test_no_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'vtrain\[ray\]'"):
        audit(Request(honest(), HERE, ray="local"), print, print)
    assert signal.getsignal(signal.SIGTERM) is not None
