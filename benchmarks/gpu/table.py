"""What the parts found, as Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.parts import PARTS


def page(results: dict[str, Any]) -> str:
    """A section for each part: a table of its rows, and what stopped it."""
    lines = [f"# On {results['device']}{', tiny sizes' if results['tiny'] else ''}", ""]
    for name, found in results["parts"].items():
        lines += [f"## {PARTS[name].title}", ""]
        lines += [*_table(found["found"]), ""] if found["found"] else []
        if "error" in found:
            lines += [f"Stopped: {found['error'].strip().splitlines()[-1]}", ""]
    return "\n".join(lines)


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Rows with the same keys together, in the order of the first of each."""
    lines: list[str] = []
    keys: list[str] = []
    for row in rows:
        if list(row) != keys:
            keys = list(row)
            lines += ["", "| " + " | ".join(keys) + " |", "|" + " --- |" * len(keys)]
        lines.append("| " + " | ".join(_cell(row[key]) for key in keys) + " |")
    return lines[1:]


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text.replace("|", "/").replace("\n", " ")
