"""Commands with bad input: one line, an exit code that README lists, and what to do next."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_helpers import copied, honest, toml, values
from test_cli_commands import Call, vtrain_  # noqa: F401

COMMANDS_ON_RUNS: list[list[str]] = [
    ["verify"], ["audit"], ["inspect"], ["report"], ["dispute", "--replay"], ["resume"], ["prove", "--step", "1"]
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS_ON_RUNS, ids=lambda c: c[0])
@pytest.mark.parametrize("place", ["nowhere", "file", "folder"])
def test_no_such_run(vtrain_: Call, tmp_path: Path, command: list[str], place: str) -> None:  # noqa: F811
    (tmp_path / "file").write_text("no run")
    (tmp_path / "folder" / "runs").mkdir(parents=True)
    name, *options = command
    done = vtrain_(name, tmp_path / place, *options)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {tmp_path / place}: no such run") and done.err.count("\n") == 1


JSON: list[list[str]] = [
    ["verify", "nowhere"], ["audit", "nowhere"], ["inspect", "nowhere"], ["dispute", "nowhere", "--replay"],
    ["referee", "nowhere"], ["verify"], ["audit", "nowhere", "--jobs", "0"], ["inspect", "nowhere", "--nonsense"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", JSON, ids=" ".join)
def test_errors_as_json(vtrain_: Call, arguments: list[str]) -> None:  # noqa: F811
    done = vtrain_(*arguments, "--json")
    found = json.loads(done.out)
    assert (done.code, found["exitCode"]) == (2, 2) and found["error"] and done.err


OUTPUTS: list[list[str]] = [
    ["audit", "RUN", "--verdict", "folder", "--key", "k"], ["audit", "RUN", "--verdict", "none/v", "--key", "k"],
    ["audit", "RUN", "--progress", "folder"], ["audit", "RUN", "--progress", "none/p"],
    ["report", "RUN", "--out", "folder"], ["report", "RUN", "--out", "none/r.html"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", OUTPUTS, ids=" ".join)
def test_where_nothing_can_be_written(vtrain_: Call, tmp_path: Path, arguments: list[str]) -> None:  # noqa: F811
    """Told before the hours that the audit takes, not after them."""
    vtrain_("keygen", "k")
    (tmp_path / "folder").mkdir()
    done = vtrain_(*(honest() if a == "RUN" else a for a in arguments))
    assert (done.code, done.out) == (2, "") and ("is a directory" in done.err or "there is no directory" in done.err)


def test_keys_that_are_others(vtrain_: Call, tmp_path: Path) -> None:  # noqa: F811
    vtrain_("keygen", "k")
    audit = ["audit", honest(), "--verdict", "v.json", "--key"]
    assert "make one with `vtrain keygen none.key`" in vtrain_(*audit, "none.key").err
    assert "k.pub is a public key; want the private one" in vtrain_(*audit, "k.pub").err
    assert (
        "k is a private key; want the public one beside it, k.pub"
        in vtrain_("verify", honest(), "--trainer-key", "k").err
    )
    assert "keygen PATH` writes a public key to PATH.pub" in vtrain_("verify", honest(), "--trainer-key", "x").err


def test_where_a_run_is_already(vtrain_: Call, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "job.toml").write_text(toml(values()))
    copied(honest(), tmp_path / "run")
    done = vtrain_("train", "job.toml", "--out", "run")
    assert done.code == 2 and "choose another place" in done.err and "resume" not in done.err
    (tmp_path / "run" / "attestation.json").unlink()
    assert "`vtrain resume run` goes on" in vtrain_("train", "job.toml", "--out", "run").err


PROGRAM = """
import torch
import vtrain
TOP


class Sick(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        raise ValueError("in backward")


def loss(model, batch):
    LOSS
    return model(batch["x"]).square().sum()


def make():
    MAKE
    return vtrain.Program(torch.nn.Linear(4, 2), loss, [{"x": torch.ones(4)}] * 8)
"""
FAILS = {
    "import": ({"TOP": "raise RuntimeError('at import')"}, "importing it failed: RuntimeError: at import", 4),
    "syntax": ({"TOP": "def ("}, "SyntaxError: invalid syntax", 4),
    "make": ({"MAKE": "raise KeyError('weights')"}, "KeyError: 'weights'", 23),
    "file": ({"MAKE": "open('/nowhere')"}, "FileNotFoundError", 23),
    "exit": ({"MAKE": "raise SystemExit(0)"}, "SystemExit: 0", 23),
    "loss": ({"LOSS": "raise ValueError('loss')"}, "ValueError: loss", 18),
    "shapes": ({"LOSS": "return model(batch['x'][:, :2]).sum()"}, "RuntimeError: mat1 and mat2 shapes", 18),
    "memory": ({"LOSS": "raise MemoryError('much')"}, "MemoryError: much", 18),
    "recursion": ({"LOSS": "return loss(model, batch)"}, "RecursionError", 18),
    "backward": ({"LOSS": "return Sick.apply(model(batch['x'])).sum()"}, "ValueError: in backward", 14),
}


@pytest.mark.parametrize("case", FAILS)
def test_a_program_that_fails_is_told_by_its_line(vtrain_: Call, tmp_path: Path, case: str) -> None:  # noqa: F811
    changes, text, line = FAILS[case]
    source = PROGRAM
    for name in ("TOP", "LOSS", "MAKE"):
        source = source.replace(name, changes.get(name, "pass"))
    (tmp_path / "p.py").write_text(source)
    made = values(program={"entry": "p.py:make"}, data={"name": "program"}, train={"steps": 1, "batch_size": 4})
    del made["program"]["config"], made["data"]["config"]
    (tmp_path / "job.toml").write_text(toml(made))
    done = vtrain_("train", "job.toml", "--out", "run")
    assert (done.code, done.out) == (2, "") and done.err.count("\n") == 1
    assert text in done.err and (f"p.py:{line} in " in done.err or f"p.py, line {line}" in done.err), done.err


def test_hints_name_options_that_exist(vtrain_: Call, tmp_path: Path) -> None:  # noqa: F811
    """A program that only the run names: what to do differs, as `vtrain dispute` has no --job."""
    (tmp_path / "p.py").write_text(PROGRAM.replace("TOP", "").replace("LOSS", "pass").replace("MAKE", "pass"))
    made = values(program={"entry": "p.py:make"}, data={"name": "program"}, train={"steps": 1, "batch_size": 4})
    del made["program"]["config"], made["data"]["config"]
    (tmp_path / "job.toml").write_text(toml(made))
    assert vtrain_("train", "job.toml", "--out", "run").code == 0
    for arguments, job in ((["dispute", "run", "--replay"], False), (["audit", "run"], True)):
        done = vtrain_(*arguments)
        assert done.code == 2 and "--program-dir" in done.err and ("--job" in done.err) == job
    (tmp_path / "run" / "attestation.json").unlink()
    (tmp_path / "elsewhere").mkdir()
    done = vtrain_("resume", "run", "--program-dir", "elsewhere")
    assert done.code == 2 and "--program-dir of `vtrain resume`" in done.err
