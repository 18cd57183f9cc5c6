"""Streams on the device: what is not waited for is late, and the engine waits for all that it needs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent))
from emulated import BACKEND, NAME
from on_loops import adamw, data, perceptron, words

from auditor import replay
from trainer import record
from vtrain.engine.listener import Plain
from vtrain.engine.session import Session
from vtrain.kernels import canonical
from vtrain.policy import Policy

Tensor = torch.Tensor
POLICIES = {"logged": Policy(other="logged"), "canonical": Policy(matmul="chain"), "integer": Policy(matmul="integer")}


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    torch.get_device_module(NAME).synchronize()
    assert torch.ops.emulated.violations() == 0


def default() -> torch.Stream:
    return torch.accelerator.current_stream()


def another() -> torch.Stream:
    """A stream behind all that the current one was given."""
    stream = torch.Stream(device=NAME)
    stream.wait_stream(default())
    return stream


def wrong(x: Tensor) -> bool:
    return bool(x.isnan().all())


# ---- the emulation ---------------------------------------------------------------------------------------------------
WAITS: dict[str, Callable[[torch.Stream], object]] = {
    "stream": lambda s: default().wait_stream(s),
    "event": lambda s: default().wait_event(s.record_event()),
    "the host, for the stream": lambda s: s.synchronize(),
    "the host, for an event": lambda s: s.record_event().synchronize(),
    "the host, for the device": lambda s: torch.get_device_module(NAME).synchronize(),
}


@pytest.mark.parametrize("wait", list(WAITS))
def test_another_stream_s_work_is_late(wait: str) -> None:
    x, stream = torch.ones(5, device=NAME), another()
    with stream:
        y = x + 1
        z = y * 2  # its own work is in order
    assert wrong(y.cpu()) and wrong(y * 2) and wrong(y @ y[:, None]) and not stream.query()
    WAITS[wait](stream)
    assert y.tolist() == [2.0] * 5 and (y * 2).tolist() == [4.0] * 5 == z.tolist()


def test_what_an_event_was_recorded_before_is_late() -> None:
    x, stream = torch.ones(5, device=NAME), another()
    with stream:
        early = x + 1
        event = stream.record_event()
        late = x + 2
    default().wait_event(event)
    assert not wrong(early.cpu()) and wrong(late.cpu())


def test_a_late_write_comes_over_an_early_one() -> None:
    x, stream = torch.ones(5, device=NAME), another()
    with stream:
        x.add_(1)
    x.fill_(7.0)
    default().wait_stream(stream)
    assert x.tolist() == [2.0] * 5


def test_a_copy_to_the_host_is_late_until_its_stream_was_waited_for() -> None:
    x, stream = torch.ones(5, device=NAME), another()
    with stream:
        y = x.to("cpu", non_blocking=True)
    torch.zeros(1, device=NAME).add_(1).item()  # waits for another stream
    assert wrong(y)
    stream.synchronize()
    assert y.tolist() == [1.0] * 5


def test_a_copy_from_pinned_memory_is_late() -> None:
    x = torch.ones(5).pin_memory()
    y = x.to(NAME, non_blocking=True)
    x.fill_(2)
    assert y.tolist() == [2.0] * 5


def test_kernels_are_launched_on_the_current_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = data(0, 2, 5, 7), data(1, 2, 7, 3)
    wanted = canonical.product(a, b)

    def there() -> Tensor:
        x, y = a.to(NAME), b.to(NAME)
        stream = another()
        with stream:
            found = canonical.product(x * 1, y) * 1
        default().wait_stream(stream)
        return found.cpu()

    assert torch.equal(there(), wanted)
    monkeypatch.setattr(BACKEND, "stream", lambda index: 0)
    assert there().isnan().any()


# ---- the engine ------------------------------------------------------------------------------------------------------
def trained(run: Any, device: str, streams: list[torch.Stream]) -> None:
    """Each step on the next stream; its batch lies in pinned memory, which is overwritten at once."""
    for step in range(4):
        batch = [data(step, 16, 8), data(step + 50, 16, 1)]
        if streams:
            batch = [t.pin_memory() for t in batch]
            streams[step % 3].wait_stream(streams[(step - 1) % 3])
            torch.accelerator.set_stream(streams[step % 3])
        with run.step(batch):
            x, y = (t.to(device, non_blocking=True, copy=True) for t in batch)
            for t in batch:
                t.fill_(9)
            loss = (run.model(x) - y).square().mean()
            loss.backward()
            run.optimizer.step()
            run.optimizer.zero_grad()
            run.metric(loss=loss)


def train_on(device: str, path: Path, policy: Policy, role: str = "record") -> tuple[Any, Any]:
    """The run, and the words of its model; on the device each step has another stream than the last."""
    before = default()
    model = perceptron(device)
    streams = [another() for _ in range(3)] if device == NAME else []
    how: dict[str, Any] = {"policy": policy, "checkpoint_every": 2} if role == "record" else {}
    try:
        with (record if role == "record" else replay)(path, model=model, optimizer=adamw, **how) as run:
            trained(run, device, streams)
    finally:
        torch.accelerator.set_stream(before)
        torch.get_device_module(NAME).synchronize()
    return run, words(run.model)


@pytest.mark.parametrize("policy", list(POLICIES))
def test_steps_on_streams_have_the_bits_of_the_cpu(policy: str, tmp_path: Path) -> None:
    found = train_on(NAME, tmp_path / "there", POLICIES[policy])[1]
    if policy != "logged":  # a logged result is the same by its log alone
        assert found == train_on("cpu", tmp_path / "here", POLICIES[policy])[1]
    run, again = train_on("cpu", tmp_path / "there", POLICIES[policy], "replay")
    assert run.verdict.verified and again == found, run.verdict


@pytest.mark.parametrize("policy", list(POLICIES))
def test_replayed_on_streams(policy: str, tmp_path: Path) -> None:
    found = train_on("cpu", tmp_path / "run", POLICIES[policy])[1]
    run, again = train_on(NAME, tmp_path / "run", POLICIES[policy], "replay")
    assert run.verdict.verified and again == found, run.verdict


def test_a_launch_out_of_order_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = train_on("cpu", tmp_path / "here", POLICIES["canonical"])[1]
    monkeypatch.setattr(BACKEND, "stream", lambda index: 0)
    try:
        assert train_on(NAME, tmp_path / "there", POLICIES["canonical"])[1] != found
    except Exception as error:
        assert "nan" in str(error).lower() or "finite" in str(error).lower(), error


def test_a_step_s_copies_are_there_on_a_stream() -> None:
    x = torch.ones(5, device=NAME)
    with another(), Session(Plain(), Policy(), 0).step(1):
        found = (x + 1).to("cpu", non_blocking=True)
    assert found.tolist() == [2.0] * 5
