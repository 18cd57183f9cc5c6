"""Running steps under the engine: what recorder and replayer share (numerics §6)."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator

import torch

from vtrain.engine import composites, settings
from vtrain.engine.active import only_step
from vtrain.engine.backend import check_arithmetic
from vtrain.engine.core import Engine
from vtrain.engine.generators import Own, led
from vtrain.engine.listener import Listener
from vtrain.engine.mode import EngineMode
from vtrain.engine.pins import pinned
from vtrain.engine.threads import guarded_threads
from vtrain.kernels import scalars
from vtrain.kernels.failures import memory_error, told
from vtrain.policy import Policy

SITES_FORMAT = "vtrain-sites-v1"
_WENT_ON = (
    "memory ran out, and the program went on inside the step: who has enough memory could not repeat that. Let the "
    "error leave the step, go back with run.rollback(), and begin the step again"
)


class Session:
    """Executes steps with a listener.

    Args:
        listener: records, replays or only rounds.
        policy: precision.
        seed: of all random numbers drawn inside steps, below 2^128.

    Raises:
        BackendError: this machine's arithmetic does not keep the contract.
    """

    def __init__(self, listener: Listener, policy: Policy, seed: int | str) -> None:
        check_arithmetic()
        composites.prepare()
        self.engine = Engine(listener, policy, seed)
        self._mode = EngineMode(self.engine)
        self._programs: dict[tuple[int, ...], tuple[str, bytes]] = {}

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Everything inside belongs to step ``number``; gradients are as enabled as outside.

        Raises:
            BackendError: a thread flushes subnormals, or the functions of Python's numbers can't be put in place.
            StateError: this thread does, or code inside changed a setting that decides how numbers are computed.
            DeviceMemoryError: memory ran out, also where code inside went on without what it was for.
            UnsupportedOperation: other threads computed a part of it.
            UsageError: another step is under way in this process.
        """
        with only_step(self.engine), scalars.held():
            settings.check_threads()
            self.engine.own = Own(self.engine.seed, number, self._mode)
            with pinned(), led(self.engine.own), guarded_threads() as threads:
                self.engine.begin_step(number)
                flags = settings.read()
                with told(lambda: self._where(number)), self._mode:
                    yield
                threads.check()
                if self.engine.exhausted:
                    raise memory_error(self._where(number), _WENT_ON)
                settings.check_unchanged(flags)
            settings.check_threads()

    def _where(self, number: int) -> str:
        return f"step {number}{f', {self.engine.exhausted}' if self.engine.exhausted else ''}"

    @property
    def operations(self) -> int:
        """How many operations were dispatched in all steps, those counted that others were taken apart into."""
        return self._mode.calls

    def sites(self) -> tuple[str, bytes]:
        """(SHA-256 in hex, canonical JSON) of the last step's sequence of sites."""
        walk = tuple(self.engine.walk)
        known = self._programs.get(walk)
        if known is None:
            names = [self.engine.sites[number] for number in walk]
            text = json.dumps({"format": SITES_FORMAT, "sites": names}, separators=(",", ":"), sort_keys=True).encode()
            known = self._programs[walk] = (hashlib.sha256(text).hexdigest(), text)
        return known


_LETTERS = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64",
}  # fmt: skip
_AS_INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


def bits(value: torch.Tensor | float | int) -> str:
    """A metric's bits, such as ``F32:3f800000``; any NaN is the canonical one (numerics §7)."""
    t = value.detach() if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.float64)
    if t.dtype not in _LETTERS:
        t = t.to(torch.int64)
    t = t.reshape(()).cpu()
    if t.is_floating_point() and bool(t.isnan()):
        t = torch.full((), float("nan"), dtype=t.dtype)
    raw = int(t.view(_AS_INTEGERS[t.element_size()]))
    return f"{_LETTERS[t.dtype]}:{raw & ((1 << (8 * t.element_size())) - 1):x}"
