"""What a report says is what the run commits to and the verdict says, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from report_helpers import (
    AUDITOR,
    DISPUTE,
    REPAIR,
    SHA,
    Reader,
    elsewhere,
    forged,
    full_page,
    page,
    rename_operations,
    signed,
    verdict,
)
from run_helpers import KEY, audited, copied, forging, honest, other_hardware, tree_bytes

from auditor.evidence import open_run
from auditor.evidence.logged import table
from auditor.report.facts import corrections
from auditor.verdict.file import read_verdict

PUBLIC, AUDITORS = KEY.public_key(), AUDITOR.public_key()


def headline(text: str) -> str:
    found = re.search(r"<h1>(.*?)</h1>", text, re.DOTALL)
    assert found is not None
    return re.sub(r"<[^>]*>", "", found[1]).strip()


def test_verified(tmp_path: Path) -> None:
    text = full_page(tmp_path, honest(), verdict())
    assert headline(text) == "✓ Verified"
    assert "All 7 steps, the initialisation included, were replayed." in Reader(text).words
    assert "Before you believe it" not in text, "both keys are known and nothing is odd"
    assert text.index("<h1>") < text.index("<h2")


def test_verified_in_part(tmp_path: Path) -> None:
    found = audited(honest(), key=PUBLIC, steps=(3, 4))
    text = full_page(tmp_path, honest(), found)
    assert headline(text) == "✓ Verified in part: 2 of 7 steps"
    assert "steps that were not replayed: 0\N{EN DASH}2, 5\N{EN DASH}6" in Reader(text).words


def test_refuted(tmp_path: Path) -> None:
    run = forged(tmp_path / "run")
    text = full_page(tmp_path, run, audited(run, key=PUBLIC))
    assert headline(text) == "✗ Refuted at step 4"
    words = Reader(text).words
    assert "state: 1 of 24 tensors differ: model/1.bias" in words
    assert words.count("first bad step 4") == 5, "the strip and each chart"


def test_no_verdict() -> None:
    text = page(honest(), trainer_key=PUBLIC)
    assert headline(text) == "\N{EN DASH} Not audited: only checked"
    assert "whether any step was computed as the job says" in Reader(text).words
    assert "erified" not in Reader(text).text


def test_signature_not_checked(tmp_path: Path) -> None:
    file = signed(tmp_path / "v", verdict())
    text = page(honest(), file, PUBLIC)
    assert headline(text) == "? Signature not checked; the verdict says “Verified”"
    assert '<header class="banner claimed">' in text
    assert "who wrote the verdict, and so whether an audit took place at all" in Reader(text).words


def test_warnings(tmp_path: Path) -> None:
    file = signed(tmp_path / "v", verdict(), KEY, trainerKey={**verdict().predicate()["trainerKey"], "pinned": False})
    words = Reader(page(honest(), file, None, PUBLIC)).words
    assert "taken from the run itself: whoever made the run also chose it" in words
    assert "signed with the trainer's own key" in words
    assert "The auditor, too, took the trainer's key from the run." in words


def test_numbers_come_from_the_committed_bits(tmp_path: Path) -> None:
    run = copied(honest(), tmp_path / "run")
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 77777.5}\n')
    text = page(run)
    assert text == page(honest())
    assert "77777" not in text
    words = Reader(text).words
    for leaf in open_run(run).leaves[1:]:
        bits = leaf.metrics["loss"]
        value = struct.unpack(">f", bytes.fromhex(bits.removeprefix("F32:").zfill(8)))[0]
        assert f"{leaf.step} {value:.9g} {bits}" in words


def test_log_is_what_inspect_says() -> None:
    run = honest("certified16")
    evidence = open_run(run)
    *rows, canonical, logged = table(evidence, list(range(evidence.last_step + 1)))
    words = Reader(page(run)).words
    assert f"{logged.entries:,} decisions were logged for {logged.values:,} settled values" in words
    assert f"in {logged.bytes:,} bytes before compression. {canonical.values:,} more values" in words
    assert len(rows) < 40
    for row in rows:
        kind = "canonical" if row.canonical else "logged"
        share = f"{100 * row.entries / row.values:.3f} %"
        numbers = f"{row.sites:,} {row.values:,} {row.entries:,} {share} {row.bytes:,}"
        assert f"{row.operation} {kind} {numbers}" in words


def test_many_operations_are_added_up(tmp_path: Path) -> None:
    run = copied(honest("certified16"), tmp_path / "run")
    with forging(run) as forger:
        rename_operations(forger, lambda i, step: f"aten.made{step}x{i}.default")
    for program in set((run / "programs").glob("*.json")) - {
        run / "programs" / f"{leaf['sites']}.json" for leaf in forger.leaves
    }:
        program.unlink()
    words = Reader(page(run)).words
    found = re.search(r"([\d,]+) other operations logged", words)
    assert found is not None and int(found[1]) > 0
    assert len(re.findall(r"aten\.made\d+x\d+\.default logged", words)) == 40
    shown = re.findall(r"(?:aten\.made\d+x\d+\.default|other operations) logged ([\d,]+) ([\d,]+) ([\d,]+)", words)
    evidence = open_run(run)
    total = table(evidence, list(range(evidence.last_step + 1)))[-1]
    sums = [sum(int(row[i].replace(",", "")) for row in shown) for i in range(3)]
    assert sums == [total.sites, total.values, total.entries]


def test_corrections(tmp_path: Path) -> None:
    found = elsewhere()
    words = Reader(full_page(tmp_path, other_hardware(), found)).words
    assert found.corrections > 0
    assert f"{found.corrections:,} departed from the auditor's own rounding (corrections), and 0 lay outside" in words
    for kind in found.freedom.kinds():
        assert f"{kind.kind} {kind.entries:,} {kind.departures:,} " in words
    bare = Reader(full_page(tmp_path, other_hardware(), found, freedom=None)).words
    assert "The verdict does not tell them apart by operation." in bare


def test_corrections_over_steps(tmp_path: Path) -> None:
    found, run = elsewhere(), other_hardware()
    over = found.predicate()["correctionsOverSteps"]
    assert over["width"] == 1 and sum(count for _, count in over["counts"]) == found.corrections > 0
    last = open_run(run).last_step
    verdict = read_verdict(signed(tmp_path / "v", found), open_run(run), AUDITOR.public_key())
    drawn = corrections(verdict)
    assert [step for step, _ in drawn] == list(range(last + 1))  # a step without any is drawn as 0
    assert {step: count for step, count in drawn if count} == dict(over["counts"])
    words = Reader(full_page(tmp_path, run, found)).words
    most = max(count for _, count in over["counts"])
    assert "Corrections by step, of those replayed" in words and re.search(rf"greatest {most}\b", words), words
    bare = Reader(full_page(tmp_path, run, found, correctionsOverSteps=...)).words
    assert "The verdict does not tell them apart by step." in bare and "Corrections by step, of" not in bare


def test_corrections_over_many_steps() -> None:
    """A verdict has at most so many groups; their corrections are those of their steps."""
    found = dataclasses.replace(elsewhere(), steps=1200, by_step={0: 1, 2: 5, 3: 7, 1199: 2, 1200: 3})
    assert found.corrections_over_steps == {"width": 3, "counts": [[0, 6], [3, 7], [1197, 2], [1200, 3]]}


def test_environments_and_checkpoints(tmp_path: Path) -> None:
    changed = {**verdict().environment, "processor": "Another One", "devices": ["GPU 1", "GPU 2"]}
    words = Reader(full_page(tmp_path, honest(), verdict(), auditor=changed)).words
    assert f"processor {verdict().environment['processor']} Another One ≠ differs" in words
    assert "devices none GPU 1, GPU 2 ≠ differs" in words
    assert "system Linux Linux = same" in words
    for leaf in open_run(honest()).leaves:
        assert not leaf.state or f"{leaf.step} {leaf.state}" in words


@pytest.mark.parametrize("wrong", [[], ["run"]])
def test_dispute_and_repairs(tmp_path: Path, wrong: list[str]) -> None:
    dispute = {**DISPUTE, "wrong": wrong, "result": "refuted" if wrong else "benign"}
    outcome = {"result": "refuted", "firstBadStep": 3, "what": "log"} if wrong else {}
    text = full_page(tmp_path, honest(), verdict(), dispute=dispute, repairs=[REPAIR], **outcome)
    words = Reader(text).words
    path = f"Step 3 of 6 Operation aten.mm.default, event 41 of the step Result {DISPUTE['site']} Element 1,234"
    assert path in words
    assert "1,234 0x1.8p+1 ≈ 3 0x1.800002p+1 ≈ 3.00000024 3.0000001 3.2e-06 ✓ within" in words
    assert f"3 17 {REPAIR['site']} 2 {SHA}" in words
    assert ("refuted, outside the certified bound; wrong: run." if wrong else "benign, within the certified") in words
    assert headline(text) == ("✗ Refuted at step 3" if wrong else "✓ Verified")


def test_sample(tmp_path: Path) -> None:
    found = audited(honest(), key=PUBLIC, sampled=2, nonce="n")
    words = Reader(full_page(tmp_path, honest(), found)).words
    assert "(2 of 4 segments, drawn at random)" in words
    assert "0.50 0.750000" in words
    assert "segments drawn with nonce n" in words


def test_same_input_gives_same_bytes(tmp_path: Path) -> None:
    run = copied(honest(), tmp_path / "elsewhere" / "run")
    (run / ".lock").touch()
    file = signed(tmp_path / "v", verdict())
    assert page(run, file, PUBLIC, AUDITORS) == page(honest(), file, PUBLIC, AUDITORS)
    made = (
        "from pathlib import Path; from auditor.report import make_report\n"
        f"print(make_report(Path({str(run)!r}), None, None, None, lambda a, b: None))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", made], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True)
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout == page(run).encode() + b"\n"


def test_run_around_a_loop(tmp_path: Path) -> None:
    import torch

    from trainer import record

    def loop(run: Any) -> None:
        for _ in range(2):
            x = torch.ones(2, 3)
            with run.step(x):
                loss = run.model(x).sum()
                loss.backward()
                run.optimizer.step()
                run.metric(**{"one": loss, "count": 3})

    model = lambda: torch.nn.Linear(3, 1)  # noqa: E731
    with record(tmp_path / "run", model=model, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1)) as run:
        loop(run)
    words = Reader(page(tmp_path / "run")).words
    assert "Values of one" in words and "Values of count" in words
    assert "1 3 " in words


def test_accessible(tmp_path: Path) -> None:
    found = Reader(full_page(tmp_path, honest(), verdict(), dispute=DISPUTE, repairs=[REPAIR]))
    names = [tag for tag, _ in found.elements]
    assert names.count("table") == names.count("caption") == names.count("thead") >= 6
    assert all(attributes.get("scope") in ("col", "row") for attributes in found.all("th"))
    assert names.count("h1") == names.count("main") == 1
    levels = [int(tag[1]) for tag in names if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and all(b <= a + 1 for a, b in zip(levels, levels[1:], strict=False))
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for svg in found.all("svg"):
        label = (svg.get("aria-labelledby") or "").split()
        assert svg.get("aria-hidden") == "true" or "viewbox" in svg or (svg["role"] == "img" and set(label) <= {*ids})
    for _, attributes in found.elements:
        assert set((attributes.get("aria-labelledby") or "").split()) <= {*ids}
    assert found.all("html") == [{"lang": "en"}]


def test_needs_no_torch(tmp_path: Path) -> None:
    before = tree_bytes(honest())
    code = (
        "import sys; from pathlib import Path; import auditor.report.cli; from auditor.report.page import make_report\n"
        f"make_report(Path({str(honest())!r}), None, None, None, lambda a, b: None)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert tree_bytes(honest()) == before


def vtrain(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vtrain", "report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_command(tmp_path: Path) -> None:
    from vtrain.commit import keys

    for name, key in (("trainer.pub", PUBLIC), ("auditor.pub", AUDITORS)):
        (tmp_path / name).write_text(keys.public_text(key))
    file, out = signed(tmp_path / "v", verdict()), tmp_path / "page.html"
    known = ("--trainer-key", tmp_path / "trainer.pub", "--verdict", file, "--auditor-key")
    before = tree_bytes(honest())
    done = vtrain(honest(), *known, tmp_path / "auditor.pub", "--out", out)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"wrote {out}\n", "")
    assert out.read_text(encoding="utf-8") == page(honest(), file, PUBLIC, AUDITORS)
    assert tree_bytes(honest()) == before
    out.unlink()
    assert vtrain(honest(), *known, tmp_path / "trainer.pub", "--out", out).returncode == 3, "signed by another key"
    assert vtrain(honest(), "--auditor-key", tmp_path / "auditor.pub", "--out", out).returncode == 2
    assert vtrain(honest(), "--out", honest() / "page.html").returncode == 2
    assert vtrain(honest(), "--verdict", tmp_path / "missing", "--out", out).returncode == 2
    assert not out.exists() and tree_bytes(honest()) == before


def test_malformed_run_gives_no_page(tmp_path: Path) -> None:
    run = copied(honest(), tmp_path / "run")
    data = json.loads((run / "attestation.json").read_bytes())
    data["signatures"][0]["sig"] = data["signatures"][0]["sig"][::-1]
    (run / "attestation.json").write_text(json.dumps(data))
    assert vtrain(run, "--out", tmp_path / "out.html").returncode == 3
    assert not (tmp_path / "out.html").exists()
