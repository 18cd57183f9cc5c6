"""What changes arithmetic behind torch's back is read at every step: threads, flags, the float unit, compiled code."""

from __future__ import annotations

import ctypes
import random
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
import pytest
import torch

from vtrain import Policy, seeded
from vtrain.engine import settings
from vtrain.engine.backend import arithmetic_report
from vtrain.engine.listener import Plain
from vtrain.engine.pins import _warn_uncompiled
from vtrain.engine.session import Session
from vtrain.errors import BackendError, StateError, UnsupportedOperation, UsageError

X = torch.arange(24.0).view(4, 6) / 8


@pytest.fixture
def session() -> Session:
    return Session(Plain(), Policy(), 0)


@pytest.fixture
def flushing() -> Iterator[None]:
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


# ---- the float unit ------------------------------------------------------------------------------------------------
def test_flushing_before_a_step(session: Session, flushing: None) -> None:
    with pytest.raises(StateError, match=r"set_flush_denormal.*test_step_settings"), session.step(1):
        pass


def test_flushing_inside_a_step(session: Session) -> None:
    try:
        with pytest.raises(StateError, match="set_flush_denormal"), session.step(1):
            torch.set_flush_denormal(True)
    finally:
        torch.set_flush_denormal(False)
    with session.step(2):
        pass


def test_the_self_test_sees_it(flushing: None) -> None:
    """A comparison of flushed numbers with flushed numbers would not."""
    failed = [name for name, kept in arithmetic_report().items() if not kept]
    assert any("set_flush_denormal" in name for name in failed)


def test_threads_that_were_made_while_it_was_on() -> None:
    """They keep it, though the thread that made them has it off again."""
    code = (
        "import torch; torch.set_num_threads(2); torch.set_flush_denormal(True); torch.ones(1 << 20).mul_(2)\n"
        "torch.set_flush_denormal(False)\n"
        "from vtrain.engine import settings\n"
        "from vtrain.errors import BackendError\n"
        "settings.check_float_unit()\n"
        "try:\n    settings.check_workers()\nexcept BackendError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert "threads that share the work" in done.stdout, done.stderr


def test_workers_of_a_sound_process() -> None:
    settings.check_workers()


@pytest.mark.parametrize("mode", [0x400, 0x800, 0xC00])  # down, up, towards zero on x86
def test_rounding_other_than_to_nearest(session: Session, mode: int) -> None:
    libm = ctypes.CDLL("libm.so.6")
    libm.fesetround(mode)
    try:
        with pytest.raises(StateError, match="FE_TONEAREST"), session.step(1):
            pass
    finally:
        libm.fesetround(0)


# ---- flags ---------------------------------------------------------------------------------------------------------
def _matmul_precision() -> None:
    torch.set_float32_matmul_precision("medium")


def _mkldnn() -> None:
    torch.backends.mkldnn.set_flags(True)


def _cudnn() -> None:
    torch.backends.cudnn.enabled = True


def _deterministic() -> None:
    torch.use_deterministic_algorithms(True)


def _reduced() -> None:
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = (
        not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    )


@pytest.mark.parametrize(
    "change, name",
    [
        (_matmul_precision, "matmul.fp32_precision"), (_mkldnn, "mkldnn.enabled"),
        (_cudnn, "cudnn.enabled"),
        (_deterministic, "use_deterministic_algorithms"), (_reduced, "allow_bf16_reduced_precision_reduction"),
    ],
)  # fmt: skip
def test_flags_changed_inside_a_step(session: Session, change: Callable[[], None], name: str) -> None:
    before = settings.read()
    try:
        with pytest.raises(StateError, match=name), session.step(1):
            change()
    finally:
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = before[
            "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction"
        ]
    assert settings.read() == before


def test_flags_set_before_are_pinned_and_put_back(session: Session) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("high")
    try:
        with session.step(1):
            assert not torch.are_deterministic_algorithms_enabled()
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_deterministic_debug_mode() == 1 and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("way", [
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'", "torch.backends.fp32_precision = 'tf32'",
    "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'", "torch.backends.cuda.matmul.allow_tf32 = True",
    "torch.set_float32_matmul_precision('medium')",
])  # fmt: skip
def test_precision_set_in_any_way_is_pinned_and_put_back(way: str) -> None:
    """Torch has two ways, which don't mix well: so in a process of its own."""
    code = f"""
import torch
from vtrain import Policy
from vtrain.engine.listener import Plain
from vtrain.engine.session import Session
from vtrain.errors import StateError

def places():
    pairs = [("generic", "all"), ("cuda", "matmul"), ("mkldnn", "matmul")]
    return [torch._C._get_fp32_precision_getter(*pair) for pair in pairs]

session, start = Session(Plain(), Policy(), 0), places()
with session.step(1):
    pass
assert places() == start
try:
    with session.step(1):
        {way}
    assert "backends.fp32_precision" in {way!r}  # which has no effect on what is pinned
except StateError as error:
    assert "fp32_precision" in str(error)
{way}
wanted = places()
with session.step(1):
    assert places()[1:] == ["ieee", "ieee"]
assert places() == wanted, (places(), wanted)
"""
    done = subprocess.run([sys.executable, "-P", "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr


# ---- compiled code -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("warm", [False, True])
def test_compiled_functions_run_uncompiled_with_a_word(session: Session, warm: bool) -> None:
    compiled = torch.compile(lambda x: x.exp() * 2, backend="aot_eager")
    if warm:
        compiled(X)
    _warn_uncompiled.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with session.step(1):
            compiled(X)
            compiled(X)
    assert [w for w in caught if "torch.compile" in str(w.message) and __file__ in str(w.message)]
    assert [name.split()[0] for name in session.engine.sites] == ["aten.exp.default"]


# ---- threads -------------------------------------------------------------------------------------------------------
POOL = ThreadPoolExecutor(1)
POOL.submit(int).result()


def _thread(call: Callable[[], Any]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def _own_thread_class(call: Callable[[], Any]) -> None:
    class Mine(threading.Thread):
        def run(self) -> None:
            call()

    thread = Mine()
    thread.start()
    thread.join()


def _thread_in_thread(call: Callable[[], Any]) -> None:
    _thread(lambda: _thread(call))


def _new_pool(call: Callable[[], Any]) -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: call(), range(2)))


def _pool_from_before(call: Callable[[], Any]) -> None:
    POOL.submit(call).result()


def _swallowed(call: Callable[[], Any]) -> None:
    POOL.submit(call).exception()


def _thread_pool(call: Callable[[], Any]) -> None:
    with ThreadPool(2) as pool:
        pool.map(lambda _: call(), range(2))


def _thread_pool_apply(call: Callable[[], Any]) -> None:
    with ThreadPool(1) as pool:
        pool.apply(call)


def _thread_pool_imap(call: Callable[[], Any]) -> None:
    with ThreadPool(1) as pool:
        list(pool.imap_unordered(lambda _: call(), range(1)))


WAYS = [
    _thread, _own_thread_class, _thread_in_thread, _new_pool, _pool_from_before, _swallowed, _thread_pool,
    _thread_pool_apply, _thread_pool_imap,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("way", WAYS)
def test_computing_in_other_threads_of_a_step(session: Session, way: Callable[[Callable[[], Any]], None]) -> None:
    with (
        pytest.raises(UnsupportedOperation, match=r"another thread of a step[\s\S]*test_step_settings"),
        session.step(1),
    ):
        way(lambda: X @ X.T)


@pytest.mark.parametrize("way", WAYS)
def test_moving_values_in_other_threads_of_a_step(session: Session, way: Callable[[Callable[[], Any]], None]) -> None:
    found: list[Any] = []
    with session.step(1):
        way(lambda: found.append((X.t().clone(), len("no tensors"))))
    assert found and torch.equal(found[0][0], X.t())


def test_threads_of_others_go_on(session: Session) -> None:
    """A loader of the next batch, begun before the step, computes what it likes, also while the step runs."""
    go, done = threading.Event(), threading.Event()
    found: list[Any] = []

    def load() -> None:
        go.wait()
        found.append(torch.randn(4, 6).exp() @ X.T)
        with ThreadPoolExecutor(1) as pool:
            found.append(pool.submit(lambda: X @ X.T).result())
        done.set()

    threading.Thread(target=load, daemon=True).start()
    with session.step(1):
        go.set()
        assert done.wait(20)
    assert len(found) == 2
    assert torch.equal(POOL.submit(lambda: X @ X.T).result(), X @ X.T)


def test_a_pool_made_in_a_step_is_free_after_it(session: Session) -> None:
    with session.step(1):
        pool = ThreadPoolExecutor(1)
        pool.submit(int).result()
    assert torch.equal(pool.submit(lambda: X @ X.T).result(), X @ X.T)
    pool.shutdown()


def test_what_was_replaced_is_put_back(session: Session) -> None:
    before = threading.Thread.start, ThreadPoolExecutor.submit, ThreadPool.apply_async, ThreadPool.imap
    with session.step(1):
        assert threading.Thread.start is not before[0]
    assert (threading.Thread.start, ThreadPoolExecutor.submit, ThreadPool.apply_async, ThreadPool.imap) == before
    assert "apply_async" not in vars(ThreadPool)


# ---- one step at a time --------------------------------------------------------------------------------------------
def test_two_steps_at_once(session: Session) -> None:
    other = Session(Plain(), Policy(), 0)
    with session.step(1), pytest.raises(UsageError, match="one at a time"), other.step(1):
        pass
    found: list[BaseException] = []

    def elsewhere() -> None:
        try:
            with other.step(1):
                pass
        except UsageError as error:
            found.append(error)

    with session.step(2):
        POOL.submit(elsewhere).result()
    assert len(found) == 1
    with other.step(1):  # the lock was given back
        pass


def _drawn() -> tuple[torch.nn.Module, float, float, torch.Tensor]:
    return torch.nn.Linear(6, 3), random.random(), float(np.random.rand()), torch.nn.init.orthogonal_(torch.empty(4, 3))


def _bits(drawn: tuple[torch.nn.Module, float, float, torch.Tensor]) -> list[Any]:
    return [drawn[1:3], *(p.detach().view(torch.int32).tolist() for p in (*drawn[0].parameters(), drawn[3]))]


def test_seeded_inside_a_step_draws_as_outside(session: Session) -> None:
    with seeded(7):
        outside = _drawn()
    with session.step(5):
        before = torch.rand(3)
        with seeded(7):
            inside = _drawn()
        after = torch.rand(3)
    assert _bits(inside) == _bits(outside)
    assert any("qr" in name or "mm" in name for name in session.engine.sites)  # what was computed is the step's
    with session.step(5):
        assert torch.equal(torch.rand(3), before) and torch.equal(torch.rand(3), after)


def test_seeded_inside_a_step_with_another_policy(session: Session) -> None:
    with session.step(1), pytest.raises(UsageError, match="policy"), seeded(0, Policy(bits=18)):
        pass
    with session.step(1), seeded(0, Policy()):
        pass


def test_a_check_that_can_fail() -> None:
    """The probe of worker threads sees flushed numbers."""
    torch.set_flush_denormal(True)
    try:
        with pytest.raises(BackendError, match="threads that share the work"):
            settings.check_workers()
    finally:
        torch.set_flush_denormal(False)


def test_distributions_check_their_arguments_whatever_was_compiled_before(session: Session) -> None:
    kind = torch.distributions.Distribution
    before = kind._validate_args
    try:
        for setting in (True, False):
            kind.set_default_validate_args(setting)
            with session.step(1), pytest.raises(ValueError, match="constraint"):
                torch.distributions.Normal(0.0, -torch.ones(2))
            assert kind._validate_args is setting
    finally:
        kind.set_default_validate_args(before)
