"""The zoo's models, trained on the device and audited on the CPU, and the other way round."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "e2e"))
import zoo
from emulated import NAME

QUICK = {"mlp", "lstm", "gru", "gpt2", "gpt2-bfloat16", "gpt2-float16", "gpt2-checkpointing", "gpt2-accumulation"}
CHANGES: list[dict[str, Any]] = [{}, {"matmul": "chain"}, {"other": "logged"}]
TWO_LISTS = "autocast"  # torch's own lists of what it casts differ between types of devices


@pytest.fixture(autouse=True)
def settings() -> Any:
    """A model that is moved keeps its ties, as on CUDA; nothing was written beyond its memory."""
    warnings.filterwarnings("ignore")
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(False)
    assert torch.ops.emulated.violations() == 0


def outcome(name: str, there: str, here: str, changes: dict[str, Any], path: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        for device, work in ((there, zoo.record_case), (here, zoo.replay_case)):
            patch.setattr(zoo, "DEVICE", torch.device(device))
            found = work(zoo.CASES[name], path, changes)
    return found


def cases() -> list[Any]:
    return [
        pytest.param(name, changes, marks=() if name in QUICK and not changes else pytest.mark.slow)
        for name in zoo.CASES
        if TWO_LISTS not in name
        for changes in CHANGES
    ]


@pytest.mark.parametrize(("there", "here"), [(NAME, "cpu"), ("cpu", NAME)])
@pytest.mark.parametrize(("name", "changes"), cases())
def test_trained_there_audited_here(name: str, changes: dict[str, Any], there: str, here: str, tmp_path: Path) -> None:
    found = outcome(name, there, here, changes, tmp_path / "run")
    assert found["result"] == "verified", found["detail"]
    assert found["replayed"] == [[0, zoo.STEPS]] and found["violations"] == 0


def test_autocast_is_audited_on_the_same_type_of_device(tmp_path: Path) -> None:
    """And refuted on another, as torch casts other operations there: with the operation's name, not silently."""
    assert outcome("gpt2-autocast", NAME, NAME, {}, tmp_path / "same")["result"] == "verified"
    found = outcome("gpt2-autocast", NAME, "cpu", {}, tmp_path / "other")
    assert found["result"] == "refuted" and "float32" in found["detail"] and "bfloat16" in found["detail"]
