"""One file a command. Knows all rooms, and imports the heavy ones when a command runs."""

import os
import sys


def main() -> None:
    """Runs the command line; a mistake is one plain message and exit code 2."""
    try:
        os.getcwd()
    except OSError:  # numerical libraries end the process over it, with a message of their own
        sys.stderr.write(
            "error: the current folder is gone: it was deleted or moved. Change to another one.\n"
        )
        sys.exit(2)
    from tars_lens.cli.app import main as run

    run()
