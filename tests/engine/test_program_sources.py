"""What is hashed is what runs: every source file that a program imports from its own folder, and nothing else there."""

from __future__ import annotations

import compileall
import dataclasses
import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import pickle
import py_compile
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from auditor.audit import Request, audit
from trainer.train import resume, train
from vtrain.commit.keys import generate
from vtrain.engine.jobs.program import Code, load_code
from vtrain.engine.jobs.task import complete
from vtrain.errors import JobError, MalformedRunError, ProgramError, UsageError
from vtrain.job import ProgramSpec, parse

KEY = generate()
# A program of two files: what it trains is decided by the other one.
MAIN = """
import torch
from vtrain import Program
from helpers import loss

def make():
    return Program(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10)), loss)
"""
HELPERS = """
from torch.nn.functional import cross_entropy

def loss(model, batch):
    return cross_entropy(model(batch["image"]), batch["label"])
"""
VALUES: dict[str, Any] = {
    "program": {"entry": "program.py:make"},
    "data": {"name": "random-images", "config": {"n": 16, "shape": [3, 8, 8]}},
    "train": {"steps": 2, "batch_size": 4, "checkpoint_every": 1},
    "optimizer": {"name": "sgd", "lr": 0.1},
}


def folder(tmp_path: Path, **files: str) -> Path:
    """A program's folder: ``{"package/module": text}`` is ``package/module.py``."""
    made = tmp_path / "code"
    for name, text in {"program": MAIN, "helpers": HELPERS, **files}.items():
        write(made / f"{name}.py", text)
    return made


def write(place: Path, text: str) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    return place


def trained(tmp_path: Path, code: Path, **program: Any) -> Path:
    values = {**VALUES, "program": {**VALUES["program"], **program}}
    train(parse(values, "job"), code, tmp_path / "run", KEY, lambda done: None)
    return tmp_path / "run"


def audited(run: Path, code: Path, **how: Any) -> Any:
    return audit(Request(run, code, **how), lambda step: None, lambda count: None)


def load(code: Path, entry: str = "program.py:make", closed: bool = False, **spec: Any) -> Code:
    """The program as a trainer completes it, or as the completed job has it."""
    found = load_code(ProgramSpec(entry=entry, **spec), code, discover=True)
    return load_code(found.spec, code) if closed else found


def program(tmp_path: Path, text: str, **files: str) -> Path:
    return folder(tmp_path, program=text, **files)


# ---- what is trained is what is audited ------------------------------------------------------------------------------
def test_helpers_are_hashed_and_compared(tmp_path: Path) -> None:
    code = folder(tmp_path)
    run = trained(tmp_path, code)
    verdict = audited(run, code)
    assert verdict.verified
    assert verdict.program["files"] == 1 and verdict.program["imports"] == {
        "torch": importlib.metadata.version("torch")
    }
    assert "1 files of its folder, and no other" in str(verdict)
    client = parse(VALUES, "job")  # who leaves the list open, and one who has it
    assert audited(run, code, job=client).verified
    found = audited(run, code, job=complete(client, code))
    assert found.verified, found.detail
    write(code / "helpers.py", HELPERS.replace("cross_entropy(model", "2 * cross_entropy(model"))
    for job in (None, client):
        with pytest.raises(ProgramError, match=r"helpers\.py has SHA-256 .* the job was made for"):
            audited(run, code, job=job)
    assert not audited(run, code, job=complete(client, code)).verified  # the client's own job has the edited one
    (run / "attestation.json").unlink()
    with pytest.raises(ProgramError, match=r"helpers\.py has SHA-256"):
        resume(run, code, KEY, lambda done: None)
    (code / "helpers.py").unlink()
    with pytest.raises(ProgramError, match=r"no file .*helpers\.py, which the job lists"):
        resume(run, code, KEY, lambda done: None)


def test_client_who_lists_some_files(tmp_path: Path) -> None:
    """The others are for the trainer to fill in; what the client wants must be there."""
    code = folder(tmp_path, more="X = 1\n")
    run = trained(tmp_path, code, files={"more.py": ""})
    more = hashlib.sha256(b"X = 1\n").hexdigest()
    for files, same in (({"more.py": ""}, True), ({"more.py": more}, True), ({"more.py": "0" * 64}, False),
                        ({"other.py": "0" * 64}, False)):  # fmt: skip
        client = parse({**VALUES, "program": {"entry": "program.py:make", "files": files}}, "job")
        found = audited(run, code, job=client)
        assert (found.verified, found.what) == ((True, "") if same else (False, "job")), found.detail


def test_client_who_leaves_the_distribution_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = HELPERS + MAIN.replace("from helpers import loss\n", "")
    installed = write(tmp_path / "site-packages" / "made_for_a_test.py", text).parent
    monkeypatch.syspath_prepend(installed)
    run = trained(tmp_path, tmp_path, entry="made_for_a_test:make")
    for distribution, same in (("", True), ("made_for_a_test (unknown)", True), ("made_for_a_test 2", False)):
        program = {"entry": "made_for_a_test:make", "distribution": distribution}
        found = audited(run, tmp_path, job=parse({**VALUES, "program": program}, "job"))
        assert (found.verified, found.what) == ((True, "") if same else (False, "job")), found.detail


def test_nothing_is_executed_before_all_is_compared(tmp_path: Path) -> None:
    code = folder(tmp_path)
    spec = load(code).spec
    write(code / "program.py", MAIN)
    write(code / "helpers.py", f"open({str(tmp_path / 'trace')!r}, 'w')\n{HELPERS}")
    with pytest.raises(ProgramError, match="has SHA-256"):
        load_code(spec, code)
    assert not (tmp_path / "trace").exists()


def test_client_s_list(tmp_path: Path) -> None:
    """A digest that the client gives is compared when training starts; an open one is filled in."""
    code = folder(tmp_path, more="X = 1\n")
    spec = load(code, files={"more.py": ""}).spec
    assert list(spec.files) == ["helpers.py", "more.py"] and all(spec.files.values())
    with pytest.raises(ProgramError, match=r"helpers\.py has SHA-256"):
        load(code, files={"helpers.py": "0" * 64})
    with pytest.raises(ProgramError, match="no file"):
        load(code, files={"missing.py": ""})
    with pytest.raises(ProgramError, match=r"program\.py, whose digest is program\.sha256"):
        load(code, files={"program.py": ""})
    with pytest.raises(ProgramError, match="made for none"):
        load_code(spec.model_copy(update={"files": {**spec.files, "more.py": ""}}), code)


# ---- how modules are found ------------------------------------------------------------------------------------------
FORMS = {
    "from": "from helpers import VALUE",
    "import": "import helpers\nVALUE = helpers.VALUE",
    "as": "import pkg.inner.leaf as leaf\nVALUE = leaf.VALUE",
    "package": "import pkg.inner.leaf\nVALUE = pkg.inner.leaf.VALUE",
    "submodule": "from pkg.inner import leaf\nVALUE = leaf.VALUE",
    "relative": "from pkg import up\nVALUE = up.VALUE",
    "star": "from pkg import *\nVALUE = listed.VALUE",
    "namespace": "import plain.leaf\nVALUE = plain.leaf.VALUE",
    "import_module": "import importlib\nVALUE = importlib.import_module('helpers').VALUE",
    "import_module of importlib": "from importlib import import_module\nVALUE = import_module('pkg.inner.leaf').VALUE",
    "import_module, relative": "import importlib\nVALUE = importlib.import_module('.leaf', 'pkg.inner').VALUE",
    "__import__": "VALUE = __import__('helpers').VALUE",
    "sys.path": "import os, sys\nsys.path.insert(0, os.path.dirname(__file__))\nfrom helpers import VALUE",
    "circular": "import circle\nVALUE = circle.VALUE",
}
TREE = {
    "helpers": "VALUE = 7\n", "pkg/__init__": "__all__ = ['listed']\n", "pkg/listed": "VALUE = 7\n",
    "pkg/up": "from .inner.leaf import VALUE\n", "pkg/inner/__init__": "", "plain/leaf": "VALUE = 7\n",
    "pkg/inner/leaf": "from helpers import VALUE\nfrom ..listed import VALUE as other\nassert VALUE == other\n",
    "circle": "import program\nVALUE = 7 if program.__file__.endswith('program.py') else 0\n",
}  # fmt: skip


@pytest.fixture
def path_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.mark.parametrize("lazily", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_forms_of_imports(tmp_path: Path, form: str, lazily: bool, path_kept: None) -> None:
    lines = FORMS[form].splitlines()
    inner = "\n".join(f"    {line}" for line in lines) + "\n    return VALUE\n"
    text = f"def make():\n{inner}" if lazily else FORMS[form] + "\ndef make():\n    return VALUE\n"
    if lazily and form == "star":
        pytest.skip("Python has no star imports in functions")
    code = program(tmp_path, text, **TREE)
    before = {*sys.modules}
    if lazily and form.startswith(("import_module", "__import__")):  # no statement says so beforehand
        with pytest.raises(ProgramError, match=r"which the job does not list; import it by a plain statement"):
            load(code, closed=True).entry()
        files = {path.relative_to(code).as_posix(): "" for path in code.rglob("*.py") if path.name != "program.py"}
        assert load_code(load(code, files=files).spec, code).entry() == 7
    else:
        loaded = load(code, closed=True)
        assert loaded.entry() == 7
        loaded.check()
    new = {name for name in {*sys.modules} - before if not name.startswith("vtrain_program_")}
    assert new == set(), "plain names leak"


def test_two_programs_and_a_module_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path_kept: None
) -> None:
    """Each has its own helpers, whatever else is imported, installed or in the current directory under that name."""
    elsewhere = write(tmp_path / "elsewhere" / "helpers.py", "VALUE = 'elsewhere'\n").parent
    monkeypatch.chdir(elsewhere)
    for where in ("", str(elsewhere)):
        monkeypatch.setattr(sys, "path", [where, *sys.path])
    text = (
        "from helpers import VALUE\nimport random\ndef make():\n    import helpers\n    return VALUE, helpers.VALUE\n"
    )
    for imported in (False, True):
        if imported:
            monkeypatch.setitem(sys.modules, "helpers", importlib.import_module("helpers"))
        one = load(program(tmp_path / f"one{imported}", text, helpers="VALUE = 1\n"), closed=True)
        two = load(program(tmp_path / f"two{imported}", text, helpers="VALUE = 2\n", random="X = 3\n"), closed=True)
        assert (one.entry(), two.entry(), one.entry()) == ((1, 1), (2, 2), (1, 1))
        assert list(one.spec.files) == ["helpers.py"] and list(two.spec.files) == ["helpers.py", "random.py"]
    assert importlib.import_module("helpers").VALUE == "elsewhere"
    import random

    assert random.random  # the folder's random.py is that program's alone


def test_a_directory_of_data_is_no_package(tmp_path: Path) -> None:
    """As in Python: without ``__init__.py``, an installed module of that name comes first; the job keeps which."""
    code = program(tmp_path, "import click\ndef make():\n    return click.__version__\n", **{"click/notes": "X = 1\n"})
    assert load(code, closed=True).entry() and load(code).spec.files == {}


def test_dataclasses_pickle_and_types(tmp_path: Path) -> None:
    helpers = "import dataclasses, typing\n@dataclasses.dataclass\nclass Point:\n    x: 'int' = 3\n"
    text = "import typing\nfrom helpers import Point\ndef make():\n    return Point(4), typing.get_type_hints(Point)\n"
    point, hints = load(program(tmp_path, text, helpers=helpers), closed=True).entry()
    assert pickle.loads(pickle.dumps(point)) == point and hints == {"x": int}
    assert dataclasses.replace(point, x=5).x == 5


@pytest.mark.parametrize("text", ["def make(:\n", "\0", "x = 1 +\n"])
def test_source_that_is_none(tmp_path: Path, text: str) -> None:
    for code in (program(tmp_path / "a", text), program(tmp_path / "b", MAIN, helpers=text)):
        with pytest.raises(ProgramError, match=r"importing it failed: (SyntaxError|ValueError)"):
            load(code)


def test_source_of_another_encoding(tmp_path: Path) -> None:
    code = program(tmp_path, "from helpers import NAME\ndef make():\n    return NAME\n")
    (code / "helpers.py").write_bytes("# -*- coding: latin-1 -*-\nNAME = 'é'\n".encode("latin-1"))
    assert load(code, closed=True).entry() == "é"


# ---- nothing else of the folder runs --------------------------------------------------------------------------------
def evil(tmp_path: Path) -> str:
    return f"open({str(tmp_path / 'trace')!r}, 'w').write('x')\nfrom torch.nn.functional import cross_entropy as loss\n"


def stale_cache(code: Path, text: str) -> None:
    """A cache that Python takes for that of helpers.py: of the same time and size, or unchecked."""
    kept = (code / "helpers.py").read_text()
    for mode in (py_compile.PycInvalidationMode.UNCHECKED_HASH,):
        write(code / "helpers.py", text)
        py_compile.compile(str(code / "helpers.py"), invalidation_mode=mode, doraise=True)
    write(code / "helpers.py", kept)


def test_bytecode_caches_are_not_read(tmp_path: Path) -> None:
    code = folder(tmp_path)
    stale_cache(code, evil(tmp_path))
    plain = [sys.executable, "-c", "import sys; sys.path.insert(0, 'code'); import helpers"]
    subprocess.run(plain, cwd=tmp_path, check=True)
    assert (tmp_path / "trace").exists(), "Python itself would have executed it"
    (tmp_path / "trace").unlink()
    assert audited(trained(tmp_path, code), code).verified
    assert not (tmp_path / "trace").exists()


def test_no_bytecode_is_written(tmp_path: Path) -> None:
    code = folder(tmp_path)
    trained(tmp_path, code)
    assert sorted(path.name for path in code.iterdir()) == ["helpers.py", "program.py"]


def without_source(code: Path) -> None:
    compileall.compile_dir(code, quiet=1, legacy=True)
    (code / "helpers.py").unlink()


def extension(code: Path) -> None:
    (code / "helpers.py").unlink()
    (code / f"helpers{importlib.machinery.EXTENSION_SUFFIXES[0]}").write_bytes(b"\x7fELF")


@pytest.mark.parametrize("change", [without_source, extension])
def test_modules_without_source(tmp_path: Path, change: Callable[[Path], None]) -> None:
    code = folder(tmp_path)
    change(code)
    with pytest.raises(ProgramError, match="has no source to be hashed"):
        trained(tmp_path, code)


LATE = """
import importlib
import torch
from vtrain import Program
NAME = "extra"

def loss(model, batch):
    {lines}
    return model(batch["image"]).square().mean()

def make():
    return Program(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10)), loss)
"""
SWALLOWED = "try:\n        importlib.import_module(NAME)\n    except Exception:\n        pass"


@pytest.mark.parametrize("lines", ["importlib.import_module(NAME)", SWALLOWED])
def test_a_file_that_no_statement_imports(tmp_path: Path, lines: str) -> None:
    """Found when it happens, in whatever step, and no ``except`` of the program undoes it; listed, it runs."""
    code = program(tmp_path, LATE.format(lines=lines), extra=evil(tmp_path))
    with pytest.raises(ProgramError, match=r"extra\.py, which the job does not list"):
        trained(tmp_path, code)
    assert not (tmp_path / "trace").exists()
    shutil.rmtree(tmp_path / "run")
    assert audited(trained(tmp_path, code, files={"extra.py": ""}), code).verified
    assert (tmp_path / "trace").exists()


def test_a_file_that_the_auditor_alone_has(tmp_path: Path) -> None:
    """``import click`` was the installed one at the trainer; a file of that name in the auditor's folder is not run."""
    code = program(tmp_path, f"import click\n{LATE.format(lines='import click')}")
    run = trained(tmp_path, code)
    assert audited(run, code).verified
    write(code / "click.py", evil(tmp_path))
    with pytest.raises(ProgramError, match=r"click\.py, which the job does not list; .* remove it from the folder"):
        audited(run, code)
    assert not (tmp_path / "trace").exists()


OTHER_WAYS = {
    "spec_from_file_location": (
        "import importlib.util as u\n    s = u.spec_from_file_location('extra', {path!r})\n"
        "    m = u.module_from_spec(s)\n    s.loader.exec_module(m)"
    ),
    "runpy": "import runpy\n    runpy.run_path({path!r})",
    "exec": "exec(compile(open({path!r}).read(), {path!r}, 'exec'))",
    "search path": "import sys\n    sys.path.insert(0, {folder!r})\n    importlib.import_module('late')",
    "library": "import ctypes\n    ctypes.CDLL({folder!r} + '/late.so')",
}


@pytest.mark.parametrize("way", OTHER_WAYS)
@pytest.mark.parametrize("swallowed", [False, True])
def test_code_of_the_folder_that_is_executed_otherwise(
    tmp_path: Path, way: str, swallowed: bool, path_kept: None
) -> None:
    place = tmp_path / "code" / "inner"
    lines = OTHER_WAYS[way].format(path=str(tmp_path / "code" / "extra.py"), folder=str(place))
    if swallowed:
        lines = "try:\n        " + lines.replace("\n", "\n    ") + "\n    except Exception:\n        pass"
    code = program(tmp_path, LATE.format(lines=lines), extra=evil(tmp_path), **{"inner/late": evil(tmp_path)})
    with pytest.raises(ProgramError, match="of its own folder, but not by an import statement"):
        trained(tmp_path, code)
    assert not (tmp_path / "trace").exists()


def test_installed_code_below_the_folder_runs(tmp_path: Path) -> None:
    """A virtual environment in the program's folder is not the program's own code; here: all of this Python's."""
    root = Path(sys.prefix)
    code = f"{tmp_path.name}_late"
    text = "import torch\ndef make():\n    import wave\n    return wave.__name__\n"
    made = write(root / f"{code}.py", text)
    sys.modules.pop("wave", None)
    try:
        assert load(root, f"{code}.py:make", closed=True).entry() == "wave"
    finally:
        made.unlink()


# ---- programs that are modules --------------------------------------------------------------------------------------
def test_a_package_on_the_search_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path / "lib")
    write(tmp_path / "lib" / "mine" / "__init__.py", "START = 1\n")
    write(tmp_path / "lib" / "mine" / "net.py", "from . import START\nfrom mine.part import PART\nimport beside\n"
          "def make():\n    return START + PART\n")  # fmt: skip
    write(tmp_path / "lib" / "mine" / "part.py", "PART = 2\n")
    write(tmp_path / "lib" / "beside.py", "")
    loaded = load(tmp_path, "mine.net:make", closed=True)
    assert loaded.entry() == 3
    assert list(loaded.spec.files) == ["mine/__init__.py", "mine/part.py"]
    assert loaded.versions == {"beside": "unknown"}  # another package: said, not hashed
    write(tmp_path / "lib" / "mine" / "__init__.py", f"{evil(tmp_path)}\nSTART = 1\n")
    with pytest.raises(ProgramError, match=r"mine/__init__\.py has SHA-256"):
        load_code(loaded.spec, tmp_path)
    assert not (tmp_path / "trace").exists(), "the package was imported to look for its module"


def test_an_installed_distribution(tmp_path: Path) -> None:
    loaded = load(tmp_path, "click.core:Command", closed=True)
    assert loaded.spec.distribution.startswith("click ") and loaded.spec.files == {}
    assert load(tmp_path, "json.decoder:JSONDecoder").spec.distribution.startswith("Python 3.")
    for change, text in (({"distribution": "click 1.0"}, "is of click"), ({"files": {"a.py": "0" * 64}}, "installed")):
        with pytest.raises(ProgramError, match=text):
            load_code(loaded.spec.model_copy(update=change), tmp_path)
    own = load(tmp_path, "vtrain.programs.mlp:perceptron")
    assert own.spec.distribution == "" and own.spec.files == {}


# ---- hostile lists --------------------------------------------------------------------------------------------------
PATHS = [
    "../helpers.py", "/etc/passwd", "/tmp/x.py", "a/../b.py", "a//b.py", "./a.py", "a.py/", "", ".py", "a.pyc", "a.so",
    "a b.py", "a\\b.py", "a\n.py", "\ud800.py", "a.b.py", "C:/a.py", "x" * 600 + ".py", "a/.py", "~/a.py", "a\0.py",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_paths_that_are_no_modules(path: str) -> None:
    with pytest.raises(JobError, match=r"program\.files"):
        parse({**VALUES, "program": {"entry": "program.py:make", "files": {path: "0" * 64}}}, "job")


@pytest.mark.parametrize("digest", ["0" * 63, "G" * 64, "A" * 64, "0" * 64 + "\n", 0, None])
def test_digests_that_are_none(digest: Any) -> None:
    with pytest.raises(JobError, match=r"program\.files"):
        parse({**VALUES, "program": {"entry": "program.py:make", "files": {"a.py": digest}}}, "job")


def test_too_many_files() -> None:
    files = {f"m{i}.py": "" for i in range(1001)}
    with pytest.raises(JobError, match=r"program\.files"):
        parse({**VALUES, "program": {"entry": "program.py:make", "files": files}}, "job")


def test_listed_files_that_are_not_the_auditor_s(tmp_path: Path) -> None:
    """Without the client's job, what the trainer lists must lie below the auditor's folder, and not in the run."""
    from auditor.audit.programs import check_program

    code = folder(tmp_path)
    run = trained(tmp_path, code)
    away = write(tmp_path / "away" / "more.py", evil(tmp_path)).parent
    (code / "more.py").symlink_to(away / "more.py")
    write(run / "within.py", evil(tmp_path))
    spec = ProgramSpec(entry="program.py:make", sha256="0" * 64, files={"helpers.py": "0" * 64})
    check_program(spec, code, run)
    for entry, files in (
        ("program.py:make", "more.py"),
        ("x.py:f", "run/within.py"),
    ):
        directory = code if entry.startswith("program") else tmp_path
        with pytest.raises(UsageError, match="--program-dir, or give the client's job with --job"):
            check_program(ProgramSpec(entry=entry, sha256="0" * 64, files={files: "0" * 64}), directory, run)
    with pytest.raises(MalformedRunError, match="is empty"):
        check_program(ProgramSpec(entry="program.py:make", sha256="0" * 64, files={"helpers.py": ""}), code, run)


@pytest.mark.parametrize("kind", ["directory", "pipe", "large"])
def test_files_that_are_no_source(tmp_path: Path, kind: str) -> None:
    import os

    code = folder(tmp_path)
    spec = load(code).spec
    (code / "helpers.py").unlink()
    if kind == "directory":
        (code / "helpers.py").mkdir()
    elif kind == "pipe":
        os.mkfifo(code / "helpers.py")
    else:
        with open(code / "helpers.py", "wb") as file:
            file.truncate((16 << 20) + 1)
    with pytest.raises(ProgramError, match="no file" if kind != "large" else "more than"):
        load_code(spec, code)
    if kind == "pipe":
        (code / "helpers.py").unlink()  # whoever reads the sources of loaded modules would wait for ever
