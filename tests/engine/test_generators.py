"""Random numbers are the script's: generators keep their state, and the global ones of a step are the step's alone."""

from __future__ import annotations

import copy
import pickle
import random
import threading
from collections.abc import Callable
from random import gauss, getrandbits, getstate, seed, setstate, shuffle
from random import random as captured_random
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import rand, randn
from torch import default_generator
from torch.utils.checkpoint import checkpoint

from vtrain import seeded
from vtrain.engine.generators import numpys, torches
from vtrain.engine.generators.draws import PhiloxSource
from vtrain.engine.generators.keys import next_draw
from vtrain.engine.listener import Plain
from vtrain.engine.session import Session
from vtrain.errors import UnsupportedOperation
from vtrain.policy import Policy
from vtrain.random import StreamKey


@pytest.fixture
def session() -> Session:
    return Session(Plain(), Policy(), 3)


def drawn(generator: torch.Generator | None = None) -> list[float]:
    return [*torch.randn(3, generator=generator).tolist(), *torch.rand(2, generator=generator).tolist()]


# ---- torch.Generator -------------------------------------------------------------------------------------------------
def test_seeded_alike_they_give_the_same_numbers_and_go_on(session: Session) -> None:
    with session.step(1):
        one, two, other = (torch.Generator().manual_seed(s) for s in (5, 5, 2**40 + 5))
        first = drawn(one)
        assert drawn(one) != first == drawn(two) != drawn(other)
        torch.rand(7)  # the global one is another
        drawn(two)
        assert drawn(one) == drawn(two)
    with session.step(2):
        assert drawn(torch.Generator().manual_seed(5)) == first
    with Session(Plain(), Policy(), 4).step(9):
        assert drawn(torch.Generator().manual_seed(5)) == first
    with seeded(8):
        assert drawn(torch.Generator().manual_seed(5)) == first


def test_a_seeded_generator_s_numbers_are_defined_by_its_state(session: Session) -> None:
    with session.step(1):
        g = torch.Generator().manual_seed(2**40 + 5)
        got = [torch.rand(4, generator=g), torch.rand(4, generator=g)]
    native = torch.Generator().manual_seed(2**40 + 5)
    source = PhiloxSource(StreamKey(2**40 + 5, "torch-generator"))
    for values in got:
        word = int(torch.empty((), dtype=torch.int64).random_(-(2**63), None, generator=native)) % 2**64
        assert torch.equal(values, source.uniform((4,), torch.float32, "cpu", 0, 1, word >> 1, word & 1))
    assert torch.equal(g.get_state(), native.get_state())


COPIES: dict[str, Callable[[torch.Generator], torch.Generator]] = {
    "set_state": lambda g: torch.Generator().set_state(g.get_state()),
    "a saved state": lambda g: torch.Generator().set_state(torch.tensor(g.get_state().tolist(), dtype=torch.uint8)),
    "clone_state": lambda g: g.clone_state(),
}


@pytest.mark.parametrize("name", list(COPIES))
@pytest.mark.parametrize("seeding", [True, False], ids=["seeded", "as the step begins"])
def test_a_state_can_be_copied(session: Session, name: str, seeding: bool) -> None:
    with session.step(4):
        g = torch.Generator().manual_seed(1) if seeding else torch.default_generator
        torch.rand(2, generator=g)
        twin = COPIES[name](g)
        here = drawn(twin)
        assert drawn(g) == here
    outside = torch.rand(3, generator=twin)  # natively: other numbers, and it goes on
    with session.step(5):
        assert drawn(twin) != here != outside.tolist()


def test_a_generator_can_be_copied(session: Session) -> None:
    g = torch.Generator().manual_seed(2)
    with session.step(1):
        drawn(g)
    twins = copy.deepcopy(g), pickle.loads(pickle.dumps(g))
    with session.step(2):
        assert drawn(twins[0]) == drawn(twins[1]) == drawn(g)


def test_a_step_s_state_that_was_used_natively_is_another(session: Session) -> None:
    with session.step(4):
        torch.rand(2)
        used, kept = (torch.default_generator.clone_state() for _ in range(2))
        here = drawn()
    assert torch.rand(3, generator=used).unique().numel() == 3
    with session.step(5):
        assert drawn(kept) == here != drawn(used)


def test_a_generator_goes_on_from_step_to_step(session: Session) -> None:
    g, whole = (torch.Generator().manual_seed(6) for _ in range(2))
    with session.step(1):
        expected = [drawn(whole) for _ in range(3)]
    parts = []
    for step in range(3):
        with Session(Plain(), Policy(), 3).step(step):  # as after resuming: nothing but the state is kept
            resumed = torch.Generator().set_state(g.get_state())
            parts.append(drawn(resumed))
        g.set_state(resumed.get_state())
    assert parts == expected


def test_a_cuda_generator_goes_on_by_its_offset() -> None:
    class Cuda:
        device = torch.device("cuda", 0)
        offset = 8

        def initial_seed(self) -> int:
            return 5

        def get_offset(self) -> int:
            return self.offset

        def set_offset(self, offset: int) -> None:
            assert offset % 4 == 0  # as torch demands
            self.offset = offset

    g: Any = Cuda()
    draws = [next_draw(g) for _ in range(3)]
    here = torch.Generator().manual_seed(5)
    wanted = [next_draw(here) for _ in range(5)]
    assert [(source.key, place) for source, place in draws] == [(s.key, p) for s, p in wanted[2:]]
    assert g.offset == 20 and len({place for _, place in wanted}) == 5
    g.device = torch.device("meta")
    with pytest.raises(UnsupportedOperation, match="meta"):
        next_draw(g)


# ---- torch's global generator ----------------------------------------------------------------------------------------
def test_as_a_step_begins_draws_are_numbered(session: Session) -> None:
    for step in (7, 2**40 + 1):
        with session.step(step):
            got = [torch.rand(4), torch.rand(4)]
        for number, values in enumerate(got):
            assert torch.equal(values, PhiloxSource(3).uniform((4,), torch.float32, "cpu", 0, 1, step, number))


SEEDINGS: dict[str, Callable[[int], Any]] = {
    "torch.manual_seed": torch.manual_seed,
    "torch.random.manual_seed": torch.random.manual_seed,
    "torch.default_generator": lambda s: torch.default_generator.manual_seed(s),
    "imported before": lambda s: default_generator.manual_seed(s),
    "torch.cuda.manual_seed": torch.cuda.manual_seed,
    "torch.cuda.manual_seed_all": torch.cuda.manual_seed_all,
}


@pytest.mark.parametrize("name", list(SEEDINGS))
def test_seeding_inside_a_step_starts_a_stream(session: Session, name: str) -> None:
    outside = torch.get_rng_state()
    found = []
    for step in (1, 2):
        with session.step(step):
            before = drawn()
            SEEDINGS[name](7)
            found.append((drawn(), drawn()))
            assert torch.initial_seed() == 7
        with session.step(step):
            assert drawn() == before  # the next step begins unseeded
    assert found[0] == found[1] and found[0][0] != found[0][1]
    with session.step(3):
        assert drawn(torch.Generator().manual_seed(7)) == found[0][0]
    assert torch.equal(torch.get_rng_state(), outside)


@pytest.mark.parametrize("given", [None, 7], ids=["as the step begins", "seeded"])
def test_states_are_read_set_and_forked(session: Session, given: int | None) -> None:
    with session.step(5):
        if given is not None:
            torch.manual_seed(given)
        torch.rand(3)
        state = torch.get_rng_state()
        here = drawn()
        torch.set_rng_state(state)
        assert drawn() == here
        torch.default_generator.set_state(state)
        with torch.random.fork_rng():
            assert drawn() == here
            torch.manual_seed(3)
        assert drawn(torch.default_generator) == here
        torch.set_rng_state(state)
        assert drawn(default_generator) == here
    with session.step(6):
        assert drawn() != here
        torch.set_rng_state(state)  # of another step
        assert drawn() == here
    with Session(Plain(), Policy(), 99).step(6):  # and of another run
        torch.set_rng_state(state)
        assert drawn() == here


def test_seeded_blocks_inside_a_step_keep_the_step_s(session: Session) -> None:
    def both(block: bool) -> tuple[list[Any], list[Any]]:
        with session.step(1):
            torch.manual_seed(2), random.seed(2), np.random.seed(2)
            found = [drawn(), captured_random(), rand(), gauss(0, 1), randn()]
            inner: list[Any] = []
            if block:
                with seeded(7):
                    inner = [drawn(), captured_random(), rand(), gauss(0, 1), randn()]
            return [*found, drawn(), captured_random(), rand(), gauss(0, 1), randn()], inner

    with seeded(7):
        alone = [drawn(), captured_random(), rand(), gauss(0, 1), randn()]
    with_block, inner = both(True)
    assert with_block == both(False)[0]
    assert inner == alone


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("given", [None, 7], ids=["as the step begins", "seeded"])
def test_a_forward_pass_done_again_drops_the_same(session: Session, reentrant: bool, given: int | None) -> None:
    x = torch.ones(64, requires_grad=True)
    masks = []

    def forward(x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.dropout(x, 0.5)
        masks.append((y != 0).tolist())
        return y * x

    with session.step(2):
        if given is not None:
            torch.manual_seed(given)
        y = checkpoint(forward, x, use_reentrant=reentrant)
        after = torch.rand(3)
        y.sum().backward()
        assert masks[0] == masks[1] and len(masks) == 2
        assert not torch.equal(torch.rand(3), after)  # and what comes after goes on


def test_the_generators_of_a_cuda_device_are_the_step_s(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without one: what stands in torch.cuda are CPU generators."""
    native = (torch.Generator().manual_seed(1), torch.Generator().manual_seed(2))
    monkeypatch.setattr(torch.cuda, "default_generators", native)
    before = [g.get_state() for g in native]
    with session.step(1):
        assert [g is default_generator for g in torch.cuda.default_generators] == [True, True]
        torch.manual_seed(7)
        first = drawn(torch.cuda.default_generators[1])
        torch.manual_seed(7)
        assert drawn(native[0]) == first  # a name for it that was taken before
        elsewhere: list[bool] = []
        thread = threading.Thread(target=lambda: elsewhere.append(torch.cuda.default_generators[0] is native[0]))
        thread.start()
        thread.join()
        assert elsewhere == [True]
    assert torch.cuda.default_generators is native
    assert all(torch.equal(g.get_state(), state) for g, state in zip(native, before, strict=True))


# ---- what no auditor could repeat ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "call",
    [torch.seed, torch.random.seed, lambda: default_generator.seed(), random.seed, seed, np.random.seed],
    ids=["torch.seed", "torch.random.seed", "default_generator.seed", "random.seed", "captured seed", "numpy"],
)
def test_seeds_from_the_system_are_errors(session: Session, call: Callable[[], Any]) -> None:
    with session.step(1), pytest.raises(UnsupportedOperation, match=r"(?s)auditor.*test_generators\.py"):
        call()
    call()


# ---- Python's and NumPy's --------------------------------------------------------------------------------------------
def python_draws() -> list[Any]:
    """With functions imported by name before, and found by name now."""
    items = list(range(9))
    shuffle(items)
    return [
        captured_random(),
        getrandbits(40),
        gauss(0, 1),
        random.random(),
        random.gauss(0, 1),
        items,
        random.randbytes(3),
    ]


def numpy_draws() -> list[Any]:
    draws = [
        rand(),
        randn(),
        np.random.normal(size=3).tolist(),
        np.random.permutation(5).tolist(),
        np.random.randint(99),
    ]
    return [*draws, np.random.choice(7), np.random.default_rng(3).random()]


@pytest.mark.parametrize("draws", [python_draws, numpy_draws])
def test_host_generators_are_the_step_s(session: Session, draws: Callable[[], list[Any]]) -> None:
    states = getstate(), np.random.get_state(legacy=False)
    steps = []
    for step in (1, 2, 1):
        with session.step(step):
            steps.append(draws())
    assert steps[0] == steps[2] != steps[1]
    assert getstate() == states[0]
    np.testing.assert_equal(np.random.get_state(legacy=False), states[1])
    outside = []
    for inside in (True, False):
        random.seed(5), np.random.seed(5)
        expected = draws()  # the numbers are Python's and NumPy's own
        if inside:
            with session.step(3):
                random.seed(5), np.random.seed(5)
                assert draws() == expected
                kept = random.getstate(), np.random.get_state()
                more = draws()
                setstate(kept[0]), np.random.set_state(kept[1])
                assert draws() == more
        outside.append(draws())
    assert outside[0] == outside[1]


def test_a_step_s_first_numbers_are_those_of_its_seed(session: Session) -> None:
    with session.step(4):
        mine = [random.random(), float(np.random.rand())]
        host_seed = session.engine.own.host_seed
    assert mine == [random.Random(host_seed).random(), float(np.random.RandomState(host_seed).rand())]


def test_errors_of_the_functions_stay(session: Session) -> None:
    with session.step(1):
        with pytest.raises(ValueError):
            getrandbits(-1)
        with pytest.raises(TypeError):
            captured_random(1)  # type: ignore[call-arg]


def test_other_bit_generators(session: Session) -> None:
    native = np.random.get_bit_generator()  # type: ignore[attr-defined]
    try:
        np.random.set_bit_generator(np.random.PCG64(3))  # type: ignore[attr-defined]
        expected = np.random.RandomState(np.random.PCG64(3)).rand(4).tolist()
        first = np.random.rand(2).tolist()
        with session.step(1):
            inside = np.random.rand(2).tolist()
        assert [*first, *np.random.rand(2).tolist()] == expected
        with session.step(1):
            assert np.random.rand(2).tolist() == inside
    finally:
        np.random.set_bit_generator(native)  # type: ignore[attr-defined]


def test_numpy_s_objects_leave_as_what_they_are(session: Session) -> None:
    with session.step(1):
        np.random.rand()
    bits = np.random.get_bit_generator()  # type: ignore[attr-defined]
    copied = pickle.loads(pickle.dumps(bits))
    assert type(copied) is np.random.MT19937
    np.testing.assert_equal(copied.state, bits.state)
    assert np.random.Generator(copied).random() == np.random.Generator(pickle.loads(pickle.dumps(bits))).random()


# ---- threads ---------------------------------------------------------------------------------------------------------
def loader_draws(turns: int) -> list[Any]:
    found: list[Any] = []
    for turn in range(turns):
        found += [torch.randperm(9).tolist(), torch.rand(2, generator=default_generator).tolist()]
        found += [*python_draws(), *numpy_draws()]
        if turn == turns // 2:
            torch.manual_seed(11), random.seed(11), np.random.seed(11)
            kept = np.random.get_state()
            np.random.randn(), np.random.set_state(kept)
    return found


def test_other_threads_draw_what_they_would_without_steps(session: Session) -> None:
    def step_draws() -> list[Any]:
        return [drawn(), python_draws(), numpy_draws(), np.random.randn(), torch.get_rng_state().sum().item()]

    turns = 12
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    expected = loader_draws(turns)
    undisturbed = []
    for step in range(10):
        with session.step(step):
            undisturbed.append([step_draws() for _ in range(5)])

    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    got: list[Any] = []
    begun, go = threading.Event(), threading.Event()

    def load() -> None:
        begun.set()
        go.wait()
        got.extend(loader_draws(turns))

    thread = threading.Thread(target=load)
    thread.start()
    begun.wait()
    disturbed = []
    for step in range(10):
        with session.step(step):
            go.set()
            disturbed.append([step_draws() for _ in range(5)])
    thread.join()
    assert got == expected
    assert disturbed == undisturbed


def test_autograd_s_threads_are_the_step_s(session: Session) -> None:
    """Those of other devices have the step's dispatch mode; here one is made to have it."""
    found: dict[str, list[Any]] = {}
    go, done = threading.Event(), threading.Event()

    def draw(name: str) -> None:
        torch.manual_seed(5)
        found[name] = [torch.initial_seed(), torch.rand(3).tolist()]

    def elsewhere() -> None:
        go.wait()
        with session._mode:
            draw("with the mode")
        done.set()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    outside = torch.initial_seed()
    with session.step(1):
        draw("here")
        go.set()
        done.wait()
    thread.join()
    assert found["here"] == found["with the mode"]
    assert torch.initial_seed() == outside


def test_outside_everything_is_as_it_was(session: Session) -> None:
    with pytest.raises(ZeroDivisionError), session.step(1):
        raise ZeroDivisionError
    assert type(torch.default_generator) is torch.Generator
    assert type(random._inst) is random.Random  # type: ignore[attr-defined]
    assert random.random.__self__ is random._inst  # type: ignore[attr-defined]
    assert not isinstance(torch.cuda.default_generators, torches._Defaults)
    assert numpys._keeper() is not None
