"""``python -m benchmarks.gpu [--device cuda] [--out FOLDER] [--tiny] [PART ...]``: run parts, write what they found.

Each part is a process of its own with a limit on its time; one that fails or takes too long doesn't stop the others,
and what one leaves of its time the next may use. ``results.json`` holds what was found, ``results.md`` the same for the
README; both are written whenever a row is found. ``--device emulated`` is a rehearsal without a GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import PARTS, ROOT
from benchmarks.gpu.rehearsal import variables
from benchmarks.gpu.table import page
from vtrain import children

Found = dict[str, Any]


def run_part(
    name: str, device: str, tiny: bool, seconds: float, environment: Mapping[str, str], changed: Callable[[Found], None]
) -> Found:
    """What a part found, or why it found nothing more; with the seconds that it took. Each row is told as it comes."""
    start = time.perf_counter()
    found: Found = {"found": []}

    def line(text: str) -> None:
        if text.startswith("{"):
            found["found"].append(json.loads(text))
            print(f"  {text.strip()}", flush=True)
            changed(found)

    arguments = (
        "-m",
        "benchmarks.gpu.parts",
        name,
        device,
        f"{time.time() + seconds:.1f}",
        *(["--tiny"] if tiny else []),
    )
    done = children.bounded(seconds, *arguments, each=line, alone=True, variables=environment, folder=ROOT)
    if done.code is None:
        found["error"] = f"not done after {seconds:.0f} s"
    elif done.code:
        found["error"] = done.err.strip()[-2000:] or f"exit code {done.code}"
    found["seconds"] = round(time.perf_counter() - start, 1)
    changed(found)
    return found


def run(names: list[str], device: str, tiny: bool, out: Path, environment: Mapping[str, str]) -> None:
    """Run parts in turn; write after every row."""
    results: dict[str, Any] = {"device": device, "tiny": tiny, "parts": {}}

    def changed(name: str, found: Found) -> None:
        results["parts"][name] = found
        for file, text in (("results.json", json.dumps(results, indent=1) + "\n"), ("results.md", page(results))):
            half = out / f".{file}"
            half.write_text(text, encoding="utf-8")
            half.replace(out / file)

    # a rehearsal may share few cores with others
    limits = [PARTS[name].seconds * (4 if tiny else 1) for name in names]
    end = time.monotonic() + sum(limits)
    for number, name in enumerate(names):
        later = sum(limits[number + 1 :])
        seconds = end - time.monotonic() - later
        print(f"{name}: {PARTS[name].title}, {seconds:.0f} s at most", flush=True)
        found = run_part(name, device, tiny, seconds, environment, lambda found, name=name: changed(name, found))
        stopped = f"; stopped: {found['error'][-300:]}" if "error" in found else ""
        print(f"  {len(found['found'])} rows, {found['seconds']} s{stopped}", flush=True)


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
    with variables(given.device) as environment:
        run(given.parts or list(PARTS), given.device, given.tiny, given.out, environment)


if __name__ == "__main__":
    main()
