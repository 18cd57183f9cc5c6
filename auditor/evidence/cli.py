"""``vtrain verify``, ``vtrain inspect``, ``vtrain prove``: what needs the run alone, and no torch."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from auditor.options import file_path, json_option, parse_steps, public_key, trainer_key_option
from vtrain.console import RunPath, download_option, fetched, print_json, print_table, progress
from vtrain.errors import UsageError
from vtrain.store.address import Url


@click.command()
@click.argument("run", type=RunPath(), required=False)
@download_option
@click.option("--step", type=click.IntRange(0), help="The step to prove; 0 is the initialisation.")
@click.option("--check", "proof", type=RunPath(), help="Check the proof in this file; needs no run.")
@click.option("--trainer-key", type=file_path, help="The trainer's public key.")
def prove(run: Path | Url | None, step: int | None, proof: Path | Url | None, trainer_key: Path | None) -> None:
    """Print, as JSON, a proof that the trainer of RUN committed to a step; or check one. Needs no torch.

    \b
    Examples:
      vtrain prove runs/mine --step 7 > step7.json
      vtrain prove --check step7.json --trainer-key trainer.key.pub
    """
    from vtrain.commit import keys

    key = None if trainer_key is None else keys.load_public(trainer_key)
    if proof is not None:
        if run is not None or step is not None:
            raise UsageError("--check takes a proof's file, and neither a run nor a step")
        if key is None:
            raise UsageError("--check needs --trainer-key: what anybody may have signed proves nothing")
        from auditor.evidence.prove import MAX_PROOF_BYTES, check, read_bounded
        from vtrain.commit.heads import job_text, run_text

        found = check(read_bounded(proof, MAX_PROOF_BYTES), key)
        head = {
            "job": job_text(found.head.job_digest), "run": run_text(found.head.run), "size": found.head.size,
            "root": found.head.root.hex(),
        }  # fmt: skip
        print_json({"result": "proved", "key": keys.key_id(key), "head": head, "leaf": found.leaf.to_json()})
        return
    if run is None or step is None:
        raise UsageError("want RUN and --step, or --check")
    from auditor.evidence import open_run
    from auditor.evidence.prove import prove as make

    click.echo(make(open_run(fetched(run), key), step).decode())


@click.command()
@click.argument("run", type=RunPath())
@download_option
@click.option("--head", type=RunPath(), help="A signed head of this run that was seen elsewhere.")
@click.option(
    "--verdict", type=RunPath(), help="Check this verdict of an auditor, and repeat the draw of its sample, ..."
)
@click.option("--auditor-key", type=file_path, help="... signed with this public key ...")
@click.option("--nonce", help="... and drawn with the nonce that you gave to the auditor.")
@trainer_key_option
@json_option
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
        checks = check(path, public_key(trainer_key), lambda step, last: update(step, "", last), head, judged)
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
@trainer_key_option
@json_option
def inspect(run: Path | Url, steps: str | None, freedom: bool, trainer_key: Path | None, as_json: bool) -> None:
    """Show which operations of RUN were canonical, and what the others logged.

    \b
    Examples:
      vtrain inspect runs/mine --steps 1:10
      vtrain inspect runs/mine --freedom
    """
    from auditor.evidence import open_run
    from auditor.evidence.logged import table, to_json

    evidence = open_run(fetched(run), public_key(trainer_key))
    first, last = parse_steps(steps) or (0, evidence.last_step)
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
