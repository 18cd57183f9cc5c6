"""The command line: help, exit codes, what goes to stdout and stderr, files that it writes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from run_helpers import KEY, copied, evidence_bytes, forging, honest, toml, tree_bytes, values

import vtrain.cli
from auditor.evidence import open_run
from auditor.verdict.verdict import VERDICT_PREDICATE
from vtrain.cli import COMMANDS
from vtrain.commit import keys
from vtrain.commit.digest import file_digest
from vtrain.commit.statement import open_statement
from vtrain.profiles import PROFILE_VARIABLES
from vtrain.store.layout import Layout, WriterLock
from vtrain.store.writer import acknowledged_step

ESCAPE = "\x1b"
PROGRESS = re.compile(r"^(training|auditing) \d+/\d+(, .*)?\n", re.MULTILINE)


@dataclass
class Done:
    """What a command left; on stderr, but for the lines of its progress."""

    code: int
    out: str
    err: str


Call = Callable[..., Done]


@pytest.fixture
def vtrain_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """``vtrain ...`` in this process, through ``main``; nothing is a terminal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    @click.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
    @click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
    def entry(arguments: tuple[str, ...]) -> None:
        sys.argv = ["vtrain", *arguments]
        vtrain.cli.main()

    def call(*arguments: str | Path) -> Done:
        handler, argv = signal.getsignal(signal.SIGTERM), sys.argv
        try:
            result = CliRunner().invoke(entry, [str(a) for a in arguments], prog_name="vtrain")
        finally:
            signal.signal(signal.SIGTERM, handler)
            sys.argv = argv
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert ESCAPE not in result.output
        return Done(result.exit_code, result.stdout, PROGRESS.sub("", result.stderr))

    return call


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(toml(values()))
    return path


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "trainer.key"
    keys.save_private(path, KEY)
    return path


@pytest.fixture
def public_file(tmp_path: Path) -> Path:
    path = tmp_path / "trainer.key.pub"
    path.write_text(keys.public_text(KEY))
    return path


def flat(text: str) -> str:
    return " ".join(text.split())


def test_help(vtrain_: Call) -> None:
    done = vtrain_("--help")
    assert done.code == 0 and done.err == ""
    for name, (_, _, text) in COMMANDS.items():
        assert f"{name} " in done.out and text in flat(done.out)
    assert "Exit codes: 0 " in done.out and "Example" in done.out
    assert vtrain_("-h").out == done.out


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_of_each_command(vtrain_: Call, name: str) -> None:
    done = vtrain_(name, "--help")
    assert done.code == 0 and done.err == ""
    assert re.search(rf"Examples?:\n +vtrain {name}", done.out)
    assert re.match(rf"Usage: .*vtrain {name} ", done.out)
    for line in re.findall(r"^  +(-[^ ].*)$", done.out, re.MULTILINE):
        assert len(line.split(None, 1)) == 2, f"{name}: an option without a word on it: {line}"


def test_version(vtrain_: Call) -> None:
    assert re.search(r"version \d+\.\d+", vtrain_("--version").out)


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["train"],
        ["train", "job.toml"],
        ["train", "job.toml", "--out", "run", "--speed", "9"],
        ["audit"],
        ["audit", "run", "--sample", "0"],
        ["audit", "run", "--jobs", "0"],
        ["audit", "run", "--profile", "abacus"],
        ["calibrate", "job.toml", "--steps", "none"],
    ],
)
def test_wrong_usage(vtrain_: Call, arguments: list[str], tmp_path: Path) -> None:
    done = vtrain_(*arguments)
    assert done.code == 2 and done.out == ""
    assert "Error: " in done.err
    assert os.listdir(tmp_path) == []


def test_no_command_shows_the_help(vtrain_: Call) -> None:
    done = vtrain_()
    assert re.match(r"Usage: .*vtrain ", done.out + done.err) and done.code in (0, 2)


def test_train(vtrain_: Call, job_file: Path, key_file: Path, tmp_path: Path) -> None:
    done = vtrain_("train", job_file, "--out", "run", "--key", key_file)
    assert (done.code, done.err) == (0, "") and "trained 6 steps: run" in done.out
    assert evidence_bytes(tmp_path / "run") == evidence_bytes(honest())
    again = vtrain_("train", job_file, "--out", "run", "--key", key_file)
    assert again.code == 2 and again.out == "" and again.err.startswith("error: run: exists")
    assert evidence_bytes(tmp_path / "run") == evidence_bytes(honest())


def test_train_with_the_users_own_key(vtrain_: Call, job_file: Path, tmp_path: Path) -> None:
    """Made at the first run, readable by its owner only, and used from then on."""
    assert vtrain_("train", job_file, "--out", "one").code == vtrain_("train", job_file, "--out", "two").code == 0
    path = tmp_path / "config" / "vtrain" / "trainer.key"
    assert path.stat().st_mode & 0o777 == 0o600
    public = keys.public_text(keys.load_private(path))
    assert (tmp_path / "one" / "trainer.pub").read_text() == (tmp_path / "two" / "trainer.pub").read_text() == public


BAD_JOBS: dict[str, tuple[str, int, str]] = {
    "not TOML": ("[train", 2, "not TOML"),
    "unknown key": (toml(values(train={"speed": 9})), 2, "train.speed: unknown key"),
    "missing program": (toml(values(program={"entry": "nothing.py:make"})), 2, "no file"),
    "unknown data": (toml(values(data={"name": "imagenet"})), 2, "imagenet"),
    "newer": ("format = 2\n" + toml(values()), 3, "this release reads 1"),
}


@pytest.mark.parametrize("case", BAD_JOBS)
def test_train_a_bad_job(vtrain_: Call, job_file: Path, key_file: Path, case: str, tmp_path: Path) -> None:
    text, code, said = BAD_JOBS[case]
    job_file.write_text(text)
    done = vtrain_("train", job_file, "--out", "run", "--key", key_file)
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("error: ") and said in done.err and "Traceback" not in done.err
    assert not (tmp_path / "run").exists()


def test_train_what_is_not_supported(vtrain_: Call, job_file: Path, key_file: Path, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import torch\nfrom vtrain import Program\n"
        "def make():\n    return Program(torch.nn.Linear(8, 2), lambda m, b: torch.fft.fft(b['image']).real.sum())\n"
    )
    job_file.write_text(toml({**values(), "program": {"entry": "program.py:make"}}))
    done = vtrain_("train", job_file, "--out", "run", "--key", key_file)
    assert (done.code, done.out) == (4, "")
    assert "aten._fft_r2c" in done.err and "program.py:4" in done.err and "register a handler" in done.err


def test_verify(vtrain_: Call, public_file: Path) -> None:
    done = vtrain_("verify", honest())
    assert (done.code, done.err) == (0, "")
    assert done.out.count("ok  ") == 8 and "pass --trainer-key to pin it" in done.out
    pinned = vtrain_("verify", honest(), "--trainer-key", public_file)
    assert pinned.code == 0 and "as expected" in pinned.out


def test_verify_json(vtrain_: Call) -> None:
    found = json.loads(vtrain_("verify", honest(), "--json").out)
    assert found["result"] == "well-formed"
    assert list(found["checks"]) == sorted(
        ["job", "run", "key", "transcript", "attestation", "programs", "log", "checkpoints"]
    )


def test_verify_what_is_malformed(vtrain_: Call, run: Path, tmp_path: Path) -> None:
    (run / "attestation.json").unlink()
    for arguments in (["verify", run], ["verify", run, "--json"], ["audit", run], ["audit", run, "--json"]):
        done = vtrain_(*arguments)
        assert done.code == 3 and done.err.startswith("error: ")
        if "--json" in arguments:
            assert json.loads(done.out) == {"error": done.err.removeprefix("error: ").strip(), "exitCode": 3}
        else:
            assert done.out == ""
        assert "Traceback" not in done.err


def test_verify_with_bad_keys(vtrain_: Call, key_file: Path, tmp_path: Path) -> None:
    assert vtrain_("verify", honest(), "--trainer-key", tmp_path / "none.pub").code == 2
    assert vtrain_("verify", honest(), "--trainer-key", key_file).code == 2  # a private key
    other = tmp_path / "other.pub"
    other.write_text(keys.public_text(keys.generate()))
    done = vtrain_("verify", honest(), "--trainer-key", other)
    assert done.code == 3 and "; expected " in done.err


def test_audit(vtrain_: Call, job_file: Path, public_file: Path) -> None:
    before = tree_bytes(honest())
    done = vtrain_("audit", honest(), "--job", job_file, "--trainer-key", public_file)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("VERIFIED: ") and "0-6 of 0-6" in done.out and "(as expected)" in done.out
    assert tree_bytes(honest()) == before


@pytest.mark.parametrize(
    ("arguments", "replayed"),
    [(["--steps", "3:4"], [[3, 4]]), (["--steps", "5"], [[5, 5]]), (["--steps", "0:6"], [[0, 6]])],
)
def test_audit_json(vtrain_: Call, arguments: list[str], replayed: list[list[int]]) -> None:
    done = vtrain_("audit", honest(), "--json", *arguments)
    found = json.loads(done.out)
    assert (done.code, done.err) == (0, "")
    assert found["result"] == "verified" and found["replayed"] == replayed and found["firstBadStep"] is None


def test_audit_sample(vtrain_: Call) -> None:
    one, two, other = (
        json.loads(vtrain_("audit", honest(), "--json", "--sample", "2", "--nonce", nonce).out)
        for nonce in ("a", "a", "b")
    )
    assert one == two and one["segments"] == {"all": 4, "sampled": 2} and one["detection"]["0.50"] == "0.750000"
    assert other["notes"] != one["notes"]


def test_audit_what_is_refuted(vtrain_: Call, run: Path) -> None:
    with forging(run) as forger:
        forger.leaves[3]["metrics"] = {}
    done = vtrain_("audit", run)
    assert done.code == 1 and done.out.startswith("REFUTED: first bad step 3: loss: ")
    found = json.loads(vtrain_("audit", run, "--json").out)
    assert (found["result"], found["firstBadStep"], found["what"]) == ("refuted", 3, "loss")


def test_audit_of_another_job(vtrain_: Call, job_file: Path) -> None:
    job_file.write_text(toml(values(train={"seed": "8"})))
    done = vtrain_("audit", honest(), "--job", job_file)
    assert done.code == 1 and 'train.seed is "0" in the run, "8" in the client\'s job' in done.out


@pytest.mark.parametrize("steps", ["", "a:b", "3:", ":3", "3:2", "0:7", "-1:3", "1:2:3", "1.5"])
def test_audit_of_impossible_steps(vtrain_: Call, steps: str) -> None:
    done = vtrain_("audit", honest(), f"--steps={steps}")
    assert (done.code, done.out) == (2, "") and "steps" in done.err


@pytest.mark.parametrize(
    "arguments",
    [["--steps", "1:2", "--sample", "1"], ["--verdict", "v.json"], ["--key", "trainer.key"], ["--sample", "9"],
     ["--job", "none.toml"], ["--verdict", "v.json", "--key", "none.key"]],
)  # fmt: skip
def test_audit_options_that_do_not_go_together(vtrain_: Call, arguments: list[str], tmp_path: Path) -> None:
    done = vtrain_("audit", honest(), *arguments)
    assert (done.code, done.out) == (2, "") and done.err.startswith("error: ")
    assert os.listdir(tmp_path) == []


def test_verdict_file(vtrain_: Call, run: Path, tmp_path: Path, public_file: Path) -> None:
    """A DSSE envelope with an in-toto statement about the last model, signed by the auditor; refuted ones too."""
    auditor = keys.generate()
    keys.save_private(tmp_path / "auditor.key", auditor)
    with forging(run) as forger:
        forger.leaves[3]["metrics"] = {}
    for path, code, result in ((honest(), 0, "verified"), (run, 1, "refuted")):
        verdict = tmp_path / f"{result}.json"
        done = vtrain_("audit", path, "--verdict", verdict, "--key", "auditor.key", "--trainer-key", public_file)
        assert done.code == code
        statement = open_statement(verdict.read_bytes(), auditor.public_key(), VERDICT_PREDICATE)
        predicate, subject = statement["predicate"], statement["subject"][0]
        assert predicate["result"] == result and predicate["trainerKey"]["pinned"] is True
        assert predicate["head"] == open_run(path).notes[-1]
        assert subject["name"] == "checkpoints/000006/model.safetensors"
        assert subject["digest"]["sha256"] == file_digest(path / subject["name"])


@pytest.mark.parametrize("inside", ["verdict.json", "checkpoints/verdict.json", "../run/verdict.json"])
def test_verdict_inside_the_run(vtrain_: Call, run: Path, key_file: Path, inside: str) -> None:
    before = tree_bytes(run)
    done = vtrain_("audit", run, "--verdict", run / inside, "--key", key_file)
    assert (done.code, done.out) == (2, "") and "inside the run" in done.err
    assert tree_bytes(run) == before


def test_inspect(vtrain_: Call) -> None:
    done = vtrain_("inspect", honest("certified16"))
    assert (done.code, done.err) == (0, "")
    assert "steps 0 to 6" in done.out and "aten.mm.default" in done.out and "total" in done.out
    found = json.loads(vtrain_("inspect", honest("certified16"), "--json", "--steps", "1:2").out)
    log = open_run(honest("certified16"))
    total = next(row for row in found["operations"] if row["operation"] == "total logged")
    assert found["steps"] == [1, 2]
    assert total["entries"] == sum(int(log.log(step).sites[:, 3:5].sum()) for step in (1, 2)) > 0
    assert total["entries"] == sum(r["entries"] for r in found["operations"]) - total["entries"]
    mixed = json.loads(vtrain_("inspect", honest(), "--json").out)["operations"]
    kinds = {row["operation"]: row["canonical"] for row in mixed}
    assert kinds["aten.mm.default"] is False and kinds["aten._log_softmax.default"] is True
    assert all(row["entries"] == 0 for row in mixed if row["canonical"])
    assert vtrain_("inspect", honest(), "--steps", "2:9").code == 2


def test_keygen(vtrain_: Call, tmp_path: Path) -> None:
    done = vtrain_("keygen", "mine.key")
    private, public = tmp_path / "mine.key", tmp_path / "mine.key.pub"
    assert (done.code, done.err) == (0, "")
    assert private.stat().st_mode & 0o777 == 0o600
    key = keys.load_public(public)
    assert keys.raw_public(keys.load_private(private).public_key()) == keys.raw_public(key)
    assert keys.key_id(key) in done.out and "PRIVATE" not in done.out


@pytest.mark.parametrize("there", [["mine.key"], ["mine.key.pub"], ["mine.key", "mine.key.pub"]])
def test_keygen_never_overwrites(vtrain_: Call, tmp_path: Path, there: list[str]) -> None:
    for name in there:
        (tmp_path / name).write_text("mine")
    done = vtrain_("keygen", "mine.key")
    assert (done.code, done.out) == (2, "") and "is not overwritten" in done.err
    assert sorted(os.listdir(tmp_path)) == sorted(there)
    assert all((tmp_path / name).read_text() == "mine" for name in there)


def test_keygen_elsewhere(vtrain_: Call) -> None:
    done = vtrain_("keygen", "nowhere/mine.key")
    assert (done.code, done.out) == (2, "") and done.err.startswith("error: ")


def test_resume_of_a_finished_run(vtrain_: Call, run: Path, key_file: Path) -> None:
    before = evidence_bytes(run)
    done = vtrain_("resume", run, "--key", key_file)
    assert (done.code, done.err) == (0, "") and "finished" in done.out
    assert evidence_bytes(run) == before


def test_resume(vtrain_: Call, run: Path, key_file: Path, tmp_path: Path) -> None:
    (run / "attestation.json").unlink()
    with WriterLock(Layout(run)):
        busy = vtrain_("resume", run, "--key", key_file)
    assert busy.code == 2 and "another process is writing this run" in busy.err
    assert vtrain_("resume", run).code == 2  # the user's own key is another
    assert vtrain_("resume", run, "--key", key_file).code == 0
    assert evidence_bytes(run) == evidence_bytes(honest())
    assert vtrain_("resume", tmp_path / "nothing", "--key", key_file).code == 2
    assert not (tmp_path / "nothing").exists()


def test_path_with_spaces(vtrain_: Call, tmp_path: Path) -> None:
    copied(honest(), tmp_path / "my run: é")
    assert vtrain_("verify", "my run: é").code == 0


# ---- processes of their own ------------------------------------------------------------------------------------------


def process(*arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in PROFILE_VARIABLES}
    return subprocess.run(
        [sys.executable, "-m", "vtrain", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**clean, **(env or {})},
    )


def test_audit_under_a_profile(public_file: Path) -> None:
    done = process("audit", honest("certified16"), "--json", "--profile", "baseline", "--trainer-key", public_file)
    found = json.loads(done.stdout)
    assert (done.returncode, PROGRESS.sub("", done.stderr), found["result"]) == (0, "", "verified")
    assert found["auditor"]["profile"] == "baseline" and found["trainer"]["profile"] != "baseline"


def test_terminated_training(tmp_path: Path, key_file: Path, vtrain_: Call) -> None:
    """As by Ctrl-C: the exit code says so, and the run can be resumed."""
    job_file, run = tmp_path / "job.toml", tmp_path / "run"
    job_file.write_text(toml(values(train={"steps": 100, "checkpoint_every": 2})))
    command = [sys.executable, "-m", "vtrain", "train", str(job_file), "--out", str(run), "--key", str(key_file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as trainer:
        deadline = time.monotonic() + 60
        # Not the checkpoint's directory: what is lost before the signed head that follows it was never acknowledged.
        while acknowledged_step(Layout(run)) < 4:
            assert trainer.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        trainer.send_signal(signal.SIGTERM)
        out, err = trainer.communicate(timeout=60)
    assert (trainer.returncode, out) == (130, "")
    assert "vtrain resume RUN" in err and "Traceback" not in err
    assert open_run(run, KEY.public_key()).last_step >= 4
    with WriterLock(Layout(run)):  # nobody holds it
        pass
    done = vtrain_("resume", run, "--key", key_file)
    assert (done.code, done.err) == (0, "")
    assert vtrain_("verify", run).code == 0


def test_output_that_nobody_reads() -> None:
    """``vtrain inspect RUN | head -1`` ends quietly."""
    command = f"{sys.executable} -m vtrain inspect {honest('certified16')} | head -c 1 > /dev/null"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr
