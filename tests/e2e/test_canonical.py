"""Every model of the zoo in canonical arithmetic: equal in every bit on other hardware, without a log.

And with everything logged: the policy chooses for each kind of operation, and both ways end in the same verdict.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import zoo
from test_zoo import AUDITOR, Outcomes, check, gather, start

from vtrain.profiles import profile_environment

LOGGED = ("gpt2", "gpt2-bfloat16", "gpt2-18-bits", "bert", "llama", "t5", "resnet18", "mobilenet-v3", "mlp")
# like others, or long
REST = ("gpt2-statistical", "gpt2-ternary", "gpt2-module-in-bfloat16", "gpt2-accumulation", "vit", "resnet50",
        "convnext", "gru", "mlp-foreach")  # fmt: skip
QUICK = [name for name in zoo.CASES if name not in REST]
INTEGER = (
    "gpt2",
    "gpt2-bfloat16",
    "gpt2-autocast",
    "gpt2-18-bits",
    "mixtral",
    "resnet18",
    "mobilenet-v3",
    "lstm",
    "mlp",
)
WIDE = ("gpt2", "gpt2-autocast", "resnet18", "mixtral")


def best_variant() -> str:
    """Vector instructions of this processor that the kernels can use; the trainer is to use all of them."""
    code = "from vtrain.kernels import variant; print(variant())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def trained_and_audited(root: Path, policy: str, names: list[str]) -> tuple[Outcomes, Outcomes]:
    """What recording and replaying came to: two threads and vectors here, one thread and none there."""
    halves = [half for half in (names[::2], names[1::2]) if half]
    here = profile_environment("native") | {"OMP_NUM_THREADS": "2", "VTRAIN_CPU": best_variant()}
    there = profile_environment("baseline") | AUDITOR
    recorded = gather([start(f"record:{policy}", root, half, here) for half in halves])
    return recorded, gather([start("replay", root, half, there) for half in halves])


@pytest.fixture(scope="module")
def canonical(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcomes, Outcomes]:
    return trained_and_audited(tmp_path_factory.mktemp("canonical"), "matmul=chain", QUICK)


@pytest.fixture(scope="module")
def rest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcomes, Outcomes]:
    return trained_and_audited(tmp_path_factory.mktemp("rest"), "matmul=chain", list(REST))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcomes, Outcomes]:
    return trained_and_audited(tmp_path_factory.mktemp("wide"), "matmul=chain64", list(WIDE))


@pytest.fixture(scope="module")
def integers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcomes, Outcomes]:
    return trained_and_audited(tmp_path_factory.mktemp("integers"), "matmul=integer", list(INTEGER))


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcomes, Outcomes]:
    return trained_and_audited(tmp_path_factory.mktemp("logged"), "other=logged", list(LOGGED))


def check_empty(replayed: dict[str, Any]) -> None:
    """Nothing was settled, nothing logged, and much was computed."""
    assert replayed["settled"] == 0
    assert replayed["entries"] == 0
    assert replayed["canonical"] > 1000


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in REST)])
def test_canonical_runs_need_no_log(name: str, request: pytest.FixtureRequest) -> None:
    recorded, replayed = (found[name] for found in request.getfixturevalue("rest" if name in REST else "canonical"))
    check(name, recorded, replayed)
    check_empty(replayed)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", WIDE)
def test_chains_in_float64(name: str, wide: tuple[Outcomes, Outcomes]) -> None:
    recorded, replayed = (found[name] for found in wide)
    check(name, recorded, replayed)
    check_empty(replayed)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", INTEGER)
def test_exact_integers(name: str, integers: tuple[Outcomes, Outcomes]) -> None:
    """Where this processor's products of bytes are exact, the trainer multiplies bytes and the auditor float64."""
    recorded, replayed = (found[name] for found in integers)
    check(name, recorded, replayed)
    check_empty(replayed)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", LOGGED)
def test_everything_logged(name: str, logged: tuple[Outcomes, Outcomes]) -> None:
    recorded, replayed = (found[name] for found in logged)
    check(name, recorded, replayed)
    assert replayed["canonical"] == 0
    assert replayed["settled"] > 1000
