"""Disputes over the operators of ``vtrain.ops``: who changes a result is found, and judged from the record."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from parties import challenger, ulps
from run_helpers import HERE, KEY, audited, job, silent

from auditor.dispute.referee import judge
from auditor.dispute.tracing import Tracer
from auditor.evidence import open_run
from trainer.train import train
from vtrain.engine.listener import Site


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = job(program={"entry": "mixers.py:mixers", "config": {}}, policy={"matmul": "chain"})
    out = tmp_path_factory.mktemp("mixers") / "run"
    train(made, HERE, out, KEY, silent)
    yield out


def changed(seq: int) -> type[Tracer]:
    """A party that changes one element of a result of step 3 by one place."""

    class Cheat(Tracer):
        def canonical(self, site: Site, out: torch.Tensor) -> None:
            if (site.step, site.seq) == (3, seq):
                ulps(2, 1)(out)
            super().canonical(site, out)

    return Cheat


class Sites(Tracer):
    """Notes which operators a step walks."""

    found: dict[str, int] = {}  # noqa: RUF012

    def canonical(self, site: Site, out: torch.Tensor) -> None:
        if site.step == 3:
            Sites.found.setdefault(site.name, site.seq)
        super().canonical(site, out)


def test_honest_parties_agree(run: Path) -> None:
    assert audited(run).verified
    dispute = challenger(run, Sites)
    assert dispute.first_step(0, len(open_run(run).checkpoints)) is None
    assert dispute.dispute(3) is None
    assert {name.partition("/")[0] for name in Sites.found if name.startswith("vtrain.")} == {
        f"vtrain.{name}{back}.default" for name in ("attention", "scan", "depthwise") for back in ("", "_backward")
    }


PARTS = [
    "attention.default", "attention_backward.default/dk", "scan.default", "scan_backward.default/dv",
    "depthwise.default", "depthwise_backward.default/dw",
]  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_a_cheat_is_found_and_judged(run: Path, part: str) -> None:
    """By one place of one element, and by doing the operation again from the operands that the record shows."""
    if not Sites.found:
        challenger(run, Sites).dispute(3)
    seq = Sites.found[f"vtrain.{part}"]
    found = challenger(run, changed(seq)).dispute(3)
    assert found is not None and (found.result, found.wrong, found.step) == ("refuted", ("run",), 3)
    finding = judge(found.records[0], KEY.public_key())
    assert finding.wrong == ("run",) and finding.site == f"vtrain.{part.partition('/')[0]}"
