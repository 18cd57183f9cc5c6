"""``vtrain prove``: proofs that a step is in a run, and their checking."""

from __future__ import annotations

from pathlib import Path

import click

from vtrain.console import RunPath, download_option, fetched, print_json
from vtrain.errors import UsageError
from vtrain.store.address import Url

_file = click.Path(path_type=Path)


@click.command()
@click.argument("run", type=RunPath(), required=False)
@download_option
@click.option("--step", type=click.IntRange(0), help="The step to prove; 0 is the initialisation.")
@click.option("--check", "proof", type=RunPath(), help="Check the proof in this file; needs no run.")
@click.option("--trainer-key", type=_file, help="The trainer's public key.")
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
