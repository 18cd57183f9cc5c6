"""The auditor's commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vtrain.console import (
    RunPath,
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
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

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
@click.option("--nonce", default="", help="Your own random text for the draw; made where it is not given.")
@click.option("--jobs", type=click.IntRange(1, 1024), default=1, show_default=True, help="Worker processes.")
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
    run: Path | Url, steps: str | None, sample: int | None, nonce: str, jobs: int, job: Path | None,
    program_dir: Path | None, verdict: Path | Url | None, key: Path | None, trainer_key: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Replay RUN, all or part of it, and give a verdict. RUN is never modified.

    \b
    Examples:
      vtrain audit runs/mine
      vtrain audit runs/mine --profile baseline --jobs 2
      vtrain audit runs/mine --job job.toml --trainer-key trainer.key.pub --verdict verdict.json --key me.key
      vtrain audit s3://bucket/mine --sample 3 --nonce "$(openssl rand -hex 16)"
    """
    if steps is not None and sample is not None:
        raise UsageError("--steps and --sample exclude each other")
    if (verdict is None) != (key is None):
        raise UsageError("--verdict and --key go together: a verdict file is a signed statement")
    from auditor.audit import Request
    from auditor.audit import audit as replay
    from vtrain.commit import keys
    from vtrain.job import load

    signer = None if key is None else keys.load_private(key)
    folder = program_dir or (job.resolve().parent if job is not None else None)
    _outside(run, verdict)
    wanted, expected, span = None if job is None else load(job), _public(trainer_key), _steps(steps)
    request = Request(fetched(run), folder, wanted, expected, span, sample or 0, nonce, jobs)
    done = 0
    with progress("auditing", None) as update:
        planned = 0

        def on_step(step: int) -> None:
            nonlocal done
            done += 1
            update(done, f"of {planned}, step {step}")

        def on_plan(count: int) -> None:
            nonlocal planned
            planned = count

        found = replay(request, on_step, on_plan)
    if verdict is not None and signer is not None:
        found.sign(verdict, signer)
    print_json(found.to_json()) if as_json else click.echo(printable(str(found), 100_000))
    sys.exit(found.exit_code)


def _outside(run: Path | Url, verdict: Path | Url | None) -> None:
    from vtrain.store.objects import inside

    if verdict is not None and inside(verdict, run):
        raise UsageError(f"{verdict}: is inside the run, which an audit never modifies")


@click.command()
@click.argument("run", type=RunPath())
@download_option
@click.option("--head", type=_file, help="A signed head of this run that was seen elsewhere.")
@_key
@_json
def verify(run: Path | Url, head: Path | None, trainer_key: Path | None, as_json: bool) -> None:
    """Check everything about RUN that can be checked without repeating it: formats, signatures, proofs, digests.

    Needs neither torch nor a GPU. With --head, also that the trainer told others the same history.

    \b
    Examples:
      vtrain verify runs/mine --trainer-key trainer.key.pub
      vtrain verify runs/mine --trainer-key trainer.key.pub --head head-from-a-witness.txt
    """
    from auditor.verify import verify as check

    path = fetched(run)
    with progress("verifying", None) as update:
        checks = check(path, _public(trainer_key), lambda step, last: update(step, f"of {last}"), head)
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
@_key
@_json
def inspect(run: Path | Url, steps: str | None, trainer_key: Path | None, as_json: bool) -> None:
    """Show which operations of RUN were canonical, and what the others logged.

    \b
    Example:
      vtrain inspect runs/mine --steps 1:10
    """
    from auditor.evidence import open_run
    from auditor.inspect import table, to_json

    evidence = open_run(fetched(run), _public(trainer_key))
    first, last = _steps(steps) or (0, evidence.last_step)
    if not 0 <= first <= last <= evidence.last_step:
        raise UsageError(f"--steps {steps}; the run has 0:{evidence.last_step}")
    rows = table(evidence, list(range(first, last + 1)))
    if as_json:
        print_json({"steps": [first, last], "operations": to_json(rows)})
        return
    click.echo(f"steps {first} to {last}; bytes before compression")
    titles: list[tuple[str, bool]] = [("operation", False), ("kind", False)]
    titles += [(t, True) for t in ("results", "values", "decisions", "share", "whole", "ternary", "bytes")]
    print_table(titles, [_row(r) for r in rows])


def _row(r: Any) -> list[str]:
    share = f"{r.entries / r.values:.3%}" if r.values else "-"
    kind = "canonical" if r.canonical else "logged"
    return [r.operation, kind, *(f"{n:,}" for n in (r.sites, r.values, r.entries)), share,
            *(f"{n:,}" for n in (r.wide, r.ternary, r.bytes))]  # fmt: skip
