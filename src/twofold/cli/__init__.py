"""The command line: ``twofold COMMAND``; one file a command.

Results go to stdout (``--json`` for machines), progress and logs to stderr. Exit codes: 0 done, 1 failed, 2 usage,
3 a verification found a mismatch, 4 unsupported operator, 5 refused as unsafe, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    from twofold.cli.app import run

    sys.exit(run(arguments))
