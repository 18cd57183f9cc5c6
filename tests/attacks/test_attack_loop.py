"""Somebody's own loop, recorded and replayed: what an auditor's loop finds where it departs from the trainer's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import KEY, copied, finding, forging, tree_bytes

from auditor import replay
from auditor.evidence import open_run
from auditor.evidence.verify import verify
from auditor.verdict import Verdict
from trainer import record
from vtrain.demo.forger import one_ulp
from vtrain.errors import IncompleteRunError, UsageError

Part = torch.Tensor


def net() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Dropout(0.2), torch.nn.Linear(8, 3))


def wider() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.Tanh(), torch.nn.Dropout(0.2), torch.nn.Linear(9, 3))


def deeper() -> torch.nn.Module:
    return torch.nn.Sequential(*net(), torch.nn.Linear(3, 3))


TINY = torch.tensor(2.0**-20)  # as a tensor: a number would be recorded as a host scalar, and found by it


def shifted() -> torch.nn.Module:
    made = net()
    with torch.no_grad():
        made[3].bias[1] += TINY
    return made


@dataclass(frozen=True)
class Plan:
    """A loop, to be departed from."""

    model: Callable[[], torch.nn.Module] = net
    steps: int = 5
    rate: float = 0.1
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.SGD
    loss: Callable[[Part, Part], Part] = torch.nn.functional.cross_entropy
    batch: Callable[[int], dict[str, Part]] = lambda step: batch_of(step)
    metric: bool = True

    def run(self, run: Any) -> None:
        """The loop's body, for trainer and auditor."""
        for step in range(run.steps_done + 1, self.steps + 1):
            batch = self.batch(step)
            with run.step(batch):
                loss = self.loss(run.model(batch["x"]), batch["y"])
                loss.backward()
                run.optimizer.step()
                run.optimizer.zero_grad()
                if self.metric:
                    run.metric(loss=loss)

    def arguments(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": lambda m: self.optimizer(m.parameters(), lr=self.rate)}


def batch_of(step: int) -> dict[str, Part]:
    generator = torch.Generator().manual_seed(step)
    return {"x": torch.randn(4, 6, generator=generator), "y": torch.randint(0, 3, (4,), generator=generator)}


def part_changed(step: int, part: str) -> Callable[[int], dict[str, Part]]:
    def batch(at: int) -> dict[str, Part]:
        made = batch_of(at)
        if at == step:
            made[part] = made[part].clone()
            made[part][2] = 1 - made[part][2]
        return made

    return batch


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the plan as it is."""
    path = tmp_path_factory.mktemp("loop") / "run"
    with record(path, key=KEY, checkpoint_every=2, seed=3, **Plan().arguments()) as run:
        Plan().run(run)
    return path


@pytest.fixture(autouse=True)
def unchanged(recorded: Path) -> Iterator[None]:
    """No audit changes the run."""
    before = tree_bytes(recorded)
    yield
    assert tree_bytes(recorded) == before


def replayed(path: Path, plan: Plan, **arguments: Any) -> Verdict:
    with replay(path, trainer_key=KEY.public_key(), **plan.arguments(), **arguments) as run:
        plan.run(run)
    return run.verdict


def test_same_loop(recorded: Path) -> None:
    verdict = replayed(recorded, Plan())
    assert finding(verdict) == (None, "")
    assert verdict.replayed == [(0, 5)] and verdict.key_pinned


def test_other_initial_state(recorded: Path) -> None:
    verdict = replayed(recorded, Plan(model=shifted))
    assert finding(verdict) == (0, "state")
    assert "1 of 4 tensors differ: model/3.bias" in verdict.detail


@pytest.mark.parametrize("model", [wider, deeper])
def test_other_model(recorded: Path, model: Callable[[], torch.nn.Module]) -> None:
    verdict = replayed(recorded, Plan(model=model))
    assert finding(verdict)[0] == 0 and verdict.what in ("scalars", "state", "sites")


def test_initial_state_of_the_run(recorded: Path) -> None:
    verdict = replayed(recorded, Plan(model=shifted), initial="run")
    assert finding(verdict) == (None, "")
    assert any("taken from the run" in note for note in verdict.notes)


@pytest.mark.parametrize("step", [1, 3, 5])
@pytest.mark.parametrize("part", ["x", "y"])
def test_other_batch(recorded: Path, step: int, part: str) -> None:
    verdict = replayed(recorded, Plan(batch=part_changed(step, part)))
    assert finding(verdict) == (step, "data")
    assert f"{part!r}" in verdict.detail


def test_batch_with_another_part(recorded: Path) -> None:
    verdict = replayed(recorded, Plan(batch=lambda step: {**batch_of(step), "weight": torch.ones(4)}))
    assert finding(verdict) == (1, "data") and "'weight'" in verdict.detail


def test_one_step_more(recorded: Path) -> None:
    verdict = replayed(recorded, Plan(steps=6))
    assert finding(verdict) == (6, "steps") and "ends at step 5" in verdict.detail


def test_one_step_less(recorded: Path) -> None:
    """No verdict on a run that was not replayed to its end."""
    with pytest.raises(IncompleteRunError, match="ended after step 4; the run has 5") as caught:
        replayed(recorded, Plan(steps=4))
    assert caught.value.exit_code == 3


def smoothed(logits: Part, y: Part) -> Part:
    return torch.nn.functional.cross_entropy(logits, y, label_smoothing=0.1)


def squared(logits: Part, y: Part) -> Part:
    return torch.nn.functional.mse_loss(logits, torch.nn.functional.one_hot(y, 3).to(logits.dtype))


def shifted_loss(logits: Part, y: Part) -> Part:
    return torch.nn.functional.cross_entropy(logits, y) + torch.ones(())


@pytest.mark.parametrize("loss", [smoothed, squared, shifted_loss])
def test_other_loss(recorded: Path, loss: Callable[[Part, Part], Part]) -> None:
    verdict = replayed(recorded, Plan(loss=loss))
    assert finding(verdict)[0] == 1
    assert verdict.what == {smoothed: "sites", squared: "sites", shifted_loss: "loss"}[loss]


def test_other_rate(recorded: Path) -> None:
    assert finding(replayed(recorded, Plan(rate=0.11))) == (1, "scalars")


def test_other_optimizer(recorded: Path) -> None:
    found = finding(replayed(recorded, Plan(optimizer=torch.optim.Adam)))
    assert found[0] == 1 and found[1] in ("scalars", "sites")


def test_metric_not_reported(recorded: Path) -> None:
    assert finding(replayed(recorded, Plan(metric=False))) == (1, "loss")


def test_state_changed_between_steps(recorded: Path) -> None:
    """What trainer or auditor do to the weights outside a step would be in no log: it is refused."""
    plan = Plan()
    with (
        pytest.raises(UsageError, match="changed after step 2 and outside"),
        replay(recorded, **plan.arguments()) as run,
    ):
        replace(plan, steps=2).run(run)
        with torch.no_grad():
            run.model[0].weight.mul_(1.5)
        plan.run(run)


def test_body_is_not_run_on_after_a_difference(recorded: Path) -> None:
    seen = []
    plan = Plan(batch=part_changed(2, "x"))
    with replay(recorded, **plan.arguments()) as run:
        for step in range(1, 6):
            with run.step(plan.batch(step)):
                seen.append(step)
                run.metric(loss=plan.loss(run.model(plan.batch(step)["x"]), plan.batch(step)["y"]))
    assert seen == [1]
    assert run.verdict.first_bad_step in (1, 2)


@pytest.mark.parametrize("step", [0, 2, 5])
def test_forged_checkpoint(recorded: Path, tmp_path: Path, step: int) -> None:
    forged = copied(recorded, tmp_path / "forged")
    with forging(forged) as forger:
        forger.change_checkpoint(
            step, lambda files: files["model"].update({"0.bias": one_ulp(files["model"]["0.bias"])})
        )
    verify(forged, KEY.public_key(), lambda at, last: None)
    verdict = replayed(forged, Plan())
    assert finding(verdict) == (step, "state") and "model/0.bias" in verdict.detail


def test_a_factor_is_another_where_float32_tells(tmp_path: Path) -> None:
    """A few ulps are granted to a factor, but none that its rounding to float32 shows."""
    tie = 1.0 + 2.0**-24

    def body(run: Any, factor: float) -> None:
        with run.step({}):
            run.model.bias.data.mul_(factor)
            run.metric(bias=run.model.bias[0].detach())

    def model() -> torch.nn.Module:
        made = torch.nn.Linear(2, 1)
        torch.nn.init.ones_(made.bias)
        return made

    higher, path = math.nextafter(tie, 2.0), tmp_path / "run"
    with record(path, model=model, key=KEY) as run:
        body(run, higher)
    assert open_run(path).leaves[1].metrics == {"bias": "F32:3f800001"}
    for factor, found in ((math.nextafter(higher, 2.0), (None, "")), (tie, (1, "scalars")), (1.5, (1, "scalars"))):
        with replay(path, model=model) as run:
            body(run, factor)
        assert finding(run.verdict) == found
