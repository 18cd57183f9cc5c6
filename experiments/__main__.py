"""``python -m experiments [NAME ...]``."""

from __future__ import annotations

import sys

from experiments import load, names


def main() -> None:
    """List the experiments, or run one and print the figures to expect beside what it prints."""
    if len(sys.argv) < 2:
        for name in names():
            print(f"{name:16} {load(name).title}")
        return
    if sys.argv[1] not in names():
        sys.exit(f"no experiment {sys.argv[1]!r}; there are {', '.join(names())}")
    experiment = load(sys.argv[1])
    experiment.main(sys.argv[2:])
    for figure in experiment.figures:
        print(f"to compare: {figure.name}: {figure.value} ({figure.source}; {figure.differs})")


main()
