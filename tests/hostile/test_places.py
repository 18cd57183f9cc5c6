"""Names and kinds of files: nothing outside the run is read, run or written, and no terminal is taken over."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from calling import refused
from guard import confined
from run_helpers import HERE, KEY, STEPS, audited, finding, job
from simulator import Enemy

import vtrain.cli
from auditor.audit.programs import check_program
from vtrain.errors import LogError, MalformedRunError, PathError, StorageError, UsageError, VtrainError
from vtrain.job import ProgramSpec

WORDS = [
    "job.json", "run.json", "trainer.pub", "transcript.jsonl", "attestation.json", "log.zarr/000004/zarr.json",
    "log.zarr/000004/codes/c/0", "checkpoints/000002/meta.json", "checkpoints/000006/model.safetensors",
]  # fmt: skip


def device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero: endless
    except PermissionError:
        pytest.skip("only root makes devices")


SPECIAL: dict[str, Callable[[Path], object]] = {
    "FIFO": os.mkfifo,
    "a device": device,
    "a symbolic link": lambda path: path.symlink_to("/etc/hostname"),
    "hard links": lambda path: os.link(Path(__file__), path),
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", WORDS)
def test_special_file(run: Path, name: str, kind: str) -> None:
    (run / name).unlink()
    try:
        SPECIAL[kind](run / name)
    except OSError as error:  # another file system
        pytest.skip(str(error))
    with pytest.raises(VtrainError, match=kind) as caught, confined(run.parent / "nothing", 60):
        vtrain.cli.group.main(["verify", str(run)], standalone_mode=False)
    assert type(caught.value) is PathError
    with pytest.raises(PathError, match=kind), confined(run.parent / "nothing", 60):
        vtrain.cli.group.main(["audit", str(run)], standalone_mode=False)


@pytest.mark.parametrize("name", ["programs", "checkpoints", "log.zarr", "log.zarr/000004", "checkpoints/000002"])
def test_directory_that_is_a_link(run: Path, name: str) -> None:
    (run / name).rename(run.parent / "elsewhere")
    (run / name).symlink_to(run.parent / "elsewhere")
    refused(run, PathError, "a symbolic link")


def test_directories_without_end(run: Path) -> None:
    """Deeper than a path can be long."""
    at = os.open(run / "programs", os.O_RDONLY)
    for _ in range(600):
        os.mkdir("d" * 20, dir_fd=at)
        below = os.open("d" * 20, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    for command in ("verify", "audit"):
        with pytest.raises((PathError, StorageError)) as caught, confined(run.parent / "nothing", 60):
            vtrain.cli.group.main([command, str(run)], standalone_mode=False)
        assert caught.value.exit_code == 3
    subprocess.run(["rm", "-r", str(run / "programs")], check=True)


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "checkpoints/../job.json", "checkpoints/000006/x"])
def test_attestation_about_a_file_elsewhere(run: Path, name: str) -> None:
    enemy = Enemy(run)
    enemy.sign()
    enemy.attest(lambda made: made["subject"][0].update(name=name))
    refused(run, MalformedRunError, "its subject is")


def test_names_and_words_for_a_terminal(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Control characters in what an error quotes come out escaped."""
    changes: list[Callable[[Enemy], object]] = [
        lambda e: e.change_job(lambda j: j.update({"\x1b[2J\r": 1})),
        lambda e: e.change_job(lambda j: j["program"].update(entry="\x1b[2J.x:y")),
        lambda e: (run / "\x1b[2J\udcff").write_text("x"),
    ]
    for change in changes:
        with Enemy(run) as enemy:
            change(enemy)
        for command in ("verify", "audit"):
            if main(command, str(run)):
                said = capsys.readouterr().err
                assert said.startswith("error: ") and "\x1b" not in said and "\r" not in said
                assert "x1b[2J" in said
        capsys.readouterr()


def main(*arguments: str) -> int:
    """The command line as a process would end."""
    before, sys.argv = sys.argv, ["vtrain", *arguments]
    try:
        with pytest.raises(SystemExit) as end:
            vtrain.cli.main()
    finally:
        sys.argv = before
    assert isinstance(end.value.code, int) and end.value.code != vtrain.cli.INTERNAL
    return end.value.code


# ---- programs: an audit without the client's job ---------------------------------------------------------------------
def evil(folder: Path) -> Path:
    """A program that leaves a trace when it is imported."""
    folder.mkdir(exist_ok=True)
    (folder / "evil.py").write_text(f"open({str(folder.parent / 'trace')!r}, 'w').write('x')\ndef make(): pass\n")
    return folder


ENTRIES: dict[str, tuple[str, dict[str, Any]]] = {
    "a process": ("subprocess:check_output", {"args": ["touch", "trace"]}),
    "a shell": ("os:system", {"command": "touch trace"}),
    "a function that only passes through": ("vtrain.programs.mlp:resolve", {}),
    "not in vtrain.programs": ("vtrain.programs_evil:make", {}),
    "of another part of vtrain": ("vtrain.store.atomic:remove_tree", {"path": "trace"}),
    "absolute": ("{folder}/evil.py:make", {}),
    "above": ("../away/evil.py:make", {}),
    "in the run": ("run/programs/evil.py:make", {}),
}


@pytest.mark.parametrize("case", ENTRIES)
def test_program_of_the_trainer_s_choice(run: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, config = ENTRIES[case]
    monkeypatch.chdir(run.parent)
    entry = entry.format(folder=evil(run.parent / "away"))
    evil(run / "programs")
    with Enemy(run) as enemy:
        enemy.change_job(lambda j: j["program"].update(entry=entry, config=config, sha256="0" * 64))
    for directory in (run.parent, None) if case == "in the run" else (HERE, None):
        with pytest.raises(UsageError, match="give the client's job with --job") as caught:
            audited(run, directory=directory)
        assert caught.value.exit_code == 2
    assert not (run.parent / "trace").exists() and not (run / "trace").exists()


def test_program_of_no_digest(run: Path) -> None:
    with Enemy(run) as enemy:
        enemy.change_job(lambda j: j["program"].update(entry="os:system", config={"command": "x"}, sha256=""))
    refused(run, MalformedRunError, "program.sha256 is empty", commands=("audit",))


def test_client_s_job_names_the_program(run: Path) -> None:
    """With the client's job, another program is a refutation, and is not run."""
    with Enemy(run) as enemy:
        enemy.change_job(lambda j: j["program"].update(entry="os:system", config={"command": "touch trace"}))
    step, what = finding(audited(run, job=job(policy={"target": "bfloat16"})))
    assert (step, what) == (0, "job")


def test_programs_that_are_the_auditor_s(run: Path) -> None:
    folder = evil(run.parent / "away")
    for entry, directory in (("evil.py:make", folder), ("away/evil.py:make", run.parent)):
        check_program(ProgramSpec(entry=entry, sha256="0" * 64), directory, run)
    check_program(ProgramSpec(entry="vtrain.programs.mlp:perceptron", sha256="0" * 64), None, run)
    (folder / "link.py").symlink_to(evil(run / "programs") / "evil.py")
    with pytest.raises(UsageError):
        check_program(ProgramSpec(entry="link.py:make", sha256="0" * 64), folder, run)


def test_segment_elsewhere(run: Path) -> None:
    """A segment's name is the step of a leaf, so no name leads out of the log; another one is not read."""
    (run / "log.zarr" / "000005").mkdir()
    (run / "log.zarr" / "000005" / "zarr.json").write_text("{}")
    refused(run, LogError, "log segments end at steps", commands=("verify",))
    assert finding(audited(run, key=KEY.public_key())) == (None, "") and STEPS == 6
