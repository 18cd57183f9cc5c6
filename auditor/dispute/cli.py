"""The commands of a dispute."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from auditor.options import check_outside, file_path, json_option, parse_steps, public_key, trainer_key_option
from vtrain.console import RunPath, download_option, fetched, machine_options, print_json, print_table, printable
from vtrain.errors import KeyFileError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from auditor.dispute.difference import Difference
    from auditor.dispute.referee import Finding
    from auditor.dispute.resolve import Resolution
    from auditor.evidence import Evidence
    from vtrain.store.address import Url


@dataclass(frozen=True)
class _How:
    listen: str | None
    connect: str | None
    against: Path | Url | None
    replay: bool

    def __post_init__(self) -> None:
        if sum(x is not None for x in (self.listen, self.connect, self.against)) + int(self.replay) != 1:
            raise UsageError("want one of --listen, --connect, --against and --replay")


@click.command()
@click.argument("run", type=RunPath())
@download_option
@click.option("--listen", metavar="HOST:PORT", help="Answer one challenger there: what a trainer does for its own run.")
@click.option("--connect", metavar="HOST:PORT", help="Dispute RUN with the trainer that listens there.")
@click.option("--against", type=RunPath(), metavar="OTHER", help="Find where RUN and another run of its job part.")
@click.option("--replay", is_flag=True, help="Dispute RUN with what it wrote alone; its trainer is not asked.")
@click.option("--steps", help="Dispute steps A:B only; they must begin after a checkpoint.")
@click.option("--out", type=file_path, help="Write the referee's records and the transcript into this directory.")
@click.option(
    "--program-dir", type=file_path, help="What the program's path is relative to; only files below it are run."
)
@click.option("--key", type=file_path, help="Your private key; the trainer's, with --listen. Made for once otherwise.")
@trainer_key_option
@json_option
@machine_options
def dispute(
    run: Path | Url, listen: str | None, connect: str | None, against: Path | Url | None, replay: bool,
    steps: str | None, out: Path | None, program_dir: Path | None, key: Path | None, trainer_key: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Narrow a difference down to one operation, and judge it: benign or refuted.

    \b
    Examples:
      vtrain dispute runs/mine --listen 127.0.0.1:7000 --key trainer.key      (the trainer)
      vtrain dispute runs/mine --connect 127.0.0.1:7000 --out disputed        (the auditor)
      vtrain dispute runs/mine --against runs/theirs
      vtrain dispute runs/mine --replay
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from auditor.audit.programs import FOLDER, check_program
    from auditor.evidence import open_run
    from vtrain.commit import keys
    from vtrain.job import Job

    how = _How(listen, connect, against, replay)
    check_outside(run, out)
    path = fetched(run)
    evidence = open_run(path, public_key(trainer_key))
    if how.listen is not None and key is None:
        raise UsageError("--listen needs --key: the key that signed the run")
    signer = Ed25519PrivateKey.generate() if key is None else keys.load_private(key)
    if how.listen is not None:
        _answer(evidence, program_dir or Path(), signer, how.listen, out)
        return
    if isinstance(evidence.job, Job):  # what the run names is run here
        check_program(evidence.job.program, program_dir, path, FOLDER)
    folder = program_dir or Path()
    first, last = parse_steps(steps) or (0, evidence.last_step)
    if not 0 <= first <= last <= evidence.last_step:
        raise UsageError(f"--steps {steps}; the run has 0:{evidence.last_step}")
    if how.against is not None:
        found = _two_runs(evidence, open_run(fetched(how.against)), folder, signer, out)
    else:
        found = _one_run(evidence, folder, signer, how.connect, (first, last), out)
    _report(found, as_json)


def _answer(evidence: Evidence, directory: Path, key: Any, address: str, out: Path | None) -> None:
    from auditor.dispute.channel import listen, parse_address, serve
    from auditor.dispute.rerun import Rerun
    from auditor.dispute.resolve import keep_transcript, new_transcript
    from auditor.dispute.responder import Responder
    from vtrain.commit import keys

    if keys.raw_public(key.public_key()) != keys.raw_public(evidence.key):
        raise UsageError(f"the run is signed by key {keys.key_id(evidence.key)}; --key is another")
    server = listen(parse_address(address))
    click.echo(f"listening on {server.getsockname()[0]}:{server.getsockname()[1]}")
    sys.stdout.flush()
    responder = Responder(Rerun(evidence, directory), key)
    transcript = new_transcript(out)
    try:
        serve(server, responder.answer)
    finally:
        keep_transcript(transcript, responder.talk)
    click.echo(f"answered {len(responder.talk.lines) // 2} questions")


def _one_run(
    evidence: Evidence, directory: Path, key: Any, address: str | None, steps: tuple[int, int], out: Path | None
) -> Resolution:
    from auditor.dispute import local
    from auditor.dispute.challenger import Challenger
    from auditor.dispute.channel import connect, parse_address
    from auditor.dispute.rerun import Rerun
    from auditor.dispute.resolve import Resolver

    repairs: dict[Any, Any] = {}
    mine = Rerun(evidence, directory, repairs)
    if address is None:
        found = Resolver(local.challenge(evidence, mine, directory, key), repairs, out).resolve(*steps)
        _only_certified(evidence, found.refuted)
        return found
    channel, line = connect(parse_address(address))
    try:
        return Resolver(Challenger(mine, key, channel), repairs, out).resolve(*steps)
    finally:
        line.close()


def _two_runs(evidence: Evidence, other: Evidence, directory: Path, key: Any, out: Path | None) -> Resolution:
    from auditor.dispute import local
    from auditor.dispute.rerun import Rerun
    from auditor.dispute.resolve import Resolution, Resolver

    compared = local.compare(evidence, other)
    if compared.following is None:
        return Resolution()
    repairs: dict[Any, Any] = {}
    mine = Rerun(other, directory, repairs, make_tracer=local.Believer)
    challenger = local.challenge(evidence, mine, directory, key)
    found = Resolver(challenger, repairs, out, once=True).resolve(compared.checkpoint + 1, compared.following)
    _only_certified(evidence, found.refuted)
    return found


def _only_certified(evidence: Evidence, found: Difference | None) -> None:
    """Without its trainer, a run is only held to what certified thresholds promise."""
    from auditor.dispute.difference import NOT_COMMITTED

    kind = evidence.promise
    if found is not None and found.operation == NOT_COMMITTED and kind != "certified":
        raise UnsupportedError(
            f"step {found.step}: the run can't be done again here from its log, whose thresholds are {kind}: its own "
            "hardware may round otherwise. Ask its trainer: vtrain dispute RUN --connect HOST:PORT"
        )


def _report(found: Resolution, as_json: bool) -> None:
    from auditor.dispute.resolve import to_json

    refuted = found.refuted
    result = "refuted" if refuted is not None else "benign" if found.listed else "same"
    if as_json:
        print_json({
            "result": result, "repairs": found.listed, "dispute": None if refuted is None else to_json(refuted)
        })  # fmt: skip
    else:
        for repair in found.listed:
            click.echo(f"benign   step {repair['step']}, {repair['site']}: {repair['elements']} elements")
        if refuted is not None:
            place = "" if refuted.why.startswith(refuted.operation) else f", {refuted.operation}"
            click.echo(f"REFUTED  step {refuted.step}{place}: {refuted.why}")
            click.echo(f"  wrong  {' and '.join(refuted.wrong)}")
            for finding in refuted.findings:
                _elements(finding)
        else:
            click.echo({"same": "no step differs", "benign": "every difference is benign"}[result])
    sys.exit(1 if refuted is not None else 0)


def _elements(finding: Finding) -> None:
    columns = [(t, True) for t in ("element", "run", "", "other", "", "exact", "bound")]
    marks = {True: "within", False: "OUTSIDE"}
    print_table(columns, [
        [str(e.index), f"{e.run!r}", marks[e.run_within], f"{e.other!r}", marks[e.other_within], f"{e.exact!r}",
         f"{e.bound:.3g}"]
        for e in finding.elements[:20]
    ])  # fmt: skip


@click.command()
@click.argument("record", type=file_path)
@trainer_key_option
@json_option
def referee(record: Path, trainer_key: Path | None, as_json: bool) -> None:
    """Judge the disputed operation in RECORD, or who broke the rules in a transcript.

    Recomputes the disputed elements exactly. Needs no GPU, no model, no data and no torch.

    \b
    Examples:
      vtrain referee disputed/record-3-19-0
      vtrain referee disputed/transcript.jsonl --trainer-key trainer.key.pub
    """
    from auditor.dispute.record import MAX_RECORD_BYTES
    from auditor.dispute.referee import judge
    from vtrain.store.layout import safe_open

    if not os.path.lexists(record):
        raise UsageError(f"{record}: no such record; `vtrain dispute --out` and `vtrain audit --records` write them")
    with safe_open(Path(os.path.realpath(record.parent)), record.name, max_bytes=1 << 30) as handle:
        head = handle.read(16)
        data = head + handle.read()
    if head.startswith(b'{"body"'):
        _transcript(data, trainer_key, as_json)
        return
    if len(data) > MAX_RECORD_BYTES:
        raise UsageError(f"{record}: {len(data)} bytes; a record has at most {MAX_RECORD_BYTES}")
    finding = judge(data, public_key(trainer_key))
    if as_json:
        print_json(finding.to_json())
    else:
        click.echo(f"{finding.result.upper()}: step {finding.step}, event {finding.event}: {finding.site}")
        if finding.wrong:
            click.echo(f"  wrong    {' and '.join(finding.wrong)}")
        who = "signed by the trainer" if finding.answered else "replayed by somebody else from the run's log"
        click.echo(f"  run      {who}; trainer's key {finding.keys['trainer'][:16]}")
        click.echo(f"  elements {len(finding.elements)} of {finding.disputed} that differ")
        if finding.decisions is not None:
            click.echo(f"  log      {finding.decisions} decisions of the run for this result")
        _elements(finding)
    sys.exit(1 if finding.wrong else 0)


def _challenger(opened: Mapping[str, Any]) -> str:
    """Id of the key that the first message brings; empty where that is none."""
    from vtrain.commit import keys

    with contextlib.suppress(KeyFileError):
        return keys.key_id(keys.parse_public(opened.get("key")))
    return ""


def _transcript(data: bytes, trainer_key: Path | None, as_json: bool) -> None:
    from auditor.dispute.messages import peek
    from auditor.dispute.rules import check_transcript
    from vtrain.commit import heads, keys

    key = public_key(trainer_key)
    if key is None:
        raise UsageError("a transcript needs --trainer-key: the key that its answers must be signed with")
    lines = data.rstrip(b"\n").split(b"\n")
    opened = peek(lines[0]).content
    note = str(opened.get("head"))
    run = heads.run_text(heads.open_head(note, key, heads.KEY_NAME).run)  # signed: else there is no such run
    lost = check_transcript(lines, str(opened.get("job")), heads.head_digest(note), key)
    trainer, challenger, job = keys.key_id(key), _challenger(opened), str(opened.get("job"))
    if as_json:
        print_json({
            "messages": len(lines), "forfeits": None if lost is None else lost.side, "why": lost.why if lost else "",
            "proved": lost is not None and lost.proved, "trainer": trainer, "challenger": challenger, "job": job,
            "run": run, "head": heads.head_digest(note),
        })  # fmt: skip
    else:
        click.echo(f"{len(lines)} messages: {'nobody broke a rule' if lost is None else str(lost)}")
        click.echo(f"  trainer     key {trainer[:16]}, job {printable(job[:16])}")
        click.echo(f"  run         {run}")
        click.echo(f"  challenger  key {challenger[:16]}, which the transcript brings: compare it with the auditor's")
        if lost is not None and not lost.proved:
            click.echo("  not proved: whoever handed this transcript on could have made it so; put the question again")
    sys.exit(0 if lost is None else 1)
