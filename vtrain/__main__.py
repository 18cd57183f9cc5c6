"""``python -m vtrain``."""

from vtrain.cli import main

main()
