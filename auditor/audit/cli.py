"""The auditor's commands."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vtrain.console import (
    RunPath,
    check_output,
    download_option,
    fetched,
    print_json,
    print_table,
    printable,
    profile_option,
    progress,
)
from vtrain.errors import UsageError
from vtrain.store.address import Url

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

    from auditor.audit import Request
    from auditor.dispute.judging import Party
    from auditor.verdict import Verdict

_file = click.Path(path_type=Path)
_key = click.option("--trainer-key", type=_file, help="The trainer's public key, if you know it.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")


def _public(path: Path | None) -> Ed25519PublicKey | None:
    from vtrain.commit import keys

    return None if path is None else keys.load_public(path)


def _steps(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, colon, last = text.partition(":")
    if not (first.isdecimal() and (last.isdecimal() if colon else True)):
        raise UsageError(f"--steps {text!r}; want A:B, or one step")
    return int(first), int(last if colon else first)


@click.command()
@click.argument("run", type=RunPath())
@download_option
@click.option("--steps", help="Replay steps A:B only (0 is the initialisation).")
@click.option("--sample", type=click.IntRange(1), help="Replay N segments drawn at random from the signed head.")
@click.option("--budget", help="Draw as many as have at most this share of the steps, such as 5%; at least one.")
@click.option("--confidence", help="Draw as many as catch a trainer with this probability, such as 0.99, ...")
@click.option("--cheated", help="... who cheated in this share of the segments, such as 0.05.")
@click.option("--nonce", default="", help="Your own random text for the draw; made where it is not given.")
@click.option("--progress", "kept", type=_file, help="Keep here what was found; a killed audit goes on from it.")
@click.option("--jobs", type=click.IntRange(1, 1024), help="Workers; 1 if not given, with --ray all there are.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads of each replay; the verdict says how many.")
@click.option("--ray", default="", help="Replay on the Ray cluster at this address; 'local' starts one here.")
@click.option("--dispute", metavar="HOST:PORT", help="Dispute differences with the trainer that listens there.")
@click.option("--records", type=_file, help="With --dispute: keep the referee's records and the transcript here.")
@click.option("--job", type=_file, help="The client's own job file: the run must be of this job.")
@click.option(
    "--program-dir",
    type=_file,
    help="What the program's path is relative to; by default JOB's folder.",
)
@click.option("--verdict", type=RunPath(), help="Write the signed verdict here: a file or a URL.")
@click.option("--key", type=_file, help="The auditor's private key, to sign the verdict with.")
@_key
@_json
@profile_option
def audit(
    run: Path | Url, job: Path | None, program_dir: Path | None, verdict: Path | Url | None, key: Path | None,
    trainer_key: Path | None, as_json: bool, **how: Any,
) -> None:  # fmt: skip
    """Replay RUN, all or part of it, and give a verdict. RUN is never modified.

    Segments are independent. Threads can change how many decisions depart from the auditor's own rounding, so all
    workers use as many as this process would; with --jobs N, give --threads a Nth of the cores.

    \b
    Examples:
      vtrain audit runs/mine
      vtrain audit runs/mine --profile baseline --jobs 2 --threads 1
      vtrain audit runs/mine --job job.toml --trainer-key trainer.key.pub --verdict verdict.json --key me.key
      vtrain audit s3://bucket/mine --sample 3 --nonce "$(openssl rand -hex 16)"
      vtrain audit runs/mine --confidence 0.99 --cheated 0.05 --progress audit.jsonl
      vtrain audit runs/mine --dispute trainer.example:7000 --records disputed
    """
    if (verdict is None) != (key is None):
        raise UsageError("--verdict and --key go together: a verdict file is a signed statement")
    request = _request(how)
    from auditor.audit import Request
    from vtrain.commit import keys
    from vtrain.job import load

    signer = None if key is None else keys.load_private(key)
    folder = program_dir or (job.resolve().parent if job is not None else None)
    for written in (verdict, how["kept"], how["records"]):
        _outside(run, written)
    for file in (verdict, how["kept"]):
        check_output(file)
    request["party"] = _party(how, signer)
    wanted, expected = None if job is None else load(job), _public(trainer_key)
    found = _replayed(Request(fetched(run), folder, wanted, expected, **request))
    if verdict is not None and signer is not None:
        found.sign(verdict, signer)
    print_json(found.to_json()) if as_json else click.echo(printable(str(found), 100_000))
    sys.exit(found.exit_code)


def _request(how: dict[str, Any]) -> dict[str, Any]:
    """The options that say what to replay and who does, as ``Request`` takes them."""
    from auditor.verdict.draw import Confidence, share

    ways = [name for name in ("steps", "sample", "budget", "confidence") if how[name] is not None]
    if len(ways) > 1:
        raise UsageError(f"--{' and --'.join(ways)} exclude each other")
    if (how["confidence"] is None) != (how["cheated"] is None):
        raise UsageError("--confidence and --cheated go together: how sure, against whom")
    sure = None
    if how["confidence"] is not None:
        sure = Confidence(share(how["confidence"], "--confidence"), share(how["cheated"], "--cheated"))
    return {
        "steps": _steps(how["steps"]),
        "sampled": how["sample"] or 0,
        "budget": None if how["budget"] is None else share(how["budget"], "--budget"),
        "confidence": sure,
        "nonce": how["nonce"],
        "jobs": how["jobs"] or (0 if how["ray"] else 1),
        "threads": how["threads"] or 0,
        "ray": how["ray"],
        "progress": how["kept"],
    }


def _party(how: dict[str, Any], signer: Ed25519PrivateKey | None) -> Party | None:
    """The trainer that ``--dispute`` names."""
    if how["dispute"] is None:
        if how["records"] is not None:
            raise UsageError("--records goes with --dispute: only disputes make records")
        return None
    from auditor.dispute.channel import connect, parse_address
    from auditor.dispute.judging import Party

    address = parse_address(how["dispute"])

    def channel() -> tuple[Any, Any]:
        ask, line = connect(address)
        return ask, line.close

    signed = {} if signer is None else {"key": signer}
    return Party(channel, records=how["records"], **signed)


def _replayed(request: Request) -> Verdict:
    """The audit, with a bar."""
    from auditor.audit import audit as replay

    done = 0
    with progress("auditing", tenths=True) as update:

        def on_step(step: int) -> None:
            nonlocal done
            done += 1
            update(done, f"step {step}")

        return replay(request, on_step, lambda steps: update(0, "", steps))


def _outside(run: Path | Url, verdict: Path | Url | None) -> None:
    from vtrain.store.objects import inside

    if verdict is not None and inside(verdict, run):
        raise UsageError(f"{verdict}: is inside the run, which an audit never modifies")


@click.command()
@click.argument("run", type=RunPath())
@download_option
@click.option("--head", type=RunPath(), help="A signed head of this run that was seen elsewhere.")
@click.option(
    "--verdict", type=RunPath(), help="Check this verdict of an auditor, and repeat the draw of its sample, ..."
)
@click.option("--auditor-key", type=_file, help="... signed with this public key ...")
@click.option("--nonce", help="... and drawn with the nonce that you gave to the auditor.")
@_key
@_json
def verify(
    run: Path | Url, head: Path | Url | None, verdict: Path | Url | None, auditor_key: Path | None,
    nonce: str | None, trainer_key: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Check everything about RUN that can be checked without repeating it: formats, signatures, proofs, digests.

    Needs neither torch nor a GPU. With --head, also that the trainer told others the same history. With --verdict, also
    that an auditor's verdict is about RUN, and that its segments were drawn as it says.

    \b
    Examples:
      vtrain verify runs/mine --trainer-key trainer.key.pub
      vtrain verify runs/mine --trainer-key trainer.key.pub --head head-from-a-witness.txt
      vtrain verify runs/mine --verdict verdict.json --auditor-key auditor.key.pub
    """
    if (verdict is None) != (auditor_key is None) or (verdict is None and nonce is not None):
        raise UsageError("--verdict and --auditor-key go together, and --nonce only with them")
    from auditor.evidence.verify import verify as check

    path, judged = fetched(run), None
    if verdict is not None and auditor_key is not None:
        from auditor.verdict.check import check_verdict
        from vtrain.commit import keys

        judged = partial(check_verdict, verdict, keys.load_public(auditor_key), nonce=nonce)
    with progress("verifying") as update:
        checks = check(path, _public(trainer_key), lambda step, last: update(step, "", last), head, judged)
    if as_json:
        print_json({"result": "well-formed", "checks": {c.name: c.found for c in checks}})
        return
    for c in checks:
        click.echo(f"ok  {c.name:12} {c.found}")
    click.echo("well-formed; whether the steps were computed as the job says, `vtrain audit` tells")


@click.command()
@click.argument("run", type=RunPath())
@download_option
@click.option("--steps", help="Look at steps A:B only.")
@click.option("--freedom", is_flag=True, help="Show how much the decisions leave to a trainer's choice, at most.")
@_key
@_json
def inspect(run: Path | Url, steps: str | None, freedom: bool, trainer_key: Path | None, as_json: bool) -> None:
    """Show which operations of RUN were canonical, and what the others logged.

    \b
    Examples:
      vtrain inspect runs/mine --steps 1:10
      vtrain inspect runs/mine --freedom
    """
    from auditor.evidence import open_run
    from auditor.evidence.logged import table, to_json

    evidence = open_run(fetched(run), _public(trainer_key))
    first, last = _steps(steps) or (0, evidence.last_step)
    if not 0 <= first <= last <= evidence.last_step:
        raise UsageError(f"--steps {steps}; the run has 0:{evidence.last_step}")
    rows = table(evidence, list(range(first, last + 1)))
    if as_json:
        print_json({"steps": [first, last], "operations": to_json(rows)})
        return
    if freedom:
        _show_freedom(rows)
        return
    click.echo(f"steps {first} to {last}; bytes before compression")
    titles: list[tuple[str, bool]] = [("operation", False), ("kind", False)]
    titles += [(t, True) for t in ("results", "values", "decisions", "share", "whole", "ternary", "bytes")]
    print_table(titles, [_row(r) for r in rows])


def _show_freedom(rows: list[Any]) -> None:
    click.echo("decisions in the log, and bits of choice that they leave at most;")
    click.echo("how many departed from an auditor's own rounding, only `vtrain audit` can tell")
    titles = [("operation", False), ("values", True), ("decisions", True), ("bits", True)]
    logged = [r for r in rows if not r.canonical]
    print_table(titles, [[r.operation, f"{r.values:,}", f"{r.entries:,}", f"{r.bits:,.0f}"] for r in logged])


def _row(r: Any) -> list[str]:
    share = f"{r.entries / r.values:.3%}" if r.values else "-"
    kind = "canonical" if r.canonical else "logged"
    return [r.operation, kind, *(f"{n:,}" for n in (r.sites, r.values, r.entries)), share,
            *(f"{n:,}" for n in (r.wide, r.ternary, r.bytes))]  # fmt: skip
