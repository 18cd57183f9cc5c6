"""Products on matrix units, whose sums are no IEEE sums: trained there, audited on a CPU, and the other way round."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent))
from emulated import BACKEND, NAME
from on_jobs import PRODUCT, audited, challenger, nudged, trained
from parties import changed
from run_helpers import KEY, job

from auditor.dispute.referee import judge
from trainer import record
from vtrain.engine import matrix_units
from vtrain.engine.listener import Plain
from vtrain.engine.session import Session
from vtrain.errors import BackendError, JobError
from vtrain.policy import Policy
from vtrain.rounding.accumulators import ARCHITECTURES, WORST, Accumulator

WHERE = torch.device(NAME, 0)
UNITS: dict[str, Any] = {"accumulator": "tensor_core"}
POLICIES: dict[str, dict[str, Any]] = {
    "certified bfloat16": {**UNITS, "target": "bfloat16", "threshold": "certified"},
    "adaptive bfloat16": {**UNITS, "target": "bfloat16"},
    "statistical float16": {**UNITS, "target": "float16", "threshold": "statistical", "other": "logged"},
}


@pytest.fixture(autouse=True)
def units() -> Iterator[None]:
    BACKEND.units, BACKEND.multiplied = WORST, 0
    matrix_units.check.cache_clear()
    yield
    BACKEND.units = None
    matrix_units.check.cache_clear()


@pytest.mark.parametrize("policy", list(POLICIES))
@pytest.mark.parametrize(("there", "here"), [(NAME, "cpu"), ("cpu", NAME)])
def test_trained_there_audited_here(there: str, here: str, policy: str, tmp_path: Path) -> None:
    made = job(policy=POLICIES[policy])
    run = trained(tmp_path / "run", there, made)
    assert (BACKEND.multiplied > 100) is (there == NAME)
    verdict = audited(run, here)
    assert verdict.verified, verdict.detail
    assert BACKEND.multiplied > 100


def test_units_of_two_generations(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", NAME, job(policy=POLICIES["adaptive bfloat16"]))
    BACKEND.units = ARCHITECTURES[9, 0]
    verdict = audited(run, NAME)
    assert verdict.verified, verdict.detail


def test_only_where_the_policy_allows_for_them(tmp_path: Path) -> None:
    verdict = audited(trained(tmp_path / "run", NAME, job(policy={"target": "bfloat16"})), NAME)
    assert verdict.verified and BACKEND.multiplied == 0


def test_the_bound_of_ieee_sums_would_not_do() -> None:
    """What units cut away is more than a sum in float32 can lose: the other constant is needed."""
    a = torch.full((1, 512), 2.0**-11 - 2.0**-19)
    b = torch.full((512, 1), 2.0**-12)
    a[0, 0] = b[0, 0] = 1.0
    found = BACKEND.matrix_product(a.bfloat16().to(WHERE), b.bfloat16().to(WHERE)).cpu().double()
    exact = a.double() @ b.double()
    assert float(exact - found) > 1.5 * 516 * 2.0**-24 * float(a.norm() * b.norm())


def test_operands_of_more_bits_are_multiplied_elsewhere() -> None:
    """A batch enters as it is: what is no bfloat16 value does not go through bfloat16."""
    x = torch.tensor([[1.0, 1.0 + 2.0**-20]], device=WHERE)
    w = torch.tensor([[1.0], [-1.0]], device=WHERE)
    session = Session(Plain(), Policy(target="bfloat16", **UNITS), 0)
    with session.step(1):
        BACKEND.multiplied = 0
        y = x @ w
    assert float(y.cpu()) == -(2.0**-20) and BACKEND.multiplied == 0


def test_units_that_keep_fewer_bits_are_refused() -> None:
    BACKEND.units = Accumulator(16, 13)  # as FP8's on Hopper
    x = torch.ones(4, 4, device=WHERE, dtype=torch.bfloat16)
    with (
        pytest.raises(BackendError, match=r"matrix units of emulated:0 .* err by .* accumulator='float32'"),
        Session(Plain(), Policy(**UNITS), 0).step(1),
    ):
        x @ x


def test_units_that_give_no_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = BACKEND.matrix_product

    def wrong(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        found = right(a, b).cpu()
        found[..., -1:] = float("nan")
        return found.to(a.device)

    monkeypatch.setattr(BACKEND, "matrix_product", wrong)
    with pytest.raises(BackendError, match="err by nan of the bound"):
        matrix_units.check(WHERE)


def test_a_default_device_does_not_matter() -> None:
    with torch.device("meta"):
        assert 0.4 < matrix_units.check(WHERE) < 0.6


def test_autocast(tmp_path: Path) -> None:
    """bfloat16 tensors of a float32 run, in a loop of one's own."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(24, 32), torch.nn.GELU(), torch.nn.Linear(32, 5)).to(WHERE)
    optimizer = torch.optim.AdamW(model.parameters())
    batch = {"x": torch.randn(8, 24).to(WHERE)}
    with record(tmp_path / "run", model=model, optimizer=optimizer, policy=Policy(**UNITS), key=KEY) as run:
        for _ in range(2):
            with run.step(batch), torch.autocast(NAME, torch.bfloat16):
                run.model(batch["x"]).float().square().mean().backward()
                run.optimizer.step()
    assert BACKEND.multiplied > 10


# ---- disputes --------------------------------------------------------------------------------------------------------
def test_honest_parties_agree(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", NAME, job(policy=POLICIES["certified bfloat16"]))
    dispute = challenger(run, NAME, "cpu")
    assert dispute.first_step(0, 6) is None
    assert dispute.dispute(3) is None


def test_a_cheat_is_found(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", NAME, job(policy=POLICIES["certified bfloat16"]))
    found = challenger(run, NAME, "cpu", changed(3, PRODUCT, lambda out: nudged(out.mul_(1.5)))).dispute(3)
    assert found is not None and (found.result, found.wrong, found.step) == ("refuted", ("run",), 3)
    finding = judge(found.records[0], KEY.public_key())
    assert finding.elements and not any(e.run_within for e in finding.elements)


def test_it_is_for_logged_products() -> None:
    for matmul in ("chain", "chain64", "integer"):
        with pytest.raises(JobError, match="accumulator='tensor_core' is for matmul='logged', not"):
            Policy(matmul=matmul, **UNITS)
