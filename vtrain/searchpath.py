"""Where a command imports from: never the current directory, unless it was named. Imports nothing that isn't loaded.

An auditor often stands in the folder that a trainer sent. Python puts the current directory first for ``-m`` and
``-c``, and wherever PYTHONPATH has an empty or relative entry; a file ``torch.py`` there would be imported as PyTorch.
"""

import os
import sys

PATH, SAFE = "PYTHONPATH", "PYTHONSAFEPATH"
# By these a process imports other things than another one. PYTHONSAFEPATH is none of them: it only takes away.
_CHANGE_IMPORTS = (PATH, "PYTHONHOME", "PYTHONPLATLIBDIR", "PYTHONUSERBASE", "PYTHONPYCACHEPREFIX", "PYTHONCASEOK")
_RUN_AT_START = ("sitecustomize", "usercustomize")


def named(path: str) -> list[str]:
    """The entries of a PYTHONPATH that name a directory; empty and relative ones mean wherever one stands."""
    return [entry for entry in path.split(os.pathsep) if os.path.isabs(entry)]


def leave_current_directory() -> None:
    """Take empty and relative entries, also those of PYTHONPATH, from this process's search path.

    For a command, before it imports anything else. What Python imported while it started can't be undone.
    """
    path = os.environ.get(PATH)
    unnamed = set()
    if path is not None and not sys.flags.ignore_environment:
        unnamed = {os.path.abspath(entry) for entry in path.split(os.pathsep)} - set(named(path))
    sys.path[:] = [entry for entry in sys.path if os.path.isabs(entry) and entry not in unnamed]


def customized() -> list[str]:
    """Names of what makes this process import other things than Python would: variables, modules run at its start."""
    variables = {} if sys.flags.ignore_environment else {name: os.environ.get(name, "") for name in _CHANGE_IMPORTS}
    if PATH in variables:
        variables[PATH] = os.pathsep.join(named(variables[PATH]))
    return [name for name, value in variables.items() if value] + [m for m in _RUN_AT_START if m in sys.modules]
