"""Models trained on a device and audited on the CPU, and the other way round, under each policy.

``python -m benchmarks.gpu.zoo record|replay DEVICE FOLDER POLICIES MODEL...`` does one side of some policies, which are
numbers with commas between, and prints a JSON line for each model.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.rows import Clock, row, together
from vtrain import children

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("mlp", "gpt2", "resnet18", "gpt2-bfloat16", "gpt2-float16", "llama", "bert", "lstm", "vit", "t5")
AUTOCAST = "gpt2-autocast"  # audited on the type of device that trained it
POLICIES: dict[str, dict[str, str]] = {
    "logged products": {}, "canonical": {"matmul": "chain"}, "integer": {"matmul": "integer"},
    "all logged": {"other": "logged"},
}  # fmt: skip
Outcome = dict[str, Any]


def models(device: str, tiny: bool, clock: Clock) -> None:
    """Record on both devices at once, then replay each on the other; a process for each policy and side."""
    names = ("mlp", "gpt2-bfloat16") if tiny else MODELS
    numbers = [str(n) for n in range(len(POLICIES))]
    groups = [",".join(numbers)] if tiny else numbers
    sides = ((device, "cpu"), ("cpu", device))
    with tempfile.TemporaryDirectory(prefix="vtrain-gpu-") as folder:
        failed: dict[tuple[str, str, str], str] = {}

        def made(trained: str, found: Outcome) -> None:
            if "error" in found:
                failed[trained, found["policy"], found["case"]] = found["error"]

        def judged(trained: str, audited: str, found: Outcome) -> None:
            error = failed.get((trained, found["policy"], found["case"])) or found.get("error") or ""
            row(model=found["case"], policy=found["policy"], trained=trained, audited=audited,
                result=found.get("result", "none"), corrections=found.get("corrections", 0),
                detail=(error or found.get("detail", ""))[:300])  # fmt: skip

        share = 0.45 * clock.left()
        together(
            functools.partial(_side, share, "record", trained, Path(folder), group,
                              (*names, AUTOCAST) if trained == device and group == "0" else names,
                              functools.partial(made, trained))
            for group in groups for trained, _ in sides
        )  # fmt: skip
        left = clock.left()
        works = [
            functools.partial(_side, left, "replay", audited, Path(folder), group, names,
                              functools.partial(judged, trained, audited), trained)
            for group in groups for trained, audited in sides
        ]  # fmt: skip
        if not tiny:
            works.append(functools.partial(_side, left, "replay", device, Path(folder), "0", (AUTOCAST,),
                                           functools.partial(judged, device, device), device))  # fmt: skip
        together(works)


def _side(
    seconds: float, mode: str, device: str, folder: Path, group: str, names: tuple[str, ...], each: Any,
    trained: str = "",
) -> None:  # fmt: skip
    """One process; a row about it if it doesn't end well."""

    def line(text: str) -> None:
        if text.startswith("{"):
            each(json.loads(text))

    runs = folder / (trained or device).replace(":", "-")
    arguments = ("-m", "benchmarks.gpu.zoo", mode, device, str(runs), group, *names)
    variables = {"ZOO_DEVICE": device, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // 4))}
    done = children.bounded(seconds, *arguments, each=line, variables=variables, folder=ROOT)
    if done.code != 0:
        said = "not done in time" if done.code is None else done.err[-300:]
        row(side=mode, where=device, policies=[list(POLICIES)[int(n)] for n in group.split(",")], stopped=said)


def outcomes(mode: str, folder: Path, policies: str, names: list[str]) -> Iterator[Outcome]:
    """What each model came to under each policy."""
    sys.path.append(str(ROOT / "tests" / "e2e"))
    import zoo

    for policy in (list(POLICIES)[int(number)] for number in policies.split(",")):
        for outcome in zoo.outcomes(mode, POLICIES[policy], folder / policy.replace(" ", "-"), names):
            yield {"policy": policy, **outcome}


def main() -> None:
    """One side; the device is read from the environment, where ``zoo`` looks for it."""
    import warnings

    warnings.filterwarnings("ignore")
    mode, _, folder, policies, *names = sys.argv[1:]
    for outcome in outcomes(mode, Path(folder), policies, names):
        print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
