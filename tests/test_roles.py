"""``vtrain.record`` and ``vtrain.replay``: the roles' own, also beside a script's ``trainer.py`` and ``auditor.py``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from vtrain.kernels import _host
from vtrain.roles import HOME

SCRIPT = """
import sys
IMPORTS
import torch
import vtrain


def make():
    return torch.nn.Linear(4, 2)


def sgd(m):
    return torch.optim.SGD(m.parameters(), lr=0.1)


def loop(run):
    for i in range(3):
        x = torch.full((3, 4), float(i))
        with run.step(x):
            run.model(x).square().sum().backward()
            run.optimizer.step()
            run.optimizer.zero_grad()


with vtrain.record("run", model=make, optimizer=sgd, key=None) as run:
    loop(run)
with vtrain.replay("run", model=make, optimizer=sgd) as run:
    loop(run)
assert run.verdict.verified, str(run.verdict)
assert vtrain.record is vtrain.record
CHECKS
print("done")
"""
MINE = {
    "trainer.py": "MINE = 'my trainer'\n",
    "auditor/__init__.py": "MINE = 'my auditor'\n",
    "auditor/audit.py": "MINE = 'my audit'\n",
    "auditor/evidence.py": "MINE = 'my evidence'\n",
}
CHECKS = """
import trainer, auditor, auditor.audit, auditor.evidence
assert trainer.MINE == "my trainer" and not hasattr(trainer, "record")
assert [m.MINE for m in (auditor, auditor.audit, auditor.evidence)] == ["my auditor", "my audit", "my evidence"]
"""


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The packages as an installation has them: an editable one finds ``trainer`` before a script's folder is asked."""
    site = tmp_path_factory.mktemp("site")
    for name in ("vtrain", "trainer", "auditor"):
        shutil.copytree(HOME / name, site / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(_host.__file__, site / "vtrain" / "kernels")
    PATHS[:] = [str(site), sysconfig.get_path("purelib")]
    yield
    PATHS.clear()


PATHS: list[str] = []


def ran(folder: Path, name: str = "script.py") -> str:
    env = {"HOME": str(folder), "PATH": "/usr/bin:/bin", "PYTHONPATH": os.pathsep.join(PATHS)}
    done = subprocess.run([sys.executable, "-S", name], cwd=folder, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("imports", ["", "import trainer, auditor, auditor.evidence"], ids=["later", "before"])
def test_a_script_with_a_trainer_of_its_own(tmp_path: Path, imports: str) -> None:
    for name, text in MINE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "script.py").write_text(SCRIPT.replace("IMPORTS", imports).replace("CHECKS", CHECKS))
    assert ran(tmp_path) == "done\n"
    recorded = (tmp_path / "run" / "run.json").read_text()
    assert "script.py" in recorded
    assert ('"trainer.py"' in recorded) == bool(imports)  # it is the script's, and was imported when the run began


def test_a_script_that_is_called_trainer(tmp_path: Path) -> None:
    (tmp_path / "trainer.py").write_text(SCRIPT.replace("IMPORTS", "").replace("CHECKS", ""))
    assert ran(tmp_path, "trainer.py") == "done\n"


def test_they_are_the_roles_own(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import vtrain, trainer, auditor\nassert vtrain.record is trainer.record and vtrain.replay is auditor.replay\n"
    )
    ran(tmp_path)


def test_nothing_is_imported_before_it_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import sys, vtrain\nassert not {'torch', 'trainer', 'auditor', 'vtrain.roles'} & {*sys.modules}\n"
        "assert {'record', 'replay'} <= {*vtrain.__all__}\n"
    )
    ran(tmp_path)
