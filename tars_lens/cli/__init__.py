"""One file a command. Knows all rooms, and imports the heavy ones when a command runs."""


def main() -> None:
    """Runs the command line; a mistake is one plain message and exit code 2."""
    from tars_lens.cli.app import main as run

    run()
