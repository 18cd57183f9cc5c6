"""Parties to disputes in one process: honest ones, on this hardware and on other, and dishonest ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from run_helpers import HERE, KEY

from auditor.dispute.challenger import Challenger
from auditor.dispute.during_audit import Party
from auditor.dispute.rerun import Rerun
from auditor.dispute.responder import Responder
from auditor.dispute.tracing import Tracer
from auditor.evidence import open_run
from vtrain.engine.listener import ScaleFn, Site, Vary

AUDITOR = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))


def in_another_order(y: torch.Tensor, vary: Vary | None) -> torch.Tensor:
    """The same result as hardware gives that sums in another order."""
    if vary is None:
        return y
    y = y.clone()
    return vary().reshape(y.shape)


class Elsewhere(Tracer):
    """An honest party on hardware that sums in another order."""

    def settle(self, site: Site, y: torch.Tensor, scale: ScaleFn, vary: Vary | None = None) -> torch.Tensor:
        return super().settle(site, in_another_order(y, vary), scale, None)


def recording_elsewhere(patch: Any) -> None:
    """Makes the trainer sum in another order."""
    from trainer.listener import Recorder

    honest = Recorder.settle

    def settle(self: Recorder, site: Site, y: torch.Tensor, scale: ScaleFn, vary: Vary | None = None) -> torch.Tensor:
        return honest(self, site, in_another_order(y, vary), scale, None)

    patch.setattr(Recorder, "settle", settle)


def changed(step: int, seq: int, change: Callable[[torch.Tensor], None], base: type[Tracer] = Tracer) -> type[Tracer]:
    """A party that changes result ``seq`` of ``step``, settled or not, after it was rounded."""

    class Cheat(base):  # type: ignore[valid-type,misc]
        def _repaired(self, site: Site, out: torch.Tensor) -> torch.Tensor:
            out = super()._repaired(site, out)
            if (site.step, site.seq) == (step, seq):
                change(out)
            return out

    return Cheat


def ulps(index: int, count: int) -> Callable[[torch.Tensor], None]:
    """Moves one float32 element by so many places."""

    def change(out: torch.Tensor) -> None:
        out.view(torch.int32).view(-1)[index] += count

    return change


def responder(run: Path, tracer: type[Tracer] = Tracer) -> Responder:
    """The trainer's side of a run."""
    return Responder(Rerun(open_run(run), HERE, make_tracer=tracer), KEY)


def challenger(run: Path, theirs: type[Tracer] = Tracer, mine: type[Tracer] = Tracer) -> Challenger:
    """A dispute of a run, opened, between two parties."""
    repairs: dict[Any, Any] = {}
    return Challenger(Rerun(open_run(run), HERE, repairs, mine), AUDITOR, responder(run, theirs).answer)


def party(run: Path, tracer: type[Tracer] = Tracer, records: Path | None = None) -> Party:
    """The trainer, for an audit."""
    return Party(lambda: (responder(run, tracer).answer, lambda: None), AUDITOR, records)
