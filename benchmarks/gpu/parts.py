"""The parts of ``make gpu``, in order of worth: each prints rows, a JSON line each, as it finds them.

``python -m benchmarks.gpu.parts NAME DEVICE END [--tiny]``, with the time at which it will be killed.
"""

from __future__ import annotations

import functools
import itertools
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.rows import Clock, row, together
from vtrain import children

ROOT = Path(__file__).resolve().parents[2]
Work = Callable[[str, bool, Clock], None]


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        title: for people.
        seconds: that it may take.
        work: called with the device's name, whether sizes are tiny, and the time that is left; prints rows.
    """

    title: str
    seconds: float
    work: Work


def doctor(device: str, tiny: bool, clock: Clock) -> None:
    """What the machine is, and whether vtrain takes it."""
    import torch

    if device.startswith("cuda"):
        for i in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(i)
            row(card=found.name, architecture=f"sm_{found.major}{found.minor}", torch=torch.__version__,
                cuda=str(torch.version.cuda), gibibytes=found.total_memory >> 30)  # fmt: skip
    done = children.bounded(clock.left(), "-m", "vtrain", "doctor", "--json", "--device", device)
    said = json.loads(done.out) if done.code in (0, 4) else {"arithmetic": {}}
    kept = said["arithmetic"]
    there = sum(name.startswith(device) for name in kept)
    row(doctor="ok" if done.code == 0 else done.err[-500:] or "BROKEN", checks=len(kept), of_the_device=there,
        broken=[name for name, ok in kept.items() if not ok], integers=said.get("integerProducts", {}))  # fmt: skip


def host_variants(tiny: bool) -> list[str]:
    """Instruction sets of the host's kernels that this processor has; "" is the best of them."""
    if tiny:
        return ["generic", ""]
    probe = ("-c", "import vtrain.kernels")
    vector = [n for n in ("avx512", "avx2") if children.bounded(30, *probe, variables={"VTRAIN_CPU": n}).code == 0]
    return ["generic", *vector]


def kernels(device: str, tiny: bool, clock: Clock) -> None:
    """Every kernel's bits, against each variant of the host's."""
    together(functools.partial(_bits, device, tiny, clock, variant) for variant in host_variants(tiny))


def _bits(device: str, tiny: bool, clock: Clock, variant: str) -> None:
    """Run ``bits`` under a variant of the host's kernels; go on behind a group of kernels that ended the process."""
    from benchmarks.gpu.bits import names

    left = names(small_only=variant == "generic")  # without fused instructions the large ones would take minutes

    def line(text: str) -> None:
        found = json.loads(text)
        if found.pop("whole", False):
            left.remove(found["kernels"])
        else:
            row(host=variant or "fastest", **found)

    variables = {"VTRAIN_CPU": variant, "OMP_WAIT_POLICY": "passive"} if variant else {}
    while left:
        arguments = ("-m", "benchmarks.gpu.bits", device, *(["--tiny"] if tiny else []), *left)
        done = children.bounded(clock.left(), *arguments, each=line, variables=variables, folder=ROOT)
        if left:
            why = "not done in time" if done.code is None else done.err[-400:] or f"exit code {done.code}"
            row(host=variant or "fastest", kernels=left.pop(0), same=False, results=0, error=why)
        if done.code is None:
            return


def zoo(device: str, tiny: bool, clock: Clock) -> None:
    """Models trained there and audited on the CPU, and the other way round."""
    from benchmarks.gpu.zoo import models

    models(device, tiny, clock)


def paper(device: str, tiny: bool, clock: Clock) -> None:
    """ResNet-50 and GPT-2 of 124 million parameters, trained there and audited on the CPU."""
    from benchmarks.gpu.paper import runs

    runs(device, tiny, clock)


def speed(device: str, tiny: bool, clock: Clock) -> None:
    """Steps, products and passes against PyTorch's own."""
    import torch

    from benchmarks.gpu import passes, products, rates

    where = torch.device(device)
    kinds = [rates.steps(rates.language(tiny), where), products.products(where, tiny), passes.passes(where, tiny)]
    if not tiny:
        kinds.append(rates.steps(rates.vision(), where))
    for found in itertools.chain(*kinds):
        row(**found)


TOOLS = {"memcheck": 0.5, "racecheck": 0.6, "synccheck": 1.0}  # shares of the time that is left, in turn


def sanitizer(device: str, tiny: bool, clock: Clock) -> None:
    """compute-sanitizer over every kernel on small shapes."""
    program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if program is None:
        row(tool="compute-sanitizer", ok=False, said="is not installed")
        return
    for tool, share in TOOLS.items():
        command = f"{program} --tool {tool} --error-exitcode 9"
        arguments = ("-m", "benchmarks.gpu.bits", device, "--small")
        done = children.bounded(share * clock.left(), *arguments, tool=command, folder=ROOT)
        groups = [json.loads(line)["kernels"] for line in done.out.splitlines() if line.startswith('{"whole"')]
        said = [line.strip("= ") for line in done.out.splitlines() if line.startswith("====") and "SUMMARY" in line]
        why = "not done in time" if done.code is None else done.err.strip()[-300:]
        row(tool=tool, ok=done.code == 0, said=said[-1] if said else why, ran=groups)


PARTS = {
    "doctor": Part("The machine", 40, doctor),
    "kernels": Part("Every kernel's bits against the host's", 60, kernels),
    "zoo": Part("Models trained there and audited here, and the other way round", 90, zoo),
    "paper": Part("The paper's runs", 150, paper),
    "speed": Part("Speed", 80, speed),
    "sanitizer": Part("compute-sanitizer", 60, sanitizer),
}


def main() -> None:
    """Run one part."""
    name, device, end, *tiny = sys.argv[1:]
    PARTS[name].work(device, bool(tiny), Clock(float(end)))


if __name__ == "__main__":
    main()
