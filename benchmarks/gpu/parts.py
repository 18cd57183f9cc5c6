"""The parts of ``make gpu``, in order of worth: each prints rows, a JSON line each, as it finds them.

``python -m benchmarks.gpu.parts NAME DEVICE [--tiny]``
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtrain import children

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Part:
    """One part.

    Attributes:
        title: for people.
        seconds: that it may take.
        work: called with the device's name and whether sizes are tiny; prints rows.
    """

    title: str
    seconds: float
    work: Callable[[str, bool], None]


def row(**values: Any) -> None:
    """Print what was found."""
    print(json.dumps(values), flush=True)


def doctor(device: str, tiny: bool) -> None:
    """What the machine is, and whether vtrain takes it."""
    import torch

    if device.startswith("cuda"):
        for i in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(i)
            row(card=found.name, architecture=f"sm_{found.major}{found.minor}", torch=torch.__version__,
                cuda=str(torch.version.cuda), gibibytes=found.total_memory >> 30)  # fmt: skip
    done = children.bounded(60, "-m", "vtrain", "doctor", "--json", "--device", device)
    kept = json.loads(done.out)["arithmetic"] if done.code in (0, 4) else {}
    row(doctor="ok" if done.code == 0 else done.err[-500:] or "BROKEN", broken=[n for n, ok in kept.items() if not ok])


def kernels(device: str, tiny: bool) -> None:
    """Every kernel's bits, on small shapes and on large ones."""
    import torch

    from benchmarks.gpu import bits

    for name, same, count in bits.small(torch.device(device)):
        row(kernels=name, same=same, results=count)
    for name, same, count in bits.large(torch.device(device), tiny):
        row(kernels=name, same=same, results=count)


ZOO = (
    "mlp",
    "gpt2",
    "resnet18",
    "gpt2-bfloat16",
    "gpt2-autocast",
    "gpt2-float16",
    "llama",
    "bert",
    "lstm",
    "vit",
    "t5",
)
POLICIES = ("", "matmul=chain,other=canonical")


def zoo(device: str, tiny: bool) -> None:
    """Models trained there and audited on the CPU, and the other way round."""
    names = ZOO[:1] if tiny else ZOO
    for policy in POLICIES:
        for trainer, auditor in ((device, "cpu"), ("cpu", device)):
            with tempfile.TemporaryDirectory(prefix="vtrain-gpu-") as folder:
                recorded = _zoo(f"record:{policy}", trainer, folder, names)
                verdicts = _zoo(f"replay:{policy}", auditor, folder, names)
            for name in names:
                made, found = recorded.get(name, {}), verdicts.get(name, {})
                error = made.get("error") or found.get("error") or ""
                row(model=name, policy=policy or "default", trained=trainer, audited=auditor,
                    result=found.get("result", "none"), corrections=found.get("corrections", 0),
                    detail=(error or found.get("detail", ""))[:300])  # fmt: skip


def _zoo(mode: str, device: str, folder: str, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    arguments = (str(ROOT / "tests" / "e2e" / "zoo.py"), mode, folder, *names)
    done = children.bounded(100, *arguments, variables={"ZOO_DEVICE": device})
    rows = [json.loads(line) for line in done.out.splitlines() if line.startswith("{")]
    if not rows:
        raise RuntimeError(f"{mode} on {device}: {done.err[-1500:]}")
    return {found["case"]: found for found in rows}


def paper(device: str, tiny: bool) -> None:
    """ResNet-50 and GPT-2 of 124 million parameters, trained there and audited on the CPU."""
    from experiments.paper_scale.experiment import JOBS, both

    for name in JOBS[:1] if tiny else JOBS:
        steps = 1 if tiny else 20
        for threshold in ("certified", "off"):
            with tempfile.TemporaryDirectory(prefix="vtrain-gpu-") as folder:
                found = both(Path(folder), name, steps, threshold, (device, "cpu"), ("native", {}))
            row(model=name, steps=steps, threshold=threshold, **found)


def speed(device: str, tiny: bool) -> None:
    """Steps, products and passes against PyTorch's own."""
    import torch

    from benchmarks.gpu import rates

    for found in rates.steps(torch.device(device), tiny):
        row(**found)
    for found in rates.products(torch.device(device), tiny):
        row(**found)
    for found in rates.passes(torch.device(device), tiny):
        row(**found)


def sanitizer(device: str, tiny: bool) -> None:
    """compute-sanitizer over every kernel on small shapes."""
    if shutil.which("compute-sanitizer") is None:
        row(tool="compute-sanitizer", said="is not installed")
        return
    for tool in ("memcheck", "racecheck", "synccheck"):
        command = f"compute-sanitizer --tool {tool} --error-exitcode 9"
        done = children.bounded(60, "-m", "benchmarks.gpu.bits", device, tool=command, folder=ROOT)
        last = [line for line in done.out.splitlines() if "ERROR SUMMARY" in line or "HAZARD" in line][-1:]
        row(tool=tool, ok=done.code == 0, said=(last or [done.err[-300:] or "not done in time"])[0].strip("= "))


PARTS = {
    "doctor": Part("The machine", 40, doctor),
    "kernels": Part("Every kernel's bits against the host's", 60, kernels),
    "zoo": Part("Models trained there and audited here, and the other way round", 120, zoo),
    "paper": Part("The paper's runs", 120, paper),
    "speed": Part("Speed", 70, speed),
    "sanitizer": Part("compute-sanitizer", 70, sanitizer),
}


def main() -> None:
    """Run one part."""
    name, device, *tiny = sys.argv[1:]
    PARTS[name].work(device, bool(tiny))


if __name__ == "__main__":
    main()
