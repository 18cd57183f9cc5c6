"""``make paper``: the sizes of Srivastava, Arora and Boneh (NeurIPS 2024), trained here, audited under another profile.

ResNet-50 on 3x32x32 images (batch 64) and GPT-2 of 117 million parameters (batch 8 of 64 tokens), float32 target,
certified thresholds. Images are random and tokens are Python's help texts: the paper's data can't be downloaded here.
Beside it: the same training without a log (threshold off), and plain PyTorch in float64, each under both arithmetics.
``python -m benchmarks.paper_scale [--steps N] [resnet50] [gpt2]``
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

from vtrain import children

ROOT = Path(__file__).resolve().parents[1]

JOBS = {
    "resnet50": """
[program]
entry = "vtrain.programs.vision:classifier"
config = {{ name = "resnet50", classes = 10 }}
[data]
name = "random-images"
config = {{ n = 2048 }}
[train]
steps = {steps}
batch_size = 64
checkpoint_every = 10
[optimizer]
name = "sgd"
lr = 0.05
momentum = 0.9
[policy]
threshold = "{threshold}"
""",
    "gpt2": """
[program]
entry = "vtrain.programs.language:gpt2"
config = {{ vocab = 50257, block = 64, layers = 12, width = 768, heads = 12 }}
[data]
name = "topics"
config = {{ block = 64 }}
[train]
steps = {steps}
batch_size = 8
checkpoint_every = 10
[optimizer]
name = "sgd"
lr = 0.05
momentum = 0.9
[policy]
threshold = "{threshold}"
""",
}
AUDITOR = {"OMP_NUM_THREADS": str(os.cpu_count() or 1), "VTRAIN_CPU": "generic"}


def vtrain(profile: str, variables: dict[str, str], *arguments: str) -> tuple[float, str]:
    """Seconds and stdout of a command, which may end with 0 or 1."""
    start = time.perf_counter()
    done = children.run("-m", "vtrain", *arguments, profile=profile, variables=variables, capture_output=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(done.stderr[-3000:])
    return time.perf_counter() - start, done.stdout


def both(folder: Path, name: str, steps: int, threshold: str) -> dict[str, Any]:
    """Train under ``native``, audit under ``baseline``."""
    job, run = folder / "job.toml", folder / f"run-{threshold}"
    job.write_text(JOBS[name].format(steps=steps, threshold=threshold))
    trained, _ = vtrain("native", {}, "train", str(job), "--out", str(run))
    audited, out = vtrain("baseline", AUDITOR, "audit", str(run), "--json")
    verdict = json.loads(out)
    size = sum(f.stat().st_size for f in (run / "log.zarr").rglob("*") if f.is_file())
    keys = ("result", "firstBadStep", "what", "settled", "entries", "corrections", "violations")
    return {k: verdict[k] for k in keys} | {"train_s": trained, "audit_s": audited, "log_bytes": size}


def plain(name: str, steps: int) -> None:
    """Train in plain float64 and print digests of the weights after each step; a process of its own."""
    import torch

    from vtrain.engine.seeded import seeded
    from vtrain.engine.task import Task
    from vtrain.job import parse

    job = parse(tomllib.loads(JOBS[name].format(steps=steps, threshold="off")), "job")
    task = Task(job, Path())
    with seeded(0):
        model = task.model()
    model = model.double()
    optimizer = task.optimizer(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # torch's own generator would differ too
    for step in range(1, steps + 1):
        batch, _ = task.batch(step)
        wide = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
        task.program.loss(model, wide).backward()
        optimizer.step()
        optimizer.zero_grad()
        digest = hashlib.sha256()
        for p in model.parameters():
            digest.update(p.detach().float().numpy().tobytes())
        print(digest.hexdigest(), flush=True)


def plain_differs(name: str, steps: int) -> int | None:
    """First step after which plain float64 training differs between the profiles, in weights rounded to float32."""
    found = []
    for profile in ("native", "baseline"):
        arguments = ("-m", "benchmarks.paper_scale", "--plain", "--steps", str(steps), name)
        done = children.run(*arguments, profile=profile, folder=ROOT, capture_output=True, check=True)
        found.append(done.stdout.split())
    return next((i for i, (a, b) in enumerate(zip(*found, strict=True), 1) if a != b), None)


def measure(name: str, steps: int) -> dict[str, Any]:
    """All figures of one model."""
    with tempfile.TemporaryDirectory(prefix="vtrain-paper-") as folder:
        logged = both(Path(folder), name, steps, "certified")
        off = both(Path(folder), name, steps, "off")
    return {"certified": logged, "off": off, "plain_float64_differs_at": plain_differs(name, steps)}


def table(name: str, steps: int, found: dict[str, Any]) -> str:
    """For people."""
    c, off = found["certified"], found["off"]
    first = found["plain_float64_differs_at"]
    return "\n".join(
        [
            f"{name}, {steps} steps, trained under native, audited under baseline",
            f"  certified: {c['result']}, {c['settled'] / (steps + 1):,.0f} values settled a step, "
            f"{c['entries'] / steps:,.0f} decisions, {c['log_bytes'] / steps / 1e3:,.1f} kB of log, "
            f"{c['corrections']} corrections, {c['violations']} violations in all; "
            f"training {c['train_s']:.0f} s, audit {c['audit_s']:.0f} s",
            f"  without a log: {off['result']}"
            + ("" if off["firstBadStep"] is None else f" at step {off['firstBadStep']} ({off['what']})"),
            "  plain float64: " + ("equal" if first is None else f"the weights, as float32, differ after step {first}"),
        ]
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(JOBS)}")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for name in arguments.models or list(JOBS):
        if arguments.plain:
            plain(name, arguments.steps)
        else:
            print(table(name, arguments.steps, measure(name, arguments.steps)), flush=True)


if __name__ == "__main__":
    main()
