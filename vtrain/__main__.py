"""``python -m vtrain``."""

import sys

if not sys.flags.safe_path:
    del sys.path[0]  # the current directory; before anything is imported that could lie there

from vtrain.cli import main

if __name__ == "__main__":
    main()
