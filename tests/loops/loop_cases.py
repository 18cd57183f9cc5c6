"""Loops as people write them, each with state in another place; each runs on from ``run.steps_done``."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

import vtrain

STEPS = 7


def batch(step: int) -> torch.Tensor:
    return (torch.arange(24) % 7 - 3).view(4, 6) * (step / 8)


def net() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def each(
    run: Any, at: Callable[[int], object], after: Callable[[int, float], object] = lambda step, loss: None
) -> None:
    """Plain training; ``after`` follows each step."""
    for step in range(run.steps_done + 1, STEPS + 1):
        with run.step(batch(step)):
            loss = (run.model(batch(step)) - 1).square().mean()
            loss.backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
            run.metric(loss=loss)
        after(step, float(loss.detach()))
        at(step)


@dataclass(frozen=True)
class Case:
    """A loop.

    Attributes:
        body: of the run, and what to call when a step and all that follows it is done.
        model, optimizer, extra: as ``record`` takes them.
    """

    body: Callable[[Any, Callable[[int], object]], None] = each
    model: Callable[[], torch.nn.Module] = net
    optimizer: Callable[[torch.nn.Module], torch.optim.Optimizer] | None = sgd
    extra: Callable[..., dict[str, Any]] | None = None

    def arguments(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "extra": self.extra}


# ---- schedules ------------------------------------------------------------------------------------------------------
def schedule(make: Callable[[torch.optim.Optimizer], Any]) -> Callable[..., dict[str, Any]]:
    return lambda model, optimizer: {"schedule": make(optimizer)}


def stepped_after(run: Any, at: Callable[[int], object]) -> None:
    each(run, at, lambda step, loss: run.extra["schedule"].step())


def stepped_inside(run: Any, at: Callable[[int], object]) -> None:
    for step in range(run.steps_done + 1, STEPS + 1):
        with run.step(batch(step)):
            run.model(batch(step)).square().mean().backward()
            run.optimizer.step()
            run.extra["schedule"].step()
            run.optimizer.zero_grad()
        at(step)


def stepped_before(run: Any, at: Callable[[int], object]) -> None:
    for step in range(run.steps_done + 1, STEPS + 1):
        if step > 1:
            run.extra["schedule"].step()
        with run.step(batch(step)):
            run.model(batch(step)).square().mean().backward()
            run.optimizer.step()
        run.optimizer.zero_grad()
        at(step)


def plateau(run: Any, at: Callable[[int], object]) -> None:
    each(run, at, lambda step, loss: run.extra["schedule"].step(1.0))


def each_epoch(run: Any, at: Callable[[int], object]) -> None:
    each(run, at, lambda step, loss: run.extra["schedule"].step() if step % 3 == 0 else None)


def rate_by_step(run: Any, at: Callable[[int], object]) -> None:
    for step in range(run.steps_done + 1, STEPS + 1):
        for group in run.optimizer.param_groups:
            group["lr"] = 0.1 / step
        with run.step(batch(step)):
            run.optimizer.zero_grad()
            run.model(batch(step)).square().mean().backward()
            run.optimizer.step()
        at(step)


def rate_of_a_warm_up(run: Any, at: Callable[[int], object]) -> None:
    """The first step's rate is not the optimizer's, either."""
    for step in range(run.steps_done + 1, STEPS + 1):
        for group in run.optimizer.param_groups:
            group["lr"] = 0.02 * step
        with run.step(batch(step)):
            run.optimizer.zero_grad()
            run.model(batch(step)).square().mean().backward()
            run.optimizer.step()
        at(step)


# ---- several objects ------------------------------------------------------------------------------------------------
def two_nets() -> torch.nn.Module:
    return torch.nn.ModuleDict({"g": torch.nn.Linear(6, 6), "d": torch.nn.Linear(6, 1)})


def adversarial(run: Any, at: Callable[[int], object]) -> None:
    for step in range(run.steps_done + 1, STEPS + 1):
        with run.step(batch(step)):
            fake = run.model["g"](batch(step))
            (run.model["d"](fake.detach()).mean() - run.model["d"](batch(step)).mean()).backward()
            run.extra["second"].step()
            run.extra["second"].zero_grad()
            run.model["d"](fake).mean().neg().backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
            run.extra["second"].zero_grad()
        at(step)


def averaged(run: Any, at: Callable[[int], object]) -> None:
    """The average teaches: it decides the loss."""
    for step in range(run.steps_done + 1, STEPS + 1):
        with run.step(batch(step)):
            with torch.no_grad():
                wanted = run.extra["average"](batch(step))
            (run.model(batch(step)) - wanted - 1).square().mean().backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
            run.extra["average"].update_parameters(run.model)
        at(step)


def scaled(run: Any, at: Callable[[int], object]) -> None:
    for step in range(run.steps_done + 1, STEPS + 1):
        with run.step(batch(step)):
            for group in run.optimizer.param_groups:
                group["lr"] = 0.1 / (1 + len(run.extra["history"].losses))
            loss = run.model(batch(step)).square().mean()
            loss.backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
            run.extra["history"].losses.append(float(loss.detach()))
        at(step)


@dataclass
class History:
    losses: deque[float] = field(default_factory=deque)

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses, "nested": {"a": [(1, None), "text"], 3: True}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state["nested"] == {"a": [(1, None), "text"], 3: True}
        self.losses = state["losses"]


# ---- optimizers -----------------------------------------------------------------------------------------------------
class Sharp(torch.optim.Optimizer):
    """An optimizer around an optimizer, as sharpness-aware minimisation has it."""

    def __init__(self, params: Any, base: Callable[..., torch.optim.Optimizer], **settings: Any) -> None:
        super().__init__(params, {"rho": 0.05, **settings})
        self.base_optimizer = base(self.param_groups, **settings)
        self.param_groups = self.base_optimizer.param_groups
        self.rounds = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.rounds += 1
        moved = []
        for p in (p for g in self.param_groups for p in g["params"]):
            moved.append(p.grad * (0.05 / self.rounds))
            p.add_(moved[-1])
            self.state[p]["rounds"] = self.rounds
        with torch.enable_grad():
            closure()
        for p, e in zip((p for g in self.param_groups for p in g["params"]), moved, strict=True):
            p.sub_(e)
        self.base_optimizer.step()


def sharp(run: Any, at: Callable[[int], object]) -> None:
    for step in range(run.steps_done + 1, STEPS + 1):
        with run.step(batch(step)):

            def closure(step: int = step) -> None:
                run.optimizer.zero_grad()
                run.model(batch(step)).square().mean().backward()

            closure()
            run.optimizer.step(closure)
            run.optimizer.zero_grad()
        at(step)


class Masters(torch.optim.Optimizer):
    """A float32 copy of each bfloat16 parameter, which is what is trained."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})
        self.masters = [p.detach().float().clone() for g in self.param_groups for p in g["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for p, m in zip((p for g in self.param_groups for p in g["params"]), self.masters, strict=True):
            m.sub_(p.grad.float() * 0.01)
            p.copy_(m)


def half_net() -> torch.nn.Module:
    return net().to(torch.bfloat16)


def half(run: Any, at: Callable[[int], object]) -> None:
    for step in range(run.steps_done + 1, STEPS + 1):
        with run.step(batch(step)):
            run.model(batch(step).to(torch.bfloat16)).float().square().mean().backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
        at(step)


def masters_as_parameters(model: torch.nn.Module) -> torch.optim.Optimizer:
    """The other way: the optimizer's parameters are the copies."""
    copies = [torch.nn.Parameter(p.detach().float().clone()) for p in model.parameters()]
    return torch.optim.Adam(copies, lr=0.01)


def half_by_copies(run: Any, at: Callable[[int], object]) -> None:
    for step in range(run.steps_done + 1, STEPS + 1):
        with run.step(batch(step)):
            run.model(batch(step).to(torch.bfloat16)).float().square().mean().backward()
            copies = run.optimizer.param_groups[0]["params"]
            for p, c in zip(run.model.parameters(), copies, strict=True):
                c.grad = p.grad.float()
                p.grad = None
            run.optimizer.step()
            run.optimizer.zero_grad()
            with torch.no_grad():
                for p, c in zip(run.model.parameters(), copies, strict=True):
                    p.copy_(c)
        at(step)


def lbfgs(run: Any, at: Callable[[int], object]) -> None:
    for step in range(run.steps_done + 1, STEPS + 1):
        with run.step(batch(step)):

            def closure(step: int = step) -> torch.Tensor:
                run.optimizer.zero_grad()
                loss = (run.model(batch(step)) - 1).square().mean()
                loss.backward()
                return loss

            run.optimizer.step(closure)
        at(step)


# ---- modules --------------------------------------------------------------------------------------------------------
class Counting(torch.nn.Module):
    """Counts its passes in Python, keeps a tensor in an attribute, and freezes a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.passes, self.seen = torch.nn.Linear(6, 8), torch.nn.Linear(8, 1), 0, None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        if self.passes == 5:
            self.first.requires_grad_(False)
        h = torch.tanh(self.first(x)) / self.passes
        if self.seen is not None:
            h = h + self.seen
        self.seen = h.detach()
        return self.last(h)


class Referring(torch.nn.Module):
    """Parameters and views of them in attributes, as an LSTM's list of its weights and a script's shortcuts are."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.last = torch.nn.GRU(6, 4, batch_first=True), torch.nn.Linear(4, 1)
        self.tied, self.seen, self.raw = {"weight": self.last.weight, "passes": 0}, (), self.last.bias.data

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.tied["passes"] += 1
        h = self.rnn(x)[0] @ self.tied["weight"].T * self.tied["passes"] + self.raw
        if self.seen:
            h = h + self.seen[0] * self.seen[1].sum()
        self.seen = h.detach(), self.last.weight
        return h


class Remembering(torch.nn.Linear):
    """Statistics by hand, in what Python and NumPy have for it."""

    def __init__(self) -> None:
        super().__init__(6, 1)
        self.last: deque[float] = deque(maxlen=3)
        self.mean, self.scale, self.kinds = np.zeros(6, np.float32), np.float32(1), {0}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last.append(len(self.last) + float(self.scale))
        self.mean += np.float32(0.25)
        self.scale = np.float32(self.scale * np.float32(0.5))
        self.kinds = {max(self.kinds) + 1}
        factor = sum(self.last) + float(self.scale) + max(self.kinds)
        return super().forward(x - torch.from_numpy(self.mean.copy())) * factor


def gradient_scaler(run: Any, at: Callable[[int], object]) -> None:
    """Makes its scale in the first step."""
    for step in range(run.steps_done + 1, STEPS + 1):
        with run.step(batch(step)):
            scaler = run.extra["scaler"]
            scaler.scale(run.model(batch(step)).square().mean()).backward()
            scaler.step(run.optimizer)
            scaler.update()
            run.optimizer.zero_grad()
        at(step)


class Growing(torch.nn.Linear):
    """A buffer that grows with the longest batch, and a lazy layer."""

    def __init__(self) -> None:
        super().__init__(6, 6)
        self.register_buffer("cache", torch.zeros(0), persistent=False)
        self.lazy = torch.nn.LazyLinear(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(self.cache) < len(x):
            self.cache = torch.arange(len(x)) * 0.5
        return self.lazy(super().forward(x) + self.cache[: len(x), None])


def no_grad_reset(run: Any, at: Callable[[int], object]) -> None:
    """Gradients accumulate over two steps, and are zeroed in place between steps."""
    for step in range(run.steps_done + 1, STEPS + 1):
        with run.step(batch(step)):
            run.model(batch(step)).square().mean().backward()
            if step % 2 == 0:
                run.optimizer.step()
        if step % 2 == 0:
            run.optimizer.zero_grad(set_to_none=False)
        at(step)


def modes(run: Any, at: Callable[[int], object]) -> None:
    """A layer is frozen and put into evaluation for good, half-way and outside steps."""

    def after(step: int, loss: float) -> None:
        if step == 3:
            run.model[1].eval()
            run.model[0].requires_grad_(False)

    each(run, at, after)


def dropout_net() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))


def seeded_pair() -> torch.nn.Module:
    with vtrain.seeded(3):
        return net()


LR = torch.optim.lr_scheduler
CASES = {
    "plain": Case(),
    "cosine after": Case(stepped_after, extra=schedule(lambda o: LR.CosineAnnealingLR(o, T_max=6))),
    "one cycle after": Case(stepped_after, extra=schedule(lambda o: LR.OneCycleLR(o, 0.2, total_steps=9))),
    "chained after": Case(
        stepped_after, extra=schedule(lambda o: LR.SequentialLR(o, [LR.LinearLR(o, 0.1), LR.StepLR(o, 2)], [3]))
    ),
    "lambda inside": Case(stepped_inside, extra=schedule(lambda o: LR.LambdaLR(o, lambda n: 1 / (n + 1)))),
    "step before": Case(stepped_before, extra=schedule(lambda o: LR.StepLR(o, 2, 0.5))),
    "plateau": Case(plateau, extra=schedule(lambda o: LR.ReduceLROnPlateau(o, patience=1))),
    "each epoch": Case(each_epoch, extra=schedule(lambda o: LR.StepLR(o, 1, 0.5))),
    "rate by step": Case(rate_by_step),
    "rate of a warm-up": Case(rate_of_a_warm_up),
    "two optimizers": Case(
        adversarial, two_nets, lambda m: torch.optim.Adam(m["g"].parameters(), lr=0.01),
        lambda m, o: {"second": torch.optim.RMSprop(m["d"].parameters(), lr=0.01)},
    ),
    "averaged teacher": Case(averaged, extra=lambda m, o: {"average": torch.optim.swa_utils.AveragedModel(m)}),
    "history": Case(scaled, extra=lambda m, o: {"history": History()}),
    "sharp": Case(sharp, optimizer=lambda m: Sharp(m.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)),
    "masters": Case(half, half_net, lambda m: Masters(m.parameters(), 0.01)),
    "masters as parameters": Case(half_by_copies, half_net, masters_as_parameters),
    "lbfgs": Case(lbfgs, optimizer=lambda m: torch.optim.LBFGS(m.parameters(), max_iter=3)),
    "counter": Case(model=Counting),
    "referring": Case(model=Referring),
    "remembering": Case(model=Remembering, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=1e-3)),
    "gradient scaler": Case(
        gradient_scaler, extra=lambda m, o: {"scaler": torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)}
    ),
    "growing": Case(model=Growing, optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.01)),
    "accumulated": Case(no_grad_reset),
    "modes": Case(modes, dropout_net),
}  # fmt: skip
