"""The command `musicrt`. Importing this loads nothing; `app.py` lists the commands."""


def main() -> None:
    """Entry point."""
    from musicrt.cli.app import run

    run()
