"""``vtrain audit``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from auditor.options import check_outside, file_path, json_option, parse_steps, public_key, trainer_key_option
from vtrain.console import (
    RunPath,
    check_output,
    download_option,
    fetched,
    machine_options,
    print_json,
    printable,
    progress,
)
from vtrain.errors import UsageError
from vtrain.store.address import Url

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from auditor.audit import Request
    from auditor.dispute.during_audit import Party
    from auditor.verdict import Verdict


@click.command()
@click.argument("run", type=RunPath())
@download_option
@click.option("--steps", help="Replay steps A:B only (0 is the initialisation).")
@click.option("--sample", type=click.IntRange(1), help="Replay N segments drawn at random from the signed head.")
@click.option("--budget", help="Draw as many as have at most this share of the steps, such as 5%; at least one.")
@click.option("--confidence", help="Draw as many as catch a trainer with this probability, such as 0.99, ...")
@click.option("--cheated", help="... who cheated in this share of the segments, such as 0.05.")
@click.option("--nonce", default="", help="Your own random text for the draw; made where it is not given.")
@click.option("--progress", "kept", type=file_path, help="Keep here what was found; a killed audit goes on from it.")
@click.option("--jobs", type=click.IntRange(1, 1024), help="Workers; 1 if not given, with --ray all there are.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Threads of each replay; the verdict says how many.")
@click.option("--ray", default="", help="Replay on the Ray cluster at this address; 'local' starts one here.")
@click.option("--dispute", metavar="HOST:PORT", help="Dispute differences with the trainer that listens there.")
@click.option("--records", type=file_path, help="With --dispute: keep the referee's records and the transcript here.")
@click.option("--job", type=file_path, help="The client's own job file: the run must be of this job.")
@click.option(
    "--program-dir",
    type=file_path,
    help="What the program's path is relative to; by default JOB's folder.",
)
@click.option("--verdict", type=RunPath(), help="Write the signed verdict here: a file or a URL.")
@click.option("--key", type=file_path, help="The auditor's private key, to sign the verdict with.")
@trainer_key_option
@json_option
@machine_options
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
        check_outside(run, written)
    for file in (verdict, how["kept"]):
        check_output(file)
    request["party"] = _party(how, signer)
    wanted, expected = None if job is None else load(job), public_key(trainer_key)
    found = _replayed(Request(fetched(run), folder, wanted, expected, **request))
    if verdict is not None and signer is not None:
        found.sign(verdict, signer)
    print_json(found.to_json()) if as_json else click.echo(printable(str(found), 100_000))
    sys.exit(found.exit_code)


def _request(how: dict[str, Any]) -> dict[str, Any]:
    """The options that say what to replay and who does, as ``Request`` takes them."""
    from auditor.audit.plan import Confidence, share

    ways = [name for name in ("steps", "sample", "budget", "confidence") if how[name] is not None]
    if len(ways) > 1:
        raise UsageError(f"--{' and --'.join(ways)} exclude each other")
    if (how["confidence"] is None) != (how["cheated"] is None):
        raise UsageError("--confidence and --cheated go together: how sure, against whom")
    sure = None
    if how["confidence"] is not None:
        sure = Confidence(share(how["confidence"], "--confidence"), share(how["cheated"], "--cheated"))
    return {
        "steps": parse_steps(how["steps"]),
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
    from auditor.dispute.during_audit import Party

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
