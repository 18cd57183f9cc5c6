"""``python -m benchmarks.gpu [--device cuda] [--out FOLDER] [--tiny] [PART ...]``: run parts, write what they found.

Each part is a process of its own with a limit on its time; one that fails or takes too long doesn't stop the others.
``results.json`` holds what was found, ``results.md`` the same for the README; both are written after every part.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.table import page
from vtrain import children

ROOT = Path(__file__).resolve().parents[2]


def run_part(name: str, device: str, tiny: bool, seconds: float) -> dict[str, Any]:
    """What a part found, or why it found nothing; with the seconds that it took."""
    start = time.perf_counter()
    arguments = ("-m", "benchmarks.gpu.parts", name, device, *(["--tiny"] if tiny else []))
    done = children.bounded(seconds, *arguments, folder=ROOT)
    found: dict[str, Any] = {"found": _lines(done.out)}
    if done.code is None:
        found["error"] = f"not done after {seconds:.0f} s"
    elif done.code:
        found["error"] = done.err.strip()[-2000:] or f"exit code {done.code}"
    return {**found, "seconds": round(time.perf_counter() - start, 1)}


def _lines(text: str) -> list[dict[str, Any]]:
    """The rows that a part printed, a JSON line each; what else it printed is left out."""
    rows = []
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue  # the line that a time limit cut
    return rows


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all if none is named")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, to see that every part runs")
    given = parser.parse_args()
    if unknown := [name for name in given.parts if name not in PARTS]:
        parser.error(f"no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    given.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"device": given.device, "tiny": given.tiny, "parts": {}}
    for name in given.parts or list(PARTS):
        print(f"{name}: {PARTS[name].title}", flush=True)
        results["parts"][name] = found = run_part(name, given.device, given.tiny, PARTS[name].seconds)
        stopped = f"; {found['error'][-300:]}" if "error" in found else ""
        print(f"  {len(found['found'])} rows, {found['seconds']} s{stopped}", flush=True)
        (given.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (given.out / "results.md").write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
