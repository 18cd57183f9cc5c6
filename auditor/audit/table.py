"""The operation table that a run was made with must be this release's."""

from __future__ import annotations

from vtrain.engine.optable import table_digest
from vtrain.errors import VersionError


def check_table(theirs: str) -> None:
    """Check that a run was made with this release's operation table.

    Raises:
        VersionError: it was not; its bits may differ for honest reasons.
    """
    mine = table_digest()
    if theirs != mine:
        raise VersionError(f"the run was made with operation table {theirs[:60]}; this release has {mine}")
