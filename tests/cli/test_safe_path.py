"""No code runs because it lies in the current directory: an auditor stands in the folder that a trainer sent."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from run_helpers import copied, honest, toml, values

from vtrain import children, searchpath

ROOT = Path(__file__).parents[2]
VTRAIN = Path(sys.executable).parent / "vtrain"
# Libraries, modules of Python that are imported early and late, what is run at every start, and ourselves.
TRAPS = (
    "torch", "numpy", "click", "zarr", "rfc8785", "cupy", "ray", "sitecustomize", "usercustomize", "random", "typing",
    "subprocess", "multiprocessing", "tempfile", "hashlib", "__future__", "runpy", "trainer", "auditor", "vtrain",
)  # fmt: skip
LIBRARIES = ("torch", "numpy", "click", "pydantic", "zarr", "cupy", "trainer", "auditor")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run, its job, and files with the names of modules; each leaves its name when it is executed."""
    copied(honest(), tmp_path / "run")
    (tmp_path / "job.toml").write_text(toml(values(train={"steps": 1})))
    return tmp_path


def set_traps(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        line = f"open({str(folder / 'executed')!r}, 'a').write({name + ' '!r})\n"
        (folder / f"{name}.py").write_text(f"{line}raise SystemExit(9)\n")


def call(folder: Path, command: list[str], **variables: str) -> tuple[int, str]:
    """Exit code of a command in the folder, and the traps that were executed."""
    kept = {k: v for k, v in os.environ.items() if k not in (searchpath.SAFE, searchpath.PATH)}
    env = {**kept, **variables}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=500)
    trace = folder / "executed"
    return done.returncode, (trace.read_text() if trace.exists() else "") + (done.stderr if done.returncode else "")


LIGHT = ["--help", "verify run", "inspect run", "report run --out page.html", "prove run --step 1", "keygen new.key"]
COMMANDS = [
    pytest.param("doctor --profile baseline", marks=pytest.mark.slow),
    pytest.param("audit run", marks=pytest.mark.slow),
    "audit run --profile baseline --jobs 2 --threads 1",
    "train job.toml --out made --key mine.key --profile avx2", "dispute run --replay",
    pytest.param("calibrate job.toml --thresholds --steps 1", marks=pytest.mark.slow),
    pytest.param("demo", marks=pytest.mark.slow),
]  # fmt: skip


def test_commands_without_torch(folder: Path) -> None:
    set_traps(folder, TRAPS)
    assert {line: call(folder, [str(VTRAIN), *line.split()]) for line in LIGHT} == {line: (0, "") for line in LIGHT}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(folder: Path, command: str) -> None:
    call(folder, [str(VTRAIN), "keygen", "mine.key"])
    set_traps(folder, TRAPS)
    assert call(folder, [str(VTRAIN), *command.split()]) == (0, "")


@pytest.mark.parametrize("command", ["doctor --profile baseline", "audit run --jobs 2"])
def test_as_a_module(folder: Path, command: str) -> None:
    """``python -m vtrain``: whoever says so takes a ``vtrain.py`` of the current directory, but nothing else."""
    set_traps(folder, tuple(name for name in TRAPS if name != "vtrain"))
    assert call(folder, [sys.executable, "-m", "vtrain", *command.split()]) == (0, "")


@pytest.mark.parametrize(
    ("path", "command"),
    [*((path, "verify run") for path in ("", ".", os.pathsep, "sub")),
     (os.pathsep.join(["", ".", "sub", ".."]), "audit run --jobs 2 --profile baseline")]
)  # fmt: skip
def test_path_that_means_the_current_directory(folder: Path, path: str, command: str) -> None:
    """Empty and relative entries of PYTHONPATH, which mean another directory wherever one stands."""
    (folder / "sub").mkdir()
    for place in (folder, folder / "sub"):
        set_traps(place, LIBRARIES)
    assert call(folder, [str(VTRAIN), *command.split()], PYTHONPATH=path) == (0, "")
    assert not (folder / "sub" / "executed").exists()


def test_named_path_is_kept_and_stated(folder: Path) -> None:
    """An absolute entry was named: it is used, by children too, and the verdict says that there was one."""
    named = folder / "named"
    named.mkdir()
    (named / "sitecustomize.py").write_text("")
    set_traps(folder, LIBRARIES)
    command = [str(VTRAIN), "audit", "run", "--profile", "baseline", "--jobs", "2", "--json"]
    env = {**os.environ, searchpath.PATH: f"{named}{os.pathsep}."}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and '"PYTHONPATH",\n      "sitecustomize"' in done.stdout, done.stdout + done.stderr
    assert not (folder / "executed").exists()


def test_workers_of_a_script(folder: Path) -> None:
    """The same for whoever calls ``audit`` from a script of its own."""
    set_traps(folder, TRAPS)
    away = folder / "away"
    away.mkdir()
    (away / "script.py").write_text(
        "import os, pathlib\n"
        "if __name__ == '__main__':\n"
        "    from auditor.audit import Request, audit\n"
        "    before = dict(os.environ)\n"
        "    found = audit(Request(pathlib.Path('run'), None, jobs=2), lambda s: None, lambda c: None)\n"
        "    assert found.verified and dict(os.environ) == before\n"
    )
    assert call(folder, [sys.executable, str(away / "script.py")]) == (0, "")
    code, said = call(folder, [sys.executable, "-E", str(away / "script.py")])
    assert code == 1 and "want python -I or -E -P" in said


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'vtrain[ray]'")
def test_workers_of_a_cluster(folder: Path) -> None:
    """Ray tells its workers to import from where the driver stands, unless it is told not to."""
    set_traps(folder, (*LIBRARIES, "psutil", "sitecustomize", "usercustomize"))
    assert call(folder, [str(VTRAIN), *"audit run --ray local --jobs 2 --threads 1".split()])[0] == 0
    assert not (folder / "executed").exists()


def test_variables_are_counted() -> None:
    """Bodies in several threads: the variables are reset by whoever leaves last."""
    before = os.environ.get(searchpath.SAFE)
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with children.safe_environment():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with children.safe_environment():
        thread.start()
        inside.wait(10)
    assert os.environ[searchpath.SAFE] == "1"
    leave.set()
    thread.join()
    assert os.environ.get(searchpath.SAFE) == before


# ---- nobody else starts processes -----------------------------------------------------------------------------------
# What starts processes, by the one file that may use it.
STARTERS = {
    "subprocess": "vtrain/children.py", "execve": "vtrain/children.py", "multiprocessing": "auditor/audit/executors.py",
    "Popen": "vtrain/children.py", "ProcessPoolExecutor": "auditor/audit/executors.py",
    "get_context": "auditor/audit/executors.py",
}  # fmt: skip
NEVER = {
    "system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp", "spawnv", "spawnve", "spawnl",
    "execv", "execl", "execle", "execlp", "execvp", "execvpe", "pty", "runpy",
}  # fmt: skip


def names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (part for alias in node.names for part in alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or "").split(".")
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) != "platform.system":
            yield node.attr


def starters(path: Path) -> list[str]:
    found = {name for name in names(ast.parse(path.read_text(encoding="utf-8"))) if name in STARTERS or name in NEVER}
    return sorted(name for name in found if ROOT / STARTERS.get(name, "nowhere") != path)


def test_processes_are_started_in_one_place() -> None:
    sources = [
        path
        for part in ("vtrain", "trainer", "auditor", "benchmarks", "experiments")
        for path in (ROOT / part).rglob("*.py")
    ]
    assert len(sources) > 100
    assert {str(path): found for path in sources if (found := starters(path))} == {}
    for file in ("auditor/audit/executors.py", "auditor/audit/cluster.py"):
        assert "with safe_environment():" in (ROOT / file).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "line", ["import subprocess", "from subprocess import run", "import os\nos.system('x')", "os.execve('x')",
             "from concurrent.futures import ProcessPoolExecutor", "import multiprocessing.pool", "os.posix_spawn()"]
)  # fmt: skip
def test_a_new_child_process_is_noticed(tmp_path: Path, line: str) -> None:
    (tmp_path / "new.py").write_text(line)
    assert starters(tmp_path / "new.py")
