"""Two runs are two runs: whose heads convict nobody, and whose verdicts say which one they are of (protocol §1, §5)."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import HERE, KEY, audited, finding, forging, job, make, random_nonce, silent
from torch import nn

import vtrain.store.writer as writer_module
from auditor import replay
from auditor.evidence import Evidence, open_run
from auditor.evidence.verify import verify
from auditor.verdict import Verdict
from auditor.verdict.file import VerdictFileError, read_verdict
from trainer import record
from trainer.train import resume
from vtrain.commit import heads
from vtrain.errors import EquivocationError, JobError, TranscriptError

PUBLIC = KEY.public_key()


@pytest.fixture(autouse=True)
def nonces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run its own, as everywhere but in the other tests."""
    monkeypatch.setattr(writer_module, "new_nonce", random_nonce)


def looped(
    path: Path, model: Any = lambda: nn.Linear(3, 2), optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
    stop: int = 0, **arguments: Any,
) -> Path:  # fmt: skip
    """A recorded loop of four steps; ``stop`` interrupts it after a step."""
    with record(
        path,
        model=model,
        optimizer=lambda m: optimizer(m.parameters(), lr=0.1),
        key=KEY,
        checkpoint_every=2,
        **arguments,
    ) as run:
        body(run, stop)
    return path


def body(run: Any, stop: int = 0) -> None:
    for step in range(run.steps_done + 1, 5):
        x = torch.full((2, 3), float(step))
        with run.step(x):
            run.model(x).sum().backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
        if step == stop:
            raise KeyboardInterrupt


def replayed(run: Path, model: Any = lambda: nn.Linear(3, 2), initial: str = "own", rate: float = 0.1) -> Verdict:
    with replay(
        run, model=model, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=rate), trainer_key=PUBLIC,
        initial=initial,
    ) as again:  # fmt: skip
        body(again)
    return again.verdict


def seen(run: Path, other: Path) -> Any:
    note = open_run(other).notes[-1]
    (other.parent / "seen").write_text(note)
    return verify(run, PUBLIC, silent, other.parent / "seen")


# ---- heads ---------------------------------------------------------------------------------------------------------
MAKERS: dict[str, Callable[[Path], Path]] = {"loop": looped, "job": lambda path: make(path, job())}


@pytest.mark.parametrize("kind", MAKERS)
def test_two_runs_of_one_job_and_key(kind: str, tmp_path: Path) -> None:
    """Even with the same bits: no equivocation, and the two are told apart."""
    a, b = (MAKERS[kind](tmp_path / name) for name in "ab")
    one, two = open_run(a), open_run(b)
    assert one.digest == two.digest and one.leaves == two.leaves and one.run != two.run
    assert one.notes[-1].split("\n")[0] == f"vtrain/{one.run.hex()}"
    for run, other in ((a, b), (b, a)):
        with pytest.raises(TranscriptError, match=r"another run.* two runs of one job"):
            seen(run, other)
        seen(run, run)


@pytest.mark.parametrize("kind", MAKERS)
def test_two_heads_of_one_run_are_still_equivocation(kind: str, tmp_path: Path) -> None:
    run = MAKERS[kind](tmp_path / "run")
    other = tmp_path / "forged"
    __import__("shutil").copytree(run, other)
    with forging(other) as forger:
        forger.leaves[-1]["log"] = "0" * 64
    assert open_run(other).run == open_run(run).run
    with pytest.raises(EquivocationError, match="two heads of size"):
        seen(run, other)


def test_loops_with_other_rates(tmp_path: Path) -> None:
    """Which have one job: nothing in it says what the loop does."""
    a = looped(tmp_path / "a")
    b = looped(tmp_path / "b", optimizer=torch.optim.Adam)
    assert open_run(a).digest == open_run(b).digest
    with pytest.raises(TranscriptError, match="another run"):
        seen(a, b)


# ---- verdicts ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", MAKERS)
def test_verdicts_say_which_run(kind: str, tmp_path: Path) -> None:
    a, b = (MAKERS[kind](tmp_path / name) for name in "ab")
    verdict = replayed(a) if kind == "loop" else audited(a)
    assert finding(verdict) == (None, "")
    name = heads.run_text(open_run(a).run)
    assert verdict.run == name == verdict.to_json()["run"] and f"  run             {name}" in str(verdict)
    verdict.sign(tmp_path / "verdict", KEY)
    assert read_verdict(tmp_path / "verdict", open_run(a), PUBLIC).found.run == name
    with pytest.raises(VerdictFileError, match="about another run: identity"):
        read_verdict(tmp_path / "verdict", open_run(b), PUBLIC)


# ---- what a loop's identity binds --------------------------------------------------------------------------------
def facts(evidence: Evidence) -> Any:
    assert evidence.identity.loop is not None
    return evidence.identity.loop


def test_what_a_loop_begins_with(tmp_path: Path) -> None:
    run = open_run(looped(tmp_path / "run", model=lambda: nn.Sequential(nn.Linear(3, 2), nn.ReLU())))
    assert facts(run).modules == {"": "Sequential", "0": "Linear", "1": "ReLU"} and facts(run).optimizer == "SGD"
    assert facts(run).state == run.leaves[0].state
    assert open_run(make(tmp_path / "job")).identity.loop is None


def test_another_class_with_the_same_bits_is_a_note(tmp_path: Path) -> None:
    """Bits decide; the names of classes are the trainer's words."""

    class Layer(nn.Linear):
        pass

    run = looped(tmp_path / "run")
    assert not any("classes" in note for note in replayed(run).notes)
    verdict = replayed(run, model=lambda: Layer(3, 2))
    assert finding(verdict) == (None, "")
    note = next(note for note in verdict.notes if "classes" in note)
    assert "module ''" in note and "Layer" in note and "was 'Linear'" in note


@pytest.mark.parametrize("initial", ["own", "run"])
@pytest.mark.parametrize(
    ("model", "names"),
    [(lambda: nn.Linear(3, 2, bias=False), "model/bias"), (lambda: nn.Sequential(nn.Linear(3, 2)), "model/0.bias"),
     (lambda: nn.Linear(3, 4), "model/weight")],
)  # fmt: skip
def test_another_structure_is_refuted_by_its_names(tmp_path: Path, initial: str, model: Any, names: str) -> None:
    verdict = replayed(looped(tmp_path / "run"), model=model, initial=initial)
    assert finding(verdict)[0] == 0 and verdict.what in ("state", "sites", "scalars")
    assert initial == "own" or names in verdict.detail


# ---- resuming ------------------------------------------------------------------------------------------------------
def test_resuming_keeps_the_identity(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        looped(tmp_path / "run", stop=3)
    before = (tmp_path / "run" / "run.json").read_bytes()
    note = open_run(tmp_path / "run").notes[-1]
    looped(tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    assert note in open_run(tmp_path / "run").notes and finding(replayed(tmp_path / "run")) == (None, "")


def test_resuming_a_job_keeps_the_identity(tmp_path: Path) -> None:
    run = make(tmp_path / "run")
    before = (run / "run.json").read_bytes()
    (run / "attestation.json").unlink()
    resume(run, HERE, KEY, silent)
    assert (run / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model": lambda: nn.Sequential(nn.Linear(3, 2))}, r"module '' is 'Sequential', was 'Linear'; module '0' is"),
        ({"optimizer": torch.optim.Adam}, "the optimizer is 'Adam', was 'SGD'"),
    ],
)
def test_resumed_with_another_loop(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        looped(tmp_path / "run", stop=3)
    with pytest.raises(JobError, match=text):
        looped(tmp_path / "run", resume=True, **change)
    looped(tmp_path / "run", resume=True)


def test_resumed_as_another_job_says_where(tmp_path: Path) -> None:
    """Nested keys too, and values that Python takes for equal."""
    from vtrain.policy import Policy

    with pytest.raises(KeyboardInterrupt):
        looped(tmp_path / "run", stop=3)
    with pytest.raises(JobError, match=r"another job: policy\.bits differ"):
        looped(tmp_path / "run", resume=True, policy=Policy(bits=20))


def test_killed_before_the_first_head(tmp_path: Path) -> None:
    """Nothing was signed: the loop may be another one then."""
    with pytest.raises(RuntimeError), record(tmp_path / "run", model=failing, key=KEY):
        pass
    writer = writer_module.create(tmp_path / "run", *job_bytes(), KEY)
    writer.close()
    run = looped(tmp_path / "run", resume=True)
    assert finding(replayed(run)) == (None, "")


def failing() -> nn.Module:
    raise RuntimeError


def job_bytes() -> tuple[bytes, bytes]:
    from trainer.loop import record as recorder
    from vtrain.job import job_digest

    made = recorder(Path("x"), model=nn.Linear(1, 1), checkpoint_every=2)._job().canonical()
    return made, job_digest(made)


# ---- source files --------------------------------------------------------------------------------------------------
SCRIPT = """
import sys
import torch
from torch import nn
import helper, below.more
from {role} import {verb}
with {verb}(sys.argv[1], model=lambda: nn.Linear(3, 2), optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1),
            **{arguments}) as run:
    for step in range(run.steps_done + 1, 3):
        x = torch.full((2, 3), float(step))
        with run.step(x):
            run.model(x).sum().backward()
            run.optimizer.step()
if {verb!r} == "replay":
    print(run.verdict)
elif {stop}:
    raise SystemExit
"""


def script(folder: Path, role: str, verb: str, arguments: str = "{}", stop: bool = False, helper: str = "") -> Path:
    (folder / "below").mkdir(parents=True, exist_ok=True)
    (folder / "below" / "__init__.py").touch()
    (folder / "below" / "more.py").write_text("x = 1\n")
    (folder / "unused.py").write_text("y = 1\n")
    (folder / "helper.py").write_text(helper)
    text = textwrap.dedent(SCRIPT).format(role=role, verb=verb, arguments=arguments, stop=stop)
    (folder / f"{verb}.py").write_text(text)
    return folder / f"{verb}.py"


def called(path: Path, run: Path) -> str:
    done = subprocess.run([sys.executable, str(path), str(run)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_source_files_are_bound(tmp_path: Path) -> None:
    """The script and what it imports from its folder; an auditor's other files are named, and refute nothing."""
    import hashlib

    folder, run = tmp_path / "theirs", tmp_path / "run"
    called(script(folder, "trainer", "record"), run)
    sources = facts(open_run(run)).sources
    assert sorted(sources) == ["below/__init__.py", "below/more.py", "helper.py", "record.py"]
    assert sources["record.py"] == hashlib.sha256((folder / "record.py").read_bytes()).hexdigest()

    said = called(script(tmp_path / "mine", "auditor", "replay"), run)
    assert said.startswith("VERIFIED") and "not the trainer's: 'record.py', 'replay.py'" in said
    said = called(script(tmp_path / "mine", "auditor", "replay", helper="# another\n"), run)
    assert said.startswith("VERIFIED") and "not the trainer's: 'helper.py', 'record.py', 'replay.py'" in said


def test_changed_files_are_named_on_resuming(tmp_path: Path) -> None:
    folder, run = tmp_path / "theirs", tmp_path / "run"
    called(script(folder, "trainer", "record"), run)
    (run / "attestation.json").unlink()
    said = called(script(folder, "trainer", "record", "{'resume': True}", helper="# another\n"), run)
    assert "begun with other files than now: helper.py, record.py" in said
    assert json.loads((run / "run.json").read_bytes())["loop"]["sources"]["helper.py"] == (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )
