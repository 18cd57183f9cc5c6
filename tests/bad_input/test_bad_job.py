"""Jobs and programs that can't be trained: an error that says why, its exit code, and nothing written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import KEY, POLICIES, audited, evidence_bytes, honest, job, silent, toml, values

from auditor.evidence import open_run
from auditor.evidence.verify import verify
from trainer import record
from trainer.train import resume, train
from vtrain.commit import keys
from vtrain.errors import (
    BusyError,
    JobError,
    KeyFileError,
    ProgramError,
    RunExistsError,
    SignatureError,
    StorageError,
    UnsupportedError,
    UsageError,
    VersionError,
    VtrainError,
)
from vtrain.job import load, parse
from vtrain.store.layout import Layout, WriterLock

DELETE = object()


def changed(*path_and_value: Any) -> dict[str, Any]:
    *path, last, value = path_and_value
    made = values()
    table = made
    for key in path:
        table = table.setdefault(key, {})
    if value is DELETE:
        del table[last]
    else:
        table[last] = value
    return made


IMPOSSIBLE: dict[str, tuple[Any, ...]] = {
    "unknown key": ("train", "learning_rate", 0.1, "train.learning_rate: unknown key"),
    "unknown table": ("logging", "level", 1, "logging: unknown key"),
    "text for a number": ("train", "steps", "6", "train.steps: "),
    "number for a text": ("data", "name", 3, "data.name: "),
    "fraction for a count": ("train", "steps", 6.5, "train.steps: "),
    "truth for a count": ("train", "steps", True, "train.steps: "),
    "no steps": ("train", "steps", 0, "train.steps: "),
    "steps below zero": ("train", "steps", -1, "train.steps: "),
    "empty batch": ("train", "batch_size", 0, "train.batch_size: "),
    "batch that does not divide": ("train", "accumulate", 3, "batch_size 8 is not a multiple of accumulate 3"),
    "seed below zero": ("train", "seed", -1, "train.seed: "),
    "seed too large": ("train", "seed", str(2**128), "train.seed: "),
    "seed in words": ("train", "seed", "four", "train.seed: "),
    "rate zero": ("optimizer", "lr", 0.0, "optimizer.lr: "),
    "rate infinite": ("optimizer", "lr", float("inf"), "optimizer.lr: "),
    "rate not a number": ("optimizer", "lr", float("nan"), "optimizer.lr: "),
    "unknown optimizer": ("optimizer", "name", "lion", "optimizer.name: "),
    "one beta": ("optimizer", "betas", [0.9], "optimizer.betas: "),
    "unknown schedule": ("schedule", "name", "step", "schedule.name: "),
    "missing key": ("optimizer", "lr", DELETE, "optimizer.lr: required key is missing"),
    "missing table": ("program", DELETE, "program: required key is missing"),
    "entry without function": ("program", "entry", "vtrain.programs.mlp", "want 'module:function'"),
    "bits": ("policy", "bits", 7, "policy: "),
    "threshold": ("policy", "threshold", "sloppy", "threshold is 'sloppy'"),
    "tau below zero": ("policy", "threshold", -1.0, "threshold is -1.0"),
    "target": ("policy", "target", "float8", "policy: target: "),
    "encoding": ("policy", "encoding", "dense", "policy: encoding: "),
    "unknown policy key": ("policy", "treshold", "off", "policy: treshold: unknown key"),
    "autocast": ("train", "autocast", "float16", "train.autocast: "),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_job(case: str) -> None:
    *change, text = IMPOSSIBLE[case]
    with pytest.raises(JobError) as caught:
        parse(changed(*change), "job.toml")
    assert caught.value.exit_code == 2
    assert str(caught.value).startswith("job.toml: ") and text in str(caught.value)


def test_all_errors_at_once(tmp_path: Path) -> None:
    made = changed("train", "steps", 0)
    made["optimizer"]["lr"] = "fast"
    with pytest.raises(JobError) as caught:
        parse(made, "job.toml")
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == ["train.steps", "optimizer.lr"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "No such file"),
        (b"[train\n", "not TOML"),
        (b"\xff\xfe", "not TOML"),
        (b"", "required key is missing"),
        (b"#" * (1 << 20) + b"\n", "bytes, want at most"),
    ],
)
def test_no_job_file(tmp_path: Path, content: bytes | None, text: str) -> None:
    path = tmp_path / "job.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(JobError, match=text) as caught:
        load(path)
    assert str(path) in str(caught.value) and caught.value.exit_code == 2


def test_job_file_is_the_job(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(toml(values()))
    assert load(tmp_path / "job.toml") == job()


@pytest.mark.parametrize(("version", "error"), [(2, VersionError), (0, JobError), (True, JobError), ("1", JobError)])
def test_job_of_another_version(version: Any, error: type[VtrainError]) -> None:
    with pytest.raises(error, match="format"):
        parse({**values(), "format": version}, "job.toml")
    assert error.exit_code == (3 if error is VersionError else 2)


GOOD = """
import torch
from vtrain import Program
from vtrain.programs.vision import cross_entropy

def make():
    return Program(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10)), cross_entropy)
"""
PROGRAMS: dict[str, tuple[str, str]] = {
    "missing function": ("def other(): pass\n", "has no function 'make'"),
    "not a function": ("make = 3\n", "has no function 'make'"),
    "syntax error": ("def make(:\n", "importing it failed: SyntaxError"),
    "import that fails": ("import no_such_module_anywhere\n", "importing it failed: ModuleNotFoundError"),
    "raises on import": ("raise RuntimeError('boom')\n", "importing it failed: RuntimeError: boom"),
    "raises": ("def make():\n    raise ValueError('boom')\n", "ValueError: boom"),
    "raises KeyError": ("def make():\n    return {}['model']\n", "KeyError: 'model'"),
    "exits on import": ("import sys\nsys.exit(0)\n", "SystemExit"),
    "returns nothing": ("def make():\n    pass\n", "returned a NoneType"),
    "returns a tuple": ("def make():\n    return 1, 2\n", "returned a tuple"),
    "returns a class": ("import torch\ndef make():\n    return torch.nn.Linear\n", "returned a type"),
    "wants an argument": ("def make(width):\n    pass\n", "missing 1 required positional argument"),
    "loss raises": (GOOD.replace("cross_entropy)", "lambda m, b: 1 / 0)"), "ZeroDivisionError"),
    "loss of a missing part": (GOOD.replace("cross_entropy)", "lambda m, b: b['text'])"), "KeyError: 'text'"),
    "loss is no tensor": (GOOD.replace("cross_entropy)", "lambda m, b: 3.0)"), "loss is a float"),
    "loss is a vector": (GOOD.replace("cross_entropy)", "lambda m, b: m(b['image'])[:, 0])"), "loss has shape [8]"),
    "loss without gradient": (
        GOOD.replace("cross_entropy)", "lambda m, b: m(b['image']).detach().sum())"), "requires no gradient"
    ),
    "no parameters": ("import torch\ndef make():\n    return torch.nn.ReLU()\n", "no parameters"),
}  # fmt: skip


def train_program(tmp_path: Path, text: str | None, **program: Any) -> Path:
    folder = tmp_path / "programs"
    folder.mkdir(exist_ok=True)
    if text is not None:
        (folder / "program.py").write_text(text)
    made = values()
    made["program"] = {"entry": "program.py:make", **program}
    train(parse(made, "job"), folder, tmp_path / "run", KEY, silent)
    return tmp_path / "run"


def test_program_file(tmp_path: Path) -> None:
    run = train_program(tmp_path, GOOD, sha256=hashlib.sha256(GOOD.encode()).hexdigest())
    assert audited(run, directory=tmp_path / "programs").verified


def test_an_optimizer_that_refuses_the_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self: torch.optim.Optimizer) -> None:
        raise RuntimeError("it does not support such gradients")

    for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        monkeypatch.setattr(kind, "step", step)
    with pytest.raises(ProgramError, match=r"program.py:make.*RuntimeError: it does not support"):
        train_program(tmp_path, GOOD)


@pytest.mark.parametrize("case", PROGRAMS)
def test_bad_program(tmp_path: Path, case: str) -> None:
    source, text = PROGRAMS[case]
    with pytest.raises(ProgramError) as caught:
        train_program(tmp_path, source)
    assert text in str(caught.value) and "'program.py:make'" in str(caught.value)
    assert caught.value.exit_code == 2
    if case.startswith("loss"):  # found in the first step: the initialisation is kept
        assert open_run(tmp_path / "run").last_step == 0
    else:
        assert os.listdir(tmp_path) == ["programs"]


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ("program.py:make", "no file"),
        ("../elsewhere/program.py:make", "no file"),
        ("no_such_module_anywhere:make", "no module"),
        ("vtrain.no_such_module:make", "no module"),
        ("no_such_module_anywhere.sub:make", "no module"),
        ("vtrain.programs.mlp:conceptron", "has no function 'conceptron'"),
        ("sys:getsizeof", "with a source file"),
    ],
)
def test_missing_program(tmp_path: Path, entry: str, text: str) -> None:
    with pytest.raises(ProgramError, match=text) as caught:
        train_program(tmp_path, None, entry=entry)
    assert entry in str(caught.value) and not (tmp_path / "run").exists()


def test_program_with_unknown_configuration(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="unexpected keyword argument 'width'"):
        train(job(program={"config": {"width": 3}}), tmp_path, tmp_path / "run", KEY, silent)
    assert os.listdir(tmp_path) == []


def test_program_of_another_digest(tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="has SHA-256") as caught:
        train_program(tmp_path, GOOD, sha256="0" * 64)
    assert "made for " + "0" * 64 in str(caught.value) and not (tmp_path / "run").exists()


def test_program_changed_after_training(tmp_path: Path) -> None:
    """Neither resumed nor audited with another program than it was trained with."""
    run = train_program(tmp_path, GOOD)
    folder = tmp_path / "programs"
    (folder / "program.py").write_text(GOOD + "\n")
    before = evidence_bytes(run)
    with pytest.raises(ProgramError, match="has SHA-256"):
        audited(run, directory=folder)
    (run / "attestation.json").unlink()
    with pytest.raises(ProgramError, match="has SHA-256"):
        resume(run, folder, KEY, silent)
    del before["attestation.json"]
    assert evidence_bytes(run) == before


DATA: dict[str, tuple[dict[str, Any], type[VtrainError], str]] = {
    "unknown": ({"name": "imagenet"}, JobError, "'imagenet' is unknown; wanted digits, random-images"),
    "unknown key": ({"name": "random-images", "config": {"size": 3}}, JobError, "unknown key 'size'"),
    "empty": ({"name": "random-images", "config": {"n": 0}}, JobError, "n"),
    "wrong type": ({"name": "random-images", "config": {"n": "many"}}, JobError, "n"),
    "another digest": ({"digest": "vtrain-data-v1-sha256:" + "0" * 64}, JobError, "the job was made for"),
    "too few": ({"config": {"n": 4, "shape": [3, 8, 8]}}, JobError, "8 samples a step, and the data set has 4"),
    "the program's, which has none": ({"name": "program", "config": {}}, ProgramError, "it gives none"),
}


@pytest.mark.parametrize("case", DATA)
def test_bad_data(tmp_path: Path, case: str) -> None:
    change, error, text = DATA[case]
    with pytest.raises(error, match=text) as caught:
        train(job(data=change), tmp_path, tmp_path / "run", KEY, silent)
    assert caught.value.exit_code == 2
    assert os.listdir(tmp_path) == []


def test_auditors_data_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    from vtrain.data.datasets import RandomImages

    run, get = honest(), RandomImages.__getitem__
    monkeypatch.setattr(RandomImages, "__getitem__", lambda self, i: get(self, (i + 1) % len(self)))
    with pytest.raises(UnsupportedError, match="on this machine; the job wants") as caught:
        audited(run)
    assert caught.value.exit_code == 4


def test_run_exists(run: Path) -> None:
    before = evidence_bytes(run)
    with pytest.raises(RunExistsError, match="exists and is not an empty directory") as caught:
        train(job(), run, run, KEY, silent)
    assert caught.value.exit_code == 2
    with pytest.raises(RunExistsError), record(run, model=torch.nn.Linear(1, 1), key=KEY):
        pass
    assert evidence_bytes(run) == before


def test_file_where_the_run_should_be(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(RunExistsError):
        train(job(), tmp_path, tmp_path / "run", KEY, silent)
    assert (tmp_path / "run").read_text() == "mine"


def test_empty_directory_is_taken_and_kept(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(JobError):
        train(job(data={"config": {"n": 4, "shape": [3, 8, 8]}}), tmp_path, tmp_path / "run", KEY, silent)
    assert os.listdir(tmp_path) in ([], ["run"])
    train(job(), tmp_path, tmp_path / "run", KEY, silent)
    assert evidence_bytes(tmp_path / "run") == evidence_bytes(honest())


def test_parent_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError) as caught:
        train(job(), tmp_path, tmp_path / "file" / "run", KEY, silent)
    assert caught.value.exit_code == 3 and str(tmp_path / "file" / "run") in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine" and os.listdir(tmp_path) == ["file"]


def test_parent_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match="Permission denied") as caught:
        train(job(), tmp_path, tmp_path / "run", KEY, silent)
    assert caught.value.exit_code == 3 and os.listdir(tmp_path) == []


def unfinished(run: Path) -> Path:
    (run / "attestation.json").unlink()
    return run


def test_written_by_another_process(run: Path) -> None:
    before = evidence_bytes(unfinished(run))
    with WriterLock(Layout(run)), pytest.raises(BusyError, match="another process is writing this run") as caught:
        resume(run, run, KEY, silent)
    assert caught.value.exit_code == 2
    assert evidence_bytes(run) == before
    resume(run, run, KEY, silent)
    assert evidence_bytes(run) == evidence_bytes(honest())


@pytest.mark.parametrize("make", [lambda p: p / "nothing", lambda p: p])
def test_resume_nothing(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    with pytest.raises(UsageError, match="no such run"):
        resume(make(tmp_path), tmp_path, KEY, silent)
    assert os.listdir(tmp_path) == []


def test_wrong_key(run: Path) -> None:
    other = keys.generate()
    for check in (
        lambda: verify(run, other.public_key(), lambda step, last: None),
        lambda: audited(run, key=other.public_key()),
    ):
        with pytest.raises(SignatureError, match=r"trainer.pub: key [0-9a-f]{64}; expected [0-9a-f]{64}") as caught:
            check()
        assert caught.value.exit_code == 3
    before = evidence_bytes(unfinished(run))
    with pytest.raises(KeyFileError, match="begun with another key") as refused:
        resume(run, run, other, silent)
    assert refused.value.exit_code == 2 and evidence_bytes(run) == before


def test_signed_by_another_key(run: Path) -> None:
    """The run's own key file changed to match forged signatures: found by who knows the key."""
    from vtrain.demo.forger import Forger

    other = keys.generate()
    (run / "trainer.pub").write_text(keys.public_text(other))
    with pytest.raises(SignatureError):
        verify(run, None, lambda step, last: None)
    Forger(run, other).sign()
    verify(run, None, lambda step, last: None)
    with pytest.raises(SignatureError, match="expected"):
        verify(run, KEY.public_key(), lambda step, last: None)


def test_other_release_of_the_operation_table(tmp_path: Path) -> None:
    with pytest.raises(VersionError, match="optable") as caught:
        train(
            parse({**values(), "optable": "vtrain-optable-v1-sha256:0"}, "job"), tmp_path, tmp_path / "r", KEY, silent
        )
    assert caught.value.exit_code == 3 and os.listdir(tmp_path) == []


@pytest.mark.parametrize("policy", POLICIES)
def test_other_version_of_torch(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Allowed, as the engine fixes the bits; the verdict says it."""
    import auditor.audit.auditing as module

    here = module.environment()
    monkeypatch.setattr(module, "environment", lambda: {**here, "torch": "9.9.9"})
    verdict = audited(honest(policy))
    assert verdict.verified
    assert f"PyTorch 9.9.9 here, {here['torch']} at the trainer" in verdict.notes
    assert verdict.environment["torch"] == "9.9.9" and verdict.trainer["torch"] == here["torch"]
