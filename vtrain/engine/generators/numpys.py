"""NumPy's global generator, led by thread while a step is under way.

The functions of ``numpy.random`` are methods of one hidden ``RandomState``, which takes the lock of its bit generator
for every draw. It is given a bit generator that is the old one but for the lock: entering it puts the state of whoever
draws in place, the step's or the process's. A state stays in place until the other one is wanted.

It stays installed after the first step, as another thread may be waiting for the lock at any time.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import numpy as np

from vtrain.engine.generators.owner import Own, mine, refuse_entropy

_global: Any = np.random.mtrand._rand
_set_bit_generator: Any = vars(np.random)["set_bit_generator"]
_State = dict[str, Any]
_NO_GAUSS: _State = {"has_gauss": 0, "gauss": 0.0}


class _Keeper:
    """A bit generator's place for a state, and whose state is in it. Entered as the lock, the bit generator's own.

    Args:
        native: the bit generator; its lock is held.
    """

    def __init__(self, native: Any) -> None:
        self.native, self.lock = native, native.lock
        self._holder: Own | None = None  # None for the process
        self._process: _State | None = None  # the process's state while it is not in place
        self._gauss = {name: _global.get_state(legacy=False)[name] for name in _NO_GAUSS}  # as after the last draw
        self._depth = 0
        self.beside = 0  # the thread that reads or sets only what stands beside the bit generator

    def __enter__(self) -> None:
        self.lock.__enter__()
        if self.beside != threading.get_ident():
            self._depth += 1
            if self._depth == 1:
                self._want(mine())

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.beside != threading.get_ident():
            self._depth -= 1
            if self._depth == 0:
                self._gauss = self._read_gauss()
        self.lock.__exit__(kind, value, traceback)

    def install(self) -> None:
        """Give the hidden instance this lock; under the bit generator's."""
        led = type(type(self.native).__name__, (_Led, type(self.native)), {})(0)
        led._keeper = self
        _set_bit_generator(led)  # which forgets the normal number
        self._set_gauss(self._gauss)

    def seed(self, seed: Any) -> None:
        """As ``numpy.random.seed``, which forgets the normal number after this."""
        with self.lock:
            self._want(mine())
            _seed(self.native, seed)
            self._gauss = _NO_GAUSS

    def set_state(self, value: Any) -> None:
        """As ``numpy.random.set_state``, which has set the normal number before this."""
        with self.lock:
            self._gauss, gauss = self._gauss, self._read_gauss()
            self._want(mine())
            self.native.state, self._gauss = value, gauss
            self._set_gauss(gauss)

    def put_away(self, forget: bool = False) -> None:
        """Put the process's state in place; ``forget`` where the step's is wanted no more."""
        with self.lock:
            self._want(None, forget)

    def _want(self, own: Own | None, forget: bool = False) -> None:
        if self._holder is own:
            return
        if self._holder is None:
            self._process = self._state()
        elif not forget:
            self._holder.numpy = self._state()
        wanted = self._process if own is None else own.numpy
        if wanted is not None:
            self.native.state, self._gauss = wanted["bits"], wanted["gauss"]
        elif own is not None:
            _seed(self.native, own.host_seed)
            self._gauss = _NO_GAUSS
        self._set_gauss(self._gauss)
        self._holder = own

    def _state(self) -> _State:
        return {"bits": self.native.state, "gauss": self._gauss}

    def _read_gauss(self) -> _State:
        """The second of two normal draws, which the hidden instance keeps beside its bit generator."""
        self.beside = threading.get_ident()
        try:
            state = _global.get_state(legacy=False)
        finally:
            self.beside = 0
        return {name: state[name] for name in _NO_GAUSS}

    def _set_gauss(self, gauss: _State) -> None:
        self.beside = threading.get_ident()
        try:
            _global.set_state({**self.none, **gauss})
        finally:
            self.beside = 0

    @property
    def none(self) -> _State:
        """What stands for the bits where only what is beside them is meant."""
        return {"bit_generator": type(self.native).__name__, "state": {}}


def _seed(native: Any, seed: Any) -> None:
    """Seed a bit generator as ``numpy.random.seed`` does."""
    if isinstance(native, np.random.MT19937):
        native._legacy_seeding(seed)
    else:
        native.state = type(native)(seed).state


class _Led:
    """What a led bit generator has of its own; the rest is its class's, which stands after this one in the bases."""

    _keeper: _Keeper
    capsule = property(lambda self: self._keeper.native.capsule)
    lock = property(lambda self: self._keeper)
    cffi = property(lambda self: self._keeper.native.cffi)
    ctypes = property(lambda self: self._keeper.native.ctypes)
    seed_seq = property(lambda self: self._keeper.native.seed_seq)

    @property
    def state(self) -> Any:
        keeper = self._keeper
        if keeper.beside == threading.get_ident():
            return keeper.none
        with keeper:
            return keeper.native.state

    @state.setter
    def state(self, value: Any) -> None:
        if self._keeper.beside != threading.get_ident():
            self._keeper.set_state(value)

    def _legacy_seeding(self, seed: Any) -> None:
        if seed is None and mine() is not None:
            refuse_entropy("numpy.random.seed()", "numpy.random.seed(n)")
        self._keeper.seed(seed)

    def __reduce__(self) -> Any:
        with self._keeper:
            return self._keeper.native.__reduce__()


def _keeper() -> _Keeper | None:
    return _global._bit_generator._keeper if isinstance(_global._bit_generator, _Led) else None


def put_away() -> None:
    """The process's state is in place again; a step's is kept with its other generators."""
    if (keeper := _keeper()) is not None:
        keeper.put_away()


@contextlib.contextmanager
def numpy_led() -> Iterator[None]:
    """Within: NumPy's global generator is led; ``owner.owned`` says by whom."""
    keeper = _keeper()
    if keeper is None:
        native = _global._bit_generator
        with native.lock:
            keeper = _Keeper(native)
            keeper.install()
    try:
        yield
    finally:
        keeper.put_away(forget=True)
