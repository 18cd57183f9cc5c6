"""Values that hide behind a bound: of a sum too long to have one, or of what underflow may have added (numerics §3)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch

from auditor import replay
from trainer import record
from trainer.listener import Recorder
from vtrain.engine.listener import round_result
from vtrain.policy import Policy
from vtrain.profiles import profile_environment
from vtrain.rounding.bounds import LONGEST

ROWS = LONGEST["float32"] * 2
SGD = lambda model: torch.optim.SGD(model.parameters(), lr=1.0)  # noqa: E731
HONEST = Recorder.settle


def linear() -> torch.nn.Module:
    return torch.nn.Linear(2, 1, bias=False)


def convolution() -> torch.nn.Module:
    return torch.nn.Conv2d(1, 1, 1, bias=False)


BATCHES = {
    "linear": (linear, (torch.arange(ROWS * 2) % 17 - 8).view(ROWS, 2) / 8),
    "convolution": (convolution, (torch.arange(ROWS) % 17 - 8).view(ROWS // 1024, 1, 32, 32) / 8),
}


def wished(self, site, y, scale, vary=None):  # type: ignore[no-untyped-def]
    """Logs another value for every sum of as many terms as the batch has rows."""
    if scale().length < ROWS or not site.name.startswith(("aten.mm", "aten.convolution_backward")):
        return HONEST(self, site, y, scale, vary)
    y = y + 0.25 * scale().dense(y).view(y.shape)  # within 2 kappa u s, were float32 C
    index, value = torch.arange(y.numel()).numpy(), y.double().reshape(-1).numpy()
    self._sink.add(site.seq, y.numel(), site.fmt.key, index.tobytes(), value.tobytes(), (abs(value) / 2).tobytes())
    return round_result(y, site.fmt, site.signed)


@pytest.mark.parametrize("which", BATCHES)
@pytest.mark.parametrize("cheats", [False, True])
def test_a_long_sum_can_not_be_chosen(which: str, cheats: bool, tmp_path: Path) -> None:
    model, x = BATCHES[which]
    for role, open_run in (("record", record), ("replay", replay)):
        more = {"policy": Policy(target="bfloat16", threshold="certified")} if role == "record" else {}
        settle = wished if cheats and role == "record" else HONEST
        with (
            mock.patch.object(Recorder, "settle", settle),
            open_run(tmp_path / "run", model=model, optimizer=SGD, **more) as run,
            run.step({"x": x}),
        ):
            run.model(x).square().mean().backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
    assert run.verdict.verified != cheats
    if cheats:
        assert "outside the certified bound" in run.verdict.detail


UNDERFLOW = """
import sys
import torch, vtrain
from auditor import replay
from trainer import record
role, path = sys.argv[1:]
a = torch.full((16, 3), 2.0**-75, dtype=torch.bfloat16)
b = torch.full((3, 16), 2.0**-75, dtype=torch.bfloat16)
b[0] = 2.0**-74
z, big = torch.zeros(16, dtype=torch.bfloat16), 2.0**120
more = {"policy": vtrain.Policy(target="bfloat16", threshold="certified")} if role == "record" else {}
with {"record": record, "replay": replay}[role](path, model=torch.nn.Identity(), **more) as run:
    with run.step({"a": a, "b": b}):
        y = torch.addmm(z, a, b, beta=0, alpha=big)
        y = y + torch.addmm(z, a, b, beta=1, alpha=-3 * big)
        y = y + torch.baddbmm(z[None, None], a[None], b[None], alpha=big)[0]
        y[0] = y[0] + torch.addmv(z, b.T, a[0], beta=big, alpha=big)
        y = y + a @ b
        run.metric(y=y.float().sum(), x=torch.conv2d(a.view(16, 3, 1, 1), b.T.reshape(16, 3, 1, 1), z).float().sum())
if role == "replay":
    print(run.verdict)
    sys.exit(0 if run.verdict.verified else 1)
"""


def test_underflow_times_a_factor_is_never_a_violation(tmp_path: Path) -> None:
    """One machine fuses multiply and add, the other does not: products of half the least float32, times 2^120."""
    script = [sys.executable, "-c", UNDERFLOW]
    subprocess.run([*script, "record", str(tmp_path / "run")], check=True, env=os.environ.copy())
    done = subprocess.run(
        [*script, "replay", str(tmp_path / "run")], env=profile_environment("baseline"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
