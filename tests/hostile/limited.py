"""``limited.py BYTES COMMAND ...``: vtrain in a process that may map so much more than it begins with; its growth."""

from __future__ import annotations

import atexit
import importlib
import sys

from guard import limit_memory, peak


def main() -> None:
    bound = int(sys.argv.pop(1))
    command = importlib.import_module("vtrain.cli").COMMANDS[sys.argv[1]][0]
    for name in (command, f"auditor.evidence.{sys.argv[1]}", "vtrain.store.logread"):
        importlib.import_module(name)  # before memory is counted
    base = peak()
    limit_memory(bound)
    atexit.register(lambda: print(f"grown {peak() - base}", file=sys.stderr))
    sys.modules["vtrain.cli"].main()


main()
