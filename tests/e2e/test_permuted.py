"""An auditor that sums in another order: real corrections, and the same bits all the same.

Products and convolutions are done again by ``vary``, with their terms permuted or their parts in reverse, as other
hardware would sum them. Unlike the profiles this differs on every processor.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import zoo

from auditor.audit.listener import Replayer
from vtrain.engine.listener import ScaleFn, Site, Vary


@pytest.fixture
def permuted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Makes every audit in this process sum in another order; counts results that came out different in C."""
    honest = Replayer.settle
    differ = {"results": 0}

    def settle(self: Replayer, site: Site, y: torch.Tensor, scale: ScaleFn, vary: Vary | None = None) -> torch.Tensor:
        if vary is not None:
            y = y.clone()
            other = vary().reshape(y.shape)
            differ["results"] += int(not torch.equal(y, other))
            y = other
        return honest(self, site, y, scale, None)

    monkeypatch.setattr(Replayer, "settle", settle)
    return differ


def audit(name: str, path: Path) -> dict[str, Any]:
    case = zoo.CASES[name]
    zoo.record_case(case, path)
    return zoo.replay_case(case, path)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["gpt2", "gpt2-18-bits", "resnet18", "mobilenet-v3", "lstm"])
def test_float32(name: str, permuted: dict[str, int], tmp_path: Path) -> None:
    verdict = audit(name, tmp_path / "run")
    assert verdict["result"] == "verified", verdict["detail"]
    assert permuted["results"] > 50


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["gpt2-bfloat16", "gpt2-float16", "gpt2-ternary", "gpt2-module-in-bfloat16"])
def test_narrow_targets_need_their_log(name: str, permuted: dict[str, int], tmp_path: Path) -> None:
    verdict = audit(name, tmp_path / "run")
    assert verdict["result"] == "verified", verdict["detail"]
    assert permuted["results"] > 50
    assert verdict["corrections"] > 10


@pytest.mark.timeout(300)
def test_without_a_log_they_part(permuted: dict[str, int], tmp_path: Path) -> None:
    case = zoo.CASES["gpt2-bfloat16"]
    off = zoo.Case(case.model, case.batch, policy={"target": "bfloat16", "threshold": "off"})
    zoo.record_case(off, tmp_path / "run")
    verdict = zoo.replay_case(off, tmp_path / "run")
    assert verdict["result"] == "refuted"
    assert verdict["firstBadStep"] in (1, 2)
