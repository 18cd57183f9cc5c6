"""Torch's global generators, led by thread while a step is under way.

``torch.manual_seed`` and its like, and whoever imported ``default_generator``, all hold one object. Its class is
exchanged for the time of the step: the class is found at every call, so that no name that was imported before escapes.
"""

from __future__ import annotations

import contextlib
import ctypes
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch

from vtrain.engine.generators.owner import mine, refuse_entropy
from vtrain.errors import BackendError
from vtrain.kernels import device

_native = torch.Generator
_cdata = operator.attrgetter("_cdata")  # where the generator itself is
_POINTER = ctypes.sizeof(ctypes.c_void_p)


class _Led(torch.Generator):
    """What ``torch.default_generator`` is meanwhile: the step's generator in its threads, itself in others."""

    __slots__ = ()

    def manual_seed(self, seed: int) -> torch.Generator:
        own = mine()
        if own is None:
            return _native.manual_seed(self, seed)
        own.torch.manual_seed(seed)
        return self

    def seed(self) -> int:
        if mine() is not None:
            refuse_entropy("torch.seed()", "torch.manual_seed(n)")
        return _native.seed(self)

    def initial_seed(self) -> int:
        return _native.initial_seed(_led(self))

    def get_state(self) -> torch.Tensor:
        return _native.get_state(_led(self))

    def set_state(self, new_state: torch.Tensor) -> torch.Generator:
        _native.set_state(_led(self), new_state)
        return self

    def clone_state(self) -> torch.Generator:
        return _native.clone_state(_led(self))

    def __reduce__(self) -> Any:
        return _native.__reduce__(_led(self))


def _led(default: torch.Generator) -> torch.Generator:
    own = mine()
    return default if own is None else own.torch


class _Defaults(tuple[torch.Generator, ...]):
    """``torch.<device>.default_generators`` meanwhile: in the step's threads each is torch's global generator."""

    __slots__ = ()

    def __getitem__(self, index: Any) -> Any:
        found = tuple.__getitem__(self, index)
        return torch.default_generator if mine() is not None and isinstance(found, torch.Generator) else found

    def __iter__(self) -> Iterator[torch.Generator]:
        return (self[i] for i in range(len(self)))


def is_global(generator: torch.Generator) -> bool:
    """Whether a generator that an operation got means the global one: torch's for a device."""
    # an operation gets another Python object for the same generator
    defaults = [torch.default_generator]
    for module in device.modules():
        defaults += tuple.__iter__(getattr(module, "default_generators", ()))
    return any(_cdata(generator) == _cdata(default) for default in defaults)


@contextlib.contextmanager
def torch_led() -> Iterator[None]:
    """Within: torch's global generators are led; ``owner.owned`` says by whom.

    Raises:
        BackendError: the interpreter's objects are not laid out as CPython's.
    """
    kind = _class_slot(torch.default_generator)
    with contextlib.ExitStack() as stack:
        for module in device.modules():
            stack.enter_context(_module_led(module))
        kind.value = id(_Led)
        try:
            yield
        finally:
            kind.value = id(_native)


@contextlib.contextmanager
def _module_led(module: Any) -> Iterator[None]:
    """Within: the generators of one type of devices, whose module may make them late, when they are first used."""
    defaults, randoms = getattr(module, "default_generators", None), getattr(module, "random", module)
    lazily = getattr(randoms, "_lazy_call", None)
    if defaults is not None:
        module.default_generators = _Defaults(defaults)
    if lazily is not None:
        randoms._lazy_call = _seeding(lazily, module.__name__)
    try:
        yield
    finally:
        if lazily is not None:
            randoms._lazy_call = lazily
        if isinstance(getattr(module, "default_generators", None), _Defaults):  # it may have been initialised inside
            module.default_generators = defaults


def _class_slot(generator: torch.Generator) -> ctypes.c_void_p:
    """Where CPython keeps the class of an object: the last word of the header that all objects have."""
    slot = ctypes.c_void_p.from_address(id(generator) + object.__basicsize__ - _POINTER)
    if slot.value != id(_native) or _Led.__basicsize__ != _native.__basicsize__:
        raise BackendError(
            "torch.default_generator is not a plain torch.Generator of CPython; want CPython 3.11 or newer, and no "
            "other library in its place"
        )
    return slot


def _seeding(lazily: Callable[..., None], module: str) -> Callable[..., None]:
    """``_lazy_call`` as a device's ``manual_seed`` and ``manual_seed_all`` call it, with or without a device."""

    def call(callback: Callable[[], None], **kinds: bool) -> None:
        own = mine()
        if own is None or not kinds or callback.__closure__ is None:
            lazily(callback, **kinds)
            return
        cells = dict(zip(callback.__code__.co_freevars, callback.__closure__, strict=True))
        if "seed" not in cells:
            refuse_entropy(f"{module}.seed()", "torch.manual_seed(n)")
        own.torch.manual_seed(cells["seed"].cell_contents)

    return call
